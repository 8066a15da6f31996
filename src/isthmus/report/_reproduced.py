"""The figures of a paper that a run made again: what `run.json` says of them, and their data from CSV files.

Both are files that may hold anything: nothing of them is trusted, and whatever cannot be used is named with a reason.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl

from isthmus.report._layers import middle

MISSING = "not recorded by this run"
KINDS = ("line", "points", "path")
SCALES = ("linear", "log", "symlog")
FIGURES, PANELS, CURVES, RULES = 40, 100, 2000, 12
"""Most figures and panels of a page, curves of a panel, and reference lines of a panel."""

_MAX_BYTES = 60_000_000
_LARGEST = 1e100
_TEXT, _TITLE, _NAME = 1200, 160, 120
_NEEDED = ("panel", "series", "x", "y")
_OPTIONAL = ("low", "high", "seed", "n")
_SAFE_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,59}")

Reason = tuple[str, str]
"""What is not shown, and why."""


@dataclasses.dataclass(frozen=True)
class PaperCurve:
    """One curve of a panel: a series, or one seed of it.

    Attributes:
        series: name in the legend.
        seed: what tells curves of one series apart; empty where it is one curve.
        x: finite.
        y: finite.
        low: lower end of the range of each point; NaN where there is none.
        high: upper end of it.
        n: how many values each point stands for; NaN where unknown.
    """

    series: str
    seed: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n: np.ndarray

    def __len__(self) -> int:
        return len(self.x)

    @property
    def name(self) -> str:
        """Series and seed, as the table heads its column."""
        return f"{self.series} (seed {self.seed})" if self.seed else self.series

    def at(self, rows: np.ndarray) -> PaperCurve:
        """The rows with these numbers only."""
        return dataclasses.replace(self, x=self.x[rows], y=self.y[rows], low=self.low[rows], high=self.high[rows],
                                   n=self.n[rows])  # fmt: skip


@dataclasses.dataclass(frozen=True)
class PaperPanel:
    """One chart of a figure.

    Attributes:
        key: its name in the CSV file.
        stem: name of its files and anchor; unique on the page, letters, digits, hyphens and underscores only.
        title: heading of the chart.
        x: title of the x axis.
        y: title of the y axis.
        kind: one of `KINDS`.
        x_scale: one of `SCALES`.
        y_scale: one of `SCALES`.
        rules: labelled horizontal lines.
        marks: vertical hairlines.
        square: one unit is equally long on both axes.
        curves: the data, in order of first appearance.
        reasons: what is not shown, and why.
    """

    key: str
    stem: str
    title: str
    x: str
    y: str
    kind: str
    x_scale: str
    y_scale: str
    rules: tuple[tuple[float, str], ...]
    marks: tuple[float, ...]
    square: bool
    curves: tuple[PaperCurve, ...]
    reasons: tuple[Reason, ...]


@dataclasses.dataclass(frozen=True)
class PaperFigure:
    """One figure of the paper, made again; texts that are missing say so.

    Attributes:
        key: its number in the paper.
        anchor: its place on the page; unique.
        title: its heading.
        shows: what the paper's figure shows.
        setting: how it was made here.
        seconds: how long computing it took, or None.
        note: what else the reader should know; may be empty.
        panels: its charts.
        problems: what could not be used, as sentences.
    """

    key: str
    anchor: str
    title: str
    shows: str
    setting: str
    seconds: float | None
    note: str
    panels: tuple[PaperPanel, ...]
    problems: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Reproduction:
    """What a run made again of a paper."""

    paper: str
    preset: str
    setting: str
    machine: str
    figures: tuple[PaperFigure, ...]
    problems: tuple[str, ...]


def clean(value: object, limit: int = _TEXT) -> str:
    """`value` as text that every file format can hold: no control characters, no halves of characters, no excess."""
    text = str(value)[: 20 * limit].encode("utf-8", "replace").decode("utf-8")
    text = re.sub(r"\s+", " ", text)
    return middle(re.sub(r"[\x00-\x1f\x7f-\x9f\ufffe\uffff]", "\ufffd", text).strip(), limit)


def _number(value: object) -> float | None:
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST
    return float(cast("float", value)) if usable else None


def _mapping(value: object) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}


def _sequence(value: object) -> list[Any]:
    return list(cast("Sequence[Any]", value)) if isinstance(value, (list, tuple)) else []


def _text(entry: Mapping[str, Any], key: str, otherwise: str = MISSING, limit: int = _TEXT) -> str:
    value = entry.get(key)
    return (clean(value, limit) if isinstance(value, (str, int, float)) else "") or otherwise


class _Names:
    """Hands out names that hold nothing but letters, digits, hyphens and underscores, each only once."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def take(self, *parts: str) -> str:
        wanted = "-".join(re.sub(r"[^A-Za-z0-9_]+", "-", part)[:60].strip("-") or "unnamed" for part in parts)
        name, count = wanted, 1
        # An anchor may be followed by -title; case alone tells no files apart on some systems.
        while {name.lower(), f"{name}-title".lower()} & self._taken:
            count += 1
            name = f"{wanted}-{count}"
        self._taken |= {name.lower(), f"{name}-title".lower()}
        return name


