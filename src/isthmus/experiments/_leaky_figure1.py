"""Fig 1 and Fig 3 of the Leaky ResNet paper (arXiv 2405.17573, docs/theory 1.8): the Hamiltonian and its rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from isthmus._records import Claim, MetricTable
from isthmus.experiments._leaky_networks import Trained
from isthmus.experiments._leaky_presets import BOTTLENECK, RIDGE, Preset
from isthmus.experiments._reproduction import SHOWN_VALUES, Holds, Panel, PaperFigure, Row, claim, graded, spectrum_rows
from isthmus.geometry import GAMMA0S

_LT = "effective depth L̃"
_P = "depth p"


def _mean_row(panel: str, series: str, x: float, values: Sequence[float]) -> Row:
    """Mean over seeds, with the least and the largest."""
    return Row(panel, series, x, float(np.mean(values)), float(np.min(values)), float(np.max(values)), n=len(values))


def _log_singular(t: Trained, i: int) -> float:
    return float(t.values("jacobian_log_singular_value")[i])


def by_effective_depth(networks: Sequence[Trained]) -> dict[float, list[Trained]]:
    """The networks of each `L̃`, ascending."""
    return {lt: [t for t in networks if t.lt == lt] for lt in sorted({t.lt for t in networks})}


def summary_rows(table: MetricTable, t: Trained) -> dict[str, int]:
    """Rows of the reproduction's table for one network; returns their numbers by short name."""
    note = f"network {t.network.name}"
    numbers: dict[str, tuple[str, float]] = {
        "rank": ("hamiltonian_rank_symmetric", t.rank),
        "pair": ("hamiltonian_rank", float(np.median(t.inside("hamiltonian_rank")))),
        "stable": ("hamiltonian_rank_stable",
                   float(np.median(t.inside("hamiltonian_rank_stable", gamma0=GAMMA0S[0])))),
        "cost": ("cost_of_identity", t.least_cost()),
        "stationarity": ("stationarity", t.residual),
        **{name: (f"bound_{name}", t.scalar(f"bound_{name}")) for name in ("lower", "upper", "slack")},
        "balance": ("balance", float(t.values("balance").max())),
        "negative": ("negative_fraction", float(np.median(t.inside("negative_fraction", 0.3, 0.7)))),
    }  # fmt: skip
    where: dict[str, Any] = {"layer": "path", "seed": t.seed, "split": "train"}
    return {
        name: table.add(metric, value, note=f"{note}; L̃={t.lt:g}; median or extreme along the path", **where)
        for name, (metric, value) in numbers.items()
    }


def _approach(values: Sequence[float], *, below: bool, k: int = BOTTLENECK) -> Holds:
    """Whether means at growing `L̃` go towards `k` from one side: held within ½ of it at the end, partly within 1."""
    sign = 1 if below else -1
    steps = sign * np.diff(values)
    side = sign * (k - np.array(values))
    if (steps <= 0).any() or (side < -0.5).any():
        return "partly" if sign * (values[-1] - values[0]) > 0 and abs(side[-1]) < 1 else "not"
    return graded(abs(float(side[-1])), held=0.5, partly=1.0)


def _list(values: Sequence[float], digits: int = 2) -> str:
    return ", ".join(f"{v:.{digits}f}".replace("-", "−") for v in values)


