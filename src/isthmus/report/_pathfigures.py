"""Figures of a path: its spectra against depth, and its projection on a plane."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from isthmus.report import _charts
from isthmus.report._figures import Budget, Figure, Panel, Table, unbroken
from isthmus.report._read import RunView, evenly, number

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
