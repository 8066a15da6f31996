"""`isthmus cost`: from a table to a page, killed and gone on with, and everything bad that can be handed in."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
import torch

from isthmus._records import RunFolder
from isthmus.cli import main

SMALL = ["--width", "4", "--steps", "6", "--ridge", "1e-3", "--quiet"]
TEACHER = [
    "--data",
    "teacher",
    *["--teacher-widths", "3", "--teacher-widths", "1", "--teacher-widths", "2"],
    "--n-train",
    "12",
    "--n-test",
    "4",
]


@pytest.fixture(autouse=True)
def _as_a_users_process() -> None:
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    file = tmp_path / "houses.csv"
    rows = [f"{i % 7},{'red' if i % 3 else 'blue'},{(i % 7) ** 2 + i % 3}.5" for i in range(40)]
    file.write_text("\n".join(["size,colour,price", *rows]) + "\n")
    return file


def test_a_table_becomes_a_verdict_and_a_page(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    given = ["--data", str(table), "--target", "price", "--depths", "4,2,3", "--out", str(out), *SMALL]
    assert main(["cost", *given]) == 0
    said = capsys.readouterr()
    for text in ("Rank: R⁽⁰⁾ = ", "Regularity: ", "Slope: at L = 4", "Training: the costs are upper estimates"):
        assert text in " ".join(said.out.split())
    assert "note: depths were put in order, each once: 2, 3, 4" in said.err
    run = RunFolder.open(out)
    assert run.run["status"] == "complete"
    assert run.run["configuration"]["data"]["target"] == ["price"]
    assert run.run["task"]["name"] == "houses.csv"
    assert {p.name for p in run} == {
        "run.json", "metrics.parquet", "verdict.json", "arrays.safetensors", "report.html", "networks",
    }  # fmt: skip
    costs = run.metrics().filter(pl.col("metric") == "representation_cost")
    assert costs["index"].to_list() == [2, 3, 4]
    assert "Representation cost of houses.csv" in (out / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow  # a second process imports torch
def test_a_killed_command_goes_on_and_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    """Killed while its second network trains, of which nothing is kept."""
    options = ["cost", *TEACHER, "--depths", "2,3,4,5", *SMALL]
    assert main([*options, "--out", str(tmp_path / "whole")]) == 0
    out = tmp_path / "killed"
    child = subprocess.Popen(
        [sys.executable, "-c", "import sys, time, isthmus.experiments._cost_networks as n; fit = n.fit_ridge\n"
         "def slow(model, *a, **k):\n    time.sleep(600 if model.depth == 3 else 0)\n    return fit(model, *a, **k)\n"
         "n.fit_ridge = slow\nfrom isthmus.cli import main; sys.exit(main(sys.argv[1:]))", *options, "--out", str(out)],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while not list(out.glob("networks/seed0_L3_*/run.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert json.loads((out / "run.json").read_text())["status"] == "running"
    (first,) = out.glob("networks/*/model.safetensors")
    before = first.stat().st_mtime_ns

    assert main([*options, "--out", str(out)]) == 0
    whole, killed = RunFolder.open(tmp_path / "whole"), RunFolder.open(out)
    assert first.stat().st_mtime_ns == before
    assert killed.run["status"] == "complete"
    assert killed.metrics().equals(whole.metrics(), null_equal=True)
    assert killed.verdict() == whole.verdict()
    for kept in (tmp_path / "whole" / "networks").glob("*/model.safetensors"):
        assert (out / "networks" / kept.parent.name / kept.name).read_bytes() == kept.read_bytes()


def test_options_from_a_file_and_a_folder_named_after_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cost.toml").write_text(
        'data = "teacher"\nteacher_widths = [3, 1, 2]\nn_train = 12\nn_test = 4\ndepths = [2, 3, 4]\nwidth = 4\n'
        "steps = 500\nridge = 1e-3\nquiet = true\n"
    )
    assert main(["cost", "--config", "cost.toml", "--steps", "6"]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("cost-teacher-3-1-2-")
    assert RunFolder.open(folder).run["configuration"]["depths"] == [2, 3, 4]
    assert RunFolder.open(folder).run["configuration"]["steps"] == 6
    (tmp_path / "cost.toml").write_text('data = "teacher"\ndephts = [2]\n')
    assert main(["cost", "--config", "cost.toml"]) == 2
    assert "dephts" in capsys.readouterr().err


def test_a_dry_run_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["cost", *TEACHER, *SMALL, "--dry-run"]) == 0
    said = capsys.readouterr().out
    for text in ("networks              5", "training, at most    ", "nothing was written"):
        assert text in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "needles"),
    [
        ([], ("data: got nothing",)),
        (["--data", "digitz"], ("did you mean 'digits'",)),
        (["--data", "teacher", "--target", "y"], ("target", "it is for files")),
        ([*TEACHER, "--depths", "4,8"], ("depths: got 4,8", "at least 3 different depths")),
        ([*TEACHER, "--depths", "4,a,8"], ("depths: got a", "whole numbers", "--depths 6,8,12,16,24")),
        ([*TEACHER, "--depths", "4,8.5,9"], ("depths: got 8.5", "whole numbers")),
        ([*TEACHER, "--depths", "1,2,3"], ("depths: got 1", "at least 2")),
        ([*TEACHER, "--depths=-4,5,6"], ("depths: got -4", "at least 2")),
        ([*TEACHER, "--width", "1"], ("width: got 1", "number of outputs, 2")),
        ([*TEACHER, "--ridge", "0"], ("ridge: got 0.0", "> 0")),
        ([*TEACHER, "--ridge", "-1"], ("ridge: got -1.0", "> 0")),
        ([*TEACHER, "--steps", "0"], ("steps: got 0",)),
        ([*TEACHER, "--seeds", "0"], ("seeds: got 0",)),
        ([*TEACHER, "--jobs", "0"], ("jobs: got 0",)),
        ([*TEACHER, "--device", "tpu"], ("device: got tpu",)),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(
    options: list[str], needles: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(["cost", *options, "--quiet", "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    for needle in needles:
        assert needle in said
    assert not out.exists()


def test_a_dead_network_is_a_failure_with_advice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["cost", *TEACHER, "--depths", "2,3,4", "--width", "4", "--steps", "40", "--ridge", "3", "--quiet"]
    assert main([*options, "--out", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err
    assert "it is dead" in said
    assert "try ridge=0.3" in said
    assert RunFolder.open(tmp_path / "run").run["status"] == "failed"
