"""`isthmus sweep`: many trainings that differ in some settings, and one page to compare them."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape

from isthmus.cli._output import print_run, progress_bar

if TYPE_CHECKING:
    from isthmus.experiments import Sweep


@contextmanager
def _runs_progress(quiet: bool) -> Generator[Callable[[int, int, int], None] | None]:
    """A bar on stderr over the runs, with the time left and how many failed; None where `quiet`."""
    with progress_bar(quiet, "runs", period=3600) as bar:

        def update(settled: int, failed: int, runs: int) -> None:
            if bar is not None:
                bar.show(settled, runs, f"{failed} failed" if failed else "")

        yield None if bar is None else update


def _print_plan(sweep: Sweep, out: Path, jobs: int, retry_failed: bool) -> None:
    from isthmus.experiments import check_sweep_folder, plan_sweep, sweep_states

    states = sweep_states(sweep, check_sweep_folder(out))
    todo = {digest: "to do" if retry_failed and state == "failed" else state for digest, state in states.items()}
    plan = plan_sweep(sweep, todo, jobs=jobs)
    console = Console()
    for number, run in enumerate(sweep.runs, 1):
        console.print(f"{number:>4}  {states[run.digest]:<10}{escape(run.name)}", highlight=False, soft_wrap=True)
    for name, value in plan.lines():
        console.print(f"{name:<22}{escape(value)}", highlight=False, soft_wrap=True)
    console.print("dry run: nothing was written", highlight=False)


def sweep(
    config: Annotated[Path, Parameter(help="TOML file: [base] settings, and a [grid] or a list of [[run]].")],
    /,
    *,
    out: Annotated[Path | None, Parameter(help="Folder of the sweep; named after the file under runs/.")] = None,
    jobs: Annotated[int, Parameter(help="Runs at the same time, each in a process with one thread.")] = 1,
    scheduler: Annotated[str | None, Parameter(help="Address of a Dask scheduler that runs them instead.")] = None,
    retry_failed: Annotated[bool, Parameter(help="Try the runs again that failed.", negative="")] = False,
    dry_run: Annotated[bool, Parameter(help="List the runs, their state and time; write nothing.", negative="")] = (
        False
    ),
    quiet: Annotated[bool, Parameter(help="No progress bar.", negative="")] = False,
) -> None:  # fmt: skip
    """Train a network for each configuration of a file, and compare them on one page.

    Each run is a run folder of its own. The same command goes on where it stopped; a run that fails or is killed costs
    only itself.
    """
    from isthmus.experiments import read_sweep, run_sweep, sweep_folder

    runs = read_sweep(config)
    folder = out or sweep_folder(runs)
    if dry_run:
        _print_plan(runs, folder, jobs, retry_failed)
        return
    with _runs_progress(quiet) as progress:
        run = run_sweep(runs, folder, jobs=jobs, scheduler=scheduler, retry_failed=retry_failed, progress=progress)
    print_run(run)
