"""Charts of a run's dynamics: curves and matrices of a layer and a pair that parameters choose, and a heat map.

Names are data and never parsed: the expressions below are constants of this file and numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np

from isthmus.report import _charts
from isthmus.report._charts import FILE_WIDTH, Rows, short
from isthmus.report._depthcharts import finish_rows, rows_axis
from isthmus.report._layers import brief

MEASURED, FITTED, PREDICTED = "measured", "fitted", "predicted from the first half"
_NAMES = [MEASURED, FITTED, PREDICTED]
_SERIES = f"datum.key === 'm' ? '{MEASURED}' : datum.key === 'f' ? '{FITTED}' : '{PREDICTED}'"
_HEIGHT, _SIDE = 230, 250
_TITLE = 30


def _list(values: np.ndarray) -> list[float | None]:
    return [short(v) if np.isfinite(v) else None for v in values.tolist()]


def _with_choice(spec: dict[str, Any], layer: int, pair: int | None, lists: dict[str, Any]) -> dict[str, Any]:
    """The specification with the parameters that choose, the lists it reads, and the choice as its title."""
    params: dict[str, Any] = {"layer": layer, **({} if pair is None else {"pair": pair}), **lists}
    spec["params"] = [*spec["params"], *({"name": name, "value": value} for name, value in params.items())]
    text = "layers[layer]" if pair is None else "layers[layer] + ', pair ' + pairs[pair]"
    return spec | {"title": {"text": {"expr": text}, "style": "step-title", "anchor": "end", "offset": 8}}


def curves_at(
    name: str, times: np.ndarray, parts: dict[str, np.ndarray], *, layers: Sequence[str], pairs: Sequence[str],
    layer: int, pair: int, x_title: str, description: str,
) -> dict[str, Any]:  # fmt: skip
    """One curve, measured, fitted and predicted, at the layer and pair that parameters choose.

    Args:
        name: title of the y axis.
        times: x.
        parts: `measured`, `fitted` and `predicted`, each `(layers, pairs, times)`.
        layers: names.
        pairs: names.
        layer: the one that is chosen first.
        pair: the one that is chosen first.
        x_title: title of the x axis.
        description: text for readers who do not see the chart.
    """
    rows: Rows = [
        {"l": k, "p": j, "m": _list(parts["measured"][k, j]), "f": _list(parts["fitted"][k, j]),
         "q": _list(parts["predicted"][k, j])}
        for k in range(len(layers)) for j in range(len(pairs))
    ]  # fmt: skip
    legend = _charts.legend_of(_NAMES, None)
    colour = alt.Color("s:N", scale=alt.Scale(domain=_NAMES), legend=legend)
    dash = alt.StrokeDash("s:N", scale=alt.Scale(domain=_NAMES, range=[[1, 0], [1, 0], [5, 4]]), legend=legend)
    axis = alt.Axis(tickCount=4, labelFlush=False, labelOverlap=True, format="~s")
    base = (
        alt.Chart(alt.NamedData(name="rows"))
        .transform_filter("datum.l === layer && datum.p === pair")
        .transform_calculate(i="sequence(length(datum.m))")
        .transform_flatten(["m", "f", "q", "i"])
        .transform_fold(["m", "f", "q"], as_=["key", "y"])
        .transform_filter("isValid(datum.y)")
        .transform_calculate(x="times[datum.i]", s=_SERIES)
        .encode(
            x=alt.X("x:Q", title=x_title, scale=alt.Scale(nice=False, zero=False), axis=axis),
            y=alt.Y("y:Q", title=name, scale=alt.Scale(zero=True, nice=True), axis=alt.Axis(tickCount=4)),
            color=colour,
            tooltip=[alt.Tooltip("s:N", title="what"), alt.Tooltip("x:Q", title="time", format=".5~g"),
                     alt.Tooltip("y:Q", title="value", format=".4~g")],
        )
    )  # fmt: skip
    marks = [
        base.transform_filter(f"datum.s === '{MEASURED}'").mark_point(filled=True, size=50, opacity=0.5, aria=False),
        base.transform_filter(f"datum.s !== '{MEASURED}'").mark_line(aria=False).encode(strokeDash=dash),
    ]
    spec = _charts.finish(marks, {"rows": rows}, description) | {"height": _HEIGHT}
    lists = {"times": _list(times), "layers": [brief(one, _TITLE) for one in layers],
             "pairs": [brief(one, _TITLE) for one in pairs]}  # fmt: skip
    return _with_choice(spec, layer, pair, lists)


def matrix_at(
    values: np.ndarray, tops: np.ndarray, samples: Sequence[str], *, layers: Sequence[str], layer: int,
    description: str,
) -> dict[str, Any]:  # fmt: skip
    """A matrix of squared distances among samples at the layer that a parameter chooses.

    Args:
        values: `(layers, samples, samples)`.
        tops: where the colours of each layer end, the same for matrices to be compared.
        samples: names, in the order of rows and columns.
        layers: names.
        layer: the one that is chosen first.
        description: text for readers who do not see the chart.
    """
    count = len(samples)
    rows: Rows = [{"l": k, "v": _list(values[k].reshape(-1))} for k in range(len(layers))]
    scale = alt.Scale(type="linear", domainMin=0, domainMax=alt.ExprRef(expr="tops[layer]"), clamp=True,
                      range="heatmap", nice=False)  # fmt: skip
    legend = alt.Legend(orient="top", gradientLength=120, gradientThickness=10, title="squared distance",
                        direction="horizontal", format="~g", tickCount=3)  # fmt: skip
    domain = alt.Scale(domain=list(range(count)))
    none = alt.Axis(labels=False, ticks=False, domain=False, grid=False, title=f"{count} samples")
    chart = (
        alt.Chart(alt.NamedData(name="rows"))
        .transform_filter("datum.l === layer")
        .transform_calculate(i="sequence(length(datum.v))")
        .transform_flatten(["v", "i"])
        .transform_filter("isValid(datum.v)")
        .transform_calculate(r=f"floor(datum.i / {count})", c=f"datum.i % {count}")
        .transform_calculate(a="samples[datum.r]", b="samples[datum.c]")
        .mark_rect(aria=False, width={"band": 1.04}, height={"band": 1.04})
        .encode(
            x=alt.X("c:O", scale=domain, axis=none),
            y=alt.Y("r:O", scale=domain, sort=None, axis=none),
            color=alt.Color("v:Q", scale=scale, legend=legend),
            tooltip=[alt.Tooltip("a:N", title="sample"), alt.Tooltip("b:N", title="and"),
                     alt.Tooltip("v:Q", title="squared distance", format=".4~g")],
        )
    )  # fmt: skip
    whole = _charts.finish([chart], {"rows": rows}, description) | {"height": _SIDE}
    lists = {"samples": list(samples), "tops": [short(top) for top in tops.tolist()],
             "layers": [brief(one, _TITLE) for one in layers]}  # fmt: skip
    return _with_choice(whole, layer, None, lists)


def fits_map(
    values: np.ndarray, errors: np.ndarray, layers: Sequence[str], pairs: Sequence[str], *, description: str
) -> dict[str, Any]:
    """`R²` of every pair at every layer, a row per layer; values below 0 have the colour of 0."""
    y, height = rows_axis(len(layers))
    rows: Rows = [
        {"k": k, "j": j, "v": short(v), "c": short(max(v, 0.0)), "n": pairs[j],
         **({} if np.isnan(errors[k, j]) else {"e": short(errors[k, j])})}
        for k, row in enumerate(values.tolist()) for j, v in enumerate(row) if np.isfinite(v)
    ]  # fmt: skip
    scale = alt.Scale(domain=[0, 1], clamp=True, range="heatmap", nice=False)
    legend = alt.Legend(orient="top", gradientLength=150, gradientThickness=10, values=[0, 0.5, 0.9, 1], format="~g",
                        title="R² of the worst curve", direction="horizontal")  # fmt: skip
    axis = alt.Axis(labelExpr="pairs[datum.value]", labelAngle=-90, orient="top", labelLimit=70, labelOverlap=True,
                    title="pair of samples", grid=False)  # fmt: skip
    chart = (
        alt.Chart(alt.NamedData(name="rows"))
        .transform_calculate(a="names[datum.k]")
        .mark_rect(aria=False, width={"band": 1.04}, height={"band": 1.04})
        .encode(
            x=alt.X("j:O", scale=alt.Scale(domain=list(range(len(pairs)))), axis=axis),
            y=y,
            color=alt.Color("c:Q", scale=scale, legend=legend),
            tooltip=[alt.Tooltip("a:N", title="layer"), alt.Tooltip("n:N", title="pair"),
                     alt.Tooltip("v:Q", title="R² of the worst curve", format=".4~g"),
                     alt.Tooltip("e:Q", title="error of the second half", format=".3~g")],
        )
    )  # fmt: skip
    spec = finish_rows(chart, max(height, 60), layers, rows, description)
    spec["params"].append({"name": "pairs", "value": [brief(one, 12) for one in pairs]})
    assert spec["width"] == FILE_WIDTH
    return spec
