"""The chart of a number against depth: a line for each way to fewer layers, the full network, the bound, the choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np

from isthmus.report import _charts
from isthmus.report._charts import Rows, ScaleKind, short
from isthmus.report._compressed import DepthLine
from isthmus.report._reproducedcharts import Scale
from isthmus.report._themes import DASHES

_HEIGHT = 300
_LABEL = 110
_OVER = 26


def depth_chart(
    found: Sequence[DepthLine], rules: Mapping[str, float], chosen: tuple[int, float] | None, *, y_title: str,
    ratios: bool, description: str,
) -> dict[str, Any]:  # fmt: skip
    """The specification of the chart.

    Args:
        found: the lines, of which one at least has a value.
        rules: up to two levels by their label; the first is dashed with its label below it, the second dotted, above.
        chosen: layers and value of the network that was chosen, if it is on this chart.
        y_title: title of the y axis.
        ratios: the axis is logarithmic wherever it can be.
        description: text for readers who do not see the chart.
    """
    filled = [line for line in found if line.values]
    values = np.array([value for line in filled for value in line.values.values()] + [*rules.values()])
    depths = np.array([depth for line in filled for depth in line.values] + ([chosen[0]] if chosen else []))
    kind: ScaleKind = "log" if ratios and bool((values > 0).all()) else _charts.scale_kind(values)
    y, x = Scale(kind, values), Scale("linear", depths.astype(np.float64), room=0.03)
    axis = alt.Axis(tickCount=8, tickMinStep=1, format="d", labelFlush=False, labelOverlap=True)
    horizontal = alt.X("x:Q", title="number of layers", axis=axis,
                       scale=alt.Scale(domain=[x.low, x.high], nice=False, zero=False))  # fmt: skip
    vertical = y.channel(alt.Y, "y:Q", y_title)
    names = [line.name for line in filled]
    legend = _charts.legend_of(names, None) if len(names) > 1 else None
    if legend is not None:
        legend.offset = _OVER  # the number of the chosen depth stands below it
    data: dict[str, Rows] = {
        "rows": [{"x": depth, "y": short(value), "s": line.name}
                 for line in filled for depth, value in sorted(line.values.items())],
    }  # fmt: skip
    base = alt.Chart(alt.NamedData(name="rows")).encode(
        x=horizontal, y=vertical, color=alt.Color("s:N", scale=alt.Scale(domain=names), legend=legend),
        tooltip=[alt.Tooltip("s:N", title="by"), alt.Tooltip("x:Q", title="layers"),
                 alt.Tooltip("y:Q", title="value", format=".5~g")],
    )  # fmt: skip
    dashes = alt.Scale(domain=names, range=[DASHES[i % len(DASHES)] for i in range(len(names))])
    dash = alt.StrokeDash("s:N", scale=dashes, legend=legend)
    behind, front = _levels(rules, data)
    layers = [*behind, base.mark_line(aria=False).encode(strokeDash=dash),
              base.mark_point(filled=True, size=30, opacity=1, aria=False), *front]  # fmt: skip
    if chosen is not None:
        layers = [*_choice(chosen, data), *layers]
    return _charts.finish(layers, data, description) | {"height": _HEIGHT}


def _levels(rules: Mapping[str, float], data: dict[str, Rows]) -> tuple[list[alt.Chart], list[alt.Chart]]:
    behind: list[alt.Chart] = []
    front: list[alt.Chart] = []
    for number, (text, value) in enumerate(rules.items()):
        name = f"level-{number}"
        data[name] = [{"y": short(value), "t": text}]
        rule = alt.Chart(alt.NamedData(name=name)).encode(y="y:Q")
        look: dict[str, Any] = {"strokeDash": [1, 3]} if number else {}
        behind.append(rule.mark_rule(style="reference", tooltip=None, aria=False, **look))
        place: dict[str, Any] = {"baseline": "bottom", "dy": -1} if number else {"baseline": "top", "dy": 1}
        label = rule.mark_text(style="reference-label", align="left", dx=6, limit=_LABEL, tooltip=None, aria=False,
                               **place)  # fmt: skip
        front.append(label.encode(x=alt.value("width"), text="t:N"))
    return behind, front


def _choice(chosen: tuple[int, float], data: dict[str, Rows]) -> list[alt.Chart]:
    """A line at the depth that was chosen, its number above the chart, and a ring around the network."""
    depth, value = chosen
    data["chosen"] = [{"x": depth, "y": short(value), "t": f"chosen: {depth}"}]
    at = alt.Chart(alt.NamedData(name="chosen")).encode(x="x:Q")
    label = at.mark_text(style="reference-label", align="center", baseline="bottom", dy=-3, tooltip=None, aria=False)
    ring = at.mark_point(style="end-mark", filled=False, size=170, strokeWidth=1.8, tooltip=None, aria=False)
    return [at.mark_rule(style="layer-mark", tooltip=None, aria=False), label.encode(y=alt.value(0), text="t:N"),
            ring.encode(y="y:Q")]  # fmt: skip
