"""Gaussian moments of an activation: what signal propagation at infinite width is made of."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Protocol, cast, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from isthmus._errors import InputError, near_name_hint

Activation = Callable[[Tensor], Tensor]

NODES = (8, 16, 32)
"""Nodes of each panel, in the order in which they are tried."""

_REACH = 10.0
"""Integrals over a standard normal variable run from minus this to this: 1e-23 of it lies outside."""

_LINEAR = 1e-16
"""Below this 1 − ρ, differences of the activation are rounding, and its derivative takes their place."""

ACTIVATIONS: Mapping[str, Activation] = {
    "elu": functional.elu, "erf": torch.erf, "gelu": functional.gelu, "hardtanh": functional.hardtanh,
    "leaky_relu": functional.leaky_relu, "linear": lambda x: x, "relu": torch.relu, "selu": functional.selu,
    "sigmoid": torch.sigmoid, "silu": functional.silu, "softplus": functional.softplus, "tanh": torch.tanh,
}  # fmt: skip
"""Activations known by name."""


@runtime_checkable
class Moments(Protocol):
    """Moments of an activation φ at `u₁, u₂`, centred normal variables of variance q and correlation ρ."""

    @property
    def exact(self) -> bool:
        """Whether they are closed forms, for which `nodes` does not matter."""
        ...

    @property
    def kinks(self) -> tuple[tuple[float, float], ...]:
        """Where φ' jumps, and by how much."""
        ...

    def single(self, q: float, nodes: int) -> tuple[float, float, float]:
        """`E φ²`, `E φ'²` and `d(E φ²)/dq`."""
        ...

    def pair(self, q: float, loss: float, nodes: int) -> tuple[float, float]:
        """`½ E (φ(u₁) − φ(u₂))²` and `E φ'(u₁) φ'(u₂)` at `ρ = 1 − loss`; the first keeps its digits as loss → 0."""
        ...

    def curvature(self, q: float, nodes: int) -> float:
        """`E φ''²`, kinks left out."""
        ...


def _sine_excess(angle: float) -> float:
    """`sin θ − θ cos θ` without cancellation: `Σ (−1)^{k+1} 2k θ^{2k+1} / (2k+1)!`."""
    if angle > 0.5:
        return math.sin(angle) - angle * math.cos(angle)
    return math.fsum((-1) ** (k + 1) * 2 * k * angle ** (2 * k + 1) / math.factorial(2 * k + 1) for k in range(1, 8))


@dataclasses.dataclass(frozen=True)
class PiecewiseLinear:
    """`φ(x) = low·x` below 0 and `high·x` above: linear, ReLU, leaky ReLU, absolute value."""

    low: float
    high: float
    exact: bool = True

    @property
    def kinks(self) -> tuple[tuple[float, float], ...]:
        """The corner at 0."""
        return ((0.0, self.high - self.low),) if self.high != self.low else ()

    def single(self, q: float, nodes: int) -> tuple[float, float, float]:
        """See `Moments`."""
        half = (self.low**2 + self.high**2) / 2
        return q * half, half, half

    def pair(self, q: float, loss: float, nodes: int) -> tuple[float, float]:
        """See `Moments`."""
        angle = 2 * math.asin(math.sqrt(loss / 2))
        straight, bent = self.low * self.high, (self.high - self.low) ** 2 / 2
        lost = loss - _sine_excess(angle) / math.pi
        return q * (straight * loss + bent * lost), straight + bent * (1 - angle / math.pi)

    def curvature(self, q: float, nodes: int) -> float:
        """See `Moments`."""
        return 0.0


@dataclasses.dataclass(frozen=True)
class ErrorFunction:
    """`φ = erf`."""

    exact: bool = True
    kinks: tuple[tuple[float, float], ...] = ()

    def single(self, q: float, nodes: int) -> tuple[float, float, float]:
        """See `Moments`."""
        root = math.sqrt(1 + 4 * q)
        return 2 / math.pi * math.atan2(2 * q, root), 4 / math.pi / root, 4 / math.pi / ((1 + 2 * q) * root)

    def pair(self, q: float, loss: float, nodes: int) -> tuple[float, float]:
        """See `Moments`."""
        whole, product = 2 * q / (1 + 2 * q), 2 * q * (1 - loss) / (1 + 2 * q)
        if product <= 0:  # the arc sines, as in `single`: opposite inputs stay exactly opposite
            side = math.sqrt(1 + 4 * q + 4 * q * q * loss * (2 - loss))
            lost = math.atan2(2 * q, math.sqrt(1 + 4 * q)) - math.atan2(2 * q * (1 - loss), side)
        else:  # the sine of the difference, free of cancellation
            first = math.sqrt(1 + 4 * q) / (1 + 2 * q)
            second = math.sqrt(1 + 4 * q + 4 * q * q * loss * (2 - loss)) / (1 + 2 * q)
            lost = math.asin((whole + product) * whole * loss / (whole * second + product * first))
        return 2 / math.pi * lost, 4 / math.pi / math.sqrt(1 + 4 * q + 4 * q * q * loss * (2 - loss))

    def curvature(self, q: float, nodes: int) -> float:
        """See `Moments`."""
        return 16 / math.pi * q * (1 + 4 * q) ** -1.5


