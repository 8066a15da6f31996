"""Spectra of input–output Jacobians of any callable, averaged over samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus._errors import InputError


@dataclasses.dataclass(frozen=True)
class JacobianSpectrum:
    """Log singular values of `Jf(x)`, descending, over samples.

    Attributes:
        mean: sample mean of `log s_i(Jf(x))`, in nats; `−inf` where `s_i = 0` at some sample.
        stderr: its standard error (sample standard deviation over √n).
        n: number of samples.
    """

    mean: Float[Tensor, " k"]
    stderr: Float[Tensor, " k"]
    n: int


def jacobian_spectrum(
    function: Callable[[Tensor], Tensor], x: Float[Tensor, "n inputs"], *, chunk: int = 64
) -> JacobianSpectrum:
    """Spectrum of the Jacobian of `function` at every row of `x`; `log s_i` says how direction `i` is stretched.

    In a leaky path each direction lowers `−2H/L̃` by `(log s_i)²/L̃²` (arXiv 2405.17573, docs/theory 1.9 and
    1.10). Reverse or forward mode, whichever has fewer passes.

    Args:
        function: maps one sample `(inputs,)` to `(outputs,)`; must work under `torch.func`.
        x: samples, at least 2.
        chunk: samples per vectorised pass.

    Raises:
        InputError: fewer than 2 samples.

    Example:
        >>> m = torch.diag(torch.tensor([3.0, 0.5]))
        >>> jacobian_spectrum(lambda v: m @ v, torch.randn(4, 2)).mean.exp()
        tensor([3.0000, 0.5000])
    """
    if x.shape[0] < 2:
        raise InputError("x", tuple(x.shape), "at least 2 samples for a standard error")
    outputs = function(x[0]).shape[0]
    single = torch.func.jacrev(function) if outputs <= x.shape[1] else torch.func.jacfwd(function)
    with torch.no_grad():
        pieces = [torch.linalg.svdvals(torch.func.vmap(single)(part).double()).log() for part in x.split(chunk)]
    logs = torch.cat(pieces)
    n = logs.shape[0]
    return JacobianSpectrum(logs.mean(0), logs.std(0) / n**0.5, n)
