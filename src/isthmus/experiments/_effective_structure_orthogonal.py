"""Figure `orthogonal` of the effective theory's paper: two contexts on axes of their own (docs/theory 2.5)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from isthmus._random import numpy_generator
from isthmus._records import Claim, MetricTable
from isthmus.experiments._effective_reading import thinned
from isthmus.experiments._effective_structure_networks import StructureNetwork, TrainedStructure
from isthmus.experiments._effective_structure_tasks import Samples
from isthmus.experiments._equilibrium_reading import over_groups, spread
from isthmus.experiments._images import ImageFile
from isthmus.experiments._reproduction import Panel, PaperFigure, Row, above_zero, claim, graded
from isthmus.experiments._ridge_reading import numbers, short
from isthmus.models import ZooSetting

RIGHT, NEARLY_RIGHT = 75.0, 60.0
"""Degrees between the axes of both contexts."""

FORGOTTEN, NEARLY_FORGOTTEN = 0.1, 0.3
"""Variance along the coordinate that does not matter over that along the one that does."""

_SHUFFLES = 20
_DRAWN = 8
"""Places along each axis of the grid that are drawn."""


@dataclasses.dataclass(frozen=True)
class OrthogonalSettings:
    """Figure `orthogonal`.

    Attributes:
        seeds: of weights and batches.
        grid: places of the blobs along either axis.
        batch: samples of a step.
        trained: each network, and its steps; from large to small weights.
        compared: a network with another activation, and its steps; not judged.
    """

    seeds: tuple[int, ...]
    grid: int
    batch: int
    trained: tuple[tuple[ZooSetting, int], ...]
    compared: tuple[ZooSetting, int]

    @property
    def reads_images(self) -> bool:
        """Whether its networks are trained on the user's images."""
        return False

    def networks(self, file: ImageFile, device: str) -> list[StructureNetwork]:
        """Every setting with every seed."""
        del file
        return [
            StructureNetwork("blobs", {"grid": self.grid}, setting, batch=self.batch, steps=steps, times=40,
                             spacing="geometric", watched=0, seed=seed, device=device)
            for setting, steps in (*self.trained, self.compared) for seed in self.seeds
        ]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Contexts:
    """How the representations of two contexts lie to each other; each is centred by itself.

    Attributes:
        angle: between the first principal directions, in degrees.
        overlap: `Tr[C_1 C_2] / (‖C_1‖ ‖C_2‖)` of the covariances: 0 where the contexts share no direction.
        axis: share of a context's variance along its first principal direction, mean of both.
        relevant: share of a context's variance between places along the coordinate that is its target, mean of both.
        irrelevant: the same along the other coordinate.
    """

    angle: float
    overlap: float
    axis: float
    relevant: float
    irrelevant: float


@dataclasses.dataclass(frozen=True)
class OrthogonalReading:
    """One network.

    Attributes:
        gain: of its weights.
        seed: of weights and batches.
        start: before training.
        end: after it.
        shuffled: after it, with contexts in random order, mean over shuffles.
        layers: after it, at every hidden layer.
        target: share of the variance of both contexts together that lies between values of the target, after it.
        loss: half the mean square at the end.
    """

    gain: float
    seed: int
    start: Contexts
    end: Contexts
    shuffled: Contexts
    layers: tuple[Contexts, ...]
    target: float
    loss: float


def _between(hidden: np.ndarray, coordinate: np.ndarray) -> float:
    """Share of the variance of centred rows that lies between the groups of equal coordinates."""
    groups = [hidden[coordinate == place] for place in np.unique(coordinate)]
    return float(sum(len(g) * np.square(g.mean(0)).sum() for g in groups) / np.square(hidden).sum())


