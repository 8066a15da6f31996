"""Non-linear least squares for many problems at once."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Model = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Parameters `(rows, p)`, and which problems these rows are, to residuals `(rows, m)` and to the derivatives of what
they subtract from the target, `(rows, p, m)`."""


_UNSEEN = 1e-13
"""Share of a misfit that rounding may hide."""


def differentiated(curves: Callable[[Tensor], Tensor], target: Tensor) -> Model:
    """Curves, the same for all problems, by forward differentiation in every direction at once."""

    def model(p: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        fits, count = p.shape
        at, directions = p.repeat_interleave(count, 0), torch.eye(count, dtype=p.dtype).repeat(fits, 1)
        found = torch.func.jvp(curves, (at,), (directions,))
        value, slope = found[0], found[1]
        return target - value[::count], slope.view(fits, count, -1)

    return model


def _equations(model: Model, p: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The misfit, infinite where the model breaks down, and the normal equations."""
    residual, slope = model(p, rows)
    misfit = residual.square().sum(1)
    normal, right = slope @ slope.mT, (slope @ residual[..., None])[..., 0]
    usable = torch.isfinite(misfit) & torch.isfinite(normal).flatten(1).all(1) & torch.isfinite(right).all(1)
    return torch.where(usable, misfit, math.inf), normal, right


def descend(
    model: Model, p: Tensor, *, steps: int = 60, tolerance: float = 1e-12, least: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Least squares from every row of p at once, by Levenberg and Marquardt; parameters and their misfits.

    A row is finished, and left out of what follows, where a step would gain less than `tolerance` of its misfit, where
    no step gains anything, or where its misfit is at most `least`.
    """
    best, lowest = p.clone(), torch.full_like(p[:, 0], math.inf)
    rows = torch.arange(len(p))
    least = torch.zeros_like(lowest) if least is None else least
    state = (rows, p, torch.full_like(lowest, 1e-2), *_equations(model, p, rows))
    lowest[rows] = state[3]
    going = torch.isfinite(state[3]) & (state[3] > least)
    for _ in range(steps):
        if not bool(going.all()):
            state = tuple(x[going] for x in state)
        rows, p, damping, misfit, normal, right = state
        if not len(rows):
            break
        diagonal = normal.diagonal(dim1=1, dim2=2)
        floor = 1e-12 * diagonal.amax(1, keepdim=True) + 1e-300
        system = normal + torch.diag_embed(damping[:, None] * (diagonal + floor) + floor)
        step = torch.linalg.solve_ex(system, right[..., None])[0][..., 0].nan_to_num(0, 0, 0).clamp(-2, 2)
        new_misfit, new_normal, new_right = _equations(model, p + step, rows)
        # A clipped step may overshoot: what it promises is then negative, and nothing to stop at.
        promised = (step * (2 * right - (normal @ step[..., None])[..., 0])).sum(1).abs()
        # Near the end a gain is lost in the rounding of the misfit, and the step is right all the same.
        better = (new_misfit < misfit) | ((promised <= _UNSEEN * misfit) & torch.isfinite(new_misfit))
        gained = torch.where(better, misfit - new_misfit, 0.0)
        stuck = (gained <= tolerance * misfit) & ((better & (promised > _UNSEEN * misfit)) | (damping > 1e6))
        done = stuck | (promised <= tolerance * misfit)
        p = torch.where(better[:, None], p + step, p)
        normal = torch.where(better[:, None, None], new_normal, normal)
        right = torch.where(better[:, None], new_right, right)
        misfit = torch.where(better, new_misfit, misfit)
        damping = torch.where(better, damping / 5, damping * 4).clamp(1e-12, 1e9)
        best[rows], lowest[rows] = p, misfit
        state, going = (rows, p, damping, misfit, normal, right), ~done & (misfit > least[rows])
    return best, lowest


def covariance(residual: Tensor, slope: Tensor, used: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of the parameters of many fits, in the sandwich form, with what it is made of.

    Every curve has a noise of its own, and neighbouring residuals may be correlated.

    Args:
        residual: `(fits, curves, times)`, 0 at times that are not used.
        slope: derivatives of the curves by the parameters, `(fits, p, curves, times)`, 0 at times that are not used.
        used: number of times of each fit.

    Returns:
        The covariance `(fits, p, p)`, and of each curve the standard deviation of its residuals and the correlation of
        neighbouring ones, within `[0, 1)`.
    """
    curves, p, n = residual.shape[1], slope.shape[1], used[:, None]
    power = residual.square().sum(2)
    noise = (power / (n - p / curves)).sqrt()
    rho = (residual[..., 1:] * residual[..., :-1]).sum(2) / power.clamp(min=1e-300)
    rho = torch.minimum(rho.clamp(min=0), 1 - 1 / n)
    triangle = torch.linalg.qr(slope.flatten(2).mT, mode="r")[1]
    bread = torch.linalg.pinv(triangle, rtol=1e-13)
    bread = bread @ bread.mT
    widened = noise.square() * (1 + rho) / (1 - rho)
    rows = slope.transpose(1, 2)
    meat = (widened[..., None, None] * (rows @ rows.mT)).sum(1)
    return bread @ meat @ bread, noise, rho
