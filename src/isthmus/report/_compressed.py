"""A compression as `run.json` and the table have it: files that may hold anything, so nothing is trusted."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import polars as pl

from isthmus.report._reproduced import clean

_LARGEST = 1e100
_SERIES_UP_TO, _NAME = 8, 24
_DEEPEST = 10**6
FULL = "full"
SPLITS = ("choosing", "judging")


@dataclasses.dataclass(frozen=True)
class JudgedPart:
    """The samples of one part, and what they say of the full network and of the small one; None where unknown."""

    n: int | None
    what: str
    full: float | None
    loss: float | None
    bound: float | None


@dataclasses.dataclass(frozen=True)
class Compression:
    """What a run says of its compression.

    Attributes:
        before: layers of the full network; None where unknown.
        depth: layers of the small one.
        series: the curve that it is on.
        tolerance: as a share of the full network's loss, or where `relative` is false as an amount of the loss.
        relative: see above.
        score: `accuracy` or `r_squared`.
        source: name of the run that was compressed.
        parts: the samples that choose, and those that judge.
        problems: what could not be used, as sentences.
    """

    before: int | None
    depth: int | None
    series: str
    tolerance: float | None
    relative: bool
    score: str
    source: str
    parts: Mapping[str, JudgedPart]
    problems: tuple[str, ...]


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _DEEPEST else None


def _number(value: object) -> float | None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    return float(value) if abs(value) <= _LARGEST else None  # None for NaN, too


def _mapping(value: object) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}


def _part(value: object) -> JudgedPart:
    part = _mapping(value)
    return JudgedPart(_count(part.get("n")), clean(part.get("what", ""), 120), _number(part.get("full")),
                      _number(part.get("loss")), _number(part.get("bound")))  # fmt: skip


def read_compression(run: Mapping[str, Any]) -> Compression | None:
    """The compression that a run folder holds, or None where the run is of another kind."""
    if "compression" not in run:
        return None
    part = _mapping(run["compression"])
    before, depth = _count(part.get("depth_before")), _count(part.get("depth"))
    problems = () if before and depth else ("run.json does not say how many layers there were, and are.",)
    relative = part.get("relative") is not False
    return Compression(
        before, depth, clean(part.get("series", ""), _NAME), _number(part.get("tolerance")), relative,
        "accuracy" if part.get("score") == "accuracy" else "r_squared", clean(part.get("source", ""), 120),
        {split: _part(part.get(split)) for split in SPLITS}, problems,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class DepthLine:
    """A number of every network that one way makes: by depth, deep ones last; and why some have none."""

    name: str
    values: Mapping[int, float]
    reasons: Mapping[str, tuple[int, ...]]


def depth_lines(table: pl.DataFrame, metric: str, split: str) -> list[DepthLine]:
    """The numbers of every way to fewer layers, in the order of the table; without the row of the full network."""
    rows = table.filter(
        (pl.col("metric") == metric) & (pl.col("split").fill_null("") == split)
        & (pl.col("layer").fill_null("") != FULL) & pl.col("index").is_between(1, _DEEPEST)
    ).sort("index", maintain_order=True)  # fmt: skip
    order = table.filter(pl.col("layer").is_not_null()).get_column("layer").unique(maintain_order=True).to_list()
    found: list[DepthLine] = []
    for name in order:
        values: dict[int, float] = {}
        reasons: dict[str, list[int]] = {}
        for depth, value, note in rows.filter(pl.col("layer") == name).select("index", "value", "note").iter_rows():
            if value is not None and abs(value) <= _LARGEST:
                values[depth] = float(value)
            else:
                reasons.setdefault(clean(note or "a number too large to be shown", 300), []).append(depth)
        if values or reasons:
            found.append(DepthLine(clean(name, _NAME), values, {why: tuple(at) for why, at in reasons.items()}))
    return found[:_SERIES_UP_TO]


def full_value(table: pl.DataFrame, metric: str, split: str) -> float | None:
    """The number of the full network."""
    rows = table.filter(
        (pl.col("metric") == metric) & (pl.col("split").fill_null("") == split) & (pl.col("layer") == FULL)
        & pl.col("value").is_between(-_LARGEST, _LARGEST)
    )  # fmt: skip
    return float(rows.item(0, "value")) if rows.height else None
