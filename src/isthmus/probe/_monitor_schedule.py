"""When a training is measured: at steps of a schedule, as far as a share of the training time allows."""

from __future__ import annotations

import bisect
import itertools
import operator
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from isthmus._errors import InputError

clock: Callable[[], float] = time.perf_counter
"""Seconds; the tests put their own in its place."""

_PER_OCTAVE = 4
_FEW, _RECENT = 2, 9


class Schedule:
    """Steps at which a measurement is due.

    Args:
        given: `"log"`: 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, …: four in each doubling; a whole number `k`: every
            `k` steps; or the steps themselves, increasing.

    Raises:
        InputError: none of these.
    """

    def __init__(self, given: str | int | Sequence[int]) -> None:
        self._every: int | None = None
        self._steps: list[int] | None = None
        if isinstance(given, str):
            if given != "log":
                raise InputError("schedule", given, "'log', a number of steps, or a list of steps")
        elif isinstance(given, Sequence):
            self._steps = _steps(list(given))
        else:
            self._every = _whole(given)
            if self._every < 1:
                raise InputError("schedule", given, "a number of steps of at least 1")

    def count(self, after: int, until: int) -> int:
        """How many steps of the schedule lie in `(after, until]`."""
        if until <= after:
            return 0
        if self._every is not None:
            return until // self._every - after // self._every
        if self._steps is not None:
            return bisect.bisect_right(self._steps, until) - bisect.bisect_right(self._steps, after)
        return _logarithmic(until) - _logarithmic(after)

    def record(self) -> str | int | list[int]:
        """What the run folder keeps of it."""
        return "log" if self._every is None and self._steps is None else self._every or list(self._steps or ())


def _whole(value: Any) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise InputError("schedule", value, "'log', a whole number of steps, or a list of them") from None


def _steps(given: list[Any]) -> list[int]:
    steps = [_whole(step) for step in given]
    if not steps:
        raise InputError("schedule", given, "at least one step", "use 'log', or a number of steps")
    if steps[0] < 0:
        raise InputError("schedule", given, "steps that are not negative")
    for before, after in itertools.pairwise(steps):
        if after <= before:
            raise InputError("schedule", given, f"steps that increase (after {before} comes {after})")
    return steps


def _logarithmic(step: int) -> int:
    """How many steps of the logarithmic schedule are at most `step`."""
    if step < _PER_OCTAVE:
        return max(step, 0)
    octave = step.bit_length() - 1  # 2^octave <= step; its part of the schedule has spacing 2^octave / 4
    inside = (step - (1 << octave)) * _PER_OCTAVE >> octave
    return _PER_OCTAVE - 1 + (octave - 2) * _PER_OCTAVE + inside + 1


def check_step(argument: str, value: Any, least: int, expected: str, hint: str = "") -> int:
    """A step that a caller gave, as a whole number of at least `least`.

    Raises:
        InputError: it is none.
    """
    try:
        step = least - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        step = least - 1
    if step < least:
        raise InputError(argument, repr(value), expected, hint)
    return step


def check_rate(argument: str, value: Any) -> float:
    """A learning rate that a caller gave, as a number; a tensor of one is one.

    Raises:
        InputError: it is none.
    """
    try:
        rate = -1.0 if isinstance(value, (bool, str, bytes)) else float(value)
    except (TypeError, ValueError, RuntimeError):
        rate = -1.0
    if not 0 <= rate < float("inf"):
        raise InputError(argument, repr(value), "a finite number of at least 0")
    return rate


