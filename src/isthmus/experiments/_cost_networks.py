"""The networks behind a representation cost: one for each seed and depth, begun from the depth before, and kept."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from isthmus._errors import DivergedError, InputError, IsthmusError, RunFolderError
from isthmus._random import check_seed
from isthmus._records import RunFolder
from isthmus.data import Task
from isthmus.experiments._kept import begin_network, digest_of, is_complete, save_weights
from isthmus.experiments._workers import check_jobs, train_missing
from isthmus.models import FullyConnected, check_device, deepen, real_number, whole_number
from isthmus.train import RidgeConfig, fit_ridge

Progress = Callable[[float, float, str], None]
"""Called as `progress(work done, work in all, what is going on)`."""

ADAM_STEPS, FIRST = 800, 3
"""The first network of a chain begins from nothing: so many steps of Adam, and then so many times the iterations."""

_TOLERANCE = 5e-4
"""A training ends where 100 iterations take less than this share off the objective."""

DEAD = 1e-3
"""Outputs that vary less than this over the samples, where targets have a spread of 1, do not depend on the inputs."""


@dataclasses.dataclass(frozen=True)
class CostConfig:
    """Networks over a range of depths, as a run records them.

    Attributes:
        depths: `L` of each network, counted in layers of weights; ascending.
        width: of every hidden layer.
        ridge: `λ` in `C + λ‖θ‖²`.
        steps: most iterations of preconditioned L-BFGS at each depth; it stops before where 100 of them take less than
            5e-4 off the objective. The first depth begins from nothing: 800 steps of Adam, and three times as many.
        seeds: how many chains of networks, with the seeds `seed`, `seed + 1`, …
        seed: of the first chain's weights.
        device: where to train.
    """

    depths: tuple[int, ...] = (6, 8, 12, 16, 24)
    width: int = 60
    ridge: float | int = 2e-4
    steps: int = 800
    seeds: int = 1
    seed: int = 0
    device: str = "cpu"

    @property
    def every_seed(self) -> tuple[int, ...]:
        """The seeds of the chains."""
        return tuple(range(self.seed, self.seed + self.seeds))


@dataclasses.dataclass(frozen=True)
class CostNetwork:
    """A trained network of a chain.

    Attributes:
        seed: of its chain.
        depth: `L`.
        loss: `C` on the training samples.
        norm_sq: `‖θ‖²`.
        residual: `‖∇(C + λ‖θ‖²)‖ / (2λ‖θ‖)`, 0 at a critical point.
        steps: of its training, those of Adam included.
        fall: share of `‖θ‖²` that the last fifth of its iterations took off.
        seconds: of its training.
        model: the network, on the CPU.
    """

    seed: int
    depth: int
    loss: float
    norm_sq: float
    residual: float
    steps: int
    fall: float
    seconds: float
    model: FullyConnected


def check_cost(task: Task, config: CostConfig, jobs: int = 1) -> tuple[CostConfig, tuple[str, ...]]:
    """The settings with sorted depths, and what was changed, in words; `InputError` where they cannot be used."""
    check_jobs(jobs)
    check_device(config.device)
    if len(task.x_train) < 2:
        raise InputError("task", f"{len(task.x_train)} training samples", "at least 2")
    for name, part in (("inputs", task.x_train), ("targets", task.y_train)):
        if bool((part == part[0]).all()):
            raise InputError("task", f"{name} that are the same for all training samples", f"{name} that differ",
                             "their best function is a constant, of rank 0 whatever the ridge")  # fmt: skip
    given = tuple(whole_number("depths", depth, 2) for depth in config.depths)
    config = dataclasses.replace(
        config,
        width=whole_number("width", config.width),
        ridge=real_number("ridge", config.ridge, "a finite number > 0: without a ridge the cost is not minimised",
                          low=0.0, low_open=True),
        steps=whole_number("steps", config.steps),
        seeds=whole_number("seeds", config.seeds),
        seed=check_seed(config.seed),
    )  # fmt: skip
    if config.width < task.out_features:
        raise InputError("width", config.width, f"at least the number of outputs, {task.out_features}",
                         "narrower networks cannot reach every function of these data; 60 or 100 is usual")  # fmt: skip
    depths = tuple(sorted(set(given)))
    if len(depths) < 3:
        raise InputError("depths", ",".join(map(str, given)), "at least 3 different depths, for R⁽⁰⁾, R⁽¹⁾ and "
                         "R⁽²⁾", "such as 6,8,12,16,24")  # fmt: skip
    notes: list[str] = []
    if depths != given:
        notes.append(f"depths were put in order, each once: {', '.join(map(str, depths))}")
    return dataclasses.replace(config, depths=depths), tuple(notes)


def in_float64(task: Task) -> Task:
    """The same samples on the CPU, real numbers in float64, as the networks are."""
    names = ("x_train", "y_train", "x_test", "y_test")
    tensors: dict[str, Tensor] = {name: getattr(task, name).detach().cpu() for name in names}
    return dataclasses.replace(task, **{k: v.double() if v.is_floating_point() else v for k, v in tensors.items()})


def loss_of(task: Task) -> str:
    """The data term: cross-entropy for classes, square for numbers."""
    return "cross_entropy" if task.kind == "classification" else "mean_square"


def data_digest(task: Task) -> str:
    """Tells training samples apart."""
    found = hashlib.sha256()
    for part in (task.x_train, task.y_train):
        found.update(f"{tuple(part.shape)} {part.dtype} ".encode())
        found.update(np.ascontiguousarray(part.numpy()).tobytes())
    return found.hexdigest()


@dataclasses.dataclass(frozen=True)
class Job:
    """One network to train, in this process or in another.

    Attributes:
        x: training inputs.
        y: training targets.
        digest: of both.
        outputs: number of outputs.
        loss: data term.
        config: the settings.
        seed: of the chain.
        depth: `L`.
    """

    x: np.ndarray
    y: np.ndarray
    digest: str
    outputs: int
    loss: str
    config: CostConfig
    seed: int
    depth: int

    @property
    def name(self) -> str:
        """Name of its folder: its seed and depth, and a digest of all that it depends on."""
        before = [d for d in self.config.depths if d <= self.depth]
        settings = {"data": self.digest, "loss": self.loss, "depths": before, "seed": self.seed, "adam": ADAM_STEPS}
        settings |= {key: getattr(self.config, key) for key in ("width", "ridge", "steps", "device")}
        return f"seed{self.seed}_L{self.depth}_{digest_of(settings)}"

    @property
    def previous(self) -> Job | None:
        """The network that it begins from; None for the shallowest."""
        before = [d for d in self.config.depths if d < self.depth]
        return dataclasses.replace(self, depth=before[-1]) if before else None

    @property
    def work(self) -> float:
        """How long it takes, roughly, in iterations of one layer."""
        return float(self.depth * (self.iterations + (ADAM_STEPS / 2 if self.previous is None else 0)))

    @property
    def iterations(self) -> int:
        """Of its second-order descent, at most."""
        return self.config.steps * (FIRST if self.previous is None else 1)

    def untrained(self, device: str = "cpu") -> FullyConnected:
        """Its network at initialisation."""
        return FullyConnected(self.x.shape[1], self.outputs, width=self.config.width, depth=self.depth, seed=self.seed,
                              device=device, dtype=torch.float64)  # fmt: skip

    def begun(self, folder: Path, x: Tensor) -> tuple[FullyConnected, int]:
        """The network to train, and how many Adam steps come first."""
        if self.previous is None:
            return self.untrained(self.config.device), ADAM_STEPS
        return deepen(self.previous.read(folder).model.to(self.config.device), x, self.depth), 0

    def train(self, folder: Path, tell: Callable[[float], None] | None = None) -> None:
        """Train it and keep it as a run folder.

        Raises:
            DivergedError: a loss or weights that are no finite numbers.
            IsthmusError: a network whose outputs do not depend on the inputs.
        """
        x, y = torch.from_numpy(self.x).to(self.config.device), torch.from_numpy(self.y).to(self.config.device)
        begun = time.monotonic()
        run = begin_network(
            folder / self.name, command="cost", configuration=dataclasses.asdict(self.config) | {"depth": self.depth},
            seed=self.seed, device=self.config.device, dtype="float64",
        )  # fmt: skip
        model, adam = self.begun(folder, x)
        settings = RidgeConfig(ridge=self.config.ridge, loss=self.loss, adam_steps=adam, iterations=self.iterations,
                               tolerance=_TOLERANCE, seed=self.seed)  # fmt: skip

        def watch(done: int, total: int, _objective: float) -> None:
            if tell is not None:
                tell(done / max(total, 1))

        try:
            fit = fit_ridge(model, x, y, settings, progress=watch)
            if not all(map(math.isfinite, (fit.loss, fit.norm_sq, fit.residual))):
                raise DivergedError("its training has left the finite numbers; try a larger ridge, or smaller depths")
            self._check_alive(model, x)
        except IsthmusError as error:
            run.finish("failed", error=str(error))
            raise
        save_weights(run, model)
        numbers = {key: getattr(fit, key) for key in ("loss", "norm_sq", "residual", "steps")}
        before = [point.norm_sq for point in fit.history if point.step <= adam + 0.8 * (fit.steps - adam)]
        numbers["fall"] = 1 - fit.norm_sq / before[-1]
        run.finish("complete", error=None, fit=numbers, seconds=time.monotonic() - begun)

    def _check_alive(self, model: FullyConnected, x: Tensor) -> None:
        with torch.no_grad():
            spread = float(model(x).std(0).max())
        if spread < DEAD:
            raise IsthmusError(
                "it is dead, its rank 0: its outputs do not depend on the inputs, because the ridge "
                f"λ = {self.config.ridge:g} costs more than the loss it saves; try ridge={self.config.ridge / 10:g}, "
                "or smaller depths"
            )

    def read(self, folder: Path) -> CostNetwork:
        """The trained network. Raises `RunFolderError` where it is not there or damaged."""
        run = RunFolder.open(folder / self.name)
        model = self.untrained()
        try:
            model.load_state_dict(safetensors.torch.load_file(run.path / "model.safetensors"))
            fit = run.run["fit"]
            numbers = (float(fit["loss"]), float(fit["norm_sq"]), float(fit["residual"]), int(fit["steps"]))
            ends = float(fit["fall"]), float(run.run["seconds"])
            found = CostNetwork(self.seed, self.depth, *numbers, *ends, model)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, safetensors.SafetensorError) as error:
            raise RunFolderError("run", str(run.path), f"a trained network ({error!r})",
                                 "remove this folder and run the command again") from None  # fmt: skip
        return found


def jobs_of(task: Task, config: CostConfig) -> list[list[Job]]:
    """The networks to train: a list for each seed, with ascending depths."""
    digest, x, y = data_digest(task), task.x_train.numpy(), task.y_train.numpy()
    return [
        [Job(x, y, digest, task.out_features, loss_of(task), config, seed, depth) for depth in config.depths]
        for seed in config.every_seed
    ]


def train_chains(
    task: Task, config: CostConfig, folder: Path, *, processes: int = 1, progress: Progress | None = None
) -> list[list[CostNetwork]]:
    """Train what is not there yet, and give all networks: a list for each seed, with ascending depths.

    Raises:
        DivergedError: some networks could not be trained, or are dead; the others are kept.
    """
    chains = jobs_of(task, config)
    jobs = {job.name: job for chain in chains for job in chain}
    after = {job.name: job.previous.name for job in jobs.values() if job.previous is not None}
    clock = _Clock(jobs, folder, progress)
    # Only in this process can a network tell how far it is.
    train = clock.train if processes == 1 else Job.train
    train_missing(jobs, train, folder, after=after, jobs=processes, progress=clock.done)
    return [[job.read(folder) for job in chain] for chain in chains]


class _Clock:
    """Adds up the work that is done."""

    def __init__(self, jobs: Mapping[str, Job], folder: Path, progress: Progress | None) -> None:
        self._jobs, self._progress = jobs, progress
        self._total = sum(job.work for job in jobs.values())
        self._done = sum(job.work for name, job in jobs.items() if is_complete(folder / name))

    def train(self, job: Job, folder: Path) -> None:
        """Train one network, and tell how far it is."""
        job.train(folder, functools.partial(self._tell, job))

    def _tell(self, job: Job, share: float) -> None:
        if self._progress is not None:
            self._progress(self._done + share * job.work, self._total, f"L = {job.depth}, seed {job.seed}")

    def done(self, _networks: int, _all: int, name: str) -> None:
        """A network is trained, or could not be."""
        self._done += self._jobs[name].work if name else 0.0
        if self._progress is not None:
            said = f"L = {self._jobs[name].depth}, seed {self._jobs[name].seed}" if name else ""
            self._progress(self._done, self._total, said)


def settings_of(config: CostConfig) -> Mapping[str, Any]:
    """What must be the same where a folder is gone on with: all but depths and seeds, which may be added to."""
    return {key: value for key, value in dataclasses.asdict(config).items() if key not in ("depths", "seeds")}
