"""Files of samples: CSV, Parquet and NumPy arrays, all read into frames of named columns."""

from __future__ import annotations

import dataclasses
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from isthmus._errors import InputError
from isthmus.data._schema import TableSchema, listed, near

TABLE_FORMATS = (".csv", ".parquet", ".npy", ".npz")
"""Endings of the files that `load_table` and `read_inputs` read."""

TARGET_NAMES = ("target", "label", "y")
"""Columns taken as the target where none is named, in this order."""

_ARRAYS = (("x", "y"), ("X", "y"), ("images", "labels"))


@dataclasses.dataclass(frozen=True)
class TableFile:
    """The columns of a file.

    Attributes:
        frame: input and target columns.
        targets: names of the targets (empty where none was looked for).
        note: what was chosen without being asked for; empty where nothing was.
        array: name of the input array of an `.npz` file.
    """

    frame: pl.DataFrame
    targets: tuple[str, ...]
    note: str = ""
    array: str | None = None


def check_table_file(path: str | os.PathLike[str], argument: str = "data") -> Path:
    """The path of a table that is there and has one of the `TABLE_FORMATS`.

    Args:
        path: of the file.
        argument: what the error calls it.

    Raises:
        InputError: another ending, or no file there.
    """
    file = Path(path)
    if file.suffix.lower() not in TABLE_FORMATS:
        raise InputError(argument, str(file), f"a file of a known type ({', '.join(TABLE_FORMATS)})",
                         "save the table as CSV with a header line")  # fmt: skip
    if not file.is_file():
        folder = file.parent
        beside = [p.name for p in folder.iterdir() if p.suffix.lower() in TABLE_FORMATS] if folder.is_dir() else []
        raise InputError(argument, str(file), "a file that is there", near(file.name, beside) if beside else "")
    if file.stat().st_size == 0:
        raise InputError(argument, str(file), "a file with rows in it (this one is empty)")
    return file


def read_targets(path: Path, target: Sequence[str] | None, inputs: Sequence[str] | None) -> TableFile:
    """Read a file for training, and find its target columns.

    Raises:
        InputError: the file cannot be read, or a column or array that is not there was named.
    """
    kind = path.suffix.lower()
    if kind == ".npz":
        return _npz_pair(path, target, inputs)
    frame = read_columns(path)
    note = ""
    if target:
        names = tuple(_column_of(kind, frame, str(name)) for name in target)
    elif kind == ".npy":
        names = (frame.columns[-1],)
        note = f"target: column {frame.columns[-1]}, the last one, since none was named"
    else:
        found = [name for name in TARGET_NAMES if name in frame.columns]
        if not found:
            raise InputError("target", "no column", f"the name of a column of {path.name}",
                             f"give --target (target=…); there are {listed(frame.columns)}")  # fmt: skip
        names = (found[0],)
        note = f"target: column {found[0]!r}, since none was named"
    if len(set(names)) < len(names):
        raise InputError("target", listed(names), "each target once")
    if inputs:
        chosen = [_column_of(kind, frame, str(name), "inputs") for name in inputs]
        both = [name for name in chosen if name in names]
        if both or len(set(chosen)) < len(chosen):
            raise InputError("inputs", listed(both or chosen), "columns that are no targets, each once")
        frame = frame.select(*chosen, *names)
    return TableFile(frame, names, note)


def _column_of(kind: str, frame: pl.DataFrame, name: str, argument: str = "target") -> str:
    if kind == ".npy":
        try:
            return frame.columns[int(name)]
        except (ValueError, IndexError):
            raise InputError(argument, repr(name), f"a column number in [0, {frame.width}), or one from the end "
                             "such as -1") from None  # fmt: skip
    if name not in frame.columns:
        raise InputError(argument, repr(name), "a column of the file", near(name, frame.columns))
    return name


