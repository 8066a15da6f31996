"""Which layers have parameters of their own, whose each parameter is, and how its per-sample gradients are found."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from isthmus._errors import InputError, near_name_hint
from isthmus.probe._survey import Survey, module_name

LINEAR, CONV, EMBEDDING, MODULE, WHOLE = "linear", "conv", "embedding", "module", "whole"


@dataclasses.dataclass(eq=False)
class TangentLayer:
    """A module and the parameters that count as its own.

    Attributes:
        name: of the module.
        order: its place among the layers, in order of execution.
        module: the module.
        parameters: by their name in it; a parameter that several modules hold is the first one's.
        calls: how often it runs in a forward pass.
        kind: how its gradients are found: `linear`, `conv` and `embedding` as products of its input and the derivatives
            at its output; `module` by differentiating the module alone at its input; `whole` by differentiating the
            whole model, one sample at a time.
        why: why it is `whole`.
        note: what should be known.
        bad: that the kinds other than `whole` were found to be wrong for it.
    """

    name: str
    order: int
    module: nn.Module
    parameters: dict[str, nn.Parameter]
    calls: int
    kind: str
    why: str = ""
    note: str = ""

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.parameters.values())

    def become_whole(self, why: str) -> None:
        """Have its gradients found by differentiating the whole model."""
        self.kind, self.why = WHOLE, why


def _is(module: nn.Module, *classes: type[nn.Module]) -> bool:
    """Whether a module computes what one of some classes computes (a subclass may compute something else)."""
    return any(cast("Any", type(module)).forward is cast("Any", kind).forward for kind in classes)


def _kind(layer_names: set[str], module: nn.Module, tied: bool, calls: int, tensors: int) -> tuple[str, str]:
    if tied:
        return WHOLE, "a parameter of it is used elsewhere, too"
    if not calls:
        return WHOLE, "its parent uses its parameters directly"
    if next(module.children(), None) is not None:
        return WHOLE, "it has parts of its own"
    if isinstance(module, nn.RNNBase) or tensors != 1:
        return WHOLE, "it gives several tensors"
    plain = "weight" in layer_names and layer_names <= {"weight", "bias"}
    if plain and _is(module, nn.Linear):
        return LINEAR, ""
    if plain and _is(module, nn.Conv1d, nn.Conv2d, nn.Conv3d) and cast("nn.Conv2d", module).groups == 1:
        return CONV, ""
    if plain and _is(module, nn.Embedding):
        table = cast("nn.Embedding", module)
        if table.max_norm is None and not table.scale_grad_by_freq and not table.sparse:
            return EMBEDDING, ""
        return WHOLE, "an embedding that changes its gradients"
    return MODULE, ""


def find_layers(model: nn.Module, survey: Survey) -> list[TangentLayer]:
    """Every module with parameters of its own, in order of execution.

    Raises:
        InputError: a model without parameters.
    """
    holders: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        holders.setdefault(id(parameter), []).append(module_name(name.rpartition(".")[0]))
    starts: dict[str, int] = {}
    for call in survey.calls:
        starts[call.name] = min(starts.get(call.name, call.start), call.start)

    def place(name: str) -> float | int:
        """When a module is first called, or the nearest module around it that is."""
        if name in starts:
            return starts[name]
        outer = name
        while outer:
            outer = outer.rpartition(".")[0]
            if module_name(outer) in starts:
                return starts[module_name(outer)] + 0.5
        return float("inf")

    def by_place(pair: tuple[str, nn.Module]) -> float | int:
        return place(pair[0])

    called = {call.name: call for call in survey.calls}
    named = [(module_name(name), module) for name, module in model.named_modules()]
    taken: dict[int, str] = {}
    found: list[TangentLayer] = []
    for name, module in sorted(named, key=by_place):
        own = [(key, p) for key, p in module.named_parameters(recurse=False) if p.is_floating_point()]
        mine = {key: p for key, p in own if id(p) not in taken}
        others = sorted({h for _, p in own for h in holders[id(p)]} - {name})
        note = ""
        if mine and others:
            note = f"a parameter of it is shared with {', '.join(others)}: its whole gradient counts here"
        for p in mine.values():
            taken[id(p)] = name
        if not mine:
            continue
        tensors = called[name].tensors if name in called else 0
        calls = len(survey.calls_of(name))
        kind, why = _kind(set(mine), module, bool(others), calls, tensors)
        found.append(TangentLayer(name, len(found), module, mine, calls, kind, why, note))
    if not found:
        raise InputError("model", type(model).__name__, "a model with parameters")
    return found


def choose_layers(layers: Sequence[TangentLayer], patterns: str | Sequence[str] | None) -> list[TangentLayer]:
    """Those whose names match one of some globs; all where None.

    Raises:
        InputError: a glob that matches no layer.
    """
    wanted = ["*"] if patterns is None else [patterns] if isinstance(patterns, str) else list(patterns)
    if not wanted:
        raise InputError("layers", "nothing", "globs of names of layers")
    known = [layer.name for layer in layers]
    names: set[str] = set()
    for pattern in wanted:
        matching = set(fnmatch.filter(known, pattern)) | ({pattern} & set(known))
        if not matching:
            raise InputError("layers", pattern, "a glob that matches a layer with parameters of its own",
                             near_name_hint(pattern, known) if len(known) < 2000 else "")  # fmt: skip
        names |= matching
    return [layer for layer in layers if layer.name in names]


def conv_patches(module: nn.Module, x: Tensor) -> Tensor:
    """What a convolution multiplies its weight by: `(n, positions, in · kernel)`, as `weight.flatten(1)` is ordered."""
    conv = cast("nn.Conv2d", module)
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    dims = len(conv.kernel_size)
    x = nn.functional.pad(x, conv._reversed_padding_repeated_twice, mode=mode)
    for d in range(dims):
        size, step, gap = conv.kernel_size[d], conv.stride[d], conv.dilation[d]
        x = x.unfold(2 + d, (size - 1) * gap + 1, step)[..., ::gap]
    order = (0, *range(2, 2 + dims), 1, *range(2 + dims, 2 + 2 * dims))
    x = x.permute(order)
    return x.flatten(1 + dims).flatten(1, dims)
