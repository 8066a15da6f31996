from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from isthmus import InputError
from isthmus.theory import TwoPointFit, TwoPointFits, fit_two_point, fit_two_points, two_point, two_point_limit
from isthmus.theory import _two_point_fits as module
from isthmus.theory._two_point_flow import _falling_slope, curves_and_slopes
from isthmus.theory._two_point_traces import Start

T = torch.linspace(0, 60, 150, dtype=torch.float64)
DX2, DY2 = torch.tensor([1.0, 2.0, 0.7, 1.0]), torch.tensor([0.5, 0.5, 1.2, 0.0])
RATES = {"eta_h": torch.tensor([0.2, 0.05, 0.6, 0.3]), "eta_y": torch.tensor([0.5, 0.3, 0.1, 0.4])}


def traces(noise: float = 0.004) -> Tensor:
    """h, y, v and loss of four pairs; `(4, fits, times)`."""
    starts = torch.tensor([[0.15, 0.3, 0.1, 0.6], [0.1, 0.02, 0.1, 0.2], [0.05, 0.01, 0.1, 0.2]])
    path = two_point(T, *starts, **RATES, dx2=DX2, dy2=DY2, mean_gap=0.3, eta_mean=0.07)
    g = torch.Generator().manual_seed(0)
    values = torch.stack([path.h, path.y, path.v, path.loss]) + noise * torch.randn(4, 4, len(T), generator=g)
    values[:2].clamp_(min=0)
    return values


def fitted(values: Tensor, start: Start = "measured") -> TwoPointFits:
    return fit_two_points(T, values[0], values[1], values[2], dx2=DX2, dy2=DY2, start=start)


def assert_same(one: TwoPointFit, other: TwoPointFit) -> None:
    for name in (
        "eta_h",
        "eta_y",
        "eta_h_stderr",
        "eta_y_stderr",
        "correlation",
        "misfit",
        "r_squared_all",
        "laziness",
    ):
        assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-9), name
    for name in ("covariance", "fitted", "residuals", "noise", "autocorrelation", "r_squared", "times", "measured"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-9, atol=1e-12)


def test_derivatives_are_those_of_the_curves() -> None:
    g = torch.Generator().manual_seed(1)
    p = torch.randn(40, 5, generator=g) * torch.tensor([1, 1, 1, 1, 0.5])
    p[:, 4].abs_()
    X, Y = torch.rand(40, generator=g) + 0.3, torch.rand(40, generator=g)
    Y[:5] = 0
    p[5:8, 3:], p[5:8, 2], Y[5:8] = 0.0, -30, 1e-12  # differences of exponentials that nearly cancel
    t = torch.linspace(0, 15, 30).expand(40, 30)

    def curves(p: Tensor) -> Tensor:
        h, y = p[:, 2].exp(), p[:, 2].exp() * (p[:, 3] ** 2 + p[:, 4] ** 2)
        rates = p[:, :2].exp()
        path = two_point(t[0], h, y, y - p[:, 3] * (Y * h).sqrt(), eta_h=rates[:, 0], eta_y=rates[:, 1], dx2=X, dy2=Y)
        return torch.stack([path.h, path.y, path.v], 1)

    value, slopes = curves_and_slopes(t, p, torch.empty(40, 3), X, Y)
    torch.testing.assert_close(value, curves(p), rtol=1e-10, atol=1e-12)
    start = torch.stack([p[:, 2].exp(), p[:, 3], p[:, 4].square()], 1)
    torch.testing.assert_close(curves_and_slopes(t, p[:, :2], start, X, Y)[1], slopes[:, :2], rtol=1e-9, atol=1e-12)
    for j in range(5):
        step = torch.zeros(5)
        step[j] = 1e-5
        expected = (curves(p + step) - curves(p - step)) / 2e-5
        torch.testing.assert_close(slopes[:, j], expected, rtol=1e-6, atol=1e-8)