def contexts(hidden: np.ndarray, group: np.ndarray, places: np.ndarray) -> Contexts:
    """Compare the representations of context 0, whose target is the first coordinate, and of context 1.

    Args:
        hidden: `(samples, neurons)`.
        group: context of each sample.
        places: `(samples, 2)`.
    """
    parts = [hidden[group == i].astype(np.float64) for i in (0, 1)]
    parts = [part - part.mean(0) for part in parts]
    axes, shares = [], []
    for part in parts:
        _, values, vectors = np.linalg.svd(part, full_matrices=False)
        axes.append(vectors[0])
        shares.append(float(values[0] ** 2 / np.square(values).sum()))
    inner = np.square(parts[0] @ parts[1].T).sum()
    sizes = [np.linalg.norm(part @ part.T) for part in parts]
    along = [_between(part, places[group == i, i]) for i, part in enumerate(parts)]
    across = [_between(part, places[group == i, 1 - i]) for i, part in enumerate(parts)]
    return Contexts(
        angle=math.degrees(math.acos(min(1.0, abs(float(axes[0] @ axes[1]))))),
        overlap=float(inner / (sizes[0] * sizes[1])), axis=float(np.mean(shares)), relevant=float(np.mean(along)),
        irrelevant=float(np.mean(across)),
    )  # fmt: skip


def shuffled_contexts(hidden: np.ndarray, group: np.ndarray, places: np.ndarray) -> Contexts:
    """The same with contexts dealt out at random: what two halves of one set of samples look like."""
    rng = numpy_generator(0, "shuffled contexts")
    found = [contexts(hidden, rng.permutation(group), places) for _ in range(_SHUFFLES)]
    return Contexts(*(float(np.mean([getattr(one, f.name) for one in found])) for f in dataclasses.fields(Contexts)))


def read_orthogonal(t: TrainedStructure, samples: Samples) -> OrthogonalReading:
    """What is behind the claims."""
    group, places = samples.groups.numpy(), samples.places.numpy()
    watched, hidden = t.network.setting.watched, t.arrays["end/hidden"]
    first, last = t.arrays["start/hidden"][watched], hidden[watched].astype(np.float64)
    return OrthogonalReading(
        float(t.network.setting.gain), t.network.seed, contexts(first, group, places), contexts(last, group, places),
        shuffled_contexts(last, group, places), tuple(contexts(layer, group, places) for layer in hidden),
        _between(last - last.mean(0), samples.y[:, 0].numpy()), t.number("loss"),
    )  # fmt: skip


def scaled_coordinates(hidden: np.ndarray, count: int) -> np.ndarray:
    """Classical multidimensional scaling of Euclidean distances: coordinates along the largest eigenvalues, descending.

    The doubly centred matrix of squared distances is the Gram matrix of the centred rows.

    Args:
        hidden: `(samples, neurons)`.
        count: of coordinates.
    """
    centred = hidden.astype(np.float64) - hidden.mean(0, dtype=np.float64)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    return (u * s)[:, :count]


def _angles(found: Sequence[OrthogonalReading]) -> str:
    """By hidden layer, mean over seeds."""
    return numbers(np.array([[layer.angle for layer in r.layers] for r in found]).mean(0), 0)


