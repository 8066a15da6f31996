"""Layer steps of a leaky path: how the unit of depth is shared out among the layers."""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus._errors import InputError, near_name_hint
from isthmus.models._checks import real_number, whole_number


@dataclasses.dataclass(frozen=True)
class LayerSteps(abc.ABC):
    """A rule for the layer steps `ρ_1..ρ_L > 0`, `Σ ρ_ℓ = 1` (arXiv 2405.17573, docs/theory 1.3).

    Attributes:
        name: the name `as_steps` knows the rule by.
        adaptive: whether the steps change during training (see `Adaptive.update`).
    """

    name: ClassVar[str]
    adaptive: ClassVar[bool] = False

    @abc.abstractmethod
    def initial(self, depth: int, effective_depth: float | int) -> Float[Tensor, " depth"]:
        """The steps at the start of training: float64 on the CPU, positive, summing to 1 to rounding.

        Args:
            depth: number of layers `L`.
            effective_depth: the leakage `L̃`, in units of one whole path.

        Raises:
            InputError: `depth` layers are too few for this `effective_depth`.
        """


def _check_enough_layers(depth: int, effective_depth: float | int, layers_per_unit: float, rule: str, why: str) -> None:
    if depth <= layers_per_unit * effective_depth:
        least = math.floor(layers_per_unit * effective_depth) + 1
        raise InputError("depth", depth, f"depth > {rule} for effective_depth {effective_depth:g}, so that {why}",
                         f"try depth={least} or more, or a smaller effective_depth")  # fmt: skip


def _checked_depths(depth: int, effective_depth: float | int) -> tuple[int, float]:
    return (
        whole_number("depth", depth),
        real_number("effective_depth", effective_depth, "a finite number of at least 0", low=0.0),
    )


@final
@dataclasses.dataclass(frozen=True)
class Equidistant(LayerSteps):
    """`ρ_ℓ = 1/L` (arXiv 2405.17573, docs/theory 1.3). Needs `L > L̃`, or the skip factor `1 − ρ_ℓ L̃` is not positive.

    Example:
        >>> Equidistant().initial(4, 3.0).tolist()
        [0.25, 0.25, 0.25, 0.25]
    """

    name: ClassVar[str] = "equidistant"

    def initial(self, depth: int, effective_depth: float | int) -> Float[Tensor, " depth"]:
        """`1/L` in every layer; see `LayerSteps.initial`."""
        depth, effective_depth = _checked_depths(depth, effective_depth)
        _check_enough_layers(depth, effective_depth, 1.0, "effective_depth", "the skip factor 1 − ρL̃ stays positive")
        return torch.full((depth,), 1.0 / depth, dtype=torch.float64, device="cpu")


@final
@dataclasses.dataclass(frozen=True)
class Irregular(LayerSteps):
    """`ρ_ℓ ∝ 1 + a (1/4 − |t_ℓ − 1/2|)`: more layers near both ends (arXiv 2405.17573, docs/theory 1.3).

    Needs `L > (1 + a/4) L̃`, or the longest step's skip factor is not positive.

    Args:
        a: in [0, 1); 0 is `Equidistant`. The default is the middle of that range.
        symmetric: `t_ℓ = (ℓ − ½)/L`; False is the paper's `t_ℓ = ℓ/L`, which is not symmetric about `p = 1/2`.

    Raises:
        InputError: `a` is not in [0, 1).

    Example:
        >>> (Irregular(a=0.5).initial(2, 0.0)).tolist()
        [0.5, 0.5]
    """

    a: float | int = 0.5
    symmetric: bool = True

    name: ClassVar[str] = "irregular"

    def __post_init__(self) -> None:
        real_number("a", self.a, "a number in [0, 1)", low=0.0, high=1.0)

    def initial(self, depth: int, effective_depth: float | int) -> Float[Tensor, " depth"]:
        """The formula above, normalised to sum to 1; see `LayerSteps.initial`."""
        depth, effective_depth = _checked_depths(depth, effective_depth)
        _check_enough_layers(depth, effective_depth, 1.0 + self.a / 4, f"(1 + a/4)·effective_depth with a = {self.a:g}",
                             "the skip factor 1 − ρL̃ of the longest step stays positive")  # fmt: skip
        index = torch.arange(1, depth + 1, dtype=torch.float64, device="cpu")
        t = (index - 0.5) / depth if self.symmetric else index / depth
        rho = 1.0 + self.a * (0.25 - (t - 0.5).abs())
        return rho / rho.sum()


