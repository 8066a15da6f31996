"""Targets as a matrix samples × outputs, centred over samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus._errors import InputError
from isthmus.probe._batches import Batch

CLASSES, REAL = "classes", "real"


def centred_targets(batches: Sequence[Batch], outputs: int) -> tuple[Float[Tensor, "n c"], str]:
    """`ỹ`: one-hot classes, or real targets, minus their mean over samples, float64 (docs/theory 4.1).

    Whole numbers are classes, one per sample, from 0 to C − 1 (of one output: 0 and 1, which stand for themselves), or
    rows with a 1 at the class; true and false are 1 and 0.

    Args:
        batches: with their targets.
        outputs: outputs C.

    Returns:
        The targets, and `classes` or `real`.

    Raises:
        InputError: no targets; of another shape than the outputs; classes out of range; fewer than 3 samples; one
            class, or constant targets; values that are not finite.
    """
    given: list[Tensor] = []
    for batch in batches:
        if batch.targets is None:
            raise InputError("targets", "none in the data", "a class or a row of numbers for each sample",
                             "give targets=, or batches (input, target)")  # fmt: skip
        if batch.targets.dim() == 0 or batch.targets.shape[0] != batch.size:
            raise InputError("targets", tuple(batch.targets.shape), f"a row for each of {batch.size} samples")
        given.append(batch.targets)
    shapes = {tuple(t.shape[1:]) for t in given}
    n = sum(t.shape[0] for t in given)
    if len(shapes) > 1:
        raise InputError("targets", f"rows of shapes {sorted(shapes)}", "rows of one shape")
    if n < 3:
        raise InputError("data", f"{n} samples", "at least 3: one or two centred samples always align")
    y = torch.cat(given)
    kind = REAL if y.is_floating_point() else CLASSES
    if y.is_complex():
        raise InputError("targets", str(y.dtype), "real numbers, or whole numbers for classes")
    if kind == CLASSES:
        y = _one_hot(y, n, outputs)
    else:
        if y.shape != (n, outputs) and not (outputs == 1 and y.shape == (n,)):
            raise InputError("targets", f"shape {tuple(y.shape)}", f"the shape of the outputs, ({n}, {outputs})",
                             "classes are to be whole numbers" if y.dim() == 1 else "")  # fmt: skip
        if not bool(y.isfinite().all()):
            raise InputError("targets", "values that are not finite", "finite numbers")
        y = y.reshape(n, outputs)
    y = y.cpu().double() if y.device.type == "mps" else y.double()
    centred = y - y.mean(0)
    if float(centred.abs().amax()) <= 64 * torch.finfo(torch.float64).eps * float(y.abs().amax()):
        raise InputError("targets", "the same for every sample" if kind == REAL else "one class", "targets that differ "
                         "between samples", "there is nothing to align with")  # fmt: skip
    return centred, kind


def _one_hot(y: Tensor, n: int, outputs: int) -> Tensor:
    y = y.long()
    if outputs > 1 and y.shape == (n, outputs) and bool(((y == 0) | (y == 1)).all()) and bool((y.sum(1) == 1).all()):
        return y
    if y.shape != (n,) and y.shape != (n, 1):
        raise InputError("targets", f"shape {tuple(y.shape)} of whole numbers", f"one class for each of {n} samples",
                         "give real targets as floating-point numbers")  # fmt: skip
    classes = y.reshape(n)
    low, high = int(classes.min()), int(classes.max())
    if outputs == 1 and low >= 0 and high <= 1:
        return classes[:, None]
    if low < 0 or high >= outputs:
        expected = f"classes from 0 to {max(outputs - 1, 1)}, for {outputs} outputs"
        raise InputError("targets", low if low < 0 else high, expected,
                         "give real targets as floating-point numbers" if outputs == 1 else "")  # fmt: skip
    return torch.nn.functional.one_hot(classes, outputs)
