"""What a run would take, before it is started: sizes, memory, time."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import statistics
import time

import torch

from isthmus.data import Task
from isthmus.experiments._leaky_run import LeakyConfig, prepare_leaky
from isthmus.models import LeakyResNet
from isthmus.train import EpochLog, FitConfig, finish, finish_iterations, fit

_TRIAL_FINISH = 9
_REFRESH = 50
_FINISH_COPIES = 50


@dataclasses.dataclass(frozen=True)
class Plan:
    """Sizes, memory in bytes and expected seconds of a run.

    Attributes:
        parameters: number of trained parameters.
        memory: estimate of the peak beside the libraries: parameters with gradient and two Adam moments, the path and
            its activations kept for the backward pass, and the float64 copies of one measurement; with a finish, also
            the float64 copies of the weights that L-BFGS keeps, and those of the path.
        finish: iterations of the second-order finish after the epochs.
        seconds: training time extrapolated from a few epochs, and a few iterations of the finish, on a copy, measured
            here and now.
    """

    samples: int
    inputs: int
    outputs: int
    width: int
    depth: int
    parameters: int
    epochs: int
    finish: int
    memory: int
    seconds: float

    def lines(self) -> list[tuple[str, str]]:
        """Names and values, for printing."""
        minutes = f"{self.seconds:.0f} s" if self.seconds < 120 else f"{self.seconds / 60:.1f} min"
        steps = f"{self.epochs:,} epochs" + (f" and {self.finish:,} iterations of the finish" if self.finish else "")
        return [
            ("samples", f"{self.samples:,}"),
            ("inputs → outputs", f"{self.inputs} → {self.outputs}"),
            ("width × layers", f"{self.width} × {self.depth}"),
            ("parameters", f"{self.parameters:,}"),
            ("memory, about", f"{self.memory / 2**20:,.0f} MiB"),
            ("training time, about", f"{minutes} for {steps}"),
        ]


def plan_leaky(task: Task, config: LeakyConfig, processes: int = 1) -> Plan:
    """Check every setting, and estimate what the run would take; trains a few epochs on a copy and writes nothing.

    Raises:
        InputError: any setting that cannot be used.
    """
    job = prepare_leaky(task, config, processes)
    model, n = job.model, len(task.x_train)
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    size = torch.finfo(model.weight.dtype).bits // 8
    batch = min(config.batch_size or n, n)
    kept = 3 * (model.depth + 1) * batch * model.width * size
    measured = 8 * (model.depth + 1) * (3 * min(n, 2048) * (model.width + 1) + 6 * (model.width + 1) ** 2)
    if job.fit.finish:
        kept += 8 * (_FINISH_COPIES * parameters + 6 * (model.depth + 1) * n * model.width)
    trial = dataclasses.replace(job.fit, epochs=3, sgd_epochs=0, finish=0, log_points=2, patience=0,
                                gradient_tolerance=0.0, stationarity_tolerance=0.0)  # fmt: skip
    fit(copy.deepcopy(model), task.x_train, task.y_train, dataclasses.replace(trial, epochs=1))  # warm up
    times: list[float] = []

    def clock(epoch: int, epochs: int, log: EpochLog | None) -> None:
        times.append(time.perf_counter())

    begun = copy.deepcopy(model)
    fit(begun, task.x_train, task.y_train, trial, progress=clock)
    return Plan(
        samples=n,
        inputs=task.in_features,
        outputs=task.out_features,
        width=model.width,
        depth=model.depth,
        parameters=parameters,
        epochs=job.fit.total_epochs,
        finish=finish_iterations(job.fit.finish),
        memory=4 * parameters * size + kept + measured,
        seconds=(times[1] - times[0]) * job.fit.total_epochs + _finish_seconds(begun, task, job.fit),
    )


def _finish_seconds(model: LeakyResNet, task: Task, config: FitConfig) -> float:
    """Time of the finish, from the shortest one on `model`, which is changed.

    The curvature, made anew every 50 iterations and with each of the four phases, costs far more than an iteration. So
    the two are told apart: an iteration takes the median time between two of them, the four phases of the short finish
    what is left of its time.
    """
    if not config.finish:
        return 0.0
    times = [time.perf_counter()]
    weight, y = model.weight, task.y_train
    finish(model, task.x_train.to(weight), y.to(weight) if y.is_floating_point() else y.to(weight.device),
           loss=config.loss, ridge=config.ridge, iterations=_TRIAL_FINISH, seed=config.seed,
           progress=lambda _iterations, _objective: times.append(time.perf_counter()))  # fmt: skip
    if len(times) == 1:  # nothing to finish
        return 0.0
    iteration = statistics.median(after - before for before, after in itertools.pairwise(times))
    phases = max(0.0, times[-1] - times[0] - iteration * (len(times) - 1))
    return iteration * finish_iterations(config.finish) + phases * (4 + config.finish // _REFRESH) / 4
