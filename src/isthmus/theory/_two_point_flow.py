"""The closed form of two points coming apart, with its derivatives by every parameter of a fit."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

_SERIES = 1e-2
"""Below this argument differences of exponentials are taken from their series."""


@dataclasses.dataclass(frozen=True)
class Modes:
    """What does not change in time: `κ = η_h X/η_y`, the eigenvectors of K, and the start along them.

    Attributes:
        ratio: `κ`.
        root: `√κ`.
        half_rate: `η_y/2`, of which time is counted in.
        A: the invariant.
        m: `√(A²/4 + κY)`, the eigenvalue of K.
        up: its eigenvector along h.
        down: the same along `dy*`.
        first: the start along this eigenvector.
        second: the start along the other one.
        across2: the square of the start across `dy*`.
        alpha: the start along `dy*`.
        q: `√(κY)`.
        size: `√Y`.
    """

    ratio: Tensor
    root: Tensor
    half_rate: Tensor
    A: Tensor
    m: Tensor
    up: Tensor
    down: Tensor
    first: Tensor
    second: Tensor
    across2: Tensor
    alpha: Tensor
    q: Tensor
    size: Tensor


@dataclasses.dataclass(frozen=True)
class Flow:
    """The state over time, and the pieces it is made of, all of which scale as `e^{−2mτ}` at most."""

    tau: Tensor
    fall: Tensor
    spread: Tensor
    across: Tensor
    last: Tensor
    rho2: Tensor
    phi_g: Tensor
    phi_a: Tensor
    h: Tensor
    y: Tensor
    v: Tensor


def halves(A: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`m = √(A²/4 + q²)`, `√(m + A/2)` and `√(m − A/2)`, without cancellation (their product is q)."""
    m = torch.hypot(A / 2, q)
    large = (A.abs() / 2 + m).sqrt()
    small = torch.where(large > 0, q / torch.where(large > 0, large, 1.0), 0.0)
    return m, torch.where(A >= 0, large, small), torch.where(A >= 0, small, large)


def decoder_parts(h: Tensor, y: Tensor, v: Tensor, Y: Tensor) -> tuple[Tensor, Tensor]:
    """`dy/√h` along `dy*`, and the square of what is across it."""
    a = torch.where(Y > 0, (y - v) / torch.where(Y > 0, Y * h, 1.0).sqrt(), 0.0)
    return a, (y / h - a.square()).clamp(min=0)


def modes(h: Tensor, a: Tensor, b2: Tensor, eta_h: Tensor, eta_y: Tensor, X: Tensor, Y: Tensor) -> Modes:
    """The modes of a pair from `h(0)` and `dy/√h = (a along dy*, b² across it)`."""
    ratio = eta_h * X / eta_y
    root, size, g = ratio.sqrt(), Y.sqrt(), h.sqrt()
    alpha, across2 = root * a, ratio * b2
    A, q = h - alpha.square() - across2, root * size
    m, up, down = halves(A, q)
    norm = torch.where(m > 0, (2 * m).sqrt(), 1.0)
    up, down = torch.where(m > 0, up / norm, 1.0), torch.where(m > 0, down / norm, 0.0)
    first, second = up * g + down * alpha, down * g - up * alpha
    return Modes(ratio, root, eta_y / 2, A, m, up, down, first, second, across2, alpha, q, size)


def _mean_rate(z: Tensor) -> Tensor:
    """`(1 − e^{−z})/z` for `z ≥ 0`, which is 1 at 0."""
    return torch.where(z > 0, -torch.expm1(-z) / torch.where(z > 0, z, 1.0), 1.0)


def flow(t: Tensor, of: Modes) -> Flow:
    """The state at times t; modes broadcast with t.

    The ansatz makes the pair a linear network of one hidden neuron. With `κ = η_h X/η_y`, `τ = η_y t/2` and
    `ζ = (√h, √κ dy/√h)`, whose `ζ_1² − ‖ζ_2‖²` is A, it follows `dζ/dτ = K ζ − ½‖ζ‖² ζ`, K symmetric and constant; so
    `ζ(τ) = φ/ρ`, `φ = e^{Kτ} ζ(0)`, `ρ² = 1 + ∫‖φ‖²`: sums of positive terms, all scaled by `e^{−2mτ}` here.
    """
    tau = of.half_rate * t
    twice, along = 2 * of.m * tau, of.A * tau
    fall = torch.exp(-twice)
    spread = tau * _mean_rate(twice)  # ∫ e^{−2mτ}
    # What is across dy* falls as e^{−Aτ/2}; both forms are e^{−2mτ} ∫ e^{−Aτ}.
    across = torch.exp(-twice - along.clamp(max=0)) * tau * _mean_rate(along.abs())
    last = torch.exp(-(2 * of.m + of.A) * tau)
    rho2 = fall + of.first.square() * spread + of.second.square() * fall * spread + of.across2 * across
    phi_g = of.first * of.up + of.second * of.down * fall
    phi_a = of.first * of.down - of.second * of.up * fall
    h = phi_g.square() / rho2
    y = h * (phi_a.square() + of.across2 * last) / rho2 / of.ratio
    v = y - of.size * phi_g * phi_a / rho2 / of.root
    return Flow(tau, fall, spread, across, last, rho2, phi_g, phi_a, h, y, v)


