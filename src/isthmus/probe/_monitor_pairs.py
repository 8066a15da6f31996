"""Pairs of samples beside the measurements of a monitor: when they are recorded, and what that may cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from isthmus._errors import InputError, RunFolderError
from isthmus.probe import _monitor_schedule
from isthmus.probe._monitor_folder import MonitorFolder
from isthmus.probe._monitor_schedule import Ledger
from isthmus.probe._one import Forward
from isthmus.probe._pairs import track_pairs


def start_clock(model: nn.Module, ledger: Ledger) -> float:
    """The time at which a look at the model begins, after all that the training has asked its device for."""
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    for device in devices:
        torch.cuda.synchronize(device)
    if devices:
        ledger.waited()  # for what the training had asked for, which is not the measurement's to pay for
    return _monitor_schedule.clock()


class MonitoredPairs:
    """Pairs that are recorded at a stride of their own, for at most half of the monitor's budget.

    A record that would take more is left out, and nothing that is recorded is dropped for it. Where records cost more
    than that at their stride, not once but as a rule, the stride doubles.

    Args:
        model: the model.
        samples: batches that the monitor holds.
        targets: theirs.
        pairs: as for `track_pairs`.
        folder: of the monitor; where it is resumed and has pairs, those go on.
        ledger: of the monitor.
        forward: as for `measure`.
        layers: as for `measure`.
        n: number of samples.
        seed: of the choice of pairs.

    Raises:
        InputError: as `track_pairs`.
        RunFolderError: a folder to resume that has other pairs.
        ModelError: the model raised an error.
    """

    def __init__(
        self, model: nn.Module, samples: Sequence[Any], targets: Any, pairs: int | Sequence[Sequence[int]], *,
        folder: MonitorFolder, ledger: Ledger, forward: Forward | None, layers: str | Sequence[str], n: int, seed: int,
    ) -> None:  # fmt: skip
        self._ledger = ledger
        self._begun = (folder.first_step, ledger.training)
        at, before = folder.first_step, folder.pairs_before
        self.tracker = track_pairs(model, samples, targets, pairs=pairs, layers=layers, forward=forward, max_samples=n,
                                   first_step=at, seed=seed)  # fmt: skip
        if before is not None and before["trace"]["steps"]:
            try:
                self.tracker.load_state_dict(before)
            except InputError as error:
                raise RunFolderError("pairs", self.tracker.pairs, f"the pairs and layers of the folder to go on with "
                                     f"({error.value})", "choose another folder") from None  # fmt: skip
            self.tracker.observe(provisional=not self.tracker.due(self.tracker.steps[-1], at))
        folder.pairs = self.tracker
        ledger.shared = True

    def step(self, before: int, now: int, start: Callable[[], float]) -> None:
        """Count up to a step, and record where that is due and within the budget.

        Args:
            before: the step before.
            now: the step.
            start: gives the time, when the training's own work is done.
        """
        self.tracker.count(now)
        if not self.tracker.due(before, now):
            return
        if self._ledger.fits_pairs():  # asked first, for `start` waits for the device
            begun = start()
            self.tracker.observe()
            self._ledger.recorded_pairs(begun)
        else:
            first, training = self._begun
            of_stride = self.tracker.stride * (self._ledger.training - training) / (now - first)
            self.tracker.leave_out(widen=not self._ledger.affords_pairs(of_stride))
