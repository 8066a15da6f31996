"""Factors and gradients of layers, batch by batch, put together into what their kernels are made of."""

from __future__ import annotations

import warnings
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from isthmus._errors import InputError
from isthmus.probe._tangent_layers import CONV, EMBEDDING, LINEAR, TangentLayer, conv_patches
from isthmus.tangent import GradientFeatures, OuterFeatures, PieceFeatures, TangentFeatures

OUTER = (LINEAR, CONV, EMBEDDING)

GRADIENTS, PIECES, GRAMS, HELD = "gradients", "pieces", "Grams", "held Grams"
"""Forms of a layer's features: per-sample gradients; factors, with gradients formed in pieces; factors, with Grams
computed for every block of the kernel, or forward Grams of all positions held."""


def input_rows(layer: TangentLayer, args: tuple[Any, ...], kwargs: dict[str, Any], size: int) -> Tensor | None:
    """What a layer multiplies its weight by, `(size, positions, in)`, or row numbers `(size, positions)`.

    None where its input is no batch of `size` samples.
    """
    x = args[0] if args else kwargs.get("input")
    if not isinstance(x, Tensor) or x.dim() == 0 or x.shape[0] != size:
        return None
    x = x.detach()
    if layer.kind == EMBEDDING:
        return x.reshape(size, -1)
    if layer.kind == LINEAR:
        return x.reshape(size, -1, x.shape[-1]) if x.dim() > 1 else None
    return conv_patches(layer.module, x) if x.dim() == len(cast("nn.Conv2d", layer.module).kernel_size) + 2 else None


def output_rows(layer: TangentLayer, gradients: Tensor, a: Tensor) -> Tensor:
    """Derivatives `(C, size, positions, out)` at a layer's output; 0 at the padding of an embedding."""
    if layer.kind == CONV:
        return gradients.flatten(3).mT
    g = gradients.reshape(*gradients.shape[:2], -1, gradients.shape[-1])
    padding = layer.module.padding_idx if isinstance(layer.module, nn.Embedding) else None
    return g if padding is None else g * (a != padding)[None, :, :, None].to(g.dtype)


def module_gradients(
    layer: TangentLayer, args: tuple[Any, ...], kwargs: dict[str, Any], gradients: Tensor
) -> dict[str, Tensor] | None:
    """Per-sample gradients `(C, size, *shape)` of a module's parameters, from its input and derivatives at its output.

    None where the module cannot be run one sample at a time.
    """
    size, own = gradients.shape[1], {key: p.detach() for key, p in layer.parameters.items()}
    tensors = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]
    batched = [t.dim() > 0 and t.shape[0] == size for t in tensors]
    if not tensors or not batched[0]:
        return None

    def one(*values: Tensor) -> dict[str, Tensor]:
        *given, g = values
        rows = iter(v[None] if many else v for v, many in zip(given, batched, strict=True))
        placed = tuple(next(rows) if isinstance(a, Tensor) else a for a in args)
        named = {key: next(rows) if isinstance(a, Tensor) else a for key, a in kwargs.items()}

        def function(parameters: dict[str, Tensor]) -> Tensor:
            return functional_call(layer.module, parameters, placed, named)[0]

        pull: Any = vjp(function, own)[1]

        def pulled(v: Tensor) -> Any:
            return pull(v)[0]

        return vmap(pulled)(g)

    spread = tuple(0 if many else None for many in batched)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of operations that torch runs one by one
            apart: Any = vmap(one, in_dims=(*spread, 0), out_dims=1)
            return apart(*(t.detach() for t in tensors), gradients.transpose(0, 1))
    except Exception:  # noqa: BLE001 - whatever a module says to being run one sample at a time
        return None


def contracted(layer: TangentLayer, a: Tensor, g: Tensor, cotangent: Tensor) -> tuple[dict[str, Tensor], float]:
    """`Σ_i Σ_c v_ic ∇f_c(x_i)` from factors, by parameter, and the size of what is summed."""
    weighted = torch.einsum("nc,cnto->nto", cotangent, g)
    found: dict[str, Tensor] = {}
    if "weight" in layer.parameters:
        weight = layer.parameters["weight"]
        if layer.kind == EMBEDDING:
            rows = torch.zeros_like(weight).index_add_(0, a.flatten(), weighted.flatten(0, 1))
        else:
            rows = weighted.flatten(0, 1).mT @ a.flatten(0, 1)
        found["weight"] = rows.reshape(weight.shape)
    if "bias" in layer.parameters:
        found["bias"] = weighted.sum((0, 1))
    lengths = a.double().square().sum(-1) + 1 if a.is_floating_point() else torch.ones_like(a, dtype=torch.float64)
    return found, float((lengths * weighted.double().square().sum(-1)).sum().sqrt())