@final
@dataclasses.dataclass(frozen=True)
class Adaptive(LayerSteps):
    """Steps that become short where the representation moves fast (arXiv 2405.17573, docs/theory 1.3).

    With the speeds `c_ℓ = ‖A_ℓ − A_{ℓ−1}‖ / (ρ_ℓ ‖A_ℓ‖)` the update is
    `ρ_ℓ ← ρ_ℓ^{1−β} c_ℓ^{−β} / Σ_i ρ_i^{1−β} c_i^{−β}`, projected on bounds. At its fixed point `ρ_ℓ c_ℓ` is the same
    in every layer: each moves the representation by the same relative amount. The paper has `β = 1`, which can
    oscillate with period 2 for ever (weak weights, `ρ_ℓ L̃ > ½`); `β = ½` converges there for `ρ_ℓ L̃ < ¾`.

    Needs `cap · L > L̃`: otherwise no steps below the cap sum to 1.

    Args:
        interval: epochs between two updates. The paper updates "every step or every few steps".
        damping: `β` in (0, 1]; 1 is the paper's undamped update.
        floor: speeds below `floor` times the mean speed count as that (idle layers have `c = 0`), in (0, 1].
            Chosen, not tuned: far below the spread of speeds in a trained path, so that only idle layers meet it.
        smallest: least step, as a fraction of `1/L`, in (0, 1). Chosen, not tuned: a layer so short is idle.
        cap: largest `ρ_ℓ L̃`, positive. Below 1 it keeps every skip factor positive; the paper allows more where
            `W φ(A) ≈ L̃ A`, but uncapped steps reach `ρ_ℓ L̃` of 4 in nets where that does not hold.

    Raises:
        InputError: an argument outside its range.
    """

    interval: int = 10
    damping: float | int = 0.5
    floor: float | int = 1e-3
    smallest: float | int = 1e-2
    cap: float | int = 0.9

    name: ClassVar[str] = "adaptive"
    adaptive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        whole_number("interval", self.interval)
        real_number("damping", self.damping, "a number in (0, 1]", low=0.0, high=1.0, low_open=True, high_open=False)
        real_number("floor", self.floor, "a number in (0, 1]", low=0.0, high=1.0, low_open=True, high_open=False)
        real_number("smallest", self.smallest, "a number in (0, 1)", low=0.0, high=1.0, low_open=True)
        real_number("cap", self.cap, "a finite number above 0", low=0.0, low_open=True)

    def initial(self, depth: int, effective_depth: float | int) -> Float[Tensor, " depth"]:
        """Equidistant steps; see `LayerSteps.initial`."""
        depth, effective_depth = _checked_depths(depth, effective_depth)
        self._check_feasible(depth, effective_depth)
        return torch.full((depth,), 1.0 / depth, dtype=torch.float64, device="cpu")

    def update(
        self, rho: Float[Tensor, " depth"], speed: Float[Tensor, " depth"], effective_depth: float | int
    ) -> Float[Tensor, " depth"]:
        """One damped update, projected on `{lo ≤ ρ_ℓ ≤ hi, Σ ρ_ℓ = 1}` by rescaling before clipping.

        `lo = smallest/L`, `hi = min(1, cap/L̃)`; the result is `clip(t ρ, lo, hi)` with the `t` that makes it sum to 1.

        Args:
            rho: the present steps, positive, of any dtype and device.
            speed: `c_ℓ ≥ 0`; zero is a layer that stands still. All zero only projects the steps on the bounds.
            effective_depth: `L̃`.

        Returns:
            The new steps: float64 on the CPU, summing to 1 to rounding.

        Raises:
            InputError: a step that is not positive and finite, a speed that is negative or not finite, lengths that
                differ, or bounds that no steps satisfy.

        Example:
            Steps with equal `ρ_ℓ c_ℓ` stay as they are:

            >>> rho = torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64)
            >>> Adaptive().update(rho, torch.tensor([2.0, 2.0, 1.0], dtype=torch.float64), 1.0).tolist()
            [0.25, 0.25, 0.5]
        """
        rho = rho.detach().to("cpu", torch.float64)
        speed = speed.detach().to("cpu", torch.float64)
        depth, effective_depth = _checked_depths(rho.shape[0], effective_depth)
        self._check_feasible(depth, effective_depth)
        if speed.shape != rho.shape:
            raise InputError("speed", tuple(speed.shape), f"one speed for each of the {depth} steps")
        if not bool((torch.isfinite(rho) & (rho > 0)).all()):
            raise InputError("rho", rho.tolist(), "positive finite steps")
        if not bool((torch.isfinite(speed) & (speed >= 0)).all()):
            raise InputError("speed", speed.tolist(), "finite speeds of at least 0", "the training may have diverged")
        peak = float(speed.max())
        if peak > 0:
            relative = speed / peak  # before the mean, which could overflow
            relative = relative.clamp(min=float(self.floor * relative.mean()))
            log_rho = (1.0 - self.damping) * rho.log() - self.damping * relative.log()
        else:
            log_rho = rho.log()
        # The smallest term stays positive: only ratios above e^700 would underflow, and the clip below absorbs them.
        weight = (log_rho - log_rho.max()).clamp(min=-700.0).exp()
        high = min(1.0, self.cap / effective_depth) if effective_depth > 0 else 1.0
        return _fill(weight, self.smallest / depth, high)

    def _check_feasible(self, depth: int, effective_depth: float | int) -> None:
        _check_enough_layers(depth, effective_depth, 1.0 / self.cap, f"effective_depth/cap with cap = {self.cap:g}",
                             "steps with ρL̃ ≤ cap can sum to 1")  # fmt: skip


