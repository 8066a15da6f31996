"""The leaky path: its definition as a plain loop, and one `autograd.Function` that is faster on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float
from torch import Tensor, nn
from torch._C._functorch import is_legacy_batchedtensor
from torch.autograd import forward_ad

from isthmus.models._activations import Activation, SmoothReLU, identity


def path_by_autograd(
    a: Float[Tensor, "n width"],
    weight: Float[Tensor, "depth width width"],
    bias: Float[Tensor, "depth width"] | None,
    layer_steps: Float[Tensor, " depth"],
    effective_depth: float,
    activation: Activation,
) -> list[Float[Tensor, "n width"]]:
    """`A_0 … A_L` of `α_ℓ = (1 − ρ_ℓ L̃) α_{ℓ−1} + ρ_ℓ (W_ℓ φ(α_{ℓ−1}) + b_ℓ)`: the definition.

    Source: arXiv 2405.17573, docs/theory 1.1. Works wherever PyTorch does. Under autocast only the matrix products run
    in low precision.

    `unbind` before the loop, not an index in it: the gradient is one stack, where every index would fill `(L, w, w)`
    zeros (2.7 times slower at L = w = n = 100). Scaling the weights and not the products saves one pass over the
    samples.

    Args:
        a: `A_0`, rows are samples.
        weight: acts as `φ(a) @ weight[ℓ].T`.
        bias: of all layers, or None.
        layer_steps: `ρ`.
        effective_depth: `L̃`.
        activation: `φ`.
    """
    skips = (1 - layer_steps * effective_depth).unbind(0)
    weights = (layer_steps[:, None, None] * weight).unbind(0)
    biases = [None] * len(weights) if bias is None else (layer_steps[:, None] * bias).unbind(0)
    nodes = [a]
    for skip, w, b in zip(skips, weights, biases, strict=True):
        a = torch.addcmul(F.linear(activation(a), w, b).to(a.dtype), a, skip)
        nodes.append(a)
    return nodes


def _features(a: Tensor, activation: Activation, out: Tensor) -> Tensor:
    """`φ(a)`, into `out`."""
    if activation is torch.relu:
        return torch.clamp_min(a, 0.0, out=out)
    if isinstance(activation, SmoothReLU):
        torch.mul(a, a, out=out).add_(activation.tau**2).sqrt_().add_(a)
        return out.mul_(0.5)
    return a


def _through_activation(g: Tensor, a: Tensor, activation: Activation, scratch: Tensor) -> None:
    """`g ← φ'(a) ∘ g`, in place; with the ReLU `φ'(0) = 0`."""
    if activation is torch.relu:
        torch.ops.aten.threshold_backward.grad_input(g, a, 0.0, grad_input=g)
    elif isinstance(activation, SmoothReLU):
        slope = torch.mul(a, a, out=scratch).add_(activation.tau**2).rsqrt_().mul_(a)
        g.mul_(slope.mul_(0.5).add_(0.5))


class LeakyPath(torch.autograd.Function):
    """The path as one node of the graph: no tensor per layer and operation, gradients written where they stay.

    Forward (arXiv 2405.17573, docs/theory 1.1): `α_ℓ = (1 − ρ_ℓ L̃) α_{ℓ−1} + ρ_ℓ b_ℓ`, then `+ ρ_ℓ φ(α_{ℓ−1}) W_ℓᵀ`
    inside the matrix product. Backward, with `G_ℓ = ∂C/∂α_ℓ` (rows are samples):
    `∂C/∂W_ℓ = ρ_ℓ G_ℓᵀ φ(α_{ℓ−1})`, `∂C/∂b_ℓ = ρ_ℓ G_ℓᵀ 1`,
    `G_{ℓ−1} = (1 − ρ_ℓ L̃) G_ℓ + φ'(α_{ℓ−1}) ∘ (ρ_ℓ G_ℓ W_ℓ)`.
    Saves `A_0 … A_{L−1}` and recomputes `φ`: half of what autograd keeps for the plain loop.

    Gradients of gradients, and gradients for a batch of cotangents, are taken through `path_by_autograd`.
    """

    @staticmethod
    def forward(
        a0: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        layer_steps: Tensor,
        effective_depth: float,
        activation: Activation,
        keep: bool,
    ) -> tuple[Tensor, Tensor]:
        """`A_L`, and `A_0 … A_{L−1}` stacked (scratch, if they are not to be kept)."""
        depth = weight.shape[0]
        nodes = a0.new_empty((depth if keep else min(2, depth), *a0.shape))
        end, scratch = torch.empty_like(a0), torch.empty_like(a0)
        rows = [*(nodes[i % len(nodes)] for i in range(depth)), end]
        rows[0].copy_(a0)
        biases = None if bias is None else (layer_steps[:, None] * bias).unbind(0)
        scales = _scales(layer_steps, effective_depth)
        for i, (w, (rho, skip)) in enumerate(zip(weight.unbind(0), scales, strict=True)):
            a, out = rows[i], rows[i + 1]
            if biases is None:
                torch.mul(a, skip, out=out)
            else:
                torch.add(biases[i], a, alpha=skip, out=out)
            out.addmm_(_features(a, activation, scratch), w.mT, alpha=rho)
        return end, nodes

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        """Keep inputs and nodes."""
        a0, weight, bias, layer_steps, ctx.effective_depth, ctx.activation, _ = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(a0, weight, bias, layer_steps, output[1])

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        """A batch of paths: the plain loop, vectorised, since writing in place cannot be."""
        *tensors, effective_depth, activation, _ = inputs

        def one(a0: Tensor, weight: Tensor, bias: Tensor | None, layer_steps: Tensor) -> tuple[Tensor, Tensor]:
            *nodes, end = path_by_autograd(a0, weight, bias, layer_steps, effective_depth, activation)
            return end, torch.stack(nodes)

        return torch.func.vmap(one, in_dims[:4])(*tensors), (0, 0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of `A_0`, weights and biases."""
        a0, weight, bias, layer_steps, nodes = ctx.saved_tensors
        needs = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled() or any(map(_batched, grads)):
            found = _gradients_by_autograd((a0, weight, bias), needs, layer_steps, ctx, grads)
        else:
            found = _gradients(weight, nodes, needs, _scales(layer_steps, ctx.effective_depth), ctx.activation, grads)
        return *found, None, None, None, None


