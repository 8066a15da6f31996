"""Correlations of activations and of output derivatives through networks of infinite width, layer by layer."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus._errors import InputError
from isthmus.theory._activation_moments import NODES, Activation, Moments, moments_of
from isthmus.theory._checks import plain, positive, real, whole

_AGREED = 1e-6
_LARGEST_ERROR = 1e-2
_EQUAL = 1e-9
"""Relative differences up to this are rounding: where odd activations keep `1 − c = 1`, it must not decide."""

_UNCORRELATED = 1e-13
"""A cosine below this is the rounding of a sum of positive and negative terms, and counts as 0."""

_SMALLEST, _LARGEST, _LARGEST_INTEGRATED = 1e-280, 1e280, 1e30
"""Variances that float64 can hold; those of integrals end earlier: no network in single precision comes so far, and
the panels of a quadrature multiply with the logarithm of the variance."""


@dataclasses.dataclass(frozen=True)
class SignalPropagation:
    """Two inputs on their way through a random network of infinite width (arXiv 2110.11749, docs/theory 4.3).

    Entry `ℓ = 0` is of the input, entry L of what the output reads. An odd φ without bias loses nothing forwards: it
    keeps `1 − c_ℓ = 1` from `c_0 = 0` on. The two meet there where `g_ℓ` comes to 1, at L at the latest.

    Attributes:
        second_moment: `E α_ℓ²`, mean square of an activation.
        correlation: `c_ℓ`, uncentred cosine of the two activations `α_ℓ`.
        forward_loss: `1 − c_ℓ`, without the rounding of that difference.
        backward_correlation: `g_ℓ`, cosine of the output's derivatives with respect to `α_ℓ`.
        equilibrium: `ℓ*`, the layer where `1 − c_ℓ` falls to `g_ℓ`, between two layers by interpolation; None where
            it does not. Relative differences up to 1e-9, or up to `error`, count as 0.
        error: 0 for closed forms; otherwise the largest relative change of a forward loss or backward correlation
            when the nodes of the quadrature were doubled. A factor of `g` below 1e-13 counts as 0.
    """

    second_moment: Float[Tensor, " layers"]
    correlation: Float[Tensor, " layers"]
    forward_loss: Float[Tensor, " layers"]
    backward_correlation: Float[Tensor, " layers"]
    equilibrium: float | None
    error: float


def check_variances(weight_variance: object, bias_variance: object) -> tuple[float, float]:
    """Both as floats: the first above 0, the second 0 or above, or `InputError`."""
    weight = positive("weight_variance", weight_variance)
    return weight, real("bias_variance", bias_variance, "a finite number, 0 or above", lambda x: x >= 0)


def _curve(argument: str, values: object) -> list[float]:
    found = plain(values)
    if not isinstance(found, (list, tuple)) or not found:
        raise InputError(argument, values, "one number for each layer, at least one")
    return [
        real(argument, x, "finite numbers, one for each layer", lambda _: True) for x in cast("list[object]", found)
    ]


def equilibrium_layer(
    forward_loss: Float[Tensor, " layers"], backward_correlation: Float[Tensor, " same"]
) -> float | None:
    """Where the forward loss `1 − c_ℓ` first falls to the backward correlation `g_ℓ` (docs/theory 4.3).

    Both are taken as straight between layers, and as equal where they differ by a relative 1e-9 at most. The result
    counts from the first entry, which is layer 0; None where the loss starts at or below the correlation, or stays
    above it.

    Args:
        forward_loss: of each layer, in order.
        backward_correlation: of the same layers.

    Raises:
        InputError: different lengths, none, or numbers that are not finite.

    Example:
        >>> equilibrium_layer(torch.tensor([1.0, 0.5, 0.25]), torch.tensor([0.25, 0.5, 1.0]))
        1.0
    """
    return _crossing(_curve("forward_loss", forward_loss), _curve("backward_correlation", backward_correlation), _EQUAL)


def _crossing(losses: Sequence[float], correlations: Sequence[float], tolerance: float) -> float | None:
    """See `equilibrium_layer`; relative differences up to the tolerance count as 0."""
    if len(losses) != len(correlations):
        shapes = (len(losses), len(correlations))
        raise InputError("forward_loss, backward_correlation", shapes, "as many of one as of the other")
    excess = [
        0.0 if abs(a - b) <= tolerance * max(abs(a), abs(b)) else a - b
        for a, b in zip(losses, correlations, strict=True)
    ]
    for layer, (before, after) in enumerate(itertools.pairwise(excess)):
        if before > 0 >= after:
            return layer + before / (before - after)
    return None


@dataclasses.dataclass(frozen=True)
class _Network:
    moments: Moments
    variances: list[tuple[float, float]]
    """Of weights and biases, layer by layer."""
    residual: bool

    def _step(self, weight: float, bias: float, power: float, loss: float, nodes: int) -> tuple[float, float, float]:
        """`E α²`, `1 − c` of a layer, and the cosine of derivatives that its backward step multiplies by."""
        if self.residual:
            square, steep, _ = self.moments.single(power, nodes)
            gap, slopes = self.moments.pair(power, loss, nodes)
            whole = power + weight * square + bias
            return whole, (power * loss + weight * gap) / whole, (1 + weight * slopes) / (1 + weight * steep)
        q = weight * power + bias
        square, steep, _ = self.moments.single(q, nodes)
        gap, slopes = self.moments.pair(q, weight * power * loss / q, nodes)
        if not steep > 0:
            raise InputError("activation", "φ' = 0 everywhere it is used", "a function with a slope")
        return square, gap / square if square > 0 else math.nan, slopes / steep

    def _hold(self, variance: float, weight: float, layer: int) -> None:
        """Raise `InputError` where a variance is out of the range that can be computed."""
        largest = _LARGEST if self.moments.exact else _LARGEST_INTEGRATED
        if _SMALLEST < variance < largest:
            return
        way, hint = ("grow", "try a smaller one") if variance > 1 else ("shrink", "try a larger one")
        if way == "grow" and not self.moments.exact:
            hint += ", or an activation that grows more slowly"
        if way == "grow" and self.residual:
            hint += ", or divide it by the depth"
        expected = f"variances that stay between {_SMALLEST:g} and {largest:g} (they {way} past that at layer {layer})"
        raise InputError("weight_variance", weight, expected, hint)

    def run(self, power: float, loss: float, nodes: int) -> tuple[Tensor, Tensor, Tensor]:
        """Second moments, forward losses and backward correlations."""
        powers, losses, factors = [power], [loss], list[float]()
        for layer, (weight, bias) in enumerate(self.variances, 1):
            self._hold(power if self.residual else weight * power + bias, weight, layer)
            power, loss, factor = self._step(weight, bias, power, min(max(loss, 0.0), 2.0), nodes)
            self._hold(power, weight, layer)
            powers.append(power)
            losses.append(loss)
            factors.append(factor if abs(factor) > _UNCORRELATED else 0.0)
        backward = [1.0]
        for factor in reversed(factors):
            backward.append(backward[-1] * factor)
        columns = (powers, losses, backward[::-1])
        first, second, third = (torch.tensor(column, dtype=torch.float64) for column in columns)
        return first, second, third


def _each(argument: str, value: object, depth: int) -> Sequence[object]:
    """The value of each layer: one for all, or a list of them."""
    found = plain(value)
    if not isinstance(found, (list, tuple)):
        return [value] * depth
    several = cast("Sequence[object]", found)
    if len(several) != depth:
        raise InputError(argument, f"{len(several)} numbers", f"one number, or one for each of the {depth} layers")
    return several


def propagate_signal(
    activation: str | Activation,
    *,
    depth: int,
    weight_variance: float | int | Sequence[float | int],
    bias_variance: float | int | Sequence[float | int] = 0.0,
    correlation: float | int = 0.0,
    second_moment: float | int = 1.0,
    residual: bool = False,
) -> SignalPropagation:
    """Correlations through a random network of infinite width, of two inputs of equal norm.

    Multilayer, with `α_0 = x`, weights of variance `σ_w²/fan-in` and biases of variance `σ_b²`:

        α_ℓ = φ(z_ℓ),  z_ℓ = W_ℓ α_{ℓ−1} + b_ℓ,  q_ℓ = σ_w² E α_{ℓ−1}² + σ_b²,
        c_ℓ = E φ(u₁)φ(u₂) / E φ²,   g_{ℓ−1} = g_ℓ · E φ'(u₁)φ'(u₂) / E φ'²,   g_L = 1,

    `u₁, u₂` being normal with variance `q_ℓ` and correlation `(σ_w² E α_{ℓ−1}² c_{ℓ−1} + σ_b²)/q_ℓ`. For the ReLU with
    `σ_w² = 2, σ_b = 0` this is `c_{ℓ+1} = f(c_ℓ)`, `g_ℓ = Π_{k=ℓ}^{L−1} f'(c_k)`.

    Residual: `α_ℓ = α_{ℓ−1} + W_ℓ φ(α_{ℓ−1}) + b_ℓ`, with `α_0` normal (behind a random linear map, which keeps
    cosines):

        E α_ℓ² = E α_{ℓ−1}² + σ_w² E φ² + σ_b²,   g_{ℓ−1} = g_ℓ · (1 + σ_w² E φ'(u₁)φ'(u₂)) / (1 + σ_w² E φ'²).

    The output is linear in `α_L`. Closed forms serve linear, ReLU, leaky ReLU and erf (recognised in a callable, too);
    anything else is integrated, with the kinks of φ and φ' found first, and the error is stated
    (arXiv 2110.11749, docs/theory 4.3; residual networks after arXiv 1712.08969).

    Args:
        activation: φ, as a name (relu, leaky_relu, linear, erf, tanh, gelu, silu, elu, selu, softplus, sigmoid,
            hardtanh) or an elementwise, continuous, differentiable function of a tensor.
        depth: `L`, number of layers with an activation.
        weight_variance: `σ_w²`, one for all layers or one for each.
        bias_variance: `σ_b²`, the same.
        correlation: `c_0`, cosine of the two inputs.
        second_moment: `E α_0² = ‖x‖² / dimension`. It does not matter for piecewise linear φ without bias.
        residual: the residual network.

    Raises:
        InputError: depth below 1, a number out of range, an activation that cannot be used, variances that grow or
            shrink on the way past what can be computed (1e280 and 1e-280; where φ is integrated 1e30), or an integral
            whose error stays above 1%.

    Example:
        >>> signal = propagate_signal("relu", depth=30, weight_variance=2)
        >>> round(signal.equilibrium, 2), round(float(signal.backward_correlation[1]), 4)
        (10.98, 0.0065)
    """
    depth = whole("depth", depth, "a whole number of layers, at least 1", least=1)
    cosine = real("correlation", correlation, "a number in [-1, 1]", lambda x: -1 <= x <= 1)
    weights = _each("weight_variance", weight_variance, depth)
    biases = _each("bias_variance", bias_variance, depth)
    checked = [check_variances(weight, bias) for weight, bias in zip(weights, biases, strict=True)]
    power, loss = positive("second_moment", second_moment), 1.0 - cosine
    name, moments = moments_of(activation)
    network = _Network(moments, checked, residual)
    found = network.run(power, loss, NODES[0])
    error = 0.0
    if not moments.exact:
        for nodes in NODES[1:]:
            finer = network.run(power, loss, nodes)
            error = max(_change(a, b) for a, b in zip(found[1:], finer[1:], strict=True))
            found = finer
            if error <= _AGREED:
                break
        if not error <= _LARGEST_ERROR:
            raise InputError("activation", name, f"a function that {NODES[-1]} nodes a panel can integrate (the "
                             f"relative error is {error:.1g})", "smaller variances make it smoother")  # fmt: skip
    second, losses, backward = found
    crossing = _crossing(losses.tolist(), backward.tolist(), max(_EQUAL, error))
    return SignalPropagation(second, 1 - losses, losses, backward, crossing, error)


def _change(before: Tensor, after: Tensor) -> float:
    return float(((after - before).abs() / after.abs().clamp(min=_SMALLEST)).max())
