from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from isthmus import InputError
from isthmus.theory import equilibrium_layer, propagate_signal
from isthmus.theory._activation_moments import ErrorFunction, Moments, PiecewiseLinear, Quadrature, moments_of

CROSSINGS = {10: 4.58, 20: 8.02, 30: 11.0, 50: 16.1, 100: 26.7, 1000: 124.0}  # docs/theory 4.4, to three digits


def relu_map(c: float) -> float:
    return (math.sqrt(1 - c * c) + c * (math.pi - math.acos(c))) / math.pi


def test_relu_on_the_edge_of_chaos_follows_the_maps_of_the_theory() -> None:
    signal = propagate_signal("relu", depth=12, weight_variance=2, correlation=-0.3)
    c = [-0.3]
    for _ in range(12):
        c.append(relu_map(c[-1]))
    assert signal.correlation.tolist() == pytest.approx(c, abs=1e-14)
    assert signal.second_moment.tolist() == pytest.approx([1.0] * 13, abs=1e-14)
    for ell in range(13):
        product = math.prod(1 - math.acos(c[k]) / math.pi for k in range(ell, 12))
        assert float(signal.backward_correlation[ell]) == pytest.approx(product, rel=1e-13)
    assert signal.error == 0


@pytest.mark.parametrize("depth", CROSSINGS)
def test_equilibrium_layers_of_the_relu(depth: int) -> None:
    found = propagate_signal("relu", depth=depth, weight_variance=2).equilibrium
    assert found is not None
    assert f"{found:.3g}" == f"{CROSSINGS[depth]:.3g}"


def test_local_exponents_of_the_equilibrium_layer() -> None:
    def crossing(depth: int) -> float:
        return propagate_signal("relu", depth=depth, weight_variance=2).equilibrium or math.nan

    slopes = [math.log(crossing(b) / crossing(a)) / math.log(b / a)
              for a, b in itertools.pairwise((10, 20, 30, 50, 100))]  # fmt: skip
    assert slopes == pytest.approx([0.80, 0.78, 0.75, 0.72], abs=0.01)
    assert math.log(crossing(1100) / crossing(900)) / math.log(11 / 9) == pytest.approx(0.64, abs=0.005)
    assert math.log(crossing(5000) / crossing(2000)) / math.log(2.5) == pytest.approx(0.62, abs=0.005)


def test_backward_correlation_at_thirty_layers() -> None:
    found = propagate_signal("relu", depth=30, weight_variance=2).backward_correlation
    assert float(found[1]) == pytest.approx(0.0065, abs=5e-5)
    assert float(found[10]) == pytest.approx(0.096, abs=5e-4)


