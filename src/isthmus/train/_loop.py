"""The training loop, from top to bottom in one file: Adam, then SGD, on `C` plus the ridge term."""

from __future__ import annotations

import dataclasses
import functools
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
from isthmus.models import Adaptive, LeakyResNet
from isthmus.probe import PairWarning, track_pairs
from isthmus.train._checkpoint import data_fingerprint, load_checkpoint, run_identity, save_checkpoint
from isthmus.train._config import FitConfig
from isthmus.train._finish import finish, finish_iterations
from isthmus.train._log import EpochLog, FitResult, Samples, evaluate, gradient_norm, snapshot
from isthmus.train._objective import data_term, objective
from isthmus.train._processes import check_processes, fit_in_processes
from isthmus.train._steps import update_steps
from isthmus.train._team import Alone, team_of

Progress = Callable[[int, int, EpochLog | None], None]
"""Called as `progress(epoch, epochs, log)` after every epoch; `log` is None between recorded ones."""


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


def to_model(model: LeakyResNet, y: Tensor) -> Tensor:
    """Targets where the model is, and in its dtype where they are real."""
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
    checkpoint_seconds: float | int = 30.0,
    processes: int = 1,
    distributed: bool = False,
) -> FitResult:
    """Train `model` in place on `C + (λ/2μ) Σ ρ_ℓ‖W_ℓ‖²` (arXiv 2405.17573, docs/theory 1.2 and 1.8).

    Adam, then plain SGD if `sgd_epochs > 0`, the step size of each falling by a cosine to 0; full batch or mini-batch;
    then, where asked for, the second-order finish, whose iterations count as epochs.
    Under adaptive steps the layer steps are updated every `interval` epochs from the speeds over the training set.
    Deterministic on the CPU: the same seed gives the same weights, and so does a run that was killed and resumed.

    Several processes give the weights of one, to rounding: every batch is cut into as many parts, whose gradients are
    added up in proportion to their samples (DistributedDataParallel, by Lightning Fabric). What looks at all samples
    (layer steps, metrics, stopping rules, the finish, checkpoints) is done by the first process while the others wait.

    Args:
        model: trained in place; its dtype and device decide where training runs.
        x: inputs, one row per sample.
        y: real targets `(n, outputs)` or class numbers `(n,)`.
        config: the settings.
        x_test: held-out inputs, only watched.
        y_test: their targets.
        progress: called after every epoch; of several processes, on the first one.
        checkpoint: file to write checkpoints to; if it exists, training continues from it, also with another number of
            processes.
        checkpoint_seconds: least time between two checkpoints; 0 writes one after every epoch.
        processes: so many are started on this machine for the training (a script then needs the usual
            `if __name__ == "__main__":`); on GPUs each takes one, from the first on.
        distributed: this is one of several processes that were started elsewhere, by `torchrun`, say, and know each
            other; all call `fit` alike, with all samples.

    Raises:
        InputError: data that does not fit the model or the loss, or a checkpoint that is corrupt, foreign, or of a run
            with other settings or data; processes that were not given the same, that do not know each other, that are
            more than the samples or the GPUs, or whose model cannot be sent to them.
        DivergedError: the objective or a weight is no longer a finite number; says the epoch and what to try, and keeps
            the pairs that were tracked up to there. The last checkpoint is of a finite epoch.
        CheckpointError: a checkpoint could not be written (a full disk, say); the one before is kept.
        IsthmusError: another process has stopped or was killed; the last checkpoint is kept.
    """
    if x.shape[0] != y.shape[0]:
        raise InputError("y", y.shape[0], f"as many rows as x ({x.shape[0]})")
    tests = None if x_test is None or y_test is None else (x_test, y_test)
    check_processes(processes, len(training_rows(x.shape[0], config)[0]), model.weight.device)
    if processes > 1:
        if distributed:
            raise InputError("processes", processes, "1 with distributed=True", "those that were started elsewhere "
                             "train together; leave processes out")  # fmt: skip
        return fit_in_processes(processes, model, x, y, config, tests=tests, progress=progress, checkpoint=checkpoint,
                                checkpoint_seconds=checkpoint_seconds)  # fmt: skip
    with team_of(distributed) as team:
        return _fit(team, model, x, y, config, tests, progress, checkpoint, checkpoint_seconds)


