"""Jacobian spectra of any callable on a batch: in-place operations, control flow and custom modules allowed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad

from isthmus._errors import InputError
from isthmus.tangent._jacobian import JacobianSpectrum

DEFAULT_TOLERANCE = 1e-2
"""Singular values above 1% of the largest count, as in `numerical_rank` of the geometry."""

_CHUNK_BYTES = 2**28
"""Jacobians held at once (as float64); samples are taken in chunks that fit."""


@dataclasses.dataclass(frozen=True)
class SampleMean:
    """A mean over samples and its standard error (sample standard deviation over √n)."""

    mean: float
    stderr: float


@dataclasses.dataclass(frozen=True)
class MapJacobian:
    """Spectra of `Jf(x_i)` at `n` samples, with `k = min(inputs, outputs)` singular values each.

    Attributes:
        s: singular values, descending, float64 (on the device of the samples).
        rank: number of `s_i > tolerance · s_1`; 0 for a zero Jacobian.
        log_pseudodet: `log |Jf|_+ = Σ log s_i` over those `s_i`, in nats; 0 for a zero Jacobian (an empty product).
        log_singular: mean and standard error of `log s_i`, in nats; the mean is `−inf` and the error `nan` where
            `s_i = 0` at some sample.
        n: number of samples.
        inputs: coordinates of one sample.
        outputs: coordinates of its output.
        tolerance: of the rank.
        mode: `reverse`, `forward`, or `reverse (why not forward)`.
        passes: derivative passes over the data: coordinates differentiated (for a mixed batch: at each sample).
        mixed_batch: samples of one batch influence each other, so that each was evaluated alone.
    """

    s: Float[Tensor, "n k"]
    rank: SampleMean
    log_pseudodet: SampleMean
    log_singular: JacobianSpectrum
    n: int
    inputs: int
    outputs: int
    tolerance: float
    mode: str
    passes: int
    mixed_batch: bool


class _NoForwardError(Exception):
    """Forward derivatives do not exist, or are not those of reverse mode; says why in three words."""


def map_jacobian(
    function: Callable[[Tensor], Any],
    x: Tensor,
    *,
    tolerance: float | int = DEFAULT_TOLERANCE,
    max_passes: int = 512,
) -> MapJacobian:
    """Spectrum, rank and pseudo-determinant of `Jf(x_i) = ∂f(x)_i/∂x_i`, each sample flattened.

    `rank Jf` is at most the bottleneck rank `R⁽⁰⁾`, and `2 log |Jf|_+` at most the regularity `R⁽¹⁾` where the rank
    is attained (arXiv 2305.19008, docs/theory 3.2). Derivatives are taken in the function's own precision: one
    backward pass per output coordinate (reverse mode) or one pass of dual numbers per input coordinate (forward
    mode), all samples together, whichever has fewer passes. Forward mode gives way to reverse mode where an
    operation has no forward derivative, and where one reverse pass finds another derivative (a `torch.no_grad`
    block inside the function stops only reverse mode). Singular values are those of the Jacobians in float64.

    Samples of a batch must not influence each other. Outputs are compared with those of the first sample alone and
    of the others without it; where they differ (batch statistics), every sample is evaluated alone, so that `f` is
    the function of a batch of one. `x` and parameters are left as they were, gradients included.

    Args:
        function: maps a batch `(n, *in_shape)` to a tensor `(n, *out_shape)`, of any batch size. Models are to be in
            eval mode: dropout draws anew at each call.
        x: samples `(n, *in_shape)`, at least 2, floating point; on any device.
        tolerance: of the rank, in [0, 1).
        max_passes: most derivative passes.

    Raises:
        InputError: fewer than 2 samples, or samples of integers; a tolerance or number of passes out of range, or
            more passes needed; an output that is no floating-point tensor of n rows, changes from call to call, or
            has no gradient with respect to `x`; a function that cannot be evaluated on part of the batch; a
            derivative that is not finite; weights made under `torch.inference_mode`.

    Example:
        >>> m = torch.diag(torch.tensor([3.0, 0.5]))
        >>> found = map_jacobian(lambda batch: batch @ m, torch.randn(4, 2))
        >>> found.rank.mean, round(found.log_pseudodet.mean, 4)  # 2, log(3 · 0.5)
        (2.0, 0.4055)
    """
    _check(x, tolerance, max_passes)
    # Inference mode is left, for its tensors know no derivatives; a clone made outside is an ordinary tensor.
    with torch.inference_mode(False), torch.enable_grad():
        samples = x.detach().clone()
        try:
            return _spectra(function, samples, float(tolerance), max_passes)
        except RuntimeError as error:
            if "nference tensor" not in str(error):
                raise
            raise InputError("function", "tensors made under torch.inference_mode", "weights that know derivatives",
                             "make the model outside torch.inference_mode") from error  # fmt: skip


def _check(x: Tensor, tolerance: float | int, max_passes: int) -> None:
    if not x.is_floating_point():
        raise InputError("x", str(x.dtype), "floating-point samples, for integers such as tokens have no derivative",
                         "give the embeddings of the tokens, and a function of embeddings")  # fmt: skip
    if x.ndim == 0 or x.shape[0] < 2:
        raise InputError("x", tuple(x.shape), "at least 2 samples for a standard error")
    if x.numel() == 0:
        raise InputError("x", tuple(x.shape), "samples with at least one coordinate")
    if isinstance(tolerance, bool) or not 0 <= tolerance < 1:
        raise InputError("tolerance", tolerance, "a number in [0, 1)")
    if isinstance(max_passes, bool) or max_passes < 1:
        raise InputError("max_passes", max_passes, "an integer of at least 1")


def _spectra(function: Callable[[Tensor], Any], x: Tensor, tolerance: float, max_passes: int) -> MapJacobian:
    n, inputs = x.shape[0], x[0].numel()
    outputs = _alone(function, x).numel()
    if min(inputs, outputs) > max_passes:
        raise InputError("max_passes", max_passes, f"at least {min(inputs, outputs)}: one pass per output coordinate "
                         f"({outputs}) or per input coordinate ({inputs})", _fewer(min(inputs, outputs)))  # fmt: skip
    chunk = max(1, _CHUNK_BYTES // (8 * inputs * outputs))
    mixed = _is_mixed(function, x[: max(2, chunk)])
    chunk = 1 if mixed else chunk
    forward, mode, pieces = inputs < outputs, "", list[Tensor]()
    start = 0
    for part in x.split(chunk):
        jacobian: Tensor | None = None
        if forward:
            try:
                jacobian = _forward(function, part)
            except _NoForwardError as error:
                forward, mode = False, f"reverse ({error})"
                if outputs > max_passes:
                    raise InputError("max_passes", max_passes, f"at least {outputs}, one per output coordinate, for "
                                     f"forward mode cannot be used ({error})", _fewer(outputs)) from error  # fmt: skip
        if jacobian is None:
            jacobian = _reverse(function, part)
        pieces.append(_singular_values(jacobian, start))
        start += part.shape[0]
    mode = mode or ("forward" if forward else "reverse")
    s = torch.cat(pieces)
    logs = s.log()
    kept = s > tolerance * s[:, :1]
    rank, pseudodet = kept.sum(1).double(), torch.where(kept, logs, 0.0).sum(1)
    spectrum = JacobianSpectrum(logs.mean(0), logs.std(0) / n**0.5, n)
    return MapJacobian(s, _mean(rank), _mean(pseudodet), spectrum, n, inputs, outputs, tolerance, mode,
                       inputs if forward else outputs, mixed)  # fmt: skip


def _mean(values: Float[Tensor, " n"]) -> SampleMean:
    return SampleMean(float(values.mean()), float(values.std()) / values.shape[0] ** 0.5)


def _evaluate(function: Callable[[Tensor], Any], x: Tensor) -> Tensor:
    """The output, checked to be one floating-point row per sample; `x` may be changed by the function."""
    out = function(x)
    if not isinstance(out, Tensor):
        raise InputError("function", f"an output of type {type(out).__name__}", "one tensor with a row per sample",
                         "choose one: lambda x: model(x)[0], or model(x).logits")  # fmt: skip
    if out.ndim == 0 or out.shape[0] != x.shape[0] or out.numel() == 0:
        raise InputError("function", f"an output of shape {tuple(out.shape)}", f"{x.shape[0]} rows, one per sample")
    if not out.is_floating_point():
        raise InputError("function", f"an output of {out.dtype}", "real floating-point numbers",
                         "give the scores and not the decision")  # fmt: skip
    return out


def _fewer(passes: int) -> str:
    return f"give max_passes={passes}, or a function with fewer outputs (the features before a wide head, some pixels)"


def _agree(first: Tensor, second: Tensor, scale: Tensor) -> bool:
    """Equal up to `√eps` of the scale, half the digits of the dtype.

    Rounding differs with the batch size by some tens of eps, which depth multiplies; a sample that influences
    another does so by far more. float32 on an accelerator may be multiplied as TF32, with 10 bits.
    """
    eps = torch.finfo(first.dtype).eps
    if first.device.type != "cpu" and first.dtype == torch.float32:
        eps = 2.0**-10
    difference = (first - second).abs().amax()
    return not bool(difference > eps**0.5 * scale)  # nan agrees: it is reported where derivatives are read


def _alone(function: Callable[[Tensor], Any], x: Tensor) -> Tensor:
    """The output of the first sample alone."""
    try:
        return _evaluate(function, x[:1].clone()).detach()
    except (RuntimeError, ValueError, IndexError) as error:
        _evaluate(function, x.clone())  # what fails for the whole batch too is said as it is
        said = str(error).strip().split("\n")[0].removeprefix("function: ")
        raise InputError("function", f"{type(error).__name__} for a batch of one", "a function of a batch of any size "
                         f"({said})", "put the model in eval mode: model.eval()") from error  # fmt: skip


def _is_mixed(function: Callable[[Tensor], Any], x: Tensor) -> bool:
    """Whether samples influence each other; raises where the output is another at every call."""
    out, again = (_evaluate(function, part.clone()).detach() for part in (x, x))
    scale = out.abs().amax()
    if not _agree(out, again, scale):
        raise InputError("function", "another output at the second call", "the same output for the same samples",
                         "put the model in eval mode: model.eval() (dropout draws anew at each call)")  # fmt: skip
    parts = [_evaluate(function, part.clone()).detach() for part in (x[:1], x[1:])]
    if any(part.shape[1:] != out.shape[1:] for part in parts):
        raise InputError("function", f"outputs of shapes {tuple(out.shape)} and {tuple(parts[0].shape)}",
                         "one output shape for any batch size")  # fmt: skip
    return not _agree(torch.cat(parts), out, scale)


def _leaf(function: Callable[[Tensor], Any], x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.detach().requires_grad_()
    out = _evaluate(function, leaf.clone())  # a clone: operations in place are forbidden on the leaf itself
    if not out.requires_grad:
        raise _unrelated()
    return leaf, out.reshape(out.shape[0], -1)


def _unrelated() -> InputError:
    return InputError("function", "an output without a gradient with respect to x", "an output that depends on x",
                      "no detach, no torch.no_grad and no NumPy between x and the output")  # fmt: skip


def _cotangent_pass(out: Tensor, leaf: Tensor, weights: Tensor, *, keep: bool) -> Tensor:
    """`Σ_j weights_j ∂out_j/∂x` at every sample, flattened; touches no parameter."""
    (found,) = torch.autograd.grad(out, leaf, weights.expand_as(out).contiguous(), retain_graph=keep, allow_unused=True)
    gradient = cast("Tensor | None", found)
    if gradient is None:
        raise _unrelated()
    return gradient.reshape(leaf.shape[0], -1)


def _reverse(function: Callable[[Tensor], Any], x: Tensor) -> Tensor:
    leaf, out = _leaf(function, x)
    n, outputs = out.shape
    jacobian = x.new_empty(n, outputs, x[0].numel())
    for j in range(outputs):
        weights = out.new_zeros(outputs)
        weights[j] = 1
        jacobian[:, j] = _cotangent_pass(out, leaf, weights, keep=j < outputs - 1)
    return jacobian


def _forward(function: Callable[[Tensor], Any], x: Tensor) -> Tensor:
    # The same cotangents in both modes; cosines of whole numbers are neither small nor in any relation.
    leaf, out = _leaf(function, x)
    weights = torch.arange(1, out.shape[1] + 1, device=out.device).cos().to(out.dtype)
    try:
        expected = _cotangent_pass(out, leaf, weights, keep=False)
    except (NotImplementedError, RuntimeError):
        expected = None  # no reverse derivative: nothing to compare with
    shape = out.shape
    jacobian = out.new_empty(*shape, x[0].numel(), requires_grad=False)
    del leaf, out
    for i, tangent in enumerate(_unit_tangents(x)):
        jacobian[:, :, i] = _dual_pass(function, x, tangent).reshape(shape)
    if expected is not None:
        found = torch.einsum("j,nji->ni", weights, jacobian)
        # rounding of a sum is relative to its terms, not to what is left of them
        scale = torch.einsum("j,nji->ni", weights.abs(), jacobian.abs()).amax()
        if not _agree(found, expected.to(found.dtype), scale):
            raise _NoForwardError("forward mode gives another derivative")
    return jacobian


def _unit_tangents(x: Tensor) -> Iterator[Tensor]:
    for i in range(x[0].numel()):
        tangent = torch.zeros_like(x, memory_format=torch.contiguous_format)
        tangent.view(x.shape[0], -1)[:, i] = 1
        yield tangent


def _dual_pass(function: Callable[[Tensor], Any], x: Tensor, tangent: Tensor) -> Tensor:
    try:
        with torch.no_grad(), forward_ad.dual_level():
            out = function(forward_ad.make_dual(x.clone(), tangent))
            result = forward_ad.unpack_dual(out).tangent
    except (NotImplementedError, RuntimeError) as error:
        raise _NoForwardError("an operation has no forward derivative") from error
    if result is None:
        raise _NoForwardError("an operation has no forward derivative")
    return result


def _singular_values(jacobian: Tensor, start: int) -> Float[Tensor, "n k"]:
    """Of one matrix at a time in float64: a Gram matrix would lose half the digits."""
    bad = (~jacobian.isfinite()).flatten(1).any(1).nonzero().flatten()
    if bad.numel():
        raise InputError("function", f"a derivative that is not finite at sample {start + int(bad[0])}",
                         "finite derivatives", "look for a root or a norm at 0, or an overflow")  # fmt: skip
    if jacobian.device.type == "mps":
        jacobian = jacobian.cpu()  # no float64 there
    k = min(jacobian.shape[1:])
    rows = max(1, 2**20 // math.prod(jacobian.shape[1:]))
    pieces = [torch.linalg.svdvals(part.double()) for part in jacobian.split(rows)]
    return torch.cat(pieces).reshape(-1, k)
