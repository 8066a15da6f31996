"""What long work shows while it goes on: stages, how far, and the time left, on stderr."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

Progress = Callable[[str, int, int | None], None]
"""`(stage, done, total)`; the total is None where it is not known."""


@contextmanager
def progress_bar(shown: bool) -> Generator[Progress]:
    """A bar on stderr that names the stage; silent where `shown` is false, and where nothing was done yet."""
    if not shown:
        yield lambda _stage, _done, _total: None
        return
    columns = (TextColumn("measuring: {task.description}"), BarColumn(bar_width=16), MofNCompleteColumn(),
               TimeRemainingColumn(), TextColumn("left"))  # fmt: skip
    bar = RichProgress(*columns, console=Console(stderr=True), transient=True)
    task, stage = bar.add_task("", total=None), ""

    def update(name: str, done: int, total: int | None) -> None:
        nonlocal stage
        bar.start()
        if name != stage:
            bar.reset(task, description=name, total=total)
            stage = name
        bar.update(task, completed=done, total=total)

    try:
        yield update
    finally:
        if bar.live.is_started:
            bar.stop()


def duration(seconds: float) -> str:
    """Seconds in words, to two digits."""
    return f"{seconds:.2g} s" if seconds < 90 else f"{seconds / 60:.2g} min"
