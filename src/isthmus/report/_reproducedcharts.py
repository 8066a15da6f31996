"""Charts of a paper's figures: curves, points and paths whose axes, names and reference lines come from a run.

Texts are data, titles and domains, which are never parsed: the expressions below are constants of this file. Every
mark has `aria=False`: a description of single marks would be an expression made of the axes' titles, unescaped.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import altair as alt
import numpy as np

from isthmus.report import _charts
from isthmus.report._charts import Rows
from isthmus.report._reproduced import PaperCurve, PaperPanel
from isthmus.report._themes import DASHES, SHAPES

LEGEND_UP_TO = 8
"""Most series that a legend names; of more, a ramp of colours says the number."""

MARKS_UP_TO = 120
"""Most hairlines of a chart."""

_POINTS_UP_TO, _ROWS_UP_TO = 80, 700
_ENDS_UP_TO = 8
_HEIGHT, _SIDE = 270, 360
_LABEL_GAP = 15 / _HEIGHT


class Scale:
    """One axis: its domain in numbers, so that the page knows where on it a value stands."""

    def __init__(self, kind: str, values: np.ndarray, *, zero: bool = False, room: float = 0.04) -> None:
        size = np.abs(values[values != 0])
        self.kind = kind
        self.unit = 10.0 ** math.floor(math.log10(float(np.median(size)))) if len(size) else 1.0
        low, high = float(values.min()), float(values.max())
        if zero and kind == "linear" and 0 < low <= 0.35 * high:
            low = 0.0
        start, end = self._to(low), self._to(high)
        pad = room * (end - start) if end > start else 0.3 if kind != "linear" else 0.5 * abs(end) or 1.0
        # An axis that begins at 0 keeps its beginning.
        first = start if zero and low == 0 and kind == "linear" and end > start else start - pad
        self._set(self._back(first), self._back(end + pad))

    def _set(self, low: float, high: float) -> None:
        self.low, self.high = low, high

    def widened(self, half: float) -> None:
        """The same middle, with `half` of the axis on either side of it."""
        middle = (self.low + self.high) / 2
        self._set(middle - half, middle + half)

    def _to(self, value: float) -> float:
        if self.kind == "log":
            return math.log10(value)
        return math.copysign(math.log1p(abs(value) / self.unit), value) if self.kind == "symlog" else value

    def _back(self, place: float) -> float:
        if self.kind == "log":
            return 10.0**place
        return math.copysign(math.expm1(abs(place)) * self.unit, place) if self.kind == "symlog" else place

    def share(self, value: float) -> float:
        """How far along the axis a value stands, from 0 to 1."""
        return (self._to(value) - self._to(self.low)) / (self._to(self.high) - self._to(self.low))

    def at(self, share: float) -> float:
        """The value that stands that far along the axis."""
        return self._back(self._to(self.low) + share * (self._to(self.high) - self._to(self.low)))

    def channel(self, make: Callable[..., Any], field: str, title: str) -> Any:
        """The encoding of the axis."""
        narrow = self.kind != "linear" and self.high - self.low < 1e-3 * abs(self.high)
        said: dict[str, Any] = {
            "format": ".8~g" if narrow else ".4~g",
            "labelOverlap": True,
            "labelFlush": False,
            "labelSeparation": 8,
        }
        scale: dict[str, Any] = {"domain": [self.low, self.high], "nice": False}
        words = {"log": " (log scale)", "symlog": " (symmetric log scale)"}.get(self.kind, "")
        ticks = self._ticks()
        scale |= {"zero": False} if self.kind == "linear" else {"type": self.kind}
        if self.kind == "symlog":
            scale["constant"] = self.unit
        axis = alt.Axis(values=ticks, **said) if ticks else alt.Axis(tickCount=5, **said)
        return make(field, title=title + words, scale=alt.Scale(**scale), axis=axis)

    def _ticks(self) -> list[float]:
        if self.kind == "linear":
            return []
        size = max(abs(self.low), abs(self.high))
        smallest = self.low if self.kind == "log" else min(self.unit, size / 2)
        found: list[float] = []
        for steps in ((1,), (1, 3), (1, 2, 5), range(1, 10)):
            powers = range(math.floor(math.log10(smallest)), math.ceil(math.log10(size)) + 1)
            sizes = [float(f"{step}e{power}") for power in powers for step in steps]
            sizes = [value for value in sizes if smallest * 0.999 <= value <= size]
            sizes = sizes[:: 1 + len(sizes) // (8 if self.kind == "log" else 6)]
            both = sizes if self.kind == "log" else [*(-value for value in reversed(sizes)), 0.0, *sizes]
            found = [value for value in both if self.low <= value <= self.high]
            if len(found) >= 4:
                return found
        # So narrow that no round number is inside, or one.
        return found if len(found) > 1 else [self.at(0.1), self.at(0.9)]


def _scales(panel: PaperPanel, curves: Sequence[PaperCurve]) -> tuple[Scale, Scale]:
    """Both axes, wide enough for the points, their ranges, the reference lines and the hairlines."""
    x = np.concatenate([*(c.x for c in curves), np.array(panel.marks)])
    ends = [end[np.isfinite(end)] for c in curves for end in (c.low, c.high)] if _has_ranges(panel, curves) else []
    y = np.concatenate([*(c.y for c in curves), *ends, np.array([value for value, _ in panel.rules])])
    if panel.y_scale == "log":
        y = y[y > 0]
    if not panel.square:
        room = 0.04 if panel.kind != "line" else 0.02 if panel.rules or ends else 0.0
        return Scale(panel.x_scale, x, room=room), Scale(panel.y_scale, y, zero=panel.kind != "path")
    scales = Scale("linear", x, room=0.06), Scale("linear", y, room=0.06)
    half = max((scale.high - scale.low) / 2 for scale in scales)
    for scale in scales:
        scale.widened(half)
    return scales


def _series(curves: Sequence[PaperCurve]) -> list[str]:
    return list(dict.fromkeys(c.series for c in curves))


def _has_ranges(panel: PaperPanel, curves: Sequence[PaperCurve]) -> bool:
    return shows_ranges(panel.kind, _series(curves)) and any(
        bool(np.isfinite(np.concatenate([c.low, c.high])).any()) for c in curves
    )


def shows_ranges(kind: str, series: Sequence[str]) -> bool:
    """Whether ranges of points are drawn: not along a path, and not where they are so many that curves drown."""
    return kind != "path" and len(series) <= LEGEND_UP_TO


def numbers_of(series: Sequence[str]) -> list[float] | None:
    """The numbers of numbered series (`s1`, `s2`, …) whose names differ in nothing else; None for other names."""
    found = [re.fullmatch(r"(\D*)(\d{1,9})", name) for name in series]
    heads = {match.group(1) for match in found if match}
    numbers = [float(match.group(2)) for match in found if match]
    return numbers if len(numbers) == len(series) and len(heads) == 1 else None


def _digits(value: float) -> float:
    return float(f"{value:.6g}")


def _rows(panel: PaperPanel, curves: Sequence[PaperCurve], floor: float) -> Rows:
    names = _series(curves)
    number = dict(zip(names, numbers_of(names) or range(1, len(names) + 1), strict=True))
    many, ranges = len(names) > LEGEND_UP_TO, _has_ranges(panel, curves)
    rows: Rows = []
    for g, c in enumerate(curves):
        columns = (values.tolist() for values in (c.x, c.y, c.low, c.high, c.n))
        for i, (x, y, low, high, n) in enumerate(zip(*columns, strict=True)):
            row: dict[str, Any] = {"x": _digits(x), "y": _digits(y), "s": c.series, "g": g}
            if many:
                row["k"] = number[c.series]
            if panel.kind == "path":
                row["i"] = i
            if c.seed:
                row["a"] = c.seed
            if ranges and not (math.isnan(low) and math.isnan(high)):
                row["l"] = _digits(max(y if math.isnan(low) else low, floor))
                row["h"] = _digits(max(y if math.isnan(high) else high, floor))
            if not math.isnan(n):
                row["n"] = _digits(n)
            rows.append(row)
    return rows


def _colour(panel: PaperPanel, names: Sequence[str]) -> dict[str, Any]:
    """The encodings that tell series apart: a legend of a few, a ramp of many."""
    if len(names) > LEGEND_UP_TO:
        numbers = numbers_of(names)
        low, high = (min(numbers), max(numbers)) if numbers else (1, len(names))
        log = low > 0 and high > 8 * low  # the first of many singular values matter most
        ticks: dict[str, Any] = (
            {"values": [v for v in (1, 3, 10, 30, 100, 300, 1000) if low <= v <= high]} if log else {}
        )
        legend = alt.Legend(orient="top", direction="horizontal", gradientLength=150, gradientThickness=10,
                            title="no.", format="~r", **ticks) if numbers else None  # fmt: skip
        kind: dict[str, Any] = {"type": "log"} if log else {"zero": False}
        scale = alt.Scale(domain=[low, high], range="ramp", nice=False, **kind)
        return {"color": alt.Color("k:Q", scale=scale, legend=legend)}
    legend = _legend(panel, names)
    return {"color": alt.Color("s:N", scale=alt.Scale(domain=list(names)), legend=legend)}


def _legend(panel: PaperPanel, names: Sequence[str]) -> alt.Legend | None:
    legend = _charts.legend_of(names, None) if len(names) > 1 else None
    if legend is not None and panel.kind == "points":
        legend.symbolType, legend.symbolSize = alt.Undefined, 70
    return legend


def _shape(panel: PaperPanel, names: Sequence[str]) -> dict[str, Any]:
    """The second way to tell a few series of points apart; on a bar it would make Vega-Lite add points."""
    if len(names) > LEGEND_UP_TO:
        return {}
    shapes = alt.Scale(domain=list(names), range=[SHAPES[i % len(SHAPES)] for i in range(len(names))])
    return {"shape": alt.Shape("s:N", scale=shapes, legend=_legend(panel, names))}


def _tooltip(rows: Rows) -> list[alt.Tooltip]:
    shown = [alt.Tooltip("s:N", title="series")]
    if any("a" in row for row in rows):
        shown.append(alt.Tooltip("a:N", title="seed"))
    shown += [alt.Tooltip("x:Q", title="x", format=".5~g"), alt.Tooltip("y:Q", title="y", format=".5~g")]
    for field, title in (("l", "low"), ("h", "high"), ("n", "n")):
        if any(field in row for row in rows):
            shown.append(alt.Tooltip(f"{field}:Q", title=title, format=".5~g"))
    return shown


def draw(panel: PaperPanel, curves: Sequence[PaperCurve], description: str) -> dict[str, Any]:
    """The specification of a panel with these curves, of which there is at least one."""
    x, y = _scales(panel, curves)
    names, rows = _series(curves), _rows(panel, curves, y.low if y.kind == "log" else -math.inf)
    base = alt.Chart(alt.NamedData(name="rows")).encode(
        x=x.channel(alt.X, "x:Q", panel.x), y=y.channel(alt.Y, "y:Q", panel.y), tooltip=_tooltip(rows),
        **_colour(panel, names),
    )  # fmt: skip
    data: dict[str, Rows] = {"rows": rows}
    marks = _marks_of(panel, curves, base, rows, names)
    if panel.kind == "path" and len(curves) <= _ENDS_UP_TO:
        marks.append(_ends(curves, data, base))
    behind, front = _guides(panel, y, data)
    spec = _charts.finish([*behind, *marks, *front], data, description)
    if panel.square:
        return spec | {"width": _SIDE, "height": _SIDE, "autosize": {"type": "pad"}}
    return spec | {"height": _SIDE if panel.kind == "path" else _HEIGHT}


def _marks_of(
    panel: PaperPanel, curves: Sequence[PaperCurve], base: alt.Chart, rows: Rows, names: Sequence[str]
) -> list[alt.Chart]:
    many = len(names) > LEGEND_UP_TO
    marks: list[alt.Chart] = []
    if panel.kind == "points":
        points = base.mark_point(filled=True, size=34 if len(rows) <= 300 else 14, opacity=0.85, aria=False)
        marks.append(points.encode(**_shape(panel, names)))
    else:
        line = base.encode(detail="g:N")
        if panel.kind == "path":
            line = line.encode(order="i:Q")
        if not many:
            dashes = alt.Scale(domain=list(names), range=[DASHES[i % len(DASHES)] for i in range(len(names))])
            line = line.encode(strokeDash=alt.StrokeDash("s:N", scale=dashes, legend=_legend(panel, names)))
        seeds = any(c.seed for c in curves)
        thin = line.transform_filter("isValid(datum.a)") if seeds else line
        if seeds or many:
            marks.append(thin.mark_line(strokeWidth=1.1, opacity=0.8, aria=False))
        if seeds and not all(c.seed for c in curves):
            marks.append(line.transform_filter("!isValid(datum.a)").mark_line(aria=False))
        elif not seeds and not many:
            marks.append(line.mark_line(strokeWidth=1.4 if panel.kind == "path" else 2.1, aria=False))
        # A legend is a ramp only where no mark is filled, and lines are not.
        shape: dict[str, Any] = {"filled": not many, "aria": False} | ({"strokeWidth": 2} if many else {})
        if max(len(c) for c in curves) <= _POINTS_UP_TO and (len(rows) <= _ROWS_UP_TO or panel.kind == "path"):
            marks.append(base.mark_point(size=26 if not many and not seeds else 12, opacity=1, **shape))
        else:  # points show on hovering
            marks.append(base.mark_point(size=30, opacity=0, **shape))
    if any("l" in row for row in rows):
        ranges = base.transform_filter("isValid(datum.l)")
        marks.append(ranges.mark_rule(strokeWidth=1.3, aria=False).encode(y=alt.Y("l:Q"), y2=alt.Y2("h:Q")))
        tick = ranges.mark_tick(orient="horizontal", size=7, thickness=1.3, aria=False)
        marks += [tick.encode(y=alt.Y("l:Q")), tick.encode(y=alt.Y("h:Q"))]
    return marks


def _ends(curves: Sequence[PaperCurve], data: dict[str, Rows], base: alt.Chart) -> alt.Chart:
    kinds = ["start", "end"]
    data["ends"] = [
        {"x": _digits(float(c.x[row])), "y": _digits(float(c.y[row])), "t": kind}
        for c in curves for kind, row in zip(kinds, (0, -1), strict=True)
    ]  # fmt: skip
    shape = alt.Shape("t:N", scale=alt.Scale(domain=kinds, range=["circle", "square"]),
                      legend=alt.Legend(orient="bottom", title=None, symbolSize=90))  # fmt: skip
    chart = alt.Chart(alt.NamedData(name="ends"))
    return chart.mark_point(style="end-mark", filled=False, tooltip=None, size=110, strokeWidth=1.6, aria=False).encode(
        x="x:Q", y="y:Q", shape=shape
    )


def _apart(shares: Sequence[float], gap: float) -> list[float]:
    """Places of labels at these shares of the axis, moved until no two are closer than `gap`."""
    order = sorted(range(len(shares)), key=lambda k: shares[k])
    places = list(shares)
    for before, k in itertools.pairwise(order):
        places[k] = max(places[k], places[before] + gap)
    if order and places[order[-1]] > 1:
        top = 1.0
        for k in reversed(order):
            places[k] = top = min(places[k], top)
            top -= gap
    return places


def _guides(panel: PaperPanel, y: Scale, data: dict[str, Rows]) -> tuple[list[alt.Chart], list[alt.Chart]]:
    """Hairlines and reference lines, which stand behind the curves, and the labels of the latter beside the chart."""
    behind: list[alt.Chart] = []
    front: list[alt.Chart] = []
    if 0 < len(panel.marks) <= MARKS_UP_TO:
        data["layers"] = [{"x": _digits(mark)} for mark in panel.marks]
        layers = alt.Chart(alt.NamedData(name="layers"))
        behind.append(layers.mark_rule(style="layer-mark", tooltip=None, aria=False).encode(x="x:Q"))
    if panel.rules:
        places = _apart([y.share(value) for value, _ in panel.rules], _LABEL_GAP)
        data["rules"] = [{"y": _digits(value), "t": text, "b": y.at(place)}
                         for (value, text), place in zip(panel.rules, places, strict=True)]  # fmt: skip
        rule = alt.Chart(alt.NamedData(name="rules"))
        behind.append(rule.mark_rule(style="reference", tooltip=None, aria=False).encode(y="y:Q"))
        label = rule.mark_text(style="reference-label", align="left", baseline="middle", dx=6, limit=120, tooltip=None,
                               aria=False)  # fmt: skip
        front.append(label.encode(x=alt.value("width"), y="b:Q", text="t:N"))
    return behind, front
