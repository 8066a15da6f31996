"""One small forward pass that finds out what a model does: which modules run, in what order, on which tensors."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from isthmus._errors import InputError, IsthmusError
from isthmus.probe._batches import Batch
from isthmus.probe._tensors import main_tensor, mapped, tensors_in

SURVEY_SAMPLES = 2
MOST_CALLS = 32
"""A module called more often in one pass (the cell of a recurrent loop) has its calls pooled into one row."""

_CHANNELS_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.modules.upsampling.Upsample,
    nn.PixelShuffle,
)


class ModelError(IsthmusError):
    """The user's model raised an error of its own; it is the cause of this one."""


@dataclasses.dataclass(eq=False)
class TensorUse:
    """One tensor as one module saw it. Two uses are of the same values if their `key`s are equal."""

    key: tuple[int, int]
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclasses.dataclass(eq=False)
class Call:
    """One call of one module in a pass.

    Attributes:
        name: qualified name of the module; `(model)` for the whole.
        number: which call of this module in the pass, from 0.
        start, end: order in which calls began and ended.
        module: the module.
        depth: how many modules it is called inside of.
        input, output: the first usable tensor that it took and gave, or None.
        why: why its output cannot be measured, if so.
        tensors: number of tensors in its output.
        mutates: whether it changes its input in place.
        dimension: where the features of the output stand: −1, or 1 for channels first.
        input_dimension: the same for the input.
    """

    name: str
    number: int
    start: int
    end: int
    module: nn.Module
    depth: int
    input: TensorUse | None = None
    output: TensorUse | None = None
    why: str = ""
    tensors: int = 0
    mutates: bool = False
    dimension: int = -1
    input_dimension: int = -1

    @property
    def width(self) -> int:
        """Number of features of the output."""
        assert self.output is not None
        return _width(self.output.shape, self.dimension)


def _width(shape: tuple[int, ...], dimension: int) -> int:
    if len(shape) == 1:
        return 1
    return shape[1] if dimension == 1 else shape[-1]


@dataclasses.dataclass(frozen=True)
class Survey:
    """What a small pass showed.

    Attributes:
        calls: every call of every module, in the order in which they ended.
        modules: every module of the model by name, called or not.
        samples: samples in the pass.
        tensors: every tensor that a call took or gave, by its key.
    """

    calls: tuple[Call, ...]
    modules: Mapping[str, nn.Module]
    samples: int
    tensors: dict[tuple[int, int], Tensor]

    def reads(self, earlier: TensorUse, later: TensorUse) -> bool:
        """Whether a tensor was computed from an earlier one (True where the pass kept no graph to tell by)."""
        one, other = self.tensors[earlier.key], self.tensors[later.key]
        if earlier.key == later.key or not one.requires_grad:
            return True
        if not other.requires_grad:  # the data themselves, which a later branch may read, or what was cut off
            return False
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # backward hooks of the user's own may say that no input has a gradient
                found: Any = torch.autograd.grad(other.sum(), one, retain_graph=True, allow_unused=True)[0]
        except RuntimeError:  # a graph that was cut or changed in place cannot tell
            return True
        return found is not None

    def calls_of(self, name: str) -> list[Call]:
        """The calls of one module, in order."""
        return [call for call in self.calls if call.name == name]

    def why_not_called(self, name: str) -> str:
        """Why a module has no call."""
        children = [child for child in self.modules if child.startswith(f"{name}.")]
        if any(self.calls_of(child) for child in children):
            return "a container: it is never called itself, its parts are"
        return "never called in a forward pass (unused, or its parent uses its weights directly)"


def module_name(name: str) -> str:
    """Name as shown: the whole model has one, too."""
    return name or "(model)"


def run_model(model: nn.Module, batch: Batch, forward: Callable[[nn.Module, Any], Any] | None) -> Any:
    """Call the model, by the user's `forward` if there is one, on a copy of a batch (it may change it in place)."""
    if forward is not None:
        return forward(model, mapped(batch.whole, torch.clone))
    return model(*mapped(batch.args, torch.clone), **mapped(batch.kwargs, torch.clone))