def figure_1a(
    preset: Preset, main: Sequence[Trained], finer: Sequence[Trained], readings: dict[str, list[Trained]],
    logs: Callable[[Trained], list[float]], table: MetricTable,
) -> PaperFigure:  # fmt: skip
    """Rank estimates against `L̃`; `finer` are more layers at the largest, `readings` other readings of λ."""
    groups = by_effective_depth(main)
    lts = list(groups)
    recorded = {
        t.network.name: summary_rows(table, t) for t in [*main, *finer, *(t for r in readings.values() for t in r)]
    }
    rows: list[Row] = []
    for lt, group in groups.items():
        for label, metric in (("−2H/L̃, pair", "hamiltonian_rank"), ("−2H/L̃, symmetric", "hamiltonian_rank_symmetric")):
            whole = [t.values(metric) for t in group]
            rows.append(Row("rank", label, lt, float(np.mean([np.median(v) for v in whole])),
                            float(np.mean([v.min() for v in whole])), float(np.mean([v.max() for v in whole])),
                            n=len(group)))  # fmt: skip
        stable = [float(np.median(t.values("hamiltonian_rank_stable", gamma0=GAMMA0S[0]))) for t in group]
        rows.append(_mean_row("rank", "−2H_γ/L̃, stable", lt, stable))
        rows += [_mean_row("rank", f"least COI, γ₀ = {gamma0:g}", lt, [t.least_cost(gamma0) for t in group])
                 for gamma0 in GAMMA0S]  # fmt: skip
        rows.append(_mean_row("stationarity", "median layer", lt, [t.residual for t in group]))
        rows.append(
            _mean_row("stationarity", "worst layer", lt, [float(t.values("stationarity").max()) for t in group])
        )
        rows += [_mean_row("jacobian", f"student, log s_{i + 1}", lt, [_log_singular(t, i) for t in group])
                 for i in range(BOTTLENECK)]  # fmt: skip
    largest = groups[lts[-1]]
    for label, group in ((f"L = {preset.depth}", largest), (f"L = {preset.finer}", list(finer))):
        for t in group:
            p, v = t.along("hamiltonian_rank_symmetric")
            rows += [Row("along", label, float(x), float(y), seed=t.seed) for x, y in zip(p, v, strict=True)]
    teacher = np.mean([logs(t) for t in largest], axis=0)
    student = [float(np.mean([_log_singular(t, i) for t in largest])) for i in range(BOTTLENECK)]
    rest = [_log_singular(t, BOTTLENECK) for t in largest if len(t.values("jacobian_log_singular_value")) > BOTTLENECK]
    beyond = f" (the next one {_list([float(np.mean(rest))], 1)})" if rest else ""
    rank = [float(np.mean([t.rank for t in g])) for g in groups.values()]
    cost = [float(np.mean([t.least_cost() for t in g])) for g in groups.values()]
    behind = {
        name: [recorded[t.network.name][name] for t in main] for name in ("rank", "cost", "stationarity", "upper")
    }
    at = f"at L̃ = {', '.join(f'{lt:g}' for lt in lts)}"
    claims = [
        claim("1a", "from-below", _approach(rank, below=True),
              f"−2H/L̃ (symmetric, median over p in [0.1, 0.9], mean of {len(largest)} seeds) is {_list(rank)} {at}; "
              f"the paper: it rises to k* = {BOTTLENECK} from below.", behind["rank"], last=rank[-1]),
        claim("1a", "from-above", _approach(cost, below=False),
              f"The least cost of identity along the path (γ₀ = 0.001) is {_list(cost)} {at}; the paper: it falls to "
              f"k* = {BOTTLENECK} from above.", behind["cost"], last=cost[-1]),
        _stationarity_claim(groups, behind["stationarity"]),
        _constancy_claim(preset, largest, finer),
        _bounds_claim(main, behind["upper"]),
        _readings_claim(preset, groups, readings, recorded),
        claim("1a", "jacobian", "held" if float(np.abs(teacher).max()) < lts[-1] else "partly",
              f"The teachers' log singular values are {_list(teacher.tolist())} (mean), the students' "
              f"{_list(student)} at L̃ = {lts[-1]:g}{beyond}. They must be small against L̃ for −2H/L̃ to count whole "
              "dimensions; what costs here is larger: representations shrink before and grow along the bottleneck."),
    ]  # fmt: skip
    rules = tuple((float(v), f"teacher, log s_{i + 1}") for i, v in enumerate(teacher))
    return PaperFigure(
        "1a", "The Hamiltonian and the cost of identity against the effective depth",
        "−2H/L̃ (median over layers, bars the least and largest), the stabilised H, and the least cost of identity, "
        f"against L̃: they approach k* = {BOTTLENECK} from below and above.",
        f"Teacher 30→3→30 of two fully-connected networks, L = {preset.depth}, equidistant steps, {len(preset.seeds)} "
        "seeds of data and weights. Bars of −2H/L̃ are the least and the largest along the path, averaged over "
        "seeds; other bars the least and largest of the seeds.",
        (
            Panel("rank", "Rank estimates", _LT, "dimensions", y_scale="symlog",
                  rules=((float(BOTTLENECK), f"k* = {BOTTLENECK}"),)),
            Panel("stationarity", "Stationarity: can the Hamiltonian be trusted?", _LT, "residual", y_scale="log",
                  rules=((0.05, "0.05"),)),
            Panel("jacobian", "Log singular values of the Jacobian", _LT, "nats", rules=rules),
            Panel("along", f"Is it constant? −2H/L̃ along the path at L̃ = {lts[-1]:g}", _P, "dimensions",
                  rules=((float(BOTTLENECK), f"k* = {BOTTLENECK}"),)),
        ),
        tuple(rows), tuple(claims), sum(t.seconds for t in [*main, *finer, *(t for r in readings.values() for t in r)]),
    )  # fmt: skip


