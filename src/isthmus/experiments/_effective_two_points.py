"""Figure `two-points` of the effective theory's paper: two effective learning rates for each kind of network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from isthmus._records import Claim, MetricTable
from isthmus.experiments._effective_networks import PairNetworks
from isthmus.experiments._effective_presets import PairFigure
from isthmus.experiments._effective_reading import (
    FAIR,
    GOOD,
    HALF,
    LEARNED,
    MOST,
    NAMES,
    Followed,
    by_name,
    family,
    follow_all,
    record_fit,
    thinned,
)
from isthmus.experiments._reproduction import Holds, Panel, PaperFigure, Row, claim
from isthmus.experiments._ridge_reading import numbers, short

NEAR, ROUGH = 0.05, 0.15
"""Error of a forecast over the range of the curve."""

_DRAWN = ("default", "shallow", "narrow", "linear", "elu", "tanh", "relu", "swish", "skip", "cnn", "dropout",
          "two_layer", "gain_1.4", "gain_1.6", "adam")  # fmt: skip
_TITLES = {"elu": "ELU", "tanh": "tanh", "relu": "ReLU", "linear": "Linear, deep", "two_layer": "Linear, one layer",
           "skip": "Skip connections", "cnn": "Convolutions"}  # fmt: skip


def medians(groups: Mapping[str, Sequence[Followed]], value: Callable[[Followed], float | None]) -> dict[str, float]:
    """Of each setting the median over its networks; none where no network has a value."""
    found = {name: [v for one in group if (v := value(one)) is not None] for name, group in groups.items()}
    return {name: float(np.median(values)) for name, values in found.items() if values}


def share_of(values: Sequence[bool]) -> Holds:
    """How a claim about most settings holds."""
    share = float(np.mean(values)) if len(values) else 0.0
    return "held" if share >= MOST else "partly" if share >= HALF else "not"


def listed(values: Mapping[str, float], digits: int = 3) -> str:
    """Numbers of settings in a sentence, the worst last."""
    return ", ".join(f"{name} {numbers([value], digits)}" for name, value in values.items())


def fit_claims(found: Sequence[Followed], behind: Sequence[int] = ()) -> list[Claim]:
    """Judge fits and forecasts; criteria were fixed before a curve was looked at."""
    groups = by_name(found)
    if not any(one.fit is not None for one in found):
        return [claim("two-points", "three-curves", "not judged", "No network has curves that can be fitted.")]
    worst = dict(sorted(medians(groups, lambda f: f.worst).items(), key=lambda pair: -pair[1]))
    good = [value >= GOOD for value in worst.values()]
    below = {name: value for name, value in worst.items() if value < GOOD}
    each = [medians(groups, lambda f, i=i: None if f.fit is None else float(f.fit.r_squared[i])) for i in range(3)]
    curves = "; ".join(
        f"{name} at least {GOOD} in {sum(v >= GOOD for v in values.values())} settings, least "
        f"{numbers([min(values.values())])}"
        for name, values in zip(NAMES, each, strict=True)
    )  # fmt: skip
    learned = {name: sum(one.learned for one in group) for name, group in groups.items()}
    late = ", ".join(f"{name} {n} of {len(groups[name])}" for name, n in learned.items() if n < len(groups[name]))
    diverged = ", ".join(f"{one.name} (seed {one.trace.member.seed}, from step {one.trace.diverged})" for one in found
                         if one.trace.diverged is not None)  # fmt: skip
    made = [
        claim("two-points", "three-curves", share_of(good),
              f"Two rates are fitted to three curves. R² of the worst curve, median over seeds, is at least {GOOD} in "
              f"{sum(good)} of {len(good)} settings; below it in {listed(below) or 'none'}. By curve: {curves}. "
              f"Wanted: at least {GOOD} in {MOST:.0%} of the settings (partly: in {HALF:.0%}). At least {FAIR} in "
              f"{sum(v >= FAIR for v in worst.values())}.", behind, share=float(np.mean(good))),
        _forecast_claim(groups, "second-half", lambda f: f.miss(f.second_half),
                        "The second half of the steps, predicted from the first"),
        _forecast_claim(groups, "from-half-way", lambda f: f.miss(f.from_middle),
                        "All that comes after the error of dy has halved, predicted from what came before"),
        claim("two-points", "learned", "not judged",
              f"Networks with a loss of at most {LEARNED:g} at the end: {sum(learned.values())} of {len(found)}"
              f"{'; fewer than all in ' + late if late else ''}. Diverged: {diverged or 'none'}. Curves are fitted as "
              "far as they go."),
    ]  # fmt: skip
    relative = [
        f"{name} {short([float(np.median(values)) for values in zip(*kept, strict=True)])}"
        for name, group in groups.items()
        if (kept := [one.relative for one in group if one.relative is not None])
    ]
    made.append(claim("two-points", "effective-rates", "not judged",
                      f"η_h and η_y over the learning rate, medians over seeds: {'; '.join(relative)}. (Two linear "
                      "layers without biases, at points that are symmetrical about 0, have ½ and ½.)"))  # fmt: skip
    return made


def _forecast_claim(
    groups: Mapping[str, Sequence[Followed]], name: str, value: Callable[[Followed], float | None], what: str
) -> Claim:
    misses = medians(groups, value)
    if not misses:
        return claim("two-points", name, "not judged", f"{what}: no network can be judged.")
    good = [miss <= NEAR for miss in misses.values()]
    off = {name: miss for name, miss in sorted(misses.items(), key=lambda pair: pair[1]) if miss > NEAR}
    rough = sum(miss <= ROUGH for miss in misses.values())
    return claim("two-points", name, share_of(good),
                 f"{what}: root mean squared error over the range of the curve, worst of the three, median over seeds: "
                 f"at most {NEAR} in {sum(good)} of {len(good)} settings, at most {ROUGH} in {rough}; above {NEAR} in "
                 f"{listed(off, 2) or 'none'}. Wanted: at most {NEAR} in {MOST:.0%} (partly: in {HALF:.0%}).",
                 share=float(np.mean(good)))  # fmt: skip


def curve_rows(panel: str, one: Followed) -> list[Row]:
    """`h` over its largest value, `y` and `v` over `Y`, measured and fitted, of one network."""
    kept = thinned(len(one.trace.epochs), 70)
    steps = one.trace.epochs[kept].tolist()
    top = float(one.trace.watched.max())
    measured = [one.trace.watched / top, one.trace.y / one.trace.member.dy2, one.trace.v / one.trace.member.dy2]
    seed = one.trace.member.seed
    rows = [
        Row(panel, name, x, y, seed=seed)
        for name, curve in zip(NAMES, measured, strict=True)
        for x, y in zip(steps, curve[kept].tolist(), strict=True)
    ]
    if one.fit is None:
        return rows
    scales = (top, one.trace.member.dy2, one.trace.member.dy2)
    return rows + [
        Row(panel, f"{name}, theory", x, y, seed=seed)
        for name, curve, scale in zip(NAMES, one.fit.fitted, scales, strict=True)
        for x, y in zip(steps, (curve[kept] / scale).tolist(), strict=True)
    ]


def figure_two_points(
    settings: PairFigure, networks: Sequence[PairNetworks], folder: Path, table: MetricTable
) -> PaperFigure:
    """Curves of each kind of network with the fitted theory, how well it fits, and what it predicts."""
    found, seconds = follow_all(networks, folder)
    behind = [
        row for one in found if one.fit is not None
        for row in record_fit(table, one, one.fit, figure="two-points", layer=one.trace.setting.watched)
    ]  # fmt: skip
    groups = by_name(found)
    drawn = {name.replace(".", "-"): groups[name][0] for name in _DRAWN if name in groups}
    rows = [row for name, one in drawn.items() for row in curve_rows(name, one)]
    for one in found:
        seed, miss = one.trace.member.seed, one.miss(one.from_middle)
        if one.fit is None:
            continue
        left = max(1 - one.worst, 1e-8)
        if one.moves:
            rows.append(Row("rates", family(one.name), one.fit.eta_y, one.fit.eta_h, seed=seed))
        if miss is not None:
            rows.append(Row("errors", family(one.name), left, max(miss, 1e-8), seed=seed))
    return PaperFigure(
        "two-points", "Two points: networks of every kind follow three equations with two rates",
        "Two samples come apart as the theory says, in networks of all kinds, once an effective learning rate of the "
        "encoder and one of the decoder are fitted; only extreme settings deviate.",
        f"{len(groups)} settings of the published table, {len(found)} networks, rates fitted to h, y and v at the "
        "published layer over all steps, from many starts. Charts: the first seed; h over its largest value, y and v "
        f"over Y. {len(found) - sum(one.moves for one in found)} fits, in which h does not move (η_h below 10⁻⁶ η_y), "
        "are left out of the chart of rates.",
        (
            *(Panel(name, _title(one), "step", "h / max h, y / Y, v / Y",
                    y_scale="symlog" if float(one.trace.y[0]) > 2 * one.trace.member.dy2 else "linear")
              for name, one in drawn.items()),
            Panel("rates", "Fitted rates", "rate of the decoder η_y", "rate of the encoder η_h", kind="points",
                  x_scale="log", y_scale="log"),
            Panel("errors", "Fit, and forecast from half-way", "1 − R² of the worst curve", "forecast error / range",
                  kind="points", x_scale="log", y_scale="log"),
        ),
        tuple(rows), tuple(fit_claims(found, behind)), seconds,
        note="Not as the published code has it: tanh is tanh, Adam is Adam, dropout's layer is counted among hidden "
        "layers.",
    )  # fmt: skip


def _title(one: Followed) -> str:
    shown = _TITLES.get(one.name, one.name.replace("_", " ").capitalize())
    if one.fit is None:
        return f"{shown}: no fit"
    found = [float(value) for value in one.fit.r_squared]
    said = ", ".join(
        f"{name} {f'{value:.3f}' if value > 0 else 'below 0'}" for name, value in zip(NAMES, found, strict=True)
    )
    return f"{shown}: R² of {said}"
