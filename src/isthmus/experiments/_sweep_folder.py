"""The folder of a sweep: a run is made beside its place, and claims it by one rename, so it counts once."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import re
import shutil
import socket
import threading
import uuid
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

from isthmus._errors import RunFolderError, WriteError
from isthmus._records import RunFolder
from isthmus.experiments._leaky_run import run_leaky
from isthmus.experiments._sources import task_from_source
from isthmus.experiments._sweep_settings import SweepRun, title_of

RUNS = "runs"
"""The folder inside a sweep's that holds its runs."""

State = Literal["complete", "failed", "to do"]

_PART = ".part-"
_CLAIMED = re.compile(r"[A-Za-z0-9_].*_(?P<digest>[0-9a-f]{10})")
_ERROR = 2000
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_CAUGHT = threading.Lock()  # a cluster's worker may have several threads, and Python one list of warning filters


def claimed_runs(folder: Path) -> dict[str, Path]:
    """The runs that are settled, complete or failed, by digest."""
    found: dict[str, Path] = {}
    inside = sorted((folder / RUNS).iterdir()) if (folder / RUNS).is_dir() else []
    for path in inside:
        match = _CLAIMED.fullmatch(path.name)
        if match is not None and (path / "run.json").is_file():
            found.setdefault(match["digest"], path)
    return found


def state_of(path: Path | None) -> State:
    """Whether a run is complete, failed, or still to be done."""
    if path is None:
        return "to do"
    return "complete" if RunFolder.open(path).run.get("status") == "complete" else "failed"


def new_part(folder: Path, run: SweepRun) -> Path:
    """A path for making a run that no other process uses, on this machine or another one."""
    return folder / RUNS / f"{_PART}{run.digest}-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def has_begun(folder: Path, run: SweepRun, process: int | None) -> bool:
    """Whether a process of this machine has begun to make a run."""
    return any((folder / RUNS).glob(f"{_PART}{run.digest}-*-{process}-*"))


def claim(part: Path, place: Path) -> bool:
    """Put a finished run at its place, by one rename; where another one is there already, `part` is thrown away.

    Returns:
        Whether `part` is what is at the place now.
    """
    try:
        os.rename(part, place)  # atomic; a folder that is not empty is never replaced
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise WriteError(f"{part} could not be renamed to {place.name} ({error})") from error
        if not _is_whole(place):  # somebody has removed some of its files: it counts for nothing
            _remove(place, unless=_is_whole)
            return claim(part, place)
        shutil.rmtree(part, ignore_errors=True)
        return False
    return True


def _is_whole(place: Path) -> bool:
    return (place / "run.json").is_file()


def _remove(place: Path, *, unless: Callable[[Path], bool]) -> None:
    """Remove what is at a run's place, at once, by one rename; back it goes where another process was faster."""
    away = place.with_name(f"{_PART}{place.name[-10:]}-away-{uuid.uuid4().hex[:8]}")
    with contextlib.suppress(FileNotFoundError):
        os.rename(place, away)
        if unless(away):
            claim(away, place)
        else:
            shutil.rmtree(away, ignore_errors=True)


def is_settled(folder: Path, run: SweepRun) -> bool:
    """Whether a run has its place taken, by a complete run or a failed one."""
    return _is_whole(folder / RUNS / run.name)


def execute(run: SweepRun, folder: Path, *, page: bool = True) -> bool:
    """Train, measure and claim one run of a sweep; one that fails is kept with its error.

    It may be called several times for the same run, at the same time, too: one result counts.

    Args:
        run: what to run.
        folder: of the sweep.
        page: write the page of the run.

    Returns:
        Whether this call's result is the one that counts.
    """
    if not (folder / "run.json").is_file():
        raise RunFolderError("out", str(folder), "the folder of the sweep, which this process cannot see")
    if is_settled(folder, run):
        return False
    part = new_part(folder, run)
    try:
        with _CAUGHT, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            task = task_from_source(run.source)
        notes = tuple(str(warning.message) for warning in caught)
        said = f": {title_of(run.settings)}" if run.settings else ""
        run_leaky(task, run.config, part, command="train", title=f"Leaky ResNet on {task.name}{said}", data=run.source,
                  notes=notes, page=page)  # fmt: skip
    except Exception as error:  # whatever one run fails with, the others go on
        if not _is_of_the_disk(error):
            return record_failure(run, folder, f"{type(error).__name__}: {error}", part)
        shutil.rmtree(part, ignore_errors=True)
        if is_settled(folder, run):  # another sweep of this folder was faster, and has removed the part
            return False
        raise error if isinstance(error, WriteError) else WriteError(str(error)) from error
    return claim(part, folder / RUNS / run.name)


def _is_of_the_disk(error: Exception) -> bool:
    """Whether an error says that nothing can be written here, which is no property of the configuration."""
    return isinstance(error, (WriteError, RunFolderError)) or (isinstance(error, OSError) and error.errno in _DISK)


def record_failure(run: SweepRun, folder: Path, error: str, part: Path | None = None) -> bool:
    """Keep a run as failed, with the reason; what it had written so far stays with it.

    Returns:
        Whether it is the one that counts.
    """
    path = new_part(folder, run) if part is None else part
    if not (path / "run.json").is_file():
        shutil.rmtree(path, ignore_errors=True)
        RunFolder.create(path, command="train", configuration={**dataclasses.asdict(run.config), "data": run.source},
                         seed=run.config.seed, device=run.config.device, dtype=run.config.dtype,
                         extra={"title": title_of(run.settings)})  # fmt: skip
    RunFolder.open(path).finish("failed", error=error[:_ERROR])
    return claim(path, folder / RUNS / run.name)


def forget(path: Path) -> None:
    """Remove a failed run, so that its place is free."""
    _remove(path, unless=lambda away: state_of(away) == "complete")


def remove_parts(folder: Path, digests: Iterable[str]) -> None:
    """Remove what killed processes left of runs that are settled; whoever still works on one works in vain."""
    settled = set(digests) & set(claimed_runs(folder))
    for part in (folder / RUNS).glob(f"{_PART}*"):
        if part.name.removeprefix(_PART)[:10] in settled:
            shutil.rmtree(part, ignore_errors=True)