def _wide(t: Tensor) -> Tensor:
    """Half precision as float32, for products of it keep too few digits."""
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


class FeatureStore:
    """Collects a layer's features over batches.

    Args:
        layer: the layer.
        outputs: outputs C.
        n: samples.
        form: what is kept: per-sample gradients, or factors and what is made of them.

    Attributes:
        passing: bytes of what the last batch had at the layer's output, twice (in pieces, and put together).
    """

    def __init__(self, layer: TangentLayer, outputs: int, n: int, *, form: str = GRAMS) -> None:
        self.layer, self.outputs, self.n, self.form = layer, outputs, n, form
        self.passing = 0
        self.a: Tensor | None = None
        self.g: Tensor | None = None

    def add_factors(self, a: Tensor, g: Tensor, start: int) -> None:
        """Factors of one batch, all calls of the layer."""
        size, a, g = a.shape[0], _wide(a), _wide(g)
        if self.form == GRADIENTS:
            pieces: list[Tensor] = []
            if self.layer.kind == EMBEDDING:
                rows = self.layer.parameters["weight"].shape[0]
                table = g.new_zeros(*g.shape[:2], rows, g.shape[3])
                pieces.append(table.scatter_add_(2, a[None, :, :, None].expand_as(g), g).flatten(2))
            elif "weight" in self.layer.parameters:
                pieces.append(torch.einsum("cnto,nti->cnoi", g, a).flatten(2))
            if "bias" in self.layer.parameters:
                pieces.append(g.sum(2))
            self.add_gradients(torch.cat(pieces, 2), start)
            return
        if size == self.n:  # one batch: nothing to copy
            self.a, self.g = a, g
            return
        if self.a is None or self.g is None:
            self.a, self.g = a.new_zeros(self.n, *a.shape[1:]), g.new_zeros(self.outputs, self.n, *g.shape[2:])
        more = a.shape[1] - self.a.shape[1]
        if more > 0:  # longer sequences than before: what is not there has no gradient
            before = self.a
            self.a = before.new_zeros(self.n, a.shape[1], *before.shape[2:])
            self.a[:, : before.shape[1]] = before
            self.g = nn.functional.pad(self.g, (0, 0, 0, more))
        self.a[start : start + size, : a.shape[1]] = a
        self.g[:, start : start + size, : g.shape[2]] = g

    def add_gradients(self, gradients: Tensor, start: int) -> None:
        """Per-sample gradients `(C, size, |θ|)` of one batch."""
        gradients = _wide(gradients)
        if gradients.shape[1] == self.n:
            self.g = gradients
            return
        if self.g is None:
            self.g = gradients.new_zeros(self.outputs, self.n, gradients.shape[2])
        self.g[:, start : start + gradients.shape[1]] = gradients

    def features(self) -> TangentFeatures:
        """What the kernel is made of.

        Raises:
            InputError: values that are not finite.
        """
        for t in (self.a, self.g):
            if t is None or not t.is_floating_point() or bool(t.sum().isfinite()):  # a sum is faster, and may overflow
                continue
            if not bool(t.isfinite().all()):
                raise InputError("model", f"a gradient that is not finite at {self.layer.name}", "finite derivatives",
                                 "look for a root or a norm at 0, or an overflow")  # fmt: skip
        if self.g is None:
            p = next(iter(self.layer.parameters.values()))
            return GradientFeatures(torch.zeros(self.outputs, self.n, 1, dtype=p.dtype, device=p.device))
        if self.a is None:
            return GradientFeatures(self.g)
        names = self.layer.parameters
        weight, bias = "weight" in names, "bias" in names
        if self.form == PIECES and weight and self.a.is_floating_point():
            return PieceFeatures(self.a, self.g, bias=bias)
        return OuterFeatures(self.a, self.g, weight=weight, bias=bias, hold=self.form == HELD)
