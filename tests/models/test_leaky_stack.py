from __future__ import annotations

import copy
import io
import pickle
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from isthmus._errors import InputError
from isthmus.models import Adaptive, LeakyBlock, LeakyResNet, LeakyStack

ROUNDING = 1e-13  # float64, some ten operations on numbers of order 1


def mlp(width: int = 6, count: int = 4) -> list[nn.Module]:
    return [nn.Sequential(nn.ReLU(), nn.Linear(width, width)) for _ in range(count)]


class Skip(nn.Module):
    """A block that adds its input itself."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Masked(nn.Module):
    """A block with a mask, which returns two things, as layers of Hugging Face do."""

    def __init__(self, kind: Callable[[Tensor, Tensor], Any] = lambda a, b: (a, b)) -> None:
        super().__init__()
        self.linear, self.kind = nn.Linear(6, 6), kind
        self.attention_type = "full"

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Any:
        return self.kind(self.linear(hidden) * (1 if mask is None else mask), hidden.sum())


Pair = namedtuple("Pair", ["state", "weights"])


@pytest.mark.parametrize("steps", ["equidistant", "irregular", "adaptive"])
def test_is_a_leaky_resnet_where_its_blocks_are(steps: str) -> None:
    net = LeakyResNet(6, 6, width=6, depth=5, effective_depth=2.0, steps=steps, seed=3)
    blocks = mlp(6, 5)
    with torch.no_grad():
        for index, block in enumerate(blocks):
            block[1].weight.copy_(net.weight[index])  # type: ignore[index]
            block[1].bias.copy_(torch.randn(6))  # type: ignore[index]
            assert net.bias is not None
            net.bias[index] = block[1].bias  # type: ignore[index]
    stack = LeakyStack(blocks, effective_depth=2.0, steps=steps)
    rho = torch.tensor([0.1, 0.3, 0.2, 0.15, 0.25])
    for model in (net, stack):
        model.set_layer_steps(rho)
    x = torch.randn(7, 6)
    torch.testing.assert_close(stack(net.embed(x)), net.path(x)[-1], rtol=ROUNDING, atol=ROUNDING)


def test_a_residual_block_counts_without_its_skip() -> None:
    inner = mlp()
    x = torch.randn(3, 6)
    plain = LeakyStack(inner, effective_depth=1.5, steps="irregular")(x)
    own = LeakyStack(map(Skip, inner), effective_depth=1.5, steps="irregular", residual=True)(x)
    torch.testing.assert_close(own, plain, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("effective_depth", [0.0, 3.0])
def test_a_plain_start_is_the_blocks_one_after_the_other(effective_depth: float) -> None:
    blocks = [Skip(block) for block in mlp()]
    stack = LeakyStack(blocks, effective_depth=effective_depth, steps="irregular", residual=True, plain_start=True)
    x = torch.randn(3, 6, requires_grad=True)
    expected = nn.Sequential(*blocks)(x)
    assert torch.equal(stack(x), expected)
    # and so are its gradients, but for what the gains add
    weight = blocks[1].inner[1].weight  # type: ignore[index]
    torch.testing.assert_close(
        *(torch.autograd.grad(f(x).square().sum(), weight)[0] for f in (stack, nn.Sequential(*blocks)))
    )


def test_what_changes_after_a_plain_start_is_as_documented() -> None:
    blocks = [Skip(block) for block in mlp()]
    stack = LeakyStack(blocks, effective_depth=3.0, residual=True, plain_start=True)
    assert stack.carry is not None
    rho = torch.tensor([0.4, 0.3, 0.2, 0.1])
    stack.set_layer_steps(rho)
    with torch.no_grad():
        stack.carry.copy_(torch.tensor([3.0, 2.0, 1.0, 0.5]))
    x = expected = torch.randn(3, 6)
    for index, block in enumerate(blocks):
        branch = block(expected) - expected
        lost = rho[index] * (3.0 - stack.carry[index]) * expected
        expected = expected + 4 * rho[index] * branch - lost
    torch.testing.assert_close(stack(x), expected, rtol=ROUNDING, atol=ROUNDING)
    stack.reset_parameters()
    assert stack.carry.tolist() == [3.0] * 4


def test_a_gain_is_there_only_for_a_leak_and_is_trained() -> None:
    def stack(effective_depth: float) -> LeakyStack:
        return LeakyStack(map(Skip, mlp()), effective_depth=effective_depth, residual=True, plain_start=True)

    assert stack(0.0).carry is None
    leaky = stack(2.0)
    leaky(torch.randn(3, 6)).square().sum().backward()
    assert leaky.carry is not None
    assert leaky.carry.grad is not None
    assert bool((leaky.carry.grad != 0).all())
    assert "carry" in dict(leaky.named_parameters())


def test_further_arguments_reach_every_block_and_further_outputs_are_passed_on() -> None:
    stack = LeakyStack([Masked() for _ in range(3)], effective_depth=0.0)
    x, mask = torch.randn(2, 6), torch.tensor([1.0, 0, 1, 0, 1, 0])
    expected = x
    for index, block in enumerate(stack):
        assert isinstance(block.block, Masked)
        before, expected = expected, expected + stack.layer_steps[index] * block.block.linear(expected) * mask
    state, rest = stack(x, mask=mask)
    torch.testing.assert_close(state, expected, rtol=ROUNDING, atol=ROUNDING)
    torch.testing.assert_close(rest, before.sum())
    torch.testing.assert_close(stack[0](hidden=x, mask=mask)[0], stack[0](x, mask)[0])


@pytest.mark.parametrize("kind", [Pair, lambda a, b: [a, b], lambda a, b: (a,)])
def test_what_a_block_returns_keeps_its_kind(kind: Callable[[Tensor, Tensor], Any]) -> None:
    stack = LeakyStack([Masked(kind)], effective_depth=0.0)
    found, own = stack(torch.ones(2, 6)), kind(torch.ones(1), torch.ones(1))
    assert type(found) is type(own)
    assert len(found) == len(own)


def test_can_be_gone_through_like_a_list() -> None:
    stack = LeakyStack([Masked() for _ in range(3)], effective_depth=1.0)
    assert len(stack) == 3
    assert [block.index for block in stack] == [0, 1, 2]
    assert [block.index for block in stack[1:]] == [1, 2]
    assert stack[-1] is stack[2]
    assert isinstance(stack[0], LeakyBlock)
    assert stack[0].attention_type == "full"  # what a parent looks up on its blocks
    with pytest.raises(AttributeError, match="nothing"):
        _ = stack[0].nothing
    x = torch.randn(2, 6)
    state = x
    for block in stack[:3]:
        state = block(state)[0]
    assert torch.equal(state, stack(x)[0])


def test_what_is_set_on_a_block_of_a_stack_is_set_on_the_block_inside() -> None:
    stack = LeakyStack([Masked(), Masked()], effective_depth=0.0)
    x, inner = torch.randn(2, 6), stack[0].block
    stack[0].linear = nn.Linear(6, 6)
    stack[0].attention_type = "sliding"
    assert inner.attention_type == "sliding"
    assert inner.linear is stack[0].linear
    assert sorted(n for n, _ in stack.named_modules() if n) == ["0", "0.block", "0.block.linear",
                                                                "1", "1.block", "1.block.linear"]  # fmt: skip
    torch.testing.assert_close(stack[0](x)[0], x + 0.5 * inner.linear(x))
    stack[0].train(False)
    stack[1].note, stack[1].index = "mine", 1
    assert not inner.training
    assert not hasattr(stack[1].block, "note")
    inner._hook = stack[0]._hook = 1  # type: ignore[assignment]  # private names and methods are each one's own
    stack[0]._hook, stack[0].forward = 2, lambda x: x + 1  # type: ignore[assignment,method-assign]
    assert inner._hook == 1
    assert torch.equal(stack[0](x), x + 1)
    stack[1].block = Masked()
    assert isinstance(stack[1].block, Masked)


def test_only_its_blocks_are_its_items() -> None:
    stack = LeakyStack(map(Skip, mlp()), effective_depth=1.0, residual=True, plain_start=True)
    x = torch.randn(3, 6)
    expected = stack(x)
    nn.utils.parametrize.register_parametrization(stack, "carry", nn.ReLU())
    assert [block.index for block in stack] == [0, 1, 2, 3]
    assert torch.equal(stack(x), expected)


def test_a_copy_has_its_own_steps_and_both_survive_saving() -> None:
    stack = LeakyStack(mlp(), effective_depth=1.0, steps="adaptive")
    other = pickle.loads(pickle.dumps(copy.deepcopy(stack)))  # as processes hand a model on
    other.set_layer_steps(torch.tensor([0.4, 0.3, 0.2, 0.1]))
    assert stack.layer_steps.tolist() == [0.25] * 4
    assert other[0].stack is other
    x = torch.randn(3, 6)
    assert not torch.equal(other(x), stack(x))
    buffer = io.BytesIO()
    torch.save(other.state_dict(), buffer)
    stack.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    assert torch.equal(other(x), stack(x))
    assert set(stack.state_dict()) == {"layer_steps"} | {
        f"{i}.block.1.{n}" for i in range(4) for n in ("weight", "bias")
    }


def test_the_state_keeps_its_dtype_and_steps_are_at_least_single() -> None:
    stack = LeakyStack(mlp(), effective_depth=1.0).to(torch.float32)
    assert stack(torch.randn(2, 6, dtype=torch.float32)).dtype == torch.float32
    half = LeakyStack([block.bfloat16() for block in mlp()], effective_depth=1.0)
    assert half.layer_steps.dtype == torch.float32
    assert half(torch.randn(2, 6).bfloat16()).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert stack(torch.randn(2, 6, dtype=torch.float32)).dtype == torch.float32


@pytest.mark.slow
def test_runs_compiled() -> None:
    stack = LeakyStack(map(Skip, mlp()), effective_depth=1.0, steps="adaptive", residual=True)
    compiled = torch.compile(stack, backend="eager", fullgraph=False)
    x = torch.randn(3, 6)
    torch.testing.assert_close(compiled(x), stack.eval()(x))


# --- steps ----------------------------------------------------------------------------------------------------------


def speeds(stack: LeakyStack, x: Tensor) -> Tensor:
    """`c_ℓ` from the definition, on stored states."""
    states = [x]
    for block in stack:
        states.append(block(states[-1]))
    pairs = zip(states, states[1:], stack.layer_steps, strict=False)
    return torch.stack([(b - a).norm() / (rho * b.norm()) for a, b, rho in pairs])


def adaptive(**settings: Any) -> LeakyStack:
    blocks = mlp()
    with torch.no_grad():
        for scale, block in zip((8.0, 1.0, 3.0, 0.3), blocks, strict=True):
            block[1].weight *= scale  # type: ignore[index]
    return LeakyStack(blocks, effective_depth=1.0, steps=Adaptive(**settings))


def test_an_update_goes_by_every_batch_since_the_last_one() -> None:
    stack, x = adaptive(), torch.randn(40, 6)
    expected = Adaptive().update(stack.layer_steps, speeds(stack.eval(), x).detach(), 1.0)
    stack.train()
    for batch in x.split(7):
        stack(batch)
    stack.eval()(torch.randn(9, 6))  # not in training mode: does not count
    torch.testing.assert_close(stack.update_steps(), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(stack.layer_steps, expected, rtol=1e-12, atol=0)
    assert float(expected[0]) < 0.24 < 0.26 < float(expected[3])  # short where it moves fast
    with pytest.raises(InputError, match="x: got no states"):
        stack.update_steps()


def test_an_update_by_one_batch_leaves_the_modules_as_they_were() -> None:
    blocks = [nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 6)) for _ in range(4)]
    stack = LeakyStack(blocks, effective_depth=1.0, steps="adaptive")
    blocks[2][1].eval()
    x, state, before = torch.randn(20, 6), torch.get_rng_state(), copy.deepcopy(stack.state_dict())
    modes = [module.training for module in stack.modules()]
    expected = Adaptive().update(stack.layer_steps, speeds(copy.deepcopy(stack).eval(), x).detach(), 1.0)
    stack(x)
    stack.load_state_dict(before)
    torch.set_rng_state(state)
    torch.testing.assert_close(stack.update_steps(x), expected, rtol=1e-12, atol=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in stack.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in stack.state_dict().items() if k != "layer_steps")


def test_updates_settle_where_every_block_moves_as_far() -> None:
    stack, x = adaptive(smallest=1e-4), torch.randn(50, 6)
    for _ in range(60):
        stack.update_steps(x)
    moves = (speeds(stack.eval(), x) * stack.layer_steps).detach()
    assert float(moves.max() / moves.min()) < 1.01


def test_a_block_that_was_not_called_is_not_one_that_stands_still() -> None:
    stack = adaptive()
    x = stack[0](torch.randn(3, 6))
    with pytest.raises(InputError, match=r"x: got no states of block 1, 2, 3, expected.*through every block"):
        stack.update_steps()
    assert stack.layer_steps.tolist() == [0.25] * 4
    for block in stack[1:]:  # what was seen of block 0 still counts
        x = block(x)
    stack.update_steps()


def test_states_of_another_kind_do_not_end_the_sums() -> None:
    # as of blocks on several devices
    stack = LeakyStack([nn.Tanh(), nn.Tanh()], effective_depth=0.0, steps="adaptive")
    x = torch.randn(9, 6)
    for block, dtype in zip(stack, (torch.float32, torch.float64), strict=True):
        block(x.to(dtype))
    found = stack.update_steps()
    for block in stack:
        block(x)
    stack.set_layer_steps(torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(found, stack.update_steps(), rtol=1e-6, atol=0)


def test_a_batch_that_fails_leaves_the_sums_as_they_were() -> None:
    stack, x = adaptive(), torch.randn(40, 6)
    expected = Adaptive().update(stack.layer_steps, speeds(stack.eval(), x).detach(), 1.0)
    stack.train()(x)
    stack[2].block.append(nn.Linear(6, 5))
    with pytest.raises(InputError, match="block 2"):
        stack.update_steps(x)
    del stack[2].block[2]
    torch.testing.assert_close(stack.update_steps(), expected, rtol=1e-12, atol=0)


def test_states_that_vanish_have_no_speed() -> None:
    stack = LeakyStack([nn.Hardtanh(), Zero()], effective_depth=1.9, steps=Adaptive(cap=1.0), residual=True)
    stack.set_layer_steps(torch.tensor([0.5, 0.5]))
    with torch.no_grad():
        stack.layer_steps[1] = 1 / 2.9  # 1 − ρ (L̃ + 1) = 0
    with pytest.raises(InputError, match="x: got states that are 0 after block 1"):
        stack.update_steps(torch.ones(3, 6))


class Zero(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def test_without_adaptive_steps_nothing_is_kept() -> None:
    stack = LeakyStack(mlp(), effective_depth=1.0)
    stack(torch.randn(3, 6))
    with pytest.raises(InputError, match=r"steps: got equidistant.*adaptive"):
        stack.update_steps()
    assert not stack._moves


# --- bad input ------------------------------------------------------------------------------------------------------


class Inplace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(2)


BAD: list[tuple[str, Callable[[], object]]] = [
    (r"blocks: got list, expected at least one", lambda: LeakyStack([], effective_depth=1.0)),
    (r"blocks: got Linear", lambda: LeakyStack(nn.Linear(2, 2), effective_depth=1.0)),  # type: ignore[arg-type]
    (r"blocks: got Linear, int", lambda: LeakyStack([nn.Linear(2, 2), 3], effective_depth=1.0)),  # type: ignore[list-item]
    (r"blocks: got 4 of them.*effective_depth 4.*more blocks", lambda: LeakyStack(mlp(), effective_depth=4.0)),
    (r"effective_depth: got -1", lambda: LeakyStack(mlp(), effective_depth=-1.0)),
    (r"steps: got adaptiv, .*'adaptive'", lambda: LeakyStack(mlp(), effective_depth=1.0, steps="adaptiv")),
    (r"plain_start: got True", lambda: LeakyStack(mlp(), effective_depth=1.0, plain_start=True)),
    (
        r"blocks: got block 1 \(Linear\), which takes \(3, 6\) to \(3, 5\).*stride",
        lambda: LeakyStack([nn.Linear(6, 6), nn.Linear(6, 5)], effective_depth=1.0)(torch.ones(3, 6)),
    ),
    (
        r"block 0 \(Linear\), which takes \(3, 1\) to \(3, 6\)",  # it would broadcast
        lambda: LeakyStack([nn.Linear(1, 6), nn.Linear(6, 6)], effective_depth=1.0)(torch.ones(3, 1)),
    ),
    (
        r"block 0 \(Cast\), which takes torch.float64 to torch.float32",
        lambda: LeakyStack([Cast(), Cast()], effective_depth=1.0)(torch.ones(3, 6)),
    ),
    (
        r"block 0 \(Inplace\), which changes its input in place",
        lambda: LeakyStack([Inplace(), Inplace()], effective_depth=1.0)(torch.ones(3, 6)),
    ),
    (
        r"block 0 \(Masked\), which returns dict",
        lambda: LeakyStack([Masked(lambda a, b: {"a": a})], effective_depth=0.0)(torch.ones(3, 6)),
    ),
    (r"x: got a tensor of torch.int64", lambda: LeakyStack(mlp(), effective_depth=0.0)(torch.ones(3, 6).long())),
    (r"x: got NoneType", lambda: LeakyStack(mlp(), effective_depth=0.0)[0]()),
    (r"rho: got \[0.5, 0.5\]", lambda: LeakyStack(mlp(), effective_depth=0.0).set_layer_steps(torch.ones(2) / 2)),
]


class Cast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float()


@pytest.mark.parametrize(("message", "call"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_input_says_what_to_try(message: str, call: Callable[[], object]) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_states_of_a_diverged_training_are_refused() -> None:
    stack = adaptive()
    stack(torch.full((2, 6), float("nan")))
    with pytest.raises(InputError, match=r"x: got states that are not finite.*diverged"):
        stack.update_steps()
    assert stack.layer_steps.tolist() == [0.25] * 4
