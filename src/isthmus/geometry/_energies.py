"""Energies of a leaky path from second moments: kinetic energy, Hamiltonians, bounds, stationarity, balance."""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus._errors import InputError
from isthmus.geometry._identity_cost import DEFAULT_GAMMA0, RowSpace
from isthmus.geometry._moments import MomentumMoments, PathMoments


def require_leak(effective_depth: float) -> float:
    """Return `L̃` if energies are defined for it, else raise `InputError`."""
    if not effective_depth > 0:
        raise InputError(
            "effective_depth",
            effective_depth,
            "a number > 0 for energies and Hamiltonians",
            "a plain ResNet (0) has no leak, so no cost of identity in its energy",
        )
    return effective_depth


def hamiltonian(
    b_features_norm_sq: Float[Tensor, "*batch"], b_inner_a: Float[Tensor, "*batch"], effective_depth: float
) -> Float[Tensor, "*batch"]:
    """`H(A, B) = (μ/2)‖B Sᵀ‖² − L̃ Tr[B Aᵀ]`, `μ = L̃` (arXiv 2405.17573, docs/theory 1.5).

    Args:
        b_features_norm_sq: `‖B Sᵀ‖²`.
        b_inner_a: `Tr[B Aᵀ]`.
        effective_depth: `L̃ > 0`.
    """
    lt = require_leak(effective_depth)
    return lt * (0.5 * b_features_norm_sq - b_inner_a)


def _norm_sq(m: Tensor) -> Tensor:
    return m.square().sum((-2, -1))


@dataclasses.dataclass(frozen=True)
class Hamiltonians:
    """The Hamiltonian per step ℓ = 1..L (arXiv 2405.17573, docs/theory 1.5).

    Attributes:
        pair: `H(A_{ℓ−1}, B_ℓ)`, the one the discrete dynamics follows.
        same: `H(A_ℓ, B_ℓ)`.
    """

    pair: Float[Tensor, " depth"]
    same: Float[Tensor, " depth"]
    effective_depth: float

    @property
    def symmetric(self) -> Float[Tensor, " depth"]:
        """`½[H(A_{ℓ−1}, B_ℓ) + H(A_ℓ, B_ℓ)]`: conserved to O(1/L²) at stationarity."""
        return 0.5 * (self.pair + self.same)

    def rank(self, values: Float[Tensor, " depth"]) -> Float[Tensor, " depth"]:
        """`−(2/L̃) H`, in dimensions."""
        return (-2.0 / self.effective_depth) * values


def hamiltonians(momentum: MomentumMoments, effective_depth: float) -> Hamiltonians:
    """`H(A_{ℓ−1}, B_ℓ)` and `H(A_ℓ, B_ℓ)` of every step (arXiv 2405.17573, docs/theory 1.5); see `hamiltonian`.

    Args:
        momentum: second moments of `B` with `S` and `A`, `B = −(1/λ) ∂C/∂A` with the mean over all samples in `C`.
        effective_depth: `L̃`.

    Raises:
        InputError: `L̃ = 0`.
    """
    return Hamiltonians(
        pair=hamiltonian(_norm_sq(momentum.before), momentum.inner_before, effective_depth),
        same=hamiltonian(_norm_sq(momentum.same[1:]), momentum.inner_same[1:], effective_depth),
        effective_depth=effective_depth,
    )


def kinetic_energy(
    moments: PathMoments,
    row_space: RowSpace,
    layer_steps: Float[Tensor, " depth"],
    effective_depth: float,
    gamma0: float = DEFAULT_GAMMA0,
) -> Float[Tensor, " depth"]:
    """`(1/2L̃) ‖∂_pA‖²_{K+γ}` per step, `∂_pA = (A_ℓ − A_{ℓ−1})/ρ_ℓ`, `K` from `S_{ℓ−1}` (docs/theory 1.4).

    Raises:
        InputError: `L̃ = 0`, or γ₀ ≤ 0.
    """
    lt = require_leak(effective_depth)
    moved = row_space[:-1].stabilised_norm_sq(moments.moved_cross, moments.moved_norm_sq, gamma0)
    return moved / layer_steps.double() ** 2 / (2 * lt)


def stationarity(
    weight: Float[Tensor, "depth width features"], momentum: MomentumMoments, effective_depth: float
) -> Float[Tensor, " depth"]:
    """`‖W_ℓ − μ B_ℓ S_{ℓ−1}ᵀ‖ / ‖W_ℓ‖`, 0 at a critical point of the ridge objective (docs/theory 1.5).

    `μ = L̃`, or 1 at `L̃ = 0`. Infinite where `W_ℓ = 0` and the momentum is not.
    """
    mu = effective_depth if effective_depth > 0 else 1.0
    w = weight.double()
    return (_norm_sq(w - mu * momentum.before) / _norm_sq(w)).sqrt()


