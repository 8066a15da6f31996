"""Checks of constructor arguments, each raising `InputError` with the name the caller wrote."""

from __future__ import annotations

import math

import numpy as np
import torch

from isthmus._errors import InputError


def whole_number(argument: str, value: object, smallest: int = 1) -> int:
    """`value` as an `int`; raises `InputError` unless it is an integer (not a bool) of at least `smallest`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or int(value) < smallest:
        raise InputError(argument, value, f"an integer of at least {smallest}")
    return int(value)


def real_number(argument: str, value: object, expected: str, *, low: float, high: float = math.inf,
                low_open: bool = False, high_open: bool = True) -> float:  # fmt: skip
    """`value` as a finite `float` between `low` and `high`; raises `InputError` that says `expected` otherwise."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise InputError(argument, value, expected)
    number = float(value)
    above = number > low if low_open else number >= low
    below = number < high if high_open else number <= high
    if not (math.isfinite(number) and above and below):
        raise InputError(argument, value, expected)
    return number


def check_device(device: torch.device | str, argument: str = "device") -> torch.device:
    """A device that is there and holds numbers; raises `InputError` otherwise (`meta`, say, holds none)."""
    try:
        found = torch.device(device)
        torch.zeros(1, device=found).item()
    except (RuntimeError, AssertionError, ValueError, NotImplementedError):
        known = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
        expected = f"a device of this machine ({', '.join(known)})"
        raise InputError(argument, str(device), expected, "try 'cpu'") from None
    return found
