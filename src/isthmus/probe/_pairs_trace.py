"""Numbers over the steps of a training of unknown length: uniform in time, and never more than so many."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

MOST = 512
"""Times that are kept at most."""


class Trace:
    """Keeps an array for every step that is due: every step at first; each time `MOST` are kept every other one is
    dropped, and half as many are due from then on.

    Attributes:
        steps: steps that are kept, in order.
        times: the time of each.
        values: the array of each.
        failed: steps without numbers, with the reason.
        stride: steps between two that are due.
    """

    def __init__(self) -> None:
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
        if len(self.steps) >= MOST and not provisional:
            self.coarsen()

    def coarsen(self) -> None:
        """Keep every other step, from the first, and twice the steps between two that are due."""
        self._drop_provisional()
        self.steps, self.times, self.values = self.steps[::2], self.times[::2], self.values[::2]
        self.failed = {step: why for step, why in self.failed.items() if step in self.steps}
        self.stride *= 2

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
        }  # fmt: skip

    def load(self, state: dict[str, Any]) -> None:
        """Become what `state` said."""
        self.steps, self.times = list(state["steps"]), list(state["times"])
        self.values = list(state["values"].numpy())
        self.failed, self.stride = dict(state["failed"]), state["stride"]
        self._provisional = state["provisional"]
