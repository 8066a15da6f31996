"""Helpers shared by tests: column-convention tensors in, moments out."""

from __future__ import annotations

import torch
from torch import Tensor

from isthmus.geometry import PathAccumulator, PathMoments


def moments_of(path: Tensor, features: Tensor, momenta: Tensor | None = None, *, batches: int = 1) -> PathMoments:
    """Moments of tensors in column convention (nodes, rows, samples), streamed in `batches` pieces."""
    acc = PathAccumulator()
    pieces = [p.mT for p in path.chunk(batches, -1)], [f.mT for f in features.chunk(batches, -1)]
    moms = [None] * len(pieces[0]) if momenta is None else [m.mT for m in momenta.chunk(batches, -1)]
    for a, s, b in zip(*pieces, moms, strict=True):
        acc.update(a, s, b)
    return acc.result()


def relu_features(a: Tensor) -> Tensor:
    """`φ(A) = (max(A, 0), 1)` in column convention."""
    return torch.cat([a.clamp(min=0), torch.ones_like(a[..., :1, :])], -2)
