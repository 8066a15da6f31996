"""Tables of a measured run: every number of every layer, to be filtered and sorted, and what was not measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import polars as pl

from isthmus.report._layers import Layer, Layers, Skipped, distinct, middle
from isthmus.report._read import RunView, evenly, number, shorten

_REASONS = 12
_FIRST = 4
_NAMES = 400


@dataclasses.dataclass(frozen=True)
class Cell:
    """One number of a layer: as text, as the value to sort by, and what a baseline has there."""

    text: str = "—"
    value: str = ""
    baselines: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class LayerRow:
    """One layer of a table: its name, what it is, its numbers, and the page that it has of its own, if any."""

    name: str
    words: tuple[Cell, ...]
    cells: list[Cell]
    link: str = ""


@dataclasses.dataclass(frozen=True)
class LayerTable:
    """One row per layer, one column per metric.

    Attributes:
        key: identifier in the page.
        run: label of the run.
        caption: what the table holds.
        words: headings of the columns that say what a layer is.
        metrics: headings of the columns of numbers.
        rows: one per layer, in order of execution.
        reasons: what is missing and why, as (metric, reason).
        note: what was left out to fit.
        of: what a row is.
    """

    key: str
    run: str
    caption: str
    words: tuple[str, ...]
    metrics: tuple[str, ...]
    rows: list[LayerRow]
    reasons: list[tuple[str, str]]
    note: str
    of: str = "layer"


@dataclasses.dataclass(frozen=True)
class SkippedGroup:
    """Layers of one type that were left out for one reason; `first` are shown, the `rest` on demand."""

    type: str
    reason: str
    count: int
    first: str
    rest: str


@dataclasses.dataclass(frozen=True)
class SkippedTable:
    """What a run did not measure, with equal reasons together."""

    run: str
    count: int
    groups: list[SkippedGroup]
    note: str


_Column = tuple[str, float | None, float | None]
"""A metric, its γ₀, and the level ε at which it counts."""


def _heading(metric: str, gamma0: float | None, level: float | None) -> str:
    said = metric.replace("_", " ")
    chosen = [f", {name}\u00a0=\u00a0{number(v)}" for name, v in (("γ₀", gamma0), ("ε", level)) if v is not None]
    return said + "".join(chosen)


def _columns(run: RunView, rows: pl.DataFrame) -> list[_Column]:
    """The metrics with a value for some layer, in the order of the catalogue, and each γ₀ and level by itself."""
    good = rows.filter(pl.col("status") == "ok")
    found = set(good.select("metric", "gamma0", "level").unique().rows())
    order = {name: place for place, name in enumerate(run.present())}
    order["observations"] = -1
    return sorted((c for c in found if c[0] in order), key=lambda c: (order[c[0]], c[1] or 0.0, c[2] or 0.0))


def _reasons(rows: pl.DataFrame) -> list[tuple[str, str]]:
    bad = rows.filter(pl.col("status") != "ok")
    groups = bad.group_by("metric", "status", "note", "baseline", maintain_order=True).agg("layer").rows()
    said: list[tuple[str, str]] = []
    for metric, status, note, baseline, layers in groups[:_REASONS]:
        names = ", ".join(middle(name or "", 60) for name in layers[:_FIRST])
        more = f" and {len(layers) - _FIRST} more" if len(layers) > _FIRST else ""
        of = f" ({shorten(baseline, 40)})" if baseline else ""
        said.append((metric.replace("_", " ") + of, f"{status}: {shorten(note, 300)} – {names}{more}"))
    if len(groups) > _REASONS:
        said.append((f"{len(groups) - _REASONS} more reasons", "in metrics.parquet, column note"))
    return said


def _words(layer: Layer, of: str) -> tuple[Cell, ...]:
    """What a layer is: type, number, position and size, of which the numbers sort as numbers; a chain has no place."""
    size = Cell(shorten(layer.size, 80), layer.size if layer.size.isdecimal() else "")
    place = (Cell(str(layer.index), str(layer.index)), Cell(number(layer.position), repr(layer.position)))
    return (Cell(shorten(layer.type, 120)), *(() if of == "chain" else place), size)


def _table(run: RunView, of: str, layers: Sequence[Layer], limit: int, *, key: str, what: str, size: str) -> LayerTable:
    rows = run.frame.filter(pl.col("of") == of)
    columns = _columns(run, rows)
    found: dict[tuple[str, _Column], dict[str, float]] = {}
    good = rows.filter((pl.col("status") == "ok") & pl.col("value").is_not_null())
    for layer, *column, baseline, value in good.select(
        "layer", "metric", "gamma0", "level", "baseline", "value"
    ).rows():
        found.setdefault((layer, tuple(column)), {})[baseline or ""] = value

    def cell(name: str, column: _Column) -> Cell:
        values = found.get((name, column), {})
        own = values.get("")
        others = tuple((shorten(b, 40), number(v)) for b, v in values.items() if b)
        return Cell("—" if own is None else number(own), "" if own is None else repr(own), others)

    names = distinct([layer.name for layer in layers])
    picked = evenly(len(layers), limit).tolist() if layers else []
    shown = [
        LayerRow(names[k], _words(layers[k], of), [cell(layers[k].name, column) for column in columns]) for k in picked
    ]
    note = f"The table holds {len(picked)} of {len(layers)} layers, evenly spaced; all are in metrics.parquet."
    note = note if len(picked) < len(layers) else ""
    return LayerTable(
        key, run.label, f"Every number of every {what}", ("type", *(() if of == "chain" else ("no.", "p")), size),
        tuple(_heading(*column) for column in columns), shown, _reasons(rows), note,
    )  # fmt: skip


_KINDS: dict[str, tuple[str, str, Callable[[Layers], Sequence[Layer]]]] = {
    "representation": ("measured representation", "width", lambda found: found.sites),
    "weight": ("weight matrix", "shape", lambda found: found.weights),
    "aligned": ("module's tangent kernel", "parameters", lambda found: found.aligned),
    "chain": ("chain of linear layers joined by ReLU", "layers", lambda found: found.chains),
    "chained": ("layer of a chain", "shape", lambda found: found.chained),
}
"""What a table is of: in words, what the size of a layer is, and its layers."""


def layer_tables(
    runs: Sequence[RunView], limit: int, kinds: Sequence[str] = ("representation", "weight", "aligned")
) -> list[LayerTable]:
    """A table per measured run of each of some kinds: `representation`, `weight`, `aligned`, `chain`, `chained`."""
    tables: list[LayerTable] = []
    for number_, run in enumerate(runs):
        if run.layers is None:
            continue
        for of in kinds:
            what, size, layers_of = _KINDS[of]
            layers = layers_of(run.layers)
            if layers:
                key = f"layers-{number_}-{of}"
                tables.append(_table(run, of, layers, limit, key=key, what=what, size=size))
    return tables


def _grouped(skipped: Sequence[Skipped], by: Callable[[Skipped], tuple[str, str]]) -> dict[tuple[str, str], list[str]]:
    groups: dict[tuple[str, str], list[str]] = {}
    for layer in skipped:
        groups.setdefault(by(layer), []).append(layer.name or "(the model itself)")
    return groups


def skipped_tables(runs: Sequence[RunView], limit: int) -> list[SkippedTable]:
    """What each measured run left out, with layers of one type and one reason together."""
    tables: list[SkippedTable] = []
    for run in runs:
        if run.layers is None or not run.layers.skipped:
            continue
        groups = _grouped(run.layers.skipped, lambda layer: (layer.type, layer.reason))
        shown: list[SkippedGroup] = []
        for (kind, reason), names in list(groups.items())[:limit]:
            short = [middle(name, 120) for name in names[:_NAMES]]
            left = len(names) - len(short)
            rest = ", ".join(short[_FIRST:]) + (f" and {left} more, in run.json" if left else "")
            shown.append(SkippedGroup(shorten(kind, 120), shorten(reason), len(names), ", ".join(short[:_FIRST]), rest))
        note = (
            f"{len(shown)} of {len(groups)} groups are shown; run.json holds all." if len(shown) < len(groups) else ""
        )
        tables.append(SkippedTable(run.label, len(run.layers.skipped), shown, note))
    return tables
