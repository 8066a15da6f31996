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
class Choice:
    """One list to choose from: a parameter of charts, its label, what there is, and what is chosen first."""

    param: str
    label: str
    options: tuple[str, ...]
    first: int


@dataclasses.dataclass(frozen=True)
class Chooser:
    """Lists to choose from, and the figures whose charts have their parameters."""

    key: str
    choices: tuple[Choice, ...]
    figures: list[Figure]


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading, what the section is about, remarks to read it with, its figures, and the tables of its layers.

    `short` is the heading as the list of sections has it; `paper` is the figure of a paper that the section shows;
    `slider` moves figures that come before the others, and so does `chooser` figures that come after them.
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
    chooser: Chooser | None = None

    @property
    def every_figure(self) -> list[Figure]:
        """All figures in the order of the page."""
        chosen = self.chooser.figures if self.chooser is not None else []
        return [*(self.slider.figures if self.slider is not None else []), *self.figures, *chosen]


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
