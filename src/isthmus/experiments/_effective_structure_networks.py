"""Networks whose representations are compared with the effective theory: trained once, their distances recorded."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from isthmus._random import torch_generator
from isthmus._records import MetricTable
from isthmus.experiments._effective_structure_tasks import (
    Samples,
    TaskKind,
    blob_samples,
    image_samples,
    xor_samples,
)
from isthmus.experiments._images import ImageFile
from isthmus.experiments._kept import Trained, begin_network, digest_of, save_weights
from isthmus.geometry import pair_states, squared_distances
from isthmus.models import ZooNetwork, ZooSetting, zoo_network

NO_FILE = ImageFile(None, "")
"""Of samples that are not images."""

_CHUNK = 2000


@dataclasses.dataclass(frozen=True)
class StructureNetwork:
    """A network that a figure needs: its samples, how it is trained, and what is recorded.

    Attributes:
        task: `xor`, `images` or `blobs`.
        source: of images `side` and `n_train`, of blobs `grid`.
        setting: the network, with its learning rate on half the mean square over samples and outputs.
        batch: samples of a step; 0 for all.
        steps: of training.
        times: at most so many moments at which distances are recorded.
        spacing: of the moments.
        watched: the first so many samples, of which all pairs are recorded; 0 for the representation alone, of all.
        seed: of samples, weights and batches.
        file: where images come from.
        device: where to train.
    """

    task: TaskKind
    source: Mapping[str, int]
    setting: ZooSetting
    batch: int
    steps: int
    times: int
    spacing: Literal["even", "geometric"]
    watched: int
    seed: int
    file: ImageFile = NO_FILE
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
        net = self.setting
        what = f"{self.task}_{net.name}_{net.optimiser}_gain{net.gain:g}_{net.hidden_layers}x{net.width}"
        return f"{what}_seed{self.seed}_{digest_of(settings)}"

    def samples(self) -> Samples:
        """What it is trained on."""
        if self.task == "xor":
            return xor_samples()
        if self.task == "blobs":
            return blob_samples(self.source["grid"])
        return image_samples(self.file, self.source, self.seed)

    def train(self, folder: Path) -> None:
        """Make `folder / name` complete. A killed training begins again."""
        run = begin_network(folder / self.name, command="reproduce", configuration=self.settings, seed=self.seed,
                            device=self.device, dtype="float32")  # fmt: skip
        begun = time.perf_counter()
        samples = self.samples()
        model = zoo_network(self.setting, samples.x.shape[1], samples.y.shape[1], self.seed)
        recorder = Recorder(self, samples)
        stopped = _descend(self, samples, model, recorder)
        save_weights(run, model)
        run.write_arrays(recorder.arrays())
        table = MetricTable()
        table.add("loss", recorder.losses[-1], split="train", seed=self.seed, step=recorder.steps[-1])
        run.write_metrics(table)
        seconds = time.perf_counter() - begun
        run.finish("complete", seconds=seconds, trained={
            "loss": recorder.losses[-1], "steps": recorder.steps[-1], "stopped": stopped, "seconds": seconds,
        })  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TrainedStructure(Trained[StructureNetwork]):
    """A trained network, read from its folder; its numbers are `loss`, `steps` and `seconds`."""

    @property
    def diverged(self) -> bool:
        """Whether its training came to numbers that are not finite; what is recorded is from before."""
        return self.run.run["trained"]["stopped"] == "diverged"

    @functools.cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """What was recorded.

        `track/steps`, `track/loss` (half the mean square over training samples), `track/h` (moments, hidden layers,
        pairs), `track/y` and `track/v` (moments, pairs) of all pairs `i < j` of the watched samples, row after row;
        `start/hidden` and `end/hidden` (hidden layers, samples, neurons), `start/outputs`, `end/outputs`.
        """
        return self.run.arrays()


def moments(network: StructureNetwork) -> list[int]:
    """Steps at which distances are recorded: 0, the last one, and others in between, evenly or geometrically."""
    if network.spacing == "even":
        found = np.linspace(0, network.steps, network.times)
    else:
        found = np.concatenate([[0.0], np.geomspace(1, network.steps, network.times - 1)])
    return sorted({round(step) for step in found.tolist()})


class Recorder:
    """Distances between the watched samples while a network trains."""

    def __init__(self, network: StructureNetwork, samples: Samples) -> None:
        self.watched, self.paired = network.watched or len(samples.x), network.watched > 0
        self.x, self.targets = samples.x[: self.watched].to(network.device), samples.y[: self.watched]
        self.wanted = moments(network)
        self._pairs = list(itertools.combinations(range(self.watched), 2)) if self.paired else []
        self.steps: list[int] = []
        self.losses: list[float] = []
        self._h: list[Tensor] = []
        self._y: list[Tensor] = []
        self._v: list[Tensor] = []
        self._first: tuple[Tensor, Tensor] | None = None
        self._last: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def record(self, model: ZooNetwork, step: int, loss: float) -> None:
        """Take the distances as they are now."""
        layers, outputs = model.states(self.x)
        self._last = (outputs.cpu(), torch.stack(layers).cpu())
        self._first = self._first or self._last
        self.steps.append(step)
        self.losses.append(loss)
        if not self.paired:
            return
        self._h.append(torch.stack([distances_of(layer) for layer in layers]).float())
        states = pair_states(self._last[1][-1], self._last[0], self.targets, self._pairs)
        self._y.append(states.y)
        self._v.append(states.v)

    def arrays(self) -> dict[str, np.ndarray]:
        """What `TrainedStructure.arrays` says."""
        assert self._first is not None
        assert self._last is not None
        found = {"track/steps": np.array(self.steps), "track/loss": np.array(self.losses)}
        for name, (outputs, hidden) in (("start", self._first), ("end", self._last)):
            found |= {f"{name}/outputs": outputs.numpy(), f"{name}/hidden": hidden.numpy()}
        if self.paired:
            found |= {f"track/{name}": torch.stack(rows).numpy()
                      for name, rows in (("h", self._h), ("y", self._y), ("v", self._v))}  # fmt: skip
        return found


def pairs_of(matrix: Tensor) -> Tensor:
    """The entries `i < j` of a symmetric matrix, row after row."""
    return matrix[*torch.triu_indices(len(matrix), len(matrix), 1)]


def distances_of(rows: Tensor) -> Tensor:
    """Squared distances of all pairs `i < j` of rows, row after row."""
    return pairs_of(squared_distances(rows.cpu()))


def _batches(network: StructureNetwork, n: int) -> Iterator[Tensor | slice]:
    """Rows of every step, without end."""
    generator = torch_generator(network.seed, "batches")
    while True:
        if network.batch == 0:
            yield slice(None)
        else:
            yield from torch.randperm(n, generator=generator).to(network.device).split(network.batch)


@torch.no_grad()
def _loss(model: ZooNetwork, x: Tensor, y: Tensor) -> float:
    """Half the mean square over samples and outputs."""
    missed = [(model(a) - b).double().square().sum() for a, b in zip(x.split(_CHUNK), y.split(_CHUNK), strict=True)]
    return float(torch.stack(missed).sum()) / y.numel() / 2


def _descend(network: StructureNetwork, samples: Samples, model: ZooNetwork, recorder: Recorder) -> str:
    """Train, and record at the moments wanted; `steps` or `diverged`."""
    x, y = samples.x.to(network.device), samples.y.to(network.device)
    model.to(network.device)
    make = torch.optim.Adam if network.setting.optimiser == "adam" else torch.optim.SGD
    optimiser = make(model.parameters(), lr=network.setting.learning_rate, fused=True)
    wanted = set(recorder.wanted)
    recorder.record(model, 0, _loss(model, x, y))
    rows = _batches(network, len(x))
    for step in range(1, network.steps + 1):
        chosen = next(rows)
        optimiser.zero_grad(set_to_none=True)
        loss = (model(x[chosen]) - y[chosen]).square().mean() / 2
        loss.backward()
        optimiser.step()
        if step in wanted:
            found = _loss(model, x, y)
            if not math.isfinite(found):
                return "diverged"
            recorder.record(model, step, found)
    return "steps"
