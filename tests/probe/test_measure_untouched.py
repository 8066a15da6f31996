"""A model, its data and everything random come back as they were: after success, after an error, after Ctrl-C."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from isthmus import InputError, IsthmusError, measure
from isthmus.probe._guard import untouched


class Counting(nn.Module):
    """Changes its buffers in every pass, in evaluation mode, too: in place, by another, by one of another shape."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("calls", "other", "seen", "later"):
            self.register_buffer(name, torch.zeros(3), persistent=name != "other")
        self.calls: Tensor
        self.other: Tensor
        self.seen: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.other = self.other + 1
        self.seen = torch.cat([self.seen, x.detach().flatten()[:1]])
        return x + 0 * self.calls.sum()


class Raising(nn.Module):
    """Raises once it meets a large number, which only the second batch holds."""

    def __init__(self, error: BaseException | None) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        if self.error is not None and bool(x.abs().amax() > 50):
            raise self.error
        return x


class Beast(nn.Module):
    """Every kind of state that a pass could disturb."""

    def __init__(self, error: BaseException | None = None) -> None:
        super().__init__()
        self.enter = nn.Linear(4, 6)
        self.norm = nn.BatchNorm1d(6)
        self.count = Counting()
        self.raising = Raising(error)
        self.drop = nn.Dropout(0.5)
        self.act = nn.ReLU(inplace=True)
        self.frozen = nn.Linear(6, 6)
        self.leave = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        _ = torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002 - draws from every global state
        h = self.drop(self.count(self.norm(self.enter(x))))
        return self.leave(self.act(self.frozen(self.raising(10 * h))))

    def walk(self, x: Tensor) -> list[Tensor]:
        return [x, self(x)]


def beast(error: BaseException | None = None) -> Beast:
    model = Beast(error).train()
    model.norm.eval()  # modes are mixed
    model.frozen.eval()
    model.frozen.weight.requires_grad_(False)
    model(torch.randn(8, 4)).sum().backward()  # gradients and statistics are there
    model.leave.weight.grad = None
    model.enter.register_forward_hook(lambda m, a, o: o * 1.5)
    model.enter.register_full_backward_hook(lambda m, g, o: None)
    model.leave.register_forward_pre_hook(lambda m, a: (a[0] + 1,))
    model.enter.weight.register_hook(lambda g: g)
    return model


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_forward_hooks_with_kwargs",
         "_forward_pre_hooks_with_kwargs", "_forward_hooks_always_called", "_state_dict_hooks")  # fmt: skip


def state_of(model: nn.Module) -> dict[str, Any]:
    """Everything there is to a model that could be disturbed, with identities."""
    parameters = dict(model.named_parameters())
    return {
        "modes": {n: m.training for n, m in model.named_modules()},
        "hooks": {(n, k): list(getattr(m, k).items()) for n, m in model.named_modules() for k in HOOKS},
        "tensor hooks": {n: list((p._backward_hooks or {}).items()) for n, p in parameters.items()},
        "attributes": {n: sorted(vars(m)) for n, m in model.named_modules()},
        "buffers": {n: (id(b), b.detach().clone()) for n, b in model.named_buffers()},
        "names": [sorted(m._buffers) for m in model.modules()],
        "weights": {n: (id(p), p.detach().clone(), p.device, p.dtype, p._version) for n, p in parameters.items()},
        "gradients": {
            n: None if p.grad is None else (id(p.grad), p.grad.clone(), p.grad._version) for n, p in parameters.items()
        },
        "requires_grad": {n: p.requires_grad for n, p in parameters.items()},
    }


def random_states() -> list[Any]:
    # without `random`, from which the type checker of the tests draws what it looks at
    return [torch.random.get_rng_state(), np.random.get_state()]  # noqa: NPY002


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return bool(np.array_equal(one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def switches() -> tuple[Any, ...]:
    return (
        torch.backends.mha.get_fastpath_enabled(), torch.is_grad_enabled(), torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(), torch.is_inference_mode_enabled(), torch.get_num_threads(),
    )  # fmt: skip


def check_untouched(model: nn.Module, run: Callable[[], object], error: type[BaseException] | None) -> None:
    before, states, flags = state_of(model), random_states(), switches()
    if error is None:
        run()
    else:
        with pytest.raises(error):
            run()
    after = state_of(model)
    for kind, value in before.items():
        assert same(value, after[kind]), kind
    assert same(states, random_states())
    assert switches() == flags


OPTIONS: dict[str, dict[str, Any]] = {
    "blocks": {},
    "every module": {"layers": "*"},
    "loss": {"loss": "cross_entropy"},
    "every module, loss": {"loss": "cross_entropy", "layers": "*"},
    "loss, baseline": {"loss": "cross_entropy", "baseline": "init"},
    "baseline of its own": {"baseline": lambda: nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3))},
    "path": {"path": "walk"},
    "path of its own": {"path": lambda b: [b, b + torch.rand_like(b)]},
    "no Jacobian": {"jacobian_samples": 0},
}


def data(scale: float = 1.0) -> tuple[Tensor, Tensor]:
    x = torch.randn(24, 4)
    x[12:] *= scale
    return x, torch.arange(24) % 3


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_after_success(options: dict[str, Any]) -> None:
    model, (x, y) = beast(), data()
    copy = x.clone(), y.clone()
    check_untouched(model, lambda: measure(model, (x, y), batch_size=8, progress=False, **options), None)
    assert torch.equal(x, copy[0])
    assert torch.equal(y, copy[1])
    assert not x.requires_grad


