"""`Monitor`: a model measured while it trains, for a bounded share of the training time."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Collection, Generator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import polars as pl
import torch
from rich.console import Console
from rich.markup import escape
from torch import Tensor, nn

from isthmus._errors import InputError
from isthmus._records import fresh_folder
from isthmus.models import LeakyResNet
from isthmus.probe import _monitor_schedule
from isthmus.probe._aligned import check_alignment_samples
from isthmus.probe._loading_files import LONGEST_REASON, said
from isthmus.probe._measurement import Measurement
from isthmus.probe._model import measure
from isthmus.probe._monitor_folder import COMMAND, MonitorFolder
from isthmus.probe._monitor_losses import MeanLoss
from isthmus.probe._monitor_pairs import MonitoredPairs, start_clock
from isthmus.probe._monitor_probe import fingerprint, held_probe
from isthmus.probe._monitor_scalars import Scalars, require_tensorboard
from isthmus.probe._monitor_schedule import Ledger, Schedule, check_step
from isthmus.probe._one import Forward, rank_of_process, unwrapped
from isthmus.probe._select import BLOCKS
from isthmus.report import write_page

MONITORED = (
    "observations", "numerical_rank", "stable_rank", "nuclear_rank", "participation_ratio", "effective_rank",
    "participation_ratio_centred", "cost_of_identity", "relative_move", "weight_norm_sq", "alignment", "loss",
    "bottleneck_rank",
)  # fmt: skip
"""What a `Monitor` measures unless told otherwise: one forward pass, spectra, and the alignment."""

BUDGET = 0.05
MAX_SAMPLES = 256

Observer = Callable[[int, nn.Module, Measurement], None]
"""`(step, model, measurement)`, called after every measurement; its time counts."""


class MonitorWarning(UserWarning):
    """A measurement during training failed; the training goes on."""


class Monitor:
    """Measures a model while it trains: two lines in a training loop, a run folder and a page afterwards.

    The model is measured (`measure`) when the monitor is made, at the steps of a schedule, and at the end, always on
    the same samples, which are copied when the monitor is made. A measurement leaves the model as it was: training
    with a monitor gives the same weights as without. Every measurement is written to the run folder at once.

    A measurement that is due and would take the measuring above `budget` waits until it fits. Only the first and the
    last happen whatever they cost. One that fails is recorded with its reason, warned about once, and the training
    goes on. In a distributed training only rank 0 measures.

    Args:
        model: any `torch.nn.Module`; wrappers for data parallelism and compilation are taken off.
        probe_data: samples to measure, in any form that `measure` takes.
        targets: of the loss, as for `measure`.
        loss: as for `measure`; without one (and without a tensor of targets) there is no alignment.
        forward: `forward(model, batch) → outputs`, where calling the model on a batch is not enough.
        layers: as for `measure`.
        schedule: `"log"`: steps 1, 2, 3, …, 8, 10, 12, 14, 16, 20, …, four in each doubling; a whole number: every so
            many steps; or the steps themselves.
        metrics: names of metrics; unless given the ranks, cost of identity, relative moves, loss, and the alignment
            where there are targets.
        budget: share of the training time that measuring may take, above 0 and at most 1.
        out: the run folder; a fresh one under `runs/`, if None.
        resume: go on with `out` where it holds a monitored training; make this monitor after the checkpoint is loaded.
        first_step: step at which the training begins or goes on; what was measured there or later is dropped. 0 if
            None, or the last measured step of a folder that is resumed.
        max_samples: samples of `probe_data` to use at most.
        alignment_samples: how many of them for the alignment; 0 for none.
        pairs: how many pairs of samples to track as `track_pairs` does, or which; None for none. Half of the budget is
            theirs; a record that would take more is left out, and where all would, the stride between them doubles.
        batch_size: samples per batch of data that are not batched yet.
        max_memory: bytes that all second moments may take; half of what is free, if None.
        device: where to measure; where the model is, if None.
        tensorboard: write the numbers to `tensorboard/` in the run folder, too: `metric/layer` (at the first γ₀ where
            there are several), `train/loss`, and `probe/loss` on `probe_data`.
        progress: say on stderr, at the end, where the page is.
        seed: of random states during a measurement.

    Attributes:
        observers: called as `(step, model, measurement)` after every measurement.
        path: the run folder.

    Raises:
        InputError: what cannot be used, said before anything is written: data that do not fit, a schedule that does
            not increase, a budget outside (0, 1], a folder that is not empty, or one to resume that is of another
            model or other samples.
        ModelError: the model raised an error on the data.

    Example:
        >>> import tempfile
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> x, y = torch.randn(64, 4), torch.randint(0, 2, (64,))
        >>> optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> with tempfile.TemporaryDirectory() as runs:
        ...     monitor = Monitor(net, x, targets=y, out=f"{runs}/net", progress=False)
        ...     for _ in range(4):
        ...         loss = torch.nn.functional.cross_entropy(net(x), y)
        ...         optimiser.zero_grad()
        ...         loss.backward()
        ...         optimiser.step()
        ...         _ = monitor.step(loss)
        ...     _ = monitor.finish()
        >>> monitor.steps[0], monitor.steps[-1]
        (0, 4)
    """

    def __init__(
        self,
        model: nn.Module,
        probe_data: Any,
        *,
        targets: Any = None,
        loss: Any = None,
        forward: Forward | None = None,
        layers: str | Sequence[str] = BLOCKS,
        schedule: str | int | Sequence[int] = "log",
        metrics: Collection[str] | None = None,
        budget: float | int = BUDGET,
        out: str | os.PathLike[str] | None = None,
        resume: bool = False,
        first_step: int | None = None,
        max_samples: int | None = MAX_SAMPLES,
        alignment_samples: int = 32,
        pairs: int | Sequence[Sequence[int]] | None = None,
        batch_size: int | None = None,
        max_memory: float | int | None = None,
        device: torch.device | str | None = None,
        tensorboard: bool = False,
        progress: bool = True,
        seed: int = 0,
    ) -> None:
        begun = _monitor_schedule.clock()
        self.observers: list[Observer] = []
        self._schedule, self._model, self._progress = Schedule(schedule), model, progress
        self._ledger = Ledger(budget)
        if first_step is not None:
            first_step = check_step("first_step", first_step, 0, "a whole number that is not negative")
        if resume and out is None:
            raise InputError("out", None, "the folder to go on with, for resume=True")
        bare, _ = unwrapped(model)
        check_alignment_samples(alignment_samples)
        if tensorboard:
            require_tensorboard()
        leaky = isinstance(bare, LeakyResNet) and forward is None and layers == BLOCKS
        if metrics is None and not leaky:
            metrics = MONITORED
        self._closed, self._warned, self._due = False, False, False
        self._losses = MeanLoss()
        self.path = Path(out) if out is not None else fresh_folder(COMMAND)
        self._folder: MonitorFolder | None = None
        self._pairs: MonitoredPairs | None = None
        self._scalars: Scalars | None = None
        self._wants_scalars, self._kept = tensorboard, 0
        self._at = first_step or 0
        if rank_of_process() != 0:
            return
        self._folder = MonitorFolder(self.path, resume=resume, first_step=first_step)
        self._at = self._folder.first_step
        if (self.path / "tensorboard").exists():
            self._kept = self._folder.rows.height
        self._ledger = Ledger(budget, **self._folder.before)
        samples, held_targets, n = held_probe(bare, probe_data, targets=targets, own_forward=forward is not None,
                                           max_samples=max_samples, batch_size=batch_size, seed=seed)  # fmt: skip
        self._folder.check_same(fingerprint(bare, samples, held_targets, n=n, loss=loss, layers=layers))
        if pairs is not None:
            self._pairs = MonitoredPairs(bare, samples, held_targets, pairs, folder=self._folder, ledger=self._ledger,
                                         forward=forward, layers=layers, n=n, seed=seed)  # fmt: skip
        elif self._folder.pairs_before is not None:
            raise InputError("pairs", None, "the pairs of the folder to go on with", "give pairs= as it was given then")
        self._configuration: dict[str, Any] = {
            "schedule": self._schedule.record(), "budget": self._ledger.budget, "max_samples": max_samples,
            "alignment_samples": alignment_samples,
        }  # fmt: skip
        self._options: dict[str, Any] = {
            "targets": held_targets, "loss": loss, "forward": forward, "layers": layers, "metrics": metrics,
            "max_memory": max_memory, "device": device, "seed": seed, "jacobian_samples": 0,
            "alignment_samples": alignment_samples, "progress": False,
        }  # fmt: skip
        self._samples = samples
        start = self._start_clock()
        self._ledger.start += start - begun
        found = self._measured()
        self._keep(found, start)

    @property
    def steps(self) -> list[int]:
        """Steps that have been measured, those that failed left out."""
        return [] if self._folder is None else list(self._folder.steps)

    @property
    def last_step(self) -> int:
        """The last step that was counted."""
        return self._at

    @property
    def budget(self) -> float:
        """Share of the training time that measuring may take."""
        return self._ledger.budget

    @property
    def share(self) -> float | None:
        """Time spent measuring over time spent training, so far; None before the second step."""
        return self._ledger.share

    @property
    def table(self) -> pl.DataFrame:
        """Every number so far, one per row, with the training step in the column `step`.

        Raises:
            InputError: on a process that does not measure.
        """
        return self._measuring().table

    def step(self, loss: Tensor | float | int | None = None, *, step: int | None = None) -> Measurement | None:
        """Count one step of the optimiser, and measure where that is due and within the budget.

        Args:
            loss: of this training step. At the steps of the schedule, measured or not, the mean over the steps since
                the one before is recorded; a tensor is not waited for until then.
            step: number of the step; one more than the step before, if None.

        Returns:
            What was measured now, or None.

        Raises:
            InputError: a step that does not come after the one before, or a monitor that is finished.
        """
        if self._closed:
            raise InputError("step", self._at if step is None else step, "no step after finish()",
                             "make another Monitor for another training")  # fmt: skip
        now = self._at + 1 if step is None else step
        now = check_step("step", now, self._at + 1, f"a step after {self._at} (a whole number)",
                         "call it once for each step of the optimiser")  # fmt: skip
        before, self._at = self._at, now
        if self._folder is None:
            return None
        self._ledger.stepped()
        if loss is not None:
            self._losses.add(loss)
        if self._pairs is not None:
            self._pairs.step(before, now, self._start_clock)
        reached = self._schedule.count(before, now) > 0
        fits = self._ledger.fits()
        if reached:
            self._log_mean(now)
            self._ledger.came(now, waits=not fits)
        self._due = self._due or reached
        return self._try(now) if self._due and fits else None

    def measure_now(self) -> Measurement | None:
        """Measure after the last step, whatever it costs, unless that is done; returns what was measured now."""
        if self._folder is None or self._closed or self._at in (*self._folder.steps[-1:], *self._folder.failed):
            return None
        self._ledger.caught_up(self._at)
        return self._try(self._at)

    def log_loss(self, step: int, loss: float | int, note: str = "") -> None:
        """Record a training loss of which the mean is known already; it is written with the next measurement."""
        if self._folder is not None:
            self._folder.add_loss(step, float(loss), None, note)

    def finish(self, status: str = "complete") -> Path:
        """Measure a last time, write the page, and return its path. A second call does nothing.

        Args:
            status: of the run, for the record; only a `complete` one is measured a last time.
        """
        if not self._closed and self._folder is not None:
            if status == "complete":
                if self._pairs is not None:
                    self._pairs.tracker.settle()
                self.measure_now()
            self._closed = True
            with self._guarded(f"{self.path} could not be completed"):
                self._write(status)
                if self._scalars is not None:
                    self._scalars.add(self._folder.rows)
                    self._scalars.close()
                self._warned = False  # the page is another matter
                start = _monitor_schedule.clock()
                write_page(self.path)
                self._folder.note("seconds_page", _monitor_schedule.clock() - start)
                self._say()
        self._closed = True
        return self.path / "report.html"

    def report(self) -> Path:
        """Write the page of what has been measured so far, and return its path.

        Raises:
            InputError: on a process that does not measure.
        """
        self._measuring()
        return write_page(self.path)

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        if error is None:
            self.finish()
        else:
            self.finish("interrupted" if isinstance(error, KeyboardInterrupt) else "failed")

    def _measuring(self) -> MonitorFolder:
        if self._folder is None:
            raise InputError("monitor", f"rank {rank_of_process()}", "rank 0, the only process that measures")
        return self._folder

    def _start_clock(self) -> float:
        return start_clock(self._model, self._ledger)

    def _measured(self) -> Measurement:
        """One measurement, in the precision of the weights whatever autocast surrounds the training step."""
        kind = next((p.device.type for p in self._model.parameters()), "cpu")
        with torch.autocast(kind, enabled=False):
            return measure(self._model, self._samples, **self._options)

    def _try(self, step: int) -> Measurement | None:
        """Measure in the middle of a training, which goes on whatever happens."""
        folder = self._measuring()
        start = self._start_clock()
        found: Measurement | None = None
        self._due = False
        try:
            found = self._measured()
        except Exception as error:  # noqa: BLE001 - a model that trains must not be stopped by one that looks at it
            reason = said(error, LONGEST_REASON)
            folder.fail(step, reason)
            self._warn(f"step {step} could not be measured ({reason})")
        with self._guarded(f"the measurement of step {step} could not be kept"):
            self._keep(found, start, step)
        return found

    def _keep(self, found: Measurement | None, start: float, step: int | None = None) -> None:
        folder, at = self._measuring(), self._at if step is None else step
        self._log_mean(at)
        try:
            if found is not None:
                folder.add(at, found)
                for observer in self.observers:
                    with self._guarded(f"an observer failed at step {at}"):
                        observer(at, self._model, found)
            self._write("running", _monitor_schedule.clock() - start)
            if self._wants_scalars:
                if self._scalars is None:  # not before there is a run folder
                    self._scalars = Scalars(self.path / "tensorboard", self._kept)
                self._scalars.add(folder.rows)
        finally:
            self._ledger.measured(start)

    def _log_mean(self, step: int) -> None:
        """Record the mean loss of the training steps since it was recorded last; written with the next measurement."""
        if (taken := self._losses.take()) is not None:
            mean, n = taken
            self._measuring().add_loss(step, float(mean), n, f"mean over {n} training steps")

    def _write(self, status: str, now: float = 0.0) -> None:
        """Write the folder; `now` are the seconds of the measurement that is not counted yet."""
        monitor = {**self._ledger.record(now), "last_step": self._at}
        self._measuring().write(monitor, self._configuration, status=status)

    @contextlib.contextmanager
    def _guarded(self, what: str) -> Generator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the same
            self._warn(f"{what} ({said(error, LONGEST_REASON)})")

    def _warn(self, text: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(f"{text}; the training goes on, and such a thing is said once", MonitorWarning, stacklevel=4)

    def _say(self) -> None:
        if not self._progress:
            return
        cost = "" if self.share is None else f", {self.share:.1%} of the training time"
        text = f"isthmus: {len(self.steps)} steps measured{cost}; page: {self.path / 'report.html'}"
        Console(stderr=True).print(escape(text), highlight=False, soft_wrap=True)
