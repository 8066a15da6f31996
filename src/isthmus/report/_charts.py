"""Altair specifications: plain dictionaries that hold data and shape, and no colours (those are the theme's).

Field names are fixed letters; whatever a user named stands in the data as text and is never parsed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import altair as alt
import numpy as np

from isthmus.report._read import Curve
from isthmus.report._themes import DASHES

FILE_WIDTH = 620
"""Width of a chart in a file; the page sets `width` and the parameter `room`, by which legends wrap, to its own."""

_HEIGHT = 270
_TEXT_WIDTH, _TEXT_HEIGHT = 0.15, 0.12
"""Shares of a chart that the text of an upright line takes, about."""

_POINTS_UP_TO = 80
_TICKS_UP_TO = 120
Along = Literal["depth", "position", "layer", "epoch", "number"]
"""What the x axis of a chart of curves is."""

SYMBOLS: dict[Along, str] = {"depth": "p", "position": "p", "layer": "ℓ", "epoch": "epoch", "number": "no."}
"""Short name of x in tables and tooltips."""

_X_TITLES: dict[Along, str] = {
    "depth": "depth p  (0 = input, 1 = output)",
    "position": "position p  (0 = first, 1 = last)",
    "layer": "layer ℓ  (0 = input)",
    "epoch": "epoch",
    "number": "singular value no.",
}
Rows = list[dict[str, Any]]
Upright = tuple[float, str, bool, bool]
"""A vertical line with its text: x, the text, whether it stands on the left of the line, and at its lower end."""

ScaleKind = Literal["linear", "log", "symlog"]
"""Scale of the y axis; `symlog` is logarithmic in both directions and linear around 0."""


def short(value: float) -> float:
    """The five significant digits that a chart carries."""
    return float(f"{value:.5g}")


def _layer_marks(positions: np.ndarray) -> tuple[alt.Chart, Rows] | None:
    if not 0 < len(positions) <= _TICKS_UP_TO:
        return None
    rows = [{"x": short(p)} for p in positions]
    chart = alt.Chart(alt.NamedData(name="layers")).mark_rule(style="layer-mark", tooltip=None).encode(x="x:Q")
    return chart, rows


def legend_of(names: Sequence[str], title: str | None) -> alt.Legend:
    """A legend in as many columns as the chart has room for."""
    widest = 6.9 * max(min(len(n), 44) for n in names) + 48
    return alt.Legend(orient="top", direction="horizontal", title=title, symbolType="stroke",
                      columns=alt.ExprRef(expr=f"max(1, floor((room - 60) / {widest:.0f}))"))  # fmt: skip


def axis_x(along: Along) -> alt.X:
    """The x axis of a chart of curves."""
    scale = (
        alt.Scale(domain=[0, 1], nice=False) if along in ("depth", "position") else alt.Scale(zero=False, nice=False)
    )
    axis = alt.Axis(tickCount=5, labelFlush=False, labelOverlap=True, labelSeparation=10, format="~r")
    return alt.X("x:Q", scale=scale, title=_X_TITLES[along], axis=axis)


def scale_kind(values: np.ndarray) -> ScaleKind:
    """The scale on which all values can be seen: linear, or a logarithmic one where a few dwarf the rest."""
    size = np.abs(values)
    if (values > 0).all():
        return "log" if values.max() > 20 * values.min() else "linear"
    return "symlog" if size.max() > 30 * np.median(size) > 0 else "linear"


def _decades(low: float, high: float, steps: Sequence[int]) -> list[float]:
    """The numbers `steps` · 10ⁿ between two positive ones."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [short(step * 10.0**power) for power in powers for step in steps]
    return [value for value in found if low * 0.999 <= value <= high * 1.001]


