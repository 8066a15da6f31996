"""Two processes that train together against one process with all samples."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from isthmus import InputError, IsthmusError, LeakyResNet
from isthmus._errors import DivergedError
from isthmus.probe import PairWarning
from isthmus.train import FitConfig, FitResult, check_processes, fit

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
import test_distributed_fit as t

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
said = t.of_one_process(rank, folder)
with open(f"{folder}/said-{rank}.json", "w") as file:
    json.dump(said, file)
dist.destroy_process_group()
"""

SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "full batch": ({}, {"epochs": 12, "sgd_epochs": 3}),
    # 33 samples in batches of 8: the last one has a single sample, and one process none of it
    "batches": ({"bias": True, "input_map": "learned", "output_map": "learned"}, {"epochs": 6, "batch_size": 8}),
    "adaptive": ({"steps": "adaptive"}, {"epochs": 45, "pairs": 2}),
    "validation": ({}, {"epochs": 30, "learning_rate": 0.2, "validation_fraction": 0.3, "patience": 2}),
    "gradient": ({}, {"epochs": 40, "gradient_tolerance": 1.0}),
    "finish": ({}, {"epochs": 5, "finish": 9}),
    "bf16": ({"dtype": torch.float32}, {"epochs": 12, "precision": "bf16-mixed", "learning_rate": 1e-2}),
    "fp16": ({"dtype": torch.float32}, {"epochs": 1, "sgd_epochs": 12, "precision": "16-mixed",
                                        "learning_rate": 1e-3, "sgd_learning_rate": 1e-2}),
}  # fmt: skip


def samples(seed: int = 2) -> tuple[Tensor, Tensor]:
    """33 of them, so that two processes never have as many."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(33, 4, generator=g, dtype=torch.float64)
    return x, torch.tanh(x @ torch.randn(4, 2, generator=g, dtype=torch.float64))


def net(**changes: Any) -> LeakyResNet:
    return LeakyResNet(4, 2, **({"width": 6, "depth": 5, "effective_depth": 3.0, "seed": 4} | changes))


def far_off() -> LeakyResNet:
    """A network whose first objective overflows."""
    model = net()
    with torch.no_grad():
        model.weight.fill_(1e200)
    return model


def trained(name: str, **given: Any) -> tuple[LeakyResNet, FitResult]:
    """A setting trained by as many processes as call this."""
    changes, settings = SETTINGS[name]
    model, (x, y) = net(**changes), samples()
    x, y = x.to(model.weight.dtype), y.to(model.weight.dtype)
    config = FitConfig(log_points=3, **({"learning_rate": 2e-2} | settings))
    return model, fit(model, x, y, config, x_test=x[:7], y_test=y[:7], **given)


def said_of(result: FitResult) -> dict[str, Any]:
    return {"objective": result.objective, "epochs": result.epochs, "stopped": result.stopped,
            "best_epoch": result.best_epoch, "train": result.final.train, "validation": result.final.validation,
            "test": result.final.test, "logged": [entry.epoch for entry in result.log]}  # fmt: skip


def _error(function: Any) -> list[str]:
    try:
        function()
    except IsthmusError as error:
        return [type(error).__name__, str(error)]
    return ["", ""]


def of_one_process(rank: int, folder: str) -> dict[str, Any]:
    """Everything that one of the two processes trains, and the errors it meets."""
    said: dict[str, Any] = {}
    for name in SETTINGS:
        told: list[int] = []
        model, result = trained(name, distributed=True, progress=lambda epoch, *_, told=told: told.append(epoch))
        torch.save(model.state_dict(), f"{folder}/{name}-{rank}.pt")
        said[name] = said_of(result) | {"pairs": result.pairs is not None, "told": len(told)}
        if result.pairs is not None:
            result.pairs.table.write_parquet(f"{folder}/{name}.parquet")
    kept = Path(folder) / f"only on {rank}.pt"  # a file of the first process is enough
    trained("adaptive", distributed=True, checkpoint=kept, checkpoint_seconds=0)
    said["written"] = kept.exists()
    model, result = trained("adaptive", distributed=True, checkpoint=kept)
    torch.save(model.state_dict(), f"{folder}/resumed-{rank}.pt")
    x, y = samples()
    said["other data"] = _error(lambda: fit(net(), *samples(rank), FitConfig(epochs=2), distributed=True))
    said["other settings"] = _error(lambda: fit(net(), x, y, FitConfig(epochs=2 + rank), distributed=True))
    said["other model"] = _error(lambda: fit(net(depth=5 + rank), x, y, FitConfig(epochs=2), distributed=True))
    said["few"] = _error(lambda: fit(net(), x[:1], y[:1], FitConfig(epochs=2), distributed=True))
    said["both"] = _error(lambda: fit(net(), x, y, FitConfig(epochs=2), distributed=True, processes=2))
    said["diverged"] = _error(lambda: fit(far_off(), x, y, FitConfig(epochs=9), distributed=True))

    del os.environ["OMP_NUM_THREADS"]
    torch.set_num_threads(3)
    fit(net(), x, y, FitConfig(epochs=1), distributed=True)
    said["threads"] = [torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")]
    torch.set_num_threads(1)

    def stops(epoch: int, *_: Any) -> None:
        raise ValueError(f"no more at {epoch}")

    if rank:
        said["an error on 0"] = _error(lambda: fit(net(), x, y, FitConfig(epochs=9), distributed=True))
    else:
        with pytest.raises(ValueError, match="no more at 1"):
            fit(net(), x, y, FitConfig(epochs=9), distributed=True, progress=stops)
    return said


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the two processes left."""
    folder = tmp_path_factory.mktemp("together")
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent), *sys.path]),
                   "OMP_NUM_THREADS": "1"}  # fmt: skip
    running = [
        subprocess.Popen([sys.executable, "-c", SCRIPT, str(rank), str(folder)], env=environment, cwd=folder,
                         stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]  # fmt: skip
    errors = [process.communicate(timeout=500)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], "\n".join(errors)
    return folder


@pytest.fixture(scope="module")
def said(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"said-{rank}.json").read_text()) for rank in range(2)]


