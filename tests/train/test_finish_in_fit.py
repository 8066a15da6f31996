"""The second-order finish within a training run, and what it refuses."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from isthmus import InputError, LeakyResNet
from isthmus._errors import DivergedError
from isthmus.cli import main
from isthmus.train import EpochLog, FitConfig, data_term, finish_iterations, fit
from train.finishing import go, net, samples

# ── what it refuses ──────────────────────────────────────────────────────────────────────────────────────────


def _brief(given: object) -> str:
    return given if isinstance(given, str) else "-".join(given) if isinstance(given, dict) else ""


@pytest.mark.parametrize(
    ("change", "needle"),
    [
        ({"ridge": 0.0}, r"ridge: got 0\.0, expected a finite number > 0 .* leave the finish out"),
        ({"ridge": math.nan}, "ridge: got nan"),
        ({"ridge": math.inf}, "ridge: got inf"),
        ({"iterations": 8}, "iterations: got 8, expected an integer ≥ 9; 900 is a good start"),
        ({"iterations": -1}, "iterations: got -1"),
        ({"tolerance": -0.1}, r"tolerance: got -0\.1"),
        ({"tolerance": math.nan}, "tolerance: got nan"),
        ({"loss": "mae"}, "loss: got mae, expected 'square' or 'cross_entropy'"),
        ({"seed": -1}, "seed: got -1"),
        ({"x": torch.zeros(60, 4)}, r"x: got shape \(60, 4\), expected shape \(samples, in_features\) = \(n, 5\)"),
        ({"x": torch.zeros(0, 5), "y": torch.zeros(0, 3)}, r"x: got shape \(0, 5\).* n ≥ 1"),
        ({"y": torch.zeros(59, 3)}, r"y: got shape \(59, 3\), expected shape .* = \(60, 3\)"),
        ({"y": torch.zeros(60)}, r"y: got shape \(60,\).*one column for one output"),
        ({"y": torch.zeros(60, 3), "loss": "cross_entropy"}, "y: got shape .*expected 60 class numbers, torch.int64"),
        ({"y": torch.full((60,), 3), "loss": "cross_entropy"}, "y: got class numbers 3 to 3, expected 0 to .* = 2"),
        ({"y": torch.full((60,), -100), "loss": "cross_entropy"}, "y: got class numbers -100 to -100"),
        ({"x": torch.full((60, 5), math.nan)}, "x: got 300 NaN or infinite, expected finite numbers; .*rows out"),
        ({"y": torch.full((60, 3), math.inf)}, "y: got 180 NaN or infinite"),
        ({"weight": math.nan}, "model: got 1 NaN or infinite, expected finite weights; it may have diverged"),
        ({"weight": 1e200}, "model: got an objective of .*, expected one below"),
    ],
    ids=_brief,
)
def test_bad_input(change: dict[str, Any], needle: str) -> None:
    model = net()
    x, y = samples()
    weight = change.pop("weight", None)
    if weight is not None:
        with torch.no_grad():
            model.weight[1, 2, 2] = weight
    before = model.augmented_weight().detach().clone()
    given: dict[str, Any] = {"x": x, "y": y, "iterations": 9} | change
    with pytest.raises(InputError, match=needle):
        go(model, given.pop("x"), given.pop("y"), **given)
    torch.testing.assert_close(model.augmented_weight().detach(), before, rtol=0, atol=0, equal_nan=True)


BAD_CONFIGURATIONS: list[tuple[dict[str, Any], str]] = [
    ({"finish": 8}, "finish: got 8, expected 0, or at least 9 iterations; 900 is a good start"),
    ({"finish": -1}, "finish: got -1, expected an integer ≥ 0"),
    ({"finish": 90, "ridge": 0.0}, "finish: got 90, expected 0 where the ridge is 0"),
    ({"finish": 90, "patience": 5, "validation_fraction": 0.2}, "finish: got 90, expected 0 with patience"),
]


@pytest.mark.parametrize(("changes", "needle"), BAD_CONFIGURATIONS, ids=str)
def test_bad_configuration_by_call(changes: dict[str, Any], needle: str) -> None:
    with pytest.raises(InputError, match=needle):
        FitConfig(**changes)


@pytest.mark.parametrize(("changes", "needle"), BAD_CONFIGURATIONS, ids=str)
def test_bad_configuration_by_command(
    changes: dict[str, Any], needle: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = [word for name, value in changes.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    out = tmp_path / "run"
    assert main(["train", "--data", "teacher", "--epochs", "2", "--quiet", "--out", str(out), *options]) == 2
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert needle in printed.err
    assert not out.exists()


# ── within a training run ────────────────────────────────────────────────────────────────────────────────────

CONFIG = FitConfig(epochs=30, sgd_epochs=5, learning_rate=1e-2, finish=36, log_points=5)


def test_fit_goes_on_with_it() -> None:
    x, y = samples()
    model, twin = net(), net()
    seen: list[tuple[int, int]] = []

    def watch(epoch: int, epochs: int, _: EpochLog | None) -> None:
        seen.append((epoch, epochs))

    result = fit(model, x, y, CONFIG, x_test=x[:9], y_test=y[:9], progress=watch)
    fit(twin, x, y, dataclasses.replace(CONFIG, finish=0))
    by_hand = go(twin, x, y, 36)
    assert torch.equal(model.augmented_weight(), twin.augmented_weight())
    assert (result.stopped, result.best_epoch) == ("epochs", None)
    assert result.epochs == 35 + finish_iterations(36) == 35 + 45
    assert result.objective == pytest.approx(by_hand.objective, rel=1e-12)
    assert result.final == result.log[-1]
    assert [entry.epoch for entry in result.log][-2:] == [35, 80]
    assert result.final.train["stationarity"] == pytest.approx(by_hand.residual, rel=1e-9)
    assert result.final.train["loss"] + result.final.train["ridge_term"] == pytest.approx(result.objective, rel=1e-12)
    assert result.final.train["learning_rate"] == 0
    assert result.final.test["loss"] == pytest.approx(float(data_term("square", model(x[:9]), y[:9]).detach()))
    assert seen == [(epoch, 80) for epoch in range(1, 81)]


def test_fit_says_when_it_came_close_enough() -> None:
    x, y = samples()
    config = FitConfig(epochs=30, learning_rate=1e-2, ridge=0.02, finish=450, stationarity_tolerance=0.1)
    result = fit(net(activation="smooth_relu"), x, y, config)
    assert result.stopped == "stationarity"
    assert result.final.train["stationarity"] < 0.1
    assert 30 < result.epochs == result.final.epoch < 30 + 450
    early = fit(net(), x, y, FitConfig(epochs=30, finish=90, gradient_tolerance=1e9))
    assert (early.stopped, early.epochs) == ("gradient", 1)  # what ended training leaves the finish out


def test_fit_finishes_on_the_samples_trained_on() -> None:
    x, y = samples()
    config = dataclasses.replace(CONFIG, validation_fraction=0.3)
    result = fit(net(), x, y, config)
    changed = y.clone()
    held = torch.ones(60, dtype=torch.bool)
    from isthmus.train import training_rows

    held[training_rows(60, config)[0]] = False
    changed[held] += 100
    assert fit(net(), x, changed, config).objective == result.objective


@pytest.mark.parametrize(("steps", "moment"), [("equidistant", 40), ("adaptive", 1), ("adaptive", 70)])
def test_killed_inside_the_finish_it_ends_the_same(tmp_path: Path, steps: str, moment: int) -> None:
    x, y = samples()
    path = tmp_path / "run.pt"
    config = dataclasses.replace(CONFIG, finish=126)  # adaptive steps move at iteration 50

    def train(checkpoint: Path | None, **options: Any) -> tuple[LeakyResNet, Any]:
        model = net(dtype=torch.float32, steps=steps)
        return model, fit(model, x, y, config, checkpoint=checkpoint, checkpoint_seconds=0.0, **options)

    def die(epoch: int, *_: object) -> None:
        if epoch == 35 + moment:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        try:
            train(path, progress=die)
        finally:
            os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    (model, result), (twin, unbroken) = train(path), train(None)
    assert result == unbroken
    states = model.state_dict(), twin.state_dict()
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_what_stops_it_from_outside_leaves_the_weights_before_it() -> None:
    x, y = samples()
    model = net()
    before = model.augmented_weight().detach().clone()

    def stop(done: int, _: float) -> None:
        if done == 20:
            raise DivergedError("planted")

    with pytest.raises(DivergedError, match="planted"):
        go(model, x, y, progress=stop)
    assert torch.equal(model.augmented_weight().detach(), before)