def survey_model(
    model: nn.Module,
    batch: Batch,
    handles: list[RemovableHandle],
    *,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    samples: int = SURVEY_SAMPLES,
    number: int = 0,
) -> Survey:
    """Run the first samples of a batch through the model with a hook on every module (removed again at the end).

    Args:
        model: the model, in evaluation mode inside `untouched`.
        batch: a batch.
        handles: list of hook handles to be removed if this is interrupted.
        forward: how the model is called on a batch; None for by position and name.
        samples: how many of its samples are used.
        number: number of the batch, for messages.

    Raises:
        InputError: data that does not fit the module they meet first.
        ModelError: the model raised an error of another kind.
    """
    few = batch.first(samples)
    names = {module: module_name(name) for name, module in model.named_modules()}
    calls: list[Call] = []
    running: list[Call] = []
    counts: dict[str, int] = {}
    clock = itertools.count()
    alive: dict[tuple[int, int], Tensor] = {}
    dims: dict[tuple[int, int], int] = {}

    def use(tensor: Tensor | None) -> TensorUse | None:
        if tensor is None:
            return None
        key = (id(tensor), tensor._version)
        alive[key] = tensor  # kept, so that no other tensor gets its identity
        return TensorUse(key, tuple(tensor.shape), tensor.dtype)

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        name = names[module]
        call = Call(name, counts.get(name, 0), next(clock), -1, module, len(running))
        counts[name] = call.number + 1
        call.input = use(main_tensor((args, kwargs))[0])
        running.append(call)

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        call = running.pop()
        tensor, call.why = main_tensor(output)
        call.output, call.end, call.tensors = use(tensor), next(clock), sum(1 for _ in tensors_in(output))
        taken = main_tensor((args, kwargs))[0]
        call.mutates = call.input is not None and taken is not None and taken._version != call.input.key[1]
        if call.input is not None:
            known, sure = dims.get(call.input.key), _layout_taken(module, call.input.shape)
            if sure is not None and known not in (None, sure):
                for giver in calls:  # whoever gave it did not say; whoever takes it knows
                    if giver.output is not None and giver.output.key == call.input.key:
                        giver.dimension = sure
            call.input_dimension = sure or known or _input_dimension(call, calls)
            dims[call.input.key] = call.input_dimension
        if call.output is not None:
            call.dimension = dims.setdefault(call.output.key, _feature_dimension(call, calls))
        calls.append(call)

    mine = [m.register_forward_pre_hook(before, with_kwargs=True) for m in names]
    mine += [m.register_forward_hook(after, with_kwargs=True) for m in names]
    handles.extend(mine)
    try:
        with torch.enable_grad():
            run_model(model, few, forward)
    except Exception as error:
        raise explained(error, running, few, number) from error
    finally:
        for handle in mine:
            handle.remove()
    named = {module_name(name): module for name, module in model.named_modules()}
    return Survey(tuple(calls), named, few.size, alive)


def explained(error: Exception, running: list[Call], batch: Batch, number: int = 0) -> Exception:
    """An error of the model, with the module and the shapes in it."""
    if isinstance(error, IsthmusError):
        return error
    text = " ".join(str(error).split())[:300] or type(error).__name__
    given = ", ".join(str(tuple(t.shape)) for t in tensors_in((batch.args, batch.kwargs)))
    if not running:
        return ModelError(f"the model raised {type(error).__name__} on batch {number} (inputs {given}): {text}")
    call = running[-1]
    met = f", which met {call.input.shape}" if call.input else ""
    where = f"{call.name}, {str(call.module).splitlines()[0][:100].rstrip('(')}{met}"
    if isinstance(error, (RuntimeError, ValueError, IndexError, TypeError)) and _is_misfit(error, text):
        return InputError("data", f"inputs of shape {given}", f"what {where}, accepts ({text})",
                          "reshape the data, or give forward=lambda model, batch: …")  # fmt: skip
    return ModelError(f"the model raised {type(error).__name__} in {where}, on batch {number}: {text}")


_MISFIT = ("shape", "size", "dimension", "expected", "channels", "index out of range", "missing", "argument", "dtype")


def _is_misfit(error: Exception, text: str) -> bool:
    return isinstance(error, (TypeError, IndexError)) or any(word in text.lower() for word in _MISFIT)


def _layout_taken(module: nn.Module, shape: tuple[int, ...]) -> int | None:
    """The layout that a module of torch takes its input to have, where its class says so."""
    if len(shape) > 2 and isinstance(module, _CHANNELS_FIRST):
        return 1
    return -1 if isinstance(module, (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.MultiheadAttention, nn.RNNBase)) else None


def _inside(call: Call, earlier: list[Call]) -> list[Call]:
    return [c for c in earlier if c.start > call.start]


def _seen(shape: tuple[int, ...], earlier: list[Call]) -> int | None:
    """Layout of the last output of this shape."""
    return next((c.dimension for c in reversed(earlier) if c.output is not None and c.output.shape == shape), None)


def _input_dimension(call: Call, earlier: list[Call]) -> int:
    """Where the features stand in an input that no call gave."""
    assert call.input is not None
    shape = call.input.shape
    if len(shape) <= 2:
        return -1
    if isinstance(call.module, _CHANNELS_FIRST):
        return 1
    for part in sorted(_inside(call, earlier), key=lambda c: c.start):
        if part.input is not None and part.input.shape == shape:
            return part.input_dimension
    return _seen(shape, [c for c in earlier if c.end < call.start]) or -1


def _feature_dimension(call: Call, earlier: list[Call]) -> int:
    """Where the features stand in an output that no call gave before."""
    assert call.output is not None
    shape = call.output.shape
    if len(shape) <= 2:
        return -1
    if isinstance(call.module, _CHANNELS_FIRST):
        return 1
    inside = [c for c in _inside(call, earlier) if c.output is not None and len(c.output.shape) > 1]
    if not inside:  # a leaf: what it keeps of its input's shape, it keeps of its layout
        kept = call.input is not None and len(call.input.shape) == len(shape) and shape[1] == call.input.shape[1]
        owns = any(True for _ in call.module.parameters(recurse=False))
        return call.input_dimension if kept and not owns else -1
    same = _seen(shape, inside)
    if same is not None:
        return same
    last = inside[-1]
    if last.width == shape[1] and last.width != shape[-1]:
        return 1
    return last.dimension if last.dimension == -1 or last.width == shape[1] else -1
