from __future__ import annotations

import pytest
import torch
from torch import Tensor

from isthmus import InputError, LeakyResNet
from isthmus.geometry import PathAccumulator
from isthmus.probe import path_momenta, probe_path
from isthmus.train import data_term

RIDGE = 0.02


def random_net(activation: str = "relu", **changes: object) -> LeakyResNet:
    settings = {"width": 7, "depth": 5, "effective_depth": 2.5, "steps": "irregular", "seed": 8} | changes
    net = LeakyResNet(4, 3, activation=activation, **settings)  # pyright: ignore[reportArgumentType]
    if net.bias is not None:
        with torch.no_grad():
            net.bias.normal_(generator=torch.Generator().manual_seed(1))
    return net


def autograd_momenta(net: LeakyResNet, x: Tensor, y: Tensor, loss: str) -> Tensor:
    """Oracle: every node kept in one autograd graph, written out from the recursion of docs/theory 1.1."""
    nodes = [x @ net.input_matrix.T]
    nodes[0].requires_grad_() if not nodes[0].requires_grad else nodes[0].retain_grad()
    for ell in range(net.depth):
        rho = net.layer_steps[ell]
        drive = net.activation(nodes[-1]) @ net.weight[ell].T + (0 if net.bias is None else net.bias[ell])
        nodes.append((1 - rho * net.effective_depth) * nodes[-1] + rho * drive)
    cost = data_term(loss, nodes[-1] @ net.output_matrix.T, y)
    return torch.stack(torch.autograd.grad(cost, nodes)) / -RIDGE


@pytest.mark.parametrize("activation", ["relu", "identity", "smooth_relu"])
@pytest.mark.parametrize("loss", ["square", "cross_entropy"])
@pytest.mark.parametrize("bias", [True, False])
def test_momenta_equal_autograd(activation: str, loss: str, bias: bool) -> None:
    net = random_net(activation, bias=bias)
    x = torch.randn(9, 4)
    y = torch.randn(9, 3) if loss == "square" else torch.randint(0, 3, (9,))
    ours = path_momenta(net, net.path(x).detach(), y, loss=lambda o, t: data_term(loss, o, t), ridge=RIDGE, total=9)
    assert torch.allclose(ours, autograd_momenta(net, x, y, loss), rtol=1e-12, atol=1e-12)


def test_last_momentum_has_its_closed_form() -> None:
    net = random_net()
    x, y = torch.randn(9, 4), torch.randn(9, 3)
    path = net.path(x).detach()
    ours = path_momenta(net, path, y, loss=lambda o, t: data_term("square", o, t), ridge=RIDGE, total=9)
    q = net.output_matrix
    expected = 2 / (RIDGE * 9) * (y - path[-1] @ q.T) @ q  # docs/theory 1.5, rows are samples
    assert torch.allclose(ours[-1], expected, rtol=1e-12, atol=1e-12)
    labels = torch.randint(0, 3, (9,))
    ours = path_momenta(net, path, labels, loss=lambda o, t: data_term("cross_entropy", o, t), ridge=RIDGE, total=9)
    onehot = torch.nn.functional.one_hot(labels, 3)
    expected = 1 / (RIDGE * 9) * (onehot - torch.softmax(path[-1] @ q.T, -1)) @ q
    assert torch.allclose(ours[-1], expected, rtol=1e-12, atol=1e-12)


def test_streaming_in_batches_changes_nothing() -> None:
    net = random_net()
    x, y = torch.randn(23, 4), torch.randn(23, 3)
    args = {"loss": lambda o, t: data_term("square", o, t), "ridge": RIDGE}
    whole = probe_path(net, x, y, **args)
    parts = probe_path(net, x, y, batch_size=5, **args)
    assert whole.momentum is not None
    assert parts.momentum is not None
    for name in ("before", "same", "inner_before", "norm_sq"):
        a, b = getattr(whole.momentum, name), getattr(parts.momentum, name)
        assert torch.allclose(a, b, rtol=1e-11, atol=1e-11)
    assert torch.allclose(whole.cross, parts.cross, rtol=1e-12, atol=1e-12)
    direct = PathAccumulator()
    path = net.path(x).detach()
    direct.update(path, net.features(path))
    assert torch.allclose(direct.result().gram, whole.gram, rtol=1e-12, atol=1e-12)


def test_the_model_comes_back_as_it_was() -> None:
    net = random_net().float().train()
    net.weight.grad = torch.ones_like(net.weight)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    rng = torch.random.get_rng_state()
    probe_path(net, torch.randn(5, 4), torch.randn(5, 3), loss=lambda o, t: data_term("square", o, t), ridge=RIDGE)
    assert net.training
    assert net.weight.requires_grad
    assert torch.equal(net.weight.grad, torch.ones_like(net.weight))
    after = net.state_dict()
    assert all(torch.equal(before[k], after[k]) and before[k].dtype == after[k].dtype for k in before)
    torch.random.set_rng_state(rng)


def test_bad_input() -> None:
    net = random_net()
    with pytest.raises(InputError, match="at least one sample"):
        probe_path(net, torch.zeros(0, 4))
    with pytest.raises(InputError, match="as many rows as x"):
        probe_path(net, torch.zeros(3, 4), torch.zeros(2, 3))
    with pytest.raises(InputError, match="not finite"):
        probe_path(net, torch.full((3, 4), torch.nan))
    with pytest.raises(InputError, match="ridge: got 0"):
        path_momenta(net, net.path(torch.randn(3, 4)), torch.zeros(3, 3),
                     loss=lambda o, t: data_term("square", o, t), ridge=0.0, total=3)  # fmt: skip
