"""What infinite width predicts of a model: whether it is a plain chain, by which activation, and the recursion."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from isthmus._errors import InputError
from isthmus.probe._loading_files import reason_of
from isthmus.probe._tangent_layers import LINEAR, TangentLayer
from isthmus.probe._tangent_setting import rounding
from isthmus.tangent import PairMean, in_double
from isthmus.theory import ACTIVATIONS, SignalPropagation, propagate_signal

_COARSE = 2.0**-12
"""Products that are rounded by more than this are summed in a finer format, so that few roundings add up."""


@dataclasses.dataclass(frozen=True)
class Link:
    """A layer as a link of a chain.

    Attributes:
        layer: the layer.
        read: what it reads, a sample in each row; None where there is no such tensor.
        forward_loss: of what it reads; None where there is none.
        why: why there is no tensor, or no forward loss.
    """

    layer: TangentLayer
    read: Tensor | None
    forward_loss: PairMean | None
    why: str


class _NoPrediction(Exception):  # noqa: N818 - an answer, not an error
    """Why the recursion does not apply."""


def predict(model: nn.Module, links: Sequence[Link], outs: Tensor) -> tuple[str, SignalPropagation | None, str]:
    """Name of the activation of a plain chain, and its recursion (docs/theory 4.3); or the reason why there is none.

    Args:
        model: whose activation modules are tried, too.
        links: every layer, in order of execution.
        outs: what the model gives.
    """
    try:
        return (*_predicted(model, links, outs), "")
    except _NoPrediction as reason:
        return "", None, str(reason)
    except InputError as error:
        return "", None, f"the recursion does not apply ({error})"
    except Exception as error:  # noqa: BLE001 - an extra must not cost what was measured
        return "", None, f"the prediction failed ({type(error).__name__}: {reason_of(error)})"


def _predicted(model: nn.Module, links: Sequence[Link], outs: Tensor) -> tuple[str, SignalPropagation]:
    chain = [_linear(link) for link in links]
    if len(chain) < 2:
        raise _NoPrediction("there is one layer")
    for name, module, _ in chain[:-1]:
        if not bool(module.weight.detach().any()):
            raise _NoPrediction(f"the weights of {name} are all zero")
    start = links[0].forward_loss
    if start is None:
        raise _NoPrediction(f"{chain[0][0]}: {links[0].why}")
    given = [_affine(module, read) for _, module, read in chain]
    if _error([given[-1]], [outs], _grain(chain[-1:], outs)) == math.inf:
        raise _NoPrediction(f"the outputs are not what {chain[-1][0]} gives")
    name, phi = _activation(model, given[:-1], [read for _, _, read in chain[1:]], _grain(chain, outs))
    if not name:
        raise _NoPrediction("its layers are not joined by one known activation alone (skips or normalisations, say)")
    weights, biases = zip(*(_variances(module) for _, module, _ in chain[:-1]), strict=True)
    return name, propagate_signal(
        phi, depth=len(chain) - 1, weight_variance=weights, bias_variance=biases, correlation=1 - start.value,
        second_moment=float(in_double(chain[0][2]).square().mean()),
    )  # fmt: skip


def _linear(link: Link) -> tuple[str, nn.Linear, Tensor]:
    """Name, module and input of a linear layer."""
    layer = link.layer
    if layer.kind != LINEAR:
        plain = f"{layer.name} ({type(layer.module).__name__}) is no linear layer"
        raise _NoPrediction(f"{layer.name}: {layer.why}" if layer.why else plain)
    if link.read is None:
        raise _NoPrediction(f"{layer.name}: {link.why}")
    if link.read.dim() != 2:
        raise _NoPrediction(f"{layer.name} reads {link.read[0, ..., 0].numel()} rows of each sample, not one")
    return layer.name, cast("nn.Linear", layer.module), link.read


def _affine(layer: nn.Linear, read: Tensor) -> Tensor:
    """`W x + b` in float64 on the CPU."""
    bias = cast("Tensor | None", layer.bias)
    weights = in_double(layer.weight.detach()).cpu()
    return nn.functional.linear(
        in_double(read).cpu(), weights, None if bias is None else in_double(bias).detach().cpu()
    )


def _variances(layer: nn.Linear) -> tuple[float, float]:
    """`σ_w²` and `σ_b²` of a layer: a neuron's sum of squared weights, and its squared bias, in the mean."""
    bias = cast("Tensor | None", layer.bias)
    weights = float(in_double(layer.weight.detach()).square().sum(1).mean())
    return weights, 0.0 if bias is None else float(in_double(bias.detach()).square().mean())


def _grain(chain: Sequence[tuple[str, nn.Linear, Tensor]], outs: Tensor) -> float:
    """The coarsest rounding on the way."""
    return max(rounding(t) for t in (outs, *(t for _, module, read in chain for t in (module.weight, read))))


def _error(exact: Sequence[Tensor], found: Sequence[Tensor], grain: float) -> float:
    """Mean square difference in units of the largest entry, summed over pairs; infinite where rounding cannot be all.

    A mean, since the largest difference may well be a rounding, of which the right activation has as many.
    """
    room = 4 * grain if grain > _COARSE else math.sqrt(grain)
    total = 0.0
    for one, other in zip(exact, found, strict=True):
        if one.shape != other.shape:
            return math.inf
        rounded = in_double(other.detach()).cpu()
        gap, size = (one - rounded).abs(), max(float(one.abs().max()), float(rounded.abs().max()))
        if not float(gap.max()) <= room * size:
            return math.inf
        total += float((gap / size).square().mean()) if size > 0 else 0.0
    return total


def _activation(
    model: nn.Module, given: Sequence[Tensor], read: Sequence[Tensor], grain: float
) -> tuple[str, str | Callable[[Tensor], Tensor]]:
    """The activation that makes best what each layer reads of what the one before gives; empty where none does.

    Of two that do so equally well it is the ReLU, or else the first.
    """
    modules = [m for m in model.modules() if type(m).__module__ == "torch.nn.modules.activation"]
    candidates: dict[str, Callable[[Tensor], Tensor]] = {
        "relu": ACTIVATIONS["relu"], **ACTIVATIONS,
        **{repr(m): _alone(m) for m in modules if not any(True for _ in m.parameters())},
    }  # fmt: skip
    best, least = "", math.inf
    for name, phi in candidates.items():
        try:
            with torch.no_grad():
                error = _error([phi(z.clone()) for z in given], read, grain)
        except Exception:  # noqa: BLE001 - a module that takes more than one tensor is none of them
            continue
        if error < least:
            best, least = name, error
    return best, best if best in ACTIVATIONS or not best else candidates[best]


def _alone(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """What a module computes, without the hooks that its owner put on it."""

    def phi(x: Tensor) -> Tensor:
        return module.forward(x)

    phi.__name__ = repr(module)
    return phi
