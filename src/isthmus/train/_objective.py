"""The objective of the theory: a data term `C` with its exact normalisation, plus the ridge term."""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from isthmus._errors import InputError
from isthmus.models import LeakyResNet

LOSS_REDUCTION = {
    "square": "sum over outputs, mean over samples",
    "cross_entropy": "mean over samples, in nats",
}
"""How each data term is normalised; recorded with every run as `loss_reduction`."""


def data_term(
    loss: str, outputs: Float[Tensor, "n outputs"], targets: Shaped[Tensor, "n ..."], *, total: int | None = None
) -> Float[Tensor, ""]:
    """`C = (1/N) Σ_i cost(y_i, f_i)` (arXiv 2405.17573, docs/theory 1.2).

    Args:
        loss: `square`: `‖y − f‖²` summed over outputs; `cross_entropy`: `−log softmax(f)_y`.
        outputs: network outputs of a batch.
        targets: real vectors, or class numbers.
        total: `N`; the number of samples in the batch unless given, so that batches of a larger set add up to its `C`.

    Raises:
        InputError: an unknown loss, or targets that do not fit it.
    """
    n = total if total is not None else outputs.shape[0]
    if loss == "square":
        if targets.shape != outputs.shape:
            raise InputError("targets", tuple(targets.shape), f"the shape of the outputs, {tuple(outputs.shape)}")
        return (targets - outputs).square().sum() / n
    if loss == "cross_entropy":
        if targets.ndim != 1 or targets.dtype != torch.int64:
            raise InputError("targets", (tuple(targets.shape), targets.dtype), "one int64 class number per sample")
        return torch.nn.functional.cross_entropy(outputs, targets, reduction="sum") / n
    raise InputError("loss", loss, "'square' or 'cross_entropy'")


def objective(
    model: LeakyResNet, loss: str, ridge: float, x: Float[Tensor, "n features"], targets: Shaped[Tensor, "n ..."]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The two terms `C` and `(λ/2μ) Σ ρ_ℓ‖W_ℓ‖²`; training minimises their sum (docs/theory 1.2)."""
    return data_term(loss, model(x), targets), ridge * model.weight_cost()


def score(loss: str, outputs: Float[Tensor, "n outputs"], targets: Shaped[Tensor, "n ..."]) -> tuple[str, float]:
    """Name and value of the score people read: `accuracy`, or `r_squared` against the mean of these targets.

    `r_squared` of one sample, or of constant targets, is not defined: NaN.
    """
    if loss == "cross_entropy":
        return "accuracy", float((outputs.argmax(-1) == targets).double().mean())
    spread = (targets - targets.mean(0)).double().square().sum()
    missed = (targets - outputs).double().square().sum()
    return "r_squared", float(1 - missed / spread) if float(spread) > 0 else float("nan")
