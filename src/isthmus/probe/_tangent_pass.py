"""Passes over the data: per-sample gradients of every output, and `Jᵀv` of many `v`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from isthmus.probe._batches import Batch
from isthmus.probe._tangent_features import (
    OUTER,
    FeatureStore,
    contracted,
    input_rows,
    module_gradients,
    output_rows,
)
from isthmus.probe._tangent_layers import WHOLE, TangentLayer
from isthmus.probe._tangent_setting import TangentSetting, agree, row_alone

UNTOLD = "its gradients of single samples cannot be told apart at its output"


@dataclasses.dataclass(eq=False)
class _Call:
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    edge: GradientEdge | None
    shape: tuple[int, ...]
    versions: list[int]

    def changed(self) -> bool:
        """Whether an input was changed in place since."""
        return self.versions != _versions(self.args, self.kwargs)


def _versions(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int]:
    return [t._version for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]


class _Capture:
    """Hooks that keep the inputs of layers and where gradients reach their outputs, also if those change in place."""

    def __init__(self, setting: TangentSetting, layers: Sequence[TangentLayer]) -> None:
        self.calls: dict[str, list[_Call]] = {layer.name: [] for layer in layers}
        self.hooks = [layer.module.register_forward_hook(self._after(layer), prepend=True, with_kwargs=True)
                      for layer in layers]  # fmt: skip
        setting.handles.extend(self.hooks)

    def _after(self, layer: TangentLayer) -> Callable[..., Tensor | None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor | None:
            if not isinstance(output, Tensor):
                layer.become_whole(UNTOLD)
                return None
            edge = get_gradient_edge(output) if output.requires_grad else None
            self.calls[layer.name].append(_Call(args, kwargs, edge, tuple(output.shape), _versions(args, kwargs)))
            return output.clone() if output._is_view() else None  # a view that is changed in place leaves its edge

        return hook

    def close(self) -> None:
        """Take the hooks away."""
        for hook in self.hooks:
            hook.remove()


def gradients_of(out: Tensor, inputs: Sequence[Any], cotangent: Tensor | None = None) -> list[Tensor | None]:
    """`Jᵀv` of some tensors or edges, None where the outputs do not depend on one; the graph is kept."""
    found: Any = torch.autograd.grad(out, inputs, cotangent, retain_graph=True, allow_unused=True)
    return [g.to_dense() if g is not None and g.is_sparse else g for g in found]


def totals(out: Tensor, layers: Sequence[TangentLayer], cotangent: Tensor) -> dict[str, dict[str, Tensor]]:
    """`Jᵀv` of one batch by layer and parameter, from one backward pass; the graph is kept."""
    flat = [p for layer in layers for p in layer.parameters.values()]
    wanted = [p for p in flat if p.requires_grad]
    if not wanted:
        return {layer.name: {} for layer in layers}
    found = dict(zip(map(id, wanted), gradients_of(out, wanted, cotangent.to(out)), strict=True))
    return {layer.name: {key: p.new_zeros(p.shape) if (g := found.get(id(p))) is None else g.detach()
                         for key, p in layer.parameters.items()} for layer in layers}  # fmt: skip


def collect(
    setting: TangentSetting,
    layers: Sequence[TangentLayer],
    stores: dict[str, FeatureStore],
    cotangent: Tensor,
    progress: Callable[[int], None] | None = None,
    batches: Sequence[Batch] | None = None,
    outputs: int | None = None,
) -> dict[str, Tensor]:
    """One forward and C backward passes a batch: features of every layer into its store, and `‖·‖²` of `Jᵀv`.

    Per-sample gradients are checked: summed with the weights `cotangent` they are to be what a plain backward pass
    gives. Layers for which they are not become `whole`; their stores are then not to be used.

    Args:
        setting: model and data.
        layers: whose features.
        stores: takes them.
        cotangent: `v`, `(n, C)`.
        progress: called with the number of samples done.
        batches: instead of those of the setting.
        outputs: of the first ones alone, for which `cotangent` must vanish at the others; all if None.

    Returns:
        `Jᵀv` of every layer, flat, float64.
    """
    sums: dict[str, Tensor] = {}
    whole = [layer for layer in layers if layer.kind == WHOLE and layer.name in stores]
    start = 0
    for number, batch in enumerate(setting.batches if batches is None else batches):
        near = [layer for layer in layers if layer.kind != WHOLE]
        capture = _Capture(setting, near)
        try:
            out = setting.run(batch, number)
        finally:
            capture.close()
        v = cotangent[start : start + batch.size].to(out)
        expected = totals(out, layers, v)
        for layer in layers:
            flat = torch.cat([g.flatten() for g in expected[layer.name].values()]).double()
            sums[layer.name] = sums[layer.name] + flat if layer.name in sums else flat
        kept = setting.outputs if outputs is None else outputs
        _near(out, [layer for layer in near if layer.kind != WHOLE], capture, stores, v[:, :kept], expected, start)
        if whole:
            _whole(setting, batch, out, whole, stores, start)
        start += batch.size
        if progress is not None:
            progress(start)
    return sums


def _near(
    out: Tensor, layers: Sequence[TangentLayer], capture: _Capture,
    stores: dict[str, FeatureStore], v: Tensor, expected: dict[str, dict[str, Tensor]], start: int,
) -> None:  # fmt: skip
    calls = [(layer, call) for layer in layers for call in capture.calls[layer.name]]
    edges = [call.edge for _, call in calls if call.edge is not None]
    held: list[list[Tensor | None]] = [[] for _ in edges]
    outputs = v.shape[1]
    for c in range(outputs):
        if not edges:
            break
        unit = torch.zeros_like(out)
        unit[:, c] = 1
        found = gradients_of(out, edges, unit)
        for mine, g in zip(held, found, strict=True):
            mine.append(g)
    at = iter(held)
    gradients = {id(call): (next(at) if call.edge is not None else []) for _, call in calls}
    del held, at  # so that what a layer has used is free for the next
    for layer in layers:
        mine = capture.calls[layer.name]
        if not _add(layer, mine, gradients, stores[layer.name], v, expected[layer.name], start, outputs):
            layer.become_whole(UNTOLD)
        for call in mine:
            gradients.pop(id(call))


def _stacked(call: _Call, pieces: list[Tensor | None], outputs: int, like: Tensor) -> Tensor:
    zero = None
    filled: list[Tensor] = []
    for c in range(outputs):
        g = pieces[c] if pieces else None
        if g is None:
            zero = torch.zeros(call.shape, dtype=like.dtype, device=like.device) if zero is None else zero
            g = zero
        filled.append(g.detach())
    return torch.stack(filled)


def _add(
    layer: TangentLayer, calls: list[_Call], gradients: dict[int, list[Tensor | None]], store: FeatureStore, v: Tensor,
    expected: dict[str, Tensor], start: int, outputs: int,
) -> bool:  # fmt: skip
    """Put one layer's gradients of a batch into its store; whether they are right."""
    size = v.shape[0]
    if any(call.changed() or not call.shape or call.shape[0] != size for call in calls):
        return False
    store.passing = 2 * outputs * v.element_size() * sum(math.prod(call.shape) for call in calls)
    if not calls:
        return all(not bool(g.any()) for g in expected.values())
    if layer.kind in OUTER:
        rows: list[tuple[Tensor, Tensor]] = []
        for call in calls:
            a = input_rows(layer, call.args, call.kwargs, size)
            if a is None:
                return False
            store.passing += a.numel() * a.element_size()
            rows.append((a, output_rows(layer, _stacked(call, gradients[id(call)], outputs, v), a)))
        if any(g.shape[2] != a.shape[1] for a, g in rows):
            return False
        a = rows[0][0] if len(rows) == 1 else torch.cat([one for one, _ in rows], 1)
        g = rows[0][1] if len(rows) == 1 else torch.cat([other for _, other in rows], 2)
        found, scale = contracted(layer, a, g, v)
        if not _right(found, expected, scale):
            return False
        store.add_factors(a, g, start)
        return True
    total: dict[str, Tensor] = {}
    for call in calls:
        pieces = module_gradients(layer, call.args, call.kwargs, _stacked(call, gradients[id(call)], outputs, v))
        if pieces is None:
            return False
        total = {key: g + total[key] if key in total else g for key, g in pieces.items()}
    found = {key: torch.einsum("nc,cn...->...", v, g) for key, g in total.items()}
    scale = sum(float((v.mT.reshape(outputs, size, *[1] * (g.dim() - 2)) * g).norm()) for g in total.values())
    if not _right(found, expected, scale):
        return False
    store.add_gradients(torch.cat([total[key].flatten(2) for key in layer.parameters], 2), start)
    return True


