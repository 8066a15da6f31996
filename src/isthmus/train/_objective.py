"""The objective of the theory: a data term `C` with its exact normalisation, plus the ridge term."""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from isthmus._errors import InputError
from isthmus.models import LeakyResNet

LOSS_REDUCTION = {
    "square": "sum over outputs, mean over samples",
    "cross_entropy": "mean over samples, in nats",
}
"""How each data term of a Leaky ResNet is normalised; recorded with every run as `loss_reduction`."""


_SQUARES = ("square", "mean_square")


def _divisor(loss: str, outputs: Tensor) -> int:
    """What a cost summed over outputs is divided by."""
    return outputs.shape[1] if loss == "mean_square" else 1


def data_term(
    loss: str, outputs: Float[Tensor, "n outputs"], targets: Shaped[Tensor, "n ..."], *, total: int | None = None
) -> Float[Tensor, ""]:
    """`C = (1/N) Σ_i cost(y_i, f_i)` (arXiv 2405.17573, docs/theory 1.2).

    Args:
        loss: `square`: `‖y − f‖²` summed over outputs; `mean_square`: its mean over outputs; `cross_entropy`:
            `−log softmax(f)_y`.
        outputs: network outputs of a batch.
        targets: real vectors, or class numbers.
        total: `N`; the number of samples in the batch unless given, so that batches of a larger set add up to its `C`.

    Raises:
        InputError: an unknown loss, or targets that do not fit it.
    """
    n = total if total is not None else outputs.shape[0]
    if loss in _SQUARES:
        if targets.shape != outputs.shape:
            raise InputError("targets", tuple(targets.shape), f"the shape of the outputs, {tuple(outputs.shape)}")
        return (targets - outputs).square().sum() / (n * _divisor(loss, outputs))
    if loss == "cross_entropy":
        if targets.ndim != 1 or targets.dtype != torch.int64:
            raise InputError("targets", (tuple(targets.shape), targets.dtype), "one int64 class number per sample")
        return nn.functional.cross_entropy(outputs, targets, reduction="sum") / n
    raise InputError("loss", loss, "'square', 'mean_square' or 'cross_entropy'")


def data_term_slope(
    loss: str, outputs: Float[Tensor, "n outputs"], targets: Shaped[Tensor, "n ..."]
) -> tuple[float, Float[Tensor, "n outputs"]]:
    """`C`, its sum over samples taken in float64, and its gradient at the outputs."""
    leaf = outputs.detach().requires_grad_()
    with torch.enable_grad():
        cost = data_term(loss, leaf, targets)
    (gradient,) = torch.autograd.grad(cost, leaf)
    if loss in _SQUARES:
        costs = (outputs.detach() - targets).square()
    else:
        costs = nn.functional.cross_entropy(outputs.detach(), targets, reduction="none")
    return float(costs.sum(dtype=torch.float64)) / (len(targets) * _divisor(loss, outputs)), gradient


def probe_outputs(
    loss: str, outputs: Float[Tensor, "n outputs"], generator: torch.Generator
) -> Float[Tensor, "n outputs"]:
    """Rows `q` with `E[q qᵀ] = ∂²cost/∂f²` of every sample."""
    if loss in _SQUARES:
        drawn = torch.randint(0, 2, outputs.shape, generator=generator, dtype=torch.int8, device="cpu")
        signs = drawn.to(outputs)
        return (2 * signs - 1) * (2 / _divisor(loss, outputs)) ** 0.5
    share = outputs.softmax(-1)
    drawn = torch.rand(len(share), 1, generator=generator, dtype=torch.float64, device="cpu").to(outputs)
    label = (share.cumsum(-1) < drawn).sum(-1).clamp(max=share.shape[1] - 1)
    return nn.functional.one_hot(label, share.shape[1]).to(share) - share


def check_samples(x: Tensor, y: Tensor, loss: str, in_features: int, out_features: int) -> None:
    """Raises `InputError` for samples or targets of the wrong shape or kind, or with numbers that are not finite."""
    wanted, n = in_features, x.shape[0]
    if x.ndim != 2 or x.shape[1] != wanted or n == 0:
        raise InputError("x", f"shape {tuple(x.shape)}", f"shape (samples, in_features) = (n, {wanted}), n ≥ 1")
    if loss in _SQUARES and y.shape != (n, out_features):
        raise InputError("y", f"shape {tuple(y.shape)}", f"shape (samples, out_features) = ({n}, {out_features})",
                         "one column for one output" if y.ndim == 1 else "")  # fmt: skip
    if loss == "cross_entropy":
        if y.shape != (n,) or y.dtype != torch.int64:
            raise InputError("y", f"shape {tuple(y.shape)} of {y.dtype}", f"{n} class numbers, torch.int64")
        if not bool(((y >= 0) & (y < out_features)).all()):
            raise InputError("y", f"class numbers {int(y.min())} to {int(y.max())}",
                             f"0 to out_features − 1 = {out_features - 1}")  # fmt: skip
    for name, values in (("x", x), ("y", y)):
        if not bool(torch.isfinite(values).all()):
            raise InputError(name, count_bad(values), "finite numbers", "fill those in, or leave their rows out")


def count_bad(values: Tensor) -> str:
    """How many numbers are not finite, in words."""
    return f"{int((~torch.isfinite(values)).sum())} NaN or infinite"


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
