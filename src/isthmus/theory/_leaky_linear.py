"""Exact geodesics of linear Leaky ResNets: the closed form that everything measured is compared with."""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus._errors import InputError


@dataclasses.dataclass(frozen=True)
class LinearGeodesic:
    """The stationary linear path of equal steps (arXiv 2405.17573, docs/theory 1.10). `A`, `B` hold samples in columns.

    Attributes:
        path: `A_ℓ = (I + Λ/L)^ℓ X` for ℓ = 0..L.
        momenta: `B_ℓ` for ℓ = 0..L.
        weight: `W = L̃ I + Λ`, the same at every layer.
        target: `Y = A_L + (λN/2) B_L`, for which the path is stationary with the ridge λ.
        cost_of_identity: `k`, the rank of `X`.
        kinetic_energy: `(1/2L̃) Σ Λ_i²`.
        parameter_cost: `(1/L̃)‖W‖² = L̃k + 2 ΣΛ_i + (1/L̃) ΣΛ_i²`.
        hamiltonian: `−(L̃/2) Σ (1 − Λ_i²/L̃²)`, the same at every layer.
        hamiltonian_rank: `−2H/L̃ = Σ (1 − Λ_i²/L̃²)`.
    """

    path: Float[Tensor, "nodes width n"]
    momenta: Float[Tensor, "nodes width n"]
    weight: Float[Tensor, "width width"]
    target: Float[Tensor, "width n"]
    cost_of_identity: float
    kinetic_energy: float
    parameter_cost: float
    hamiltonian: float
    hamiltonian_rank: float


def linear_geodesic(
    x: Float[Tensor, "width n"],
    log_map: Float[Tensor, "rows columns"],
    *,
    depth: int,
    effective_depth: float,
    ridge: float,
) -> LinearGeodesic:
    """The discrete closed form of docs/theory 1.10: identity activation, no bias, equal steps, `X` of full row rank.

    With `Λ` symmetric, `A_ℓ = (I + Λ/L)^ℓ X`, `W_ℓ = L̃I + Λ`, `B_L = (I + Λ/L̃)(A_{L−1}⁺)ᵀ`, and
    `B_{ℓ−1} = (I + Λ/L) B_ℓ`. Exact to rounding; as `L → ∞`, `A_L → exp(Λ) X`.

    Args:
        x: inputs, one column per sample.
        log_map: `Λ`, symmetric; `M = (I + Λ/L)^L` is the map that is learned.
        depth: `L`.
        effective_depth: `L̃ > 0`.
        ridge: `λ > 0`.

    Raises:
        InputError: `Λ` not symmetric, `X` not of full row rank, or a number out of range.

    Example:
        >>> g = linear_geodesic(torch.eye(2), torch.zeros(2, 2), depth=4, effective_depth=2.0, ridge=1e-3)
        >>> g.hamiltonian_rank
        2.0
    """
    w, n = x.shape
    x, lam = x.double(), log_map.double()
    if depth < 1 or not effective_depth > 0 or not ridge > 0:
        raise InputError(
            "depth, effective_depth, ridge", (depth, effective_depth, ridge), "depth ≥ 1 and the others > 0"
        )
    if lam.shape != (w, w) or not torch.allclose(lam, lam.T, rtol=0, atol=1e-12 * (1 + float(lam.abs().max()))):
        raise InputError("log_map", tuple(lam.shape), f"a symmetric {w} × {w} matrix")
    if int(torch.linalg.matrix_rank(x)) < w:
        raise InputError("x", tuple(x.shape), "a matrix of full row rank", "use at least as many samples as dimensions")
    eye = torch.eye(w, dtype=torch.float64)
    step = eye + lam / depth
    path = [x]
    for _ in range(depth):
        path.append(step @ path[-1])
    momenta = [(eye + lam / effective_depth) @ torch.linalg.pinv(path[-2]).T]
    for _ in range(depth):
        momenta.append(step @ momenta[-1])
    momenta.reverse()
    m = torch.linalg.eigvalsh(lam)
    rank = float((1 - (m / effective_depth) ** 2).sum())
    return LinearGeodesic(
        path=torch.stack(path),
        momenta=torch.stack(momenta),
        weight=effective_depth * eye + lam,
        target=path[-1] + 0.5 * ridge * n * momenta[-1],
        cost_of_identity=float(w),
        kinetic_energy=float((m**2).sum()) / (2 * effective_depth),
        parameter_cost=effective_depth * w + 2 * float(m.sum()) + float((m**2).sum()) / effective_depth,
        hamiltonian=-0.5 * effective_depth * rank,
        hamiltonian_rank=rank,
    )
