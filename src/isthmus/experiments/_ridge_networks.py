"""Fully-connected networks behind the figures of the bottleneck paper: trained once, kept, several at a time."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from isthmus._records import MetricTable, RunFolder
from isthmus.data import Task
from isthmus.experiments._kept import Trained, begin_network, digest_of, save_weights
from isthmus.experiments._sources import task_from_source
from isthmus.experiments._workers import Progress, train_missing
from isthmus.models import FullyConnected, deepen
from isthmus.train import RidgeConfig, RidgeObjective, fit_ridge

_POINTS = 60
"""Entries of the history of a plain gradient descent, about."""

_DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclasses.dataclass(frozen=True)
class Descent:
    """Plain full-batch gradient descent from the initial weights.

    Attributes:
        rate: `η`, reached from 0 over the first `warm_up` steps.
        steps: how many.
        equal_time: `η · steps` at which weights are kept, too, so that rates can be compared after the same time.
        warm_up: steps over which the rate rises linearly.
    """

    rate: float
    steps: int
    equal_time: float
    warm_up: int = 100


@dataclasses.dataclass(frozen=True)
class RidgeNetwork:
    """A network that a figure needs: its data and how it is trained.

    Attributes:
        source: of the samples (`task_from_source`).
        width: `w`.
        depth: `L`.
        fit: settings of `fit_ridge`; its seed is that of the initial weights, too.
        parent: the shallower network that it is made from by `deepen`, and then needs no Adam.
        descent: plain gradient descent in place of `fit_ridge`, on the same objective.
        dtype: `float32` or `float64`.
        device: where to train.
    """

    source: Mapping[str, Any]
    width: int
    depth: int
    fit: RidgeConfig
    parent: RidgeNetwork | None = None
    descent: Descent | None = None
    dtype: str = "float32"
    device: str = "cpu"

    @property
    def settings(self) -> dict[str, Any]:
        """Everything, as recorded in `run.json`."""
        return {**dataclasses.asdict(self), "source": dict(self.source),
                "parent": None if self.parent is None else self.parent.name}  # fmt: skip

    @functools.cached_property
    def name(self) -> str:
        """Name of its folder: what tells it apart for a reader, and a digest of everything."""
        how = f"_rate{self.descent.rate:g}" if self.descent is not None else "_deepened" if self.parent else ""
        return f"{self.source['name']}_L{self.depth}_w{self.width}_seed{self.fit.seed}{how}_{digest_of(self.settings)}"

    @property
    def seed(self) -> int:
        """Of data and weights."""
        return self.fit.seed

    def new(self, task: Task) -> FullyConnected:
        """The network before training."""
        return FullyConnected(task.in_features, task.out_features, width=self.width, depth=self.depth, seed=self.seed,
                              device=self.device, dtype=_DTYPES[self.dtype])  # fmt: skip


@functools.lru_cache(maxsize=16)
def _task(source: str) -> Task:
    return task_from_source(json.loads(source))


@dataclasses.dataclass(frozen=True)
class TrainedRidge(Trained[RidgeNetwork]):
    """A trained network, read from its folder.

    Its numbers are `loss`, `test_loss`, `norm_sq`, `objective`, `residual` and `seconds`.
    """

    @property
    def task(self) -> Task:
        """Its samples."""
        return _task(json.dumps(dict(self.network.source)))

    @property
    def seed(self) -> int:
        """Of data and weights."""
        return self.network.seed

    @property
    def depth(self) -> int:
        """`L`."""
        return self.network.depth

    @property
    def diverged(self) -> bool:
        """Whether a plain gradient descent left the finite numbers."""
        return self.run.run["trained"]["diverged_at"] is not None

    def model(self, file: str = "model") -> FullyConnected:
        """The network in float64 on the CPU, with the weights of `file.safetensors`."""
        task = self.task
        model = FullyConnected(task.in_features, task.out_features, width=self.network.width, depth=self.depth,
                               device="cpu", dtype=torch.float64)  # fmt: skip
        state = safetensors.torch.load_file(self.run.path / f"{file}.safetensors")
        model.load_state_dict({name: value.double() for name, value in state.items()})
        return model.requires_grad_(False)

    @property
    def history(self) -> np.ndarray:
        """Rows of step, `C` and `‖θ‖²` during training."""
        return self.run.arrays()["history"]


def train_ridge_networks(
    networks: Sequence[RidgeNetwork], folder: Path, *, jobs: int = 1, progress: Progress | None = None
) -> list[TrainedRidge]:
    """Train what is not there yet, and give all of them, in the order asked for.

    Each is a folder of its own; one that a network is deepened from is trained before it. A killed training begins
    again, and ends with the same weights on the same machine.

    Raises:
        InputError: fewer than 1 job.
        DivergedError: some networks could not be trained; the others are kept.
    """
    unique = {one.name: one for network in networks for one in lineage(network)}
    after = {name: one.parent.name for name, one in unique.items() if one.parent is not None}
    train_missing(unique, _train, folder, after=after, jobs=jobs, progress=progress)
    return [TrainedRidge.open(network, folder) for network in networks]


def lineage(network: RidgeNetwork) -> list[RidgeNetwork]:
    """The network and those it is deepened from, the shallowest first."""
    return [*(lineage(network.parent) if network.parent is not None else ()), network]


def training_seconds(trained: Sequence[TrainedRidge]) -> float:
    """Wall time of training networks and those they are deepened from, each counted once."""
    folders = {t.run.path.parent / one.name for t in trained for one in lineage(t.network)}
    return sum(float(RunFolder.open(folder).run["trained"]["seconds"]) for folder in sorted(folders))


def _train(network: RidgeNetwork, folder: Path) -> None:
    run = begin_network(folder / network.name, command="reproduce", configuration=network.settings, seed=network.seed,
                        device=network.device, dtype=network.dtype)  # fmt: skip
    begun = time.perf_counter()
    task = task_from_source(network.source)
    if network.parent is None:
        model = network.new(task)
    else:
        parent = TrainedRidge.open(network.parent, folder).model()
        model = network.new(task)
        model.load_state_dict(deepen(parent, task.x_train, network.depth).state_dict())
    fitted = _fit(network, task, model, run) if network.descent is None else _descend(network, task, model, run)
    like = model.weights[0]
    with torch.no_grad():
        test = float((model(task.x_test.to(like)) - task.y_test.to(like)).square().mean())
    save_weights(run, model)
    table = MetricTable()
    table.add("loss", fitted["loss"], split="train", seed=network.seed)
    table.add("loss", test, split="test", seed=network.seed)
    run.write_metrics(table)
    seconds = time.perf_counter() - begun
    run.finish("complete", trained={**fitted, "test_loss": test, "seconds": seconds}, seconds=seconds)


def _fit(network: RidgeNetwork, task: Task, model: FullyConnected, run: RunFolder) -> dict[str, Any]:
    fit = fit_ridge(model, task.x_train, task.y_train, network.fit)
    history = np.array([[point.step, point.loss, point.norm_sq] for point in fit.history])
    run.write_arrays({"history": history})
    return {"loss": fit.loss, "norm_sq": fit.norm_sq, "objective": fit.objective, "residual": fit.residual,
            "steps": fit.steps, "stopped": fit.stopped, "diverged_at": None}  # fmt: skip


def _descend(network: RidgeNetwork, task: Task, model: FullyConnected, run: RunFolder) -> dict[str, Any]:
    """Plain gradient descent; where it diverges the last finite weights of its history are kept, and the step noted."""
    assert network.descent is not None
    plan, ridge = network.descent, float(network.fit.ridge)
    objective = RidgeObjective(model, task.x_train, task.y_train, loss=network.fit.loss, ridge=ridge)
    w = objective.vector(model)
    every = max(1, plan.steps // _POINTS)
    equal = min(plan.steps, round(plan.equal_time / plan.rate))
    history: list[list[float]] = []
    kept, diverged, value, gradient = w.clone(), None, *objective(w)
    for step in range(plan.steps + 1):
        if not math.isfinite(value):
            diverged = step
            w = kept
            value, gradient = objective(w)
            break
        if step % every == 0 or step == plan.steps:
            history.append([step, objective.data_term(w), _norm_sq(w)])
            kept = w.clone()
        if step == equal:
            objective.store(model, w)
            save_weights(run, model, "equal")
        if step < plan.steps:
            w = w - plan.rate * min(1.0, (step + 1) / plan.warm_up) * gradient
            value, gradient = objective(w)
    objective.store(model, w)
    run.write_arrays({"history": np.array(history)})
    norm_sq = _norm_sq(w)
    return {"loss": value - ridge * norm_sq, "norm_sq": norm_sq, "objective": value,
            "residual": objective.residual(w, gradient),
            "steps": plan.steps, "stopped": "diverged" if diverged is not None else "steps",
            "diverged_at": diverged}  # fmt: skip


def _norm_sq(w: Tensor) -> float:
    return float(w.square().sum(dtype=torch.float64))
