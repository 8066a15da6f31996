"""The pairs that a run recorded, read from its folder: files that may hold anything, so everything is checked."""

from __future__ import annotations

import dataclasses
import fnmatch
import os
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import polars as pl

from isthmus._errors import InputError, RunFolderError, near_name_hint
from isthmus._records import RunFolder

LEAST_TIMES = 8
NOT_FINITE = "not a finite number"
"""How the notes of rows begin whose number is not finite."""
STEPS, RATES = "step", "sum of learning rates"
_TRACK = "record some: isthmus.track_pairs, Monitor(pairs=16) or `isthmus train --pairs 16`"


@dataclasses.dataclass(frozen=True)
class RecordedPairs:
    """Pairs of samples over a training (docs/architecture.md, A run folder).

    Attributes:
        title: of the run.
        layers: names of the representations, in order of execution.
        places: index and position of each among all that were recorded.
        pairs: names of the pairs.
        kinds: why each was chosen, in words.
        dx2: `X` of each pair.
        dy2: `Y` of each pair.
        steps: training steps of the records, ascending.
        times: the time of each.
        unit: of the times: `step` or `sum of learning rates`.
        h: `(layers, pairs, times)`; NaN where there is no number, here and below.
        y: `(pairs, times)`.
        v: `(pairs, times)`.
        m: `(pairs, times)`.
        samples: numbers of the samples of all pairs that were recorded.
        matrices: squared distances among them, by name (`inputs`, `hidden/<layer>/last`, …); only those that fit.
        loss: name of the loss, where the run says; else empty.
        failed: reasons why records could not be made, one for each of those that are left out.
        notes: what was decided about the pairs without being asked, in words.
    """

    title: str
    layers: tuple[str, ...]
    places: tuple[tuple[int, float], ...]
    pairs: tuple[str, ...]
    kinds: tuple[str, ...]
    dx2: np.ndarray
    dy2: np.ndarray
    steps: tuple[int, ...]
    times: np.ndarray
    unit: str
    h: np.ndarray
    y: np.ndarray
    v: np.ndarray
    m: np.ndarray
    samples: tuple[int, ...]
    matrices: Mapping[str, np.ndarray]
    loss: str
    failed: tuple[str, ...]
    notes: tuple[str, ...]

    def chosen(self, layers: Sequence[str], pairs: Sequence[str]) -> RecordedPairs:
        """Some layers, by patterns, and some pairs, by name; all of those of which nothing is said.

        Raises:
            InputError: a layer or a pair that was not recorded.
        """
        for pattern in layers:
            if not any(_fits(name, pattern) for name in self.layers):
                hint = near_name_hint(pattern, self.layers) or "patterns such as blocks.* are fine"
                raise InputError("layers", pattern, f"one of the {len(self.layers)} layers that were recorded", hint)
        for name in pairs:
            if name not in self.pairs:
                hint = near_name_hint(name, self.pairs) or f"such as {self.pairs[0]}"
                raise InputError("pairs", name, f"one of the {len(self.pairs)} pairs that were recorded", hint)
        rows = [k for k, name in enumerate(self.layers) if not layers or any(_fits(name, one) for one in layers)]
        some = [k for k, name in enumerate(self.pairs) if not pairs or name in pairs]
        return dataclasses.replace(
            self, layers=tuple(self.layers[k] for k in rows), places=tuple(self.places[k] for k in rows),
            pairs=tuple(self.pairs[k] for k in some), kinds=tuple(self.kinds[k] for k in some),
            dx2=self.dx2[some], dy2=self.dy2[some], h=self.h[rows][:, some], y=self.y[some], v=self.v[some],
            m=self.m[some],
        )  # fmt: skip


def _fits(name: str, pattern: str) -> bool:
    return name == pattern or fnmatch.fnmatchcase(name, pattern)


def read_pairs(path: str | os.PathLike[str]) -> RecordedPairs:
    """The pairs of a run: of `track_pairs`, of a `Monitor`, or of `isthmus train`.

    Args:
        path: its folder.

    Raises:
        RunFolderError: no run folder, one without pairs, or one whose record cannot be read.
        InputError: fewer than 8 records.
    """
    run = RunFolder.open(path)
    folder, record = str(run.path), run.run.get("pairs")
    settings, status = run.run.get("configuration"), run.run.get("status")
    asked = isinstance(settings, dict) and cast("Mapping[str, object]", settings).get("pairs")
    if not isinstance(record, dict) and asked and status != "complete":
        raise RunFolderError("run", folder, f"a run that wrote its pairs of samples (status here: {status})",
                             "pairs are written at the end: resume it, or run it again")  # fmt: skip
    if not isinstance(record, dict):
        raise RunFolderError("run", folder, "a run that recorded pairs of samples", _TRACK)
    try:
        return _read(run, cast("Mapping[str, Any]", record))
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        expected = f"a record of pairs as isthmus.track_pairs writes it ({type(error).__name__}: {error})"
        raise RunFolderError("run", folder, expected, _TRACK) from None


