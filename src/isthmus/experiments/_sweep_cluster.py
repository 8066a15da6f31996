"""The runs of a sweep on a cluster: the same tasks, handed to a Dask scheduler that somebody has started."""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import isthmus
from isthmus._errors import InputError, IsthmusError, WriteError
from isthmus.experiments._sweep_folder import execute, is_settled, record_failure
from isthmus.experiments._sweep_settings import SweepRun

CONNECT_SECONDS = 5
WORKER_SECONDS = 30


@contextmanager
def connected(address: str) -> Generator[Any]:
    """A client of a scheduler.

    Raises:
        InputError: `distributed` is not installed, or no scheduler answers at `address`.
    """
    try:
        from distributed import Client
    except ImportError:
        raise InputError("scheduler", address, "the package distributed, which is not installed",
                         'install it with `pip install "isthmus[dask]"`') from None  # fmt: skip
    levels = {name: logging.getLogger(name).level for name in ("distributed", "distributed.client")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what matters is said once, by us
    try:
        client: Any = Client(address, timeout=f"{CONNECT_SECONDS}s", set_as_default=False)
    except Exception as error:  # noqa: BLE001 - every transport has its own way to say so
        _set_levels(levels)
        expected = f"the address of a Dask scheduler that answers within {CONNECT_SECONDS} s"
        hint = f"start one with `dask scheduler`, and give the address that it prints ({error})"
        raise InputError("scheduler", address, expected, hint) from None
    try:
        yield client
    finally:
        with contextlib.suppress(Exception):
            client.close(timeout=CONNECT_SECONDS)
        _set_levels(levels)


def _set_levels(levels: Mapping[str, int]) -> None:
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def _sees(token: str, text: str, data: Sequence[str]) -> tuple[str, bool, list[str]]:
    """Run by each worker: its version, whether it sees a file as this process wrote it, and the data it misses."""
    file = Path(token)
    sees = file.is_file() and file.read_text(encoding="utf-8") == text
    return isthmus.__version__, sees, [name for name in data if not Path(name).is_file()]


def check_workers(client: Any, address: str, folder: Path, data: Sequence[str] = ()) -> None:
    """Wait for a worker, and see that all have this version of Isthmus and see the place of `folder`, and `data`.

    Nothing stays there.

    Raises:
        InputError: no worker comes, one cannot import Isthmus or has another one, or does not see the folder or data.
        WriteError: the disk is full.
    """
    try:
        client.wait_for_workers(1, timeout=WORKER_SECONDS)
    except TimeoutError:
        expected = f"a scheduler with at least one worker (none came in {WORKER_SECONDS} s)"
        raise InputError("scheduler", address, expected, f"start some with `dask worker {address}`") from None
    parent = folder
    while not parent.is_dir():
        parent = parent.parent
    text = uuid.uuid4().hex
    token = parent / f".isthmus-{text[:12]}"
    try:
        token.write_text(text, encoding="utf-8")
    except OSError as error:
        raise WriteError(f"{token} could not be written ({error}); make room and try again") from error
    try:
        seen: dict[str, tuple[str, bool, list[str]]] = client.run(_sees, str(token), text, list(data))
    except Exception as error:  # noqa: BLE001 - a worker raises whatever it likes
        raise InputError("scheduler", address, "workers that can import the same isthmus as this command",
                         f"install it in their environment ({type(error).__name__}: {error})") from None  # fmt: skip
    finally:
        token.unlink(missing_ok=True)
    for worker, (version, _, _) in seen.items():
        if version != isthmus.__version__:
            raise InputError("scheduler", address, f"workers with isthmus {isthmus.__version__}, as this command has "
                             f"({worker} has {version})", "install the same version everywhere")  # fmt: skip
    for worker, (_, _, missing) in seen.items():
        if missing:
            raise InputError("data", missing[0], f"a file that every worker sees under the same path ({worker} does "
                             "not)", "choose one on a disk that all machines share")  # fmt: skip
    blind = [worker for worker, (_, sees, _) in seen.items() if not sees]
    if blind:
        raise InputError("out", str(folder), f"a folder that every worker sees ({len(blind)} of {len(seen)} do not, "
                         f"{blind[0]} first)", "choose one on a disk that all machines share")  # fmt: skip


def _task(run: SweepRun, folder: str, page: bool) -> bool:
    return execute(run, Path(folder), page=page)


def run_on_cluster(
    client: Any, runs: Sequence[SweepRun], folder: Path, *, page: bool, settled: Callable[[SweepRun], None]
) -> None:
    """Settle every run as a task of a Dask scheduler.

    The scheduler gives the run of a lost worker to another one, and may well have a run executed twice: the first
    result claims the run's place in the folder, and the other one is thrown away.

    Args:
        client: of the scheduler.
        runs: not settled yet.
        folder: of the sweep, seen by all workers.
        page: write the page of each run.
        settled: called when one is complete or failed.

    Raises:
        WriteError: the disk is full.
        IsthmusError: the scheduler was lost.
    """
    from distributed import as_completed

    sweep = uuid.uuid4().hex[:8]  # so that a scheduler that has seen this run before does not answer from memory
    tasks: dict[Any, SweepRun] = {
        client.submit(_task, run, str(folder), page, key=f"isthmus-{run.digest}-{sweep}", pure=False): run
        for run in runs
    }
    try:
        for future in as_completed(list(tasks), loop=client.loop):
            run = tasks[future]
            if future.status == "cancelled":
                raise IsthmusError(f"the scheduler was lost; finished runs are kept in {folder}, and the same command "
                                   "goes on")  # fmt: skip
            error = future.exception() if future.status == "error" else None
            if isinstance(error, WriteError):
                raise error
            if error is not None and not is_settled(folder, run):
                record_failure(run, folder, f"{type(error).__name__}: {error}")
            settled(run)
    finally:
        client.cancel([future for future in tasks if not future.done()])
