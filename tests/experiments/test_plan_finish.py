"""What a run with a second-order finish would take."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import pytest

from isthmus.data import Task, teacher
from isthmus.experiments import LeakyConfig, _plan, plan_leaky

CONFIG = LeakyConfig(width=12, depth=8, effective_depth=3.0, epochs=50, sgd_epochs=10)


def task() -> Task:
    return teacher(widths=(6, 2, 4), n_train=40, n_test=10)


class Clock:
    """A clock that stands still except where the test moves it."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


def test_the_time_counts_the_finish(monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch of 2 s, an iteration of 3 s, a curvature of 10 s: three phases and the polish of the trial have four."""
    clock = Clock()

    def fit(*_: object, progress: Callable[..., None] | None = None) -> None:
        for epoch in (1, 2, 3):
            clock.now += 2
            if progress is not None:
                progress(epoch, 3, None)

    def finish(*_: object, iterations: int, progress: Callable[[int, float], None], **__: Any) -> None:
        assert iterations == 9
        for done in range(1, 12):
            clock.now += 3 + (10 if done in (1, 5, 8, 10) else 0)
            progress(done, 0.0)

    monkeypatch.setattr(_plan, "time", clock)
    monkeypatch.setattr(_plan, "fit", fit)
    monkeypatch.setattr(_plan, "finish", finish)
    plan = plan_leaky(task(), dataclasses.replace(CONFIG, finish=900))
    assert plan.seconds == pytest.approx(60 * 2 + (900 + 225) * 3 + (4 + 900 // 50) * 10, rel=1e-12)
    assert dict(plan.lines())["training time, about"] == "61.9 min for 60 epochs and 1,125 iterations of the finish"
    without = plan_leaky(task(), CONFIG)
    assert without.seconds == pytest.approx(120, rel=1e-12)
    assert dict(without.lines())["training time, about"] == "2.0 min for 60 epochs"
    assert (plan.finish, without.finish) == (1125, 0)
    # 20 pairs of float64 vectors at the least
    assert plan.memory - without.memory > 8 * 40 * plan.parameters


def test_only_a_few_iterations_are_taken_to_find_out() -> None:
    """A plan takes no longer for a longer finish: a million iterations of any network would take minutes."""
    begun = time.perf_counter()
    plan = plan_leaky(task(), dataclasses.replace(CONFIG, finish=1_000_000))
    assert time.perf_counter() - begun < 60
    assert plan.finish == 1_250_000
    assert plan.seconds > 60


def test_a_plan_of_classes_with_a_held_out_part() -> None:
    from isthmus.data import digits

    with pytest.warns(UserWarning, match="constant input columns"):
        classes = digits()
    config = LeakyConfig(width=64, depth=4, effective_depth=1.0, epochs=2, finish=9, validation_fraction=0.2)
    assert plan_leaky(classes, config).seconds > 0
