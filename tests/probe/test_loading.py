from __future__ import annotations

import pickle
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from isthmus import InputError
from isthmus.probe._loading import choose_arrays, load_arrays, load_factory, load_weights

MODULE = """
import torch
from torch import nn
import {helper}

class Net(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.first = nn.Linear(2, width)

class Zoo:
    model = nn.Linear(4, 1)

def build(width=3):
    import {helper}_lazy
    return nn.Linear(2, width * {helper}.FACTOR)

def fails():
    raise KeyError("no such\\nlayer")

def pair():
    return nn.Linear(2, 2), 1

loaded = nn.Linear(5, 5)
number = 3
"""


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[str]:
    """A module in the current directory, with two neighbours it imports; its name is used by this test alone."""
    name = "loading_" + re.sub(r"\W", "_", request.node.name).lower()
    (tmp_path / f"{name}.py").write_text(MODULE.format(helper=f"{name}_helper"))
    (tmp_path / f"{name}_helper.py").write_text("FACTOR = 2\n")
    (tmp_path / f"{name}_helper_lazy.py").write_text("")
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield name
    for added in set(sys.modules) - before:
        del sys.modules[added]


def refused(match: str, argument: str, call: Any, *args: Any, **options: Any) -> str:
    with pytest.raises(InputError, match=match) as caught:
        call(*args, **options)
    assert caught.value.argument == argument
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_functions_classes_models_and_dotted_names(name: str) -> None:
    path = list(sys.path)
    built = load_factory(f"{name}:build")
    assert isinstance(built, nn.Linear)
    assert built.out_features == 6
    assert load_factory(f"{name}:build", {"width": 5}).out_features == 10
    assert load_factory(f"{name}:Net", {"width": 4}).first.out_features == 4
    assert load_factory(f"{name}:loaded").in_features == 5
    assert load_factory(f"{name}:Zoo.model").in_features == 4
    assert sys.path == path


@pytest.mark.parametrize("folder", [".", "inner"])
def test_a_file_imports_its_neighbours(name: str, tmp_path: Path, folder: str) -> None:
    inner = tmp_path / folder
    inner.mkdir(exist_ok=True)
    for file in list(tmp_path.glob("*.py")):
        file.rename(inner / file.name)
    path = list(sys.path)
    model = load_factory(f"{inner / name}.py:build", {"width": 1})
    assert model.out_features == 2
    assert load_factory(f"{folder}/{name}.py:Net").first.out_features == 3
    assert sys.path == path


