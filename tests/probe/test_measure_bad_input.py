"""Whatever cannot be used is one sentence: the argument, what was given, what is expected, and what to try."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, TensorDataset

from isthmus import InputError, IsthmusError, LeakyResNet, measure
from isthmus.probe._batches import _all_finite
from isthmus.probe._one import unwrapped

N = 20


class Two(nn.Module):
    """Inputs and parts with names."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder, self.unused = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(2, 2)

    def forward(self, left: Tensor, right: Tensor | None = None) -> Tensor:
        return self.decoder(self.encoder(left if right is None else left + right))


class Own(nn.Module):
    """Weights, and no word on how they start."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.table


class FullyShardedThing(nn.Module):
    """Stands in for `FullyShardedDataParallel`, which needs processes."""


FullyShardedThing.__name__ = "FullyShardedDataParallel"


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([])


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def x() -> Tensor:
    return torch.randn(N, 4)


def y() -> Tensor:
    return torch.arange(N) % 3


def with_nan() -> Tensor:
    bad = x()
    bad[13, 2] = float("nan")
    return bad


Data = Callable[[], Any]
BAD: dict[str, tuple[Data, Data, dict[str, Any], str, tuple[str, ...]]] = {
    # model, data, options, the argument, and parts of the message
    "unknown layer": (Two, x, {"layers": "encodr"}, "layers",
                      ("got encodr", "pattern that matches a module's name", "did you mean 'encoder'")),
    "unknown layer among others": (Two, x, {"layers": ["decoder", "blocks.*"]}, "layers", ("got blocks.*", "known:")),
    "no layers": (Two, x, {"layers": ()}, "layers", ("got nothing", "'blocks', '*'")),
    "a layer that is never called": (Two, x, {"layers": "unused"}, "layers",
                                     ("unused", "modules that a forward pass calls", "never called")),
    "width": (plain, lambda: torch.randn(N, 5), {}, "data",
              ("(2, 5)", "what 0, Linear(in_features=4", "which met (2, 5)", "5 and 4x8", "forward=lambda model,")),
    "width, later": (Two, lambda: [x(), torch.randn(3, 7)], {}, "data", ("(3, 7)", "encoder, Linear", "3x7")),
    "images for vectors": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3)), lambda: torch.randn(5, 2, 8, 8), {}, "data",
                           ("(2, 2, 8, 8)", "0, Conv2d(3, 4", "3 channels")),
    "token out of range": (lambda: nn.Sequential(nn.Embedding(6, 3)), lambda: torch.tensor([[1, 9]]), {}, "data",
                           ("0, Embedding(6, 3)", "out of range")),
    "whole numbers for reals": (plain, lambda: torch.arange(40).reshape(10, 4), {}, "data", ("Linear", "dtype")),
    "too many inputs": (plain, lambda: [(x(), x(), y())], {}, "data", ("Sequential", "positional arguments")),
    "NaN": (plain, with_nan, {"batch_size": 5}, "data",
            ("not finite in batch 2 (input 0)", "finite numbers", "remove or impute")),
    "infinity, by name": (Two, lambda: {"left": x() / 0, "right": x()}, {}, "data", ("batch 0 (left)",)),
    "sparse": (plain, lambda: [x().to_sparse()], {}, "data", ("a sparse tensor of shape (20, 4)", "make it dense")),
    "NaN among sparse": (plain, lambda: [with_nan().to_sparse()], {}, "data", ("not finite in batch 0",)),
    "empty": (plain, lambda: x()[:0], {}, "data", ("got no samples", "at least one sample")),
    "no batches": (plain, list, {}, "data", ("got no samples",)),
    "no batches in a loader": (plain, lambda: DataLoader(Stream()), {}, "data", ("got no samples",)),
    "one number": (plain, lambda: torch.tensor(1.0), {}, "data", ("got ()", "samples in the first dimension")),
    "unequal tensors": (plain, lambda: (x(), y()[:7]), {}, "data", ("(20, 4), (7,)", "equally many in each")),
    "unequal mapping": (Two, lambda: {"left": x(), "right": x()[1:]}, {}, "data", ("(20, 4), (19, 4)",)),
    "an int": (plain, lambda: 42, {}, "data", ("got int", "a DataLoader, or an iterable of batches")),
    "None": (plain, lambda: None, {}, "data", ("got NoneType", "a tensor, an array")),
    "a path": (plain, lambda: "data.npz", {}, "data", ("got str", "a tensor, an array")),
    "batches of nothing": (plain, lambda: [{"a": "b"}], {}, "data", ("batch 0 of type dict", "that hold tensors")),
    "batches of lists of numbers": (plain, lambda: [[1.0, 2.0]], {}, "data", ("batch 0 of type list", "hold tensors")),
    "an array of objects": (plain, lambda: np.array([{}, 1], dtype=object), {}, "data", ("array of object", "numbers")),
    "an array of strings": (plain, lambda: np.array(["a", "b"]), {}, "data", ("array of <U1", "numbers")),
    "keys": (Two, lambda: {"lft": x(), "right": x()}, {}, "data",
             ("the keys lft, right", "arguments of Two.forward (left, right)", "leave out 'lft'", "forward=")),
    "read twice, baseline": (plain, lambda: (b for b in [x()]), {"baseline": "init"}, "data",
                             ("got generator", "read twice, for baseline", "tensors, a DataLoader, or a list")),
    "read twice, path": (plain, lambda: iter([x()]), {"path": lambda b: [b, b]}, "data", ("read twice, for path",)),
    "target rank": (plain, lambda: (x(), y()[:, None, None]), {"loss": "cross_entropy"}, "targets",
                    ("(20, 1, 1)", "outputs (20, 3)", "the loss 'cross_entropy' accepts")),
    "target range": (plain, lambda: (x(), y() + 1), {"loss": "cross_entropy"}, "targets", ("3 is out of bounds",)),
    "target dtype": (plain, lambda: (x(), y().double()), {"loss": "cross_entropy"}, "targets", ("torch.float64",)),
    "target width": (plain, lambda: (x(), x()), {"loss": "square"}, "targets",
                     ("(20, 4)", "the shape of the outputs (20, 3)")),
    "too few targets": (plain, x, {"targets": y()[:7], "loss": "cross_entropy"}, "targets", ("7 rows", "20 samples")),
    "too many targets": (plain, x, {"targets": torch.arange(25) % 3}, "targets", ("25 rows", "20 samples")),
    "too few targets for a stream": (plain, lambda: (b for b in x().split(6)), {"targets": y()[:15]}, "targets",
                                     ("15 rows", "sample 18 of the data has none")),
    "targets of a batch sampler that shuffles": (
        plain, lambda: DataLoader(TensorDataset(x()), batch_sampler=BatchSampler(RandomSampler(x()), 5, False)),
        {"targets": y(), "loss": "cross_entropy"}, "targets", ("targets inside the batches of a shuffled loader",),
    ),
    "targets of a shuffled loader": (
        plain, lambda: DataLoader(TensorDataset(x()), shuffle=True), {"targets": y(), "loss": "cross_entropy"},
        "targets", ("got a tensor", "targets inside the batches of a shuffled loader", "shuffle=False"),
    ),
    "no targets": (plain, x, {"loss": "cross_entropy"}, "targets",
                   ("none in the data", "targets for the loss 'cross_entropy'", "give targets=")),
    "no targets for a Leaky ResNet": (lambda: LeakyResNet(4, 3, width=5, depth=3, effective_depth=1.0), x,
                                      {"loss": "square"}, "targets", ("none in the data", "'square'")),
    "key of the targets": (Two, lambda: {"left": x(), "kind": y()}, {"targets": "knd", "loss": "cross_entropy"},
                           "targets", ("got knd", "a key of the batches (left, kind)")),
    "index of the targets": (plain, lambda: (x(), y()), {"targets": 5}, "targets", ("got 5", "batches of 2 items")),
    "targets of another kind": (plain, x, {"targets": [0, 1]}, "targets", ("got list", "a tensor or array")),
    "loss": (plain, lambda: (x(), y()), {"loss": "cross-entropy"}, "loss",
             ("cross_entropy, square, model, or a callable", "did you mean 'cross_entropy'?")),
    "a loss per sample": (plain, lambda: (x(), y()), {"loss": lambda o, t: o.sum(1)}, "loss",
                          ("one number, the mean over the batch",)),
    "a loss that is constant": (plain, lambda: (x(), y()), {"loss": lambda o, t: torch.tensor(1.0)}, "loss",
                                ("without a gradient", "depends on the model's activations")),
    "a loss that the model has not": (plain, lambda: (x(), y()), {"loss": "model"}, "loss",
                                      ("a model whose output has a loss", "labels")),
    "metric": (plain, x, {"metrics": ["stable_rnk"]}, "metric", ("got stable_rnk", "did you mean 'stable_rank'")),
    "metric of another model": (plain, x, {"metrics": ["hamiltonian"]}, "metrics",
                                ("got hamiltonian", "a Leaky ResNet", "known: ")),
    "one Jacobian": (plain, x, {"jacobian_samples": 1}, "jacobian_samples", ("got 1", "0, or at least 2")),
    "fewer Jacobians": (plain, x, {"jacobian_samples": -2}, "jacobian_samples", ("got -2",)),
    "max_samples": (plain, x, {"max_samples": 0}, "max_samples", ("got 0", "at least 1, or None for all")),
    "batch_size": (plain, x, {"batch_size": 0}, "batch_size", ("got 0", "at least 1")),
    "max_memory": (plain, x, {"max_memory": 0}, "max_memory", ("got 0", "a number of bytes > 0")),
    "too little memory": (plain, x, {"max_memory": 16}, "layers",
                          ("at least one module that can be measured", "raise max_memory", "layers=")),
    "seed": (plain, x, {"seed": -1}, "seed", ("got -1", "an integer in [0, 2**63)")),
    "sharded": (FullyShardedThing, x, {}, "model",
                ("FullyShardedDataParallel", "weights are whole on this process", "gather its full state dict")),
    "meta": (lambda: nn.Linear(4, 3, device="meta"), x, {}, "model", ("meta device", "hold numbers", "load them")),
    "a device that is not there": (plain, x, {"device": "cuda:99"}, "device", ("cuda:99", "of this machine", "'cpu'")),
    "a device that is none": (plain, x, {"device": "gpu"}, "device", ("got gpu", "try 'cpu'")),
    "a baseline that cannot start": (lambda: nn.Sequential(Own()), x, {"baseline": "init"}, "baseline",
                                     ("0, a Own", "no reset_parameters", "give baseline=a fresh model")),
    "baseline": (plain, x, {"baseline": "fresh"}, "baseline", ("got fresh", "'init', a model, a callable")),
    "a baseline that makes no model": (plain, x, {"baseline": dict}, "baseline", ("got dict", "makes a torch.nn.")),
    "path": (Two, x, {"path": "encodr"}, "path", ("got encodr", "the name of a method of the model")),
    "path of another kind": (Two, x, {"path": 3}, "path", ("got int", "a callable, the name of a method, or False")),
    "a path of one": (Two, x, {"path": lambda b: [b]}, "path", ("1 items of list", "at least two representations")),
    "data for a Leaky ResNet": (lambda: LeakyResNet(6, 3, width=5, depth=3, effective_depth=1.0), x, {}, "data",
                                ("(20, 4)", "(samples, 6)")),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence(name: str) -> None:
    make, data, options, argument, parts = BAD[name]
    with pytest.raises(InputError) as caught:
        measure(make(), data(), progress=False, **options)
    said = str(caught.value)
    assert caught.value.argument == argument, said
    assert said.startswith(f"{argument}: got "), said
    assert ", expected " in said
    assert "\n" not in said
    for part in parts:
        assert part in said, said


@pytest.mark.parametrize("model", [torch.relu, Two, None, "model.pt"])
def test_what_is_no_module(model: Any) -> None:
    kind = type(model).__name__  # (the type checker of the tests would refuse it as an argument of `measure`)
    with pytest.raises(InputError, match=rf"^model: got {kind}, expected a torch\.nn\.Module$"):
        unwrapped(model)


def test_devices_that_differ() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2, device="meta"))
    with pytest.raises(InputError, match=r"^model: got weights on the meta device"):
        measure(model, x(), progress=False)


def test_every_module_failed() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * float("nan")

    with pytest.raises(InputError, match=r"^layers: got \*, expected at least one module.*\(model\): .*not finite"):
        measure(Broken(), x(), layers="*", progress=False)


def test_the_own_error_of_a_model_is_not_bad_input() -> None:
    class Own(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ZeroDivisionError("nothing left")

    with pytest.raises(IsthmusError, match=r"ZeroDivisionError in \(model\), Own.*batch 0: nothing left") as caught:
        measure(Own(), x(), progress=False)
    assert not isinstance(caught.value, InputError)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning")
@pytest.mark.parametrize("finite", [True, False])
def test_numbers_of_every_layout_are_checked(finite: bool) -> None:
    whole = torch.randn(6, 5)
    whole[3, 2] = 0.5 if finite else float("nan")
    for t in (
        whole, whole.half(), whole.bfloat16(), whole.to(torch.float8_e4m3fn), whole.to(torch.float8_e5m2),
        whole.mT[::2], whole[3:4].expand(7, 5), whole[3, 2], whole.to_sparse(), whole.to_sparse_csr(),
        torch.nested.nested_tensor([whole[:2], whole[2:]], layout=torch.jagged),
    ):  # fmt: skip
        assert _all_finite(t) is finite
    assert _all_finite(whole[:0])


def test_what_looks_like_bad_input_and_is_not() -> None:
    model = plain()
    for data, options in {
        "one unknown key, one input": ({"pixels": x()}, {}),
        "a batch of one": (x()[:1], {}),
        "a single number per sample": (torch.randn(N, 1), {"forward": lambda m, b: m(b.expand(-1, 4))}),
        "empty batches among others": ([x()[:0], x(), x()[:0]], {}),
        "a mask with infinities": ({"left": x(), "mask": torch.full((N, 4), float("-inf"))},
                                   {"forward": lambda m, b: m(b["left"])}),
        "one metric alone": (x(), {"metrics": "stable_rank"}),
        "targets as an array": (x(), {"targets": y().numpy(), "loss": "cross_entropy"}),
        "one float": (x(), {"max_memory": 1e9}),
    }.values():  # fmt: skip
        assert measure(model, data, progress=False, **options).layers
