"""The samples that a monitor measures: taken once, so that every step is measured on the same."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Generator
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from isthmus.probe._batches import Batches
from isthmus.probe._guard import untouched


def held_probe(
    model: nn.Module,
    data: Any,
    *,
    targets: Any,
    own_forward: bool,
    max_samples: int | None,
    batch_size: int | None,
    seed: int,
) -> tuple[list[Any], Any]:
    """Copies of the first samples, as batches on the CPU, and of their targets.

    A loader that shuffles, data that can be read only once, and tensors that change later all give the same samples
    at every step.

    Args:
        model: whose inputs they are.
        data: as given to `measure`.
        targets: as given to `measure`.
        own_forward: whether the user's `forward` takes the whole batch.
        max_samples: samples to use at most; None for all.
        batch_size: samples per batch of data that are not batched yet.
        seed: of random states while the data are read.

    Raises:
        InputError: as `measure`, for data that cannot be used.
    """
    if isinstance(targets, np.ndarray):
        targets = torch.from_numpy(targets)

    def copied(t: Tensor) -> Tensor:
        return t.detach().to("cpu", copy=True)

    with untouched(model, seed), _undrawn(data) as read:
        batches = Batches(read, model, targets=targets, own_forward=own_forward, max_samples=max_samples,
                          batch_size=batch_size, place=copied)  # fmt: skip
        held = list(batches)
    used = sum(batch.size for batch in held)
    return [batch.whole for batch in held], copied(targets[:used]) if isinstance(targets, Tensor) else targets


@contextlib.contextmanager
def _undrawn(data: Any) -> Generator[Any]:
    """The data to read; a loader, which may be the one of the training, stands afterwards where it stood."""
    if not isinstance(data, DataLoader):
        yield data
        return
    loader = cast("DataLoader[Any]", data)
    inner = getattr(loader.batch_sampler, "sampler", None)
    owners = (loader, loader.sampler, loader.batch_sampler, inner)
    found = {
        id(g): g for g in (getattr(owner, "generator", None) for owner in owners) if isinstance(g, torch.Generator)
    }
    states = [(generator, generator.get_state()) for generator in found.values()]
    try:
        yield copy.copy(loader)  # workers that persist are the copy's
    finally:
        for generator, state in states:
            generator.set_state(state)
