"""What a representation cost would take, before it is started."""

from __future__ import annotations

import dataclasses
import time

import torch

from isthmus.data import Task
from isthmus.experiments._cost_networks import ADAM_STEPS, CostConfig, Job, check_cost, in_float64, jobs_of
from isthmus.train import RidgeConfig, fit_ridge

_TRIAL_ADAM, _TRIAL_STEPS = 5, 12
_COPIES = 50


@dataclasses.dataclass(frozen=True)
class CostPlan:
    """Sizes, memory in bytes and expected seconds of a cost.

    Attributes:
        samples: training samples.
        inputs: of each.
        outputs: of each.
        width: of the hidden layers.
        networks: seeds × depths.
        parameters: of the deepest network.
        memory: estimate of the peak of one process beside the libraries: the weights with the copies that L-BFGS keeps,
            and the activations of all samples.
        seconds: of all networks at most (a training may end before), extrapolated from a few steps of the shallowest
            and the deepest on this machine, now.
    """

    samples: int
    inputs: int
    outputs: int
    width: int
    networks: int
    parameters: int
    memory: int
    seconds: float

    def lines(self) -> list[tuple[str, str]]:
        """Names and values, for printing."""
        time_ = f"{self.seconds:.0f} s" if self.seconds < 120 else f"{self.seconds / 60:.1f} min"
        return [
            ("samples", f"{self.samples:,}"),
            ("inputs → outputs", f"{self.inputs} → {self.outputs}"),
            ("width", f"{self.width}"),
            ("networks", f"{self.networks}"),
            ("parameters, at most", f"{self.parameters:,}"),
            ("memory, about", f"{self.memory / 2**20:,.0f} MiB"),
            ("training, at most", time_),
        ]


def _seconds(job: Job, adam: int, iterations: int) -> float:
    x, y = torch.from_numpy(job.x).to(job.config.device), torch.from_numpy(job.y).to(job.config.device)
    settings = RidgeConfig(ridge=job.config.ridge, loss=job.loss, adam_steps=adam, iterations=iterations, seed=job.seed)
    model = job.untrained(job.config.device)
    begun = time.perf_counter()
    fit_ridge(model, x, y, settings)
    return time.perf_counter() - begun


def plan_cost(task: Task, config: CostConfig, *, jobs: int = 1) -> CostPlan:
    """Check every setting, and estimate what a cost would take; trains a few steps on copies and writes nothing.

    Raises:
        InputError: any setting that cannot be used.
    """
    task = in_float64(task)
    config, _ = check_cost(task, config, jobs)
    chain = jobs_of(task, config)[0]
    shallow, deep = chain[0], chain[-1]
    _seconds(shallow, 1, 1)  # warm up
    adam = _seconds(shallow, _TRIAL_ADAM, 0) / _TRIAL_ADAM
    ends = [_seconds(job, 0, _TRIAL_STEPS) / _TRIAL_STEPS for job in (shallow, deep)]
    # An iteration takes a time that grows with the depth; between two depths, on a line.
    each = [ends[0] + (ends[1] - ends[0]) * (job.depth - shallow.depth) / (deep.depth - shallow.depth) for job in chain]
    seconds = ADAM_STEPS * adam + sum(job.iterations * one for job, one in zip(chain, each, strict=True))
    parameters = sum(p.numel() for p in deep.untrained().parameters())
    rounds = -(-config.seeds // min(jobs, config.seeds))
    return CostPlan(
        samples=len(task.x_train),
        inputs=task.in_features,
        outputs=task.out_features,
        width=config.width,
        networks=config.seeds * len(config.depths),
        parameters=parameters,
        memory=8 * (_COPIES * parameters + 3 * len(task.x_train) * config.width * deep.depth),
        seconds=seconds * rounds,
    )
