"""From data to a page: train a Leaky ResNet, measure its path, write one run folder."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from isthmus._errors import DataWarning, DivergedError, InputError, RunFolderError
from isthmus._random import check_seed
from isthmus._records import Claim, MetricTable, RunFolder, check_new_folder
from isthmus.data import Task
from isthmus.experiments._kept import save_weights
from isthmus.experiments._sources import task_from_source
from isthmus.geometry import DEFAULT_GAMMA0, GAMMA0S, check_gamma0
from isthmus.models import LeakyResNet, check_device
from isthmus.probe import (
    NO_LEAK,
    NO_MOMENTA,
    PairTracker,
    PathMeasurement,
    Series,
    check_metrics,
    measure_path,
    path_verdict,
    record_series,
)
from isthmus.report import write_page
from isthmus.train import (
    LOSS_REDUCTION,
    FitConfig,
    FitResult,
    check_processes,
    data_term,
    fit,
    require_tensorboard,
    tensorboard_scalars,
    training_rows,
)


@dataclasses.dataclass(frozen=True)
class LeakyConfig:
    """A Leaky ResNet and its training, as a run records them.

    Attributes:
        width: dimensions along the path; None takes the larger of 100 and the number of inputs (the paper's is 100).
        depth: `L`.
        effective_depth: `L̃`.
        steps: `equidistant`, `irregular` or `adaptive`.
        activation: `relu`, `identity` or `smooth_relu`.
        input_map, output_map: `auto`, `fixed` or `learned`.
        ridge: `λ`.
        loss: `auto` (cross-entropy for classes, square for numbers), `square` or `cross_entropy`.
        epochs: of Adam; this and the settings down to `pairs` are those of `FitConfig`.
        gamma0: γ₀ of the stabilised costs; 1e-2 and 1e-4 are recorded beside it.
        metrics: names to record; empty for all.
        dtype: precision of training; measurements are taken in float64.
        device: where to train.
        seed: of the initial weights and the mini-batches.
    """

    width: int | None = None
    depth: int = 20
    effective_depth: float = 7.0
    steps: str = "equidistant"
    activation: str = "relu"
    input_map: str = "auto"
    output_map: str = "auto"
    ridge: float = 1e-3
    loss: str = "auto"
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
    log_points: int = 60
    pairs: int = 0
    gamma0: float = GAMMA0S[0]
    metrics: tuple[str, ...] = ()
    dtype: str = "float32"
    device: str = "cpu"
    seed: int = 0


DURING_TRAINING = f"gamma0={DEFAULT_GAMMA0:g}, during training"
"""Note of the rows that were taken on recorded epochs."""

_DTYPES = {"float32": torch.float32, "float64": torch.float64}


def _fit_config(config: LeakyConfig, kind: str) -> FitConfig:
    loss = config.loss
    if loss == "auto":
        loss = "cross_entropy" if kind == "classification" else "square"
    if loss not in LOSS_REDUCTION:
        raise InputError("loss", config.loss, "'auto', 'square' or 'cross_entropy'")
    if (loss == "cross_entropy") != (kind == "classification"):
        raise InputError("loss", config.loss, f"a loss for {kind}", "use 'auto'")
    shared = {f.name for f in dataclasses.fields(FitConfig)} & {f.name for f in dataclasses.fields(LeakyConfig)}
    settings: dict[str, Any] = {name: getattr(config, name) for name in shared}
    settings["loss"] = loss
    return FitConfig(**settings)


def _model(config: LeakyConfig, task: Task) -> LeakyResNet:
    return LeakyResNet(
        task.in_features,
        task.out_features,
        width=config.width if config.width is not None else max(100, task.in_features),
        depth=config.depth,
        effective_depth=config.effective_depth,
        steps=config.steps,
        activation=config.activation,
        input_map=config.input_map,
        output_map=config.output_map,
        seed=config.seed,
        device=check_device(config.device),
        dtype=_DTYPES[config.dtype],
    )


def _record_training(
    table: MetricTable, result: FitResult, seed: int, wanted: frozenset[str] | None
) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for entry in result.log:
        for split, values in (("train", entry.train), ("validation", entry.validation), ("test", entry.test)):
            for metric, value in values.items():
                if wanted is not None and metric not in wanted:
                    continue
                where: dict[str, Any] = {"step": entry.epoch, "split": split, "layer": "model", "seed": seed}
                if math.isfinite(value):
                    row = table.add(metric, value, **where)
                else:
                    row = table.skip(metric, "not defined for one sample or constant targets", **where)
                rows.setdefault(f"{metric}/{split}/{entry.epoch}", []).append(row)
        positions = [0.0, *itertools.accumulate(entry.layer_steps)]
        for name, values in entry.path.items():
            layer, metric = name.split("/")
            if wanted is None or metric in wanted:
                one = Series(metric, layer, values, DURING_TRAINING)
                record_series(table, one, positions, step=entry.epoch, split="train", seed=seed)
    return rows


def _performance(result: FitResult, rows: Mapping[str, list[int]]) -> list[Claim]:
    last = result.final
    name = "accuracy" if "accuracy" in last.train else "r_squared"
    label = "accuracy" if name == "accuracy" else "R²"
    train, test = last.train[name], last.test.get(name)
    text = f"Train {label} {train:.3g}" + (
        f", test {label} {test:.3g}" if test is not None and math.isfinite(test) else ""
    )
    text += f" after {last.epoch} epochs"
    reasons = {"validation": "the validation loss no longer fell", "gradient": "the gradient was small enough",
               "stationarity": "the weights were close enough to a critical point"}  # fmt: skip
    text += f"; stopped because {reasons[result.stopped]}." if result.stopped in reasons else "."
    behind = tuple(row for split in ("train", "test") for row in rows.get(f"{name}/{split}/{last.epoch}", ()))
    return [Claim("performance", text, "finding", behind, {"train": train, "test": test})]


def run_leaky(
    task: Task,
    config: LeakyConfig,
    out: str | Path,
    *,
    command: str,
    title: str,
    data: Mapping[str, Any],
    notes: tuple[str, ...] = (),
    progress: Callable[[int, int, Any], None] | None = None,
    tensorboard: bool = False,
    page: bool = True,
    processes: int = 1,
) -> RunFolder:
    """Train, measure, and write a run folder with its page.

    Everything that can be checked is checked before anything is written.

    Args:
        task: the data.
        config: the network and its training.
        out: the new run folder.
        command: name of the command, for the record.
        title: title of the page.
        data: how the data were made, for the record.
        notes: warnings about the data, shown on the page.
        progress: called after every epoch.
        tensorboard: also write the training curves for TensorBoard, into the run folder.
        page: write the page, too; `isthmus report` makes it later where it is left out.
        processes: that train together, started on this machine (`isthmus.train.fit`).

    Raises:
        InputError: any setting that cannot be used.
        RunFolderError: the folder exists or cannot be made.
        DivergedError: training left the finite numbers (the folder then says `failed`).
    """
    if tensorboard:
        require_tensorboard()
    job = prepare_leaky(task, config, processes)
    check_new_folder(out)
    run = RunFolder.create(
        out,
        command=command,
        configuration={**dataclasses.asdict(config), "data": dict(data)},
        seed=config.seed,
        device=config.device,
        dtype=config.dtype,
        extra={
            "title": title,
            "leaky": {
                "in_features": task.in_features, "out_features": task.out_features, "width": job.model.width,
                "depth": job.model.depth, "effective_depth": job.model.effective_depth, "steps": config.steps,
                "activation": config.activation, "ridge": config.ridge, "gamma0": config.gamma0,
            },
            "task": {
                "name": task.name, "kind": task.kind, "n_train": len(task.x_train), "n_test": len(task.x_test),
                "feature_names": list(task.feature_names), "class_names": list(task.class_names),
                "description": {k: v for k, v in task.description.items() if k != "columns"},
                "columns": task.description.get("columns"),
            },
            "loss": job.fit.loss,
            "loss_reduction": LOSS_REDUCTION[job.fit.loss],
            "warnings": list(notes),
            "tensorboard": tensorboard,
            "processes": processes,
        },
    )  # fmt: skip
    _work(run, task, config, job, progress, page=page, processes=processes)
    return run


def resume_leaky(
    folder: str | Path, *, progress: Callable[[int, int, Any], None] | None = None, page: bool = True,
    processes: int = 1,
) -> RunFolder:  # fmt: skip
    """Continue an interrupted run with its own data and settings; it ends as an unbroken one.

    Args:
        folder: a run folder of `isthmus train` or `demo` that did not complete.
        progress: called after every epoch.
        page: write the page, too.
        processes: that train together; need not be as many as before.

    Raises:
        RunFolderError: no such run, one of another kind, or one that is complete already.
        InputError: its checkpoint is corrupt or foreign, or its data are not the same any more.
    """
    run = RunFolder.open(folder)
    if run.run.get("status") == "complete" and not (run.path / "report.html").exists():
        write_page(run.path)  # killed between its last record and its page
        shutil.rmtree(run.path / "checkpoint", ignore_errors=True)
        return run
    if run.run.get("status") == "complete":
        raise RunFolderError("resume", str(folder), "a run that did not complete", "this one did; see its report.html")
    try:
        recorded: dict[str, Any] = dict(run.run["configuration"])
        source = recorded.pop("data")
        recorded["metrics"] = tuple(recorded["metrics"])
        config = LeakyConfig(**recorded)
    except (KeyError, TypeError) as error:
        raise RunFolderError("resume", str(folder), f"a run of `isthmus train` ({error!r})") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # said when the run was started, and kept in its record
        task = task_from_source(source)
    job = prepare_leaky(task, config, processes)
    run.write_run(status="running", finished=None, processes=processes)
    _work(run, task, config, job, progress, page=page, processes=processes)
    return run


@dataclasses.dataclass(frozen=True)
class LeakyJob:
    """What a run needs beside its data, made from its settings and checked."""

    model: LeakyResNet
    fit: FitConfig
    gamma0s: tuple[float, ...]
    metrics: frozenset[str] | None


def prepare_leaky(task: Task, config: LeakyConfig, processes: int = 1) -> LeakyJob:
    """Check every setting and make the network; writes nothing."""
    check_seed(config.seed)
    if config.dtype not in _DTYPES:
        raise InputError("dtype", config.dtype, "'float32' or 'float64'")
    fit_config = _fit_config(config, task.kind)
    kept, _ = training_rows(len(task.x_train), fit_config)  # refuses a validation split that leaves too little
    job = LeakyJob(
        fit=fit_config,
        gamma0s=(check_gamma0(config.gamma0), *(g for g in GAMMA0S if g != config.gamma0)),
        metrics=check_metrics(config.metrics or None, ridge=config.ridge, effective_depth=config.effective_depth),
        model=_model(config, task),
    )
    check_processes(processes, len(kept), job.model.weight.device)
    return job


def _work(
    run: RunFolder, task: Task, config: LeakyConfig, job: LeakyJob, progress: Callable[[int, int, Any], None] | None,
    *, page: bool, processes: int,
) -> None:  # fmt: skip
    """Train (from the checkpoint, where there is one), measure, write, and record how it ended."""
    begun = time.monotonic()
    checkpoint = run.path / "checkpoint" / "last.pt"
    curves = tensorboard_scalars(run.path / "tensorboard", progress) if run.run.get("tensorboard") else None
    try:
        with curves or contextlib.nullcontext(progress) as watch:
            result = fit(
                job.model, task.x_train, task.y_train, job.fit, x_test=task.x_test, y_test=task.y_test, progress=watch,
                checkpoint=checkpoint, processes=processes,
            )  # fmt: skip
        kept, _ = training_rows(len(task.x_train), job.fit)  # momenta belong to the samples trained on
        measured = measure_path(
            job.model,
            task.x_train[kept],
            task.y_train[kept],
            loss=lambda outputs, targets: data_term(job.fit.loss, outputs, targets),
            ridge=config.ridge,
            gamma0s=job.gamma0s,
            metrics=job.metrics,
        )
        _write(run, task, job.model, result, measured, config, begun)
        if page:
            write_page(run.path)
    except BaseException as error:
        with contextlib.suppress(OSError):  # on a full disk the error itself is what must be seen
            if isinstance(error, DivergedError) and isinstance(error.pairs, PairTracker):
                _keep_pairs(run, error.pairs, config.seed)
        with contextlib.suppress(OSError):
            run.finish("interrupted" if isinstance(error, KeyboardInterrupt) else "failed", error=f"{error}")
        if isinstance(error, InputError) and error.argument in ("path", "momenta"):  # settings were checked before
            raise DivergedError(
                f"the network has left the finite numbers ({error}); try a smaller learning_rate"
            ) from None
        raise
    shutil.rmtree(checkpoint.parent, ignore_errors=True)  # a complete run needs none


def _pair_rows(tracked: PairTracker, seed: int) -> pl.DataFrame:
    return tracked.table.with_columns(pl.lit(seed, pl.Int64).alias("seed"))


def _keep_pairs(run: RunFolder, tracked: PairTracker, seed: int) -> None:
    """Write what was recorded of pairs before a training diverged, which `isthmus dynamics` reads."""
    run.write_metrics(_pair_rows(tracked, seed))
    run.write_arrays(tracked.run_arrays())
    run.write_run(pairs=tracked.run_record())


def _write(
    run: RunFolder, task: Task, model: LeakyResNet, result: FitResult, measured: PathMeasurement, config: LeakyConfig,
    begun: float,
) -> None:  # fmt: skip
    table = MetricTable()
    training = _record_training(table, result, config.seed, measured.metrics)
    rows = measured.record(table, seed=config.seed)
    why = NO_LEAK if model.effective_depth == 0 else NO_MOMENTA
    claims = path_verdict(measured, rows, why_no_momenta=why)
    claims[1:1] = _performance(result, training)
    arrays = measured.arrays()
    arrays["training/layer_steps"] = np.array([entry.layer_steps for entry in result.log])
    arrays["training/epochs"] = np.array([entry.epoch for entry in result.log])
    arrays |= {f"scaling/{name}": value for name, value in task.scaling.to_arrays().items()}
    frame, tracked = table.frame(), result.pairs
    if tracked is not None:  # after all other rows, which claims name by their numbers
        frame = pl.concat([frame, _pair_rows(tracked, config.seed)])
        arrays |= tracked.run_arrays()
        run.write_run(pairs=tracked.run_record())
    run.write_metrics(frame)
    run.write_arrays(arrays)
    run.write_verdict(claims)
    save_weights(run, model)
    run.finish("complete", objective=result.objective, epochs=result.epochs, stopped=result.stopped,
               best_epoch=result.best_epoch, seconds=(run.run.get("seconds") or 0.0) + time.monotonic() - begun,
               error=None)  # fmt: skip
