"""The cost of identity, exact and stabilised, from second moments: nothing of size N × N is ever formed."""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus._errors import InputError

DEFAULT_GAMMA0 = 1e-3
"""Default of γ₀ (measured: docs/theory 1.4); values at 1e-2 and 1e-4 are recorded beside it."""

GAMMA0S = (DEFAULT_GAMMA0, 1e-2, 1e-4)
"""Every γ₀ that is recorded, the default first: where their numbers disagree they are a range (docs/theory 1.4)."""

FINITE_RESIDUAL = 1e-4
"""The exact cost counts as finite below this `identity_residual`. Moments resolve residuals no better than the root
of their rounding (about 1e-5 with float64 products), and one dimension of a thousand left out gives 3e-2."""

_EXACT_CUT = 1e-10


def check_gamma0(gamma0: float) -> float:
    """Return γ₀ if it is a positive finite number, else raise `InputError`."""
    if not 0 < gamma0 < float("inf"):
        raise InputError("gamma0", gamma0, "a number > 0", f"the default is {DEFAULT_GAMMA0}")
    return float(gamma0)


@dataclasses.dataclass(frozen=True)
class RowSpace:
    """The row space of `S`, from the eigenvectors of `S Sᵀ = U diag(σ²) Uᵀ`: measures `‖M‖_K` and `‖M‖_{K+γ}`.

    With `K = SᵀS` and right singular vectors `v_i = Sᵀu_i/σ_i`, a matrix `M` (`rows × N`) enters only through
    `M Sᵀ` and `‖M‖²`: `‖M v_i‖ = ‖M Sᵀu_i‖/σ_i` (arXiv 2405.17573, docs/theory 1.4).

    Attributes:
        values: eigenvalues `σ_i²` of `S Sᵀ`, descending, ≥ 0.
        vectors: the matching eigenvectors, in columns.
        eps: rounding unit of the products behind `S Sᵀ`.
    """

    values: Float[Tensor, "*batch features"]
    vectors: Float[Tensor, "*batch features features"]
    eps: float

    @classmethod
    def of(cls, feature_gram: Float[Tensor, "*batch features features"], *, eps: float) -> RowSpace:
        """From `S Sᵀ` (symmetric, any leading batch dimensions)."""
        values, vectors = torch.linalg.eigh(feature_gram)
        return cls(values.flip(-1).clamp(min=0), vectors.flip(-1), eps)

    def __getitem__(self, nodes: slice) -> RowSpace:
        return RowSpace(self.values[nodes], self.vectors[nodes], self.eps)

    @property
    def top(self) -> Float[Tensor, "*batch"]:
        """`‖S‖²_op`."""
        return self.values[..., 0]

    def gamma(self, gamma0: float) -> Float[Tensor, "*batch"]:
        """`γ = γ₀ ‖S‖²_op`. Raises `InputError` unless γ₀ > 0."""
        return check_gamma0(gamma0) * self.top

    def _components(self, cross: Tensor, cut: float) -> tuple[Tensor, Tensor]:
        """`‖M v_i‖²` for directions with `σ_i² > cut · σ_1²`, and which these are."""
        kept = self.values > cut * self.values[..., :1]
        projected = (cross @ self.vectors).square().sum(-2)
        return torch.where(kept, projected / torch.where(kept, self.values, 1.0), 0.0), kept

    def stabilised_norm_sq(
        self,
        cross: Float[Tensor, "*batch rows features"],
        norm_sq: Float[Tensor, "*batch"],
        gamma0: float = DEFAULT_GAMMA0,
    ) -> Float[Tensor, "*batch"]:
        """`‖M‖²_{K+γ} = Tr[M (SᵀS + γI)⁻¹ Mᵀ] = Σ_i ‖M v_i‖²/(σ_i²+γ) + (1/γ)·‖M outside the row space‖²`.

        Relative error about `eps/γ₀` times `‖M‖²/(γ·result)`; zero where `S = 0` and `M = 0`.

        Args:
            cross: `M Sᵀ`.
            norm_sq: `‖M‖²`.
            gamma0: γ₀ > 0.
        """
        gamma = self.gamma(gamma0)
        gamma = torch.where(gamma > 0, gamma, 1.0)
        inside, _ = self._components(cross, self.values.shape[-1] * self.eps)
        outside = (norm_sq - inside.sum(-1)).clamp(min=0)
        return (inside / (self.values + gamma[..., None])).sum(-1) + outside / gamma

    def exact_norm_sq(
        self, cross: Float[Tensor, "*batch rows features"], norm_sq: Float[Tensor, "*batch"]
    ) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
        """`‖M S⁺‖²` and the share `‖M − M S⁺S‖/‖M‖` outside the row space.

        `‖M S⁺‖²` equals `‖M‖²_K` only where that share is 0 (else `‖M‖²_K = ∞`). Directions with `σ_i² ≤ 1e-10 σ_1²`
        count as outside.
        """
        inside, kept = self._components(cross, max(_EXACT_CUT, self.values.shape[-1] * self.eps))
        weight = torch.where(kept, inside / torch.where(kept, self.values, 1.0), 0.0).sum(-1)
        safe = torch.where(norm_sq > 0, norm_sq, 1.0)
        return weight, ((norm_sq - inside.sum(-1)).clamp(min=0) / safe).sqrt()


