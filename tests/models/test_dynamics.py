"""The network against the differential equation it discretises and its symmetries (docs/theory 1.1, 1.7, 1.10)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from isthmus.models import Adaptive, Irregular, LayerSteps, LeakyResNet

WIDTH = 5


def leaky(depth: int, effective_depth: float, **settings: Any) -> LeakyResNet:
    return LeakyResNet(WIDTH, WIDTH, width=WIDTH, depth=depth, effective_depth=effective_depth, **settings)


def set_weights(net: LeakyResNet, weight: Callable[[float], Tensor]) -> None:
    """`W_ℓ = W(p_{ℓ−1})` of a smooth `W(p)`."""
    with torch.no_grad():
        net.weight.copy_(torch.stack([weight(float(p)) for p in net.positions()[:-1]]))


def order_of(depths: list[int], errors: list[float]) -> float:
    """Slope of log error against log(1/L)."""
    return float(np.polyfit(-np.log(depths), np.log(errors), 1)[0])


def adapted(depth: int) -> Tensor:
    """Steps such as `Adaptive` ends with for a path that is fast at both ends: smooth in p, ratio 4."""
    t = (torch.arange(depth) + 0.5) / depth
    return Adaptive(damping=1.0).update(torch.full((depth,), 1 / depth), 1 + 3 * (2 * t - 1) ** 2, 2.0)


@pytest.mark.parametrize("steps", ["equidistant", Irregular(0.9), Irregular(0.9, symmetric=False), Adaptive()], ids=str)
@torch.no_grad()
def test_first_order_convergence_to_the_matrix_exponential(steps: str | LayerSteps) -> None:
    effective_depth = 2.0
    w = torch.randn(WIDTH, WIDTH)
    x = torch.randn(7, WIDTH)
    depths, errors = [40, 80, 160, 320], []
    for depth in depths:
        net = leaky(depth, effective_depth, steps=steps, activation="identity", bias=False)
        if net.steps.adaptive:
            net.set_layer_steps(adapted(depth))
        set_weights(net, lambda _: w)
        exact = net.embed(x) @ torch.linalg.matrix_exp(w - effective_depth * torch.eye(WIDTH)).T
        errors.append(float((net.path(x)[-1] - exact).norm() / exact.norm()))
    assert order_of(depths, errors) == pytest.approx(1.0, abs=0.05)  # next order is 1/L: ~ 1/40 in the slope
    assert errors[-1] < 0.02


@torch.no_grad()
def test_raising_the_effective_depth_scales_outputs() -> None:
    """Docs/theory 1.7: without biases, `L̃ + c` with the same weights gives `e^{−cp} α_p`, discretely to O(1/L)."""
    effective_depth, c = 1.0, 1.5
    w0, w1 = torch.randn(WIDTH, WIDTH), torch.randn(WIDTH, WIDTH)
    x = torch.randn(9, WIDTH)
    depths, errors = [40, 80, 160, 320], []
    for depth in depths:
        nets = [leaky(depth, extra + effective_depth, bias=False) for extra in (0.0, c)]
        for net in nets:
            set_weights(net, lambda p: w0 + p * w1)
        plain, raised = (net.path(x) for net in nets)
        scaled = torch.exp(-c * nets[0].positions())[:, None, None] * plain
        errors.append(float((raised - scaled).norm() / scaled.norm()))
    assert order_of(depths, errors) == pytest.approx(1.0, abs=0.05)
    assert errors[-1] < 0.02


@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_range_symmetry_is_exact_when_the_steps_scale(bias: bool) -> None:
    """Docs/theory 1.7: weights `W'` on [0, c] with leakage 1 are `c W'` on [0, 1] with leakage `c`."""
    c, depth = 3.5, 12
    net = leaky(depth, c, steps="irregular", bias=bias)
    x = torch.randn(4, WIDTH)
    inner = torch.randn(depth, WIDTH, WIDTH)
    net.weight.copy_(c * inner)
    inner_bias = torch.zeros(depth, WIDTH)
    if net.bias is not None:
        inner_bias = torch.randn(depth, WIDTH)
        net.bias.copy_(c * inner_bias)
    a = net.embed(x)
    expected = [a]
    for step, w, b in zip(c * net.layer_steps, inner, inner_bias, strict=True):
        a = a + step * (-a + a.clamp(min=0) @ w.T + b)
        expected.append(a)
    torch.testing.assert_close(net.path(x), torch.stack(expected), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_closed_form_of_the_discrete_linear_network() -> None:
    """Docs/theory 1.10: equal steps, `W = L̃ I + Λ` give `A_ℓ = (I + Λ/L)^ℓ X` and the parameter cost below."""
    effective_depth, depth = 4.0, 16
    q = torch.linalg.qr(torch.randn(WIDTH, WIDTH)).Q
    m = torch.linspace(-1, 1.5, WIDTH)
    growth = q @ torch.diag(m) @ q.T
    net = leaky(depth, effective_depth, activation="identity", bias=False)
    set_weights(net, lambda _: effective_depth * torch.eye(WIDTH) + growth)
    x = torch.randn(6, WIDTH)
    path, start = net.path(x), net.embed(x)
    for layer in range(depth + 1):
        power = q @ torch.diag((1 + m / depth) ** layer) @ q.T
        torch.testing.assert_close(path[layer], start @ power.T, rtol=1e-12, atol=1e-12)
    cost = effective_depth * WIDTH + 2 * m.sum() + m.square().sum() / effective_depth
    assert float(net.weight_cost()) == pytest.approx(float(cost) / 2, rel=1e-13)


@torch.no_grad()
def test_zero_weights_decay_at_the_leak() -> None:
    net = leaky(10, 3.0, bias=False)
    net.weight.zero_()
    x = torch.randn(3, WIDTH)
    torch.testing.assert_close(net.path(x)[-1], 0.7**10 * net.embed(x), rtol=1e-13, atol=0)
    assert math.isclose(float(net.weight_cost()), 0.0)


@torch.no_grad()
def test_effective_depth_zero_is_a_residual_network() -> None:
    net = leaky(4, 0.0)
    x = torch.randn(3, WIDTH)
    a = net.embed(x)
    for w in net.weight:
        a = a + 0.25 * a.clamp(min=0) @ w.T
    torch.testing.assert_close(net.path(x)[-1], a, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("activation", ["identity", "smooth_relu", "relu"])
def test_gradients_of_inputs_and_all_parameters(activation: str) -> None:
    net = LeakyResNet(3, 2, width=4, depth=3, effective_depth=1.5, activation=activation,
                      input_map="learned", output_map="learned")  # fmt: skip
    names = list(dict(net.named_parameters()))
    assert names == ["input_weight", "output_weight", "weight", "bias"]

    def outputs_and_cost(x: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
        parameters = dict(zip(names, values, strict=True))
        cost = values[2].square().sum((1, 2)) + values[3].square().sum(1)
        return torch.func.functional_call(net, parameters, (x,)), (net.layer_steps * cost).sum()

    x = torch.randn(3, 3, requires_grad=True)  # a sample within 1e-6 of a kink of the ReLU would fail: none is
    assert torch.autograd.gradcheck(outputs_and_cost, (x, *(p for p in net.parameters())), fast_mode=False)


def test_gradient_of_the_weight_cost_is_the_decay_of_the_ridge() -> None:
    net = leaky(6, 2.5, steps="irregular")
    net.weight_cost().backward()
    gradient = net.weight.grad
    assert gradient is not None
    expected = net.layer_steps[:, None, None] * net.weight.detach() / 2.5
    torch.testing.assert_close(gradient, expected, rtol=1e-14, atol=1e-15)