def _right(found: dict[str, Tensor], expected: dict[str, Tensor], scale: float) -> bool:
    """Whether two ways of computing `Jᵀv` agree; what is not finite is said later, with the layer's name."""
    for key, right in expected.items():
        if not bool(right.isfinite().all()):
            return True
        size = max(scale, float(right.norm()))
        if right.numel() and not agree(found[key], right, size):
            return False
    return True


def _whole(
    setting: TangentSetting, batch: Batch, out: Tensor, layers: Sequence[TangentLayer],
    stores: dict[str, FeatureStore], start: int,
) -> None:  # fmt: skip
    """Gradients by differentiating the whole model: of every sample alone, or where it cannot be, in its batch."""
    parameters = [p for layer in layers for p in layer.parameters.values()]
    for i in range(batch.size):
        alone = row_alone(setting, batch, i) if batch.size > 1 else out
        row = out[i] if alone is None or not agree(alone[0], out[i]) else alone[0]
        pieces: dict[int, list[Tensor]] = {id(p): [] for p in parameters}
        for c in range(setting.outputs):
            found = gradients_of(row[c], parameters)
            for p, g in zip(parameters, found, strict=True):
                pieces[id(p)].append(p.new_zeros(p.numel()) if g is None else g.detach().flatten())
        for layer in layers:
            flat = torch.cat([torch.stack(pieces[id(p)]) for p in layer.parameters.values()], 1)
            stores[layer.name].add_gradients(flat[:, None], start + i)


def pulled_back(
    setting: TangentSetting, layers: Sequence[TangentLayer], k: int, cotangents: Callable[[int, int], Tensor],
    progress: Callable[[int], None] | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """`Jᵀv_j` of every layer, `(k, |θ_ℓ|)` in float64: k backward passes, streamed over batches.

    Args:
        setting: model and data.
        layers: of these.
        k: number of vectors.
        cotangents: `(start, stop) → (k, stop − start, C)`: the vectors `v_j` at some samples.
        progress: called with the number of samples done.
    """
    sums: dict[str, Tensor] = {}
    start = 0
    for number, batch in enumerate(setting.batches):
        out = setting.run(batch, number)
        here = cotangents(start, start + batch.size)
        for j in range(k):
            found = totals(out, layers, here[j])
            for layer in layers:
                if layer.name not in sums:
                    sums[layer.name] = torch.zeros(k, layer.size, dtype=torch.float64, device=out.device)
                into = sums[layer.name][j]
                at = 0
                for g in found[layer.name].values():
                    into[at : at + g.numel()] += g.flatten()
                    at += g.numel()
        start += batch.size
        if progress is not None:
            progress(start)
    return sums
