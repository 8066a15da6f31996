"""Extras of a measurement: one that fails has a reason instead of numbers, and costs nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from isthmus._errors import IsthmusError
from isthmus.probe._loading_files import reason_of, said

Value = TypeVar("Value")


def attempted(extra: Callable[[], Value]) -> tuple[Value, str] | tuple[None, str]:
    """What an extra gives, and an empty string; or None, and the reason. Interrupts and `MemoryError` are passed on."""
    try:
        return extra(), ""
    except MemoryError:
        raise
    except (IsthmusError, RuntimeError) as error:
        return None, reason_of(error)
    except Exception as error:  # noqa: BLE001 - whatever an extra says, the rest of the measurement stands
        return None, said(error)
