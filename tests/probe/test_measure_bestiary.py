"""Odd models: whatever they do, there is a number or a reason."""

from __future__ import annotations

import collections
import dataclasses
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from transformers.modeling_outputs import BaseModelOutput

from isthmus import InputError, IsthmusError, measure
from isthmus.probe import Measurement
from isthmus.probe._plan import MOST_WIDTH

N = 24


@dataclasses.dataclass
class Holder:
    """An output of a user's own."""

    step: int
    hidden: Tensor


Pair = collections.namedtuple("Pair", ["nothing", "hidden"])


class Wrapped(nn.Module):
    """A linear layer whose output is put into something."""

    def __init__(self, put: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.linear, self.put = nn.Linear(4, 4), put

    def forward(self, x: Tensor) -> Any:
        return self.put(self.linear(x))


class Unwrapping(nn.Module):
    def __init__(self, put: Callable[[Tensor], Any], take: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.wrapped, self.head, self.take = Wrapped(put), nn.Linear(4, 3), take

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.take(self.wrapped(x)))


class Do(nn.Module):
    """Any function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def between(function: Callable[[Tensor], Tensor]) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), Do(function), nn.Linear(4, 3))


def data() -> Tensor:
    return torch.randn(N, 4, generator=torch.Generator().manual_seed(1))


def run(model: nn.Module, given: Any = None, **options: Any) -> Measurement:
    options = {"progress": False, "layers": "*", "jacobian_samples": 2, **options}
    return measure(model, data() if given is None else given, **options)


def row(found: Measurement, layer: str, metric: str = "observations") -> dict[str, Any]:
    return next(r for r in found.table.iter_rows(named=True) if (r["layer"], r["metric"]) == (layer, metric))


def value(found: Measurement, layer: str, metric: str = "observations") -> Any:
    return row(found, layer, metric)["value"]


def stable_rank(a: Tensor) -> float:
    s = torch.linalg.svdvals(a.double())
    return float(s.square().sum() / s[0] ** 2)


def notes(found: Measurement) -> str:
    return "; ".join(found.notes)


# --- what modules give ----------------------------------------------------------------------------------------------

HELD: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]] = {
    "dataclass": (lambda h: Holder(3, h), lambda o: o.hidden),
    "named tuple": (lambda h: Pair(None, h), lambda o: o.hidden),
    "dict": (lambda h: {"name": "h", "hidden": h}, lambda o: o["hidden"]),
    "list in a tuple": (lambda h: ([], [h, h + 1]), lambda o: o[1][0]),
    "model output": (lambda h: BaseModelOutput(last_hidden_state=h), lambda o: o.last_hidden_state),
    "after whole numbers": (lambda h: (torch.arange(3), h), lambda o: o[1]),
}


@pytest.mark.parametrize("kind", HELD)
def test_outputs_in_any_holder(kind: str) -> None:
    model, x = Unwrapping(*HELD[kind]), data()
    found = run(model, (x, torch.arange(N) % 3), loss="cross_entropy")
    hidden = model.wrapped.linear(x).detach()
    for name in ("wrapped", "wrapped.linear"):
        assert value(found, name, "stable_rank") == pytest.approx(stable_rank(hidden), rel=1e-9)
        assert value(found, name, "backward_norm") == value(found, "wrapped.linear", "backward_norm")


LOST: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Tensor], str]] = {
    "complex": (lambda h: torch.complex(h, h), lambda o: o.real, "a complex tensor (torch.complex128)"),
    "sparse": (lambda h: h.to_sparse(), lambda o: o.to_dense(), "a sparse tensor (torch.sparse_coo): give it dense"),
    "whole numbers": (lambda h: h.round().long(), lambda o: o.double(), "integers (torch.int64)"),
    "truth values": (lambda h: h > 0, lambda o: o.double(), "integers (torch.bool)"),
    "nothing": (lambda h: None, lambda o: torch.ones(2, 4), "no tensor (NoneType)"),
    "text": (lambda h: "h", lambda o: torch.ones(2, 4), "no tensor (str)"),
    "one number": (lambda h: h.sum(), lambda o: o.expand(2, 4), "a single number"),
    "empty": (lambda h: h[:, :0], lambda o: o.sum(1, keepdim=True).expand(-1, 4), "an empty tensor (2, 0)"),
    "nested": (lambda h: torch.nested.as_nested_tensor(list(h)), lambda o: torch.stack(list(o.unbind())),
               "a nested tensor"),
    "quantised": (lambda h: torch.quantize_per_tensor(h.float(), 0.1, 0, torch.qint8),
                  lambda o: o.dequantize().double(),
                  "a quantised tensor (torch.qint8): measure the model before it is quantised"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.filterwarnings("ignore:.*quantize_per_tensor.*")
@pytest.mark.parametrize("kind", LOST)
def test_outputs_that_have_no_second_moments(kind: str) -> None:
    put, take, reason = LOST[kind]
    with warnings.catch_warnings():
        if kind in ("nested", "quantised"):  # prototypes and deprecated kinds of torch warn
            warnings.simplefilter("ignore")
        found = run(Unwrapping(put, take))
    lost = row(found, "wrapped")
    assert lost["status"] == "skipped"
    assert lost["note"].startswith(reason)
    assert {"name": "wrapped", "type": "Wrapped", "reason": lost["note"]} in found.skipped
    assert value(found, "wrapped.linear") == N
    assert row(found, "head")["status"] == "ok"


def test_dynamic_quantisation() -> None:
    plain = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated by torch
        model = torch.ao.quantization.quantize_dynamic(plain, {nn.Linear})
        found = run(model, data().float())
    assert value(found, "0") == N
    packed = row(found, "0._packed_params")
    assert packed["status"] == "skipped"
    assert "never called" in packed["note"]


def test_one_feature_and_one_number_per_sample() -> None:
    class Regression(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.out = nn.Linear(4, 1), Do(lambda h: h.squeeze(-1))

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.hidden(x))

    model, x = Regression(), data()
    found = run(model, (x, x[:, 0]), loss="square")
    for name in ("hidden", "out"):
        assert value(found, name) == N
        assert value(found, name, "stable_rank") == pytest.approx(1)
    expected = float((model(x) - x[:, 0]).square().mean().detach())
    assert value(found, "model", "loss") == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("constant", "rank"), [(1.0, 1.0), (0.0, 0.0)])
def test_constant_outputs(constant: float, rank: float) -> None:
    model = between(lambda h: torch.full_like(h, constant))
    found = run(model, data(), batch_size=7)
    for metric in ("numerical_rank", "stable_rank", "nuclear_rank", "participation_ratio", "effective_rank"):
        assert value(found, "1", metric) == rank, metric
    assert value(found, "1", "participation_ratio_centred") == 0
    assert value(found, "1", "negative_fraction") == 0
    if constant:
        assert any(c.name == "constant" and "1" in c.text for c in found.verdict)


# --- parameters -----------------------------------------------------------------------------------------------------


def test_a_model_without_parameters() -> None:
    model, x = nn.Sequential(Do(torch.tanh), Do(lambda h: h * 2)), data()
    for layers in ("*", "blocks"):
        found = run(model, x, layers=layers)
        assert value(found, "1", "stable_rank") == pytest.approx(stable_rank(2 * torch.tanh(x)), rel=1e-9)
        assert row(found, "1", "cost_of_identity")["note"] == "no weight layer reads it"
    single = run(Do(torch.tanh), x)
    assert value(single, "(model)", "stable_rank") == pytest.approx(stable_rank(torch.tanh(x)), rel=1e-9)


def test_tied_weights_are_one_weight_with_a_note() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.embed(tokens))

    model = Tied()
    found = run(model, torch.randint(0, 9, (6, 5)))
    weights = [w["name"] for w in found.record["measured"]["weights"]]
    assert weights == ["embed.weight"]
    shared = row(found, "embed.weight", "stable_rank")
    assert shared["note"] == "shared with head.weight"
    assert shared["value"] == pytest.approx(stable_rank(model.embed.weight.detach()), rel=1e-9)
    assert {"embed", "head"} <= {layer["name"] for layer in found.layers}
    assert any(
        "whole numbers" in r["note"] for r in found.table.iter_rows(named=True) if r["metric"] == "jacobian_rank"
    )


def test_weights_that_are_not_finite() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    with torch.no_grad():
        model[1].weight[0, 0] = float("inf")
    found = run(model)
    assert "not finite" in row(found, "1.weight", "stable_rank")["note"]
    assert row(found, "0.weight", "stable_rank")["status"] == "ok"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_weights_of_another_precision_than_the_data(dtype: torch.dtype) -> None:
    exact = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    x, y = data(), torch.arange(N) % 3
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    model.load_state_dict(exact.state_dict())
    model.to(dtype)
    found = run(model, (x, y), loss="cross_entropy")
    expected = run(exact, (x, y), loss="cross_entropy")
    assert f"inputs were cast from float64 to the model's {str(dtype).removeprefix('torch.')}" in notes(found)
    assert "cast" not in notes(expected)
    eps = torch.finfo(dtype).eps
    for metric in ("stable_rank", "participation_ratio", "backward_norm", "negative_fraction"):
        for name in ("0", "2"):  # weights and activations are rounded, every one by at most eps
            assert value(found, name, metric) == pytest.approx(value(expected, name, metric), rel=30 * eps, abs=eps)


def test_whole_numbers_are_not_cast() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 3)).to(torch.bfloat16)
    found = run(model, torch.randint(0, 9, (12, 5)))
    assert value(found, "1") == 60
    assert "cast" not in notes(found)


# --- what happens in a pass -----------------------------------------------------------------------------------------


def test_in_place_activations_are_measured_before_and_after() -> None:
    model, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 3)), data()
    hidden = model[0](x).detach().clone()
    found = run(model, (x, torch.arange(N) % 3), loss="cross_entropy")
    assert value(found, "0", "stable_rank") == pytest.approx(stable_rank(hidden), rel=1e-9)
    assert value(found, "1", "stable_rank") == pytest.approx(stable_rank(hidden.clamp(min=0)), rel=1e-9)
    assert value(found, "0", "negative_fraction") > 0
    assert value(found, "1", "negative_fraction") == 0
    before, after = (value(found, name, "backward_norm") for name in "01")
    assert 0 < before < after  # the derivative of the activation is 0 or 1


def test_a_layer_that_gives_nan() -> None:
    found = run(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), Do(lambda h: h / 0), nn.Linear(4, 3)))
    assert [layer["name"] for layer in found.layers if "input" not in layer["name"]] == ["0", "1"]
    for name in ("2", "3"):
        failed = row(found, name)
        assert failed["status"] == "failed"
        assert "not finite" in failed["note"]
        assert "first in batch 0" in failed["note"]
    first = found.verdict[0]
    assert first.name == "not_finite"
    assert first.text.startswith("2 is the first module whose values are not finite")


@pytest.mark.parametrize("loss", [None, "square"])
def test_nan_in_a_later_batch_only(loss: str | None) -> None:
    model, x = between(lambda h: h / (h.abs().amax() < 50).to(h)), data()
    given = [(x, x[:, :3]), (1000 * x, x[:, :3]), (x, x[:, :3])]
    found = run(model, given, loss=loss)
    assert value(found, "0") == 3 * N
    for name in "12":
        assert row(found, name)["status"] == "failed"
        assert "first in batch 1" in row(found, name)["note"]
    assert found.verdict[0].text.startswith("1 is the first module")
    if loss:
        total = row(found, "model", "loss")
        assert total["status"] == "failed"
        assert total["value"] is None


def test_a_module_called_another_number_of_times_in_each_batch() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(int(x[0, 0])):
                x = self.step(x)
            return self.head(x)

    batches = [data() for _ in range(3)]
    for batch, times in zip(batches, (2, 1, 4), strict=True):
        batch[:, 0] = times
    model = Loop()
    found = run(model, batches)
    assert [value(found, f"step (call {i})") for i in (1, 2)] == [3 * N, 2 * N]
    assert "step: later batches called it more often" in notes(found)
    calls = [model.step(b).detach() for b in batches]
    expected = stable_rank(torch.cat(calls))
    assert value(found, "step (call 1)", "stable_rank") == pytest.approx(expected, rel=1e-9)
    batches[0][:, 0] = 0  # not met by the survey at all
    assert "never called" in row(run(model, batches), "step")["note"]


def test_a_cell_called_a_hundred_times() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.RNNCell(4, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = x.new_zeros(len(x), 5)
            self.states = [h := self.cell(x, h) for _ in range(100)]
            return self.head(h)

    model, x = Recurrent(), data()
    found = run(model, x, batch_size=10)
    assert value(found, "cell") == 100 * N
    assert row(found, "cell")["note"] == "all calls of the module together"
    assert [layer["name"] for layer in found.layers if "input" not in layer["name"]] == ["cell", "head"]
    model(x)
    states = torch.cat(model.states).detach()
    assert value(found, "cell", "stable_rank") == pytest.approx(stable_rank(states), rel=1e-9)


def test_control_flow_that_depends_on_the_data() -> None:
    class Either(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.left(x) if bool(x[0, 0] > 0) else self.right(x))

    x = data()
    x[:, 0] = 1
    found = run(Either(), [x, -x, x])
    assert value(found, "left") == 2 * N
    assert value(found, "head") == 3 * N
    assert "never called" in row(found, "right")["note"]


def test_hooks_of_the_user_that_change_outputs() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)), data()
    scale = torch.tensor([1.0, 2.0, 3.0, 40.0])
    model[0].register_forward_hook(lambda m, a, o: o * scale)
    model[1].register_forward_pre_hook(lambda m, a: (a[0] + 1,))
    found = run(model, x)
    hidden = (torch.nn.functional.linear(x, model[0].weight, model[0].bias) * scale).detach()
    assert value(found, "0", "stable_rank") == pytest.approx(stable_rank(hidden), rel=1e-9)
    assert value(found, "1", "stable_rank") == pytest.approx(stable_rank(model(x).detach()), rel=1e-9)


class Raises(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if bool(x.abs().amax() > 50):
            raise KeyError("no such thing")
        return self.linear(x)


def test_a_module_that_raises() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Sequential(Raises(), nn.Tanh()), nn.Linear(4, 3)), data()
    for given, where in (([1e4 * x], "batch 0"), ([x, x, 1e4 * x], "batch 2")):
        for loss in (None, lambda o, _: o.mean()):
            pairs = [(b, b) for b in given]
            with pytest.raises(IsthmusError, match=rf"KeyError in 1\.0, Raises.*on {where}: 'no such thing'") as caught:
                run(model, pairs, loss=loss)
            assert isinstance(caught.value.__cause__, KeyError)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# --- batches --------------------------------------------------------------------------------------------------------


def test_empty_batches_and_batches_of_one() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)), data()
    whole = run(model, x, jacobian_samples=0)
    for given in ([x[:0], x[:9], x[:0], x[9:]], list(x.split(1))):
        found = run(model, given, jacobian_samples=0)
        assert found.table["status"].equals(whole.table["status"])
        numbers, expected = (t["value"].fill_null(-1).to_list() for t in (found.table, whole.table))
        assert numbers == pytest.approx(expected, rel=1e-6, abs=1e-7)
    single = run(model, x[:1])
    assert value(single, "0") == 1
    assert value(single, "0", "stable_rank") == 1
    assert value(single, "0", "participation_ratio_centred") == 0
    assert row(single, "model", "jacobian_rank")["note"]


def test_packed_sequences_as_data() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(4, 5), nn.Linear(5, 3)

        def forward(self, packed: PackedSequence) -> Tensor:
            return self.head(self.lstm(packed)[1][0][-1])

    model, x = Reads(), data()
    parts = [x[:5], x[5:8], x[8:15], x[15:16], x[16:21]]
    y = torch.tensor([0, 1, 2, 1, 0])

    def packed(some: list[Tensor]) -> PackedSequence:
        return pack_sequence(some, enforce_sorted=False)

    found = run(model, [(packed(parts[:3]), y[:3]), (packed(parts[3:]), y[3:])], loss="cross_entropy")
    assert value(found, "lstm") == 21
    assert value(found, "head") == 5
    expected = nn.functional.cross_entropy(model(packed(parts)), y)
    assert value(found, "model", "loss") == pytest.approx(float(expected.detach()), rel=1e-12)
    hidden = model.lstm(packed(parts))[0].data.detach()
    assert value(found, "lstm", "stable_rank") == pytest.approx(stable_rank(hidden), rel=1e-9)
    assert value(run(model, [packed(parts)]), "lstm") == 21


# --- wrappers -------------------------------------------------------------------------------------------------------


def test_compiled_models_and_parts() -> None:
    plain, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)), data()
    expected = run(plain, x)
    found = run(torch.compile(plain, backend="eager"), x)
    assert found.table.equals(expected.table)
    assert "the model is compiled: the one it was made from was measured" in notes(found)
    inner = nn.Sequential(torch.compile(plain[0], backend="eager"), plain[1])
    found = run(inner, x)
    assert value(found, "0", "stable_rank") == value(expected, "0", "stable_rank")
    assert value(found, "1", "stable_rank") == value(expected, "1", "stable_rank")
    plain.compile(backend="eager")
    assert run(plain, x).table.equals(expected.table)


@pytest.fixture
def process_group() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{Path(folder) / 'store'}", rank=0, world_size=1
        )
        yield
        torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*barrier.*:UserWarning")
def test_data_parallel_wrappers(process_group: None) -> None:
    plain, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)), data()
    expected = run(plain, x)
    for wrapped in (nn.DataParallel(plain), nn.parallel.DistributedDataParallel(plain)):
        found = run(wrapped, x)
        assert found.table.equals(expected.table)
        assert f"{type(wrapped).__name__} was taken off" in notes(found)
    both = torch.compile(nn.DataParallel(plain), backend="eager")
    assert len(run(both, x).notes) == 2


# --- memory ---------------------------------------------------------------------------------------------------------


def test_memory_keeps_the_narrow_ones() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    found = run(model, max_memory=8 * (4 * 4 + 3 * 3), layers="blocks")
    assert [layer["name"] for layer in found.layers] == ["0 (input)", "2"]
    skipped = row(found, "0")
    assert skipped["status"] == "skipped"
    for part in ("its 8 features need", "raise max_memory", "layers="):
        assert part in skipped["note"]
    enough = run(model, max_memory=8 * (16 + 9 + 2 * 64), layers="blocks")
    assert "its product with the input of" in row(enough, "0", "cost_of_identity")["note"]
    with pytest.raises(InputError, match="raise max_memory"):
        run(model, max_memory=8)


def test_gradients_that_do_not_fit() -> None:
    model, pair = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), (data(), torch.arange(N) % 3)
    found = run(model, pair, loss="cross_entropy", max_memory=8 * (2 * 9 + 2 * 16 + 64), layers="blocks")
    assert row(found, "0")["status"] == "ok"
    assert "raise max_memory" in row(found, "0", "backward_norm")["note"]
    assert row(found, "2", "backward_norm")["status"] == "ok"


def test_wider_than_can_be_taken_in_minutes() -> None:
    wide = nn.Sequential(nn.Linear(4, MOST_WIDTH + 1), nn.Linear(MOST_WIDTH + 1, 3)).float()
    found = run(wide, data().float(), layers="blocks", jacobian_samples=0, metrics=["stable_rank"])
    skipped = row(found, "0")
    assert skipped["status"] == "skipped"
    assert skipped["note"].startswith(f"{MOST_WIDTH + 1} features are more than the {MOST_WIDTH}")
    assert "choose narrower modules with layers=" in skipped["note"]
    assert {layer["name"] for layer in found.layers} == {"0 (input)", "1"}
