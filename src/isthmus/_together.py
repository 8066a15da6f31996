"""Processes that work together on one thing: what they tell each other, so that none waits for ever."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch.distributed as dist

from isthmus._errors import InputError, IsthmusError

_LONGEST = datetime.timedelta(days=1)
"""How long a process waits for another that is at work; for one that never comes, as long as torch's default."""

Value = TypeVar("Value")


class ElsewhereError(IsthmusError):
    """Another process has stopped."""


@contextmanager
def process_group(argument: str) -> Generator[Any]:
    """A group of the processes of the default one, on the CPU, whatever that one runs on.

    Args:
        argument: what asked for it, for the error.

    Raises:
        InputError: there is no default group.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise InputError(argument, True, "processes that know each other",
                         "start them with torchrun and call torch.distributed.init_process_group first")  # fmt: skip
    here: Any = dist.new_group(backend="gloo")  # waits for all
    dist.destroy_process_group(here)
    group: Any = dist.new_group(backend="gloo", timeout=_LONGEST)
    try:
        yield group
    finally:
        dist.destroy_process_group(group)


class Together:
    """This process among those of a group.

    Whatever goes wrong in one of them is told to the others where they meet next.
    """

    def __init__(self, group: Any) -> None:
        self._group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def _gathered(self, value: Any) -> list[Any]:
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self._group)
        return found

    def meet(self, value: Any = None) -> list[Any]:
        """What every process brings, in order.

        Raises:
            IsthmusError: one of them has stopped.
        """
        found = self._gathered(("", value))
        for rank, (error, _) in enumerate(found):
            if error:
                raise ElsewhereError(f"process {rank} of {self.size} has stopped: {error}")
        return [brought for _, brought in found]

    def from_first(self, value: Any) -> Any:
        """What the first process brings, on all of them."""
        held = [value if self.rank == 0 else None]
        dist.broadcast_object_list(held, src=0, group=self._group)
        return held[0]

    def everywhere(self, function: Callable[[], Value | None]) -> Value:
        """Run `function`, and return what it gave on the first process; if it fails on one, it fails on all."""
        try:
            made = function()
        except ElsewhereError:
            raise
        except Exception as error:
            self._gathered((_words(error), None))
            raise
        self.meet()
        return cast("Value", self.from_first(made))

    def on_first(self, function: Callable[[], Value]) -> Value:
        """Run `function` on the first process alone, and return what it gave, on all; if it fails, it fails on all."""
        if self.rank == 0:
            try:
                made = function()
            except Exception as error:
                self.from_first((_words(error), None))
                raise
            return cast("Value", self.from_first(("", made))[1])
        error, made = self.from_first(None)
        if error:
            raise ElsewhereError(f"process 0 of {self.size} has stopped: {error}")
        return made


def _words(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
