"""What a layer's tangent kernel is made of: factors of its per-sample gradients, or those gradients themselves."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

_CHUNK_BYTES = 2**26
"""Memory of a product over positions at a time."""

PIECE_BYTES = 2**27
"""Memory of a piece of per-sample gradients."""


@runtime_checkable
class TangentFeatures(Protocol):
    """A layer's Jacobian `J_ℓ`, `(C n) × |θ_ℓ|`, in whatever form gives its kernel `J_ℓ J_ℓᵀ` block by block."""

    @property
    def n(self) -> int:
        """Number of samples."""
        ...

    @property
    def outputs(self) -> int:
        """Number of outputs C."""
        ...

    def block(self, c: int, d: int) -> Float[Tensor, "n n"]:
        """`K^{cd}`, entries `⟨∇f_c(x_i), ∇f_d(x_j)⟩`, float64."""
        ...

    def traced(self) -> Float[Tensor, "n n"]:
        """`Σ_c K^{cc}`, float64."""
        ...

    def diagonal(self) -> Float[Tensor, " n"]:
        """`Σ_c ‖∇f_c(x_i)‖²`, float64, without the kernel."""
        ...


def in_double(t: Tensor) -> Tensor:
    """`t` in float64, on the CPU where its device has none."""
    return t.cpu().double() if t.device.type == "mps" else t.double()


class _Factors:
    """Inputs `a` of a layer, and derivatives `g` of every output at its own output, `(C, n, positions, out)`."""

    a: Tensor
    g: Tensor

    @property
    def n(self) -> int:
        """Number of samples."""
        return self.g.shape[1]

    @property
    def outputs(self) -> int:
        """Number of outputs C."""
        return self.g.shape[0]


