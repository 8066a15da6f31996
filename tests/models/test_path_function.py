"""The fused path against autograd through the plain loop, and its way around what it does not do itself."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from isthmus.models import LeakyResNet, SmoothReLU, _path_function
from isthmus.models._path_function import LeakyPath, path_by_autograd

N, WIDTH = 7, 5
ROUNDING = {"rtol": 1e-12, "atol": 1e-13}  # sums of at most 20 layers of 7 terms: some hundred roundings of 1e-16

Inputs = tuple[Tensor, Tensor, Tensor | None, Tensor, float, Any]


def inputs(activation: str = "relu", bias: bool = True, depth: int = 4, effective_depth: float = 2.0) -> Inputs:
    rho = torch.rand(depth) + 0.2
    net = LeakyResNet(3, 3, width=WIDTH, depth=1, effective_depth=0, activation=activation)
    return (
        torch.randn(N, WIDTH, requires_grad=True),
        torch.randn(depth, WIDTH, WIDTH, requires_grad=True),
        torch.randn(depth, WIDTH, requires_grad=True) if bias else None,
        rho / rho.sum(),
        effective_depth,
        net.activation,
    )


def fused(*given: Any) -> Tensor:
    end, nodes = LeakyPath.apply(*given, True)
    return torch.cat([nodes, end[None]])


def plain(*given: Any) -> Tensor:
    return torch.stack(path_by_autograd(*given))


def gradients(function: Callable[..., Tensor], given: Inputs, cotangent: Tensor, nodes: slice) -> list[Tensor]:
    wanted = [t for t in given[:3] if t is not None]
    return list(torch.autograd.grad(function(*given)[nodes], wanted, cotangent[nodes]))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which of the two ways was taken, in order."""
    taken: list[str] = []
    original, loop = LeakyPath.forward, path_by_autograd
    monkeypatch.setattr(LeakyPath, "forward", staticmethod(lambda *a: (taken.append("fused"), original(*a))[1]))
    monkeypatch.setattr(_path_function, "path_by_autograd", lambda *a: (taken.append("plain"), loop(*a))[1])
    return taken


@pytest.mark.parametrize("nodes", [slice(None), slice(-1, None), slice(0, -1), slice(2, 3)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["relu", "identity", "smooth_relu"])
@pytest.mark.parametrize(("depth", "effective_depth"), [(3, 2.0), (20, 7.0), (4, 0.0), (3, 30.0)])
def test_path_and_gradients_are_those_of_the_plain_loop(
    depth: int, effective_depth: float, activation: str, bias: bool, nodes: slice
) -> None:
    given = inputs(activation, bias, depth, effective_depth)
    cotangent = torch.randn(depth + 1, N, WIDTH)
    ours, expected = fused(*given), plain(*given)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12 * float(expected.detach().abs().max()))
    for found, wanted in zip(gradients(fused, given, cotangent, nodes), gradients(plain, given, cotangent, nodes),
                             strict=True):  # fmt: skip
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12 * float(wanted.abs().max()))


def test_one_layer_and_no_samples() -> None:
    given = inputs(depth=1)
    torch.testing.assert_close(fused(*given), plain(*given), **ROUNDING)
    empty = (torch.empty(0, WIDTH, requires_grad=True), *given[1:])
    for gradient in gradients(fused, empty, torch.zeros(2, 0, WIDTH), slice(None)):
        assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
def test_gradients_with_some_inputs_frozen(frozen: tuple[int, ...]) -> None:
    given = inputs()
    for i in frozen:
        tensor = given[i]
        assert isinstance(tensor, Tensor)
        tensor.requires_grad_(False)
    found: list[list[Tensor | None]] = []
    for function in (fused, plain):
        for t in given[:3]:
            assert t is not None
            t.grad = None
        function(*given)[1:].square().sum().backward()
        found.append([None if t is None else t.grad for t in given[:3]])
    for i, (ours, expected) in enumerate(zip(*found, strict=True)):
        assert (ours is None) == (expected is None) == (i in frozen)
        torch.testing.assert_close(ours, expected, **ROUNDING)


