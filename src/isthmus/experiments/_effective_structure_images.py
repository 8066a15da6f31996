"""Figure `structure` of the effective theory's paper: distances between images (docs/theory 2.5)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from isthmus._records import Claim, MetricTable
from isthmus.experiments._effective_reading import thinned
from isthmus.experiments._effective_structure_networks import (
    StructureNetwork,
    TrainedStructure,
    distances_of,
    pairs_of,
)
from isthmus.experiments._effective_structure_tasks import Samples
from isthmus.experiments._equilibrium_reading import Interval, over_groups, spread
from isthmus.experiments._images import ImageFile
from isthmus.experiments._reproduction import Panel, PaperFigure, Row, above_zero, claim, graded
from isthmus.experiments._ridge_reading import numbers, short
from isthmus.models import ZooSetting
from isthmus.theory import final_distances

ALL_HELD, ALL_PARTLY = 0.8, 0.5
"""Correlation over all pairs."""

OTHERS_HELD, OTHERS_PARTLY = 0.5, 0.25
"""Correlation over pairs of different classes."""

SMOOTHED, INPUTS, TARGETS, RICH, FIRST = "E D E", "inputs X", "targets Y", "rich limit √(XY)", "before training"
BASELINES = (INPUTS, TARGETS, RICH, FIRST)
"""What is compared with the distances at the end; all are squared distances."""

_VARIANTS = ("rows of E that sum to 1", "D over its mean", "the watched images alone")
_CHUNK = 2000
_DRAWN, _MOMENTS = 600, 30
"""Pairs and moments that are drawn."""


@dataclasses.dataclass(frozen=True)
class StructureSettings:
    """Figure `structure`, and each kind of training of figure `trajectories`.

    Attributes:
        seeds: of samples, weights and batches.
        side: longest side of an image in pixels.
        n_train: training images.
        watched: how many of them are compared.
        setting: the network.
        batch: images of a step.
        steps: of training.
        times: moments at which distances are recorded.
    """

    seeds: tuple[int, ...]
    side: int
    n_train: int
    watched: int
    setting: ZooSetting
    batch: int
    steps: int
    times: int

    @property
    def reads_images(self) -> bool:
        """Whether its networks are trained on the user's images."""
        return True

    def networks(self, file: ImageFile, device: str) -> list[StructureNetwork]:
        """One for every seed."""
        return [
            StructureNetwork("images", {"side": self.side, "n_train": self.n_train}, self.setting, batch=self.batch,
                             steps=self.steps, times=self.times, spacing="geometric", watched=self.watched,
                             seed=seed, file=file, device=device)
            for seed in self.seeds
        ]  # fmt: skip

    @property
    def said(self) -> str:
        """How its networks are trained."""
        s = self.setting
        how = "Adam" if s.optimiser == "adam" else "SGD"
        return (
            f"{self.n_train} images of at most {self.side} × {self.side} pixels in one scale, one-hot targets; "
            f"{s.activation}, {s.hidden_layers} hidden layers of width {s.width}, gain {s.gain:g}, watched at the "
            f"layer of index {s.watched} from 0; half the mean square, {how}, learning rate {s.learning_rate:g}, batch "
            f"{self.batch}, {self.steps} steps; images and weights are drawn anew for each of {len(self.seeds)} seeds"
        )


def smoothed_distances(samples: Samples, watched: int, *, unit: float = 1.0, averaged: bool = False) -> Tensor:
    """`E D E` of the first samples, `D = D_x ∘ D_y`, `E = e^{−D}` entrywise, with sums over all (docs/theory 2.5).

    Samples at `D = 0`, which are those of one class, have merged: `E` adds up the distances of all that have merged
    with either sample.

    Args:
        samples: inputs and targets, whose Euclidean distances are `D_x` and `D_y`.
        watched: how many rows and columns.
        unit: by which D is divided.
        averaged: whether rows of E are divided by their sum, so that the sums are means.
    """
    x, y = samples.x.double(), samples.y.double()

    def product(rows: slice) -> Tensor:
        return torch.cdist(x[rows], x) * torch.cdist(y[rows], y) / unit

    near = torch.exp(-product(slice(watched)))
    if averaged:
        near = near / near.sum(1, keepdim=True)
    summed = torch.zeros_like(near)
    for start in range(0, len(x), _CHUNK):
        rows = slice(start, start + _CHUNK)
        summed += near[:, rows] @ product(rows)
    return summed @ near.mT


