"""Moving the layers during training: one update of adaptive layer steps."""

from __future__ import annotations

import torch
from torch import Tensor

from isthmus.geometry import path_speed
from isthmus.models import Adaptive, LeakyResNet


def _at_positions(values: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """`W_p` at new positions, linear between the old ones and constant beyond them; layers stand first."""
    right = torch.searchsorted(old, new).clamp(1, len(old) - 1)
    share = ((new - old[right - 1]) / (old[right] - old[right - 1])).clamp(0, 1).to(values.dtype)
    share = share.view(-1, *(1,) * (values.ndim - 1))
    return torch.lerp(values[right - 1], values[right], share)


def update_steps(model: LeakyResNet, steps: Adaptive, x: Tensor) -> None:
    """One damped update of the layer steps from the speeds over the training set (docs/theory 1.3).

    The weights are a function of depth, `W_p`, and are interpolated to the layers' new positions: with weights kept in
    their layers the objective ended higher in 8 of 8 comparisons (docs/log.md). A path that is not finite has no speeds
    and changes nothing: the next epoch's objective says that the training diverged.
    """

    def middles() -> Tensor:
        p = model.positions()
        return 0.5 * (p[1:] + p[:-1])

    with torch.no_grad():
        path = model.path(x).double()
        moved = (path[1:] - path[:-1]).square().sum((-2, -1))
        norm_sq = path.square().sum((-2, -1))
        if not bool(torch.isfinite(torch.cat([moved, norm_sq])).all()):
            return
        speed = path_speed(moved, norm_sq, model.layer_steps)
        old = middles()
        model.set_layer_steps(steps.update(model.layer_steps.double(), speed, model.effective_depth))
        new = middles()
        if model.depth > 1:
            for values in (model.weight, *([] if model.bias is None else [model.bias])):
                values.copy_(_at_positions(values, old, new))
