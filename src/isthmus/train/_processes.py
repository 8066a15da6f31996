"""Processes started on this machine for one training, and what comes back from them."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import pickle
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from isthmus._errors import DivergedError, InputError, IsthmusError
from isthmus._together import ElsewhereError
from isthmus.models import LeakyResNet, whole_number
from isthmus.probe import PairTracker, track_pairs
from isthmus.train._config import FitConfig
from isthmus.train._log import EpochLog, FitResult, Samples

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

_PATIENCE = 20.0
"""Seconds that the other processes have to say what stopped them, once one has."""


@dataclasses.dataclass
class _Job:
    """What every process is told; tensors on the CPU."""

    model: LeakyResNet
    x: Tensor
    y: Tensor
    config: FitConfig
    tests: Samples | None
    checkpoint: Path | None
    checkpoint_seconds: float | int
    size: int
    threads: int
    device: str
    dtype: torch.dtype
    deterministic: bool
    folder: str


@dataclasses.dataclass
class _Done:
    """What the first process brings back."""

    model: dict[str, Tensor]
    result: FitResult
    pairs: dict[str, Any] | None


@dataclasses.dataclass
class _Failed:
    """What stopped a process."""

    error: Exception
    pairs: dict[str, Any] | None


def fit_in_processes(
    processes: int, model: LeakyResNet, x: Tensor, y: Tensor, config: FitConfig, *, tests: Samples | None,
    progress: Callable[[int, int, EpochLog | None], None] | None, checkpoint: Path | None,
    checkpoint_seconds: float | int,
) -> FitResult:  # fmt: skip
    """`fit` in processes of their own that end with it; the model comes back trained.

    Raises:
        InputError: a model that cannot be sent.
        IsthmusError: one was killed, or stopped with an error of its own.
    """
    device = model.weight.device
    with tempfile.TemporaryDirectory(prefix="isthmus-") as folder:
        job = _Job(
            model, x.cpu(), y.cpu(), config, None if tests is None else (tests[0].cpu(), tests[1].cpu()), checkpoint,
            checkpoint_seconds, processes, max(1, torch.get_num_threads() // processes), device.type,
            torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled(), folder,
        )  # fmt: skip
        done = _run(_packed(job), processes, progress, checkpoint)
    model.load_state_dict(done.model)
    return dataclasses.replace(done.result, pairs=_tracker(model, x, y, config, done.pairs))


def check_processes(processes: int, samples: int, device: torch.device) -> None:
    """Raises `InputError` for fewer than one process, or more than the samples, the GPUs or the device can have."""
    if whole_number("processes", processes) == 1:
        return
    if processes > samples:
        raise InputError("processes", processes, f"at most one for each of {samples} samples to train on")
    if device.type == "cuda" and processes > torch.cuda.device_count():
        raise InputError("processes", processes, f"at most one for each of {torch.cuda.device_count()} GPUs")
    if device.type not in ("cpu", "cuda"):
        raise InputError("processes", processes, f"1 on {device.type!r}", "several run on the CPU and on CUDA")


def _packed(job: _Job) -> bytes:
    try:
        return pickle.dumps(job)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise InputError("model", f"{error}", "a model that can be sent to other processes",
                         "define its activation at the top of a module, or train on 1 process") from None  # fmt: skip


def _tracker(
    model: LeakyResNet, x: Tensor, y: Tensor, config: FitConfig, state: dict[str, Any] | None
) -> PairTracker | None:  # fmt: skip
    """The tracker of the first process, over the samples that are here."""
    from isthmus.train._loop import to_model, training_rows

    if state is None:
        return None
    kept, _ = training_rows(len(x), config)
    tracker = track_pairs(model, x.to(model.weight)[kept], to_model(model, y)[kept], pairs=config.pairs,
                          seed=config.seed)  # fmt: skip
    tracker.load_state_dict(state)
    tracker.settle()
    return tracker


def _run(
    packed: bytes, size: int, progress: Callable[[int, int, EpochLog | None], None] | None, checkpoint: Path | None
) -> _Done:
    """Start them, listen to them until all have ended, and leave none behind."""
    context = multiprocessing.get_context("spawn")
    ears: dict[Connection, int] = {}
    started: list[BaseProcess] = []
    done: _Done | None = None
    failed: dict[int, _Failed] = {}
    until = float("inf")
    try:
        for rank in range(size):
            ear, mouth = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(rank, packed, mouth), daemon=True)
            process.start()
            mouth.close()
            started.append(process)
            ears[ear] = rank
        while ears and time.monotonic() < until:
            for ear in wait(list(ears), timeout=0.5):
                assert isinstance(ear, Connection)
                try:
                    said = pickle.loads(ear.recv_bytes())  # of a process that was started here
                except EOFError:
                    rank = ears.pop(ear)
                    started[rank].join()
                    if started[rank].exitcode and rank not in failed:
                        failed[rank] = _Failed(_killed(rank, size, started[rank].exitcode, checkpoint), None)
                        until = min(until, time.monotonic() + _PATIENCE)
                    continue
                if isinstance(said, _Done):
                    done = said
                elif isinstance(said, _Failed):
                    failed[ears[ear]] = said
                    until = min(until, time.monotonic() + _PATIENCE)
                elif progress is not None:
                    progress(*said)
    finally:
        for process in started:
            process.terminate()
            process.join()
    if failed or done is None:
        raise _cause(failed, size)
    return done


def _killed(rank: int, size: int, code: int | None, checkpoint: Path | None) -> IsthmusError:
    how = f"was killed ({signal.Signals(-code).name})" if code is not None and code < 0 else f"ended with code {code}"
    kept = f"; the last checkpoint is {checkpoint}, and the same call goes on from it" if checkpoint else ""
    return IsthmusError(f"process {rank} of {size} {how}, perhaps for want of memory{kept}; try fewer processes")


def _cause(failed: dict[int, _Failed], size: int) -> Exception:
    """What stopped the training, rather than what that led to on the other processes."""

    def order(rank: int) -> tuple[bool, bool, int]:
        error = failed[rank].error
        return isinstance(error, ElsewhereError), not isinstance(error, IsthmusError), rank

    if not failed:
        return IsthmusError(f"none of {size} processes said how the training ended")
    one = failed[min(failed, key=order)]
    if isinstance(one.error, DivergedError):
        one.error.pairs = one.pairs
    return one.error


# ── in a process ─────────────────────────────────────────────────────────────────────────────────────────────


def _work(rank: int, packed: bytes, mouth: Connection) -> None:
    """One of the processes: trains with the others, and says how that went."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one that started this ends it
    job: _Job = pickle.loads(packed)
    try:
        _train(rank, job, mouth)
    except BrokenPipeError:  # nobody is there any more
        os._exit(1)
    except Exception as error:  # noqa: BLE001 - told to the one that started this
        pairs = None
        if isinstance(error, DivergedError) and isinstance(error.pairs, PairTracker):
            pairs, error.pairs = error.pairs.state_dict() if rank == 0 else None, None
        with contextlib.suppress(BrokenPipeError):
            _say(mouth, _Failed(_sent(error), pairs))
        os._exit(1)  # at once, for the others wait for this one


