"""Alignment without kernels: random probes, any number of samples."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

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


class CentredSigns:
    """`k` vectors of random signs over n samples and C outputs, minus their mean over samples; never held whole.

    The same for a seed and a purpose, whatever the batches are: each chunk of samples has a generator of its own.
    """

    _CHUNK = 512

    def __init__(self, seed: int, purpose: str, k: int, n: int, outputs: int) -> None:
        self.seed, self.purpose, self.shape, self.n = seed, purpose, (k, outputs), n
        total = torch.zeros(k, 1, outputs, dtype=torch.float64)
        for chunk in range(-(-n // self._CHUNK)):
            total += self._signs(chunk).sum(1, keepdim=True)
        self.mean = total / n

    def _signs(self, chunk: int) -> Tensor:
        size = min(self._CHUNK, self.n - chunk * self._CHUNK)
        k, outputs = self.shape
        return random_signs(self.seed, f"{self.purpose} {chunk}", k, size, outputs)

    def __call__(self, start: int, stop: int) -> Tensor:
        """Those of some samples: `(k, stop − start, C)`."""
        first, last = start // self._CHUNK, (stop - 1) // self._CHUNK
        signs = torch.cat([self._signs(chunk) for chunk in range(first, last + 1)], 1)
        at = start - first * self._CHUNK
        return signs[:, at : at + stop - start] - self.mean


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
    v = CentredSigns(how.seed, "alignment probes", probes, n, outputs)
    ours = y.cpu()
    pull = _Pull(setting, layers, how.passes(ours, outputs), progress)
    products = {name: (g @ g.mT).cpu() for name, g in pull(probes, v).items()}
    numerators = {name: float(g.square().sum()) for name, g in pull(1, lambda i, j: ours[None, i:j]).items()}
    traced = _traced(pull, ours, how) if how.traced_at(outputs) else {}
    means, means_error = _mean_gradients(pull, how, outputs)
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

    def __call__(self, k: int, cotangents: Callable[[int, int], Tensor]) -> dict[str, Tensor]:
        done = self.at

        def said(samples: int) -> None:
            self.progress("alignment: probes", done + samples * k // self.n, max(self.passes, done))

        found = pulled_back(self.setting, self.layers, k, cotangents, said)
        self.at += k
        for layer in self.layers:
            if not bool(found[layer.name].isfinite().all()):
                raise InputError("model", f"a gradient that is not finite at {layer.name}", "finite derivatives",
                                 "look for a root or a norm at 0, or an overflow")  # fmt: skip
        return found


def _mean_gradients(pull: _Pull, how: EstimateSettings, outputs: int) -> tuple[dict[str, float], dict[str, float]]:
    """`Σ_c ‖J_cᵀ1‖²` by layer, and its standard error (0 where it is exact)."""
    exact = outputs <= how.probes
    signs = torch.eye(outputs, dtype=torch.float64) if exact else random_signs(how.seed, "alignment mean", how.probes,
                                                                                outputs)  # fmt: skip
    pulled = pull(len(signs), lambda i, j: signs[:, None, :].expand(-1, j - i, -1))
    parts = {name: g.square().sum(1) for name, g in pulled.items()}
    if exact:
        return {name: float(t.sum()) for name, t in parts.items()}, dict.fromkeys(parts, 0.0)
    return ({name: float(t.mean()) for name, t in parts.items()},
            {name: float(t.std()) / math.sqrt(len(t)) for name, t in parts.items()})  # fmt: skip


def _traced(pull: _Pull, y: Tensor, how: EstimateSettings) -> dict[str, tuple[Estimate | None, str]]:
    """The traced alignment, and how it was estimated.

    `(v_kᵀ K̄ v_l) = Σ_c ⟨J_cᵀv_k, J_cᵀv_l⟩`, C passes per probe; its numerator `Σ_cr σ_r² ‖J_cᵀu_r‖²`, with
    `ỹ = Σ_r σ_r u_r w_rᵀ`, is exact where that takes few passes, else an average over random signs of outputs and
    directions.
    """
    n, outputs = y.shape
    vt = CentredSigns(how.seed, "alignment traced probes", how.few, n, 1)
    left, sizes, _ = torch.linalg.svd(y, full_matrices=False)
    directions = (left * sizes)[:, sizes > 1e-12 * sizes[0]].mT  # σ_r u_r, (r, n)
    exact = how.exactly(outputs, directions.shape[0])
    products = {layer.name: torch.zeros(how.few, how.few, dtype=torch.float64) for layer in pull.layers}
    tops: dict[str, list[float]] = {name: [] for name in products}
    for c in range(outputs):
        for name, g in pull(how.few, functools.partial(_at_output, vt, c, outputs)).items():
            products[name] += (g @ g.mT).cpu()
        for part in directions.split(how.probes) if exact else ():
            for name, g in pull(len(part), functools.partial(_at_output, _held(part), c, outputs)).items():
                tops[name].append(float(g.square().sum()))
    if not exact:
        signs = random_signs(how.seed, "alignment traced numerator", how.probes, outputs)
        mix = random_signs(how.seed, "alignment traced directions", how.probes, directions.shape[0])

        def numerator(start: int, stop: int) -> Tensor:
            return (mix @ directions[:, start:stop])[:, :, None] * signs[:, None]

        for name, g in pull(how.probes, numerator).items():
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


def _held(vectors: Tensor) -> Callable[[int, int], Tensor]:
    """Vectors `(k, n)` as those of one output."""
    return lambda start, stop: vectors[:, start:stop, None]


def _at_output(vectors: Callable[[int, int], Tensor], c: int, outputs: int, start: int, stop: int) -> Tensor:
    """`e_c ⊗ v_k` at some samples: `(k, stop − start, C)`."""
    here = vectors(start, stop)[..., 0]
    found = here.new_zeros(*here.shape, outputs)
    found[:, :, c] = here
    return found
