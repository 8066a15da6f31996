"""The training loop, from top to bottom in one file: Adam, then SGD, on `C` plus the ridge term."""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from isthmus._errors import DivergedError, InputError
from isthmus._random import torch_generator
from isthmus.geometry import DEFAULT_GAMMA0
from isthmus.models import Adaptive, LeakyResNet
from isthmus.probe import PairTracker, PairWarning, geometry_of, path_series, probe_path, track_pairs
from isthmus.train._checkpoint import data_fingerprint, load_checkpoint, run_identity, save_checkpoint
from isthmus.train._config import FitConfig
from isthmus.train._finish import finish, finish_iterations
from isthmus.train._objective import data_term, objective, score
from isthmus.train._steps import update_steps


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
        pairs: pairs of training samples after every epoch, where they were asked for.
    """

    log: tuple[EpochLog, ...]
    final: EpochLog
    objective: float
    epochs: int
    stopped: str
    best_epoch: int | None
    pairs: PairTracker | None = None


Progress = Callable[[int, int, EpochLog | None], None]
"""Called as `progress(epoch, epochs, log)` after every epoch; `log` is None between recorded ones."""


def _evaluate(model: LeakyResNet, config: FitConfig, x: Tensor, y: Tensor) -> dict[str, float]:
    with torch.no_grad():
        outputs = model(x)
        name, value = score(config.loss, outputs, y)
        return {"loss": float(data_term(config.loss, outputs, y)), name: value}


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


def _gradient_norm(model: LeakyResNet, config: FitConfig, x: Tensor, y: Tensor) -> float:
    """Norm of the objective's gradient over the trained parameters, on all of `x`."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    with torch.enable_grad():
        cost, ridge = objective(model, config.loss, config.ridge, x, y)
        gradients = torch.autograd.grad(cost + ridge, parameters)
    return math.sqrt(sum(float(g.double().square().sum()) for g in gradients))


def _stored(entry: EpochLog) -> dict[str, Any]:
    """An entry for a checkpoint: its long series as tensors, which are written and read fast."""
    path = {name: torch.tensor(values, dtype=torch.float64) for name, values in entry.path.items()}
    return {**vars(entry), "layer_steps": list(entry.layer_steps), "path": path}


def _restored(entry: dict[str, Any]) -> EpochLog:
    path = {name: tuple(values.tolist()) for name, values in entry["path"].items()}
    fields: dict[str, Any] = {**entry, "layer_steps": tuple(entry["layer_steps"]), "path": path}
    return EpochLog(**fields)


def training_rows(n: int, config: FitConfig) -> tuple[Tensor, Tensor]:
    """Row numbers of the samples trained on, and of those held out to watch, drawn from the seed.

    Raises:
        InputError: fewer than 2 samples are left to train on.
    """
    if not config.validation_fraction:
        return torch.arange(n), torch.arange(0)
    order = torch.randperm(n, generator=torch_generator(config.seed, "validation"))
    held = max(1, round(config.validation_fraction * n))
    if n - held < 2:
        raise InputError("validation_fraction", config.validation_fraction, "at least 2 samples left to train on")
    return order[held:], order[:held]


def _to_model(model: LeakyResNet, y: Tensor) -> Tensor:
    return y.to(model.weight) if y.is_floating_point() else y.to(model.weight.device)