@pytest.mark.parametrize("options", [OPTIONS[k] for k in ("blocks", "every module, loss", "loss, baseline")])
@pytest.mark.parametrize(
    ("raised", "caught"),
    [
        (ValueError("its own"), IsthmusError),
        (RuntimeError("shape of things"), InputError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (SystemExit(3), SystemExit),
    ],
    ids=["error", "misfit", "interrupt", "exit"],
)
def test_after_an_error_in_a_later_batch(
    options: dict[str, Any], raised: BaseException, caught: type[BaseException]
) -> None:  # fmt: skip
    model, (x, y) = beast(raised), data(scale=1e4)
    check_untouched(model, lambda: measure(model, (x, y), batch_size=12, progress=False, **options), caught)


def test_after_an_interrupt_in_the_first_pass() -> None:
    model, (x, y) = beast(KeyboardInterrupt()), data()
    check_untouched(model, lambda: measure(model, (1e4 * x, y), progress=False), KeyboardInterrupt)


def test_after_an_interrupt_in_the_data() -> None:
    def batches() -> Iterator[Tensor]:
        yield torch.randn(6, 4, generator=g)
        raise KeyboardInterrupt

    g = torch.Generator()
    model = beast()
    check_untouched(model, lambda: measure(model, batches(), progress=False), KeyboardInterrupt)


def test_after_an_interrupt_in_the_loss() -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        raise KeyboardInterrupt

    model, pair = beast(), data()
    check_untouched(model, lambda: measure(model, pair, loss=loss, progress=False), KeyboardInterrupt)


@pytest.mark.parametrize("bad", [{"layers": "nothing like it"}, {"max_memory": 8}, {"loss": "model"}])
def test_after_bad_input(bad: dict[str, Any]) -> None:
    model, pair = beast(), data()
    check_untouched(model, lambda: measure(model, pair, progress=False, **bad), InputError)


def test_a_model_that_changes_its_input_in_place() -> None:
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 3))
    x, y = data()
    copy = x.clone()
    for given in (x, (x, y), {"input": x}, [x], x.numpy(), DataLoader(TensorDataset(x, y), batch_size=24)):
        check_untouched(model, lambda given=given: measure(model, given, progress=False), None)
        assert torch.equal(x, copy)
    found = measure(model, x, forward=lambda m, batch: m(batch), layers="*", progress=False)
    assert torch.equal(x, copy)
    after = x.clamp(min=0)  # measured once, not once more for every pass over it
    s = torch.linalg.svdvals(after)
    row = found.table.filter((found.table["layer"] == "0") & (found.table["metric"] == "stable_rank"))
    assert row["value"].to_list() == pytest.approx([float(s.square().sum() / s[0] ** 2)], rel=1e-9)


def test_a_shuffled_loader_draws_nothing_from_the_users_generator() -> None:
    x, y = data()
    model = beast()
    for generator in (None, torch.Generator().manual_seed(5)):
        loader = DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True, generator=generator)
        check_untouched(model, lambda loader=loader: measure(model, loader, progress=False), None)
    for seed in (0, 1):  # the same order for the same seed, whatever the user drew before
        torch.rand(3)
        shuffled = DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True)
        first, second = (measure(model, shuffled, progress=False, seed=seed, max_samples=9) for _ in range(2))
        assert first.table.equals(second.table)


def test_what_a_parameter_module_returns_keeps_no_hook() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 4))

        def forward(self) -> Tensor:
            return self.weight

    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.mix, self.cached = Table(), nn.Linear(4, 3), torch.zeros(0)

        def forward(self, x: Tensor) -> Tensor:
            return self.mix(x + self.table().mean(0))

    model, pair = Reads(), data()
    run = lambda: measure(model, pair, loss="cross_entropy", layers="*", progress=False)  # noqa: E731
    check_untouched(model, run, None)


def test_random_states_of_python() -> None:
    model = beast()
    before = random.getstate()
    with untouched(model, 0):
        first = random.random()
    assert random.getstate() == before
    random.random()
    with untouched(model, 0):
        assert random.random() == first


def test_another_device_gets_a_copy() -> None:
    model, pair = beast(), data()
    check_untouched(model, lambda: measure(model, pair, device="cpu", progress=False), None)


def test_the_same_numbers_at_every_call() -> None:
    model, pair = beast(), data()
    torch.manual_seed(1)
    first = measure(model, pair, loss="cross_entropy", progress=False, seed=4)
    torch.manual_seed(2)
    second = measure(model, pair, loss="cross_entropy", progress=False, seed=4)
    assert first.table.equals(second.table)


@pytest.mark.parametrize("enabled", [True, False])
def test_the_attention_fast_path_stays_as_it_was(enabled: bool) -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    model, x = nn.TransformerEncoder(layer, 2).eval(), torch.randn(5, 3, 4)
    torch.backends.mha.set_fastpath_enabled(enabled)
    try:
        check_untouched(model, lambda: measure(model, x, layers="*", progress=False), None)
        assert torch.backends.mha.get_fastpath_enabled() is enabled
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_inside_no_grad_and_inference_mode() -> None:
    model, pair = beast(), data()
    expected = measure(model, pair, loss="cross_entropy", progress=False)
    for mode in (torch.no_grad, torch.enable_grad, torch.inference_mode):
        with mode():
            given = tuple(t.clone() for t in pair)
            check_untouched(
                model, lambda given=given: measure(model, given, loss="cross_entropy", progress=False), None
            )
            found = measure(model, given, loss="cross_entropy", progress=False)
        assert found.table.equals(expected.table)
