"""A run's dynamics as `run.json`, table and arrays have them: files that may hold anything, so nothing is trusted."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import polars as pl

from isthmus.report._layers import text_of


@dataclasses.dataclass(frozen=True)
class Dynamics:
    """What a run says of the pairs that were fitted.

    Attributes:
        layers: names, in order of execution.
        pairs: names.
        kinds: why each pair was chosen.
        unit: of the times.
        source: name of the run that was looked at.
        span: first and last step, and number of records; empty where unknown.
        problems: what could not be used, as sentences.
    """

    layers: tuple[str, ...]
    pairs: tuple[str, ...]
    kinds: tuple[str, ...]
    unit: str
    source: str
    span: tuple[int, ...]
    problems: tuple[str, ...]


def _texts(found: object) -> tuple[str, ...]:
    return tuple(text_of(one) for one in cast("list[object]", found)) if isinstance(found, list) else ()


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53 else None


def read_dynamics(run: Mapping[str, Any]) -> Dynamics | None:
    """The dynamics that a run folder holds, or None where the run is of another kind."""
    if "dynamics" not in run:
        return None
    given: object = run["dynamics"]
    part = cast("Mapping[str, object]", given) if isinstance(given, dict) else {}
    listed: object = part.get("pairs")
    pairs = [cast("Mapping[str, object]", one) for one in cast("list[object]", listed) if isinstance(one, dict)] if (
        isinstance(listed, list)
    ) else []  # fmt: skip
    layers = _texts(part.get("layers"))
    problems = () if layers and pairs else ("run.json does not say which layers and pairs were fitted.",)
    span = [_count(part.get(key)) for key in ("first", "last", "records")]
    return Dynamics(
        layers, tuple(text_of(one.get("pair")) for one in pairs), tuple(text_of(one.get("kind", "")) for one in pairs),
        text_of(part.get("time", "step")), text_of(part.get("source", "")),
        tuple(value for value in span if value is not None) if None not in span else (), problems,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Cells:
    """One metric of every pair at every layer; NaN where there is no value, and then `reasons` says why."""

    values: np.ndarray
    errors: np.ndarray
    reasons: dict[tuple[int, int], str]


def cells(table: pl.DataFrame, dynamics: Dynamics, metric: str, baseline: str = "") -> Cells:
    """A metric by layer and pair; with pairs that are named in no row, one column."""
    layers = {name: k for k, name in enumerate(dynamics.layers)}
    pairs = {name: k for k, name in enumerate(dynamics.pairs)}
    shape = (len(layers), len(pairs))
    values, errors, reasons = np.full(shape, np.nan), np.full(shape, np.nan), dict[tuple[int, int], str]()
    rows = table.filter((pl.col("metric") == metric) & (pl.col("baseline").fill_null("") == baseline))
    for layer, pair, value, error, note in rows.select("layer", "pair", "value", "stderr", "note").iter_rows():
        place = layers.get(layer), pairs.get(pair)
        if place[0] is None or place[1] is None:
            continue
        k, j = place[0], place[1]
        if value is None:
            reasons[k, j] = text_of(note or "")
        else:
            values[k, j], errors[k, j] = value, math.nan if error is None else error
    return Cells(values, errors, reasons)


@dataclasses.dataclass(frozen=True)
class LayerValues:
    """One metric by layer: NaN where there is no value, and then `reasons` says why."""

    values: np.ndarray
    errors: np.ndarray
    reasons: tuple[str, ...]


def by_layer(table: pl.DataFrame, dynamics: Dynamics, metric: str, baseline: str = "") -> LayerValues:
    """A metric of layers as a whole."""
    layers = {name: k for k, name in enumerate(dynamics.layers)}
    values, errors = np.full(len(layers), np.nan), np.full(len(layers), np.nan)
    rows = table.filter((pl.col("metric") == metric) & (pl.col("baseline").fill_null("") == baseline))
    reasons: dict[str, int] = {}
    for layer, value, error, note in rows.select("layer", "value", "stderr", "note").iter_rows():
        k = layers.get(layer)
        if k is not None and value is not None:
            values[k], errors[k] = value, math.nan if error is None else error
        elif k is not None:
            why = text_of(note or "")
            reasons[why] = reasons.get(why, 0) + 1
    said = (f"{why} (at {count} of {len(layers)} layers)" for why, count in reasons.items())
    return LayerValues(values, errors, tuple(said))


def courses(arrays: Mapping[str, np.ndarray], dynamics: Dynamics) -> dict[str, np.ndarray] | str:
    """Times, and `measured`, `fitted` and `predicted` as `(layers, pairs, 3, times)`; or why there are none."""
    times = arrays.get("dynamics/times")
    if times is None or times.ndim != 1 or not len(times) or not np.isfinite(times).all():
        return "arrays.safetensors holds no usable dynamics/times"
    shape = (len(dynamics.layers), len(dynamics.pairs), 3, len(times))
    found = {"times": times.astype(np.float64)}
    for name in ("measured", "fitted", "predicted"):
        part = arrays.get(f"dynamics/{name}")
        if part is None or part.shape != shape:
            return f"arrays.safetensors holds no dynamics/{name} that fits the layers, pairs and times"
        found[name] = part.astype(np.float64)
    return found


def structures(arrays: Mapping[str, np.ndarray], dynamics: Dynamics) -> dict[str, np.ndarray] | str:
    """`first`, `last` and `predicted` as `(layers, samples, samples)`, and `samples`; or why there are none."""
    samples = arrays.get("structure/samples")
    if samples is None or samples.ndim != 1 or not len(samples):
        return "the run holds no distances among samples"
    found: dict[str, np.ndarray] = {"samples": samples}
    for name in ("first", "last", "predicted"):
        part = arrays.get(f"structure/{name}")
        if part is None or part.shape != (len(dynamics.layers), len(samples), len(samples)):
            return f"arrays.safetensors holds no structure/{name} that fits the layers and samples"
        found[name] = part.astype(np.float64)
    return found
