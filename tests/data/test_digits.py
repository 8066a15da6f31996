from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from isthmus._errors import DataWarning, InputError
from isthmus.data import Task, digits


def quiet(seed: int = 0, test_fraction: float = 0.2) -> Task:
    with pytest.warns(DataWarning, match="constant input columns") as caught:
        task = digits(seed, test_fraction)
    assert len(caught) == 1
    return task


def raw(task: Task, split: str) -> list[tuple[float, ...]]:
    """Pixels as they came, each sample as a tuple: the scaling undone on the columns that vary."""
    scale = torch.where(torch.isinf(task.scaling.x_scale), 0.0, task.scaling.x_scale)
    x = (task.x_train if split == "train" else task.x_test) * scale + task.scaling.x_mean
    return [tuple(row) for row in x.round().tolist()]


def test_shapes_names_and_kind() -> None:
    task = quiet()
    assert (task.kind, task.in_features, task.out_features) == ("classification", 64, 10)
    assert len(task.x_train) + len(task.x_test) == 1797
    assert task.feature_names[0] == "pixel_0_0"
    assert task.class_names == tuple("0123456789")
    assert len(task.y_train) == len(task.x_train)


def test_splits_are_disjoint_complete_and_labelled_as_the_originals() -> None:
    task = quiet(seed=3)
    original = load_digits()
    label_of = {tuple(row): int(label) for row, label in zip(original.data.tolist(), original.target, strict=True)}
    assert len(label_of) == 1797  # all images differ, so a tuple names a sample
    constant = torch.isinf(task.scaling.x_scale)
    seen = []
    for split, y in (("train", task.y_train), ("test", task.y_test)):
        columns = ~constant.numpy()
        by_pixels = {tuple(np.array(k)[columns]): v for k, v in label_of.items()}
        for row, label in zip(raw(task, split), y.tolist(), strict=True):
            key = tuple(np.array(row)[columns])
            assert by_pixels[key] == label
            seen.append(key)
    assert len(set(seen)) == len(seen) == 1797


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
def test_stratified_by_class(fraction: float) -> None:
    task = quiet(test_fraction=fraction)
    held, kept = (torch.bincount(y, minlength=10) for y in (task.y_test, task.y_train))
    assert (held - fraction * (held + kept)).abs().max() <= 0.5  # to the rounding of one sample per class


def test_the_seed_decides_and_global_generators_are_left_alone() -> None:
    np.random.seed(0)  # noqa: NPY002 - the global state is what must not move
    before, torch_before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    one, same, other = quiet(1), quiet(1), quiet(2)
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert torch.equal(one.x_train, same.x_train)
    assert torch.equal(one.y_test, same.y_test)
    assert not torch.equal(one.y_test, other.y_test)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan"), 0.001, 0.999])
def test_bad_fractions(fraction: float) -> None:
    with pytest.raises(InputError, match=re.escape(f"test_fraction: got {fraction}")):
        digits(test_fraction=fraction)
