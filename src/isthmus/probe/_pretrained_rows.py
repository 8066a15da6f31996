"""What a Hugging Face model is measured on, as it lies on the disk: texts of a file, images of a folder."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import polars as pl

from isthmus._errors import InputError
from isthmus.probe._loading_files import listed, near, said, there

TEXT_FORMATS = (".txt", ".csv", ".tsv", ".jsonl", ".parquet")
IMAGE_FORMATS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


@dataclasses.dataclass(frozen=True)
class Texts:
    """Texts, their labels where there are any, and what was decided on the way."""

    texts: list[str]
    labels: list[Any] | None
    notes: list[str]


def read_texts(path: str | Path, column: str | None, labels: str | None, most: int | None) -> Texts:
    """The texts of a file: of a `.txt` every line, of a table the values of a column; blank ones are left out.

    Args:
        path: of the file.
        column: of the texts in a table; `text`, or the only column of texts, if None.
        labels: column of the labels, if any.
        most: texts to take at most, from the start.

    Raises:
        InputError: a file that is missing or broken, a column that is not there, or missing labels.
    """
    file = there(path, "text", TEXT_FORMATS)
    if file.suffix.lower() == ".txt":
        for name, value in (("text_column", column), ("labels", labels)):
            if value is not None:
                raise InputError(name, value, f"nothing for {file.name}, in which every line is a sample",
                                 "put texts and labels into a .csv, .tsv, .jsonl or .parquet")  # fmt: skip
        return _lines(file, most)
    table = _table(file)
    chosen = _text_column(file, table, column, labels)
    texts = table[chosen]
    if texts.dtype != pl.String:
        raise InputError("text_column", chosen, f"a column of texts (it holds {texts.dtype})",
                         _columns(table, pl.String))  # fmt: skip
    if labels is not None and labels not in table.columns:
        raise InputError("labels", labels, f"a column of {file.name}", near(labels, table.columns))
    if labels == chosen:
        raise InputError("labels", labels, "another column than that of the texts")
    rows = list(itertools.islice(((i, text) for i, text in enumerate(texts) if text and text.strip()), most))
    kept, found = [i for i, _ in rows], [text for _, text in rows]
    values: list[Any] | None = None if labels is None or not kept else table[labels].gather(kept).to_list()
    if labels is not None and values is not None and None in values:
        row = kept[values.index(None)] + 1
        raise InputError("labels", labels, f"a column of {file.name} without missing values (row {row} has none)")
    read = len(texts) if len(kept) != most else kept[-1] + 1
    notes = _blank_notes(file, read - len(kept), "rows without a text")
    quoted = sum(len(text) > 1 and text[0] == text[-1] == '"' for text in found) if file.suffix.lower() == ".tsv" else 0
    if quoted:
        notes.append(f"{quoted} texts of {file.name} stand in quotes, which were kept as they are (a .csv is read "
                     "without those around a text)")  # fmt: skip
    return _checked(file, found, values, notes)


def _lines(file: Path, most: int | None) -> Texts:
    texts: list[str] = []
    blank = 0
    try:
        with file.open(encoding="utf-8-sig") as stream:
            for line in stream:
                if not line.strip():
                    blank += 1
                    continue
                texts.append(line.strip("\r\n"))
                if len(texts) == most:
                    break
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("text", str(file), f"a readable text file in UTF-8 ({said(error)})") from error
    return _checked(file, texts, None, _blank_notes(file, blank, "blank lines"))


def _blank_notes(file: Path, count: int, what: str) -> list[str]:
    return [f"{count} {what} of {file.name} were left out"] if count else []


def _checked(file: Path, texts: list[str], labels: list[Any] | None, notes: list[str]) -> Texts:
    if not texts:
        raise InputError("text", str(file), "at least one text (there is none)")
    return Texts(texts, labels, notes)


def _table(file: Path) -> pl.DataFrame:
    try:
        match file.suffix.lower():
            case ".parquet":
                return pl.read_parquet(file)
            case ".jsonl":
                return pl.read_ndjson(file, infer_schema_length=None)
            case ".tsv":  # a quote is a character like any other
                return pl.read_csv(file, separator="\t", quote_char=None, infer_schema_length=None)
            case _:
                return pl.read_csv(file, infer_schema_length=None)
    except (OSError, pl.exceptions.PolarsError, UnicodeDecodeError) as error:
        raise InputError("text", str(file), f"a readable {file.suffix.lower()} file ({said(error)})") from error


def _columns(table: pl.DataFrame, kind: Any) -> str:
    names = [name for name, dtype in table.schema.items() if dtype == kind]
    return f"texts are in {listed(names)}" if names else "none of its columns holds texts"


def _text_column(file: Path, table: pl.DataFrame, column: str | None, labels: str | None) -> str:
    if column is not None:
        if column not in table.columns:
            raise InputError("text_column", column, f"a column of {file.name}", near(column, table.columns))
        return column
    if "text" in table.columns:
        return "text"
    names = [name for name, dtype in table.schema.items() if dtype == pl.String and name != labels]
    if len(names) != 1:
        raise InputError("text_column", "nothing", f"the column of {file.name} that holds the texts",
                         _columns(table, pl.String))  # fmt: skip
    return names[0]


@dataclasses.dataclass(frozen=True)
class Images:
    """Image files, the name of the class folder of each where they lie in such, and what was decided on the way."""

    files: list[Path]
    classes: list[str] | None
    notes: list[str]


def find_images(folder: str | Path, most: int | None) -> Images:
    """The images of a folder, or of its subfolders, whose names are then the classes.

    Images of several classes are taken in turn, so that the first few are of all of them.

    Raises:
        InputError: no such folder, no image in it, or images both in it and in its subfolders.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError("images", str(root), "a folder of images", "it is a file" if root.exists() else "")
    here, other = _images_in(root)
    groups: dict[str, list[Path]] = {}
    for child in sorted(root.iterdir()):
        if child.is_dir() and not child.name.startswith("."):
            found, more = _images_in(child)
            other += more
            if found:
                groups[child.name] = found
    if here and groups:
        raise InputError("images", str(root), "images in the folder, or in a subfolder for each class, not both",
                         f"subfolders with images: {listed(groups, 3)}")  # fmt: skip
    if not here and not groups:
        raise InputError("images", str(root), f"a folder with images ({', '.join(IMAGE_FORMATS)}; there is none)")
    notes = [f"{other} files of the folder are no images and were left out"] if other else []
    if here:
        return Images(here[:most], None, notes)
    turns = itertools.zip_longest(*([(name, file) for file in files] for name, files in groups.items()))
    pairs = [pair for turn in turns for pair in turn if pair is not None][:most]
    return Images([file for _, file in pairs], [name for name, _ in pairs], notes)


