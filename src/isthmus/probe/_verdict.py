"""From numbers to sentences: what a measured path says, each claim with the rows behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from isthmus._records import Claim
from isthmus.geometry import Bottleneck, PathGeometry
from isthmus.probe._measure import PathMeasurement

STATIONARY = 0.1
"""Below this median residual the Hamiltonian's numbers are read without a caution: `H` is then off by about 10%."""

CONSERVED = 0.05
"""Conservation is called good where the symmetric estimate varies by less than 5% over p in [0.1, 0.9]."""


def _span(steps: Sequence[int]) -> str:
    """`1–3, 7` from `(1, 2, 3, 7)`."""
    runs: list[list[int]] = []
    for step in steps:
        if runs and step == runs[-1][-1] + 1:
            runs[-1].append(step)
        else:
            runs.append([step])
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}–{r[-1]}" for r in runs)


def _rows(rows: Mapping[str, Sequence[int]], *metrics: str) -> tuple[int, ...]:
    return tuple(row for m in metrics for row in rows.get(m, ()))


def _bottleneck(found: Bottleneck, rows: Mapping[str, Sequence[int]]) -> Claim:
    behind = _rows(rows, "bottleneck_rank", "cost_of_identity", "numerical_rank", "path_speed")
    values = {
        "rank": found.rank,
        "input_rank": found.input_rank,
        "start": found.start,
        "end": found.end,
        "slowdown": found.slowdown,
        "agreement": found.agreement,
    }
    if not found.found:
        return Claim("bottleneck", f"No bottleneck: {found.reason}.", "none", behind, values)
    text = f"Keeps {found.rank} of {found.input_rank} dimensions from p = {found.start:.2g} to {found.end:.2g}"
    if found.slowdown is not None and found.slowdown >= 1.5:
        text += f"; slowest there, by a factor {found.slowdown:.2g}"
    elif found.slowdown is not None and found.slowdown <= 1 / 1.5:
        text += f"; yet it moves faster there, by a factor {1 / found.slowdown:.2g}"
    return Claim("bottleneck", text + ".", "finding", behind, values)


_PLAIN = {
    "cost_of_identity": "least cost of identity (from above)",
    "spectrum": "representation",
    "weight_spectrum": "weights",
    "hamiltonian_rank_symmetric": "Hamiltonian (from below)",
}


def _evidence(found: Bottleneck, rows: Mapping[str, Sequence[int]]) -> Claim:
    parts = [f"{_PLAIN[e.metric]} {e.value:.2g}{'' if e.trusted else ' (not used)'}" for e in found.evidence]
    trusted = sum(e.trusted for e in found.evidence)
    agreeing = round(found.agreement * trusted)
    return Claim(
        "agreement",
        f"{agreeing} of {trusted} estimates lie less than one dimension from {found.rank}: {', '.join(parts)}.",
        "finding" if agreeing == trusted else "caution",
        _rows(rows, "cost_of_identity", "hamiltonian_rank_symmetric", "numerical_rank"),
        {e.metric: e.value for e in found.evidence} | {"agreement": found.agreement},
    )


def _stationarity(g: PathGeometry, rows: Mapping[str, Sequence[int]], why: str) -> Claim:
    if g.stationarity is None:
        return Claim("stationarity", f"No Hamiltonian: {why}.", "caution", _rows(rows, "hamiltonian"))
    median, worst = float(g.stationarity.quantile(0.5)), float(g.stationarity.max())
    text = f"The weights are {median:.2g} away from a critical point (median layer; worst {worst:.2g})"
    if median < STATIONARY:
        text += ", close enough to read the Hamiltonian."
    else:
        text += f": read the Hamiltonian with care, or train longer (below {STATIONARY:g} is good)."
    level = "finding" if median < STATIONARY else "caution"
    return Claim("stationarity", text, level, _rows(rows, "stationarity"), {"median": median, "worst": worst})


