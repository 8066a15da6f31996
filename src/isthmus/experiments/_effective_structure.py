"""The structure experiments of the effective theory's paper: figures and their settings, in three sizes."""

from __future__ import annotations

import dataclasses
from typing import Literal

from isthmus.experiments._effective_structure_images import StructureSettings as StructureSettings
from isthmus.experiments._effective_structure_images import structure_figure as structure_figure
from isthmus.experiments._effective_structure_orthogonal import OrthogonalSettings as OrthogonalSettings
from isthmus.experiments._effective_structure_orthogonal import orthogonal_figure as orthogonal_figure
from isthmus.experiments._effective_structure_trajectories import TrajectoriesSettings as TrajectoriesSettings
from isthmus.experiments._effective_structure_trajectories import trajectories_figure as trajectories_figure
from isthmus.experiments._effective_structure_xor import BETWEEN, LAZY, RICH, SHALLOW
from isthmus.experiments._effective_structure_xor import XorSettings as XorSettings
from isthmus.experiments._effective_structure_xor import xor_figure as xor_figure
from isthmus.models import ZooSetting


@dataclasses.dataclass(frozen=True)
class StructurePreset:
    """Settings of the four figures, of one size.

    Attributes:
        xor: four points.
        structure: distances between images.
        trajectories: pairs of images during training.
        orthogonal: blobs in two contexts.
    """

    xor: XorSettings
    structure: StructureSettings
    trajectories: TrajectoriesSettings
    orthogonal: OrthogonalSettings


def _xor(
    seeds: tuple[int, ...], *, width: int, hidden: int, steps: tuple[int, int, int, int], lazy: float = 3e-9
) -> XorSettings:
    """Gains and rates of docs/theory 2.5; the published loss is the mean square without ½, hence the factor 2."""
    table = ((RICH, 0.85, 0.015, hidden), (BETWEEN, 1.25, 0.002, hidden), (LAZY, 2.0, lazy, hidden),
             (SHALLOW, 0.0015, 0.03, 1))  # fmt: skip
    settings = [
        ZooSetting(name, activation="relu", gain=gain, learning_rate=2 * rate, width=width, hidden_layers=layers,
                   watched=layers // 2)
        for name, gain, rate, layers in table
    ]  # fmt: skip
    return XorSettings(seeds, 300, tuple(zip(settings, steps, strict=True)))


def _images(
    seeds: tuple[int, ...], optimiser: Literal["sgd", "adam"], rate: float, *, side: int, n_train: int, width: int,
    steps: int, watched: int = 100, times: int = 100,
) -> StructureSettings:  # fmt: skip
    setting = ZooSetting("images", gain=0.5, learning_rate=rate, optimiser=optimiser, width=width, hidden_layers=4,
                         watched=2)  # fmt: skip
    return StructureSettings(seeds, side, n_train, watched, setting, 64, steps, times)


def _blobs(seeds: tuple[int, ...], grid: int, *, width: int, steps: tuple[int, int, int]) -> OrthogonalSettings:
    table = ((2.0, 0.0015), (0.5, 0.2), (0.275, 0.2))
    settings = [
        ZooSetting("blobs", activation="tanh", gain=gain, learning_rate=rate, width=width, hidden_layers=4, watched=2)
        for gain, rate in table
    ]
    published = dataclasses.replace(settings[1], activation="leaky_relu", learning_rate=0.015)
    return OrthogonalSettings(seeds, grid, 64, tuple(zip(settings, steps, strict=True)), (published, 2 * steps[0]))


def _preset(
    pairs: int, xor: XorSettings, plain: StructureSettings, adam: StructureSettings, orthogonal: OrthogonalSettings
) -> StructurePreset:
    return StructurePreset(xor, adam, TrajectoriesSettings(pairs, plain, adam), orthogonal)


_QUICK, _PAPER, _FULL = (0, 1), (0, 1, 2), (0, 1, 2, 3, 4)

STRUCTURE = {
    "quick": _preset(
        3,
        _xor(_QUICK, width=100, hidden=6, steps=(500, 500, 500, 2000), lazy=5e-5),
        _images(_QUICK, "sgd", 0.1, side=8, n_train=500, width=50, steps=1500, watched=60, times=50),
        _images(_QUICK, "adam", 0.001, side=8, n_train=500, width=50, steps=1500, watched=60, times=50),
        _blobs(_QUICK, 6, width=40, steps=(2000, 4000, 6000))),
    "paper": _preset(
        10,
        _xor(_PAPER, width=500, hidden=20, steps=(3000, 1000, 1000, 2000)),
        _images(_PAPER, "sgd", 0.05, side=14, n_train=4000, width=200, steps=12600),
        _images(_PAPER, "adam", 0.001, side=14, n_train=4000, width=200, steps=12600),
        _blobs(_PAPER, 15, width=100, steps=(22000, 20000, 60000))),
    "full": _preset(
        20,
        _xor(_FULL, width=500, hidden=20, steps=(3000, 1000, 1000, 2000)),
        _images(_FULL, "sgd", 0.003, side=28, n_train=60000, width=200, steps=187600, times=200),
        _images(_FULL, "adam", 0.005, side=28, n_train=60000, width=200, steps=187600, times=200),
        _blobs(_FULL, 30, width=100, steps=(22000, 20000, 60000))),
}  # fmt: skip
"""By the names of the presets."""
