"""Streaming second moments of a path: all that the geometry needs of the data, whatever their number."""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus._errors import InputError


@dataclasses.dataclass(frozen=True)
class MomentumMoments:
    """Second moments that involve the momenta `B_ℓ` (arXiv 2405.17573, docs/theory 1.5). All float64, summed.

    Attributes:
        before: `B_ℓ S_{ℓ−1}ᵀ` for ℓ = 1..L.
        same: `B_ℓ S_ℓᵀ` for ℓ = 0..L.
        inner_before: `Tr[B_ℓ A_{ℓ−1}ᵀ]` for ℓ = 1..L.
        inner_same: `Tr[B_ℓ A_ℓᵀ]` for ℓ = 0..L.
        norm_sq: `‖B_ℓ‖²` for ℓ = 0..L.
    """

    before: Float[Tensor, "depth width features"]
    same: Float[Tensor, "nodes width features"]
    inner_before: Float[Tensor, " depth"]
    inner_same: Float[Tensor, " nodes"]
    norm_sq: Float[Tensor, " nodes"]


@dataclasses.dataclass(frozen=True)
class PathMoments:
    """Second moments of a path `A_0 … A_L` (`nodes = L + 1`), all float64 sums over samples.

    The formulas write `A` as `width × N`; in code a batch holds samples in rows. `S = φ(A)` has `features` rows
    (`width + 1` with the appended 1 of the bias). Source: arXiv 2405.17573, docs/theory 1.4.

    Attributes:
        n: number of samples N.
        product_eps: rounding unit of the precision in which products of a batch were taken.
        feature_gram: `S_ℓ S_ℓᵀ`.
        cross: `A_ℓ S_ℓᵀ`.
        gram: `A_ℓ A_ℓᵀ`.
        total: `A_ℓ 1`, the sum over samples.
        moved_cross: `(A_ℓ − A_{ℓ−1}) S_{ℓ−1}ᵀ` for ℓ = 1..L.
        moved_norm_sq: `‖A_ℓ − A_{ℓ−1}‖²` for ℓ = 1..L.
        negative_norm_sq: `‖min(A_ℓ, 0)‖²`.
        path_gram: `Tr[A_ℓ A_mᵀ]` between all nodes.
        momentum: the moments of the momenta, where momenta were given.
    """

    n: int
    product_eps: float
    feature_gram: Float[Tensor, "nodes features features"]
    cross: Float[Tensor, "nodes width features"]
    gram: Float[Tensor, "nodes width width"]
    total: Float[Tensor, "nodes width"]
    moved_cross: Float[Tensor, "depth width features"]
    moved_norm_sq: Float[Tensor, " depth"]
    negative_norm_sq: Float[Tensor, " nodes"]
    path_gram: Float[Tensor, "nodes nodes"]
    momentum: MomentumMoments | None

    @property
    def norm_sq(self) -> Float[Tensor, " nodes"]:
        """`‖A_ℓ‖²` for ℓ = 0..L."""
        return self.gram.diagonal(dim1=-2, dim2=-1).sum(-1)


def _products(left: Tensor, right: Tensor) -> Tensor:
    """`Σ_n left[…, n, i] right[…, n, j]` in the batch's precision, returned in float64."""
    return torch.matmul(left.mT, right).double()


def _inner(left: Tensor, right: Tensor) -> Tensor:
    """`Σ_{n,i} left · right` per node, summed in float64 over samples."""
    return (left * right).sum(-1).double().sum(-1)