def _fill(weight: Float[Tensor, " depth"], low: float, high: float) -> Float[Tensor, " depth"]:
    """`clip(t · weight, low, high)` with the `t` for which it sums to 1 (exact water-filling).

    The sum is piecewise linear and not decreasing in `t`, with corners where an entry meets a bound: a binary search
    among the sorted corners finds the piece, on which the free entries share what the bounded ones leave.
    """
    corners = torch.cat([low / weight, high / weight]).sort().values
    left, right = 0, corners.numel() - 1  # the sum is ≤ 1 at the first corner (all low), ≥ 1 at the last (all high)
    while right - left > 1:
        middle = (left + right) // 2
        if float((corners[middle] * weight).clamp(low, high).sum()) <= 1.0:
            left = middle
        else:
            right = middle
    inside = 0.5 * corners[left] + 0.5 * corners[right]
    at_low, at_high = inside * weight <= low, inside * weight >= high
    free = ~(at_low | at_high)
    filled = torch.where(at_low, low, torch.where(at_high, high, weight))
    if bool(free.any()):
        share = 1.0 - low * float(at_low.sum()) - high * float(at_high.sum())
        filled = torch.where(free, weight * (share / weight[free].sum()), filled)
    return filled.clamp(low, high)


def checked_steps(rho: Float[Tensor, ...], depth: int, dtype: torch.dtype) -> Float[Tensor, " depth"]:
    """`rho`, `depth` positive numbers of sum 1 (else `InputError`), in float64 on the CPU and scaled to sum to 1.

    The sum may be off by the rounding of `rho`, or of the `dtype` that the steps are kept in.
    """
    if not torch.is_tensor(rho) or not rho.is_floating_point():
        raise InputError("rho", rho, f"a tensor of {depth} positive real numbers of sum 1", "wrap them in torch.tensor")
    values = rho.detach().to("cpu", torch.float64)
    rounding = 4 * max(torch.finfo(rho.dtype).eps, torch.finfo(dtype).eps)
    good = values.shape == (depth,) and bool((torch.isfinite(values) & (values > 0)).all())
    if not good or abs(float(values.sum()) - 1) > rounding:
        raise InputError("rho", values.tolist(), f"{depth} positive numbers of sum 1")
    return values / values.sum()


_BY_NAME: dict[str, type[LayerSteps]] = {s.name: s for s in (Equidistant, Irregular, Adaptive)}


def as_steps(steps: str | LayerSteps) -> LayerSteps:
    """The rule itself, or the one called `equidistant`, `irregular` or `adaptive` with its defaults.

    Raises:
        InputError: no rule has this name; the nearest names are in the message.
    """
    if isinstance(steps, LayerSteps):
        return steps
    if str(steps) not in _BY_NAME:  # a list, say, has no hash to look up
        raise InputError("steps", steps, "'equidistant', 'irregular', 'adaptive' or a LayerSteps",
                         near_name_hint(str(steps), _BY_NAME))  # fmt: skip
    return _BY_NAME[steps]()
