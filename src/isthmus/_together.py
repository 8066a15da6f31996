"""Processes that work together on one thing: what they tell each other, so that none waits for ever."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any, Self, TypeVar, cast

import torch.distributed as dist

from isthmus._errors import InputError, IsthmusError

_LONGEST = datetime.timedelta(days=1)
"""How long a process waits for another that is at work; for one that never comes, as long as torch's default."""

_MOST = 300
"""Characters that the others are told of an error."""

Value = TypeVar("Value")


class ElsewhereError(IsthmusError):
    """Another process has stopped."""


class Together:
    """This process among those of a group.

    Whatever goes wrong in one of them is told to the others where they meet next; one that is gone is noticed there.
    """

    def __init__(self, group: Any) -> None:
        self._group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    @classmethod
    @contextmanager
    def meeting(cls, argument: str) -> Generator[Self]:
        """The processes of the default group, over a group of their own on the CPU.

        Args:
            argument: what asked for it, for the error.

        Raises:
            InputError: there is no process group.
        """
        if not (dist.is_available() and dist.is_initialized()):
            hint = "start them with torchrun and call torch.distributed.init_process_group first"
            raise InputError(argument, True, "processes that know each other", hint)
        here: Any = dist.new_group(backend="gloo")  # waits for all
        dist.destroy_process_group(here)
        together = cls(dist.new_group(backend="gloo", timeout=_LONGEST))
        try:
            yield together
        finally:
            together.leave()

    def leave(self) -> None:
        """Close the connections: whoever waits for this process hears of it at once, whoever holds its error here."""
        group, self._group = self._group, None
        if group is not None:
            dist.destroy_process_group(group)

    @contextmanager
    def or_leave(self) -> Generator[None]:
        """Where the others do not meet, so that no error can be told to them."""
        try:
            yield
        except BaseException:
            self.leave()
            raise

    def exchange(self, how: Callable[..., object], *what: Any) -> None:
        """Send, receive or gather.

        Raises:
            IsthmusError: a process is gone.
        """
        try:
            how(*what, group=self._group)
        except RuntimeError as error:
            lost = re.sub(r"^\[\S+\] ", "", str(error)).split(". ")[0]
        else:
            return
        raise ElsewhereError(  # not `from` the other, which would hold the connections open
            f"another process is gone: it was interrupted or killed, or cannot be reached any more ({lost})"
        )

    def _gathered(self, value: Any) -> list[Any]:
        found: list[Any] = [None] * self.size
        self.exchange(dist.all_gather_object, found, value)
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
        self.exchange(dist.broadcast_object_list, held, 0)
        return held[0]

    def everywhere(self, function: Callable[[], Value | None]) -> Value:
        """Run `function`, and return what it gave on the first process; if it fails on one, it fails on all."""
        try:
            made = function()
        except ElsewhereError:
            raise
        except Exception as error:
            if self._group is not None:
                with suppress(ElsewhereError):  # the error of this process is the one to know
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
                with suppress(ElsewhereError):
                    self.from_first((_words(error), None))
                raise
            return cast("Value", self.from_first(("", made))[1])
        error, made = self.from_first(None)
        if error:
            raise ElsewhereError(f"process 0 of {self.size} has stopped: {error}")
        return made


def _words(error: Exception) -> str:
    """What an error says, with its type where it is not one of ours; of a long one the beginning and the end."""
    text, kind = " ".join(str(error).split()), type(error).__name__
    if not text or not isinstance(error, IsthmusError):
        text = f"{kind}: {text}" if text else kind
    return text if len(text) <= _MOST else f"{text[: _MOST // 3]} … {text[-2 * _MOST // 3 :]}"