def _read(run: RunFolder, record: Mapping[str, Any]) -> RecordedPairs:
    layers = tuple(str(name) for name in record["layers"])
    pairs = tuple(str(one["pair"]) for one in record["pairs"])
    if not layers or not pairs or len(set(layers)) < len(layers) or len(set(pairs)) < len(pairs):
        raise ValueError("layers or pairs are missing or named twice")
    table = run.metrics().filter(pl.col("step").is_not_null() & pl.col("pair").is_in(pairs))
    steps = tuple(int(step) for step in table.filter(pl.col("metric") == "pair_y")["step"].unique().sort())
    h = _courses(table, "pair_h", steps, layers, pairs)
    y, v, m = (_courses(table, name, steps, ("",), pairs)[0] for name in ("pair_y", "pair_v", "pair_mean"))
    unit = RATES if record.get("time") == RATES else STEPS
    times = np.array(steps, dtype=np.float64)
    if unit == RATES:
        times = np.array([float(record["times"][str(step)]) for step in steps])
    failed = _failed(table)
    kept = _kept(times, np.concatenate([h, y[None], v[None]]), [step in failed for step in steps])
    if len(kept) < LEAST_TIMES:
        raise InputError("run", f"{len(kept)} records of pairs with numbers", f"at least {LEAST_TIMES} of them",
                         "record more often, or train longer")  # fmt: skip
    count, last = len(record["samples"]), max(len(layers) - 1, 1)
    arrays = {name.removeprefix("pairs/"): array.astype(np.float64) for name, array in _arrays(run).items()
              if name.startswith("pairs/") and array.shape == (count, count)}  # fmt: skip
    return RecordedPairs(
        title=str(run.run.get("title") or run.path.name), layers=layers,
        places=tuple((k, k / last) for k in range(len(layers))), pairs=pairs,
        kinds=tuple(str(one.get("kind", "")) for one in record["pairs"]),
        dx2=np.array([float(one["dx2"]) for one in record["pairs"]]),
        dy2=np.array([float(one["dy2"]) for one in record["pairs"]]),
        steps=tuple(steps[k] for k in kept), times=times[kept], unit=unit, h=h[..., kept], y=y[:, kept], v=v[:, kept],
        m=m[:, kept], samples=tuple(int(sample) for sample in record["samples"]), matrices=arrays,
        loss=_loss(run), failed=tuple(failed[step] for step in steps if step in failed),
        notes=tuple(str(note) for note in record.get("notes") or ()),
    )  # fmt: skip


def _loss(run: RunFolder) -> str:
    """Name of the loss, wherever a command keeps it; empty where none says."""
    for part in (run.run.get("measured"), run.run, run.run.get("configuration")):
        name = cast("Mapping[str, object]", part).get("loss") if isinstance(part, dict) else None
        if isinstance(name, str) and name not in ("", "auto"):
            return name
    return ""


def _failed(table: pl.DataFrame) -> dict[int, str]:
    """Steps at which nothing could be recorded, with the reason; numbers that are not finite are no such reason."""
    whole = table.group_by("step").agg((pl.col("status") == "failed").all().alias("failed"), pl.col("note").first())
    whole = whole.filter(pl.col("failed") & ~pl.col("note").str.starts_with(NOT_FINITE))
    return {int(step): str(note) for step, note in whole.select("step", "note").iter_rows()}


def _arrays(run: RunFolder) -> dict[str, np.ndarray]:
    """The arrays of the run; without them everything but the structure can be said."""
    return run.arrays() if (run.path / "arrays.safetensors").exists() else {}


def _courses(
    table: pl.DataFrame, metric: str, steps: Sequence[int], layers: Sequence[str], pairs: Sequence[str]
) -> np.ndarray:
    """Values of a metric, `(layers, pairs, times)`; NaN where there is none."""
    found = np.full((len(layers), len(pairs), len(steps)), np.nan)
    rows = table.filter((pl.col("metric") == metric) & pl.col("value").is_not_null())
    rows = rows.filter(pl.col("layer").fill_null("").is_in(list(layers)) & pl.col("step").is_in(list(steps)))
    at = [
        rows[name].fill_null("").to_list() if name == "layer" else rows[name].to_list()
        for name in ("layer", "pair", "step")
    ]
    places = [{key: k for k, key in enumerate(keys)} for keys in (layers, pairs, steps)]
    index = [np.array([place[key] for key in keys], dtype=np.int64) for place, keys in zip(places, at, strict=True)]
    found[index[0], index[1], index[2]] = rows["value"].to_numpy()
    return found


def _kept(times: np.ndarray, values: np.ndarray, failed: Sequence[bool]) -> list[int]:
    """Records that count: not those that failed, nor any without a number before others with some or of no new time."""
    some = np.asarray(np.isfinite(values).any(axis=(0, 1)))
    last = int(np.flatnonzero(some)[-1]) if some.any() else -1
    kept: list[int] = []
    for k in range(len(times)):
        later = not kept or times[k] > times[kept[-1]]
        if later and (some[k] or (k > last and not failed[k])):
            kept.append(k)
    return kept if some.any() else []
