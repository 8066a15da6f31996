"""What a monitored training says of change: what fell or rose, how far, and between which steps."""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence

import polars as pl

from isthmus._records import Claim

CHANGED = 0.25
"""A rank that is a quarter smaller or larger than at first has changed."""

MOST_OF_IT = 0.8
"""Share of a change (in logarithms, unless it is to or from 0) that is said to have happened between two steps."""

LEVEL = 0.05
"""Of the two-sided test that some layer's alignment has changed; shared out over the layers (Bonferroni)."""

_RANK = "participation_ratio_centred"
_LOOKED_AT = 100
_NAMED = 3


@dataclasses.dataclass(frozen=True)
class _Course:
    """Values of one metric of one layer over the steps, with the rows they stand in."""

    layer: str
    steps: Sequence[int]
    values: Sequence[float]
    errors: Sequence[float | None]
    rows: Sequence[int]
    notes: Sequence[str]

    @property
    def change(self) -> float:
        """The last value less the first."""
        return self.values[-1] - self.values[0]

    @property
    def ratio(self) -> float:
        """The last value over the first, in logarithms; infinite where one of them is 0, and 0 where both are."""
        first, last = self.values[0], self.values[-1]
        if first > 0 and last > 0:
            return math.log(last / first)
        return 0.0 if first == last else math.copysign(math.inf, self.change)

    @property
    def error(self) -> float | None:
        """One standard error of the change; None where an end has none."""
        first, last = self.errors[0], self.errors[-1]
        return None if first is None or last is None else math.hypot(first, last)

    @property
    def errors_away(self) -> float:
        """The change in standard errors, without its sign; 0 where there are none."""
        if self.error is None or self.change == 0:
            return 0.0
        return abs(self.change) / self.error if self.error > 0 else math.inf


def moved_rows(claim: Claim, by: int) -> Claim:
    """The claim with its rows counted in a table that has `by` rows before them."""
    return dataclasses.replace(claim, rows=tuple(row + by for row in claim.rows))


def _courses(table: pl.DataFrame, metric: str) -> tuple[list[_Course], list[str]]:
    """The layers that were measured at the first and at the last step of the metric, and the names of the others."""
    own = table.with_row_index("row").filter(
        (pl.col("metric") == metric) & (pl.col("status") == "ok") & pl.col("step").is_not_null()
        & (pl.col("baseline") == "") & pl.col("index").is_not_null()
    )  # fmt: skip
    first, last = own["step"].min(), own["step"].max()
    found: list[_Course] = []
    others: list[str] = []
    for (layer,), rows in own.sort("step", maintain_order=True).group_by(["layer"], maintain_order=True):
        if rows["step"][0] == first and rows["step"][-1] == last and first != last:
            columns = [rows[name].to_list() for name in ("step", "value", "stderr", "row", "note")]
            found.append(_Course(str(layer), *columns))
        else:
            others.append(str(layer))
    return found, others


def _left_out(others: Sequence[str]) -> str:
    """Which layers the comparison is not about."""
    if not others:
        return ""
    names = ", ".join(others[:_NAMED]) + (f" and {len(others) - _NAMED} more" if len(others) > _NAMED else "")
    return f" Not compared, for lack of a value at one of these steps: {names}."


def change_claims(table: pl.DataFrame, failed: Mapping[int, str]) -> list[Claim]:
    """Claims about change between the first measurement and the last; none where no layer has both.

    Args:
        table: rows of all steps.
        failed: steps that could not be measured, with the reason.
    """
    return [*_ranks(*_courses(table, _RANK)), *_alignment(*_courses(table, "alignment")), *_failures(table, failed)]


