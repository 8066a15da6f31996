"""Streaming second moments of any representation: float32 products shifted by a running mean, sums in float64."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus._errors import InputError

_COLUMNS_PER_BLOCK = 48
_MOST_BLOCKS = 8
_CHUNK = 2**18
"""Numbers in a temporary tensor on the CPU: larger ones are fresh pages each time, which cost more than the sums."""


@dataclasses.dataclass(frozen=True)
class StreamMoments:
    """Second moments of a matrix `A` (`width × N`), all float64, summed over samples.

    Attributes:
        n: number of samples N.
        mean: `A 1 / N`.
        centred_gram: `(A − mean)(A − mean)ᵀ`.
        negative_norm_sq: `‖min(A, 0)‖²`.
        eps: rounding unit of the products of a batch.
    """

    n: int
    mean: Float[Tensor, " width"]
    centred_gram: Float[Tensor, "width width"]
    negative_norm_sq: float
    eps: float

    @property
    def gram(self) -> Float[Tensor, "width width"]:
        """`A Aᵀ`."""
        return self.centred_gram + self.n * torch.outer(self.mean, self.mean)

    @property
    def norm_sq(self) -> float:
        """`‖A‖²`."""
        return float(self.centred_gram.diagonal().sum() + self.n * self.mean.square().sum())

    def with_ones(self) -> Float[Tensor, "features features"]:
        """`S Sᵀ` of `S = (A, 1)`, with the appended 1 of the next layer's bias."""
        gram, total = self.gram, self.n * self.mean
        return torch.cat([torch.cat([gram, total[:, None]], 1), torch.cat([total, total.new_tensor([self.n])])[None]])