def fit(
    model: LeakyResNet,
    x: Float[Tensor, "n features"],
    y: Shaped[Tensor, "rows ..."],
    config: FitConfig,
    *,
    x_test: Float[Tensor, "m features"] | None = None,
    y_test: Shaped[Tensor, "m ..."] | None = None,
    progress: Progress | None = None,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 30.0,
) -> FitResult:
    """Train `model` in place on `C + (λ/2μ) Σ ρ_ℓ‖W_ℓ‖²` (arXiv 2405.17573, docs/theory 1.2 and 1.8).

    Adam, then plain SGD if `sgd_epochs > 0`, the step size of each falling by a cosine to 0; full batch or mini-batch;
    then, where asked for, the second-order finish, whose iterations count as epochs.
    Under adaptive steps the layer steps are updated every `interval` epochs from the speeds over the training set.
    Deterministic on the CPU: the same seed gives the same weights, and so does a run that was killed and resumed.

    Args:
        model: trained in place; its dtype and device decide where training runs.
        x: inputs, one row per sample.
        y: real targets `(n, outputs)` or class numbers `(n,)`.
        config: the settings.
        x_test: held-out inputs, only watched.
        y_test: their targets.
        progress: called after every epoch.
        checkpoint: file to write checkpoints to; if it exists, training continues from it.
        checkpoint_seconds: least time between two checkpoints; 0 writes one after every epoch.

    Raises:
        InputError: data that does not fit the model or the loss, or a checkpoint that is corrupt, foreign, or of a run
            with other settings or data.
        DivergedError: the objective or a weight is no longer a finite number; says the epoch and what to try, and keeps
            the pairs that were tracked up to there. The last checkpoint is of a finite epoch.
        CheckpointError: a checkpoint could not be written (a full disk, say); the one before is kept.
    """
    from lightning_fabric import Fabric  # takes seconds to import

    weight = model.weight
    if x.shape[0] != y.shape[0]:
        raise InputError("y", y.shape[0], f"as many rows as x ({x.shape[0]})")
    identity = run_identity(model, config, data_fingerprint(x, y)) if checkpoint is not None else {}
    precision: Any = "32-true" if config.precision == "true" else config.precision
    fabric = Fabric(accelerator="cpu" if weight.device.type == "cpu" else "auto", devices=1, precision=precision)

    # ── data: validation split, device and dtype ─────────────────────────────────────────────────────────────
    x, y = x.to(weight), _to_model(model, y)
    tested = None if x_test is None or y_test is None else (x_test.to(weight), _to_model(model, y_test))
    validated = None
    if config.validation_fraction:
        kept, held = training_rows(x.shape[0], config)
        validated = (x[held], y[held])
        x, y = x[kept], y[kept]
    n = x.shape[0]
    batch = min(config.batch_size or n, n)
    per_epoch = math.ceil(n / batch)

    # ── state: everything a resumed run needs, so that it ends as an unbroken one ────────────────────────────
    parameters = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.Adam(parameters, lr=config.learning_rate, fused=weight.device.type in ("cpu", "cuda"))
    sgd = torch.optim.SGD(parameters, lr=config.sgd_learning_rate)
    scaler = torch.amp.GradScaler(weight.device.type, enabled=config.precision == "16-mixed")
    shuffle = torch_generator(config.seed, "batches")
    tracker = track_pairs(model, x, y, pairs=config.pairs, seed=config.seed) if config.pairs else None
    log: list[EpochLog] = []
    best: tuple[float, int, dict[str, Tensor]] | None = None
    start, step, stopped = 0, 0, "epochs"
    if checkpoint is not None and checkpoint.exists():
        saved = load_checkpoint(checkpoint, identity)
        model.load_state_dict(saved["model"])
        adam.load_state_dict(saved["adam"])
        scaler.load_state_dict(saved["scaler"])
        shuffle.set_state(saved["shuffle"])
        log = [_restored(entry) for entry in saved["log"]]
        best = None if saved["best"] is None else tuple(saved["best"])  # pyright: ignore[reportAssignmentType]
        start, step, stopped = saved["epoch"], saved["step"], saved["stopped"]
        if tracker is not None:
            tracker.load_state_dict(saved["pairs"])
    adaptive = model.steps if isinstance(model.steps, Adaptive) else None
    whole = config.total_epochs + finish_iterations(config.finish)
    log_at = config.log_epochs()
    written = time.monotonic()
    epoch = start

    def snapshot(epoch: int) -> EpochLog:
        """Every metric of the weights as they are."""
        watched, path = _watch_path(model, config, x, y)
        with torch.no_grad():
            ridge_term = config.ridge * float(model.weight_cost())
        return EpochLog(
            epoch=epoch,
            train=_evaluate(model, config, x, y)
            | {"ridge_term": ridge_term, "learning_rate": config.rate((epoch - 1) * per_epoch, per_epoch)}
            | {"gradient_norm": _gradient_norm(model, config, x, y)}
            | watched,
            validation=_evaluate(model, config, *validated) if validated else {},
            test=_evaluate(model, config, *tested) if tested else {},
            layer_steps=tuple(model.layer_steps.tolist()),
            path=path,
        )

    # ── epochs ───────────────────────────────────────────────────────────────────────────────────────────────
    for epoch in range(start + 1, config.total_epochs + 1) if stopped == "epochs" else ():
        optimiser = adam if epoch <= config.epochs else sgd
        rows = torch.arange(n) if batch == n else torch.randperm(n, generator=shuffle)
        total = weight.new_zeros((), dtype=torch.float64)
        rate, rates = config.rate(step, per_epoch), 0.0
        for chosen in rows.to(weight.device).split(batch):
            optimiser.param_groups[0]["lr"] = config.rate(step, per_epoch)
            rates += config.rate(step, per_epoch)
            xb, yb = (x, y) if batch == n else (x[chosen], y[chosen])
            with fabric.autocast():
                cost, ridge = objective(model, config.loss, config.ridge, xb, yb)
            optimiser.zero_grad(set_to_none=True)
            fabric.backward(scaler.scale(cost + ridge))
            scaler.step(optimiser)
            scaler.update()
            total += (cost + ridge).detach()
            step += 1
        finite = all(bool(torch.isfinite(p).all()) for p in parameters)
        if not (finite and math.isfinite(float(total))):
            kept = f"; the last good checkpoint is {checkpoint}" if checkpoint and checkpoint.exists() else ""
            if tracker is not None:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", PairWarning)  # the error says it
                    tracker.count(epoch, lr=rates)
                    tracker.settle()
            raise DivergedError(
                f"the objective is not a finite number at epoch {epoch} (step size {rate:.3g}); "
                f"try a learning_rate below {config.learning_rate / 3:.3g}{kept}",
                pairs=tracker,
            )
        if adaptive is not None and epoch % adaptive.interval == 0 and epoch < config.total_epochs:
            update_steps(model, adaptive, x)
        if tracker is not None:
            tracker.step(lr=rates)

        # ── stopping ─────────────────────────────────────────────────────────────────────────────────────────
        if validated is not None and config.patience:
            loss = _evaluate(model, config, *validated)["loss"]
            if best is None or loss < best[0]:
                best = (loss, epoch, {k: v.detach().clone() for k, v in model.state_dict().items()})
            elif epoch - best[1] >= config.patience:
                stopped = "validation"
        if config.gradient_tolerance and _gradient_norm(model, config, x, y) < config.gradient_tolerance:
            stopped = "gradient"

        # ── record ───────────────────────────────────────────────────────────────────────────────────────────
        recorded = None
        if epoch in log_at or stopped != "epochs":
            recorded = snapshot(epoch)
            log.append(recorded)
            if recorded.train.get("stationarity", math.inf) < config.stationarity_tolerance:
                stopped = "stationarity"
        last = stopped != "epochs" or epoch == config.total_epochs
        if checkpoint is not None and (last or time.monotonic() - written >= checkpoint_seconds):
            state: dict[str, Any] = {
                "model": model.state_dict(), "adam": adam.state_dict(), "scaler": scaler.state_dict(),
                "shuffle": shuffle.get_state(), "log": [_stored(entry) for entry in log],
                "best": None if best is None else list(best), "epoch": epoch, "step": step, "stopped": stopped,
                **({} if tracker is None else {"pairs": tracker.state_dict()}),
            }  # fmt: skip
            save_checkpoint(checkpoint, identity, state)
            written = time.monotonic()
        if progress is not None:
            progress(epoch, whole, recorded)
        if stopped != "epochs":
            break
    if tracker is not None:
        tracker.settle()

    # ── finish: to a critical point ──────────────────────────────────────────────────────────────────────────
    if config.finish and stopped == "epochs":
        first = epoch = config.total_epochs

        def watch(done: int, value: float) -> None:
            if not math.isfinite(value):
                raise DivergedError(f"the objective is not a finite number at iteration {done} of the finish; "
                                    f"try a learning_rate below {config.learning_rate / 3:.3g}")  # fmt: skip
            if progress is not None:
                progress(first + done, whole, None)

        ended = finish(model, x, y, loss=config.loss, ridge=config.ridge, iterations=config.finish,
                       tolerance=config.stationarity_tolerance, seed=config.seed, progress=watch)  # fmt: skip
        epoch = first + ended.iterations
        if progress is not None and epoch < whole:  # it could not be lowered any further
            progress(whole, whole, None)
        if ended.residual < config.stationarity_tolerance:
            stopped = "stationarity"

    # ── end: the weights that are kept, and their metrics ────────────────────────────────────────────────────
    best_epoch = None
    if best is not None and stopped in ("epochs", "validation"):
        model.load_state_dict(best[2])
        best_epoch = best[1]
    kept_epoch = epoch if best_epoch is None else best_epoch
    final = next((entry for entry in log if entry.epoch == kept_epoch), None)
    if final is None:
        final = snapshot(kept_epoch)
        log = sorted([*log, final], key=lambda entry: entry.epoch)
    with torch.no_grad():
        cost, ridge = objective(model, config.loss, config.ridge, x, y)
    return FitResult(
        log=tuple(log),
        final=final,
        objective=float(cost + ridge),
        epochs=epoch,
        stopped=stopped,
        best_epoch=best_epoch,
        pairs=tracker,
    )
