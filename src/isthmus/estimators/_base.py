"""What the two estimators share: settings, scaling, training, and what can be asked of a fitted one."""

from __future__ import annotations

import copy
import math
import warnings
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
from torch import Tensor, nn

from isthmus._errors import InputError
from isthmus.estimators._module import TableModule
from isthmus.geometry import find_bottleneck
from isthmus.models import LeakyResNet, check_device, real_number, whole_number
from isthmus.probe import geometry_of, measure, probe_path
from isthmus.train import Descent

if TYPE_CHECKING:
    from isthmus.probe import Measurement

_DTYPES = {"float32": torch.float32, "float64": torch.float64}
_LOOKED_AT = 1000
"""Rows, at most, on which `bottleneck_rank_` is read; `measure(X)` reads it on all of them."""

_STILL_FALLING = 0.2
"""Training that ends with its epochs warns if the loss fell by more than a fifth of its last value in the second half.
The step size has fallen to 0 by then, so that a loss which no longer changes proves nothing."""

_PREDICTED = 8192


E = TypeVar("E", bound="LeakyResNetEstimator")


def _writable(values: Any) -> np.ndarray:
    """The array itself, or a copy where torch could not share it."""
    return np.require(values, requirements=["C", "W"])


class LeakyResNetEstimator(BaseEstimator):
    """What both estimators share."""

    _loss = "square"
    module_: TableModule
    classes_: np.ndarray
    loss_curve_: list[float]
    validation_scores_: list[float] | None
    n_iter_: int
    _descent: Descent
    _encoder: Any
    _single: bool
    n_outputs_: int

    # scikit-learn forbids refusing anything here: what is given is checked when fitting.
    def __init__(
        self,
        *,
        width: Any = None,
        depth: Any = 6,
        effective_depth: Any = 1.0,
        steps: Any = "equidistant",
        ridge: Any = 1e-2,
        learning_rate: Any = 1e-2,
        max_epochs: Any = 300,
        tol: Any = 1e-5,
        n_iter_no_change: Any = 10,
        early_stopping: Any = False,
        validation_fraction: Any = 0.1,
        batch_size: Any = None,
        random_state: Any = None,
        device: Any = "cpu",
        dtype: Any = "float64",
        verbose: Any = False,
    ) -> None:
        self.width = width
        self.depth = depth
        self.effective_depth = effective_depth
        self.steps = steps
        self.ridge = ridge
        self.learning_rate = learning_rate
        self.max_epochs = max_epochs
        self.tol = tol
        self.n_iter_no_change = n_iter_no_change
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.batch_size = batch_size
        self.random_state = random_state
        self.device = device
        self.dtype = dtype
        self.verbose = verbose

    # ── what the two kinds do in their own way ───────────────────────────────────────────────────────────────

    def _targets(self, y: np.ndarray, *, first: bool) -> Tensor:
        raise NotImplementedError

    def _outputs(self) -> int:
        raise NotImplementedError

    def _unit(self, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and scale of the targets."""
        raise NotImplementedError

    # ── fitting ──────────────────────────────────────────────────────────────────────────────────────────────

    def _check_settings(self) -> None:
        real_number("ridge", self.ridge, "a finite number ≥ 0", low=0.0)
        real_number("learning_rate", self.learning_rate, "a finite number > 0", low=0.0, low_open=True)
        real_number("tol", self.tol, "a finite number ≥ 0", low=0.0)
        real_number(
            "validation_fraction", self.validation_fraction, "a number in (0, 1)", low=0.0, high=1.0, low_open=True
        )
        optional = {"width": self.width, "batch_size": self.batch_size}
        given = {name: value for name, value in optional.items() if value is not None}
        for name, value in {"max_epochs": self.max_epochs, "n_iter_no_change": self.n_iter_no_change, **given}.items():
            whole_number(name, value)
        if self.dtype not in _DTYPES:
            raise InputError("dtype", self.dtype, "'float32' or 'float64'")
        check_device(self.device)

    def _validated(self, X: Any, y: Any, sample_weight: Any, *, reset: bool) -> tuple[Tensor, np.ndarray, Tensor]:
        checked: Any = validate_data(self, X, y, reset=reset, dtype=np.float64, multi_output=True, y_numeric=False)
        samples, targets = checked
        weight = _check_sample_weight(sample_weight, samples, dtype=np.float64, ensure_non_negative=True)
        if not float(weight.sum()) > 0:  # as newer versions of scikit-learn say it themselves
            raise ValueError("Sample weights must contain at least one non-zero number.")
        return torch.from_numpy(_writable(samples)), targets, torch.from_numpy(weight)

    def _start(self, x: Tensor, y: Tensor, weight: Tensor) -> None:
        """Scaling and a fresh network; sizes that were not given follow from the columns."""
        generator = check_random_state(self.random_state)
        self._seed = int(generator.randint(2**31 - 1))
        features = x.shape[1]
        width = int(self.width) if self.width is not None else min(max(32, features), 100)
        total = weight.sum()
        mean = (weight @ x) / total
        std = ((weight @ (x - mean).square()) / total).sqrt()
        scale = torch.where(std <= 1e-12 * x.abs().amax(0).clamp(min=1e-300), torch.inf, std)
        y_mean, y_scale = self._unit(y, weight)
        network = LeakyResNet(
            features, self._outputs(), width=width, depth=int(self.depth), effective_depth=float(self.effective_depth),
            steps=self.steps, seed=self._seed, dtype=_DTYPES[self.dtype], device=torch.device(self.device),
        )  # fmt: skip
        self.module_ = TableModule(network, mean, scale, y_mean, y_scale)
        self._descent = Descent(network, loss=self._loss, ridge=float(self.ridge), seed=self._seed)
        self.n_iter_ = 0
        self.loss_curve_ = []

    def _scaled(self, x: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        module = self.module_
        like = module.network.weight
        with torch.no_grad():
            inputs = ((x.to(like.device) - module.x_mean.double()) / module.x_scale.double()).to(like)
        if self._loss == "square":
            shifted = (y.to(like.device) - module.y_mean.double()) / module.y_scale.double()
            return inputs, shifted.to(like), weight.to(like)
        return inputs, y.to(like.device), weight.to(like)

    def fit(self: E, X: Any, y: Any, sample_weight: Any = None) -> E:
        """Fit to samples `X` `(n, features)` and targets `y`.

        Args:
            X: array or frame of finite numbers.
            y: targets: numbers `(n,)` or `(n, outputs)` for the regressor, classes `(n,)` for the classifier.
            sample_weight: `(n,)`, not negative; a weight of 2 counts as the sample twice.

        Returns:
            The estimator.
        """
        self._check_settings()
        x, raw, weight = self._validated(X, y, sample_weight, reset=True)
        targets = self._targets(raw, first=True)
        held = None
        if self.early_stopping:
            x, targets, weight, held = self._split(x, targets, weight)
        self._start(x, targets, weight)
        inputs, scaled, weights = self._scaled(x, targets, weight)
        self._train(inputs, scaled, weights, held)
        self._look(inputs)
        return self

    def _split(self, x: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
        rows = np.arange(x.shape[0])
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        stratify = y.numpy() if self._loss == "cross_entropy" else None
        kept, held = train_test_split(rows, test_size=self.validation_fraction, random_state=seed, stratify=stratify)
        return x[kept], y[kept], weight[kept], (x[held], y[held])

    def _train(self, x: Tensor, y: Tensor, weight: Tensor, held: tuple[Tensor, Tensor] | None) -> None:
        best, best_at, kept = math.inf, 0, None
        self.validation_scores_ = None if held is None else []
        epochs = int(self.max_epochs)
        batch = None if self.batch_size is None else int(self.batch_size)
        stopped = False
        for epoch in range(epochs):
            rate = 0.5 * self.learning_rate * (1 + math.cos(math.pi * epoch / epochs))
            value = self._descent.epoch(x, y, weight, batch_size=batch, rate=rate)
            self.loss_curve_.append(value)
            if held is not None and self.validation_scores_ is not None:
                score = self._score_on(*held)
                self.validation_scores_.append(score)
                watched = -score
            else:
                watched = value
            if watched < best - self.tol:
                best, best_at = watched, epoch
                if held is not None:
                    kept = copy.deepcopy(self.module_.network.state_dict())
            if self.verbose:
                print(f"Epoch {epoch + 1}, loss = {value:.8f}")  # noqa: T201 - what verbose means in scikit-learn
            if epoch - best_at >= self.n_iter_no_change:
                stopped = True
                break
        self.n_iter_ = len(self.loss_curve_)
        self.loss_ = self.loss_curve_[-1]
        self.best_validation_score_ = None if held is None else -best
        if kept is not None:
            self.module_.network.load_state_dict(kept)
        half = self.loss_curve_[len(self.loss_curve_) // 2]
        if not stopped and half - self.loss_ > _STILL_FALLING * abs(self.loss_) + self.tol:
            warnings.warn(
                f"Maximum number of epochs ({epochs}) reached and the optimization hasn't converged yet: in the second "
                f"half the loss fell from {half:.3g} to {self.loss_:.3g}. Increase max_epochs.",
                ConvergenceWarning,
                stacklevel=3,
            )

    def _score_on(self, x: Tensor, y: Tensor) -> float:
        raise NotImplementedError

    def _look(self, inputs: Tensor) -> None:
        """The bottleneck of the fitted network, and where its layers stand."""
        network = self.module_.network
        moments = probe_path(network, inputs[:_LOOKED_AT])
        found = find_bottleneck(geometry_of(network, moments))
        self.bottleneck_rank_ = int(found.rank)
        self.layer_steps_ = network.layer_steps.detach().cpu().double().numpy()

    def _go_on(self: E, X: Any, y: Any, sample_weight: Any, *, first: bool, known: bool = False) -> E:
        """One more epoch; `known`: what the targets are is known before the first of them."""
        x, raw, weight = self._validated(X, y, sample_weight, reset=first)
        targets = self._targets(raw, first=first and not known)
        if first:
            self._check_settings()
            self._start(x, targets, weight)
        inputs, scaled, weights = self._scaled(x, targets, weight)
        batch = None if self.batch_size is None else int(self.batch_size)
        self.loss_ = self._descent.epoch(inputs, scaled, weights, batch_size=batch, rate=float(self.learning_rate))
        self.loss_curve_.append(self.loss_)
        self.n_iter_ += 1
        self._look(inputs)
        return self

    # ── using ────────────────────────────────────────────────────────────────────────────────────────────────

    def _raw_outputs(self, X: Any) -> np.ndarray:
        check_is_fitted(self, "module_")
        x = torch.from_numpy(_writable(validate_data(self, X, reset=False, dtype=np.float64)))
        return self._forward(x).cpu().numpy()

    def _forward(self, x: Tensor) -> Tensor:
        module, like = self.module_, self.module_.network.weight
        with torch.no_grad():
            parts = x.to(like.device).split(_PREDICTED)
            scaled = [((p - module.x_mean.double()) / module.x_scale.double()).to(like) for p in parts]
            outputs = torch.cat([module.network(p) for p in scaled]).double()
            return outputs * module.y_scale.double() + module.y_mean.double()

    def to_module(self) -> nn.Module:
        """The fitted network as a PyTorch module of its own: raw inputs `(n, features)` to predictions or logits."""
        check_is_fitted(self, "module_")
        return copy.deepcopy(self.module_)

    def measure(self, X: Any, y: Any = None, **options: Any) -> Measurement:
        """Measure the fitted network along its path on samples of the user's (`isthmus.measure`).

        Args:
            X: samples.
            y: targets, for the Hamiltonian (with `ridge > 0`).
            options: further arguments of `isthmus.measure`.
        """
        check_is_fitted(self, "module_")
        x = torch.from_numpy(_writable(validate_data(self, X, reset=False, dtype=np.float64)))
        targets = torch.zeros(len(x), dtype=torch.int64) if y is None else self._targets(np.asarray(y), first=False)
        if y is None and self._loss == "square":
            targets = torch.zeros(len(x), self._outputs(), dtype=torch.float64)
        inputs, scaled, _ = self._scaled(x, targets, torch.ones(len(x), dtype=torch.float64))
        given: dict[str, Any] = {"progress": False}
        if y is not None and self.ridge > 0:
            given |= {"loss": self._loss, "ridge": float(self.ridge)}
        return measure(self.module_.network, inputs if y is None else (inputs, scaled), **(given | options))

    def __sklearn_tags__(self) -> Any:
        tags = cast("Any", super()).__sklearn_tags__()
        tags.input_tags.sparse = False
        return tags
