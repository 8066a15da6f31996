"""Whatever an extra of a measurement says, it has a reason and the rest of the measurement stands."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
import torch
from torch import nn

from isthmus import measure
from isthmus.models import LeakyStack
from isthmus.probe._dry_run import plan_measure

EXTRAS = {
    "_aligned.align_within": "alignment",
    "_aligned.tangent_eigenpairs": "tangent_top_eigenvalue",
    "_propagated_rows.propagation_within": "forward_loss",
    "_certified._certified": "bottleneck_bound",
    "_one.certify": "bottleneck_bound",
    "_one.find_chains": "bottleneck_bound",
    "_one.map_jacobian": "jacobian_rank",
    "_stacks.leaky_path": "kinetic_energy",
    "_stacks.path_geometry": "kinetic_energy",
}
"""What is made to fail, and a metric that it gives."""


def model() -> nn.Module:
    blocks = [nn.Sequential(nn.ReLU(), nn.Linear(4, 4)) for _ in range(2)]
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4), LeakyStack(blocks, effective_depth=1.0))


def found(error: BaseException | None, where: str, monkeypatch: pytest.MonkeyPatch) -> pl.DataFrame:
    def fails(*_args: Any, **_kwargs: Any) -> Any:
        assert error is not None
        raise error

    with monkeypatch.context() as patch:
        if error is not None:
            patch.setattr(f"isthmus.probe.{where}", fails)
        pair = (torch.randn(8, 4), torch.arange(8) % 4)
        return measure(model(), pair, loss="cross_entropy", jacobian_samples=2, progress=False).table


def test_every_extra_gives_its_metric() -> None:
    table = found(None, "", pytest.MonkeyPatch())
    given = set(table.filter(pl.col("value").is_not_null())["metric"])
    assert set(EXTRAS.values()) <= given


@pytest.mark.parametrize("where", EXTRAS)
def test_an_extra_that_fails_costs_nothing_else(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    table = found(ZeroDivisionError("by nothing"), where, monkeypatch)
    rows = table.filter(pl.col("metric").eq(EXTRAS[where]) & pl.col("baseline").eq(""))
    assert rows["value"].null_count() == rows.height > 0
    assert any("ZeroDivisionError: by nothing" in note for note in rows["note"]), rows["note"].to_list()
    rest = table.filter(pl.col("metric").is_in(["stable_rank", "loss", "cost_of_identity"]))
    assert rest["value"].is_not_null().any()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError()])
def test_interrupts_and_no_memory_are_passed_on(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(type(error)):
        found(error, "_one.find_chains", monkeypatch)


@pytest.mark.parametrize("where", ["_aligned.plan_alignment", "_propagated_rows.plan_propagation"])
def test_a_plan_says_why_an_extra_has_none(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_args: Any, **_kwargs: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(f"isthmus.probe.{where}", fails)
    plan = plan_measure(model(), (torch.randn(8, 4), torch.arange(8) % 4), loss="cross_entropy")
    assert "none: ZeroDivisionError" in (plan.alignment, plan.signals)