def _far(name: str) -> float:
    """How far weights may be apart: sums in another order; a dozen steps by gradients rounded to 8 or 11 bits."""
    return {"bf16": 1e-3, "fp16": 2e-5}.get(name, 1e-11)


@pytest.mark.parametrize("name", SETTINGS)
def test_two_processes_give_the_weights_of_one(name: str, folder: Path, said: list[dict[str, Any]]) -> None:
    torch.set_num_threads(1)
    model, result = trained(name)
    found = [torch.load(folder / f"{name}-{rank}.pt", weights_only=True) for rank in range(2)]
    begun = net(**SETTINGS[name][0]).state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(found[0][key], found[1][key]), key
        assert torch.allclose(found[0][key], value, rtol=0, atol=_far(name)), key
    moved = float((model.weight.detach() - begun["weight"]).abs().max())
    assert moved > 20 * _far(name), "a training that moved nothing would be equal, too"
    one = said_of(result)
    for other in said:
        for key in ("epochs", "stopped", "best_epoch", "logged"):
            assert other[name][key] == one[key]
        assert other[name]["objective"] == pytest.approx(one["objective"], rel=50 * _far(name))
        for split in ("train", "validation", "test"):
            assert other[name][split] == pytest.approx(one[split], rel=200 * _far(name), abs=200 * _far(name))
    assert said[0][name]["told"] >= one["epochs"]
    assert said[1][name]["told"] == 0
    assert [other[name]["pairs"] for other in said] == [result.pairs is not None, False]


def test_the_rules_were_met(said: list[dict[str, Any]]) -> None:
    assert said[0]["validation"]["stopped"] == "validation"
    assert said[0]["validation"]["best_epoch"] < said[0]["validation"]["epochs"]
    assert said[0]["gradient"]["stopped"] == "gradient"
    assert said[0]["finish"]["epochs"] > 5


def test_pairs_are_those_of_one_process(folder: Path) -> None:
    import polars as pl

    _, result = trained("adaptive")
    assert result.pairs is not None
    one, two = result.pairs.table, pl.read_parquet(folder / "adaptive.parquet")
    assert one.drop("value").equals(two.drop("value"))
    assert two["value"].to_list() == pytest.approx(one["value"].to_list(), rel=1e-9, abs=1e-11)


