"""What a monitored training says of itself in `run.json`, a file that may hold anything: nothing of it is trusted."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import polars as pl

from isthmus.report._layers import text_of

_LARGEST = 2**53


@dataclasses.dataclass(frozen=True)
class Training:
    """The steps at which a training was measured, and what measuring it took.

    Attributes:
        steps: steps with numbers, ascending.
        failed: steps whose measurement gave none, each with the reason.
        lost: steps that `run.json` lists and the table does not hold.
        scheduled: steps of the schedule that came; None where unknown.
        postponed: those of them that were not measured, to keep within the budget; None where unknown.
        budget: share of the time of training that measuring may take.
        share: share that it took.
        measuring: seconds that it took.
        training: seconds that training took.
        start: seconds that making the monitor took, which the share leaves out.
        page: seconds that the page took when the training ended, left out, too; None before there was one.
    """

    steps: tuple[int, ...]
    failed: tuple[tuple[int, str], ...]
    lost: tuple[int, ...]
    scheduled: int | None
    postponed: int | None
    budget: float | None
    share: float | None
    measuring: float | None
    training: float | None
    start: float | None
    page: float | None

    @property
    def last(self) -> int | None:
        """The step whose numbers count as those of the run: the last one that has any, else the last that failed."""
        if self.steps:
            return self.steps[-1]
        return self.failed[-1][0] if self.failed else None

    @property
    def problems(self) -> list[str]:
        """What the reader should know before reading."""
        found: list[str] = []
        later = [(step, reason) for step, reason in self.failed if self.steps and step > self.steps[-1]]
        if later:
            step, reason = later[-1]
            found.append(f"The last measurement, at step {step}, failed ({reason}): this page shows step {self.last}.")
        if not self.steps:
            found.append("No step of the training has any numbers.")
        return found

    def counts(self) -> pl.Expr:
        """Whether a row of the table is one of the last measurement."""
        return measured_row() & pl.col("step").eq_missing(pl.lit(self.last, dtype=pl.Int64()))


def measured_row() -> pl.Expr:
    """Whether a row was measured, and not noted by the training loop."""
    return pl.col("split").fill_null("") == ""


def _count(value: object) -> int | None:
    """A whole number that is not negative, of a number or of text."""
    if isinstance(value, str) and len(value) <= 16 and value.isdecimal() and value.isascii():
        value = int(value)
    known = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _LARGEST
    return int(value) if isinstance(value, int) and known else None


def _size(value: object) -> float | None:
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
    return float(value) if isinstance(value, (int, float)) and known else None


def read_training(run: Mapping[str, Any], table: pl.DataFrame) -> Training | None:
    """What is known of a monitored training; None where the run is none.

    The table decides which steps have numbers; `run.json` says why others have none, and what measuring took.
    """
    found: object = run.get("monitor")
    if run.get("command") != "monitor" and not isinstance(found, dict):
        return None
    part = cast("Mapping[str, Any]", found) if isinstance(found, dict) else {}
    rows = table.filter(measured_row() & pl.col("step").is_not_null())
    good = rows.filter((pl.col("status") == "ok") & pl.col("value").is_not_null())
    steps = sorted(int(step) for step in good.get_column("step").unique())
    without = rows.filter(~pl.col("step").is_in(steps)).unique("step", keep="first", maintain_order=True)
    notes = {int(step): note or "no reason was recorded" for step, note in without.select("step", "note").rows()}
    said: object = part.get("failed")
    listed = cast("Mapping[object, object]", said) if isinstance(said, dict) else {}
    reasons = {_count(step): text_of(reason) or "no reason was recorded" for step, reason in listed.items()}
    failed = notes | {step: why for step, why in reasons.items() if step is not None and step not in steps}
    named: object = part.get("steps")
    asked = {_count(step) for step in cast("list[object]", named)} if isinstance(named, list) else set[int | None]()
    lost = sorted(step for step in asked if step is not None and step not in steps and step not in failed)
    return Training(
        tuple(steps), tuple(sorted(failed.items())), tuple(lost), _count(part.get("scheduled")),
        _count(part.get("postponed")), _size(part.get("budget")), _size(part.get("share")),
        _size(part.get("seconds_measuring")), _size(part.get("seconds_training")),
        _size(part.get("seconds_start")), _size(part.get("seconds_page")),
    )  # fmt: skip


def names_of_rows(part: Mapping[str, Any]) -> list[str]:
    """The layers whose spectra are the rows of the arrays of every step, where the run names them."""
    found: object = part.get("sites")
    return [text_of(name) for name in cast("list[object]", found)] if isinstance(found, list) else []


def arrays_at(arrays: Mapping[str, np.ndarray], step: int) -> dict[str, np.ndarray]:
    """The arrays that were kept of one step, under their usual names."""
    prefix = f"steps/{step}/"
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def last_arrays(arrays: Mapping[str, np.ndarray], training: Training) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays that belong to the step whose numbers the page shows, and what is wrong with them.

    A training that was killed between two files may leave arrays that are older or newer than its table.
    """
    kept = {_count(name.split("/")[1]) for name in arrays if name.startswith("steps/") and name.count("/") > 1}
    newest = max((step for step in kept if step is not None), default=None)
    if newest is None or training.last is None or newest == training.last:
        return dict(arrays), []
    steps = {name: array for name, array in arrays.items() if name.startswith("steps/")}
    said = (
        f"arrays.safetensors ends at step {newest}, metrics.parquet at step {training.last}: spectra are those that "
        f"were kept of step {training.last}."
    )
    return steps | arrays_at(arrays, training.last), [said]
