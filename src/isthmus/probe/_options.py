"""The options of a measurement, checked before anything runs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from isthmus._errors import InputError
from isthmus._random import check_seed
from isthmus._records import check_metric
from isthmus.probe._losses import loss_of
from isthmus.probe._one import Forward, MeasureOptions, placed_on, unwrapped


def options_of(
    model: Any,
    *,
    layers: str | Sequence[str],
    targets: Any = None,
    loss: Any = None,
    forward: Forward | None = None,
    max_samples: int | None = None,
    device: torch.device | str | None = None,
    metrics: Collection[str] | None = None,
    batch_size: int | None = None,
    max_memory: float | int | None = None,
    jacobian_samples: int = 0,
    seed: int = 0,
) -> tuple[nn.Module, MeasureOptions, list[str]]:
    """The model without its wrappers on the device asked for, the options, and what was decided on the way.

    Raises:
        InputError: an option that cannot be used.
    """
    bare, notes = unwrapped(model)
    names = [metrics] if isinstance(metrics, str) else metrics
    wanted = None if names is None else frozenset(check_metric(name).name for name in names)
    if jacobian_samples < 0 or jacobian_samples == 1:
        raise InputError("jacobian_samples", jacobian_samples, "0, or at least 2 for a standard error")
    if isinstance(targets, np.ndarray):
        targets = torch.from_numpy(targets)
    if not isinstance(targets, (torch.Tensor, str, int, type(None))):
        raise InputError("targets", type(targets).__name__, "a tensor or array with a row per sample, or their key or "
                         "index in a batch")  # fmt: skip
    loss_function, loss_name = loss_of(loss, targets)
    options = MeasureOptions(
        layers, targets, loss_function, loss_name, forward, max_samples, batch_size, max_memory, jacobian_samples,
        wanted, check_seed(seed),
    )  # fmt: skip
    return placed_on(bare, device), options, notes