def read_reproduction(folder: Path, run: Mapping[str, Any]) -> Reproduction | None:
    """The reproduction that a run folder holds, or None where the run is of another kind."""
    if "reproduction" not in run:
        return None
    part = _mapping(run["reproduction"])
    entries = _sequence(part.get("figures"))
    problems: list[str] = []
    if not entries:
        problems.append("run.json lists no figures of a reproduction.")
    broken = sum(not isinstance(entry, dict) for entry in entries)
    if broken:
        problems.append(f"{broken} of {len(entries)} figures in run.json cannot be read.")
    usable = [_mapping(entry) for entry in entries if isinstance(entry, dict)]
    if len(usable) > FIGURES:
        problems.append(f"The page shows the first {FIGURES} of {len(usable)} figures.")
    names, room = _Names(), PANELS
    figures: list[PaperFigure] = []
    for entry in usable[:FIGURES]:
        figures.append(_figure(folder, entry, names, room))
        room -= len(figures[-1].panels)
    return Reproduction(_text(part, "paper", limit=_TITLE), _text(part, "preset", limit=_NAME), _text(part, "setting"),
                        _text(part, "machine"), tuple(figures), tuple(problems))  # fmt: skip


def _figure(folder: Path, entry: Mapping[str, Any], names: _Names, room: int) -> PaperFigure:
    key = _text(entry, "key", "", 60)
    data = _data(folder, entry.get("key"))
    entries = _sequence(entry.get("panels"))
    usable = [_mapping(found) for found in entries if isinstance(found, dict)]
    problems: list[str] = []
    if not key:
        problems.append("run.json gives no key for this figure.")
    if not usable:
        problems.append("run.json lists no panels of this figure, so there is nothing to draw.")
    elif len(usable) < len(entries):
        problems.append(f"{len(entries) - len(usable)} of {len(entries)} panels in run.json cannot be read.")
    if len(usable) > room:
        problems.append(f"{len(usable) - room} panels are not shown: a page holds at most {PANELS}.")
    if isinstance(data, pl.DataFrame):
        known = [str(found.get("key")) for found in usable]
        others = data.filter(~pl.col("panel").is_in(known)).get_column("panel")
        if len(others):
            shown = ", ".join(f"“{clean(name, 40)}”" for name in others.unique(maintain_order=True)[:5])
            problems.append(f"{len(others)} rows of data belong to no panel of run.json: {shown}.")
    panels = tuple(_panel(key, found, data, names) for found in usable[: max(room, 0)])
    return PaperFigure(
        key or "?", names.take("paper", key), _text(entry, "title", "(no title recorded)", _TITLE),
        _text(entry, "shows"), _text(entry, "setting"), _number(entry.get("seconds")), _text(entry, "note", ""), panels,
        tuple(problems),
    )  # fmt: skip


def _data(folder: Path, key: object) -> pl.DataFrame | str:
    """The rows of a figure as text, or the reason why there are none."""
    if not isinstance(key, str) or not _SAFE_KEY.fullmatch(key):
        return "the figure's key cannot name a file of data (letters, digits, hyphens and underscores can)"
    name = f"figures/{key}.csv"
    path = folder / "figures" / f"{key}.csv"
    try:
        if path.stat().st_size > _MAX_BYTES:
            return f"{name} is larger than {_MAX_BYTES // 1_000_000} MB"
        frame = pl.read_csv(path.read_bytes(), infer_schema_length=0, encoding="utf8-lossy")
    except FileNotFoundError:
        return f"{name} is missing from the run folder"
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        return f"{name} cannot be read: {clean(error, 200)}"
    lacking = [column for column in _NEEDED if column not in frame.columns]
    if lacking:
        return f"{name} has no column {', '.join(lacking)}"
    absent = [pl.lit(None, dtype=pl.String).alias(column) for column in _OPTIONAL if column not in frame.columns]
    numeric = [pl.col(c).str.strip_chars().cast(pl.Float64, strict=False) for c in ("x", "y", "low", "high", "n")]
    return frame.with_columns(absent).with_columns(*numeric, pl.col("panel", "series", "seed").fill_null(""))


def _one_of(entry: Mapping[str, Any], key: str, known: Sequence[str], reasons: list[Reason]) -> str:
    found = entry.get(key, known[0])
    if found in known:
        return str(found)
    reasons.append((key.replace("_", " "), f"“{clean(found, 40)}” is none of {', '.join(known)}; drawn as {known[0]}"))
    return known[0]


