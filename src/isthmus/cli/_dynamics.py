"""`isthmus dynamics`: the theory of two points against what a training recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from isthmus.cli._output import fresh_folder, print_run, progress_bar


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

    with progress_bar(quiet, "fitting") as bar:
        found = run_dynamics(run, out or fresh_folder("dynamics"), layers=layers, pairs=pairs,
                             progress=None if bar is None else bar.show)  # fmt: skip
    print_run(found)
