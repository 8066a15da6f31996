"""Curves over time fitted to many traces at once, from many starts each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from isthmus.theory._least_squares import covariance, descend

THIN = 120
"""Times that the search from many starts looks at; the best start is finished on all of them."""

Curves = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Times `(rows, times)`, parameters `(rows, p)` and the number of the fit of each row to curves `(rows, c, times)` and
their derivatives `(rows, p, c, times)`."""


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What came out, a row for each fit; a misfit is infinite where no start led anywhere.

    Attributes:
        p: the parameters.
        misfit: `Σ residual²`.
        reached: what each start came to on thinned times, NaN where there was no such start.
        agreeing: share of the starts that came to the smallest, within a thousandth.
        covariance: of the parameters.
        noise: standard deviation of the residuals of each curve.
        autocorrelation: of neighbouring residuals of each curve.
        r_squared: of each curve.
        r_squared_all: of all curves together.
    """

    p: Tensor
    misfit: Tensor
    reached: Tensor
    agreeing: Tensor
    covariance: Tensor
    noise: Tensor
    autocorrelation: Tensor
    r_squared: Tensor
    r_squared_all: Tensor


def held(values: Tensor, used: Tensor) -> Tensor:
    """Traces `(fits, …, times)` whose times after the used ones repeat the last of these."""
    n = values.shape[-1]
    if bool((used == n).all()):
        return values
    index = torch.minimum(torch.arange(n), used[:, None] - 1)
    return values.gather(-1, index.view(len(used), *(1,) * (values.ndim - 2), n).expand(values.shape))


def thinned_by_change(measured: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
    """Which times to look at, half of them spread evenly and half where the curves change; how many each stands for."""
    n = measured.shape[-1]
    if n <= THIN:
        index = torch.minimum(torch.arange(n), used[:, None] - 1)
    else:
        moved = measured.diff(dim=-1).abs()
        moved = (moved / moved.sum(-1, keepdim=True).clamp(min=1e-300)).mean(1).cumsum(1)
        even = (torch.arange(1, n) / (used[:, None] - 1)).clamp(max=1)
        along = torch.cat([torch.zeros(len(used), 1), (even + moved) / 2], 1)
        marks = torch.linspace(0, 1 - 1e-9, THIN).expand(len(used), THIN)
        index = torch.minimum(torch.searchsorted(along, marks.contiguous()), used[:, None] - 1)
    middle = (index[:, 1:] + index[:, :-1]) / 2
    edges = torch.cat([torch.full_like(middle[:, :1], -0.5), middle, used[:, None] - 0.5], 1)
    return index, edges.diff(dim=1)


def fit_curves(curves: Curves, t: Tensor, measured: Tensor, used: Tensor, guesses: Tensor) -> Fitted:
    """Least squares over all curves and times of each fit.

    Args:
        curves: what is fitted.
        t: times, `(fits, times)`.
        measured: `(fits, c, times)`, finite.
        used: how many of its times a fit uses, at least 2.
        guesses: `(fits, starts, p)`, NaN where a fit has fewer starts.
    """
    fits, starts, count = guesses.shape
    index, stands_for = thinned_by_change(measured, used)
    few_t = t.gather(1, index)
    few = measured.gather(2, index[:, None].expand(-1, measured.shape[1], -1))
    weight = stands_for.sqrt()[:, None]

    def thin(p: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        of = rows // starts
        value, slope = curves(few_t[of], p, of)
        w = weight[of]
        return ((few[of] - value) * w).flatten(1), (slope * w[:, None]).flatten(2)

    mask = (torch.arange(t.shape[1]) < used[:, None])[:, None].to(t.dtype)
    power = (measured.square() * mask).sum((1, 2))
    searched, reached = descend(
        thin, guesses.flatten(0, 1), steps=30, tolerance=1e-7, least=1e-20 * power.repeat_interleave(starts)
    )
    reached = torch.where(torch.isnan(guesses).any(2), torch.nan, reached.view(fits, starts))
    best, first = reached.nan_to_num(torch.inf, posinf=torch.inf).min(1)
    near = reached <= best[:, None] * 1.001 + 1e-18 * power[:, None]
    agreeing = near.sum(1).double() / (~torch.isnan(reached)).sum(1)

    def whole(p: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = curves(t[rows], p, rows)
        w = mask[rows]
        return ((measured[rows] - value) * w).flatten(1), (slope * w[:, None]).flatten(2)

    chosen = searched.view(fits, starts, count)[torch.arange(fits), first]
    p, misfit = descend(whole, chosen, tolerance=1e-18, least=1e-28 * power)
    residual, slope = whole(p, torch.arange(fits))
    residual, slope = residual.view(measured.shape), slope.view(fits, count, *measured.shape[1:])
    good = torch.isfinite(misfit)
    residual, slope = (torch.where(good.view(-1, *(1,) * (x.ndim - 1)), x, 0.0) for x in (residual, slope))
    errors, noise, rho = covariance(residual, slope, used)
    mean = (measured * mask).sum(2, keepdim=True) / used[:, None, None]
    total, left = ((measured - mean) * mask).square().sum(2), residual.square().sum(2)
    return Fitted(
        p, misfit, reached, agreeing, errors, noise, rho, 1 - left / total, 1 - left.sum(1) / total.sum(1)
    )  # fmt: skip