class OuterFeatures(_Factors):
    """Gradients that are sums over positions of outer products: `∇_W f_c(x) = Σ_t g_{c,t}(x) a_t(x)ᵀ`.

    `K^{cd}_{ij} = Σ_{t,s} (⟨a_t(x_i), a_s(x_j)⟩ + 1) ⟨g_{c,t}(x_i), g_{d,s}(x_j)⟩`: forward Gram ∘ backward Gram,
    summed over positions (arXiv 2110.11749, docs/theory 4.2). The 1 is the bias. A layer that is called twice has
    twice the positions, for its gradients add up.

    Args:
        a: inputs `(n, positions, in)`; or whole numbers `(n, positions)`: rows of an embedding, `⟨a_t, a_s⟩` being 1
            where they are the same.
        g: derivatives of every output at the layer's own output, `(C, n, positions, out)`.
        weight: whether the layer has a weight (that is one of its parameters).
        bias: whether it has a bias.
        hold: keep the forward Gram of all positions, `(n·t)²` numbers, instead of computing it for every block.
    """

    def __init__(
        self, a: Tensor, g: Float[Tensor, "c n t o"], *, weight: bool = True, bias: bool = True, hold: bool = False
    ) -> None:
        self.a, self.g, self.weight, self.bias, self.hold = a, g, weight, bias, hold
        self._single: Tensor | None = None

    @property
    def positions(self) -> int:
        """Positions of a sample."""
        return self.g.shape[2]

    def _forward(self, start: int, stop: int) -> Tensor:
        """Forward Gram of some samples with all, `(k·t, n·t)`, the bias included."""
        if not self.weight:
            return self.g.new_full((1, 1), float(self.bias))
        if self.a.is_floating_point():
            rows = self.a.flatten(0, 1)
            whole = stop - start == self.n
            gram = _self_product(rows) if whole else self.a[start:stop].flatten(0, 1) @ rows.mT
        else:
            rows = self.a[start:stop].flatten()
            gram = (rows[:, None] == self.a.flatten()).to(self.g.dtype)
        return gram.add_(1) if self.bias else gram

    def _product(self, left: Tensor, right: Tensor) -> Tensor:
        """`Σ_{t,s} F ∘ (left rightᵀ)` for derivatives `(n, t, o)`."""
        n, t, _ = left.shape
        if self._single is None and (t == 1 or (self.hold and self.weight)):
            self._single = self._forward(0, n)
        if t == 1 and self._single is not None:
            return in_double((left[:, 0] @ right[:, 0].mT).mul_(self._single))
        whole = right.flatten(0, 1).mT
        step = max(1, _CHUNK_BYTES // (2 * left.element_size() * t * t * n))
        pieces = list[Tensor]()
        for start in range(0, n, step):
            stop = min(start + step, n)
            gram = left[start:stop].flatten(0, 1) @ whole
            gram.mul_(self._forward(start, stop) if self._single is None else self._single[start * t : stop * t])
            pieces.append(in_double(gram.view(stop - start, t, n, t).sum((1, 3))))
        return torch.cat(pieces)

    def block(self, c: int, d: int) -> Float[Tensor, "n n"]:
        """`K^{cd}`, float64."""
        return self._product(self.g[c], self.g[d])

    def traced(self) -> Float[Tensor, "n n"]:
        """`Σ_c K^{cc}`: with one position, one backward Gram of all outputs together."""
        if self.positions == 1:
            gram = _self_product(self.g.permute(1, 2, 0, 3).flatten(1))
            return in_double(gram.mul_(self._forward(0, self.n)))
        return _symmetric(_sum_of_blocks(self))

    def diagonal(self) -> Float[Tensor, " n"]:
        """`Σ_c ‖∇f_c(x_i)‖²`, sample by sample where there are several positions."""
        if self.positions == 1 and self.a.is_floating_point():
            forward = in_double(self.a[:, 0]).square().sum(1) * self.weight + self.bias
            return forward * in_double(self.g[:, :, 0]).square().sum((0, 2))
        pieces = list[Tensor]()
        for i in range(self.n):
            single = OuterFeatures(self.a[i : i + 1], self.g[:, i : i + 1], weight=self.weight, bias=self.bias)
            pieces.append(single.traced().reshape(1))
        return torch.cat(pieces)


class GradientFeatures:
    """Per-sample gradients themselves, `(C, n, |θ_ℓ|)`."""

    def __init__(self, gradients: Float[Tensor, "c n p"]) -> None:
        self.gradients = gradients

    @property
    def n(self) -> int:
        """Number of samples."""
        return self.gradients.shape[1]

    @property
    def outputs(self) -> int:
        """Number of outputs C."""
        return self.gradients.shape[0]

    def block(self, c: int, d: int) -> Float[Tensor, "n n"]:
        """`K^{cd}`, float64."""
        return in_double(self.gradients[c] @ self.gradients[d].mT)

    def traced(self) -> Float[Tensor, "n n"]:
        """`Σ_c K^{cc}`, float64."""
        return _symmetric(_sum_of_blocks(self))

    def diagonal(self) -> Float[Tensor, " n"]:
        """`Σ_c ‖∇f_c(x_i)‖²`, float64."""
        return in_double(self.gradients).square().sum((0, 2))


class PieceFeatures(_Factors):
    """Outer products as in `OuterFeatures`, whose gradients are formed a piece of the weight at a time.

    `∇_W f_c(x_i) = Σ_t g_{c,t}(x_i) a_t(x_i)ᵀ` of some rows of `W`, all samples and outputs, then their products: the
    kernel is the sum over pieces. It takes `(nC)² |θ_ℓ|` multiplications whatever the number of positions, where
    forward and backward Grams take its square, and memory of the kernel, `(nC)²`, never of all gradients.

    Args:
        a: inputs `(n, positions, in)`.
        g: derivatives of every output at the layer's own output, `(C, n, positions, out)`.
        bias: whether the layer has a bias.
    """

    def __init__(self, a: Float[Tensor, "n t i"], g: Float[Tensor, "c n t o"], *, bias: bool = True) -> None:
        self.a, self.g, self.bias = a, g, bias
        self._kernel: Tensor | None = None

    def _all(self) -> Tensor:
        """The kernel, row `i·C + c` for output c at sample i."""
        if self._kernel is None:
            n, rows, inner = self.n, self.g.shape[3], self.a.shape[2]
            size = n * self.outputs
            total = in_double(self.g.new_zeros(1)).new_zeros(size, size)
            if self.bias:
                _self_product(self.g.sum(2).transpose(0, 1).flatten(0, 1), into=total)
            step = max(1, PIECE_BYTES // (size * inner * self.a.element_size()))
            for start in range(0, rows, step):
                left = self.g[..., start : start + step].permute(1, 0, 3, 2).flatten(1, 2)
                _self_product(torch.bmm(left, self.a).view(size, -1), into=total)
            self._kernel = total
        return self._kernel

    def block(self, c: int, d: int) -> Float[Tensor, "n n"]:
        """`K^{cd}`, float64."""
        return self._all()[c :: self.outputs, d :: self.outputs].contiguous()

    def traced(self) -> Float[Tensor, "n n"]:
        """`Σ_c K^{cc}`, float64."""
        return _symmetric(_sum_of_blocks(self))

    def diagonal(self) -> Float[Tensor, " n"]:
        """`Σ_c ‖∇f_c(x_i)‖²`, float64."""
        return self._all().diagonal().view(self.n, self.outputs).sum(1)


def _self_product(rows: Float[Tensor, "k p"], into: Tensor | None = None) -> Float[Tensor, "k k"]:
    """`rows rowsᵀ`, exactly symmetric, of which a little more than half is computed; added to `into` if given."""
    size = rows.shape[0]
    found = rows.new_empty(size, size) if into is None else into
    step = max(64, -(-size // 8))
    for start in range(0, size, step):
        stop = min(start + step, size)
        made = rows[start:stop] @ rows[:stop].mT
        made[:, start:] = _symmetric(made[:, start:])
        made = made.to(found.device)
        if into is None:
            found[start:stop, :stop] = made
            found[:start, start:stop] = made[:, :start].mT
        else:
            found[start:stop, :stop] += made
            found[:start, start:stop] += made[:, :start].mT
    return found


def _sum_of_blocks(features: TangentFeatures) -> Tensor:
    total = features.block(0, 0).clone()
    for c in range(1, features.outputs):
        total += features.block(c, c)
    return total


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.mT) / 2


def centred(block: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """`H K H`, `H = I − 11ᵀ/n`: a block of a kernel, centred over samples on both sides (docs/theory 4.2)."""
    block = block - block.mean(0, keepdim=True)
    return block - block.mean(1, keepdim=True)


def traced_kernel(features: TangentFeatures) -> Float[Tensor, "n n"]:
    """Class-traced tangent kernel of a layer, `Σ_c K^{cc}`, uncentred (arXiv 2110.11749, docs/theory 4.1).

    Exactly symmetric, and positive semi-definite to the rounding of the features.

    Example:
        >>> a, g = torch.randn(4, 1, 3), torch.randn(2, 4, 1, 5)  # a linear layer, 2 outputs, 4 samples
        >>> traced_kernel(OuterFeatures(a, g)).shape
        torch.Size([4, 4])
    """
    return features.traced()


def full_kernel(features: TangentFeatures) -> Float[Tensor, "cn cn"]:
    """Tangent kernel of a layer over outputs × samples, `K_{(c,i),(d,j)}` at row `c·n + i`, uncentred.

    Exactly symmetric, and positive semi-definite to the rounding of the features (docs/theory 4.2).
    """
    n, outputs = features.n, features.outputs
    kernel = torch.empty(0)
    for c in range(outputs):
        for d in range(c, outputs):
            block = features.block(c, d)
            if not kernel.numel():
                kernel = block.new_empty(outputs * n, outputs * n)
            block = _symmetric(block) if c == d else block
            kernel[c * n : (c + 1) * n, d * n : (d + 1) * n] = block
            kernel[d * n : (d + 1) * n, c * n : (c + 1) * n] = block.mT
    return kernel
