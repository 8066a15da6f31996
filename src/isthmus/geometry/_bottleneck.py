"""Where the path is narrow: the bottleneck's rank, its interval, and how far the pieces of evidence agree."""

from __future__ import annotations

import dataclasses
import math
import statistics

import torch
from torch import Tensor

from isthmus.geometry._path import PathGeometry
from isthmus.geometry._ranks import numerical_rank

TRUSTED_STATIONARITY = 0.5
"""The Hamiltonian counts as evidence only where the median residual inside the interval is below this: the residual
bounds the relative error of `‖B Sᵀ‖`, and above one half the estimate of the rank may be off by its own size."""

SPECTRUM_TOLERANCE = 0.1
"""A singular value of the representation counts from a tenth of the largest on (tuned here: inside a bottleneck the
others fall towards 0, outside there is no gap for this level to hit)."""

NARROWER = 0.8
"""A path has a bottleneck if its rank is at most this share of the dimensions at its input."""

UNEVEN = 2.0
"""Steps are split into fast and slow ones only if the fastest is at least this many times the slowest."""


@dataclasses.dataclass(frozen=True)
class Evidence:
    """One estimate of the bottleneck's rank.

    Attributes:
        metric: its name in the table; `spectrum` counts singular values of the representation, `weight_spectrum`
            those of the weights above `L̃/2` (inside a bottleneck `k` of them are near `L̃`).
        value: the estimate, in dimensions.
        trusted: whether it entered the rank; if not, `note` says why.
    """

    metric: str
    value: float
    trusted: bool
    note: str


@dataclasses.dataclass(frozen=True)
class Bottleneck:
    """The narrowest part of a path (arXiv 2405.17573, docs/theory 1.6).

    Attributes:
        found: whether there is a bottleneck; `reason` says why not.
        rank: `k*`, the median of the trusted estimates, rounded.
        input_rank: numerical rank (1%) of the path's first representation.
        first, last: nodes between which the cost of identity is within max(½, 10%) of its minimum.
        start, end: their positions `p`.
        evidence: every estimate.
        agreement: share of the trusted estimates less than one dimension away from `k*`.
        slow, fast: steps (1..L) below and above the geometric mean of the extreme speeds; empty if even.
        slowdown: median speed outside the interval over the median inside; None if one of the two is empty.
    """

    found: bool
    reason: str
    rank: int
    input_rank: int
    first: int
    last: int
    start: float
    end: float
    evidence: tuple[Evidence, ...]
    agreement: float
    slow: tuple[int, ...]
    fast: tuple[int, ...]
    slowdown: float | None


def _median(values: Tensor) -> float:
    return float(values.double().quantile(0.5))


def _interval(cost: Tensor) -> tuple[int, int]:
    """Contiguous nodes around the minimum whose cost is within max(½, 10%) of it."""
    least = int(cost.argmin())
    level = float(cost[least]) + max(0.5, 0.1 * float(cost[least]))
    first = last = least
    while first > 0 and float(cost[first - 1]) <= level:
        first -= 1
    while last + 1 < cost.numel() and float(cost[last + 1]) <= level:
        last += 1
    return first, last


def _evidence(geometry: PathGeometry, first: int, last: int) -> list[Evidence]:
    steps = slice(first, last) if last > first else slice(max(0, first - 1), max(0, first - 1) + 1)
    found = [
        Evidence(
            "cost_of_identity",
            float(geometry.cost[geometry.gamma0].stabilised.min()),
            True,
            f"least along the path, gamma0={geometry.gamma0:g}; approaches k* from above",
        ),
        Evidence(
            "spectrum",
            _median(numerical_rank(geometry.spectrum[first : last + 1], tolerance=SPECTRUM_TOLERANCE)),
            True,
            f"singular values of A above {SPECTRUM_TOLERANCE:g} of the largest, median of the interval",
        ),
    ]
    if geometry.effective_depth > 0:
        count = (geometry.weight_spectrum[steps] > 0.5 * geometry.effective_depth).sum(-1)
        found.append(
            Evidence("weight_spectrum", _median(count), True, "singular values of W above L̃/2, median of the interval")
        )
    if geometry.hamiltonians is not None and geometry.stationarity is not None:
        residual = _median(geometry.stationarity[steps])
        value = _median(geometry.hamiltonians.rank(geometry.hamiltonians.symmetric)[steps])
        trusted = residual < TRUSTED_STATIONARITY
        note = f"−2H/L̃, median of the interval; approaches k* from below; stationarity residual {residual:.2g}"
        if not trusted:
            note += f", above {TRUSTED_STATIONARITY:g}: not used"
        found.append(Evidence("hamiltonian_rank_symmetric", value, trusted, note))
    return found


def _pace(speed: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Slow and fast steps (1..L), split at the geometric mean of the extreme speeds."""
    low, high = float(speed.min()), float(speed.max())
    if not high > UNEVEN * low:
        return (), ()
    split = math.sqrt(max(low, 1e-12 * high) * high)
    slow = [i + 1 for i, c in enumerate(speed.tolist()) if c <= split]
    return tuple(slow), tuple(i for i in range(1, speed.numel() + 1) if i not in slow)


def find_bottleneck(geometry: PathGeometry) -> Bottleneck:
    """Find the narrow part of a path and its rank, with the evidence (docs/theory 1.6).

    The interval is where the stabilised cost of identity stays within max(½, 10%) of its minimum. The rank is the
    median of the trusted estimates: the least cost of identity (an upper estimate), `−2H/L̃` (a lower one, trusted
    where stationarity is below 0.5), the singular values of the weights above `L̃/2`, and those of the representation
    above a tenth of the largest. Fast and slow layers are told by their speed `c_ℓ`, since relative moves are equal by
    construction under adaptive steps.
    """
    cost = geometry.cost[geometry.gamma0].stabilised
    first, last = _interval(cost)
    evidence = _evidence(geometry, first, last)
    trusted = [e.value for e in evidence if e.trusted]
    rank = round(statistics.median(trusted))
    agreement = sum(abs(v - rank) < 1 for v in trusted) / len(trusted)
    lt = geometry.effective_depth
    input_rank = int(numerical_rank(geometry.spectrum[0]))
    reason = ""
    if lt > 0 and float(geometry.weight_spectrum.max()) < 0.5 * lt:
        reason = "the weights nowhere make up for the leak: the network is (almost) constant: is the ridge too large?"
    elif rank > NARROWER * input_rank:
        kept = f"keeps {rank} of {input_rank} dimensions" if rank < input_rank else f"keeps all {input_rank} dimensions"
        if rank > input_rank:
            kept = f"is estimated at {rank} dimensions, more than the {input_rank} of its input"
        reason = f"its narrowest part {kept}"
    elif agreement < 0.5:
        reason = f"the estimates disagree ({', '.join(f'{v:.1f}' for v in trusted)} dimensions)"
    inside = torch.zeros(geometry.speed.numel(), dtype=torch.bool)
    inside[first:last] = True
    speed = geometry.speed.cpu()
    slow, fast = _pace(speed)
    slowdown = None
    if bool(inside.any()) and not bool(inside.all()):
        middle = _median(speed[inside])
        slowdown = _median(speed[~inside]) / middle if middle > 0 else None
    return Bottleneck(
        found=not reason,
        reason=reason,
        rank=rank,
        input_rank=input_rank,
        first=first,
        last=last,
        start=float(geometry.positions[first]),
        end=float(geometry.positions[last]),
        evidence=tuple(evidence),
        agreement=agreement,
        slow=slow,
        fast=fast,
        slowdown=slowdown,
    )
