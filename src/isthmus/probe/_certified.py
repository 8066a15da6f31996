"""The certificate of bottleneck structure as a part of a measurement: its numbers, or the reason why there are none."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from isthmus.geometry import (
    BottleneckCertificate,
    WeightSpectra,
    bottleneck_certificate,
    differentiable_at,
    relative_balance,
    relu_tangent_kernel,
    weight_spectra,
)
from isthmus.probe._batches import Batch
from isthmus.probe._chains import Captured, Chain, capture_chains
from isthmus.probe._extras import attempted
from isthmus.probe._progress import Progress

OF_LAYERS = ("bottleneck_gap", "singular_values_near_one", "singular_values_near_one_centred", "neuron_balance")
OF_CHAINS = (
    "bottleneck_bound", "bottleneck_bound_median", "certified_rank", "bottleneck_tightness", "bottleneck_share_within",
    "bottleneck_share_certified", "norm_excess", "regularity_bound",
)  # fmt: skip
CERTIFICATE = (*OF_LAYERS, *OF_CHAINS)
"""Metrics of chains of linear layers joined by ReLU."""

OF_KERNEL = ("tangent_trace", "tangent_top_eigenvalue")
"""Metrics of the tangent kernel that a network which is one chain has in closed form."""

STABILITY = ("sharpness", "largest_stable_rate")
"""Metrics of the largest eigenvalue of the tangent kernel."""

LEVELS = (0.1, 0.2, 0.5)
"""Distances from `V_ℓ V_{ℓ−1}ᵀ` at which layers are counted."""

NO_CHAIN = "no two nn.Linear modules of the model are joined by ReLU, one reading the other"

_BUDGET = 2e10
"""Floating-point operations that all certificates of a model may take, about two seconds of one core; or as many as the
spectra of the chains' weights take, which are taken anyway, where those are more."""

_AGAIN = 5e10
"""Operations that their spectra without the mean direction may take."""

_ENTRIES = 2**23
_OUTPUTS = 512


@dataclasses.dataclass(frozen=True)
class ClosedKernel:
    """Tangent kernel of a network that is one chain: `Tr Θ_ℓ(x, x)` at every sample, and `λ_max(Θ)/n` or why not."""

    trace: Float[Tensor, "n layers"]
    top: float | None
    why_top: str


@dataclasses.dataclass(frozen=True)
class Certified:
    """What was found of one chain.

    Attributes:
        captured: the chain with its inputs.
        found: certificates at some of its inputs; None where `why` says why there are none.
        used: number of inputs that were tried, those on a kink of a ReLU included.
        kinks: number of those.
        spectra: singular values of its weights; without the mean direction only where `why_not_centred` is empty.
        balance: of every hidden layer, between 0 and 1; None where all its weights are 0.
        kernel: its tangent kernel, where the whole model is the chain.
    """

    captured: Captured
    found: BottleneckCertificate | None
    used: int
    kinks: int
    spectra: WeightSpectra
    balance: tuple[float | None, ...]
    why: str = ""
    why_not_centred: str = ""
    kernel: ClosedKernel | None = None
    why_kernel: str = ""

    @property
    def best(self) -> int:
        """The input with the smallest bound."""
        assert self.found is not None
        return int(self.found.bound.argmin())


@dataclasses.dataclass(frozen=True)
class Certificates:
    """Every chain of a model, the chains that have no certificate, and why there is none at all."""

    chains: tuple[Certified, ...] = ()
    refused: tuple[Chain, ...] = ()
    why: str = ""

    @property
    def kernel(self) -> ClosedKernel | None:
        """The tangent kernel in closed form, where the model is one chain."""
        return next((one.kernel for one in self.chains if one.kernel is not None), None)

    @property
    def why_kernel(self) -> str:
        """Why there is none."""
        said = next((one.why_kernel for one in self.chains if one.why_kernel), "")
        return said or "the model is no fully-connected ReLU network, whose kernel is known in closed form"


def wanted_of(metrics: frozenset[str] | None) -> frozenset[str]:
    """The metrics of this page that are asked for."""
    everything = frozenset((*CERTIFICATE, *OF_KERNEL, *STABILITY))
    return everything if metrics is None else everything & metrics