def _conservation(g: PathGeometry, rows: Mapping[str, Sequence[int]]) -> list[Claim]:
    if g.hamiltonians is None:
        return []
    middle = g.step_positions
    inside = (middle >= 0.1) & (middle <= 0.9)
    if not bool(inside.any()):
        return []
    rank = g.hamiltonians.rank(g.hamiltonians.symmetric)[inside]
    centre = float(rank.quantile(0.5))
    spread = float((rank.max() - rank.min()) / 2)
    share = spread / abs(centre) if centre != 0 else float("inf")
    text = f"−2H/L̃ is {centre:.2g} ± {spread:.2g} over p in [0.1, 0.9] ({share:.0%})"
    good = share < CONSERVED
    text += ": conserved." if good else ": not constant to 5%, as it would be at a critical point of many layers."
    values = {"median": centre, "half_range": spread, "share": share}
    rows_behind = _rows(rows, "hamiltonian_rank_symmetric")
    return [Claim("conservation", text, "finding" if good else "caution", rows_behind, values)]


def _pace(found: Bottleneck, g: PathGeometry, rows: Mapping[str, Sequence[int]]) -> Claim:
    low, high = float(g.speed.min()), float(g.speed.max())
    behind = _rows(rows, "path_speed", "layer_step")
    if not found.fast:
        return Claim("pace", "All layers move at about the same speed.", "none", behind, {"least": low, "most": high})
    text = (
        f"Fast layers: {_span(found.fast)}; slow layers: {_span(found.slow)} "
        f"(speeds from {low:.2g} to {high:.2g} per unit of depth)."
    )
    return Claim("pace", text, "finding", behind, {"least": low, "most": high})


def _gamma(g: PathGeometry, rows: Mapping[str, Sequence[int]]) -> Claim:
    least = {gamma0: float(c.stabilised.min()) for gamma0, c in sorted(g.cost.items(), reverse=True)}
    text = "Least cost of identity " + ", ".join(f"{v:.3g} at γ₀ = {k:g}" for k, v in least.items())
    spread = max(least.values()) / max(min(least.values()), 1e-12)
    sensitive = spread > 1.5
    text += ": it depends on γ₀, so take it as a range." if sensitive else "."
    return Claim("gamma0", text, "caution" if sensitive else "finding", _rows(rows, "cost_of_identity"),
                 {f"{k:g}": v for k, v in least.items()})  # fmt: skip


def _bounds(g: PathGeometry, found: Bottleneck, rows: Mapping[str, Sequence[int]]) -> list[Claim]:
    b = g.bounds
    if b is None:
        return []
    behind = _rows(rows, "bound_lower", "bound_upper", "bound_slack")
    values = {"lower": b.lower, "upper": b.upper, "slack": b.slack}
    if b.slack > max(found.rank, 1):
        text = f"Theorem 4's bounds on −2H/L̃ say nothing here: their slack g = {b.slack:.2g} exceeds the rank."
        return [Claim("bounds", text, "none", behind, values)]
    between = f"−2H/L̃ between {b.lower:.2g} and {b.upper:.2g} (γ₀ = {b.gamma0:g}, g = {b.slack:.2g})"
    if g.stationarity is not None and float(g.stationarity.quantile(0.5)) < STATIONARY:
        return [Claim("bounds", f"Theorem 4 places {between}.", "finding", behind, values)]
    text = f"Theorem 4 would place {between} at a critical point, which these weights are not at."
    return [Claim("bounds", text, "caution", behind, values)]


def _coarse(g: PathGeometry, rows: Mapping[str, Sequence[int]]) -> list[Claim]:
    reach = float((g.layer_steps * g.effective_depth).max())
    if reach <= 1:
        return []
    text = (
        f"A layer step takes ρL̃ = {reach:.2g} > 1: its skip factor is negative there. Use more layers or a lower cap."
    )
    return [Claim("coarse_steps", text, "caution", _rows(rows, "layer_step"), {"largest": reach})]


def path_verdict(measured: PathMeasurement, rows: Mapping[str, Sequence[int]], *, why_no_momenta: str) -> list[Claim]:
    """The claims of one measured path, most important first.

    Args:
        measured: from `measure_path`.
        rows: row numbers by metric, from `PathMeasurement.record`.
        why_no_momenta: the reason given where there is no Hamiltonian.
    """
    g, found = measured.geometry, measured.bottleneck
    with torch.no_grad():
        return [
            _bottleneck(found, rows),
            _evidence(found, rows),
            _stationarity(g, rows, why_no_momenta),
            *_conservation(g, rows),
            _pace(found, g, rows),
            _gamma(g, rows),
            *_bounds(g, found, rows),
            *_coarse(g, rows),
        ]
