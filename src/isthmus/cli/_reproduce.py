"""`isthmus reproduce`: the figures of a paper, from one command."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from isthmus._errors import InputError, near_name_hint

PAPERS = ("leaky-resnets", "bottleneck", "equilibrium", "effective-theory")
_MARKS = {"held": "[green]held[/green]", "partly": "[yellow]partly[/yellow]", "not": "[red]not held[/red]"}


@contextmanager
def _network_progress(quiet: bool) -> Generator[Callable[[int, int, str], None] | None]:
    """A bar on stderr over the networks, with the time left; None where `quiet`."""
    if quiet:
        yield None
        return
    columns = (TextColumn("networks"), BarColumn(bar_width=12), MofNCompleteColumn(), TimeElapsedColumn(),
               TimeRemainingColumn(elapsed_when_finished=False), TextColumn("left"))  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), speed_estimate_period=3600) as bar:
        task = bar.add_task("networks", total=None)
        yield lambda done, total, name: bar.update(task, completed=done, total=total)


def reproduce(
    paper: Annotated[str, Parameter(help=f"The paper: {', '.join(PAPERS)}.")],
    /,
    *,
    figure: Annotated[
        tuple[str, ...], Parameter(help="Figures, such as 1a or rank; repeat for several; all unless given.")
    ] = (),
    preset: Annotated[
        str, Parameter(help="quick (minutes), paper (up to an hour a figure), full (published size).")
    ] = ("quick"),
    out: Annotated[Path | None, Parameter(help="Folder; runs/reproduce-PAPER-PRESET unless given.")] = None,
    jobs: Annotated[int | None, Parameter(help="Networks to train at once; the number of cores unless given.")] = None,
    data: Annotated[
        Path | None,
        Parameter(help="Images for equilibrium and effective-theory: FILE.npz with images and labels (quick: digits)."),
    ] = None,
    device: Annotated[str, Parameter(help="cpu, cuda, cuda:1, …")] = "cpu",
    quiet: Annotated[bool, Parameter(help="No progress bar.", negative="")] = False,
) -> None:
    """Make figures of a paper again: train its networks, draw its charts, judge its claims, write a page.

    Networks are kept in the folder: the same command goes on after an interruption, and other figures reuse them.
    """
    if paper not in PAPERS:
        raise InputError("paper", paper, " or ".join(PAPERS), near_name_hint(paper, PAPERS))
    from isthmus.experiments import PAPERS as REPRODUCIBLE
    from isthmus.models import check_device

    check_device(device)
    known = REPRODUCIBLE[paper]
    if data is not None and not known.reads_data:
        raise InputError("data", str(data), f"no file: {paper} makes its own samples", "leave it out")
    options = {"data": data} if known.reads_data else {}
    budget, keys = known.paper.check_preset(preset).budget, known.paper.check_figures(figure)
    processes = jobs if jobs is not None else (os.cpu_count() or 1) if device == "cpu" else 1
    folder = out if out is not None else Path("runs") / f"reproduce-{paper}-{preset}"
    notes = Console(stderr=True)
    if not quiet:
        count = known.plan(preset, keys, device=device, **options)
        notes.print(f"preset {preset}: {budget}; {count} networks for figures {', '.join(keys)}", highlight=False)
    with _network_progress(quiet) as progress:
        run = known.reproduce(folder, preset=preset, figures=keys, jobs=processes, device=device, progress=progress,
                              **options)  # fmt: skip
    console = Console()
    for claim in run.verdict():
        mark = _MARKS.get(str(claim.values.get("holds")), "[dim]not judged[/dim]")
        name = claim.name.replace("/", ", ", 1)
        name = f"Fig {name}" if name[:1].isdigit() else name[:1].upper() + name[1:]
        console.print(f"{escape(name)}: {mark}. {escape(claim.text)}", highlight=False)
    console.print(f"\nfolder: {escape(str(run.path))}\npage:   {escape(str(run.path / 'report.html'))}\n"
                  f"charts: {escape(str(run.path / 'charts'))}", highlight=False, soft_wrap=True)  # fmt: skip
