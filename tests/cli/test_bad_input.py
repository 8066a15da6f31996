"""One table: everything bad a user can hand in, by call and (where it can be said there) by command."""

from __future__ import annotations

import dataclasses
import math
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from isthmus import InputError, LeakyResNet
from isthmus._errors import DataWarning
from isthmus.cli import main
from isthmus.data import Task, digits, make_task, teacher
from isthmus.experiments import LeakyConfig, run_leaky

QUICK = LeakyConfig(width=32, depth=8, effective_depth=3.0, epochs=2)
QUICK_ARGUMENTS = ("--data", "teacher", "--n-train", "40", "--n-test", "20", "--width", "32", "--depth", "8",
                   "--effective-depth", "3", "--epochs", "2", "--quiet")  # fmt: skip


def table(x: Tensor, y: Tensor) -> Task:
    names = [f"c{i}" for i in range(x.shape[1])]
    return make_task("t", "regression", (x, y), (x, y), feature_names=names, description={})


def run(out: Path, task: Task | None = None, **changes: object) -> None:
    config = dataclasses.replace(QUICK, **changes)  # pyright: ignore[reportArgumentType]
    run_leaky(task or teacher(n_train=40, n_test=20), config, out, command="test", title="t", data={})


def with_value(value: float) -> Tensor:
    x = torch.randn(9, 3)
    x[4, 1] = value
    return x


Y = torch.randn(9, 2)


@dataclasses.dataclass(frozen=True)
class Case:
    """What goes in (by call, by command) and what the one sentence must say."""

    name: str
    call: Callable[[Path], object]
    command: tuple[str, ...] | None
    needles: tuple[str, ...]


