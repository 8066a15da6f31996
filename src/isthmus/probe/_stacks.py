"""What is measured of a `LeakyStack` beside its representations: speed and step of its blocks, and its energies."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from isthmus._errors import InputError
from isthmus._records import MetricTable
from isthmus.geometry import DEFAULT_GAMMA0, Energies, PathAccumulator, path_geometry
from isthmus.models import LeakyBlock, LeakyStack, leaky_path
from isthmus.probe._extras import attempted
from isthmus.probe._path_model import PathModel
from isthmus.probe._survey import module_name
from isthmus.probe._tensors import main_tensor

OF_BLOCKS = ("path_speed", "layer_step")
ENERGIES = ("kinetic_energy", "hamiltonian_stable", "hamiltonian_rank_stable", "path_length")
OF_MOMENTA = ("hamiltonian", "hamiltonian_symmetric", "hamiltonian_rank", "hamiltonian_rank_symmetric", "stationarity",
              "momentum_norm", "momentum_weight_norm")  # fmt: skip
STACK = frozenset((*OF_BLOCKS, *ENERGIES, *OF_MOMENTA))
"""Metrics of a model with a leaky stack that other models do not have."""

PADDED = "the batches are padded"
_FORM = "energies are of steps W φ(x) + b: blocks nn.Sequential(nn.ReLU(), nn.Linear(w, w)), and a leak"
_NO_MOMENTA = "needs momenta B = −(1/λ) ∂C/∂A and a ridge on every step: measured of a LeakyResNet only"
_SAME, _UNITS = 1e-3, 8
"""The model's own path, in its dtype, against the one in float64: coarse, and at least so many rounding units."""


def stacks_in(model: nn.Module) -> dict[str, LeakyStack]:
    """Every leaky stack of a model by its name."""
    return {module_name(name): module for name, module in model.named_modules() if isinstance(module, LeakyStack)}


def step_of(module: nn.Module) -> float | None:
    """The step `ρ_ℓ` of a block of a leaky stack; None of any other module."""
    return float(module.stack.layer_steps[module.index]) if isinstance(module, LeakyBlock) else None


def _weights(stack: LeakyStack) -> tuple[Tensor, Tensor | None] | str:
    """`W` and `b` of all blocks in float64 where `f = W max(x, 0) + b`, else why there are none."""
    if stack.effective_depth == 0:
        return f"{_FORM}: here L̃ = 0"
    if stack.residual:
        return f"{_FORM}: here f is what a block adds to its input"
    linear: list[nn.Linear] = []
    for one in stack:
        parts = list(one.block.children())
        fits = type(one.block) is nn.Sequential and [type(p) for p in parts] == [nn.ReLU, nn.Linear]
        if not fits or not isinstance(parts[1], nn.Linear):
            return f"{_FORM}: here block {one.index} is a {type(one.block).__name__}"
        linear.append(parts[1])
    given: list[Tensor | None] = [one.bias for one in linear]
    biases = [bias.detach().double() for bias in given if bias is not None]
    if len(biases) not in (0, len(linear)):
        return f"{_FORM}: here some blocks have a bias and others none"
    weight = torch.stack([one.weight.detach().double() for one in linear])
    return weight, torch.stack(biases) if biases else None


