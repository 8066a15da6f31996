"""A training that is watched: what is measured when, for how long, and what stays on disk."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor, nn

from isthmus import measure
from isthmus._records import RunFolder
from isthmus.probe import Monitor, _monitor, _monitor_schedule
from isthmus.probe._monitor import MONITORED


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.drop = nn.LayerNorm(width), nn.Dropout(0.1)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.down(torch.relu(self.up(self.norm(x)))))


X, Y = torch.randn(64, 5, generator=torch.Generator().manual_seed(1)).double(), torch.arange(64) % 3


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), Block(8), Block(8), nn.Linear(8, 3))


class Clock:
    """Time that passes only where it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that training moves by itself, and measuring not at all."""
    made = Clock()
    monkeypatch.setattr(_monitor_schedule, "clock", made)
    return made


@pytest.fixture(autouse=True)
def _no_page(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages take a second each and have tests of their own; `with_page` marks the tests that look at one."""
    if "with_page" not in request.fixturenames:
        monkeypatch.setattr(_monitor, "write_page", lambda path: path)


@pytest.fixture
def with_page() -> None:
    """Asks for the page."""


def trained(model: nn.Module, steps: int, after: Callable[[int, Tensor], object] = lambda step, loss: None) -> None:
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01)
    for step in range(1, steps + 1):
        pick = torch.randint(0, len(X), (16,))
        loss = nn.functional.cross_entropy(model(X[pick]), Y[pick])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        after(step, loss)


def test_every_step_is_what_measure_says_of_its_weights(tmp_path: Path, clock: Clock) -> None:
    model = network()
    monitor = Monitor(model, X, targets=Y, out=tmp_path / "run", schedule=3, progress=False)
    copies = {0: copy.deepcopy(model)}

    def after(step: int, loss: Tensor) -> None:
        copies[step] = copy.deepcopy(model)
        clock.now += 1
        monitor.step(loss)

    trained(model, 8, after)
    monitor.finish()
    assert monitor.steps == [0, 3, 6, 8]
    run = RunFolder.open(tmp_path / "run")
    arrays, table = run.arrays(), run.metrics()
    assert table.equals(monitor.table)
    for step in monitor.steps:
        own = measure(copies[step], X, targets=Y, metrics=MONITORED, jacobian_samples=0, alignment_samples=32,
                      progress=False)  # fmt: skip
        rows = table.filter((pl.col("step") == step) & (pl.col("split") != "train")).drop("step")
        assert rows.equals(own.table.drop("step")), step
        for name, array in own.arrays.items():
            assert np.array_equal(arrays[f"steps/{step}/{name}"], array.astype(np.float32), equal_nan=True)
    assert own.arrays.keys() <= arrays.keys()
    assert all(np.array_equal(arrays[name], array, equal_nan=True) for name, array in own.arrays.items())
    said = [(claim.name, claim.text) for claim in run.verdict()]
    assert said[: len(own.verdict)] == [(claim.name, claim.text) for claim in own.verdict]
    for claim, mine in zip(run.verdict(), own.verdict, strict=False):  # rows: those of the last measurement
        ours = table[list(claim.rows)].drop("step")
        assert ours.equals(own.table[list(mine.rows)].drop("step"))
    assert run.run["measured"]["sites"] == own.record["measured"]["sites"]
    assert run.run["command"] == "monitor"
    assert run.run["status"] == "complete"
    assert run.run["monitor"]["steps"] == [0, 3, 6, 8]
