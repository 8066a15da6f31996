"""Other descriptions of how two samples come apart, to compare the theory with."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from torch import Tensor

from isthmus.theory._curve_fits import thinned_by_change
from isthmus.theory._least_squares import Model, descend, differentiated
from isthmus.theory._two_point_fit import TwoPointFit

_STEP = 0.25
"""Longest step of the integration, as a share of the time in which the fastest mode changes by a factor e."""

_STEPS = 5000
"""Most steps of one integration; a stiff system that needs more is given up."""

_SETTLED = 1e-10
"""Distance from the end, relative to what was to be learnt, from which on nothing moves."""

_AGREES = 1e-4
"""How far the theory, integrated like the alternatives, may be from its closed form, as a share of h and of y."""

_ALTERED = {
    "dh/dt doubled": (2, 1, 1, 1, 1),
    "decoder term of dy/dt doubled": (1, 2, 1, 1, 1),
    "encoder term of dy/dt doubled": (1, 1, 2, 1, 1),
    "decoder term of dv/dt doubled": (1, 1, 1, 2, 1),
    "encoder term of dv/dt doubled": (1, 1, 1, 1, 2),
}


@dataclasses.dataclass(frozen=True)
class Alternative:
    """Another description of the same curves, fitted as carefully (docs/theory 2.6).

    Attributes:
        name: what it is.
        misfit: `Σ residual²`; NaN where there is a reason.
        ratio: to the theory's, over the same curves: above 1 where the theory is the better one; NaN where there is a
            reason.
        reason: why there is no misfit: the equations could not be integrated to the end, or not well enough; empty
            where there is one.
    """

    name: str
    misfit: float
    ratio: float
    reason: str = ""


def _integrated(
    t: np.ndarray, start: np.ndarray, X: float, Y: float, rates: np.ndarray, factors: np.ndarray
) -> np.ndarray:
    """The equations with their five terms multiplied by factors; NaN from where a row could not be followed.

    Runge and Kutta's fourth order, in log h. A step is as short as the fastest mode of its row asks for, and the same
    for the copies of a row, so that differences between copies are smooth in the rates. A row at its end stays there.

    Args:
        t: times.
        start: log h, y and v.
        X: squared distance of the inputs.
        Y: squared distance of the targets.
        rates: of encoder and decoder, `(2, copies, rows)`.
        factors: `(5, rows)`.

    Returns:
        h, y and v, `(copies, rows, 3, times)`.
    """
    _, copies, rows = rates.shape
    scale = Y + start[1]

    def field(z: np.ndarray, r: np.ndarray, c: np.ndarray) -> np.ndarray:
        h, y, v = np.exp(z[0]), z[1], z[2]
        out, back = r[1] * h, r[0] * X / h
        return np.stack([
            -c[0] * back * v,
            -v * (c[1] * out + c[2] * back * y),
            -0.5 * c[3] * out * (3 * v - y + Y) - 0.5 * c[4] * back * (y + v) * v,
        ])  # fmt: skip

    def pace(z: np.ndarray, r: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A bound on the rates of all modes, and which rows have settled."""
        h, y, v = np.exp(z[0]), np.abs(z[1]), np.abs(z[2])
        out, back = r[1] * h, r[0] * X / h
        fastest = c.max(0) * (1.5 * out + back * (y + v) + np.sqrt(r[0] * r[1] * X * Y))
        moving = np.maximum(v, np.abs(z[1] - Y)) / scale
        drift = back * v / fastest
        return fastest.max(0), (np.maximum(moving, drift) < _SETTLED).all(0)

    z = np.broadcast_to(start[:, None, None], (3, copies, rows)).copy()
    path, taken = [z.copy()], np.zeros(rows)
    with np.errstate(all="ignore"):  # a row that runs away is left out by its misfit
        for span in np.diff(t):
            left, going = np.full(rows, span), np.arange(rows)
            while len(going):
                here, r, c = z[..., going], rates[..., going], factors[:, going]
                fastest, settled = pace(here, r, c)
                lost = ~np.isfinite(fastest) | (taken[going] >= _STEPS)
                z[..., going[lost]] = np.nan
                open_ = ~(settled | lost)
                going, here, r, c = going[open_], here[..., open_], r[..., open_], c[:, open_]
                if not len(going):
                    break
                d = left[going] / np.ceil(np.maximum(left[going] * fastest[open_] / _STEP, 1))
                k1 = field(here, r, c)
                k2 = field(here + d / 2 * k1, r, c)
                k3 = field(here + d / 2 * k2, r, c)
                z[..., going] = here + d / 6 * (k1 + 2 * k2 + 2 * k3 + field(here + d * k3, r, c))
                left[going] -= d
                taken[going] += 1
                going = going[left[going] > 1e-9 * span]
            path.append(z.copy())
    found = np.stack(path, -1)
    found[0] = np.exp(found[0])
    return found.transpose(1, 2, 0, 3)