def test_the_path_is_restored_after_errors_and_keeps_what_was_there(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = list(sys.path)
    refused("it raised", "model", load_factory, f"{name}:fails")
    assert sys.path == path
    monkeypatch.syspath_prepend(str(tmp_path))
    load_factory(f"{name}:build")
    assert str(tmp_path) in sys.path  # it was the caller's


def test_specs_that_name_nothing(name: str, tmp_path: Path) -> None:
    assert "'torch.nn:Linear'" in refused("path/to/file.py:factory", "model", load_factory, "torch.nn.Linear")
    assert "model.py:build" in refused("path/to/file.py", "model", load_factory, "model.py")
    refused("path/to/file.py", "model", load_factory, ":build")
    refused("path/to/file.py", "model", load_factory, f"{name}:")
    refused("path/to/file.py", "model", load_factory, f"{name}:build()")
    refused("is neither", "model", load_factory, "my-module:build")
    assert f"{name}'" in refused("is not found", "model", load_factory, f"{name[:-1]}:build")
    assert "'torch.nn'" in refused("'torch.nnn' is not found", "model", load_factory, "torch.nnn:Linear")
    assert f"{name}.py" in refused("is not", "model", load_factory, f"{tmp_path}/{name}s.py:build")
    assert "'build'" in refused("the module has no 'biuld'", "model", load_factory, f"{name}:biuld")
    assert "'Net'" in refused("has no 'qqq'", "model", load_factory, f"{name}:qqq")
    assert "'model'" in refused("Zoo has no 'modle'", "model", load_factory, f"{name}:Zoo.modle")


def test_modules_that_cannot_be_imported(name: str, tmp_path: Path) -> None:
    for body, said in {
        "import no_such_dependency_here": "needs 'no_such_dependency_here'",
        "def broken(:": "SyntaxError",
        "1 / 0": "ZeroDivisionError: division by zero",
        "raise SystemExit(3)": "__main__",
    }.items():
        file = tmp_path / f"{name}_bad{len(said)}.py"
        file.write_text(body)
        refused(re.escape(said), "model", load_factory, f"{file}:build")
        refused(re.escape(said), "model", load_factory, f"{file.stem}:build")


def test_factories_that_give_no_model(name: str) -> None:
    refused("KeyError: 'no such", "model", load_factory, f"{name}:fails")
    with pytest.raises(InputError) as caught:
        load_factory(f"{name}:fails")
    assert isinstance(caught.value.__cause__, KeyError)
    refused("returned a tuple", "model", load_factory, f"{name}:pair")
    refused("it is a int", "model", load_factory, f"{name}:number")
    refused("model already", "model", load_factory, f"{name}:loaded", {"width": 3})
    assert "did you mean 'width'" in refused("'wdith' is none", "model", load_factory, f"{name}:build", {"wdith": 3})
    refused("missing 2 required", "model", load_factory, "torch.nn:Linear")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.body = nn.Linear(3, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def same(first: nn.Module, second: nn.Module) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("kind", ["safetensors", "pt", "pth", "bin", "ckpt"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_orig_mod.module."])
def test_weights_of_every_kind(tmp_path: Path, kind: str, prefix: str) -> None:
    source, model = network(), network()
    state = {prefix + k: v for k, v in source.state_dict().items()}
    file = tmp_path / f"w.{kind}"
    safetensors.torch.save_file(state, file) if kind == "safetensors" else torch.save(state, file)
    assert not same(source, model)
    load_weights(model, file)
    assert same(source, model)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_weights_inside_a_checkpoint(tmp_path: Path, key: str) -> None:
    source, model = network(), network()
    torch.save({"epoch": 3, "best": torch.tensor(0.5), key: source.state_dict(), "optimizer": {}}, tmp_path / "c.ckpt")
    load_weights(model, str(tmp_path / "c.ckpt"))
    assert same(source, model)


def test_a_model_whose_own_names_have_the_prefix(tmp_path: Path) -> None:
    source, model = (nn.ModuleDict({"module": nn.Linear(2, 2)}) for _ in range(2))
    torch.save(source.state_dict(), tmp_path / "w.pt")
    load_weights(model, tmp_path / "w.pt")
    assert same(source, model)


def test_the_dtype_is_the_models(tmp_path: Path) -> None:
    model = nn.Linear(2, 2).float()
    weight = torch.randn(2, 2)
    safetensors.torch.save_file({"weight": weight, "bias": torch.zeros(2)}, tmp_path / "w.safetensors")
    load_weights(model, tmp_path / "w.safetensors")
    assert model.weight.dtype == torch.float32
    assert torch.equal(model.weight, weight.float())
    assert model.weight.requires_grad


@pytest.mark.parametrize("dropped", ["head.weight", "embed.weight"])
def test_tied_weights_saved_once(tmp_path: Path, dropped: str) -> None:
    source, model = Tied(), Tied()
    state = {k: v for k, v in source.state_dict().items() if k != dropped}
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    load_weights(model, tmp_path / "w.safetensors")
    assert same(source, model)
    assert model.head.weight is model.embed.weight


def test_tied_weights_that_differ_in_the_file(tmp_path: Path) -> None:
    state = {k: v.clone() for k, v in Tied().state_dict().items()}
    state["head.weight"] += 1
    torch.save(state, tmp_path / "w.pt")
    refused("one tensor in the model", "weights", load_weights, Tied(), tmp_path / "w.pt")


def test_names_that_torch_itself_forgives(tmp_path: Path) -> None:
    source, model = network(), network()  # files of torch before 0.4.1 have no counter of batches
    state = {k: v for k, v in source.state_dict().items() if "num_batches" not in k}
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    load_weights(model, tmp_path / "w.safetensors")
    assert same(source, model)


def test_weights_that_do_not_fit_change_nothing(tmp_path: Path) -> None:
    full = network().state_dict()
    cases: dict[str, tuple[dict[str, Tensor], list[str]]] = {
        "missing": ({k: v for k, v in full.items() if not k.startswith("0.")}, ["2 missing: '0.weight', '0.bias'"]),
        "renamed": ({k.replace("2.bias", "2.bais"): v for k, v in full.items()},
                    ["1 missing: '2.bias'", "1 unexpected: '2.bais'", "is '2.bais' the model's '2.bias'?"]),
        "many": ({**full, **{f"extra{i}": torch.ones(1) for i in range(5)}},
                 ["5 unexpected: 'extra0', 'extra1', 'extra2' …", "strict=False"]),
        "shape": ({**full, "2.weight": torch.ones(2, 9)}, ["1 of a wrong shape", "(2, 9)", "(2, 4)"]),
        "nothing": ({"other": torch.ones(1)}, ["none of its 1 names"]),
        "complex": ({**full, "2.bias": torch.ones(2, dtype=torch.complex128)}, ["complex"]),
    }  # fmt: skip
    for name, (state, said) in cases.items():
        torch.save(state, tmp_path / f"{name}.pt")
        model = network()
        before = {k: v.clone() for k, v in model.state_dict().items()}
        message = refused("fit the model", "weights", load_weights, model, tmp_path / f"{name}.pt")
        assert [s for s in said if s not in message] == [], message
        assert all(torch.equal(before[k], v) for k, v in model.state_dict().items()), name


def test_without_strict_what_fits_is_loaded(tmp_path: Path) -> None:
    source, model = network(), network()
    file = tmp_path / "w.safetensors"
    kept = model[0].weight.clone()
    state = {k: v for k, v in source.state_dict().items() if k != "0.weight"}
    safetensors.torch.save_file({**state, "extra": torch.ones(1)}, file)
    load_weights(model, file, strict=False)
    assert torch.equal(model[2].weight, source[2].weight)
    assert torch.equal(model[0].weight, kept)
    safetensors.torch.save_file({**state, "2.weight": torch.ones(1)}, file)
    refused("wrong shape", "weights", load_weights, model, file, strict=False)
    safetensors.torch.save_file({"extra": torch.ones(1)}, file)
    refused("none of its 1 names", "weights", load_weights, model, file, strict=False)


class Payload:
    """A pickle that writes a file when it is opened."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.file, "ran")


@pytest.mark.parametrize("protocol", [0, 2, 4, None])
def test_a_malicious_pickle_does_not_run(tmp_path: Path, protocol: int | None) -> None:
    trace, file = tmp_path / "trace", tmp_path / "w.pt"
    if protocol is None:
        torch.save({"weight": torch.ones(1), "evil": Payload(trace)}, file)
    else:
        file.write_bytes(pickle.dumps(Payload(trace), protocol))
    refused("may run code", "weights", load_weights, nn.Linear(1, 1), file)
    refused("may run code", "data", load_arrays, file)
    assert not trace.exists()
    if protocol is None:
        torch.load(file, weights_only=False)
    else:
        pickle.loads(file.read_bytes())
    assert trace.read_text() == "ran"  # the payload works; only nobody ran it


@pytest.mark.parametrize("form", ["module", "checkpoint"])
def test_the_line_that_converts_a_trusted_pickle_works(tmp_path: Path, form: str) -> None:
    source, model = network(), network()
    file = tmp_path / "w.pt"
    torch.save(source if form == "module" else {"model": source.state_dict(), "path": tmp_path}, file)
    message = refused("convert it to safetensors", "weights", load_weights, model, file)
    found = re.search(r"`(.*)`", message)
    assert found
    exec(found.group(1), {})
    load_weights(model, tmp_path / "w.safetensors")
    assert same(source, model)


def test_files_that_hold_no_weights(tmp_path: Path) -> None:
    model = network()
    (tmp_path / "folder.pt").mkdir()
    refused("this is a folder", "weights", load_weights, model, tmp_path / "folder.pt")
    refused("known type", "weights", load_weights, model, tmp_path / "w.h5")
    (tmp_path / "model.pt").write_bytes(b"")
    assert "'model.pt'" in refused("is there", "weights", load_weights, model, tmp_path / "modle.pt")
    refused("is empty", "weights", load_weights, model, tmp_path / "model.pt")
    for raw in (b"hello world", b"PK\x03\x04junk", b"\x80\x02junk", b"<html>not found</html>"):
        (tmp_path / "x.pt").write_bytes(raw)
        refused("readable .pt|may run code", "weights", load_weights, model, tmp_path / "x.pt")
    (tmp_path / "x.pt").write_bytes(b"<html>not found</html>")
    refused("not what torch.save writes", "weights", load_weights, model, tmp_path / "x.pt")
    (tmp_path / "x.safetensors").write_bytes(b"hello world, this is no header")
    refused("readable .safetensors", "weights", load_weights, model, tmp_path / "x.safetensors")
    for odd in ([torch.ones(1)], torch.ones(1), {"epoch": 3}, {1: torch.ones(1)}, {}):
        torch.save(odd, tmp_path / "odd.pt")
        refused("a dictionary of tensors by name", "weights", load_weights, model, tmp_path / "odd.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still found in the wild
        torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)).save(tmp_path / "ts.pt")
    refused("TorchScript", "weights", load_weights, model, tmp_path / "ts.pt")


def test_arrays_of_every_kind_keep_their_precision(tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).normal(size=(5, 3)), np.arange(5)
    np.savez(tmp_path / "a.npz", x=x, y=y)
    torch.save({"x": torch.from_numpy(x), "y": torch.from_numpy(y)}, tmp_path / "a.pt")
    safetensors.torch.save_file({"x": torch.from_numpy(x), "y": torch.from_numpy(y)}, tmp_path / "a.safetensors")
    for kind in ("npz", "pt", "safetensors"):
        found = load_arrays(tmp_path / f"a.{kind}")
        assert sorted(found) == ["x", "y"]
        assert found["x"].dtype == torch.float64
        assert found["y"].dtype == torch.int64
        assert np.array_equal(found["x"].numpy(), x)
        assert np.array_equal(found["y"].numpy(), y)
    np.save(tmp_path / "a.npy", x.astype(">f4")[:, ::-1])
    torch.save(nn.Parameter(torch.from_numpy(x)), tmp_path / "b.pt")
    single = load_arrays(str(tmp_path / "a.npy"))
    assert list(single) == ["x"]
    assert np.array_equal(single["x"].numpy(), x.astype(np.float32)[:, ::-1])
    assert not load_arrays(tmp_path / "b.pt")["x"].requires_grad
    np.savez(tmp_path / "u.npz", a=np.array([1, 65535], np.uint16), b=np.array([True, False]), c=np.ones(2, np.uint8))
    unsigned = load_arrays(tmp_path / "u.npz")
    assert unsigned["a"].tolist() == [1, 65535]
    assert [v.dtype for v in unsigned.values()] == [torch.int64, torch.bool, torch.uint8]


def test_arrays_that_cannot_be_used(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    evil = np.array([Payload(trace)], dtype=object)
    cases: dict[str, tuple[dict[str, Any], str]] = {
        "object": ({"x": evil}, "object array"),
        "text": ({"x": np.array(["a", "b"])}, "'x' is of <U1"),
        "empty": ({"x": np.zeros((0, 3))}, r"'x' has shape \(0, 3\)"),
        "scalar": ({"x": np.ones(2), "lr": np.array(0.1)}, "'lr' is a single number"),
        "lengths": ({"x": np.ones((3, 2)), "y": np.ones(4)}, "'x' has 3, 'y' has 4"),
        "none": ({}, "at least one array"),
        "large": ({"x": np.array([2**63], np.uint64)}, "larger"),
    }
    for name, (arrays, said) in cases.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
        refused(said, "data", load_arrays, tmp_path / f"{name}.npz")
    np.save(tmp_path / "evil.npy", evil)
    refused("object array", "data", load_arrays, tmp_path / "evil.npy")
    (tmp_path / "pickle.npy").write_bytes(pickle.dumps(Payload(trace)))
    refused("perhaps a pickle", "data", load_arrays, tmp_path / "pickle.npy")
    assert not trace.exists()
    (tmp_path / "cut.npz").write_bytes((tmp_path / "lengths.npz").read_bytes()[:100])
    refused("readable .npz", "data", load_arrays, tmp_path / "cut.npz")
    np.save(tmp_path / "cut.npy", np.ones(100))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:300])
    refused("readable .npy", "data", load_arrays, tmp_path / "cut.npy")
    torch.save({"x": torch.ones(2), "note": "hello"}, tmp_path / "odd.pt")
    refused("'note' is no named tensor", "data", load_arrays, tmp_path / "odd.pt")
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    refused("holds a list", "data", load_arrays, tmp_path / "list.pt")
    torch.save(torch.eye(2).to_sparse(), tmp_path / "sparse.pt")
    refused("to_dense", "data", load_arrays, tmp_path / "sparse.pt")
    refused("known type", "data", load_arrays, tmp_path / "a.csv")


def test_choice_of_inputs_and_targets() -> None:
    a, b, y = torch.ones(2, 1), torch.ones(2, 2), torch.ones(2, 3)
    assert choose_arrays({"y": y}) == (y, None)
    for name in ("y", "labels", "label", "targets", "target"):
        assert choose_arrays({name: y, "a": a}) == (a, y)
    several, target = choose_arrays({"b": b, "y": y, "a": a})
    assert isinstance(several, dict)
    assert list(several) == ["b", "a"]
    assert target is y
    assert choose_arrays({"a": a, "b": b, "y": y}, ["b"]) == (b, y)
    assert choose_arrays({"a": a, "b": b, "y": y}, ["b"], "a") == (b, a)
    assert choose_arrays({"a": a, "y": y}, (), "a") == (y, a)
    assert choose_arrays({"a": a, "y": y}, ["y"]) == (y, None)
    assert choose_arrays({"a": a}, "a") == (a, None)
    ordered, nothing = choose_arrays({"a": a, "b": b}, ["b", "a"])
    assert isinstance(ordered, dict)
    assert list(ordered) == ["b", "a"]
    assert nothing is None


def test_choices_that_cannot_be_made() -> None:
    arrays = {"images": torch.ones(2, 1), "labels": torch.ones(2), "y": torch.ones(2)}
    assert "'images'" in refused("array of the file", "inputs", choose_arrays, arrays, ["image"])
    assert "'labels'" in refused("array of the file", "targets", choose_arrays, arrays, [], "labls")
    refused("one array of targets", "targets", choose_arrays, arrays)
    refused("stands twice", "inputs", choose_arrays, arrays, ["y", "y"])
    refused("stands twice", "inputs", choose_arrays, arrays, ["y"], "y")
    refused("not the targets", "inputs", choose_arrays, {"y": torch.ones(2)}, [], "y")
