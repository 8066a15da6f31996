"""A user's own table as a task: what the columns are is found out, said, and kept."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np
import polars as pl
import torch

from isthmus._errors import DataNote, DataWarning, InputError, near_name_hint
from isthmus._random import numpy_generator
from isthmus.data._schema import (
    DATE_HINT,
    LEAVE_OUT,
    MISSING_CATEGORY,
    Column,
    LabelType,
    TableSchema,
    check_type,
    column_error,
    is_text,
    is_whole,
    listed,
    numbers,
    parsed_booleans,
    parsed_numbers,
    stripped,
    texts,
)
from isthmus.data._table_files import TableFile, check_table_file, read_targets
from isthmus.data._task import Task, TaskKind, make_task

MAX_CATEGORIES = 50
"""Texts of a column with more different values are no categories but names or sentences (chosen here)."""

MAX_CLASSES = 20
"""Whole numbers with more different values are taken as numbers, not classes (chosen here: digits have 10, and scores
of questionnaires seldom have more than 11 values, while counts and years soon pass 20)."""

MAX_CLASS_SHARE = 0.1
"""The same for more different values than this share of the rows, except for two values."""

_DATES = r"^\s*(\d{4}-\d{1,2}-\d{1,2}([T ].*)?|\d{1,2}[/.]\d{1,2}[/.]\d{2,4}( .*)?|\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?)\s*$"

TASKS = ("auto", "regression", "classification")


def load_table(
    path: str | os.PathLike[str],
    *,
    target: str | int | Sequence[str | int] | None = None,
    task: str = "auto",
    inputs: str | Sequence[str] | None = None,
    impute: str | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Task:
    """A table in a file as a task: text columns one-hot encoded, rows split with a seeded generator, scaled.

    `.csv` (UTF-8, with a header line) and `.parquet` have columns by name; columns of a two-dimensional `.npy` have
    numbers; an `.npz` holds arrays `x` and `y`, `X` and `y`, or `images` and `labels`. Nothing is ever unpickled.
    Categories, medians and scaling come from the training rows alone. What was guessed is said in a `DataNote`.

    Args:
        path: of the file.
        target: column or columns to predict (of an `.npz`, the array); several are regression with several outputs.
            Unless given: the column `target`, `label` or `y`, of an `.npy` the last one.
        task: `regression`, `classification`, or `auto`: classes where the target is text, true/false, or whole numbers
            with two different values or with at most 20 that are at most 10 % of the rows.
        inputs: the input columns, all others unless given (of an `.npz`, the array).
        impute: `median` fills in missing inputs, numbers with their median over the training rows and texts with a
            category of their own, `missing`; None refuses them.
        test_fraction: share of the rows (for classes: of each class) held out, in (0, 1).
        seed: of the split.

    Returns:
        The task; `TableSchema.from_dict(task.description["columns"])` says how columns became inputs.

    Raises:
        InputError: a file or a column that is not there or cannot be used; the message names it, and what to try.
    """
    if task not in TASKS:
        raise InputError("task", task, "'auto', 'regression' or 'classification'", near_name_hint(task, TASKS))
    if impute not in (None, "median"):
        raise InputError("impute", impute, "'median', or nothing to refuse missing values")
    if not 0 < test_fraction < 1:
        raise InputError("test_fraction", test_fraction, "a number in (0, 1)")
    file = check_table_file(path)
    targets = [target] if isinstance(target, (str, int)) else target
    read = read_targets(
        file, [str(t) for t in targets] if targets else None, [inputs] if isinstance(inputs, str) else inputs
    )
    if read.frame.height < 3:
        raise InputError(
            "data", f"{file.name} with {read.frame.height} rows", "at least 3 rows: 2 to train on, 1 to test"
        )
    if read.note:
        warnings.warn(read.note, DataNote, stacklevel=2)
    read = _without_row_numbers(read)
    features = [name for name in read.frame.columns if name not in read.targets]
    if not features:
        raise InputError("data", f"{file.name} with no column but the target", "at least one input column")

    kind, why = _task_kind(read, task, whole_floats=file.suffix.lower() == ".npy")
    if task == "auto":
        warnings.warn(f"task: {kind}, since {why}", DataNote, stacklevel=2)
    labels: tuple[str, ...] = ()
    label_type: LabelType = "text"
    if kind == "classification":
        labels, label_type, numbers_of_classes = _classes(read.frame[read.targets[0]])
        y = torch.from_numpy(numbers_of_classes)
    else:
        y = torch.from_numpy(np.stack([_real_target(read.frame[name]) for name in read.targets], axis=1))
    held_out = _split(y.numpy() if labels else None, len(y), test_fraction, seed, labels)
    columns = tuple(_column(read.frame[name], ~held_out, impute) for name in features)
    schema = TableSchema(columns, read.targets, kind, labels, label_type, "median" if impute else None, read.array)
    x = torch.from_numpy(schema.encode(read.frame))
    test = torch.from_numpy(held_out)
    return make_task(
        file.name,
        kind,
        (x[~test], y[~test]),
        (x[test], y[test]),
        feature_names=schema.feature_names,
        class_names=labels,
        description={
            "source": file.name, "rows": len(y), "split_seed": seed, "test_fraction": test_fraction,
            "columns": schema.to_dict(),
        },
    )  # fmt: skip


def _without_row_numbers(read: TableFile) -> TableFile:
    """Leave out a column without a name that counts the rows: an index that was saved with the table."""
    if "" not in read.frame.columns or "" in read.targets:
        return read
    values, wrong = parsed_numbers(read.frame[""])
    first = values[0]
    counts = first in (0, 1) and bool((values == pl.Series(np.arange(len(values)) + first)).fill_null(False).all())
    if bool(wrong.any()) or not counts:
        return read
    warnings.warn("the first column has no name and counts the rows: left out", DataNote, stacklevel=3)
    return TableFile(read.frame.drop(""), read.targets, read.note, read.array)


def _refuse_missing(series: pl.Series, absent: int) -> None:
    if absent:
        raise column_error(series.name, f"{absent} missing values in the target", "a target in every row",
                           "drop these rows: targets are not filled in")  # fmt: skip


def _real_target(series: pl.Series) -> np.ndarray:
    check_type(series)
    boolean = series.dtype == pl.Boolean
    if not boolean and series.dtype == pl.String and not bool(parsed_booleans(series)[1].any()):
        boolean = True
    values = numbers(series.name, series, boolean=boolean)
    _refuse_missing(series, values.null_count())
    if values.n_unique() == 1:
        raise column_error(series.name, "a constant target", "targets that vary", "a constant needs no network")
    return values.to_numpy().astype(np.float64)


def _label_type(series: pl.Series, *, whole_floats: bool = False) -> Literal["text", "integer", "boolean", "number"]:
    check_type(series)
    values, wrong = parsed_numbers(series)
    if series.dtype == pl.Boolean or (series.dtype == pl.String and not bool(parsed_booleans(series)[1].any())):
        return "boolean"
    if bool(wrong.any()):
        return "text"
    if is_whole(series) or (whole_floats and bool((values == values.floor()).fill_null(True).all())):
        return "integer"
    return "number"


def _task_kind(read: TableFile, task: str, *, whole_floats: bool) -> tuple[TaskKind, str]:
    """The kind of task, and the reason in words."""
    if len(read.targets) > 1:
        if task == "classification":
            raise InputError("task", task, f"one target column for classes (got {listed(read.targets)})")
        return "regression", f"{len(read.targets)} target columns were named"
    if task == "regression":
        return "regression", ""
    target = next(iter(read.targets))
    series = read.frame[target]
    if task == "classification":
        return "classification", ""
    if series.null_count() == len(series):
        _refuse_missing(series, len(series))
    label_type = _label_type(series, whole_floats=whole_floats)
    values = parsed_numbers(series)[0] if label_type in ("integer", "number") else texts(series)
    distinct, n = values.drop_nulls().n_unique(), len(series)
    if label_type == "text":
        _mostly_text(series)
        return "classification", f"target {series.name!r} is text with {distinct} different values"
    if label_type == "boolean":
        return "classification", f"target {series.name!r} is true or false"
    if label_type == "number":
        return "regression", f"target {series.name!r} holds numbers that are not whole"
    what = f"target {series.name!r} holds whole numbers with {distinct} different values in {n} rows"
    few = distinct == 2 or (distinct <= MAX_CLASSES and distinct <= MAX_CLASS_SHARE * n)
    if few:
        return "classification", f"{what}; --task regression takes them as numbers"
    return "regression", f"{what}; --task classification takes them as classes"


def _classes(series: pl.Series) -> tuple[tuple[str, ...], LabelType, np.ndarray]:
    """Labels in order, what they were, and the class number of every row."""
    label_type = _label_type(series, whole_floats=True)
    if label_type == "number":
        shown = parsed_numbers(series)[0].drop_nulls().n_unique()
        raise column_error(series.name, f"{shown} different numbers that are not whole", "labels",
                           "use --task regression")  # fmt: skip
    if label_type == "text":
        keys = texts(series)
    else:
        values = (parsed_booleans if label_type == "boolean" else parsed_numbers)(series)[0]
        if series.dtype.is_integer():
            keys = series  # exact also beyond 2⁵³
        else:
            keys = numbers(series.name, series, boolean=label_type == "boolean").cast(pl.Int64)
        _refuse_missing(series, values.null_count())
    _refuse_missing(series, keys.null_count())
    unique = keys.unique().sort()
    if len(unique) < 2:
        raise column_error(
            series.name, "a constant target (one class)", "at least 2 classes", "a constant needs no network"
        )
    if len(unique) > max(2, len(series) // 2):
        raise column_error(series.name, f"{len(unique)} different labels in {len(series)} rows",
                           "classes with several rows each", "name another target, or use --task regression"
                           )  # fmt: skip
    names = unique.to_list()
    labels = tuple(("false", "true")[v] for v in names) if label_type == "boolean" else tuple(str(v) for v in names)
    number = {value: i for i, value in enumerate(names)}
    return labels, label_type, np.array([number[value] for value in keys], dtype=np.int64)


def _split(classes: np.ndarray | None, n: int, fraction: float, seed: int, labels: Sequence[str]) -> np.ndarray:
    """Mask of the held-out rows: by class where there are classes, at least one row, never all rows of a class."""
    rng = numpy_generator(seed, "table split")
    held_out = np.zeros(n, dtype=bool)
    if classes is None:
        held_out[rng.permutation(n)[: min(max(1, round(fraction * n)), n - 2)]] = True
        return held_out
    alone: list[str] = []
    for number, label in enumerate(labels):
        members = rng.permutation(np.flatnonzero(classes == number))
        held_out[members[: min(round(fraction * len(members)), len(members) - 1)]] = True
        if len(members) == 1:
            alone.append(label)
    if alone:
        warnings.warn(f"classes with a single row, which stays in the training set: {listed(alone)}", DataWarning,
                      stacklevel=3)  # fmt: skip
    if not held_out.any():  # every class is small: hold out one row of the largest
        largest = np.flatnonzero(classes == np.bincount(classes).argmax())
        held_out[rng.permutation(largest)[0]] = True
    return held_out


def _mostly_text(series: pl.Series) -> None:
    """Refuse texts most of which are numbers, naming the first that is none, and dates."""
    values, wrong = parsed_numbers(series)
    if int(wrong.sum()) < values.count():  # fewer texts than numbers
        numbers(series.name, series)
    text = stripped(series).drop_nulls()
    if len(text) and bool(text.str.contains(_DATES).all()):
        raise column_error(series.name, f"dates or times ({str(text[0])!r})", "numbers or text",
                           DATE_HINT)  # fmt: skip


def _column(series: pl.Series, train: np.ndarray, impute: str | None) -> Column:
    """What an input column is, from all rows; its categories or median, from the training rows."""
    check_type(series)
    known = series.filter(pl.Series(train))
    if is_text(series):
        series, known = series.cast(pl.String), known.cast(pl.String)
        if parsed_numbers(series)[0].null_count() < len(series) and not bool(parsed_numbers(series)[1].any()):
            kind = "numeric"
        elif stripped(series).null_count() < len(series) and not bool(parsed_booleans(series)[1].any()):
            kind = "boolean"
        else:
            _mostly_text(series)
            return _one_hot(series, known, impute)
    else:
        kind = "boolean" if series.dtype == pl.Boolean else "numeric"
    values = numbers(series.name, series, boolean=kind == "boolean").filter(pl.Series(train))
    if values.null_count() == len(values):
        raise column_error(series.name, f"{len(values)} missing values in {len(values)} training rows", "some values",
                           LEAVE_OUT)  # fmt: skip
    median = float(np.median(values.drop_nulls().to_numpy())) if impute else None
    return Column(series.name, kind, median=median)


def _one_hot(series: pl.Series, known: pl.Series, impute: str | None) -> Column:
    distinct = texts(series).drop_nulls().n_unique()
    if distinct == 0:
        raise column_error(series.name, f"no value in {len(series)} rows", "some values", LEAVE_OUT)
    if distinct > MAX_CATEGORIES:
        raise column_error(series.name, f"text with {distinct} different values",
                           f"numbers, or at most {MAX_CATEGORIES} categories",
                           f"group its values, or {LEAVE_OUT}")  # fmt: skip
    categories = texts(known)
    if impute:
        categories = categories.fill_null(MISSING_CATEGORY)
    present = [str(c) for c in categories.drop_nulls().unique().sort()]
    if not present:
        raise column_error(series.name, "no value in the training rows", "some values", LEAVE_OUT)
    return Column(series.name, "one-hot", tuple(present))
