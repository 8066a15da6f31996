"""Figure `xor` of the effective theory's paper: which of four points merge (docs/theory 2.3, 2.5)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from isthmus._errors import InputError
from isthmus._records import Claim, MetricTable
from isthmus.experiments._effective_reading import thinned
from isthmus.experiments._effective_structure_networks import (
    StructureNetwork,
    TrainedStructure,
    distances_of,
    pairs_of,
)
from isthmus.experiments._equilibrium_reading import spread
from isthmus.experiments._images import ImageFile
from isthmus.experiments._reproduction import Panel, PaperFigure, Row, claim, graded
from isthmus.experiments._ridge_reading import numbers, short
from isthmus.models import ZooSetting
from isthmus.theory import TwoPointFit, final_distances, fit_two_point, two_point

FITTED = 0
"""The pair that gives the ratio of the rates: (0, 0) and (0, 1), in the order of `pairs_of`."""

MERGED, NEARLY_MERGED = 0.1, 0.3
"""Distance of points with equal labels over that of points with different ones."""

STAYED, NEARLY_STAYED = 0.05, 0.2
"""Change of the distances over the distances at the start."""

CLOSE, ROUGH = 0.25, 0.5
"""Relative error of the predicted distances."""

_DRAWN = 31
"""Moments whose spread over seeds is drawn."""

RICH, BETWEEN, LAZY, SHALLOW = "rich", "between", "lazy", "one hidden layer"
"""Names of the settings."""


@dataclasses.dataclass(frozen=True)
class XorSettings:
    """Figure `xor`.

    Attributes:
        seeds: of the weights.
        times: moments at which distances are recorded.
        trained: each network, and its steps.
    """

    seeds: tuple[int, ...]
    times: int
    trained: tuple[tuple[ZooSetting, int], ...]

    @property
    def reads_images(self) -> bool:
        """Whether its networks are trained on the user's images."""
        return False

    def networks(self, file: ImageFile, device: str) -> list[StructureNetwork]:
        """Every setting with every seed."""
        del file
        return [
            StructureNetwork("xor", {}, setting, batch=0, steps=steps, times=self.times, spacing="even", watched=4,
                             seed=seed, device=device)
            for setting, steps in self.trained for seed in self.seeds
        ]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class XorReading:
    """Squared distances of one network at its watched layer, of the six pairs.

    Attributes:
        seed: of the weights.
        first: at the start.
        last: at the end.
        predicted: at the end, from the start and the ratio; None where the ratio could not be fitted.
        rich: the rich limit with that ratio.
        ratio: `η_h/η_y`, fitted to one pair.
        loss: half the mean square at the end.
    """

    seed: int
    first: np.ndarray
    last: np.ndarray
    predicted: np.ndarray | None
    rich: np.ndarray | None
    ratio: float | None
    loss: float

    @property
    def merging(self) -> float:
        """Mean distance of points with equal labels over that of points with different ones, at the end."""
        return merging(self.last)

    @property
    def change(self) -> float:
        """Of the distances, over the distances at the start."""
        return float(np.linalg.norm(self.last - self.first) / np.linalg.norm(self.first))

    def error(self, guess: np.ndarray) -> float:
        """Of the five pairs that the ratio was not fitted to, over their distances at the end."""
        others = np.arange(len(self.last)) != FITTED
        return float(np.linalg.norm((guess - self.last)[others]) / np.linalg.norm(self.last[others]))


def equal_labels() -> np.ndarray:
    """Whether the labels of the pairs agree, in the order of `pairs_of`."""
    return np.array([False, False, True, True, False, False])


def merging(distances: np.ndarray) -> float:
    """Mean of the pairs with equal labels over that of the others."""
    return float(distances[equal_labels()].mean() / distances[~equal_labels()].mean())


def _square(pairs: Tensor) -> Tensor:
    """A symmetric matrix from its upper triangle."""
    made = pairs.new_zeros(4, 4)
    made[*torch.triu_indices(4, 4, 1)] = pairs
    return made + made.mT


