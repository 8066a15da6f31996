"""Networks that learn to tell two points apart, followed from epoch to epoch, and kept (docs/theory 2.5)."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from isthmus._records import RunFolder
from isthmus.experiments._kept import begin_network, digest_of, open_network
from isthmus.geometry import pair_distances, pair_states
from isthmus.models import ZooEnsemble, ZooNetwork, ZooSetting, zoo_network

FIRST_INPUT, FIRST_TARGET = -1.0, 0.6
"""The first point; the second has its input `√X` higher and its target `√Y` higher."""

NARROW = 50
"""Width up to which networks are trained together."""

_BLOWN = 10.0
"""A network has diverged where `y` is this many times what it and the targets were."""


@dataclasses.dataclass(frozen=True)
class Member:
    """One network of a group.

    Attributes:
        name: of its setting.
        gain: of its weights.
        rate: its learning rate.
        seed: of its weights.
        dx2: `X`, squared distance of the inputs.
        dy2: `Y`, squared distance of the targets.
    """

    name: str
    gain: float | int
    rate: float | int
    seed: int
    dx2: float | int = 1.0
    dy2: float | int = 0.5


@dataclasses.dataclass(frozen=True)
class PairNetworks:
    """Networks of one shape, trained together on two points each; a wide one stands alone.

    Attributes:
        setting: kind, activation, optimiser and sizes; names, gains and rates are the members'.
        members: the networks.
        epochs: full-batch steps.
        every: epochs between records.
        all_layers: whether every hidden layer is recorded, or only the watched one.
        device: where to train.
    """

    setting: ZooSetting
    members: tuple[Member, ...]
    epochs: int
    every: int = 1
    all_layers: bool = True
    device: str = "cpu"

    @property
    def settings(self) -> dict[str, Any]:
        """Everything, as recorded in `run.json`."""
        return dataclasses.asdict(self)

    @property
    def name(self) -> str:
        """Name of its folder: what tells it apart for a reader, and a digest of everything."""
        first = self.members[0]
        who = f"seed{first.seed}" if len(self.members) == 1 else f"{len(self.members)}networks"
        return f"pair_{self.setting.name}_w{self.setting.width}_{who}_{digest_of(self.settings)}"

    @property
    def layers(self) -> tuple[int, ...]:
        """The hidden layers that are recorded."""
        return tuple(range(self.setting.layers)) if self.all_layers else (self.setting.watched,)

    def train(self, folder: Path) -> None:
        """Train on the mean-square loss `½ mean_i ‖y_i − y_i*‖²`, and record `h`, `y`, `v` and `m` on the way.

        What is recorded at an epoch is of the forward pass that its step is taken from, but for dropout, whose units
        are all kept for a pass of its own. A network that diverges is recorded up to there.
        """
        setting = self.setting
        first = self.members[0]
        run = begin_network(folder / self.name, command="reproduce", configuration=self.settings, seed=first.seed,
                            device=self.device, dtype="float32")  # fmt: skip
        begun = time.perf_counter()
        networks = [zoo_network(self.setting_of(m), 1, 1, m.seed) for m in self.members]
        model = (ZooEnsemble(networks) if len(networks) > 1 else networks[0]).to(self.device)
        x, targets = (t.to(self.device) for t in self.points())
        if len(networks) == 1:
            x, targets = x[0], targets[0]
        following = _Following(self, targets.reshape(-1, 1))
        step = _descent(list(model.parameters()), setting, [m.rate for m in self.members])
        for epoch in range(self.epochs):
            hidden, outputs = model.states(x)
            if epoch % self.every == 0 and not following.record(epoch, *_seen(model, x, hidden, outputs)):
                break
            (0.5 * (outputs - targets).square().sum() / 2).backward()
            step()
        else:
            with torch.no_grad():
                following.record(self.epochs, *_seen(model, x, *model.states(x)))
        arrays = following.arrays()
        run.write_arrays(arrays)
        ends = [whole_part(y, m.dy2) for y, m in zip(arrays["y"], self.members, strict=True)]
        run.finish("complete", seconds=time.perf_counter() - begun, records=ends)

    def setting_of(self, member: Member) -> ZooSetting:
        """The setting of one network."""
        return dataclasses.replace(self.setting, name=member.name, gain=member.gain, learning_rate=member.rate)

    def points(self) -> tuple[Float[Tensor, "members 2 1"], Float[Tensor, "members 2 1"]]:
        """Inputs −1 and `−1 + √X`, targets 0.6 and `0.6 + √Y`, of each member."""
        x = [[FIRST_INPUT, FIRST_INPUT + math.sqrt(m.dx2)] for m in self.members]
        y = [[FIRST_TARGET, FIRST_TARGET + math.sqrt(m.dy2)] for m in self.members]
        return torch.tensor(x, dtype=torch.float32)[..., None], torch.tensor(y, dtype=torch.float32)[..., None]


class _Following:
    """The records of a group, as they come."""

    def __init__(self, networks: PairNetworks, targets: Tensor) -> None:
        self.layers, self.watched = networks.layers, networks.setting.watched
        self.targets = targets
        self.pairs = [(2 * i + 1, 2 * i) for i in range(len(networks.members))]
        self.epochs: list[int] = []
        self.rows: list[Tensor] = []

    def record(self, epoch: int, hidden: Sequence[Tensor], outputs: Tensor) -> bool:
        """Whether any member is still finite."""
        flat = [a.detach().reshape(len(self.targets), -1) for a in hidden]
        state = pair_states(flat[self.watched], outputs.detach().reshape(-1, 1), self.targets, self.pairs)
        h = [state.h if layer == self.watched else pair_distances(flat[layer], self.pairs) for layer in self.layers]
        self.epochs.append(epoch)
        self.rows.append(torch.stack([state.y, state.v, state.m, *h]).cpu())
        return bool(torch.isfinite(self.rows[-1]).all(0).any())

    def arrays(self) -> dict[str, np.ndarray]:
        """`epochs`, and of each member `y`, `v`, `m` `(members, records)` and `h` `(members, layers, records)`."""
        rows = torch.stack(self.rows).permute(2, 1, 0).contiguous().numpy()
        y, v, m = (np.ascontiguousarray(rows[:, i]) for i in range(3))
        return {"epochs": np.array(self.epochs, dtype=np.float64), "y": y, "v": v, "m": m,
                "h": np.ascontiguousarray(rows[:, 3:])}  # fmt: skip


def _seen(
    model: ZooNetwork | ZooEnsemble, x: Tensor, hidden: list[Tensor], outputs: Tensor
) -> tuple[list[Tensor], Tensor]:
    """What is recorded: the forward pass itself, or without dropout one more."""
    if isinstance(model, ZooEnsemble) or model.setting.kind != "dropout":
        return hidden, outputs
    model.eval()
    with torch.no_grad():
        seen = model.states(x)
    model.train()
    return seen


def _descent(
    parameters: list[torch.nn.Parameter], setting: ZooSetting, rates: Sequence[float | int]
) -> Callable[[], None]:
    """What to call after the backward pass; plain SGD steps where a gradient comes up, so that none is kept."""
    if setting.optimiser == "adam":
        optimiser = torch.optim.Adam(parameters, lr=float(rates[0]), fused=True)

        def adam() -> None:
            optimiser.step()
            optimiser.zero_grad()

        return adam
    for p in parameters:
        size = -torch.tensor(rates, dtype=torch.float32, device=p.device)
        size = size.view(-1, *[1] * (p.ndim - 1)) if len(rates) > 1 else size[0]

        def move(p: Tensor, size: Tensor = size) -> None:
            assert p.grad is not None
            with torch.no_grad():
                p.addcmul_(p.grad, size)
            p.grad = None

        p.register_post_accumulate_grad_hook(move)
    return lambda: None


def whole_part(y: np.ndarray, dy2: float | int) -> int:
    """Number of records before a network diverged; all of them where it did not."""
    with np.errstate(invalid="ignore"):
        fine = np.isfinite(y) & (y <= _BLOWN * (y[0] + dy2))
    return len(y) if fine.all() else int(np.argmin(fine))


@dataclasses.dataclass(frozen=True)
class PairTrace:
    """What was recorded of one network, as far as it did not diverge.

    Attributes:
        setting: name, kind and sizes.
        member: gain, rate, seed and distances.
        layers: the recorded hidden layers, from 0.
        diverged: the epoch after the last record, where it did; None otherwise.
        epochs: of the records.
        h: `(layers, records)`.
        y: `‖dy‖²`.
        v: `‖dy‖² − dy·dy*`.
        m: `‖ȳ − ȳ*‖²`.
    """

    setting: ZooSetting
    member: Member
    layers: tuple[int, ...]
    diverged: int | None
    epochs: Float[Tensor, " records"]
    h: Float[Tensor, "layers records"]
    y: Float[Tensor, " records"]
    v: Float[Tensor, " records"]
    m: Float[Tensor, " records"]

    @property
    def watched(self) -> Float[Tensor, " records"]:
        """`h` of the representation."""
        return self.h[self.layers.index(self.setting.watched)]

    @property
    def loss(self) -> Float[Tensor, " records"]:
        """`¼ (2m + v + ½ (Y − y))`."""
        return (2 * self.m + self.v + (self.member.dy2 - self.y) / 2) / 4


@dataclasses.dataclass(frozen=True)
class TrainedPairs:
    """A group of trained networks, read from its folder.

    Attributes:
        networks: what they are.
        run: their folder.
    """

    networks: PairNetworks
    run: RunFolder

    @classmethod
    def open(cls, networks: PairNetworks, folder: Path) -> TrainedPairs:
        """Read it. Raises `RunFolderError` where it is not there or not complete."""
        return cls(networks, open_network(folder / networks.name))

    @property
    def seconds(self) -> float:
        """Training time of the group."""
        return float(self.run.run["seconds"])

    @functools.cached_property
    def traces(self) -> list[PairTrace]:
        """One for each member."""
        arrays = self.run.arrays()
        found: list[PairTrace] = []
        for i, (member, end) in enumerate(zip(self.networks.members, self.run.run["records"], strict=True)):
            epochs = arrays["epochs"]
            whole = end == len(epochs) and int(epochs[-1]) == self.networks.epochs
            diverged = None if whole else int(epochs[end - 1]) + 1
            y, v, m = (torch.from_numpy(arrays[name][i, :end].copy()) for name in "yvm")
            found.append(PairTrace(
                self.networks.setting_of(member), member, self.networks.layers, diverged,
                torch.from_numpy(epochs[:end].copy()), torch.from_numpy(arrays["h"][i, :, :end].copy()), y, v, m,
            ))  # fmt: skip
        return found
