"""The one root error of the package, and the few kinds a caller may want to tell apart."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class IsthmusError(Exception):
    """Root of every error raised on purpose by Isthmus."""


class InputError(IsthmusError, ValueError):
    """An argument that cannot be used: names it, its value, what is expected and what to try.

    Args:
        argument: the argument's name as the caller wrote it (`effective_depth`).
        value: what was given; shown in a shortened form.
        expected: what would have been accepted, in words.
        hint: what to try next; empty when `expected` says it all.
    """

    def __init__(self, argument: str, value: object, expected: str, hint: str = "") -> None:
        self.argument, self.value, self.expected, self.hint = argument, value, expected, hint
        shown = value if isinstance(value, str) else repr(value)
        shown = shown if len(shown) <= 160 else shown[:157] + "..."
        tail = f"; {hint}" if hint else ""
        super().__init__(f"{argument}: got {shown}, expected {expected}{tail}")

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str, str, str]]:
        """For a pickle (another process): the same sentence; the value as it is shown."""
        value = self.value if isinstance(self.value, str) else repr(self.value)
        return type(self), (self.argument, value, self.expected, self.hint)


class RunFolderError(InputError):
    """A run folder that is missing, incomplete, foreign, or already there."""


class WriteError(IsthmusError, OSError):
    """A file could not be written (a full disk, say); what was there before is untouched."""


class DivergedError(IsthmusError):
    """Training stopped because the loss or the weights are no longer finite numbers.

    Args:
        message: where, and what to try.
        pairs: the tracker of pairs of samples up to there, where the training had one.
    """

    def __init__(self, message: str, *, pairs: object = None) -> None:
        self.pairs = pairs
        super().__init__(message)


class DataWarning(UserWarning):
    """The data can be used, but something about them should be known (a constant column, say)."""


class DataNote(DataWarning):
    """Something about the data that was decided without being asked for, and by what option to decide otherwise."""


def near_name_hint(name: str, known: Iterable[str]) -> str:
    """`did you mean …?` with the closest known names, or the list of all of them where none is close."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(n) for n in close) + "?"
    return "known: " + ", ".join(names)
