from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from isthmus import InputError, LeakyResNet
from isthmus._errors import DivergedError
from isthmus.models import Adaptive
from isthmus.theory import linear_geodesic
from isthmus.train import EpochLog, FitConfig, fit, objective
from isthmus.train._steps import update_steps


@pytest.fixture
def samples() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(2)
    x = torch.randn(60, 5, generator=g)
    return x, torch.tanh(x @ torch.randn(5, 2, generator=g)) @ torch.randn(2, 3, generator=g)


def net(**changes: object) -> LeakyResNet:
    settings = {"width": 8, "depth": 6, "effective_depth": 3.0, "seed": 4} | changes
    return LeakyResNet(5, 3, **settings)  # pyright: ignore[reportArgumentType]


@torch.no_grad()
def total_objective(model: LeakyResNet, x: Tensor, y: Tensor) -> float:
    return sum(float(t) for t in objective(model, "square", 1e-3, x, y))


def test_training_lowers_the_objective_and_reports_it(samples: tuple[Tensor, Tensor]) -> None:
    x, y = samples
    model = net()
    before = total_objective(model, x, y)
    seen: list[tuple[int, EpochLog | None]] = []
    config = FitConfig(epochs=150, learning_rate=1e-2)
    result = fit(model, x, y, config, x_test=x[:9], y_test=y[:9], progress=lambda e, _, log: seen.append((e, log)))
    after = total_objective(model, x, y)
    assert result.objective == pytest.approx(after, rel=1e-12)
    assert after < 0.5 * before
    assert [e for e, _ in seen] == list(range(1, 151))
    assert [log for _, log in seen if log is not None] == list(result.log)
    assert {e.epoch for e in result.log} == config.log_epochs()
    last = result.log[-1]
    assert last.train["loss"] + last.train["ridge_term"] == pytest.approx(after, rel=1e-12)
    assert set(last.test) == {"loss", "r_squared"}
    assert last.train["learning_rate"] < 1e-2 * 1e-3  # the cosine ends at 0


@pytest.mark.parametrize("batch_size", [None, 16])
def test_same_seed_same_weights(samples: tuple[Tensor, Tensor], batch_size: int | None) -> None:
    states = []
    for _ in range(2):
        model = net()
        fit(model, *samples, FitConfig(epochs=12, batch_size=batch_size, seed=3))
        states.append(model.state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_global_random_state_is_left_alone(samples: tuple[Tensor, Tensor]) -> None:
    before = torch.random.get_rng_state()
    fit(net(), *samples, FitConfig(epochs=3, batch_size=7))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_one_epoch_is_one_adam_step_on_the_objective(samples: tuple[Tensor, Tensor]) -> None:
    x, y = samples
    model, twin = net(), net()
    fit(model, x, y, FitConfig(epochs=1, learning_rate=0.02, ridge=0.1))
    cost, ridge = objective(twin, "square", 0.1, x, y)
    (cost + ridge).backward()
    # Adam's first step moves every weight by the learning rate against the sign of its gradient (ε = 1e-8).
    assert twin.weight.grad is not None
    expected = twin.weight.detach() - 0.02 * twin.weight.grad / (twin.weight.grad.abs() + 1e-8)
    assert torch.allclose(model.weight, expected, rtol=0, atol=1e-9)


def test_the_exact_linear_solution_stays_put() -> None:
    """The stationary net of docs/theory 1.10 has zero gradient: plain training must not leave it."""
    w, n, depth, lt, ridge = 4, 9, 8, 3.0, 0.01
    g = torch.Generator().manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(w, w, generator=g))
    log_map = q @ torch.diag(torch.tensor([0.8, 0.3, -0.2, -0.5])) @ q.T
    geo = linear_geodesic(torch.randn(w, n, generator=g), 0.5 * (log_map + log_map.T), depth=depth, effective_depth=lt,
                          ridge=ridge)  # fmt: skip
    model = LeakyResNet(w, w, width=w, depth=depth, effective_depth=lt, activation="identity", bias=False)
    with torch.no_grad():
        model.weight.copy_(geo.weight)
        model.input_weight.copy_(torch.eye(w))
        model.output_weight.copy_(torch.eye(w))
    result = fit(model, geo.path[0].T, geo.target.T, FitConfig(epochs=1, learning_rate=1e-12, ridge=ridge))
    assert result.log[-1].train["gradient_norm"] < 1e-12
    assert result.log[-1].train["ridge_term"] == pytest.approx(ridge / 2 * geo.parameter_cost, rel=1e-12)


