"""What a run would take, before it is started: sizes, memory, time."""

from __future__ import annotations

import copy
import dataclasses
import time

import torch

from isthmus.data import Task
from isthmus.experiments._leaky_run import LeakyConfig, prepare_leaky
from isthmus.train import EpochLog, fit


@dataclasses.dataclass(frozen=True)
class Plan:
    """Sizes, memory in bytes and expected seconds of a run.

    Attributes:
        parameters: number of trained parameters.
        memory: estimate of the peak beside the libraries: parameters with gradient and two Adam moments, the path and
            its activations kept for the backward pass, and the float64 copies of one measurement.
        seconds: training time extrapolated from a few epochs on a copy, measured here and now.
    """

    samples: int
    inputs: int
    outputs: int
    width: int
    depth: int
    parameters: int
    epochs: int
    memory: int
    seconds: float

    def lines(self) -> list[tuple[str, str]]:
        """Names and values, for printing."""
        minutes = f"{self.seconds:.0f} s" if self.seconds < 120 else f"{self.seconds / 60:.1f} min"
        return [
            ("samples", f"{self.samples:,}"),
            ("inputs → outputs", f"{self.inputs} → {self.outputs}"),
            ("width × layers", f"{self.width} × {self.depth}"),
            ("parameters", f"{self.parameters:,}"),
            ("memory, about", f"{self.memory / 2**20:,.0f} MiB"),
            ("training time, about", f"{minutes} for {self.epochs:,} epochs"),
        ]


def plan_leaky(task: Task, config: LeakyConfig) -> Plan:
    """Check every setting, and estimate what the run would take; trains a few epochs on a copy and writes nothing.

    Raises:
        InputError: any setting that cannot be used.
    """
    job = prepare_leaky(task, config)
    model, n = job.model, len(task.x_train)
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    size = torch.finfo(model.weight.dtype).bits // 8
    batch = min(config.batch_size or n, n)
    kept = 3 * (model.depth + 1) * batch * model.width * size
    measured = 8 * (model.depth + 1) * (3 * min(n, 2048) * (model.width + 1) + 6 * (model.width + 1) ** 2)
    trial = dataclasses.replace(job.fit, epochs=3, sgd_epochs=0, log_points=2, patience=0, gradient_tolerance=0.0,
                                stationarity_tolerance=0.0)  # fmt: skip
    fit(copy.deepcopy(model), task.x_train, task.y_train, dataclasses.replace(trial, epochs=1))  # warm up
    times: list[float] = []

    def clock(epoch: int, epochs: int, log: EpochLog | None) -> None:
        times.append(time.perf_counter())

    fit(copy.deepcopy(model), task.x_train, task.y_train, trial, progress=clock)
    return Plan(
        samples=n,
        inputs=task.in_features,
        outputs=task.out_features,
        width=model.width,
        depth=model.depth,
        parameters=parameters,
        epochs=job.fit.total_epochs,
        memory=4 * parameters * size + kept + measured,
        seconds=(times[1] - times[0]) * job.fit.total_epochs,
    )
