"""Colours of the page and its charts, light and dark: one source for the style sheet, the charts and the files.

Series colours follow Okabe and Ito's palette, which readers with any colour vision can tell apart, darkened or
lightened until each has a contrast of at least 3 : 1 with its background; dashes say the same without colour.
"""

from __future__ import annotations

from typing import Any

THEMES: dict[str, dict[str, str]] = {
    "light": {
        "page": "#fbfbf9",
        "surface": "#ffffff",
        "text": "#1d232b",
        "muted": "#586270",
        "line": "#dcdfe3",
        "accent": "#0b5f9e",
        "caution": "#8a4b00",
        "caution-surface": "#fff6e6",
    },
    "dark": {
        "page": "#14181d",
        "surface": "#1a1f26",
        "text": "#e6e9ed",
        "muted": "#a0aab7",
        "line": "#343c47",
        "accent": "#74bdf5",
        "caution": "#f3bd6a",
        "caution-surface": "#2b2417",
    },
}
"""Named colours of each theme; the style sheet sees them as `--name`."""

SERIES: dict[str, list[str]] = {
    "light": ["#0072b2", "#c65300", "#008561", "#a8477f", "#7a6a00", "#5a4fcf", "#4a4f57", "#b3261e"],
    "dark": ["#56b4e9", "#f0954a", "#2fc79b", "#e39cc4", "#e8d44d", "#b3a7ff", "#d5dae0", "#ff8f87"],
}
"""Colours of the first, second, … series of a chart."""

_RAMP = {"light": ["#3b1f8f", "#b0347f", "#e0692b"], "dark": ["#9a8cff", "#ec7fb6", "#ffc46b"]}
_HEAT = {"light": ["#e9eef3", "#8db8d8", "#2f7fb5", "#0b4a80", "#0a1f3d"],
         "dark": ["#262e38", "#2c5f8a", "#4b97c9", "#93cff5", "#f4fbff"]}  # fmt: skip
_REST = {"light": "#8a939f", "dark": "#7c8794"}

DASHES: list[list[int]] = [[1, 0], [7, 3], [2, 2], [10, 3, 2, 3], [5, 5], [1, 4], [12, 4], [3, 6]]
"""Dashes of the first, second, … series: the second way to tell them apart."""

SHAPES: list[str] = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right"]
"""Shapes of the points of the first, second, … series, where dashes say something else."""


def chart_config(theme: str, font: str = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif") -> dict[str, Any]:
    """Vega-Lite configuration of a theme. Specifications hold no colours: they all come from here."""
    colours = THEMES[theme]
    axis = {
        "domainColor": colours["muted"], "tickColor": colours["muted"], "gridColor": colours["line"],
        "gridOpacity": 0.75, "labelColor": colours["muted"], "titleColor": colours["text"], "labelFontSize": 12,
        "titleFontSize": 13, "titleFontWeight": "normal", "titlePadding": 8, "labelPadding": 5, "tickSize": 4,
    }  # fmt: skip
    return {
        "font": font,
        "background": colours["surface"],
        "view": {"stroke": None},
        "axis": axis,
        "axisX": {"grid": False},
        "axisY": {"tickCount": 5, "domain": False, "ticks": False},
        "legend": {
            "labelColor": colours["text"], "titleColor": colours["muted"], "labelFontSize": 12, "titleFontSize": 12,
            "titleFontWeight": "normal", "symbolStrokeWidth": 2.2, "symbolSize": 420, "columnPadding": 18,
            "rowPadding": 4, "labelLimit": 300, "offset": 12,
        },
        "title": {"color": colours["text"], "fontSize": 15, "fontWeight": 600, "anchor": "start", "offset": 14,
                  "subtitleColor": colours["muted"], "subtitleFontSize": 12, "subtitlePadding": 5},
        "line": {"strokeWidth": 2.1, "strokeCap": "round", "strokeJoin": "round"},
        "range": {"category": SERIES[theme], "ordinal": [SERIES[theme][0], _REST[theme]], "ramp": _RAMP[theme],
                  "heatmap": _HEAT[theme]},
        "style": {
            "layer-mark": {"color": colours["line"], "strokeWidth": 1},
            "reference": {"color": colours["text"], "strokeWidth": 1.2, "strokeDash": [4, 4]},
            "reference-label": {"color": colours["text"], "fontSize": 12},
            "thread": {"color": colours["muted"], "strokeWidth": 1.2},
            "step-title": {"fill": colours["text"], "fontSize": 13, "fontWeight": 600},
            "end-mark": {"color": colours["text"], "strokeWidth": 2, "size": 170},
        },
    }  # fmt: skip


def style_variables() -> str:
    """The colours as CSS custom properties: by the reader's preference, or by the page's button."""

    def block(theme: str) -> str:
        return "".join(f"--{name}:{value};" for name, value in THEMES[theme].items()) + f"color-scheme:{theme};"

    return (
        f":root{{{block('light')}}}\n"
        f"@media (prefers-color-scheme: dark){{:root{{{block('dark')}}}}}\n"
        f':root[data-theme="light"]{{{block("light")}}}\n'
        f':root[data-theme="dark"]{{{block("dark")}}}\n'
    )
