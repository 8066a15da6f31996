"""Trainings that do not depend on each other, several at a time, each kept as soon as it is done."""

from __future__ import annotations

import concurrent.futures
import concurrent.futures.process
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from isthmus._errors import DivergedError, InputError, IsthmusError
from isthmus.experiments._kept import is_complete

T = TypeVar("T")

Progress = Callable[[int, int, str], None]
"""Called as `progress(networks done, networks in all, name of the one just done)`."""


def check_jobs(jobs: int) -> None:
    """Raises `InputError` for fewer than one process."""
    if jobs < 1:
        raise InputError("jobs", jobs, "at least 1 process")


def train_missing(
    items: Mapping[str, T],
    train: Callable[[T, Path], None],
    folder: Path,
    *,
    after: Mapping[str, str] | None = None,
    jobs: int = 1,
    progress: Progress | None = None,
) -> None:
    """Train those that are not in `folder` yet, by name.

    With `jobs > 1` each trains in a process of its own with its share of the threads.

    Args:
        items: what to train, by the name of its folder; pickled where there are several processes.
        train: makes `folder / name` complete, from nothing or from what a killed process left.
        folder: where they are kept.
        after: those that need another one of them first, and which.
        jobs: processes at the same time.
        progress: called when one is done.

    Raises:
        InputError: fewer than 1 job.
        DivergedError: some could not be trained; the others are kept.
    """
    check_jobs(jobs)
    folder.mkdir(parents=True, exist_ok=True)
    needs = {} if after is None else {name: first for name, first in after.items() if name in items}
    missing = {name: item for name, item in items.items() if not is_complete(folder / name)}
    done, failed = len(items) - len(missing), dict[str, str]()

    def tell(name: str) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, len(items), name)

    def ready(waiting: Sequence[str]) -> list[str]:
        return [name for name in waiting if needs.get(name) not in missing or needs[name] in finished]

    if progress is not None:
        progress(done, len(items), "")
    finished: set[str] = set()
    waiting = list(missing)

    def settle(name: str, error: IsthmusError | None) -> None:
        finished.add(name)
        tell(name)
        if error is None:
            return
        failed[name] = str(error)
        for later in [n for n in waiting if needs.get(n) == name]:
            waiting.remove(later)
            settle(later, IsthmusError(f"{name}, which it starts from, could not be trained"))

    if jobs == 1 or len(missing) < 2:
        while waiting:
            name = ready(waiting)[0]
            waiting.remove(name)
            try:
                train(missing[name], folder)
                settle(name, None)
            except IsthmusError as error:
                settle(name, error)
    else:
        threads = max(1, torch.get_num_threads() // jobs)
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(jobs, context, initializer=torch.set_num_threads,
                                                    initargs=(threads,)) as pool:  # fmt: skip
            running: dict[concurrent.futures.Future[None], str] = {}
            try:
                while waiting or running:
                    for name in ready(waiting)[: jobs - len(running)]:
                        waiting.remove(name)
                        running[pool.submit(train, missing[name], folder)] = name
                    over, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
                    for future in over:
                        name = running.pop(future)
                        try:
                            future.result()
                            settle(name, None)
                        except IsthmusError as error:
                            settle(name, error)
            except concurrent.futures.process.BrokenProcessPool:
                raise IsthmusError(f"a training process was killed from outside, perhaps for want of memory; finished "
                                   f"networks are kept in {folder}, and the same command goes on: try fewer jobs "
                                   f"(these were {jobs})") from None  # fmt: skip
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    if failed:
        first = next(iter(failed))
        raise DivergedError(f"{len(failed)} of {len(items)} networks could not be trained; the first is {first}: "
                            f"{failed[first]}; the others are kept in {folder}, and the same command tries "
                            "these again")  # fmt: skip