def guesses(samples: Samples, watched: int) -> dict[str, np.ndarray]:
    """What the final squared distances of the watched pairs may be like, without the network."""
    few = Samples(samples.x[:watched], samples.y[:watched], samples.groups[:watched], samples.places[:watched])
    x, y = few.x.double(), few.y.double()
    inputs, targets = torch.cdist(x, x).square(), torch.cdist(y, y).square()
    apart = pairs_of((inputs * targets).sqrt())
    found = {
        SMOOTHED: smoothed_distances(samples, watched), INPUTS: inputs, TARGETS: targets,
        RICH: final_distances(inputs, targets),
        _VARIANTS[0]: smoothed_distances(samples, watched, averaged=True),
        _VARIANTS[1]: smoothed_distances(samples, watched, unit=float(apart[apart > 0].mean())),
        _VARIANTS[2]: smoothed_distances(few, watched),
    }  # fmt: skip
    return {name: pairs_of(matrix).numpy() for name, matrix in found.items()}


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation; NaN where one of them is the same everywhere."""
    scale = max(1e-300, len(a) * float(np.abs(a).max() * np.abs(b).max()))
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt(np.square(a).sum() * np.square(b).sum()))
    flat = size <= 1e-12 * scale
    return math.nan if flat else float((a * b).sum()) / size


@dataclasses.dataclass(frozen=True)
class StructureReading:
    """One network: correlations of the final squared distances.

    Attributes:
        seed: of samples, weights and batches.
        every: with each guess, over all pairs.
        others: over pairs of different classes.
        roots: of the distances themselves with the roots of `E D E`: over all pairs, and over those of different
            classes.
        merging: mean squared distance within classes over that across.
        loss: half the mean square at the end.
    """

    seed: int
    every: Mapping[str, float]
    others: Mapping[str, float]
    roots: tuple[float, float]
    merging: float
    loss: float


def read_structure(
    guessed: Mapping[str, np.ndarray], found: np.ndarray, same: np.ndarray, *, seed: int, loss: float
) -> StructureReading:
    """Compare squared distances with every guess.

    Args:
        guessed: squared distances by name.
        found: squared distances at the end.
        same: whether the classes of a pair agree.
        seed: of the network.
        loss: of the network.
    """
    kept = ~same
    root, smooth = np.sqrt(found), np.sqrt(guessed[SMOOTHED])
    return StructureReading(
        seed, {name: pearson(guess, found) for name, guess in guessed.items()},
        {name: pearson(guess[kept], found[kept]) for name, guess in guessed.items()},
        (pearson(smooth, root), pearson(smooth[kept], root[kept])), float(found[same].mean() / found[kept].mean()),
        loss,
    )  # fmt: skip


def _advantage(found: Sequence[StructureReading], which: str) -> tuple[Interval | None, str]:
    """By how much `E D E` correlates more than the best baseline, which is the one with the highest mean."""
    means = {name: float(np.mean([getattr(r, which)[name] for r in found])) for name in BASELINES}
    best = max((name for name in means if math.isfinite(means[name])), key=lambda name: means[name])
    return over_groups([[getattr(r, which)[SMOOTHED] - getattr(r, which)[best] for r in found]]), best


def _row(found: Sequence[StructureReading], which: str, names: Sequence[str]) -> str:
    means = {name: float(np.mean([getattr(r, which)[name] for r in found])) for name in names}
    return ", ".join(f"{name} {numbers([mean])}" for name, mean in means.items() if math.isfinite(mean))


def structure_claims(found: Sequence[StructureReading]) -> list[Claim]:
    """Judge the final distances; criteria were fixed before the networks were trained."""
    if not found:
        return [claim("structure", "all-pairs", "not judged", "No network was trained.")]
    made: list[Claim] = []
    places = (("every", "all-pairs", "all pairs", ALL_HELD, ALL_PARTLY),
              ("others", "different-classes", "pairs of different classes", OTHERS_HELD, OTHERS_PARTLY))  # fmt: skip
    for which, name, where, held, partly in places:
        values = [getattr(r, which)[SMOOTHED] for r in found]
        mean = float(np.mean(values))
        made.append(claim(
            "structure", name, graded(-mean, held=-held, partly=-partly),
            f"Correlation of the final squared distances with E D E over {where}, by seed: {numbers(values)}; of "
            f"others, mean over seeds: {_row(found, which, BASELINES)}. Wanted: at least {held} in the mean (partly: "
            f"{partly}).", correlation=mean,
        ))  # fmt: skip
    for which, name, where, _, _ in places:
        gain, best = _advantage(found, which)
        key = f"beats-baselines-{name}"
        made.append(
            claim("structure", key, "not judged", "Two seeds are needed.")
            if gain is None
            else claim("structure", key, above_zero(gain.low, gain.high),
                       f"Over {where} the correlation with E D E is higher than with the best of the others ({best}) "
                       f"by {gain.said()}. Wanted: an interval above 0 (partly: its middle).", gain=gain.mean)
        )  # fmt: skip
    roots = np.array([r.roots for r in found]).mean(0)
    made.append(claim(
        "structure", "other-forms", "not judged",
        f"Other forms of E D E, mean over seeds, over all pairs: {_row(found, 'every', _VARIANTS)}, distances instead "
        f"of their squares {numbers([roots[0]])}; over pairs of different classes: {_row(found, 'others', _VARIANTS)}, "
        f"distances instead of their squares {numbers([roots[1]])}.",
    ))  # fmt: skip
    made.append(claim(
        "structure", "trained", "not judged",
        f"Half the mean square at the end, by seed: {short([r.loss for r in found])}; mean squared distance within "
        f"classes over that across: {short([r.merging for r in found])}.",
    ))  # fmt: skip
    return made


def _at_best(courses: Mapping[tuple[str, str], Sequence[Sequence[float]]], steps: Sequence[int]) -> list[Claim]:
    """The moment at which `E D E` correlates most over all pairs, and what else does then."""
    if not courses:
        return []
    means = {key: np.mean(np.array(group), axis=0) for key, group in courses.items()}
    best = int(np.argmax(means["every", SMOOTHED]))
    said = {
        panel: ", ".join(
            f"{name} {numbers([means[panel, name][best]])}"
            for name in (SMOOTHED, *BASELINES)
            if math.isfinite(means[panel, name][best])
        )
        for panel in ("every", "others")
    }
    return [claim(
        "structure", "during-training", "not judged",
        f"The correlation with E D E over all pairs, mean over seeds, is largest after {steps[best]} of {steps[-1]} "
        f"steps: {said['every']}; over pairs of different classes then: {said['others']}. (This row was added after "
        "the first run.)", step=steps[best],
    )]  # fmt: skip


def structure_figure(
    settings: StructureSettings, networks: Sequence[StructureNetwork], folder: Path, table: MetricTable
) -> PaperFigure:
    """Distances of images at the middle layer, against `E D E` and simpler guesses."""
    trained = [TrainedStructure.open(network, folder) for network in networks]
    found: list[StructureReading] = []
    rows: list[Row] = []
    courses: dict[tuple[str, str], list[list[float]]] = {}
    steps = trained[0].arrays["track/steps"].tolist()
    for t in trained:
        if t.diverged:
            continue
        samples = t.network.samples()
        guessed = guesses(samples, settings.watched)
        h = t.arrays["track/h"][:, settings.setting.watched].astype(np.float64)
        same = distances_of(samples.y[: settings.watched]).numpy() == 0
        guessed[FIRST] = h[0]
        reading = read_structure(guessed, h[-1], same, seed=t.network.seed, loss=t.number("loss"))
        table.add("loss", reading.loss, split="train", seed=reading.seed, note="figure structure")
        for name in (SMOOTHED, *BASELINES):
            for panel, kept in (("every", np.ones_like(same)), ("others", ~same)):
                values = [pearson(guessed[name][kept], one[kept]) for one in h]
                courses.setdefault((panel, name), []).append(values)
        if not found:
            chosen = thinned(len(same), _DRAWN)
            guess, last = guessed[SMOOTHED] / guessed[SMOOTHED].mean(), h[-1] / h[-1].mean()
            rows += [Row("pairs", "same class" if same[i] else "different classes", float(guess[i]), float(last[i]),
                         seed=reading.seed) for i in chosen]  # fmt: skip
        found.append(reading)
    drawn = thinned(len(steps), _MOMENTS).tolist()
    for (panel, name), group in courses.items():
        columns = list(zip(*group, strict=True))
        for i in drawn:
            if all(math.isfinite(v) for v in columns[i]):
                rows += spread(panel, name, steps[i] + 1, columns[i])
    lost = ", ".join(f"seed {t.network.seed}" for t in trained if t.diverged)
    return PaperFigure(
        "structure", "Distances between images at the middle layer",
        "The distances of 100 digits after training look like E D E with D = D_x ∘ D_y and E = exp(−D): samples of one "
        "class merge, and classes are as far apart as inputs and targets say.",
        f"{settings.said}. Squared distances of the first {settings.watched} training images. D is in units of what "
        "the network reads, where exp(−D) is 1 within a class and nearly 0 across; sums go over all training images, "
        "as in the published code. Bars: least and largest of the seeds.",
        (
            Panel("pairs", "Squared distances at the end over their mean, first seed", "E D E", "found", kind="points"),
            Panel("every", "Correlation of squared distances, all pairs", "step + 1", "correlation",
                  x_scale="log"),
            Panel("others", "Correlation of squared distances, pairs of different classes", "step + 1", "correlation",
                  x_scale="log"),
        ),
        tuple(rows), (*structure_claims(found), *_at_best(courses, steps)), sum(t.number("seconds") for t in trained),
        f"Diverged, and left out: {lost}." if lost else "",
    )  # fmt: skip