def _scales(layer_steps: Tensor, effective_depth: float) -> list[tuple[float, float]]:
    """`ρ_ℓ` and `1 − ρ_ℓ L̃`, rounded as the plain loop rounds them."""
    return list(zip(layer_steps.tolist(), (1 - layer_steps * effective_depth).tolist(), strict=True))


def _gradients(
    weight: Tensor,
    nodes: Tensor,
    needs: tuple[bool, ...],
    scales: list[tuple[float, float]],
    activation: Activation,
    grads: tuple[Tensor | None, ...],
) -> tuple[Tensor | None, ...]:
    """The recursion of `LeakyPath`, from the last layer to the first."""
    at_end, at_nodes = grads
    g = torch.zeros_like(nodes[0]) if at_end is None else at_end
    other, through, scratch = (torch.empty_like(nodes[0]) for _ in range(3))
    d_weight = torch.empty_like(weight) if needs[1] else None
    d_bias = weight.new_empty(weight.shape[:2]) if needs[2] else None
    ours = at_end is None  # at_end itself must not be written to
    for i in range(len(scales) - 1, -1, -1):
        a, (rho, skip) = nodes[i], scales[i]
        if d_weight is not None:
            d_weight[i].addmm_(g.mT, _features(a, activation, scratch), beta=0, alpha=rho)
        if d_bias is not None:
            torch.sum(g, 0, out=d_bias[i]).mul_(rho)
        if i == 0 and not needs[0]:
            return None, d_weight, d_bias
        through.addmm_(g, weight[i], beta=0, alpha=rho)
        _through_activation(through, a, activation, scratch)
        if ours:
            torch.add(through, g, alpha=skip, out=g)
        else:
            g, ours = torch.add(through, g, alpha=skip, out=other), True
        if at_nodes is not None:
            g.add_(at_nodes[i])
    return g if needs[0] else None, d_weight, d_bias


