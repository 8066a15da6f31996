"""The geometry of a whole path: every number of section 1 of the theory, from one pass of moments."""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus._errors import InputError
from isthmus.geometry._energies import (
    Hamiltonians,
    RankBounds,
    balance_residual,
    hamiltonians,
    kinetic_energy,
    rank_bounds,
    require_leak,
    stationarity,
)
from isthmus.geometry._identity_cost import GAMMA0S, IdentityCost, RowSpace, identity_cost_from_moments
from isthmus.geometry._moments import PathMoments
from isthmus.geometry._ranks import spectrum_of_gram


@dataclasses.dataclass(frozen=True)
class Energies:
    """Energies of a leaky path at one γ₀ (arXiv 2405.17573, docs/theory 1.4–1.6). Nodes are ℓ = 0..L, steps 1..L.

    Attributes:
        cost: cost of identity at the nodes.
        kinetic: `(1/2L̃)‖∂_pA‖²_{K+γ}` of the steps.
        stable: `H_γ = kinetic − (L̃/2)‖A_{ℓ−1}‖²_{K+γ}` of the steps.
        stable_rank_estimate: `−(2/L̃) H_γ`.
        path_length: `Σ ρ_ℓ ‖∂_pA‖_{K+γ}`.
    """

    gamma0: float
    cost: IdentityCost
    kinetic: Float[Tensor, " depth"]
    stable: Float[Tensor, " depth"]
    stable_rank_estimate: Float[Tensor, " depth"]
    path_length: float


@dataclasses.dataclass(frozen=True)
class PathGeometry:
    """What `path_geometry` returns. Nodes are ℓ = 0..L at `positions`, steps are ℓ = 1..L.

    Attributes:
        positions: `p_ℓ = ρ_1 + … + ρ_ℓ` of the nodes.
        spectrum: singular values of `A_ℓ/√N`, descending.
        spectrum_centred: the same of `A_ℓ` minus its mean over samples.
        cost: cost of identity per γ₀, at the nodes (also at `L̃ = 0`).
        negative_fraction: `‖min(A,0)‖²/‖A‖²` of the nodes.
        relative_move: `‖A_ℓ − A_{ℓ−1}‖/‖A_ℓ‖` of the steps.
        speed: `c_ℓ = relative_move/ρ_ℓ`.
        length: `Σ ‖A_ℓ − A_{ℓ−1}‖/√N`.
        projection: path in its two principal directions, as `(nodes, 2)`; `projection_explained`, their shares.
        energies: per γ₀, the first being the default; empty at `L̃ = 0`.
        hamiltonians: where momenta were given and `L̃ > 0`.
        momentum_norm: `‖B_ℓ‖` at the nodes; `momentum_weight_norm`: `‖B_ℓ S_{ℓ−1}ᵀ‖` of the steps.
        stationarity: of the steps, where momenta were given.
        bounds: Theorem 4, where momenta were given and `L̃ > 0`.
        weight_norm_sq, bias_norm_sq, balance: of the steps.
        weight_spectrum: singular values of `W_ℓ` without its bias column.
    """

    n: int
    effective_depth: float
    layer_steps: Float[Tensor, " depth"]
    positions: Float[Tensor, " nodes"]
    spectrum: Float[Tensor, "nodes width"]
    spectrum_centred: Float[Tensor, "nodes width"]
    weight_spectrum: Float[Tensor, "depth width"]
    cost: dict[float, IdentityCost]
    negative_fraction: Float[Tensor, " nodes"]
    relative_move: Float[Tensor, " depth"]
    speed: Float[Tensor, " depth"]
    length: float
    projection: Float[Tensor, "nodes 2"]
    projection_explained: Float[Tensor, " 2"]
    energies: dict[float, Energies]
    hamiltonians: Hamiltonians | None
    momentum_norm: Float[Tensor, " nodes"] | None
    momentum_weight_norm: Float[Tensor, " depth"] | None
    stationarity: Float[Tensor, " depth"] | None
    bounds: RankBounds | None
    weight_norm_sq: Float[Tensor, " depth"]
    bias_norm_sq: Float[Tensor, " depth"]
    balance: Float[Tensor, " depth"]

    @property
    def gamma0(self) -> float:
        """The default γ₀ of this geometry (the first of those computed)."""
        return next(iter(self.cost))

    @property
    def step_positions(self) -> Float[Tensor, " depth"]:
        """Middle of every step."""
        return 0.5 * (self.positions[1:] + self.positions[:-1])


def path_speed(
    moved_norm_sq: Float[Tensor, " depth"], norm_sq: Float[Tensor, " nodes"], layer_steps: Float[Tensor, " depth"]
) -> Float[Tensor, " depth"]:
    """`c_ℓ = ‖A_ℓ − A_{ℓ−1}‖ / (ρ_ℓ ‖A_ℓ‖)` (arXiv 2405.17573, docs/theory 1.3); see `relative_move` for the edges."""
    return relative_move(moved_norm_sq, norm_sq) / layer_steps.double()


def relative_move(moved_norm_sq: Float[Tensor, " depth"], norm_sq: Float[Tensor, " nodes"]) -> Float[Tensor, " depth"]:
    """`‖A_ℓ − A_{ℓ−1}‖ / ‖A_ℓ‖` of every step; 0 where nothing moves, ∞ where something moves to 0, NaN stays NaN."""
    return torch.where(moved_norm_sq == 0, 0.0, (moved_norm_sq / norm_sq[1:]).sqrt())


