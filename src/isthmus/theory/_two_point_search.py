"""The search for the effective learning rates of some pairs: first guesses, least squares, standard errors."""

from __future__ import annotations

import torch
from torch import Tensor

from isthmus._errors import InputError
from isthmus.theory._curve_fits import Fitted, fit_curves
from isthmus.theory._two_point_flow import curves_and_slopes, decoder_parts, modes
from isthmus.theory._two_point_traces import check_gap

_FACTORS = (
    (1, 1), (3, 3), (1 / 3, 1 / 3), (10, 10), (0.1, 0.1), (10, 1), (0.1, 1), (1, 10), (1, 0.1), (10, 0.1), (0.1, 10),
)  # fmt: skip
STARTS = 2 * len(_FACTORS)
_MEAN_FACTORS = (1.0, 0.1, 10.0, 100.0)
MEAN = ("eta_mean", "eta_mean_stderr", "eta_mean_r_squared")


def _integral(t: Tensor, f: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(f[:, :1]), ((f[:, 1:] + f[:, :-1]) / 2 * t.diff(dim=1)).cumsum(1)], 1)


def _guesses(t: Tensor, curves: Tensor, used: Tensor, X: Tensor, Y: Tensor) -> Tensor:
    """Logarithms of rates to start from: the equations integrated once over time are linear in the rates."""
    h, y, v = curves.unbind(1)
    inputs = X[:, None]
    mask = torch.arange(t.shape[1]) < used[:, None]
    safe = torch.maximum(h, 1e-3 * h.amax(1, keepdim=True))

    def ratio(change: Tensor, by: Tensor) -> Tensor:
        return ((change * by * mask).sum(1) / (by.square() * mask).sum(1).clamp(min=1e-300))[:, None]

    rate_h = ratio(h - h[:, :1], _integral(t, -v * inputs))
    rate_h = torch.where(rate_h > 0, rate_h, 1 / t[:, -1:])
    rate_y = ratio(y - y[:, :1] - rate_h * _integral(t, -v * inputs * y / safe), _integral(t, -v * h))
    # What the rich end h² = (η_h/η_y) X Y says; the authors' choice.
    rich = rate_h * inputs * torch.maximum(Y[:, None], y.amax(1, keepdim=True)) / h[:, -1:].clamp(min=1e-150).square()
    seconds = torch.cat([torch.where(rate_y > 0, rate_y, torch.nan), rich], 1)
    factors = torch.tensor(_FACTORS, dtype=torch.float64)
    pairs = torch.stack(torch.broadcast_tensors(rate_h[..., None], seconds[..., None]), -1) * factors
    return pairs.flatten(1, 2).log()


def fit_rates(t: Tensor, curves: Tensor, used: Tensor, X: Tensor, Y: Tensor, *, with_start: bool) -> dict[str, Tensor]:
    """The columns of `TwoPointFits` for some rows: times from 0 on, and curves `(fits, 3, times)`.

    Where no start led anywhere the misfit is infinite.
    """
    first = curves[..., 0]
    a, b2 = decoder_parts(first[:, 0], first[:, 1], first[:, 2], Y)
    state = torch.stack([first[:, 0], a, b2], 1)
    guesses = _guesses(t, curves, used, X, Y)
    if with_start:
        # A first value below the noise says nothing: second differences tell the noise from the curve.
        rough = curves[:, 0].diff(n=2, dim=1).abs().median(1)[0]
        h, y, v = torch.maximum(first[:, 0], rough), first[:, 1], first[:, 2]
        along, b2 = decoder_parts(h, y, v, Y)
        begin = torch.stack([h.log(), along, torch.maximum(b2, 0.01 * y / h).sqrt()], 1)
        guesses = torch.cat([guesses, begin[:, None].expand(-1, STARTS, -1)], 2)

    def theory(t: Tensor, p: Tensor, of: Tensor) -> tuple[Tensor, Tensor]:
        return curves_and_slopes(t, p, state[of], X[of], Y[of])

    found = fit_curves(theory, t, curves, used, guesses)
    covariance = found.covariance
    if with_start:
        state = torch.stack([found.p[:, 2].exp(), found.p[:, 3], found.p[:, 4].square()], 1)
        sign = torch.ones_like(found.p)
        sign[:, 4] = torch.where(found.p[:, 4] < 0, -1.0, 1.0)  # b is the root of what is reported
        covariance = covariance * sign[:, None] * sign[:, :, None]
    eta_h, eta_y = found.p[:, :2].exp().unbind(1)
    errors = covariance.diagonal(dim1=1, dim2=2)[:, :2].sqrt()
    end = modes(state[:, 0], state[:, 1], state[:, 2], eta_h, eta_y, X, Y)
    return {
        "eta_h": eta_h,
        "eta_y": eta_y,
        "eta_h_stderr": eta_h * errors[:, 0],
        "eta_y_stderr": eta_y * errors[:, 1],
        "correlation": covariance[:, 0, 1] / errors.prod(1).clamp(min=1e-300),
        "covariance": covariance,
        "start": state,
        "laziness": torch.where(end.m > 0, end.A / 2 / torch.where(end.m > 0, end.m, 1.0), 0.0),
        "misfit": found.misfit,
        "noise": found.noise,
        "autocorrelation": found.autocorrelation,
        "r_squared": found.r_squared,
        "r_squared_all": found.r_squared_all,
        "start_misfits": found.reached.sort(1)[0],
        "starts_agreeing": found.agreeing,
    }


def fit_mean(
    t: Tensor, gap: Tensor, used: Tensor, name: str, *, with_start: bool
) -> tuple[dict[str, Tensor], list[str]]:
    """`m(t) = m_0 e^{−2 η_ȳ t}` fitted to some rows `m = ‖ȳ − ȳ*‖²`, and why not where it could not be."""
    reasons = [""] * len(gap)
    for i, row in enumerate(gap):
        try:
            check_gap(name, row[: int(used[i])])
        except InputError as error:
            reasons[i] = str(error)
    good = torch.tensor([not reason for reason in reasons])
    columns = {name: torch.full((len(gap),), torch.nan, dtype=torch.float64) for name in MEAN}
    if bool(good.any()):
        found = _fit_decay(t[good], gap[good], used[good], with_start=with_start)
        rate = found.p[:, 0].exp()
        error = rate * found.covariance[:, 0, 0].sqrt()
        for name, values in zip(MEAN, (rate, error, found.r_squared_all), strict=True):
            columns[name][good] = torch.where(torch.isfinite(found.misfit), values, torch.nan)
    return columns, reasons


def _fit_decay(t: Tensor, gap: Tensor, used: Tensor, *, with_start: bool) -> Fitted:
    rate = (gap[:, :1] - gap[:, -1:]) / (2 * _integral(t, gap)[:, -1:])
    rate = torch.where(rate > 0, rate, 1 / t[:, -1:])
    guesses = (rate * torch.tensor(_MEAN_FACTORS, dtype=torch.float64)).log()[..., None]
    size = gap[:, :1]
    if with_start:
        guesses = torch.cat([guesses, size.log()[..., None].expand_as(guesses)], 2)

    def decay(t: Tensor, p: Tensor, of: Tensor) -> tuple[Tensor, Tensor]:
        rate = p[:, :1].exp()
        value = (size[of] if p.shape[1] == 1 else p[:, 1:].exp()) * torch.exp(-2 * rate * t)
        slopes = [-2 * rate * t * value, value][: p.shape[1]]
        return value[:, None], torch.stack(slopes, 1)[:, :, None]

    return fit_curves(decay, t, gap[:, None], used, guesses)