def _gradients_by_autograd(
    inputs: tuple[Tensor | None, ...],
    needs: tuple[bool, ...],
    layer_steps: Tensor,
    ctx: Any,
    grads: tuple[Tensor | None, ...],
) -> list[Tensor | None]:
    """The same through the plain loop, differentiable."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        a0, weight, bias = (t if t is None or again else t.detach().requires_grad_(n)
                            for t, n in zip(inputs, needs, strict=True))  # fmt: skip
        assert a0 is not None
        assert weight is not None
        *nodes, end = path_by_autograd(a0, weight, bias, layer_steps, ctx.effective_depth, ctx.activation)
        pairs = [(out, g) for out, g in zip((end, torch.stack(nodes)), grads, strict=True) if g is not None]
        wanted = [t for t, n in zip((a0, weight, bias), needs, strict=True) if n and t is not None]
        found: Sequence[Tensor | None] = torch.autograd.grad(
            [out for out, _ in pairs], wanted, [g for _, g in pairs], create_graph=again, allow_unused=True
        )
    rest = iter(found)
    return [next(rest) if n else None for n in needs]


def _batched(t: Tensor | None) -> bool:
    """Whether `t` is a batch in disguise, as `autograd.grad(..., is_grads_batched=True)` makes them."""
    return t is not None and (_transformed() or is_legacy_batchedtensor(t))


def _transformed() -> bool:
    """Whether code runs inside a transform of `torch.func`."""
    return torch._C._are_functorch_transforms_active()  # what autograd.Function.apply itself asks


def _fuses(tensors: list[Tensor], activation: Activation) -> bool:
    """Whether `LeakyPath` takes these: plain CPU tensors of one dtype outside all transforms.

    Not on an accelerator: it needs `ρ` as Python numbers, and to wait for them would stall the device.
    """
    if torch.compiler.is_compiling() or _transformed() or torch.is_autocast_enabled("cpu"):
        return False
    dtype = tensors[0].dtype
    return (
        (activation is torch.relu or activation is identity or isinstance(activation, SmoothReLU))
        and dtype in (torch.float32, torch.float64)
        and not tensors[-1].requires_grad  # ρ
        and all(
            type(t) in (Tensor, nn.Parameter)
            and t.device.type == "cpu"
            and t.dtype == dtype
            and forward_ad.unpack_dual(t).tangent is None
            for t in tensors
        )
    )


@torch.no_grad()
def path_gradients(
    a0: Float[Tensor, "n width"],
    weight: Float[Tensor, "depth width width"],
    bias: Float[Tensor, "depth width"] | None,
    layer_steps: Float[Tensor, " depth"],
    effective_depth: float,
    activation: Activation,
    cotangent: Callable[[Tensor], Tensor],
) -> tuple[Float[Tensor, "depth width width"], Float[Tensor, "depth width"] | None] | None:
    """Gradients of weights and biases by the recursion of `LeakyPath` alone, without a graph: a third less time a step.

    Args:
        a0: `A_0`, no gradient wanted.
        weight: as in `path_by_autograd`.
        bias: the same.
        layer_steps: the same.
        effective_depth: the same.
        activation: the same.
        cotangent: `A_L → ∂C/∂A_L`.

    Returns:
        The gradients, or None where `LeakyPath` does not apply (an accelerator, an activation it does not know).
    """
    tensors = [a0, weight, *([] if bias is None else [bias]), layer_steps]
    if not _fuses(tensors, activation):
        return None
    end, nodes = LeakyPath.forward(a0, weight, bias, layer_steps, effective_depth, activation, keep=True)
    needs = (False, True, bias is not None)
    scales = _scales(layer_steps, effective_depth)
    _, d_weight, d_bias = _gradients(weight, nodes, needs, scales, activation, (cotangent(end), None))
    assert d_weight is not None
    return d_weight, d_bias


def leaky_path(
    a0: Float[Tensor, "n width"],
    weight: Float[Tensor, "depth width width"],
    bias: Float[Tensor, "depth width"] | None,
    layer_steps: Float[Tensor, " depth"],
    effective_depth: float,
    activation: Activation,
    *,
    whole: bool,
) -> Float[Tensor, "*nodes n width"]:
    """`A_L`, or `A_0 … A_L` stacked: `path_by_autograd`, or `LeakyPath` where that applies, to rounding the same.

    Source: arXiv 2405.17573, docs/theory 1.1. Arguments are those of `path_by_autograd`; `whole` asks for all nodes.
    """
    tensors = [a0, weight, *([] if bias is None else [bias]), layer_steps]
    if not _fuses(tensors, activation):
        nodes = path_by_autograd(a0, weight, bias, layer_steps, effective_depth, activation)
        return torch.stack(nodes) if whole else nodes[-1]
    keep = whole or (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))
    end, nodes = LeakyPath.apply(a0, weight, bias, layer_steps, effective_depth, activation, keep)
    return torch.cat([nodes, end[None]]) if whole else end