@dataclasses.dataclass(frozen=True)
class IdentityCost:
    """Cost of identity of a representation (arXiv 2405.17573, docs/theory 1.4), in dimensions.

    Attributes:
        stabilised: `‖A‖²_{K+γ}` with `γ = γ₀‖S‖²_op`.
        exact: `‖A S⁺‖²`; the cost only where `finite`, elsewhere a least-squares weight.
        residual: `‖A − A S⁺S‖/‖A‖`.
        finite: whether the residual is zero up to the resolution of the moments.
        gamma0: γ₀.
    """

    stabilised: Float[Tensor, "*batch"]
    exact: Float[Tensor, "*batch"]
    residual: Float[Tensor, "*batch"]
    finite: Tensor
    gamma0: float


def identity_cost_from_moments(
    cross: Float[Tensor, "*batch width features"],
    norm_sq: Float[Tensor, "*batch"],
    row_space: RowSpace,
    gamma0: float = DEFAULT_GAMMA0,
) -> IdentityCost:
    """Cost of identity `‖A‖²_{K+γ} = Tr[A (SᵀS + γI)⁻¹ Aᵀ]` from second moments (arXiv 2405.17573, docs/theory 1.4).

    Args:
        cross: `A Sᵀ`.
        norm_sq: `‖A‖²`.
        row_space: of `S`, from `S Sᵀ`.
        gamma0: γ₀ of the stabilised cost; γ = γ₀ ‖S‖²_op.

    Raises:
        InputError: γ₀ ≤ 0.
    """
    exact, residual = row_space.exact_norm_sq(cross, norm_sq)
    finite = residual < max(FINITE_RESIDUAL, 10 * row_space.eps**0.5)
    return IdentityCost(row_space.stabilised_norm_sq(cross, norm_sq, gamma0), exact, residual, finite, gamma0)


def identity_cost(
    a: Float[Tensor, "n width"], s: Float[Tensor, "samples features"], *, gamma0: float = DEFAULT_GAMMA0
) -> IdentityCost:
    """Cost of identity of samples `a` whose next layer sees `s = φ(a)`: squared norm of the least `W` with `W s = a`.

    In dimensions: for `a ≥ 0` and `s = relu(a)` without the appended 1 the exact cost is `rank a` (arXiv 2405.17573,
    docs/theory 1.4).

    Args:
        a: representation, samples in rows.
        s: input of the next weight layer for the same samples (append a column of ones for its bias).
        gamma0: γ₀ of the stabilised cost; γ = γ₀ ‖S‖²_op.

    Raises:
        InputError: no samples, different numbers of samples, values that are not finite, or γ₀ ≤ 0.

    Example:
        >>> a = torch.eye(3, dtype=torch.float64)
        >>> round(float(identity_cost(a, a).exact), 12)
        3.0
    """
    if a.shape[0] != s.shape[0] or a.shape[0] == 0:
        raise InputError("s", tuple(s.shape), f"as many samples as a, at least one (a: {tuple(a.shape)})")
    if not bool(torch.isfinite(a).all()) or not bool(torch.isfinite(s).all()):
        raise InputError("a, s", "values that are not finite", "finite numbers")
    eps = float(torch.finfo(a.dtype).eps)
    space = RowSpace.of((s.mT @ s).double(), eps=eps)
    return identity_cost_from_moments((a.mT @ s).double(), a.double().square().sum(), space, gamma0)