def read_columns(path: Path, array: str | None = None) -> pl.DataFrame:
    """All columns of a file (of an `.npz`: those of the input array, `array` if it is there).

    Raises:
        InputError: the file cannot be read, or has no rows or no columns.
    """
    kind = path.suffix.lower()
    try:
        if kind == ".csv":
            frame = _csv(path)
        elif kind == ".parquet":
            frame = pl.read_parquet(path)
        elif kind == ".npy":
            frame = frame_of(np.load(path, allow_pickle=False), "")
        else:
            arrays = _arrays(path)
            names = [name for name in (array, *(x for x, _ in _ARRAYS)) if name in arrays]
            if not names:
                raise InputError("data", f"arrays {listed(arrays)}", "an array of inputs named x, X or images")
            frame = frame_of(arrays[str(names[0])], "x")
    except (pl.exceptions.PolarsError, OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise _unreadable(path, error) from None
    if frame.width == 0 or frame.height == 0:
        raise InputError("data", path.name, "a table with rows (this one has none)")
    return frame


def _unreadable(path: Path, error: Exception) -> InputError:
    if isinstance(error, InputError):
        return error
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if "allow_pickle" in first:
        first = "it holds pickled objects, which are never loaded"
    return InputError("data", path.name, f"a readable {path.suffix.lower()} file ({first})")


def _csv(path: Path) -> pl.DataFrame:
    """Every cell as text; the header is read as a row, so that its quoting is undone."""
    raw = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            "data", path.name, f"UTF-8 text (byte {error.start} is not)", "save the file as UTF-8"
        ) from None
    frame = pl.read_csv(raw, has_header=False, infer_schema=False)
    separators = [s for s in (";", "\t", "|") if frame.width == 1 and s in str(frame.row(0)[0])]
    if separators:
        frame = pl.read_csv(raw, has_header=False, infer_schema=False, separator=separators[0])
    names = ["" if name is None else str(name) for name in frame.row(0)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError("data", f"the column name {listed(twice)} more than once", "a header with each name once")
    frame.columns = names
    filled = frame.slice(1).select(pl.any_horizontal(pl.all().is_not_null())).to_series().arg_true()
    return frame.slice(1, int(filled[-1]) + 1 if len(filled) else 0)  # blank lines at the end are no rows


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def frame_of(array: np.ndarray, prefix: str) -> pl.DataFrame:
    """The columns of an array, named by number after a prefix; further dimensions are flattened."""
    if array.dtype.kind not in "biufU":
        raise InputError("data", f"an array of {array.dtype}", "real numbers, true/false or text")
    if array.ndim < 2 or (prefix == "" and array.ndim > 2):
        raise InputError("data", f"an array of shape {array.shape}", "a matrix of (samples, columns)")
    flat = array.reshape(len(array), -1) if array.size else np.zeros((len(array), 0))
    if flat.dtype.kind == "f":
        flat = flat.astype(np.float64)
    flat = np.ascontiguousarray(flat.astype(flat.dtype.newbyteorder("=")))
    return pl.DataFrame({f"{prefix}{i}": flat[:, i] for i in range(flat.shape[1])})


def _npz_pair(path: Path, target: Sequence[str] | None, inputs: Sequence[str] | None) -> TableFile:
    try:
        arrays = _arrays(path)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise _unreadable(path, error) from None
    for argument, names in (("inputs", inputs or ()), ("target", target or ())):
        if len(names) > 1:
            raise InputError(argument, listed(map(str, names)), "the name of one array of the file")
        if names and names[0] not in arrays:
            raise InputError(argument, repr(names[0]), "an array of the file", near(str(names[0]), arrays))
    pairs = [(x, y) for x, y in _ARRAYS if x in arrays and y in arrays]
    x_name = inputs[0] if inputs else next((x for x, _ in _ARRAYS if x in arrays and x not in (target or ())), None)
    y_name = target[0] if target else pairs[0][1] if pairs else next((y for _, y in _ARRAYS if y in arrays), None)
    if x_name is None or y_name is None or x_name == y_name:
        raise InputError("data", f"arrays {listed(arrays)}", "inputs and targets, as x and y or images and labels",
                         "name them with --inputs and --target")  # fmt: skip
    x, y = arrays[x_name], arrays[y_name]
    if y.ndim not in (1, 2) or x.ndim == 0 or len(x) != len(y):
        raise InputError("data", f"{x_name!r} of shape {x.shape} and {y_name!r} of shape {y.shape}",
                         "as many targets as samples, in one or two dimensions")  # fmt: skip
    features = frame_of(x, "x")
    outcome = frame_of(y.reshape(len(y), -1), "y")
    if outcome.width == 1:
        outcome.columns = [str(y_name) if str(y_name) not in features.columns else "y"]
    if features.height == 0 or features.width == 0 or outcome.width == 0:
        raise InputError("data", path.name, "a table with rows (this one has none)")
    note = "" if target else f"target: array {y_name!r}, since none was named"
    return TableFile(features.hstack(outcome), tuple(outcome.columns), note, str(x_name))


def read_inputs(path: str | os.PathLike[str], schema: TableSchema) -> pl.DataFrame:
    """The columns of a file of new samples, named as the schema names them; the target may be absent.

    Columns of `.csv` and `.parquet` files are found by name. Arrays have their columns in order: those of the inputs
    alone, or of the file trained on.

    Raises:
        InputError: the file cannot be read, or an array has too few columns.
    """
    file = check_table_file(path)
    frame = read_columns(file, schema.array)
    names = [column.name for column in schema.inputs]
    if file.suffix.lower() in (".npy", ".npz"):
        if frame.width == len(names):
            frame.columns = names
        elif any(name not in frame.columns for name in names):
            raise InputError("data", f"an array with {frame.width} columns", f"the {len(names)} input columns in order")
    return frame
