"""Processes that measure their parts of the data together against one process with all of them."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, TensorDataset

import isthmus
from isthmus import InputError, IsthmusError
from isthmus._together import _words
from isthmus.geometry import StreamAccumulator
from isthmus.models import LeakyResNet, LeakyStack
from isthmus.probe._batches import Batch
from isthmus.probe._guard import untouched
from isthmus.probe._shards import _placed, _summed

SCRIPT = """
import json, sys, warnings
warnings.simplefilter("error")
from typechecked import check_annotations
check_annotations("isthmus")
import torch
import torch.distributed as dist
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
torch.use_deterministic_algorithms(True)
import isthmus
import test_measure_distributed as t

rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
said = t.of_one_of_three(rank) if size == 3 else t.of_one_process(rank, folder)
with open(f"{folder}/said-{rank}.json", "w") as file:
    json.dump(said, file)
dist.destroy_process_group()
"""

GIVEN: dict[str, dict[str, Any]] = {
    "classifier": {"loss": "cross_entropy", "baseline": "init", "jacobian_samples": 8, "alignment_samples": 12},
    "stack": {"layers": "*", "jacobian_samples": 4},
    "path": {"path": lambda x: (x, x.relu(), x.relu() - 0.5 * x), "jacobian_samples": 0},
    "few": {"max_samples": 11, "jacobian_samples": 0, "metrics": ["observations", "cost_of_identity", "loss"],
            "loss": "cross_entropy", "alignment_samples": 0},
}  # fmt: skip


UNEQUAL: dict[str, Any] = {"loss": "cross_entropy", "jacobian_samples": 4, "alignment_samples": 5}


def model_of(name: str) -> nn.Module:
    """The models, the same on every process."""
    torch.manual_seed(1)
    if name == "stack":
        blocks = [nn.Sequential(nn.ReLU(), nn.Linear(6, 6)) for _ in range(4)]
        return nn.Sequential(nn.Linear(6, 6), LeakyStack(blocks, effective_depth=2.0), nn.Linear(6, 2))
    inner = nn.Sequential(nn.Linear(10, 10), nn.BatchNorm1d(10), nn.ReLU())
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), inner, nn.Linear(10, 3))


def data_of() -> TensorDataset:
    """41 samples, so that a sampler for two processes repeats one; far from 0, so that means matter."""
    g = torch.Generator().manual_seed(2)
    return TensorDataset(torch.randn(41, 6, generator=g) + 3, torch.arange(41) % 3)


def part(rank: int, *, sampled: bool = True) -> Any:
    """What a process is given: a loader with a sampler."""
    data = data_of()
    sampler: Any = DistributedSampler(data, num_replicas=2, rank=rank, shuffle=False) if sampled else None
    return DataLoader(data, batch_size=5 if rank and sampled else 8, sampler=sampler)


def whole() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The same data for one process: part 0, then part 1 without what was repeated."""
    data = data_of()
    return [data[slice(start, 41, 2)] for start in (0, 1)]


def _error(*arguments: Any, **given: Any) -> list[str]:
    try:
        isthmus.measure(*arguments, progress=False, sharded=True, **given)
    except isthmus.IsthmusError as error:
        return [type(error).__name__, str(error)]
    return ["", ""]