def _stationarity_claim(groups: dict[float, list[Trained]], behind: Sequence[int]) -> Claim:
    medians = {lt: [t.residual for t in g] for lt, g in groups.items()}
    worst = max(float(np.median(v)) for v in medians.values())
    text = "; ".join(f"{lt:g}: {_list(v, 3)}" for lt, v in medians.items())
    return claim("1a", "stationarity", graded(worst, held=0.05, partly=0.15),
                 f"Stationarity residual of the median layer, by L̃ and seed: {text}. Wanted: below 0.05 for every L̃ "
                 f"in the median over seeds; the largest such median is {worst:.3f}.", behind, worst=worst)  # fmt: skip


def departure(t: Trained) -> float:
    """Largest relative distance of the symmetric rank estimate from its median over p in [0.1, 0.9]."""
    values = t.inside("hamiltonian_rank_symmetric")
    middle = float(np.median(values))
    return float(np.abs(values - middle).max() / abs(middle)) if middle else math.inf


def _constancy_claim(preset: Preset, largest: Sequence[Trained], finer: Sequence[Trained]) -> Claim:
    off = [departure(t) for t in largest]
    text = (f"At L̃ = {largest[0].lt:g}, L = {preset.depth}, −2H/L̃ (symmetric) departs from its median over p in "
            f"[0.1, 0.9] by at most {_list([100 * v for v in off], 0)}% (one number a seed)")  # fmt: skip
    if finer:
        text += f"; with L = {preset.finer} layers by {_list([100 * departure(t) for t in finer], 0)}%"
    return claim("1a", "conservation", graded(float(np.median(off)), held=0.05, partly=0.25),
                 f"{text}. Wanted: 5%.", departure=float(np.median(off)))  # fmt: skip


def _bounds_claim(networks: Sequence[Trained], behind: Sequence[int]) -> Claim:
    inside, telling = 0, 0
    for t in networks:
        rank = float(np.median(t.values("hamiltonian_rank")))
        inside += t.scalar("bound_lower") <= rank <= t.scalar("bound_upper")
        telling += t.scalar("bound_slack") < BOTTLENECK
    slack = [t.scalar("bound_slack") for t in networks]
    holds = graded(1 - inside / len(networks), held=0.0, partly=0.5)
    return claim("1a", "theorem-4", holds,
                 f"−2H/L̃ lies between the bounds of Theorem 4 (γ₀ = 0.001) in {inside} of {len(networks)} networks. "
                 f"Their slack g runs from {min(slack):.2g} to {max(slack):.2g} dimensions; the upper bound says "
                 f"something (g < k*) in {telling}.", behind, inside=inside)  # fmt: skip


def _readings_claim(
    preset: Preset, groups: dict[float, list[Trained]], readings: dict[str, list[Trained]],
    recorded: dict[str, dict[str, int]],
) -> Claim:  # fmt: skip
    def says(group: Sequence[Trained]) -> str:
        rank = _list([t.rank for t in group])
        cost = _list([t.least_cost() for t in group])
        residual = _list([t.residual for t in group])
        test = _list([t.loss("test") for t in group])
        return f"−2H/L̃ {rank}, least COI {cost}, test error {test}, residual {residual}"

    used = groups.get(preset.shown, [])
    parts = [f"λ = {RIDGE:g} (used): {says(used)}", *(f"{name}: {says(group)}" for name, group in readings.items())]
    rows = [recorded[t.network.name]["rank"] for group in readings.values() for t in group]
    return claim("1a", "readings-of-lambda", "not judged",
                 f"At L̃ = {preset.shown:g}, by seed. {'. '.join(parts)}. The weaker the ridge, the more singular the "
                 "learned function, and the further −2H/L̃ lies below k*.", rows)  # fmt: skip


