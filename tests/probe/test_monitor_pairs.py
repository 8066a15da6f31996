"""Pairs of samples beside the measurements of a monitor."""

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from isthmus import InputError, Monitor, track_pairs
from isthmus._errors import RunFolderError
from isthmus._records import RunFolder
from isthmus.probe import _monitor, _monitor_schedule, _pairs_trace
from isthmus.probe._pairs_model import Subject

X, Y = torch.randn(48, 4, generator=torch.Generator().manual_seed(1)).double(), torch.arange(48) % 3
FEW = {"metrics": ("participation_ratio",), "schedule": 4, "progress": False, "alignment_samples": 0}


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 0.0

        def __call__(self):
            return self.now

    made = Clock()
    monkeypatch.setattr(_monitor_schedule, "clock", made)
    return made


@pytest.fixture(autouse=True)
def _no_page(request, monkeypatch):
    if "with_page" not in request.fixturenames:
        monkeypatch.setattr(_monitor, "write_page", lambda path: path)


@pytest.fixture
def with_page():
    """Asks for the page."""


class _Training:
    """A training that can be stopped, and gone on with from its weights."""

    def __init__(self):
        torch.manual_seed(2)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 3))
        self.optimiser = torch.optim.SGD(self.model.parameters(), lr=0.05)

    def run(self, steps, each):
        for step in steps:
            torch.manual_seed(step)
            self.model.train()
            loss = nn.functional.cross_entropy(self.model(X), Y)
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()
            each()


def _monitored(training, folder, clock, steps, **options):
    monitor = Monitor(training.model, X, targets=Y, out=folder, pairs=5, **{**FEW, **options})

    def each():
        clock.now += 1.0
        monitor.step()

    training.run(steps, each)
    return monitor


def test_a_monitor_records_pairs_and_leaves_the_training_alone(tmp_path, clock, with_page):
    watched, plain, beside = _Training(), _Training(), _Training()
    monitor = _monitored(watched, tmp_path / "run", clock, range(1, 11))
    page = monitor.finish()
    plain.run(range(1, 11), lambda: None)
    tracker = track_pairs(beside.model, X, Y, pairs=5)
    beside.run(range(1, 11), tracker.step)
    for name, weight in plain.model.state_dict().items():
        assert torch.equal(weight, watched.model.state_dict()[name])
    run = RunFolder.open(tmp_path / "run")
    rows = run.metrics().filter(pl.col("metric").str.starts_with("pair_"))
    assert rows.equals(tracker.table)  # every step, though every fourth is measured
    assert run.run["monitor"]["steps"] == [0, 4, 8, 10]
    assert run.run["pairs"] == tracker.run_record()
    assert {name.removeprefix("pairs/") for name in run.arrays() if name.startswith("pairs/")} == set(tracker.matrices)
    for name, matrix in tracker.matrices.items():
        assert np.array_equal(run.arrays()[f"pairs/{name}"], matrix), name
    for claim in run.verdict():  # rows keep their numbers: those of pairs come last
        assert not set(run.metrics()[list(claim.rows)]["metric"]) & set(rows["metric"])
    assert "pair_h" in page.read_text(encoding="utf-8")


def test_records_that_cost_too_much_are_made_at_a_longer_stride(tmp_path, clock, monkeypatch):
    """A record takes as long as a step; half of a budget of 20% is one step in ten, so the stride is 16."""
    see = Subject.see

    def slow(self):
        clock.now += 1.0
        return see(self)

    monkeypatch.setattr(Subject, "see", slow)
    monitor = _monitored(_Training(), tmp_path / "run", clock, range(1, 201), budget=0.2, schedule=[400])
    monitor.finish()
    run = RunFolder.open(tmp_path / "run").run
    assert run["pairs"]["stride"] == 16
    steps = monitor.table.filter(metric="pair_y")["step"].unique().sort().to_list()
    assert steps == [0, *range(32, 200, 16), 200]  # the allowance of the first 16 steps went to the first record
    assert run["monitor"]["seconds_pairs"] <= 0.1 * run["monitor"]["seconds_training"]
    assert run["monitor"]["seconds_measuring"] >= run["monitor"]["seconds_pairs"] > 0
    assert run["monitor"]["seconds_training"] == 199


@pytest.mark.parametrize("stop", [13, *(pytest.param(stop, marks=pytest.mark.slow) for stop in (8, 16))])
def test_a_resumed_monitor_goes_on_with_its_pairs(tmp_path, clock, stop, monkeypatch):
    monkeypatch.setattr(_pairs_trace, "MOST", 8)
    whole = _monitored(_Training(), tmp_path / "whole", clock, range(1, 27))
    whole.finish()
    training = _Training()
    first = _monitored(training, tmp_path / "parts", clock, range(1, stop + 1))
    kept = {name: value.clone() for name, value in training.model.state_dict().items()}
    training.run(range(stop + 1, stop + 4), lambda: (setattr(clock, "now", clock.now + 1), first.step()))
    first.finish("interrupted")
    training.model.load_state_dict(kept)
    again = _monitored(training, tmp_path / "parts", clock, range(stop + 1, 27), resume=True, first_step=stop)
    again.finish()
    one, other = (RunFolder.open(tmp_path / name) for name in ("whole", "parts"))
    pairs = pl.col("metric").str.starts_with("pair_")
    assert one.metrics().filter(pairs).equals(other.metrics().filter(pairs))
    assert one.run["pairs"] == other.run["pairs"]
    for name, array in one.arrays().items():
        if name.startswith("pairs/"):
            assert np.array_equal(array, other.arrays()[name]), name
    steps = other.metrics().filter(pl.col("metric") == "participation_ratio")["step"].unique()
    assert set(steps) <= set(other.run["monitor"]["steps"])


def test_a_folder_is_gone_on_with_as_it_was_begun(tmp_path, clock):
    training = _Training()
    _monitored(training, tmp_path / "run", clock, range(1, 5)).finish("interrupted")
    begun = (tmp_path / "run" / "run.json").read_bytes()
    for pairs, error, said in (
        (None, InputError, "pairs: got None, expected the pairs of the folder"),
        ([(0, 1)], RunFolderError, "pairs: got .*expected the pairs and layers of the folder"),
    ):
        with pytest.raises(error, match=said):
            Monitor(training.model, X, targets=Y, out=tmp_path / "run", pairs=pairs, resume=True, **FEW)
    assert (tmp_path / "run" / "run.json").read_bytes() == begun


def test_pairs_that_cannot_be_write_nothing(tmp_path, clock):
    with pytest.raises(InputError, match=r"pairs: got \(0, 48\)"):
        Monitor(_Training().model, X, targets=Y, out=tmp_path / "run", pairs=[(0, 48)], **FEW)
    with pytest.raises(InputError, match="targets: got none in the data"):
        Monitor(_Training().model, X, out=tmp_path / "run", pairs=3, **FEW)
    assert not (tmp_path / "run").exists()
