"""The runs of a sweep on this machine: each in a process of its own, so that one that is killed costs only itself."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from isthmus._errors import IsthmusError, WriteError
from isthmus.experiments._sweep_folder import execute, has_begun, is_settled, record_failure
from isthmus.experiments._sweep_settings import SweepRun

IMPORTED_ONCE = ["isthmus.experiments", "lightning_fabric", "altair", "jinja2", "vl_convert"]
_RAISED = 1
_DISK_FULL = 73
_ALONE = 75


def _context() -> Any:
    """Fresh processes. Where there is a fork server it imports torch once, and a process starts in milliseconds."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED_ONCE)
    return context


def _end_with_the_sweep() -> None:
    """End this process when the one that started it is gone, killed without a word: nobody waits for its run."""
    sweep = multiprocessing.parent_process()
    if sweep is not None:
        multiprocessing.connection.wait([sweep.sentinel])
        os._exit(_ALONE)


def _one(run: SweepRun, folder: Path, page: bool) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the sweep hears it too, and ends its processes
    threading.Thread(target=_end_with_the_sweep, daemon=True).start()
    torch.set_num_threads(1)
    try:
        execute(run, folder, page=page)
    except WriteError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(_DISK_FULL)


def _why(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name if -code in [*signal.Signals] else str(-code)
        said = f"its process was killed ({name})"
        return f"{said}, perhaps for want of memory" if -code == signal.SIGKILL else said
    return f"its process ended with exit code {code}"


def run_here(
    runs: Sequence[SweepRun], folder: Path, *, jobs: int, page: bool, settled: Callable[[SweepRun], None]
) -> None:
    """Settle every run, `jobs` at a time, each in a process with one thread.

    Args:
        runs: not settled yet.
        folder: of the sweep.
        jobs: processes at the same time.
        page: write the page of each run.
        settled: called when one is complete or failed.

    Raises:
        WriteError: the disk is full.
        IsthmusError: a process could not begin (a script that does not guard its main part, say).
    """
    context, waiting = _context(), list(runs)
    running: dict[BaseProcess, SweepRun] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.pop(0)
                process: BaseProcess = context.Process(target=_one, args=(run, folder, page), name=run.name)
                process.start()
                running[process] = run
            over = multiprocessing.connection.wait([process.sentinel for process in running])
            for process in [process for process in running if process.sentinel in over]:
                process.join()
                run, code, pid = running.pop(process), process.exitcode, process.pid
                process.close()
                if code == _DISK_FULL:
                    raise WriteError(f"{folder} could not be written; make room, and the same command goes on")
                if code == _RAISED and not has_begun(folder, run, pid) and not is_settled(folder, run):
                    raise IsthmusError("the process of a run ended before the run began, for the reason above; in a "
                                       'script, call run_sweep below `if __name__ == "__main__":`')  # fmt: skip
                if not is_settled(folder, run):
                    record_failure(run, folder, _why(code))
                settled(run)
    finally:
        for process in running:
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
            process.join()
            process.close()