def test_adaptive_steps_even_out_relative_moves(samples: tuple[Tensor, Tensor]) -> None:
    x, y = samples
    model = net(depth=10, steps=Adaptive(interval=5))
    result = fit(model, x, y, FitConfig(epochs=400, learning_rate=1e-2))
    path = model.path(x).detach()
    moves = (path[1:] - path[:-1]).flatten(1).norm(dim=1) / path[1:].flatten(1).norm(dim=1)
    even = net(depth=10)
    fit(even, x, y, FitConfig(epochs=400, learning_rate=1e-2))
    path = even.path(x).detach()
    moves_even = (path[1:] - path[:-1]).flatten(1).norm(dim=1) / path[1:].flatten(1).norm(dim=1)
    assert float(moves.max() / moves.min()) < 0.7 * float(moves_even.max() / moves_even.min())
    assert float(model.layer_steps.sum()) == pytest.approx(1, abs=1e-12)
    assert len({log.layer_steps for log in result.log}) > 3


def test_divergence_is_said(samples: tuple[Tensor, Tensor]) -> None:
    model = net()
    with torch.no_grad():
        model.weight.fill_(1e200)
    with pytest.raises(DivergedError, match=r"epoch 1 .*try a learning_rate below"):
        fit(model, *samples, FitConfig(epochs=3))


def test_a_path_that_is_not_finite_moves_no_steps(samples: tuple[Tensor, Tensor]) -> None:
    model = net(steps=Adaptive(interval=1))
    with torch.no_grad():
        model.weight.fill_(1e200)
    before = model.layer_steps.clone()
    update_steps(model, Adaptive(), samples[0])  # the next epoch says that the training diverged
    assert torch.equal(model.layer_steps, before)
    assert bool((model.weight == 1e200).all())


@pytest.mark.parametrize(
    ("change", "needle"),
    [
        ({"ridge": -1.0}, "ridge: got -1.0"),
        ({"ridge": math.nan}, "ridge: got nan"),
        ({"loss": "mae"}, "loss: got mae"),
        ({"epochs": 0}, "epochs: got 0"),
        ({"learning_rate": 0.0}, "learning_rate: got 0.0"),
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"log_points": 1}, "log_points: got 1"),
        ({"seed": -3}, "seed: got -3"),
    ],
)
def test_bad_configuration(change: dict[str, object], needle: str) -> None:
    with pytest.raises(InputError, match=needle):
        dataclasses.replace(FitConfig(), **change)  # pyright: ignore[reportArgumentType]


