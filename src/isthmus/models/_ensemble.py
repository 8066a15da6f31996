"""Several leaky networks of one shape, trained together: one batched matrix product per layer instead of many small."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from isthmus._errors import InputError
from isthmus.models._leaky_resnet import LeakyResNet

_SAME = ("in_features", "out_features", "width", "depth", "activation", "input_map", "output_map")


@final
class LeakyEnsemble(nn.Module):
    """`E` networks `α_ℓ = (1 − ρ_ℓ L̃) α_{ℓ−1} + ρ_ℓ (W_ℓ φ(α_{ℓ−1}) + b_ℓ)` side by side, each with its own values.

    Source: arXiv 2405.17573, docs/theory 1.1. Members share sizes, activation and kinds of maps; weights, maps, `L̃` and
    `ρ` are their own. Nothing couples them: the sum of their objectives has each member's gradient, and Adam, which
    works entry by entry, takes for each the steps it would take alone. Pays for small networks only, whose time goes
    into calls and not arithmetic (`benchmarks/ensemble.py`). Made by `of`; the given networks are copied, not changed.

    Attributes:
        weight: `(E, L, w, w)`.
        bias: `(E, L, w)` or None.
        layer_steps: `ρ`, a buffer `(E, L)`.
        effective_depth: `L̃`, a buffer `(E,)`.
        input_weight: `(E, w, d_in)`, parameter or buffer as in the members.
        output_weight: `(E, d_out, w)`, the same.

    Example:
        >>> nets = [LeakyResNet(8, 2, width=16, depth=10, effective_depth=float(e)) for e in range(3)]
        >>> ensemble = LeakyEnsemble.of(nets)
        >>> ensemble(torch.randn(5, 8)).shape, ensemble.weight_cost().shape, len(ensemble.split())
        (torch.Size([3, 5, 2]), torch.Size([3]), 3)
    """

    weight: Tensor
    bias: Tensor | None
    input_weight: Tensor
    output_weight: Tensor
    layer_steps: Tensor
    effective_depth: Tensor
    mu: Tensor

    def __init__(self, members: Sequence[LeakyResNet]) -> None:
        super().__init__()
        self._blueprints = [copy.deepcopy(m).to("meta") for m in members]  # settings without values
        first = members[0]
        for name, tensor in first.state_dict(keep_vars=True).items():
            stacked = torch.stack([m.state_dict()[name] for m in members])
            if isinstance(tensor, nn.Parameter):
                self.register_parameter(name, nn.Parameter(stacked, requires_grad=tensor.requires_grad))
            else:
                self.register_buffer(name, stacked)
        if first.bias is None:
            self.register_parameter("bias", None)
        for name in ("effective_depth", "mu"):
            self.register_buffer(name, first.weight.new_tensor([getattr(m, name) for m in members]))

    @classmethod
    def of(cls, models: Sequence[LeakyResNet]) -> LeakyEnsemble:
        """The ensemble of these networks.

        Raises:
            InputError: no networks, or networks that differ in sizes, activation, maps, bias, dtype or device, or whose
                activation is a module (which may have values of its own).
        """
        if not models:
            raise InputError("models", models, "at least one network")
        for name in (*_SAME, "has_bias", "dtype", "device"):
            values = [_setting(m, name) for m in models]
            for i, value in enumerate(values):
                if value != values[0]:
                    raise InputError(f"models[{i}]", f"{name} = {value}", f"the same as that of models[0], {values[0]}")
        if isinstance(models[0].activation, nn.Module):
            raise InputError("models", models[0].activation_name, "networks whose activation is a function")
        return cls(models)

    def forward(self, x: Float[Tensor, ...]) -> Float[Tensor, "members n out_features"]:
        """Outputs of all members, for samples that they share or for each member's own.

        Args:
            x: `(n, in_features)` or `(E, n, in_features)`.

        Raises:
            InputError: samples of another shape.
        """
        members, _, features = self.input_weight.shape
        if x.ndim not in (2, 3) or x.shape[-1] != features or (x.ndim == 3 and x.shape[0] != members):
            raise InputError("x", f"shape {tuple(x.shape)}", f"shape (n, {features}) or ({members}, n, {features})")
        first = self._blueprints[0]
        into = first._constrained(self.input_weight, first.input_map, first.in_features)
        out = first._constrained(self.output_weight, first.output_map, first.out_features)
        rho = self.layer_steps
        skips = (1 - rho * self.effective_depth[:, None])[:, :, None, None].unbind(1)
        weights = (rho[:, :, None, None] * self.weight).mT.unbind(1)
        biases = [None] * len(skips) if self.bias is None else (rho[:, :, None] * self.bias)[:, :, None].unbind(1)
        a = (x @ into.mT).to(self.weight.dtype)
        for skip, w, b in zip(skips, weights, biases, strict=True):
            s = first.activation(a)
            drive = s @ w if b is None else torch.baddbmm(b, s, w)
            a = torch.addcmul(drive.to(a.dtype), a, skip)
        return a @ out.mT

    def weight_cost(self) -> Float[Tensor, " members"]:
        """`(1/2μ) Σ_ℓ ρ_ℓ ‖W_ℓ‖²` with the biases, of each member (docs/theory 1.2)."""
        norm_sq = self.weight.square().sum((-2, -1))
        if self.bias is not None:
            norm_sq = norm_sq + self.bias.square().sum(-1)
        return (self.layer_steps * norm_sq).sum(-1) / (2 * self.mu)

    def split(self) -> list[LeakyResNet]:
        """The members as networks of their own, with copies of the present values."""
        members: list[LeakyResNet] = []
        for i, blueprint in enumerate(self._blueprints):
            member = copy.deepcopy(blueprint).to_empty(device=self.weight.device).to(self.weight.dtype)
            member.load_state_dict({name: getattr(self, name)[i] for name in member.state_dict()})
            members.append(member)
        return members


def _setting(model: LeakyResNet, name: str) -> object:
    if name == "has_bias":
        return model.bias is not None
    return getattr(model.weight, name) if name in ("dtype", "device") else getattr(model, name)