def orthogonal_claims(
    found: Mapping[float, Sequence[OrthogonalReading]], compared: Sequence[OrthogonalReading] = ()
) -> list[Claim]:
    """Judge the contexts; criteria were fixed before the networks were trained.

    Args:
        found: readings by gain, one for each seed.
        compared: of the networks with another activation.
    """
    kept = {gain: found[gain] for gain in sorted(found) if found[gain]}
    if not kept:
        return [claim("orthogonal", "orthogonal-contexts", "not judged", "No network was trained.")]
    low, high = kept[min(kept)], kept[max(kept)]
    at = f"at gain {', '.join(f'{gain:g}' for gain in kept)}"

    def means(value: str, when: str = "end", digits: int = 2) -> str:
        return numbers([float(np.mean([getattr(getattr(r, when), value) for r in g])) for g in kept.values()], digits)

    angle = float(np.mean([r.end.angle for r in low]))
    lower = [r.end.overlap < r.start.overlap and r.end.overlap < r.shuffled.overlap for r in low]
    left = float(np.mean([r.end.irrelevant / r.end.relevant for r in low]))
    made = [
        claim("orthogonal", "orthogonal-contexts",
              graded(-angle, held=-RIGHT, partly=-NEARLY_RIGHT),
              f"Angle between the first principal directions of both contexts at the end, mean over seeds, {at}: "
              f"{means('angle', digits=0)} degrees; before training {means('angle', 'start', 0)}; with contexts dealt "
              f"out at random {means('angle', 'shuffled', 0)}. By seed with the smallest weights: "
              f"{numbers([r.end.angle for r in low], 0)}. Wanted: at least {RIGHT:.0f} in their mean (partly: "
              f"{NEARLY_RIGHT:.0f}).", angle=angle),
        claim("orthogonal", "training-makes-it", "held" if all(lower) else "partly" if any(lower) else "not",
              f"Overlap of the covariances of both contexts, 1 where they are the same and 0 where they share no "
              f"direction, {at}: {means('overlap', digits=3)}; before training {means('overlap', 'start', 3)}; with "
              f"contexts dealt out at random {means('overlap', 'shuffled', 3)}. Wanted: with the smallest weights "
              "below both in every seed (partly: in some)."),
        claim("orthogonal", "what-does-not-matter-is-forgotten",
              graded(left, held=FORGOTTEN, partly=NEARLY_FORGOTTEN),
              f"Share of a context's variance along the coordinate that is its target {at}: {means('relevant')}; along "
              f"the other one: {means('irrelevant', digits=3)}; before training {means('relevant', 'start')} and "
              f"{means('irrelevant', 'start')}. Wanted: with the smallest weights a ratio of at most {FORGOTTEN} "
              f"(partly: {NEARLY_FORGOTTEN}).", ratio=left),
    ]  # fmt: skip
    if len(kept) > 1:
        pairs = {r.seed: r.end.angle for r in high}
        gain = over_groups([[r.end.angle - pairs[r.seed] for r in low if r.seed in pairs]])
        made.append(
            claim("orthogonal", "only-with-small-weights", "not judged", "Two seeds of both ends are needed.")
            if gain is None
            else claim("orthogonal", "only-with-small-weights", above_zero(gain.low, gain.high),
                       f"The angle is larger with the smallest weights than with the largest by {gain.said(0)} "
                       "degrees. Wanted: an interval above 0 (partly: its middle).", gain=gain.mean)
        )  # fmt: skip
    by_layer = "; ".join(f"gain {gain:g} {_angles(g)}" for gain, g in kept.items())
    if compared:
        end = numbers([float(np.mean([getattr(r.end, f) for r in compared])) for f in ("relevant", "irrelevant")])
        by_layer += (
            f"; leaky ReLU, which the published code runs, at gain {compared[0].gain:g} {_angles(compared)} (variance "
            f"along both coordinates {end}, loss {short([r.loss for r in compared])})"
        )
    merged = numbers([float(np.mean([r.target for r in g])) for g in kept.values()])
    made.append(claim(
        "orthogonal", "other-layers", "not judged",
        f"The angle in degrees by hidden layer, mean over seeds: {by_layer}. Share of the variance of both contexts "
        f"together that lies between values of the target, at the watched layer {at}: {merged}; it is 1 where samples "
        "with equal targets merge, whatever their context. (This row was added after the first run.)",
    ))  # fmt: skip
    losses = "; ".join(f"{gain:g}: {short([r.loss for r in g])}" for gain, g in kept.items())
    made.append(claim("orthogonal", "trained", "not judged", f"Half the mean square at the end, by gain: {losses}. "
                      f"Share of a context's variance along its first direction {at}: {means('axis')}."))  # fmt: skip
    return made


def _drawn(samples: Samples, grid: int) -> np.ndarray:
    """Samples whose both coordinates are among a few evenly chosen ones."""
    axis = np.unique(samples.places[:, 0].numpy())
    kept = axis[thinned(grid, _DRAWN)]
    return np.asarray(np.isin(samples.places.numpy(), kept).all(axis=1))


