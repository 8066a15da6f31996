"""The section of a compression's page: a number against depth, on samples that choose and on samples that judge."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from isthmus.report._compressed import SPLITS, Compression, DepthLine, depth_lines, full_value
from isthmus.report._compressedcharts import depth_chart
from isthmus.report._figures import Budget, Figure, Panel, Section, Table, unbroken
from isthmus.report._read import NOT_RECORDED, RunView, evenly, number, shorten
from isthmus.report._reproduced import PaperCurve, PaperPanel
from isthmus.report._reproducedfigures import panel_figure

_SPANS, _REASONS = 6, 8
_SCORES = {"accuracy": "accuracy", "r_squared": "R²"}
_READING = (
    "Each line is a way to make a network of fewer layers from the trained one. Dashed: the full network. Dotted: the "
    "most that the tolerance allows. "
)


def compressed_sections(run: RunView, found: Compression, budget: Budget) -> list[Section]:
    """The one section of the page."""
    remarks = [(run.label, text) for text in (_samples(found), *found.problems) if text]
    return [
        Section("depth", "Loss and depth", "What the network loses with its layers, by every method, on the samples "
                "that choose how many stay and on samples that take no part in the choice.", remarks,
                [*(_loss(run, found, split, budget) for split in SPLITS), _score(run, found, budget),
                 _steps(run, found, budget)]),
    ]  # fmt: skip


def _whole(count: int | None) -> str:
    return "—" if count is None else f"{count:,}"


def _samples(found: Compression) -> str:
    """Which samples choose, and which judge."""
    said = [
        f"{'choose' if split == SPLITS[0] else 'judge'}: {_whole(part.n)} ({part.what})"
        for split, part in found.parts.items()
        if part.n is not None
    ]
    return unbroken(f"Samples that {', samples that '.join(said)}. No sample does both.") if said else ""


def _loss(run: RunView, found: Compression, split: str, budget: Budget) -> Figure:
    part, chooses = found.parts[split], split == SPLITS[0]
    figure = Figure(
        f"loss-{split}",
        "What does each depth lose, to the samples that choose?" if chooses else "And to samples that did not choose?",
        _READING + ("The smallest depth below it is taken." if chooses else
                    "The depth was not chosen by these, so they judge it without favour."),
        [], [], [], [], [], across=True,
    )  # fmt: skip
    if part.full is not None and part.loss is not None and found.depth is not None:
        said = f"The loss goes from {number(part.full)} to {number(part.loss)} with {found.depth} layers"
        said += f" ({100 * (part.loss / part.full - 1):+.2g} %)" if part.full > 0 else ""
        figure.answers.append((run.label, unbroken(said + (
            "." if part.bound is None else f"; up to {number(part.bound)} was allowed." if chooses else
            f"; the same tolerance would allow {number(part.bound)}."))))  # fmt: skip
    rules = {name: value for name, value in (("full network", part.full), ("allowed", part.bound)) if value is not None}
    _draw(figure, found, depth_lines(run.frame, "loss", split), rules, "loss", part.loss, budget)
    return figure


def _score(run: RunView, found: Compression, budget: Budget) -> Figure:
    name = _SCORES[found.score]
    figure = Figure("score-judging", f"How much {name} is left?", f"{name[:1].upper()}{name[1:]} against depth, on the "
                    "samples that did not choose. Dashed: the full network.", [], [], [], [], [])  # fmt: skip
    found_lines = depth_lines(run.frame, found.score, SPLITS[1])
    chosen = next((line.values.get(found.depth or 0) for line in found_lines if line.name == found.series), None)
    full = full_value(run.frame, found.score, SPLITS[1])
    if full is not None and chosen is not None:
        figure.answers.append((run.label, unbroken(f"From {number(full, 3)} to {number(chosen, 3)}.")))
    rules = {} if full is None else {"full network": full}
    _draw(figure, found, found_lines, rules, name, chosen, budget)
    return figure


def _draw(
    figure: Figure, found: Compression, lines: Sequence[DepthLine], rules: dict[str, float], y: str,
    value: float | None, budget: Budget,
) -> None:  # fmt: skip
    """The chart, its table, and the reasons for what is missing, into the figure."""
    names: dict[tuple[str, str], list[str]] = {}
    for line in lines:
        for why, depths in list(line.reasons.items())[:_REASONS]:
            names.setdefault((why, _spans(depths)), []).append(line.name)
    figure.reasons.extend((f"{', '.join(some)}: {spans}", why) for (why, spans), some in names.items())
    if not any(line.values for line in lines):
        figure.reasons.append((y, NOT_RECORDED))
        return
    depths = sorted({depth for line in lines for depth in line.values}, reverse=True)
    kept = {depths[k] for k in evenly(len(depths), budget.points).tolist()} | {found.depth}
    shown = [DepthLine(line.name, {d: v for d, v in line.values.items() if d in kept}, {}) for line in lines]
    if len(depths) > len(kept):
        figure.notes.append(f"Drawn: about {len(kept)} of {len(depths)} depths, evenly spaced.")
    chosen = None if found.depth is None or value is None else (found.depth, value)
    said = " ".join(text for _, text in figure.answers)
    described = (f"Lines: {y} against the number of layers, by {', '.join(line.name for line in lines)}. {said} "
                 "The data are in the table below.")  # fmt: skip
    figure.panels.append(Panel("", depth_chart(shown, rules, chosen, y_title=y, ratios=y == "loss",
                                             description=shorten(described))))  # fmt: skip
    rows = [(str(depth), *(number(line.values.get(depth)) for line in lines))
            for depth in (depths[k] for k in evenly(len(depths), budget.rows).tolist())]  # fmt: skip
    columns = ("layers", *(line.name for line in lines))
    figure.tables.append(Table(f"{y[:1].upper()}{y[1:]} by number of layers", columns, rows))


def _spans(depths: Sequence[int]) -> str:
    """Depths in words: `1 to 9, 11 layers`."""
    spans: list[list[int]] = []
    for depth in sorted(set(depths)):
        if spans and depth == spans[-1][1] + 1:
            spans[-1][1] = depth
        else:
            spans.append([depth, depth])
    said = [f"{low}" if low == high else f"{low} to {high}" for low, high in spans[:_SPANS]]
    return f"{', '.join(said)}{' …' if len(spans) > _SPANS else ''} {'layer' if depths == (1,) else 'layers'}"


def _steps(run: RunView, found: Compression, budget: Budget) -> Figure:
    nodes = {"full network": run.arrays.get("compression/position_before", np.empty(0)), "small network": run.positions}
    curves: list[PaperCurve] = []
    for name, p in nodes.items():
        if p.ndim == 1 and len(p) > 1 and np.isfinite(p).all() and np.abs(p).max() < 1e6:
            p = p.astype(np.float64)
            none = np.full(len(p) - 1, np.nan)
            curves.append(PaperCurve(name, "", (p[1:] + p[:-1]) / 2, np.diff(p), none, none, none))
    reasons = () if len(curves) == len(nodes) else (("layer steps", NOT_RECORDED),)
    panel = PaperPanel("steps", "layer-steps", "Where do the layers stand?", "depth p  (0 = input, 1 = output)",
                       "layer step ρ", "points", "linear", "linear", (), (), False, tuple(curves), reasons)  # fmt: skip
    reading = "Length of each layer's step along the depth axis; a long step does the work of several short ones."
    return dataclasses.replace(panel_figure(panel, budget), reading=reading)


def compressed_facts(found: Compression) -> list[tuple[str, str]]:
    """What became of the network, in a few numbers."""
    share = found.relative
    tolerance = "—" if found.tolerance is None else number(100 * found.tolerance if share else found.tolerance)
    facts = [("layers", f"{_whole(found.before)} → {_whole(found.depth)}"), ("by", found.series or "—"),
             ("tolerance", unbroken(f"{tolerance} %" if share else f"{tolerance} (absolute)"))]  # fmt: skip
    for split, name in zip(SPLITS, ("loss, samples that chose", "loss, samples that did not"), strict=True):
        part = found.parts[split]
        facts.append((name, f"{number(part.full, 3)} → {number(part.loss, 3)}"))
    facts.append(("samples, chose + judged", " + ".join(_whole(found.parts[split].n) for split in SPLITS)))
    return [*facts, ("run", found.source or "—")]


def compressed_subtitle() -> str:
    """One line under the title."""
    return "A trained Leaky ResNet with fewer layers"
