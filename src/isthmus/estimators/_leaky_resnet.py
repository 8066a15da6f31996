"""`LeakyResNetRegressor` and `LeakyResNetClassifier`: the whole need of someone with a table."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.preprocessing import LabelEncoder
from sklearn.utils.multiclass import check_classification_targets
from torch import Tensor

from isthmus.estimators._base import E, LeakyResNetEstimator


class LeakyResNetRegressor(RegressorMixin, LeakyResNetEstimator):
    """A Leaky ResNet for regression, in scikit-learn's API (arXiv 2405.17573, docs/theory 1.1 and 1.2).

    Inputs and targets are standardised, column by column; the network then minimises
    `Σ w_i‖y_i − f(x_i)‖²/Σ w_i + (λ/2μ) Σ ρ_ℓ‖W_ℓ‖²` by Adam, whose step size falls by a cosine over `max_epochs`.

    Args:
        width: dimensions along the path; the number of columns, but at least 32 and at most 100, unless given.
        depth: number of layers.
        effective_depth: `L̃`: 0 is a plain ResNet, large values are like a fully-connected network.
        steps: `equidistant`, `irregular` or `adaptive` layer steps.
        ridge: `λ`.
        learning_rate: Adam's first step size.
        max_epochs: passes over the data at most.
        tol: stop when the loss (or with early stopping the validation score) has not improved by this much for
            `n_iter_no_change` epochs.
        n_iter_no_change: see `tol`.
        early_stopping: hold out `validation_fraction` of the samples, watch the score on them, return to the best.
        validation_fraction: see `early_stopping`.
        batch_size: samples per step; all unless given.
        random_state: seed of the weights, the split and the batches.
        device: where to train.
        dtype: `float64` or `float32`.
        verbose: print the loss of every epoch.

    Attributes:
        module_: the network with its scaling.
        n_iter_: epochs that were run.
        loss_curve_: objective of every epoch, in scaled units.
        loss_: the last of them.
        bottleneck_rank_: dimensions in the narrowest part of the path, read on at most 1000 samples.
        layer_steps_: `ρ`, the lengths of the layers' steps; they sum to 1.
        validation_scores_: score of every epoch, with early stopping.
        best_validation_score_: the largest of them.
        n_features_in_: number of columns.
        feature_names_in_: their names, where `X` was a frame.

    Example:
        >>> x = np.linspace(-1, 1, 50)[:, None]
        >>> fitted = LeakyResNetRegressor(random_state=0).fit(x, x[:, 0] ** 2)
        >>> fitted.predict(x).shape
        (50,)
    """

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def _targets(self, y: np.ndarray, *, first: bool) -> Tensor:
        if y.dtype.kind not in "biuf":
            y = y.astype(np.float64)
        if first:
            self._single = y.ndim == 1
            self.n_outputs_ = 1 if self._single else y.shape[1]
        return torch.from_numpy(np.array(y, dtype=np.float64)).reshape(len(y), -1)

    def _outputs(self) -> int:
        return self.n_outputs_

    def _unit(self, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        mean = (weight @ y) / weight.sum()
        spread = ((weight @ (y - mean).square()) / weight.sum()).sqrt()
        return mean, torch.where(spread > 0, spread, 1.0)

    def partial_fit(self: E, X: Any, y: Any, sample_weight: Any = None) -> E:
        """One pass over more samples at the step size `learning_rate`; the first call decides the scaling."""
        return self._go_on(X, y, sample_weight, first=not hasattr(self, "module_"))

    def _score_on(self, x: Tensor, y: Tensor) -> float:
        missed = (y - self._forward(x).cpu()).square().sum()
        spread = (y - y.mean(0)).square().sum()
        return float(1 - missed / spread) if float(spread) > 0 else 0.0

    def predict(self, X: Any) -> np.ndarray:
        """Predictions in the units of `y`: `(n,)`, or `(n, outputs)` if `y` had columns."""
        outputs = self._raw_outputs(X)
        return outputs[:, 0] if self._single else outputs


class LeakyResNetClassifier(ClassifierMixin, LeakyResNetEstimator):
    """A Leaky ResNet for classification, in scikit-learn's API (arXiv 2405.17573, docs/theory 1.1 and 1.2).

    Inputs are standardised; the network minimises the weighted mean of `−log softmax(f(x_i))_{y_i}` plus the ridge term
    `(λ/2μ) Σ ρ_ℓ‖W_ℓ‖²` by Adam, whose step size falls by a cosine over `max_epochs`.

    Args:
        width: dimensions along the path; the number of columns, but at least 32 and at most 100, unless given.
        depth: number of layers.
        effective_depth: `L̃`: 0 is a plain ResNet, large values are like a fully-connected network.
        steps: `equidistant`, `irregular` or `adaptive` layer steps.
        ridge: `λ`.
        learning_rate: Adam's first step size.
        max_epochs: passes over the data at most.
        tol: stop when the loss (or with early stopping the validation score) has not improved by this much for
            `n_iter_no_change` epochs.
        n_iter_no_change: see `tol`.
        early_stopping: hold out `validation_fraction` of the samples, watch the score on them, return to the best.
        validation_fraction: see `early_stopping`.
        batch_size: samples per step; all unless given.
        random_state: seed of the weights, the split and the batches.
        device: where to train.
        dtype: `float64` or `float32`.
        verbose: print the loss of every epoch.

    Attributes:
        classes_: the class labels.
        module_: the network with its scaling; its outputs are logits.
        n_iter_: epochs that were run.
        loss_curve_: objective of every epoch.
        loss_: the last of them.
        bottleneck_rank_: dimensions in the narrowest part of the path, read on at most 1000 samples.
        layer_steps_: `ρ`, the lengths of the layers' steps; they sum to 1.
        validation_scores_: score of every epoch, with early stopping.
        best_validation_score_: the largest of them.
        n_features_in_: number of columns.
        feature_names_in_: their names, where `X` was a frame.
    """

    _loss = "cross_entropy"

    def _targets(self, y: np.ndarray, *, first: bool) -> Tensor:
        if y.ndim == 2 and y.shape[1] == 1:
            from sklearn.utils.validation import column_or_1d

            y = column_or_1d(y, warn=True)
        check_classification_targets(y)
        if y.ndim != 1:
            raise ValueError(f"y should be a 1d array of classes, got an array of shape {y.shape} instead.")
        if first:
            self._encoder = LabelEncoder().fit(y)
            self.classes_ = np.asarray(self._encoder.classes_)
        return torch.from_numpy(np.asarray(self._encoder.transform(y), dtype=np.int64))

    def _outputs(self) -> int:
        return len(self.classes_)

    def _unit(self, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self._outputs()
        return torch.zeros(outputs, dtype=torch.float64), torch.ones(outputs, dtype=torch.float64)

    def partial_fit(self: E, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> E:
        """One pass over more samples at the step size `learning_rate`; the first call decides scaling and classes.

        Args:
            X: samples.
            y: classes.
            classes: all classes that will ever come; needed in the first call.
            sample_weight: weights.
        """
        first = not hasattr(self, "module_")
        if first:
            if classes is None:
                raise ValueError("classes must be passed on the first call to partial_fit.")
            self._encoder = LabelEncoder().fit(np.asarray(classes))
            self.classes_ = np.asarray(self._encoder.classes_)
        elif classes is not None and not np.array_equal(np.unique(classes), self.classes_):
            raise ValueError(
                f"`classes={classes!r}` is not the same as on last call to partial_fit, was: {self.classes_!r}"
            )
        return self._go_on(X, y, sample_weight, first=first, known=True)

    def _score_on(self, x: Tensor, y: Tensor) -> float:
        return float((self._forward(x).argmax(1).cpu() == y).double().mean())

    def decision_function(self, X: Any) -> np.ndarray:
        """Logits `(n, classes)`; for two classes their difference `(n,)`, positive for the second."""
        logits = self._raw_outputs(X)
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Logarithms of `predict_proba`."""
        return torch.from_numpy(self._raw_outputs(X)).log_softmax(1).numpy()

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities `(n, classes)`, in the order of `classes_`."""
        return torch.from_numpy(self._raw_outputs(X)).softmax(1).numpy()

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of every sample."""
        best = self._raw_outputs(X).argmax(1)
        return self.classes_[best]
