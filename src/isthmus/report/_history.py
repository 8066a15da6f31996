"""The numbers of a monitored training at every measured step: layers in one fixed order, whatever each step held."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from isthmus._records import METRICS
from isthmus.report._layers import distinct
from isthmus.report._monitored import arrays_at, measured_row, names_of_rows
from isthmus.report._read import NOT_RECORDED, RunView, number, reasons_of

_OF_LAYERS = tuple(name for name, metric in METRICS.items() if metric.of == "representation")
_SHOWN_STEPS = 8


@dataclasses.dataclass(frozen=True)
class Track:
    """One metric of every layer at every step: (steps, layers), NaN where there is no value or no error."""

    name: str
    values: np.ndarray
    errors: np.ndarray


@dataclasses.dataclass(frozen=True)
class History:
    """Metrics of the same layers over the steps of a training.

    Attributes:
        steps: measured steps, ascending.
        names: layers in order of execution, no two alike.
        positions: where each stands, from 0 to 1.
        tracks: the metrics that have values.
        reasons: what is missing and why.
    """

    steps: tuple[int, ...]
    names: tuple[str, ...]
    positions: np.ndarray
    tracks: tuple[Track, ...]
    reasons: tuple[tuple[str, str], ...]

    def span(self) -> tuple[float, float]:
        """Smallest and largest value of all tracks and steps, with one standard error where there is one."""
        ends = [t.values + sign * np.nan_to_num(t.errors) for t in self.tracks for sign in (-1, 0, 1)]
        return float(np.nanmin(ends)), float(np.nanmax(ends))

    def at(self, steps: np.ndarray, layers: np.ndarray) -> History:
        """Some steps and layers only, by their numbers."""
        tracks = tuple(
            Track(t.name, t.values[np.ix_(steps, layers)], t.errors[np.ix_(steps, layers)]) for t in self.tracks
        )
        return History(tuple(self.steps[k] for k in steps.tolist()), tuple(self.names[k] for k in layers.tolist()),
                       self.positions[layers], tracks, self.reasons)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class SpectraHistory:
    """Singular values of every layer at every step, (steps, layers, values) padded with NaN; see `History`."""

    steps: tuple[int, ...]
    names: tuple[str, ...]
    positions: np.ndarray
    values: np.ndarray
    reasons: tuple[tuple[str, str], ...]


def _rows(run: RunView) -> pl.DataFrame:
    """The measured rows of the model itself, at the steps that have numbers."""
    steps = run.training.steps if run.training is not None else ()
    own = pl.col("baseline").fill_null("") == ""
    return run.whole.filter(measured_row() & own & pl.col("step").is_in(list(steps)))


def _of_kind(run: RunView, rows: pl.DataFrame, of: str) -> pl.DataFrame:
    """Rows of one kind of layer; a representation that the last step lacks is known by the metrics it has."""
    if of != "representation" or run.layers is None:
        return rows.filter(pl.col("of") == of)
    own = (pl.col("of") == "module") & pl.col("metric").is_in(_OF_LAYERS) & pl.col("index").is_not_null()
    gone = rows.filter(own).get_column("layer").unique()
    return rows.filter((pl.col("of") == of) | pl.col("layer").is_in(gone.to_list()))


def _order(rows: pl.DataFrame) -> tuple[list[str], np.ndarray]:
    """Every layer that some step has, in order of position, each where it stood when it was measured last.

    A row without an index is of no layer: it says why something is missing everywhere.
    """
    last = (
        rows.filter((pl.col("layer").fill_null("") != "") & pl.col("index").is_not_null())
        .with_columns(pl.col("position").fill_null(0.0))
        .sort("step", maintain_order=True)
        .unique("layer", keep="last", maintain_order=True)
        .sort("position", "index", maintain_order=True)
    )
    return last.get_column("layer").to_list(), last.get_column("position").to_numpy()


def _some(steps: Sequence[int]) -> str:
    shown = ", ".join(map(str, steps[:_SHOWN_STEPS]))
    more = f" and {len(steps) - _SHOWN_STEPS} more" if len(steps) > _SHOWN_STEPS else ""
    return f"step{'s' if len(steps) > 1 else ''} {shown}{more}"


def history(run: RunView, metrics: Mapping[str, str], of: str, *, gammas: Sequence[float] = ()) -> History:
    """The course of some metrics of one kind of layer.

    Args:
        run: a monitored training.
        metrics: their names, and what the page calls them.
        of: `representation`, `step` or `aligned`.
        gammas: values of γ₀ to tell apart, for a metric that depends on it.
    """
    steps = run.training.steps if run.training is not None else ()
    rows = _rows(run).filter(pl.col("metric").is_in(list(metrics)))
    mine = _of_kind(run, rows, of)
    layers, positions = _order(mine)
    place, moment = {name: k for k, name in enumerate(layers)}, {step: k for k, step in enumerate(steps)}
    tracks: list[Track] = []
    reasons: list[tuple[str, str]] = []
    asked = [(metric, words, gamma) for metric, words in metrics.items() for gamma in (gammas or (None,))]
    for metric, words, gamma in asked:
        name = words if gamma is None else f"{words}, γ₀ = {number(gamma)}"
        found = mine.filter(pl.col("metric") == metric)
        if gamma is not None:
            found = found.filter(pl.col("gamma0") == gamma)
        good = found.filter((pl.col("status") == "ok") & pl.col("value").is_not_null() & pl.col("layer").is_in(layers))
        values = np.full((len(steps), len(layers)), np.nan)
        errors = values.copy()
        for step, layer, value, error in good.select("step", "layer", "value", "stderr").rows():
            values[moment[step], place[layer]] = value
            errors[moment[step], place[layer]] = np.nan if error is None else error
        if good.is_empty():
            why = reasons_of(found if found.height else rows.filter(pl.col("metric") == metric))
            reasons.append((name, "; ".join(why) or NOT_RECORDED))
            continue
        tracks.append(Track(name, values, errors))
        without = [step for step, row in zip(steps, values, strict=True) if np.isnan(row).all()]
        if without:
            why = "; ".join(reasons_of(found.filter(pl.col("step").is_in(without)))) or NOT_RECORDED
            reasons.append((name, f"{_some(without)}: {why}"))
    return History(steps, tuple(distinct(layers)), positions, tuple(tracks), tuple(reasons))


def spectra_history(run: RunView, array: str) -> SpectraHistory:
    """The singular values of every representation at every step, as `steps/<step>/<array>` holds them."""
    steps = run.training.steps if run.training is not None else ()
    rows = _of_kind(run, _rows(run), "representation")
    layers, positions = _order(rows)
    place = {name: k for k, name in enumerate(layers)}
    listed = names_of_rows(run.part("monitor"))
    found: list[tuple[int, list[str], np.ndarray]] = []
    why: dict[str, list[int]] = {}
    for moment, step in enumerate(steps):
        values = arrays_at(run.arrays, step).get(array)
        if values is None and moment == len(steps) - 1:
            values = run.arrays.get(array)
        own = _order(rows.filter(pl.col("step") == step))[0]
        # Rows are those layers that any step measured, where the run names them, else those of the step itself.
        names = listed if values is not None and values.shape[:1] == (len(listed),) else own
        reason = _unfit(values, array, len(names))
        if reason or values is None:
            why.setdefault(reason, []).append(step)
        else:
            found.append((moment, names, values))
    width = max((values.shape[1] for _, _, values in found), default=0)
    together = np.full((len(steps), len(layers), width), np.nan)
    for moment, names, values in found:
        known = [row for row, name in enumerate(names) if name in place]
        together[moment, [place[names[row]] for row in known], : values.shape[1]] = values[known]
    reasons = tuple((_some(missing), reason) for reason, missing in why.items())
    return SpectraHistory(steps, tuple(distinct(layers)), positions, together, reasons)


def _unfit(values: np.ndarray | None, array: str, layers: int) -> str:
    """Why an array cannot be drawn; empty where it can."""
    if values is None or values.size == 0:
        return f"arrays.safetensors holds no {array}"
    if values.ndim != 2 or np.isinf(values).any() or (values < 0).any():
        return f"{array} is not a table of singular values"
    if values.shape[0] != layers:
        return f"{array} has {values.shape[0]} rows, but {layers} layers were measured"
    return ""
