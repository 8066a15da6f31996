"""Pairs of samples in the run folder of a Leaky ResNet."""

import json

import numpy as np
import polars as pl
import pytest

from isthmus._errors import DivergedError, RunFolderError
from isthmus._records import RunFolder
from isthmus.experiments import LeakyConfig, resume_leaky, run_dynamics, run_leaky, task_from_source
from isthmus.experiments._leaky_networks import Network
from isthmus.train import _loop


class _KilledError(Exception):
    pass


def test_a_training_that_diverges_keeps_the_pairs_from_before(tmp_path, monkeypatch):
    source = {"name": "teacher", "kind": "mlp", "widths": [6, 2, 6], "n_train": 40, "n_test": 10, "seed": 0}
    config = LeakyConfig(width=8, depth=3, effective_depth=2.0, epochs=20, log_points=2, pairs=4, learning_rate=1e-3)
    ended, data_term = [], _loop.data_term

    def data_term_until(*given, **options):
        return data_term(*given, **options) * (float("nan") if ended else 1)

    def watch(epoch, epochs, log):
        if epoch == 12:
            ended.append(epoch)

    monkeypatch.setattr(_loop, "data_term", data_term_until)
    options = {"command": "train", "title": "t", "data": source, "progress": watch}
    with pytest.raises(DivergedError, match="epoch 13"):
        run_leaky(task_from_source(source), config, tmp_path / "run", **options)
    run = RunFolder.open(tmp_path / "run")
    assert run.run["status"] == "failed"
    rows = run.metrics().filter(pl.col("metric") == "pair_y")
    assert rows.filter(pl.col("status") == "ok")["step"].unique().sort().to_list() == list(range(13))
    assert set(rows.filter(pl.col("step") == 13)["status"]) == {"failed"}
    found = run_dynamics(run.path, tmp_path / "dynamics", layers=("*.2",), page=False)
    assert "diverged" in [claim.name for claim in found.verdict()]
    assert found.run["dynamics"]["records"] == 14
    run.write_run(pairs=None)
    with pytest.raises(RunFolderError, match=r"wrote its pairs of samples \(status here: failed\)"):
        run_dynamics(run.path, tmp_path / "other")


@pytest.mark.slow
def test_a_run_folder_holds_the_pairs_and_resumes_to_the_same(tmp_path):
    source = {"name": "teacher", "kind": "mlp", "widths": [6, 2, 6], "n_train": 40, "n_test": 10, "seed": 0}
    task = task_from_source(source)
    config = LeakyConfig(width=8, depth=3, effective_depth=2.0, epochs=12, log_points=3, pairs=4, seed=5)
    options = {"command": "train", "title": "t", "data": source}
    whole = run_leaky(task, config, tmp_path / "whole", **options)

    def watch(epoch, epochs, log):
        if epoch == 7:
            raise _KilledError

    with pytest.raises(_KilledError):
        run_leaky(task, config, tmp_path / "parts", **options, progress=watch, page=False)
    resumed = resume_leaky(tmp_path / "parts", page=False)
    assert whole.metrics().equals(resumed.metrics())
    assert json.dumps(whole.run["pairs"]) == json.dumps(resumed.run["pairs"])
    rows = whole.metrics().filter(pl.col("metric") == "pair_h")
    layers = whole.run["pairs"]["layers"]
    assert layers == [f"representation.{k}" for k in range(4)][-len(layers) :]
    assert rows.height == 13 * 4 * len(layers)
    assert set(rows["seed"]) == {5}
    for name, array in whole.arrays().items():
        assert np.array_equal(array, resumed.arrays()[name], equal_nan=True), name
    assert RunFolder.open(tmp_path / "whole").arrays()["pairs/hidden/representation.3/last"].ndim == 2
    assert "pair_h" in (tmp_path / "whole" / "report.html").read_text(encoding="utf-8")


def test_kept_networks_go_by_the_name_that_they_had():
    source = {"widths": [30, 6, 30]}
    names = {Network(source, LeakyConfig(pairs=pairs)).name for pairs in (0, 16)}
    assert len(names) == 2
    assert "30-6-30_equidistant_L20_lt7_seed0_273802696e" in names
