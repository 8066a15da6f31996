"""What a map costs a deep network: exactly for linear maps, and fitted from costs measured at several depths."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus._errors import InputError

_TERMS = 24
"""Terms of the remainder's series at |t| < 1: the next is 1e-24 of the first."""


@dataclasses.dataclass(frozen=True)
class LinearCost:
    """Representation cost of a linear map at several depths, in squared weights (arXiv 2305.19008, docs/theory 3.2).

    Attributes:
        depths: `L`, the number of weight layers.
        cost: `R(A; L) = L Σ s_i^{2/L}`, the least `‖θ‖²` of `L` layers without biases.
        rank: `R⁽⁰⁾ = rank A`.
        first: `R⁽¹⁾ = 2 log |A|₊ = 2 Σ log s_i`.
        second: `R⁽²⁾ = 2 Σ (log s_i)²`.
        remainder: `cost − (L R⁽⁰⁾ + R⁽¹⁾ + R⁽²⁾/L) = (4/3) Σ (log s_i)³ / L² + O(L⁻³)`, from a series and not as
            that difference, so it is accurate at any depth.
    """

    depths: Float[Tensor, " depths"]
    cost: Float[Tensor, " depths"]
    rank: int
    first: float
    second: float
    remainder: Float[Tensor, " depths"]


@dataclasses.dataclass(frozen=True)
class CostFit:
    """`R(L) = L R⁽⁰⁾ + R⁽¹⁾ + R⁽²⁾/L` fitted to measured costs (arXiv 2305.19008, docs/theory 3.2).

    Attributes:
        values: `R⁽⁰⁾, R⁽¹⁾, R⁽²⁾`.
        stderr: their standard errors.
        covariance: of the three values.
        residuals: cost minus fit, one for each pair. A trend in them says that smaller depths should be left out: the
            expansion has further terms, of order `L⁻²`, that standard errors do not know of.
        degrees_of_freedom: number of pairs minus 3.
        chi_squared: `Σ (residual / stderr)²`; None where no standard errors were given.
        slope: `dR/dL = R⁽⁰⁾ − R⁽²⁾/L²` at each depth given: what one more layer costs.
        slope_stderr: its standard error.
    """

    values: Float[Tensor, " 3"]
    stderr: Float[Tensor, " 3"]
    covariance: Float[Tensor, "3 3"]
    residuals: Float[Tensor, " pairs"]
    degrees_of_freedom: int
    chi_squared: float | None
    slope: Float[Tensor, " pairs"]
    slope_stderr: Float[Tensor, " pairs"]


def _exponential_tail(t: Tensor) -> Tensor:
    """`e^t − 1 − t − t²/2` to a few units of rounding, where the plain formula would lose every digit at small t."""
    small = t.clamp(-1, 1)
    total = torch.ones_like(t)
    for j in range(_TERMS + 3, 3, -1):  # Horner's scheme for 1 + t/4 + t²/(4·5) + …
        total = 1 + small / j * total
    return torch.where(t.abs() < 1, small**3 / 6 * total, t.exp() - 1 - t - t**2 / 2)


def linear_cost(
    matrix: Float[Tensor, "outputs inputs"],
    depths: int | Sequence[int],
    *,
    tolerance: float | int | None = None,
) -> LinearCost:
    """The least `‖θ‖²` of a linear network of `L` layers, without biases, that computes a matrix; and its expansion.

    `R(A; L) = L ‖A‖_{2/L}^{2/L} = L Σ s_i^{2/L}`, with Schatten's quasi-norm, for hidden layers at least `rank A` wide;
    reached by layers that each stretch direction `i` by `s_i^{1/L}` (arXiv 2305.19008, docs/theory 3.2). A zero matrix
    costs 0 and has rank 0.

    Args:
        matrix: `A`.
        depths: one `L ≥ 1`, or several; `L` counts layers of weights.
        tolerance: singular values up to `tolerance · s_1` count as 0, in the cost too: `s^{2/L}` would raise rounding
            noise to almost 1 at large `L`. Default: the rounding of float64 times the larger side of the matrix.

    Raises:
        InputError: an empty matrix or values that are not finite, a depth below 1, none, or a tolerance outside [0, 1).

    Example:
        >>> cost = linear_cost(torch.diag(torch.tensor([4.0, 0.25])), 2)
        >>> cost.rank, cost.first, float(cost.cost[0])  # 2 (4 + 1/4)
        (2, 0.0, 8.5)
    """
    if not matrix.numel() or not bool(torch.isfinite(matrix).all()):
        raise InputError("matrix", f"shape {tuple(matrix.shape)}", "at least one entry, and finite numbers only")
    layers = [depths] if isinstance(depths, int) else list(depths)
    if not layers or min(layers) < 1:
        raise InputError("depths", depths, "at least one depth, each a whole number ≥ 1")
    if tolerance is None:
        tolerance = max(matrix.shape) * torch.finfo(torch.float64).eps
    if not 0 <= tolerance < 1:
        raise InputError("tolerance", tolerance, "a number in [0, 1)")
    s = torch.linalg.svdvals(matrix.detach().double())
    logs = s[s > tolerance * s[0]].log()
    depth = torch.tensor(layers, dtype=torch.float64, device=s.device)
    rank, first, second = logs.numel(), 2 * float(logs.sum()), 2 * float(logs.square().sum())
    exponents = 2 * logs / depth[:, None]
    return LinearCost(
        depths=depth,
        cost=depth * exponents.exp().sum(1),
        rank=rank,
        first=first,
        second=second,
        remainder=depth * _exponential_tail(exponents).sum(1),
    )