class PathAccumulator:
    """Collects `PathMoments` batch by batch; memory depends on depth and width only, never on N.

    Products of a batch are taken in the batch's own precision and added in float64. The order of batches does not
    matter beyond rounding.

    Example:
        >>> acc = PathAccumulator()
        >>> acc.update(path=torch.ones(2, 3, 1), features=torch.ones(2, 3, 1))
        >>> acc.result().norm_sq.tolist()
        [3.0, 3.0]
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._n = 0
        self._eps = torch.finfo(torch.float64).eps
        self._shapes: tuple[int, int, int] | None = None
        self._with_momenta = False

    def update(
        self,
        path: Float[Tensor, "nodes n width"],
        features: Float[Tensor, "nodes n features"],
        momenta: Float[Tensor, "nodes n width"] | None = None,
    ) -> None:
        """Add a batch.

        Args:
            path: `A_0 … A_L`, samples in rows.
            features: `S_0 … S_L = φ(A)`, with the appended 1 where there is a bias.
            momenta: `B_0 … B_L` of the same samples, with the `1/N` of the whole data set inside `B`.

        Raises:
            InputError: no samples, values that are not finite, or a batch that differs from the first one in
                shape or in having momenta.
        """
        nodes, n, width = path.shape
        shape = (nodes, width, features.shape[-1])
        if n == 0 or nodes < 2:
            raise InputError("path", tuple(path.shape), "at least 2 nodes and 1 sample, as (nodes, samples, width)")
        if self._shapes is None:
            self._shapes, self._with_momenta = shape, momenta is not None
        if shape != self._shapes or (momenta is not None) != self._with_momenta:
            raise InputError(
                "path",
                (*shape, momenta is not None),
                f"the (nodes, width, features, momenta) of the first batch, {(*self._shapes, self._with_momenta)}",
            )
        moved = path[1:] - path[:-1]
        batch = {
            "feature_gram": _products(features, features),
            "cross": _products(path, features),
            "gram": _products(path, path),
            "total": path.sum(1).double(),
            "moved_cross": _products(moved, features[:-1]),
            "moved_norm_sq": _inner(moved, moved),
            "negative_norm_sq": torch.stack([_inner(part, part) for part in (a.clamp(max=0) for a in path)]),
            "path_gram": (path.flatten(1) @ path.flatten(1).T).double(),
        }
        if momenta is not None:
            batch |= {
                "m.before": _products(momenta[1:], features[:-1]),
                "m.same": _products(momenta, features),
                "m.inner_before": _inner(momenta[1:], path[:-1]),
                "m.inner_same": _inner(momenta, path),
                "m.norm_sq": _inner(momenta, momenta),
            }
        for name, value in batch.items():
            if not bool(torch.isfinite(value).all()):
                argument = "momenta" if name.startswith("m.") else "path"
                raise InputError(
                    argument,
                    f"values that are not finite (in {name})",
                    "finite numbers",
                    "the network or its loss has diverged on these samples",
                )
        for name, value in batch.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._n += n
        self._eps = max(self._eps, float(torch.finfo(path.dtype).eps))

    def parts(self) -> dict[str, Tensor]:
        """The sums so far, in float64, for `merge`; empty before the first batch."""
        if not self._sums:
            return {}
        numbers = (("n", self._n), ("eps", self._eps))
        return {name: self._sums["total"].new_tensor(value) for name, value in numbers} | self._sums

    def merge(self, parts: dict[str, Tensor]) -> None:
        """Add the sums of another accumulator (`parts` of it), as if its samples had come here.

        Raises:
            InputError: another shape, or momenta in only one of them.
        """
        m = int(parts["n"]) if parts else 0
        if not m:
            return
        nodes, width, features = parts["cross"].shape
        with_momenta = "m.before" in parts
        if self._shapes is None:
            self._shapes, self._with_momenta = (nodes, width, features), with_momenta
        if (nodes, width, features, with_momenta) != (*self._shapes, self._with_momenta):
            raise InputError("parts", (nodes, width, features, with_momenta), "the (nodes, width, features, momenta) "
                             f"here, {(*self._shapes, self._with_momenta)}")  # fmt: skip
        for name, value in parts.items():
            if name not in ("n", "eps"):
                here = self._sums.get(name)
                self._sums[name] = value.clone() if here is None else here + value.to(here.device)
        self._n += m
        self._eps = max(self._eps, float(parts["eps"]))

    def result(self) -> PathMoments:
        """The moments so far. Raises `InputError` before the first batch."""
        if not self._sums:
            raise InputError("samples", 0, "at least one batch")
        momentum = None
        if self._with_momenta:
            momentum = MomentumMoments(**{k[2:]: v for k, v in self._sums.items() if k.startswith("m.")})
        plain = {k: v for k, v in self._sums.items() if not k.startswith("m.")}
        return PathMoments(n=self._n, product_eps=self._eps, momentum=momentum, **plain)
