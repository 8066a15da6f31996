"""Processes started on this machine for one training, and what comes back from them."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import pickle
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Generator, Sequence
from multiprocessing import resource_tracker
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
    deterministic: int
    matmul: str
    folder: str


@dataclasses.dataclass
class _Done:
    """What the first process brings back."""

    model: dict[str, Tensor]
    result: FitResult
    pairs: dict[str, Any] | None


@dataclasses.dataclass
class _Failed:
    """What stopped a process, and when by the machine's clock."""

    error: Exception
    pairs: dict[str, Any] | None = None
    when: float = dataclasses.field(default_factory=time.monotonic)


@dataclasses.dataclass
class _Warned:
    """A warning on the first process; the others give the same."""

    message: str
    category: type[Warning]
    filename: str
    lineno: int


_READY = "ready"
"""The first word of every process: it has read the code, and waits for the job."""


def fit_in_processes(
    processes: int, model: LeakyResNet, x: Tensor, y: Tensor, config: FitConfig, *, tests: Samples | None,
    progress: Callable[[int, int, EpochLog | None], None] | None, checkpoint: Path | None,
    checkpoint_seconds: float | int,
) -> FitResult:  # fmt: skip
    """`fit` in processes of their own that end with it; the model comes back trained.

    Raises:
        InputError: a model that cannot be sent, or a process that may start none.
        IsthmusError: one was killed, or stopped with an error of its own.
    """
    if multiprocessing.current_process().daemon:
        raise InputError("processes", processes, "1 inside a worker of multiprocessing, which may start no processes")
    device = model.weight.device
    with tempfile.TemporaryDirectory(prefix="isthmus-") as folder:
        job = _Job(
            model, x.cpu(), y.cpu(), config, None if tests is None else (tests[0].cpu(), tests[1].cpu()), checkpoint,
            checkpoint_seconds, processes, max(1, torch.get_num_threads() // processes), device.type,
            torch.get_default_dtype(), torch.get_deterministic_debug_mode(), torch.get_float32_matmul_precision(),
            folder,
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
        raise _not_sent(error) from None


def _not_sent(error: Exception) -> InputError:
    return InputError("model", f"{error}", "a model that can be sent to other processes",
                      "define its activation at the top of a module, or train on 1 process")  # fmt: skip


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


@contextlib.contextmanager
def _interrupts_held() -> Generator[None]:
    """Ctrl-C comes afterwards here; never to what is started in here, which would show where it was."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # which lets them through once it has started
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run(
    packed: bytes, size: int, progress: Callable[[int, int, EpochLog | None], None] | None, checkpoint: Path | None
) -> _Done:
    """Start them, listen to them until all have ended, and leave none behind."""
    context = multiprocessing.get_context("spawn")
    ears: dict[Connection, int] = {}
    started: list[BaseProcess] = []
    ready: set[int] = set()
    done: _Done | None = None
    failed: dict[int, _Failed] = {}
    until = float("inf")
    try:
        with _interrupts_held():
            for rank in range(size):
                ear, mouth = context.Pipe()
                process = context.Process(target=_work, args=(rank, mouth), daemon=True)
                process.start()
                mouth.close()
                started.append(process)
                ears[ear] = rank
        while ears and time.monotonic() < until:
            for ear in wait(list(ears), timeout=0.5):
                assert isinstance(ear, Connection)
                try:
                    said = pickle.loads(ear.recv_bytes())  # of a process that was started here
                except (EOFError, ConnectionResetError):
                    rank = ears.pop(ear)
                    started[rank].join()
                    if started[rank].exitcode and rank not in failed:
                        how = _killed if rank in ready else _not_begun
                        failed[rank] = _Failed(how(rank, size, started[rank].exitcode, checkpoint))
                        until = min(until, time.monotonic() + _PATIENCE)
                    continue
                if said == _READY:  # with the job among its arguments, one that ends before would not be noticed
                    ready.add(ears[ear])
                    with contextlib.suppress(OSError):  # its end is noticed above
                        ear.send_bytes(packed)
                elif isinstance(said, _Done):
                    done = said
                elif isinstance(said, _Failed):
                    failed[ears[ear]] = said
                    until = min(until, time.monotonic() + _PATIENCE)
                elif isinstance(said, _Warned):
                    warnings.warn_explicit(**vars(said))
                elif progress is not None:
                    progress(*said)
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.join()
    if failed or done is None:
        raise _cause(failed, size)
    return done


def _how(rank: int, size: int, code: int | None) -> str:
    how = f"was killed ({signal.Signals(-code).name})" if code is not None and code < 0 else f"ended with code {code}"
    return f"process {rank} of {size} {how}"


def _killed(rank: int, size: int, code: int | None, checkpoint: Path | None) -> IsthmusError:
    kept = f"; the last checkpoint is {checkpoint}, and the same call goes on from it" if checkpoint else ""
    return IsthmusError(f"{_how(rank, size, code)}, perhaps for want of memory{kept}; try fewer processes")


def _not_begun(rank: int, size: int, code: int | None, _: Path | None) -> IsthmusError:
    return IsthmusError(
        f"{_how(rank, size, code)} before it began (its own words are above); what trains in several processes must be "
        'in a file, under `if __name__ == "__main__":`, for every process reads the script, too'
    )


def _cause(failed: dict[int, _Failed], size: int) -> Exception:
    """What stopped the training, rather than what that led to on the other processes."""

    def order(rank: int) -> tuple[bool, bool, float | int]:
        error = failed[rank].error
        known = isinstance(error, IsthmusError)  # alike on all; any other makes more of them as its process ends
        return isinstance(error, ElsewhereError), not known, rank if known else failed[rank].when

    if not failed:
        return IsthmusError(f"none of {size} processes said how the training ended")
    one = failed[min(failed, key=order)]
    if isinstance(one.error, DivergedError):
        one.error.pairs = one.pairs
    return one.error


# ── in a process ─────────────────────────────────────────────────────────────────────────────────────────────


def _work(rank: int, mouth: Connection) -> None:
    """One of the processes: trains with the others, and says how that went."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one that started this ends it
    threading.Thread(target=_end_with_it, daemon=True).start()
    try:
        _say(mouth, _READY)
        packed = mouth.recv_bytes()
        try:
            job: _Job = pickle.loads(packed)
        except (AttributeError, ImportError) as error:  # what a notebook defines is not known here
            raise _not_sent(error) from None
        _hand_on_warnings(rank, mouth)
        _train(rank, job, mouth)
    except (BrokenPipeError, EOFError):  # nobody is there any more
        os._exit(1)
    except Exception as error:  # noqa: BLE001 - told to the one that started this
        pairs = None
        if isinstance(error, DivergedError) and isinstance(error.pairs, PairTracker):
            pairs, error.pairs = error.pairs.state_dict() if rank == 0 else None, None
        with contextlib.suppress(BrokenPipeError):
            _say(mouth, _Failed(_sent(error), pairs))
        os._exit(1)  # at once, for the others wait for this one


def _end_with_it() -> None:
    """End as soon as the one that started this is gone, however it went."""
    starter = multiprocessing.parent_process()
    assert starter is not None
    starter.join()
    os._exit(1)


def _hand_on_warnings(rank: int, mouth: Connection) -> None:
    """Warnings come to the one that started this, once."""

    def show(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any) -> None:
        known = category if category.__module__ != "__mp_main__" else UserWarning
        _say(mouth, _Warned(str(message), known, filename, lineno))

    if rank:
        warnings.simplefilter("ignore")
    warnings.showwarning = show


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
    torch.set_deterministic_debug_mode(job.deterministic)
    torch.set_float32_matmul_precision(job.matmul)
    home = torch.device(job.device, rank) if job.device == "cuda" else torch.device(job.device)
    if home.type == "cuda":
        torch.cuda.set_device(home)
    store = dist.FileStore(f"{job.folder}/meet", job.size)  # pyright: ignore[reportPrivateImportUsage]
    dist.init_process_group("nccl" if home.type == "cuda" else "gloo", store=store, rank=rank, world_size=job.size)
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
