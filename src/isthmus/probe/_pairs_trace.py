"""Numbers over the steps of a training of unknown length: uniform in time, and never more than so many."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

MOST = 512
"""Times that are kept at most."""

FEWEST = 64
"""Times of which there is always room."""

NUMBERS = 2**20
"""Numbers that are kept at most, over all times."""

_ENOUGH = 0.75


class Trace:
    """Keeps an array for every step that is due: every step at first; each time `most` are kept every other one is
    dropped, and half as many are due from then on.

    Args:
        width: numbers in each array, of which `NUMBERS` are kept at most.

    Attributes:
        most: times that are kept at most.
        steps: steps that are kept, in order.
        times: the time of each.
        values: the array of each.
        failed: steps without numbers, with the reason.
        stride: steps between two that are due.
        left_out: how many were due and were not recorded.
    """

    def __init__(self, width: int = 1) -> None:
        self.most = min(MOST, max(NUMBERS // width, FEWEST))
        self.left_out = 0
        self.steps: list[int] = []
        self.times: list[float] = []
        self.values: list[np.ndarray] = []
        self.failed: dict[int, str] = {}
        self.stride = 1
        self._provisional = False

    def due(self, before: int, now: int) -> bool:
        """Whether a step that is to be kept lies in `(before, now]`."""
        first = self.steps[0] if self.steps else now
        return (now - first) // self.stride > (before - first) // self.stride

    def add(self, step: int, time: float, values: np.ndarray, *, why: str = "", provisional: bool = False) -> None:
        """Keep the numbers of a step that is after all others.

        Args:
            step: the step.
            time: its time.
            values: an array, of the same shape for every step.
            why: why there are no numbers, where there are none.
            provisional: only until the next one is added: the last step of a training, which need not be due.
        """
        self._drop_provisional()
        if self.steps and self.steps[-1] == step:
            raise ValueError(f"step {step} is kept already")
        self.steps.append(step)
        self.times.append(time)
        self.values.append(values)
        self._provisional = provisional
        if why:
            self.failed[step] = why
        if len(self.steps) >= self.most and not provisional:
            self.coarsen()

    def coarsen(self) -> None:
        """Twice the steps between two that are due, and of those that are kept the first in each such stretch; again
        where that leaves more than three quarters of them.
        """
        self._drop_provisional()
        kept = range(len(self.steps))
        while len(kept) > _ENOUGH * len(self.steps):
            self.stride *= 2
            places = [(step - self.steps[0]) // self.stride for step in self.steps]
            kept = [k for k, place in enumerate(places) if not k or place > places[k - 1]]
        self.steps, self.times = [self.steps[k] for k in kept], [self.times[k] for k in kept]
        self.values = [self.values[k] for k in kept]
        self.failed = {step: why for step, why in self.failed.items() if step in self.steps}

    def _drop_provisional(self) -> None:
        if self._provisional:
            self._provisional = False
            self.keep_before(self.steps[-1])

    def keep_before(self, step: int) -> None:
        """Drop that step, and all after it."""
        kept = sum(one < step for one in self.steps)
        self.steps, self.times, self.values = self.steps[:kept], self.times[:kept], self.values[:kept]
        self.failed = {one: why for one, why in self.failed.items() if one < step}

    def state(self) -> dict[str, Any]:
        """Everything, as tensors and plain values that `torch.load(weights_only=True)` reads."""
        return {
            "steps": list(self.steps), "times": list(self.times), "failed": dict(self.failed), "stride": self.stride,
            "values": torch.from_numpy(np.array(self.values)), "provisional": self._provisional,
            "left_out": self.left_out,
        }  # fmt: skip

    def load(self, state: dict[str, Any]) -> None:
        """Become what `state` said."""
        self.steps, self.times = list(state["steps"]), list(state["times"])
        self.values = list(state["values"].numpy())
        self.failed, self.stride = dict(state["failed"]), state["stride"]
        self._provisional, self.left_out = state["provisional"], state.get("left_out", 0)
