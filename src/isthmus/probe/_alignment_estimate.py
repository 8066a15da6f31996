"""Alignment without kernels: random probes, any number of samples."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from isthmus._errors import InputError
from isthmus._random import torch_generator
from isthmus.probe._progress import Progress
from isthmus.probe._tangent_layers import TangentLayer
from isthmus.probe._tangent_pass import pulled_back
from isthmus.probe._tangent_setting import TangentSetting
from isthmus.tangent import Estimate, alignment_estimate

_TRACED_PROBES = 4
"""A traced probe takes C backward passes: this share of the probes is used."""

_TRACED_OUTPUTS = 16
"""Outputs up to which the traced alignment is estimated unasked."""

_EXACT_TRACED = 4
"""The traced numerator is exact where it takes at most this many passes per probe, else from random signs."""

_NOT_TRACED = "not estimated for {} outputs, for each takes a pass per probe: traced=True"


@dataclasses.dataclass(frozen=True)
class EstimateSettings:
    """How an estimate is made: probes, whether the traced alignment is estimated (None: few outputs), and the seed."""

    probes: int
    traced: bool | None
    seed: int

    def traced_at(self, outputs: int) -> bool:
        """Whether the traced alignment is estimated."""
        return outputs <= _TRACED_OUTPUTS if self.traced is None else self.traced

    @property
    def few(self) -> int:
        """Probes of the traced norm."""
        return min(self.probes, max(8, self.probes // _TRACED_PROBES))

    def exactly(self, outputs: int, rank: int) -> bool:
        """Whether the traced numerator is exact, for targets of a rank."""
        return outputs * rank <= _EXACT_TRACED * self.probes

    def passes(self, y: Tensor, outputs: int) -> int:
        """Backward passes over the data."""
        found = self.probes + 1 + min(outputs, self.probes)
        if self.traced_at(outputs):
            rank = int(torch.linalg.matrix_rank(y.cpu()))
            found += self.few * outputs + (outputs * rank if self.exactly(outputs, rank) else self.probes)
        return found


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
    setting: TangentSetting, layers: Sequence[TangentLayer], y: Tensor, how: EstimateSettings, progress: Progress
) -> dict[str, Estimated]:
    """Alignment with `‖K_ℓ‖²_F = E⟨J_ℓᵀv, J_ℓᵀv'⟩²` over centred random signs (docs/theory 4.2).

    All pairs of probes make a U-statistic. The numerator is `‖J_ℓᵀỹ‖²`, exact. `Tr K/n` is that of the centred kernel
    (mean of `‖J_ℓᵀv‖²`) and of the mean gradients `Σ_c ‖J_cᵀ1‖²/n`, exact where there are fewer outputs than probes,
    else from random signs of the outputs.

    Raises:
        InputError: gradients that are not finite, with the layer's name.
    """
    n, outputs, probes = setting.n, setting.outputs, how.probes
    v = random_signs(how.seed, "alignment probes", probes, n, outputs)
    v = v - v.mean(1, keepdim=True)
    ours = y.cpu()
    pull = _Pull(setting, layers, how.passes(ours, outputs), progress)
    products = {name: (g @ g.mT).cpu() for name, g in pull(v).items()}
    numerators = {name: float(g.square().sum()) for name, g in pull(ours[None]).items()}
    traced = _traced(pull, ours, how) if how.traced_at(outputs) else {}
    means, means_error = _mean_gradients(pull, how, n, outputs)
    found: dict[str, Estimated] = {}
    for layer in layers:
        name = layer.name
        full = alignment_estimate(products[name], numerators[name], float(ours.square().sum()))
        other, words = traced.get(name, (None, _NOT_TRACED.format(outputs)))
        squares = products[name].diagonal()
        error = math.hypot(float(squares.std()) / math.sqrt(probes), means_error[name] / n)
        found[name] = Estimated(
            alignment=None if full is None else full.value,
            stderr=None if full is None else full.stderr,
            alignment_traced=None if other is None else other.value,
            stderr_traced=None if other is None else other.stderr,
            trace=(float(squares.mean()) + means[name] / n) / n,
            trace_stderr=error / n,
            method_traced=words,
        )
    return found


class _Pull:
    """`J_ℓᵀv` of some layers for some `v`, with progress over all passes, and a check that it is finite."""

    def __init__(
        self, setting: TangentSetting, layers: Sequence[TangentLayer], passes: int, progress: Progress
    ) -> None:
        self.setting, self.layers, self.passes, self.progress = setting, layers, passes, progress
        self.n, self.at = setting.n, 0

    def __call__(self, cotangents: Tensor) -> dict[str, Tensor]:
        done = self.at

        def said(samples: int) -> None:
            self.progress("alignment: probes", done + samples * len(cotangents) // self.n, max(self.passes, done))

        found = pulled_back(self.setting, self.layers, cotangents, said)
        self.at += len(cotangents)
        for layer in self.layers:
            if not bool(found[layer.name].isfinite().all()):
                raise InputError("model", f"a gradient that is not finite at {layer.name}", "finite derivatives",
                                 "look for a root or a norm at 0, or an overflow")  # fmt: skip
        return found


def _mean_gradients(
    pull: _Pull, how: EstimateSettings, n: int, outputs: int
) -> tuple[dict[str, float], dict[str, float]]:
    """`Σ_c ‖J_cᵀ1‖²` by layer, and its standard error (0 where it is exact)."""
    exact = outputs <= how.probes
    signs = torch.eye(outputs, dtype=torch.float64) if exact else random_signs(how.seed, "alignment mean", how.probes,
                                                                                outputs)  # fmt: skip
    parts = {layer.name: list[float]() for layer in pull.layers}
    for some in signs.split(how.probes):
        for name, g in pull(some[:, None, :].expand(-1, n, -1)).items():
            parts[name] += g.square().sum(1).tolist()
    if exact:
        return {name: sum(values) for name, values in parts.items()}, dict.fromkeys(parts, 0.0)
    spread = {name: torch.tensor(values, dtype=torch.float64) for name, values in parts.items()}
    return ({name: float(t.mean()) for name, t in spread.items()},
            {name: float(t.std()) / math.sqrt(len(t)) for name, t in spread.items()})  # fmt: skip


def _traced(pull: _Pull, y: Tensor, how: EstimateSettings) -> dict[str, tuple[Estimate | None, str]]:
    """The traced alignment, and how it was estimated.

    `(v_kᵀ K̄ v_l) = Σ_c ⟨J_cᵀv_k, J_cᵀv_l⟩`, C passes per probe; its numerator `Σ_cr σ_r² ‖J_cᵀu_r‖²`, with
    `ỹ = Σ_r σ_r u_r w_rᵀ`, is exact where that takes few passes, else an average over random signs of outputs and
    directions.
    """
    n, outputs = y.shape
    vt = random_signs(how.seed, "alignment traced probes", how.few, n)
    vt = vt - vt.mean(1, keepdim=True)
    left, sizes, _ = torch.linalg.svd(y, full_matrices=False)
    directions = (left * sizes)[:, sizes > 1e-12 * sizes[0]].mT  # σ_r u_r, (r, n)
    exact = how.exactly(outputs, directions.shape[0])
    products = {layer.name: torch.zeros(how.few, how.few, dtype=torch.float64) for layer in pull.layers}
    tops: dict[str, list[float]] = {name: [] for name in products}
    for c in range(outputs):
        for name, g in pull(_at_output(vt, c, outputs)).items():
            products[name] += (g @ g.mT).cpu()
        for part in directions.split(how.probes) if exact else ():
            for name, g in pull(_at_output(part, c, outputs)).items():
                tops[name].append(float(g.square().sum()))
    if not exact:
        signs = random_signs(how.seed, "alignment traced numerator", how.probes, outputs)
        mixed = random_signs(how.seed, "alignment traced directions", how.probes, directions.shape[0]) @ directions
        for name, g in pull(mixed[:, :, None] * signs[:, None, :]).items():
            tops[name] += g.square().sum(1).tolist()
    scale = float((y.mT @ y).norm())
    words = f"estimate: {how.few} probes, {'exact numerator' if exact else f'numerator of {how.probes} random signs'}"
    found: dict[str, tuple[Estimate | None, str]] = {}
    for name, values in tops.items():
        parts = torch.tensor(values, dtype=torch.float64)
        top = float(parts.sum()) if exact else float(parts.mean())
        error = 0.0 if exact or top <= 0 else float(parts.std()) / math.sqrt(len(parts)) / top
        one = alignment_estimate(products[name], top, scale)
        found[name] = (None if one is None else Estimate(one.value, math.hypot(one.stderr, error * one.value)), words)
    return found


def _at_output(vectors: Tensor, c: int, outputs: int) -> Tensor:
    """`e_c ⊗ v_k`: `(k, n, C)`."""
    found = vectors.new_zeros(*vectors.shape, outputs)
    found[:, :, c] = vectors
    return found
