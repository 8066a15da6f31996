"""Charts of layers that have names: curves with their baseline, heat maps and bars with one row per layer.

Names are data and never parsed: the expressions below are constants of this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np

from isthmus.report import _charts
from isthmus.report._charts import FILE_WIDTH, Along, Rows, ScaleKind, short
from isthmus.report._layers import brief, distinct
from isthmus.report._read import Curve
from isthmus.report._themes import SHAPES

FLOOR = 1e-4
"""Smallest share of the largest singular value that the heat map's colours tell apart."""

THIS = "the model"
_FEW = 40
_HEIGHT = 270
_HEIGHT_OF_MANY = 190

# The row's number is the data; its name is looked up in a list, as long as the chart's width has room for it.
_ROOMS = (("narrow", 22), ("middling", 34), ("wide", 60))
_LABEL = "(room < 440 ? narrow : room < 800 ? middling : wide)[datum.value]"


def rows_axis(count: int) -> tuple[alt.Y, int]:
    """The y axis of a chart with one row per layer, the first on top, and the height that its names need."""
    few = count <= _FEW
    axis = alt.Axis(labelExpr=_LABEL, labelLimit=alt.ExprRef(expr="room * 0.42"), labelOverlap=False, grid=False,
                    labelFontSize=11.5 if few else 10.5, title=None)  # fmt: skip
    return alt.Y("k:O", scale=alt.Scale(domain=list(range(count))), sort=None, axis=axis), (18 if few else 14) * count


def finish_rows(chart: Any, height: int, names: Sequence[str], rows: Rows, description: str) -> dict[str, Any]:
    whole = chart.properties(
        width=FILE_WIDTH, height=height, description=description,
        autosize=alt.AutoSizeParams(type="fit-x", contains="padding"),
    )  # fmt: skip
    spec: dict[str, Any] = whole.to_dict()
    spec.pop("config", None)
    lists = {"names": distinct(names)} | {word: [brief(name, limit) for name in names] for word, limit in _ROOMS}
    spec["params"] = [{"name": "room", "value": FILE_WIDTH}, *({"name": k, "value": v} for k, v in lists.items())]
    spec["datasets"] = {"rows": rows}
    return spec


def _numbers(count: int) -> list[int]:
    """Round numbers to label the columns 1 … count with."""
    step = next(s for s in (1, 2, 4, 8, 16) if count <= 9 * s or s == 16)
    return [1, *range(step if step > 1 else 2, count + 1, step)]


def heat_rows(positions: np.ndarray, values: np.ndarray) -> Rows:
    """Rows of a heat map: singular values, (layers, values) padded with NaN, as shares of the layer's largest."""
    rows: Rows = []
    for k, (p, spectrum) in enumerate(zip(positions.tolist(), values.tolist(), strict=True)):
        top = max((s for s in spectrum if np.isfinite(s)), default=0.0)
        shares = [short(s / top) if np.isfinite(s) and top > 0 else None for s in spectrum]
        rows.append({"k": k, "p": short(p), "t": short(top), "v": shares})
    return rows


def heat_map(names: Sequence[str], rows: Rows, count: int, *, description: str, chosen: str = "true") -> dict[str, Any]:
    """The first `count` singular values of every layer, one row per layer, of those `heat_rows` that are `chosen`."""
    y, height = rows_axis(len(names))
    ticks = [10.0**-k for k in range(4, -1, -1)]
    scale = alt.Scale(type="log", domain=[FLOOR, 1], clamp=True, range="heatmap", nice=False)
    legend = alt.Legend(orient="top", gradientLength=150, gradientThickness=10, values=ticks, format="~r",
                        title="share of the largest", direction="horizontal")  # fmt: skip
    chart = (
        alt.Chart(alt.NamedData(name="rows"))
        .transform_filter(chosen)
        .transform_calculate(i="sequence(1, length(datum.v) + 1)")
        .transform_flatten(["v", "i"])
        .transform_filter("isValid(datum.v)")
        .transform_calculate(c=f"max(datum.v, {FLOOR})", s="datum.v * datum.t", n="names[datum.k]")
        .mark_rect(aria=False, width={"band": 1.08}, height={"band": 1.04})
        .encode(
            x=alt.X("i:O", title="singular value no.", scale=alt.Scale(domain=list(range(1, count + 1))),
                    axis=alt.Axis(values=_numbers(count), labelAngle=0, orient="top")),
            y=y,
            color=alt.Color("c:Q", scale=scale, legend=legend),
            tooltip=[
                alt.Tooltip("n:N", title="layer"), alt.Tooltip("p:Q", title="p", format=".4~g"),
                alt.Tooltip("i:O", title="singular value no."), alt.Tooltip("s:Q", title="value", format=".4~g"),
                alt.Tooltip("v:Q", title="share of the largest", format=".3~g"),
            ],
        )
    )  # fmt: skip
    return finish_rows(chart, height, names, rows, description)


def _flat(curves: Sequence[Curve]) -> Rows:
    return [
        {"x": short(x), "y": short(y), "s": c.name, "w": c.place(k), "b": c.baseline or THIS,
         **({} if np.isnan(e) else {"e": short(e)})}
        for c in curves
        for k, (x, y, e) in enumerate(zip(c.x.tolist(), c.y.tolist(), c.stderr.tolist(), strict=True))
    ]  # fmt: skip


