"""Figure `trajectories` of the effective theory's paper: the theory and pairs of images (docs/theory 2.5)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from isthmus._records import Claim, MetricTable
from isthmus.experiments._effective_structure_images import StructureSettings
from isthmus.experiments._effective_structure_networks import StructureNetwork, TrainedStructure, distances_of
from isthmus.experiments._equilibrium_reading import over_groups, share_holds, spread
from isthmus.experiments._images import ImageFile
from isthmus.experiments._reproduction import Panel, PaperFigure, Row, above_zero, claim, graded
from isthmus.experiments._ridge_reading import numbers
from isthmus.theory import TwoPointFit, TwoPointFits, fit_two_points

DESCRIBED, ROUGHLY = 0.9, 0.7
"""`R²` of the distance of the representations."""

SAME, DIFFERENT = (0, 1), (2, 3)
"""Kinds of pairs, near and far."""

KINDS = ("same class, near", "same class, far", "different classes, near", "different classes, far")
"""Pairs whose course is fitted; near and far in input."""

_POOL = 0.1
"""Share of the pairs of a kind, nearest or farthest, from which those that are fitted are drawn evenly."""

CURVES = ("h", "y", "v")
_FLOOR = -1.0
"""Least `R²` that is drawn."""


@dataclasses.dataclass(frozen=True)
class TrajectoriesSettings:
    """Figure `trajectories`.

    Attributes:
        pairs: of each of `KINDS`, to which the theory is fitted.
        plain: networks trained by SGD, as the theory has it; judged.
        adam: the networks of figure `structure`; shown beside them.
    """

    pairs: int
    plain: StructureSettings
    adam: StructureSettings

    @property
    def reads_images(self) -> bool:
        """Whether its networks are trained on the user's images."""
        return True

    def networks(self, file: ImageFile, device: str) -> list[StructureNetwork]:
        """Both kinds of training with every seed."""
        return [*self.plain.networks(file, device), *self.adam.networks(file, device)]


@dataclasses.dataclass(frozen=True)
class Fits:
    """Fits to pairs of one network.

    Attributes:
        seed: of the network.
        middle: index of the watched layer.
        kinds: which of `KINDS` each pair is.
        r_squared: `(layers, pairs, curves)`, NaN where there is no fit.
        all: the fits, of every layer one after another.
    """

    seed: int
    middle: int
    kinds: np.ndarray
    r_squared: np.ndarray
    all: Sequence[TwoPointFit] | TwoPointFits = ()

    def median(self, kinds: Sequence[int], curve: str = "h", layer: int | None = None) -> float:
        """Over pairs of some kinds, at a layer or the middle one; a pair without a fit counts as the worst."""
        values = self.r_squared[self.middle if layer is None else layer][:, CURVES.index(curve)]
        return float(np.median(np.where(np.isfinite(values), values, -math.inf)[np.isin(self.kinds, kinds)]))

    @property
    def best_layer(self) -> int:
        """Where pairs of different classes are described best; the first is 0."""
        return int(np.argmax([self.median(DIFFERENT, layer=layer) for layer in range(len(self.r_squared))]))


def chosen_pairs(inputs: Tensor, same: Tensor, count: int) -> dict[int, list[int]]:
    """For each of `KINDS`, pairs (places in the order of `pairs_of`) spread over its nearest or farthest tenth.

    Args:
        inputs: squared distances of the inputs; pairs at 0 are left out.
        same: whether the classes agree.
        count: pairs of each kind; fewer where there are fewer.
    """
    found: dict[int, list[int]] = {}
    for half, wanted in enumerate((True, False)):
        among = ((same == wanted) & (inputs > 0)).nonzero()[:, 0]
        ranked = among[inputs[among].argsort(stable=True)]
        size = min(len(ranked), max(count, round(_POOL * len(ranked))))
        for far, pool in enumerate((ranked[:size], ranked.flip(0)[:size])):
            places = torch.linspace(0, len(pool) - 1, min(count, len(pool))).round().long()
            found[2 * half + far] = pool[places].tolist()
    return found


