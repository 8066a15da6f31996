"""What `measure` returns can be read, saved, and made into a page; and what it will take is said before."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import polars as pl
import pytest
import torch
from rich.console import Console
from torch import nn

from isthmus import InputError, IsthmusError, Measurement, measure
from isthmus._errors import RunFolderError
from isthmus._records import COLUMNS, RunFolder
from isthmus.probe import plan_measure


def net(width: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3))


@pytest.fixture(scope="module")
def found() -> Measurement:
    return measure(net(), torch.randn(150, 6), progress=False)


def test_the_table_and_what_it_shows(found: Measurement) -> None:
    assert dict(found.table.schema) == COLUMNS
    shown = str(found)
    assert "PR (centred)" in shown
    assert "0 (input)" in shown
    for claim in found.verdict:
        assert " ".join(claim.text.split())[:40] in " ".join(shown.split())
        assert all(0 <= row < found.table.height for row in claim.rows)
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(found)
    assert "0 (input)" in console.export_text()


def test_html_of_a_notebook_shows_names_as_text() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module("<script>alert(1)</script>", nn.Linear(6, 4))
            self.add_module("b", nn.Linear(4, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for part in self.children():
                x = part(x)
            return x

    shown = measure(Odd(), torch.randn(20, 6), progress=False)._repr_html_()
    assert "<script" not in shown
    assert "&lt;script&gt;" in shown


def test_to_pandas(found: Measurement, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = found.to_pandas()
    assert list(frame.columns) == list(COLUMNS)
    assert len(frame) == found.table.height
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(IsthmusError, match=r"pip install 'isthmus\[pandas\]'"):
        found.to_pandas()


def test_saved_and_read_again(found: Measurement, tmp_path: Path) -> None:
    run = found.save(tmp_path / "run")
    again = RunFolder.open(run.path)
    assert again.metrics().equals(found.table)
    assert [c.text for c in again.verdict()] == [c.text for c in found.verdict]
    arrays = again.arrays()
    assert arrays["spectra/representation"].shape[0] == len(found.layers)
    assert again.run["measured"]["parameters"] == sum(p.numel() for p in net().parameters())
    with pytest.raises(RunFolderError, match="a path where nothing is yet"):
        found.save(tmp_path / "run")


def test_the_report_is_one_file(found: Measurement, tmp_path: Path) -> None:
    page = found.report(tmp_path / "page.html")
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    found.report(page)  # replaced
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]


def test_only_the_metrics_asked_for() -> None:
    some = measure(net(), torch.randn(50, 6), metrics=["effective_rank", "cost_of_identity"], progress=False)
    assert set(some.table["metric"]) == {"effective_rank", "cost_of_identity", "observations"}


def test_plan_says_memory_time_and_what_is_left_out() -> None:
    model, x = net(400), torch.randn(300, 6)
    plan = plan_measure(model, x)
    # three widths (400 twice and 3), the inputs of the next layers, and the products between them
    inputs = [6, 400, 400]
    own = [400, 400, 3]
    products = 400 * 400 * 2
    assert plan.memory == 8 * (sum(w * w for w in inputs) + sum(w * w for w in own) + products)
    assert plan.samples == 300
    assert plan.widest == ("0", 400)
    assert plan.seconds_pass is not None
    assert 0 < plan.seconds_pass < 60
    lines = dict(plan.lines())
    assert lines["samples"] == "300"
    assert "for the pass" in lines["time"]
    small = plan_measure(model, x, max_memory=100_000)
    assert {name for name, _ in small.skipped} == {"0", "2"}
    assert "raise max_memory" in small.skipped[0][1]
    measured = measure(model, x, max_memory=100_000, progress=False)
    assert [layer["name"] for layer in measured.layers] == ["0 (input)", "4"]
    skipped = measured.table.filter(pl.col("metric") == "observations", pl.col("layer") == "2")
    assert "400 features need 1.22 MiB" in skipped["note"].to_list()[0]


def test_plan_of_a_stream_of_unknown_length() -> None:
    plan = plan_measure(net(), (torch.randn(10, 6) for _ in range(3)))
    assert plan.samples is None
    assert plan.seconds_pass is None
    assert dict(plan.lines())["time"] == "unknown"


def test_plan_refuses_what_measure_refuses() -> None:
    with pytest.raises(InputError, match="layers: got nope"):
        plan_measure(net(), torch.randn(10, 6), layers="nope")
    with pytest.raises(InputError, match="max_memory"):
        plan_measure(net(), torch.randn(10, 6), max_memory=0)


def test_progress_is_on_stderr_and_names_the_stage(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    measure(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), torch.randn(20, 4))
    said = capfd.readouterr()
    assert said.out == ""
    assert "measuring: batches" in said.err
