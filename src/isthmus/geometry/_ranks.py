"""Soft and hard counts of dimensions, from singular values."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus._errors import InputError

DEFAULT_RANK_TOLERANCE = 1e-2
"""Default of `numerical_rank`: singular values above 1% of the largest (tuned here; recorded with every value)."""


def spectrum_of_gram(
    gram: Float[Tensor, "*batch width width"], *, eps: float = 2.220446049250313e-16
) -> Float[Tensor, "*batch width"]:
    """Singular values of `M`, descending, from `M Mᵀ`: the roots of its eigenvalues.

    Values below `√(width · eps)` of the largest cannot be told from rounding of the Gram matrix and are returned
    as 0 (`eps`: rounding unit of the products).
    """
    values = torch.linalg.eigvalsh(gram).flip(-1).clamp(min=0)
    floor = values[..., :1] * (gram.shape[-1] * eps)
    return torch.where(values > floor, values, 0.0).sqrt()


def _squares(s: Tensor) -> Tensor:
    """`s²` scaled by the largest value, so that no square under- or overflows."""
    top = s.amax(-1, keepdim=True)
    return (s / torch.where(top > 0, top, 1.0)) ** 2


def numerical_rank(
    s: Float[Tensor, "*batch k"], *, tolerance: float = DEFAULT_RANK_TOLERANCE
) -> Float[Tensor, "*batch"]:
    """Number of singular values `s` above `tolerance · s_1`, in dimensions; 0 for the zero matrix.

    Raises:
        InputError: a tolerance outside [0, 1).
    """
    if not 0 <= tolerance < 1:
        raise InputError("tolerance", tolerance, "a number in [0, 1)")
    return (s > tolerance * s.amax(-1, keepdim=True)).sum(-1).to(s.dtype)


def stable_rank(s: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
    """`‖M‖² / ‖M‖²_op = Σ s² / s_1²` of singular values `s`, in dimensions; 0 for the zero matrix."""
    return _squares(s).sum(-1)


def nuclear_rank(s: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
    """`‖M‖_*² / ‖M‖² = (Σ s)² / Σ s²` (arXiv 2405.17573, docs/theory 1.4); 0 for the zero matrix."""
    squares = _squares(s)
    total = squares.sum(-1)
    return squares.sqrt().sum(-1) ** 2 / torch.where(total > 0, total, 1.0)


def participation_ratio(s: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
    """`(Σ s²)² / Σ s⁴` of singular values `s`, in dimensions: `k` for `k` equal ones; 0 for the zero matrix."""
    squares = _squares(s)
    fourth = (squares**2).sum(-1)
    return squares.sum(-1) ** 2 / torch.where(fourth > 0, fourth, 1.0)


def effective_rank(s: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
    """`exp(−Σ q log q)` with `q = s²/Σ s²` of singular values `s`, in dimensions; 0 for the zero matrix.

    Roy and Vetterli (2007), who named it, take `q = s/Σ s`, which reads higher; here `q` is a share of the variance.
    """
    squares = _squares(s)
    total = squares.sum(-1, keepdim=True)
    q = squares / torch.where(total > 0, total, 1.0)
    return torch.where(total[..., 0] > 0, torch.special.entr(q).sum(-1).exp(), 0.0)
