"""The table of a run's dynamics: rates and fits of every pair and layer, and what they come to layer by layer."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch

from isthmus._records import MetricTable
from isthmus.experiments._dynamics_fits import R_SQUARED, LayerFits
from isthmus.experiments._dynamics_source import RATES, RecordedPairs
from isthmus.experiments._dynamics_structure import Structure
from isthmus.theory import two_point_limit

RICH, LAZY = 0.2, 0.8
"""Up to 0.2, `h_∞` is within 22% of `√(η_h/η_y) √(X Y)`; from 0.8 on, within 13% of `A` (docs/theory 2.3)."""
STAY = 0.2
"""Where `h_∞` is farther than this share from `h_0`, representations do not stay near those of the start."""

AT_START = "initial distances"
_MEDIAN = math.sqrt(math.pi / 2) * 1.4826
_BAD_FIT = f"no pair has R² ≥ {R_SQUARED} in all three curves"
_EQUAL = "the targets are equal: h ends at A, or at 0"


@dataclasses.dataclass(frozen=True)
class LayerSummary:
    """One layer in a few numbers; NaN where there is none.

    Attributes:
        layer: its name.
        judged: pairs with an answer.
        described: those that the theory describes.
        eta_h: median of `η_h` over pairs that fit well, with its standard error.
        eta_y: the same of `η_y`.
        laziness: median of the coordinate of docs/theory 2.3 over those whose targets differ.
        moved: median of `|h_∞/h_0 − 1|` over the same.
        structure: its final distances, or why not.
        rows: numbers of its rows in the table, by metric (of `structure_correlation`, the one that is predicted).
    """

    layer: str
    judged: int
    described: int
    eta_h: tuple[float, float]
    eta_y: tuple[float, float]
    laziness: float
    moved: float
    structure: Structure | str
    rows: dict[str, int]

    @property
    def is_described(self) -> bool:
        """Whether the theory describes at least half of the pairs that are judged."""
        return self.judged > 0 and 2 * self.described >= self.judged

    @property
    def regime(self) -> str:
        """`rich`, `lazy`, `moved`, `in between`, `decoder`, or nothing where it is unknown.

        `moved` is as insensitive to the targets as `lazy`, and ends far from the start: `A` is not near `h_0` where
        predictions are large there.
        """
        if math.isnan(self.laziness):
            return ""
        if abs(self.laziness) <= RICH:
            return "rich"
        if self.laziness < LAZY:
            return "decoder" if self.laziness < 0 else "in between"
        return "lazy" if self.moved <= STAY else "moved"


def ratio_of(found: LayerFits) -> tuple[float, str]:
    """Median of `η_h/η_y` over the pairs that fit well, or else over all that have a fit, and which; NaN of none."""
    ratio = found.rate("eta_h")[0] / found.rate("eta_y")[0]
    for pairs, note in ((found.fit_well, ""), (np.isfinite(found.r_squared), "η_h/η_y is of pairs that fit badly")):
        if pairs.any():
            return float(np.median(ratio[pairs])), note
    return math.nan, ""


def _median(values: np.ndarray, errors: np.ndarray) -> tuple[float, float]:
    """The median and its standard error: from the scatter of the pairs, or of one pair that of its fit."""
    if not len(values):
        return math.nan, math.nan
    middle = float(np.median(values))
    if len(values) == 1:
        return middle, float(errors[0])
    return middle, _MEDIAN * float(np.median(np.abs(values - middle))) / math.sqrt(len(values))


def layer_rows(
    table: MetricTable, run: RecordedPairs, layer: int, found: LayerFits, structure: Structure | str
) -> LayerSummary:
    """Write every row of one layer, and say what they come to.

    Args:
        table: gets the rows.
        run: the recorded pairs.
        layer: number of the layer.
        found: its fits.
        structure: its final distances, or why there are none.
    """
    index, position = run.places[layer]
    where: dict[str, Any] = {"layer": run.layers[layer], "index": index, "position": position}
    time = "per unit of the sum of learning rates, not per step" if run.unit == RATES else ""
    coordinate = found.fits.laziness.numpy()
    for i, pair in enumerate(run.pairs):
        at: dict[str, Any] = {**where, "pair": pair}
        said = "; ".join(text for text in (run.kinds[i], found.notes[i]) if text)
        reason = found.reasons[i] or found.fits.reasons[i]
        if reason:
            for metric in ("eta_h", "eta_y", "two_point_r_squared", "two_point_error", "laziness"):
                table.skip(metric, reason, **at)
            continue
        for metric in ("eta_h", "eta_y"):
            rate, error = found.rate(metric)
            table.add(metric, float(rate[i]), stderr=float(error[i]), n=int(found.fits.used[i]),
                      note="; ".join(text for text in (time, said) if text), **at)  # fmt: skip
        table.add("two_point_r_squared", float(found.r_squared[i]), note=f"of {found.worst[i]}", **at)
        if found.why_none[i]:
            table.skip("two_point_error", found.why_none[i], **at)
        else:
            table.add("two_point_error", float(found.error[i]), **at)
        if run.dy2[i] > 0:
            table.add("laziness", float(coordinate[i]), **at)
        else:
            table.skip("laziness", _EQUAL, **at)
    good, judged = found.fit_well, int(found.judged.sum())
    count = int(good.sum())
    rows: dict[str, int] = {}
    medians: dict[str, tuple[float, float]] = {}
    for metric in ("eta_h", "eta_y"):
        rate, error = found.rate(metric)
        medians[metric] = _median(rate[good], error[good])
        name = f"{metric}_median"
        rows[name] = (
            table.add(name, medians[metric][0], stderr=medians[metric][1], n=count, note=time, **where)
            if count
            else table.skip(name, _BAD_FIT if judged else _commonest(found.reasons), **where)
        )
    apart = good & (run.dy2 > 0)
    laziness = float(np.median(coordinate[apart])) if apart.any() else math.nan
    moved = _moved(run, layer, found, apart) if apart.any() else math.nan
    rows["laziness_median"] = (
        table.add("laziness_median", laziness, n=int(apart.sum()), **where)
        if apart.any()
        else table.skip(
            "laziness_median", f"{_BAD_FIT} and targets that differ" if judged else _commonest(found.reasons), **where
        )
    )
    described = int(found.described.sum())
    rows["two_point_share"] = (
        table.add("two_point_share", described / judged, n=judged, **where)
        if judged
        else table.skip("two_point_share", _commonest(found.reasons), **where)
    )
    for baseline in ("", AT_START):
        at = {**where, "baseline": baseline}
        if isinstance(structure, str):
            row = table.skip("structure_correlation", structure, **at)
        else:
            value = structure.start if baseline else structure.correlation
            row = (
                table.add("structure_correlation", value, n=structure.n, note=structure.note, **at)
                if math.isfinite(value)
                else table.skip("structure_correlation", "all distances are the same", **at)
            )
        rows.setdefault("structure_correlation", row)
    return LayerSummary(run.layers[layer], judged, described, medians["eta_h"], medians["eta_y"], laziness, moved,
                        structure, rows)  # fmt: skip


def _moved(run: RecordedPairs, layer: int, found: LayerFits, pairs: np.ndarray) -> float:
    """Median of `|h_∞/h_0 − 1|` over some pairs, by their rates."""
    h0, y0, X, Y, eta_h, eta_y = (
        torch.from_numpy(values[pairs])
        for values in (
            run.h[layer][:, 0],
            run.y[:, 0],
            run.dx2,
            run.dy2,
            found.rate("eta_h")[0],
            found.rate("eta_y")[0],
        )
    )
    limit = two_point_limit(h0, y0, eta_h=eta_h, eta_y=eta_y, dx2=X, dy2=Y)
    return float((limit.h / h0 - 1).abs().median())


def _commonest(reasons: tuple[str, ...]) -> str:
    return max(set(reasons), key=reasons.count) or "no pair can be judged"


def mean_rows(table: MetricTable, run: RecordedPairs, every: list[LayerFits]) -> None:
    """`η_ȳ` of every pair, which no layer has a part in: from the first layer where the pair was fitted."""
    for i, pair in enumerate(run.pairs):
        whys: list[str] = []
        for found in every:
            reason = found.reasons[i] or found.fits.reasons[i]
            rate = float(found.fits.eta_mean[i])
            if not reason and math.isfinite(rate):
                good = float(found.fits.eta_mean_r_squared[i])
                table.add("eta_mean", rate, stderr=float(found.fits.eta_mean_stderr[i]), pair=pair,
                          n=int(found.fits.used[i]), note=f"R² = {good:.3g} of its exponential")  # fmt: skip
                break
            whys.append(reason or found.fits.notes[i] or "no rate of the mean was found")
        else:
            table.skip("eta_mean", whys[0], pair=pair)
