from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
import safetensors.torch
import torch

from isthmus._records import RunFolder
from isthmus.cli import main

OPTIONS = ["train", "--data", "teacher", "--n-train", "61", "--n-test", "20", "--width", "30", "--depth", "4",
           "--effective-depth", "2", "--epochs", "4", "--steps", "adaptive", "--dtype", "float64",
           "--log-points", "2", "--quiet"]  # fmt: skip


def test_a_run_of_two_processes_is_that_of_one(tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float32)  # as a user's process starts
    for processes in ("1", "2"):
        assert main([*OPTIONS, "--processes", processes, "--out", str(tmp_path / processes)]) == 0
    one, two = (RunFolder.open(tmp_path / processes) for processes in ("1", "2"))
    assert (one.run["processes"], two.run["processes"]) == (1, 2)
    assert one.run["configuration"] == two.run["configuration"]
    assert two.metrics()["metric"].equals(one.metrics()["metric"])
    weights = [safetensors.torch.load_file(run.path / "model.safetensors") for run in (one, two)]
    for name, value in weights[0].items():
        assert torch.allclose(weights[1][name], value, rtol=0, atol=1e-11), name  # sums in another order
    losses = [run.metrics().filter(pl.col("metric") == "loss")["value"].to_list() for run in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-10)
    assert len(set(losses[0])) > 2


@pytest.mark.parametrize(("processes", "words"), [("0", "processes: got 0"), ("62", "at most one for each of 61")])
def test_wrong_numbers_write_nothing(
    processes: str, words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*OPTIONS, "--processes", processes, "--out", str(tmp_path / "run")]) == 2
    assert words in capfd.readouterr().err
    assert main([*OPTIONS, "--processes", processes, "--dry-run"]) == 2
    assert words in capfd.readouterr().err
    assert not (tmp_path / "run").exists()
