"""An existing residual model, made into one with a leaky stack that computes the same at the start."""

from __future__ import annotations

import copy
import dataclasses
import fnmatch
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from isthmus._errors import InputError, near_name_hint
from isthmus.models._leaky_stack import LeakyStack
from isthmus.models._steps import LayerSteps

_ROUNDING = 100
"""Rounding units, of the largest output, by which outputs may differ: sums in another order, nothing else."""


def convert(
    model: nn.Module,
    pattern: str,
    *,
    effective_depth: float | int = 0.0,
    steps: str | LayerSteps = "equidistant",
    samples: Any = None,
) -> nn.Module:
    """A copy of a residual model in which a run of blocks is a `LeakyStack` (arXiv 2405.17573, docs/theory 1.1, 1.3).

    The outputs are those of the model, to the last bit, until steps or weights change: a step is
    `x_ℓ = x + (ρ_ℓ/ρ⁰_ℓ)(block_ℓ(x) − x) − ρ_ℓ (L̃ − c_ℓ) x`, with `ρ⁰` the first steps and gains `c_ℓ`, trained, that
    start at `L̃` (`LeakyStack` with `residual` and `plain_start`). The blocks must be called one after the other, each
    with what the one before gave, and keep its shape. With `samples` all of this is checked now; what keeps the shape
    is checked at the first call in any case.

    The stack stands where the blocks stood: `convert(model, "encoder.layers.*").encoder.layers`. An `nn.ModuleList` has
    to be converted whole; of an `nn.Sequential` a part will do (`"[1-4]"`), which the stack then replaces under the
    name of its first block. Parameters are copies, so make the optimiser afterwards; in the state dict their names
    have `block.` after the number of the block.

    Args:
        model: the model; nothing of it is changed, and its parts are not called.
        pattern: names of the blocks: `*`, `?` and `[1-4]` stand for parts of one name, not for dots.
        effective_depth: `L̃ ≥ 0`.
        steps: `equidistant`, `irregular`, `adaptive`, or a `LayerSteps`.
        samples: inputs to check on: a tensor, a tuple of arguments, or a mapping of arguments by name.

    Raises:
        InputError: something that is no module or cannot be copied, a pattern that matches no blocks or blocks of
            several containers, a container of another kind, samples at which the model fails, blocks that are not
            called once each and in order, a block that changes the shape, or outputs that differ or are no tensors.

    Example:
        >>> layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        >>> model = torch.nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        >>> leaky = convert(model, "layers.*", steps="adaptive", samples=torch.randn(2, 5, 16))
        >>> len(leaky.layers)
        4
    """
    if not isinstance(cast("object", model), nn.Module):
        raise InputError("model", type(model).__name__, "a torch.nn.Module")
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError(
            "model", "a scripted module", "a torch.nn.Module of Python", "convert the module that was scripted"
        )
    try:
        made = copy.deepcopy(model)
    except Exception as error:
        raise InputError("model", f"a {type(model).__name__} that cannot be copied ({_first_line(error)})",
                         "a model that copy.deepcopy copies", "copy it before it is called") from error  # fmt: skip
    parent, names = _run_of(made, pattern)
    container = made.get_submodule(parent)
    blocks = [container.get_submodule(name) for name in names]
    before = None
    if samples is not None:
        labels = [f"{parent}.{name}" if parent else name for name in names]
        before = _followed(made, blocks, labels, samples)
    stack = LeakyStack(blocks, effective_depth=effective_depth, steps=steps, residual=True, plain_start=True)
    stack.training = container.training
    for one in stack:
        one.training = one.block.training
    made = _put(made, container, parent, names, stack)
    if samples is not None:
        _compare(before, _outputs(made, samples))
    return made


def _matches(name: str, pattern: str) -> bool:
    parts, wanted = name.split("."), str(pattern).split(".")
    return len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))


def _run_of(model: nn.Module, pattern: str) -> tuple[str, list[str]]:
    """Name of the container, and names in it of the blocks that the pattern means."""
    # Not `named_modules`, which leaves out the second place of a block that is used twice.
    known = [
        f"{outer}.{name}" if outer else name
        for outer, module in model.named_modules()
        for name, _ in module._modules.items()  # a scripted module has no other way to go through them
    ]
    found = [name for name in known if _matches(name, pattern)]
    expected = "a pattern that matches the blocks in one nn.ModuleList or nn.Sequential"
    if not found:
        raise InputError("pattern", pattern, expected, near_name_hint(str(pattern), known) if len(known) < 500 else "")
    if len(found) == 1 and isinstance(model.get_submodule(found[0]), (nn.ModuleList, nn.Sequential)):
        raise InputError("pattern", pattern, expected, f"try {found[0]}.*")
    parents = sorted({name.rpartition(".")[0] for name in found})
    if len(parents) > 1:
        places = ", ".join(p or "the model itself" for p in parents)
        raise InputError("pattern", f"{pattern}, which matches in {places}", expected, "call convert once for each")
    parent, container = parents[0], model.get_submodule(parents[0])
    if isinstance(container, LeakyStack):
        raise InputError("pattern", f"{pattern}, which matches in a LeakyStack", expected, "the model is converted "
                         "already: convert the model that it was made of, with other settings")  # fmt: skip
    if not isinstance(container, (nn.ModuleList, nn.Sequential)):
        raise InputError("pattern", f"{pattern}, which matches in a {type(container).__name__}", expected,
                         "or make a LeakyStack of the blocks in the model's own code")  # fmt: skip
    names = [name.rpartition(".")[2] for name in found]
    everyone = list(container._modules)
    start = everyone.index(names[0])
    if everyone[start : start + len(names)] != names:
        raise InputError("pattern", f"{pattern}, which matches {', '.join(names)}", "blocks that follow one another")
    if isinstance(container, nn.ModuleList) and len(names) < len(everyone):
        raise InputError("pattern", f"{pattern}, which matches {len(names)} of {len(everyone)} blocks",
                         f"all blocks of {parent}, an nn.ModuleList", f"try {parent}.*")  # fmt: skip
    return parent, names


