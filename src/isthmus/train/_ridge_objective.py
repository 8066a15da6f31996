"""The ridge objective of a fully-connected ReLU network as a function of one vector, and its curvature."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from isthmus._errors import InputError
from isthmus.models import FullyConnected, real_number
from isthmus.train._objective import check_samples, data_term_slope, probe_outputs

RIDGE_LOSSES = {
    "mean_square": "mean over samples and outputs",
    "cross_entropy": "mean over samples, in nats",
}
"""Data terms `C` of the ridge objective, with their normalisation."""

_PROBES = 8


def check_ridge_loss(loss: str) -> str:
    """The same name; `InputError` for one that is none of `RIDGE_LOSSES`."""
    if loss not in RIDGE_LOSSES:
        raise InputError("loss", loss, " or ".join(repr(name) for name in RIDGE_LOSSES))
    return loss


@dataclasses.dataclass(frozen=True)
class LayerCurvature:
    """`(F_ℓ ⊗ G_ℓ + 2λ I)⁻¹` layer by layer, in the eigenvectors of its factors.

    `F_ℓ` is the second moment of what a layer reads, with the 1 of its bias, and `G_ℓ` that of the output's sensitivity
    to what it gives (Martens and Grosse, arXiv 1503.05671); the ridge is exact.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    scales: tuple[Tensor, ...]

    def solve(self, g: Float[Tensor, " parameters"]) -> Float[Tensor, " parameters"]:
        """The inverse applied to `g`."""
        found = torch.empty_like(g)
        parts = zip(
            split_layers(g, self.scales), split_layers(found, self.scales), self.inputs, self.outputs, self.scales,
            strict=True,
        )  # fmt: skip
        for given, solved, u, v, scale in parts:
            torch.mm(v @ (v.mT @ given @ u).mul_(scale), u.mT, out=solved)
        return found