def test_mismatched_lengths(samples: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(InputError, match="as many rows as x"):
        fit(net(), samples[0], samples[1][:5], FitConfig(epochs=1))


def test_fit_needs_momentum_only_where_it_is_defined(samples: tuple[Tensor, Tensor]) -> None:
    x, y = samples
    result = fit(net(), x, y, FitConfig(epochs=5))
    assert {"stationarity", "rank_estimate"} <= set(result.log[-1].train)
    assert "stationarity" not in fit(net(), x, y, FitConfig(epochs=2, ridge=0.0)).log[-1].train
    assert "rank_estimate" not in fit(net(effective_depth=0.0), x, y, FitConfig(epochs=2)).log[-1].train


def test_sgd_finishes_what_adam_began(samples: tuple[Tensor, Tensor]) -> None:
    x, y = samples
    model, twin = net(), net()
    config = FitConfig(epochs=30, sgd_epochs=20, sgd_learning_rate=1e-3, learning_rate=1e-2)
    result = fit(model, x, y, config)
    assert result.epochs == 50
    fit(twin, x, y, dataclasses.replace(config, sgd_epochs=0))
    for step in range(20):  # plain gradient descent by hand, from where Adam ended
        cost, ridge = objective(twin, "square", config.ridge, x, y)
        gradients = torch.autograd.grad(cost + ridge, list(twin.parameters()))
        rate = 0.5e-3 * (1 + math.cos(math.pi * step / 20))
        with torch.no_grad():
            for parameter, gradient in zip(twin.parameters(), gradients, strict=True):
                parameter -= rate * gradient
    assert torch.allclose(model.weight, twin.weight, rtol=0, atol=1e-12)


def test_early_stopping_returns_to_the_best_weights(samples: tuple[Tensor, Tensor]) -> None:
    x, _ = samples
    noise = torch.randn(60, 3)  # nothing to learn: the validation loss must rise
    model = net(width=30)
    config = FitConfig(epochs=400, learning_rate=1e-2, ridge=1e-6, validation_fraction=0.3, patience=30)
    result = fit(model, x, noise, config)
    assert result.stopped == "validation"
    assert result.best_epoch is not None
    assert result.epochs == result.best_epoch + 30
    logged = [entry.validation["loss"] for entry in result.log]
    held = torch.randperm(60, generator=_validation_generator())[:18]
    with torch.no_grad():
        final = float((model(x[held]) - noise[held]).square().sum() / 18)
    assert final <= min(logged) + 1e-12
    assert result.final.epoch == result.best_epoch
    assert result.final in result.log
    assert result.final.validation["loss"] == pytest.approx(final, rel=1e-12)


def _validation_generator() -> torch.Generator:
    from isthmus._random import torch_generator

    return torch_generator(0, "validation")


def test_gradient_and_stationarity_stop_training(samples: tuple[Tensor, Tensor]) -> None:
    x, y = samples
    result = fit(net(), x, y, FitConfig(epochs=2000, learning_rate=1e-2, ridge=0.05, gradient_tolerance=0.05))
    assert result.stopped == "gradient"
    assert result.log[-1].train["gradient_norm"] < 0.05
    assert result.log[-1].epoch == result.epochs < 2000
    result = fit(net(), x, y, FitConfig(epochs=2000, learning_rate=1e-2, ridge=0.05, stationarity_tolerance=0.5))
    assert result.stopped == "stationarity"
    assert result.log[-1].train["stationarity"] < 0.5


def test_mixed_precision_trains_and_keeps_parameters_in_their_dtype(samples: tuple[Tensor, Tensor]) -> None:
    x, y = samples
    model = net(dtype=torch.float32)
    result = fit(model, x, y, FitConfig(epochs=60, learning_rate=1e-2, precision="bf16-mixed"))
    assert model.weight.dtype == torch.float32
    exact = net(dtype=torch.float32)
    reference = fit(exact, x, y, FitConfig(epochs=60, learning_rate=1e-2))
    assert result.objective == pytest.approx(reference.objective, rel=0.05)  # bfloat16 has 8 bits: 0.4% per product
    assert result.log[0].train["loss"] > 1.3 * result.log[-1].train["loss"]
    assert not torch.equal(model.weight, exact.weight)  # autocast was on


def test_cosine_of_both_phases() -> None:
    config = FitConfig(epochs=10, learning_rate=1.0, sgd_epochs=4, sgd_learning_rate=0.1)
    assert config.rate(0, 2) == 1
    assert config.rate(10, 2) == pytest.approx(0.5)
    assert config.rate(20, 2) == pytest.approx(0.1)
    assert config.rate(24, 2) == pytest.approx(0.05)
    assert {1, 10, 14} <= config.log_epochs()


def test_weights_follow_their_positions_when_layers_move() -> None:
    from isthmus.train._steps import _at_positions

    old, new = torch.tensor([0.1, 0.4, 0.8]), torch.tensor([0.05, 0.25, 0.8, 0.9])
    values = torch.stack([torch.full((2, 2), v) for v in (1.0, 4.0, 8.0)])  # W_p = 10 p at the old positions
    assert _at_positions(values, old, new)[:, 0, 1].tolist() == pytest.approx([1.0, 2.5, 8.0, 8.0])
    assert torch.equal(_at_positions(values, old, old), values)


def test_every_metric_of_the_path_is_logged(samples: tuple[Tensor, Tensor]) -> None:
    x, y = samples
    model = net()
    result = fit(model, x, y, FitConfig(epochs=20, log_points=4))
    for entry in result.log:
        assert {"step/hamiltonian", "representation/cost_of_identity", "weight/stable_rank"} <= set(entry.path)
        assert len(entry.path["step/hamiltonian"]) == 6
        assert len(entry.path["representation/cost_of_identity"]) == 7
    from isthmus.probe import measure_path
    from isthmus.train import data_term

    measured = measure_path(model, x, y, loss=lambda o, t: data_term("square", o, t), ridge=1e-3, jacobian_samples=0)
    assert measured.geometry.hamiltonians is not None
    assert result.log[-1].path["step/hamiltonian"] == pytest.approx(measured.geometry.hamiltonians.pair.tolist())


def test_recorded_gradient_is_the_whole_objectives(samples: tuple[Tensor, Tensor]) -> None:
    x, y = samples
    model = net()
    result = fit(model, x, y, FitConfig(epochs=7, batch_size=8, learning_rate=1e-2, log_points=2))
    cost, ridge = objective(model, "square", 1e-3, x, y)
    gradients = torch.autograd.grad(cost + ridge, list(model.parameters()))
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
    assert result.final.train["gradient_norm"] == pytest.approx(norm, rel=1e-12)
