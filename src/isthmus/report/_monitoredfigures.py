"""The section of a monitored training: charts that a slider moves from step to step, and courses over all steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import polars as pl

from isthmus.report import _monitoredcharts as charts
from isthmus.report._figures import Budget, Figure, Panel, Section, Slider, Table, unbroken
from isthmus.report._history import History, history, spectra_history
from isthmus.report._monitored import Training, measured_row
from isthmus.report._monitoredcharts import Course
from isthmus.report._monitoredwords import change_answer, peak_answer, remarks, spectra_answer, with_error
from isthmus.report._read import NOT_RECORDED, Curve, RunView, evenly, number, reasons_of, shorten

_RANKS = {
    "participation_ratio_centred": "centred participation ratio", "effective_rank": "effective rank",
    "numerical_rank": "numerical rank", "nuclear_rank": "nuclear rank", "stable_rank": "stable rank",
    "participation_ratio": "participation ratio",
}  # fmt: skip
_RANKS_SHOWN = 3
_HEAT_LAYERS, _HEAT_COLUMNS, _TABLED = 40, 64, 6
_STEPS_TABLED = 24


def _tabled(steps: int, layers: int, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Which steps and layers a table of at most `limit` rows holds: at least eight steps where there are so many."""
    rows = min(layers, max(2, limit // min(steps, 8)))
    return evenly(steps, limit // rows), evenly(layers, rows)


def _table_note(steps: np.ndarray, layers: np.ndarray, of: tuple[int, int], where: str) -> list[str]:
    left = [
        f"{len(kept)} of {whole} {what}" for kept, whole, what in
        ((steps, of[0], "steps"), (layers, of[1], "layers")) if len(kept) < whole
    ]  # fmt: skip
    return [f"The table holds {' and '.join(left)}, evenly spaced; all are in {where}."] if left else []


def _depth_table(past: History, caption: str, limit: int) -> tuple[Table, list[str]]:
    """One row per step and layer, one column per metric."""
    steps, layers = _tabled(len(past.steps), len(past.names), limit)
    cells = [
        (past.names[j], str(past.steps[k]), number(float(past.positions[j])),
         *(with_error(t, k, j, 4) for t in past.tracks))
        for k in steps.tolist() for j in layers.tolist()
        if any(np.isfinite(t.values[k, j]) for t in past.tracks)
    ]  # fmt: skip
    columns = ("layer", "step", "p", *(t.name for t in past.tracks))
    notes = _table_note(steps, layers, (len(past.steps), len(past.names)), "metrics.parquet")
    return Table(caption, columns, cells, named=True), notes


def _course_table(past: History, caption: str, limit: int) -> tuple[Table, list[str]]:
    """One row per layer, one column per step."""
    track = past.tracks[0]
    known = np.flatnonzero(np.isfinite(track.values).any(axis=0))
    steps, layers = evenly(len(past.steps), _STEPS_TABLED), evenly(len(known), limit)
    cells = [
        (past.names[j], number(float(past.positions[j])), *(with_error(track, k, j, 4) for k in steps.tolist()))
        for j in known[layers].tolist()
    ]
    columns = ("layer", "p", *(f"step {past.steps[k]}" for k in steps.tolist()))
    notes = _table_note(steps, layers, (len(past.steps), len(known)), "metrics.parquet")
    return Table(caption, columns, cells, named=True), notes


@dataclasses.dataclass(frozen=True)
class _Maker:
    """What the figures of one run share: its label where there are several, where its files say they are from, and the
    steps that the slider has.
    """

    run: RunView
    suffix: str
    prefix: str
    source: str
    budget: Budget
    steps: np.ndarray

    def figure(self, key: str, title: str, reading: str, said: str) -> Figure:
        answers = [(self.run.label, unbroken(said).replace(" ± ", "\u00a0±\u00a0"))] if said else []
        return Figure(key + self.suffix, title, reading, answers, [], [], [], [], source=self.source)

    def moving(
        self, key: str, title: str, reading: str, past: History, answer: Callable[[History], str], y_title: str, *,
        log: bool,
    ) -> list[Figure]:  # fmt: skip
        """A chart across layers that the slider moves; none where the metrics have no value at all."""
        if not past.tracks:
            return []
        figure = self.figure(key, title, reading, answer(past))
        room = 150 * self.budget.points // (len(self.steps) * len(past.tracks))
        layers = evenly(len(past.names), min(self.budget.points, max(room, 2)))
        what = ", ".join(t.name for t in past.tracks)
        spec = charts.depth_at_step(
            past.at(self.steps, layers), y_title=y_title, log=log,
            description=f"Line chart of {what} across layers, at the step that the slider chooses. "
            f"{' '.join(text for _, text in figure.answers)} The data of all steps are in the table below.",
        )  # fmt: skip
        figure.panels.append(Panel("", spec))
        table, notes = _depth_table(past, self.prefix + title, 2 * self.budget.rows)
        figure.tables.append(table)
        figure.notes.extend([*_drawn(len(layers), len(past.names)), *notes])
        figure.reasons.extend(past.reasons)
        return [figure]

    def course(
        self, key: str, title: str, reading: str, past: History, answer: Callable[[History], str], y_title: str, *,
        log: bool,
    ) -> list[Figure]:  # fmt: skip
        """A chart of the first metric over steps, one line per layer; none where there is no value at all."""
        if not past.tracks:
            return []
        figure = self.figure(key, title, reading, answer(past))
        steps = evenly(len(past.steps), self.budget.points)
        courses = charts.courses_of(past.at(steps, np.arange(len(past.names))))
        picked = evenly(len(courses), max(2, 60 * self.budget.points // len(steps)))
        spec = charts.over_steps(
            [courses[k] for k in picked.tolist()], y_title=y_title, log=log,
            description=f"Line chart of {past.tracks[0].name} over training steps, one line per layer. "
            f"{' '.join(text for _, text in figure.answers)} The data are in the table below.",
        )  # fmt: skip
        figure.panels.append(Panel("", spec))
        table, notes = _course_table(past, self.prefix + title, self.budget.rows)
        figure.tables.append(table)
        figure.notes.extend([*_drawn(len(picked), len(courses)), *notes])
        return [figure]


def _drawn(shown: int, of: int) -> list[str]:
    """The note of a chart that does not show every layer."""
    return [f"Drawn: {shown} of {of} layers, evenly spaced."] if shown < of else []


def _spectra(maker: _Maker) -> list[Figure]:
    """The heat map that the slider moves."""
    kept = [name for name in maker.run.arrays if name.startswith("steps/")]
    centred = any(name.endswith("/spectra/representation_centred") for name in kept) or not kept
    array = "spectra/representation_centred" if centred else "spectra/representation"
    past = spectra_history(maker.run, array)
    known = np.isfinite(past.values).any()
    mean = " The mean over samples is taken out." if centred else ""
    figure = maker.figure(
        "during-spectra", "Which directions does each layer keep, step by step?",
        "One row per layer, the first on top. A row that keeps its colour to the right has many directions of similar "
        f"strength, a row that fades early has few.{mean}", spectra_answer(past) if known else "",
    )  # fmt: skip
    figure.reasons.extend(past.reasons)
    if not known:
        return [figure]
    layers = evenly(len(past.names), _HEAT_LAYERS)
    whole = past.values.shape[2]
    room = 500 * maker.budget.points // (len(maker.steps) * len(layers))
    columns = min(_HEAT_COLUMNS, whole, max(room, 4))
    spec = charts.heat_at_step(
        [past.steps[k] for k in maker.steps.tolist()], [past.names[k] for k in layers.tolist()],
        past.positions[layers], past.values[np.ix_(maker.steps, layers)][:, :, :columns],
        description=f"Heat map of the {columns} largest singular values of {len(layers)} layers, as shares of each "
        f"layer's largest, at the step that the slider chooses. {' '.join(text for _, text in figure.answers)} The "
        "data of all steps are in the table below.",
    )  # fmt: skip
    figure.panels.append(Panel("", spec, beside=True))
    steps, rows = _tabled(len(past.steps), len(past.names), 2 * maker.budget.rows)
    shown = min(_TABLED, whole)
    figure.tables.append(Table(
        maker.prefix + figure.title, ("layer", "step", "p", *(f"s{j + 1}" for j in range(shown))),
        [(past.names[j], str(past.steps[k]), number(float(past.positions[j])),
          *map(number, past.values[k, j, :shown].tolist()))
         for k in steps.tolist() for j in rows.tolist() if np.isfinite(past.values[k, j]).any()],
        named=True,
    ))  # fmt: skip
    figure.notes.extend([
        f"Drawn: the {columns} largest singular values; blank cells have no value.",
        *_drawn(len(layers), len(past.names)),
        *([f"The table holds the {shown} largest values of each layer."] if shown < whole else []),
        *_table_note(steps, rows, (len(past.steps), len(past.names)), "arrays.safetensors"),
    ])  # fmt: skip
    return [figure]


def _losses(run: RunView) -> tuple[list[Curve], list[tuple[str, str]]]:
    """The loss that the training loop noted, by split, and the loss of the samples that are measured."""
    rows = run.whole.filter((pl.col("metric") == "loss") & (pl.col("baseline").fill_null("") == ""))
    rows = rows.filter(pl.col("step").is_not_null())
    splits = [split for split in rows.get_column("split").fill_null("").unique().sort() if split]
    asked = [(f"{'training' if s == 'train' else shorten(s, 40)} loss", pl.col("split") == s) for s in splits]
    curves: list[Curve] = []
    reasons: list[tuple[str, str]] = []
    for name, chosen in [*asked, ("loss on the measured samples", measured_row())]:
        mine = rows.filter(chosen)
        good = mine.filter((pl.col("status") == "ok") & pl.col("value").is_not_null())
        good = good.sort("step", maintain_order=True).unique("step", keep="last", maintain_order=True)
        x, y = good.get_column("step").cast(pl.Float64).to_numpy(), good.get_column("value").to_numpy()
        why = reasons_of(mine) if mine.height else (NOT_RECORDED,)
        curves.append(Curve(name, "epoch", good.get_column("step").to_numpy(), x, y, np.full(len(y), np.nan), why))
        if mine.height and why:
            reasons.append((name, "; ".join(why)))
    return [curve for curve in curves if len(curve)], reasons


def _loss_figure(maker: _Maker) -> list[Figure]:
    curves, reasons = _losses(maker.run)
    if not any(len(curve) > 1 for curve in curves):  # of one step it is among the facts
        return []
    said = " ".join(
        f"The {c.name} goes from {number(float(c.y[0]), 3)} at step {number(float(c.x[0]))} to "
        f"{number(float(c.y[-1]), 3)} at step {number(float(c.x[-1]))}."
        for c in curves if len(c) > 1
    )  # fmt: skip
    figure = maker.figure(
        "loss-by-step", "What did the loss do meanwhile?",
        "The axis of steps is logarithmic and begins at the first step that was recorded.", said,
    )  # fmt: skip
    drawn = [c.thinned(maker.budget.points) for c in curves]
    spec = charts.over_steps(
        [Course(c.name, c.x, c.y, c.stderr) for c in drawn], y_title="loss", log=True,
        description=f"Line chart of the loss over training steps. {said} The data are in the table below.",
    )  # fmt: skip
    figure.panels.append(Panel("", spec))
    if any(len(few) < len(all_) for few, all_ in zip(drawn, curves, strict=True)):
        figure.notes.append(
            f"Drawn: about {maker.budget.points} of {max(map(len, curves))} values, evenly spaced, with the first, "
            "last, smallest and largest. All of them are in metrics.parquet."
        )
    values = [dict(zip(c.x.tolist(), c.y.tolist(), strict=True)) for c in curves]
    keys = sorted({step for column in values for step in column})
    tabled = evenly(len(keys), maker.budget.rows)
    rows = [(number(keys[k]), *(number(column.get(keys[k])) for column in values)) for k in tabled.tolist()]
    figure.tables.append(Table(maker.prefix + figure.title, ("step", *(c.name for c in curves)), rows))
    figure.reasons.extend(reasons)
    if len(tabled) < len(keys):
        figure.notes.append(f"The table holds {len(tabled)} of {len(keys)} steps, evenly spaced.")
    return [figure]


def _ranks(run: RunView) -> History:
    """The first few ranks that the run has: they weigh weak directions differently."""
    held = set(run.whole.filter((pl.col("status") == "ok") & measured_row()).get_column("metric").unique())
    shown = [name for name in _RANKS if name in held][:_RANKS_SHOWN]
    return history(run, {name: _RANKS[name] for name in shown}, "representation")


def during_training(run: RunView, training: Training, budget: Budget, *, order: int, several: bool) -> Section:
    """The section of one monitored training.

    Args:
        run: the run.
        training: what it says of its steps.
        budget: how much a page may hold.
        order: number of the run on the page.
        several: whether the page has several runs.
    """
    suffix = f"-{order + 1}" if several else ""
    prefix = f"{run.label}: " if several else ""
    steps = evenly(len(training.steps), max(2, budget.points // 4)) if training.steps else np.empty(0, np.int64)
    source = f"{prefix}step {training.last}, the last of {len(training.steps)} measured steps"
    maker = _Maker(run, suffix, prefix, source[0].upper() + source[1:], budget, steps)
    over = dataclasses.replace(maker, source=prefix.removesuffix(": "))
    title = f"During training: {run.label}" if several else "During training"
    said = [(run.label, text) for text in remarks(training)]
    if len(training.steps) < 2:
        return Section(f"during{suffix}", title, "How the layers came to be what they are.", said, _loss_figure(over))
    ranks, moves = _ranks(run), history(run, {"relative_move": "relative move"},
                                        "step" if run.layers is None else "representation")  # fmt: skip
    costs = history(run, {"cost_of_identity": "cost of identity"}, "representation",
                    gammas=run.gammas("cost_of_identity")[:_RANKS_SHOWN])  # fmt: skip
    aligned = history(run, {"alignment": "alignment"}, "aligned")
    moving = [
        *_spectra(maker),
        *maker.moving(
            "during-ranks", "How many dimensions do the data take up, step by step?",
            "Ways to count the directions in which the samples differ. Faint lines are the last step; the axes are the "
            "same at every step.", ranks, change_answer, "dimensions", log=True,
        ),
        *maker.moving(
            "during-cost", "How many dimensions would it cost to pass each layer's data on, step by step?",
            "The cost of identity: dimensions that a layer would have to keep alive in order to change nothing. Faint "
            "lines are the last step.", costs, change_answer, "dimensions", log=True,
        ),
        *maker.moving(
            "during-alignment", "Which layers align with the targets, step by step?",
            "How much of each layer's tangent kernel points along the targets; bars are one standard error. The faint "
            "line is the last step.", aligned, peak_answer, "alignment", log=False,
        ),
    ]  # fmt: skip
    fixed = [
        *over.course(
            "ranks-by-step", "Which layers gained dimensions during training, and which lost some?",
            "One line per layer, over training steps; the axis of steps is logarithmic and holds step 0, too.",
            ranks, change_answer, ranks.tracks[0].name if ranks.tracks else "", log=True,
        ),
        *over.course(
            "moves-by-step", "Which layers took up work, and which became idle?",
            "How far each layer moves the representation, as a share of its size.", moves, change_answer,
            "relative move", log=True,
        ),
        *over.course(
            "alignment-by-step", "When did each layer align with the targets?",
            "Alignment of each layer's tangent kernel with the targets, over training steps; bars are one standard "
            "error where the layers are few.", aligned, change_answer, "alignment", log=False,
        ),
        *_loss_figure(over),
    ]  # fmt: skip
    note = (
        f"The slider has {len(steps)} of {len(training.steps)} measured steps, evenly spaced; metrics.parquet has all."
        if len(steps) < len(training.steps)
        else ""
    )
    slider = Slider(f"during{suffix}-at", tuple(training.steps[k] for k in steps.tolist()), moving, note)
    return Section(f"during{suffix}", title, "How the layers came to be what they are.", said, fixed, slider=slider)
