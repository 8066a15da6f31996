"""Activations of a leaky path, by name."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from isthmus._errors import InputError, near_name_hint
from isthmus.models._checks import real_number

Activation = Callable[[Tensor], Tensor]
"""An elementwise function of a tensor of any shape."""


@final
@dataclasses.dataclass(frozen=True)
class SmoothReLU:
    """`φ_τ(z) = (z + √(z² + τ²)) / 2`: a smooth ReLU (arXiv 2405.17573, docs/theory 1.9).

    Networks with it can be solved to smaller residuals. Differs from the ReLU by at most `τ/2`, at `z = 0`.
    The balance law of docs/theory 1.7 does not hold with it.

    Args:
        tau: width of the corner, positive. The default 0.1 is small against entries of order 1.

    Raises:
        InputError: `tau` is not a finite number above 0.

    Example:
        >>> SmoothReLU(tau=8.0)(torch.tensor([3.0], dtype=torch.float64)).item()  # (3 + √73)/2
        5.772001872658765
    """

    tau: float | int = 0.1

    def __post_init__(self) -> None:
        real_number("tau", self.tau, "a finite number above 0", low=0.0, low_open=True)

    def __call__(self, z: Float[Tensor, ...]) -> Float[Tensor, ...]:
        """Apply to every entry."""
        return 0.5 * (z + torch.sqrt(z * z + self.tau**2))


def identity(z: Float[Tensor, ...]) -> Float[Tensor, ...]:
    """`φ(z) = z`: the linear network of docs/theory 1.10."""
    return z


_BY_NAME: dict[str, Activation] = {"relu": torch.relu, "identity": identity, "smooth_relu": SmoothReLU()}


def as_activation(activation: str | Activation) -> tuple[str, Activation]:
    """The name and the function of an activation given by either.

    Raises:
        InputError: an unknown name (the nearest ones are in the message), or something that cannot be called.
    """
    if isinstance(activation, str):
        if activation not in _BY_NAME:
            raise InputError("activation", activation, "'relu', 'identity', 'smooth_relu' or a callable",
                             near_name_hint(activation, _BY_NAME))  # fmt: skip
        return activation, _BY_NAME[activation]
    if not callable(activation):
        raise InputError("activation", activation, "the name of an activation or a callable")
    for name, known in _BY_NAME.items():
        if activation == known:
            return name, activation
    if isinstance(activation, (nn.Module, functools.partial)) or not hasattr(activation, "__name__"):
        return repr(activation), activation
    return str(activation.__name__), activation
