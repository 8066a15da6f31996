"""The network against an independent NumPy loop, its constraints, and bad input."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from isthmus._errors import InputError
from isthmus.models import Adaptive, Equidistant, Irregular, LeakyResNet, SmoothReLU


def small(**changes: Any) -> LeakyResNet:
    settings: dict[str, Any] = {"width": 6, "depth": 5, "effective_depth": 2.0, "steps": "irregular"} | changes
    net = LeakyResNet(4, 3, **settings)
    if net.bias is not None:
        with torch.no_grad():
            net.bias.copy_(torch.linspace(-1, 1, net.bias.numel()).view_as(net.bias))
    return net


PHI = {
    "relu": lambda z: np.maximum(z, 0),
    "identity": lambda z: z,
    "smooth_relu": lambda z: (z + np.sqrt(z**2 + 0.01)) / 2,
}


def reference(net: LeakyResNet, x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Path and outputs by the formula of docs/theory 1.1, one sample and one entry at a time, from the state dict."""
    state = {k: v.numpy() for k, v in net.state_dict().items()}
    depth, width = net.depth, net.width
    into, out = state["input_weight"], state["output_weight"]
    if net.input_map == "learned":
        into = into * np.sqrt(min(into.shape)) / np.sqrt((into**2).sum())
    if net.output_map == "learned":
        out = out * np.sqrt(min(out.shape)) / np.sqrt((out**2).sum())
    path = np.zeros((depth + 1, len(x), width))
    outputs = np.zeros((len(x), out.shape[0]))
    for n, sample in enumerate(x.numpy()):
        a = np.array([sum(into[i, j] * sample[j] for j in range(len(sample))) for i in range(width)])
        path[0, n] = a
        for layer in range(depth):
            rho, w = state["layer_steps"][layer], state["weight"][layer]
            phi = PHI[net.activation_name](a)
            b = state["bias"][layer] if net.bias is not None else np.zeros(width)
            drive = np.array([sum(w[i, j] * phi[j] for j in range(width)) + b[i] for i in range(width)])
            a = a - rho * net.effective_depth * a + rho * drive
            path[layer + 1, n] = a
        outputs[n] = [sum(out[i, j] * a[j] for j in range(width)) for i in range(out.shape[0])]
    return path, outputs


