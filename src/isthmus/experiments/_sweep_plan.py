"""What a sweep would take, before it is started."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from isthmus.experiments._plan import plan_leaky
from isthmus.experiments._sources import task_from_source
from isthmus.experiments._sweep_settings import Sweep
from isthmus.experiments._workers import check_jobs

_TRIED = 4


@dataclasses.dataclass(frozen=True)
class SweepPlan:
    """Time and memory of the runs that are to do.

    Attributes:
        runs: that are to do.
        tried: how many of them the estimate is from, evenly spaced.
        jobs: at the same time.
        seconds: for all of them, with `jobs` at a time.
        memory: in bytes, of `jobs` of the largest tried, beside the libraries.
    """

    runs: int
    tried: int
    jobs: int
    seconds: float
    memory: int

    def lines(self) -> list[tuple[str, str]]:
        """Names and values, for printing."""
        if not self.runs:
            return [("to do", "nothing: all runs are settled")]
        took = f"{self.seconds:.0f} s" if self.seconds < 120 else f"{self.seconds / 60:.1f} min"
        return [
            ("to do", f"{self.runs} runs, {self.jobs} at a time"),
            ("memory, about", f"{self.memory / 2**20:,.0f} MiB"),
            ("training time, about", f"{took}, estimated from {self.tried} of them"),
        ]


def plan_sweep(sweep: Sweep, states: dict[str, str], *, jobs: int = 1) -> SweepPlan:
    """Estimate what the runs that are to do would take: trains a few epochs of some of them, and writes nothing.

    Args:
        sweep: the sweep.
        states: of its runs, from `sweep_states`.
        jobs: runs at the same time, with one thread each.

    Raises:
        InputError: fewer than 1 job.
    """
    check_jobs(jobs)
    waiting = [run for run in sweep.runs if states[run.digest] == "to do"]
    if not waiting:
        return SweepPlan(0, 0, jobs, 0.0, 0)
    picked = np.unique(np.linspace(0, len(waiting) - 1, min(_TRIED, len(waiting))).round().astype(int)).tolist()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        plans = [plan_leaky(task_from_source(waiting[k].source), waiting[k].config) for k in picked]
    finally:
        torch.set_num_threads(threads)
    together = min(jobs, len(waiting))
    seconds = sum(plan.seconds for plan in plans) / len(plans) * len(waiting) / together
    return SweepPlan(len(waiting), len(plans), together, seconds, together * max(plan.memory for plan in plans))