def read_fits(t: TrainedStructure, count: int) -> Fits:
    """Fit pairs of each kind at every hidden layer, each by itself (docs/theory 2.4).

    Args:
        t: the network.
        count: pairs of each kind.
    """
    samples, watched = t.network.samples(), t.network.watched
    inputs, targets = distances_of(samples.x[:watched]), distances_of(samples.y[:watched])
    chosen = chosen_pairs(inputs, targets == 0, count)
    pairs = [pair for group in chosen.values() for pair in group]
    kinds = np.array([kind for kind, group in chosen.items() for _ in group])
    steps, h, y, v = (torch.from_numpy(t.arrays[f"track/{name}"]).double() for name in ("steps", *CURVES))
    layers = h.shape[1]
    rows = [found[:, pairs].mT.repeat(layers, 1) for found in (y, v)]
    ends = [found[pairs].repeat(layers) for found in (inputs, targets)]
    fits = fit_two_points(steps, h[:, :, pairs].permute(1, 2, 0).flatten(0, 1), *rows, dx2=ends[0], dy2=ends[1])
    explained = fits.r_squared.view(layers, len(pairs), len(CURVES)).numpy()
    return Fits(t.network.seed, t.network.setting.watched, kinds, explained, fits)


def _by_kind(found: Sequence[Fits], curve: str) -> str:
    return ", ".join(
        f"{kind} {numbers([float(np.mean([f.median([i], curve) for f in found]))])}" for i, kind in enumerate(KINDS)
    )


def trajectory_claims(plain: Sequence[Fits], adam: Sequence[Fits]) -> list[Claim]:
    """Judge the fits; criteria were fixed before the networks were trained."""
    if not plain:
        return [claim("trajectories", "different-classes", "not judged", "No network was trained.")]
    made: list[Claim] = []
    for kinds, name, where in (
        (DIFFERENT, "different-classes", "different classes"),
        (SAME, "same-class", "one class"),
    ):
        values = [f.median(kinds) for f in plain]
        mean = float(np.mean(values))
        made.append(claim(
            "trajectories", name, graded(-mean, held=-DESCRIBED, partly=-ROUGHLY),
            f"R² of ‖dh‖² at the middle layer, pairs of {where}, median over pairs, by seed: {numbers(values)}; of "
            f"‖dy‖² {numbers([f.median(kinds, 'y') for f in plain])}. Wanted: at least {DESCRIBED} in the mean "
            f"(partly: {ROUGHLY}).", r_squared=mean,
        ))  # fmt: skip
    gain = over_groups([[f.median([2]) - f.median([3]) for f in plain]])
    made.append(
        claim("trajectories", "near-pairs-better", "not judged", "Two seeds with fits to both are needed.")
        if gain is None or not math.isfinite(gain.mean)
        else claim("trajectories", "near-pairs-better", above_zero(gain.low, gain.high),
                   f"R² of ‖dh‖² at the middle layer by kind, mean over seeds: {_by_kind(plain, 'h')}. Of different "
                   f"classes, near pairs are described better than far ones by {gain.said()}: the theory is made of "
                   "first-order maps, so they should be. Wanted: an interval above 0 (partly: its middle).")
    )  # fmt: skip
    layers = len(plain[0].r_squared)
    inside = [0 < f.best_layer < layers - 1 for f in plain]
    course = [float(np.mean([f.median(DIFFERENT, layer=layer) for f in plain])) for layer in range(layers)]
    made.append(claim(
        "trajectories", "best-in-the-middle", share_holds(inside),
        f"R² of ‖dh‖² by hidden layer, pairs of different classes, mean over seeds: {numbers(course)}; best at layer "
        f"{', '.join(str(f.best_layer + 1) for f in plain)} of {layers}, by seed. Wanted: neither the first nor the "
        "last in three quarters of the networks (partly: in half).",
    ))  # fmt: skip
    unfitted = float(np.mean([np.isnan(f.r_squared[..., 0]).mean() for f in [*plain, *adam]]))
    if adam:
        made.append(claim(
            "trajectories", "with-adam", "not judged",
            f"The same of the networks trained by Adam, of which the theory says nothing: R² of ‖dh‖² "
            f"{_by_kind(adam, 'h')}; of ‖dy‖² {_by_kind(adam, 'y')}. By SGD ‖dy‖²: {_by_kind(plain, 'y')}. Pairs and "
            f"layers without a fit: {unfitted:.1%}.",
        ))  # fmt: skip
    return made


