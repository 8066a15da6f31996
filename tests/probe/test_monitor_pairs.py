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
from isthmus.probe._monitor_pairs import MonitoredPairs
from isthmus.probe._monitor_schedule import Ledger
from isthmus.probe._pairs_model import Subject
from isthmus.probe._pairs_trace import Trace
from isthmus.probe._pairs_tracker import PairTracker

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
    assert steps == [0, 1, 21, *range(32, 200, 16), 200]  # two records say what one costs; none is dropped
    assert run["pairs"]["notes"][-1] == f"records left out to stay within the budget: {run['pairs']['left_out']}"
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


@pytest.mark.parametrize(("at", "seconds", "least"), [(1, 0.5, 250), (100, 1.0, 250), (20000, 60.0, 250)])
def test_one_slow_record_costs_no_other(clock, at, seconds, least):
    """Steps of 50 ms and records of 0.5 ms, within half of 5%, but for one that is slow."""
    ledger, trace, cost = Ledger(0.05), Trace(), 0.0005
    ledger.shared = True

    class Tracker(_Recorded):
        def observe(self):
            slow = self.now >= at and not self.stalled
            self.stalled = self.stalled or slow
            clock.now += seconds if slow else cost
            super().observe()

    pairs = MonitoredPairs.__new__(MonitoredPairs)
    pairs._ledger, pairs._begun, pairs.tracker = ledger, (0, 0.0), Tracker(trace)
    for step in range(1, 40001):
        clock.now += 0.05
        ledger.stepped()
        pairs.step(step - 1, step, clock)
        if step == at:
            before = len(trace.steps)
    assert len(trace.steps) >= least
    assert trace.steps[-1] > 39000 or at == 20000  # 60 s are more than what 20000 steps allow
    assert at != 20000 or len(trace.steps) >= before
    assert trace.left_out > 0
    assert ledger.pairs <= 0.025 * ledger.training or at == 20000


class _Recorded:
    """What `MonitoredPairs` asks of a tracker, without a model."""

    def __init__(self, trace):
        self.trace, self.now, self.stalled = trace, 0, False
        trace.add(0, 0.0, np.zeros(1))

    @property
    def stride(self):
        return self.trace.stride

    def count(self, step):
        self.now = step

    def due(self, before, now):
        return self.trace.due(before, now)

    def observe(self):
        self.trace.add(self.now, float(self.now), np.zeros(1))

    leave_out = PairTracker.leave_out

    @property
    def _trace(self):
        return self.trace


def test_what_was_left_out_is_known_to_a_run_that_is_resumed(tmp_path, clock):
    training = _Training()
    first = _monitored(training, tmp_path / "run", clock, range(1, 5))
    first._pairs.tracker.leave_out(widen=True)
    first.finish("interrupted")
    again = Monitor(training.model, X, targets=Y, out=tmp_path / "run", pairs=5, resume=True, first_step=4, **FEW)
    again._pairs.tracker.leave_out(widen=False)
    again.finish()
    pairs = RunFolder.open(tmp_path / "run").run["pairs"]
    assert (pairs["left_out"], pairs["stride"]) == (2, 2)
