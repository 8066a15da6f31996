"""Samples of the structure experiments of the effective theory's paper: XOR, images, blobs in two contexts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from isthmus.experiments._images import ImageFile, image_task

TaskKind = Literal["xor", "images", "blobs"]

_BLOB_PIXELS = 5


@dataclasses.dataclass(frozen=True)
class Samples:
    """What a network is trained on.

    Attributes:
        x: inputs as the network reads them, float32.
        y: targets, float32.
        groups: class of each sample; of the blobs their context, 0 or 1.
        places: of the blobs `(μ_x, μ_y)`; no columns otherwise.
    """

    x: Float[Tensor, "n inputs"]
    y: Float[Tensor, "n outputs"]
    groups: Int[Tensor, " n"]
    places: Float[Tensor, "n coordinates"]


def xor_samples() -> Samples:
    """The four corners of the unit square; the target is 1 where the coordinates differ (docs/theory 2.5)."""
    x = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=torch.float32)
    groups = (x.sum(1) == 1).long()
    return Samples(x, groups[:, None].float(), groups, torch.empty(4, 0))


def blob_samples(grid: int) -> Samples:
    """Gaussian blobs of unit width at `(μ_x, μ_y)` on a grid over [−1, 1]², in two contexts (docs/theory 2.5).

    Inputs are 5 × 5 pixels over the same square with sum 1, then two entries for the context: (1, 0) where the target
    is `μ_x` and (0, 1) where it is `μ_y`. Samples of the first context come first.

    Args:
        grid: places along either axis, at least 2.
    """
    axis, pixels = torch.linspace(-1, 1, grid), torch.linspace(-1, 1, _BLOB_PIXELS)
    places = torch.cartesian_prod(axis, axis)
    points = torch.cartesian_prod(pixels, pixels)
    blobs = torch.exp(-(points[None] - places[:, None]).square().sum(2) / 2)
    blobs = blobs / blobs.sum(1, keepdim=True)
    contexts = torch.arange(2).repeat_interleave(len(places))
    x = torch.cat([blobs.repeat(2, 1), one_hot(contexts, 2).float()], 1)
    y = torch.cat([places[:, :1], places[:, 1:]])
    return Samples(x.float(), y.float(), contexts, places.repeat(2, 1).float())


def image_samples(file: ImageFile, source: Mapping[str, Any], seed: int) -> Samples:
    """Training images as vectors, with one-hot targets."""
    task = image_task(file, {**source, "n_test": 1, "seed": seed})
    targets = one_hot(task.y_train, task.classes).float()
    return Samples(task.x_train.flatten(1), targets, task.y_train, torch.empty(len(targets), 0))