def _altered(
    t: np.ndarray, measured: np.ndarray, weight: np.ndarray, start: np.ndarray, X: float, Y: float, factors: np.ndarray
) -> Model:
    """Residuals of the altered equations, and their slopes by central differences."""
    step = 1e-5
    copies = step * np.array([[0, 0], [1, 0], [0, 1], [-1, 0], [0, -1]])

    def model(p: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        rates = np.exp(p.numpy()[None] + copies[:, None]).transpose(2, 0, 1)
        found = _integrated(t, start, X, Y, rates, factors[:, rows.numpy()]) * weight
        value, h_up, y_up, h_down, y_down = found.reshape(len(copies), len(p), -1)
        slope = np.stack([h_up - h_down, y_up - y_down], 1) / (2 * step)
        return torch.from_numpy((measured * weight).ravel() - value), torch.from_numpy(slope)

    return model


def _logistic(t: Tensor, curves: Tensor, weight: Tensor) -> tuple[Model, Tensor]:
    """One sigmoid for h and y between their ends, of two parameters, and starts for it."""
    span = t[-1]

    def shape(p: Tensor) -> Tensor:
        s = torch.sigmoid(p[:, :1].exp() * (t / span - p[:, 1:]))
        share = (s - s[:, :1]) / (s[:, -1:] - s[:, :1])
        return torch.cat([weight * (c[0] + (c[-1] - c[0]) * share) for c in curves[:2]], 1)

    starts = [[math.log(k), m] for k in (3, 10, 30, 100) for m in (0.05, 0.2, 0.4, 0.6, 0.8)]
    return differentiated(shape, (weight * curves[:2]).flatten()), torch.tensor(starts, dtype=torch.float64)


def _judged(name: str, misfit: float, theory: float, reason: str) -> Alternative:
    if not reason and not math.isfinite(misfit):
        reason = "no start led to finite curves"
    return Alternative(name, math.nan, math.nan, reason) if reason else Alternative(name, misfit, misfit / theory)


def compare_two_point(fit: TwoPointFit) -> tuple[Alternative, ...]:
    """How well other descriptions fit the same curves, each from several starts (docs/theory 2.6).

    The theory with one of its five terms doubled, with two free rates and the fit's start; and one logistic curve in
    time between the ends of h and y, with free rate and middle. At most 120 of the times are looked at, half of them
    spread evenly and half where the curves change, each with the weight of those it stands for. Altered equations have
    a reason instead of a misfit where they cannot be followed to the end, and where the theory itself, integrated as
    they are, misses its closed form by more than a ten-thousandth.
    """
    since = fit.times - fit.times[0]
    index, stands_for = thinned_by_change(fit.measured[None], torch.tensor([len(since)]))
    few, weight = index[0], stands_for[0].sqrt()
    t, curves = since[few], fit.measured[:, few]
    own = (weight * fit.residuals[:, few]).square().sum(1)
    h, y, v = fit.fitted[:, 0].tolist()
    start = np.array([math.log(h), y, v])
    rates = torch.tensor([[fit.eta_h, fit.eta_y]], dtype=torch.float64).log()

    exact = fit.fitted[:, few].numpy()
    again = _integrated(t.numpy(), start, fit.dx2, fit.dy2, rates.exp().numpy().T[:, None], np.ones((5, 1)))[0, 0]
    size = np.maximum(np.abs(exact).max(1), 1e-300)[[0, 1, 1]]  # v is a part of y, and may be 0 at all of the times
    off = float((np.abs(again - exact).max(1) / size).max())
    reason = "" if off <= _AGREES else (
        "the theory's own equations could not be integrated at the fitted rates" if math.isnan(off)
        else f"the theory's own equations, integrated, are {off:.1g} of their size from the closed form"
    )  # fmt: skip

    near = torch.tensor([(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)], dtype=torch.float64)
    factors = np.array([*_ALTERED.values()], dtype=float).repeat(len(near), 0).T
    best = [math.nan] * len(_ALTERED)
    if not reason:
        model = _altered(t.numpy(), curves.numpy(), weight.numpy(), start, fit.dx2, fit.dy2, factors)
        least = 1e-12 * (weight * curves).square().sum().expand(factors.shape[1])
        _, misfits = descend(
            model, (rates + near).repeat(len(_ALTERED), 1), steps=25, tolerance=1e-5, least=least
        )  # fmt: skip
        best = misfits.view(len(_ALTERED), -1).amin(1).tolist()
    whole = max(float(own.sum()), 1e-300)
    found = [_judged(name, misfit, whole, reason) for name, misfit in zip(_ALTERED, best, strict=True)]
    model, starts = _logistic(t, curves, weight)
    misfit = float(descend(model, starts)[1].min())
    return (*found, _judged("logistic h and y", misfit, max(float(own[:2].sum()), 1e-300), ""))