def _say(mouth: Connection, said: Any) -> None:
    mouth.send_bytes(pickle.dumps(said))  # by value: `send` would leave tensors in memory that ends with this process


def _sent(error: Exception) -> Exception:
    """The error itself where it can be sent, else its words."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - whatever goes wrong in an error's own code
        return IsthmusError(f"{type(error).__name__}: {error}")
    return error


def _train(rank: int, job: _Job, mouth: Connection) -> None:
    import torch.distributed as dist

    from isthmus.train._loop import fit

    torch.set_num_threads(job.threads)
    torch.set_default_dtype(job.dtype)
    torch.use_deterministic_algorithms(job.deterministic)
    home = torch.device(job.device, rank) if job.device == "cuda" else torch.device(job.device)
    if home.type == "cuda":
        torch.cuda.set_device(home)
    dist.init_process_group("nccl" if home.type == "cuda" else "gloo", init_method=f"file://{job.folder}/meet",
                            rank=rank, world_size=job.size)  # fmt: skip
    model = job.model.to(home)
    tests: Sequence[Tensor | None] = (None, None) if job.tests is None else job.tests

    def tell(epoch: int, epochs: int, log: EpochLog | None) -> None:
        _say(mouth, (epoch, epochs, log))

    result = fit(model, job.x, job.y, job.config, x_test=tests[0], y_test=tests[1],
                 progress=tell, checkpoint=job.checkpoint,
                 checkpoint_seconds=job.checkpoint_seconds, distributed=True)  # fmt: skip
    if rank == 0:
        pairs = None if result.pairs is None else result.pairs.state_dict()
        state = {name: value.cpu().clone() for name, value in model.state_dict().items()}
        _say(mouth, _Done(state, dataclasses.replace(result, pairs=None), pairs))
    dist.destroy_process_group()