def _block_edges(width: int) -> list[int]:
    blocks = 1
    while blocks < _MOST_BLOCKS and width // (2 * blocks) >= _COLUMNS_PER_BLOCK:
        blocks *= 2
    return [width * i // blocks for i in range(blocks + 1)]


def _upper_strips(x: Float[Tensor, "n width"]) -> list[Tensor]:
    """Rows of blocks of `xᵀx` between the edges, each from its diagonal block on."""
    edges = _block_edges(x.shape[1])
    return [x[:, low:high].mT @ x[:, low:] for low, high in itertools.pairwise(edges)]


def _mirror_(upper: Float[Tensor, "width width"]) -> Float[Tensor, "width width"]:
    """Fill the blocks below the diagonal from those above it, in place."""
    for low, high in itertools.pairwise(_block_edges(upper.shape[0])):
        upper[high:, low:high] = upper[low:high, high:].mT
    return upper


def symmetric_product(x: Float[Tensor, "n width"]) -> Float[Tensor, "width width"]:
    """`xᵀx`, from its upper block triangle only (the products of the lower one are not taken)."""
    strips = _upper_strips(x)
    if len(strips) == 1:
        return strips[0]
    out = x.new_empty(x.shape[1], x.shape[1])
    for (low, high), strip in zip(itertools.pairwise(_block_edges(x.shape[1])), strips, strict=True):
        out[low:high, low:] = strip
    return _mirror_(out)


def squared_norm(function: Callable[..., Tensor], *xs: Float[Tensor, "n ..."]) -> Float[Tensor, ""]:
    """`‖function(*xs)‖²` in float64 of an elementwise function, without a temporary tensor of the size of `xs`."""
    rows = max(1, _CHUNK * xs[0].shape[0] // max(xs[0].numel(), 1)) if xs[0].device.type == "cpu" else xs[0].shape[0]
    parts = zip(*(x.split(rows) for x in xs), strict=True)
    return torch.stack([function(*part).square().sum().double() for part in parts]).sum()


def _negative_part(x: Tensor) -> Tensor:
    return x.clamp(max=0)


def _laid_like(x: Float[Tensor, "n width"], memory: Float[Tensor, " numbers"]) -> Float[Tensor, "n width"]:
    """A matrix of the shape of `x`, by columns where `x` is, in the memory of a vector."""
    n, width = x.shape
    flat = memory[: x.numel()]
    return flat.view(width, n).mT if x.stride(0) == 1 else flat.view(n, width)


class StreamAccumulator:
    """Collects `StreamMoments` batch by batch; memory depends on the width only, never on N.

    A batch is shifted by the mean of all samples before it (of its own, if it is the first), multiplied in float32
    (float64 where the batch is), and merged in float64 (the pairwise update of Chan, Golub and LeVeque 1979). The
    shift keeps the rounding of the products relative to the spread of the samples and not to their mean.

    Example:
        >>> acc = StreamAccumulator()
        >>> _ = acc.update(torch.tensor([[1.0, 2.0], [3.0, 2.0]]))
        >>> acc.result().gram.tolist()
        [[10.0, 8.0], [8.0, 8.0]]
    """

    def __init__(self) -> None:
        self.n = 0
        self._mean = self._gram = torch.empty(0)
        self._negative: Tensor | float = 0.0
        self._eps = torch.finfo(torch.float64).eps

    def update(
        self, x: Float[Tensor, "n width"], *, negative: bool = True, out: Float[Tensor, " numbers"] | None = None
    ) -> Shifted:
        """Add a batch, samples in rows; returns it as it was multiplied, for `CrossAccumulator`.

        Args:
            x: the batch, of any floating dtype.
            negative: whether `‖min(A, 0)‖²` is collected, too.
            out: memory for what is returned: a vector of as many numbers or more, in float32 (float64 where the batch
                is). It may be the batch's own memory, which is overwritten then.

        Raises:
            InputError: no samples, a width unlike the first batch's, or values that are not finite (nothing is
                added then).
        """
        if x.shape[0] == 0:
            raise InputError("x", tuple(x.shape), "at least one sample")
        if self.n and x.shape[1] != self._mean.shape[0]:
            raise InputError("x", tuple(x.shape), f"the width of the first batch, {self._mean.shape[0]}")
        exact = x if x.dtype == torch.float64 else x.float()
        shift = self._mean.to(exact.dtype) if self.n else exact.mean(0)
        below = squared_norm(_negative_part, exact.mT if exact.stride(0) == 1 else exact) if negative else 0.0
        rows = exact - shift if out is None else torch.sub(exact, shift, out=_laid_like(exact, out))
        strips = _upper_strips(rows)
        total = rows.sum(0).double()
        if not bool(torch.isfinite(torch.stack([strip.diagonal().sum() for strip in strips]).sum() + total.sum())):
            raise InputError("x", "values that are not finite", "finite numbers")
        m, old, width = x.shape[0], self.n, x.shape[1]
        shifted = shift.double()
        mean = shifted + total / m
        if not old:
            self._gram, self._mean = total.new_zeros(width, width), mean
        for low, strip in zip(_block_edges(width), strips, strict=False):  # the blocks below them stay behind
            self._gram[low : low + strip.shape[0], low:] += strip
        self._gram.addr_(total, total, alpha=-1 / m)  # about the batch's own mean
        if old:
            gap = mean - self._mean
            self._gram.addr_(gap, gap, alpha=old * m / (old + m))
            self._mean = self._mean + gap * (m / (old + m))
        self.n = old + m
        self._negative = self._negative + below
        self._eps = max(self._eps, float(torch.finfo(exact.dtype).eps))
        return Shifted(rows, shifted, total)

    def parts(self) -> dict[str, Tensor]:
        """The sums so far, in float64, for `merge`; empty before the first batch."""
        if not self.n:
            return {}
        numbers = (("n", self.n), ("eps", self._eps), ("negative", float(self._negative)))
        return {name: self._mean.new_tensor(value) for name, value in numbers} | {
            "mean": self._mean, "gram": self._gram,
        }  # fmt: skip

    def merge(self, parts: dict[str, Tensor]) -> None:
        """Add the sums of another accumulator (`parts` of it), as if its samples had come here.

        Raises:
            InputError: another width.
        """
        m, old = int(parts["n"]) if parts else 0, self.n
        if not m:
            return
        mean, gram = (parts[name].to(self._mean.device) for name in ("mean", "gram"))
        if old and mean.shape != self._mean.shape:
            raise InputError("parts", f"width {mean.shape[0]}", f"the width here, {self._mean.shape[0]}")
        if old:
            gap = mean - self._mean
            self._gram.add_(gram).addr_(gap, gap, alpha=old * m / (old + m))
            self._mean = self._mean + gap * (m / (old + m))
        else:
            self._gram, self._mean = gram.clone(), mean.clone()
        self.n = old + m
        self._negative = self._negative + float(parts["negative"])
        self._eps = max(self._eps, float(parts["eps"]))

    def result(self) -> StreamMoments:
        """The moments so far. Raises `InputError` before the first batch."""
        if not self.n:
            raise InputError("samples", 0, "at least one batch")
        return StreamMoments(self.n, self._mean, _mirror_(self._gram.clone()), float(self._negative), self._eps)


@dataclasses.dataclass(frozen=True)
class Shifted:
    """A batch minus `shift`, samples in rows, and the sum of its rows."""

    rows: Float[Tensor, "n width"]
    shift: Float[Tensor, " width"]
    total: Float[Tensor, " width"]


class CrossAccumulator:
    """Collects `A Sᵀ` from batches that `StreamAccumulator.update` returned for `A` and for `S`, sample by sample.

    Example:
        >>> a, s, cross = StreamAccumulator(), StreamAccumulator(), CrossAccumulator()
        >>> cross.update(a.update(torch.ones(4, 2)), s.update(2 * torch.ones(4, 3)))
        >>> cross.result().tolist()
        [[8.0, 8.0, 8.0], [8.0, 8.0, 8.0]]
    """

    def __init__(self) -> None:
        self.n = 0
        self._sum = self._left = self._right = torch.empty(0)

    def update(self, left: Shifted, right: Shifted) -> None:
        """Add a batch.

        Raises:
            InputError: different numbers of samples.
        """
        m = left.rows.shape[0]
        if right.rows.shape[0] != m:
            raise InputError("right", tuple(right.rows.shape), f"as many samples as left ({m})")
        product = left.rows.mT @ right.rows
        first, second = left.shift + left.total / m, right.shift + right.total / m
        if self.n:
            gap, other = first - self._left, second - self._right
            self._sum.add_(product).addr_(gap, other, alpha=self.n * m / (self.n + m))
            share = m / (self.n + m)
            self._left, self._right = self._left + gap * share, self._right + other * share
        else:
            self._sum, self._left, self._right = product.double(), first, second
        self._sum.addr_(left.total, right.total, alpha=-1 / m)  # about the batch's own means
        self.n += m

    def parts(self) -> dict[str, Tensor]:
        """The sums so far, in float64, for `merge`; empty before the first batch."""
        if not self.n:
            return {}
        return {"n": self._left.new_tensor(self.n), "sum": self._sum, "left": self._left, "right": self._right}

    def merge(self, parts: dict[str, Tensor]) -> None:
        """Add the sums of another accumulator (`parts` of it), as if its samples had come here.

        Raises:
            InputError: other widths.
        """
        m, old = int(parts["n"]) if parts else 0, self.n
        if not m:
            return
        total, left, right = (parts[name].to(self._sum.device) for name in ("sum", "left", "right"))
        if old and total.shape != self._sum.shape:
            raise InputError("parts", f"widths {tuple(total.shape)}", f"the widths here, {tuple(self._sum.shape)}")
        if old:
            gap, other, share = left - self._left, right - self._right, m / (old + m)
            self._sum.add_(total).addr_(gap, other, alpha=old * share)
            self._left, self._right = self._left + gap * share, self._right + other * share
        else:
            self._sum, self._left, self._right = total.clone(), left.clone(), right.clone()
        self.n = old + m

    def result(self) -> Float[Tensor, "width features"]:
        """`A Sᵀ` so far. Raises `InputError` before the first batch."""
        if not self.n:
            raise InputError("samples", 0, "at least one batch")
        return self._sum + self.n * torch.outer(self._left, self._right)

    def result_with_ones(self) -> Float[Tensor, "width features"]:
        """`A Sᵀ` with the appended 1 of the next layer's bias in `S`."""
        return torch.cat([self.result(), (self.n * self._left)[:, None]], 1)
