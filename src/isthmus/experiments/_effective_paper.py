"""`reproduce effective-theory`: the experiments of arXiv 2402.09142, from networks to a page (docs/theory 2.5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from isthmus._errors import InputError
from isthmus._records import MetricTable, RunFolder
from isthmus.experiments._effective_frame import EffectiveNetwork, FigureSettings
from isthmus.experiments._effective_layers import figure_alternatives, figure_depth_profile
from isthmus.experiments._effective_presets import PRESETS
from isthmus.experiments._effective_scale import figure_grid, figure_initial_scale
from isthmus.experiments._effective_structure import (
    orthogonal_figure,
    structure_figure,
    trajectories_figure,
    xor_figure,
)
from isthmus.experiments._effective_two_points import figure_two_points
from isthmus.experiments._images import ImageFile, image_file
from isthmus.experiments._paper import Paper
from isthmus.experiments._reproduction import PaperFigure
from isthmus.experiments._workers import Progress, train_missing

_MAKE: dict[str, Callable[[Any, Sequence[Any], Path, MetricTable], PaperFigure]] = {
    "two-points": figure_two_points,
    "depth-profile": figure_depth_profile,
    "alternatives": figure_alternatives,
    "grid": figure_grid,
    "initial-scale": figure_initial_scale,
    "xor": xor_figure,
    "structure": structure_figure,
    "trajectories": trajectories_figure,
    "orthogonal": orthogonal_figure,
}

EFFECTIVE = Paper(
    "effective-theory",
    "When Representations Align: Universality in Representation Learning Dynamics (arXiv 2402.09142)",
    "Experiments of the effective theory of representation learning", tuple(_MAKE), PRESETS,
)  # fmt: skip
"""The paper on two points; its figures go by what they are about."""


def _networks(
    preset: str, figures: Sequence[str], data: str | Path | None, device: str
) -> tuple[ImageFile, dict[str, tuple[FigureSettings, Sequence[EffectiveNetwork]]]]:
    EFFECTIVE.check_preset(preset)
    keys, chosen = EFFECTIVE.check_figures(figures), PRESETS[preset]
    settings = {key: chosen.figures[key] for key in keys}
    reading = [key for key, one in settings.items() if one.reads_images]
    if data is None and chosen.needs_file and reading:
        raise InputError("data", "nothing", "a file .npz with arrays images and labels, for "
                         f"{', '.join(reading)} of preset {preset}",
                         "--data FILE.npz; the preset quick takes scikit-learn's digits")  # fmt: skip
    file = image_file(None if data is None else Path(data))
    return file, {key: (one, one.networks(file, device)) for key, one in settings.items()}


def _train(network: EffectiveNetwork, folder: Path) -> None:
    network.train(folder)


def plan_effective(
    preset: str, figures: Sequence[str] = (), *, data: str | Path | None = None, device: str = "cpu"
) -> int:
    """How many networks the figures need; small ones that are trained together count as one.

    Raises:
        InputError: an unknown preset or figure, or data that cannot be used.
    """
    groups = _networks(preset, figures, data, device)[1].values()
    return len({network.name for _, group in groups for network in group})


def reproduce_effective(
    out: str | Path,
    *,
    preset: str = "quick",
    figures: Sequence[str] = (),
    data: str | Path | None = None,
    jobs: int = 1,
    device: str = "cpu",
    progress: Progress | None = None,
) -> RunFolder:
    """Experiments of the effective theory: networks, charts (PNG, SVG, PDF), data, a verdict on each claim, and a page.

    `two-points` (two samples come apart, in networks of every kind, with two effective learning rates fitted to each),
    `depth-profile` (the fit at each layer), `alternatives` (equations with a term altered), `grid` (distances of inputs
    and of targets varied), `initial-scale` (from rich to lazy), and on more samples `xor`, `structure`, `trajectories`
    and `orthogonal`. `out` keeps every network: the same command goes on where it was interrupted, and another figure
    uses the networks that are there. Source: arXiv 2402.09142, docs/theory 2.1–2.6.

    Args:
        out: the folder; a new one, or one of this paper, preset and data.
        preset: `quick`, `paper` or `full`.
        figures: any of those above; all unless given.
        data: a file .npz with `images` and `labels` for `structure` and `trajectories`; `quick` takes scikit-learn's
            digits unless given.
        jobs: processes that train at the same time.
        device: where to train.
        progress: called when a network is done.

    Raises:
        InputError: an unknown preset or figure, fewer than 1 job, or data that cannot be used.
        RunFolderError: something else is in the folder.
        DivergedError: some networks could not be trained; the others are kept.
    """
    file, needs = _networks(preset, figures, data, device)

    def make(run: RunFolder, table: MetricTable) -> list[PaperFigure]:
        folder = run.path / "networks"
        every = {network.name: network for _, group in needs.values() for network in group}
        train_missing(every, _train, folder, jobs=jobs, progress=progress)
        return [_MAKE[key](settings, group, folder, table) for key, (settings, group) in needs.items()]

    return EFFECTIVE.run(Path(out), make, preset=preset, figures=tuple(needs), jobs=jobs, device=device,
                         data={"name": file.name, "sha256": file.sha256})  # fmt: skip
