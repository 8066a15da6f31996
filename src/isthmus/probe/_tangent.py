"""Tangent kernels of a model: per layer and whole, their trace, and top eigenpairs without the kernel."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from isthmus._errors import InputError
from isthmus._random import torch_generator
from isthmus.probe._one import Forward
from isthmus.probe._options import options_of
from isthmus.probe._tangent_features import FeatureStore
from isthmus.probe._tangent_pass import collect, gradients_of
from isthmus.probe._tangent_plan import LayerPlan, plan_layers, take_exact, trial
from isthmus.probe._tangent_setting import TangentSetting, tangent_setting
from isthmus.tangent import Eigenpairs, full_kernel, top_eigenpairs, traced_kernel

KINDS = ("traced", "full")


@dataclasses.dataclass(frozen=True)
class TangentKernel:
    """Tangent kernels of one model on some samples, uncentred.

    Attributes:
        kind: `traced` (n × n, `Σ_c K^{cc}`) or `full` (nC × nC; row `c·n + i` is output c at sample i).
        layers: kernel of each layer, by name, in order of execution, float64.
        total: their sum: the kernel `Θ` of the whole model where all layers were asked for.
        methods: how each was computed.
        n: samples.
        outputs: outputs C.
        notes: what was decided on the way.
    """

    kind: str
    layers: dict[str, Float[Tensor, "size size"]]
    total: Float[Tensor, "size size"]
    methods: dict[str, str]
    n: int
    outputs: int
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class TangentTrace:
    """`Tr K_ℓ` of each layer, and their sum `Tr Θ`.

    Attributes:
        layers: by name, in order of execution: sum over samples and outputs of squared norms of gradients.
        total: their sum.
        n: samples.
        outputs: outputs C.
    """

    layers: dict[str, float]
    total: float
    n: int
    outputs: int


def _signs(setting: TangentSetting, seed: int) -> Tensor:
    """Random signs, for the check of gradients."""
    drawn = torch.randint(0, 2, (setting.n, setting.outputs), generator=torch_generator(seed, "tangent check"))
    return (2 * drawn - 1).to(setting.device, setting.dtype)


def tangent_kernel(
    model: nn.Module,
    data: Any,
    *,
    layers: str | Sequence[str] | None = None,
    kind: str = "traced",
    forward: Forward | None = None,
    max_samples: int | None = None,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    max_memory: float | int | None = None,
    seed: int = 0,
) -> TangentKernel:
    """Tangent kernel `J_ℓ J_ℓᵀ` of each layer and of the whole, exact (arXiv 2110.11749, docs/theory 4.1 and 4.2).

    Computed as in `align`, uncentred; exactly symmetric, and positive semi-definite to rounding.

    Args:
        model: any `torch.nn.Module` with outputs `(n, C)`, or whose outputs `forward` brings into that shape.
        data: as for `measure`.
        layers: globs of names of modules that have parameters of their own; all if None.
        kind: `traced` or `full`.
        forward: `forward(model, batch) → (n, C)`, where calling the model on a batch is not enough.
        max_samples: samples to use at most.
        batch_size: samples per batch of data that are not batched yet.
        device: where to compute.
        max_memory: bytes to take at most; half of what is free, if None.
        seed: of random states during the computation.

    Raises:
        InputError: as `align`; or kernels that do not fit.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> tangent_kernel(net, torch.randn(10, 4), kind="full").total.shape
        torch.Size([20, 20])
    """
    if kind not in KINDS:
        raise InputError("kind", kind, f"one of {', '.join(KINDS)}")
    bare, options, notes = options_of(
        model, layers="*" if layers is None else layers, forward=forward, max_samples=max_samples, device=device,
        batch_size=batch_size, max_memory=max_memory, seed=seed,
    )  # fmt: skip
    with tangent_setting(bare, data, options) as setting:
        wanted = setting.layers
        each = 1 if kind == "traced" else setting.outputs

        def work(n: int) -> int:
            """All kernels, their sum, and what is at hand while one is made."""
            return 8 * ((len(wanted) + 1) * (n * each) ** 2 + 4 * n * n)

        found: dict[str, Tensor] = {}
        methods: dict[str, str] = {}

        def keep(plan: LayerPlan, store: FeatureStore, _sums: Tensor) -> None:
            made = store.features()
            found[plan.layer.name] = traced_kernel(made) if kind == "traced" else full_kernel(made)
            methods[plan.layer.name] = plan.method

        waiting = wanted
        while waiting:
            plans = plan_layers(setting, waiting, method="exact", work=work, asked=("kind", kind))
            waiting = take_exact(setting, plans, _signs(setting, seed), keep)
        kernels = {layer.name: found[layer.name] for layer in wanted}
        total = _sum(list(kernels.values()))
        notes += [note for note in setting.notes if note not in notes]
        notes += [f"{layer.name}: {layer.note}" for layer in wanted if layer.note]
        return TangentKernel(kind, kernels, total, methods, setting.n, setting.outputs, tuple(notes))


def _sum(matrices: list[Tensor]) -> Tensor:
    total = matrices[0].clone()
    for one in matrices[1:]:
        total += one
    return total


def tangent_trace(
    model: nn.Module,
    data: Any,
    *,
    layers: str | Sequence[str] | None = None,
    forward: Forward | None = None,
    max_samples: int | None = None,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
) -> TangentTrace:
    """`Tr K_ℓ = Σ_i Σ_c ‖∇_{θ_ℓ} f_c(x_i)‖²`, exact, streamed over batches (arXiv 2305.19008, docs/theory 3.4).

    Args:
        model: any `torch.nn.Module` with outputs `(n, C)`, or whose outputs `forward` brings into that shape.
        data: as for `measure`.
        layers: globs of names of modules that have parameters of their own; all if None.
        forward: `forward(model, batch) → (n, C)`, where calling the model on a batch is not enough.
        max_samples: samples to use at most.
        batch_size: samples per batch of data that are not batched yet.
        device: where to compute.
        seed: of random states during the computation.

    Raises:
        InputError: as `align`.
    """
    bare, options, _ = options_of(
        model, layers="*" if layers is None else layers, forward=forward, max_samples=max_samples, device=device,
        batch_size=batch_size, seed=seed,
    )  # fmt: skip
    with tangent_setting(bare, data, options) as setting:
        trial(setting, setting.layers)
        found = {layer.name: 0.0 for layer in setting.layers}
        signs = _signs(setting, seed)
        for start, batch in zip(setting.starts, setting.batches, strict=True):
            waiting = setting.layers
            while waiting:
                kinds = {layer.name: layer.kind for layer in waiting}
                stores = {layer.name: FeatureStore(layer, setting.outputs, batch.size) for layer in waiting}
                collect(setting, waiting, stores, signs[start:], batches=[batch])
                again = [layer for layer in waiting if layer.kind != kinds[layer.name]]
                for layer in waiting:
                    if layer not in again:
                        found[layer.name] += float(stores[layer.name].features().diagonal().sum())
                waiting = again
        return TangentTrace(found, sum(found.values()), setting.n, setting.outputs)


def tangent_eigenpairs(
    model: nn.Module,
    data: Any,
    k: int,
    *,
    targets: Any = None,
    layers: str | Sequence[str] | None = None,
    forward: Forward | None = None,
    max_samples: int | None = None,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
) -> Eigenpairs:
    """The `k` largest eigenpairs of the full kernel `Θ = J Jᵀ` (nC × nC, uncentred), which is never formed.

    Lanczos on `v ↦ J(Jᵀv)`: a backward pass, and for `J u` the derivative of the linear `v ↦ Jᵀv`.
    `λ_max` bounds the learning rate (`isthmus.tangent.largest_stable_rate`, docs/theory 3.4).

    Args:
        model: any `torch.nn.Module` with outputs `(n, C)`, or whose outputs `forward` brings into that shape.
        data: as for `measure`.
        k: eigenpairs.
        targets: as for `measure`, so that what a batch holds of them is no input; they are not used otherwise.
        layers: globs of names of modules that have parameters of their own; all if None.
        forward: `forward(model, batch) → (n, C)`, where calling the model on a batch is not enough.
        max_samples: samples to use at most.
        batch_size: samples per batch of data that are not batched yet.
        device: where to compute.
        seed: of where the iteration begins.

    Raises:
        InputError: as `align`; a `k` out of range; an operation that cannot be differentiated twice.
    """
    bare, options, _ = options_of(
        model, layers="*" if layers is None else layers, targets=targets, forward=forward, max_samples=max_samples,
        device=device, batch_size=batch_size, seed=seed,
    )  # fmt: skip
    with tangent_setting(bare, data, options) as setting:
        parameters = [p for layer in setting.layers for p in layer.parameters.values() if p.requires_grad]
        start = torch.randn(setting.n, setting.outputs, generator=torch_generator(seed, "tangent eigenpairs"),
                            dtype=torch.float64)  # fmt: skip
        tolerance = 0.0 if setting.dtype == torch.float64 else 10 * torch.finfo(setting.dtype).eps
        return top_eigenpairs(lambda v: _applied(setting, parameters, v), setting.n, setting.outputs, k,
                              tolerance=tolerance, start=start)  # fmt: skip


def _applied(setting: TangentSetting, parameters: Sequence[nn.Parameter], v: Tensor) -> Tensor:
    """`J(Jᵀ v)`."""
    given = v.to(setting.device, setting.dtype)
    sums = [torch.zeros(p.shape, dtype=torch.float64, device=p.device) for p in parameters]
    for number, (start, batch) in enumerate(zip(setting.starts, setting.batches, strict=True)):
        out = setting.run(batch, number)
        found = gradients_of(out, parameters, given[start : start + batch.size])
        for total, g in zip(sums, found, strict=True):
            if g is not None:
                total += g
    if not all(bool(total.isfinite().all()) for total in sums):
        raise InputError("model", "a gradient that is not finite", "finite derivatives")
    pieces = [_forward(setting.run(batch, number), parameters, sums) for number, batch in enumerate(setting.batches)]
    return torch.cat(pieces)


def _forward(out: Tensor, parameters: Sequence[nn.Parameter], direction: Sequence[Tensor]) -> Tensor:
    """`J u`: the derivative of `w ↦ Jᵀw`, applied to `u`."""
    w = torch.zeros_like(out, requires_grad=True)
    try:
        found: Any = torch.autograd.grad(out, parameters, w, create_graph=True, allow_unused=True)
        pairs = [(g, u.to(g)) for g, u in zip(found, direction, strict=True) if g is not None and g.requires_grad]
        if not pairs:
            return torch.zeros_like(out)
        (made,) = torch.autograd.grad([g for g, _ in pairs], [w], [u for _, u in pairs])
    except RuntimeError as error:
        raise InputError("model", f"an operation without a second derivative ({str(error).splitlines()[0][:120]})",
                         "operations that can be differentiated twice", "take the eigenvalues of tangent_kernel(…, "
                         "kind='full').total") from error  # fmt: skip
    return made
