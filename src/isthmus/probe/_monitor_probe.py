"""The samples that a monitor measures: taken once, so that every step is measured on the same."""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Generator, Iterable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from isthmus.probe._batches import Batches
from isthmus.probe._guard import untouched
from isthmus.probe._tensors import tensors_in


def held_probe(
    model: nn.Module,
    data: Any,
    *,
    targets: Any,
    own_forward: bool,
    max_samples: int | None,
    batch_size: int | None,
    seed: int,
) -> tuple[list[Any], Any, int]:
    """Copies of the first samples, as batches on the CPU, and of their targets; and how many samples they are.

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
    kept = copied(targets[:used]) if isinstance(targets, Tensor) else targets
    return [batch.whole for batch in held], kept, used


def fingerprint(model: nn.Module, samples: Sequence[Any], targets: Any, *, n: int, loss: Any,
                layers: str | Sequence[str]) -> dict[str, Any]:  # fmt: skip
    """What must be the same for measurements to belong to one training: a record for `run.json`, small and readable.

    Args:
        model: without wrappers; of its parameters names and shapes count, for their values change.
        samples: batches that are measured; how they are cut into batches does not count.
        targets: a tensor, or the key of the targets in a batch.
        n: number of samples.
        loss: as given to `measure`; of a function its name counts.
        layers: as given to `measure`.
    """
    shapes = "".join(f"{name.replace('_orig_mod.', '')} {tuple(p.shape)}\n" for name, p in model.named_parameters())
    named = isinstance(loss, str) or loss is None
    return {
        "parameters": hashlib.sha256(shapes.encode()).hexdigest(), "n": n, "samples": _digest(samples),
        "targets": _digest([targets]) if isinstance(targets, Tensor) else targets,
        "loss": loss if named else getattr(loss, "__qualname__", type(loss).__qualname__),
        "layers": layers if isinstance(layers, str) else list(layers),
    }  # fmt: skip


def _digest(batches: Iterable[Any]) -> str:
    """Of the tensors in batches: equal for equal rows, however they are cut into batches."""
    parts: dict[str, Any] = {}
    for batch in batches:
        for place, tensor in enumerate(tensors_in(batch)):
            dense = tensor.detach() if tensor.layout == torch.strided else tensor.detach().to_dense()
            part = parts.setdefault(f"{place} {dense.dtype} {tuple(dense.shape[1:])}", hashlib.sha256())
            part.update(dense.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    whole = "".join(f"{name} {part.hexdigest()}\n" for name, part in sorted(parts.items()))
    return hashlib.sha256(whole.encode()).hexdigest()


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