@pytest.mark.parametrize("activation", ["relu", "identity", "smooth_relu"])
def test_gradcheck_of_first_and_second_order(activation: str) -> None:
    a, w, b, *rest = inputs(activation, depth=3)

    def end(a: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return fused(a, w, b, *rest)[-1]

    assert torch.autograd.gradcheck(end, (a[:2].detach().requires_grad_(), w, b), check_batched_grad=True)
    assert torch.autograd.gradgradcheck(end, (a[:2].detach().requires_grad_(), w, b))


def test_second_derivatives_are_those_of_the_plain_loop() -> None:
    given = inputs("smooth_relu")
    tensors = [t for t in given[:3] if t is not None]
    found = []
    for function in (fused, plain):
        first = torch.autograd.grad(function(*given).square().sum(), tensors, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), tensors))
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-12 * float(expected.abs().max()))


def network(**changes: Any) -> LeakyResNet:
    settings: dict[str, Any] = {"width": 8, "depth": 5, "effective_depth": 2.0, "steps": "irregular"} | changes
    return LeakyResNet(5, 3, **settings)


def test_which_way_is_taken(calls: list[str]) -> None:
    x = torch.randn(4, 5)

    def way(function: Callable[[], object]) -> list[str]:
        calls.clear()
        function()
        return list(calls)

    net = network()
    assert way(lambda: net(x).sum().backward()) == ["fused"]
    assert way(lambda: net.path(x).sum().backward()) == ["fused"]
    assert way(lambda: network(activation="smooth_relu")(x)) == ["fused"]
    assert way(lambda: network(activation=SmoothReLU(0.3))(x)) == ["fused"]
    assert way(lambda: network(activation=torch.tanh)(x)) == ["plain"]
    assert way(lambda: network(dtype=torch.bfloat16)(x.bfloat16())) == ["plain"]
    assert way(lambda: copy.deepcopy(net)(x)) == ["fused"]
    with torch.no_grad():
        assert way(lambda: net(x)) == ["fused"]
    with torch.autocast("cpu", torch.bfloat16):
        assert way(lambda: copy.deepcopy(net).float()(x.float())) == ["plain"]
    assert way(lambda: torch.func.vmap(lambda s: net(s[None])[0])(x)) == ["plain"]
    assert way(lambda: torch.func.jacrev(net)(x)) == ["plain"]
    assert way(lambda: torch.autograd.functional.jacobian(net, x, vectorize=True)) == ["fused", "plain"]
    with forward_ad.dual_level():
        assert way(lambda: net(forward_ad.make_dual(x, x))) == ["plain"]
    rho = torch.full((5,), 0.2, requires_grad=True)
    assert way(lambda: torch.func.functional_call(net, {"layer_steps": rho}, (x,)).sum().backward()) == ["plain"]
    assert rho.grad is not None


