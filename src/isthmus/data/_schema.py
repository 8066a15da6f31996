"""Which columns a table has, and how they become numbers; kept with a run so that new files are read the same way."""

from __future__ import annotations

import dataclasses
import difflib
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
import polars as pl

from isthmus._errors import DataWarning, InputError

ColumnKind = Literal["numeric", "boolean", "one-hot"]
LabelType = Literal["text", "integer", "boolean"]

MISSING_WORDS = ("na", "n/a", "nan", "null", "none", "?")
"""What stands for a missing value among numbers, in any case. Among texts only the empty one does."""

MISSING_CATEGORY = "missing"
"""Category of texts that are missing, where missing values are imputed."""

LEAVE_OUT = "leave the column out: name those to use with --inputs (inputs=…)"
DATE_HINT = f"turn them into a number (days since a date, say), or {LEAVE_OUT}"

_BOOLEANS = {"true": 1.0, "false": 0.0}
_WHOLE = r"^[+-]?\d+$"


def listed(names: Iterable[str], limit: int = 8) -> str:
    """Names in quotes (with newlines escaped), at most `limit` of them."""
    every = list(names)
    shown = ", ".join(repr(name) for name in every[:limit])
    return shown if len(every) <= limit else f"{shown} and {len(every) - limit} more"


def near(name: str, known: Iterable[str]) -> str:
    """`did you mean …?`, or the first of the known names where none is close."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else f"there are {listed(names)}"


def column_error(name: str, found: str, expected: str, hint: str = "") -> InputError:
    """An `InputError` about one column."""
    return InputError(f"column {name!r}", found, expected, hint)


def is_text(series: pl.Series) -> bool:
    """Whether a column holds texts, however they are stored."""
    return series.dtype == pl.String or series.dtype == pl.Categorical or series.dtype == pl.Enum


def stripped(series: pl.Series) -> pl.Series:
    """Texts without surrounding blanks, null where nothing is left."""
    text = series.cast(pl.String).str.strip_chars()
    return text.set(text == "", None)


def _without_missing_words(text: pl.Series) -> pl.Series:
    return text.set(text.str.to_lowercase().is_in(MISSING_WORDS), None)


def parsed_numbers(series: pl.Series) -> tuple[pl.Series, pl.Series]:
    """A column as float64 with null for missing, and a mask of the texts that are neither number nor missing."""
    if is_text(series):
        text = _without_missing_words(stripped(series))
        values = text.cast(pl.Float64, strict=False)
        return values, text.is_not_null() & values.is_null()
    values = series.cast(pl.Float64).fill_nan(None)
    return values, pl.Series([False]).new_from_index(0, len(series))


def parsed_booleans(series: pl.Series) -> tuple[pl.Series, pl.Series]:
    """The same for true and false, as 1 and 0."""
    if series.dtype == pl.Boolean:
        return parsed_numbers(series)
    text = _without_missing_words(stripped(series)).str.to_lowercase()
    values = text.replace_strict(_BOOLEANS, default=None, return_dtype=pl.Float64)
    return values, text.is_not_null() & values.is_null()


def is_whole(series: pl.Series) -> bool:
    """Whether every value that is there is an integer by its type (or, in a text file, by how it is written)."""
    if series.dtype == pl.String:
        text = _without_missing_words(stripped(series))
        return bool(text.str.contains(_WHOLE).fill_null(True).all())
    return series.dtype.is_integer()


def texts(series: pl.Series) -> pl.Series:
    """A column as texts, null where nothing but blanks is written."""
    text = series.cast(pl.String)
    return text.set(stripped(text).is_null(), None)


@dataclasses.dataclass(frozen=True)
class Column:
    """One input column.

    Attributes:
        name: in the user's file.
        kind: `numeric`, `boolean` (true is 1) or `one-hot`.
        categories: of a one-hot column, in order; a text that is none of them becomes zeros.
        median: what stands in for missing numbers; None where missing values are errors.
    """

    name: str
    kind: ColumnKind
    categories: tuple[str, ...] = ()
    median: float | None = None

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the inputs that the column becomes."""
        return tuple(f"{self.name}={c}" for c in self.categories) if self.kind == "one-hot" else (self.name,)