@functools.cache
def _legendre(nodes: int) -> tuple[Tensor, Tensor]:
    x, w = np.polynomial.legendre.leggauss(nodes)
    return torch.from_numpy(x), torch.from_numpy(w)


def _normal_nodes(edges: Float[Tensor, "*rows edges"], nodes: int) -> tuple[Tensor, Tensor]:
    """Points between sorted edges and their weights, the standard normal density included, in the last dimension."""
    x, w = _legendre(nodes)
    middle, half = (edges[..., 1:] + edges[..., :-1]) / 2, (edges[..., 1:] - edges[..., :-1]) / 2
    points = middle[..., None] + half[..., None] * x
    weights = half[..., None] * w * torch.exp(-points.square() / 2) / math.sqrt(2 * math.pi)
    return points.flatten(-2), weights.flatten(-2)


def _graded(scale: float) -> Tensor:
    """Offsets `0, ±scale, ±2 scale, ±4 scale, …` up to the ends, for a feature of that size."""
    count = max(0, math.ceil(math.log2(_REACH / scale))) if scale < 1 else 0
    steps = scale * 2.0 ** torch.arange(count, dtype=torch.float64)
    return torch.cat([torch.zeros(1, dtype=torch.float64), steps, -steps])


class Quadrature:
    """Any activation, by Gauss–Legendre panels that end at its kinks and grow with the distance from them.

    Nodes of a Gauss–Hermite rule lie about .1 apart: they see no kink between two inputs that are closer, agree with
    those of the next rule, and are wrong together. In the law of the forward loss the kink is all that counts.
    """

    exact = False

    def __init__(self, function: Activation, name: str) -> None:
        self.function, self.name = function, name
        self._check()
        if any(size > 0 for _, size in self._jumps(0)):
            raise InputError("activation", name, "a function without jumps, whose derivative is finite",
                             "a steep tanh comes close to a step")  # fmt: skip
        self.kinks = self._jumps(1)
        self._splits = sorted({x for x, _ in (*self.kinks, *self._jumps(2))})

    def _check(self) -> None:
        x = torch.linspace(-2.5, 3.5, 13, dtype=torch.float64)
        try:
            values = [self.function(x.clone()), self.function(x.flip(0)).flip(0), self.function(x[:6])]
        except Exception as error:  # noqa: BLE001 - whatever a caller's function raises
            reason = f"{type(error).__name__}: {error}"
            raise InputError("activation", self.name, f"a function of a float64 tensor (it raised {reason})") from None
        whole = all(isinstance(cast("object", v), Tensor) for v in values) and values[0].shape == x.shape
        if not whole or values[2].shape != (6,) or not bool(torch.isfinite(values[0]).all()):
            raise InputError("activation", self.name, "a function that gives a finite number for every entry")
        if not torch.allclose(values[0], values[1]) or not torch.allclose(values[0][:6], values[2]):
            raise InputError("activation", self.name, "a function of each entry alone, without randomness")

    def derivatives(self, x: Tensor, order: int) -> list[Tensor]:
        """φ and its derivatives up to an order, by autograd."""
        with torch.inference_mode(False), torch.enable_grad():
            at = x.detach().clone().requires_grad_()
            found = [self.function(at.clone())]
            for k in range(order):
                if not found[-1].requires_grad:
                    if k == 0:
                        raise InputError("activation", self.name, "a function that autograd can follow",
                                         "write it with operations of torch, without detach()")  # fmt: skip
                    found.append(torch.zeros_like(x))
                    continue
                (grad,) = torch.autograd.grad(found[-1].sum(), at, create_graph=k + 1 < order, materialize_grads=True)
                found.append(grad)
        return [f.detach().double() for f in found]

    def _values(self, x: Tensor, order: int) -> list[Tensor]:
        found = self.derivatives(x, order)
        if not all(bool(torch.isfinite(f).all()) for f in found):
            raise InputError("activation", self.name, f"finite numbers at inputs of size {float(x.abs().max()):.3g}",
                             "smaller variances keep its inputs smaller")  # fmt: skip
        return found

    def _jumps(self, order: int) -> tuple[tuple[float, float], ...]:
        """Where a derivative jumps between −200 and 200, and by how much: cells are halved towards the larger step."""
        grid = torch.sinh(torch.linspace(-6.0, 6.0123, 4097, dtype=torch.float64))  # 0 is not on it

        def value(x: Tensor) -> Tensor:
            return self.derivatives(x, order)[order]

        try:
            values = value(grid)
        except RuntimeError:  # autograd cannot derive it so often
            return ()
        low, high, below, above = grid[:-1], grid[1:], values[:-1], values[1:]
        usual = values[grid.abs() < 10].abs()
        size = torch.maximum(below.abs(), above.abs()).clamp(min=1e-6 * float(usual[torch.isfinite(usual)].max()))
        size = size.nan_to_num(math.inf, math.inf)  # where φ overflows is no kink
        for _ in range(70):
            middle = (low + high) / 2
            at = value(middle)
            left = (at - below).abs() >= (above - at).abs()
            low, below = torch.where(left, low, middle), torch.where(left, below, at)
            high, above = torch.where(left, middle, high), torch.where(left, at, above)
        found = (above - below).abs() > 1e-4 * size
        return tuple(
            (0.0 if abs(x) < 1e-15 else x, step)
            for x, step in zip(high[found].tolist(), (above - below).abs()[found].tolist(), strict=True)
        )

    def slopes(self) -> tuple[float, float] | None:
        """The slopes on both sides of 0, where φ is linear there; None where it is not."""
        right = torch.logspace(-6, 2, 200, dtype=torch.float64)
        x = torch.cat([-right, right])
        value, slope = self.derivatives(x, 1)
        if any(kink != 0.0 for kink in self._splits) or not torch.allclose(value, slope * x, rtol=1e-12, atol=0):
            return None
        low, high = slope[:200], slope[200:]
        flat = max(float(s.max() - s.min()) for s in (low, high)) <= 1e-12 * float(slope.abs().max())
        return (float(low[0]), float(high[0])) if flat else None

    def _outer(self, q: float, loss: float, nodes: int) -> tuple[Tensor, Tensor]:
        """Nodes over `u₁/√q`, gathered where φ or its mean over u₂ changes fast."""
        root, spread = math.sqrt(q), math.sqrt(loss * (2 - loss))
        edges = [torch.linspace(-_REACH, _REACH, 11, dtype=torch.float64), _graded(min(1.0, 2 / root))]
        edges += [torch.tensor([kink / root], dtype=torch.float64) for kink in self._splits]
        if 0 < spread < 0.5:
            edges += [kink / root / (1 - loss) + _graded(spread) for kink in self._splits]
        return _normal_nodes(torch.cat(edges).clamp(-_REACH, _REACH).unique(), nodes)

    def _one(self, q: float, nodes: int, order: int) -> tuple[Tensor, Tensor, list[Tensor]]:
        points, weights = self._outer(q, 0.0, nodes)
        return points, weights, self._values(math.sqrt(q) * points, order)

    def single(self, q: float, nodes: int) -> tuple[float, float, float]:
        """See `Moments`."""
        points, weights, (value, slope) = self._one(q, nodes, 1)
        square = weights * value.square()
        if float(square[points.abs() > _REACH - 2].sum()) > 1e-8 * float(square.sum()):
            raise InputError("activation", self.name, f"a function that grows less at a variance of {q:.3g}",
                             "its square has no mean that could be trusted; try smaller variances")  # fmt: skip
        growth = float((weights * value * slope * points).sum()) / math.sqrt(q)
        return float(square.sum()), float((weights * slope.square()).sum()), growth

    def curvature(self, q: float, nodes: int) -> float:
        """See `Moments`."""
        _, weights, found = self._one(q, nodes, 2)
        return float((weights * found[2].square()).sum())

    def pair(self, q: float, loss: float, nodes: int) -> tuple[float, float]:
        """See `Moments`."""
        if loss < _LINEAR:
            steep = self.single(q, nodes)[1]
            return q * loss * steep, steep
        root, spread = math.sqrt(q), max(math.sqrt(loss * (2 - loss)), 1e-8)
        a, weight_a = self._outer(q, loss, nodes)
        centre = -(1 - loss) * a[:, None] / spread
        breaks = [torch.linspace(-_REACH, _REACH, 11, dtype=torch.float64).expand(len(a), -1)]
        breaks += [centre + kink / root / spread for kink in self._splits]
        breaks.append(centre + _graded(min(1.0, 2 / (root * spread))))
        edges = torch.cat(breaks, 1).clamp(-_REACH, _REACH).sort(1).values
        b, weight_b = _normal_nodes(edges, nodes)
        first, first_slope = self._values(root * a, 1)
        second, second_slope = self._values(root * ((1 - loss) * a[:, None] + spread * b), 1)
        gap = (weight_b * (second - first[:, None]).square()).sum(1)
        slopes = first_slope * (weight_b * second_slope).sum(1)
        return float((weight_a * gap).sum()) / 2, float((weight_a * slopes).sum())


def moments_of(activation: str | Activation) -> tuple[str, Moments]:
    """Name and moments of an activation given by name or as a callable; exact where a closed form is known.

    Raises:
        InputError: an unknown name, or a callable that is no elementwise, finite, continuous, differentiable function.
    """
    if isinstance(activation, str):
        if activation not in ACTIVATIONS:
            raise InputError("activation", activation, "a known activation or a callable",
                             near_name_hint(activation, ACTIVATIONS))  # fmt: skip
        name, function = activation, ACTIVATIONS[activation]
    else:
        name, function = getattr(activation, "__name__", None) or repr(activation), activation
    if function is torch.erf:
        return name, ErrorFunction()
    numeric = Quadrature(function, name)
    slopes = numeric.slopes()
    return name, numeric if slopes is None else PiecewiseLinear(*slopes)
