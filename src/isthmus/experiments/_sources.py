"""Data by name or path: the one place that turns a recorded source back into the same samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from isthmus._errors import InputError, near_name_hint
from isthmus.data import Task, digits, teacher

NAMES = ("digits", "teacher")


def task_from_source(source: Mapping[str, Any]) -> Task:
    """The samples that `source` describes; the same source gives the same samples (a resumed run relies on it).

    Args:
        source: `name` (`digits` or `teacher`) and `seed`; for teachers also `widths`, `kind`, `n_train`, `n_test`.

    Raises:
        InputError: an unknown name, or settings the data cannot be made with.
    """
    name, seed = source["name"], source["seed"]
    if name == "digits":
        return digits(seed=seed)
    if name == "teacher":
        return teacher(
            widths=tuple(source["widths"]),
            kind=source["kind"],
            n_train=source["n_train"],
            n_test=source["n_test"],
            seed=seed,
        )
    raise InputError("data", name, "'digits' or 'teacher'", near_name_hint(name, NAMES))