def test_the_first_process_keeps_the_checkpoint_and_all_go_on_from_it(folder: Path, said: list[dict[str, Any]]) -> None:
    assert [one["written"] for one in said] == [True, False]
    unbroken = torch.load(folder / "adaptive-0.pt", weights_only=True)
    for rank in range(2):
        resumed = torch.load(folder / f"resumed-{rank}.pt", weights_only=True)
        assert all(torch.equal(resumed[key], value) for key, value in unbroken.items())


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("other data", "x: got another on process 1 than on process 0, expected the same on all processes; give each"),
        ("other settings", "config: got another on process 1"),
        ("other model", "model: got another on process 1"),
        ("few", "x: got 1 samples to train on, expected at least one for each of 2 processes"),
        ("both", "processes: got 2, expected 1 with distributed=True"),
        ("diverged", "the objective is not a finite number at epoch"),
    ],
)
def test_errors_are_those_of_all(what: str, words: str, said: list[dict[str, Any]]) -> None:
    for one in said:
        assert words in one[what][1]


def test_an_error_of_the_first_process_stops_the_other(said: list[dict[str, Any]]) -> None:
    assert said[1]["an error on 0"] == ["ElsewhereError", "process 0 of 2 has stopped: ValueError: no more at 1"]


def test_numbers_of_threads_stay(said: list[dict[str, Any]]) -> None:
    assert [one["threads"] for one in said] == [[3, None]] * 2


def test_half_precision_scales_the_loss_once() -> None:
    """By SGD, which feels the size of a gradient, as Adam does not."""
    whole, half = ({"epochs": 1, "sgd_epochs": 12, "learning_rate": 1e-6, "sgd_learning_rate": 1e-2}
                   | {"precision": precision} for precision in ("true", "16-mixed"))  # fmt: skip
    ends: list[Tensor] = []
    for settings in (whole, half):
        model, (x, y) = net(dtype=torch.float32), samples()
        fit(model, x.float(), y.float(), FitConfig(**settings))
        ends.append(model.weight.detach())
    moved = (ends[0] - net(dtype=torch.float32).weight).detach()
    assert float((ends[1] - ends[0]).norm()) < 0.02 * float(moved.norm())  # rounding of 2⁻¹¹ in a dozen layers


def test_without_a_group_distributed_says_what_to_do() -> None:
    with pytest.raises(InputError, match="distributed: got True, expected processes that know each other; start them"):
        fit(net(), *samples(), FitConfig(epochs=2), distributed=True)


@pytest.mark.parametrize(("processes", "words"), [(0, "processes: got 0"), (34, "at most one for each of 33 samples")])
def test_how_many_processes(processes: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_processes(processes, 33, torch.device("cpu"))


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="processes: got 2, expected at most one for each of 1 GPUs"):
        check_processes(2, 33, torch.device("cuda"))
    with pytest.raises(InputError, match="processes: got 2, expected 1 on 'mps'"):
        check_processes(2, 33, torch.device("mps"))


