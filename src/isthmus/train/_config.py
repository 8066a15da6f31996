"""What a training run is told: one frozen, validated record."""

from __future__ import annotations

import dataclasses
import math

from isthmus._errors import InputError
from isthmus._random import check_seed


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """Settings of `fit` (arXiv 2405.17573, docs/theory 1.2 and 1.9).

    Attributes:
        ridge: `λ`, weight of the ridge term `(λ/2μ) Σ ρ_ℓ‖W_ℓ‖²`. The default 1e-3 is the paper's.
        loss: data term `C`: `square` (sum over outputs, mean over samples) or `cross_entropy` (mean over samples).
        epochs: passes over the training set.
        learning_rate: first step size of Adam; a cosine takes it to 0. The default 3e-2 is measured in docs/theory 1.9:
            constant or small steps stop far from stationarity.
        batch_size: samples per step; None is the full batch, which stationarity needs.
        seed: order of the mini-batches.
        log_points: epochs at which metrics are recorded, spread evenly in the logarithm.
    """

    ridge: float = 1e-3
    loss: str = "square"
    epochs: int = 2000
    learning_rate: float = 3e-2
    batch_size: int | None = None
    seed: int = 0
    log_points: int = 60

    def __post_init__(self) -> None:
        if not (math.isfinite(self.ridge) and self.ridge >= 0):
            raise InputError("ridge", self.ridge, "a finite number ≥ 0", "the paper uses 1e-3")
        if self.loss not in ("square", "cross_entropy"):
            raise InputError("loss", self.loss, "'square' or 'cross_entropy'")
        if self.epochs < 1:
            raise InputError("epochs", self.epochs, "an integer ≥ 1")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise InputError("learning_rate", self.learning_rate, "a finite number > 0", "3e-2 is a good start")
        if self.batch_size is not None and self.batch_size < 1:
            raise InputError("batch_size", self.batch_size, "an integer ≥ 1, or None for the full batch")
        if self.log_points < 2:
            raise InputError("log_points", self.log_points, "an integer ≥ 2")
        check_seed(self.seed)

    def log_epochs(self) -> frozenset[int]:
        """Epochs (1..epochs) at which metrics are recorded: about `log_points`, log-spaced, both ends included."""
        last = self.log_points - 1
        return frozenset({round(self.epochs ** (i / last)) for i in range(self.log_points)} | {1, self.epochs})