def _course_rows(steps: Sequence[int], fits: Fits) -> list[Row]:
    """The pair of each kind whose `R²` is the middle one, at the middle layer: found, and with the fitted rates."""
    rows: list[Row] = []
    for kind, name in enumerate(KINDS):
        panel = "same" if kind in SAME else "different"
        values = np.where(fits.kinds == kind, fits.r_squared[fits.middle, :, 0], math.nan)
        ranked = [int(i) for i in np.argsort(values) if math.isfinite(values[i])]
        if not ranked:
            continue
        fit = fits.all[fits.middle * len(fits.kinds) + ranked[(len(ranked) - 1) // 2]]
        for label, curves in (("found", fit.measured), ("theory", fit.fitted)):
            rows += [Row(panel, f"{label}, {name.split(', ')[1]}", step + 1, value, seed=fits.seed)
                     for step, value in zip(steps, curves[0].tolist(), strict=False)]  # fmt: skip
    return rows


def _layer_rows(panel: str, found: Sequence[Fits]) -> list[Row]:
    rows: list[Row] = []
    for layer in range(len(found[0].r_squared)) if found else ():
        for kind, name in enumerate(KINDS):
            rows += spread(panel, name, layer + 1, [max(_FLOOR, f.median([kind], layer=layer)) for f in found])
    return rows


def trajectories_figure(
    settings: TrajectoriesSettings, networks: Sequence[StructureNetwork], folder: Path, table: MetricTable
) -> PaperFigure:
    """How well the theory of two points fits pairs of images while a network trains."""
    trained = [TrainedStructure.open(network, folder) for network in networks]
    groups: Mapping[str, list[Fits]] = {"sgd": [], "adam": []}
    rows: list[Row] = []
    for t in trained:
        if t.diverged:
            continue
        kind = t.network.setting.optimiser
        table.add("loss", t.number("loss"), split="train", seed=t.network.seed, note=f"figure trajectories: {kind}")
        fits = read_fits(t, settings.pairs)
        if kind == "sgd" and not groups[kind]:
            rows += _course_rows(t.arrays["track/steps"].tolist(), fits)
        groups[kind].append(fits)
    rows += _layer_rows("layers", groups["sgd"]) + _layer_rows("layers-adam", groups["adam"])
    losses = ", ".join(f"{t.number('loss'):.2g}" for t in trained if t.network.setting.optimiser == "sgd")
    lost = ", ".join(f"{t.network.setting.optimiser}, seed {t.network.seed}" for t in trained if t.diverged)
    note = "The time of the networks trained by Adam is part of figure structure's."
    floor = f"R² of h ({_FLOOR:g} and less at {_FLOOR:g})".replace("-", "−")
    return PaperFigure(
        "trajectories", "Pairs of images during training",
        "Pairs of digits follow the curves of two points with two fitted rates.",
        f"{settings.plain.said}; loss at the end by seed {losses}. {settings.pairs} pairs of each kind, spread "
        "over the nearest and the farthest tenth of the pairs of one class and of different classes, at every hidden "
        "layer: one fit for each pair and layer, at moments that are geometrically spaced. Bars: least and largest of "
        "the seeds.",
        (
            Panel("different", "Squared distance of typical pairs of different classes", "step + 1", "h",
                  x_scale="log"),
            Panel("same", "Squared distance of typical pairs of one class", "step + 1", "h", x_scale="log"),
            Panel("layers", "How well the theory fits, SGD: median over pairs", "hidden layer", floor),
            Panel("layers-adam", "How well the theory fits, Adam: median over pairs", "hidden layer", floor),
        ),
        tuple(rows), tuple(trajectory_claims(groups["sgd"], groups["adam"])),
        sum(t.number("seconds") for t in trained if t.network.setting.optimiser == "sgd"),
        f"Diverged, and left out: {lost}. {note}" if lost else note,
    )  # fmt: skip
