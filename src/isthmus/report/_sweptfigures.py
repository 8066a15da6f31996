"""The sections of a sweep's page: every run in one table, and its final numbers against each setting."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from isthmus.report._figures import Budget, Figure, Section
from isthmus.report._layertables import Cell, LayerRow, LayerTable
from isthmus.report._read import RunView, evenly, number
from isthmus.report._reproduced import PaperCurve, PaperPanel, Reason
from isthmus.report._reproducedfigures import panel_figure
from isthmus.report._swept import Number, Swept, SweptRun, is_numeric, shown

_SEED = "seed"
_RATIO_OF_LOG = 30
_CHARTED = (("loss",), ("accuracy", "r_squared"), ("rank_estimate",))
_SPLITS = ("test", "validation", "train")
_SAID = {"loss": "loss", "accuracy": "accuracy", "r_squared": "R²", "rank_estimate": "rank estimate −2H/L̃"}
_ANSWERED = {"loss": "the loss", "accuracy": "the accuracy", "r_squared": "R²", "rank_estimate": "the rank estimate"}


def swept_sections(run: RunView, found: Swept, budget: Budget) -> list[Section]:
    """Every section of the page."""
    charts = [
        _against(run, found, axis, order, key, budget)
        for order, axis in enumerate(_charted_axes(found), 1)
        for key in _charted(found)
    ]
    return [
        Section("runs", "Runs", "Each run with the settings that tell it from the others, and its final numbers; its "
                "name leads to its page.", [], [], [_table(run, found, budget.rows)]),
        Section("settings", "Against each setting", "Final numbers against the settings, averaged over seeds.", [],
                charts),
    ]  # fmt: skip


def _charted_axes(found: Swept) -> list[str]:
    """Settings with several values; the seed only where nothing else differs."""
    several = [axis for axis, values in found.axes.items() if len(values) > 1]
    return [axis for axis in several if axis != _SEED] or several


def _charted(found: Swept) -> list[Number]:
    """Of the loss, the score and the rank: the one of held-out samples where there is one."""
    numbers = found.numbers
    every = [[(metric, split) for metric in metrics for split in _SPLITS if (metric, split) in numbers]
             for metrics in _CHARTED]  # fmt: skip
    return [keys[0] for keys in every if keys]


def _name(key: Number) -> str:
    metric, split = key
    return f"{split} {metric.replace('_', ' ')}".strip()


def _table(run: RunView, found: Swept, limit: int) -> LayerTable:
    picked = evenly(len(found.runs), limit).tolist() if found.runs else []
    numbers = found.numbers
    rows = [_row(found.runs[k], list(found.axes), numbers) for k in picked]
    note = f"The table holds {len(picked)} of {len(found.runs)} runs, evenly spaced; all are in metrics.parquet."
    failed = [(one.title, one.error or f"its status is {one.status}") for one in found.runs if one.status != "complete"]
    reasons = failed[:40] + ([(f"{len(failed) - 40} more", "in run.json")] if len(failed) > 40 else [])
    return LayerTable("sweep-runs", run.label, "Every run, with its final numbers", ("status", *found.axes),
                      tuple(_name(key) for key in numbers), rows, reasons,
                      note if len(picked) < len(found.runs) else "", "run")  # fmt: skip


def _row(one: SweptRun, axes: Sequence[str], numbers: Sequence[Number]) -> LayerRow:
    words = [Cell(one.status)]
    for axis in axes:
        value = one.settings[axis]
        words.append(Cell(shown(value), repr(value) if isinstance(value, float) else ""))
    values = [one.numbers.get(key) for key in numbers]
    cells = [Cell() if value is None else Cell(number(value), repr(value)) for value in values]
    return LayerRow(one.title, tuple(words), cells, one.link)


@dataclasses.dataclass(frozen=True)
class _Spot:
    """What the runs of one setting and one series have, over seeds."""

    x: float
    values: tuple[float, ...]


def _series(found: Swept, axis: str, key: Number) -> dict[str, list[_Spot]]:
    """By the other settings without the seed: the values at each place along the axis, in order."""
    others = [other for other, values in found.axes.items() if other not in (axis, _SEED) and len(values) > 1]
    places = found.axes[axis]
    numeric = is_numeric(places)
    gathered: dict[str, dict[float, list[float]]] = {}
    for one in found.runs:
        value, here = one.numbers.get(key), one.settings[axis]
        if value is None or one.status != "complete":
            continue
        name = ", ".join(f"{other} = {shown(one.settings[other])}" for other in others) or "all runs"
        x = float(here) if numeric else float(places.index(here) + 1)
        gathered.setdefault(name, {}).setdefault(x, []).append(value)
    return {name: [_Spot(x, tuple(spots[x])) for x in sorted(spots)] for name, spots in gathered.items()}


def _spread(values: np.ndarray) -> bool:
    return len(values) > 2 and bool((values > 0).all()) and float(values.max() / values.min()) >= _RATIO_OF_LOG


def _curve(name: str, spots: Sequence[_Spot]) -> PaperCurve:
    several = any(len(spot.values) > 1 for spot in spots)
    none = np.full(len(spots), np.nan)
    return PaperCurve(
        name, "", np.array([spot.x for spot in spots]), np.array([np.mean(spot.values) for spot in spots]),
        np.array([min(spot.values) for spot in spots]) if several else none,
        np.array([max(spot.values) for spot in spots]) if several else none,
        np.array([float(len(spot.values)) for spot in spots]),
    )  # fmt: skip


def _against(run: RunView, found: Swept, axis: str, order: int, key: Number, budget: Budget) -> Figure:
    series = _series(found, axis, key)
    numeric = is_numeric(found.axes[axis])
    curves = tuple(_curve(name, spots) for name, spots in series.items())
    ends = [end for curve in curves for end in (curve.y, curve.low, curve.high)]
    values = np.concatenate(ends) if ends else np.empty(0)
    x = (
        axis
        if numeric
        else f"{axis} (" + ", ".join(f"{k} is {shown(v)}" for k, v in enumerate(found.axes[axis], 1)) + ")"
    )
    places = np.array([spot.x for spots in series.values() for spot in spots])
    absent = [one for one in found.runs if key not in one.numbers or one.status != "complete"]
    reasons: list[Reason] = [(f"{len(absent)} of {len(found.runs)} runs", "failed, or do not have this number")]
    y = f"{key[1]} {_SAID[key[0]]}".strip()
    panel = PaperPanel(
        axis, f"sweep-{order}-{key[0]}", f"How does {_ANSWERED[key[0]]} depend on {axis}?", x, y,
        "line" if numeric else "points", "log" if numeric and _spread(places) else "linear",
        "log" if _spread(values[np.isfinite(values)]) else "linear", (), (), False, curves,
        tuple(reasons) if absent else (),
    )  # fmt: skip
    figure = panel_figure(panel, budget)
    counts = {len(spot.values) for spots in series.values() for spot in spots}
    if counts and max(counts) > 1:
        many = str(max(counts)) if len(counts) == 1 else f"up to {max(counts)}"
        figure.notes.append(f"Points are means over {many} seeds.")
    best = _best(series, key, numeric, found.axes[axis])
    if best:
        figure.answers.append((run.label, f"{axis} = {best}"))
    return figure


def _best(series: dict[str, list[_Spot]], key: Number, numeric: bool, places: Sequence[float | str]) -> str:
    """Where the mean over seeds is best, in words; empty for numbers of which none is better."""
    spots = [(name, spot) for name, found in series.items() for spot in found]
    if key[0] == "rank_estimate" or len(spots) < 2:
        return ""
    name, spot = (min if key[0] == "loss" else max)(spots, key=lambda pair: float(np.mean(pair[1].values)))
    value = shown(spot.x if numeric else places[int(spot.x) - 1])
    where = f" ({name})" if len(series) > 1 else ""
    what = _ANSWERED[key[0]].removeprefix("the ")
    return f"{value}{where} has the best {what}, {number(float(np.mean(spot.values)), 3)}."