def _column(argument: str, values: Sequence[float | int] | Tensor, length: int | None = None) -> Tensor:
    column = torch.as_tensor(values).detach().double().cpu()
    positive = column.ndim == 1 and bool((torch.isfinite(column) & (column > 0)).all())
    if not positive or (length is not None and column.numel() != length):
        count = "" if length is None else f", {length} of them: one for each depth"
        raise InputError(argument, values, f"a list of finite numbers > 0{count}")
    return column


def fit_cost(
    depths: Sequence[float | int] | Tensor,
    costs: Sequence[float | int] | Tensor,
    stderr: Sequence[float | int] | Tensor | None = None,
) -> CostFit:
    """Fit `R(L) = L R⁽⁰⁾ + R⁽¹⁾ + R⁽²⁾/L` to pairs `(L, ‖θ‖²)` by least squares (arXiv 2305.19008, docs/theory 3.2).

    `R⁽⁰⁾` is the bottleneck rank that the networks pay for, `R⁽¹⁾` a measure of regularity. Several costs at one depth
    (of several seeds, say) are several pairs. With standard errors the pairs are weighted by `1/stderr²` and the
    errors of the result follow from them; without, all weigh the same and the scatter around the fit is taken for the
    noise. The costs should be at their least: networks that are still training give an upper estimate.

    Args:
        depths: `L > 0` of each pair.
        costs: `‖θ‖²` of each pair.
        stderr: standard error of each cost; optional.

    Raises:
        InputError: lists of different lengths, numbers that are not finite and > 0, fewer than 3 different depths, or
            without `stderr` fewer than 4 pairs (3 leave no scatter to take errors from).

    Example:
        >>> fit = fit_cost([4, 8, 16, 32], [9.25, 17.125, 33.0625, 65.03125])  # 2 L + 1 + 1/L
        >>> round(float(fit.values[0]), 6), round(float(fit.values[1]), 6), round(float(fit.values[2]), 6)
        (2.0, 1.0, 1.0)
    """
    depth = _column("depths", depths)
    cost = _column("costs", costs, depth.numel())
    error = None if stderr is None else _column("stderr", stderr, depth.numel())
    distinct, pairs = depth.unique().numel(), depth.numel()
    if distinct < 3:
        hint = "train networks at further depths; powers of two such as 8, 16, 32, 64 tell the terms apart best"
        raise InputError(
            "depths", depths, f"at least 3 different depths, for three unknowns; these are {distinct}", hint
        )
    if error is None and pairs < 4:
        hint = "add a depth or a seed, or give stderr"
        raise InputError("depths", depths, "at least 4 pairs where no stderr is given, to take errors from", hint)
    # Columns of comparable size: the smallest is 1/L, the largest L.
    scale = torch.tensor([float(depth.max()), 1.0, 1 / float(depth.min())], dtype=torch.float64)
    design = torch.stack([depth, torch.ones_like(depth), 1 / depth], 1) / scale
    weight = torch.ones_like(depth) if error is None else 1 / error
    q, r = torch.linalg.qr(design * weight[:, None])
    inverse = torch.linalg.solve_triangular(r, torch.eye(3, dtype=torch.float64), upper=True)
    scaled = inverse @ (q.mT @ (weight * cost))
    residuals = cost - design @ scaled
    freedom = pairs - 3
    misfit = float((weight * residuals).square().sum())
    noise = 1.0 if error is not None else misfit / freedom
    covariance = noise * inverse @ inverse.mT / scale / scale[:, None]
    slope_row = torch.stack([torch.ones_like(depth), torch.zeros_like(depth), -1 / depth.square()], 1)
    values = scaled / scale
    return CostFit(
        values=values,
        stderr=covariance.diagonal().sqrt(),
        covariance=covariance,
        residuals=residuals,
        degrees_of_freedom=freedom,
        chi_squared=None if error is None else misfit,
        slope=slope_row @ values,
        slope_stderr=torch.einsum("pi,ij,pj->p", slope_row, covariance, slope_row).clamp(min=0).sqrt(),
    )