@dataclasses.dataclass(eq=False)
class WatchedStack:
    """A stack during a pass; `why` says why its energies are not defined.

    Attributes:
        name: its name in the model.
        stack: the stack.
        why: the reason, or an empty string.
        energies: of the pass, once it is over.
        n: observations behind them.
        moments: what they are computed from.
    """

    name: str
    stack: LeakyStack
    why: str = ""
    energies: Energies | None = None
    n: int = 0
    moments: PathAccumulator = dataclasses.field(default_factory=PathAccumulator)
    _end: Tensor | None = None

    def watch(self, handles: list[RemovableHandle]) -> None:
        """Follow what the first block is given, in float64."""
        found = _weights(self.stack)
        if isinstance(found, str):
            self.why = found
            return
        weight, bias = found
        rho = self.stack.layer_steps.double()
        rho = rho / rho.sum()

        @torch.no_grad()
        def start(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.why = attempted(lambda: add(main_tensor((args, kwargs))[0]))[1] or self.why

        def add(x: Tensor | None) -> None:
            assert x is not None
            rows = x.detach().reshape(-1, x.shape[-1]).double()
            path = leaky_path(rows, weight, bias, rho, self.stack.effective_depth, torch.relu, whole=True)
            features = torch.relu(path)
            if bias is not None:
                features = torch.cat([features, torch.ones_like(features[..., :1])], -1)
            self._end = path[-1]
            self.moments.update(path, features)

        @torch.no_grad()
        def end(_module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> None:
            expected, self._end = self._end, None
            if self.why:
                return
            found = output.detach().reshape(-1, output.shape[-1]).double()
            same = max(_SAME, _UNITS * torch.finfo(output.dtype).eps)
            if (
                expected is None
                or expected.shape != found.shape
                or float((found - expected).norm()) > same * float(found.norm())
            ):
                self.why = "its blocks are not called one after the other, each once"

        handles.append(self.stack[0].register_forward_pre_hook(start, with_kwargs=True))
        handles.append(self.stack[-1].register_forward_hook(end))

    def finish(self) -> None:
        """The energies of the moments that were collected."""
        found = _weights(self.stack)
        if self.why or isinstance(found, str):
            return
        weight, bias = found
        try:
            moments = self.moments.result()
        except InputError:
            self.why = "never called"
            return
        rho = self.stack.layer_steps.double()
        augmented = weight if bias is None else torch.cat([weight, bias[..., None]], -1)
        geometry = path_geometry(moments, weight=augmented, layer_steps=rho / rho.sum(), has_bias=bias is not None,
                                 effective_depth=self.stack.effective_depth, gamma0s=(DEFAULT_GAMMA0,))  # fmt: skip
        self.energies, self.n = geometry.energies[DEFAULT_GAMMA0], geometry.n


def watch_stacks(
    model: nn.Module, masks: Mapping[str, Tensor], metrics: Collection[str] | None, handles: list[RemovableHandle]
) -> list[WatchedStack]:
    """Hooks for the energies of every stack of a model, where they are wanted and defined.

    Args:
        model: the model, inside `untouched`.
        masks: of a batch's padding.
        metrics: names of the metrics that are wanted; None for all.
        handles: takes the hooks' handles.
    """
    if metrics is not None and STACK.isdisjoint(metrics):
        return []
    users = model.model if isinstance(model, PathModel) else model  # whose names are the user's
    found = [WatchedStack(name, stack) for name, stack in stacks_in(users).items()]
    for one in found:
        if isinstance(model, PathModel):
            one.why = "a path is measured: measure modules with path=False"
        elif masks:
            one.why = PADDED
        else:
            one.watch(handles)
    return found


def record_stacks(
    table: MetricTable,
    stacks: Collection[WatchedStack],
    places: Mapping[str, tuple[int, float]],
    metrics: Collection[str] | None,
    baseline: str = "",
) -> None:
    """Rows of the energies of every stack, or the reason why there are none.

    Args:
        table: the table.
        stacks: what was watched in a pass.
        places: index and position of the representations by name.
        metrics: names of the metrics that are wanted; None for all.
        baseline: value of the `baseline` column.
    """

    def skip(metric: str, why: str, layer: str) -> None:
        if metrics is None or metric in metrics:
            table.skip(metric, why, layer=layer, baseline=baseline)

    for one in stacks:
        for metric in OF_MOMENTA:
            skip(metric, one.why or _NO_MOMENTA, one.name)
        e = one.energies
        if e is None:
            for metric in ENERGIES:
                skip(metric, one.why, one.name)
            continue
        common: dict[str, Any] = {"n": one.n, "note": f"gamma0={e.gamma0:g}", "baseline": baseline}
        along = (("kinetic_energy", e.kinetic), ("hamiltonian_stable", e.stable),
                 ("hamiltonian_rank_stable", e.stable_rank_estimate))  # fmt: skip
        for metric, values in along:
            for index, value in enumerate(values.tolist()):
                if metrics is None or metric in metrics:
                    label = str(index) if one.name == "(model)" else f"{one.name}.{index}"
                    at, position = places.get(label, (None, None))
                    table.add(metric, value, layer=label, index=at, position=position, **common)
        if metrics is None or "path_length" in metrics:
            table.add("path_length", e.path_length, layer=one.name, **common)
