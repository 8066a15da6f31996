from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from isthmus import InputError
from isthmus.theory import (
    Alternative,
    _two_point_compare,
    compare_two_point,
    fit_two_point,
    forecast_two_point,
    two_point,
)
from isthmus.theory._two_point_compare import _integrated
from isthmus.theory._two_point_fits import _fit_rows
from isthmus.theory._two_point_traces import Start

T = torch.linspace(0, 60, 120, dtype=torch.float64)
NOISE = (0.01, 0.02, 0.005)  # of h, y, v
PAIR = {"dx2": 1.0, "dy2": 0.5}


def curves(t: Tensor = T, eta_h: float = 0.2, eta_y: float = 0.5, dx2: float = 1.0, dy2: float = 0.5) -> Tensor:
    path = two_point(t, 0.15, 0.1, 0.05, eta_h=eta_h, eta_y=eta_y, dx2=dx2, dy2=dy2)
    return torch.stack([path.h, path.y, path.v])


def noisy(seed: int, t: Tensor = T, noise: tuple[float, ...] = NOISE, smooth: float = 0.0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    white = torch.randn(3, len(t), generator=g)
    for i in range(1, len(t)):
        white[:, i] = smooth * white[:, i - 1] + math.sqrt(1 - smooth**2) * white[:, i]
    return curves(t) + torch.tensor(noise)[:, None] * white


@pytest.mark.parametrize("start", ["measured", "fitted"])
@pytest.mark.parametrize(("eta_h", "eta_y", "dy2"), [(0.2, 0.5, 0.5), (3.0, 0.05, 0.5), (0.004, 1.0, 2.0)])
def test_rates_that_made_the_curves_are_found(start: Start, eta_h: float, eta_y: float, dy2: float) -> None:
    fit = fit_two_point(T, *curves(eta_h=eta_h, eta_y=eta_y, dy2=dy2), dx2=1, dy2=dy2, start=start)
    assert fit.eta_h == pytest.approx(eta_h, rel=1e-6)
    assert fit.eta_y == pytest.approx(eta_y, rel=1e-6)
    assert float(fit.r_squared.min()) > 1 - 1e-9
    assert float(fit.residuals.abs().max()) < 1e-6
    assert fit.starts_agreeing > 0.1


def test_points_with_equal_targets_have_rates_too() -> None:
    path = two_point(T, 0.5, 0.1, 0.1, eta_h=0.2, eta_y=0.5, dx2=1, dy2=0)
    fit = fit_two_point(T, path.h, path.y, path.v, dx2=1, dy2=0)
    assert (fit.eta_h, fit.eta_y) == pytest.approx((0.2, 0.5), rel=1e-6)


def test_fits_do_not_depend_on_the_default_precision() -> None:
    t, (h, y, v) = T, curves()
    expected = fit_two_point(t, h, y, v, dx2=1, dy2=0.5).eta_h
    torch.set_default_dtype(torch.float32)  # as a user's process starts
    assert fit_two_point(t, h, y, v, dx2=1, dy2=0.5).eta_h == pytest.approx(expected, rel=1e-12)  # float64 still


def test_slower_time_is_smaller_rates() -> None:
    trace = noisy(0)
    fast, slow = (fit_two_point(k * T + shift, *trace, **PAIR) for k, shift in ((1, 0), (50, 7)))
    assert slow.eta_h == pytest.approx(fast.eta_h / 50, rel=1e-6)
    assert slow.eta_y_stderr == pytest.approx(fast.eta_y_stderr / 50, rel=1e-5)
    assert slow.correlation == pytest.approx(fast.correlation, abs=1e-5)
    torch.testing.assert_close(slow.r_squared, fast.r_squared, rtol=1e-8, atol=0)


def test_standard_errors_are_those_of_linear_theory() -> None:
    # The state at the start is known, and the noise is the same at all times and curves.
    t, sigma = torch.linspace(0, 60, 1500), 0.004
    trace = noisy(2, t, (sigma,) * 3)
    trace[:, 0] = curves(t)[:, 0]
    fit = fit_two_point(t, *trace, **PAIR)
    slopes = []
    for name, eta in (("eta_h", 0.2), ("eta_y", 0.5)):
        up, down = (curves(t, **{name: eta * math.exp(s)}) for s in (1e-4, -1e-4))
        slopes.append(((up - down) / 2e-4).flatten())
    design = torch.stack(slopes, 1)
    covariance = sigma**2 * torch.linalg.inv(design.mT @ design)
    torch.testing.assert_close(fit.covariance, covariance, rtol=0.2, atol=0)
    assert fit.eta_h_stderr == pytest.approx(0.2 * math.sqrt(float(covariance[0, 0])), rel=0.1)
    expected = float(covariance[0, 1] / (covariance[0, 0] * covariance[1, 1]).sqrt())
    assert fit.correlation == pytest.approx(expected, abs=0.05)
    assert fit.noise.tolist() == pytest.approx([sigma] * 3, rel=0.06)
    low, high = fit.interval()[0].tolist()
    assert low < 0.2 < high
    assert math.log(high / low) == pytest.approx(2 * 1.96 * fit.eta_h_stderr / fit.eta_h, rel=1e-3)


def test_errors_are_wider_where_neighbouring_residuals_are_alike() -> None:
    t = torch.linspace(0, 60, 600)
    white, coloured = (fit_two_point(t, *noisy(1, t, smooth=s), **PAIR, start="fitted") for s in (0.0, 0.8))
    assert coloured.autocorrelation.tolist() == pytest.approx([0.8] * 3, abs=0.12)
    assert float(white.autocorrelation.max()) < 0.15
    assert 2.2 < coloured.eta_y_stderr / white.eta_y_stderr < 4  # √(1.8/0.2) = 3


@pytest.mark.slow
def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    levels, true = (0.95, 0.6), torch.tensor([0.2, 0.5])
    held, inside = torch.zeros(2, 2), torch.zeros(2)
    later = torch.linspace(0, 80, 40)
    truth = curves(later)
    g = torch.Generator().manual_seed(9)
    for seed in range(200):
        fit = fit_two_point(T, *noisy(1000 + seed), **PAIR, start="fitted")
        fresh = truth + torch.tensor(NOISE)[:, None] * torch.randn(3, 40, generator=g)
        for i, level in enumerate(levels):
            low, high = fit.interval(level).T
            held[i] += (low < true) & (true < high)
            band = fit.predict(later, confidence=level)
            inside[i] += float(((band.low < fresh) & (fresh < band.high)).double().mean())
    for i, level in enumerate(levels):
        spread = 3 * math.sqrt(level * (1 - level) / 200)  # of a share of 200
        assert bool(((held[i] / 200 - level).abs() < spread + 0.01).all()), held
        assert float(inside[i]) / 200 == pytest.approx(level, abs=0.02)


def test_the_second_half_follows_from_the_first() -> None:
    t = torch.linspace(0, 30, 200)
    forecast = forecast_two_point(t, *noisy(3, t, (0.002, 0.002, 0.002)), **PAIR, start="fitted", share=0.3)
    truth = curves(t)[:, 60:]
    changes = (truth[:, -1] - truth[:, 0]).abs()
    assert float(changes[:2].min()) > 0.05  # there is something to predict
    assert float((forecast.error / changes).max()) < 0.2
    assert float(forecast.r_squared[:2].min()) > 0.9
    assert float(forecast.covered.min()) > 0.85
    assert len(forecast.band.times) == 140
    torch.testing.assert_close(forecast.band.high - forecast.band.value, forecast.band.value - forecast.band.low)


def doubled(
    t: Tensor, factors: tuple[int, ...], eh: float = 0.2, ey: float = 0.5,
    start: tuple[float, float, float] = (0.15, 0.1, 0.05),
) -> Tensor:  # fmt: skip
    """The equations of docs/theory 2.1 with their terms multiplied, by a stiff solver."""
    c, Y = factors, 0.5

    def field(_: float, z: np.ndarray) -> list[float]:
        h, y, v = z
        return [
            -c[0] * eh * v,
            -v * (c[1] * ey * h + c[2] * eh * y / h),
            -0.5 * c[3] * ey * (3 * v - y + Y) * h - 0.5 * c[4] * eh * (y + v) * v / h,
        ]

    return torch.from_numpy(solve_ivp(field, (0, float(t[-1])), start, "Radau", t.numpy(), rtol=1e-9, atol=1e-11).y)


@pytest.mark.slow
@pytest.mark.parametrize("altered", range(5))
def test_altered_equations_win_only_on_their_own_curves(altered: int) -> None:
    factors = tuple(2 if i == altered else 1 for i in range(5))
    t = torch.linspace(0, 20, 100)
    trace = doubled(t, factors)
    if bool((trace[:2] < 0).any()):
        trace[:2] = trace[:2].clamp(min=0)
    recognised(compare_two_point(fit_two_point(t, *trace, **PAIR)), altered)


def recognised(found: tuple[Alternative, ...], altered: int) -> None:
    assert [row.reason for row in found] == [""] * 6
    ratios = [row.ratio for row in found]
    assert ratios[altered] < 1e-6
    assert min(ratios[:altered] + ratios[altered + 1 :]) > 1e-2


@pytest.mark.parametrize(
    ("length", "altered"),
    [
        (2000, 1),
        *(pytest.param(n, i, marks=pytest.mark.slow) for n in (50, 2000) for i in range(5) if (n, i) != (2000, 1)),
    ],
)
def test_altered_equations_are_recognised_in_runs_of_any_length(length: int, altered: int) -> None:
    """Lengths are in times of growth: most of a long run lies at its end, and its rise in a few samples."""
    factors = tuple(2 if i == altered else 1 for i in range(5))
    t, rate = torch.linspace(0, 1, 512), length / math.sqrt(0.5)
    trace = doubled(t, factors, rate, rate, (1e-2, 1e-6, 0.0))
    trace[1] = trace[1].clamp(min=0)
    recognised(compare_two_point(fit_two_point(t, *trace, **PAIR)), altered)


@pytest.mark.parametrize("start", [(1e-2, 1e-6, 0.0), (2.0, 0.1, 0.05), (0.1, 0.2, 0.1)])
@pytest.mark.parametrize("length", [1, 50, 2000])
def test_equations_that_are_not_altered_agree_with_the_closed_form(
    length: int, start: tuple[float, float, float]
) -> None:
    t, rate = torch.linspace(0, 1, 512), length / math.sqrt(0.5)
    exact = two_point(t, *start, eta_h=rate, eta_y=rate, **PAIR)
    expected = torch.stack([exact.h, exact.y, exact.v])
    at = np.array([math.log(start[0]), *start[1:]])
    rates = np.full((2, 1, 1), rate)
    found = torch.from_numpy(_integrated(t.numpy(), at, 1.0, 0.5, rates, np.ones((5, 1)))[0, 0])
    assert float(((found - expected).abs().amax(1) / expected.abs().amax(1)).max()) < 1e-5


def test_what_cannot_be_integrated_has_a_reason_and_no_misfit(monkeypatch: pytest.MonkeyPatch) -> None:
    fit = fit_two_point(T, *curves(), **PAIR)
    monkeypatch.setattr(_two_point_compare, "_STEPS", 50)  # fewer than the 119 spans between the times
    found = compare_two_point(fit)
    assert all(math.isnan(row.misfit) and math.isnan(row.ratio) for row in found[:5])
    assert {row.reason for row in found[:5]} == {
        "the theory's own equations could not be integrated at the fitted rates"
    }
    assert found[5].reason == ""
    assert found[5].ratio > 1
    monkeypatch.undo()
    fit = dataclasses.replace(fit, fitted=1.001 * fit.fitted)  # as an integration that is a thousandth off sees it
    assert "of their size from the closed form" in compare_two_point(fit)[0].reason


def test_the_theory_wins_on_its_own_curves() -> None:
    fit = fit_two_point(T, *noisy(4), **PAIR, start="fitted")
    found = compare_two_point(fit)
    assert len(found) == 6
    assert min(row.ratio for row in found) > 1.02


def test_a_logistic_curve_is_known_as_one() -> None:
    s = torch.sigmoid(0.3 * (T - 25))
    found = compare_two_point(fit_two_point(T, 0.2 + 0.4 * s, 0.05 + 0.4 * s, -0.1 * s * (1 - s), **PAIR))
    assert found[-1].name == "logistic h and y"
    assert found[-1].misfit < 1e-12 < found[0].misfit


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"t": T[:5], "h": T[:5], "y": T[:5], "v": T[:5]}, "t: .*at least 8 times"),
        ({"h": torch.ones(120)}, "h: .*at all times.*a trace that changes"),
        ({"v": torch.zeros(120)}, "v: .*a trace that changes"),
        ({"y": torch.full((120,), math.nan)}, "y: got nan at index 0"),
        ({"y": T - 1}, "y: .*squared distances, which are ≥ 0"),
        ({"h": T}, "h: got 0 at the first time"),
        ({"t": T.flip(0)}, "t: .*each later"),
        ({"dx2": 0.0}, "dx2: .*identical inputs"),
        ({"dy2": -1.0}, "dy2: .*≥ 0"),
        ({"dx2": math.inf}, "dx2: .*finite"),
    ],
)
def test_traces_that_cannot_be_fitted_are_named(change: dict[str, Tensor | float], text: str) -> None:
    h, y, v = curves()
    with pytest.raises(InputError, match="(?s)" + text):
        fit_two_point(**{"t": T, "h": h, "y": y, "v": v, **PAIR, **change})


def test_traces_of_different_lengths_are_named() -> None:
    row = T[None]
    for t, y, text in ((T[:50], row, "t: .*120 times"), (T, row[:, :50], "y: .*one number for each of")):
        with pytest.raises(InputError, match=text):  # inside: shapes are checked before, under pytest
            _fit_rows(t, row, y, row, 1, 1, "measured", None, None)


def test_questions_that_a_fit_cannot_answer_are_named() -> None:
    fit = fit_two_point(T, *curves(), **PAIR)
    with pytest.raises(InputError, match="confidence"):
        fit.interval(1.0)
    with pytest.raises(InputError, match="times"):
        fit.predict(torch.tensor([-1.0]))
    with pytest.raises(InputError, match="share"):
        forecast_two_point(T, *curves(), **PAIR, share=1.0)
