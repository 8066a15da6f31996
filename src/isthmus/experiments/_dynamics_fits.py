"""Two effective learning rates for every pair at a layer, and whether they describe what was measured."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch

from isthmus.experiments._dynamics_source import LEAST_TIMES, RecordedPairs
from isthmus.theory import TwoPointFits, fit_two_points

R_SQUARED = 0.9
"""Least `R²`, in the worst of the three curves, of a pair that the theory describes."""
ERROR = 0.1
"""Largest error of a prediction of the second half, as a share of the whole change of a curve, of such a pair."""
SPREAD = 0.05
"""A curve that moves by less than this share of its size counts as one that moved by so much."""
_EXPLODED = 4
"""Gradient flow on two points cannot make the distance from the target larger; beyond this multiple it has grown."""
AWAY = "the predictions moved away from their targets"
_CURVES = ("h", "y", "v")


@dataclasses.dataclass(frozen=True)
class LayerFits:
    """What came out at one layer; arrays have a row for each pair, and NaN where there is no number.

    Attributes:
        fits: the rates.
        reasons: why a pair is not judged; empty where it is.
        notes: what there is to know about one that is.
        r_squared: smallest `R²` of the three curves.
        worst: name of that curve.
        error: largest error of the prediction of the second half.
        why_none: why there is no such prediction; empty where there is.
        measured: the curves h, y, v, `(pairs, 3, times)`, without what came after a divergence.
        fitted: those of the fit.
        predicted: of the prediction of the second half.
    """

    fits: TwoPointFits
    reasons: tuple[str, ...]
    notes: tuple[str, ...]
    r_squared: np.ndarray
    worst: tuple[str, ...]
    error: np.ndarray
    why_none: tuple[str, ...]
    measured: np.ndarray
    fitted: np.ndarray
    predicted: np.ndarray

    @property
    def judged(self) -> np.ndarray:
        """Pairs with an answer: those that the theory was tried on, whether or not a fit was found."""
        return np.array([not reason for reason in self.reasons])

    @property
    def fit_well(self) -> np.ndarray:
        """Pairs whose three curves all have `R² ≥ 0.9`."""
        return self.judged & (self.r_squared >= R_SQUARED)

    @property
    def described(self) -> np.ndarray:
        """Pairs that fit well and whose second half was predicted within a tenth of its change."""
        return self.fit_well & (self.error <= ERROR)

    def rate(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """`eta_h` or `eta_y` of every pair with standard errors."""
        return getattr(self.fits, name).numpy(), getattr(self.fits, f"{name}_stderr").numpy()


def distance_to_target(y: np.ndarray, v: np.ndarray, dy2: np.ndarray) -> np.ndarray:
    """`‖dy − dy*‖² = 2v − y + Y` of every pair over time."""
    return 2 * v - y + dy2[:, None]


def halfway(distance: np.ndarray) -> int:
    """How many times there are until half of a pair's way to its target is gone."""
    gone = np.abs(distance - distance[0])
    return int(np.argmax(gone >= gone.max() / 2)) + 1


def _before_divergence(run: RecordedPairs, curves: np.ndarray) -> int:
    """How many records come before a divergence: all, unless the last of them is not finite.

    Single pairs may move away from their targets in a run that learns; a run that diverges makes all distances large.
    """
    finite = np.asarray(np.isfinite(curves).all(axis=1))
    some = np.asarray(finite.any(axis=1))
    if not some.any() or finite[some, -1].all():
        return curves.shape[2]
    distance = distance_to_target(curves[:, 1], curves[:, 2], run.dy2)[some]
    with np.errstate(invalid="ignore"):
        fine = finite[some].all(axis=0) & (distance <= _EXPLODED * float((distance[:, 0] + run.dy2[some]).max())).all(0)
    return int(np.flatnonzero(fine)[-1]) + 1 if fine.any() else 0


def _moved_away(distance: np.ndarray, dy2: float) -> bool:
    """Whether the distance from the target grew as the theory never lets it."""
    known = distance[np.isfinite(distance)]
    return len(known) > 0 and float(known.max()) > _EXPLODED * (float(known[0]) + dy2)


def _why_nothing(distance: np.ndarray, dy2: float) -> str:
    """Why a pair cannot say anything about learning; empty where it can."""
    known = distance[np.isfinite(distance)]
    if len(known) < LEAST_TIMES:
        return ""  # the fit says why
    if float(np.ptp(known)) < SPREAD * max(float(known[0]), dy2):
        return "nothing was learned here: the distance of the two predictions hardly moved towards that of the targets"
    return ""


def _are_outputs(h: np.ndarray, y: np.ndarray) -> bool:
    both = np.isfinite(h) & np.isfinite(y)
    return bool(both.any()) and np.allclose(h[both], y[both], rtol=1e-5, atol=0)


