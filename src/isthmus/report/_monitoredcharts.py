"""Charts of a monitored training: one step at a time, which a parameter chooses, and courses over all steps.

The parameter `at` is the number of a measured step; the page's slider sets it, and a file shows its first value, which
is the last step. Names are data and never parsed: the expressions below are constants of this file and numbers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np

from isthmus.report import _charts
from isthmus.report._charts import FILE_WIDTH, Rows, ScaleKind, short
from isthmus.report._depthcharts import heat_map, heat_rows
from isthmus.report._history import History
from isthmus.report._layers import brief, distinct
from isthmus.report._themes import DASHES, SHAPES

LEGEND_UP_TO = 8
"""Most layers that a legend names; of more, a ramp of colours says where they stand."""

_LEGEND_NAME = 30
_HEIGHT = 270
_POINTS_UP_TO = 1200
_STEP_LABEL = "format(datum.value, datum.value < 10000 ? 'd' : '~s')"
_STEP_TITLE = "'step ' + format(steps[at], 'd')"


def _short(values: np.ndarray) -> list[float | None]:
    return [short(v) if np.isfinite(v) else None for v in values.tolist()]


def _with_slider(spec: dict[str, Any], steps: Sequence[int], lists: dict[str, Any]) -> dict[str, Any]:
    """The specification with the parameter that chooses a step, the lists it reads, and the step as its title."""
    params = {"at": len(steps) - 1, "steps": list(steps)} | lists
    spec["params"] = [*spec["params"], *({"name": name, "value": value} for name, value in params.items())]
    title = {"text": {"expr": _STEP_TITLE}, "style": "step-title", "anchor": "end", "offset": 8}
    return spec | {"title": title}


def depth_at_step(history: History, *, y_title: str, log: bool, description: str) -> dict[str, Any]:
    """Metrics across layers at one step, with error bars where there are any; the last step as faint lines.

    The y axis is logarithmic where a few values dwarf the others, if `log`; else it holds 0.
    """
    names = [track.name for track in history.tracks]
    values = np.concatenate([t.values[np.isfinite(t.values)] for t in history.tracks])
    scale: ScaleKind = _charts.scale_kind(values) if log else "linear"
    low, high = history.span()
    rows: Rows = []
    for track in history.tracks:
        for a, (row, error) in enumerate(zip(track.values, track.errors, strict=True)):
            if np.isfinite(row).any():
                rows.append({"a": a, "s": track.name, "y": _short(row), "e": _short(error)})
    legend = _charts.legend_of(names, None) if len(names) > 1 else None
    if legend is not None:
        legend.symbolType, legend.symbolSize, legend.symbolOpacity = alt.Undefined, 70, 1
    shapes = [SHAPES[k % len(SHAPES)] for k in range(len(names))]

    def base(choice: str) -> alt.Chart:
        return (
            alt.Chart(alt.NamedData(name="rows"))
            .transform_filter(choice)
            .transform_calculate(i="sequence(length(datum.y))")
            .transform_flatten(["y", "e", "i"])
            .transform_filter("isValid(datum.y)")
            .transform_calculate(x="places[datum.i]", w="names[datum.i]")
            .encode(
                x=_charts.axis_x("position"),
                y=_charts.axis_y(y_title, (low, high), scale, not log),
                color=alt.Color("s:N", scale=alt.Scale(domain=names), legend=legend),
                tooltip=[
                    alt.Tooltip("w:N", title="layer"), alt.Tooltip("s:N", title="what"),
                    alt.Tooltip("x:Q", title="p", format=".4~g"), alt.Tooltip("y:Q", title="value", format=".4~g"),
                ],
            )
        )  # fmt: skip

    chosen = base("datum.a === at")
    marks = [base(f"datum.a === {len(history.steps) - 1}").mark_line(opacity=0.4, strokeWidth=1.3, tooltip=None),
             chosen.mark_line()]  # fmt: skip
    if any(np.isfinite(t.errors).any() for t in history.tracks):
        marks.append(_charts.error_bars(chosen))
    shape = alt.Shape("s:N", scale=alt.Scale(domain=names, range=shapes), legend=legend)
    marks.append(chosen.mark_point(filled=True, size=30, opacity=1, aria=False).encode(shape=shape))
    spec = _charts.finish(marks, {"rows": rows}, description) | {"height": _HEIGHT}
    lists = {"names": list(history.names), "places": [short(p) for p in history.positions.tolist()]}
    return _with_slider(spec, history.steps, lists)


def heat_at_step(
    steps: Sequence[int], names: Sequence[str], positions: np.ndarray, values: np.ndarray, *, description: str
) -> dict[str, Any]:
    """Singular values of every layer, (steps, layers, values) padded with NaN, at one step: a row per layer."""
    rows: Rows = [
        {"a": a} | row
        for a, layers in enumerate(values)
        for row in heat_rows(positions, layers)
        if any(share is not None for share in row["v"])
    ]
    spec = heat_map(names, rows, values.shape[2], description=description, chosen="datum.a === at")
    spec["height"] = max(spec["height"], _HEIGHT - 80)
    return _with_slider(spec, steps, {})


@dataclasses.dataclass(frozen=True)
class Course:
    """Values over training steps: of one layer, which stands at `position`, or of the whole model."""

    name: str
    x: np.ndarray
    y: np.ndarray
    errors: np.ndarray
    position: float = 0.0


def courses_of(history: History) -> list[Course]:
    """The course of every layer in the first track, without those that have no value."""
    track = history.tracks[0]
    steps, found = np.array(history.steps, dtype=np.float64), list[Course]()
    for k, name in enumerate(history.names):
        known = np.isfinite(track.values[:, k])
        if known.any():
            found.append(Course(name, steps[known], track.values[known, k], track.errors[known, k],
                                float(history.positions[k])))  # fmt: skip
    return found


def step_unit(courses: Sequence[Course]) -> float:
    """The first step after 0: where the axis of steps turns from linear to logarithmic."""
    x = np.concatenate([c.x for c in courses])
    return float(x[x > 0].min()) if (x > 0).any() else 1.0


def _axis_of_steps(courses: Sequence[Course]) -> alt.X:
    """Training steps on a logarithmic axis that holds step 0, too."""
    x, unit = np.concatenate([c.x for c in courses]), step_unit(courses)
    low, high = float(x.min()), float(x.max())
    powers = range(math.floor(math.log10(unit)), math.ceil(math.log10(max(high, unit))) + 1)
    inside: list[float] = []
    for digits in ((1,), (1, 2, 5)):
        inside = [t for t in (digit * 10.0**power for power in powers for digit in digits) if unit <= t <= high]
        if len(inside) > 2:
            break
    ticks = [t for t in ([0.0, *inside] if low == 0 else inside) if t >= low]
    ticks = ticks if len(ticks) > 1 else [low, high]
    scale = alt.Scale(type="symlog", constant=unit, domain=[low, high if high > low else low + 1], nice=False)
    axis = alt.Axis(values=ticks, labelExpr=_STEP_LABEL, labelOverlap=True, labelSeparation=8, labelFlush=False)
    return alt.X("x:Q", scale=scale, axis=axis, title="training step (log scale)")


def over_steps(courses: Sequence[Course], *, y_title: str, log: bool, description: str) -> dict[str, Any]:
    """Courses over training steps: a few have a colour, dashes and a name each, many a colour by position.

    The y axis is logarithmic where a few values dwarf the others, if `log`; else it holds 0.
    """
    few = len(courses) <= LEGEND_UP_TO
    labels = distinct([brief(c.name, _LEGEND_NAME) for c in courses])
    y = np.concatenate([c.y for c in courses])
    bars = few and any(np.isfinite(c.errors).any() for c in courses)
    ends = [y] + ([c.y + sign * np.nan_to_num(c.errors) for c in courses for sign in (-1, 1)] if bars else [])
    whole = np.concatenate(ends)
    rows: Rows = [
        {"s": label, "n": c.name, "p": short(c.position), "x": c.x.tolist(), "y": _short(c.y), "e": _short(c.errors)}
        for label, c in zip(labels, courses, strict=True)
    ]
    legend = _charts.legend_of(labels, None) if 1 < len(labels) <= LEGEND_UP_TO else None
    if few:
        colour = alt.Color("s:N", scale=alt.Scale(domain=labels), legend=legend)
    else:
        ramp = alt.Legend(
            type="gradient", orient="top", direction="horizontal", gradientLength=130, gradientThickness=10, tickCount=3
        )
        colour = alt.Color("p:Q", scale=alt.Scale(domain=[0, 1], range="ramp"), legend=ramp,
                           title="position p  (0 = first, 1 = last)")  # fmt: skip
    base = (
        alt.Chart(alt.NamedData(name="rows"))
        .transform_flatten(["x", "y", "e"])
        .encode(
            x=_axis_of_steps(courses),
            y=_charts.axis_y(y_title, (float(whole.min()), float(whole.max())),
                             _charts.scale_kind(y) if log else "linear", not log),
            color=colour,
            detail="s:N",
            tooltip=[
                alt.Tooltip("n:N", title="what"), alt.Tooltip("x:Q", title="step", format="d"),
                alt.Tooltip("y:Q", title="value", format=".4~g"),
            ],
        )
    )  # fmt: skip
    line = base.mark_line(strokeWidth=2.1 if few else 1.4)
    if legend is not None:
        dashes = alt.Scale(domain=labels, range=[DASHES[k % len(DASHES)] for k in range(len(labels))])
        line = line.encode(strokeDash=alt.StrokeDash("s:N", scale=dashes, legend=legend))
    marks = [line, *([_charts.error_bars(base)] if bars else [])]
    if len(y) <= _POINTS_UP_TO:
        # Points of many are not filled: a ramp that is of strokes and fills has no gradient in its legend.
        marks.append(base.mark_point(filled=few, size=26 if few else 4, strokeWidth=2, opacity=1, aria=False))
    return _charts.finish(marks, {"rows": rows}, description) | {"height": _HEIGHT, "width": FILE_WIDTH}
