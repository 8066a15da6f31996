"""Networks whose layerwise alignment is followed while they train: trained once, kept, several at a time."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from isthmus._random import numpy_generator, torch_generator
from isthmus.experiments._aligned_models import Architecture, LayerStack
from isthmus.experiments._aligned_profiles import END, MIDWAY, START, Measuring, Profile
from isthmus.experiments._images import ImageFile, ImageTask, image_task
from isthmus.experiments._kept import Trained, begin_network, digest_of, save_weights
from isthmus.experiments._workers import Progress, train_missing

HALF_WAY = 0.1
"""Training loss at which alignments are taken for the first time after the start."""

_MOMENTUM = 0.9
_CHUNK = 1000


@dataclasses.dataclass(frozen=True)
class AlignedNetwork:
    """A network that a figure needs: its data, how it is trained, and what is measured on the way.

    Attributes:
        file: where the images come from.
        source: how samples are made of them (`image_task`).
        architecture: `dense`, `vgg` or `resnet`.
        depth: `L`.
        width: neurons or channels.
        seed: of samples, weights and batches.
        rate: learning rate.
        batch: samples of a step.
        epochs: at most.
        stop: training loss at which it stops.
        samples: of an alignment.
        draws: resamplings for its standard errors and its peak.
        activation: `relu` or `tanh`.
        random_labels: trained on the labels in random order.
        growth: alignments are also taken at steps `5 · growth^i`; 0 for none.
        device: where to train.
    """

    file: ImageFile
    source: Mapping[str, Any]
    architecture: Architecture
    depth: int
    width: int
    seed: int
    rate: float
    batch: int
    epochs: int
    stop: float
    samples: int
    draws: int
    activation: str = "relu"
    random_labels: bool = False
    growth: float = 0.0
    device: str = "cpu"

    @property
    def settings(self) -> dict[str, Any]:
        """Everything, as recorded in `run.json`; of the file its bytes count, not where it lies."""
        return {**dataclasses.asdict(self), "file": {"name": self.file.name, "sha256": self.file.sha256},
                "source": dict(self.source)}  # fmt: skip

    @functools.cached_property
    def name(self) -> str:
        """Name of its folder: what tells it apart for a reader, and a digest of everything."""
        settings = self.settings
        settings["file"] = self.file.sha256
        how = f"{self.architecture}_{self.activation}" + ("_random" if self.random_labels else "")
        what = f"{how}_L{self.depth}_w{self.width}_rate{self.rate:.3g}_batch{self.batch}_seed{self.seed}"
        return f"{what}_{digest_of(settings)}"

    def task(self) -> ImageTask:
        """Its samples; with random labels those of training are in random order."""
        task = image_task(self.file, {**self.source, "seed": self.seed})
        if not self.random_labels:
            return task
        order = torch.randperm(len(task.y_train), generator=torch_generator(self.seed, "random labels"))
        return dataclasses.replace(task, y_train=task.y_train[order])

    def new(self, task: ImageTask) -> LayerStack:
        """The network before training."""
        shape = tuple(task.x_train.shape[1:])
        assert len(shape) == 3
        return LayerStack(self.architecture, shape, task.classes, width=self.width, depth=self.depth,
                          activation=self.activation, seed=self.seed).to(self.device)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TrainedAligned(Trained[AlignedNetwork]):
    """A trained network, read from its folder.

    Its numbers are `loss`, `test_loss`, `test_error`, `steps` and `seconds`.
    """

    @property
    def stopped(self) -> str:
        """`loss` (small enough), `epochs` (no more) or `diverged`."""
        return str(self.run.run["trained"]["stopped"])

    @property
    def prediction(self) -> float | None:
        """The exact crossing `ℓ*`; None where the two do not cross."""
        found = self.run.run["prediction"]["equilibrium"]
        return None if found is None else float(found)

    @property
    def correlation(self) -> float:
        """`c_0` of its training samples."""
        return float(self.run.run["prediction"]["correlation"])

    def profile(self, at: str, split: str = "train") -> Profile | None:
        """The alignments at a moment; None where the training did not come to it."""
        for one in self.run.run["profiles"]:
            if (one["at"], one["split"]) == (at, split):
                return Profile.of(one)
        return None

    def array(self, name: str) -> np.ndarray:
        """`start/forward_loss`, `start/backward_correlation`, the same of `end`, `track/steps`, `track/alignment`."""
        return self.run.arrays()[name]


def train_aligned_networks(
    networks: Sequence[AlignedNetwork], folder: Path, *, jobs: int = 1, progress: Progress | None = None
) -> list[TrainedAligned]:
    """Train what is not there yet, and give all of them, in the order asked for.

    Each is a folder of its own. A killed training begins again, and ends with the same weights on the same machine.

    Raises:
        InputError: fewer than 1 job.
        DivergedError: some networks could not be trained; the others are kept.
    """
    unique = {network.name: network for network in networks}
    train_missing(unique, _train, folder, jobs=jobs, progress=progress)
    return [TrainedAligned.open(network, folder) for network in networks]


def track_steps(growth: float, last: int) -> list[int]:
    """The steps 0 and `5 · growth^i` (rounded) up to `last`, ascending."""
    steps, i = [0], 0
    while growth > 1 and (step := round(5 * growth**i)) <= last:
        steps.append(step)
        i += 1
    return sorted(set(steps))


def _batches(n: int, batch: int, seed: int, epoch: int) -> Iterator[Tensor]:
    order = torch.from_numpy(numpy_generator(seed, f"batches of epoch {epoch}").permutation(n))
    yield from order.split(batch)


@torch.no_grad()
def _scores(model: LayerStack, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Mean cross-entropy and share of wrong classes."""
    losses, wrong = 0.0, 0
    for a, b in zip(x.split(_CHUNK), y.split(_CHUNK), strict=True):
        outputs = model(a)
        losses += float(cross_entropy(outputs, b, reduction="sum"))
        wrong += int((outputs.argmax(1) != b).sum())
    return losses / len(x), wrong / len(x)


