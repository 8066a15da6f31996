"""Another number of layers for a trained Leaky ResNet: its weights, a function of depth, on other layer steps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from isthmus._errors import InputError, near_name_hint
from isthmus.models import Adaptive, Equidistant, LeakyResNet, whole_number

RESAMPLE_METHODS = ("merge", "refit", "equidistant", "drop")
"""Ways to another depth that `resample` knows."""

_PULL = 1e-3
"""Weight of the pull of a refitted layer towards the mean of its layers, against the mean of the diagonal of `SSᵀ`."""

_ORIGIN = 1e6
"""A relative move counts as this at most: that of a layer that ends at the origin is infinite."""

_ROUNDING = 1e-6
"""Shares of the path below this, and differences of a step's `ρL̃` from its bound, are float32's rounding."""


def resample(
    model: LeakyResNet,
    depth: int,
    x: Float[Tensor, "n features"] | None = None,
    *,
    method: str = "auto",
    steps: Float[Tensor, " layers"] | Sequence[float] | None = None,
) -> LeakyResNet:
    """The same path with another number of layers (arXiv 2405.17573, docs/theory 1.1 and 1.3).

    A trained network is a function of depth, `W_p = W_ℓ` for `p` in layer `ℓ`. New layers get its mean over their part
    of the path, `W'_j = (1/ρ'_j) ∫ W_p dp`, and likewise the bias, so that `∫ W_p dp` stays the same.

    | method | new layers | needs `x` |
    |---|---|---|
    | `equidistant` | `ρ'_j = 1/L'`, or `steps`; `L'` may be larger than `L` | no |
    | `merge` | groups of neighbours become one layer, `ρ' = ρ_i + … + ρ_j` | yes |
    | `refit` | the layers of `merge`, each with the weight that best maps the old path onto itself | yes |
    | `drop` | the fastest `L'` layers as they are; the others are left out | yes |

    `merge` takes the groups with the least sum of `m_i m_j` over all pairs of layers that are joined, with the relative
    moves `m_ℓ = ‖A_ℓ − A_{ℓ−1}‖ / ‖A_ℓ‖` over `x`. One Euler step in place of several leaves out such products, so slow
    layers are joined before fast ones. It is the least of all partitions whose groups keep `ρ'L̃` below 1 (with adaptive
    steps: not above their cap), found by dynamic programming; a depth that no such partition has is refused.
    `refit` then gives each joined layer the weight of the least `‖T − W S‖² + γ‖W − W̄‖²` over the samples, where
    `S = (φ(A_{i−1}), 1)`, `T = (A_j − (1 − ρ'L̃) A_{i−1})/ρ'`, `W̄` is the mean above, and `γ` a thousandth of the mean
    diagonal entry of `SSᵀ`. `drop` scales what is kept onto the whole path, `L̃' = sL̃`, `W' = sW`, `ρ' = ρ/s`, `s` the
    sum of the steps kept: this is exactly the network in which the other layers do nothing (docs/theory 1.7, range).

    None of this keeps the function: one Euler step of length `2ρ` in place of two of length `ρ` errs by `O(ρ²)`, so a
    path resampled to `L'` layers by `O(1/L')` as both grow; halving all steps moves the outputs by `O(1/L)`, too. The
    same depth and steps give the same function to the last bit.

    Args:
        model: the network; it is left as it is.
        depth: `L'`.
        x: inputs, `(n, in_features)`, say those it was trained on.
        method: a row of the table; `auto` is `merge` where `x` is given, else `equidistant`.
        steps: for `equidistant`: `L'` steps of sum 1 to use instead.

    Returns:
        A new network with the maps, activation, dtype and device of the model. Its rule is adaptive where the model's
        is. Otherwise training leaves the new steps as they are.

    Raises:
        InputError: an unknown method; `x` left out, not finite or of the wrong shape; steps that are no `L'` positive
            numbers of sum 1, or too long for `L̃`; a depth that the path cannot have.

    Example:
        >>> net = LeakyResNet(8, 2, width=16, depth=10, effective_depth=2.0)
        >>> resample(net, 5).depth, resample(net, 7, torch.randn(50, 8)).depth
        (5, 7)
    """
    depth = whole_number("depth", depth)
    if method == "auto":
        method = "equidistant" if x is None or steps is not None else "merge"
    if method not in RESAMPLE_METHODS:
        raise InputError("method", method, f"'auto', {', '.join(map(repr, RESAMPLE_METHODS))}",
                         near_name_hint(method, ["auto", *RESAMPLE_METHODS]))  # fmt: skip
    if steps is not None and method != "equidistant":
        raise InputError("steps", steps, f"None with method {method!r}, which chooses its own", "leave one of them out")
    with torch.no_grad():
        if method == "equidistant":
            return _on_steps(model, depth, steps)
        if x is None:
            raise InputError("x", None, f"inputs, for method {method!r}", "give those that the network was trained on")
        if depth > model.depth:
            raise InputError("depth", depth, f"at most the {model.depth} layers there are, for method {method!r}",
                             "use method='equidistant' for more layers")  # fmt: skip
        return _from_path(model, depth, method, _path(model, x))


def resampler(model: LeakyResNet, x: Float[Tensor, "n features"]) -> Callable[[int, str], LeakyResNet]:
    """`resample` for many depths and methods of one model, whose path over `x` is walked once."""
    walked: list[Tensor] = []

    def make(depth: int, method: str) -> LeakyResNet:
        if method not in ("merge", "refit", "drop") or depth > model.depth:
            return resample(model, depth, x, method=method)
        with torch.no_grad():
            if not walked:
                walked.append(_path(model, x))
            return _from_path(model, whole_number("depth", depth), method, walked[0])

    return make


def _from_path(model: LeakyResNet, depth: int, method: str, path: Tensor) -> LeakyResNet:
    if method == "drop":
        return _dropped(model, depth, path)
    return _merged(model, depth, path, refit=method == "refit")


def _path(model: LeakyResNet, x: Tensor) -> Tensor:
    if x.shape[0] == 0 or not bool(torch.isfinite(x).all()):
        raise InputError("x", f"shape {tuple(x.shape)}" if not len(x) else "NaN or infinite numbers",
                         "at least one sample of finite numbers")  # fmt: skip
    path = model.path(x.to(model.weight)).double()
    if not bool(torch.isfinite(path).all()):
        raise InputError("model", "a path that is not finite on x", "a network with finite representations",
                         "the training may have diverged")  # fmt: skip
    return path


def _moves(path: Tensor) -> list[float]:
    """`‖A_ℓ − A_{ℓ−1}‖ / ‖A_ℓ‖` of every layer; 0 where it stands still at the origin."""
    moved = torch.linalg.vector_norm(path[1:] - path[:-1], dim=(1, 2))
    return torch.where(moved > 0, moved / torch.linalg.vector_norm(path[1:], dim=(1, 2)), moved).tolist()


def _like(model: LeakyResNet, depth: int, effective_depth: float, *, unchanged: bool) -> LeakyResNet:
    """A network that differs from the model by its layers only, which are still to be filled in."""
    rule = model.steps if unchanged or isinstance(model.steps, Adaptive) else Equidistant()
    made = LeakyResNet(
        model.in_features,
        model.out_features,
        width=model.width,
        depth=depth,
        effective_depth=effective_depth,
        steps=rule,
        activation=model.activation,
        bias=model.bias is not None,
        input_map=model.input_map,
        output_map=model.output_map,
        device=model.weight.device,
        dtype=model.weight.dtype,
    )
    made.activation_name = model.activation_name
    made.input_weight.copy_(model.input_weight)
    made.output_weight.copy_(model.output_weight)
    trained = dict(model.named_parameters())
    for name, parameter in made.named_parameters():
        parameter.requires_grad_(trained[name].requires_grad)
    return made.train(model.training)


def _copied(model: LeakyResNet) -> LeakyResNet:
    made = _like(model, model.depth, model.effective_depth, unchanged=True)
    made.load_state_dict(model.state_dict())
    return made


def _fill(made: LeakyResNet, shares: Float[Tensor, "new old"], model: LeakyResNet, scale: float = 1.0) -> None:
    """The means over old layers with these shares, taken in float64; a share of 1 keeps a layer to the bit."""
    made.weight.copy_(scale * torch.tensordot(shares.to(model.weight.device), model.weight.double(), 1))
    if made.bias is not None and model.bias is not None:
        made.bias.copy_(scale * (shares.to(model.bias.device) @ model.bias.double()))


def _bound(model: LeakyResNet) -> float:
    """The bound of `ρL̃`: below it, or with adaptive steps not above it."""
    return float(model.steps.cap) if isinstance(model.steps, Adaptive) else 1.0


def _longest_step(model: LeakyResNet) -> float:
    """The largest `ρ` that counts as within the bound."""
    room = 1 + _ROUNDING if isinstance(model.steps, Adaptive) else 1 - _ROUNDING
    return room * _bound(model) / model.effective_depth if model.effective_depth > 0 else math.inf


def _said(model: LeakyResNet) -> str:
    """The bound of a step, in words."""
    within = "at most" if isinstance(model.steps, Adaptive) else "below"
    return f"ρL̃ {within} {_bound(model):g}, at L̃ = {model.effective_depth:g}"


def _on_steps(model: LeakyResNet, depth: int, steps: Tensor | Sequence[float] | None) -> LeakyResNet:
    if steps is None and depth != model.depth and depth < (least := least_depth(model, "equidistant")):
        raise InputError("depth", depth, f"at least {least}: equal steps of fewer cannot keep {_said(model)}",
                         f"try depth={least}")  # fmt: skip
    made = _like(model, depth, model.effective_depth, unchanged=False)
    if steps is None:
        rho = Equidistant().initial(depth, model.effective_depth)
    else:
        rho = torch.as_tensor(steps, dtype=None if isinstance(steps, Tensor) else torch.float64).to("cpu")
    try:
        made.set_layer_steps(rho)
    except InputError as error:
        raise InputError("steps", error.value, error.expected) from None
    if made.depth == model.depth and torch.allclose(made.layer_steps, model.layer_steps, rtol=_ROUNDING, atol=0):
        return _copied(model)
    longest = float(rho.max())
    if longest > _longest_step(model):
        raise InputError("steps", longest, f"steps with {_said(model)}", "use more layers")
    old, new = _nodes(model.layer_steps), _nodes(rho)
    low = torch.maximum(new[:-1, None], old[None, :-1])
    high = torch.minimum(new[1:, None], old[None, 1:])
    overlap = (high - low).clamp(min=0)
    overlap[overlap < _ROUNDING] = 0  # nodes that coincide do so up to rounding
    _fill(made, overlap / overlap.sum(1, keepdim=True), model)
    return made


def _nodes(rho: Tensor) -> Tensor:
    summed = torch.cumsum(rho.detach().to("cpu", torch.float64), 0)
    return torch.cat([summed.new_zeros(1), summed / summed[-1]])


def least_depth(model: LeakyResNet, method: str) -> int:
    """The smallest depth that a method of `resample` may reach."""
    if method == "drop":
        return 1
    longest = _longest_step(model)
    held = max(math.floor(model.effective_depth / _bound(model)), math.ceil(1 / longest) - 1) + 1  # with equal steps
    if method == "equidistant":
        return held
    groups, length = 0, math.inf
    for rho in model.layer_steps.double().tolist():  # as many layers into each group as fit: no partition has fewer
        length += rho
        if length > longest:
            groups, length = groups + 1, rho
    return max(groups, held)


def _segments(model: LeakyResNet, depth: int, moves: list[float]) -> list[list[int]]:
    """The layers that become one: of all partitions into `depth` groups of neighbours that fit, one of the least cost.

    The sum over groups of their squared sums of moves, which is least here, is twice that of `m_i m_j` over the pairs
    that are joined, and a constant. `least[j]` is the least cost of the layers before `j` in so many groups.
    """
    count = model.depth
    rho, moved = model.layer_steps.double().cpu().numpy(), np.minimum(np.array(moves), _ORIGIN)
    cost = np.full((count + 1, count + 1), np.inf)  # of the layers i … j − 1 in one group
    for i in range(count):
        fits = np.cumsum(rho[i:]) <= _longest_step(model)
        fits[0] = True
        cost[i, i + 1 :] = np.where(fits, np.cumsum(moved[i:]) ** 2, np.inf)
    least = np.where(np.arange(count + 1) == 0, 0.0, np.inf)
    begins: list[np.ndarray] = []  # where the last group begins
    for _ in range(depth):
        every = least[:, None] + cost
        begins.append(every.argmin(0))
        least = every.min(0)
    ends = [count]
    for begin in reversed(begins):
        ends.append(int(begin[ends[-1]]))
    return [list(range(low, high)) for low, high in itertools.pairwise(reversed(ends))]


def _merged(model: LeakyResNet, depth: int, path: Tensor, *, refit: bool) -> LeakyResNet:
    if depth == model.depth:
        return _copied(model)
    least = least_depth(model, "merge")
    if depth < least:
        raise InputError("depth", depth, f"at least {least}: layers are joined, never cut, and fewer cannot keep "
                         f"{_said(model)}", f"try depth={least}")  # fmt: skip
    segments = _segments(model, depth, _moves(path))
    old = model.layer_steps.detach().to("cpu", torch.float64)
    shares = torch.zeros(depth, model.depth, dtype=torch.float64, device="cpu")
    for j, layers in enumerate(segments):
        shares[j, layers] = old[layers] / old[layers].sum()
    made = _like(model, depth, model.effective_depth, unchanged=False)
    made.set_layer_steps(torch.stack([old[layers].sum() for layers in segments]) / old.sum())
    _fill(made, shares, model)
    if refit:
        for j, layers in enumerate(segments):
            if len(layers) > 1:
                _refit(made, j, path[layers[0]], path[layers[-1] + 1])
    return made


def _refit(made: LeakyResNet, layer: int, before: Tensor, after: Tensor) -> None:
    """Least squares in float64: the layer takes the old representation before it to the old one after it."""
    rho = float(made.layer_steps[layer])
    start = made.augmented_weight()[layer].double()
    features = made.features(before)
    target = (after - (1 - rho * made.effective_depth) * before) / rho
    gram = features.mT @ features
    pull = _PULL * float(gram.trace()) / len(gram)
    if pull == 0:
        return  # a layer that reads nothing but zeros
    missed = (target - features @ start.mT).mT @ features
    change = torch.linalg.solve(gram + pull * torch.eye(len(gram)).to(gram), missed.mT).mT
    weight = start + change
    made.weight[layer] = weight[:, : made.width].to(made.weight)
    if made.bias is not None:
        made.bias[layer] = weight[:, -1].to(made.bias)


def _dropped(model: LeakyResNet, depth: int, path: Tensor) -> LeakyResNet:
    if depth == model.depth:
        return _copied(model)
    moves = _moves(path)
    kept = sorted(sorted(range(model.depth), key=lambda i: -moves[i])[:depth])
    rho = model.layer_steps.detach().to("cpu", torch.float64)
    share = float(rho[kept].sum() / rho.sum())
    made = _like(model, depth, share * model.effective_depth, unchanged=False)
    made.set_layer_steps(rho[kept] / rho[kept].sum())
    _fill(made, torch.eye(model.depth, dtype=torch.float64, device="cpu")[kept], model, share)
    return made