def _states(t: TrainedStructure) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Moments, and `h`, `y`, `v` of the six pairs in rows."""
    arrays = {name: torch.from_numpy(t.arrays[f"track/{name}"]).double() for name in ("steps", "h", "y", "v")}
    return arrays["steps"], arrays["h"][:, t.network.setting.watched].mT, arrays["y"].mT, arrays["v"].mT


def _distances(t: TrainedStructure) -> tuple[Tensor, Tensor]:
    samples = t.network.samples()
    return distances_of(samples.x), distances_of(samples.y)


def fit_pair(t: TrainedStructure) -> TwoPointFit | None:
    """The theory fitted to one pair; None where nothing fits."""
    steps, h, y, v = _states(t)
    inputs, targets = _distances(t)
    try:
        return fit_two_point(steps, h[FITTED], y[FITTED], v[FITTED], dx2=float(inputs[FITTED]),
                             dy2=float(targets[FITTED]))  # fmt: skip
    except InputError:  # a pair that does not move
        return None


def read_xor(t: TrainedStructure, fit: TwoPointFit | None) -> XorReading:
    """What is behind the claims."""
    _, h, y, _ = _states(t)
    inputs, targets = (_square(found) for found in _distances(t))
    ratio = None if fit is None else fit.eta_h / fit.eta_y
    predicted = rich = None
    if ratio is not None:
        predicted = pairs_of(final_distances(inputs, targets, _square(h[:, 0]), _square(y[:, 0]), ratio=ratio)).numpy()
        rich = pairs_of(final_distances(inputs, targets, ratio=ratio)).numpy()
    return XorReading(t.network.seed, h[:, 0].numpy(), h[:, -1].numpy(), predicted, rich, ratio, t.number("loss"))


def _said(found: Mapping[str, Sequence[XorReading]], value: str, digits: int = 3) -> str:
    return "; ".join(f"{name} {short([getattr(r, value) for r in group], digits)}" for name, group in found.items())


def _part(group: Sequence[XorReading], pair: int) -> str:
    """One pair with equal labels over those with different ones."""
    return short([r.last[pair] / r.last[~equal_labels()].mean() for r in group])


def xor_claims(found: Mapping[str, Sequence[XorReading]]) -> list[Claim]:
    """Judge the four points; criteria were fixed before the networks were trained.

    Args:
        found: readings of each setting, one for each seed.
    """
    made: list[Claim] = []
    for name, key in ((RICH, "equal-labels-merge"), (SHALLOW, "equal-labels-merge-in-one-hidden-layer")):
        if group := found.get(name):
            merged = float(np.mean([r.merging for r in group]))
            made.append(claim(
                "xor", key, graded(merged, held=MERGED, partly=NEARLY_MERGED),
                f"Squared distance of points with equal labels over that of points with different labels, {name}, at "
                f"the end, by seed: {short([r.merging for r in group])}; (0, 0) and (1, 1) alone {_part(group, 2)}, "
                f"(0, 1) and (1, 0) alone {_part(group, 3)}; at the start "
                f"{short([merging(r.first) for r in group])}. Wanted: at most {MERGED} in the mean (partly: "
                f"{NEARLY_MERGED}).", merging=merged,
            ))  # fmt: skip
    if found.get(LAZY):
        change = float(np.mean([r.change for r in found[LAZY]]))
        made.append(claim(
            "xor", "lazy-distances-stay", graded(change, held=STAYED, partly=NEARLY_STAYED),
            f"Change of the distances over the distances at the start, by seed: {_said(found, 'change', 2)}. Wanted: "
            f"at most {STAYED} in the mean of the lazy networks (partly: {NEARLY_STAYED}).", change=change,
        ))  # fmt: skip
    deep = [found.get(name, ()) for name in (RICH, BETWEEN, LAZY)]
    if all(deep):
        rows = list(zip(*([r.merging for r in group] for group in deep), strict=False))
        ordered = [a < b < c for a, b, c in rows]
        a, b, c = (float(np.mean([r.merging for r in group])) for group in deep)
        made.append(claim(
            "xor", "from-rich-to-lazy", "held" if all(ordered) else "partly" if a < b < c else "not",
            f"Equal over different labels at the end, mean over seeds, from small to large weights: "
            f"{numbers([a, b, c], 3)}; in order in {sum(ordered)} of {len(rows)} seeds. Wanted: in all (partly: in the "
            "mean).",
        ))  # fmt: skip
    errors = {name: [r.error(r.predicted) for r in group if r.predicted is not None] for name, group in found.items()}
    errors = {name: values for name, values in errors.items() if values}
    unfitted = sum(r.predicted is None for group in found.values() for r in group)
    ratios = f"{unfitted} could not be fitted" if unfitted else _said(found, "ratio", 2)
    made.append(claim(
        "xor", "theory-of-the-end",
        graded(max(float(np.mean(v)) for v in errors.values()), held=CLOSE, partly=ROUGH) if errors else "not judged",
        f"Relative error of the final distances that the start and one fitted pair predict, over the five other pairs, "
        f"by seed: {_each(errors)}; taking the rich limit instead: {_each(_others(found, 'rich'))}; taking the "
        f"distances at the start instead: {_each(_others(found, 'first'))}. Wanted: at most {CLOSE} in the mean of "
        f"each setting (partly: {ROUGH}). Ratio η_h/η_y: {ratios}.",
    ))  # fmt: skip
    made.append(claim("xor", "trained", "not judged", f"Half the mean square at the end: {_said(found, 'loss', 2)}."))
    return made


def _others(found: Mapping[str, Sequence[XorReading]], guess: str) -> dict[str, list[float]]:
    """Errors of another guess."""
    return {
        name: [r.error(getattr(r, guess)) for r in group if getattr(r, guess) is not None]
        for name, group in found.items()
    }


def _each(values: Mapping[str, Sequence[float]]) -> str:
    return "; ".join(f"{name} {short(group)}" for name, group in values.items())


def _course_rows(t: TrainedStructure, fit: TwoPointFit | None) -> list[Row]:
    """Distances of one network during training, means over pairs of a kind, beside those of the fitted rates."""
    steps, h, y, v = _states(t)
    inputs, targets = _distances(t)
    rows: list[Row] = []
    for label, chosen in (("different labels", ~equal_labels()), ("equal labels", equal_labels())):
        kept = torch.from_numpy(chosen)
        rows += [Row("course", f"{label}, found", float(step), float(value))
                 for step, value in zip(steps, h[kept].mean(0), strict=True)]  # fmt: skip
        if fit is not None:
            path = two_point(steps, h[kept, 0], y[kept, 0], v[kept, 0], eta_h=fit.eta_h, eta_y=fit.eta_y,
                             dx2=inputs[kept], dy2=targets[kept])  # fmt: skip
            rows += [Row("course", f"{label}, theory", float(step), float(value))
                     for step, value in zip(steps, path.h.mean(0), strict=True)]  # fmt: skip
    return rows


def xor_figure(
    settings: XorSettings, networks: Sequence[StructureNetwork], folder: Path, table: MetricTable
) -> PaperFigure:
    """Which of the four points merge, against the final structure of docs/theory 2.3."""
    trained = [TrainedStructure.open(network, folder) for network in networks]
    kept = [t for t in trained if not t.diverged]
    rows: list[Row] = []
    found: dict[str, list[XorReading]] = {setting.name: [] for setting, _ in settings.trained}
    courses: dict[str, list[np.ndarray]] = {name: [] for name in found}
    for t in kept:
        name, fit = t.network.setting.name, fit_pair(t)
        reading = read_xor(t, fit)
        found[name].append(reading)
        table.add("loss", reading.loss, split="train", seed=reading.seed, note=f"figure xor: {name}")
        if name == RICH and len(found[name]) == 1:
            rows += _course_rows(t, fit)
        h = t.arrays["track/h"][:, t.network.setting.watched].astype(np.float64)
        courses[name].append(np.array([merging(one) for one in h]))
        if reading.predicted is not None:
            unit = float(reading.last.mean())
            rows += [Row("matrix", name, float(a) / unit, float(b) / unit, seed=reading.seed)
                     for a, b in zip(reading.predicted, reading.last, strict=True)]  # fmt: skip
    for name, group in courses.items():
        if group:
            columns, last = np.array(group).T, len(group[0]) - 1
            for i in thinned(last + 1, _DRAWN):
                rows += spread("merging", name, float(i) / max(1, last), columns[i].tolist())
    said = ", ".join(f"{s.name} {s.gain:g} ({s.learning_rate / 2:g}, {steps})" for s, steps in settings.trained)
    first = settings.trained[0][0]
    lost = ", ".join(f"{t.network.setting.name}, seed {t.network.seed}" for t in trained if t.diverged)
    return PaperFigure(
        "xor", "XOR: which points merge",
        "From small to large initial weights the final distances go from the rich form, where points with equal labels "
        "merge, to those at the start.",
        f"Four points, ReLU, width {first.width}, {first.hidden_layers} hidden layers, watched at the layer of index "
        f"{first.watched} from 0, of one hidden layer at that one; gain (learning rate on the mean square, steps): "
        f"{said}; full batch. Theory: each pair's own distances at the start, and one ratio η_h/η_y for each network, "
        "fitted to the course of the pair (0, 0) and (0, 1) alone.",
        (
            Panel("merging", "Squared distance of equal labels over that of different labels", "share of training",
                  "ratio"),
            Panel("matrix", "Final squared distances over their mean: theory and found", "theory", "found",
                  kind="points", square=True),
            Panel("course", "Squared distances while the first rich network trains", "step", "h", y_scale="log"),
        ),
        tuple(row for row in rows if math.isfinite(row.y)), tuple(xor_claims(found)),
        sum(t.number("seconds") for t in trained), f"Diverged, and left out: {lost}." if lost else "",
    )  # fmt: skip
