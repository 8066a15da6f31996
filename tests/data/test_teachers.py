from __future__ import annotations

import json
import math
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch

from isthmus._errors import InputError
from isthmus.data import Task, teacher

CASES = [((30, 3, 30), "mlp"), ((30, 6, 3, 30), "resnet"), ((8, 2, 5), "resnet"), ((4, 6), "mlp")]


@pytest.mark.parametrize(("widths", "kind"), CASES)
def test_sizes_scaling_and_provenance(widths: tuple[int, ...], kind: str) -> None:
    task = teacher(widths, kind, n_train=60, n_test=20)
    assert task.x_train.shape == (60, widths[0])
    assert task.y_test.shape == (20, widths[-1])
    assert (task.in_features, task.out_features) == (widths[0], widths[-1])
    assert float(task.y_train.square().sum(1).mean()) == pytest.approx(widths[-1], rel=1e-12)
    torch.testing.assert_close(task.x_train.square().mean(0), torch.ones(widths[0]), rtol=1e-12, atol=0)
    assert task.description["widths"] == list(widths)
    assert task.description["rank"] == min(widths)
    assert json.loads(json.dumps(task.description)) == task.description


def numpy_teacher(task: Task, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    """The 30→3→30 teacher of `mlp` kind, rebuilt from its documented recipe: raw inputs to unscaled targets."""
    from isthmus._random import torch_generator

    weights, samples = torch_generator(seed, "teacher weights"), torch_generator(seed, "teacher samples")
    n = len(task.x_train)
    x = torch.randn(n + len(task.x_test), 30, generator=samples).numpy()[:n]
    layers = []
    for d_in, d_out in ((30, 3), (3, 30)):
        first = torch.randn(d_in, 100, generator=weights).numpy() / math.sqrt(d_in)
        bias = torch.randn(1, 100, generator=weights).numpy() / 2
        second = torch.randn(100, d_out, generator=weights).numpy() / 10
        x = np.tanh(x @ first + bias) @ second
        mean = x.mean(0)
        size = math.sqrt(((x - mean) ** 2).mean())
        x = (x - mean) / size
        layers.append((first, bias, second, mean, size))

    def run(a: np.ndarray) -> np.ndarray:
        for first, bias, second, mean, size in layers:
            a = (np.tanh(a @ first + bias) @ second - mean) / size
        return a

    return run


def test_targets_and_log_singular_values_against_a_rebuilt_teacher() -> None:
    task = teacher(n_train=50, n_test=10, seed=4)
    run, scaling = numpy_teacher(task, 4), task.scaling
    x = (task.x_train * scaling.x_scale + scaling.x_mean).numpy()
    y = (run(x) - scaling.y_mean.numpy()) / scaling.y_scale
    np.testing.assert_allclose(y, task.y_train.numpy(), rtol=0, atol=1e-12)

    # Jacobians by central differences: step 1e-5, error ~ step² · third derivative + 1e-16/step, about 1e-10.
    step, logs = 1e-5, []
    for sample in task.x_train.numpy():
        shifts = np.concatenate([sample + step * np.eye(30), sample - step * np.eye(30)])
        raw = run(shifts * scaling.x_scale.numpy() + scaling.x_mean.numpy()) / scaling.y_scale
        singular = np.linalg.svd((raw[:30] - raw[30:]) / (2 * step), compute_uv=False)
        assert (singular > 1e-7 * singular[0]).sum() == 3
        logs.append(np.log(singular[:3]))
    np.testing.assert_allclose(
        np.array(task.description["jacobian_log_singular_values"]), np.mean(logs, 0), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize(("widths", "kind"), CASES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_jacobian_has_exactly_the_bottlenecks_rank(widths: tuple[int, ...], kind: str, seed: int) -> None:
    description = teacher(widths, kind, n_train=60, n_test=5, seed=seed).description
    assert description["jacobian_rank"] == description["rank"] == min(widths)
    logs = description["jacobian_log_singular_values"]
    assert isinstance(logs, list)
    assert logs == sorted(logs, reverse=True)
    assert len(logs) == min(widths)


def test_the_seed_decides_and_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    one, same, other = (teacher(n_train=30, n_test=10, seed=s) for s in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.y_train, same.y_train)
    assert torch.equal(one.x_test, same.x_test)
    assert not torch.equal(one.y_train, other.y_train)


def test_test_targets_do_not_move_the_scaling() -> None:
    few, many = (teacher(n_train=40, n_test=n, seed=1) for n in (5, 5))
    assert torch.equal(few.scaling.y_mean, many.scaling.y_mean)
    assert abs(float(few.y_test.mean())) > 1e-6  # centred by the training samples, not by its own


def test_noise_is_on_training_targets_only_and_of_the_given_size() -> None:
    clean, noisy = (teacher(n_train=1000, n_test=50, noise=n) for n in (0.0, 0.5))
    factor = noisy.scaling.y_scale / clean.scaling.y_scale
    assert factor == pytest.approx(math.sqrt(1.25), rel=0.02)
    undone = [t.scaling.outputs(t.y_train) for t in (clean, noisy)]
    assert float((undone[1] - undone[0]).std()) == pytest.approx(0.5, rel=0.02)  # 30 000 draws: 5 standard errors
    test = [t.scaling.outputs(t.y_test) for t in (clean, noisy)]
    torch.testing.assert_close(test[0], test[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: teacher((30,)), "widths: got (30,), expected at least two positive integers"),
        (lambda: teacher((30, 0, 30)), "widths: got (30, 0, 30)"),
        (lambda: teacher(kind="resnett"), "kind: got resnett, expected 'mlp' or 'resnet'; did you mean 'resnet'?"),
        (lambda: teacher(n_train=1), "n_train: got 1, expected at least 2 samples"),
        (lambda: teacher(n_test=0), "n_test: got 0, expected at least 1 sample"),
        (lambda: teacher(noise=-0.1), "noise: got -0.1, expected a finite number ≥ 0"),
        (lambda: teacher(noise=math.inf), "noise: got inf"),
        (lambda: teacher(seed=-1), "seed: got -1"),
    ],
)
def test_bad_settings(call: Callable[[], Task], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        call()