def split_layers(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The vector cut into views of the shapes of `like`."""
    return [part.view(one.shape) for part, one in zip(vector.split([o.numel() for o in like]), like, strict=True)]


class RidgeObjective:
    """`C + λ‖θ‖²` and its gradient as a function of all weights and biases in one vector (docs/theory 3.1).

    The vector holds `(W_ℓ | b_ℓ)`, outputs × (inputs + 1), layer after layer. Forward and backward passes are written
    out, without a graph. Source: arXiv 2305.19008.

    Args:
        model: gives the sizes and the device.
        x: samples, in rows.
        y: targets, `(n, outputs)`, or class numbers `(n,)`.
        loss: `mean_square` (the mean over samples and outputs) or `cross_entropy` (the mean over samples).
        ridge: `λ ≥ 0`.
        dtype: everything is computed in it, sums over samples and weights in float64; that of the model unless given.

    Raises:
        InputError: an unknown loss, a ridge that is not a finite number ≥ 0, or samples and targets that do not fit the
            model or are not finite numbers.
    """

    def __init__(
        self,
        model: FullyConnected,
        x: Float[Tensor, "n inputs"],
        y: Shaped[Tensor, "rows ..."],
        *,
        loss: str = "mean_square",
        ridge: float | int,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.loss = check_ridge_loss(loss)
        self.ridge = real_number("ridge", ridge, "a finite number ≥ 0", low=0.0)
        check_samples(x, y, loss, model.in_features, model.out_features)
        like = model.weights[0]
        self.dtype = dtype if dtype is not None else like.dtype
        self._layers = [w.new_zeros(w.shape[0], w.shape[1] + 1, dtype=self.dtype) for w in model.weights]
        self.y = y.to(like.device, self.dtype) if y.is_floating_point() else y.to(like.device)
        n = x.shape[0]
        # What each layer reads, with a column of ones behind it for the bias.
        self._read = [like.new_ones(n, layer.shape[1], dtype=self.dtype) for layer in self._layers]
        self._read[0][:, :-1] = x.to(self._read[0])

    @torch.no_grad()
    def vector(self, model: FullyConnected) -> Float[Tensor, " parameters"]:
        """Weights and biases of the model, copied."""
        pairs = zip(model.weights, model.biases, strict=True)
        return torch.cat([torch.cat([w, b[:, None]], 1).flatten().to(self.dtype) for w, b in pairs])

    @torch.no_grad()
    def store(self, model: FullyConnected, vector: Float[Tensor, " parameters"]) -> None:
        """Write a vector into the model's weights and biases."""
        for w, b, layer in zip(model.weights, model.biases, split_layers(vector, self._layers), strict=True):
            w.copy_(layer[:, :-1])
            b.copy_(layer[:, -1])

    def _forward(self, layers: Sequence[Tensor]) -> Tensor:
        for layer, read, after in zip(layers[:-1], self._read[:-1], self._read[1:], strict=True):
            after[:, :-1] = torch.mm(read, layer.mT).clamp_(min=0)
        return self._read[-1] @ layers[-1].mT

    def _through(self, slope: Tensor, layers: Sequence[Tensor], number: int) -> Tensor:
        """From the slope at the pre-activations of a layer to that of the layer below."""
        return (slope @ layers[number][:, :-1]).mul_(self._read[number][:, :-1] > 0)

    @torch.no_grad()
    def data_term(self, vector: Float[Tensor, " parameters"]) -> float:
        """`C` alone."""
        return data_term_slope(self.loss, self._forward(split_layers(vector, self._layers)), self.y)[0]

    @torch.no_grad()
    def __call__(self, vector: Float[Tensor, " parameters"]) -> tuple[float, Float[Tensor, " parameters"]]:
        """Value and gradient."""
        layers = split_layers(vector, self._layers)
        gradient = torch.empty_like(vector)
        slopes = split_layers(gradient, self._layers)
        cost, slope = data_term_slope(self.loss, self._forward(layers), self.y)
        for number in range(len(layers) - 1, -1, -1):
            torch.mm(slope.mT, self._read[number], out=slopes[number])
            if number:
                slope = self._through(slope, layers, number)
        norm_sq = float(vector.square().sum(dtype=torch.float64))
        return cost + self.ridge * norm_sq, gradient.add_(vector, alpha=2 * self.ridge)

    def residual(self, vector: Float[Tensor, " parameters"], gradient: Float[Tensor, " parameters"]) -> float:
        """`‖∇(C + λ‖θ‖²)‖ / (2λ‖θ‖)`, from the gradient at the vector: 0 at a critical point; also where `θ = 0`."""
        scale = 2 * self.ridge * math.sqrt(float(vector.square().sum(dtype=torch.float64)))
        return float(torch.linalg.vector_norm(gradient.double())) / scale if scale > 0 else 0.0

    @torch.no_grad()
    def curvature(self, vector: Float[Tensor, " parameters"], generator: torch.Generator) -> LayerCurvature:
        """Factors of the Gauss–Newton matrix at a vector; the loss's own curvature is met through random probes."""
        layers = split_layers(vector, self._layers)
        outputs, n = self._forward(layers), self._read[0].shape[0]
        sensitivity = [layer.new_zeros(layer.shape[0], layer.shape[0], dtype=torch.float64) for layer in layers]
        for _ in range(_PROBES):
            slope = probe_outputs(self.loss, outputs, generator)
            for number in range(len(layers) - 1, -1, -1):
                sensitivity[number] += (slope.mT @ slope).double()
                if number:
                    slope = self._through(slope, layers, number)
        inputs: list[Tensor] = []
        behind: list[Tensor] = []
        scales: list[Tensor] = []
        for read, moment in zip(self._read, sensitivity, strict=True):
            wide = read.double()  # a sum of squares overflows half precision
            f, u = torch.linalg.eigh(wide.mT @ wide / n)
            g, v = torch.linalg.eigh(moment / (_PROBES * n))
            scale = 1 / (g.clamp(min=0)[:, None] * f.clamp(min=0) + 2 * self.ridge)
            for kept, one in ((inputs, u), (behind, v), (scales, scale)):
                kept.append(one.to(self.dtype))
        return LayerCurvature(tuple(inputs), tuple(behind), tuple(scales))
