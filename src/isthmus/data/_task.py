"""A task: samples split into train and test, scaled, with the names of their columns."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from isthmus._errors import DataWarning, InputError

TaskKind = Literal["regression", "classification"]
"""What is to be predicted: numbers, or one class of several."""


def _check_matrix(name: str, values: Tensor) -> None:
    if values.is_complex() or values.dtype == torch.bool:
        raise InputError(name, values.dtype, "real numbers")
    if values.ndim != 2 or values.shape[1] == 0:
        raise InputError(name, tuple(values.shape), "a matrix of (samples, columns)")
    bad = ~torch.isfinite(values)
    if bool(bad.any()):
        row, column = (int(i) for i in bad.nonzero()[0])
        raise InputError(name, f"{int(bad.sum())} NaN or infinite values (first at row {row}, column {column})",
                         "finite numbers", "drop these rows or fill them in first")  # fmt: skip


def _check_pair(x_name: str, x: Tensor, y_name: str, y: Tensor, kind: TaskKind, classes: int | None) -> None:
    """Checks that hold for training and test samples alike."""
    _check_matrix(x_name, x)
    if y.ndim == 0 or x.shape[0] != y.shape[0]:
        raise InputError(y_name, f"{y.shape[0] if y.ndim else 0} rows", f"as many rows as {x_name} ({x.shape[0]})")
    if kind == "regression":
        _check_matrix(y_name, y)
        return
    if y.ndim != 1 or y.dtype != torch.int64:
        raise InputError(y_name, f"{y.dtype} of shape {tuple(y.shape)}", "one int64 class number per sample")
    if y.numel() == 0:
        return
    low, high = int(y.min()), int(y.max())
    if low < 0 or (classes is not None and high >= classes):
        upper = high + 1 if classes is None else classes
        raise InputError(y_name, f"class numbers from {low} to {high}", f"numbers in [0, {upper})")


def check_samples(x: Tensor, y: Tensor, *, kind: TaskKind, classes: int | None = None) -> None:
    """Refuse training samples nothing can be learned from, naming what is wrong.

    Args:
        x: inputs `(n, d)`.
        y: real targets `(n, outputs)`, or int64 class numbers `(n,)`.
        kind: of task.
        classes: number of classes, where known.

    Raises:
        InputError: no samples, one sample, different lengths, NaN or infinite values (says where), wrong dimensions,
            class numbers out of range, fewer than 2 classes, or a constant target.
    """
    _check_pair("x", x, "y", y, kind, classes)
    if x.shape[0] < 2:
        raise InputError("x", f"{x.shape[0]} samples", "at least 2 samples")
    if bool((y == y[0]).all()):
        one = "a constant target" if kind == "regression" else "a constant target (one class)"
        more = "targets that vary" if kind == "regression" else "at least 2 classes"
        raise InputError("y", one, more, "a constant needs no network")


@dataclasses.dataclass(frozen=True)
class Scaling:
    """Centre and scale of inputs and targets, fitted on training data only (arXiv 2405.17573, docs/theory 1.8).

    Inputs: each column is centred and divided by its standard deviation (constant columns become 0), since columns of a
    table have units of their own. Real targets: each column is centred, and all are divided by ONE number, the root
    mean square of the centred targets, which keeps their geometry (and rank); afterwards the mean of `‖y‖²` is the
    number of outputs.

    Attributes:
        x_mean, x_scale: `(d,)`; the scale of a constant column is infinite, which maps it to 0.
        y_mean: `(outputs,)`, empty for classes.
        y_scale: one number, 1 for classes.
    """

    x_mean: Float[Tensor, " d"]
    x_scale: Float[Tensor, " d"]
    y_mean: Float[Tensor, " outputs"]
    y_scale: float

    @classmethod
    def fit(cls, x: Tensor, y: Tensor, *, kind: TaskKind, feature_names: Sequence[str]) -> Scaling:
        """Fit on training samples; warns once, naming the columns that are constant."""
        mean, std = x.mean(0), x.std(0, correction=0)
        tiny = std <= 1e-12 * x.abs().amax(0).clamp(min=1e-300)
        if bool(tiny.any()):
            names = ", ".join(repr(feature_names[int(i)]) for i in tiny.nonzero()[:, 0])
            warnings.warn(f"{int(tiny.sum())} constant input columns carry nothing and are kept as zeros: {names}",
                          DataWarning, stacklevel=2)  # fmt: skip
        scale = torch.where(tiny, torch.inf, std)
        if kind == "classification":
            return cls(mean, scale, mean.new_zeros(0), 1.0)
        y_mean = y.mean(0)
        return cls(mean, scale, y_mean, float((y - y_mean).square().mean().sqrt()))

    def inputs(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Scaled inputs. Raises `InputError` for another number of columns."""
        if x.shape[1] != self.x_mean.shape[0]:
            raise InputError("x", tuple(x.shape), f"{self.x_mean.shape[0]} columns, as in training")
        return (x - self.x_mean) / self.x_scale

    def targets(self, y: Shaped[Tensor, "n ..."]) -> Shaped[Tensor, "n ..."]:
        """Scaled targets; class numbers pass through."""
        return y if self.y_mean.numel() == 0 else (y - self.y_mean) / self.y_scale

    def outputs(self, y: Float[Tensor, "n outputs"]) -> Float[Tensor, "n outputs"]:
        """The inverse of `targets`: network outputs in the user's units; class scores pass through."""
        return y if self.y_mean.numel() == 0 else y * self.y_scale + self.y_mean

    def to_arrays(self) -> dict[str, np.ndarray]:
        """As arrays, for a run folder."""
        return {
            "x_mean": self.x_mean.numpy(),
            "x_scale": self.x_scale.numpy(),
            "y_mean": self.y_mean.numpy(),
            "y_scale": np.array([self.y_scale]),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Scaling:
        """The inverse of `to_arrays`."""
        x_mean, x_scale, y_mean = (torch.from_numpy(arrays[k].copy()) for k in ("x_mean", "x_scale", "y_mean"))
        return cls(x_mean, x_scale, y_mean, float(arrays["y_scale"][0]))


@dataclasses.dataclass(frozen=True)
class Task:
    """Scaled samples, ready to train on. All real tensors are float64, on the CPU; rows are samples.

    Attributes:
        name: short name, shown on pages.
        kind: `regression` (real targets, `(n, outputs)`) or `classification` (int64 classes, `(n,)`).
        scaling: how the user's units became these.
        feature_names, class_names: of the input columns and the classes (empty for regression).
        description: where the samples come from, for the record.
    """

    name: str
    kind: TaskKind
    x_train: Float[Tensor, "n d"]
    y_train: Shaped[Tensor, "n ..."]
    x_test: Float[Tensor, "m d"]
    y_test: Shaped[Tensor, "m ..."]
    scaling: Scaling
    feature_names: tuple[str, ...]
    class_names: tuple[str, ...]
    description: Mapping[str, object]

    @property
    def in_features(self) -> int:
        """Number of input columns."""
        return self.x_train.shape[1]

    @property
    def out_features(self) -> int:
        """Number of outputs, or of classes."""
        return len(self.class_names) if self.kind == "classification" else self.y_train.shape[1]


def _plain(values: Tensor) -> Tensor:
    """On the CPU; real numbers in float64, class numbers as they are."""
    return values.detach().cpu() if values.dtype == torch.int64 and values.ndim == 1 else values.detach().cpu().double()


def make_task(
    name: str,
    kind: TaskKind,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    *,
    feature_names: Sequence[str],
    class_names: Sequence[str] = (),
    description: Mapping[str, object],
) -> Task:
    """Check both splits, fit the scaling on the training one, and scale, in float64 on the CPU.

    Args:
        name: short name, shown on pages.
        kind: `regression` or `classification`.
        train: inputs `(n, d)` and targets, as `check_samples` wants them.
        test: the same for the held-out samples; may hold a single sample.
        feature_names: one per input column.
        class_names: one per class; empty for regression.
        description: where the samples come from, for the record.

    Raises:
        InputError: see `check_samples`; test samples that do not fit the training ones, or a wrong number of names.
    """
    if kind not in ("regression", "classification"):
        raise InputError("kind", kind, "'regression' or 'classification'")
    classes = len(class_names) if kind == "classification" else None
    if classes is not None and classes < 2:
        raise InputError("class_names", list(class_names), "the names of at least 2 classes")
    check_samples(*train, kind=kind, classes=classes)
    _check_pair("x_test", test[0], "y_test", test[1], kind, classes)
    if test[0].shape[0] == 0:
        raise InputError("x_test", "0 samples", "at least 1 sample")
    for argument, got, wanted in (("x_test", test[0], train[0]), ("y_test", test[1], train[1])):
        if got.shape[1:] != wanted.shape[1:]:
            raise InputError(argument, f"{got.shape[1]} columns", f"{wanted.shape[1]} columns, as in training")
    if len(feature_names) != train[0].shape[1]:
        raise InputError("feature_names", f"{len(feature_names)} names", f"one for each of {train[0].shape[1]} columns")
    (x_train, y_train), (x_test, y_test) = (tuple(_plain(part) for part in split) for split in (train, test))
    scaling = Scaling.fit(x_train, y_train, kind=kind, feature_names=feature_names)
    return Task(
        name=name,
        kind=kind,
        x_train=scaling.inputs(x_train),
        y_train=scaling.targets(y_train),
        x_test=scaling.inputs(x_test),
        y_test=scaling.targets(y_test),
        scaling=scaling,
        feature_names=tuple(feature_names),
        class_names=tuple(class_names),
        description=dict(description),
    )