CASES = [
    Case("NaN", lambda _: table(with_value(math.nan), Y), None, ("x: got 1 NaN", "row 4, column 1", "finite")),
    Case("infinite", lambda _: table(with_value(math.inf), Y), None, ("x: got 1 NaN or infinite", "row 4, column 1")),
    Case("no samples", lambda _: table(torch.zeros(0, 3), torch.zeros(0, 2)), ("--n-train", "0"), ("at least 2",)),
    Case("one sample", lambda _: table(torch.ones(1, 3), torch.ones(1, 2)), ("--n-train", "1"), ("at least 2",)),
    Case("constant target", lambda _: table(torch.randn(9, 3), torch.ones(9, 2)), None, ("y: got a constant target",)),
    Case("mismatched lengths", lambda _: table(torch.randn(8, 3), Y), None, ("y: got 9 rows", "as x (8)")),
    Case("negative effective depth", lambda p: run(p, effective_depth=-1.0), ("--effective-depth", "-1"),
         ("effective_depth: got -1.0", "at least 0")),
    Case("L ≤ L̃", lambda p: run(p, depth=3), ("--depth", "3"), ("depth: got 3", "try depth=4 or more")),
    Case("L ≤ (1 + a/4) L̃", lambda p: run(p, depth=3, steps="irregular"), ("--depth", "3", "--steps", "irregular"),
         ("depth: got 3", "try depth=4 or more")),
    Case("unknown steps", lambda p: run(p, steps="equidistent"), ("--steps", "equidistent"),
         ("did you mean 'equidistant'",)),
    Case("narrow fixed input map", lambda p: run(p, width=20, input_map="fixed"),
         ("--width", "20", "--input-map", "fixed"),
         ("width: got 20", "in_features = 30", "learned")),
    Case("narrow fixed output map", lambda p: run(p, width=20, output_map="fixed"),
         ("--width", "20", "--output-map", "fixed"), ("width: got 20", "out_features = 30")),
    Case("λ = 0 with a Hamiltonian", lambda p: run(p, ridge=0.0, metrics=("hamiltonian",)),
         ("--ridge", "0", "--metrics", "hamiltonian"), ("ridge: got 0.0", "hamiltonian", "> 0")),
    Case("unknown metric", lambda p: run(p, metrics=("hamiltonain",)), ("--metrics", "hamiltonain"),
         ("metric: got hamiltonain", "did you mean 'hamiltonian'")),
    Case("negative ridge", lambda p: run(p, ridge=-1.0), ("--ridge", "-1"), ("ridge: got -1.0",)),
    Case("γ₀ = 0", lambda p: run(p, gamma0=0.0), ("--gamma0", "0"), ("gamma0: got 0.0",)),
    Case("unknown dtype", lambda p: run(p, dtype="float16"), ("--dtype", "float16"), ("dtype: got float16",)),
    Case("unknown loss", lambda p: run(p, loss="mae"), ("--loss", "mae"), ("loss: got mae",)),
    Case("loss of the wrong kind", lambda p: run(p, loss="cross_entropy"), ("--loss", "cross_entropy"),
         ("loss: got cross_entropy", "regression")),
    Case("unknown activation", lambda p: run(p, activation="rellu"), ("--activation", "rellu"),
         ("activation: got rellu", "'relu'")),
    Case("no epochs", lambda p: run(p, epochs=0), ("--epochs", "0"), ("epochs: got 0",)),
    Case("unknown device", lambda p: run(p, device="gpu"), ("--device", "gpu"), ("device: got gpu", "cpu")),
    Case("a device without numbers", lambda p: run(p, device="meta"), ("--device", "meta"), ("device: got meta",)),
    Case("nothing left to train on", lambda p: run(p, validation_fraction=0.99), ("--validation-fraction", "0.99"),
         ("validation_fraction: got 0.99", "at least 2 samples")),
    Case("a ridge too small to divide by", lambda p: run(p, ridge=1e-300), ("--ridge", "1e-300"),
         ("ridge: got 1e-300", "at least 1e-30")),
    Case("bad seed", lambda p: run(p, seed=-1), ("--seed", "-1"), ("seed: got -1",)),
    Case("unknown data", lambda _: teacher(kind="cnn"), ("--data", "digts"), ("got", "expected")),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_by_call(case: Case, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(InputError) as caught:
        case.call(out)
    for needle in case.needles:
        assert needle in str(caught.value)
    assert not out.exists()


@pytest.mark.parametrize("case", [c for c in CASES if c.command is not None], ids=lambda c: c.name)
def test_by_command(case: Case, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert case.command is not None
    out = tmp_path / "run"
    assert main(["train", *merged(QUICK_ARGUMENTS, case.command), "--out", str(out)]) == 2
    printed = capfd.readouterr()
    assert printed.out == ""
    assert len(printed.err.strip().splitlines()) == 1
    assert printed.err.startswith("error: ")
    for needle in case.needles:
        assert needle in printed.err
    assert not out.exists()


def merged(base: tuple[str, ...], changes: tuple[str, ...]) -> list[str]:
    """`base` with the options of `changes` replaced (options given twice are refused by the parser)."""
    named = dict(zip(changes[::2], changes[1::2], strict=True))
    result: list[str] = []
    words = iter(base)
    for word in words:
        if word == "--quiet":
            result.append(word)
            continue
        value = next(words)
        result += [word, named.pop(word, value)]
    for option, value in named.items():
        result += [option, value]
    return result


@pytest.mark.parametrize("by_command", [False, True])
def test_existing_and_unwritable_folders(by_command: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    existing = tmp_path / "existing"
    existing.mkdir()
    (existing / "precious.txt").write_text("mine")
    a_file = tmp_path / "file"
    a_file.write_text("mine too")
    places = (
        (existing, "where nothing is yet"),
        (a_file / "below", "can be written"),
        (tmp_path / ("n" * 300), "can be written"),
    )
    for out, needle in places:
        if by_command:
            assert main(["train", *QUICK_ARGUMENTS, "--out", str(out)]) == 2
            assert needle in capfd.readouterr().err
        else:
            with pytest.raises(InputError, match=needle):
                run(out)
    assert [p.name for p in existing.iterdir()] == ["precious.txt"]
    assert a_file.read_text() == "mine too"


def test_constant_columns_are_kept_as_zeros_with_one_warning(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.warns(DataWarning) as caught:
        task = digits()
    assert len(caught) == 1
    for name in ("pixel_0_0", "pixel_4_0", "pixel_4_7"):
        assert f"'{name}'" in str(caught[0].message)
    assert bool((task.x_train[:, [0, 32, 39]] == 0).all())
    assert bool((task.x_test[:, [0, 32, 39]] == 0).all())
    assert task.in_features == 64
    out = tmp_path / "run"
    arguments = [
        "train",
        "--data",
        "digits",
        "--width",
        "64",
        "--depth",
        "6",
        "--effective-depth",
        "2",
        "--epochs",
        "2",
    ]
    assert main([*arguments, "--quiet", "--out", str(out)]) == 0
    assert capfd.readouterr().err.count("constant input columns") == 1


def test_unknown_command_and_option_have_hints(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert '"train"' in capfd.readouterr().err
    assert main(["train", "--data", "digits", "--dept", "3"]) == 2
    assert "--depth" in capfd.readouterr().err


def test_a_folder_that_is_no_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "run.json" in capfd.readouterr().err
    (tmp_path / "run.json").write_text('{"schema_version": 99}')
    assert main(["report", str(tmp_path)]) == 2
    assert "newer isthmus" in capfd.readouterr().err


def test_a_failure_on_the_way_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from isthmus._records import RunFolder
    from isthmus.experiments import _leaky_run

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(_leaky_run, "measure_path", fail)
    with pytest.raises(RuntimeError, match="planted"):
        run(tmp_path / "run")
    folder = RunFolder.open(tmp_path / "run")
    assert folder.run["status"] == "failed"
    assert folder.run["error"] == "planted"
    assert [p.name for p in folder] == ["checkpoint", "run.json"]  # the trained weights are not lost


def test_a_full_disk_while_results_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import polars as pl

    def full(self: pl.DataFrame, path: Path) -> None:
        path.write_bytes(b"half")
        raise pl.exceptions.ComputeError("No space left on device")

    monkeypatch.setattr(pl.DataFrame, "write_parquet", full)
    assert main(["train", *QUICK_ARGUMENTS, "--out", str(tmp_path / "run")]) == 1
    printed = capfd.readouterr().err
    assert printed.startswith("failed: ")
    assert "metrics.parquet could not be written (No space left on device)" in printed
    assert not list((tmp_path / "run").glob(".*.part"))
    assert (tmp_path / "run" / "checkpoint" / "last.pt").exists()  # the trained weights are not lost
    monkeypatch.undo()
    assert main(["train", "--resume", str(tmp_path / "run"), "--quiet"]) == 0


def test_models_refuse_wrong_input() -> None:
    net = LeakyResNet(4, 2, width=6, depth=5, effective_depth=2.0)
    with pytest.raises(InputError, match="in_features"), warnings.catch_warnings():
        net(torch.zeros(3, 5))


def test_help_needs_no_torch() -> None:
    import subprocess

    code = "import sys; from isthmus.cli import main; main(['--help']); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
