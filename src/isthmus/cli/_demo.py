"""`isthmus demo`: real data, embedded, from nothing to a page in under two minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from isthmus.cli._output import fresh_folder, print_run, training_progress


def demo(
    *,
    out: Annotated[Path | None, Parameter(help="New run folder; a fresh one under runs/ unless given.")] = None,
    epochs: Annotated[int, Parameter(help="Passes over the training digits.")] = 1000,
    seed: Annotated[int, Parameter(help="Seed of the split and the weights.")] = 0,
    quiet: Annotated[bool, Parameter(help="No progress bar.", negative="")] = False,
) -> None:
    """Train a Leaky ResNet on scikit-learn's digits, read its bottleneck off its Hamiltonian, write a page."""
    from isthmus.cli._train import train_on  # imports torch: not before it is needed
    from isthmus.experiments import LeakyConfig

    config = LeakyConfig(depth=20, effective_depth=5.0, epochs=epochs, ridge=2e-2, seed=seed)
    with training_progress(quiet) as progress:
        run = train_on({"name": "digits", "seed": seed}, config, out or fresh_folder("demo"), command="demo",
                       progress=progress)  # fmt: skip
    print_run(run)