def balance_residual(
    weight_norm_sq: Float[Tensor, " depth"],
    bias_norm_sq: Float[Tensor, " depth"],
    layer_steps: Float[Tensor, " depth"],
    effective_depth: float,
) -> Float[Tensor, " depth"]:
    """`|‖W_ℓ‖² − ‖W_1‖² − 2L̃ ∫‖b‖² dp| / max ‖W‖²`: 0 (to O(1/L)) at a critical point (docs/theory 1.7).

    `W` includes its bias column `b`; the integral runs between the middles of steps 1 and ℓ, by the trapezoid rule.
    """
    flow = layer_steps.double() * bias_norm_sq
    integral = torch.cumsum(flow, 0) - 0.5 * flow - 0.5 * flow[0]
    drift = weight_norm_sq - weight_norm_sq[0] - 2 * effective_depth * integral
    return drift.abs() / weight_norm_sq.max()


@dataclasses.dataclass(frozen=True)
class RankBounds:
    """Theorem 4 of arXiv 2405.17573 (docs/theory 1.6), with `(A_{ℓ−1}, B_ℓ, S_{ℓ−1})` at every step.

    Attributes:
        lower: `min ‖A‖²_{K+γ} − (ℓ/L̃ + √g)²`.
        upper: `min ‖A‖²_{K+γ} + g`.
        slack: `g = max γ_{ℓ−1} ‖B_ℓ‖²`; where it exceeds the rank, the bounds say nothing.
        path_length: `ℓ = Σ_ℓ ρ_ℓ ‖∂_pA‖_{K+γ}`.
        speed_lower, speed_upper: `‖∂_pA‖ − L̃ √max(0, ‖A‖² + (2/L̃)H)` lies between `−L̃√g` and `2L̃√g`: distances to
            these two ends per step, both ≥ 0 where the bound holds.
    """

    lower: float
    upper: float
    slack: float
    path_length: float
    gamma0: float
    speed_lower: Float[Tensor, " depth"]
    speed_upper: Float[Tensor, " depth"]


def rank_bounds(
    moments: PathMoments,
    row_space: RowSpace,
    layer_steps: Float[Tensor, " depth"],
    effective_depth: float,
    gamma0: float = DEFAULT_GAMMA0,
) -> RankBounds:
    """Theorem 4's bounds on `−2H/L̃` and on the speed (arXiv 2405.17573, docs/theory 1.6).

    `−(ℓ/L̃ + √g)² ≤ −2H/L̃ − min_p ‖A_p‖²_{K+γ} ≤ g` with `g = max_p γ_p‖B_p‖²` and the path length
    `ℓ = ∫‖∂_pA‖_{K+γ} dp`, in dimensions. Exact on a discrete stationary network, up to the drift of `H`; where `g`
    exceeds the rank they say nothing.

    Args:
        moments: of the path, with momenta.
        row_space: of `S_ℓ` at every node.
        layer_steps: `ρ_ℓ`, positive, of sum 1.
        effective_depth: `L̃ > 0`.
        gamma0: γ₀ > 0; γ_p = γ₀ ‖S_p‖²_op.

    Raises:
        InputError: `L̃ = 0`, γ₀ ≤ 0, or moments without momenta.
    """
    lt = require_leak(effective_depth)
    if moments.momentum is None:
        raise InputError("momenta", None, "momenta, for bounds on the Hamiltonian", "give a loss and a ridge > 0")
    cost = row_space[:-1].stabilised_norm_sq(moments.cross[:-1], moments.norm_sq[:-1], gamma0)
    speed = (2 * lt * kinetic_energy(moments, row_space, layer_steps, lt, gamma0)).sqrt()
    g = float((row_space[:-1].gamma(gamma0) * moments.momentum.norm_sq[1:]).max())
    length = float((layer_steps.double() * speed).sum())
    least = float(cost.min())
    h = hamiltonians(moments.momentum, lt).pair
    gap = speed - lt * (cost + (2 / lt) * h).clamp(min=0).sqrt()
    return RankBounds(
        least - (length / lt + g**0.5) ** 2, least + g, g, length, gamma0, gap + lt * g**0.5, 2 * lt * g**0.5 - gap
    )
