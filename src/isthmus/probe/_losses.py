"""What is differentiated: a loss by name or of the user's own, on whatever the model returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from isthmus._errors import InputError, near_name_hint
from isthmus.probe._batches import Batch
from isthmus.probe._pass import LossOf
from isthmus.probe._tensors import main_tensor

LOSSES = ("cross_entropy", "square", "model")


def outputs_of(returned: Any) -> Tensor:
    """The predictions in what a model returned: its `logits`, or its first real tensor.

    Raises:
        InputError: no real tensor in it.
    """
    logits = getattr(returned, "logits", None)
    tensor, why = main_tensor(returned if logits is None else logits)
    if tensor is None:
        raise InputError("loss", f"an output that is {why}", "an output with a real tensor",
                         "give loss=lambda outputs, targets: …")  # fmt: skip
    return tensor


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """`−log softmax(outputs)[target]`, mean over samples and positions; classes last, or first after the samples.

    Of one output, with targets 0 and 1, `−log` of the logistic function: the output is the logit of class 1.
    """
    if targets.is_floating_point() and targets.shape != outputs.shape:
        raise InputError("targets", f"{targets.dtype} of shape {tuple(targets.shape)}", "whole numbers for classes",
                         "give targets.long(), or loss='square'")  # fmt: skip
    if outputs.dim() == 2 and outputs.shape[1] == 1 and targets.numel() == outputs.shape[0]:
        wanted = targets.reshape(outputs.shape).to(outputs.dtype)
        if bool(((wanted < 0) | (wanted > 1)).any()):
            wrong = int(targets.max()) if int(targets.max()) > 1 else int(targets.min())
            raise InputError("targets", wrong, "classes 0 and 1, for one output", "give loss='square' for numbers")
        return torch.nn.functional.binary_cross_entropy_with_logits(outputs, wanted)
    if targets.shape == outputs.shape:  # a probability for each class, or 1 for the right one
        return torch.nn.functional.cross_entropy(outputs, targets.to(outputs.dtype))
    if outputs.dim() == 2 and targets.shape == (outputs.shape[0], 1):
        targets = targets[:, 0]
    targets = targets.long()
    if outputs.dim() == targets.dim() + 1 and outputs.shape[:-1] == targets.shape:
        return torch.nn.functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())
    return torch.nn.functional.cross_entropy(outputs, targets)


def square(outputs: Tensor, targets: Tensor) -> Tensor:
    """`(1/N) Σ_i ‖y_i − f(x_i)‖²`: sum over outputs, mean over samples (arXiv 2405.17573, docs/theory 1.2)."""
    fitted = targets.reshape(outputs.shape) if targets.numel() == outputs.numel() else targets
    if fitted.shape != outputs.shape:
        classes = targets.dim() == 1 and bool((targets == targets.round()).all())
        raise InputError("targets", tuple(targets.shape), f"the shape of the outputs {tuple(outputs.shape)}",
                         "classes are to be whole numbers: targets.long()" if classes else "")  # fmt: skip
    return (outputs - fitted.to(outputs.dtype)).square().reshape(outputs.shape[0], -1).sum(1).mean()


def loss_of(loss: str | Callable[[Any, Any], Tensor] | None, targets: Any) -> tuple[LossOf | None, str]:
    """The loss of a batch and its name; None where none was asked for.

    Args:
        loss: `"cross_entropy"`, `"square"`, `"model"` (the model's own, in its output's `loss`), a callable
            `(outputs, targets) → mean loss`, or None: then, where a tensor of targets is given, cross-entropy for
            whole numbers and square for others.
        targets: as given to `measure`.

    Raises:
        InputError: an unknown name.
    """
    if loss is None and not isinstance(targets, Tensor):
        return None, ""
    if loss is None:
        loss = "square" if targets.is_floating_point() else "cross_entropy"
    if callable(loss):
        own: Callable[[Any, Any], Tensor] = loss
        return _with_targets(lambda returned, y: own(returned, y), "own"), getattr(loss, "__name__", "own")
    if loss not in LOSSES:
        raise InputError("loss", loss, f"one of {', '.join(LOSSES)}, or a callable", near_name_hint(str(loss), LOSSES))
    if loss == "model":
        return _own_loss, loss
    named = cross_entropy if loss == "cross_entropy" else square
    return _with_targets(lambda returned, y: named(outputs_of(returned), y), loss), loss


def _with_targets(inner: Callable[[Any, Tensor], Tensor], name: str) -> LossOf:
    def loss(returned: Any, batch: Batch) -> Tensor:
        if batch.targets is None:
            raise InputError("targets", "none in the data", f"targets for the loss {name!r}",
                             "give targets=, batches (input, target), or leave the loss out")  # fmt: skip
        try:
            value: Any = inner(returned, batch.targets)
        except InputError:
            raise
        except Exception as error:
            shapes = f"targets {tuple(batch.targets.shape)} ({batch.targets.dtype})"
            tensor = main_tensor(returned)[0]
            given = "" if tensor is None else f", outputs {tuple(tensor.shape)}"
            said = " ".join(str(error).split())[:200]
            raise InputError("targets", shapes + given, f"what the loss {name!r} accepts ({said})") from error
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise InputError("loss", type(value).__name__, "a callable that gives one number, the mean over the batch")
        return value.reshape(())

    return loss


def _own_loss(returned: Any, batch: Batch) -> Tensor:
    value = getattr(returned, "loss", None)
    if not isinstance(value, Tensor):
        raise InputError("loss", "model", "a model whose output has a loss",
                         "Hugging Face models give one when the batch holds labels")  # fmt: skip
    return value.reshape(())
