from __future__ import annotations

import math

import pytest
import scipy.optimize
import torch

from isthmus import InputError
from isthmus.theory import equilibrium_law, propagate_signal, signal_phase


def test_phases_of_the_relu() -> None:
    edge = signal_phase("relu", weight_variance=2, variance=0.7)
    assert (edge.phase, edge.variance, edge.slope, edge.correlation) == ("critical", 0.7, 1, 1)
    assert edge.correlation_depth == edge.variance_depth == math.inf
    ordered = signal_phase("relu", weight_variance=1.5, bias_variance=0.2)
    assert (ordered.phase, ordered.slope, ordered.correlation) == ("ordered", 0.75, 1)
    assert ordered.variance == pytest.approx(0.2 / (1 - 0.75))
    assert ordered.correlation_depth == ordered.variance_depth == pytest.approx(-1 / math.log(0.75))
    growing = signal_phase("relu", weight_variance=2.5)
    assert (growing.phase, growing.variance, growing.correlation) == ("unbounded", math.inf, 1)
    assert growing.variance_depth == pytest.approx(1 / math.log(1.25))
    assert signal_phase("relu", weight_variance=2, bias_variance=0.1).phase == "unbounded"


def test_a_linear_network_keeps_correlations_on_its_edge_only() -> None:
    edge = signal_phase("linear", weight_variance=1)
    assert (edge.phase, edge.correlation) == ("critical", None)
    dying = signal_phase("linear", weight_variance=0.8)
    assert (dying.phase, dying.variance, dying.correlation) == ("ordered", 0, None)
    assert signal_phase("linear", weight_variance=0.8, bias_variance=0.1).correlation == 1


def test_correlations_under_powers_of_x() -> None:
    # x²: ρ ↦ (1 + 2ρ²)/3, to ½ with slope ⅔, whether variances die out or grow
    for weight, variance, slope, phase in ((2.0, math.inf, math.inf, "unbounded"), (0.02, 0, 0, "ordered")):
        found = signal_phase(torch.square, weight_variance=weight)
        assert (found.phase, found.variance, found.slope, found.variance_depth) == (phase, variance, slope, 0)
        assert found.correlation == pytest.approx(0.5, abs=1e-9)
        assert found.correlation_depth == pytest.approx(1 / math.log(1.5), rel=1e-6)


def test_fixed_points_that_are_known() -> None:
    # SELU was made to have one at variance 1, with activations of mean 0 (arXiv 1706.02515)
    selu = signal_phase("selu", weight_variance=1, variance=3.0)
    assert selu.variance == pytest.approx(1, abs=1e-6)
    assert selu.correlation == pytest.approx(0, abs=1e-6)
    small = signal_phase("tanh", weight_variance=1)
    assert (small.phase, small.variance, small.correlation) == ("critical", 0, None)


def critical(activation: str, bias: float) -> float:
    return scipy.optimize.brentq(
        lambda w: signal_phase(activation, weight_variance=w, bias_variance=bias).slope - 1, 0.5, 3, xtol=1e-12
    )


def test_the_edge_of_chaos_of_tanh_is_where_it_is_known_to_be() -> None:
    assert critical("tanh", 0.05) == pytest.approx(1.76, abs=5e-3)  # arXiv 1611.01232
    below, above = (signal_phase("tanh", weight_variance=w, bias_variance=0.05).phase for w in (1.7, 1.8))
    assert (below, above) == ("ordered", "chaotic")


@pytest.mark.parametrize(
    ("activation", "weight", "bias"), [("erf", 0.9, 0.2), ("erf", 3.0, 0.1), ("tanh", 3.5, 0.1), ("hardtanh", 2.0, 0.1)]
)
def test_the_recursion_goes_where_the_phase_says_as_fast_as_it_says(
    activation: str, weight: float, bias: float
) -> None:
    found = signal_phase(activation, weight_variance=weight, bias_variance=bias)
    signal = propagate_signal(activation, depth=70, weight_variance=weight, bias_variance=bias)
    q = weight * signal.second_moment + bias
    assert float(q[-1]) == pytest.approx(found.variance, rel=1e-9)
    loss = weight * signal.second_moment * signal.forward_loss / q  # of pre-activations
    assert found.correlation is not None
    assert float(loss[-1]) == pytest.approx(1 - found.correlation, abs=3e-4)
    distance = (loss - (1 - found.correlation))[25:40]
    assert float((distance[1:] / distance[:-1]).mean()) == pytest.approx(
        math.exp(-1 / found.correlation_depth), rel=0.02
    )
    early = (q - found.variance)[3:7]
    assert float((early[1:] / early[:-1]).abs().mean()) == pytest.approx(math.exp(-1 / found.variance_depth), rel=0.15)


def test_laws_of_piecewise_linear_activations() -> None:
    relu = equilibrium_law("relu", weight_variance=2)
    assert relu.exponent == 0.6
    assert relu.coefficient == pytest.approx((9 * math.pi**2 / 2) ** 0.2)
    assert round(relu.coefficient, 2) == 2.14
    slope = 0.01
    leaky = equilibrium_law("leaky_relu", weight_variance=2 / (1 + slope**2))
    assert leaky.coefficient == pytest.approx(relu.coefficient * ((1 + slope**2) / (1 - slope) ** 2) ** 0.4)
    half = equilibrium_law("relu", weight_variance=2, residual=True)
    assert half.coefficient == pytest.approx(relu.coefficient * 2**0.4)


@pytest.mark.parametrize(
    ("activation", "bias", "residual", "depths", "near"),
    [
        ("relu", 0.0, False, (1000, 20_000), 0.02),
        ("erf", 0.05, False, (1000, 30_000), 0.007),
        ("relu", 0.0, True, (300, 2000), 0.1),
    ],
)
def test_exact_crossings_approach_their_law(
    activation: str, bias: float, residual: bool, depths: tuple[int, int], near: float
) -> None:
    weight = 0.6 if residual else 2.0 if activation == "relu" else critical(activation, bias)
    settings: dict[str, float] = {"weight_variance": weight, "bias_variance": bias}
    law = equilibrium_law(activation, **settings, residual=residual)
    errors: list[float] = []
    for depth in depths:
        found = propagate_signal(activation, depth=depth, **settings, residual=residual).equilibrium
        assert found is not None
        errors.append(abs(found / (law.coefficient * depth**law.exponent) - 1))
    assert errors[1] < near
    assert errors[1] < 0.6 * errors[0]


@pytest.mark.parametrize(
    ("change", "needle"),
    [
        ({"weight_variance": 1.9}, "this one is ordered"),
        ({"bias_variance": 0.1}, "this one is unbounded"),
        ({"activation": "linear", "weight_variance": 1}, "not linear"),
        ({"activation": "tanh", "weight_variance": 1}, "a variance that lasts"),
        ({"activation": "tanh", "residual": True}, "law of a residual network"),
        ({"activation": "linear", "residual": True}, "law of a residual network"),
        ({"residual": True, "bias_variance": 0.1}, "law of a residual network"),
        ({"weight_variance": -2}, "weight_variance: got -2"),
        ({"variance": 0}, "variance: got 0"),
        ({"variance": True}, "variance: got True"),
        ({"bias_variance": True}, "bias_variance: got True"),
    ],
)
def test_no_law(change: dict[str, object], needle: str) -> None:
    settings: dict[str, object] = {"activation": "relu", "weight_variance": 2.0} | change
    with pytest.raises(InputError, match=needle):
        equilibrium_law(**settings)  # pyright: ignore[reportArgumentType]
