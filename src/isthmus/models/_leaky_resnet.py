"""The Leaky ResNet: from ResNet to fully-connected network by an effective depth."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from isthmus._errors import InputError, near_name_hint
from isthmus._random import check_seed, torch_generator
from isthmus.models._steps import LayerSteps, as_steps

MapKind = Literal["auto", "fixed", "learned"]
Activation = Callable[[Tensor], Tensor]


class SmoothReLU:
    """`φ_τ(z) = (z + √(z² + τ²))/2`, the ReLU as `τ → 0` (arXiv 2405.17573, docs/theory 1.9)."""

    def __init__(self, tau: float = 0.1) -> None:
        if not tau > 0:
            raise InputError("tau", tau, "a number > 0")
        self.tau = tau

    def __call__(self, z: Tensor) -> Tensor:
        return 0.5 * (z + (z * z + self.tau**2).sqrt())

    def __repr__(self) -> str:
        return f"SmoothReLU(tau={self.tau:g})"


def _identity(z: Tensor) -> Tensor:
    return z


_ACTIVATIONS: dict[str, Activation] = {"relu": torch.relu, "identity": _identity, "smooth_relu": SmoothReLU()}


def _orthonormal_columns(rows: int, columns: int, seed: int, purpose: str) -> Tensor:
    q, r = torch.linalg.qr(torch.randn(rows, columns, generator=torch_generator(seed, purpose), dtype=torch.float64))
    return q * torch.where(r.diagonal() < 0, -1.0, 1.0)


def _integer(name: str, value: int) -> int:
    if isinstance(value, bool) or value != int(value) or value < 1:
        raise InputError(name, value, "an integer ≥ 1")
    return int(value)


class LeakyResNet(nn.Module):
    """`α_ℓ = (1 − ρ_ℓ L̃) α_{ℓ−1} + ρ_ℓ (W_ℓ φ(α_{ℓ−1}) + b_ℓ)` between an input and an output map.

    Source: arXiv 2405.17573, docs/theory 1.1. `L̃ = 0` is a ResNet; `L̃ → ∞` behaves like a fully-connected network. Rows
    are samples.

    Weights start as Gaussians of standard deviation `max(L̃, 1)·√(2/w)` (docs/theory 1.9): they must carry the signal
    through the leak, and of the values compared there this one reaches the lower objective at equal time.

    Args:
        in_features: `d_in`.
        out_features: `d_out`.
        width: `w`, constant along the path.
        depth: `L`, number of layers.
        effective_depth: `L̃ ≥ 0`.
        steps: `equidistant`, `irregular`, `adaptive`, or a `LayerSteps` with its own settings.
        activation: `φ`: `relu`, `identity`, `smooth_relu` (τ = 0.1), or an elementwise callable.
        bias: whether layers have a bias (a 1 appended to `φ`).
        input_map: `fixed` (orthonormal columns, drawn from the seed; needs `width ≥ in_features`), `learned` (its
            Frobenius norm held at `√min(w, d_in)`), or `auto`: fixed where it can be.
        output_map: the same for the output, with orthonormal rows (needs `width ≥ out_features`).
        seed: of all initial values; the global random state is left alone.
        device: of the parameters.
        dtype: of the parameters; PyTorch's default unless given.

    Attributes:
        weight: `(L, w, w)`; acts as `φ(a) @ weight[ℓ].T`.
        bias: `(L, w)` or None.
        layer_steps: `ρ`, a buffer `(L,)`; change it with `set_layer_steps`.

    Raises:
        InputError: a size below 1, a negative effective depth, a depth the steps cannot hold, an unknown name, or a
            width too small for a fixed map.

    Example:
        >>> net = LeakyResNet(8, 2, width=16, depth=10, effective_depth=4.0)
        >>> net(torch.randn(5, 8)).shape, net.path(torch.randn(5, 8)).shape
        (torch.Size([5, 2]), torch.Size([11, 5, 16]))
    """

    layer_steps: Tensor
    input_weight: Tensor
    output_weight: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        width: int,
        depth: int,
        effective_depth: float,
        steps: str | LayerSteps = "equidistant",
        activation: str | Activation = "relu",
        bias: bool = True,
        input_map: MapKind = "auto",
        output_map: MapKind = "auto",
        seed: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = _integer("in_features", in_features)
        self.out_features = _integer("out_features", out_features)
        self.width, self.depth = _integer("width", width), _integer("depth", depth)
        self.steps = as_steps(steps)
        rho = self.steps.initial(self.depth, effective_depth)
        self.effective_depth = float(effective_depth)
        self.mu = self.effective_depth if self.effective_depth > 0 else 1.0
        if isinstance(activation, str):
            if activation not in _ACTIVATIONS:
                raise InputError("activation", activation, "'relu', 'identity', 'smooth_relu' or a callable",
                                 near_name_hint(activation, _ACTIVATIONS))  # fmt: skip
            self.activation_name, self.activation = activation, _ACTIVATIONS[activation]
        else:
            self.activation_name, self.activation = getattr(activation, "__name__", repr(activation)), activation
        check_seed(seed)
        dtype = dtype or torch.get_default_dtype()
        self.input_map = self._map_kind("input_map", input_map, "in_features", self.in_features)
        self.output_map = self._map_kind("output_map", output_map, "out_features", self.out_features)
        self._place("input_weight", self.input_map, self.in_features, seed, dtype, device)
        self._place("output_weight", self.output_map, self.out_features, seed, dtype, device)
        std = max(self.effective_depth, 1.0) * math.sqrt(2 / self.width)
        draw = torch.randn(self.depth, self.width, self.width, generator=torch_generator(seed, "weight"),
                           dtype=torch.float64)  # fmt: skip
        self.weight = nn.Parameter((std * draw).to(device, dtype))
        self.bias = nn.Parameter(torch.zeros(self.depth, self.width, device=device, dtype=dtype)) if bias else None
        self.register_buffer("layer_steps", rho.to(device, dtype))

    def _map_kind(self, argument: str, kind: str, features_name: str, features: int) -> str:
        if kind not in ("auto", "fixed", "learned"):
            raise InputError(argument, kind, "'auto', 'fixed' or 'learned'")
        if kind == "fixed" and self.width < features:
            raise InputError("width", self.width, f"at least {features_name} = {features} for a fixed {argument}",
                             f"use a larger width, or {argument}='learned'")  # fmt: skip
        return ("fixed" if self.width >= features else "learned") if kind == "auto" else kind

    def _place(self, name: str, kind: str, features: int, seed: int, dtype: torch.dtype,
               device: torch.device | str | None) -> None:  # fmt: skip
        if self.width >= features:
            start = _orthonormal_columns(self.width, features, seed, name)
        else:
            start = _orthonormal_columns(features, self.width, seed, name).T
        start = (start if name == "input_weight" else start.T).contiguous().to(device, dtype)
        if kind == "fixed":
            self.register_buffer(name, start)
        else:
            self.register_parameter(name, nn.Parameter(start))

    def _constrained(self, raw: Tensor, kind: str, features: int) -> Tensor:
        if kind == "fixed":
            return raw
        return raw * (math.sqrt(min(self.width, features)) / torch.linalg.matrix_norm(raw))

    @property
    def input_matrix(self) -> Float[Tensor, "width in_features"]:
        """The input map as it acts: orthonormal columns, or learned with its Frobenius norm held."""
        return self._constrained(self.input_weight, self.input_map, self.in_features)

    @property
    def output_matrix(self) -> Float[Tensor, "out_features width"]:
        """The output map as it acts: orthonormal rows, or learned with its Frobenius norm held."""
        return self._constrained(self.output_weight, self.output_map, self.out_features)

    def set_layer_steps(self, rho: Float[Tensor, " depth"]) -> None:
        """Replace the layer steps.

        Raises:
            InputError: not `depth` positive numbers of sum 1 (to 1e-5).
        """
        values = rho.detach().double()
        if values.shape != (self.depth,) or not bool((values > 0).all()) or abs(float(values.sum()) - 1) > 1e-5:
            raise InputError("rho", values.tolist(), f"{self.depth} positive numbers of sum 1")
        self.layer_steps.copy_(values / values.sum())

    def positions(self) -> Float[Tensor, " nodes"]:
        """`p_0 = 0, p_ℓ = ρ_1 + … + ρ_ℓ`, in float64."""
        rho = self.layer_steps.double()
        return torch.cat([rho.new_zeros(1), torch.cumsum(rho, 0)])

    def embed(self, x: Float[Tensor, "n in_features"]) -> Float[Tensor, "n width"]:
        """`A_0`, the input map applied to `x`. Raises `InputError` unless `x` is `(samples, in_features)`."""
        if x.ndim != 2 or x.shape[1] != self.in_features:
            raise InputError("x", tuple(x.shape), f"(samples, in_features) = (n, {self.in_features})")
        return x @ self.input_matrix.mT

    def step(self, a: Float[Tensor, "n width"], layer: int) -> Float[Tensor, "n width"]:
        """`A_{ℓ}` from `A_{ℓ−1}` for ℓ = layer + 1."""
        rho = self.layer_steps[layer]
        ahead = nn.functional.linear(
            self.activation(a), self.weight[layer], None if self.bias is None else self.bias[layer]
        )
        return (1 - rho * self.effective_depth) * a + rho * ahead

    def path(self, x: Float[Tensor, "n in_features"]) -> Float[Tensor, "nodes n width"]:
        """All representations `A_0 … A_L`, stacked."""
        nodes = [self.embed(x)]
        for layer in range(self.depth):
            nodes.append(self.step(nodes[-1], layer))
        return torch.stack(nodes)

    def readout(self, a: Float[Tensor, "n width"]) -> Float[Tensor, "n out_features"]:
        """The output map applied to the end of the path."""
        return a @ self.output_matrix.mT

    def forward(self, x: Float[Tensor, "n in_features"]) -> Float[Tensor, "n out_features"]:
        """Outputs of the network."""
        a = self.embed(x)
        for layer in range(self.depth):
            a = self.step(a, layer)
        return self.readout(a)

    def features(self, a: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch features"]:
        """`S = φ(A)`, with the appended 1 where layers have a bias."""
        s = self.activation(a)
        return s if self.bias is None else torch.cat([s, torch.ones_like(s[..., :1])], -1)

    def augmented_weight(self) -> Float[Tensor, "depth width features"]:
        """`W_ℓ` with the bias as last column: `W_ℓ S_{ℓ−1}` is the layer's drive."""
        return self.weight if self.bias is None else torch.cat([self.weight, self.bias[..., None]], -1)

    def weight_cost(self) -> Float[Tensor, ""]:
        """`(1/2μ) Σ_ℓ ρ_ℓ ‖W_ℓ‖²` with the biases; times λ it is the ridge term (docs/theory 1.2)."""
        norm_sq = self.weight.square().sum((-2, -1))
        if self.bias is not None:
            norm_sq = norm_sq + self.bias.square().sum(-1)
        return (self.layer_steps * norm_sq).sum() / (2 * self.mu)

    def extra_repr(self) -> str:
        """Sizes and rules, for printing."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, width={self.width}, "
            f"depth={self.depth}, effective_depth={self.effective_depth:g}, steps={self.steps}, "
            f"activation={self.activation_name}, bias={self.bias is not None}, "
            f"input_map={self.input_map}, output_map={self.output_map}"
        )
