"""Callbacks that put a `Monitor` into the training loops of others: Hugging Face's Trainer, and Lightning."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn
from torch.utils.data import DataLoader

from isthmus._errors import InputError, IsthmusError, near_name_hint
from isthmus.probe._guard import untouched
from isthmus.probe._monitor import BUDGET, MAX_SAMPLES, Monitor
from isthmus.probe._monitor_schedule import Ledger, Schedule
from isthmus.probe._one import unwrapped

if TYPE_CHECKING:
    import transformers

_LIGHTNINGS = ("lightning.pytorch", "pytorch_lightning")
_BATCH = 32
_BY_THE_CALLBACK = ("model", "probe_data", "resume", "first_step")


class _Watch:
    """The monitor of one training, made when that begins; nothing on processes that do not measure."""

    def __init__(self, probe_data: Any, options: Mapping[str, Any]) -> None:
        known = [name for name in inspect.signature(Monitor).parameters if name not in _BY_THE_CALLBACK]
        for name in options:
            if name not in known:
                raise InputError(name, options[name], "an option of Monitor", near_name_hint(name, known))
        Schedule(options.get("schedule", "log"))  # said when the callback is made, not when the training begins
        Ledger(options.get("budget", BUDGET))
        self.probe_data, self.options = probe_data, dict(options)
        self.monitor: Monitor | None = None

    def begin(self, model: nn.Module, step: int, loader: Any = None) -> None:
        """Begin at a step; one that is not 0 goes on with what is in the folder. The loader lends its collator."""
        bare, _ = unwrapped(model)
        with untouched(bare, self.options.get("seed", 0)):  # a collator may draw random numbers
            probe_data = self._collated(getattr(loader, "collate_fn", None))
        out: str | os.PathLike[str] | None = self.options.get("out")
        goes_on = step > 0 and out is not None and (Path(out) / "run.json").exists()
        self.monitor = Monitor(model, probe_data, **self.options, first_step=step, resume=goes_on)

    def _collated(self, collate: Any) -> Any:
        """The probe data; of a data set whose items are mappings batches that the trainer's collator makes."""
        data = self.probe_data
        batches = isinstance(data, (Tensor, Mapping, tuple, DataLoader))
        if batches or collate is None or not hasattr(data, "__getitem__") or not hasattr(data, "__len__"):
            return data
        items = cast("Sequence[Any]", data)
        first: Any = items[0] if len(items) else None
        if not isinstance(first, Mapping):
            return data
        if isinstance(data, list) and all(isinstance(value, Tensor) and value.dim() > 1 for value in first.values()):
            return data  # batches already
        size: int = self.options.get("batch_size") or _BATCH
        most = min(len(items), self.options.get("max_samples", MAX_SAMPLES) or len(items))
        return [collate([items[i] for i in range(at, min(at + size, most))]) for at in range(0, most, size)]

    def step(self, step: int, loss: Any = None) -> None:
        """Count up to a step of the optimiser, unless it has been counted."""
        if self.monitor is not None and step > self.monitor.last_step:
            one = isinstance(loss, Tensor) and loss.numel() == 1
            self.monitor.step(loss if one else None, step=step)

    def finish(self, status: str = "complete") -> None:
        """Finish the monitor, if there is one."""
        if self.monitor is not None:
            self.monitor.finish(status)


def _needs(extra: str, package: str, error: ImportError) -> IsthmusError:
    return IsthmusError(f"this callback needs {package} ({error}): pip install 'isthmus[{extra}]'")


