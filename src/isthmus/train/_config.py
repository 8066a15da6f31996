"""What a training run is told: one frozen, validated record."""

from __future__ import annotations

import dataclasses
import math

from isthmus._errors import InputError
from isthmus._random import check_seed

PRECISIONS = ("true", "bf16-mixed", "16-mixed")
"""Ways to compute: in the model's dtype, or under autocast in bfloat16 or float16."""

LEAST_FINISH = 9
"""Fewest iterations of a finish: one for each ninth of its stages."""


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """Settings of `fit` (arXiv 2405.17573, docs/theory 1.2, 1.8 and 1.9).

    Attributes:
        ridge: `λ`, weight of the ridge term `(λ/2μ) Σ ρ_ℓ‖W_ℓ‖²`. The default 1e-3 is the paper's.
        loss: data term `C`: `square` (sum over outputs, mean over samples) or `cross_entropy` (mean over samples).
        epochs: passes over the training set with Adam.
        learning_rate: first step size of Adam; a cosine takes it to 0. The default 3e-2 is measured in docs/theory 1.9:
            constant or small steps stop far from stationarity.
        sgd_epochs: further passes with plain SGD, the paper's finish (1000); 0 leaves it out.
        sgd_learning_rate: first step size of SGD; a cosine takes it to 0.
        finish: iterations of the second-order finish after that (`isthmus.train.finish`); 900 bring a network close to
            a critical point, 0 leaves it out.
        batch_size: samples per step; None is the full batch, which stationarity needs.
        validation_fraction: share of the training set held out to watch; 0 holds out nothing.
        patience: stop when the validation loss has not improved for so many epochs, and return to the best weights;
            0 never stops early.
        gradient_tolerance: stop when the objective's gradient norm over all training samples falls below (one more pass
            per epoch); 0 never does.
        stationarity_tolerance: stop when the median residual `‖W − μBSᵀ‖/‖W‖` falls below, looked at on recorded
            epochs; 0 never does.
        precision: `true` computes in the model's dtype, `bf16-mixed` and `16-mixed` under autocast.
        seed: of the validation split and the order of mini-batches.
        log_points: epochs at which metrics are recorded, spread evenly in the logarithm.
        pairs: pairs of training samples whose distances are tracked after every epoch (`isthmus.track_pairs`); of a
            finish they are not.
    """

    ridge: float = 1e-3
    loss: str = "square"
    epochs: int = 2000
    learning_rate: float = 3e-2
    sgd_epochs: int = 0
    sgd_learning_rate: float = 1e-3
    finish: int = 0
    batch_size: int | None = None
    validation_fraction: float = 0.0
    patience: int = 0
    gradient_tolerance: float = 0.0
    stationarity_tolerance: float = 0.0
    precision: str = "true"
    seed: int = 0
    log_points: int = 60
    pairs: int = 0

    def __post_init__(self) -> None:
        def number(name: str, expected: str, hint: str = "", *, low: int = 0, high: float = math.inf,
                   open_low: bool = False) -> None:  # fmt: skip
            value = getattr(self, name)
            inside = low < value if open_low else low <= value
            if not (math.isfinite(value) and inside and value < high):
                raise InputError(name, value, expected, hint)

        number("ridge", "a finite number ≥ 0", "the paper uses 1e-3")
        if 0 < self.ridge < 1e-30:
            raise InputError("ridge", self.ridge, "0, or at least 1e-30", "momenta carry 1/λ and would overflow")
        if self.loss not in ("square", "cross_entropy"):
            raise InputError("loss", self.loss, "'square' or 'cross_entropy'")
        number("epochs", "an integer ≥ 1", low=1)
        number("learning_rate", "a finite number > 0", "3e-2 is a good start", open_low=True)
        number("sgd_epochs", "an integer ≥ 0")
        number("sgd_learning_rate", "a finite number > 0", open_low=True)
        if self.batch_size is not None and self.batch_size < 1:
            raise InputError("batch_size", self.batch_size, "an integer ≥ 1, or None for the full batch")
        number("validation_fraction", "a number in [0, 1)", high=1.0)
        number("patience", "an integer ≥ 0")
        if self.patience and not self.validation_fraction:
            raise InputError(
                "patience", self.patience, "0 without a validation set", "set validation_fraction, say 0.1"
            )
        number("finish", "an integer ≥ 0")
        if self.finish and not self.ridge:
            raise InputError("finish", self.finish, "0 where the ridge is 0",
                             "without a ridge there is no critical point to come close to")  # fmt: skip
        if 0 < self.finish < LEAST_FINISH:
            raise InputError("finish", self.finish, f"0, or at least {LEAST_FINISH} iterations", "900 is a good start")
        if self.finish and self.patience:
            raise InputError("finish", self.finish, "0 with patience", "early stopping returns to the weights best on "
                             "the validation set, the finish on to a critical point: choose one")  # fmt: skip
        number("gradient_tolerance", "a finite number ≥ 0")
        number("stationarity_tolerance", "a finite number ≥ 0")
        if self.stationarity_tolerance and not self.ridge:
            raise InputError("stationarity_tolerance", self.stationarity_tolerance, "0 where the ridge is 0",
                             "stationarity is defined for a ridge > 0")  # fmt: skip
        if self.precision not in PRECISIONS:
            raise InputError("precision", self.precision, "'true', 'bf16-mixed' or '16-mixed'")
        number("log_points", "an integer ≥ 2", low=2)
        number("pairs", "an integer ≥ 0", "16 is a good start")
        check_seed(self.seed)

    @property
    def total_epochs(self) -> int:
        """Epochs of Adam and SGD together."""
        return self.epochs + self.sgd_epochs

    def log_epochs(self) -> frozenset[int]:
        """Epochs (1..total) at which metrics are recorded: about `log_points`, log-spaced, both ends included."""
        last, total = self.log_points - 1, self.total_epochs
        return frozenset({round(total ** (i / last)) for i in range(self.log_points)} | {1, self.epochs, total})

    def rate(self, step: int, per_epoch: int) -> float:
        """Step size of optimiser step `step` (from 0): a cosine from the phase's first value to 0, which it keeps."""
        adam = self.epochs * per_epoch
        if step < adam:
            return 0.5 * self.learning_rate * (1 + math.cos(math.pi * step / adam))
        if step >= self.total_epochs * per_epoch:
            return 0.0
        return 0.5 * self.sgd_learning_rate * (1 + math.cos(math.pi * (step - adam) / (self.sgd_epochs * per_epoch)))
