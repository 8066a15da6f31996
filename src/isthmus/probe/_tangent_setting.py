"""A model and its data, ready for derivatives of the outputs with respect to parameters."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from isthmus._errors import InputError
from isthmus.probe._batches import Batch
from isthmus.probe._guard import untouched
from isthmus.probe._losses import outputs_of
from isthmus.probe._one import Forward, MeasureOptions
from isthmus.probe._one import _opened as opened_batches
from isthmus.probe._plan import SHARE_OF_MEMORY, available_memory
from isthmus.probe._survey import explained, module_name, run_model, survey_model
from isthmus.probe._tangent_layers import TangentLayer, choose_layers, find_layers
from isthmus.probe._tensors import main_tensor, mapped

_TRIED = 3


@dataclasses.dataclass(frozen=True)
class TangentSetting:
    """A model inside `untouched`, its data in memory, and its layers.

    Attributes:
        model: the model.
        batches: the data.
        n: samples.
        outputs: outputs C.
        layers: the layers asked for.
        forward: how the model is called.
        handles: takes hooks.
        device: where the model is.
        dtype: of its outputs.
        limit: bytes that may be taken.
        notes: what was decided on the way.
    """

    model: nn.Module
    batches: list[Batch]
    n: int
    outputs: int
    layers: list[TangentLayer]
    forward: Forward | None
    handles: list[RemovableHandle]
    device: torch.device
    dtype: torch.dtype
    limit: int
    notes: list[str]

    @property
    def starts(self) -> list[int]:
        """Where each batch begins."""
        found = [0]
        for batch in self.batches:
            found.append(found[-1] + batch.size)
        return found[:-1]

    def few(self) -> Batch:
        """The first samples of the first batch."""
        return self.batches[0].first(_TRIED)

    def run(self, batch: Batch, number: int = 0) -> Tensor:
        """Outputs `(size, C)` of a batch, with a graph.

        Raises:
            InputError: outputs of another shape, without a gradient, or not finite (the first module is named).
            ModelError: the model raised an error.
        """
        try:
            with torch.enable_grad():
                out = outputs_of(run_model(self.model, batch, self.forward))
        except InputError:
            raise
        except Exception as error:
            raise explained(error, [], batch, number) from error
        check_outputs(out, batch.size)
        if out.shape[1] != self.outputs:
            raise InputError("model", f"{out.shape[1]} outputs in batch {number}", f"{self.outputs} as in the first")
        if not bool(out.isfinite().all()):
            raise InputError("model", f"outputs that are not finite in batch {number} ({self._blame(batch)})",
                             "finite numbers at every layer")  # fmt: skip
        return out

    def _blame(self, batch: Batch) -> str:
        """The first module whose values are not finite."""
        bad: list[str] = []
        names = {module: module_name(name) for name, module in self.model.named_modules()}

        def after(module: nn.Module, _args: Any, output: Any) -> None:
            tensor = main_tensor(output)[0]
            if tensor is not None and not bool(tensor.isfinite().all()):
                bad.append(names[module])

        hooks = [module.register_forward_hook(after) for module in names]
        self.handles.extend(hooks)
        try:
            with torch.no_grad():
                run_model(self.model, batch, self.forward)
        finally:
            for hook in hooks:
                hook.remove()
        return f"first after {bad[0]}" if bad else "outside of any module"

    def single(self, batch: Batch, i: int) -> Batch:
        """One sample of a batch."""

        def cut(t: Tensor) -> Tensor:
            return t[i : i + 1] if t.dim() and t.shape[0] == batch.size else t

        return dataclasses.replace(batch, args=mapped(batch.args, cut), kwargs=mapped(batch.kwargs, cut),
                                   whole=mapped(batch.whole, cut), masks=mapped(batch.masks, cut), size=1)  # fmt: skip


def check_outputs(out: Tensor, size: int) -> None:
    """Outputs are to be `(n, C)`, one row per sample, with a gradient."""
    if out.dim() != 2 or out.shape[0] != size or out.shape[1] == 0:
        raise InputError("model", f"outputs of shape {tuple(out.shape)} for {size} samples", "outputs (samples, C)",
                         "give forward=lambda model, batch: … that returns one row per sample")  # fmt: skip
    if not out.requires_grad:
        raise InputError("model", "outputs without a gradient", "outputs that depend on parameters",
                         "a forward pass under torch.no_grad() has no tangent kernel")  # fmt: skip


def rounding(t: Tensor) -> float:
    """Relative size of the rounding of products of a tensor's dtype, where it is."""
    if t.device.type != "cpu" and t.dtype == torch.float32:
        return 2.0**-10  # multiplied as TF32, perhaps
    return torch.finfo(t.dtype).eps