def test_constants_of_the_relu_far_from_the_input() -> None:
    depth = 30_000
    signal = propagate_signal("relu", depth=depth, weight_variance=2)
    # 1 − c_ℓ ~ 9π²/2ℓ² with a relative correction log(ℓ)/ℓ; (ℓ/L)³ between layers far along
    assert float(signal.forward_loss[-1]) * depth**2 == pytest.approx(9 * math.pi**2 / 2, rel=2e-3)
    assert float(signal.backward_correlation[depth // 2]) == pytest.approx(1 / 8, rel=2e-3)


def test_the_forward_loss_keeps_its_digits_where_the_correlation_is_one() -> None:
    signal = propagate_signal("erf", depth=60, weight_variance=0.3, bias_variance=0.5)
    assert float(signal.correlation[-1]) == 1
    ratios = signal.forward_loss[50:] / signal.forward_loss[49:-1]
    assert 0 < float(signal.forward_loss[-1]) < 1e-40
    assert float(ratios.max() - ratios.min()) < 1e-12  # a geometric sequence


EXACT: list[tuple[Callable[[Tensor], Tensor], Moments]] = [
    (torch.relu, PiecewiseLinear(0.0, 1.0)),
    (nn.LeakyReLU(0.2), PiecewiseLinear(0.2, 1.0)),
    (torch.abs, PiecewiseLinear(-1.0, 1.0)),
    (torch.erf, ErrorFunction()),
]


@pytest.mark.parametrize(("function", "exact"), EXACT)
@pytest.mark.parametrize("q", [1e-3, 1.0, 300.0])
def test_quadrature_gives_the_closed_forms(function: Callable[[Tensor], Tensor], exact: Moments, q: float) -> None:
    numeric = Quadrature(function, "φ")
    assert numeric.single(q, 16) == pytest.approx(exact.single(q, 16), rel=1e-12)
    assert numeric.curvature(q, 16) == pytest.approx(exact.curvature(q, 16), rel=1e-12, abs=1e-15)
    for loss in (1.9, 1.0, 0.3, 1e-2, 1e-6, 1e-12, 1e-18):
        # Where inputs nearly agree, differences of φ lose half of their digits; a kink weighs √loss there, which a
        # rule that does not see it would miss.
        assert numeric.pair(q, loss, 16) == pytest.approx(exact.pair(q, loss, 16), rel=1e-12 + 1e-16 / math.sqrt(loss))


def test_a_rule_that_misses_the_kink_would_be_seen() -> None:
    exact = PiecewiseLinear(0.0, 1.0).pair(1.0, 1e-6, 16)[0]
    assert 2 * exact / 1e-6 < 1 - 2e-4  # a 3000th of the forward loss comes from inputs on both sides of the kink
    assert Quadrature(torch.relu, "φ").pair(1.0, 1e-6, 16)[0] == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("correlation", [-1.0, -0.4, 0.0, 0.9])
def test_quadrature_gives_moments_of_sine_and_cube(correlation: float) -> None:
    q, loss = 0.7, 1 - correlation
    k = q * correlation
    gap, slopes = Quadrature(torch.sin, "sin").pair(q, loss, 16)
    assert gap == pytest.approx(math.exp(-q) * (math.sinh(q) - math.sinh(k)), rel=1e-9)
    assert slopes == pytest.approx(math.exp(-q) * math.cosh(k), rel=1e-9)
    gap, slopes = Quadrature(lambda x: x**3, "cube").pair(q, loss, 16)
    assert gap == pytest.approx(15 * q**3 - (6 * k**3 + 9 * q * q * k), rel=1e-9)
    assert slopes == pytest.approx(9 * (q * q + 2 * k * k), rel=1e-9)


def test_kinks_are_found_and_integrated() -> None:
    hard = Quadrature(nn.functional.hardtanh, "hardtanh")
    assert [x for x, _ in hard.kinks] == pytest.approx([-1, 1], abs=1e-12)
    assert [jump for _, jump in hard.kinks] == pytest.approx([1, 1])
    # E φ'φ' = P(both inside), and its slope in √loss is the law of equilibrium_law
    inside = math.erf(1 / math.sqrt(2 * 0.8))
    slopes = [hard.pair(0.8, loss, 16)[1] for loss in (1e-8, 1e-10)]
    kink = 2 * math.exp(-1 / 1.6) / (math.sqrt(2) * math.pi * inside)
    assert [(1 - s / inside) / math.sqrt(x) for s, x in zip(slopes, (1e-8, 1e-10), strict=True)] == pytest.approx(
        [kink, kink], rel=1e-3
    )


def test_a_callable_is_recognised_by_what_it_does() -> None:
    assert moments_of(nn.ReLU())[1] == PiecewiseLinear(0.0, 1.0)
    assert moments_of(nn.Identity())[1] == PiecewiseLinear(1.0, 1.0)
    assert moments_of(lambda x: torch.where(x > 0, 3 * x, 0.5 * x))[1] == PiecewiseLinear(0.5, 3.0)
    assert isinstance(moments_of(lambda x: x + 1)[1], Quadrature)


def test_a_module_comes_back_as_it_was_and_modes_of_autograd_do_not_matter() -> None:
    module = nn.PReLU()
    module.weight.grad = torch.ones(1)
    expected = propagate_signal(nn.functional.silu, depth=3, weight_variance=1.5).forward_loss
    with torch.inference_mode():
        assert torch.equal(propagate_signal("silu", depth=3, weight_variance=1.5).forward_loss, expected)
        found = propagate_signal(module, depth=3, weight_variance=1.5)
    slope = propagate_signal(nn.LeakyReLU(0.25), depth=3, weight_variance=1.5)
    assert torch.equal(found.forward_loss, slope.forward_loss)
    assert torch.equal(module.weight.grad, torch.ones(1))


def test_the_error_is_stated_and_holds() -> None:
    def wave(x: Tensor) -> Tensor:  # E sin(ax) sin(ay) = e^{−a²q} sinh(a²k)
        return torch.sin(8 * x)

    signal = propagate_signal(wave, depth=1, weight_variance=1, correlation=0.9)
    exact = 1 - math.exp(-64) * math.sinh(64 * 0.9) / (math.exp(-64) * math.sinh(64))
    assert abs(float(signal.forward_loss[1]) / exact - 1) <= signal.error + 1e-12
    assert 0 < signal.error < 1e-2
    with pytest.raises(InputError, match="relative error"):
        propagate_signal(lambda x: torch.sin(400 * x), depth=1, weight_variance=1, correlation=0.9)


def network_cosines(
    activation: Callable[[Tensor], Tensor], widths: list[int], weight: float, bias: float, *, residual: bool
) -> tuple[Tensor, Tensor]:
    """Cosines of activations and of output derivatives, layer by layer, of one random network and two inputs."""
    x = torch.randn(2, widths[0])
    x[1] -= x[0] * (x[0] @ x[1]) / (x[0] @ x[0])
    x = nn.functional.normalize(x) * math.sqrt(widths[0])
    x[1] = 0.4 * x[0] + math.sqrt(1 - 0.4**2) * x[1]
    hidden = [x.requires_grad_()]
    for before, after in itertools.pairwise(widths):
        w, b = torch.randn(after, before) * math.sqrt(weight / before), torch.randn(after) * math.sqrt(bias)
        last = hidden[-1]
        hidden.append(last + activation(last) @ w.T + b if residual else activation(last @ w.T + b))
    output = (hidden[-1] @ torch.randn(widths[-1])).sum()
    derivatives = torch.autograd.grad(output, hidden)
    cosines = [torch.stack([nn.functional.cosine_similarity(t[0], t[1], 0) for t in f]) for f in (hidden, derivatives)]
    return cosines[0].detach(), cosines[1]


@pytest.mark.parametrize(
    ("name", "weight", "bias", "residual"),
    [
        ("relu", 2.0, 0.0, False),
        pytest.param("tanh", 1.8, 0.1, False, marks=pytest.mark.slow),
        pytest.param("gelu", 1.6, 0.3, False, marks=pytest.mark.slow),
        pytest.param("relu", 0.7, 0.0, True, marks=pytest.mark.slow),
        ("tanh", 0.9, 0.1, True),
    ],
)  # fmt: skip
def test_wide_networks_approach_the_recursion_as_one_over_the_root_of_their_width(
    name: str, weight: float, bias: float, residual: bool
) -> None:
    functions = {"relu": torch.relu, "tanh": torch.tanh, "gelu": nn.functional.gelu}
    signal = propagate_signal(name, depth=4, weight_variance=weight, bias_variance=bias, correlation=0.4,
                              residual=residual)  # fmt: skip
    exact = torch.stack([signal.correlation, signal.backward_correlation])
    spreads: list[float] = []
    for width, networks in ((40, 100), (640, 30)):
        drawn = torch.stack([
            torch.stack(network_cosines(functions[name], [width] * 5, weight, bias, residual=residual))
            for _ in range(networks)
        ]) - exact  # fmt: skip
        spreads.append(float(drawn.square().mean().sqrt()))
        if width == 640:  # their mean: five standard errors, and a bias of order 1/width
            allowed = 5 * drawn.std(0) / math.sqrt(networks) + 2 / width
            assert bool((drawn.mean(0).abs() <= allowed).all())
    assert spreads[0] / spreads[1] == pytest.approx(4, rel=0.25)  # √(640/40)


def test_a_residual_relu_network_follows_its_closed_form() -> None:
    signal = propagate_signal("relu", depth=8, weight_variance=1.2, correlation=0.1, residual=True)
    c, kappa, g = [0.1], 0.6, 1.0
    for _ in range(8):
        c.append((c[-1] + kappa * relu_map(c[-1])) / (1 + kappa))
    for k in range(8):
        g *= (1 + kappa * (1 - math.acos(c[k]) / math.pi)) / (1 + kappa)
    assert signal.correlation.tolist() == pytest.approx(c, abs=1e-13)
    assert float(signal.backward_correlation[0]) == pytest.approx(g, rel=1e-13)
    assert float(signal.second_moment[-1]) == pytest.approx(1.6**8)


def test_variances_of_each_layer() -> None:
    one = propagate_signal("tanh", depth=3, weight_variance=1.5, bias_variance=0.1)
    same = propagate_signal("tanh", depth=3, weight_variance=[1.5] * 3, bias_variance=[0.1] * 3)
    assert torch.equal(one.forward_loss, same.forward_loss)
    # the second layer starts from where the first one ends
    both = propagate_signal("tanh", depth=2, weight_variance=[1.5, 0.8], bias_variance=[0.0, 0.2])
    first = propagate_signal("tanh", depth=1, weight_variance=1.5)
    second = propagate_signal("tanh", depth=1, weight_variance=0.8, bias_variance=0.2,
                              correlation=float(first.correlation[1]),
                              second_moment=float(first.second_moment[1]))  # fmt: skip
    assert float(both.forward_loss[2]) == pytest.approx(float(second.forward_loss[1]), rel=1e-12)
    found = float(first.backward_correlation[0] * second.backward_correlation[0])
    assert float(both.backward_correlation[0]) == pytest.approx(found, rel=1e-12)


def test_equilibrium_layer_of_curves() -> None:
    falling, rising = torch.tensor([1.0, 0.8, 0.2, 0.1]), torch.tensor([0.1, 0.2, 0.5, 1.0])
    assert equilibrium_layer(falling, rising) == pytest.approx(1 + 0.6 / 0.9)
    assert equilibrium_layer(rising, falling) is None  # below from the start, then above for good
    assert equilibrium_layer(torch.ones(3), torch.zeros(3)) is None
    with pytest.raises(InputError, match="as many of one"):
        equilibrium_layer(torch.ones(3), torch.ones(2))
    with pytest.raises(InputError, match="forward_loss: got nan, expected finite"):
        equilibrium_layer(torch.tensor([math.nan, 1.0]), torch.ones(2))
    with pytest.raises(InputError, match=r"backward_correlation: .* at least one"):
        equilibrium_layer(torch.ones(2), torch.ones(0))


def test_rounding_does_not_decide_whether_curves_meet() -> None:
    ones, rising = torch.ones(3), torch.tensor([0.2, 0.6, 1.0])
    for noise in (-1e-15, 0.0, 1e-15):
        assert equilibrium_layer(ones + noise, rising) == 2
        assert equilibrium_layer(ones + noise, ones) is None
    # what is small is compared with what is small
    assert equilibrium_layer(torch.tensor([1.0, 1e-12]), torch.tensor([1e-15, 1e-15])) is None


@pytest.mark.parametrize("activation", ["linear", "erf", "tanh"])
@pytest.mark.parametrize(("weight", "depth"), [(3.0, 6), (3.0, 7), (2.0, 11)])
def test_odd_activations_lose_nothing_of_orthogonal_inputs(activation: str, weight: float, depth: int) -> None:
    signal = propagate_signal(activation, depth=depth, weight_variance=weight)
    assert signal.forward_loss.tolist() == pytest.approx([1] * (depth + 1), abs=1e-12)
    assert signal.equilibrium == (None if activation == "linear" else depth)  # linear: both are 1 from the start


def test_opposite_inputs_stay_opposite_where_that_is_unstable() -> None:
    for activation, depth in (("erf", 200), ("tanh", 60)):
        signal = propagate_signal(activation, depth=depth, weight_variance=3, correlation=-1)
        assert signal.forward_loss.tolist() == pytest.approx([2] * (depth + 1), abs=1e-12)


def test_even_activations_have_no_backward_correlation_at_orthogonal_inputs() -> None:
    signal = propagate_signal(lambda x: x**2, depth=3, weight_variance=0.4)  # E φ'φ' = 4qρ, and ρ = 0
    assert float(signal.backward_correlation[0]) == 0
    c = [0.0]
    for _ in range(3):
        c.append((1 + 2 * c[-1] ** 2) / 3)
    assert signal.correlation.tolist() == pytest.approx(c, abs=1e-12)
    assert signal.backward_correlation.tolist() == pytest.approx([0, c[1] * c[2], c[2], 1], rel=1e-9)
    assert signal.error < 1e-6


def test_variances_that_grow_without_bound_are_refused_early() -> None:
    calls: list[int] = []

    def square(x: Tensor) -> Tensor:
        calls.append(x.numel())
        return x**2

    with pytest.raises(
        InputError, match=r"weight_variance: got 2.0, .*they grow past that at layer 5\); try a smaller"
    ):
        propagate_signal(square, depth=20, weight_variance=2.0)
    assert sum(calls) < 1e7  # points at which it was evaluated; it used to be billions
    with pytest.raises(InputError, match="at layer 1"):
        propagate_signal("tanh", depth=2, weight_variance=2.0, second_moment=1e40)


def test_numbers_of_other_kinds_are_taken_or_named() -> None:
    """As a user calls it: annotations are not checked there, as they are in this process."""
    code = """
import numpy as np, torch
from isthmus import InputError
from isthmus.theory import equilibrium_law, equilibrium_layer, propagate_signal, signal_phase
usual = {"activation": "relu", "depth": 2, "weight_variance": 2.0}
same = propagate_signal(**usual)
for name, taken in (
    ("weight_variance", (torch.tensor(2.0), np.float32(2), np.int64(2), np.full(2, 2.0), torch.ones(2) * 2, (2, 2))),
    ("depth", (np.int64(2), torch.tensor(2))),
    ("correlation", (np.float32(0), torch.tensor(0))),
):
    for value in taken:
        assert torch.equal(propagate_signal(**usual | {name: value}).forward_loss, same.forward_loss), (name, value)
assert signal_phase("relu", weight_variance=torch.tensor(2.0), variance=np.float32(1)).phase == "critical"
assert equilibrium_law("relu", weight_variance=np.float32(2)).exponent == 0.6
assert equilibrium_layer([1.0, 0.5], np.array([0.0, 0.5])) == 1.0
law = {"activation": "relu", "weight_variance": 2.0}
curves = {"forward_loss": [1.0, 0.5], "backward_correlation": [0.0, 0.5]}
bad = ["2", None, True, [[2.0]], torch.eye(2), 2j, np.nan]
for function, settings, names in (
    (propagate_signal, usual, ["depth", "weight_variance", "bias_variance", "correlation", "second_moment"]),
    (signal_phase, law, ["weight_variance", "bias_variance", "variance"]),
    (equilibrium_law, law, ["weight_variance", "bias_variance", "variance"]),
    (equilibrium_layer, curves, [*curves]),
):
    for name in names:
        for value in [*bad, *([2.5, -1] if name == "depth" else [10**400])]:
            try:
                function(**settings | {name: value})
            except InputError as error:
                assert str(error).startswith(name + ": "), error
            else:
                raise AssertionError((function, name, value))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_equal_inputs_stay_equal() -> None:
    signal = propagate_signal("gelu", depth=5, weight_variance=2, correlation=1)
    assert signal.forward_loss.tolist() == [0] * 6
    assert signal.backward_correlation.tolist() == pytest.approx([1] * 6)
    assert signal.equilibrium is None


@pytest.mark.parametrize(
    ("change", "needle"),
    [
        ({"depth": 0}, "at least 1"),
        ({"weight_variance": 0.0}, "weight_variance: got 0"),
        ({"weight_variance": math.inf}, "weight_variance: got inf"),
        ({"bias_variance": -0.1}, "bias_variance: got -0.1"),
        ({"bias_variance": [0.1, 0.1, 0.1, -0.1]}, "bias_variance: got -0.1"),
        ({"weight_variance": [2.0, 2.0]}, "weight_variance: got 2 numbers"),
        ({"correlation": 1.5}, "correlation: got 1.5"),
        ({"depth": True}, "depth: got True"),
        ({"correlation": True}, "correlation: got True"),
        ({"weight_variance": [2.0, 2.0, True, 2.0]}, "weight_variance: got True"),
        ({"correlation": math.nan}, "correlation: got nan"),
        ({"second_moment": 0.0}, "second_moment: got 0"),
        ({"weight_variance": 30.0, "depth": 2000}, "they grow past that at layer 2"),
        ({"weight_variance": 0.01, "depth": 2000}, "they shrink past that at layer 1"),
        ({"residual": True, "depth": 2000}, "divide it by the depth"),
        ({"activation": "rule"}, "did you mean 'relu'"),
        ({"activation": torch.sign}, "without jumps"),
        ({"activation": lambda x: torch.tanh(x.detach())}, "autograd can follow"),
        ({"activation": torch.log}, "a finite number for every entry"),
        ({"activation": lambda x: torch.exp(x**2)}, "finite numbers at inputs of size|grows less"),
        ({"activation": lambda x: torch.exp(2 * x)}, "grows less"),
        ({"activation": lambda x: x.softmax(0)}, "each entry alone"),
        ({"activation": lambda x: x.sum()}, "for every entry"),
        ({"activation": torch.rand_like}, "without randomness"),
        ({"activation": lambda x: x @ x.T.T[:, None]}, "it raised|every entry"),
        ({"activation": lambda x: 0 * x + 1}, "a function with a slope"),
    ],
)
def test_bad_input(change: dict[str, object], needle: str) -> None:
    settings: dict[str, object] = {"activation": "relu", "depth": 4, "weight_variance": 2.0} | change
    with pytest.raises(InputError, match=needle):
        propagate_signal(**settings)  # pyright: ignore[reportArgumentType]
