"""Scaling is fitted on training samples only and keeps geometry; unusable samples are refused with their place."""

from __future__ import annotations

import dataclasses
import math
import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from isthmus._errors import DataWarning, InputError
from isthmus.data import Scaling, Task, check_samples, make_task

X, Y = torch.randn(20, 3, dtype=torch.float64), torch.randn(20, 2, dtype=torch.float64)
LABELS = torch.arange(20) % 4


def regression(**changes: Any) -> Task:
    settings: dict[str, Any] = {"train": (3 * X + 5, 7 * Y - 1), "test": (X[:6] + 100, Y[:6] + 50)}
    settings |= {"feature_names": ["a", "b", "c"], "description": {"source": "test"}}
    return make_task("t", "regression", **(settings | changes))


def classification(**changes: Any) -> Task:
    settings: dict[str, Any] = {"train": (X, LABELS), "test": (X[:6], LABELS[:6])}
    settings |= {"feature_names": ["a", "b", "c"], "class_names": ["p", "q", "r", "s"], "description": {}}
    return make_task("t", "classification", **(settings | changes))


def test_training_columns_are_centred_and_of_unit_variance() -> None:
    task = regression()
    torch.testing.assert_close(task.x_train.mean(0), torch.zeros(3), rtol=0, atol=1e-14)
    torch.testing.assert_close(task.x_train.square().mean(0), torch.ones(3), rtol=1e-13, atol=0)
    torch.testing.assert_close(task.y_train.mean(0), torch.zeros(2), rtol=0, atol=1e-14)
    assert float(task.y_train.square().sum(1).mean()) == pytest.approx(2, rel=1e-13)


def test_targets_have_one_scale_so_that_their_geometry_is_kept() -> None:
    y = Y @ torch.diag(torch.tensor([1.0, 10.0]))
    task = regression(train=(X, y), test=(X, y))
    raw, scaled = (torch.linalg.svdvals(v - v.mean(0)) for v in (y, task.y_train))
    torch.testing.assert_close(scaled / scaled[0], raw / raw[0], rtol=1e-12, atol=0)
    constant_column = torch.stack([Y[:, 0], torch.full((20,), 3.0)], 1)
    assert not bool(regression(train=(X, constant_column), test=(X, constant_column)).y_train[:, 1].any())


def test_only_training_samples_fit_the_scaling() -> None:
    """The test samples may be anything: the scaling and the training tensors stay the same, bit for bit."""
    one, other = regression(), regression(test=(1e6 * torch.randn(9, 3), torch.randn(9, 2)))
    assert torch.equal(one.x_train, other.x_train)
    assert torch.equal(one.y_train, other.y_train)
    raw_x, raw_y = 3 * X + 5, 7 * Y - 1
    expected = (X[:6] + 100 - raw_x.mean(0)) / raw_x.std(0, correction=0)
    torch.testing.assert_close(one.x_test, expected, rtol=1e-12, atol=1e-12)
    size = (raw_y - raw_y.mean(0)).square().mean().sqrt()
    torch.testing.assert_close(one.y_test, (Y[:6] + 50 - raw_y.mean(0)) / size, rtol=1e-12, atol=1e-12)


def test_outputs_undo_targets_and_arrays_round_trip() -> None:
    scaling = regression().scaling
    y = torch.randn(5, 2)
    torch.testing.assert_close(scaling.outputs(scaling.targets(y)), y, rtol=1e-13, atol=1e-13)
    arrays = scaling.to_arrays()
    assert all(isinstance(a, np.ndarray) and a.dtype == np.float64 for a in arrays.values())
    again = Scaling.from_arrays(arrays)
    x = torch.randn(5, 3)
    assert torch.equal(again.inputs(x), scaling.inputs(x))
    assert torch.equal(again.targets(y), scaling.targets(y))


def test_classes_and_their_scores_pass_through() -> None:
    task = classification()
    assert torch.equal(task.y_train, LABELS)
    scores = torch.randn(3, 4)
    assert torch.equal(task.scaling.outputs(scores), scores)
    again = Scaling.from_arrays(task.scaling.to_arrays())
    assert torch.equal(again.targets(LABELS), LABELS)
    assert (task.in_features, task.out_features) == (3, 4)


def test_constant_columns_become_zeros_with_one_warning_that_names_them() -> None:
    x = torch.stack([X[:, 0], torch.full((20,), 0.1), torch.full((20,), -7e5)], 1)
    with pytest.warns(DataWarning) as caught:
        task = regression(train=(x, Y), test=(X, Y))
    assert len(caught) == 1
    assert "2 constant input columns" in str(caught[0].message)
    assert "'b', 'c'" in str(caught[0].message)
    assert not bool(task.x_train[:, 1:].any())
    assert not bool(task.x_test[:, 1:].any())  # also where the test samples do vary
    again = Scaling.from_arrays(task.scaling.to_arrays())
    assert torch.equal(again.inputs(x), task.x_train)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        regression()


