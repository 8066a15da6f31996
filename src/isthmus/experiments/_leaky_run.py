"""From data to a page: train a Leaky ResNet, measure its path, write one run folder."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from isthmus._errors import InputError
from isthmus._random import check_seed
from isthmus._records import Claim, MetricTable, RunFolder, check_new_folder, write_whole
from isthmus.data import Task
from isthmus.geometry import GAMMA0S, check_gamma0
from isthmus.models import LeakyResNet
from isthmus.probe import NO_LEAK, NO_MOMENTA, PathMeasurement, check_metrics, measure_path, path_verdict
from isthmus.report import write_page
from isthmus.train import LOSS_REDUCTION, FitConfig, FitResult, data_term, fit


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
        epochs, learning_rate, batch_size: see `FitConfig`.
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
    batch_size: int | None = None
    gamma0: float = GAMMA0S[0]
    metrics: tuple[str, ...] = ()
    dtype: str = "float32"
    device: str = "cpu"
    seed: int = 0


_DTYPES = {"float32": torch.float32, "float64": torch.float64}


def _device(name: str) -> torch.device:
    """A device that is there, or `InputError`."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ValueError):
        known = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
        raise InputError("device", name, f"a device of this machine ({', '.join(known)})") from None
    return device


def _fit_config(config: LeakyConfig, kind: str) -> FitConfig:
    loss = config.loss
    if loss == "auto":
        loss = "cross_entropy" if kind == "classification" else "square"
    if loss not in LOSS_REDUCTION:
        raise InputError("loss", config.loss, "'auto', 'square' or 'cross_entropy'")
    if (loss == "cross_entropy") != (kind == "classification"):
        raise InputError("loss", config.loss, f"a loss for {kind}", "use 'auto'")
    return FitConfig(
        ridge=config.ridge,
        loss=loss,
        epochs=config.epochs,
        learning_rate=config.learning_rate,
        batch_size=config.batch_size,
        seed=config.seed,
    )


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
        device=_device(config.device),
        dtype=_DTYPES[config.dtype],
    )


def _record_training(table: MetricTable, result: FitResult, seed: int) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for entry in result.log:
        for split, values in (("train", entry.train), ("test", entry.test)):
            for metric, value in values.items():
                row = table.add(metric, value, step=entry.epoch, split=split, layer="model", seed=seed)
                rows.setdefault(f"{metric}/{split}", []).append(row)
    return rows


def _performance(result: FitResult, rows: Mapping[str, list[int]]) -> list[Claim]:
    last = result.log[-1]
    name = "accuracy" if "accuracy" in last.train else "r_squared"
    label = "accuracy" if name == "accuracy" else "R²"
    train, test = last.train[name], last.test.get(name)
    text = f"Train {label} {train:.3g}" + (f", test {label} {test:.3g}" if test is not None else "")
    text += f" after {last.epoch} epochs."
    behind = (*rows.get(f"{name}/train", ())[-1:], *rows.get(f"{name}/test", ())[-1:])
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

    Raises:
        InputError: any setting that cannot be used.
        RunFolderError: the folder exists or cannot be made.
        DivergedError: training left the finite numbers (the folder then says `failed`).
    """
    check_seed(config.seed)
    if config.dtype not in _DTYPES:
        raise InputError("dtype", config.dtype, "'float32' or 'float64'")
    gamma0s = (check_gamma0(config.gamma0), *(g for g in GAMMA0S if g != config.gamma0))
    fit_config = _fit_config(config, task.kind)
    wanted = check_metrics(config.metrics or None, ridge=config.ridge, effective_depth=config.effective_depth)
    check_new_folder(out)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = _model(config, task)
    warned = (*notes, *(str(w.message) for w in caught))

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
                "in_features": task.in_features, "out_features": task.out_features, "width": model.width,
                "depth": model.depth, "effective_depth": model.effective_depth, "steps": config.steps,
                "activation": config.activation, "ridge": config.ridge, "gamma0": config.gamma0,
            },
            "task": {
                "name": task.name, "kind": task.kind, "n_train": len(task.x_train), "n_test": len(task.x_test),
                "feature_names": list(task.feature_names), "class_names": list(task.class_names),
                "description": dict(task.description),
            },
            "loss": fit_config.loss,
            "loss_reduction": LOSS_REDUCTION[fit_config.loss],
            "warnings": list(warned),
        },
    )  # fmt: skip
    try:
        result = fit(
            model, task.x_train, task.y_train, fit_config, x_test=task.x_test, y_test=task.y_test, progress=progress
        )
        measured = measure_path(
            model,
            task.x_train,
            task.y_train,
            loss=lambda outputs, targets: data_term(fit_config.loss, outputs, targets),
            ridge=config.ridge,
            gamma0s=gamma0s,
            metrics=wanted,
        )
        _write(run, task, model, result, measured, config)
    except BaseException as error:
        run.finish("interrupted" if isinstance(error, KeyboardInterrupt) else "failed", error=f"{error}")
        raise
    return run


def _write(
    run: RunFolder, task: Task, model: LeakyResNet, result: FitResult, measured: PathMeasurement, config: LeakyConfig
) -> None:
    table = MetricTable()
    training = _record_training(table, result, config.seed)
    rows = measured.record(table, seed=config.seed)
    why = NO_LEAK if model.effective_depth == 0 else NO_MOMENTA
    claims = path_verdict(measured, rows, why_no_momenta=why)
    claims[1:1] = _performance(result, training)
    arrays = measured.arrays()
    arrays["training/layer_steps"] = np.array([entry.layer_steps for entry in result.log])
    arrays["training/epochs"] = np.array([entry.epoch for entry in result.log])
    arrays |= {f"scaling/{name}": value for name, value in task.scaling.to_arrays().items()}
    run.write_metrics(table)
    run.write_arrays(arrays)
    run.write_verdict(claims)
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    write_whole(run.path / "model.safetensors", lambda p: safetensors.torch.save_file(state, p))
    run.finish("complete", objective=result.objective)
    write_page(run.path)
