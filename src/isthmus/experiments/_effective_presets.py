"""Settings of the effective theory's experiments (arXiv 2402.09142, docs/theory 2.5), in three sizes."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

from isthmus.experiments._effective_frame import FigureSettings
from isthmus.experiments._effective_networks import NARROW, Member, PairNetworks
from isthmus.experiments._effective_structure import STRUCTURE, StructurePreset
from isthmus.experiments._images import ImageFile
from isthmus.models import ZOO, ZooSetting

GAINS = ("gain_0.9", "default", "gain_1.1", "gain_1.2", "gain_1.3", "gain_1.4", "gain_1.6")
"""Settings of figure `initial-scale`, in order of the gain."""


@dataclasses.dataclass(frozen=True)
class PairFigure:
    """A figure about two points.

    Attributes:
        groups: its networks, those that are trained together in one.
        reads_images: never.
    """

    groups: tuple[PairNetworks, ...]
    reads_images: bool = False

    def networks(self, file: ImageFile, device: str) -> Sequence[PairNetworks]:
        """The networks it needs."""
        return [dataclasses.replace(group, device=device) for group in self.groups]

    def of(self, names: Sequence[str]) -> PairFigure:
        """A figure of those groups that have networks of these settings."""
        return PairFigure(tuple(g for g in self.groups if any(m.name in names for m in g.members)))


def zoo_figure(settings: Sequence[ZooSetting], seeds: Sequence[int], epochs: int) -> PairFigure:
    """Every setting with every seed; narrow networks of one shape are trained together."""
    shapes: dict[tuple[object, ...], list[ZooSetting]] = {}
    for one in settings:
        together = one.kind == "mlp" and one.optimiser == "sgd" and one.width <= NARROW
        key = (one.activation, one.width, one.hidden_layers, one.watched) if together else (one.name,)
        shapes.setdefault(key, []).append(one)
    groups: list[PairNetworks] = []
    for same in shapes.values():
        members = [Member(one.name, one.gain, one.learning_rate, seed) for one in same for seed in seeds]
        first = same[0]
        together = first.kind == "mlp" and first.optimiser == "sgd" and first.width <= NARROW
        parts = [members] if together else [[member] for member in members]
        groups += [PairNetworks(first, tuple(part), epochs) for part in parts]
    return PairFigure(tuple(groups))


def grid_figure(
    setting: ZooSetting, dx: Sequence[float], dy: Sequence[float], seeds: Sequence[int], ends: Sequence[GridEnd],
    records: int,
) -> PairFigure:  # fmt: skip
    """Every pair of distances, at gains from rich to lazy; the networks of one seed start alike in all cells."""
    groups: list[PairNetworks] = []
    for end in ends:
        members = [
            Member(end.name, end.gain, end.rate, seed, x**2, y**2)
            for x, y in itertools.product(dx, dy)
            for seed in seeds
        ]
        parts = [members] if setting.width <= NARROW else [[member] for member in members]
        groups += [
            PairNetworks(setting, tuple(part), end.epochs, end.epochs // records, all_layers=False) for part in parts
        ]
    return PairFigure(tuple(groups))


@dataclasses.dataclass(frozen=True)
class GridEnd:
    """How the networks of figure `grid` begin.

    Attributes:
        name: `rich` or `lazy`.
        gain: of the weights.
        rate: learning rate.
        epochs: steps.
    """

    name: str
    gain: float
    rate: float
    epochs: int


@dataclasses.dataclass(frozen=True)
class EffectivePreset:
    """Sizes and training of all figures.

    Attributes:
        name: of the preset.
        budget: what the figures may take, in words.
        setting: what holds for all figures, in words.
        needs_file: whether images must be given for the figures that read them; the digits otherwise.
        two_points: settings of that figure, and so on.
        grid: of that figure.
        structure: of the figures on more samples.
    """

    name: str
    budget: str
    setting: str
    needs_file: bool
    two_points: PairFigure
    grid: PairFigure
    structure: StructurePreset

    @property
    def depth_profile(self) -> PairFigure:
        """Those of `two-points` whose layers are all looked at."""
        return self.two_points.of(("default",))

    @property
    def initial_scale(self) -> PairFigure:
        """Those of `two-points` with gains from rich to lazy."""
        return self.two_points.of(GAINS)

    @property
    def figures(self) -> Mapping[str, FigureSettings]:
        """Settings of each figure, by its name."""
        return {
            "two-points": self.two_points,
            "depth-profile": self.depth_profile,
            "alternatives": self.two_points,
            "grid": self.grid,
            "initial-scale": self.initial_scale,
            "xor": self.structure.xor,
            "structure": self.structure.structure,
            "trajectories": self.structure.trajectories,
            "orthogonal": self.structure.orthogonal,
        }


def _narrowed(width: int) -> list[ZooSetting]:
    """The zoo with fewer neurons; a convolutional network keeps what its convolutions need."""
    return [
        dataclasses.replace(one, width=width if one.kind != "convolutional" else max(width, 130))
        for one in ZOO.values()
    ]


_TWO = (
    "Two points: inputs −1 and −1 + √X, targets 0.6 and 0.6 + √Y, X = 1 and Y = 0.5 unless said; loss ½ mean "
    "‖y − y*‖²; plain full-batch SGD; Xavier-normal weights times a gain, zero biases; h, y, v taken at every step "
    "from the forward pass that it is made from. Time is in steps. "
)

PRESETS: dict[str, EffectivePreset] = {
    preset.name: preset
    for preset in (
        EffectivePreset(
            "quick", "a few minutes for all figures on 2 cores; too small to conclude from",
            _TWO + "Networks are narrow (32) and trained for 800 steps.", needs_file=False,
            two_points=zoo_figure(_narrowed(32), (0, 1), 800),
            grid=grid_figure(ZOO["narrow"], (0.5, 1.0, 1.5), (0.5, 1.0), (0, 1),
                             (GridEnd("rich", 1.05, 0.02, 2000), GridEnd("lazy", 1.6, 1e-4, 1000)), 500),
            structure=STRUCTURE["quick"]),
        EffectivePreset(
            "paper", "about half an hour for all figures together on 2 cores",
            _TWO + "Sizes, rates and 3000 steps as published, 3 seeds; figure grid with networks of width 50 "
            "(the published ones: 500) and 5 seeds.", needs_file=True,
            two_points=zoo_figure(tuple(ZOO.values()), (0, 1, 2), 3000),
            grid=grid_figure(ZOO["narrow"], (0.5, 0.75, 1.0, 1.25, 1.5), (0.25, 0.5, 0.75, 1.0), (0, 1, 2, 3, 4),
                             (GridEnd("rich", 1.05, 0.02, 6000), GridEnd("lazy", 1.6, 1e-4, 3000)), 1500),
            structure=STRUCTURE["paper"]),
        EffectivePreset(
            "full", "the published sizes with more seeds: days on 2 cores",
            _TWO + "Sizes and rates as published, 10 seeds.", needs_file=True,
            two_points=zoo_figure(tuple(ZOO.values()), tuple(range(10)), 6000),
            grid=grid_figure(ZOO["default"], (0.5, 0.75, 1.0, 1.25, 1.5), (0.25, 0.5, 0.75, 1.0), (0, 1, 2),
                             (GridEnd("rich", 1.0, 0.002, 40000), GridEnd("lazy", 1.6, 3e-6, 40000)), 2000),
            structure=STRUCTURE["full"]),
    )
}  # fmt: skip
"""The presets by name."""
