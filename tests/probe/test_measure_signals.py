"""Signal propagation as a part of `measure`: the numbers of `propagation`, predictions, a claim, or the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from torch import Tensor, nn

import isthmus
from isthmus import InputError
from isthmus.probe import Measurement, Propagation, plan_measure, propagation

NAMES = ["0", "2", "4", "6"]


def network() -> nn.Sequential:
    parts = list[nn.Module]()
    for before, after in ((5, 30), (30, 30), (30, 30), (30, 2)):
        layer = nn.Linear(before, after)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        parts += [layer, nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def task() -> tuple[Tensor, Tensor]:
    x = torch.randn(24, 5)
    return x, (x[:, 0] > 0).long()


def measure(model: nn.Module, data: Any, **how: Any) -> Measurement:
    return isthmus.measure(model, data, progress=False, jacobian_samples=0, **how)


def values(found: Measurement, metric: str, baseline: str = "") -> list[float | None]:
    frame = found.table.filter((pl.col("metric") == metric) & (pl.col("baseline") == baseline))
    return frame.sort("index")["value"].to_list()


def both(found: Propagation) -> tuple[list[float], list[float]]:
    layers = [(one.forward_loss, one.backward_correlation) for one in found.layers]
    return [f.value for f, _ in layers if f], [g.value for _, g in layers if g]


def test_rows_are_the_numbers_of_propagation_measured_and_predicted(tmp_path: Path) -> None:
    model, (x, y) = network(), task()
    found = measure(model, (x, y), loss="cross_entropy", alignment_samples=15)
    right = propagation(model, x[:15], progress=False)
    assert right.predicted is not None
    losses, correlations = both(right)
    assert values(found, "forward_loss") == pytest.approx(losses)
    assert values(found, "backward_correlation") == pytest.approx(correlations)
    wide = "infinite width"
    assert values(found, "forward_loss", wide) == pytest.approx(right.predicted.forward_loss.tolist())
    assert values(found, "backward_correlation", wide) == pytest.approx(right.predicted.backward_correlation.tolist())
    assert values(found, "equilibrium_layer") == [pytest.approx(right.equilibrium)]
    assert right.equilibrium_stderr is not None
    errors = found.table.filter((pl.col("metric") == "equilibrium_layer") & (pl.col("baseline") == ""))["stderr"]
    assert errors.to_list() == [pytest.approx(right.equilibrium_stderr)]
    assert values(found, "equilibrium_layer", wide) == [pytest.approx(right.predicted.equilibrium)]
    rows = found.table.filter((pl.col("metric") == "forward_loss") & (pl.col("baseline") == ""))
    assert rows["layer"].to_list() == NAMES
    assert rows["position"].to_list() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert set(rows["n"]) == {15}
    (claim,) = [claim for claim in found.verdict if claim.name == "equilibrium"]
    assert claim.values["measured"] == pytest.approx(right.equilibrium)
    assert claim.values["alignment_peak"] in NAMES
    assert "relu, variances of the weights as they are" in claim.text
    assert {found.table.row(row, named=True)["metric"] for row in claim.rows} == {"equilibrium_layer"}
    found.report(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert '<figure id="signals"' in page
    assert "By the Equilibrium Hypothesis training aligns layers most" in page


def test_a_fresh_baseline_gives_the_variances_of_the_prediction() -> None:
    model, (x, y) = network(), task()
    fresh = network()
    found = measure(model, (x, y), loss="cross_entropy", baseline=fresh)
    right = propagation(fresh, x, progress=False)
    assert right.predicted is not None
    assert values(found, "forward_loss", "infinite width") == pytest.approx(right.predicted.forward_loss.tolist())
    assert values(found, "forward_loss") == pytest.approx(both(propagation(model, x, progress=False))[0])
    (claim,) = [claim for claim in found.verdict if claim.name == "equilibrium"]
    assert "variances of a fresh initialisation" in claim.text


def test_reasons() -> None:
    model, (x, y) = network(), task()
    for how, reason in (({"alignment_samples": 0}, "alignment_samples=0"), ({"max_samples": 2}, "at least 3")):
        found = measure(model, (x, y), loss="cross_entropy", **how)
        frame = found.table.filter(
            pl.col("metric").is_in(["forward_loss", "backward_correlation", "equilibrium_layer"])
        )
        assert frame["status"].to_list() == ["skipped"] * 3
        assert all(reason in note for note in frame["note"])
        assert "equilibrium" not in [claim.name for claim in found.verdict]
    joined = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2))
    found = measure(joined, (x, y), loss="cross_entropy")
    frame = found.table.filter((pl.col("metric") == "equilibrium_layer") & (pl.col("baseline") == "infinite width"))
    assert frame["note"].to_list() == ["1 (LayerNorm) is no linear layer"]


def test_a_layer_that_is_never_called_has_a_reason_and_no_place() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.idle, self.used = nn.Linear(3, 3), network()

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    found = measure(Idle(), task(), loss="cross_entropy")
    frame = found.table.filter((pl.col("metric") == "forward_loss") & (pl.col("baseline") == "")).sort("layer")
    assert frame["layer"].to_list() == ["idle", *(f"used.{name}" for name in NAMES)]
    assert frame["index"].to_list() == [None, 0, 1, 2, 3]
    assert frame["note"][0].startswith("it is never called in a forward pass")


def test_a_dry_run_says_what_signals_take() -> None:
    model, (x, y) = network(), task()
    lines = dict(plan_measure(model, x, targets=y, alignment_samples=15).lines())
    assert lines["signals"].startswith("15 samples, 2 backward passes, about ")
    assert lines["signals"].endswith("MiB")
    assert dict(plan_measure(model, x).lines())["signals"] == "none: give targets, or a loss for those in the data"
    asked = plan_measure(model, x, targets=y, metrics=["alignment"])
    assert asked.signals == "none: not asked for"
    assert plan_measure(model, x, targets=y, alignment_samples=0).signals == "none: alignment_samples=0"
    wide = nn.Sequential(nn.Linear(5, 100))
    assert " 64 backward passes" in plan_measure(wide, x, targets=torch.randn(24, 100)).signals


def test_a_monitor_does_not_compute_what_it_does_not_record(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def counting(*_: object, **__: object) -> None:
        calls.append(1)
        raise InputError("data", "x", "y")

    calls = list[int]()
    monkeypatch.setattr("isthmus.probe._propagated_rows.propagation_within", counting)
    model, (x, y) = network(), task()
    isthmus.Monitor(model, x, targets=y, out=tmp_path / "run", progress=False).finish()
    assert calls == []
    measure(model, (x, y), loss="cross_entropy")
    assert calls == [1]


def test_only_what_was_asked_for() -> None:
    model, (x, y) = network(), task()
    found = measure(model, (x, y), loss="cross_entropy", metrics=["forward_loss"])
    assert set(found.table.filter(pl.col("metric") != "observations")["metric"]) == {"forward_loss"}
    assert values(found, "forward_loss") == pytest.approx(both(propagation(model, x, progress=False))[0])
    other = measure(model, (x, y), loss="cross_entropy", metrics=["effective_rank"])
    assert "forward_loss" not in set(other.table["metric"])
