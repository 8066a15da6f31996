"""What a monitored training says of change: what fell or rose, how far, and between which steps."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

import polars as pl

from isthmus._records import Claim

CHANGED = 0.25
"""A rank that is a quarter smaller or larger than at first has changed."""

MOST_OF_IT = 0.8
"""Share of a change (in logarithms) that is said to have happened between two steps."""

_RANK = "participation_ratio_centred"
_ERRORS = 3.0
_LOOKED_AT = 100


@dataclasses.dataclass(frozen=True)
class _Course:
    """Values of one metric of one layer over the steps, with the rows they stand in."""

    layer: str
    steps: Sequence[int]
    values: Sequence[float]
    errors: Sequence[float | None]
    rows: Sequence[int]

    @property
    def ratio(self) -> float:
        """The last value over the first, in logarithms."""
        first, last = self.values[0], self.values[-1]
        return math.log(last / first) if first > 0 and last > 0 else 0.0


def moved_rows(claim: Claim, by: int) -> Claim:
    """The claim with its rows counted in a table that has `by` rows before them."""
    return dataclasses.replace(claim, rows=tuple(row + by for row in claim.rows))


def _courses(table: pl.DataFrame, metric: str) -> list[_Course]:
    own = table.with_row_index("row").filter(
        (pl.col("metric") == metric) & (pl.col("status") == "ok") & pl.col("step").is_not_null()
        & (pl.col("baseline") == "") & pl.col("index").is_not_null()
    )  # fmt: skip
    found: list[_Course] = []
    for (layer,), rows in own.sort("step", maintain_order=True).group_by(["layer"], maintain_order=True):
        if rows.height > 1:
            columns = [rows[name].to_list() for name in ("step", "value", "stderr", "row")]
            found.append(_Course(str(layer), *columns))
    return found


def change_claims(table: pl.DataFrame, failed: Mapping[int, str]) -> list[Claim]:
    """Claims about change between the first measurement and the last; none where there is only one.

    Args:
        table: rows of all steps.
        failed: steps that could not be measured, with the reason.
    """
    return [*_ranks(_courses(table, _RANK)), *_alignment(_courses(table, "alignment")), *_failures(table, failed)]


def _ranks(courses: Sequence[_Course]) -> list[Claim]:
    if not courses:
        return []
    most = max(courses, key=lambda course: abs(course.ratio))
    fell = [c.layer for c in courses if c.ratio < math.log(1 - CHANGED)]
    rose = [c.layer for c in courses if c.ratio > math.log(1 + CHANGED)]
    first, last = most.steps[0], most.steps[-1]
    behind = tuple(row for course in courses for row in (course.rows[0], course.rows[-1]))
    if not fell and not rose:
        text = (f"Between steps {first} and {last} no layer's centred participation ratio became "
                f"{CHANGED:.0%} smaller or larger.")  # fmt: skip
        return [Claim("change", text, "none", behind)]
    start, end = _window(most)
    word = "fell" if most.ratio < 0 else "rose"
    text = (f"The centred participation ratio of {most.layer} {word} from {most.values[0]:.3g} to "
            f"{most.values[-1]:.3g} between steps {first} and {last}")  # fmt: skip
    if (start, end) != (0, len(most.steps) - 1):
        text += f", most of it between steps {most.steps[start]} and {most.steps[end]}"
    values = {"layer": most.layer, "first": most.values[0], "last": most.values[-1], "first_step": first,
              "last_step": last, "most_from": most.steps[start], "most_to": most.steps[end]}  # fmt: skip
    claims = [Claim("change", text + ".", "finding", tuple(most.rows), values)]
    if len(courses) > 1:
        counted = (f"Between steps {first} and {last} the centred participation ratio became {CHANGED:.0%} smaller "
                   f"or more in {len(fell)} of {len(courses)} layers, and {CHANGED:.0%} larger or more in "
                   f"{len(rose)}.")  # fmt: skip
        claims.append(Claim("change_layers", counted, "finding", behind,
                            {"fell": len(fell), "rose": len(rose), "layers": len(courses)}))  # fmt: skip
    return claims


def _window(course: _Course) -> tuple[int, int]:
    """The shortest stretch of steps that holds most of the change, as two positions in the course."""
    logs = [math.log(value) if value > 0 else -math.inf for value in course.values]
    whole, last = logs[-1] - logs[0], len(logs) - 1
    looked_at = sorted({round(i * last / _LOOKED_AT) for i in range(_LOOKED_AT + 1)})
    fitting = [
        (course.steps[b] - course.steps[a], a, b)
        for a, b in itertools.combinations(looked_at, 2)
        if math.isfinite(logs[b] - logs[a]) and (logs[b] - logs[a]) / whole >= MOST_OF_IT
    ]
    _, start, end = min(fitting)
    return start, end


def _alignment(courses: Sequence[_Course]) -> list[Claim]:
    if not courses:
        return []
    most = max(courses, key=lambda course: abs(course.values[-1] - course.values[0]))
    change = most.values[-1] - most.values[0]
    first, last = most.errors[0], most.errors[-1]
    error = None if first is None or last is None else math.hypot(first, last)
    values = {"layer": most.layer, "first": most.values[0], "last": most.values[-1], "stderr": error,
              "first_step": most.steps[0], "last_step": most.steps[-1]}  # fmt: skip
    between = f"between steps {most.steps[0]} and {most.steps[-1]}"
    ends = (most.rows[0], most.rows[-1])
    if error is None or abs(change) < _ERRORS * error:
        text = (f"No layer's alignment with the targets changed clearly {between}; most that of {most.layer}, "
                f"from {most.values[0]:.2g} to {most.values[-1]:.2g}.")  # fmt: skip
        return [Claim("change_alignment", text, "none", ends, values)]
    word = "rose" if change > 0 else "fell"
    text = (f"The alignment of {most.layer} with the targets {word} from {most.values[0]:.2g} to "
            f"{most.values[-1]:.2g} {between} (one standard error: {error:.1g}).")  # fmt: skip
    return [Claim("change_alignment", text, "finding", ends, values)]


def _failures(table: pl.DataFrame, failed: Mapping[int, str]) -> list[Claim]:
    if not failed:
        return []
    step, reason = min(failed.items())
    rows = table.with_row_index("row").filter(
        pl.col("step").is_in(list(failed)) & (pl.col("metric") == "observations") & (pl.col("layer") == "model")
    )["row"]  # fmt: skip
    times = "One measurement" if len(failed) == 1 else f"{len(failed)} measurements"
    text = f"{times} failed, first at step {step}: {reason}"
    return [Claim("not_measured", text, "caution", tuple(rows.to_list()), {"failed": len(failed), "step": step})]
