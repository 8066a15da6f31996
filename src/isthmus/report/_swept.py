"""A sweep as `run.json` and the table have it: files that may hold anything, so nothing is trusted."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import polars as pl

from isthmus._records import METRICS
from isthmus.report._reproduced import clean

_LARGEST = 1e100
_TEXT = 300
_WHOLE = 1e15
_AXES = 12
_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=,-]{0,200}")
_SPLITS = ("train", "validation", "test", "")

Number = tuple[str, str]
"""A metric and the split that it is of."""


@dataclasses.dataclass(frozen=True)
class SweptRun:
    """One run of a sweep.

    Attributes:
        digest: what its rows of the table have as `layer`.
        number: its place in the sweep, from 1.
        settings: what tells it from the others; a value is a number or a text.
        status: `complete`, `failed`, …
        error: why it failed; may be empty.
        link: its page, relative to that of the sweep; empty where there is none.
        numbers: its final numbers.
    """

    digest: str
    number: int
    settings: Mapping[str, float | str]
    status: str
    error: str
    link: str
    numbers: Mapping[Number, float]

    @property
    def title(self) -> str:
        """What tells it from the others, in words."""
        said = ", ".join(f"{name} = {shown(value)}" for name, value in self.settings.items())
        return said or f"run {self.number}"


@dataclasses.dataclass(frozen=True)
class Swept:
    """What a sweep holds: settings that differ, each with its values in order, the runs, and what cannot be used."""

    axes: Mapping[str, tuple[float | str, ...]]
    runs: tuple[SweptRun, ...]
    problems: tuple[str, ...]

    @property
    def numbers(self) -> list[Number]:
        """The final numbers that some run has, in the order of the catalogue."""
        found = {key for run in self.runs for key in run.numbers}
        order = {name: place for place, name in enumerate(METRICS)}
        return sorted(found, key=lambda key: (order[key[0]], _SPLITS.index(key[1])))


def shown(value: float | str) -> str:
    """A setting's value in words."""
    if isinstance(value, str):
        return value
    return f"{value:.0f}" if float(value).is_integer() and abs(value) < _WHOLE else f"{value:.6g}"


def _value(value: object) -> float | str:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST:
        return float(value)
    if isinstance(value, (list, tuple)):
        return clean(",".join(str(item) for item in cast("Sequence[object]", value)[:20]), 80) or "none"
    return clean("none" if value is None else value, 80) or "none"


def _mapping(value: object) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}


def _numbers(table: pl.DataFrame) -> dict[str, dict[Number, float]]:
    """The last value of each number of each run."""
    good = table.filter(
        (pl.col("status") == "ok") & pl.col("value").is_between(-_LARGEST, _LARGEST)
        & pl.col("metric").is_in(list(METRICS)) & pl.col("split").fill_null("").is_in(_SPLITS)
    )  # fmt: skip
    found: dict[str, dict[Number, float]] = {}
    for digest, metric, split, value in good.select("layer", "metric", "split", "value").iter_rows():
        found.setdefault(digest or "", {})[metric, split or ""] = float(value)
    return found


def read_sweep_record(run: Mapping[str, Any], table: pl.DataFrame) -> Swept | None:
    """The sweep that a run folder holds, or None where the run is of another kind."""
    if "sweep" not in run:
        return None
    part = _mapping(run["sweep"])
    listed: object = part.get("runs")
    entries: list[object] = list(cast("Sequence[object]", listed)) if isinstance(listed, (list, tuple)) else []
    usable = [_mapping(entry) for entry in entries if isinstance(entry, dict)]
    problems = [] if usable else ["run.json lists no runs of a sweep."]
    if len(usable) < len(entries):
        problems.append(f"{len(entries) - len(usable)} of {len(entries)} runs in run.json cannot be read.")
    axes = {clean(name, 60): name for name in list(_mapping(part.get("axes")))[:_AXES]}
    numbers = _numbers(table)
    runs: list[SweptRun] = []
    for number, entry in enumerate(usable, 1):
        given = _mapping(entry.get("settings"))
        digest, name = str(entry.get("digest", ""))[:80], str(entry.get("name", ""))
        status = clean(entry.get("status", "unknown"), 40)
        error = entry.get("error")
        paged = status == "complete" and entry.get("page") is not False and _SAFE_NAME.fullmatch(name)
        link = f"runs/{name}/report.html" if paged else ""
        runs.append(SweptRun(digest, number, {said: _value(given.get(key)) for said, key in axes.items()}, status,
                             clean(error, _TEXT) if error else "", link, numbers.get(digest, {})))  # fmt: skip
    values = {said: tuple(dict.fromkeys(run.settings[said] for run in runs)) for said in axes}
    return Swept(values, tuple(runs), tuple(problems))


def is_numeric(values: Sequence[float | str]) -> bool:
    """Whether an axis is one of numbers."""
    return all(isinstance(value, float) and math.isfinite(value) for value in values)