@pytest.mark.parametrize("activation", ["relu", "identity", "smooth_relu"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("width", "maps"), [(6, "fixed"), (6, "learned"), (2, "auto")])
@pytest.mark.parametrize("effective_depth", [0.0, 2.0])
def test_path_and_outputs_against_the_loop(
    activation: str, bias: bool, width: int, maps: str, effective_depth: float
) -> None:
    net = small(activation=activation, bias=bias, width=width, input_map=maps, output_map=maps,
                effective_depth=effective_depth)  # fmt: skip
    net.set_layer_steps(torch.tensor([0.1, 0.3, 0.2, 0.25, 0.15]))
    if maps != "fixed":  # away from the start, where the norm is already the constrained one
        with torch.no_grad():
            net.input_weight.mul_(3).add_(0.1)
            net.output_weight.mul_(0.2).add_(0.1)
    x = torch.randn(7, 4)
    path, outputs = reference(net, x)
    with torch.no_grad():
        got = net.path(x).numpy(), net(x).numpy()
    tolerance = {"rtol": 1e-12, "atol": 1e-13 * np.abs(path).max()}  # float64 sums of at most 6 terms over 5 layers
    np.testing.assert_allclose(got[0], path, **tolerance)
    np.testing.assert_allclose(got[1], outputs, **tolerance)


def test_embed_path_and_readout_compose_to_forward() -> None:
    net, x = small(), torch.randn(3, 4)
    path = net.path(x)
    assert torch.equal(path[0], net.embed(x))
    assert torch.equal(net.readout(path[-1]), net(x))


def test_features_and_augmented_weight_give_the_drive() -> None:
    for net in (small(), small(bias=False)):
        x = torch.randn(8, 4)
        path, rho = net.path(x), net.layer_steps[:, None, None]
        drive = torch.einsum("lij,lnj->lni", net.augmented_weight(), net.features(path[:-1]))
        step = (1 - rho * net.effective_depth) * path[:-1] + rho * drive
        torch.testing.assert_close(path[1:], step, rtol=1e-12, atol=1e-12)
        assert net.features(path).shape[-1] == net.width + (net.bias is not None)


@torch.no_grad()
def test_weight_cost_is_the_ridge_terms_sum() -> None:
    for effective_depth, mu in ((2.0, 2.0), (0.0, 1.0), (0.5, 0.5)):
        net = small(effective_depth=effective_depth)
        by_hand = sum(
            float(net.layer_steps[i] * (net.weight[i].square().sum() + net.bias[i].square().sum())) for i in range(5)
        )
        assert net.mu == mu
        assert float(net.weight_cost()) == pytest.approx(by_hand / (2 * mu), rel=1e-14)


def test_positions_are_cumulative_steps() -> None:
    net = small(depth=4, steps="equidistant", dtype=torch.float32)
    assert net.positions().dtype == torch.float64
    assert net.positions().tolist() == [0, 0.25, 0.5, 0.75, 1]


def test_fixed_maps_are_orthonormal_and_not_trained() -> None:
    net = small(width=9)
    assert (net.input_map, net.output_map) == ("fixed", "fixed")
    torch.testing.assert_close(net.input_matrix.T @ net.input_matrix, torch.eye(4), rtol=0, atol=1e-14)
    torch.testing.assert_close(net.output_matrix @ net.output_matrix.T, torch.eye(3), rtol=0, atol=1e-14)
    assert {name for name, _ in net.named_parameters()} == {"weight", "bias"}


@pytest.mark.parametrize(("width", "norms"), [(2, (2, 2)), (3, (3, 3)), (9, (4, 3))])
def test_learned_maps_keep_their_norm_whatever_training_does(width: int, norms: tuple[int, int]) -> None:
    net = small(width=width, input_map="learned", output_map="learned")
    start = small(width=width).input_matrix
    torch.testing.assert_close(net.input_matrix, start, rtol=1e-14, atol=1e-15)  # starts as the fixed one
    optimiser = torch.optim.SGD(net.parameters(), lr=0.05)
    x, y = torch.randn(10, 4), torch.randn(10, 3)
    for _ in range(5):
        optimiser.zero_grad()
        (net(x) - y).square().mean().backward()
        optimiser.step()
    assert not torch.equal(net.input_matrix, start)
    for matrix, norm in zip((net.input_matrix, net.output_matrix), norms, strict=True):
        assert float(matrix.detach().square().sum()) == pytest.approx(norm, rel=1e-14)


def test_learned_maps_have_no_gradient_along_themselves() -> None:
    net, x = small(input_map="learned", output_map="learned"), torch.randn(10, 4)
    net(x).square().mean().backward()
    for raw in (net.input_weight, net.output_weight):
        gradient = raw.grad
        assert gradient is not None
        assert float(gradient.norm()) > 1e-3
        assert abs(float((gradient * raw.detach()).sum())) < 1e-13 * float(gradient.norm() * raw.detach().norm())


def test_same_seed_same_weights_and_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    a, b, other = (LeakyResNet(4, 3, width=6, depth=5, effective_depth=2.0, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    for key, value in a.state_dict().items():
        assert torch.equal(value, b.state_dict()[key])
    assert not torch.equal(a.weight, other.weight)
    assert not torch.equal(a.input_weight, other.input_weight)
    low = LeakyResNet(4, 3, width=6, depth=5, effective_depth=2.0, seed=1, dtype=torch.float32)
    assert torch.equal(low.weight, a.weight.float())


@pytest.mark.parametrize("effective_depth", [0.0, 0.5, 3.0, 7.0])
def test_initial_weights_are_the_identitys_plus_a_little_noise(effective_depth: float) -> None:
    net = LeakyResNet(4, 3, width=64, depth=8, effective_depth=effective_depth)
    noise = net.weight.detach() - effective_depth * torch.eye(64)
    expected = 0.1 * max(effective_depth, 1.0) * (2 / 64) ** 0.5
    assert float(noise.std()) == pytest.approx(expected, rel=0.02)  # 5 standard errors of 32768 entries
    assert float(noise.mean()) == pytest.approx(0, abs=5 * expected / 32768**0.5)
    assert net.bias is not None
    assert not bool(net.bias.any())


def test_the_signal_reaches_the_end_at_the_start_of_training() -> None:
    """`L̃ I` carries the positive entries through the leak unchanged, at any effective depth."""
    for effective_depth in (0.0, 3.0, 12.0):
        net = LeakyResNet(30, 30, width=60, depth=20, effective_depth=effective_depth)
        with torch.no_grad():
            path = net.path(torch.randn(200, 30))
        kept = float(path[-1].norm() / path[0].clamp(min=0).norm())
        assert 0.7 < kept < 1.5, effective_depth


def test_smooth_relu_is_a_smooth_relu() -> None:
    z = torch.linspace(-5, 5, 101)
    assert float((SmoothReLU(0.1)(z) - z.clamp(min=0)).abs().max()) == pytest.approx(0.05, abs=1e-15)
    torch.testing.assert_close(SmoothReLU(1e-9)(z), z.clamp(min=0), rtol=0, atol=1e-9)
    torch.testing.assert_close(SmoothReLU(0.3)(z) - SmoothReLU(0.3)(-z), z, rtol=0, atol=1e-14)
    assert small(activation="smooth_relu").activation_name == "smooth_relu"


def test_activation_may_be_any_callable() -> None:
    x = torch.randn(3, 4)
    assert small(activation=torch.nn.functional.gelu).activation_name == "gelu"
    assert small(activation=torch.nn.Tanh()).activation_name == "Tanh()"
    assert torch.equal(small(activation=torch.relu)(x), small()(x))
    assert small(activation=torch.relu).activation_name == "relu"
    assert small(activation=SmoothReLU(0.2)).activation_name == "SmoothReLU(tau=0.2)"


def test_set_layer_steps_is_accurate_and_takes_what_update_gives() -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        net = small(dtype=dtype, steps=Adaptive())
        rho = net.steps.update(net.layer_steps, torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), 2.0)
        net.set_layer_steps(rho)
        assert torch.equal(net.layer_steps, rho.to(dtype))
        net.set_layer_steps(net.layer_steps)


BASE: dict[str, Any] = {"width": 6, "depth": 5, "effective_depth": 2.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 0}, "width: got 0, expected an integer of at least 1"),
        ({"width": True}, "width: got True"),
        ({"depth": -1}, "depth: got -1"),
        ({"effective_depth": -0.1}, "effective_depth: got -0.1, expected a finite number of at least 0"),
        ({"effective_depth": float("nan")}, "effective_depth: got nan"),
        ({"effective_depth": 5.0}, "depth: got 5, expected depth > effective_depth for effective_depth 5"),
        ({"steps": "equidistent"}, "did you mean 'equidistant'?"),
        ({"activation": "rellu"}, "activation: got rellu, expected 'relu', 'identity', 'smooth_relu' or a callable"),
        ({"input_map": "fix"}, "input_map: got fix, expected 'auto', 'fixed' or 'learned'; did you mean 'fixed'?"),
        ({"width": 3, "input_map": "fixed"}, "width: got 3, expected at least in_features = 4 for a fixed input_map"),
        ({"width": 2, "output_map": "fixed"}, "width: got 2, expected at least out_features = 3"),
        ({"width": 2, "output_map": "fixed"}, "or output_map='learned'"),
        ({"seed": -1}, "seed: got -1"),
        ({"dtype": torch.int64}, "dtype: got torch.int64, expected a floating-point dtype"),
    ],
)
def test_bad_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        LeakyResNet(4, 3, **(BASE | changes))


