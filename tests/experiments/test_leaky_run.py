from __future__ import annotations

from pathlib import Path

import pytest

from isthmus.data import teacher
from isthmus.experiments import LeakyConfig, run_leaky


def test_the_final_measurement_is_of_the_samples_trained_on(tmp_path: Path) -> None:
    """With a validation split, momenta (hence stationarity) belong to the objective that was minimised."""
    task = teacher(widths=(6, 2, 4), n_train=80, n_test=20)
    config = LeakyConfig(width=12, depth=8, effective_depth=3.0, ridge=0.3, epochs=1500, learning_rate=1e-2,
                         validation_fraction=0.4, dtype="float64")  # fmt: skip
    run = run_leaky(task, config, tmp_path / "run", command="test", title="t", data={})
    frame = run.metrics()
    final = frame.filter((frame["metric"] == "stationarity") & frame["step"].is_null())
    watched = frame.filter((frame["metric"] == "stationarity") & (frame["layer"] == "model")).sort("step")
    assert final["n"].to_list() == [48] * 8
    assert final["value"].median() == pytest.approx(watched["value"][-1], rel=1e-9)
    assert final["value"].median() < 0.05  # over all 80 samples the residual is that of another objective
    assert set(frame.filter(frame["metric"] == "loss")["split"]) == {"train", "validation", "test"}


def test_the_verdict_speaks_of_the_weights_that_were_kept(tmp_path: Path) -> None:
    task = teacher(widths=(6, 2, 4), n_train=40, n_test=30, noise=2.0)
    config = LeakyConfig(width=12, depth=8, effective_depth=3.0, ridge=1e-6, epochs=300, validation_fraction=0.3,
                         patience=20, dtype="float64")  # fmt: skip
    run = run_leaky(task, config, tmp_path / "run", command="test", title="t", data={})
    best = run.run["best_epoch"]
    assert run.run["epochs"] == best + 20
    (claim,) = [c for c in run.verdict() if c.name == "performance"]
    assert f"after {best} epochs; stopped because the validation loss no longer fell" in claim.text
    rows = [run.metrics().row(r, named=True) for r in claim.rows]
    assert {row["step"] for row in rows} == {best}
    assert [row["value"] for row in rows] == [claim.values["train"], claim.values["test"]]


def test_a_score_that_is_not_defined_is_skipped_with_the_reason(tmp_path: Path) -> None:
    config = LeakyConfig(width=12, depth=8, effective_depth=3.0, epochs=3)
    task = teacher(widths=(6, 2, 4), n_train=20, n_test=1)
    run = run_leaky(task, config, tmp_path / "run", command="test", title="t", data={})
    frame = run.metrics()
    undefined = frame.filter((frame["metric"] == "r_squared") & (frame["split"] == "test"))
    assert set(undefined["status"]) == {"skipped"}
    assert "one sample" in undefined["note"][0]
    assert not any("inf" in c.text or "nan" in c.text for c in run.verdict())


def test_only_metrics_asked_for_are_recorded(tmp_path: Path) -> None:
    config = LeakyConfig(width=12, depth=8, effective_depth=3.0, epochs=3, metrics=("loss", "path_speed"))
    task = teacher(widths=(6, 2, 4), n_train=20, n_test=5)
    run = run_leaky(task, config, tmp_path / "run", command="test", title="t", data={})
    assert set(run.metrics()["metric"]) == {"loss", "path_speed"}
    assert (run.path / "report.html").exists()