def test_everything_is_float64_on_the_cpu_whatever_comes_in() -> None:
    task = regression(train=(X.float(), Y.float()), test=((10 * X).int(), Y.half()))
    for values in (task.x_train, task.y_train, task.x_test, task.y_test):
        assert values.dtype == torch.float64
        assert values.device.type == "cpu"
    assert classification(train=(X.float(), LABELS)).y_train.dtype == torch.int64


def test_a_task_is_frozen_and_knows_its_sizes() -> None:
    task = regression()
    assert (task.in_features, task.out_features) == (3, 2)
    assert task.feature_names == ("a", "b", "c")
    assert task.class_names == ()
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.name = "other"  # pyright: ignore[reportAttributeAccessIssue]


def spoiled(values: Tensor, bad: float, *places: tuple[int, int]) -> Tensor:
    result = values.clone()
    for place in places:
        result[place] = bad
    return result


NAN = spoiled(X, math.nan, (4, 1), (7, 0))
INF = spoiled(Y, -math.inf, (9, 1))


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (NAN, Y, "x: got 2 NaN or infinite values (first at row 4, column 1), expected finite numbers"),
        (X, INF, "y: got 1 NaN or infinite values (first at row 9, column 1)"),
        (X[:0], Y[:0], "x: got 0 samples, expected at least 2 samples"),
        (X[:1], Y[:1], "x: got 1 samples, expected at least 2 samples"),
        (X, Y[:19], "y: got 19 rows, expected as many rows as x (20)"),
        (X, torch.tensor(1.0), "y: got 0 rows"),
        (X, torch.ones(20, 2), "y: got a constant target, expected targets that vary"),
        (X[:, 0], Y, "x: got (20,), expected a matrix of (samples, columns)"),
        (X[:, :0], Y, "x: got (20, 0)"),
        (X, Y[:, 0], "y: got (20,), expected a matrix of (samples, columns)"),
        (X.to(torch.complex128), Y, "x: got torch.complex128, expected real numbers"),
    ],
)
def test_bad_regression_samples(x: Tensor, y: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        check_samples(x, y, kind="regression")


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (LABELS + 1, "y: got class numbers from 1 to 4, expected numbers in [0, 4)"),
        (LABELS - 1, "y: got class numbers from -1 to 2, expected numbers in [0, 4)"),
        (LABELS.double(), "y: got torch.float64 of shape (20,), expected one int64 class number per sample"),
        (LABELS[:, None], "y: got torch.int64 of shape (20, 1)"),
        (torch.zeros(20, dtype=torch.int64), "y: got a constant target (one class), expected at least 2 classes"),
        (LABELS[:3], "y: got 3 rows"),
    ],
)
def test_bad_classes(y: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        check_samples(X, y, kind="classification", classes=4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test": (NAN, Y)}, "x_test: got 2 NaN or infinite values (first at row 4, column 1)"),
        ({"test": (X, INF)}, "y_test: got 1 NaN or infinite values (first at row 9, column 1)"),
        ({"test": (X, Y[:3])}, "y_test: got 3 rows, expected as many rows as x_test (20)"),
        ({"test": (X[:0], Y[:0])}, "x_test: got 0 samples, expected at least 1 sample"),
        ({"test": (X[:, :2], Y)}, "x_test: got 2 columns, expected 3 columns, as in training"),
        ({"test": (X, Y[:, :1])}, "y_test: got 1 columns, expected 2 columns, as in training"),
        ({"feature_names": ["a"]}, "feature_names: got 1 names, expected one for each of 3 columns"),
    ],
)
def test_test_samples_and_names_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        regression(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test": (X, LABELS + 2)}, "y_test: got class numbers from 2 to 5, expected numbers in [0, 4)"),
        ({"test": (X, Y)}, "y_test: got torch.float64 of shape (20, 2)"),
        ({"class_names": ["p"]}, "class_names: got ['p'], expected the names of at least 2 classes"),
        ({"class_names": ["p", "q"]}, "y: got class numbers from 0 to 3, expected numbers in [0, 2)"),
    ],
)
def test_classes_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        classification(**changes)


def test_scaling_refuses_other_columns() -> None:
    with pytest.raises(InputError, match="3 columns, as in training"):
        regression().scaling.inputs(torch.randn(4, 2))