def _falling_slope(tau: Tensor, rate: Tensor, end: Tensor, integral: Tensor, scale: Tensor | None = None) -> Tensor:
    """`∂/∂rate` of `scale · ∫_0^τ e^{−rate·s} ds`, given that integral and `end = scale · e^{−rate·τ}`."""
    z = rate * tau
    series = -0.5 + z * (1 / 3 + z * (-1 / 8 + z * (1 / 30 + z * (-1 / 144 + z / 840))))
    near = tau.square() * series if scale is None else scale * tau.square() * series
    return torch.where(z.abs() < _SERIES, near, (tau * end - integral) / torch.where(rate == 0, 1.0, rate))


def curves_and_slopes(t: Tensor, p: Tensor, start: Tensor, X: Tensor, Y: Tensor) -> tuple[Tensor, Tensor]:
    """`h, y, v` of many fits at their times, and the derivatives by their parameters.

    Args:
        t: times since the start, `(fits, times)`.
        p: `log η_h, log η_y`, and where the start is a parameter too `log h(0), a, b`; `(fits, 2 or 5)`.
        start: `h(0), a, b²`, `(fits, 3)`, for where p does not have it.
        X: squared distances of the inputs, `(fits)`.
        Y: squared distances of the targets, `(fits)`.

    Returns:
        The curves, `(fits, 3, times)`, and their derivatives, `(fits, parameters, 3, times)`.
    """
    count = p.shape[1]
    rates = p[:, :2].exp()
    h, a, b2 = start.unbind(1) if count == 2 else (p[:, 2].exp(), p[:, 3], p[:, 4].square())
    of = modes(*(x[:, None] for x in (h, a, b2, rates[:, 0], rates[:, 1], X, Y)))
    at = flow(t, of)

    # Derivatives of the modes, a column for each parameter.
    unit = torch.eye(5, count, dtype=p.dtype)
    ratio, by_y = unit[0] - unit[1], unit[1]  # of log κ and of log τ
    g = h[:, None].sqrt()
    d_g = g / 2 * unit[2]
    d_alpha = of.alpha / 2 * ratio + of.root * unit[3]
    d_across2 = of.across2 * ratio
    if count == 5:
        d_across2 = d_across2 + 2 * of.ratio * p[:, 4:] * unit[4]
    d_A = g.square() * unit[2] - 2 * of.alpha * d_alpha - d_across2
    d_q = of.q / 2 * ratio
    safe = torch.where(of.m > 0, of.m, 1.0)
    d_m = torch.where(of.m > 0, (of.A * d_A / 4 + of.q * d_q) / safe, d_A / 2)
    turn = (of.A * d_q - of.q * d_A) / (4 * safe.square())  # of the eigenvectors
    d_first = of.up * d_g + of.down * d_alpha - of.second * turn
    d_second = of.down * d_g - of.up * d_alpha + of.first * turn

    # Derivatives of the pieces, in the functions of time that they have in common.
    fall, tau = at.fall, at.tau
    tau_fall = tau * fall
    both, tau_last = fall * at.spread, tau * at.last
    slope = 2 * _falling_slope(tau, 2 * of.m, fall, at.spread)
    functions = [tau_fall, at.spread, both, tau * both, tau_fall * fall, slope, fall * slope]
    falling = -2 * (d_m + of.m * by_y)
    f2, s2 = of.first.square(), of.second.square()
    factors = [
        falling + f2 * by_y, 2 * of.first * d_first, 2 * of.second * d_second, s2 * falling, s2 * by_y, f2 * d_m,
        s2 * d_m,
    ]  # fmt: skip
    functions += [at.across, tau * at.across, tau_last, _falling_slope(tau, of.A, at.last, at.across, fall)]
    factors += [d_across2, of.across2 * falling, of.across2 * by_y, of.across2 * d_A]
    d_rho2 = torch.stack(factors, -1) @ torch.stack(functions, 1)

    fall, tau_fall = fall[:, None], tau_fall[:, None]
    d_phi_g = (d_first * of.up - of.first * of.down * turn)[..., None] + fall * (
        d_second * of.down + of.second * of.up * turn
    )[..., None]
    d_phi_g = torch.addcmul(d_phi_g, tau_fall, (of.second * of.down * falling)[..., None])
    d_phi_a = (d_first * of.down + of.first * of.up * turn)[..., None] - fall * (
        d_second * of.up - of.second * of.down * turn
    )[..., None]
    d_phi_a = torch.addcmul(d_phi_a, tau_fall, (of.second * of.up * falling)[..., None], value=-1)
    d_phi_b2 = d_across2[..., None] * at.last[:, None]
    d_phi_b2 = torch.addcmul(d_phi_b2, tau_last[:, None], (of.across2 * (falling - d_A - of.A * by_y))[..., None])

    inverse, ratio = 1 / at.rho2, ratio[None, :, None]
    d_rho2 = d_rho2 * inverse[:, None]
    over = inverse / of.ratio
    d_h = (2 * at.phi_g * inverse)[:, None] * d_phi_g - at.h[:, None] * d_rho2
    d_y = (
        ((at.phi_a.square() + of.across2 * at.last) * over)[:, None] * d_h
        + (at.h * over)[:, None] * (2 * at.phi_a[:, None] * d_phi_a + d_phi_b2)
        - at.y[:, None] * (d_rho2 + ratio)
    )
    scale = of.size * inverse / of.root
    d_v = (
        d_y
        - (scale * at.phi_a)[:, None] * d_phi_g
        - (scale * at.phi_g)[:, None] * d_phi_a
        + (at.y - at.v)[:, None] * (d_rho2 + ratio / 2)
    )
    return torch.stack([at.h, at.y, at.v], 1), torch.stack([d_h, d_y, d_v], 2)