def certify(
    model: nn.Module, batch: Batch, chains: Sequence[Chain], handles: list[RemovableHandle], *,
    forward: Callable[[nn.Module, Any], Any] | None, spectra: Mapping[str, Tensor], samples: int, kernel: bool,
    bar: Progress,
) -> Certificates:  # fmt: skip
    """The certificate of every chain of a model at inputs of a batch (arXiv 2305.19008, docs/theory 3.3).

    Args:
        model: the model, inside `untouched`.
        batch: its samples.
        chains: found in the survey.
        handles: list of hook handles to be removed if this is interrupted.
        forward: how the model is called on a batch.
        spectra: singular values of weights that are known, by the name of the parameter.
        samples: most inputs of a chain; fewer where all chains together would take more than a few seconds.
        kernel: whether the tangent kernel is wanted.
        bar: shows progress.
    """
    good = [chain for chain in chains if not chain.why]
    bar("certificate", 0, None)
    captured = capture_chains(model, batch, good, handles, forward=forward) if good else []
    refused = [one.chain for one in captured if one.chain.why]
    captured = [one for one in captured if not one.chain.why]
    budget = max(_BUDGET, sum(_spectra(one.weights) for one in captured))
    allowed = _allowed([_operations(one.weights) for one in captured], budget, samples)
    again = sum(_spectra(one.weights) for one, most in zip(captured, allowed, strict=True) if most)
    centred = "" if again <= _AGAIN else "a second spectrum of every weight would take too long"
    found: list[Certified] = []
    for done, (one, most) in enumerate(zip(captured, allowed, strict=True)):
        bar("certificate", done, len(captured))
        if not most:
            refused.append(Chain(one.chain.names, _too_long(sum(map(bool, allowed)), len(captured))))
            continue
        known = [spectra.get(f"{name}.weight") for name in one.chain.names]
        made, why = attempted(partial(_certified, one, most, known, centred, kernel=kernel))
        if made is None:
            refused.append(Chain(one.chain.names, why))
        else:
            found.append(made)
    refused += [chain for chain in chains if chain.why]
    return Certificates(tuple(found), tuple(refused), "" if found else _why_none(refused))


def _too_long(fit: int, count: int) -> str:
    room = f"there is time for {fit} of {count} chains" if fit else "one input would take many seconds"
    return f"it would take too long ({room}): isthmus.geometry.bottleneck_certificate takes the weights of any chain"


def _why_none(refused: Sequence[Chain]) -> str:
    if not refused:
        return NO_CHAIN
    more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
    return f"no chain of nn.Linear modules joined by ReLU has one; {refused[0].label}{more}: {refused[0].why}"


def _operations(weights: Sequence[Tensor]) -> float:
    """Floating-point operations of a chain's certificate at one input, roughly."""
    narrow = min(min(w.shape) for w in weights)
    return sum(4.0 * narrow * (w.numel() + w.shape[0] * narrow + narrow**2) for w in weights) + 20.0 * narrow**3


def _spectra(weights: Sequence[Tensor]) -> float:
    """The same of the singular values of its weights."""
    return sum(5.0 * w.numel() * min(w.shape) for w in weights)


def _allowed(costs: Sequence[float], budget: float, most: int) -> list[int]:
    """Inputs for every chain within the budget: equally many for each, or one for evenly spaced ones and none else."""
    least = sum(costs)
    if least <= budget:
        return [min(most, int(budget / least))] * len(costs) if costs else []
    fit = int(len(costs) * budget / least)
    picked = {int((i + 0.5) * len(costs) / fit) for i in range(fit)}
    return [int(place in picked) for place in range(len(costs))]


def _certified(
    one: Captured, most: int, known: Sequence[Tensor | None], why_not_centred: str, *, kernel: bool
) -> Certified:
    weights, biases = one.weights, one.biases
    balance = relative_balance(weights, biases)
    values = [torch.linalg.svdvals(w.double()) if s is None else s for s, w in zip(known, weights, strict=True)]
    if one.inputs.shape[0] < 2:
        why_not_centred = "one input has no mean to leave out"
    spectra = WeightSpectra(tuple(values), tuple(values))
    if not why_not_centred:
        spectra = weight_spectra(weights, biases, one.inputs, values=values)
    every = torch.linspace(0, one.inputs.shape[0] - 1, min(most, one.inputs.shape[0]), dtype=torch.float64)
    x = one.inputs[every.round().long()]
    smooth = differentiable_at(weights, biases, x)
    kinks = int((~smooth).sum())
    made = Certified(one, None, x.shape[0], kinks, spectra, balance, why_not_centred=why_not_centred)
    if not bool(smooth.any()):
        why = f"all of its {kinks} inputs that were tried lie on the kink of a ReLU (a pre-activation exactly 0)"
        return dataclasses.replace(made, why=why, why_kernel=why)
    made = dataclasses.replace(made, found=bottleneck_certificate(weights, biases, x[smooth]))
    if not kernel or not one.whole:
        return made
    if weights[-1].shape[0] > _OUTPUTS:
        return dataclasses.replace(made, why_kernel=f"the network has more than {_OUTPUTS} outputs")
    return dataclasses.replace(made, kernel=_kernel(weights, biases, x[smooth]))


def _kernel(weights: Sequence[Tensor], biases: Sequence[Tensor | None], x: Tensor) -> ClosedKernel:
    n, outputs = x.shape[0], weights[-1].shape[0]
    size = n * outputs
    if len(weights) * size**2 > _ENTRIES:
        alone = [relu_tangent_kernel(weights, biases, row)[:, 0, :, 0] for row in x]
        trace = torch.stack([k.diagonal(dim1=-2, dim2=-1).sum(-1) for k in alone])
        why = f"its kernel of {size} × {size} is too large for the few samples of the certificate; give targets"
        return ClosedKernel(trace, None, why)
    kernels = relu_tangent_kernel(weights, biases, x)
    trace = kernels.diagonal(dim1=1, dim2=3).diagonal(dim1=1, dim2=2).sum(-1).mT
    top = torch.linalg.eigvalsh(kernels.sum(0).reshape(size, size))[-1]
    return ClosedKernel(trace, float(top) / n, "")