def _models(curves: Sequence[Curve]) -> list[str]:
    """The model itself and its baselines, in the order of first use."""
    return list(dict.fromkeys(c.baseline or THIS for c in sorted(curves, key=lambda c: c.baseline != "")))


def bars(curves: Sequence[Curve], *, x_title: str, top: float, description: str) -> dict[str, Any]:
    """One bar per layer with its name; a baseline is a tick across the bar. The axis ends at `top`."""
    models = _models(curves)
    spots = sorted({(x, curve.place(k)) for curve in curves for k, x in enumerate(curve.x.tolist())})
    number = {spot: k for k, spot in enumerate(spots)}
    rows = [
        {"k": number[x, curve.place(k)], "x": short(x), "y": short(value), "b": curve.baseline or THIS}
        for curve in curves
        for k, (x, value) in enumerate(zip(curve.x.tolist(), curve.y.tolist(), strict=True))
    ]
    y, height = rows_axis(len(spots))
    legend = alt.Legend(orient="top", direction="horizontal", title=None, symbolType="square", symbolOpacity=1,
                        symbolSize=80) if len(models) > 1 else None  # fmt: skip
    base = alt.Chart(alt.NamedData(name="rows")).encode(
        x=alt.X("y:Q", title=x_title, scale=alt.Scale(domain=[0, top or 1.0], nice=True),
                axis=alt.Axis(orient="top", tickCount=5, format=".4~g")),
        y=y,
        color=alt.Color("b:N", scale=alt.Scale(domain=models), legend=legend),
        tooltip=[
            alt.Tooltip("n:N", title="layer"), alt.Tooltip("b:N", title="of"),
            alt.Tooltip("x:Q", title="p", format=".4~g"), alt.Tooltip("y:Q", title="value", format=".4~g"),
        ],
    )  # fmt: skip
    base = base.transform_calculate(n="names[datum.k]")
    own = base.transform_filter(f"datum.b === '{THIS}'").mark_bar(aria=False, height={"band": 0.62})
    other = base.transform_filter(f"datum.b !== '{THIS}'").mark_tick(
        aria=False, thickness=2.5, orient="vertical", bandSize=15 if len(spots) <= _FEW else 12
    )
    return finish_rows(alt.layer(own, other) if len(models) > 1 else alt.layer(own), height,
                   [name for _, name in spots], rows, description)  # fmt: skip


def curves_with_baseline(
    curves: Sequence[Curve],
    *,
    y_title: str,
    span: tuple[float, float],
    along: Along,
    scale: ScaleKind,
    zero: bool,
    small: bool,
    rules: Sequence[tuple[float, str]],
    description: str,
) -> dict[str, Any]:
    """Curves across layers: colour and shape say which, dashes say that it is a baseline.

    Args:
        curves: those of one name share a colour, whatever their baseline.
        y_title: title of the y axis.
        span: smallest and largest value of the y axis.
        along: what x is.
        scale: kind of y axis.
        zero: y axis starts at 0.
        small: a low chart, one of several.
        rules: dashed horizontals with their text.
        description: text for readers who do not see the chart.
    """
    names = list(dict.fromkeys(c.name for c in curves))
    models = _models(curves)
    one_of_many = _charts.legend_of(names, None) if len(names) > 1 else None
    if one_of_many is not None:
        one_of_many.symbolType = alt.Undefined
        one_of_many.symbolSize = 70
    colour = alt.Color("s:N", scale=alt.Scale(domain=names), legend=one_of_many)
    shape = alt.Shape("s:N", scale=alt.Scale(domain=names, range=[SHAPES[i % len(SHAPES)] for i in range(len(names))]),
                      legend=one_of_many)  # fmt: skip
    dashes = alt.Scale(domain=models, range=[[1, 0], [5, 4], [2, 3]][: len(models)])
    compared = alt.Legend(orient="bottom", direction="horizontal", title=None, symbolType="stroke")
    base = alt.Chart(alt.NamedData(name="rows")).encode(
        x=_charts.axis_x(along),
        y=_charts.axis_y(y_title, span, scale, zero),
        color=colour,
        tooltip=[
            alt.Tooltip("w:N", title="layer" if along == "position" else "where"), alt.Tooltip("s:N", title="what"),
            *([alt.Tooltip("b:N", title="of")] if len(models) > 1 else []),
            alt.Tooltip("x:Q", title=_charts.SYMBOLS[along], format=".4~g"),
            alt.Tooltip("y:Q", title="value", format=".4~g"),
        ],
    )  # fmt: skip
    dash = alt.StrokeDash("b:N", scale=dashes, legend=compared if len(models) > 1 else None)
    rows = _flat(curves)
    marks = [base.mark_line().encode(strokeDash=dash, detail="b:N")]
    if any("e" in row for row in rows):
        marks.append(_charts.error_bars(base))
    size = 30 if len(rows) <= 400 else 14
    points = base.mark_point(filled=True, size=size, opacity=1, aria=False).encode(shape=shape)
    marks += [points.transform_filter(f"datum.b === '{THIS}'")]
    if len(models) > 1:  # a baseline's points show on hovering; its dashes are enough to see
        unseen = base.transform_filter(f"datum.b !== '{THIS}'")
        marks += [unseen.mark_point(filled=True, size=40, opacity=0, aria=False)]
    spec = _charts.with_guides(marks, {"rows": rows}, None, rules, description)
    return spec | {"height": _HEIGHT_OF_MANY if small else _HEIGHT}