def test_differences_of_exponentials_that_nearly_cancel_keep_their_digits() -> None:
    tau = np.longdouble(2)
    rate = np.logspace(-6, 0, 60, dtype=np.longdouble) / tau
    end, integral = np.exp(-rate * tau), -np.expm1(-rate * tau) / rate
    expected = (tau * end - integral) / rate
    given = (torch.from_numpy(np.asarray(x, dtype=np.float64)) for x in (tau + 0 * rate, rate, end, integral))
    found = _falling_slope(*given)
    np.testing.assert_allclose(found.numpy(), expected.astype(np.float64), rtol=1e-10)


@pytest.mark.parametrize("start", ["measured", "fitted"])
def test_many_at_once_are_each_one_alone(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    values = traces()
    fits = fitted(values, start)
    assert fits.reasons == fits.notes == ("",) * 4
    for i in range(4):
        h, y, v = values[:3, i]
        assert_same(fits[i], fit_two_point(T, h, y, v, dx2=float(DX2[i]), dy2=float(DY2[i]), start=start))
    assert float((fits.eta_y / RATES["eta_y"]).log().abs().max()) < 0.25
    monkeypatch.setattr(module, "_CHUNK", 1)  # one fit at a time
    split = fitted(values, start)
    torch.testing.assert_close(split.eta_h_stderr, fits.eta_h_stderr, rtol=1e-9, atol=0)
    torch.testing.assert_close(split.start_misfits, fits.start_misfits, rtol=1e-6, atol=0, equal_nan=True)


def test_every_fit_may_have_times_of_its_own() -> None:
    values, scale = traces(), torch.tensor([1.0, 2.0, 5.0, 10.0])
    shared = fitted(values)
    own = fit_two_points(T * scale[:, None] + 3, values[0], values[1], values[2], dx2=DX2, dy2=DY2)
    torch.testing.assert_close(own.eta_h * scale, shared.eta_h, rtol=1e-7, atol=0)
    assert float(own[3].times[-1]) == 603


def test_one_bad_row_does_not_stop_the_others() -> None:
    values = traces()[:3]
    rows = torch.cat([values] * 2, 1)
    rows[1, 4] = torch.nan
    rows[0, 5] = 0.3
    rows[0, 6, 0] = 0.0
    dx2 = torch.cat([DX2, DX2])
    dx2[7] = 0.0
    fits = fit_two_points(T, *rows, dx2=dx2, dy2=torch.cat([DY2, DY2]))
    for i, text in {
        4: "y: got nan at index 0",
        5: "h: .*a trace that changes",
        6: "h: got 0",
        7: "dx2: .*identical",
    }.items():
        assert fits.used[i] == 0
        assert bool(torch.isnan(fits.eta_h[i]))
        with pytest.raises(InputError, match=text):
            fits[i]
    alone = fitted(values)
    assert len(fits) == 8
    assert fits.reasons[:4] == alone.reasons
    torch.testing.assert_close(fits.eta_y[:4], alone.eta_y, rtol=1e-9, atol=0)
    assert_same(fits[-8], alone[0])
    with pytest.raises(IndexError):
        fits[8]


def test_no_row_at_all_is_no_error() -> None:
    none = torch.empty(0, len(T))
    assert len(fit_two_points(T, none, none, none, dx2=1, dy2=1)) == 0
    assert fit_two_points(T, *traces()[:3] * torch.nan, dx2=DX2, dy2=DY2).used.tolist() == [0] * 4


def test_a_run_that_diverged_is_fitted_up_to_there() -> None:
    h, y, v = traces()[:3, 0].clone()
    for row in (h, y, v):
        row[104:] = torch.nan
    y[103] = torch.inf
    h[100:103] = v[100:103] = y[100:103] = torch.tensor([50.0, 1e8, 1e200])  # before it comes to that
    fit = fit_two_point(T, h, y, v, dx2=1, dy2=0.5)
    assert (fit.used, len(fit.times)) == (100, 100)
    assert fit.note == "the run diverged (y is inf at index 103): fitted to the first 100 of 150 times"
    assert_same(fit, fit_two_point(T[:100], h[:100], y[:100], v[:100], dx2=1, dy2=0.5))
    assert_same(fit, fit_two_points(T, *torch.stack([h, y, v])[:, None], dx2=1, dy2=0.5)[0])
    with pytest.raises(InputError, match="finite numbers at the first 8 times or more"):
        fit_two_point(T[93:], h[93:], y[93:], v[93:], dx2=1, dy2=0.5)
    y[60] = torch.nan
    y[103:] = h[103:] = v[103:] = 0.4
    with pytest.raises(InputError, match=r"y: got nan at index 60.*or none from there on"):
        fit_two_point(T, h, y, v, dx2=1, dy2=0.5)


@pytest.mark.parametrize("start", ["measured", "fitted"])
def test_runs_of_different_lengths_go_into_one_call(start: Start) -> None:
    values = traces()[:3]
    ends = [150, 31, 90, 12]
    for i, end in enumerate(ends):
        values[:, i, end:] = torch.nan
    fits = fitted(values, start)
    assert fits.used.tolist() == ends
    for i, end in enumerate(ends):
        h, y, v = values[:, i, :end]
        assert_same(fits[i], fit_two_point(T[:end], h, y, v, dx2=float(DX2[i]), dy2=float(DY2[i]), start=start))


@pytest.mark.parametrize("start", ["measured", "fitted"])
def test_the_rate_of_the_mean_comes_from_the_loss(start: Start) -> None:
    h, y, v, loss = traces(0.0)
    exact = fit_two_points(T, h, y, v, dx2=DX2, dy2=DY2, loss=loss, start=start)
    torch.testing.assert_close(exact.eta_mean, torch.full((4,), 0.07), rtol=1e-7, atol=0)
    assert float(exact.eta_mean_r_squared.min()) > 1 - 1e-9
    # With white noise on the squared distance itself, the standard error is that of linear theory.
    t, sigma, g = torch.linspace(0, 60, 3000), 0.01, torch.Generator().manual_seed(2)
    gap = 0.3 * torch.exp(-0.14 * t)
    slope = torch.stack([-0.14 * t * gap, gap / 0.3][: 1 if start == "measured" else 2], 1)
    expected = 0.07 * sigma * float(torch.linalg.inv(slope.mT @ slope)[0, 0].sqrt())
    noisy = gap + sigma * torch.randn(len(t), generator=g)
    noisy[0] = 0.3
    path = two_point(t, 0.15, 0.1, 0.05, eta_h=0.2, eta_y=0.5, dx2=1, dy2=0.5)
    fit = fit_two_point(t, path.h, path.y, path.v, dx2=1, dy2=0.5, mean=noisy.clamp(min=0), start=start)
    assert fit.eta_mean is not None
    assert fit.eta_mean_stderr is not None
    assert fit.eta_mean_stderr == pytest.approx(expected, rel=0.35)  # clipped at 0, which is less noise
    assert fit.eta_mean == pytest.approx(0.07, rel=0.05)


def test_a_network_that_learns_the_mean_by_its_bias_has_the_learning_rate_as_its_rate() -> None:
    # Gradient descent on ½·MSE of a linear network with an output bias, samples at ±½ of their difference.
    rate, steps = 4e-3, 1000
    g = torch.Generator().manual_seed(5)
    dx, target, goal_mean = torch.tensor([2.0, -1.0, 1.0]), torch.tensor([1.5, -1.0]), torch.tensor([0.6, 0.8])
    first, second, bias = 0.3 * torch.randn(1, 3, generator=g), 0.3 * torch.randn(2, 1, generator=g), torch.zeros(2)
    x, goal = torch.stack([-dx, dx]) / 2, goal_mean + torch.stack([-target, target]) / 2
    trace = []
    for _ in range(steps):
        hidden = x @ first.T
        out = hidden @ second.T + bias
        dh, dy = hidden[1] - hidden[0], out[1] - out[0]
        trace.append(torch.stack([dh @ dh, dy @ dy, dy @ dy - dy @ target, (out - goal).square().sum() / 4]))
        error = (out - goal) / 2
        first, second = first - rate * (error @ second).T @ x, second - rate * error.T @ hidden
        bias = bias - rate * error.sum(0)
    h, y, v, loss = torch.stack(trace, 1)
    fit = fit_two_point(
        torch.arange(steps).double(), h, y, v, dx2=float(dx @ dx), dy2=float(target @ target), loss=loss
    )
    assert fit.eta_mean == pytest.approx(rate, rel=4e-3)  # of the step size
    assert (fit.eta_h, fit.eta_y) == pytest.approx((rate / 2, rate / 2), rel=0.02)


def test_a_mean_without_a_rate_is_said_and_stops_nothing() -> None:
    h, y, v, loss = traces(0.0)
    loss[1] = loss[1] / 4  # the mean over four outputs, say
    loss[2] = two_point(
        T, 0.1, 0.1, 0.1, eta_h=0.6, eta_y=0.1, dx2=0.7, dy2=1.2
    ).loss  # the mean is right from the start
    loss[3, 40] = torch.nan
    fits = fit_two_points(T, h, y, v, dx2=DX2, dy2=DY2, loss=loss)
    assert fits.reasons == ("",) * 4
    assert torch.isnan(fits.eta_mean).tolist() == [False, True, True, True]
    for i, text in enumerate(("", "no rate of the mean: loss: ", "no rate of the mean: loss: ", "not finite")):
        assert text in fits.notes[i]
    assert "½·MSE" in fits.notes[1]
    assert fits[1].eta_mean is fits[1].eta_mean_stderr is fits[1].eta_mean_r_squared is None
    assert fits[0].eta_mean == pytest.approx(0.07, rel=1e-6)
    with pytest.raises(InputError, match="mean: got both loss and mean"):
        fit_two_points(T, h, y, v, dx2=DX2, dy2=DY2, loss=loss, mean=loss)


def test_what_is_said_of_a_fit_is_what_it_is_said_to_be() -> None:
    fit = fitted(traces())[1]
    whole = (fit.measured - fit.measured.mean(1, keepdim=True)).square().sum()
    assert fit.r_squared_all == pytest.approx(float(1 - fit.residuals.square().sum() / whole), rel=1e-12)
    h0, y0, _ = fit.fitted[:, 0]
    limit = two_point_limit(h0, y0, eta_h=fit.eta_h, eta_y=fit.eta_y, dx2=2.0, dy2=0.5)
    assert fit.laziness == pytest.approx(float(limit.laziness), rel=1e-9)
    assert 0.05 < abs(fit.laziness) < 0.95
    assert fit.eta_mean is None
    assert fit.misfit == pytest.approx(float(fit.residuals.square().sum()), rel=1e-12)


def test_a_sharp_change_in_a_long_run_is_found() -> None:
    # 3000 epochs of which 30 matter: evenly spread times would see little of it.
    t = torch.arange(3000.0)
    path = two_point(t, 1e-9, 1e-18, 0.0, eta_h=0.2, eta_y=0.6, dx2=1, dy2=0.5)
    moving = (path.h > 0.05 * path.h[-1]) & (path.h < 0.95 * path.h[-1])
    assert int(moving.sum()) < 40
    g = torch.Generator().manual_seed(0)
    h, y, v = (x + 1e-3 * torch.randn(3000, generator=g) for x in (path.h, path.y, path.v))
    fit = fit_two_point(t, h.clamp(min=1e-9), y.clamp(min=0), v, dx2=1, dy2=0.5, start="fitted")
    assert math.sqrt(fit.misfit / 9000) < 1.1e-3
    assert fit.eta_h / fit.eta_y == pytest.approx(1 / 3, rel=0.02)