def _panel(figure: str, entry: Mapping[str, Any], data: pl.DataFrame | str, names: _Names) -> PaperPanel:
    reasons: list[Reason] = []
    key = _text(entry, "key", "", _NAME)
    kind = _one_of(entry, "kind", KINDS, reasons)
    x_scale, y_scale = (_one_of(entry, f"{axis}_scale", SCALES, reasons) for axis in "xy")
    square = entry.get("square") is True
    if square and (x_scale, y_scale) != ("linear", "linear"):
        square = False
        reasons.append(("square", "one unit can only be equally long on both axes where both are linear"))
    curves: tuple[PaperCurve, ...] = ()
    if isinstance(data, str):
        reasons.append(("data", data))
    else:
        rows = data.filter(pl.col("panel") == str(entry.get("key")))
        curves = _curves(rows, kind, (x_scale, y_scale), reasons)
    rules = _rules(entry.get("rules"), y_scale, reasons)
    marks = _marks(entry.get("marks"), x_scale, reasons)
    titles = (_text(entry, "title", "(no title recorded)", _TITLE), _text(entry, "x", "x", _TITLE),
              _text(entry, "y", "y", _TITLE))  # fmt: skip
    return PaperPanel(key, names.take("fig", figure, key), *titles, kind, x_scale, y_scale, rules, marks, square,
                      curves, tuple(reasons))  # fmt: skip


def _rules(found: object, scale: str, reasons: list[Reason]) -> tuple[tuple[float, str], ...]:
    rules: list[tuple[float, str]] = []
    entries = _sequence(found)
    for entry in entries:
        pair = _sequence(entry)
        y = _number(pair[0]) if len(pair) == 2 else None
        if y is not None and (y > 0 or scale != "log"):
            rules.append((y, clean(pair[1], _NAME)))
    lost = len(entries) - len(rules[:RULES]) if isinstance(found, (list, tuple)) else int(found is not None)
    if lost:
        reasons.append(("reference lines", f"{lost} cannot be drawn (each is a number and a text; at most {RULES}; "
                        "above 0 on a logarithmic axis)"))  # fmt: skip
    return tuple(rules[:RULES])


def _marks(found: object, scale: str, reasons: list[Reason]) -> tuple[float, ...]:
    entries = _sequence(found)
    numbers = [value for value in map(_number, entries) if value is not None and (value > 0 or scale != "log")]
    lost = len(entries) - len(numbers) if isinstance(found, (list, tuple)) else int(found is not None)
    if lost:
        reasons.append(("hairlines", f"{lost} cannot be drawn (each is a number; above 0 on a logarithmic axis)"))
    return tuple(numbers)


def _drawable(column: str, scale: str) -> pl.Expr:
    return pl.col(column).is_between(1 / _LARGEST if scale == "log" else -_LARGEST, _LARGEST).fill_null(False)


def _curves(rows: pl.DataFrame, kind: str, scales: tuple[str, str], reasons: list[Reason]) -> tuple[PaperCurve, ...]:
    if rows.is_empty():
        reasons.append(("data", "the file of data holds no row of this panel"))
        return ()
    finite = rows.filter(_drawable("x", "linear") & _drawable("y", "linear"))
    good = finite.filter(_drawable("x", scales[0]) & _drawable("y", scales[1]))
    for lost, why in ((rows.height - finite.height, "without a finite number for x and y"),
                      (finite.height - good.height, "not above 0, which a logarithmic axis needs")):  # fmt: skip
        if lost:
            reasons.append((f"{lost} of {rows.height} rows", why))
    all_series = rows.get_column("series").unique(maintain_order=True)
    left = set(good.get_column("series"))
    gone = [clean(name, 40) for name in all_series if name not in left]
    if gone and len(left):
        more = f" and {len(gone) - 8} more" if len(gone) > 8 else ""
        reasons.append((", ".join(gone[:8]) + more, "no row of it can be drawn"))
    labels = _labels([name for name in all_series if name in left])
    groups = good.group_by("series", "seed", maintain_order=True).agg("x", "y", "low", "high", "n")
    if groups.height > CURVES:
        reasons.append((f"{groups.height - CURVES} of {groups.height} curves", f"a chart holds at most {CURVES}"))
    found = [
        PaperCurve(labels[row["series"]], _seed(row["seed"]),
                   *(_floats(row[column]) for column in ("x", "y", "low", "high", "n")))
        for row in groups.head(CURVES).iter_rows(named=True)
    ]  # fmt: skip
    return tuple(curve.at(np.argsort(curve.x, kind="stable")) if kind == "line" else curve for curve in found)


def _floats(values: list[float | None]) -> np.ndarray:
    found = np.array([math.nan if value is None else value for value in values], dtype=np.float64)
    found[~(np.abs(found) <= _LARGEST)] = math.nan
    return found


def _seed(text: str) -> str:
    return clean(re.sub(r"^(\d+)\.0*$", r"\1", text), 40)


def _labels(names: Sequence[str]) -> dict[str, str]:
    """Every series with the name that the page shows: short, not empty, and no two alike."""
    taken: set[str] = set()
    labels: dict[str, str] = {}
    for name in names:
        label, count = clean(name, 80) or "(no name)", 1
        shown = label
        while shown in taken:
            count += 1
            shown = f"{label} ({count})"
        taken.add(shown)
        labels[name] = shown
    return labels