def of_one_process(rank: int, folder: str) -> dict[str, Any]:
    """Everything that one of the two processes measures, and the errors it meets."""
    said: dict[str, Any] = {}
    for name, given in GIVEN.items():
        model = model_of(name)
        if rank and name == "classifier":
            model.get_buffer("2.1.running_mean").add_(7)  # as in a distributed training: every process has its own
        before = {key: value.clone() for key, value in model.state_dict().items()}
        found = isthmus.measure(model, part(rank), progress=False, sharded=True, **given)
        said[name + " untouched"] = all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
        found.table.write_parquet(f"{folder}/{name}-{rank}.parquet")
        np.savez(f"{folder}/{name}-{rank}.npz", **{key.replace("/", "."): v for key, v in found.arrays.items()})
        said[name] = {"notes": list(found.notes), "verdict": [c.text for c in found.verdict]}
    x = torch.randn(12, 6, generator=torch.Generator().manual_seed(rank))
    bad = x.clone()
    bad[9] = float("nan")
    net = model_of("few")
    said["not finite on 1"] = _error(net, [x[:6], (bad if rank else x)[6:]])
    said["not finite on 0"] = _error(net, [x[:6], (x if rank else bad)[6:]])
    said["a metric"] = _error(net, x, metrics=["no such metric"])
    said["the end"] = _error(net, part(rank), loss="cross_entropy", baseline=lambda: None)
    said["the same data"] = _error(net, part(rank, sampled=False))
    said["too few"] = _error(net, x, max_samples=1)
    said["leaky"] = _error(LeakyResNet(6, 3, width=5, depth=2, effective_depth=1.0), x)
    said["another's part"] = _error(net, part(1 - rank))
    said["options"] = _error(net, x, baseline=None if rank else "init")
    said["not to be sent"] = _error(
        net, [{"x": x, "mark": lambda: None}], forward=lambda model, batch: model(batch["x"])
    )
    said["one-hot"] = _error(net, torch.eye(6).roll(rank, 0))
    if rank:
        with torch.no_grad():
            net[0].weight.copy_(net[0].weight.flip(0))  # pyright: ignore
    said["weights"] = _error(net, x)
    said["modules"] = _error(nn.Sequential(nn.Linear(6, 6), nn.Tanh() if rank else nn.ReLU()), x)
    return said


