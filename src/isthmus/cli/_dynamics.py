"""`isthmus dynamics`: the theory of two points against what a training recorded."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from isthmus.cli._output import fresh_folder, print_run


@contextmanager
def _fit_progress(quiet: bool) -> Generator[Callable[[int, int, str], None] | None]:
    """A bar on stderr over the layers, with the time left; None where `quiet`."""
    if quiet:
        yield None
        return
    columns = (TextColumn("fitting"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeRemainingColumn(),
               TextColumn("left"), TextColumn("{task.fields[layer]}"))  # fmt: skip
    bar = Progress(*columns, console=Console(stderr=True))
    task = bar.add_task("fitting", total=None, layer="")

    def update(done: int, total: int, layer: str) -> None:
        bar.start()  # not before the first layer: bad input leaves no empty bar behind
        bar.update(task, completed=done, total=total, layer=escape(layer))

    try:
        yield update
    finally:
        if bar.live.is_started:
            bar.stop()


def dynamics(
    run: Annotated[Path, Parameter(help="Folder of a run that recorded pairs of samples.")],
    /,
    *,
    layers: Annotated[tuple[str, ...], Parameter(help="Layer or pattern; repeat for several. All unless given.")] = (),
    pairs: Annotated[tuple[str, ...], Parameter(help="Pair such as 3-17; repeat for several. All unless given.")] = (),
    out: Annotated[Path | None, Parameter(help="New run folder; a fresh one under runs/ unless given.")] = None,
    quiet: Annotated[bool, Parameter(help="No progress bar.", negative="")] = False,
) -> None:
    """Say how well two effective learning rates describe a training, layer by layer; the run is only read.

    Pairs are recorded by `isthmus.track_pairs`, by `Monitor(pairs=16)`, and by `isthmus train --pairs 16`.
    """
    from isthmus.experiments import run_dynamics  # imports torch: not before it is needed

    with _fit_progress(quiet) as progress:
        found = run_dynamics(run, out or fresh_folder("dynamics"), layers=layers, pairs=pairs, progress=progress)
    print_run(found)