def _fit(
    team: Alone, model: LeakyResNet, x: Tensor, y: Tensor, config: FitConfig, tests: Samples | None,
    progress: Progress | None, checkpoint: Path | None, checkpoint_seconds: float | int,
) -> FitResult:  # fmt: skip
    weight = model.weight
    team.agree(lambda: {"x": data_fingerprint(x), "y": data_fingerprint(y), "config": repr(config),
                        "model": f"{model.extra_repr()} {weight.dtype}"})  # fmt: skip
    identity = run_identity(model, config, data_fingerprint(x, y)) if checkpoint is not None else {}

    # ── data: validation split, device and dtype ─────────────────────────────────────────────────────────────
    x, y = x.to(weight), to_model(model, y)
    tested = None if tests is None else (tests[0].to(weight), to_model(model, tests[1]))
    validated = None
    if config.validation_fraction:
        kept, held = training_rows(x.shape[0], config)
        validated = (x[held], y[held])
        x, y = x[kept], y[kept]
    n = x.shape[0]
    team.check_samples(n)
    batch = min(config.batch_size or n, n)
    per_epoch = math.ceil(n / batch)

    # ── state: everything a resumed run needs, so that it ends as an unbroken one ────────────────────────────
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise InputError("model", "no parameter with requires_grad", "at least one to train")
    adam = torch.optim.Adam(parameters, lr=config.learning_rate, fused=weight.device.type in ("cpu", "cuda"))
    sgd = torch.optim.SGD(parameters, lr=config.sgd_learning_rate)
    scaler = torch.amp.GradScaler(weight.device.type, enabled=config.precision == "16-mixed")
    shuffle = torch_generator(config.seed, "batches")
    tracker = track_pairs(model, x, y, pairs=config.pairs, seed=config.seed) if config.pairs and team.first else None
    log: list[EpochLog] = []
    best: tuple[float, int, dict[str, Tensor]] | None = None
    start, step, stopped = 0, 0, "epochs"
    saved = None
    if checkpoint is not None:
        saved = team.on_first(lambda: load_checkpoint(checkpoint, identity) if checkpoint.exists() else None)
    if saved is not None:
        model.load_state_dict(saved["model"])
        adam.load_state_dict(saved["adam"])
        scaler.load_state_dict(saved["scaler"])
        shuffle.set_state(saved["shuffle"])
        log = [EpochLog.restored(entry) for entry in saved["log"]]
        best = None if saved["best"] is None else tuple(saved["best"])  # pyright: ignore[reportAssignmentType]
        start, step, stopped = saved["epoch"], saved["step"], saved["stopped"]
        if tracker is not None:
            tracker.load_state_dict(saved["pairs"])
    fabric = team.fabric(config.precision, weight.device, scaler)
    net = team.module(fabric, model)
    adaptive = model.steps if isinstance(model.steps, Adaptive) else None
    whole = config.total_epochs + finish_iterations(config.finish)
    log_at = config.log_epochs()
    written = time.monotonic()
    epoch = start

    def look(epoch: int) -> EpochLog:
        return snapshot(
            model, config, epoch, config.rate((epoch - 1) * per_epoch, per_epoch), (x, y), validated, tested
        )

    def watch(epoch: int) -> str:
        """After an epoch, on the first process: whether to stop, what to record, and a checkpoint."""
        nonlocal best, written
        why = "epochs"
        if validated is not None and config.patience:
            loss = evaluate(model, config, *validated)["loss"]
            if best is None or loss < best[0]:
                best = (loss, epoch, {k: v.detach().clone() for k, v in model.state_dict().items()})
            elif epoch - best[1] >= config.patience:
                why = "validation"
        if config.gradient_tolerance and gradient_norm(model, config, x, y) < config.gradient_tolerance:
            why = "gradient"
        recorded = None
        if epoch in log_at or why != "epochs":
            recorded = look(epoch)
            log.append(recorded)
            if recorded.train.get("stationarity", math.inf) < config.stationarity_tolerance:
                why = "stationarity"
        last = why != "epochs" or epoch == config.total_epochs
        if checkpoint is not None and (last or time.monotonic() - written >= checkpoint_seconds):
            state: dict[str, Any] = {
                "model": model.state_dict(), "adam": adam.state_dict(), "scaler": scaler.state_dict(),
                "shuffle": shuffle.get_state(), "log": [entry.stored() for entry in log],
                "best": None if best is None else list(best), "epoch": epoch, "step": step, "stopped": why,
                **({} if tracker is None else {"pairs": tracker.state_dict()}),
            }  # fmt: skip
            save_checkpoint(checkpoint, identity, state)
            written = time.monotonic()
        if progress is not None:
            progress(epoch, whole, recorded)
        return why

    # ── epochs ───────────────────────────────────────────────────────────────────────────────────────────────
    for epoch in range(start + 1, config.total_epochs + 1) if stopped == "epochs" else ():
        optimiser = adam if epoch <= config.epochs else sgd
        rows = torch.arange(n) if batch == n else torch.randperm(n, generator=shuffle)
        total = weight.new_zeros((), dtype=torch.float64)
        rate, rates = config.rate(step, per_epoch), 0.0
        for chosen in rows.to(weight.device).split(batch):
            optimiser.param_groups[0]["lr"] = config.rate(step, per_epoch)
            rates += config.rate(step, per_epoch)
            mine = team.part(chosen)
            xb, yb = (x, y) if len(mine) == n else (x[mine], y[mine])
            with fabric.autocast():
                # gradients are averaged over the processes: times their number, the parts add up to the batch's mean
                cost = data_term(config.loss, net(xb), yb, total=len(chosen)) * team.size
                ridge = config.ridge * model.weight_cost()
            optimiser.zero_grad(set_to_none=True)
            fabric.backward(cost + ridge)
            scaler.step(optimiser)
            scaler.update()
            total += (cost + ridge).detach()
            step += 1
        finite = all(bool(torch.isfinite(p).all()) for p in parameters)
        if not team.all(finite and math.isfinite(float(total))):
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
            team.lead(model, lambda: update_steps(model, adaptive, x))
        if tracker is not None:
            tracker.step(lr=rates)
        stopped = team.on_first(functools.partial(watch, epoch))
        if stopped != "epochs":
            break
    if tracker is not None:
        tracker.settle()

    # ── finish: to a critical point ──────────────────────────────────────────────────────────────────────────
    if config.finish and stopped == "epochs":
        first = epoch = config.total_epochs

        def told(done: int, value: float) -> None:
            if not math.isfinite(value):
                raise DivergedError(f"the objective is not a finite number at iteration {done} of the finish; "
                                    f"try a learning_rate below {config.learning_rate / 3:.3g}")  # fmt: skip
            if progress is not None:
                progress(first + done, whole, None)

        ended = team.lead(model, lambda: finish(
            model, x, y, loss=config.loss, ridge=config.ridge, iterations=config.finish,
            tolerance=config.stationarity_tolerance, seed=config.seed, progress=told,
        ))  # fmt: skip
        epoch = first + ended.iterations
        if team.first and progress is not None and epoch < whole:  # it could not be lowered any further
            progress(whole, whole, None)
        if ended.residual < config.stationarity_tolerance:
            stopped = "stationarity"

    # ── end: the weights that are kept, and their metrics ────────────────────────────────────────────────────
    def conclude() -> FitResult:
        best_epoch = None
        if best is not None and stopped in ("epochs", "validation"):
            model.load_state_dict(best[2])
            best_epoch = best[1]
        kept_epoch = epoch if best_epoch is None else best_epoch
        final = next((entry for entry in log if entry.epoch == kept_epoch), None)
        entries = log
        if final is None:
            final = look(kept_epoch)
            entries = sorted([*log, final], key=lambda entry: entry.epoch)
        with torch.no_grad():
            cost, ridge = objective(model, config.loss, config.ridge, x, y)
        return FitResult(log=tuple(entries), final=final, objective=float(cost + ridge), epochs=epoch, stopped=stopped,
                         best_epoch=best_epoch)  # fmt: skip

    return dataclasses.replace(team.lead(model, conclude), pairs=tracker if team.first else None)