def unequal(rank: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Parts of 5, 24 and 6 samples, in one, four and one batches."""
    g = torch.Generator().manual_seed(rank)
    return [(torch.randn(5 + rank % 2, 6, generator=g) + 3, torch.arange(5 + rank % 2) % 3)] * (1, 4, 1)[rank]


def parallel_inside() -> nn.Module:
    """A model that is no `DistributedDataParallel`, and has one in it whose buffers are broadcast."""
    torch.manual_seed(3)
    inner = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    return nn.Sequential(nn.parallel.DistributedDataParallel(inner), nn.Linear(3, 3))


def _values(found: Any) -> list[float | None]:
    return found.table["value"].to_list()


def of_one_of_three(rank: int) -> dict[str, Any]:
    """What one of three processes measures, and how it stops when another does."""
    said: dict[str, Any] = {}
    net = model_of("few")
    found = isthmus.measure(net, unequal(rank), progress=False, sharded=True, **UNEQUAL)
    said["unequal"] = _values(found)
    inside = parallel_inside()
    found = isthmus.measure(inside, unequal(rank), progress=False, sharded=True, **UNEQUAL)
    said["parallel inside"] = _values(found)
    watched = None if rank else isthmus.measure(inside, unequal(0), progress=False, **UNEQUAL)
    said["alone"] = None if watched is None else watched.table.height
    outputs: torch.Tensor = inside(unequal(rank)[0][0])
    outputs.sum().backward()
    said["trained"] = [float(p.grad.sum()) for p in inside.parameters() if p.grad is not None][:4]

    def interrupted() -> Any:
        yield unequal(rank)[0]
        if rank == 2:
            raise KeyboardInterrupt
        yield unequal(rank)[0]

    try:
        isthmus.measure(net, interrupted(), progress=False, sharded=True, jacobian_samples=0)
    except (
        KeyboardInterrupt,
        isthmus.IsthmusError,
    ) as error:  # held until all have it: it must not hold the connection
        said["interrupted"] = [type(error).__name__, str(error)]
        dist.barrier()
    merge = StreamAccumulator.merge
    if rank == 0:
        StreamAccumulator.merge = _no_room
    try:
        isthmus.measure(net, unequal(rank), progress=False, sharded=True, jacobian_samples=0)
    except (MemoryError, isthmus.IsthmusError) as error:
        said["no room"] = [type(error).__name__, str(error)]
        dist.barrier()
    StreamAccumulator.merge = merge
    return said


def _no_room(self: StreamAccumulator, parts: dict[str, torch.Tensor]) -> None:
    raise MemoryError("no room")


def run_together(folder: Path, size: int) -> list[dict[str, Any]]:
    """What each of the processes says."""
    here = Path(__file__)
    paths = os.pathsep.join([str(here.parent), str(here.parents[1]), os.environ.get("PYTHONPATH", "")])
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(rank), str(size), str(folder)], env={**os.environ, "PYTHONPATH": paths}
        )
        for rank in range(size)
    ]
    try:
        assert [process.wait(timeout=240) for process in running] == [0] * size
    finally:
        for process in running:
            process.kill()
    return [json.loads((folder / f"said-{rank}.json").read_text()) for rank in range(size)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """Both processes, once for all tests."""
    folder = tmp_path_factory.mktemp("pair")
    return folder, run_together(folder, 2)


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Three processes, once for all tests."""
    return run_together(tmp_path_factory.mktemp("trio"), 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", GIVEN)
def test_two_processes_say_what_one_does(name: str, pair: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, said = pair
    tables = [pl.read_parquet(folder / f"{name}-{rank}.parquet") for rank in range(2)]
    assert tables[0].equals(tables[1])  # to the bit, on both
    assert said[0][name] == said[1][name]
    assert said[0][name + " untouched"]
    assert said[1][name + " untouched"]
    data = whole()
    if name == "few":  # 6 of process 0, 5 of process 1
        data = [(data[0][0][:6], data[0][1][:6]), (data[1][0][:5], data[1][1][:5])]
    given = {key: value for key, value in GIVEN[name].items() if key != "max_samples"}
    one = isthmus.measure(model_of(name), data, progress=False, **given)
    table = tables[0]
    assert table.drop("value", "stderr").equals(one.table.drop("value", "stderr"))
    residual = pl.col("metric") == "identity_residual"  # roots of what is left of a difference: √ε where it is 0
    for rows, atol in ((~residual, 1e-10), (residual, 1e-7)):
        for column in ("value", "stderr"):
            values, wanted = (t.filter(rows)[column].fill_null(-9.0).to_numpy() for t in (table, one.table))
            np.testing.assert_allclose(values, wanted, rtol=1e-10, atol=atol)
    arrays = np.load(folder / f"{name}-0.npz")
    assert {key.replace(".", "/") for key in arrays} == set(one.arrays)
    for key in arrays:
        # eigenvalues carry the rounding of sums of squares: √ε of the largest
        np.testing.assert_allclose(arrays[key], one.arrays[key.replace(".", "/")], rtol=1e-10, atol=3e-7)
    assert set(table.filter(pl.col("metric") == "observations")["n"].drop_nulls()) == {11 if name == "few" else 41}


@pytest.mark.slow
def test_an_error_in_one_process_stops_both(pair: tuple[Path, list[dict[str, Any]]]) -> None:
    _, said = pair
    for failing in range(2):
        kind, text = said[failing][f"not finite on {failing}"]
        assert kind == "InputError"
        assert "not finite in batch 1" in text
        kind, other = said[1 - failing][f"not finite on {failing}"]
        assert kind == "ElsewhereError"
        assert other == f"process {failing} of 2 has stopped: {text}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("a metric", "no such metric"),
        ("the end", "baseline"),
        ("the same data", "the same first batch on process 1"),
        ("too few", "at least one sample for each of 2 processes"),
        ("leaky", "False for a Leaky ResNet"),
        ("weights", "0.weight of process 1 unlike that of process 0"),
        ("modules", "1 of process 1 unlike that of process 0"),
        ("options", "baseline: got None on process 1 and 'init' on process 0"),
    ],
)
def test_what_cannot_be_measured_together(case: str, words: str, pair: tuple[Path, list[dict[str, Any]]]) -> None:
    for one in pair[1]:
        kind, text = one[case]
        assert kind == "InputError"
        assert words in text


@pytest.mark.slow
def test_the_sampler_of_another_process(pair: tuple[Path, list[dict[str, Any]]]) -> None:
    for rank, one in enumerate(pair[1]):
        assert f"the part of process {1 - rank} of 2" in one["another's part"][1]


@pytest.mark.slow
def test_a_batch_that_cannot_be_sent_stops_both(pair: tuple[Path, list[dict[str, Any]]]) -> None:
    (kind, text), (_, other) = (one["not to be sent"] for one in pair[1])
    assert kind == "InputError"
    assert "cannot be sent to another process" in text
    assert other == f"process 0 of 2 has stopped: {text}"


@pytest.mark.slow
def test_batches_of_equal_sums_are_not_the_same(pair: tuple[Path, list[dict[str, Any]]]) -> None:
    assert [one["one-hot"] for one in pair[1]] == [["", ""]] * 2


@pytest.mark.slow
def test_three_processes_with_unequal_parts(trio: list[dict[str, Any]]) -> None:
    assert trio[0]["unequal"] == trio[1]["unequal"] == trio[2]["unequal"]
    data = [batch for rank in range(3) for batch in unequal(rank)]
    one = isthmus.measure(model_of("few"), data, progress=False, **UNEQUAL)
    together = [np.nan if v is None else v for v in trio[0]["unequal"]]
    np.testing.assert_allclose(together, [np.nan if v is None else v for v in _values(one)], rtol=1e-9, atol=1e-7)


@pytest.mark.slow
def test_a_part_that_is_data_parallel_waits_for_nobody(trio: list[dict[str, Any]]) -> None:
    assert trio[0]["parallel inside"] == trio[1]["parallel inside"] == trio[2]["parallel inside"]
    assert trio[0]["alone"]
    assert len(trio[0]["trained"]) == 4
    assert trio[0]["trained"] == trio[1]["trained"] == trio[2]["trained"]  # gradients are means again


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "at", "kind"), [("interrupted", 2, "KeyboardInterrupt"), ("no room", 0, "MemoryError")]
)
def test_a_process_that_is_gone_stops_the_others(case: str, at: int, kind: str, trio: list[dict[str, Any]]) -> None:
    assert trio[at][case][0] == kind
    for rank in {0, 1, 2} - {at}:
        name, text = trio[rank][case]
        assert name == "ElsewhereError"
        assert "another process is gone" in text