def orthogonal_figure(
    settings: OrthogonalSettings, networks: Sequence[StructureNetwork], folder: Path, table: MetricTable
) -> PaperFigure:
    """How the representations of two contexts lie to each other, drawn and in numbers."""
    trained = [TrainedStructure.open(network, folder) for network in networks]
    gains = [float(setting.gain) for setting, _ in settings.trained]
    found: dict[float, list[OrthogonalReading]] = {gain: [] for gain in gains}
    compared: list[OrthogonalReading] = []
    rows: list[Row] = []
    samples = networks[0].samples()
    drawn = _drawn(samples, settings.grid)
    for t in trained:
        if t.diverged:
            continue
        reading = read_orthogonal(t, samples)
        table.add(
            "loss", reading.loss, split="train", seed=reading.seed, note=f"figure orthogonal: gain {reading.gain:g}"
        )
        if t.network.setting == settings.compared[0]:
            compared.append(reading)
            continue
        if not found[reading.gain]:
            where = scaled_coordinates(t.arrays["end/hidden"][t.network.setting.watched], 3)
            for other in (1, 2):
                rows += [
                    Row(f"scaled-{gains.index(reading.gain)}-{other + 1}", f"target {'xy'[group]}", float(a[0]),
                        float(a[other]), seed=reading.seed)
                    for group, a in zip(samples.groups[drawn].tolist(), where[drawn], strict=True)
                ]  # fmt: skip
        found[reading.gain].append(reading)
    named = {f"gain {gain:g}": group for gain, group in found.items()}
    named[f"gain {settings.compared[0].gain:g}, {settings.compared[0].activation}"] = compared
    for name, group in named.items():
        for layer in range(len(group[0].layers) if group else 0):
            rows += spread("layers", name, layer + 1, [r.layers[layer].angle for r in group])
    for gain, group in found.items():
        for when in ("end", "start", "shuffled"):
            label = {"end": "after training", "start": "before", "shuffled": "contexts at random"}[when]
            rows += spread("angle", label, gain, [getattr(r, when).angle for r in group])
        rows += spread("shares", "its target", gain, [r.end.relevant for r in group])
        rows += spread("shares", "the other coordinate", gain, [r.end.irrelevant for r in group])
    lost = ", ".join(f"gain {t.network.setting.gain:g}, seed {t.network.seed}" for t in trained if t.diverged)
    first = settings.trained[0][0]
    said = ", ".join(f"{s.gain:g} ({s.learning_rate:g}, {steps})" for s, steps in settings.trained)
    return PaperFigure(
        "orthogonal", "Two contexts on axes of their own",
        "With small initial weights the representations of two contexts, each with its own target, lie along "
        "orthogonal axes; with large ones they keep the plane of the inputs.",
        f"Blobs of 5 × 5 pixels at {settings.grid} × {settings.grid} places and a bit that says whether x or y is the "
        f"target; {first.activation}, {first.hidden_layers} hidden layers of width {first.width}, watched at the layer "
        f"of index {first.watched} from 0; batch {settings.batch}; gain (learning rate, steps): {said}; the "
        "rates of small gains are ours, with the published one the smallest had half of the loss left after 58000 "
        "steps. Coordinates: "
        "classical multidimensional scaling of the distances of the first seed. Bars: least and largest of the seeds.",
        (
            *(Panel(f"scaled-{i}-{other}", f"Representation at the end, gain {gain:g}: coordinates 1 and {other}",
                    "coordinate 1", f"coordinate {other}", kind="points", square=True)
              for i, gain in enumerate(gains) for other in (2, 3)),
            Panel("angle", "Angle between the axes of both contexts", "gain", "degrees", x_scale="log",
                  rules=((90.0, "orthogonal"),)),
            Panel("layers", "Angle between the axes of both contexts, after training", "hidden layer", "degrees",
                  rules=((90.0, "orthogonal"),)),
            Panel("shares", "Share of a context's variance along a coordinate, at the end", "gain", "share",
                  x_scale="log"),
        ),
        tuple(rows), tuple(orthogonal_claims(found, compared)), sum(t.number("seconds") for t in trained),
        f"Diverged, and left out: {lost}." if lost else "",
    )  # fmt: skip