def agree(one: Tensor, other: Tensor, scale: float | None = None) -> bool:
    """Equal up to half the digits of the dtype, relative to the larger or to `scale`."""
    eps = rounding(one)
    size = max(float(one.detach().abs().amax()), float(other.detach().abs().amax())) if scale is None else scale
    return float((one - other).detach().abs().amax()) <= math.sqrt(eps) * size


@contextlib.contextmanager
def _differentiable(model: nn.Module) -> Generator[None]:
    """Recurrent modules of cuDNN have no backward in evaluation mode, and fused attention no second derivative.

    Inputs need no gradient here, which torch would say of every backward hook that the model has.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    off = torch.backends.cudnn.flags(enabled=False) if recurrent else contextlib.nullcontext()
    with off, sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
        yield


@contextlib.contextmanager
def tangent_setting(model: nn.Module, data: Any, options: MeasureOptions) -> Generator[TangentSetting]:
    """Inside `untouched`: the data opened, the layers found, and every sample checked to be on its own.

    Raises:
        InputError: outputs that are not `(n, C)`, samples that influence each other, no layers, unknown globs.
    """
    given = options.max_memory
    if given is not None and not given > 0:
        raise InputError("max_memory", given, "a number of bytes > 0, or None for half of what is free")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    limit = int(SHARE_OF_MEMORY * available_memory(device) if given is None else given)
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise InputError("model", "weights made under torch.inference_mode", "weights that know derivatives",
                         "make the model outside torch.inference_mode")  # fmt: skip
    with untouched(model, options.seed) as handles, _differentiable(model), torch.enable_grad():
        opened = opened_batches(model, data, options)
        batches = list(opened)
        for parameter in model.parameters():
            if parameter.is_floating_point() and parameter.is_leaf:
                parameter.requires_grad_(True)
        few = batches[0].first(_TRIED)
        survey = survey_model(model, few, handles, forward=options.forward, samples=_TRIED)
        survey.tensors.clear()
        layers = choose_layers(find_layers(model, survey), options.layers)
        out = outputs_of(run_model(model, few, options.forward))
        check_outputs(out, few.size)
        n = sum(batch.size for batch in batches)
        setting = TangentSetting(model, batches, n, out.shape[1], layers, options.forward, handles, out.device,
                                 out.dtype, limit, opened.notes)  # fmt: skip
        _check_alone(setting, setting.run(few), few)
        yield setting


def _check_alone(setting: TangentSetting, out: Tensor, few: Batch) -> None:
    if few.size < 2:
        return
    alone = row_alone(setting, few, 0)
    if alone is not None and not agree(alone, out[:1]):
        raise InputError("model", "other outputs for a sample alone than in a batch", "samples that do not influence "
                         "each other", "batch statistics have no gradient of one sample")  # fmt: skip


def row_alone(setting: TangentSetting, batch: Batch, i: int) -> Tensor | None:
    """Outputs `(1, C)` of one sample, with a graph; None where the model or the batch does not allow one alone."""
    try:
        out = outputs_of(run_model(setting.model, setting.single(batch, i), setting.forward))
    except Exception:  # noqa: BLE001 - whatever a model says to a batch of one
        return None
    return out if out.shape == (1, setting.outputs) and out.requires_grad else None
