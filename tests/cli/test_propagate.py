from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from isthmus._records import RunFolder
from isthmus.cli import main
from isthmus.theory import propagate_signal

CRITICAL_TANH = ["--activation", "tanh", "--weight-variance", "1.7609546396", "--bias-variance", "0.05"]


def propagated(out: Path, *arguments: str) -> RunFolder:
    torch.set_default_dtype(torch.float32)  # as a user's process starts
    assert main(["propagate", "--out", str(out), *arguments]) == 0
    return RunFolder.open(out)


def test_a_prediction_from_command_to_page(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = propagated(tmp_path / "run", "--depth", "30", "--correlation", "0.2")
    said = capfd.readouterr().out
    signal = propagate_signal("relu", depth=30, weight_variance=2, correlation=0.2)
    assert signal.equilibrium is not None
    assert f"equal at layer {signal.equilibrium:.4g} of 30" in said
    assert f"{float(signal.forward_loss[7]):.6g}" in said
    assert f"{float(signal.backward_correlation[7]):.6g}" in said
    assert "critical phase" in said
    assert str(run.path / "report.html") in said.replace("\n", "")
    names = {p.name for p in run}
    assert names == {"run.json", "metrics.parquet", "verdict.json", "arrays.safetensors", "report.html"}
    frame = run.metrics()
    assert set(frame["baseline"]) == {"infinite width"}
    for metric, expected in (
        ("forward_loss", signal.forward_loss),
        ("backward_correlation", signal.backward_correlation),
    ):
        rows = frame.filter(frame["metric"] == metric).sort("index")
        assert rows["index"].to_list() == list(range(31))
        assert rows["position"].to_list() == pytest.approx([ell / 30 for ell in range(31)])
        assert rows["value"].to_list() == expected.tolist()
    assert frame.filter(frame["metric"] == "equilibrium_layer")["value"].to_list() == [signal.equilibrium]
    assert run.run["status"] == "complete"
    assert run.run["configuration"]["correlation"] == 0.2
    claims = {claim.name: claim for claim in run.verdict()}
    assert set(claims) == {"equilibrium", "phase", "law"}
    assert claims["law"].values["exponent"] == 0.6
    assert all(max(claim.rows) < len(frame) for claim in claims.values())


def test_long_tables_are_thinned_and_keep_both_ends(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    propagated(tmp_path / "run", "--depth", "1001")
    said = capfd.readouterr().out.splitlines()
    layers = [int(line.split()[0]) for line in said if line.split() and line.split()[0].isdecimal()]
    assert len(layers) <= 42
    assert (layers[0], layers[-1]) == (0, 1001)


def test_verdicts_of_other_networks(tmp_path: Path) -> None:
    ordered = {c.name: c for c in propagated(tmp_path / "1", "--depth", "5", "--weight-variance", "0.5",
                                             "--bias-variance", "0.5").verdict()}  # fmt: skip
    assert set(ordered) == {"equilibrium", "phase"}
    assert "ordered phase (χ = 0.25)" in ordered["phase"].text
    assert "by a factor e in 0.7213 layers" in ordered["phase"].text  # 1 / log 4
    tanh = {c.name: c for c in propagated(tmp_path / "2", "--depth", "6", *CRITICAL_TANH).verdict()}
    assert tanh["law"].values["exponent"] == pytest.approx(2 / 3)
    residual = {c.name: c for c in propagated(tmp_path / "3", "--depth", "6", "--residual").verdict()}
    assert set(residual) == {"equilibrium", "law"}
    alike = propagated(tmp_path / "4", "--depth", "6", "--correlation", "1")
    assert alike.verdict()[0].level == "none"
    frame = alike.metrics()
    assert frame.filter(frame["metric"] == "equilibrium_layer")["status"].to_list() == ["skipped"]
    leaky = propagated(tmp_path / "5", "--depth", "4", "--activation", "leaky_relu", "--slope", "0.3")
    expected = propagate_signal(torch.nn.LeakyReLU(0.3), depth=4, weight_variance=2)
    assert leaky.arrays()["propagation/forward_loss"].tolist() == expected.forward_loss.tolist()


@pytest.mark.parametrize(
    ("arguments", "needle"),
    [
        (["--depth", "0"], "depth: got 0"),
        ([], "depth"),
        (["--depth", "5", "--activation", "rleu"], "did you mean 'relu'"),
        (["--depth", "5", "--weight-variance", "-1"], "weight_variance: got -1"),
        (["--depth", "5", "--bias-variance", "nan"], "bias_variance: got nan"),
        (["--depth", "5", "--correlation", "2"], "correlation: got 2"),
        (["--depth", "5", "--slope", "0.2"], "slope: got 0.2"),
        (["--depth", "5", "--activation", "leaky_relu", "--slope", "nan"], "slope: got nan"),
        (["--depth", "5", "--activation", "leaky_relu", "--slope", "inf"], "slope: got inf"),
        (["--depth", "3000", "--weight-variance", "9"], "they grow past that"),
    ],
)
def test_bad_input_writes_nothing(
    arguments: list[str], needle: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(["propagate", "--out", str(out), *arguments]) == 2
    assert needle in " ".join(capfd.readouterr().err.split())
    assert not out.exists()


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "there.txt").write_text("mine", encoding="utf-8")
    assert main(["propagate", "--depth", "3", "--out", str(tmp_path)]) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["there.txt"]


def test_what_run_json_says_is_shown_and_never_trusted(tmp_path: Path) -> None:
    run = propagated(tmp_path / "run", "--depth", "3")
    record = json.loads((run.path / "run.json").read_text(encoding="utf-8"))
    record["propagation"] = {"activation": "<script>alert(1)</script>", "depth": [1, 2], "weight_variance": {"a": 1},
                             "residual": "yes"}  # fmt: skip
    (run.path / "run.json").write_text(json.dumps(record), encoding="utf-8")
    assert main(["report", str(run.path)]) == 0
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page
    record["propagation"] = 7
    (run.path / "run.json").write_text(json.dumps(record), encoding="utf-8")
    assert main(["report", str(run.path)]) == 0
