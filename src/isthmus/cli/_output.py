"""What commands print: progress on stderr, results on stdout."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from isthmus._records import RunFolder

_MARK = {"finding": "[green]•[/green]", "caution": "[yellow]![/yellow]", "none": "[dim]·[/dim]"}


def fresh_folder(name: str) -> Path:
    """A folder under `runs/` that does not exist yet, named after the command and the time."""
    from isthmus._records import fresh_folder as fresh  # not before it is needed: it imports polars

    return fresh(name)


class Bar:
    """A progress bar on stderr: what is done, the time left, and a few words. It appears when it is first shown."""

    def __init__(self, doing: str, *, share: bool, width: int, period: float | int) -> None:
        done = TaskProgressColumn() if share else MofNCompleteColumn()
        columns = (TextColumn(doing), BarColumn(bar_width=width), done, TimeRemainingColumn(), TextColumn("left"),
                   TextColumn("{task.fields[words]}"))  # fmt: skip
        self._bar = Progress(*columns, console=Console(stderr=True), speed_estimate_period=period)
        self._task = self._bar.add_task(doing, total=None, words="")

    def show(self, done: float | int, total: float | int, words: str | None = None) -> None:
        """So much of `total` is done; the words stay where none are given."""
        self._bar.start()  # not before there is something to show: bad input leaves no empty bar behind
        self._bar.update(self._task, completed=done, total=total)
        if words is not None:
            self._bar.update(self._task, words=escape(words))

    def begin_again(self) -> None:
        """From nothing done, where the time that is left is another's."""
        self._bar.reset(self._task)

    def stop(self) -> None:
        """End its line."""
        if self._bar.live.is_started:
            self._bar.stop()


@contextmanager
def progress_bar(
    quiet: bool, doing: str, *, share: bool = False, width: int = 20, period: float | int = 30
) -> Generator[Bar | None]:
    """A bar that ends with the block; None where `quiet`.

    Args:
        quiet: show nothing.
        doing: what is done, in a word.
        share: per cent instead of numbers.
        width: of the bar, in characters.
        period: seconds over which speed is estimated.
    """
    if quiet:
        yield None
        return
    bar = Bar(doing, share=share, width=width, period=period)
    try:
        yield bar
    finally:
        bar.stop()


@contextmanager
def training_progress(quiet: bool) -> Generator[Callable[[int, int, Any], None] | None]:
    """A progress bar on stderr with the loss and the time left; None where `quiet`."""
    with progress_bar(quiet, "training", width=12) as bar:

        def update(epoch: int, epochs: int, log: Any) -> None:
            numbers = None
            if log is not None:
                numbers = f"loss {log.train['loss']:.3g} + ridge {log.train['ridge_term']:.3g}"
                if "rank_estimate" in log.train:
                    numbers += f", rank {log.train['rank_estimate']:.2g}"
            if bar is not None:
                bar.show(epoch, epochs, numbers)

        yield None if bar is None else update


def print_run(run: RunFolder) -> None:
    """Print the verdict, then where everything is."""
    console = Console()
    for claim in run.verdict():
        console.print(f"{_MARK[claim.level]} {escape(claim.text)}", highlight=False)
    console.print(f"\nrun folder: {escape(str(run.path))}\npage:       {escape(str(run.path / 'report.html'))}",
                  highlight=False, soft_wrap=True)  # fmt: skip
