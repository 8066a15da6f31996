"""`isthmus compress`: fewer layers for a trained run, within a stated loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape

from isthmus.cli._output import Bar, fresh_folder, print_run, progress_bar


def _shown_by(bar: Bar) -> Callable[[int, int, int], None]:
    """The bar over all depths: first by every method, then those to choose from."""
    whole = 0

    def update(done: int, work: int, depth: int) -> None:
        nonlocal whole
        if whole not in (0, work):
            bar.begin_again()
        whole = work
        bar.show(done, work, f"{depth} layer{'s' if depth != 1 else ''}")

    return update


def compress(
    run: Annotated[Path, Parameter(help="Folder of a finished run of a Leaky ResNet.")],
    /,
    *,
    tolerance: Annotated[float, Parameter(help="How much the loss may rise, as a share of the full network's.")] = 0.05,
    absolute: Annotated[bool, Parameter(help="The tolerance is an amount of the loss, not a share.", negative="")] = (
        False
    ),
    method: Annotated[str, Parameter(help="refit, merge, equidistant or drop.")] = "refit",
    finetune: Annotated[int, Parameter(help="Epochs of training for every depth before it is judged; 0: none.")] = 0,
    learning_rate: Annotated[float, Parameter(help="First step size of that training.")] = 3e-3,
    choose_by: Annotated[str, Parameter(help="Samples that choose: validation, test (one half), or auto.")] = "auto",
    device: Annotated[str, Parameter(help="cpu, cuda, cuda:1, …")] = "cpu",
    out: Annotated[Path | None, Parameter(help="New run folder; a fresh one under runs/ unless given.")] = None,
    dry_run: Annotated[bool, Parameter(help="Say sizes, memory and time; write nothing.", negative="")] = False,
    quiet: Annotated[bool, Parameter(help="No progress bar, no table of losses.", negative="")] = False,
) -> None:
    """Find the fewest layers whose loss is within a tolerance, and write them as a run of their own with a page.

    Every depth is tried by every method first. Held-out samples that choose the depth are not those that judge it.
    """
    from isthmus.experiments import CompressionConfig, plan_compression, run_compression

    config = CompressionConfig(tolerance, method, absolute, finetune, learning_rate, choose_by, device)
    console = Console()
    if dry_run:
        for name, value in plan_compression(run, config).lines():
            console.print(f"{name:<22}{escape(value)}", highlight=False, soft_wrap=True)
        console.print("dry run: nothing was written", highlight=False)
        return

    with progress_bar(quiet, "trying depths", share=True) as bar:

        def show(curve: object) -> None:
            if bar is not None:
                bar.stop()
            console.print(f"On the samples that choose, {escape(str(curve))}\n", highlight=False, soft_wrap=True)

        found = run_compression(run, out or fresh_folder("compress"), config, show=None if quiet else show,
                                progress=None if bar is None else _shown_by(bar))  # fmt: skip
    print_run(found)
