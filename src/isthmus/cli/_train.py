"""`isthmus train`: one Leaky ResNet from data to a page."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from isthmus._errors import InputError, near_name_hint
from isthmus.cli._output import fresh_folder, print_run, training_progress

if TYPE_CHECKING:
    from isthmus._records import RunFolder
    from isthmus.data import Task
    from isthmus.experiments import LeakyConfig

DATA = ("digits", "teacher")


def _task(name: str, teacher_widths: tuple[int, ...], teacher_kind: str, n_train: int, n_test: int, seed: int) -> Task:
    from isthmus.data import digits, teacher

    if name == "digits":
        return digits(seed=seed)
    if name == "teacher":
        return teacher(widths=teacher_widths, kind=teacher_kind, n_train=n_train, n_test=n_test, seed=seed)
    raise InputError("data", name, "'digits' or 'teacher'", near_name_hint(name, DATA))


def train_on(
    data: str,
    config: LeakyConfig,
    out: Path,
    *,
    command: str,
    progress: Callable[[int, int, Any], None] | None,
    teacher_widths: tuple[int, ...] = (30, 3, 30),
    teacher_kind: str = "mlp",
    n_train: int = 1000,
    n_test: int = 1000,
) -> RunFolder:
    """Make the data, train and measure; warnings about the data are shown and kept with the run."""
    from isthmus.experiments import run_leaky

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        task = _task(data, teacher_widths, teacher_kind, n_train, n_test, config.seed)
    for warning in caught:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    notes = tuple(str(w.message) for w in caught)
    source: dict[str, Any] = {"name": data, "seed": config.seed}
    if data == "teacher":
        source |= {"widths": list(teacher_widths), "kind": teacher_kind, "n_train": n_train, "n_test": n_test}
    title = f"Leaky ResNet on {task.name}"
    return run_leaky(task, config, out, command=command, title=title, data=source, notes=notes, progress=progress)


def train(
    *,
    data: Annotated[str, Parameter(help="`digits` (scikit-learn's, real) or `teacher` (random networks).")],
    out: Annotated[Path | None, Parameter(help="New run folder; a fresh one under runs/ unless given.")] = None,
    width: Annotated[int | None, Parameter(help="Dimensions along the path; max(100, inputs) unless given.")] = None,
    depth: Annotated[int, Parameter(help="Number of layers L.")] = 20,
    effective_depth: Annotated[float, Parameter(help="L̃: 0 is a ResNet, large is fully connected.")] = 7.0,
    steps: Annotated[str, Parameter(help="Layer steps: equidistant, irregular or adaptive.")] = "equidistant",
    activation: Annotated[str, Parameter(help="relu, identity or smooth_relu.")] = "relu",
    input_map: Annotated[str, Parameter(help="Map into the path: auto, fixed or learned.")] = "auto",
    output_map: Annotated[str, Parameter(help="Map out of it: auto, fixed or learned.")] = "auto",
    ridge: Annotated[float, Parameter(help="λ, weight of the ridge term.")] = 1e-3,
    loss: Annotated[str, Parameter(help="auto, square or cross_entropy.")] = "auto",
    epochs: Annotated[int, Parameter(help="Passes over the training set.")] = 2000,
    learning_rate: Annotated[float, Parameter(help="First step size; a cosine takes it to 0.")] = 3e-2,
    batch_size: Annotated[int | None, Parameter(help="Samples per step; all unless given.")] = None,
    gamma0: Annotated[float, Parameter(help="γ₀ of the stabilised cost of identity.")] = 1e-3,
    metrics: Annotated[tuple[str, ...], Parameter(help="Metrics to record; all unless given.")] = (),
    teacher_widths: Annotated[tuple[int, ...], Parameter(help="Widths of the teacher; the least is its rank.")] = (
        30, 3, 30,
    ),
    teacher_kind: Annotated[str, Parameter(help="mlp or resnet.")] = "mlp",
    n_train: Annotated[int, Parameter(help="Training samples of the teacher.")] = 1000,
    n_test: Annotated[int, Parameter(help="Test samples of the teacher.")] = 1000,
    dtype: Annotated[str, Parameter(help="float32 or float64 (measurements are always float64).")] = "float32",
    device: Annotated[str, Parameter(help="cpu, cuda, cuda:1, …")] = "cpu",
    seed: Annotated[int, Parameter(help="Seed of data, weights and batches.")] = 0,
    quiet: Annotated[bool, Parameter(help="No progress bar.", negative="")] = False,
) -> None:  # fmt: skip
    """Train a Leaky ResNet, measure its path, and write a run folder with a page."""
    from isthmus.experiments import LeakyConfig

    given = locals()
    config = LeakyConfig(**{f.name: given[f.name] for f in dataclasses.fields(LeakyConfig)})
    with training_progress(quiet) as progress:
        run = train_on(
            data, config, out or fresh_folder("train"), command="train", progress=progress,
            teacher_widths=teacher_widths, teacher_kind=teacher_kind, n_train=n_train, n_test=n_test,
        )  # fmt: skip
    print_run(run)
