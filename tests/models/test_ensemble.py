"""Networks trained together against the same networks alone."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from isthmus._errors import InputError
from isthmus.models import Adaptive, LeakyEnsemble, LeakyResNet

ROUNDING = {"rtol": 1e-12, "atol": 1e-13}  # the same sums in another order


def network(seed: int = 0, **changes: Any) -> LeakyResNet:
    settings: dict[str, Any] = {"width": 8, "depth": 6, "effective_depth": 2.0, "steps": "irregular"} | changes
    net = LeakyResNet(5, 3, seed=seed, **settings)
    if net.bias is not None:
        with torch.no_grad():
            net.bias.copy_(torch.randn(net.bias.shape))
    return net


def networks(**changes: Any) -> list[LeakyResNet]:
    """Three that differ in seed, effective depth, steps and values of the layer steps."""
    nets = [network(0, effective_depth=0.0, **changes), network(1, effective_depth=3.5, steps=Adaptive(), **changes),
            network(2, steps="equidistant", **changes)]  # fmt: skip
    nets[1].set_layer_steps(torch.tensor([0.1, 0.2, 0.2, 0.1, 0.1, 0.3]))
    return nets


def train(module: nn.Module, cost: Any, steps: int = 10) -> None:
    adam = torch.optim.Adam(module.parameters(), lr=1e-2)
    for _ in range(steps):
        adam.zero_grad()
        cost().backward()
        adam.step()


def assert_members(ensemble: LeakyEnsemble, nets: Iterable[LeakyResNet], **tolerance: float) -> None:
    for member, net in zip(ensemble.split(), nets, strict=True):
        for (name, ours), expected in zip(member.state_dict().items(), net.state_dict().values(), strict=True):
            torch.testing.assert_close(ours, expected, **tolerance, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("own_samples", [False, True])
@pytest.mark.parametrize(
    "changes",
    [{}, {"bias": False}, {"input_map": "learned", "output_map": "learned"}, {"activation": "smooth_relu"},
     {"activation": "identity"}, {"activation": torch.tanh}],
    ids=["defaults", "no bias", "learned maps", "smooth_relu", "identity", "callable"],
)  # fmt: skip
def test_each_member_is_its_own_network(changes: dict[str, Any], own_samples: bool) -> None:
    nets = networks(**changes)
    ensemble = LeakyEnsemble.of(nets)
    assert_members(ensemble, nets, rtol=0, atol=0)
    x = torch.randn(3, 9, 5) if own_samples else torch.randn(9, 5)
    y = torch.randn(9, 3)
    each = list(x) if own_samples else [x] * 3
    torch.testing.assert_close(ensemble(x), torch.stack([n(xi) for n, xi in zip(nets, each, strict=True)]), **ROUNDING)
    torch.testing.assert_close(ensemble.weight_cost(), torch.stack([n.weight_cost() for n in nets]), **ROUNDING)

    def together() -> Tensor:
        return (ensemble(x) - y).square().sum() / 9 + 1e-2 * ensemble.weight_cost().sum()

    def alone(i: int) -> Tensor:
        return (nets[i](each[i]) - y).square().sum() / 9 + 1e-2 * nets[i].weight_cost()

    together().backward()
    for i, net in enumerate(nets):
        alone(i).backward()
        for name, parameter in net.named_parameters():
            gradient = ensemble.get_parameter(name).grad
            assert gradient is not None
            torch.testing.assert_close(gradient[i], parameter.grad, **ROUNDING)
    train(ensemble, together)
    for i, net in enumerate(nets):
        train(net, lambda i=i: alone(i))
    # Adam divides by √v: a gradient entry ten thousand times below the largest turns its rounding into 1e-12 of a step.
    assert_members(ensemble, nets, rtol=1e-12, atol=1e-12)


def test_members_keep_their_settings_and_share_nothing() -> None:
    nets = networks()
    nets[0](torch.randn(2, 5)).sum().backward()
    nets[0].weight.requires_grad_(False)
    nets[1].weight.requires_grad_(False)
    nets[2].weight.requires_grad_(False)
    ensemble = LeakyEnsemble.of(nets)
    assert not ensemble.weight.requires_grad
    before = [copy.deepcopy(n.state_dict()) for n in nets]
    with torch.no_grad():
        ensemble.weight.zero_()
    for net, values in zip(nets, before, strict=True):
        torch.testing.assert_close(net.state_dict(), values, rtol=0, atol=0)
    members = ensemble.split()
    for member, net in zip(members, nets, strict=True):
        assert member.extra_repr() == net.extra_repr()
        assert member.steps == net.steps
        assert member.mu == net.mu
        assert member.weight.grad is None
        assert [p.requires_grad for p in member.parameters()] == [p.requires_grad for p in net.parameters()]
        assert not member.weight.any()
    with torch.no_grad():
        members[0].weight.fill_(1)
    assert not ensemble.weight.any()


def test_copies_state_dicts_dtypes_and_autocast() -> None:
    ensemble, other = LeakyEnsemble.of(networks()), LeakyEnsemble.of([network(i) for i in range(3, 6)])
    x = torch.randn(4, 5)
    other.load_state_dict(ensemble.state_dict())
    assert torch.equal(other(x), ensemble(x))
    assert torch.equal(copy.deepcopy(ensemble)(x), ensemble(x))
    single = copy.deepcopy(ensemble).float()
    assert {m.weight.dtype for m in single.split()} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        out = single(x.float())
        out.float().sum().backward()
    assert single.weight.grad is not None
    assert single.weight.grad.dtype == torch.float32
    error = float((out.double() - ensemble(x)).norm().detach() / ensemble(x).norm().detach())
    assert 1e-5 < error < 8 * 2**-8  # rounding to bfloat16 (2⁻⁸) took place, at most once per layer and map


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"width": 9}, "width"),
        ({"depth": 7}, "depth"),
        ({"bias": False}, "has_bias"),
        ({"activation": "identity"}, "activation"),
        ({"input_map": "learned"}, "input_map"),
        ({"dtype": torch.float32}, "dtype"),
    ],
)
def test_networks_that_differ_are_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text) as caught:
        LeakyEnsemble.of([network(), network(**changes)])
    assert "models[1]" in str(caught.value)


def test_bad_input() -> None:
    with pytest.raises(InputError, match="at least one"):
        LeakyEnsemble.of([])
    module = nn.PReLU()
    with pytest.raises(InputError, match="is a function"):
        LeakyEnsemble.of([network(activation=module), network(activation=module)])
    ensemble = LeakyEnsemble.of(networks())
    for shape in ((4, 6), (2, 4, 5), (5,), (1, 3, 4, 5)):
        with pytest.raises(InputError, match="shape"):
            ensemble(torch.randn(shape))
