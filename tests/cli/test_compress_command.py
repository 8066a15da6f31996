"""`isthmus compress`: from a run on a table to a smaller one that predicts, and what it refuses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from isthmus._records import RunFolder
from isthmus.cli import main


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table and a run on it, as a user's process makes them."""
    torch.set_default_dtype(torch.float32)
    place, rng = tmp_path_factory.mktemp("tables"), np.random.default_rng(0)
    x = rng.normal(size=(90, 3))
    frame = pl.DataFrame({"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "kind": np.where(x[:, 0] * x[:, 1] > 0, "u", "v")})
    frame.write_csv(place / "things.csv")
    given = ["--data", str(place / "things.csv"), "--target", "kind", "--task", "classification", "--quiet"]
    sizes = ["--width", "8", "--depth", "6", "--effective-depth", "1.5", "--epochs", "60", "--test-fraction", "0.4"]
    assert main(["train", *given, *sizes, "--metrics", "loss", "--out", str(place / "run")]) == 0
    return place


@pytest.fixture(autouse=True)
def _as_a_users_process() -> None:
    torch.set_default_dtype(torch.float32)


def test_a_run_becomes_a_smaller_run(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, predicted = tmp_path / "small", tmp_path / "p.csv"
    given = ["--tolerance", "0.8", "--method", "equidistant", "--out", str(out)]
    assert main(["compress", str(place / "run"), *given]) == 0
    said = capsys.readouterr()
    lines = [line.split() for line in said.out.splitlines()]
    assert ["layers", "merge", "refit", "equidistant", "drop"] in lines
    assert [line[0] for line in lines if line and line[0] in "654321"] == list("654321")
    text = " ".join(said.out.split())
    depth = RunFolder.open(out).run["leaky"]["depth"]
    assert f"6 → {depth} layers by equidistant. On the 18 samples that did not choose, the loss went from" in text
    assert str(out / "report.html") in said.out
    assert "trying depths" in said.err
    assert {p.name for p in RunFolder.open(out)} == {
        "run.json", "metrics.parquet", "verdict.json", "arrays.safetensors", "model.safetensors", "report.html",
    }  # fmt: skip
    before = (out / "report.html").read_bytes()
    assert main(["report", str(out)]) == 0
    assert (out / "report.html").read_bytes() == before
    assert main(["predict", str(out), str(place / "things.csv"), "--out", str(predicted)]) == 0
    assert set(pl.read_csv(predicted)["kind"]) <= {"u", "v"}
    assert main(["dynamics", str(out), "--out", str(tmp_path / "d")]) == 2
    assert "a run that recorded pairs of samples" in " ".join(capsys.readouterr().err.split())
    assert main(["train", "--resume", str(out)]) == 2


def test_quiet_prints_the_verdict_only(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--tolerance", "9", "--finetune", "2", "--learning-rate", "1e-3", "--quiet", "--out", str(tmp_path / "o")]
    assert main(["compress", str(place / "run"), *given]) == 0
    said = capsys.readouterr()
    assert "equidistant   drop" not in said.out
    assert "2 epochs of fine-tuning" in " ".join(said.out.split())
    assert said.err == ""


def test_a_dry_run_writes_nothing(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["compress", str(place / "run"), "--finetune", "3", "--dry-run"]) == 0
    said = capsys.readouterr().out
    for text in ("width × layers        8 × 6", "samples, training     54", "one half of the run's test samples",
                 "for 5 depths, with 3 epochs of fine-tuning at each", "nothing was written"):  # fmt: skip
        assert text in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tolerance", "-0.1"], "tolerance: got -0.1"),
        (["--tolerance", "nan"], "tolerance: got nan"),
        (["--method", "refitt"], "did you mean 'refit'"),
        (["--choose-by", "validation"], "choose_by: got validation"),
        (["--finetune", "-3"], "finetune: got -3"),
        (["--tolerance", "0", "--absolute", "--method", "merge"], "the best is"),
        (["--tolerances", "1"], "--tolerances"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    assert main(["compress", str(place / "run"), "--out", str(tmp_path / "out"), "--quiet", *options]) == 2
    heard = capsys.readouterr()
    assert heard.err.startswith("error: ")
    assert said in " ".join(heard.err.split())
    assert heard.out == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.slow  # a second process imports torch
def test_a_killed_command_leaves_no_folder(place: Path, tmp_path: Path) -> None:
    """Killed while it fine-tunes, and again with its last file written, before it takes its place."""
    options = ["compress", str(place / "run"), "--tolerance", "9", "--finetune", "2", "--quiet"]
    for where in ("isthmus.train._compress.fit", "isthmus.experiments._compression.write_page"):
        module, _, name = where.rpartition(".")
        out, flag = tmp_path / name / "out", tmp_path / f"{name}.here"
        code = (
            f"import sys, time, pathlib, {module} as m\ndef stop(*a, **k):\n    pathlib.Path({str(flag)!r}).touch()\n"
            f"    time.sleep(600)\nm.{name} = stop\nfrom isthmus.cli import main; sys.exit(main(sys.argv[1:]))"
        )
        child = subprocess.Popen([sys.executable, "-c", code, *options, "--out", str(out)])
        deadline = time.monotonic() + 200
        while not flag.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        assert not out.exists()
    assert main([*options, "--out", str(out)]) == 0
    assert [path.name for path in out.parent.iterdir()] == ["out"]
