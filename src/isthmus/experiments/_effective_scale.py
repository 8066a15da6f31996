"""Figures `grid` and `initial-scale` of the effective theory's paper: where distances end, from rich to lazy."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from isthmus._records import Claim, MetricTable
from isthmus.experiments._effective_networks import PairNetworks
from isthmus.experiments._effective_presets import GAINS, PairFigure
from isthmus.experiments._effective_reading import LEARNED, Followed, by_name, follow_all, record_fit
from isthmus.experiments._effective_two_points import medians
from isthmus.experiments._equilibrium_reading import rank_correlation, spread
from isthmus.experiments._reproduction import Panel, PaperFigure, Row, claim, graded
from isthmus.experiments._ridge_reading import Slope, near, numbers, short
from isthmus.theory import final_distances

CONVERGED = 1e-3
"""Loss above which a network of figure `grid` is left out, as in the published code."""

_EXPONENT = (0.1, 0.3)
"""How far an exponent may be off, for held and for partly."""

_OFF = (0.1, 0.3)
"""Median relative error of a predicted distance, for held and for partly."""

_MOVED = (0.1, 0.3)
"""Median relative change of `h`, for held and for partly."""

_RANKED = (0.9, 0.7)


@dataclasses.dataclass(frozen=True)
class Regression:
    """`log h_∞ = a log dx + b log dy + c`, fitted for each seed by itself; means and their standard errors.

    Attributes:
        dx: `a`.
        dy: `b`.
        cells: of all seeds together.
    """

    dx: Slope
    dy: Slope
    cells: int


def regression(found: Sequence[Followed]) -> Regression | None:
    """Over the cells that converged, for seeds with at least 4 of them; None for fewer than 2 seeds."""
    kept = [one for one in found if one.trace.diverged is None and one.loss <= CONVERGED]
    rows: list[np.ndarray] = []
    count = 0
    for seed in sorted({one.trace.member.seed for one in kept}):
        mine = [one for one in kept if one.trace.member.seed == seed]
        if len(mine) < 4:
            continue
        design = np.array([[0.5 * math.log(m.dx2), 0.5 * math.log(m.dy2), 1.0] for m in (o.trace.member for o in mine)])
        if np.linalg.matrix_rank(design) < 3:
            continue
        rows.append(np.linalg.lstsq(design, np.log([one.ends[1] for one in mine]), rcond=None)[0])
        count += len(mine)
    if len(rows) < 2:
        return None
    mean, error = np.mean(rows, 0), np.std(rows, axis=0, ddof=1) / math.sqrt(len(rows))
    return Regression(Slope(float(mean[0]), float(error[0]), float(mean[2])),
                      Slope(float(mean[1]), float(error[1]), float(mean[2])), count)  # fmt: skip


def centre(found: Sequence[Followed]) -> list[Followed]:
    """Those that learned in the cell nearest to `X = 1`, `Y = 0.5`."""
    learned = [one for one in found if one.learned]

    def off(one: Followed) -> float:
        m = one.trace.member
        return math.hypot(math.log(m.dx2), math.log(m.dy2 / 0.5))

    least = min(map(off, learned), default=0.0)
    return [one for one in learned if off(one) <= least + 1e-9]


def ratio_at_centre(found: Sequence[Followed]) -> float | None:
    """`η_h/η_y`, the median over the fits of that cell."""
    fits = [one.fit for one in centre(found)]
    ratios = [fit.eta_h / fit.eta_y for fit in fits if fit is not None]
    return float(np.median(ratios)) if ratios else None


def predicted_end(one: Followed, ratio: float) -> float:
    """`h_∞` of docs/theory 2.3 from the measured start."""
    t = one.trace
    found = final_distances(
        *(v.new_full((1, 1), float(x)) for v, x in (
            (t.h, t.member.dx2), (t.h, t.member.dy2), (t.h, t.watched[0]), (t.h, t.y[0]))), ratio=ratio)  # fmt: skip
    return float(found[0, 0])


def _errors(kept: Sequence[Followed], ratio: float) -> float:
    return float(np.median([abs(one.ends[1] / predicted_end(one, ratio) - 1) for one in kept]))


def grid_claims(groups: Mapping[str, Sequence[Followed]], behind: Sequence[int] = ()) -> list[Claim]:
    """Judge how the final distance goes with those of inputs and targets; criteria were fixed beforehand."""
    made: list[Claim] = []
    for end, found in groups.items():
        kept = [one for one in found if one.trace.diverged is None and one.loss <= CONVERGED]
        left = f"{len(kept)} of {len(found)} networks came to a loss of at most {CONVERGED:g}."
        law, ratio = regression(found), ratio_at_centre(found)
        if law is None or ratio is None:
            made.append(claim("grid", f"{end}-law", "not judged", f"{left} Two seeds with four cells are needed."))
            continue
        moved = float(np.median([abs(one.ends[1] / one.ends[0] - 1) for one in kept]))
        words = (f"h_∞ ~ dx^({law.dx.said}) · dy^({law.dy.said}), standard errors over seeds, {law.cells} networks. "
                 f"h changes by {numbers([100 * moved], 0)}% of its start in the median. {left}")  # fmt: skip
        values = {"dx": law.dx.value, "dx_stderr": law.dx.stderr, "dy": law.dy.value, "dy_stderr": law.dy.stderr}
        held, partly = _EXPONENT
        if end == "rich":
            made += [
                claim("grid", "rich-targets", near(law.dy, 1, held=held, partly=partly),
                      f"Rich: {words} Wanted: the exponent of dy at 1 within {held} (partly: {partly}).", behind,
                      **values),
                claim("grid", "rich-inputs", near(law.dx, 1, held=held, partly=partly),
                      f"Rich: the exponent of dx is {law.dx.said}. Wanted: 1 within {held} (partly: {partly})."),
            ]  # fmt: skip
        else:
            made += [
                claim("grid", "lazy-targets", near(law.dy, 0, held=held, partly=partly),
                      f"Lazy: {words} Wanted: the exponent of dy at 0 within {held} (partly: {partly}).", behind,
                      **values),
                claim("grid", "lazy-stays", graded(moved, held=_MOVED[0], partly=_MOVED[1]),
                      f"Lazy: h changes by {numbers([moved])} of its start, median over networks. Wanted: at most "
                      f"{_MOVED[0]} (partly: {_MOVED[1]}).", moved=moved),
            ]  # fmt: skip
        error = _errors(kept, ratio)
        made.append(claim(
            "grid", f"{end}-prediction", graded(error, held=_OFF[0], partly=_OFF[1]),
            f"h_∞ from the measured start with one η_h/η_y = {short([ratio], 3)} for all cells, fitted in the cell "
            f"nearest to X = 1, Y = 0.5: median relative error {numbers([error])} over {len(kept)} networks. Wanted: "
            f"at most {_OFF[0]} (partly: {_OFF[1]}).", error=error, ratio=ratio,
        ))  # fmt: skip
    return made


def figure_grid(
    settings: PairFigure, networks: Sequence[PairNetworks], folder: Path, table: MetricTable
) -> PaperFigure:
    """The final distance against those of inputs and targets, rich and lazy."""
    found, seconds = follow_all(networks, folder)
    groups = by_name(found)
    rows: list[Row] = []
    behind: list[int] = []
    for end, group in groups.items():
        ratio = ratio_at_centre(group)
        kept = [one for one in group if one.trace.diverged is None and one.loss <= CONVERGED]
        for axis in ("dx", "dy"):
            other = "dy" if axis == "dx" else "dx"
            cells: dict[tuple[float, float], list[float]] = {}
            for one in kept:
                dx, dy = math.sqrt(one.trace.member.dx2), math.sqrt(one.trace.member.dy2)
                at = (dy, dx) if axis == "dx" else (dx, dy)
                cells.setdefault(at, []).append(one.ends[1] / (one.ends[0] if end == "lazy" else 1))
            for (fixed, x), values in sorted(cells.items()):
                rows += spread(f"{end}-{axis}", f"{other} = {fixed:.3g}", x, values)
        for one in kept:
            if ratio is not None:
                dy, wanted = math.sqrt(one.trace.member.dy2), predicted_end(one, ratio)
                rows.append(Row(f"{end}-predicted", f"dy = {dy:.3g}", wanted, one.ends[1] / wanted,
                                seed=one.trace.member.seed))  # fmt: skip
        if ratio is not None:
            for one in centre(group):
                if one.fit is not None:
                    behind += record_fit(table, one, one.fit, figure="grid", layer=one.trace.setting.watched)
    first = networks[0].setting
    said = ", ".join(f"{end}: gain {group[0].trace.member.gain:g}, rate {group[0].trace.member.rate:g}, "
                     f"{int(group[0].trace.epochs[-1])} steps" for end, group in groups.items())  # fmt: skip
    seeds = len({one.trace.member.seed for one in found})
    words = {
        "rich": ("Rich", "final distance", "h at the end"),
        "lazy": ("Lazy", "change", "h at the end / at the start"),
    }
    ends = [(end, *words[end]) for end in groups]
    return PaperFigure(
        "grid", "Other distances: how far apart the representations end",
        "The final distance grows as the geometric mean of those of inputs and targets where weights start small, and "
        "stays where it was where they start large.",
        f"Networks of {first.hidden_layers} layers of width {first.width}, leaky ReLU; {said}; {seeds} seeds, each "
        "with the same weights at the start in all cells. dx = √X, dy = √Y; distances are squared: the theory of small "
        "weights has h_∞ = √(η_h/η_y) dx dy. Bars: least and largest of the seeds.",
        (
            *(Panel(f"{end}-{axis}", f"{word}: {what} against the distance of the {of}", axis, label, kind="points",
                    x_scale="log", y_scale="log")
              for end, word, what, label in ends for axis, of in (("dy", "targets"), ("dx", "inputs"))),
            *(Panel(f"{end}-predicted", f"{word}: measured over predicted distance", "predicted h at the end",
                    "h at the end / predicted", kind="points", x_scale="log", y_scale="log",
                    rules=((1.0, "the theory"),)) for end, word, _, _ in ends),
        ),
        tuple(rows), tuple(grid_claims(groups, behind)), seconds,
    )  # fmt: skip


def scale_claims(groups: Mapping[str, Sequence[Followed]], behind: Sequence[int] = ()) -> list[Claim]:
    """Judge the way from rich to lazy; criteria were fixed beforehand."""
    fitted = {name: [one for one in groups[name] if one.limit is not None] for name in GAINS if name in groups}
    fitted = {name: group for name, group in fitted.items() if group}
    if len(fitted) < 3:
        return [claim("initial-scale", "rich-to-lazy", "not judged", "Three gains with fits are needed.")]
    every = [one for group in fitted.values() for one in group]
    laziness = medians(fitted, lambda f: None if f.limit is None else float(f.limit.laziness))
    moved = medians(fitted, lambda f: abs(f.ends[1] / f.ends[0] - 1))
    off = medians(fitted, lambda f: None if f.limit is None else abs(f.ends[1] / float(f.limit.h) - 1))
    order = rank_correlation(
        [float(one.trace.member.gain) for one in every], [float(one.limit.laziness) for one in every if one.limit]
    )
    gains = {name: float(group[0].trace.member.gain) for name, group in fitted.items()}
    at = f"at gain {', '.join(f'{gain:g}' for gain in gains.values())}"
    first, last = min(gains, key=lambda name: gains[name]), max(gains, key=lambda name: gains[name])
    rich = medians(fitted, lambda f: None if f.fit is None else abs(
        f.ends[1] / math.sqrt(f.fit.eta_h / f.fit.eta_y * f.trace.member.dx2 * f.trace.member.dy2) - 1))  # fmt: skip
    middle = float(np.median([*off.values()]))
    worst = numbers([*medians(fitted, lambda f: f.worst).values()])
    learned = ", ".join(f"{sum(one.learned for one in groups[name])} of {len(groups[name])}" for name in fitted)
    return [
        claim("initial-scale", "rich-to-lazy",
              graded(-order.mean, held=-_RANKED[0], partly=-_RANKED[1]),
              f"Laziness A/√(A² + 4 (η_h/η_y) X Y) of the fits, medians over seeds, {at}: "
              f"{numbers([*laziness.values()])}. Spearman's correlation with the gain over all networks: "
              f"{order.said()}. Wanted: at least {_RANKED[0]} (partly: {_RANKED[1]}).", behind, correlation=order.mean),
        claim("initial-scale", "rich-end", graded(rich[first], held=_OFF[0], partly=_OFF[1]),
              f"h at the end against √(η_h/η_y) √(X Y) of the fitted rates, relative error, medians over seeds, {at}: "
              f"{short([*rich.values()])}. Wanted at gain {gains[first]:g}: at most {_OFF[0]} (partly: {_OFF[1]}).",
              error=rich[first]),
        claim("initial-scale", "lazy-end", graded(moved[last], held=_MOVED[0], partly=_MOVED[1]),
              f"Change of h over its start, medians over seeds, {at}: {short([*moved.values()])}. Wanted at gain "
              f"{gains[last]:g}: at most {_MOVED[0]} (partly: {_MOVED[1]}).", moved=moved[last]),
        claim("initial-scale", "final-distance", graded(middle, held=_OFF[0], partly=_OFF[1]),
              f"h at the end against h_∞ of the fitted rates and the measured start, relative error, medians over "
              f"seeds, {at}: {numbers([*off.values()])}. Wanted: at most {_OFF[0]} in the median of the gains (partly: "
              f"{_OFF[1]})."),
        claim("initial-scale", "learned", "not judged",
              f"R² of the worst curve, medians over seeds, {at}: {worst}. Networks with a loss "
              f"of at most {LEARNED:g} at the end: {learned}."),
    ]  # fmt: skip


def figure_initial_scale(
    settings: PairFigure, networks: Sequence[PairNetworks], folder: Path, table: MetricTable
) -> PaperFigure:
    """From rich to lazy by the size of the weights at the start."""
    found, seconds = follow_all(networks, folder)
    every = by_name(found)
    groups = {name: every[name] for name in GAINS if name in every}
    rows: list[Row] = []
    behind: list[int] = []
    for group in groups.values():
        gain = float(group[0].trace.member.gain)
        rows += spread("distance", "at the start", gain, [one.ends[0] for one in group])
        rows += spread("distance", "at the end", gain, [one.ends[1] for one in group])
        fitted = [(one, one.fit, one.limit) for one in group if one.fit is not None and one.limit is not None]
        rows += spread("distance", "predicted end", gain, [float(limit.h) for _, _, limit in fitted])
        rows += spread("laziness", "of the fits", gain, [float(limit.laziness) for _, _, limit in fitted])
        rows += spread("left", "worst curve", gain, [max(1 - one.worst, 1e-8) for one, _, _ in fitted])
        rows += spread("ratio", "η_h/η_y", gain, [fit.eta_h / fit.eta_y for one, fit, _ in fitted if one.moves])
        for one, fit, _ in fitted:
            behind += record_fit(table, one, fit, figure="initial-scale", layer=one.trace.setting.watched)
    gain = "gain of the weights"
    return PaperFigure(
        "initial-scale", "Size of the first weights: from rich to lazy",
        "With small weights the final distance does not depend on the start; with large ones it is that of the start.",
        "The settings with other gains of the published table and the default one, each with its published rate. Bars: "
        "least and largest of the seeds.",
        (
            Panel("distance", "Distance of the representations", gain, "h", y_scale="log"),
            Panel("laziness", "How lazy", gain, "A/√(A² + 4 (η_h/η_y) X Y)"),
            Panel("left", "What is left unexplained", gain, "1 − R² of the worst curve", y_scale="log"),
            Panel("ratio", "Ratio of the fitted rates", gain, "η_h/η_y", y_scale="log"),
        ),
        tuple(rows), tuple(scale_claims(groups, behind)), seconds, note="The time is part of figure two-points'.",
    )  # fmt: skip
