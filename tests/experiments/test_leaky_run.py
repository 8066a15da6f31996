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
