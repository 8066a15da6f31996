"""Layer steps `ρ_1 … ρ_L` of a leaky path: equidistant, irregular, adaptive."""

from __future__ import annotations

import abc
import dataclasses
import math

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus._errors import InputError, near_name_hint


def _check_path(depth: int, effective_depth: float) -> None:
    if depth < 1:
        raise InputError("depth", depth, "an integer ≥ 1")
    if not (math.isfinite(effective_depth) and effective_depth >= 0):
        raise InputError("effective_depth", effective_depth, "a finite number ≥ 0", "0 is a plain ResNet")


@dataclasses.dataclass(frozen=True)
class LayerSteps(abc.ABC):
    """A rule for the layer steps `ρ_ℓ > 0`, `Σ ρ_ℓ = 1` (arXiv 2405.17573, docs/theory 1.3)."""

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """Name used in configurations."""

    @abc.abstractmethod
    def initial(self, depth: int, effective_depth: float) -> Float[Tensor, " depth"]:
        """The steps at the start of training, in float64.

        Raises:
            InputError: the rule's condition does not hold for this depth and effective depth.
        """


@dataclasses.dataclass(frozen=True)
class Equidistant(LayerSteps):
    """`ρ_ℓ = 1/L`; needs `L > L̃`, so that every skip factor `1 − ρ_ℓ L̃` is positive."""

    @property
    def name(self) -> str:
        """`equidistant`."""
        return "equidistant"

    def initial(self, depth: int, effective_depth: float) -> Float[Tensor, " depth"]:
        """`1/L` each. Raises `InputError` unless `L > L̃`."""
        _check_path(depth, effective_depth)
        if not depth > effective_depth:
            raise InputError("depth", depth, f"more than effective_depth = {effective_depth:g} with equidistant steps "
                             "(the skip factor 1 − L̃/L must be positive)",
                             "use more layers, a smaller effective_depth")  # fmt: skip
        return torch.full((depth,), 1 / depth, dtype=torch.float64)


@dataclasses.dataclass(frozen=True)
class Irregular(LayerSteps):
    """`ρ_ℓ ∝ 1/L + (a/L)(1/4 − |t_ℓ − 1/2|)`: shorter steps, hence more layers, near both ends for `a > 0`.

    Attributes:
        a: in [0, 1); 0 is equidistant.
        symmetric: `t_ℓ = (ℓ − ½)/L` if true, else the paper's `t_ℓ = ℓ/L`. Normalised to sum 1 in both cases.
    """

    a: float = 0.5
    symmetric: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.a < 1:
            raise InputError("a", self.a, "a number in [0, 1)")

    @property
    def name(self) -> str:
        """`irregular`."""
        return "irregular"

    def initial(self, depth: int, effective_depth: float) -> Float[Tensor, " depth"]:
        """The irregular steps. Raises `InputError` unless `L > (1 + a/4) L̃`."""
        _check_path(depth, effective_depth)
        if not depth > (1 + self.a / 4) * effective_depth:
            raise InputError("depth", depth, f"more than (1 + a/4)·effective_depth = "
                             f"{(1 + self.a / 4) * effective_depth:g} with irregular steps",
                             "use more layers, a smaller effective_depth, or a smaller a")  # fmt: skip
        t = (torch.arange(1, depth + 1, dtype=torch.float64) - (0.5 if self.symmetric else 0.0)) / depth
        rho = 1 + self.a * (0.25 - (t - 0.5).abs())
        return rho / rho.sum()


