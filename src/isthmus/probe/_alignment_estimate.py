"""Alignment without kernels: random probes, any number of samples."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from isthmus._errors import InputError
from isthmus._random import torch_generator
from isthmus.probe._tangent_layers import TangentLayer
from isthmus.probe._tangent_pass import pulled_back
from isthmus.probe._tangent_setting import TangentSetting
from isthmus.tangent import alignment_estimate

_TRACED_PROBES = 4
"""A traced probe takes C backward passes: this share of the probes is used."""

_EXACT_TRACED = 4
"""The traced numerator is exact where it takes at most this many passes per probe, else from random signs."""


@dataclasses.dataclass(frozen=True)
class Estimated:
    """An estimated alignment of one layer; attributes as those of a `LayerAlignment`."""

    alignment: float | None
    stderr: float | None
    alignment_traced: float | None
    stderr_traced: float | None
    trace: float
    trace_stderr: float
    method_traced: str


def random_signs(seed: int, purpose: str, *shape: int) -> Tensor:
    """±1, the same for a seed whatever the batches are."""
    drawn = torch.randint(0, 2, shape, generator=torch_generator(seed, purpose), dtype=torch.int8)
    return (2 * drawn - 1).double()


def estimate_layers(
    setting: TangentSetting, layers: Sequence[TangentLayer], y: Tensor, probes: int, seed: int,
    progress: Callable[[int, int], None],
) -> dict[str, Estimated]:  # fmt: skip
    """Alignment with `‖K_ℓ‖²_F = E⟨J_ℓᵀv, J_ℓᵀv'⟩²` over centred random signs (docs/theory 4.2).

    All pairs of probes make a U-statistic. The numerator is `‖J_ℓᵀỹ‖²`, exact. The traced kernel's norm is from
    `(v_kᵀ K̄ v_l) = Σ_c ⟨J_cᵀv_k, J_cᵀv_l⟩`, C passes per probe; its numerator `Σ_cr σ_r² ‖J_cᵀu_r‖²`, with
    `ỹ = Σ_r σ_r u_r w_rᵀ`, is exact where that takes few passes, else an average over random signs of outputs and
    directions. `Tr K/n` is that of the centred kernel (mean of `‖J_ℓᵀv‖²`) and of the mean gradients (exact).

    Raises:
        InputError: gradients that are not finite, with the layer's name.
    """
    n, outputs = setting.n, setting.outputs
    v = random_signs(seed, "alignment probes", probes, n, outputs)
    v = v - v.mean(1, keepdim=True)
    few = min(probes, max(8, probes // _TRACED_PROBES))
    vt = random_signs(seed, "alignment traced probes", few, n)
    vt = vt - vt.mean(1, keepdim=True)
    ours = y.cpu()
    left, sizes, _ = torch.linalg.svd(ours, full_matrices=False)
    directions = (left * sizes)[:, sizes > 1e-12 * sizes[0]].mT  # σ_r u_r, (r, n)
    exact = outputs * directions.shape[0] <= _EXACT_TRACED * probes
    stages = 2 + outputs + (directions.shape[0] if exact else 1)
    at = 0

    def pull(cotangents: Tensor) -> dict[str, Tensor]:
        """At most as many at a time as there are probes."""
        nonlocal at
        found = pulled_back(setting, layers, cotangents)
        at += 1
        progress(min(at, stages), stages)
        for layer in layers:
            if not bool(found[layer.name].isfinite().all()):
                raise InputError("model", f"a gradient that is not finite at {layer.name}", "finite derivatives",
                                 "look for a root or a norm at 0, or an overflow")  # fmt: skip
        return found

    products, squares = dict[str, Tensor](), dict[str, Tensor]()
    for name, g in pull(v).items():
        products[name] = (g @ g.mT).cpu()
        squares[name] = products[name].diagonal()
    numerators = {name: float(g.square().sum()) for name, g in pull(ours[None]).items()}
    traced = {layer.name: torch.zeros(few, few, dtype=torch.float64) for layer in layers}
    means = dict.fromkeys(traced, 0.0)
    tops: dict[str, list[float]] = {layer.name: [] for layer in layers}
    for c in range(outputs):
        for name, g in pull(_at_output(torch.cat([vt, torch.ones(1, n).double()]), c, outputs)).items():
            means[name] += float(g[-1].square().sum())
            traced[name] += (g[:-1] @ g[:-1].mT).cpu()
        if exact:
            for part in directions.split(probes):
                for name, g in pull(_at_output(part, c, outputs)).items():
                    tops[name].append(float(g.square().sum()))
    if not exact:
        signs = random_signs(seed, "alignment traced numerator", probes, outputs)
        mixed = random_signs(seed, "alignment traced directions", probes, directions.shape[0]) @ directions
        for name, g in pull(mixed[:, :, None] * signs[:, None, :]).items():
            tops[name] += g.square().sum(1).tolist()
    scale = float(ours.square().sum())
    scale_traced = float((ours.mT @ ours).norm())
    found: dict[str, Estimated] = {}
    for layer in layers:
        name = layer.name
        full = alignment_estimate(products[name], numerators[name], scale)
        parts = torch.tensor(tops[name], dtype=torch.float64)
        top = float(parts.sum()) if exact else float(parts.mean())
        top_error = 0.0 if exact else float(parts.std()) / math.sqrt(len(parts))
        other = alignment_estimate(traced[name], top, scale_traced)
        relative = top_error / top if top > 0 else 0.0
        words = f"estimate: {few} probes, {'exact numerator' if exact else f'numerator of {probes} random signs'}"
        found[name] = Estimated(
            alignment=None if full is None else full.value,
            stderr=None if full is None else full.stderr,
            alignment_traced=None if other is None else other.value,
            stderr_traced=None if other is None else math.hypot(other.stderr, relative * other.value),
            trace=(float(squares[name].mean()) + means[name] / n) / n,
            trace_stderr=float(squares[name].std()) / math.sqrt(probes) / n,
            method_traced=words,
        )
    return found


def _at_output(vectors: Tensor, c: int, outputs: int) -> Tensor:
    """`e_c ⊗ v_k`: `(k, n, C)`."""
    found = vectors.new_zeros(*vectors.shape, outputs)
    found[:, :, c] = vectors
    return found