def figure_1b(preset: Preset, shown: Sequence[Trained]) -> PaperFigure:
    """Singular values of `A_p` and `W_p` against `p`."""
    rows: list[Row] = []
    first = shown[0]
    nodes, _ = first.along("cost_of_identity", "representation", gamma0=GAMMA0S[0])
    layers, _ = first.along("stationarity")
    for panel, spectrum, at in (
        ("representation", first.spectrum("representation"), nodes),
        ("centred", first.spectrum("representation_centred"), nodes),
        ("weight", first.spectrum("weight"), layers),
    ):
        rows += spectrum_rows(panel, at, spectrum, first.seed)
    counts = [weight_counts(t) for t in shown]
    middle, ends = [c[0] for c in counts], [c[1] for c in counts]
    centred = [_spectrum_count(t, "representation_centred") for t in shown]
    off = max(abs(m - BOTTLENECK) for m in middle)
    more = all(e > m for m, e in counts)
    holds: Holds = "held" if off == 0 and more else "partly" if off <= 1 and more else "not"
    return PaperFigure(
        "1b", f"Singular values along the path at L̃ = {preset.shown:g}",
        "Singular values of A_p and of W_p against p: 3 large ones in the middle, more at both ends.",
        f"The networks of Fig 1a at L̃ = {preset.shown:g}; charts of seed {first.seed}, the {SHOWN_VALUES} largest "
        "values; counts of all seeds.",
        (
            Panel("weight", "Weights W_p", _P, "singular value",
                  rules=((float(preset.shown), "L̃"),)),
            Panel("representation", "Representations A_p/√N", _P, "singular value"),
            Panel("centred", "Representations minus their mean", _P, "singular value"),
        ),
        tuple(rows),
        (claim("1b", "three-in-the-middle", holds,
               f"Singular values of W_p above L̃/2: {_list(middle, 0)} at the middle, {_list(ends, 0)} in the first "
               "and last layer (mean of the two), by seed. Singular values of the centred A_p above a tenth of the "
               f"largest, at the middle: {_list(centred, 0)}. The teacher's rank is 3; the mean of the non-negative "
               "representation takes one more direction of the weights where it is carried along."),),
        sum(t.seconds for t in shown),
    )  # fmt: skip


def weight_counts(t: Trained) -> tuple[float, float]:
    """Singular values of `W_p` above `L̃/2`: median over p in [0.4, 0.6], and mean of the first and last layer."""
    counts = t.weight_counts
    p, _ = t.along("stationarity")
    return float(np.median(counts[_middle(p)])), float((counts[0] + counts[-1]) / 2)


def _middle(p: np.ndarray) -> np.ndarray:
    """Which positions are in [0.4, 0.6], or nearest to the middle where none is."""
    inside = (p >= 0.4) & (p <= 0.6)
    return inside if inside.any() else np.abs(p - 0.5) == np.abs(p - 0.5).min()


def _spectrum_count(t: Trained, of: str) -> float:
    s = t.spectrum(of)
    p, _ = t.along("cost_of_identity", "representation", gamma0=GAMMA0S[0])
    counts = (s > 0.1 * s[:, :1]).sum(1)
    return float(np.median(counts[_middle(p)]))


def figure_1c(preset: Preset, shown: Sequence[Trained]) -> PaperFigure:
    """Hamiltonian, cost of identity and kinetic energy against `p`."""
    rows: list[Row] = []
    ratios: list[float] = []
    for t in shown:
        p, h = t.along("hamiltonian_symmetric")
        steps, kinetic = t.along("kinetic_energy", gamma0=GAMMA0S[0])
        nodes, cost = t.along("cost_of_identity", "representation", gamma0=GAMMA0S[0])
        _, stable = t.along("hamiltonian_stable", gamma0=GAMMA0S[0])
        for name, x, y in (("Hamiltonian, symmetric", p, h), ("Hamiltonian, stable", steps, stable),
                           ("kinetic energy", steps, kinetic),
                           ("potential energy −(L̃/2)·COI", nodes, -t.lt / 2 * cost)):  # fmt: skip
            rows += [Row("energies", name, float(a), float(b), seed=t.seed) for a, b in zip(x, y, strict=True)]
        inner = (steps >= 0.1) & (steps <= 0.9)
        parts = max(float(np.ptp(kinetic[inner])), float(np.ptp(t.lt / 2 * cost[:-1][inner])))
        ratios.append(parts / float(np.ptp(h[inner])))
    residual = [t.residual for t in shown]
    worst = min(ratios)
    return PaperFigure(
        "1c", f"Energies along the path at L̃ = {preset.shown:g}",
        "Hamiltonian, cost of identity and kinetic energy against p: H varies far less than its two parts.",
        f"The networks of Fig 1a at L̃ = {preset.shown:g}, all seeds.",
        (Panel("energies", "Energies", _P, "energy", y_scale="symlog"),),
        tuple(rows),
        (claim("1c", "conserved", "held" if worst >= 5 else "partly" if worst >= 1.5 else "not",
               f"Over p in [0.1, 0.9] the larger of the two parts varies {_list(ratios, 1)} times as much as H "
               "(symmetric), by seed; held means at least 5 times in every seed. Stationarity residual of the median "
               f"layer: {_list(residual, 3)}.", worst=worst),),
        sum(t.seconds for t in shown),
    )  # fmt: skip


