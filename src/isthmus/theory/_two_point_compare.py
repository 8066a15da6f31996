"""Other descriptions of how two samples come apart, to compare the theory with."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from torch import Tensor

from isthmus.theory._least_squares import Model, descend, differentiated, thinned
from isthmus.theory._two_point_fit import TwoPointFit

_THIN = 100
_SUBSTEPS = 2
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
        misfit: `Σ residual²`, infinite where no start led anywhere.
        ratio: to the theory's, over the same curves: above 1 where the theory is the better one.
    """

    name: str
    misfit: float
    ratio: float


def _altered(t: Tensor, measured: Tensor, start: Tensor, X: float, Y: float, factors: Tensor) -> Model:
    """The equations with their five terms multiplied by factors: Runge and Kutta's fourth order, in log h."""
    grid = t.numpy()

    def field(z: np.ndarray, rates: np.ndarray, c: np.ndarray) -> np.ndarray:
        h, y, v = np.exp(z[0]), z[1], z[2]
        out, back = rates[1] * h, rates[0] * X / h
        return np.stack([
            -c[0] * back * v,
            -v * (c[1] * out + c[2] * back * y),
            -0.5 * c[3] * out * (3 * v - y + Y) - 0.5 * c[4] * back * (y + v) * v,
        ])  # fmt: skip

    def curves(p: np.ndarray, of: np.ndarray) -> np.ndarray:
        rates, c = np.exp(p.T), np.tile(factors.numpy()[of].T, len(p) // len(of))
        z = np.tile(start.numpy()[:, None], len(p))
        path = [z]
        with np.errstate(all="ignore"):  # a start that runs away is left out by its misfit
            for span in np.diff(grid):
                d = span / _SUBSTEPS
                for _ in range(_SUBSTEPS):
                    k1 = field(z, rates, c)
                    k2 = field(z + d / 2 * k1, rates, c)
                    k3 = field(z + d / 2 * k2, rates, c)
                    z = z + d / 6 * (k1 + 2 * k2 + 2 * k3 + field(z + d * k3, rates, c))
                path.append(z)
            found = np.stack(path, -1)
            found[0] = np.exp(found[0])
        return found.transpose(1, 0, 2).reshape(len(p), -1)

    def model(p: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        step, base = 1e-5, p.numpy()
        across, along = np.array([step, 0.0]), np.array([0.0, step])
        moved = np.concatenate([base, base + across, base + along, base - across, base - along])
        value, h_up, y_up, h_down, y_down = np.split(curves(moved, rows.numpy()), 5)
        with np.errstate(all="ignore"):
            slope = np.stack([h_up - h_down, y_up - y_down], 1) / (2 * step)
            residual = measured.numpy() - value
        return torch.from_numpy(residual), torch.from_numpy(slope)

    return model


def _logistic(t: Tensor, curves: Tensor) -> tuple[Model, Tensor]:
    """One sigmoid for h and y between their ends, of two parameters, and starts for it."""
    span = t[-1]

    def shape(p: Tensor) -> Tensor:
        s = torch.sigmoid(p[:, :1].exp() * (t / span - p[:, 1:]))
        share = (s - s[:, :1]) / (s[:, -1:] - s[:, :1])
        return torch.cat([c[0] + (c[-1] - c[0]) * share for c in curves[:2]], 1)

    starts = [[math.log(k), m] for k in (3, 10, 30, 100) for m in (0.05, 0.2, 0.4, 0.6, 0.8)]
    return differentiated(shape, curves[:2].flatten()), torch.tensor(starts, dtype=torch.float64)


def compare_two_point(fit: TwoPointFit) -> tuple[Alternative, ...]:
    """How well other descriptions fit the same curves, each from several starts (docs/theory 2.6).

    The theory with one of its five terms doubled, with two free rates and the fit's start; and one logistic curve in
    time between the ends of h and y, with free rate and middle. At most 100 of the times are looked at.
    """
    since = fit.times - fit.times[0]
    few = thinned(since, _THIN)
    t, curves = since[few], fit.measured[:, few]
    own = fit.residuals[:, few].square().sum(1)
    h, y, v = fit.fitted[:, 0]
    start = torch.stack([h.log(), y, v])
    rates = torch.tensor([math.log(fit.eta_h), math.log(fit.eta_y)], dtype=torch.float64)
    near = torch.tensor([(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)], dtype=torch.float64)
    factors = torch.tensor([*_ALTERED.values()], dtype=torch.float64).repeat_interleave(len(near), 0)
    model = _altered(t, curves.flatten(), start, fit.dx2, fit.dy2, factors)
    _, misfits = descend(model, (rates + near).repeat(len(_ALTERED), 1), steps=25)
    best = misfits.view(len(_ALTERED), -1).amin(1).tolist()
    whole = max(float(own.sum()), 1e-300)
    found = [Alternative(name, misfit, misfit / whole) for name, misfit in zip(_ALTERED, best, strict=True)]
    model, starts = _logistic(t, curves)
    misfit = float(descend(model, starts)[1].min())
    return (*found, Alternative("logistic h and y", misfit, misfit / max(float(own[:2].sum()), 1e-300)))