@dataclasses.dataclass(frozen=True)
class Adaptive(LayerSteps):
    """Steps that follow the representation: `ρ_ℓ ← ρ_ℓ^{1−β} c_ℓ^{−β} / Σ`, damped, floored, capped (docs/theory 1.3).

    With `c_ℓ = ‖A_ℓ − A_{ℓ−1}‖/(ρ_ℓ‖A_ℓ‖)`, at the fixed point every layer moves the representation by the same
    relative amount. `β = 1` is the paper's undamped rule, which can oscillate with period 2 for ever.

    Attributes:
        interval: epochs between updates.
        damping: `β` in (0, 1]; ½ converges where 1 oscillates.
        floor: speeds count as at least this share of their mean.
        smallest: least step, as a share of `1/L`.
        cap: greatest `ρ_ℓ L̃`; below 1 it keeps every skip factor positive. Needs `L·cap > L̃`.
    """

    interval: int = 10
    damping: float = 0.5
    floor: float = 1e-3
    smallest: float = 1e-2
    cap: float = 0.9

    def __post_init__(self) -> None:
        if self.interval < 1:
            raise InputError("interval", self.interval, "an integer ≥ 1")
        if not 0 < self.damping <= 1:
            raise InputError("damping", self.damping, "a number in (0, 1]", "0.5 is the default")
        if not 0 < self.floor < 1:
            raise InputError("floor", self.floor, "a number in (0, 1)")
        if not 0 < self.smallest < 1:
            raise InputError("smallest", self.smallest, "a number in (0, 1)")
        if not self.cap > 0:
            raise InputError("cap", self.cap, "a number > 0", "0.9 is the default")

    @property
    def name(self) -> str:
        """`adaptive`."""
        return "adaptive"

    def initial(self, depth: int, effective_depth: float) -> Float[Tensor, " depth"]:
        """Equal steps. Raises `InputError` unless `L·cap > L̃`."""
        self._limits(depth, effective_depth)
        return torch.full((depth,), 1 / depth, dtype=torch.float64)

    def _limits(self, depth: int, effective_depth: float) -> tuple[float, float]:
        _check_path(depth, effective_depth)
        if not depth * self.cap > effective_depth:
            raise InputError("depth", depth, f"more than effective_depth/cap = {effective_depth / self.cap:g} with "
                             "adaptive steps (no steps of sum 1 keep ρL̃ below the cap)",
                             "use more layers, a smaller effective_depth, or a higher cap")  # fmt: skip
        high = self.cap / effective_depth if effective_depth > 0 else 1.0
        return self.smallest / depth, min(1.0, high)

    def update(
        self, rho: Float[Tensor, " depth"], speed: Float[Tensor, " depth"], effective_depth: float
    ) -> Float[Tensor, " depth"]:
        """One update of the steps.

        Args:
            rho: current steps.
            speed: `c_ℓ ≥ 0` over the training set.
            effective_depth: `L̃`.

        Returns:
            The new steps in float64, within the limits and of sum 1 to rounding.

        Raises:
            InputError: speeds that are not finite or are negative, or limits that no steps meet.
        """
        depth = rho.numel()
        low, high = self._limits(depth, effective_depth)
        c = speed.double()
        if not bool((torch.isfinite(c) & (c >= 0)).all()):
            raise InputError("speed", c.tolist(), "finite numbers ≥ 0", "the network has diverged or is all zero")
        mean = float(c.mean())
        if mean == 0:  # nothing moves anywhere: nothing to follow
            return _project(rho.double(), low, high)
        c = (c / mean).clamp(min=self.floor)
        log = (1 - self.damping) * rho.double().log() - self.damping * c.log()
        return _project(torch.softmax(log, 0), low, high)


def _project(rho: Tensor, low: float, high: float) -> Tensor:
    """`clip(t ρ, low, high)` with `t` such that the sum is 1 (bisection in log t, to rounding)."""
    rho = rho.double()
    below = math.log(low / float(rho.max())) - 1
    above = math.log(high / float(rho.min())) + 1
    for _ in range(200):
        middle = 0.5 * (below + above)
        if float((rho * math.exp(middle)).clamp(low, high).sum()) < 1:
            below = middle
        else:
            above = middle
        if above - below < 1e-15 * max(1.0, abs(above)):
            break
    result = (rho * math.exp(0.5 * (below + above))).clamp(low, high)
    free = (result > low) & (result < high)
    if bool(free.any()):
        result[free] += (1 - result.sum()) * (result[free] / result[free].sum())
    return result


_BY_NAME = {"equidistant": Equidistant, "irregular": Irregular, "adaptive": Adaptive}


def as_steps(steps: str | LayerSteps) -> LayerSteps:
    """A rule from its name, with its defaults; rules pass through.

    Raises:
        InputError: an unknown name.
    """
    if isinstance(steps, LayerSteps):
        return steps
    if steps not in _BY_NAME:
        raise InputError("steps", steps, "'equidistant', 'irregular', 'adaptive' or a LayerSteps",
                         near_name_hint(str(steps), _BY_NAME))  # fmt: skip
    return _BY_NAME[steps]()