def test_one_process_is_alone_whatever_a_cluster_says(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "job", "SLURM_PROCID": "1", "SLURM_LOCALID": "1", "RANK": "1",
            "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}  # fmt: skip
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    fit(net(), *samples(), FitConfig(epochs=2))
    assert {name: os.environ.get(name) for name in said} == said
    assert not dist.is_initialized()


def test_nothing_to_train() -> None:
    with pytest.raises(InputError, match="model: got no parameter with requires_grad, expected at least one to train"):
        fit(net().requires_grad_(False), *samples(), FitConfig(epochs=2))


def test_a_model_that_cannot_be_sent() -> None:
    model = net(activation=lambda z: z.relu())
    with pytest.raises(InputError, match=r"model: got .*expected a model that can be sent to other processes"):
        fit(model, *samples(), FitConfig(epochs=2), processes=2)


# ── processes that are started for one training ──────────────────────────────────────────────────────────────


def test_processes_started_here_train_the_model_that_was_given() -> None:
    model, alone = net(steps="adaptive"), net(steps="adaptive")
    x, y = samples()
    config = FitConfig(epochs=25, learning_rate=2e-2, pairs=2, log_points=3)
    told: list[tuple[int, bool]] = []
    one = fit(alone, x, y, config)
    two = fit(model, x, y, config, processes=2, progress=lambda epoch, _, log: told.append((epoch, log is not None)))
    for key, value in alone.state_dict().items():
        assert torch.allclose(model.state_dict()[key], value, rtol=0, atol=1e-11), key
    assert told == [(epoch, epoch in config.log_epochs()) for epoch in range(1, 26)]
    assert two.objective == pytest.approx(one.objective, rel=1e-10)
    assert two.pairs is not None
    assert one.pairs is not None
    assert two.pairs.table.drop("value").equals(one.pairs.table.drop("value"))
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_a_killed_process_stops_the_training_and_leaves_the_checkpoint(tmp_path: Path) -> None:
    x, y = samples()
    config, kept = FitConfig(epochs=200, learning_rate=2e-2, log_points=2), tmp_path / "last.pt"

    def kill(epoch: int, *_: Any) -> None:
        if epoch == 3:
            os.kill(multiprocessing.active_children()[1].pid or 0, signal.SIGKILL)

    model = net()
    with pytest.raises(
        IsthmusError, match=r"process . of 2 was killed \(SIGKILL\).*last\.pt, and the same call goes on"
    ):
        fit(model, x, y, config, processes=2, checkpoint=kept, checkpoint_seconds=0, progress=kill)
    assert multiprocessing.active_children() == []
    assert all(torch.equal(value, net().state_dict()[key]) for key, value in model.state_dict().items())
    fit(model, x, y, config, checkpoint=kept)  # by one process, for it is the same training
    alone = net()
    fit(alone, x, y, config)
    assert torch.allclose(model.weight, alone.weight, rtol=0, atol=1e-10)


@pytest.mark.slow
def test_a_divergence_comes_back_with_its_pairs() -> None:
    x, y = samples()
    with (
        pytest.warns(PairWarning, match="not finite at step 0") as said,
        pytest.raises(DivergedError, match="not a finite number at epoch") as caught,
    ):
        fit(far_off(), x, y, FitConfig(epochs=9, pairs=2), processes=2)
    assert caught.value.pairs is not None
    assert len(said) == 1


class Odd(nn.Module):
    """Says once how its process is set, and stops the second one."""

    calls = 0

    def forward(self, z: Tensor) -> Tensor:
        Odd.calls += 1
        mode, precision = torch.get_deterministic_debug_mode(), torch.get_float32_matmul_precision()
        warnings.warn(f"modes {mode} and {precision}", stacklevel=1)
        if dist.get_rank() == 1 and Odd.calls > 9:
            raise ValueError("odd")
        return z.relu()


@pytest.mark.slow
def test_the_error_that_came_first_and_one_of_equal_warnings_come_back() -> None:
    x, y = samples()
    torch.set_float32_matmul_precision("high")
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with pytest.warns(UserWarning, match="modes 1 and high") as said, pytest.raises(ValueError, match=r"^odd$"):
            fit(net(activation=Odd()), x, y, FitConfig(epochs=9), processes=2)
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.use_deterministic_algorithms(True)
    assert len(said) == 1


def test_a_worker_starts_no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)
    with pytest.raises(InputError, match="processes: got 2, expected 1 inside a worker of multiprocessing"):
        fit(net(), *samples(), FitConfig(epochs=2), processes=2)


STARTS = """
import torch
from isthmus import LeakyResNet
from isthmus.train import FitConfig, fit
x = torch.randn(20000, 4)  # more than what a pipe holds
{guard}
    print(fit(LeakyResNet(4, 4, width=6, depth=5, effective_depth=3.0), x, x, FitConfig(epochs=100000), processes=2))
"""


def _script(folder: Path, guard: str) -> subprocess.Popen[str]:
    (folder / "script.py").write_text(STARTS.format(guard=guard))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, str(folder / "script.py")], env=environment, text=True,
                            stderr=subprocess.PIPE, start_new_session=True)  # fmt: skip


@pytest.mark.slow
def test_a_script_without_a_guard_ends_and_says_so(tmp_path: Path) -> None:
    script = _script(tmp_path, "if True:")
    _, words = script.communicate(timeout=120)
    assert script.returncode == 1
    assert "before it began (its own words are above); what trains in several processes must be" in words


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_no_process_outlives_its_starter(training: bool, sent: signal.Signals, tmp_path: Path) -> None:
    script = _script(tmp_path, 'if __name__ == "__main__":')
    children = Path(f"/proc/{script.pid}/task/{script.pid}/children")
    if not children.parent.exists():
        pytest.skip("no /proc here")
    while len(children.read_text().split()) < 3:  # two, and multiprocessing's tracker
        time.sleep(0.05)
    if training:
        time.sleep(8)
    if sent == signal.SIGINT:
        os.killpg(script.pid, sent)  # as a terminal does
    else:
        script.kill()
    _, words = script.communicate(timeout=60)  # until nobody holds the error stream any more
    if sent == signal.SIGINT:
        assert words.count("Traceback") == 1  # of the one that was started here
