"""The Leaky ResNet: from ResNet to fully-connected network by an effective depth."""

from __future__ import annotations

import math
from typing import final

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float
from torch import Tensor, nn

from isthmus._errors import InputError, near_name_hint
from isthmus._random import check_seed, torch_generator
from isthmus.models._activations import Activation, as_activation
from isthmus.models._checks import whole_number
from isthmus.models._path_function import leaky_path
from isthmus.models._steps import LayerSteps, as_steps, checked_steps

_MAP_KINDS = ("auto", "fixed", "learned")
_INITIAL_NOISE = 0.1


def _semi_orthogonal(rows: int, columns: int, seed: int, purpose: str) -> Float[Tensor, "rows columns"]:
    """Uniformly random with orthonormal columns (or rows, where there are fewer of them); Frobenius norm √min."""
    tall = (max(rows, columns), min(rows, columns))
    gaussian = torch.randn(tall, generator=torch_generator(seed, purpose), dtype=torch.float64, device="cpu")
    q, r = torch.linalg.qr(gaussian)
    q = q * torch.where(r.diagonal() < 0, -1.0, 1.0)  # LAPACK leaves the signs open
    return (q if rows >= columns else q.mT).contiguous()


@final
class LeakyResNet(nn.Module):
    """`α_ℓ = (1 − ρ_ℓ L̃) α_{ℓ−1} + ρ_ℓ (W_ℓ φ(α_{ℓ−1}) + b_ℓ)` between an input and an output map.

    Source: arXiv 2405.17573, docs/theory 1.1. `L̃ = 0` is a ResNet; `L̃ → ∞` behaves like a fully-connected network. Rows
    are samples. Under autocast only the matrix products run in low precision: the path keeps the parameters' dtype.

    Weights start at `W = L̃ I + 0.1·max(L̃, 1)·√(2/w)·G`, `G` standard Gaussian, biases at 0. Initial weights must carry
    the signal through the leak (docs/theory 1.9), and `L̃ I` does so exactly for the positive entries (all entries, with
    the identity activation) at the least ridge: it is the weight of the identity map. The Gaussian part breaks the
    symmetry. Objective after 1000 steps of Adam (3e-2 falling to 0, λ = 1e-3, teacher 30→3→30, N = 300, w = 50, L = 20,
    mean of 3 seeds; 30 is the constant solution), against the two Gaussian starts that docs/theory 1.9 discusses:

    | `L̃` | `L̃ I + 0.1·…` | `L̃ I + 0.3·…` | `max(L̃, 1)·√(2/w) G` | `√((2/w)·L̃·(2/ρ − L̃)) G` |
    |---|---|---|---|---|
    | 0 | 0.70 | 0.70 | 0.72 | 1.94 |
    | 3 | 0.25 | 0.26 | 0.37 | 1.26 |
    | 7 | 0.29 | 0.32 | 0.52 | 1.36 |
    | 12 | 0.43 | 0.51 | 1.42 | 1.26 |

    The third collapses to the constant solution on the digits at `L̃ ≥ 6`, λ = 1e-2; the fourth keeps a large weight
    cost.

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
            Frobenius norm held at `√min(w, d_in)`, that of the fixed one), or `auto`: fixed where it can be.
        output_map: the same for the output, with orthonormal rows (needs `width ≥ out_features`).
        seed: of all initial values, the same on every device and in every dtype; the global random state is left alone.
        device: of the parameters.
        dtype: of the parameters; PyTorch's default unless given.

    Attributes:
        weight: `(L, w, w)`; acts as `φ(a) @ weight[ℓ].T`.
        bias: `(L, w)` or None.
        layer_steps: `ρ`, a buffer `(L,)` in the parameters' dtype; change it with `set_layer_steps`.
        input_weight: `(w, d_in)`, a buffer if fixed; if learned, a parameter that acts through `input_matrix`.
        output_weight: `(d_out, w)`, the same for the output.
        mu: `L̃`, or 1 if `L̃ = 0` (docs/theory 1.2).
        steps: the `LayerSteps` rule.
        activation_name: name of `φ`, for records.

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
        effective_depth: float | int,
        steps: str | LayerSteps = "equidistant",
        activation: str | Activation = "relu",
        bias: bool = True,
        input_map: str = "auto",
        output_map: str = "auto",
        seed: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = whole_number("in_features", in_features)
        self.out_features = whole_number("out_features", out_features)
        self.width, self.depth = whole_number("width", width), whole_number("depth", depth)
        self.steps = as_steps(steps)
        rho = self.steps.initial(self.depth, effective_depth)
        self.effective_depth = float(effective_depth)
        self.mu = self.effective_depth if self.effective_depth > 0 else 1.0
        self.activation_name, self.activation = as_activation(activation)
        check_seed(seed)
        self.input_map = self._map_kind("input_map", input_map, "in_features", self.in_features)
        self.output_map = self._map_kind("output_map", output_map, "out_features", self.out_features)

        dtype = dtype or torch.get_default_dtype()
        if not dtype.is_floating_point:
            raise InputError("dtype", dtype, "a floating-point dtype")
        device = torch.get_default_device() if device is None else device
        for name, kind, shape in (
            ("input_weight", self.input_map, (self.width, self.in_features)),
            ("output_weight", self.output_map, (self.out_features, self.width)),
        ):
            start = _semi_orthogonal(*shape, seed, name).to(device, dtype)
            if kind == "fixed":
                self.register_buffer(name, start)
            else:
                self.register_parameter(name, nn.Parameter(start))
        draw = torch.randn(self.depth, self.width, self.width, generator=torch_generator(seed, "weight"),
                           dtype=torch.float64, device="cpu")  # fmt: skip
        std = _INITIAL_NOISE * max(self.effective_depth, 1.0) * math.sqrt(2 / self.width)
        start = self.effective_depth * torch.eye(self.width, dtype=torch.float64, device="cpu") + std * draw
        self.weight = nn.Parameter(start.to(device, dtype))
        self.bias = nn.Parameter(torch.zeros(self.depth, self.width, device=device, dtype=dtype)) if bias else None
        self.register_buffer("layer_steps", rho.to(device, dtype))

    def _map_kind(self, argument: str, kind: str, features_name: str, features: int) -> str:
        if kind not in _MAP_KINDS:
            raise InputError(argument, kind, "'auto', 'fixed' or 'learned'", near_name_hint(str(kind), _MAP_KINDS))
        if kind == "fixed" and self.width < features:
            raise InputError("width", self.width, f"at least {features_name} = {features} for a fixed {argument}",
                             f"use a larger width, or {argument}='learned'")  # fmt: skip
        return ("fixed" if self.width >= features else "learned") if kind == "auto" else kind

    def _constrained(
        self, raw: Float[Tensor, "*members rows columns"], kind: str, features: int
    ) -> Float[Tensor, "*members rows columns"]:
        if kind == "fixed":
            return raw
        return raw * (math.sqrt(min(self.width, features)) / torch.linalg.matrix_norm(raw, keepdim=True))

    @property
    def input_matrix(self) -> Float[Tensor, "width in_features"]:
        """The input map as it acts: orthonormal columns, or learned with its Frobenius norm held."""
        return self._constrained(self.input_weight, self.input_map, self.in_features)

    @property
    def output_matrix(self) -> Float[Tensor, "out_features width"]:
        """The output map as it acts: orthonormal rows, or learned with its Frobenius norm held."""
        return self._constrained(self.output_weight, self.output_map, self.out_features)

    def set_layer_steps(self, rho: Float[Tensor, ...]) -> None:
        """Replace the layer steps.

        Args:
            rho: `depth` positive numbers that sum to 1, to the rounding of their dtype or the model's.

        Raises:
            InputError: anything else.
        """
        self.layer_steps.copy_(checked_steps(rho, self.depth, self.layer_steps.dtype))

    def positions(self) -> Float[Tensor, " nodes"]:
        """`p_0 = 0, p_ℓ = ρ_1 + … + ρ_ℓ`, in float64."""
        rho = self.layer_steps.double()
        return torch.cat([rho.new_zeros(1), torch.cumsum(rho, 0)])

    def embed(self, x: Float[Tensor, ...]) -> Float[Tensor, "n width"]:
        """`A_0`, the input map applied to `x`. Raises `InputError` unless `x` is real and `(n, in_features)`."""
        if x.ndim != 2 or x.shape[1] != self.in_features:
            raise InputError("x", f"shape {tuple(x.shape)}", f"shape (samples, in_features) = (n, {self.in_features})")
        return F.linear(x, self.input_matrix).to(self.weight.dtype)

    def _path(self, x: Float[Tensor, ...], *, whole: bool) -> Float[Tensor, "*nodes n width"]:
        a0 = self.embed(x)
        return leaky_path(a0, self.weight, self.bias, self.layer_steps, self.effective_depth, self.activation,
                          whole=whole)  # fmt: skip

    def path(self, x: Float[Tensor, ...]) -> Float[Tensor, "nodes n width"]:
        """All representations `A_0 … A_L`, stacked. Raises `InputError` as `embed` does."""
        return self._path(x, whole=True)

    def readout(self, a: Float[Tensor, "n width"]) -> Float[Tensor, "n out_features"]:
        """The output map applied to the end of the path."""
        return F.linear(a, self.output_matrix)

    def forward(self, x: Float[Tensor, ...]) -> Float[Tensor, "n out_features"]:
        """Outputs of the network. Raises `InputError` as `embed` does."""
        return self.readout(self._path(x, whole=False))

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