def trainer_callback(probe_data: Any, **options: Any) -> transformers.TrainerCallback:
    """A callback for the Trainer of Hugging Face that measures the model while it trains.

    `Trainer(..., callbacks=[trainer_callback(probe_data, out="runs/bert")])` is all there is to it. Steps are the
    trainer's `global_step`; a training that resumes from a checkpoint goes on in the same folder. Only the main process
    measures. The page is written when the training ends.

    Args:
        probe_data: as for `Monitor`: a batch (a mapping of tensors), a list of batches, or a loader; or a data set as
            the trainer takes it, whose first `max_samples` items are put together by the trainer's own collator.
        options: those of `Monitor`, but for `resume` and `first_step`, which the trainer decides.

    Returns:
        A `transformers.TrainerCallback`; its attribute `monitor` is the `Monitor`, once training has begun.

    Raises:
        InputError: an option that `Monitor` does not have.
        IsthmusError: transformers is not installed.
    """
    try:
        from transformers import TrainerCallback
    except ImportError as error:
        raise _needs("hf", "transformers", error) from error

    watch = _Watch(probe_data, options)

    class MonitorCallback(TrainerCallback):
        @property
        def monitor(self) -> Monitor | None:
            return watch.monitor

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.is_world_process_zero:
                watch.begin(kwargs["model"], state.global_step, kwargs.get("train_dataloader"))

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            watch.step(state.global_step)
            last = control.should_training_stop or (0 < state.max_steps <= state.global_step)
            if last and watch.monitor is not None:
                watch.monitor.measure_now()  # before the trainer loads the best model in place of the last

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            logged = kwargs.get("logs") or {}
            if watch.monitor is not None and "loss" in logged:
                watch.monitor.log_loss(state.global_step, float(logged["loss"]), "as the trainer logs it")

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            watch.finish()

    return MonitorCallback()


def lightning_callback(probe_data: Any, **options: Any) -> Any:
    """A callback for the Trainer of Lightning that measures the model while it trains.

    `Trainer(..., callbacks=[lightning_callback(probe_data, out="runs/net")])` is all there is to it. The module is
    measured by its `forward`; where it has none, give `forward=lambda module, batch: module.net(batch)`. Steps are the
    trainer's `global_step`; a training that resumes from a checkpoint goes on in the same folder. Only the main
    process measures. The page is written when the training ends.

    Args:
        probe_data: as for `Monitor`.
        options: those of `Monitor`, but for `resume` and `first_step`, which the trainer decides.

    Returns:
        A `Callback` of `lightning.pytorch`, of `pytorch_lightning`, or of both, whichever is imported; its attribute
        `monitor` is the `Monitor`, once training has begun.

    Raises:
        InputError: an option that `Monitor` does not have.
        IsthmusError: Lightning is not installed.
    """
    names = [name for name in _LIGHTNINGS if sys.modules.get(name) is not None]
    try:
        names = names or [name for name in _LIGHTNINGS if _is_there(name)][:1] or list(_LIGHTNINGS[:1])
        modules = [importlib.import_module(name) for name in names]
    except ImportError as error:
        raise _needs("lightning", "lightning", error) from error
    watch = _Watch(probe_data, options)

    def on_train_start(self: Any, trainer: Any, pl_module: Any) -> None:
        if trainer.is_global_zero:
            watch.begin(pl_module, trainer.global_step)

    def on_train_batch_end(
        self: Any, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:  # fmt: skip
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        watch.step(trainer.global_step, loss)

    def on_train_end(self: Any, trainer: Any, pl_module: Any) -> None:
        watch.finish()

    def on_exception(self: Any, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        watch.finish("interrupted" if isinstance(exception, KeyboardInterrupt) else "failed")

    def reduce(self: Any) -> tuple[Any, ...]:  # a class made here cannot be pickled, which some launchers do
        return _lightning_again, (probe_data, options)

    hooks = {
        "on_train_start": on_train_start, "on_train_batch_end": on_train_batch_end, "on_train_end": on_train_end,
        "on_exception": on_exception, "__reduce__": reduce, "monitor": property(lambda self: watch.monitor),
    }  # fmt: skip
    bases = tuple(dict.fromkeys(module.Callback for module in modules))
    return type("MonitorCallback", bases, hooks)()


def _lightning_again(probe_data: Any, options: dict[str, Any]) -> Any:
    return lightning_callback(probe_data, **options)


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
