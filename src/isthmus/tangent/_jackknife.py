"""Means over pairs of draws, and how sure they are."""

from __future__ import annotations

import dataclasses
import math

from jaxtyping import Float
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Estimate:
    """An estimated number and its standard error."""

    value: float
    stderr: float


def pair_means(values: Float[Tensor, "m m"]) -> tuple[float, Float[Tensor, " m"]]:
    """Mean of a symmetric matrix over its pairs `k ≠ l`, and the same with each draw left out; m at least 3."""
    m = values.shape[0]
    apart = values - values.diagonal().diag()
    total, rows = apart.sum(), apart.sum(1)
    return float(total) / (m * (m - 1)), (total - 2 * rows) / ((m - 1) * (m - 2))


def jackknifed(whole: float, left_out: Float[Tensor, " m"], *, correct: bool) -> Estimate:
    """A value with the jackknife's standard error, and where asked without its bias of first order.

    Args:
        whole: the value `t` of all m draws.
        left_out: `t_i`, the same without each of them.
        correct: whether to give `m t − (m − 1) t̄` instead of `t`.

    Returns:
        The value, and `√((m − 1)/m · Σ (t_i − t̄)²)` (Efron and Stein 1981).
    """
    m = left_out.shape[0]
    mean = float(left_out.mean())
    stderr = math.sqrt((m - 1) / m * float((left_out - mean).square().sum()))
    return Estimate(m * whole - (m - 1) * mean if correct else whole, stderr)
