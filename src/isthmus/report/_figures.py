"""What every chart of the page is made of: a question, an answer, how to read it, specifications, and a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from isthmus.report import _charts
from isthmus.report._charts import Along
from isthmus.report._layertables import LayerTable, SkippedTable
from isthmus.report._read import Curve, RunView, evenly, number
from isthmus.report._reproduced import PaperFigure

_TALL, _HIGH = 900, 420
_TICK_LABELS = 6


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much of the data a page may hold: rows per curve and per table."""

    points: int = 400
    rows: int = 400

    def halved(self) -> Budget:
        """Half of both."""
        return Budget(self.points // 2, self.rows // 2)


@dataclasses.dataclass(frozen=True)
class Table:
    """Data behind a chart, ready to print: the first column heads its row; `named` where that is a layer's name."""

    caption: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    named: bool = False


@dataclasses.dataclass(frozen=True)
class Panel:
    """One chart; `label` names its run where a figure has one panel per run.

    Attributes:
        label: see above.
        spec: the chart.
        square: one unit is equally long on both axes.
        beside: several of these stand beside each other, across the page, where there is room.
    """

    label: str
    spec: dict[str, Any]
    square: bool = False
    beside: bool = False

    @property
    def tall(self) -> bool:
        """Whether the chart is so high that the page shows it in a window of its own that scrolls."""
        return self.spec["height"] > _TALL


@dataclasses.dataclass(frozen=True)
class Figure:
    """One question that a chart answers.

    Attributes:
        key: name of its files and anchor.
        title: the question.
        reading: how to read the chart, one or two sentences.
        answers: what each run shows, as (run, sentence).
        panels: the charts; none where there is nothing to draw.
        tables: the data behind the charts.
        reasons: what is not shown and why, as (what, reason).
        notes: what was thinned or left out.
        across: the figure goes across the page.
        source: what the figure is a part of, which its files say below the title.
    """

    key: str
    title: str
    reading: str
    answers: list[tuple[str, str]]
    panels: list[Panel]
    tables: list[Table]
    reasons: list[tuple[str, str]]
    notes: list[str]
    across: bool = False
    source: str = ""

    @property
    def wide(self) -> bool:
        """Whether the figure goes across the page: it was asked to, or its charts are many or high."""
        heights = [panel.spec["height"] for panel in self.panels if panel.beside]
        return self.across or len(heights) > 1 or any(height > _HIGH for height in heights)


@dataclasses.dataclass(frozen=True)
class Slider:
    """A slider over the measured steps of a training, and the figures that it moves.

    Attributes:
        key: identifier in the page.
        steps: measured steps, ascending; at least two.
        figures: their charts have a parameter `at`, the number of a step.
        note: what was left out to fit.
    """

    key: str
    steps: tuple[int, ...]
    figures: list[Figure]
    note: str = ""

    @property
    def ticks(self) -> list[tuple[str, bool]]:
        """A tick for each step: its label, empty for most, and whether a narrow page leaves the label out."""
        labelled = evenly(len(self.steps), _TICK_LABELS).tolist()
        left_out = labelled[1:-1:2]
        return [(str(step) if k in labelled else "", k in left_out) for k, step in enumerate(self.steps)]


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading, what the section is about, remarks to read it with, its figures, and the tables of its layers.

    `short` is the heading as the list of sections has it; `paper` is the figure of a paper that the section shows;
    `slider` moves figures that come before the others.
    """

    key: str
    title: str
    intro: str
    remarks: list[tuple[str, str]]
    figures: list[Figure]
    layers: list[LayerTable] = dataclasses.field(default_factory=list["LayerTable"])
    skipped: list[SkippedTable] = dataclasses.field(default_factory=list["SkippedTable"])
    short: str = ""
    paper: PaperFigure | None = None
    slider: Slider | None = None

    @property
    def every_figure(self) -> list[Figure]:
        """All figures in the order of the page."""
        return [*(self.slider.figures if self.slider is not None else []), *self.figures]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a figure of curves is made.

    Attributes:
        key: see `Figure`.
        title: see `Figure`.
        reading: see `Figure`.
        y_title: title of the y axis.
        curves: the curves of one run.
        answer: what one run shows, or nothing.
        overlay: several runs share one chart (their first curve each) instead of having one each.
        log: logarithmic y axis where a few values dwarf the others.
        zero: y axis starts at 0.
        rules: horizontal reference lines.
        along: what x is.
        draw: makes the charts, where it is not done in the usual way.
        across: see `Figure`.
    """

    key: str
    title: str
    reading: str
    y_title: str
    curves: Callable[[RunView], list[Curve]]
    answer: Callable[[RunView, Mapping[str, Curve]], str] = lambda _run, _curves: ""
    overlay: bool = False
    log: bool = False
    zero: bool = False
    rules: Callable[[RunView], list[tuple[float, str]]] = lambda _run: []
    along: Along = "depth"
    draw: Callable[[Recipe, Sequence[Drawn], bool], list[Panel]] | None = None
    across: bool = False


Drawn = tuple[RunView, list[Curve], str]
"""A run, its curves as drawn, and what they say."""


def unbroken(text: str) -> str:
    """`text` with no line break inside `p = 0.5` or `83 %`."""
    return text.replace(" = ", "\u00a0=\u00a0").replace(" %", "\u00a0%")


def span_of(curves: Sequence[Curve]) -> tuple[float, float]:
    values = np.concatenate([c.y for c in curves])
    return float(values.min()), float(values.max())


def _by_reason(reasons: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Names that lack the same thing for the same reason, together."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons:
        names.setdefault(reason, []).append(name)
    return [(", ".join(found), reason) for reason, found in names.items()]


def _thin(curves: Sequence[Curve], limit: int) -> tuple[list[Curve], list[str]]:
    longest = max((len(c) for c in curves), default=0)
    if longest <= limit:
        return list(curves), []
    return [c.thinned(limit) for c in curves], [
        f"Drawn: about {limit} of {longest} rows per curve, evenly spaced, with the first, last, smallest and largest. "
        "All of them are in metrics.parquet."
    ]


def curve_table(curves: Sequence[Curve], caption: str, where: str, limit: int) -> tuple[Table, list[str]]:
    """The values of several curves side by side, one row per place."""
    shown: list[Curve] = [c for c in curves if len(c)]
    places = [list(zip(c.x.tolist(), [c.kind] * len(c), c.index.tolist(), strict=True)) for c in shown]
    keys = sorted({place for column in places for place in column})
    notes = [f"The table holds {limit} of {len(keys)} rows, evenly spaced."] if len(keys) > limit else []
    found = [dict(zip(column, range(len(column)), strict=True)) for column in places]

    def cell(column: int, place: tuple[float, str, int]) -> str:
        row = found[column].get(place)
        if row is None:
            return "—"
        value, error = float(shown[column].y[row]), float(shown[column].stderr[row])
        return number(value) if np.isnan(error) else f"{number(value)} ± {number(error, 2)}"

    named = {place: c.places[k] for c, column in zip(shown, places, strict=True) if c.places
             for k, place in enumerate(column)}  # fmt: skip
    rows: list[tuple[str, ...]] = []
    for place in (keys[k] for k in evenly(len(keys), limit).tolist()):
        x, kind, i = place
        head = (number(x),) if kind == "epoch" else (named.get(place, f"{kind} {i}"), number(x))
        rows.append((*head, *(cell(column, place) for column in range(len(shown)))))
    names = ("epoch",) if keys and keys[0][1] == "epoch" else ("place", where)
    return Table(caption, (*names, *(c.name for c in shown)), rows, bool(named)), notes


def curve_figure(recipe: Recipe, runs: Sequence[RunView], budget: Budget) -> Figure:
    """A figure of curves for one run, or for several side by side."""
    tables: list[Table] = []
    notes: list[str] = []
    reasons: list[tuple[str, str]] = []
    answers: list[tuple[str, str]] = []
    drawn: list[Drawn] = []
    several = len(runs) > 1
    for run in runs:
        prefix = f"{run.label}: " if several else ""
        found = recipe.curves(run)
        reasons += [(prefix + c.name, "; ".join(c.reasons)) for c in found if c.reasons]
        filled = [c for c in found if len(c)]
        if not filled:
            continue
        said = unbroken(recipe.answer(run, {c.name: c for c in filled}))
        if said:
            answers.append((run.label, said))
        table, table_notes = curve_table(filled, prefix + recipe.title, _charts.SYMBOLS[recipe.along], budget.rows)
        tables.append(table)
        thinned, drawn_notes = _thin(filled, budget.points)
        notes += [prefix + note for note in (*drawn_notes, *table_notes)]
        drawn.append((run, thinned, said))
    panels = (recipe.draw or _panels)(recipe, drawn, several) if drawn else []
    return Figure(recipe.key, recipe.title, recipe.reading, answers, panels, tables, _by_reason(reasons), notes,
                  recipe.across)  # fmt: skip


def _panels(recipe: Recipe, drawn: Sequence[Drawn], several: bool) -> list[Panel]:
    everything = [curve for _, curves, _ in drawn for curve in curves]
    span = span_of(everything)
    scale = _charts.scale_kind(np.concatenate([c.y for c in everything])) if recipe.log else "linear"
    if recipe.overlay and several:
        charts = [(None, "", [curves[0].named(run.label) for run, curves, _ in drawn],
                   " ".join(f"{run.label}: {said}" for run, _, said in drawn))]  # fmt: skip
        span = span_of(charts[0][2])
    else:
        charts = [(run, run.label if several else "", curves, said) for run, curves, said in drawn]
    panels: list[Panel] = []
    for run, label, curves, said in charts:
        spec = _charts.lines(
            curves, y_title=recipe.y_title, span=span, along=recipe.along, scale=scale, zero=recipe.zero,
            layers=run.positions if run is not None and recipe.along == "depth" else None,
            rules=recipe.rules(run) if run is not None else (),
            description=f"Line chart of {', '.join(c.name for c in curves)}. {said} The data are in the table below.",
        )  # fmt: skip
        panels.append(Panel(label, spec))
    return panels


_SHOWN_VALUES = 20


def _spectrum(run: RunView, name: str) -> tuple[np.ndarray, np.ndarray, int] | str:
    """Depths, spectra and the first layer's number; or the reason why there are none."""
    found = run.arrays.get(name)
    nodes = run.positions
    if run.layers is not None:
        return "the layers of this run have names; its spectra are in the heat maps above"
    if found is None or found.size == 0:
        return f"arrays.safetensors holds no {name}"
    if found.ndim != 2 or not np.isfinite(found).all():
        return f"{name} is not a table of finite numbers"
    if found.shape[0] == len(nodes):
        return nodes, found.astype(np.float64), 0
    if found.shape[0] == len(nodes) - 1:
        return (nodes[1:] + nodes[:-1]) / 2, found.astype(np.float64), 1
    return f"{name} has {found.shape[0]} rows, which fits neither the layers nor the representations"


def _strong(row: np.ndarray) -> int:
    return int((row > 0.1 * row.max()).sum()) if row.max() > 0 else 0


def spectrum_figure(
    key: str, array: str, title: str, reading: str, y_title: str, kind: str, runs: Sequence[RunView], budget: Budget
) -> Figure:
    """Singular values against depth: one line each, and those of the bottleneck in front."""
    figure = Figure(key, title, reading, [], [], [], [], [])
    spectra = [(run, _spectrum(run, array)) for run in runs]
    tops = np.concatenate([[0.0], *(found[1].max(axis=1) for _, found in spectra if not isinstance(found, str))])
    top = float(tops.max()) or 1.0
    log = bool((tops[1:] > 0).all()) and top > 30 * float(tops[1:].min(initial=top))
    for run, found in spectra:
        prefix = f"{run.label}: " if len(runs) > 1 else ""
        if isinstance(found, str):
            figure.reasons.append((prefix + y_title, found))
            continue
        p, values, first = found
        middle = int(np.argmin(np.abs(p - 0.5)))
        said = (
            f"Of {values.shape[1]} singular values, {_strong(values[0])} exceed a tenth of the largest at p = "
            f"{number(p[0], 2)}, {_strong(values[middle])} at p = {number(p[middle], 2)} and {_strong(values[-1])} at "
            f"p = {number(p[-1], 2)}."
        )
        figure.answers.append((run.label, unbroken(said)))
        columns = min(_SHOWN_VALUES, values.shape[1])
        picked = evenly(len(p), max(budget.points // 2, 8))
        if columns < values.shape[1]:
            figure.notes.append(f"{prefix}Only the {columns} largest of {values.shape[1]} singular values are shown.")
        if len(picked) < len(p):
            figure.notes.append(f"{prefix}Drawn: {len(picked)} of {len(p)} depths, evenly spaced.")
        shown = values[:, :columns]
        spec = _charts.spectra(
            first + picked, p[picked], shown[picked], kept=run.bottleneck, y_title=y_title, kind=kind,
            top=top, log=log, layers=run.positions,
            description=f"Line chart of the {columns} largest singular values against depth. {said}",
        )  # fmt: skip
        figure.panels.append(Panel(run.label if prefix else "", spec))
        tabled = evenly(len(p), max(budget.rows // 4, 8))
        figure.tables.append(Table(
            prefix + title, ("place", "p", *(f"s{j + 1}" for j in range(columns))),
            [(f"{kind} {first + k}", number(float(p[k])), *map(number, shown[k].tolist())) for k in tabled.tolist()],
        ))  # fmt: skip
        if len(tabled) < len(p):
            figure.notes.append(f"{prefix}The table holds {len(tabled)} of {len(p)} depths, evenly spaced.")
    return figure


def plane_figure(runs: Sequence[RunView], budget: Budget) -> Figure:
    """The path projected on its two principal directions; with several runs, one plane each."""
    figure = Figure(
        "path", "What shape does the path have?",
        "Every dot is the whole representation at one depth, projected on the two directions in which it moves most; "
        "one unit is equally long on both axes. Wide gaps between dots are large moves.",
        [], [], [], [], [],
    )  # fmt: skip
    for run in runs:
        prefix = f"{run.label}: " if len(runs) > 1 else ""
        points, nodes = run.arrays.get("path/projection"), run.positions
        if points is None or points.shape != (len(nodes), 2) or not len(nodes) or not np.isfinite(points).all():
            reason = "arrays.safetensors holds no path/projection that fits the layers"
            figure.reasons.append((prefix + "projection of the path", reason))
            continue
        said = ""
        explained = run.arrays.get("path/projection_explained")
        if explained is not None and explained.shape == (2,) and 0 <= float(explained.sum()) <= 1 + 1e-9:
            said = (
                f"The two directions hold {100 * float(explained.sum()):.0f} % of the path's variance "
                f"({100 * float(explained[0]):.0f} % and {100 * float(explained[1]):.0f} %)."
            )
            figure.answers.append((run.label, unbroken(said)))
        picked = evenly(len(nodes), budget.points)
        if len(picked) < len(nodes):
            figure.notes.append(f"{prefix}Drawn: {len(picked)} of {len(nodes)} depths, evenly spaced.")
        spec = _charts.path_plane(
            picked,
            nodes[picked],
            points[picked].astype(np.float64),
            description=f"Path of the representation in a plane, from input to output. {said}",
        )
        figure.panels.append(Panel(run.label if prefix else "", spec, square=True))
        tabled = evenly(len(nodes), budget.rows)
        rows = [
            (f"representation {k}", number(float(nodes[k])), *map(number, points[k].tolist())) for k in tabled.tolist()
        ]
        figure.tables.append(Table(prefix + figure.title, ("place", "p", "first", "second"), rows))
    return figure
