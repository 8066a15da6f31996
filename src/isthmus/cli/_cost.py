"""`isthmus cost`: what a function costs networks of several depths."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape

from isthmus._errors import DataNote, InputError
from isthmus.cli._output import print_run, progress_bar
from isthmus.cli._source import source_of, task_and_notes


def _depths(words: tuple[str, ...]) -> tuple[int, ...]:
    """Depths from words such as `6,8,12`."""
    found: list[int] = []
    for word in (part for given in words for part in given.replace(",", " ").split()):
        if not (word.isascii() and word.removeprefix("-").isdecimal()):
            raise InputError("depths", word, "whole numbers with commas between them", "such as --depths 6,8,12,16,24")
        found.append(int(word))
    return tuple(found)


def cost(
    *,
    data: Annotated[str | None, Parameter(help="A file (.csv, .parquet, .npy, .npz), `digits` or `teacher`.")] = None,
    target: Annotated[tuple[str, ...], Parameter(help="Of a file: column to predict; repeat for several.")] = (),
    task: Annotated[str, Parameter(help="Of a file: auto, regression or classification.")] = "auto",
    inputs: Annotated[tuple[str, ...], Parameter(help="Of a file: input columns, or array; all unless given.")] = (),
    impute: Annotated[str | None, Parameter(help="Of a file: `median` fills in missing inputs.")] = None,
    test_fraction: Annotated[float, Parameter(help="Of a file: share of the rows held out.")] = 0.2,
    teacher_widths: Annotated[tuple[int, ...], Parameter(help="Widths of the teacher; the least is its rank.")] = (
        30, 3, 30,
    ),
    teacher_kind: Annotated[str, Parameter(help="mlp or resnet.")] = "mlp",
    n_train: Annotated[int, Parameter(help="Training samples of the teacher.")] = 1000,
    n_test: Annotated[int, Parameter(help="Test samples of the teacher.")] = 1000,
    depths: Annotated[tuple[str, ...], Parameter(help="Depths L, in layers of weights; at least 3.")] = (
        "6,8,12,16,24",
    ),
    width: Annotated[int, Parameter(help="Of every hidden layer.")] = 60,
    ridge: Annotated[float, Parameter(help="λ in C + λ‖θ‖²; the smaller, the closer the fit to the data.")] = 2e-4,
    steps: Annotated[int, Parameter(help="Second-order iterations at each depth, at most.")] = 800,
    seeds: Annotated[int, Parameter(help="Chains of networks; several give standard errors from their scatter.")] = 1,
    seed: Annotated[int, Parameter(help="Seed of the data, and of the first chain.")] = 0,
    jobs: Annotated[int, Parameter(help="Networks of different seeds to train at once.")] = 1,
    device: Annotated[str, Parameter(help="cpu, cuda, cuda:1, …")] = "cpu",
    out: Annotated[Path | None, Parameter(help="Run folder; named after the settings under runs/ unless given.")] = (
        None
    ),
    config: Annotated[Path | None, Parameter(help="TOML file of options; the command line wins over it.")] = None,
    dry_run: Annotated[bool, Parameter(help="Say sizes and time; train nothing that is kept.", negative="")] = False,
    quiet: Annotated[bool, Parameter(help="No progress bar.", negative="")] = False,
    given: Annotated[frozenset[str], Parameter(parse=False)] = frozenset(),
) -> None:  # fmt: skip
    """Fit what a function costs networks of several depths: rank, regularity, certificate, verdict, page.

    Networks are kept in the folder: the same command goes on where it was interrupted, and with more seeds or deeper
    networks it trains only what is new.
    """
    import warnings

    from isthmus.experiments import CostConfig, check_cost, cost_folder, plan_cost, run_cost

    source = source_of(
        data, given, seed=seed,
        teacher={"widths": list(teacher_widths), "kind": teacher_kind, "n_train": n_train, "n_test": n_test},
        table={"target": target, "task": task, "inputs": inputs, "impute": impute, "test_fraction": test_fraction},
    )  # fmt: skip
    samples, notes = task_and_notes(source)
    asked = CostConfig(_depths(depths), width, ridge, steps, seeds, seed, device)
    settings, changed = check_cost(samples, asked, jobs)
    for text in changed:
        warnings.warn(text, DataNote, stacklevel=2)
    if dry_run:
        console = Console()
        for name, value in plan_cost(samples, settings, jobs=jobs).lines():
            console.print(f"{name:<22}{escape(value)}", highlight=False, soft_wrap=True)
        console.print("dry run: nothing was written", highlight=False)
        return
    with progress_bar(quiet, "training", share=True, period=600) as bar:
        run = run_cost(samples, settings, out or cost_folder(samples, settings), data=source, notes=(*notes, *changed),
                       jobs=jobs, progress=None if bar is None else bar.show)  # fmt: skip
    print_run(run)