def project_path(path_gram: Float[Tensor, "nodes nodes"]) -> tuple[Tensor, Tensor]:
    """Coordinates of the path in its two principal directions, from `Tr[A_ℓ A_mᵀ]`.

    Each `A_ℓ` is one point of a `width·N`-dimensional space; the points are centred. Signs are fixed so that the
    end of the path lies at positive coordinates relative to its start.

    Returns:
        `(nodes, 2)` coordinates, and the two shares of variance.
    """
    centred = path_gram - path_gram.mean(0) - path_gram.mean(1, keepdim=True) + path_gram.mean()
    values, vectors = torch.linalg.eigh(0.5 * (centred + centred.mT))
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    coordinates = vectors[:, :2] * values[:2].sqrt()
    ahead = coordinates[-1] - coordinates[0]
    coordinates = coordinates * torch.where(ahead < 0, -1.0, 1.0)
    total = values.sum()
    return coordinates, values[:2] / torch.where(total > 0, total, 1.0)


def _energies_at(moments: PathMoments, space: RowSpace, rho: Tensor, lt: float, cost: IdentityCost) -> Energies:
    kinetic = kinetic_energy(moments, space, rho, lt, cost.gamma0)
    stable = kinetic - 0.5 * lt * cost.stabilised[:-1]
    length = float((rho.double() * (2 * lt * kinetic).sqrt()).sum())
    return Energies(cost.gamma0, cost, kinetic, stable, (-2 / lt) * stable, length)


def path_geometry(
    moments: PathMoments,
    *,
    weight: Float[Tensor, "depth width features"],
    layer_steps: Float[Tensor, " depth"],
    effective_depth: float,
    has_bias: bool,
    gamma0s: tuple[float, ...] = GAMMA0S,
) -> PathGeometry:
    """Every number of section 1 of the theory for one path.

    Args:
        moments: from `PathAccumulator`, with momenta for Hamiltonians, stationarity and bounds.
        weight: `W_ℓ`, with the bias as last column where there is one.
        layer_steps: `ρ_ℓ`, positive, of sum 1.
        effective_depth: `L̃ ≥ 0`; at 0 there are no energies and no Hamiltonian.
        has_bias: whether the last column of `weight` is a bias.
        gamma0s: γ₀ of the stabilised costs, the default one first.

    Raises:
        InputError: shapes that do not fit, steps that are not positive or do not sum to 1, γ₀ ≤ 0.
    """
    depth, width, features = moments.moved_cross.shape
    rho = layer_steps.double().to(moments.gram.device)
    w = weight.detach().double().to(moments.gram.device)
    if w.shape != (depth, width, features):
        raise InputError("weight", tuple(w.shape), f"(depth, width, features) = {(depth, width, features)}")
    if rho.shape != (depth,) or not bool((rho > 0).all()) or abs(float(rho.sum()) - 1) > 1e-5:
        raise InputError("layer_steps", rho.tolist(), f"{depth} positive numbers of sum 1")
    if not gamma0s:
        raise InputError("gamma0s", gamma0s, "at least one γ₀ > 0")
    space = RowSpace.of(moments.feature_gram, eps=moments.product_eps)
    costs = {g: identity_cost_from_moments(moments.cross, moments.norm_sq, space, g) for g in gamma0s}
    lt, momentum = effective_depth, moments.momentum
    energies = {g: _energies_at(moments, space, rho, require_leak(lt), c) for g, c in costs.items()} if lt > 0 else {}
    mean = moments.total / moments.n
    centred = moments.gram - moments.n * torch.einsum("lw,lv->lwv", mean, mean)
    bias_norm_sq = w[..., -1].square().sum(-1) if has_bias else w.new_zeros(depth)
    weight_norm_sq = w.square().sum((-2, -1))
    projection, explained = project_path(moments.path_gram / moments.n)
    moved = relative_move(moments.moved_norm_sq, moments.norm_sq)
    norm_sq = moments.norm_sq
    return PathGeometry(
        n=moments.n,
        effective_depth=lt,
        layer_steps=rho,
        positions=torch.cat([rho.new_zeros(1), torch.cumsum(rho, 0)]),
        spectrum=spectrum_of_gram(moments.gram / moments.n, eps=moments.product_eps),
        spectrum_centred=spectrum_of_gram(centred / moments.n, eps=moments.product_eps),
        weight_spectrum=torch.linalg.svdvals(w[..., :-1] if has_bias else w),
        cost=costs,
        negative_fraction=moments.negative_norm_sq / torch.where(norm_sq > 0, norm_sq, 1.0),
        relative_move=moved,
        speed=moved / rho,
        length=float((moments.moved_norm_sq / moments.n).sqrt().sum()),
        projection=projection,
        projection_explained=explained,
        energies=energies,
        hamiltonians=hamiltonians(momentum, lt) if momentum is not None and lt > 0 else None,
        momentum_norm=momentum.norm_sq.sqrt() if momentum is not None else None,
        momentum_weight_norm=momentum.before.square().sum((-2, -1)).sqrt() if momentum is not None else None,
        stationarity=stationarity(w, momentum, lt) if momentum is not None else None,
        bounds=rank_bounds(moments, space, rho, lt, gamma0s[0]) if momentum is not None and lt > 0 else None,
        weight_norm_sq=weight_norm_sq,
        bias_norm_sq=bias_norm_sq,
        balance=balance_residual(weight_norm_sq, bias_norm_sq, rho, lt),
    )
