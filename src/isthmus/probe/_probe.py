"""One pass over the data: activations and momenta of a path, handed to streaming accumulators."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from isthmus._errors import InputError
from isthmus.geometry import PathAccumulator, PathMoments
from isthmus.models import LeakyResNet

MeanLoss = Callable[[Tensor, Tensor], Tensor]
"""`(outputs, targets) → scalar`, a mean over the samples it is given."""


def path_momenta(
    model: LeakyResNet,
    path: Float[Tensor, "nodes n width"],
    y: Shaped[Tensor, "n ..."],
    *,
    loss: MeanLoss,
    ridge: float,
    total: int,
) -> Float[Tensor, "nodes n width"]:
    """`B_ℓ = −(1/λ) ∂C/∂A_ℓ` for ℓ = 0..L, by a backward pass along the path (arXiv 2405.17573, docs/theory 1.5).

    Args:
        model: the network; nothing of it is changed.
        path: `A_0 … A_L` of a batch.
        y: the batch's targets.
        loss: data term as a mean over the batch.
        ridge: `λ > 0`.
        total: `N` of the whole data set; `C` carries `1/N` also when streaming.

    Raises:
        InputError: `λ = 0`, for which momenta are not defined.
    """
    if not ridge > 0:
        raise InputError("ridge", ridge, "a number > 0 for momenta and Hamiltonians (B = −(1/λ) ∂C/∂A)",
                         "train with a ridge, or leave the Hamiltonian out")  # fmt: skip
    share = path.shape[1] / total
    end = path[-1].detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(loss(model.readout(end), y) * share, end)
    momenta = [gradient / -ridge]
    leak = 1 - model.layer_steps * model.effective_depth
    weight = model.augmented_weight().detach()
    for layer in range(model.depth - 1, -1, -1):
        a = path[layer].detach().requires_grad_()
        with torch.enable_grad():
            ahead = leak[layer] * a + model.layer_steps[layer] * (model.features(a) @ weight[layer].mT)
            (backward,) = torch.autograd.grad(ahead, a, momenta[-1])
        momenta.append(backward)
    return torch.stack(momenta[::-1])


def probe_path(
    model: LeakyResNet,
    x: Float[Tensor, "n inputs"],
    y: Shaped[Tensor, "rows ..."] | None = None,
    *,
    loss: MeanLoss | None = None,
    ridge: float | None = None,
    batch_size: int = 2048,
) -> PathMoments:
    """Second moments of a Leaky ResNet's path over all of `x`, in float64, without touching the model.

    Momenta are included where targets, a loss and a ridge `λ > 0` are given.

    Args:
        model: the network, of any dtype; a float64 copy of it is evaluated on its own device.
        x: samples.
        y: targets.
        loss: data term as a mean over the samples it is given.
        ridge: `λ`.
        batch_size: samples held at once.

    Raises:
        InputError: no samples, values that are not finite, lengths that differ.
    """
    if x.shape[0] == 0:
        raise InputError("x", tuple(x.shape), "at least one sample")
    if y is not None and y.shape[0] != x.shape[0]:
        raise InputError("y", y.shape[0], f"as many rows as x ({x.shape[0]})")
    device = model.layer_steps.device
    exact = copy.deepcopy(model).double()
    exact.set_layer_steps(exact.layer_steps / exact.layer_steps.sum())
    accumulator = PathAccumulator()
    for start in range(0, x.shape[0], batch_size):
        xb = x[start : start + batch_size].to(device, torch.float64)
        with torch.no_grad():
            path = exact.path(xb)
            features = exact.features(path)
        momenta = None
        if y is not None and loss is not None and ridge:
            yb = y[start : start + batch_size].to(device)
            yb = yb.double() if yb.is_floating_point() else yb
            momenta = path_momenta(exact, path, yb, loss=loss, ridge=ridge, total=x.shape[0])
        accumulator.update(path, features, momenta)
    return accumulator.result()
