"""A killed `isthmus train` resumes and ends with the numbers of an unbroken one; TOML files and dry runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from isthmus._records import RunFolder
from isthmus.cli import main

NETWORK = ["--width", "32", "--depth", "8", "--effective-depth", "3", "--steps", "adaptive",
           "--seed", "5", "--quiet"]  # fmt: skip
OPTIONS = ["--data", "teacher", "--n-train", "200", "--n-test", "60", "--epochs", "600", *NETWORK]


@pytest.fixture(autouse=True)
def _as_a_users_process() -> None:
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("data", [pytest.param("teacher", marks=pytest.mark.slow), "a user's table"])
def test_a_killed_command_ends_as_an_unbroken_one(data: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = OPTIONS
    if data != "teacher":
        table = tmp_path / "table.csv"
        rows = [f"{i % 7},{'red' if i % 3 else 'blue'},{(i % 7) ** 2 + i % 3}.5" for i in range(120)]
        table.write_text("\n".join(["size,colour,price", *rows]) + "\n")
        options = ["--data", str(table), "--target", "price", "--epochs", "40", "--batch-size", "32", *NETWORK]
    assert main(["train", *options, "--out", str(tmp_path / "whole")]) == 0
    command = [sys.executable, "-c",
               "import sys, time, functools, isthmus.train._loop as l, isthmus.experiments._leaky_run as r\n"
               "save, saved = l.save_checkpoint, []\n"
               "def then_wait(*a):\n    save(*a)\n    saved.append(a)\n    time.sleep(600 if len(saved) == 5 else 0)\n"
               "l.save_checkpoint = then_wait\nr.fit = functools.partial(l.fit, checkpoint_seconds=0)\n"
               "from isthmus.cli import main\nsys.exit(main(sys.argv[1:]))"]  # fmt: skip
    out = tmp_path / "killed"
    child = subprocess.Popen([*command, "train", *options, "--out", str(out)], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (out / "checkpoint" / "last.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    record = json.loads((out / "run.json").read_text())
    assert record["status"] == "running"
    assert not (out / "model.safetensors").exists()

    assert main(["train", "--resume", str(out), "--quiet"]) == 0
    whole, killed = RunFolder.open(tmp_path / "whole"), RunFolder.open(out)
    assert killed.run["status"] == "complete"
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert killed.metrics().equals(whole.metrics(), null_equal=True)
    assert killed.verdict() == whole.verdict()
    assert {p.name for p in killed} == {p.name for p in whole}
    assert not (out / "checkpoint").exists()

    capfd.readouterr()
    assert main(["train", "--resume", str(out)]) == 2
    assert "a run that did not complete" in capfd.readouterr().err


def test_resume_takes_no_other_settings(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--resume", str(tmp_path), "--ridge", "0.5"]) == 2
    assert "ridge: got 0.5, expected no other option beside resume" in capfd.readouterr().err
    assert main(["train", "--resume", str(tmp_path)]) == 2
    assert "run.json" in capfd.readouterr().err
    (tmp_path / "run.json").write_text('{"schema_version": 1, "status": "running", "configuration": {"a": 1}}')
    assert main(["train", "--resume", str(tmp_path)]) == 2
    assert "a run of `isthmus train`" in capfd.readouterr().err


def test_options_from_a_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        'data = "teacher"\nn_train = 60\nn-test = 20\nwidth = 32\ndepth = 8\neffective_depth = 3\nepochs = 3\n'
    )
    out = tmp_path / "run"
    assert main(["train", "--config", str(file), "--epochs", "2", "--quiet", "--out", str(out)]) == 0
    configuration = RunFolder.open(out).run["configuration"]
    assert (configuration["width"], configuration["epochs"]) == (32, 2)
    assert configuration["data"]["n_train"] == 60
    capfd.readouterr()
    for text, needle in (("ridg = 1", "--ridge"), ("ridge = [", "a TOML file ("), ('ridge = "big"', "ridge")):
        file.write_text(text)
        assert main(["train", f"--config={file}", "--out", str(tmp_path / "bad")]) == 2
        printed = capfd.readouterr().err
        assert needle in printed
        assert len(printed.strip().splitlines()) == 1
    assert main(["train", "--config", str(tmp_path / "nowhere.toml")]) == 2
    assert "an existing TOML file" in capfd.readouterr().err
    assert main(["train", "--config"]) == 2
    file.write_text("epochs = 2")
    assert main(["train", "--config", str(file), "--config", str(file)]) == 2
    assert "one TOML file" in capfd.readouterr().err
    assert not (tmp_path / "bad").exists()


def test_dry_run_says_sizes_and_writes_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["train", *OPTIONS, "--dry-run", "--out", str(out)]) == 0
    printed = capfd.readouterr().out
    parameters = 8 * 32 * 32 + 8 * 32
    for needle in (f"{parameters:,}", "30 → 30", "32 × 8", "600 epochs", "MiB", "nothing was trained"):
        assert needle in printed
    assert not out.exists()
    assert main(["train", *OPTIONS, "--dry-run", "--gradient-tolerance", "1e9"]) == 0
    assert main(["train", *OPTIONS[:-3], "--seed", "-1", "--dry-run"]) == 2


def test_data_must_be_named(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["train"]) == 2
    assert "data: got nothing" in capfd.readouterr().err