def _put(
    model: nn.Module, container: nn.Module, parent: str, names: Sequence[str], stack: LeakyStack
) -> nn.Module:  # fmt: skip
    """The model with the stack in place of the blocks."""
    if len(names) == len(container._modules) and type(container) in (nn.ModuleList, nn.Sequential):
        if not parent:
            return stack
        outer, _, own = parent.rpartition(".")
        model.get_submodule(outer).add_module(own, stack)
        return model
    everyone = list(container._modules.items())
    for name, _ in everyone:
        delattr(container, name)
    for name, module in everyone:
        if name == names[0]:
            container.add_module(name, stack)
        elif name not in names:
            container.add_module(name, cast("nn.Module", module))
    return model


def _outputs(model: nn.Module, samples: Any) -> list[Tensor]:
    """The tensors a model gives in evaluation mode; gradients are on, since attention runs fused without them."""
    modes = [(module, module.training) for module in model.modules()]
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        model.eval()
        with torch.random.fork_rng(devices=devices), torch.enable_grad():
            if isinstance(samples, Mapping):
                found = model(**cast("Mapping[str, Any]", samples))
            else:
                found = model(*samples) if isinstance(samples, (tuple, list)) else model(samples)
    finally:
        for module, mode in modes:
            module.training = mode
    return list(_tensors(found))


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value.detach()]
    items: Sequence[Any] = []
    if isinstance(value, Mapping):
        items = list(cast("Mapping[str, Any]", value).values())
    elif isinstance(value, (tuple, list)):
        items = list(cast("Sequence[Any]", value))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = [getattr(value, field.name) for field in dataclasses.fields(value)]
    return [tensor for item in items for tensor in _tensors(item)]


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _followed(model: nn.Module, blocks: Sequence[nn.Module], labels: Sequence[str], samples: Any) -> list[Tensor]:
    """Outputs of the model as it was, after checking that its blocks are called one after the other."""
    met: list[tuple[nn.Module, Any, Any]] = []

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given, got = _tensors([*args, *kwargs.values()]), _tensors(output)
        met.append((module, given[0].clone() if given else None, got[0].clone() if got else None))

    handles = [block.register_forward_hook(after, with_kwargs=True) for block in set(blocks)]
    try:
        outputs = _outputs(model, samples)
    except Exception as error:
        raise InputError("samples", f"inputs at which the model fails ({_first_line(error)})",
                         "a tensor, a tuple of arguments, or a mapping of arguments by name") from error  # fmt: skip
    finally:
        for handle in handles:
            handle.remove()
    if [id(module) for module, _, _ in met] != [id(block) for block in blocks]:
        called = [labels[[id(b) for b in blocks].index(id(module))] for module, _, _ in met]
        raise InputError("pattern", f"blocks that are called in the order {', '.join(called) or '(none is called)'}",
                         f"each called once, in the order {', '.join(labels)}")  # fmt: skip
    for label, (_, given, got) in zip(labels, met, strict=True):
        if given is None or got is None or given.shape != got.shape:
            shapes = " to ".join("no tensor" if t is None else str(tuple(t.shape)) for t in (given, got))
            raise InputError("pattern", f"{label}, which takes {shapes}", "blocks that keep the shape of their input",
                             "leave it out of the pattern")  # fmt: skip
    for i in range(1, len(met)):
        if not torch.equal(met[i - 1][2], met[i][1]):
            raise InputError("pattern", f"{labels[i]}, which is given something else than {labels[i - 1]} gave",
                             "blocks that are called one after the other, with nothing in between")  # fmt: skip
    return outputs


def _compare(before: list[Tensor] | None, after: list[Tensor]) -> None:
    assert before is not None
    if not before:
        raise InputError("samples", "a model that gives no tensors", "outputs that can be compared: a tensor, or a "
                         "tuple, mapping or dataclass with some", "leave samples out")  # fmt: skip
    same = len(before) == len(after) and all(one.shape == other.shape for one, other in zip(before, after, strict=True))
    worst = max(map(_rounding_units, before, after)) if same else 0.0
    if not same or worst > _ROUNDING:
        found = f"outputs that differ by {worst:.3g} rounding units" if same else "outputs of other shapes"
        raise InputError("samples", found, "outputs of the converted model that are those of the model",
                         "a model that is random in evaluation mode, or looks at the class of its blocks, cannot be "
                         "converted")  # fmt: skip


def _rounding_units(one: Tensor, other: Tensor) -> float:
    """How far apart two outputs are, in rounding units of the largest; ∞ where numbers have no such units."""
    differ = (one != other) & ~((one != one) & (other != other))  # NaN at the same place is the same
    if not bool(differ.any()):
        return 0.0
    if one.dtype != other.dtype or not (one.is_floating_point() or one.is_complex()):
        return math.inf
    size = one.abs()[one.isfinite()]
    unit = torch.finfo(one.dtype).eps * (float(size.max()) if size.numel() else 0.0)
    gap = float((one - other)[differ].abs().max()) / max(unit, torch.finfo(one.dtype).tiny)
    return math.inf if math.isnan(gap) else gap