@pytest.mark.parametrize("features", [(0, 3), (4, 0)])
def test_bad_numbers_of_features(features: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=r"(in|out)_features: got 0"):
        LeakyResNet(*features, **BASE)


@pytest.mark.parametrize("shape", [(4,), (3, 5), (2, 3, 4)])
def test_inputs_of_a_wrong_shape_name_both(shape: tuple[int, ...]) -> None:
    for method in ("forward", "path", "embed"):
        with pytest.raises(
            InputError, match=re.escape(f"x: got shape {shape}, expected shape (samples, in_features) = (n, 4)")
        ):
            getattr(small(), method)(torch.randn(shape))


@pytest.mark.parametrize(
    "rho",
    [[0.5, 0.5], [0.2, 0.2, 0.2, 0.2, 0.3], [0.5, 0.5, 0.5, -0.5, 0.0], [float("nan")] * 5, [0.0, 0.4, 0.2, 0.2, 0.2]],
)
def test_bad_layer_steps(rho: list[float]) -> None:
    net = small()
    before = net.layer_steps.clone()
    with pytest.raises(InputError, match="expected 5 positive numbers of sum 1"):
        net.set_layer_steps(torch.tensor(rho))
    assert torch.equal(net.layer_steps, before)


def test_printing_names_every_setting() -> None:
    shown = repr(small(steps=Irregular(0.25)))
    for part in (
        "width=6",
        "depth=5",
        "effective_depth=2",
        "a=0.25",
        "activation=relu",
        "bias=True",
        "input_map=fixed",
    ):
        assert part in shown
    assert small(steps=Equidistant()).steps == Equidistant()
