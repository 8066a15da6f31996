"""Figures of spectra as heat maps: one row per layer, one panel per run and baseline."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from isthmus.report._depthcharts import FLOOR, THIS, heat_map, heat_rows
from isthmus.report._figures import Budget, Figure, Panel, Table, unbroken
from isthmus.report._layers import brief, distinct
from isthmus.report._read import RunView, evenly, number

_COLUMNS = 64
_CELLS = 6400
_TABLED = 12


@dataclasses.dataclass(frozen=True)
class Spectra:
    """Singular values of the layers of one run: (layers, values), descending, padded with NaN."""

    names: list[str]
    positions: np.ndarray
    values: np.ndarray


def read_spectra(run: RunView, array: str, of: str) -> Spectra | str:
    """The spectra that the page can draw, or the reason why there are none."""
    found = run.arrays.get(array)
    if found is None or found.size == 0:
        return f"arrays.safetensors holds no {array}"
    if found.ndim != 2 or np.isinf(found).any() or (found < 0).any():
        return f"{array} is not a table of singular values"
    if run.layers is not None:
        layers = run.layers.sites if of == "representation" else run.layers.weights
        names, positions = [layer.name for layer in layers], np.array([layer.position for layer in layers])
    else:  # a Leaky ResNet: its layers have numbers, and its weights stand between representations
        nodes = run.positions
        first = int(found.shape[0] != len(nodes))
        positions = (nodes[1:] + nodes[:-1]) / 2 if first else nodes
        names = [f"{of} {first + k}" for k in range(len(positions))]
    if found.shape[0] != len(names):
        return f"{array} has {found.shape[0]} rows, but the run names {len(names)} layers"
    if np.isnan(found).all():
        return f"{array} holds no value"
    return Spectra(names, positions, found.astype(np.float64))


def strong(row: np.ndarray) -> int:
    """How many singular values exceed a tenth of the largest."""
    finite = row[np.isfinite(row)]
    return int((finite > 0.1 * finite.max()).sum()) if finite.size and finite.max() > 0 else 0


def _answer(spectra: Spectra) -> str:
    known = np.flatnonzero(np.isfinite(spectra.values).any(axis=1))
    counts = np.array([strong(spectra.values[k]) for k in known])

    def at(row: int) -> str:
        return f"{counts[row]} at {brief(spectra.names[known[row]], 44)}"

    start = "Singular values above a tenth of the layer's largest: "
    if len(known) == 1:
        return f"{start}{at(0)}."
    low, high = int(counts.argmin()), int(counts.argmax())
    if counts[low] == counts[high]:
        return f"{start}{counts[0]} in every layer."
    return f"{start}{at(0)}, the first, and {at(len(known) - 1)}, the last; fewest, {at(low)}; most, {at(high)}."


def _baselines(run: RunView) -> list[tuple[str, str]]:
    """Prefixes of arrays and what they are of: the model itself, then its baseline."""
    name = run.part("measured").get("baseline")
    return [("", ""), ("baseline/", str(name) if name else "baseline")]


def heat_figure(
    key: str, array: str, title: str, reading: str, of: str, runs: Sequence[RunView], budget: Budget
) -> Figure:
    """Singular values of every layer as a heat map; runs and baselines one below the other."""
    notes = f"Colours end at {number(FLOOR)}: what is smaller looks the same. Blank cells have no value."
    figure = Figure(key, title, reading, [], [], [], [], [notes])
    several = len(runs) > 1
    for run in runs:
        for prefix, baseline in _baselines(run):
            name = ": ".join(part for part in (run.label if several else "", baseline) if part)
            if prefix and prefix + array not in run.arrays:
                continue
            spectra = read_spectra(run, prefix + array, of)
            if isinstance(spectra, str):
                figure.reasons.append((name or "spectra", spectra))
                continue
            said = unbroken(_answer(spectra))
            if not baseline:
                figure.answers.append((run.label, said))
            _add(figure, spectra, name, said, budget, f"{run.label}: " if several else "")
    if len(figure.panels) > 1 and not figure.panels[0].label:
        figure.panels[0] = dataclasses.replace(figure.panels[0], label=THIS)
    return figure if figure.panels else dataclasses.replace(figure, notes=[])


def _add(figure: Figure, spectra: Spectra, label: str, said: str, budget: Budget, run: str) -> None:
    prefix = f"{label}: " if label else ""
    total, whole = spectra.values.shape
    picked = evenly(total, budget.points)
    columns = max(4, min(_COLUMNS, whole, _CELLS * budget.points // 400 // len(picked)))
    columns = min(columns, whole)
    spec = heat_map(
        [spectra.names[k] for k in picked],
        heat_rows(spectra.positions[picked], spectra.values[picked][:, :columns]), columns,
        description=f"Heat map of the {columns} largest singular values of {len(picked)} layers, as shares of each "
        f"layer's largest. {prefix}{said} The data are in the table below.",
    )  # fmt: skip
    figure.panels.append(Panel(label, spec, beside=True))
    tabled = evenly(total, budget.rows)
    names, shown = distinct(spectra.names), min(_TABLED, columns)
    figure.tables.append(Table(
        prefix + figure.title, ("layer", "p", *(f"s{j + 1}" for j in range(shown))),
        [(names[k], number(float(spectra.positions[k])), *map(number, spectra.values[k, :shown].tolist()))
         for k in tabled.tolist()],
        named=True,
    ))  # fmt: skip
    left_out = [
        f"Drawn: the {columns} largest of up to {whole} singular values." if columns < whole else "",
        f"Drawn: {len(picked)} of {total} layers, evenly spaced." if len(picked) < total else "",
        f"The table holds the {shown} largest values of each layer; all are in arrays.safetensors."
        if shown < whole
        else "",
        f"The table holds {len(tabled)} of {total} layers, evenly spaced." if len(tabled) < total else "",
    ]
    figure.notes.extend(note for note in (run + text for text in left_out if text) if note not in figure.notes)