def _images_in(folder: Path) -> tuple[list[Path], int]:
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    found = [p for p in files if p.suffix.lower() in IMAGE_FORMATS]
    return found, len(files) - len(found)


def as_strings(texts: Any) -> list[str]:
    """Texts given in Python, of whatever can be gone through: a list, a generator, an array, a column of a table.

    Raises:
        InputError: something else, or something in it that is no text.
    """
    expected = "a path, or a sequence of strings"
    if isinstance(texts, (Mapping, Set, bytes)) or hasattr(texts, "columns"):
        named = not isinstance(texts, (Set, bytes))
        raise InputError("text", f"a {type(texts).__name__}", expected, "give one column of it" if named else "")
    try:
        every: list[Any] = list(texts)
    except TypeError:
        raise InputError("text", f"a {type(texts).__name__}", expected) from None
    odd = next((i for i, text in enumerate(every) if not isinstance(text, str)), None)
    if odd is not None:
        raise InputError("text", f"a {type(every[odd]).__name__} at {odd}", expected)
    if not every:
        raise InputError("text", "no texts", "at least one")
    return [str(text) for text in every]


def as_texts(texts: list[str], labels: Any, most: int | None) -> Texts:
    """Texts given in Python, with as many labels, or none.

    Raises:
        InputError: labels that are no sequence, of another length, or with several values for a text.
    """
    if isinstance(labels, str):
        raise InputError("labels", labels, "a sequence with a label for each text (a column is that of a file)")
    if labels is None:
        return Texts(texts[:most], None, [])
    if isinstance(labels, (Mapping, Set)) or hasattr(labels, "columns"):
        raise InputError("labels", f"a {type(labels).__name__}", "a sequence with a label for each text")
    try:
        values = [x.item() if hasattr(x, "item") else x for x in labels]
    except (TypeError, ValueError, RuntimeError):  # not to be gone through, or rows of an array
        raise InputError("labels", f"a {type(labels).__name__}", "a sequence with one label for each text") from None
    if len(values) != len(texts):
        raise InputError("labels", f"{len(values)} labels", f"one for each of the {len(texts)} texts")
    return Texts(texts[:most], values[:most], [])
