from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from isthmus import LeakyResNet
from isthmus._records import RunFolder
from isthmus.cli import main
from isthmus.data import teacher


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    out = tmp_path_factory.mktemp("runs") / "teacher"
    arguments = ["train", "--data", "teacher", "--n-train", "120", "--n-test", "60", "--width", "32", "--depth", "8",
                 "--effective-depth", "3", "--epochs", "40", "--steps", "adaptive", "--seed", "5", "--quiet",
                 "--out", str(out)]  # fmt: skip
    torch.set_default_dtype(torch.float32)  # as a user's process starts
    assert main(arguments) == 0
    return RunFolder.open(out)


def test_a_run_folder_is_whole(run: RunFolder) -> None:
    names = {p.name for p in run}
    assert names == {
        "run.json",
        "metrics.parquet",
        "verdict.json",
        "arrays.safetensors",
        "model.safetensors",
        "report.html",
    }
    record = run.run
    assert record["status"] == "complete"
    assert record["configuration"]["seed"] == 5
    assert record["configuration"]["steps"] == "adaptive"
    assert record["loss_reduction"] == "sum over outputs, mean over samples"
    assert record["versions"]["torch"] == torch.__version__
    frame = run.metrics()
    claims = run.verdict()
    assert claims[0].name == "bottleneck"
    for claim in claims:
        assert claim.rows, claim.name
        assert max(claim.rows) < len(frame)
    assert json.loads((run.path / "run.json").read_text()) == record
    assert not list(run.path.glob(".*.part"))


def test_the_saved_model_is_the_measured_one(run: RunFolder) -> None:
    net = LeakyResNet(30, 30, width=32, depth=8, effective_depth=3.0, steps="adaptive", dtype=torch.float32)
    net.load_state_dict(safetensors.torch.load_file(run.path / "model.safetensors"))
    task = teacher(n_train=120, n_test=60, seed=5)
    with torch.no_grad():
        loss = float((net(task.x_train.float()) - task.y_train.float()).square().sum() / 120)
        steps = net.layer_steps.double().numpy()
    frame = run.metrics()
    last = frame.filter((frame["metric"] == "loss") & (frame["split"] == "train")).sort("step")["value"][-1]
    assert loss == pytest.approx(last, rel=1e-5)  # float32
    assert run.arrays()["layer_steps"] == pytest.approx(steps, rel=1e-6)
    assert not np.allclose(steps, 1 / 8)


def test_report_makes_the_same_page_again_and_saves_charts(run: RunFolder, tmp_path: Path) -> None:
    page = run.path / "report.html"
    before = page.read_bytes()
    page.unlink()
    assert main(["report", str(run.path), "--charts", str(tmp_path), "--formats", "svg"]) == 0
    assert page.read_bytes() == before
    assert list(tmp_path.glob("*.svg"))
    assert main(["report", str(run.path), "--charts", str(tmp_path), "--formats", "gif"]) == 2


def test_several_runs_share_a_page(run: RunFolder, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "both.html"
    assert main(["report", str(run.path), str(run.path), "--out", str(out)]) == 0
    assert out.read_text().count("Keeps ") + out.read_text().count("No bottleneck") >= 2
    before = out.read_bytes()
    assert main(["report", str(run.path), str(run.path), "--out", str(out)]) == 2
    assert "does not exist yet" in capfd.readouterr().err
    assert out.read_bytes() == before
    assert main(["report", str(run.path), "--out", str(tmp_path / "one.html")]) == 2
    assert main(["report"]) == 2


def test_same_seed_same_numbers(run: RunFolder, tmp_path: Path) -> None:
    arguments = ["train", "--data", "teacher", "--n-train", "120", "--n-test", "60", "--width", "32", "--depth", "8",
                 "--effective-depth", "3", "--epochs", "40", "--steps", "adaptive", "--seed", "5", "--quiet",
                 "--out", str(tmp_path / "again")]  # fmt: skip
    torch.set_default_dtype(torch.float32)
    assert main(arguments) == 0
    again = RunFolder.open(tmp_path / "again")
    assert again.metrics().equals(run.metrics(), null_equal=True)
    assert (again.path / "model.safetensors").read_bytes() == (run.path / "model.safetensors").read_bytes()


def test_demo_runs_in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                              capfd: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    torch.set_default_dtype(torch.float32)
    assert main(["demo", "--epochs", "2", "--quiet"]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("demo-2")
    assert (folder / "report.html").exists()
    assert str(folder.relative_to(tmp_path)) in capfd.readouterr().out


def test_curves_for_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                capfd: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    arguments = ["train", "--data", "teacher", "--n-train", "60", "--n-test", "20", "--width", "32", "--depth", "8",
                 "--effective-depth", "3", "--epochs", "30", "--quiet", "--tensorboard"]  # fmt: skip
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 0
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    frame = RunFolder.open(tmp_path / "run").metrics()
    rows = frame.filter((frame["metric"] == "loss") & (frame["split"] == "train")).sort("step")
    scalars = events.Scalars("train/loss")
    assert [s.step for s in scalars] == rows["step"].to_list()
    assert [s.value for s in scalars] == pytest.approx(rows["value"].to_list(), rel=1e-6)  # kept in float32
    assert "layer_step/8" in events.Tags()["scalars"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    capfd.readouterr()
    assert main([*arguments, "--out", str(tmp_path / "other")]) == 2
    assert 'pip install "isthmus[tensorboard]"' in capfd.readouterr().err
    assert not (tmp_path / "other").exists()
