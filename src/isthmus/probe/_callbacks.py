"""Callbacks that put a `Monitor` into the training loops of others: Hugging Face's Trainer, and Lightning."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn
from torch.utils.data import DataLoader

from isthmus._errors import InputError, IsthmusError, RunFolderError, near_name_hint
from isthmus.probe._batches import Signature
from isthmus.probe._guard import untouched
from isthmus.probe._loading_files import LONGEST_REASON, said
from isthmus.probe._monitor import BUDGET, MAX_SAMPLES, Monitor
from isthmus.probe._monitor_losses import MeanLoss
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
        self._losses = MeanLoss()
        self._at_exit: weakref.finalize[..., _Watch] | None = None

    def begin(self, model: nn.Module, step: int, loader: Any = None, names: Sequence[str] | None = None) -> None:
        """Begin at a step; one that is not 0 goes on with what is in the folder.

        Args:
            model: the model that trains.
            step: where the training begins.
            loader: of the training, which lends its collator.
            names: keys of an item that the collator is given, where the trainer drops the others; None for all.
        """
        self.finish("interrupted")  # a training before this one that has not come to its end
        bare, _ = unwrapped(model)
        out: str | os.PathLike[str] | None = self.options.get("out")
        there = out is not None and (Path(out) / "run.json").exists()
        if there and step == 0:
            raise RunFolderError(
                "out", str(out), "a folder where nothing is yet, for a training that begins at step 0",
                "make another callback with another out, or resume the training from a checkpoint",
            )  # fmt: skip
        with untouched(bare, self.options.get("seed", 0)):  # a collator may draw random numbers
            probe_data = self._collated(getattr(loader, "collate_fn", None), names)
        self._losses = MeanLoss()
        self.monitor = Monitor(model, probe_data, **self.options, first_step=step, resume=there)
        if self._at_exit is not None:
            self._at_exit.detach()
        self._at_exit = weakref.finalize(self, _break_off, self.monitor, os.getpid())

    def _collated(self, collate: Any, names: Sequence[str] | None) -> Any:
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
        wanted = [name for name in cast("Mapping[str, Any]", first) if names is None or name in names]

        def item(i: int) -> Any:
            whole: Any = items[i]
            return whole if names is None else {name: value for name, value in whole.items() if name in wanted}

        try:
            return [collate([item(i) for i in range(at, min(at + size, most))]) for at in range(0, most, size)]
        except Exception as error:
            reason = said(error, LONGEST_REASON).rstrip(".")
            raise InputError("probe_data", f"items with the keys {', '.join(map(str, wanted))}",
                             f"items that the trainer's collator can put together ({reason})",
                             "give the data set as the trainer takes it, or batches: a mapping of tensors, or a list "
                             "of them") from error  # fmt: skip

    def batch(self, loss: Tensor) -> None:
        """The mean loss of one batch, which is not waited for; a step of the optimiser may take several."""
        if self.monitor is not None and loss.numel() == 1:
            self._losses.add(loss.reshape(()))

    def step(self, step: int) -> None:
        """Count up to a step of the optimiser, unless it has been counted."""
        if self.monitor is not None and step > self.monitor.last_step:
            taken = self._losses.take()
            self.monitor.step(None if taken is None else taken[0], step=step)

    def finish(self, status: str = "complete") -> None:
        """Finish the monitor, if there is one."""
        if self.monitor is not None:
            self.monitor.finish(status)


def _break_off(monitor: Monitor, process: int) -> None:
    """Close what a training that broke off left open; a copy of its process does not, nor is a lost folder made."""
    if os.getpid() == process and (monitor.path / "run.json").exists():
        monitor.finish("interrupted")


def _kept_by_the_trainer(model: nn.Module, args: Any) -> Sequence[str] | None:
    """The columns that the Trainer leaves in a data set: arguments of `forward`, and labels; None for all."""
    bare, _ = unwrapped(model)
    base = getattr(bare, "get_base_model", None)  # of a PEFT model
    known = Signature.of(bare if base is None else base()).names
    if not args.remove_unused_columns or not known:
        return None
    return [*known, "label", "labels", "label_ids", *(args.label_names or ())]


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
                model = kwargs["model"]
                names = _kept_by_the_trainer(model, args)
                watch.begin(model, state.global_step, kwargs.get("train_dataloader"), names)

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
        if isinstance(loss, Tensor):
            watch.batch(loss.detach().float() * trainer.accumulate_grad_batches)  # Lightning has divided by that
        watch.step(trainer.global_step)

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