def _train(network: AlignedNetwork, folder: Path) -> None:
    run = begin_network(folder / network.name, command="reproduce", configuration=network.settings, seed=network.seed,
                        device=network.device, dtype="float32")  # fmt: skip
    begun = time.perf_counter()
    task = network.task()
    model = network.new(task)
    measuring = Measuring(
        model, task, depth=network.depth, samples=network.samples, draws=network.draws, seed=network.seed
    )
    prediction = measuring.prediction(network.activation)
    fitted = _descend(network, task, model, measuring)
    save_weights(run, model)
    for split in ("train", "test"):
        measuring.table.add("loss", fitted["loss" if split == "train" else "test_loss"], split=split, seed=network.seed)
    measuring.table.add("accuracy", 1 - fitted["test_error"], split="test", seed=network.seed, n=len(task.y_test))
    run.write_metrics(measuring.table)
    run.write_arrays(measuring.all_arrays())
    seconds = time.perf_counter() - begun
    run.finish("complete", trained={**fitted, "seconds": seconds}, prediction=prediction, seconds=seconds,
               profiles=measuring.profiles)  # fmt: skip


def _descend(network: AlignedNetwork, task: ImageTask, model: LayerStack, measuring: Measuring) -> dict[str, Any]:
    """SGD with momentum on the cross-entropy; where it diverges, the weights before that epoch are kept."""
    device = network.device
    x, y = task.x_train.to(device), task.y_train.to(device)
    steps = math.ceil(len(y) / network.batch)
    wanted = track_steps(network.growth, network.epochs * steps) if network.growth else []
    loss, _ = _scores(model, x, y)
    measuring.profile(START, "train", 0, loss)
    measuring.correlations(START)
    if wanted:
        measuring.follow(0)
    optimiser = torch.optim.SGD(model.parameters(), lr=network.rate, momentum=_MOMENTUM)
    step, stopped, midway = 0, "epochs", False
    for epoch in range(network.epochs):
        before = {key: value.clone() for key, value in model.state_dict().items()}
        running = 0.0
        for rows in _batches(len(y), network.batch, network.seed, epoch):
            optimiser.zero_grad(set_to_none=True)
            found = cross_entropy(model(x[rows]), y[rows])
            found.backward()
            optimiser.step()
            step += 1
            running += float(found.detach()) * len(rows) / len(y)
            if step in wanted and math.isfinite(running):
                measuring.follow(step)
        finite = math.isfinite(running)
        if finite and (running < 2 * (network.stop if midway else HALF_WAY) or epoch == network.epochs - 1):
            running, _ = _scores(model, x, y)  # of the weights at the end of the epoch; exactly only where it matters
            finite = math.isfinite(running)
        if not finite:
            stopped = "diverged"
            model.load_state_dict(before)
            loss, _ = _scores(model, x, y)
            break
        loss = running
        if not midway and loss < HALF_WAY:
            midway = True
            measuring.profile(MIDWAY, "train", step, loss)
        if loss < network.stop:
            stopped = "loss"
            break
    if stopped != "diverged":
        measuring.profile(END, "train", step, loss)
        measuring.profile(END, "test", step, loss)
        measuring.correlations(END)
    test_loss, test_error = _scores(model, task.x_test.to(device), task.y_test.to(device))
    return {"loss": loss, "test_loss": test_loss, "test_error": test_error, "steps": step, "stopped": stopped}