def axis_y(title: str, span: tuple[float, float], kind: ScaleKind, zero: bool, unit: float = 1.0) -> alt.Y:
    """The y axis. `unit` is the size around 0 within which a symmetric logarithmic scale is linear."""
    low, high = span
    if kind == "log":
        ticks = _decades(low, high, (1,) if high > 1000 * low else (1, 2, 5))
        scale = alt.Scale(type="log", domain=[low, high], nice=False)
        axis = alt.Axis(values=ticks[:: 1 + len(ticks) // 8], format=".4~g")
        return alt.Y("y:Q", scale=scale, title=f"{title} (log scale)", axis=axis)
    if kind == "symlog":
        size = max(abs(low), abs(high))
        ticks = _decades(10 * unit, size, (1,)) if size > 10 * unit else [unit]
        ticks = sorted(v for v in (*(-t for t in ticks), 0.0, *ticks) if low <= v <= high)
        scale = alt.Scale(type="symlog", constant=unit, domain=[low, high], nice=False)
        return alt.Y(
            "y:Q", scale=scale, title=f"{title} (symmetric log scale)", axis=alt.Axis(values=ticks, format=".4~g")
        )
    low, high = (min(low, 0.0), max(high, 0.0)) if zero else (low, high)
    room = 0.0 if high > low else 0.5 * abs(high) or 1.0
    scale = alt.Scale(domain=[low - room, high + room], nice=True, zero=False)
    return alt.Y("y:Q", scale=scale, title=title, axis=alt.Axis(tickCount=5))


def finish(layers: list[alt.Chart], data: dict[str, Rows], description: str) -> dict[str, Any]:
    chart = alt.layer(*layers).properties(
        width=FILE_WIDTH, height=_HEIGHT, description=description,
        autosize=alt.AutoSizeParams(type="fit-x", contains="padding"),
        params=[alt.VariableParameter(name="room", value=FILE_WIDTH)],
    )  # fmt: skip
    spec: dict[str, Any] = chart.to_dict(validate=False)  # takes as long as all else; the tests validate every chart
    spec.pop("config", None)
    spec["datasets"] = data
    return spec


def lines(
    curves: Sequence[Curve],
    *,
    y_title: str,
    span: tuple[float, float],
    description: str,
    along: Along = "depth",
    scale: ScaleKind = "linear",
    zero: bool = False,
    layers: np.ndarray | None = None,
    rules: Sequence[tuple[float, str]] = (),
    uprights: Sequence[tuple[float, str]] = (),
) -> dict[str, Any]:
    """Curves over depth or epochs. Layer positions are hairlines, `rules` and `uprights` dashed lines with their text.

    `span` holds the smallest and largest value of the axis, which charts to be compared share.
    """
    names = [c.name for c in curves]
    middle = float(np.median(np.abs(np.concatenate([c.y for c in curves]))))
    unit = 10.0 ** math.floor(math.log10(middle)) if middle > 0 else 1.0
    rows = [
        {"x": short(x), "y": short(y), "s": c.name, "w": c.place(k), **({} if np.isnan(e) else {"e": short(e)})}
        for c in curves
        for k, (x, y, e) in enumerate(zip(c.x.tolist(), c.y.tolist(), c.stderr.tolist(), strict=True))
    ]
    legend = legend_of(names, None) if len(names) > 1 else None
    domain = alt.Scale(domain=names)
    base = alt.Chart(alt.NamedData(name="rows")).encode(
        x=axis_x(along),
        y=axis_y(y_title, span, scale, zero, unit),
        color=alt.Color("s:N", scale=domain, legend=legend),
        tooltip=[
            alt.Tooltip("s:N", title="what"), alt.Tooltip("w:N", title="where"),
            alt.Tooltip("x:Q", title=SYMBOLS[along], format=".4~g"), alt.Tooltip("y:Q", title="value", format=".4~g"),
        ],
    )  # fmt: skip
    dashes = alt.Scale(domain=names, range=[DASHES[i % len(DASHES)] for i in range(len(names))])
    marks = [base.mark_line().encode(strokeDash=alt.StrokeDash("s:N", scale=dashes, legend=legend))]
    if any("e" in row for row in rows):
        marks.append(error_bars(base))
    if max(len(c) for c in curves) <= _POINTS_UP_TO:
        marks.append(base.mark_point(filled=True, size=26, opacity=1))
    ends = min(float(c.x.min()) for c in curves), max(float(c.x.max()) for c in curves)
    beside: list[Upright] = []
    for x, text in uprights:
        turned = x > sum(ends) / 2
        covered = x + (_TEXT_WIDTH * (ends[1] - ends[0]) * np.linspace(-1 if turned else 0, 0 if turned else 1, 9))
        heights = np.concatenate([np.interp(covered, c.x, c.y) for c in curves])
        beside.append((x, text, turned, _crowded_above(heights, span, scale)))
    return with_guides(marks, {"rows": rows}, layers, rules, description, beside)


def _crowded_above(heights: np.ndarray, span: tuple[float, float], scale: ScaleKind) -> bool:
    """Whether a line of text has no room above curves of these heights, and more below them."""
    low, high = span if scale == "log" else (min(span[0], 0.0), span[1])
    edges = np.array([low, heights.min(), heights.max(), high])
    bottom, least, most, top = np.log(edges) if scale == "log" else edges
    return bool(top - most < min(_TEXT_HEIGHT * (top - bottom), least - bottom))


def error_bars(base: alt.Chart) -> alt.Chart:
    """One standard error up and down, where there is one."""
    return (
        base.transform_filter("isValid(datum.e)")
        .transform_calculate(low="datum.y - datum.e", high="datum.y + datum.e")
        .mark_rule(strokeWidth=1.2)
        .encode(y=alt.Y("low:Q"), y2=alt.Y2("high:Q"))
    )


def with_guides(
    marks: list[alt.Chart],
    data: dict[str, Rows],
    layers: np.ndarray | None,
    rules: Sequence[tuple[float, str]],
    description: str,
    uprights: Sequence[Upright] = (),
) -> dict[str, Any]:
    """The specification of a chart: hairlines of layers and reference lines behind its marks."""
    behind: list[alt.Chart] = []
    ticks = _layer_marks(layers) if layers is not None else None
    if ticks is not None:
        behind.append(ticks[0])
        data["layers"] = ticks[1]
    if rules:
        data["rules"] = [{"y": short(y), "t": text} for y, text in rules]
        rule = alt.Chart(alt.NamedData(name="rules")).encode(y="y:Q")
        behind.append(rule.mark_rule(style="reference", tooltip=None))
        marks.append(
            rule.mark_text(style="reference-label", align="left", baseline="middle", dx=6, tooltip=None)
            .encode(x=alt.value("width"), text="t:N")
        )  # fmt: skip
    for number, (x, text, turned, below) in enumerate(uprights):
        name = f"upright-{number}"
        data[name] = [{"x": short(x), "t": text}]
        upright = alt.Chart(alt.NamedData(name=name)).encode(x="x:Q")
        behind.append(upright.mark_rule(style="reference", tooltip=None))
        place: dict[str, Any] = {"align": "right", "dx": -6} if turned else {"align": "left", "dx": 6}
        place |= {"baseline": "bottom", "dy": -2} if below else {"baseline": "top", "dy": 2}
        label = upright.mark_text(style="reference-label", tooltip=None, **place)
        marks.append(label.encode(y=alt.value("height" if below else 0), text="t:N"))
    return finish([*behind, *marks], data, description)


def spectra(
    index: np.ndarray,
    positions: np.ndarray,
    values: np.ndarray,
    *,
    kept: int | None,
    top: float,
    y_title: str,
    description: str,
    kind: str,
    log: bool,
    layers: np.ndarray,
) -> dict[str, Any]:
    """One line per singular-value index; the first `kept` stand out. `values` is (positions, singular values).

    The axis ends at `top`, which charts to be compared share; a logarithmic one begins four decades below it.
    """
    count = values.shape[1]
    groups = [f"first {kept} (the bottleneck rank)", "the others shown"] if kept and kept < count else ["all shown"]
    floor = top * 1e-4
    rows = [
        {"x": short(p), "y": short(max(s, floor) if log else s), "i": j + 1, "w": f"{kind} {number}",
         "s": groups[0] if len(groups) == 1 or j < (kept or 0) else groups[1]}
        for number, p, spectrum in zip(index.tolist(), positions.tolist(), values.tolist(), strict=True)
        for j, s in enumerate(spectrum)
    ]  # fmt: skip
    legend = legend_of(groups, "singular values") if len(groups) > 1 else None
    base = alt.Chart(alt.NamedData(name="rows")).encode(
        x=axis_x("depth"),
        y=axis_y(y_title, (floor if log else 0.0, top), "log" if log else "linear", True),
        detail="i:O",
        color=alt.Color("s:N", scale=alt.Scale(domain=groups, range="ordinal"), legend=legend),
        tooltip=[
            alt.Tooltip("w:N", title="where"), alt.Tooltip("i:O", title="singular value no."),
            alt.Tooltip("x:Q", title="p", format=".4~g"), alt.Tooltip("y:Q", title="value", format=".4~g"),
        ],
    )  # fmt: skip
    front, rest = (base.transform_filter(f"datum.i {sign} {kept if len(groups) > 1 else 0}") for sign in ("<=", ">"))
    marks = [rest.mark_line(strokeWidth=1.1), front.mark_line()]
    if len(positions) <= _POINTS_UP_TO:
        marks.append(front.mark_point(filled=True, size=22, opacity=1))
    return with_guides(marks, {"rows": rows}, layers, (), description)


def path_plane(index: np.ndarray, depths: np.ndarray, points: np.ndarray, *, description: str) -> dict[str, Any]:
    """A path in the plane, with one unit equally long on both axes; the page gives the plot a square area.

    Args:
        index: number of the representation of each point.
        depths: depth of each point.
        points: coordinates, (points, 2).
        description: text for readers who do not see the chart.
    """
    rows: Rows = [
        {"x": short(u), "y": short(v), "p": short(p), "w": f"representation {i}", "i": i}
        for i, p, (u, v) in zip(index.tolist(), depths.tolist(), points.tolist(), strict=True)
    ]
    centre, half = (points.max(0) + points.min(0)) / 2, 0.58 * max(float(np.ptp(points, axis=0).max()), 1e-12)
    scales = [alt.Scale(domain=[short(c - half), short(c + half)], nice=False, zero=False) for c in centre.tolist()]
    axis = alt.Axis(tickCount=4, format=".4~g")
    x = alt.X("x:Q", scale=scales[0], title="first principal direction", axis=axis)
    y = alt.Y("y:Q", scale=scales[1], title="second principal direction", axis=axis)
    legend = alt.Legend(orient="top", gradientLength=130, gradientThickness=10)
    base = alt.Chart(alt.NamedData(name="rows")).encode(x=x, y=y)
    dots = base.mark_point(filled=True, size=46, opacity=1).encode(
        color=alt.Color("p:Q", scale=alt.Scale(domain=[0, 1], range="ramp"), title="depth p", legend=legend),
        tooltip=[
            alt.Tooltip("w:N", title="where"), alt.Tooltip("p:Q", title="p", format=".4~g"),
            alt.Tooltip("x:Q", title="first", format=".4~g"), alt.Tooltip("y:Q", title="second", format=".4~g"),
        ],
    )  # fmt: skip
    kinds = ["start (input)", "end (output)"]
    ends: Rows = [{**rows[0], "t": kinds[0]}, {**rows[-1], "t": kinds[1]}]
    mark = alt.Chart(alt.NamedData(name="ends")).mark_point(style="end-mark", filled=False, tooltip=None)
    shape = alt.Shape(
        "t:N",
        scale=alt.Scale(domain=kinds, range=["circle", "square"]),
        legend=alt.Legend(orient="bottom", title=None, symbolSize=120),
    )
    layers = [base.mark_line(style="thread").encode(order="i:Q"), dots, mark.encode(x=x, y=y, shape=shape)]
    spec = finish(layers, {"rows": rows, "ends": ends}, description)
    return spec | {"width": 360, "height": 360, "autosize": {"type": "pad"}}
