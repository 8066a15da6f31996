"""Where the recursion of signal propagation leads: fixed points, phases, depth scales, and the equilibrium's law."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Literal, cast

from isthmus._errors import InputError
from isthmus.theory._activation_moments import NODES, Activation, Moments, moments_of
from isthmus.theory._checks import positive
from isthmus.theory._signal_propagation import check_variances

Phase = Literal["ordered", "critical", "chaotic", "unbounded"]

_NODES = NODES[1]
_SAME = 1e-6
_STEP = 1.25
_FLOOR, _CEILING = 1e-9, 1e9
"""Variances below the first count as 0 where nothing keeps them up; above the second, as infinite."""

_POWER = 0.01
"""What `dρ_{ℓ+1}/dρ_ℓ` at 1 has to differ from 1 by where variances are lost, to tell a power of x from a line."""


@dataclasses.dataclass(frozen=True)
class SignalPhase:
    """What a multilayer network of infinite width does to signals in the long run (docs/theory 4.3).

    Attributes:
        phase: `ordered` (χ < 1: gradients vanish), `critical` (χ = 1), `chaotic` (χ > 1: gradients explode), or
            `unbounded` (variances grow without end).
        variance: `q*`, the variance of pre-activations that the start leads to; 0 where they die out, infinite where
            they grow without end.
        slope: `χ = σ_w² E φ'²` at `q*`: what one layer multiplies squared gradients by.
        correlation: `c*` of pre-activations, which inputs lead to (apart from equal ones and, where φ is odd and there
            is no bias, opposite ones): 1 where they become alike, below 1 in the chaotic phase. None where every
            correlation is kept in the end: φ is linear, or acts as if it were where variances die out or grow.
        correlation_depth: `ξ = −1 / log|dρ_{ℓ+1}/dρ_ℓ|` at `c*`: layers over which correlations approach it by a
            factor e; infinite where they do so as a power of the layer, or not at all.
        variance_depth: the same of variances, `1 / |log(dq_{ℓ+1}/dq_ℓ)|`; of their decay or growth where q* is 0 or
            infinite; 0 where that is faster than any exponential.
    """

    phase: Phase
    variance: float
    slope: float
    correlation: float | None
    correlation_depth: float
    variance_depth: float


@dataclasses.dataclass(frozen=True)
class EquilibriumLaw:
    """`ℓ* ~ coefficient · L^exponent` as L grows (arXiv 2110.11749, docs/theory 4.3)."""

    coefficient: float
    exponent: float


def _depth(rate: float) -> float:
    """Layers over which something that is multiplied by `rate` changes by a factor e."""
    rate = abs(rate)
    if abs(rate - 1) <= _SAME:
        return math.inf
    return 0.0 if rate == 0 else 1 / abs(math.log(rate))


def _root(excess: Callable[[float], float], low: float, high: float) -> float:
    import scipy.optimize  # not at the top: it takes a while to load

    return float(cast("float", scipy.optimize.brentq(excess, low, high, xtol=1e-16)))


def _fixed_variance(moments: Moments, weight: float, bias: float, start: float) -> float:
    """The fixed point of `q ↦ σ_w² E φ² + σ_b²` that lies in the direction in which `start` moves; 0 or infinity."""

    def excess(log_q: float) -> float:
        q = math.exp(log_q)
        return (weight * moments.single(q, _NODES)[0] + bias) / q - 1

    here = excess(math.log(start))
    if abs(here) <= 1e-12:
        return start
    before, step = math.log(start), math.copysign(math.log(_STEP), here)
    floor = math.log(_FLOOR * start) if bias == 0 else -math.inf
    while True:
        after = before + step
        if after < floor:
            return 0.0
        if after > math.log(_CEILING * max(1.0, start)):
            return math.inf
        if excess(after) * here <= 0:
            low, high = sorted((before, after))
            return math.exp(_root(excess, low, high))
        before = after


def _fixed_loss(kept: Callable[[float], float]) -> float:
    """The fixed point below 1 of `1 − ρ ↦ kept(1 − ρ)`, convex and unstable at 0."""
    if abs(kept(1.0) - 1) <= 1e-12:
        return 1.0
    low = 1.0
    while kept(low) <= low * (1 + 1e-12):
        low /= 4
        if low < 1e-14:
            return 0.0
    return _root(lambda x: kept(x) / x - 1, low, 4 * low)


def signal_phase(
    activation: str | Activation,
    *,
    weight_variance: float | int,
    bias_variance: float | int = 0.0,
    variance: float | int = 1.0,
) -> SignalPhase:
    """Phase, fixed points and depth scales of a multilayer network of infinite width.

    `q_{ℓ+1} = σ_w² E φ(√q_ℓ u)² + σ_b²` has the fixed point q*; there correlations of pre-activations follow
    `ρ ↦ (σ_w² E φ(u₁)φ(u₂) + σ_b²)/q*`, which has the fixed point 1 with slope `χ = σ_w² E φ'(√q* u)²`, and for
    `χ > 1` a stable one below (arXiv 1611.01232, docs/theory 4.3). χ counts as 1 within 1e-6.

    Args:
        activation: φ, as in `propagate_signal`.
        weight_variance: `σ_w²`.
        bias_variance: `σ_b²`.
        variance: `q_1`, where the variance of pre-activations starts: there may be several fixed points.

    Raises:
        InputError: a number out of range, or an activation that cannot be used.

    Example:
        >>> signal_phase("relu", weight_variance=2).phase
        'critical'
    """
    weight, bias = check_variances(weight_variance, bias_variance)
    start = positive("variance", variance)
    _, moments = moments_of(activation)
    q = _fixed_variance(moments, weight, bias, start)
    lost = q in (0.0, math.inf)
    at = q if not lost else _FLOOR * start if q == 0 else _CEILING * max(1.0, start)
    square, steep, growth = moments.single(at, _NODES)
    whole = weight * square if lost else q
    rate = weight * steep * (at / whole)  # of correlations at 1: the squared degree of φ where variances are lost
    slope, variance_depth = weight * steep, _depth(weight * growth)
    if lost and rate > 1 + _POWER:  # a power above 1
        slope, variance_depth = q, 0.0
    elif lost:
        rate = 1.0
    phase: Phase = (
        "unbounded" if q == math.inf else "critical" if abs(slope - 1) <= _SAME
        else "ordered" if slope < 1 else "chaotic"
    )  # fmt: skip

    def kept(loss: float) -> float:
        return weight * moments.pair(at, loss, _NODES)[0] / whole

    correlation: float | None = 1.0
    if rate > 1 + _SAME:
        loss = _fixed_loss(kept)
        correlation, rate = 1 - loss, weight * moments.pair(at, loss, _NODES)[1] * (at / whole)
    elif rate >= 1 - _SAME and kept(0.5) >= 0.5 - _SAME:
        correlation = None
    return SignalPhase(phase, q, slope, correlation, _depth(rate), variance_depth)


def equilibrium_law(
    activation: str | Activation,
    *,
    weight_variance: float | int,
    bias_variance: float | int = 0.0,
    variance: float | int = 1.0,
    residual: bool = False,
) -> EquilibriumLaw:
    """How the equilibrium layer grows with depth, `ℓ* ~ coefficient · L^exponent`, in a critical network.

    *With kinks* (jumps `J_i` of φ' at `x_i`), `E φ'(u₁)φ'(u₂)/E φ'² ≈ 1 − m √(1−ρ)` with
    `m = Σ J_i² exp(−x_i²/2q) / (√2 π E φ'²)`; then `1 − ρ_ℓ ~ 9/(m²ℓ²)`, `g_ℓ ~ (ℓ/L)³` and

        ℓ* ~ (9 q / (m² σ_w² E φ²))^{1/5} L^{3/5},

    for the ReLU `(9π²/2)^{1/5} L^{3/5} ≈ 2.14 L^{3/5}`. *Smooth*, with `a = q E φ''²/E φ'²`: `1 − ρ_ℓ ~ 2/(aℓ)`,
    `g_ℓ ~ (ℓ/L)²` and

        ℓ* ~ (2 q / (a σ_w² E φ²))^{1/3} L^{2/3}.

    A *residual* network of a piecewise linear φ without bias has the first law for every `σ_w²`, with m replaced by
    `m κ/(1+κ)`, `κ = σ_w² E φ'²`. Networks are compared with the exact crossing instead, which comes near this law at
    hundreds of layers (arXiv 2110.11749, docs/theory 4.3 and 4.4).

    Args:
        activation: φ, as in `propagate_signal`.
        weight_variance: `σ_w²`.
        bias_variance: `σ_b²`.
        variance: `q_1`, as in `signal_phase`.
        residual: the residual network.

    Raises:
        InputError: a network without such a law: not critical, variances that die out or grow without end, a linear
            activation, or a residual network other than the above; and what `signal_phase` raises.

    Example:
        >>> law = equilibrium_law("relu", weight_variance=2)
        >>> round(law.coefficient, 3), law.exponent
        (2.136, 0.6)
    """
    weight, bias = check_variances(weight_variance, bias_variance)
    name, moments = moments_of(activation)
    if residual:
        if bias > 0 or not moments.exact or any(x != 0 for x, _ in moments.kinks) or not moments.kinks:
            raise InputError("activation, bias_variance", (name, bias), "a piecewise linear activation with a kink at "
                             "0, and no bias, for the law of a residual network")  # fmt: skip
        q = positive("variance", variance)
    else:
        found = signal_phase(activation, weight_variance=weight, bias_variance=bias, variance=variance)
        q = found.variance
        if found.phase != "critical" or not q > 0:
            raise InputError(
                "weight_variance", weight, f"a critical network with a variance that lasts (this one is {found.phase}, "
                f"with χ = {found.slope:.4g} and q* = {q:.3g})", "2 is critical for the ReLU without bias",
            )  # fmt: skip
    square, steep, _ = moments.single(q, _NODES)
    scale = 1.0 if residual else q / (weight * square)
    if moments.kinks:
        kink = sum(jump**2 * math.exp(-(x**2) / (2 * q)) for x, jump in moments.kinks) / (
            math.sqrt(2) * math.pi * steep
        )
        kink *= weight * steep / (1 + weight * steep) if residual else 1.0
        return EquilibriumLaw((9 * scale / kink**2) ** 0.2, 3 / 5)
    bend = q * moments.curvature(q, _NODES) / steep
    if not bend > 1e-12:
        raise InputError("activation", name, "an activation that is not linear", "a linear network keeps correlations")
    return EquilibriumLaw((2 * scale / bend) ** (1 / 3), 2 / 3)