def test_transforms_of_torch_func_agree_with_the_fused_gradients() -> None:
    net, x = network(activation="smooth_relu", input_map="learned"), torch.randn(4, 5)
    values = {name: p.detach() for name, p in net.named_parameters()}

    def loss(values: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(net, values, (x,)).square().mean()

    net(x).square().mean().backward()
    for name, gradient in torch.func.grad(loss)(values, x).items():
        torch.testing.assert_close(gradient, net.get_parameter(name).grad, **ROUNDING)
    hessian = torch.func.hessian(loss, argnums=1)(values, x)
    dense = torch.autograd.functional.hessian(lambda t: net(t).square().mean(), x)
    torch.testing.assert_close(hessian, dense, **ROUNDING)
    for vectorize in (False, True):
        jacobian = torch.autograd.functional.jacobian(net, x, vectorize=vectorize)
        torch.testing.assert_close(jacobian, torch.func.jacrev(net)(x), **ROUNDING)


def test_no_grad_gives_the_same_bits_without_keeping_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = network(), torch.randn(4, 5)
    with_graph = net(x)
    kept: list[int] = []
    original = LeakyPath.forward

    def forward(*given: Any) -> tuple[Tensor, Tensor]:
        end, nodes = original(*given)
        kept.append(len(nodes))
        return end, nodes

    monkeypatch.setattr(LeakyPath, "forward", staticmethod(forward))
    with torch.no_grad():
        assert torch.equal(net(x), with_graph)
        assert torch.equal(net.readout(net.path(x)[-1]), with_graph)
    with torch.inference_mode():
        assert torch.equal(net(x), with_graph)
    assert kept == [2, 5, 2]


def test_results_may_be_changed_in_place_and_hooks_and_checkpoints_work() -> None:
    net, x = network(), torch.randn(4, 5)
    net(x).square().sum().backward()
    assert net.weight.grad is not None
    expected = net.weight.grad.clone()
    path = net.path(x)
    with torch.no_grad():
        path.zero_()  # a copy: what backward needs is elsewhere
    net.zero_grad()
    torch.utils.checkpoint.checkpoint(net, x, use_reentrant=False).square().sum().backward()
    assert torch.equal(net.weight.grad, expected) if net.weight.grad is not None else False
    output = net(x)
    with torch.no_grad():
        net.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_training_twice_gives_the_same_bits_and_follows_the_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = torch.randn(30, 5), torch.randn(30, 3)

    def trained(dtype: torch.dtype) -> Tensor:
        net = network(dtype=dtype)
        adam = torch.optim.Adam(net.parameters(), lr=1e-2, fused=True)
        for _ in range(20):
            adam.zero_grad()
            ((net(x.to(dtype)) - y.to(dtype)).square().mean() + 1e-3 * net.weight_cost()).backward()
            adam.step()
        return net.weight.detach()

    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-2)):  # Adam divides by small gradients
        first = trained(dtype)
        assert torch.equal(first, trained(dtype))
        with monkeypatch.context() as patch:
            patch.setattr(_path_function, "_fuses", lambda *_: False)
            torch.testing.assert_close(first, trained(dtype), rtol=tolerance, atol=tolerance)


def test_distributed_data_parallel_takes_the_fused_way(tmp_path: Path, calls: list[str]) -> None:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        net, x = network(), torch.randn(4, 5)
        expected = plain(net.embed(x), net.weight, net.bias, net.layer_steps, net.effective_depth, net.activation)[-1]
        wanted = torch.autograd.grad(net.readout(expected).square().mean(), [net.weight, net.bias])
        torch.nn.parallel.DistributedDataParallel(net)(x).square().mean().backward()
        assert calls == ["fused"]
        assert net.bias is not None
        torch.testing.assert_close(net.weight.grad, wanted[0], **ROUNDING)
        torch.testing.assert_close(net.bias.grad, wanted[1], **ROUNDING)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("bias", [True, False])
def test_the_function_itself_can_be_vectorised(bias: bool) -> None:
    """`vmap` over samples' batches and over networks, and the gradient of it, against one after another."""
    g = torch.Generator().manual_seed(9)
    a0 = torch.randn(4, 6, 5, generator=g)
    weight = torch.randn(4, 3, 5, 5, generator=g)
    b = torch.randn(4, 3, 5, generator=g) if bias else None
    rho = torch.tensor([0.2, 0.5, 0.3])

    def end(a: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return LeakyPath.apply(a, w, b, rho, 2.0, torch.relu, True)[0]

    def plain(a: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return path_by_autograd(a, w, b, rho, 2.0, torch.relu)[-1]

    dims = (0, 0, 0 if bias else None)
    together = torch.func.vmap(end, dims)(a0, weight, b)
    alone = torch.stack([plain(a0[i], weight[i], None if b is None else b[i]) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)

    def total(w: Tensor) -> Tensor:
        return torch.func.vmap(end, dims)(a0, w, b).square().sum()

    expected = torch.stack([
        torch.func.grad(lambda w, i=i: plain(a0[i], w, None if b is None else b[i]).square().sum())(weight[i])
        for i in range(4)
    ])  # fmt: skip
    torch.testing.assert_close(torch.func.grad(total)(weight), expected, rtol=1e-11, atol=1e-11)
    leaf = weight.clone().requires_grad_()
    total(leaf).backward()
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, expected, rtol=1e-11, atol=1e-11)