def test_a_group_of_one_process_says_what_one_does() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        together = isthmus.measure(model_of("few"), whole(), progress=False, sharded=True, **GIVEN["stack"])
        with pytest.raises(InputError, match="False for a Leaky ResNet"):
            isthmus.measure(LeakyResNet(6, 3, width=5, depth=2, effective_depth=1.0), whole(), sharded=True)
    finally:
        dist.destroy_process_group()
    alone = isthmus.measure(model_of("few"), whole(), progress=False, **GIVEN["stack"])
    assert together.table.equals(alone.table)
    assert "1 process measured" in together.notes[0]


def test_a_part_that_is_data_parallel_is_left_as_it_was() -> None:
    names = ("broadcast_buffers", "require_backward_grad_sync", "require_forward_param_sync")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        inside: Any = parallel_inside()
        inside[0].require_backward_grad_sync = False  # as within no_sync
        with untouched(inside, 0):
            assert [getattr(inside[0], name) for name in names] == [False] * 3
        assert [getattr(inside[0], name) for name in names] == [True, False, True]
    finally:
        dist.destroy_process_group()


def test_two_samples_are_sent_and_not_the_batch_that_they_are_of() -> None:
    whole = torch.randn(1000, 50)
    few = Batch((whole,), {"x": whole}, [whole], whole, {}, 1000).first(2)
    assert len(pickle.dumps(_placed(few, torch.device("cpu")))) < 20_000


def test_checksums_know_places_and_dtypes() -> None:
    for t in (torch.randn(4, 6), torch.arange(30), torch.eye(5, dtype=torch.bool), torch.randn(3, 2).half(),
              torch.randn(5, dtype=torch.complex64).conj()):  # fmt: skip
        assert _summed(t) == _summed(t.clone())
        assert _summed(t.contiguous()) == _summed(t)
        assert _summed(t) != _summed(t.roll(1, 0))
    assert _summed(torch.zeros(4)) != _summed(torch.zeros(2, 2))
    assert _summed(torch.zeros(0)) == _summed(torch.zeros(0))


def test_an_error_is_told_with_its_type_and_its_end() -> None:
    assert _words(InputError("data", 1, "two")) == "data: got 1, expected two"
    assert _words(IsthmusError("")) == "IsthmusError"
    assert _words(KeyError()) == "KeyError"
    told = _words(ValueError("Caught in a worker.\n" + "File … " * 90 + "KeyError: 7"))
    assert told.startswith("ValueError: Caught in a worker. File")
    assert told.endswith("KeyError: 7")
    assert len(told) <= 303


def test_processes_that_do_not_know_each_other() -> None:
    with pytest.raises(InputError, match=r"sharded.*torchrun"):
        isthmus.measure(model_of("few"), part(0), progress=False, sharded=True)


@pytest.mark.parametrize("inside", [False, True])
def test_a_part_alone_says_so(inside: bool) -> None:
    loader = part(1)
    if inside:
        loader = DataLoader(loader.dataset, batch_sampler=BatchSampler(loader.sampler, 4, drop_last=False))
    found = isthmus.measure(model_of("few"), loader, progress=False, jacobian_samples=0, alignment_samples=0)
    assert any("part 1 of 2" in note and "sharded=True" in note for note in found.notes)
