"""What commands print: progress on stderr, results on stdout."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from isthmus._records import RunFolder

_MARK = {"finding": "[green]•[/green]", "caution": "[yellow]![/yellow]", "none": "[dim]·[/dim]"}


def fresh_folder(name: str) -> Path:
    """A folder under `runs/` that does not exist yet, named after the command and the time."""
    from isthmus._records import fresh_folder as fresh  # not before it is needed: it imports polars

    return fresh(name)


@contextmanager
def training_progress(quiet: bool) -> Generator[Callable[[int, int, Any], None] | None]:
    """A progress bar on stderr with the loss and the time left; None where `quiet`."""
    if quiet:
        yield None
        return
    columns = (
        TextColumn("training"), BarColumn(bar_width=12), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("left"), TextColumn("{task.fields[numbers]}"),
    )  # fmt: skip
    bar = Progress(*columns, console=Console(stderr=True))
    task = bar.add_task("training", total=None, numbers="")

    def update(epoch: int, epochs: int, log: Any) -> None:
        bar.start()  # not before the first epoch: bad input leaves no empty bar behind
        bar.update(task, completed=epoch, total=epochs)
        if log is not None:
            numbers = f"loss {log.train['loss']:.3g} + ridge {log.train['ridge_term']:.3g}"
            if "rank_estimate" in log.train:
                numbers += f", rank {log.train['rank_estimate']:.2g}"
            bar.update(task, numbers=numbers)

    try:
        yield update
    finally:
        if bar.live.is_started:
            bar.stop()


def print_run(run: RunFolder) -> None:
    """Print the verdict, then where everything is."""
    console = Console()
    for claim in run.verdict():
        console.print(f"{_MARK[claim.level]} {escape(claim.text)}", highlight=False)
    console.print(f"\nrun folder: {escape(str(run.path))}\npage:       {escape(str(run.path / 'report.html'))}",
                  highlight=False, soft_wrap=True)  # fmt: skip
