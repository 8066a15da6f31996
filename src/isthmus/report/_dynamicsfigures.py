"""The sections of the page of a run's dynamics: fits, curves to look at, rates, regime and final structure."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from isthmus.report import _charts
from isthmus.report import _dynamicscharts as charts
from isthmus.report._depthcharts import bars
from isthmus.report._dynamics import Cells, Dynamics, by_layer, cells, courses, structures
from isthmus.report._figures import Budget, Choice, Chooser, Figure, Panel, Section, Table, curve_table, unbroken
from isthmus.report._layers import distinct
from isthmus.report._read import NOT_RECORDED, Curve, RunView, evenly, number

_PAIRS, _SAMPLES, _TIMES = 32, 24, 64
_TABLE_TIMES = 8
_AT_START = "initial distances"
_CURVES = (("h", "h, of the representations"), ("y", "y, of the predictions"), ("v", "v = y − dy·dy*"))


def dynamics_sections(run: RunView, dynamics: Dynamics, budget: Budget) -> list[Section]:
    """Every section of the page."""
    fits = cells(run.frame, dynamics, "two_point_r_squared")
    return [
        Section("fits", "Which layers the theory describes", "Two effective learning rates, one of what comes before a "
                "layer and one of what comes after it, are fitted to every pair of samples at every layer.",
                [(run.label, text) for text in dynamics.problems],
                [_share(run, dynamics, budget), _map(run, dynamics, fits, budget)]),
        _courses(run, dynamics, fits, budget),
        Section("rates", "Rates and regime", "What is left of the architecture: two numbers at each layer. Dots are "
                "medians over the pairs that fit well, bars one standard error.", [],
                [_rates(run, dynamics, budget), _laziness(run, dynamics, budget)]),
        _structure(run, dynamics, budget),
    ]  # fmt: skip


def _names(dynamics: Dynamics) -> list[str]:
    return distinct(dynamics.layers)


def _curve(run: RunView, dynamics: Dynamics, metric: str, name: str, baseline: str = "") -> Curve:
    found = by_layer(run.frame, dynamics, metric, baseline)
    known = np.flatnonzero(np.isfinite(found.values))
    last = max(len(dynamics.layers) - 1, 1)
    names = _names(dynamics)
    reasons = found.reasons or (() if len(known) else (NOT_RECORDED,))
    return Curve(name, "layer", known, known / last, found.values[known], found.errors[known], reasons,
                 tuple(names[k] for k in known.tolist()))  # fmt: skip


def _figure(key: str, title: str, reading: str, run: RunView, said: str = "", *, across: bool = False) -> Figure:
    answers = [(run.label, unbroken(said).replace(" ± ", "\u00a0±\u00a0"))] if said else []
    return Figure(key, title, reading, answers, [], [], [], [], across=across)


def _add_curves(figure: Figure, curves: Sequence[Curve], budget: Budget) -> list[Curve]:
    """The curves as they are drawn; their table, reasons and notes go into the figure."""
    figure.reasons.extend((c.name, "; ".join(c.reasons)) for c in curves if c.reasons)
    filled = [c for c in curves if len(c)]
    if not filled:
        return []
    table, notes = curve_table(filled, figure.title, "p", budget.rows)
    figure.tables.append(table)
    figure.notes.extend(notes)
    drawn = [c.thinned(budget.points) for c in filled]
    if any(len(few) < len(all_) for few, all_ in zip(drawn, filled, strict=True)):
        figure.notes.append(f"Drawn: about {budget.points} layers, evenly spaced.")
    return drawn


def _share(run: RunView, dynamics: Dynamics, budget: Budget) -> Figure:
    curve = _curve(run, dynamics, "two_point_share", "share of pairs described")
    said = ""
    if len(curve):
        good = int((curve.y >= 0.5).sum())
        said = f"At {good} of {len(curve)} layers, at least half of the pairs are described."
    figure = _figure(
        "described", "How many pairs are described at each layer?",
        "A pair is described where R² is at least 0.9 for h, y and v, and where the second half of its way, predicted "
        "from the first, is missed by at most a tenth of the change.", run, said,
    )  # fmt: skip
    drawn = _add_curves(figure, [curve], budget)
    if drawn:
        spec = bars(drawn, x_title="share of pairs described", top=1.0,
                    description=f"Bars: share of pairs described, by layer. {said} The data are in the table "
                    "below.")  # fmt: skip
        figure.panels.append(Panel("", spec))
    return figure


def _map(run: RunView, dynamics: Dynamics, fits: Cells, budget: Budget) -> Figure:
    known = fits.values[np.isfinite(fits.values)]
    said = (
        f"{int((known >= 0.9).sum())} of {known.size} fits have R² of at least 0.9 in all three curves; the median is "
        f"{number(float(np.median(known)), 3)}."
        if known.size
        else ""
    )
    figure = _figure(
        "fit-map", "How well do two numbers fit each pair?",
        "R² of the worst of the three curves; cells of 0 or less have the lightest colour of the light theme (the "
        "darkest of the dark one), blank cells no fit.", run, said,
    )  # fmt: skip
    counts: dict[str, int] = {}
    for reason in fits.reasons.values():
        counts[reason] = counts.get(reason, 0) + 1
    figure.reasons.extend(
        (f"{count} fits", reason) for reason, count in sorted(counts.items(), key=lambda x: -x[1])[:6]
    )
    if not known.size:
        return figure
    layers, pairs = evenly(len(dynamics.layers), budget.points // 4), evenly(len(dynamics.pairs), _PAIRS)
    errors = cells(run.frame, dynamics, "two_point_error").values
    some = np.ix_(layers, pairs)
    spec = charts.fits_map(
        fits.values[some], errors[some], [dynamics.layers[k] for k in layers.tolist()],
        [dynamics.pairs[j] for j in pairs.tolist()],
        description=f"Heat map of R² by layer and pair. {said} The data are in the table below.",
    )  # fmt: skip
    figure.panels.append(Panel("", spec))
    figure.notes.extend(
        _left_out(layers, len(dynamics.layers), "layers") + _left_out(pairs, len(dynamics.pairs), "pairs")
    )
    table, notes = _table_of_fits(run, dynamics, fits, errors, budget)
    figure.tables.append(table)
    figure.notes.extend(notes)
    return figure


def _left_out(shown: np.ndarray, of: int, what: str) -> list[str]:
    return [f"Drawn: {len(shown)} of {of} {what}, evenly spaced."] if len(shown) < of else []


def _table_of_fits(
    run: RunView, dynamics: Dynamics, fits: Cells, errors: np.ndarray, budget: Budget
) -> tuple[Table, list[str]]:
    names = _names(dynamics)
    rates = [cells(run.frame, dynamics, metric) for metric in ("eta_h", "eta_y")]
    laziness = cells(run.frame, dynamics, "laziness").values
    places = [(k, j) for k in range(len(dynamics.layers)) for j in range(len(dynamics.pairs))]
    shown = [places[i] for i in evenly(len(places), 2 * budget.rows).tolist()] if places else []
    rows = [
        (names[k], dynamics.pairs[j], number(float(fits.values[k, j])), number(float(errors[k, j]), 3),
         *(_with_error(float(rate.values[k, j]), float(rate.errors[k, j])) for rate in rates),
         number(float(laziness[k, j]), 3), dynamics.kinds[j], fits.reasons.get((k, j), ""))
        for k, j in shown
    ]  # fmt: skip
    columns = ("layer", "pair", "R²", "error of the second half", "η_h", "η_y", "laziness", "kind", "why not")
    notes = [f"The table holds {len(shown)} of {len(places)} fits, evenly spaced."] if len(shown) < len(places) else []
    return Table("Fits of every pair at every layer", columns, rows, named=True), notes


def _with_error(value: float, error: float) -> str:
    return number(value) if np.isnan(error) else f"{number(value)} ± {number(error, 2)}"


def _first_choice(run: RunView, dynamics: Dynamics, fits: Cells) -> tuple[int, int]:
    """The layer at which most pairs are described, and there a pair that is fitted neither best nor worst."""
    share = by_layer(run.frame, dynamics, "two_point_share").values
    score = np.nan_to_num(share, nan=-1.0) + 1e-3 * np.nan_to_num(np.nanmedian(
        np.where(np.isfinite(fits.values), np.clip(fits.values, -1, 1), -1.0), axis=1), nan=-1.0)  # fmt: skip
    layer = int(np.argmax(score))
    known = np.flatnonzero(np.isfinite(fits.values[layer]))
    order = known[np.argsort(fits.values[layer, known])]
    return layer, int(order[len(order) // 2]) if len(order) else 0


def _courses(run: RunView, dynamics: Dynamics, fits: Cells, budget: Budget) -> Section:
    title = "Measured and predicted curves"
    intro = "Choose a layer and a pair: what was measured, and what two numbers make of it."
    found = courses(run.arrays, dynamics) if dynamics.layers and dynamics.pairs else "no layers or pairs are known"
    figure = _figure(
        "curves", "How does a pair come apart, and what does the theory say?",
        "Squared distances of the two representations (h) and of the two predictions (y), and v, which is 0 where the "
        "predictions differ as the targets do. The dashed line is fitted to the first half of the pair's way only.",
        run, across=True,
    )  # fmt: skip
    if isinstance(found, str):
        figure.reasons.append(("curves", found))
        return Section("curves", title, intro, [], [figure])
    pairs = evenly(len(dynamics.pairs), _PAIRS)
    layers = evenly(len(dynamics.layers), max(2, 2 * budget.points // len(pairs)))
    first = _first_choice(run, dynamics, fits)
    at = int(np.argmin(np.abs(layers - first[0]))), int(np.argmin(np.abs(pairs - first[1])))
    room = max(12, 80 * budget.points // (len(layers) * len(pairs)))
    times = evenly(len(found["times"]), min(_TIMES, room))
    some = np.ix_(layers, pairs, np.arange(3), times)
    names = [_names(dynamics)[k] for k in layers.tolist()]
    x_title = "training step" if dynamics.unit == "step" else dynamics.unit
    for c, (name, label) in enumerate(_CURVES):
        parts = {key: found[key][some][:, :, c] for key in ("measured", "fitted", "predicted")}
        spec = charts.curves_at(
            label, found["times"][times], parts, layers=names, pairs=[dynamics.pairs[j] for j in pairs.tolist()],
            layer=at[0], pair=at[1], x_title=x_title,
            description=f"Line chart of {name} over time at the layer and pair that are chosen: measured, fitted, and "
            "predicted from the first half. The data are in the table below.",
        )  # fmt: skip
        figure.panels.append(Panel("", spec, beside=True))
    figure.notes.extend(
        _left_out(layers, len(dynamics.layers), "layers") + _left_out(pairs, len(dynamics.pairs), "pairs")
    )
    table, notes = _table_of_curves(found, dynamics, budget)
    figure.tables.append(table)
    figure.notes.extend(notes)
    labels = tuple(_pair_label(dynamics, j) for j in pairs.tolist())
    choices = Choice("layer", "Layer", tuple(names), at[0]), Choice("pair", "Pair", labels, at[1])
    figure = dataclasses.replace(figure, source=f"{names[at[0]]}, pair {dynamics.pairs[pairs[at[1]]]}")
    return Section("curves", title, intro, [], [], chooser=Chooser("curves-at", choices, [figure]))


def _pair_label(dynamics: Dynamics, j: int) -> str:
    kind = dynamics.kinds[j]
    return f"{dynamics.pairs[j]} ({kind})" if kind else dynamics.pairs[j]


def _table_of_curves(found: dict[str, np.ndarray], dynamics: Dynamics, budget: Budget) -> tuple[Table, list[str]]:
    """Some times of every pair at every layer, measured and fitted."""
    names, total = _names(dynamics), len(dynamics.layers) * len(dynamics.pairs)
    times = evenly(len(found["times"]), _TABLE_TIMES)
    places = evenly(total, max(2, 2 * budget.rows // len(times)))
    rows = [
        (names[place // len(dynamics.pairs)], dynamics.pairs[place % len(dynamics.pairs)],
         number(float(found["times"][t]), 6),
         *(number(float(found[key].reshape(total, 3, -1)[place, c, t])) for c in range(3)
           for key in ("measured", "fitted", "predicted")))
        for place in places.tolist() for t in times.tolist()
    ]  # fmt: skip
    columns = ("layer", "pair", "time", *(f"{c}{what}" for c in "hyv" for what in ("", " fitted", " predicted")))
    notes = [
        f"The table holds {len(times)} times of {len(places)} of {total} pairs at layers; arrays.safetensors has more, "
        "and the run that was looked at has all."
    ]
    return Table("Curves, measured, fitted and predicted from the first half", columns, rows, named=True), notes


def _line_panel(
    figure: Figure, drawn: Sequence[Curve], y_title: str, said: str, *, log: bool = False,
    rules: Sequence[tuple[float, str]] = (),
) -> None:  # fmt: skip
    y = np.concatenate([c.y for c in drawn])
    ends = np.concatenate([y, *(c.y + sign * np.nan_to_num(c.stderr) for c in drawn for sign in (-1, 1))])
    ends = np.append(ends, [value for value, _ in rules])
    positive = ends[ends > 0]
    scale = _charts.scale_kind(y) if log and (y > 0).all() else "linear"
    low = float(max(ends.min(), 0.5 * y.min())) if scale == "log" else float(ends.min())
    high = float(positive.max()) if positive.size else float(ends.max())
    curves = [c if scale != "log" else _shown_errors(c, low) for c in drawn]
    spec = _charts.lines(
        curves, y_title=y_title, span=(low, high), along="position", scale=scale, rules=rules,
        description=f"Line chart of {y_title} across layers. {said} The data are in the table below.",
    )  # fmt: skip
    figure.panels.append(Panel("", spec, beside=True))


def _shown_errors(curve: Curve, low: float) -> Curve:
    """Without error bars that would leave a logarithmic axis."""
    kept = np.where(curve.y - curve.stderr >= low, curve.stderr, np.nan)
    return Curve(curve.name, curve.kind, curve.index, curve.x, curve.y, kept, curve.reasons, curve.places)


def _rates(run: RunView, dynamics: Dynamics, budget: Budget) -> Figure:
    pairs = (("eta_h_median", "η_h"), ("eta_y_median", "η_y"))
    curves = [_curve(run, dynamics, metric, name) for metric, name in pairs]
    said = " ".join(
        f"{c.name} goes from {_with_error(float(c.y[0]), float(c.stderr[0]))} to "
        f"{_with_error(float(c.y[-1]), float(c.stderr[-1]))}."
        for c in curves if len(c) > 1
    )  # fmt: skip
    figure = _figure(
        "rates", "How fast does what comes before a layer learn, and what comes after it?",
        f"η_h is the effective learning rate of all that comes before the layer, η_y of all that comes after it, per "
        f"{'step' if dynamics.unit == 'step' else 'unit of the sum of learning rates'}. Error bars that would leave a "
        "logarithmic axis are in the table only.", run, said, across=True,
    )  # fmt: skip
    for curve in _add_curves(figure, curves, budget):
        _line_panel(figure, [curve], curve.name, said, log=True)
    return figure


def _laziness(run: RunView, dynamics: Dynamics, budget: Budget) -> Figure:
    curve = _curve(run, dynamics, "laziness_median", "coordinate")
    said = ""
    if len(curve):
        low, high = (number(float(end), 3) for end in (curve.y.min(), curve.y.max()))
        said = f"It is {low} throughout." if low == high else f"It runs from {low} to {high}."
    figure = _figure(
        "laziness", "Rich or lazy?",
        "A/√(A² + 4 (η_h/η_y) X Y), median over pairs that fit well and whose targets differ: 0 is rich (distances "
        "come to √(η_h/η_y) times the geometric mean of those of inputs and targets), 1 lazy (they hardly depend on "
        "the targets), −1 a start with all its weight after the layer.", run, said, across=True,
    )  # fmt: skip
    drawn = _add_curves(figure, [curve], budget)
    if drawn:
        _line_panel(figure, drawn, "coordinate", said, rules=((0.0, "rich"), (1.0, "lazy")))
    return figure


def _structure(run: RunView, dynamics: Dynamics, budget: Budget) -> Section:
    title = "Final structure"
    intro = "How far apart samples end: measured, and predicted from where they began and two rates."
    curves = [_curve(run, dynamics, "structure_correlation", "predicted"),
              _curve(run, dynamics, "structure_correlation", "at the start", _AT_START)]  # fmt: skip
    said = (
        f"The predicted distances correlate with the measured ones at {number(float(np.median(curves[0].y)), 2)} "
        "(median over layers)"
        + (f", those at the start at {number(float(np.median(curves[1].y)), 2)}." if len(curves[1]) else ".")
        if len(curves[0])
        else ""
    )
    line = _figure(
        "structure", "Does the theory know better than the start?",
        "Pearson's correlation with the distances at the end, over pairs of samples that no rate was fitted to, where "
        "there are enough. The prediction says something where it is above the distances at the start.", run, said,
        across=True,
    )  # fmt: skip
    drawn = _add_curves(line, curves, budget)
    if drawn:
        _line_panel(line, drawn, "correlation", said)
    figure = _figure(
        "matrices", "Which samples end near each other?",
        "Squared distances of representations, with samples of similar targets beside each other. The colours of the "
        "three mean the same. Samples on the diagonal are at 0.", run, across=True,
    )  # fmt: skip
    found = structures(run.arrays, dynamics)
    if isinstance(found, str):
        figure.reasons.append(("matrices", found))
        return Section("structure", title, intro, [], [line, figure])
    samples = evenly(len(found["samples"]), _SAMPLES)
    layers = evenly(len(dynamics.layers), max(2, budget.points // 8))
    known = [k for k in layers.tolist() if np.isfinite(found["last"][k]).all()]
    if not known:
        figure.reasons.append(("matrices", line.reasons[0][1] if line.reasons else NOT_RECORDED))
        return Section("structure", title, intro, [], [line, figure])
    some = np.ix_(known, samples, samples)
    parts = {name: found[name][some] for name in ("last", "predicted", "first")}
    tops = np.nanmax(np.stack([part.reshape(len(known), -1).max(axis=1, initial=0.0, where=np.isfinite(
        part.reshape(len(known), -1))) for part in parts.values()]), axis=0)  # fmt: skip
    names = [_names(dynamics)[k] for k in known]
    at = int(np.argmin(np.abs(np.array(known) - _best(run, dynamics))))
    labels = [str(sample) for sample in found["samples"][samples].tolist()]
    for name, label in (
        ("last", "measured at the end"),
        ("predicted", "predicted for the end"),
        ("first", "at the start"),
    ):
        spec = charts.matrix_at(
            parts[name], np.maximum(tops, 1e-30), labels, layers=names, layer=at,
            description=f"Heat map of squared distances among {len(labels)} samples, {label}, at the layer that is "
            "chosen. The data are in the table below.",
        )  # fmt: skip
        figure.panels.append(Panel(label, spec, beside=True))
    figure.notes.extend(_left_out(samples, len(found["samples"]), "samples") + _left_out(
        np.array(known), len(dynamics.layers), "layers"))  # fmt: skip
    table, notes = _table_of_matrices(found, dynamics, known, budget)
    figure.tables.append(table)
    figure.notes.extend(notes)
    chooser = Chooser("structure-at", (Choice("layer", "Layer", tuple(names), at),), [figure])
    return Section("structure", title, intro, [], [line], chooser=chooser)


def _best(run: RunView, dynamics: Dynamics) -> int:
    """The layer with the highest correlation."""
    values = by_layer(run.frame, dynamics, "structure_correlation").values
    return int(np.nanargmax(values)) if np.isfinite(values).any() else 0


def _table_of_matrices(
    found: dict[str, np.ndarray], dynamics: Dynamics, known: Sequence[int], budget: Budget
) -> tuple[Table, list[str]]:
    names, samples = _names(dynamics), found["samples"].tolist()
    one, other = np.triu_indices(len(samples), 1)
    total = len(known) * len(one)
    places = evenly(total, 2 * budget.rows) if total else np.empty(0, np.int64)
    rows: list[tuple[str, ...]] = []
    for place in places.tolist():
        k, i, j = known[place // len(one)], int(one[place % len(one)]), int(other[place % len(one)])
        values = (number(float(found[key][k, i, j])) for key in ("first", "last", "predicted"))
        rows.append((names[k], f"{samples[i]}-{samples[j]}", *values))
    columns = ("layer", "samples", "at the start", "at the end", "predicted")
    notes = [f"The table holds {len(places)} of {total} distances, evenly spaced."] if len(places) < total else []
    return Table("Squared distances of representations", columns, rows, named=True), notes


def dynamics_facts(dynamics: Dynamics) -> list[tuple[str, str]]:
    """What was fitted, in a few numbers."""
    found = [("run", dynamics.source or "—"), ("layers", str(len(dynamics.layers))),
             ("pairs of samples", str(len(dynamics.pairs)))]  # fmt: skip
    if dynamics.span:
        first, last, records = dynamics.span
        found += [("training steps", f"{first} to {last}"), ("records", str(records))]
    return found


def dynamics_subtitle() -> str:
    """One line under the title."""
    return "A training against the theory of two points, layer by layer"
