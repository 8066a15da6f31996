"""`isthmus dynamics`: from a run with pairs to a page, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from isthmus._records import RunFolder
from isthmus.cli import main
from pair_runs_support import PlantedRun


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return PlantedRun({"first": 1.0, "second": 3.0}).save(tmp_path / "run")


def test_a_run_gets_its_page(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["dynamics", str(source), "--layers", "first", "--out", str(out), "--quiet"]) == 0
    said = capsys.readouterr()
    assert "Two numbers describe the layer first." in " ".join(said.out.split())
    assert str(out / "report.html") in said.out
    assert said.err == ""
    run = RunFolder.open(out)
    assert run.run["command"] == "dynamics"
    assert run.run["configuration"]["layers"] == ["first"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--layers", "third"], "layers: got third, expected one of the 2 layers"),
        (["--pairs", "0-2"], "pairs: got 0-2, expected one of the 4 pairs"),
        (["--layer", "first"], "--layer"),
    ],
)
def test_bad_input_exits_2_and_writes_nothing(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    out = tmp_path / "out"
    assert main(["dynamics", str(source), "--out", str(out), *options]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not out.exists()


def test_a_folder_without_pairs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder.create(
        tmp_path / "other", command="measure", configuration={}, seed=0, device="cpu", dtype="float64"
    )
    assert main(["dynamics", str(run.path), "--out", str(tmp_path / "out")]) == 2
    assert "a run that recorded pairs of samples; record some: isthmus.track_pairs" in " ".join(
        capsys.readouterr().err.split()
    )
    assert not (tmp_path / "out").exists()