@dataclasses.dataclass(frozen=True)
class TableSchema:
    """How a user's table becomes inputs and targets; `run.json` keeps it under `task.columns`.

    Attributes:
        inputs: the input columns, in order.
        targets: names of the target columns.
        kind: `regression` or `classification`.
        labels: of the classes, in order, as texts (empty for regression).
        label_type: what the labels were in the file.
        impute: `median` where missing inputs are filled in, else None.
        array: name of the input array of an `.npz` file.
    """

    inputs: tuple[Column, ...]
    targets: tuple[str, ...]
    kind: Literal["regression", "classification"]
    labels: tuple[str, ...] = ()
    label_type: LabelType = "text"
    impute: Literal["median"] | None = None
    array: str | None = None

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the network's inputs."""
        return tuple(name for column in self.inputs for name in column.feature_names)

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TableSchema:
        """The inverse of `to_dict`."""
        columns = tuple(Column(c["name"], c["kind"], tuple(c["categories"]), c["median"]) for c in values["inputs"])
        changed: dict[str, Any] = {
            "inputs": columns,
            "targets": tuple(values["targets"]),
            "labels": tuple(values["labels"]),
        }
        return cls(**{**values, **changed})

    def label_values(self) -> np.ndarray:
        """The class labels as they were in the user's file."""
        if self.label_type == "integer":
            return np.array([int(label) for label in self.labels])
        if self.label_type == "boolean":
            return np.array([label == "true" for label in self.labels])
        return np.array(self.labels, dtype=np.str_)

    def encode(self, frame: pl.DataFrame, *, what: str = "data") -> np.ndarray:
        """The inputs `(n, len(feature_names))` in the user's units, of a frame that has the input columns.

        Texts that are no category become zeros, with a `DataWarning` that names them.

        Args:
            frame: columns are found by name; others are ignored.
            what: the argument that errors name.

        Raises:
            InputError: a column is missing, a missing value cannot be filled in, or a value is no finite number.
        """
        absent = [c.name for c in self.inputs if c.name not in frame.columns]
        if absent:
            others = [n for n in frame.columns if n not in {c.name for c in self.inputs}] or frame.columns
            raise InputError(what, f"no {'columns' if len(absent) > 1 else 'column'} {listed(absent)}",
                             "every input column of the training data", near(absent[0], others))  # fmt: skip
        missing: dict[str, int] = {}
        blocks: list[np.ndarray] = []
        for column in self.inputs:
            block, absent_here = self._block(column, frame[column.name], what)
            if absent_here:
                missing[column.name] = absent_here
            blocks.append(block)
        if missing:
            counts = ", ".join(f"{name!r} ({n})" for name, n in list(missing.items())[:8])
            more = f" and {len(missing) - 8} more columns" if len(missing) > 8 else ""
            hint = "fill them in, drop these rows, or train with --impute median (impute='median')"
            raise InputError(what, f"missing values in {counts}{more}", "a value in every row", hint)
        return np.concatenate(blocks, axis=1)

    def _block(self, column: Column, series: pl.Series, what: str) -> tuple[np.ndarray, int]:
        """Numbers of one column, and how many are missing and cannot be filled in."""
        check_type(series)
        if column.kind == "one-hot":
            text = texts(series)
            absent = text.null_count() if self.impute is None else 0
            text = text.fill_null(MISSING_CATEGORY)
            unseen = [str(c) for c in text.unique().sort() if c not in column.categories]
            if unseen and not absent:
                rows = int(text.is_in(unseen).sum())
                warnings.warn(f"column {column.name!r}: {listed(unseen)} not among the categories of the training "
                              f"rows; all-zero in {rows} rows", DataWarning, stacklevel=4)  # fmt: skip
            return np.stack([(text == c).to_numpy() for c in column.categories], axis=1).astype(np.float64), absent
        values = numbers(column.name, series, boolean=column.kind == "boolean")
        absent = values.null_count()
        if absent and column.median is not None:
            values, absent = values.fill_null(column.median), 0
        return values.to_numpy().astype(np.float64).reshape(-1, 1), absent


def check_type(series: pl.Series) -> None:
    """Refuse a column whose values are dates, times or no single values at all."""
    if series.dtype.is_temporal():
        raise column_error(series.name, "dates or times", "numbers or text",
                           DATE_HINT)  # fmt: skip
    if not (series.dtype.is_numeric() or is_text(series) or series.dtype == pl.Boolean or series.dtype == pl.Null):
        raise column_error(series.name, f"values of type {series.dtype}", "numbers, text or true/false",
                           LEAVE_OUT)  # fmt: skip


def numbers(name: str, series: pl.Series, *, boolean: bool = False) -> pl.Series:
    """A numeric (or true/false) column as finite float64 with nulls; the first value that is none is an error."""
    values, wrong = parsed_booleans(series) if boolean and not series.dtype.is_numeric() else parsed_numbers(series)
    if bool(wrong.any()):
        row = int(wrong.arg_max() or 0)
        count = int(wrong.sum())
        shown = str(series[row])
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        comma = bool(re.fullmatch(r"\s*-?\d+,\d+\s*", shown))
        hint = "write decimals with a point" if comma else "correct it, or leave it empty where it is missing"
        raise column_error(name, f"{shown!r} in row {row + 1} ({count} such of {len(series)})",
                           "true or false" if boolean else "numbers", hint)  # fmt: skip
    infinite = values.is_infinite().fill_null(False)
    if bool(infinite.any()):
        first = int(infinite.arg_max() or 0) + 1
        raise column_error(name, f"{int(infinite.sum())} infinite values (first in row {first})", "finite numbers",
                           "drop these rows or correct them")  # fmt: skip
    return values