def figure_3(preset: Preset, main: Sequence[Trained]) -> PaperFigure:
    """The quantities that stay bounded as `L̃` grows, and the invariants of docs/theory 1.7."""
    groups = by_effective_depth(main)
    quantities: dict[str, Callable[[Trained], float]] = {
        "path length ∫‖∂A‖dp / √N": lambda t: t.scalar("path_length_euclidean"),
        "largest ‖B‖·√N": lambda t: float(t.values("momentum_norm").max()) * math.sqrt(preset.n),
        "largest ‖BSᵀ‖": lambda t: float(t.values("momentum_weight_norm").max()),
    }
    rows: list[Row] = []
    slopes: dict[str, float] = {}
    lts = np.array(list(groups))
    upper = lts >= np.median(lts)
    for name, value in quantities.items():
        means = []
        for lt, group in groups.items():
            rows.append(_mean_row("bounded", name, lt, [value(t) for t in group]))
            means.append(rows[-1].y)
        slopes[name] = float(np.polyfit(np.log(lts[upper]), np.log(np.array(means)[upper]), 1)[0])
    for lt, group in groups.items():
        rows.append(
            _mean_row(
                "invariants", "balance residual, worst layer", lt, [float(t.values("balance").max()) for t in group]
            )
        )
        rows.append(_mean_row("invariants", "negative fraction, p in [0.3, 0.7]", lt,
                              [float(np.median(t.inside("negative_fraction", 0.3, 0.7))) for t in group]))  # fmt: skip
    worst = max(slopes.values())
    last = groups[float(lts[-1])]
    balance = [float(t.values("balance").max()) for t in last]
    negative = [float(np.median(t.inside("negative_fraction", 0.3, 0.7))) for t in last]
    said = "; ".join(f"{name}: L̃^{slope:.2f}".replace("-", "−") for name, slope in slopes.items())
    return PaperFigure(
        "3", "What stays bounded as the effective depth grows",
        "∫‖∂_pA‖dp, ‖B_p‖ and ‖B_pS_pᵀ‖ against L̃: all stay bounded.",
        "The networks of Fig 1a. B = −(1/λ)∂C/∂A. Beside them the invariants: balancedness of the weights with the "
        "factor 2, and the negative part of the representation inside the bottleneck.",
        (
            Panel("bounded", "Quantities that should stay bounded", _LT, "value", y_scale="log"),
            Panel("invariants", "Invariants: residuals that should vanish", _LT, "fraction", y_scale="log"),
        ),
        tuple(rows),
        (
            claim("3", "bounded", graded(worst, held=0.25, partly=0.75),
                  f"Power of L̃ that fits the upper half of the range: {said}. Held: none grows faster than L̃^0.25.",
                  worst=worst),
            claim("3", "balance", graded(float(np.median(balance)), held=0.1, partly=0.3),
                  f"At L̃ = {lts[-1]:g} the balance law is missed by {_list([100 * b for b in balance], 0)}% of the "
                  "largest ‖W‖² in the worst layer, by seed; it is exact in continuous depth and off by O(1/L) in "
                  "layers."),
            claim("3", "non-negative", graded(float(np.median(negative)), held=0.01, partly=0.05),
                  f"At L̃ = {lts[-1]:g} the share of ‖A‖² in negative entries inside the bottleneck is "
                  f"{', '.join(f'{v:.2g}' for v in negative)}, by seed."),
        ),
        sum(t.seconds for t in main),
    )  # fmt: skip