class Ledger:
    """Time spent training and time spent measuring, and whether one more measurement fits the budget.

    The next measurement is taken to last as long as the longest of the last two. One more than the next is kept in
    reserve for the last of the training, so that the whole stays within the budget, too.

    Args:
        budget: share of the training time that measuring may take, above 0 and at most 1.
        training: seconds spent so far (of a run that is resumed).
        measuring: seconds spent so far.
        start: seconds spent so far making monitors, which the budget is not about.
        scheduled: steps of the schedule that have come; None where a run that is resumed does not say.
        postponed: those of them that were not measured, to keep within the budget.
        pairs: seconds spent so far recording pairs of samples.

    Attributes:
        shared: whether pairs are recorded, too: they may take one half of the budget, measurements the other.

    Raises:
        InputError: no such share.
    """

    def __init__(self, budget: float | int, *, training: float = 0.0, measuring: float = 0.0, start: float = 0.0,
                 scheduled: int | None = 0, postponed: int = 0, pairs: float = 0.0) -> None:  # fmt: skip
        if isinstance(budget, bool) or not 0 < budget <= 1:
            raise InputError("budget", budget, "a share of the training time, above 0 and at most 1",
                             "0.05 lets measuring take 5%")  # fmt: skip
        self.budget, self.training, self.measuring = float(budget), training, measuring
        self.start, self.scheduled, self.postponed, self.pairs = start, scheduled, postponed, pairs
        self.shared = False
        self._pair_costs: list[float] = []
        self._waits: int | None = None
        self._costs: list[float] = []
        self._since: float | None = None

    def stepped(self) -> None:
        """A training step has ended; the time since the call before was training."""
        now = clock()
        if self._since is not None:
            self.training += now - self._since
        self._since = now

    def waited(self) -> None:
        """What the last step left to be done is done: the time it took was training, too."""
        if self._since is not None:
            self.stepped()

    def measured(self, start: float) -> float:
        """A measurement that began at `start` has ended; returns how long it took."""
        now = clock()
        took = now - start
        self.measuring += took
        self._costs = [*self._costs[-1:], took]
        if self._since is not None:
            self._since = now
        return took

    def fits(self) -> bool:
        """Whether the next measurement, and one last one, fit the budget."""
        return self.measuring + 2 * max(self._costs, default=0.0) <= self._part * self.training

    @property
    def _part(self) -> float:
        return self.budget / 2 if self.shared else self.budget

    def recorded_pairs(self, start: float) -> None:
        """A record of pairs that began at `start` has ended."""
        now = clock()
        self._pair_costs = [*self._pair_costs[1 - _RECENT :], now - start]
        self.pairs += now - start
        if self._since is not None:
            self._since = now

    def fits_pairs(self) -> bool:
        """Whether one more record of pairs, of the usual cost, fits their half of the budget."""
        usual = statistics.median_low(self._pair_costs) if self._pair_costs else 0.0
        return self.pairs + usual <= self._part * self.training

    def affords_pairs(self, seconds: float) -> bool:
        """Whether a record of the usual cost (the median of the last few, so that one that was slow does not count) is
        within their half of so many seconds of training. Of a single record nothing is concluded.
        """
        return len(self._pair_costs) < _FEW or statistics.median_low(self._pair_costs) <= self._part * seconds

    def came(self, step: int, *, waits: bool) -> None:
        """A step of the schedule has come; it waits, or it is measured."""
        self.scheduled = None if self.scheduled is None else self.scheduled + 1
        if waits:
            self.postponed, self._waits = self.postponed + 1, step

    def caught_up(self, step: int) -> None:
        """A step is measured whatever it costs; it may be one that had to wait."""
        if self._waits == step:
            self.postponed, self._waits = self.postponed - 1, None

    def record(self, now: float = 0.0) -> dict[str, float | int | None]:
        """What the run folder keeps; `now` are the seconds of the measurement that is not counted yet."""
        measuring = self.measuring + self.pairs + now
        pairs = {"seconds_pairs": self.pairs} if self.shared else {}
        return {
            "scheduled": self.scheduled, "postponed": self.postponed, "budget": self.budget,
            "share": measuring / self.training if self.training > 0 else None, "seconds_measuring": measuring,
            "seconds_training": self.training, "seconds_start": self.start, **pairs,
        }  # fmt: skip

    @property
    def share(self) -> float | None:
        """Time measuring over time training; None before there was any."""
        return (self.measuring + self.pairs) / self.training if self.training > 0 else None