def fit_layer(run: RecordedPairs, layer: int) -> LayerFits:
    """Fit all pairs at a layer, once to everything and once to the first half of each pair's way to its target.

    Args:
        run: the recorded pairs.
        layer: number of the layer.
    """
    curves = np.stack([run.h[layer], run.y, run.v], axis=1)
    total = curves.shape[2]
    before = _before_divergence(run, curves)
    curves[:, :, before:] = np.nan
    said = f"the run diverged: of {total} records the first {before} are fitted" if before < total else ""
    notes = [said] * len(curves)
    times = torch.from_numpy(run.times)
    distances = distance_to_target(curves[:, 1], curves[:, 2], run.dy2)
    nothing = [_why_nothing(d, float(y)) for d, y in zip(distances, run.dy2, strict=True)]
    if _are_outputs(run.h[layer], run.y):
        nothing = ["these are the outputs: nothing comes after them that could learn"] * len(nothing)
    fits = _fit(run, times, curves, torch.from_numpy(run.m))
    reasons = [one or two for one, two in zip(nothing, fits.reasons, strict=True)]
    for i, reason in enumerate(fits.reasons):
        if "the theory can come near" in reason and not nothing[i]:
            reasons[i] = ""  # tried, and not described
            notes[i] = "; ".join(x for x in (notes[i], "no rates bring the theory near these curves") if x)
    first, why = curves.copy(), [""] * len(reasons)
    cuts = [0] * len(reasons)
    for i, distance in enumerate(distances):
        away = _moved_away(distance, float(run.dy2[i]))
        if away and not reasons[i]:
            notes[i] = "; ".join(x for x in (notes[i], AWAY) if x)
        if away or reasons[i] or fits.reasons[i]:
            why[i] = reasons[i] or ("there is no fit" if fits.reasons[i] else AWAY)
            continue
        used = int(fits.used[i])
        cuts[i] = halfway(distance[:used])
        if cuts[i] < LEAST_TIMES or cuts[i] >= used:
            why[i] = f"{cuts[i]} of {used} records lie before half of the pair's way to its target: too few to fit"
            cuts[i] = 0
        first[i, :, cuts[i] :] = np.nan
    early = _fit(run, times, first, None)
    r_squared, worst = np.full(len(reasons), np.nan), [""] * len(reasons)
    error, fitted, predicted = (
        np.full(len(reasons), np.nan),
        np.full(curves.shape, np.nan),
        np.full(curves.shape, np.nan),
    )
    for i, reason in enumerate(reasons):
        if reason:
            continue
        if fits.reasons[i]:
            r_squared[i] = -math.inf
            continue
        used = int(fits.used[i])
        fitted[i, :, :used] = fits[i].fitted.numpy()
        measured = curves[i, :, :used]
        each = _r_squared(measured, fitted[i, :, :used])
        r_squared[i], worst[i] = float(each.min()), _CURVES[int(each.argmin())]
        if why[i]:
            continue
        if early.reasons[i]:
            why[i] = f"the first half could not be fitted: {early.reasons[i]}"
            continue
        predicted[i, :, cuts[i] : used] = early[i].predict(times[cuts[i] : used]).value.numpy()
        missed = np.sqrt(np.square(measured - predicted[i, :, :used])[:, cuts[i] :].mean(axis=1))
        error[i] = float((missed / _change(measured)).max())
    return LayerFits(
        fits, tuple(reasons), tuple(notes), r_squared, tuple(worst), error, tuple(why), curves, fitted, predicted
    )


def _fit(run: RecordedPairs, times: torch.Tensor, curves: np.ndarray, mean: torch.Tensor | None) -> TwoPointFits:
    """The fits of all pairs, without the times that none has numbers at."""
    some = np.flatnonzero(np.asarray(np.isfinite(curves).any(axis=(0, 1))))
    end = max(int(some[-1]) + 1 if len(some) else 0, LEAST_TIMES)
    h, y, v = (torch.from_numpy(np.ascontiguousarray(curves[:, k, :end])) for k in range(3))
    return fit_two_points(times[:end], h, y, v, dx2=torch.from_numpy(run.dx2), dy2=torch.from_numpy(run.dy2),
                          mean=None if mean is None else mean[:, :end])  # fmt: skip


def _size(measured: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(measured).max(axis=1), 1e-300)


def _change(measured: np.ndarray) -> np.ndarray:
    """Range of each curve, counted as a twentieth of its size at least."""
    return np.maximum(np.ptp(measured, axis=1), SPREAD * _size(measured))


def _r_squared(measured: np.ndarray, fitted: np.ndarray) -> np.ndarray:
    """`R²` of each curve, whose variance counts as that of a ramp over a twentieth of its size at least."""
    with np.errstate(over="ignore", invalid="ignore"):  # of a run that explodes
        missed = np.square(measured - fitted).mean(axis=1)
        return 1 - missed / np.maximum(measured.var(axis=1), np.square(SPREAD * _size(measured)) / 12)
