"""The training loop, from top to bottom in one file: Adam with cosine decay on `C` plus the ridge term."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from isthmus._errors import DivergedError, InputError
from isthmus._random import torch_generator
from isthmus.geometry import path_speed
from isthmus.models import Adaptive, LeakyResNet
from isthmus.train._config import FitConfig
from isthmus.train._objective import data_term, objective, score


@dataclasses.dataclass(frozen=True)
class EpochLog:
    """Metrics of one recorded epoch, by name, for the training set and (where given) the test set."""

    epoch: int
    train: dict[str, float]
    test: dict[str, float]
    layer_steps: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class FitResult:
    """What `fit` returns.

    Attributes:
        log: recorded epochs, in order.
        objective: `C` plus the ridge term over the training set at the end.
    """

    log: tuple[EpochLog, ...]
    objective: float


Progress = Callable[[int, int, EpochLog | None], None]
"""Called as `progress(epoch, epochs, log)` after every epoch; `log` is None between recorded ones."""


def _evaluate(model: LeakyResNet, config: FitConfig, x: Tensor, y: Tensor) -> dict[str, float]:
    with torch.no_grad():
        outputs = model(x)
        name, value = score(config.loss, outputs, y)
        return {"loss": float(data_term(config.loss, outputs, y)), name: value}


def _update_steps(model: LeakyResNet, steps: Adaptive, x: Tensor) -> None:
    """One damped update of the layer steps from the speeds over the training set (docs/theory 1.3)."""
    with torch.no_grad():
        path = model.path(x).double()
        moved = (path[1:] - path[:-1]).square().sum((-2, -1))
        speed = path_speed(moved, path.square().sum((-2, -1)), model.layer_steps)
        model.set_layer_steps(steps.update(model.layer_steps.double(), speed, model.effective_depth))


def fit(
    model: LeakyResNet,
    x: Float[Tensor, "n features"],
    y: Shaped[Tensor, "rows ..."],
    config: FitConfig,
    *,
    x_test: Float[Tensor, "m features"] | None = None,
    y_test: Shaped[Tensor, "m ..."] | None = None,
    progress: Progress | None = None,
) -> FitResult:
    """Train `model` in place on `C + (λ/2μ) Σ ρ_ℓ‖W_ℓ‖²` (arXiv 2405.17573, docs/theory 1.2).

    Adam whose step size falls by a cosine from `config.learning_rate` to 0, full batch or mini-batches; under adaptive
    steps the layer steps are updated every `interval` epochs from the speeds over the training set. Deterministic on
    the CPU: the same seed gives the same weights.

    Args:
        model: trained in place; its dtype and device decide where training runs.
        x: inputs, one row per sample.
        y: real targets `(n, outputs)` or class numbers `(n,)`.
        config: the settings.
        x_test: held-out inputs, only watched.
        y_test: their targets.
        progress: called after every epoch.

    Raises:
        InputError: data that does not fit the model or the loss.
        DivergedError: the objective is no longer a finite number; says the epoch and what to try.
    """
    weight = model.weight
    x, y = x.to(weight), y.to(weight) if y.is_floating_point() else y.to(weight.device)
    if x.shape[0] != y.shape[0]:
        raise InputError("y", y.shape[0], f"as many rows as x ({x.shape[0]})")
    held_out = None
    if x_test is not None and y_test is not None:
        held_out = (x_test.to(weight), y_test.to(weight) if y_test.is_floating_point() else y_test.to(weight.device))

    n = x.shape[0]
    batch = min(config.batch_size or n, n)
    per_epoch = math.ceil(n / batch)
    order = torch_generator(config.seed, "batches")
    parameters = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.Adam(parameters, lr=config.learning_rate, fused=weight.device.type in ("cpu", "cuda"))
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, T_max=config.epochs * per_epoch)
    adaptive = model.steps if isinstance(model.steps, Adaptive) else None
    log_at = config.log_epochs()
    log: list[EpochLog] = []

    for epoch in range(1, config.epochs + 1):
        rate = adam.param_groups[0]["lr"]
        rows = torch.arange(n) if batch == n else torch.randperm(n, generator=order)
        for chosen in rows.to(weight.device).split(batch):
            xb, yb = (x, y) if batch == n else (x[chosen], y[chosen])
            cost, ridge = objective(model, config.loss, config.ridge, xb, yb)
            adam.zero_grad(set_to_none=True)
            (cost + ridge).backward()
            adam.step()
            decay.step()
        if adaptive is not None and epoch % adaptive.interval == 0 and epoch < config.epochs:
            _update_steps(model, adaptive, x)
        recorded = None
        if epoch in log_at:
            with torch.no_grad():
                ridge = config.ridge * float(model.weight_cost())
            squares = sum(float(p.grad.double().square().sum()) for p in parameters if p.grad is not None)
            recorded = EpochLog(
                epoch=epoch,
                train=_evaluate(model, config, x, y)
                | {
                    "ridge_term": ridge,
                    "learning_rate": float(rate),
                    "gradient_norm": math.sqrt(squares),
                },
                test=_evaluate(model, config, *held_out) if held_out else {},
                layer_steps=tuple(model.layer_steps.tolist()),
            )
            if not math.isfinite(recorded.train["loss"] + recorded.train["ridge_term"]):
                raise DivergedError(
                    f"the objective is not a finite number at epoch {epoch} (learning rate {rate:.3g}); "
                    f"try a learning_rate below {config.learning_rate / 3:.3g}"
                )
            log.append(recorded)
        if progress is not None:
            progress(epoch, config.epochs, recorded)

    with torch.no_grad():
        cost, ridge = objective(model, config.loss, config.ridge, x, y)
    return FitResult(log=tuple(log), objective=float(cost + ridge))
