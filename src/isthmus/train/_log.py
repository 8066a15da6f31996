"""What is recorded of a training, and how a network is looked at for it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from isthmus.geometry import DEFAULT_GAMMA0
from isthmus.models import LeakyResNet
from isthmus.probe import PairTracker, geometry_of, path_series, probe_path
from isthmus.train._config import FitConfig
from isthmus.train._objective import data_term, objective, score

Samples = tuple[Tensor, Tensor]
"""Inputs and targets."""


@dataclasses.dataclass(frozen=True)
class EpochLog:
    """Metrics of one recorded epoch, by name, for the training samples, the validation samples and the test samples.

    `train` also holds `rank_estimate` (median of the symmetric `−2H/L̃` over p in [0.1, 0.9]) and `stationarity` (median
    over layers) where they are defined. `path` holds every metric of the path at the default γ₀, by `layer/metric`.
    """

    epoch: int
    train: dict[str, float]
    validation: dict[str, float]
    test: dict[str, float]
    layer_steps: tuple[float, ...]
    path: dict[str, tuple[float, ...]]

    def stored(self) -> dict[str, Any]:
        """For a checkpoint: the long series as tensors, which are written and read fast."""
        path = {name: torch.tensor(values, dtype=torch.float64) for name, values in self.path.items()}
        return {**vars(self), "layer_steps": list(self.layer_steps), "path": path}

    @classmethod
    def restored(cls, entry: dict[str, Any]) -> EpochLog:
        """From what `stored` gave."""
        path = {name: tuple(values.tolist()) for name, values in entry["path"].items()}
        fields: dict[str, Any] = {**entry, "layer_steps": tuple(entry["layer_steps"]), "path": path}
        return cls(**fields)


@dataclasses.dataclass(frozen=True)
class FitResult:
    """What `fit` returns.

    Attributes:
        log: recorded epochs, in order.
        final: metrics of the weights that were kept; also in `log`.
        objective: `C` plus the ridge term over the samples trained on, at the end.
        epochs: epochs that were run.
        stopped: why training ended: `epochs`, `validation`, `gradient` or `stationarity`.
        best_epoch: epoch whose weights were kept, where the validation set chose them; None where training ended at a
            critical point, whose weights are kept as they are.
        pairs: pairs of training samples after every epoch, where they were asked for; of several processes, on the
            first one.
    """

    log: tuple[EpochLog, ...]
    final: EpochLog
    objective: float
    epochs: int
    stopped: str
    best_epoch: int | None
    pairs: PairTracker | None = None


def evaluate(model: LeakyResNet, config: FitConfig, x: Tensor, y: Tensor) -> dict[str, float]:
    """Loss and score of some samples."""
    with torch.no_grad():
        outputs = model(x)
        name, value = score(config.loss, outputs, y)
        return {"loss": float(data_term(config.loss, outputs, y)), name: value}


def gradient_norm(model: LeakyResNet, config: FitConfig, x: Tensor, y: Tensor) -> float:
    """Norm of the objective's gradient over the trained parameters, on all of `x`."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    with torch.enable_grad():
        cost, ridge = objective(model, config.loss, config.ridge, x, y)
        gradients = torch.autograd.grad(cost + ridge, parameters)
    return math.sqrt(sum(float(g.double().square().sum()) for g in gradients))


def snapshot(
    model: LeakyResNet, config: FitConfig, epoch: int, rate: float, train: Samples, validation: Samples | None,
    test: Samples | None,
) -> EpochLog:  # fmt: skip
    """Every metric of the weights as they are; `rate` is the step size of the epoch."""
    watched, path = _watch_path(model, config, *train)
    with torch.no_grad():
        ridge_term = config.ridge * float(model.weight_cost())
    return EpochLog(
        epoch=epoch,
        train=evaluate(model, config, *train)
        | {"ridge_term": ridge_term, "learning_rate": rate, "gradient_norm": gradient_norm(model, config, *train)}
        | watched,
        validation=evaluate(model, config, *validation) if validation else {},
        test=evaluate(model, config, *test) if test else {},
        layer_steps=tuple(model.layer_steps.tolist()),
        path=path,
    )


def _watch_path(
    model: LeakyResNet, config: FitConfig, x: Tensor, y: Tensor
) -> tuple[dict[str, float], dict[str, tuple[float, ...]]]:
    """Median stationarity and rank estimate, where a ridge and a leak define them, and every metric of the path."""
    ridge = config.ridge if config.ridge > 0 else None
    moments = probe_path(model, x, y, loss=lambda o, t: data_term(config.loss, o, t), ridge=ridge)
    g = geometry_of(model, moments, (DEFAULT_GAMMA0,))
    summary: dict[str, float] = {}
    if g.stationarity is not None:
        summary["stationarity"] = float(g.stationarity.quantile(0.5))
    if g.hamiltonians is not None:
        inside = (g.step_positions >= 0.1) & (g.step_positions <= 0.9)
        chosen = inside if bool(inside.any()) else torch.ones_like(inside)
        summary["rank_estimate"] = float(g.hamiltonians.rank(g.hamiltonians.symmetric)[chosen].quantile(0.5))
    return summary, {f"{s.layer}/{s.metric}": s.values for s in path_series(g) if s.values and not s.missing}