def _ranks(courses: Sequence[_Course], others: Sequence[str]) -> list[Claim]:
    if not courses:
        return []
    most = max(courses, key=lambda course: (abs(course.ratio), abs(course.change)))
    fell = [c for c in courses if c.ratio < math.log(1 - CHANGED)]
    rose = [c for c in courses if c.ratio > math.log(1 + CHANGED)]
    first, last = most.steps[0], most.steps[-1]
    behind = tuple(row for course in courses for row in (course.rows[0], course.rows[-1]))
    if not fell and not rose:
        text = (f"Between steps {first} and {last} no layer's centred participation ratio became "
                f"{CHANGED:.0%} smaller or larger.")  # fmt: skip
        return [Claim("change", text + _left_out(others), "none", behind)]
    start, end = _window(most)
    word = "fell" if most.ratio < 0 else "rose"
    text = (f"The centred participation ratio of {most.layer} {word} from {most.values[0]:.3g} to "
            f"{most.values[-1]:.3g} between steps {first} and {last}")  # fmt: skip
    if (start, end) != (0, len(most.steps) - 1):
        text += f", most of it between steps {most.steps[start]} and {most.steps[end]}"
    values = {"layer": most.layer, "first": most.values[0], "last": most.values[-1], "first_step": first,
              "last_step": last, "most_from": most.steps[start], "most_to": most.steps[end]}  # fmt: skip
    one = len(courses) == 1
    claims = [Claim("change", f"{text}.{_left_out(others) if one else ''}", "finding", tuple(most.rows), values)]
    if not one:
        gone = sum(course.values[-1] == 0 for course in fell)
        counted = (f"Between steps {first} and {last} the centred participation ratio became {CHANGED:.0%} smaller "
                   f"or more in {len(fell)} of {len(courses)} layers{f' ({gone} to 0)' if gone else ''}, and "
                   f"{CHANGED:.0%} larger or more in {len(rose)}.{_left_out(others)}")  # fmt: skip
        claims.append(Claim("change_layers", counted, "finding", behind,
                            {"fell": len(fell), "to_0": gone, "rose": len(rose),
                             "layers": len(courses)}))  # fmt: skip
    return claims


def _window(course: _Course) -> tuple[int, int]:
    """The shortest stretch of steps that holds most of the change, as two positions in the course."""
    at, last = list(course.values), len(course.values) - 1
    if math.isfinite(course.ratio):
        at = [math.log(value) if value > 0 else -math.inf for value in at]
    whole = at[-1] - at[0]
    looked_at = sorted({round(i * last / _LOOKED_AT) for i in range(_LOOKED_AT + 1)})
    fitting = [
        (course.steps[b] - course.steps[a], a, b)
        for a, b in itertools.combinations(looked_at, 2)
        if math.isfinite(at[b] - at[a]) and (at[b] - at[a]) / whole >= MOST_OF_IT
    ]
    _, start, end = min(fitting)
    return start, end


def _alignment(courses: Sequence[_Course], others: Sequence[str]) -> list[Claim]:
    if not courses:
        return []
    tested = [course for course in courses if course.error is not None]
    bound = statistics.NormalDist().inv_cdf(1 - LEVEL / (2 * max(len(tested), 1)))
    clear = [course for course in tested if course.errors_away > bound]
    most = max(clear or courses, key=lambda c: (0.0 if clear else c.errors_away, abs(c.change)))
    values = {"layer": most.layer, "first": most.values[0], "last": most.values[-1], "stderr": most.error,
              "first_step": most.steps[0], "last_step": most.steps[-1], "changed": len(clear), "layers": len(tested),
              "bound": bound}  # fmt: skip
    between = f"between steps {most.steps[0]} and {most.steps[-1]}"
    course = f"from {most.values[0]:.2g} to {most.values[-1]:.2g}"
    untested = [course.layer for course in courses if course.error is None]
    after = _left_out([*untested, *others]).replace("a value", "a value with a standard error")
    behind = tuple(row for c in courses for row in (c.rows[0], c.rows[-1]))
    if not tested:
        text = (f"Whether a layer's alignment with the targets changed {between} is not judged, for lack of standard "
                f"errors; most that of {most.layer}, {course}.")  # fmt: skip
        return [Claim("change_alignment", text + _left_out(others), "none", behind, values)]
    if any("standard error from probes" in c.notes[end] for c in tested for end in (0, -1)):
        after += " Standard errors are those of the estimate, for these samples."
    if not clear:
        text = (f"No layer's alignment with the targets changed clearly {between}; most clearly that of {most.layer}, "
                f"{course} ({most.errors_away:.1f} standard errors; the bound for {_layers(len(tested))} is "
                f"{bound:.1f}).")  # fmt: skip
        return [Claim("change_alignment", text + after, "none", behind, values)]
    word = "rose" if most.change > 0 else "fell"
    text = (f"The alignment of {most.layer} with the targets {word} {course} {between} (one standard error: "
            f"{most.error:.1g}).")  # fmt: skip
    if len(tested) > 1:
        text += f" It changed clearly in {len(clear)} of {_layers(len(tested))}."
    return [Claim("change_alignment", text + after, "finding", behind, values)]


def _layers(n: int) -> str:
    return "1 layer" if n == 1 else f"{n} layers"


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
