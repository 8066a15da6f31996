"""`isthmus sweep`: from a file to a page, and everything bad that can be handed in."""

from __future__ import annotations

import inspect
from pathlib import Path

import polars as pl
import pytest
import torch

from isthmus._records import RunFolder
from isthmus.cli import main
from isthmus.cli._train import train
from isthmus.experiments import _sweep_cluster, _sweep_settings, read_sweep
from isthmus.experiments._sweep_folder import record_failure
from report.looking import Page

FILE = """
[sweep]
command = "train"

[base]
data = "teacher"
teacher_widths = [4, 2, 4]
n_train = 30
n-test = 10
width = 6
depth = 5
epochs = 3

[grid]
effective_depth = [1, 3.5]
steps = ["equidistant", "adaptive"]
"""


@pytest.fixture(autouse=True)
def _as_a_users_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_default_dtype(torch.float32)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(FILE)


@pytest.mark.slow  # four networks with pages, and one of `isthmus train`
def test_a_file_becomes_runs_and_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "small.toml", "--jobs", "2", "--quiet"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for text in ("4 of 4 runs are complete.", "The lowest test loss, ", "runs/small/report.html"):
        assert text in said
    folder = tmp_path / "runs" / "small"
    sweep = RunFolder.open(folder)
    assert {path.name for path in sweep} == {"run.json", "metrics.parquet", "verdict.json", "report.html", "runs"}
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    links = [str(a["href"]) for tag, a in page.elements if tag == "a" and str(a.get("href")).startswith("runs/")]
    assert len(links) == 4
    assert all((folder / link).is_file() for link in links)

    # A run is what `isthmus train` makes of the same settings.
    options = ["--data", "teacher", "--teacher-widths", "4", "--teacher-widths", "2", "--teacher-widths", "4",
               "--n-train", "30", "--n-test", "10", "--width", "6", "--depth", "5", "--epochs", "3",
               "--effective-depth", "3.5", "--steps", "adaptive", "--out", "alone", "--quiet"]  # fmt: skip
    assert main(["train", *options]) == 0
    (path,) = (folder / "runs").glob("effective_depth=3.5_steps=adaptive_*")
    alone, swept = RunFolder.open("alone"), RunFolder.open(path)
    assert swept.run["configuration"] == alone.run["configuration"]
    assert swept.run["command"] == alone.run["command"]
    assert {p.name for p in swept} == {p.name for p in alone}
    both = swept.metrics().join(
        alone.metrics(), on=["step", "split", "layer", "index", "metric", "note"], nulls_equal=True
    )
    assert both.height == alone.metrics().height
    assert (both["value"] - both["value_right"]).abs().max() < 1e-3  # type: ignore[operator]  # float32, threads

    capsys.readouterr()
    assert main(["report", str(folder)]) == 0
    assert main(["report", str(folder), "alone", "--out", "both.html"]) == 2
    assert "a sweep has a page of its own" in " ".join(capsys.readouterr().err.split())
    assert main(["sweep", "small.toml", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.count("complete") == 4
    assert "nothing: all runs are settled" in said
    assert pl.read_parquet(folder / "metrics.parquet").height == sweep.metrics().height


def test_a_dry_run_lists_the_runs_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "small.toml", "--dry-run", "--jobs", "2"]) == 0
    said = capsys.readouterr().out
    assert said.count("to do  ") >= 4
    assert "effective_depth=3.5_steps=adaptive_" in said
    assert "4 runs, 2 at a time" in said
    assert "training time, about" in said
    assert [path.name for path in tmp_path.iterdir()] == ["small.toml"]


def test_every_option_of_train_is_a_setting_or_known_as_none() -> None:
    known = {*_sweep_settings._types(), *_sweep_settings._OF_THE_COMMAND}
    assert set(inspect.signature(train).parameters) == known


def test_a_dry_run_counts_what_would_be_tried_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = read_sweep("small.toml")
    (tmp_path / "out" / "runs").mkdir(parents=True)
    (tmp_path / "out" / "run.json").write_text('{"schema_version": 1, "command": "sweep"}')
    for run in sweep.runs:
        record_failure(run, tmp_path / "out", "it diverged")
    assert main(["sweep", "small.toml", "--dry-run", "--out", "out"]) == 0
    assert "nothing: all runs are settled" in capsys.readouterr().out
    assert main(["sweep", "small.toml", "--dry-run", "--out", "out", "--retry-failed"]) == 0
    said = capsys.readouterr().out
    assert "4 runs, 1 at a time" in said
    assert said.count("  failed  ") == 4


@pytest.mark.parametrize(("words", "said"), [
    (["absent.toml"], "config: got absent.toml, expected an existing TOML file"),
    (["bad.toml"], "grid: got effective_deph, expected a setting of `isthmus train`; did you mean 'effective_depth'?"),
    (["small.toml", "--jobs", "0"], "jobs: got 0"),
    (["small.toml", "--out", "small.toml"], "out: got"),
    (["small.toml", "--scheduler", "tcp://127.0.0.1:9"], "scheduler: got tcp://127.0.0.1:9"),
    (["small.toml", "--epochs", "3"], "--epochs"),
    ([], "CONFIG"),
])  # fmt: skip
def test_bad_input_is_one_sentence_and_writes_nothing(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_sweep_cluster, "CONNECT_SECONDS", 0.3)
    (tmp_path / "bad.toml").write_text(FILE.replace("[grid]\neffective_depth", "[grid]\neffective_deph"))
    assert main(["sweep", *words]) == 2
    printed = capfd.readouterr()
    assert printed.out == ""
    assert len(printed.err.strip().splitlines()) == 1
    assert said in printed.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.toml", "small.toml"]
