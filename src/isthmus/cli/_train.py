"""`isthmus train`: one Leaky ResNet from data to a page."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape

from isthmus._errors import InputError
from isthmus.cli._output import fresh_folder, print_run, training_progress
from isthmus.cli._source import source_of, task_and_notes

if TYPE_CHECKING:
    from isthmus._records import RunFolder
    from isthmus.experiments import LeakyConfig

ALONE_WITH_RESUME = frozenset({"resume", "processes", "quiet", "given"})


def train_on(
    source: dict[str, Any],
    config: LeakyConfig,
    out: Path,
    *,
    command: str,
    progress: Callable[[int, int, Any], None] | None,
    tensorboard: bool = False,
    processes: int = 1,
) -> RunFolder:
    """Make the data, train and measure; warnings about the data are shown and kept with the run."""
    from isthmus.experiments import run_leaky

    task, notes = task_and_notes(source)
    title = f"Leaky ResNet on {task.name}"
    return run_leaky(task, config, out, command=command, title=title, data=source, notes=notes, progress=progress,
                     tensorboard=tensorboard, processes=processes)  # fmt: skip


def _print_plan(source: dict[str, Any], config: LeakyConfig, processes: int) -> None:
    from isthmus.experiments import plan_leaky, task_from_source

    plan = plan_leaky(task_from_source(source), config, processes)
    console = Console()
    for name, value in plan.lines():
        console.print(f"{name:<22}{escape(value)}", highlight=False, soft_wrap=True)
    console.print("dry run: nothing was trained or written", highlight=False)


def train(
    *,
    data: Annotated[str | None, Parameter(help="A file (.csv, .parquet, .npy, .npz), `digits` or `teacher`.")] = None,
    target: Annotated[tuple[str, ...], Parameter(help="Of a file: column to predict; repeat for several.")] = (),
    task: Annotated[str, Parameter(help="Of a file: auto, regression or classification.")] = "auto",
    inputs: Annotated[tuple[str, ...], Parameter(help="Of a file: input columns, or array; all unless given.")] = (),
    impute: Annotated[str | None, Parameter(help="Of a file: `median` fills in missing inputs.")] = None,
    test_fraction: Annotated[float, Parameter(help="Of a file: share of the rows held out.")] = 0.2,
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
    learning_rate: Annotated[float, Parameter(help="Adam's first step size; a cosine takes it to 0.")] = 3e-2,
    sgd_epochs: Annotated[int, Parameter(help="Further passes with plain SGD.")] = 0,
    sgd_learning_rate: Annotated[float, Parameter(help="SGD's first step size; a cosine takes it to 0.")] = 1e-3,
    finish: Annotated[int, Parameter(help="Then iterations of the second-order finish; 900 for a critical point.")] = 0,
    batch_size: Annotated[int | None, Parameter(help="Samples per step; all unless given.")] = None,
    validation_fraction: Annotated[float, Parameter(help="Share of the training samples held out to watch.")] = 0.0,
    patience: Annotated[int, Parameter(help="Stop after so many epochs without better validation loss; 0: no.")] = 0,
    gradient_tolerance: Annotated[float, Parameter(help="Stop when the gradient norm falls below; 0: no.")] = 0.0,
    stationarity_tolerance: Annotated[float, Parameter(help="Stop when the median residual falls below; 0: no.")] = 0.0,
    precision: Annotated[str, Parameter(help="true, bf16-mixed or 16-mixed.")] = "true",
    log_points: Annotated[int, Parameter(help="Epochs at which metrics are recorded, log-spaced.")] = 60,
    pairs: Annotated[int, Parameter(help="Pairs of samples to track while training; 0 for none.")] = 0,
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
    config: Annotated[Path | None, Parameter(help="TOML file of options; the command line wins over it.")] = None,
    resume: Annotated[Path | None, Parameter(help="Continue an interrupted run folder as it was set.")] = None,
    processes: Annotated[int, Parameter(help="Processes that train together on this machine.")] = 1,
    tensorboard: Annotated[bool, Parameter(help="Training curves for TensorBoard, too.", negative="")] = False,
    dry_run: Annotated[bool, Parameter(help="Say sizes, memory and time; train nothing.", negative="")] = False,
    quiet: Annotated[bool, Parameter(help="No progress bar.", negative="")] = False,
    given: Annotated[frozenset[str], Parameter(parse=False)] = frozenset(),
) -> None:  # fmt: skip
    """Train a Leaky ResNet, measure its path, and write a run folder with a page.

    Every option can also stand in a TOML file: `--config FILE`.
    """
    from isthmus.experiments import LeakyConfig, resume_leaky

    if resume is not None:
        others = sorted(given - ALONE_WITH_RESUME)
        if others:
            raise InputError(
                others[0],
                str(locals()[others[0]]),
                "no other option beside resume (processes apart)",
                "a resumed run keeps its own settings; start a new run to change them",
            )
        with training_progress(quiet) as progress:
            run = resume_leaky(resume, progress=progress, processes=processes)
        print_run(run)
        return
    values = locals()
    settings = LeakyConfig(**{f.name: values[f.name] for f in dataclasses.fields(LeakyConfig)})
    source = source_of(
        data, given, seed=seed,
        teacher={"widths": list(teacher_widths), "kind": teacher_kind, "n_train": n_train, "n_test": n_test},
        table={"target": target, "task": task, "inputs": inputs, "impute": impute, "test_fraction": test_fraction},
    )  # fmt: skip
    if dry_run:
        _print_plan(source, settings, processes)
        return
    with training_progress(quiet) as progress:
        run = train_on(source, settings, out or fresh_folder("train"), command="train", progress=progress,
                       tensorboard=tensorboard, processes=processes)  # fmt: skip
    print_run(run)
