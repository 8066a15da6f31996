"""Training of fully-connected ReLU networks with a ridge, down to where their weights show the bottleneck."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from isthmus._errors import DivergedError, InputError
from isthmus._random import check_seed, torch_generator
from isthmus.models import FullyConnected, real_number, whole_number
from isthmus.train._ridge_objective import RidgeObjective, check_ridge_loss
from isthmus.train._second_order import REFRESH, PreconditionedDescent

_WARM_UP = 100
_WINDOW = 100
"""Iterations over which the objective's decrease is compared with the tolerance."""

_HISTORY = 60
"""Entries of a history, about."""


@dataclasses.dataclass(frozen=True)
class RidgeConfig:
    """Settings of `fit_ridge` (arXiv 2305.19008, docs/theory 3.1 and 3.7).

    Attributes:
        ridge: `λ > 0`.
        loss: `mean_square` (the mean over samples and outputs) or `cross_entropy` (the mean over samples).
        adam_steps: full-batch steps of Adam before the second-order descent; 0 for a network that is trained already.
        learning_rate: its first step size, reached over 100 steps; a cosine takes it to 0.
        iterations: of preconditioned L-BFGS.
        tolerance: stop where the objective fell by less than this share of itself over the last 100 iterations; 0
            takes all iterations.
        seed: of the random probes of the curvature.

    Raises:
        InputError: a setting outside what is said here.
    """

    ridge: float | int = 2e-4
    loss: str = "mean_square"
    adam_steps: int = 800
    learning_rate: float | int = 1e-3
    iterations: int = 1500
    tolerance: float | int = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        real_number("ridge", self.ridge, "a finite number > 0", low=0.0, low_open=True)
        check_ridge_loss(self.loss)
        whole_number("adam_steps", self.adam_steps, 0)
        real_number("learning_rate", self.learning_rate, "a finite number > 0", low=0.0, low_open=True)
        whole_number("iterations", self.iterations, 0)
        real_number("tolerance", self.tolerance, "a number in [0, 1)", low=0.0, high=1.0)
        check_seed(self.seed)

    @property
    def total(self) -> int:
        """Steps of Adam and iterations together."""
        return self.adam_steps + self.iterations


@dataclasses.dataclass(frozen=True)
class RidgePoint:
    """`C` and `‖θ‖²` after `step` steps of Adam and iterations together."""

    step: int
    loss: float
    norm_sq: float


@dataclasses.dataclass(frozen=True)
class RidgeFit:
    """How a training went; all of the network as stored.

    Attributes:
        loss: `C`.
        norm_sq: `‖θ‖²`.
        objective: `C + λ‖θ‖²`.
        residual: `‖∇(C + λ‖θ‖²)‖ / (2λ‖θ‖)`: 0 at a critical point, 1 where there is only the ridge's pull.
        steps: steps of Adam and iterations that were taken.
        stopped: `iterations` (all were taken), `tolerance`, or `precision` (no step lowers the objective any more in
            the model's dtype).
        history: some 60 points on the way, the first and the last included.
    """

    loss: float
    norm_sq: float
    objective: float
    residual: float
    steps: int
    stopped: str
    history: tuple[RidgePoint, ...]


Progress = Callable[[int, int, float], None]
"""Called as `progress(steps so far, steps in all, objective)`."""


def fit_ridge(
    model: FullyConnected,
    x: Float[Tensor, "n inputs"],
    y: Shaped[Tensor, "rows ..."],
    config: RidgeConfig,
    *,
    progress: Progress | None = None,
) -> RidgeFit:
    """Train a fully-connected ReLU network in place on `C + λ‖θ‖²` (arXiv 2305.19008, docs/theory 3.1 and 3.7).

    Adam on all samples, then L-BFGS preconditioned with the Kronecker-factored curvature of every layer, made anew
    every 50 iterations. On the rank-2 task of docs/theory 3.6 it brings `‖θ‖²` of 25 layers of width 100 from 2400 to
    94 in some 3 minutes; Adam alone took 76,000 steps for that. Deterministic on the CPU.

    Args:
        model: trained in place, in its own dtype and on its own device.
        x: all training samples, in rows.
        y: their targets, or class numbers.
        config: the settings.
        progress: called after every step.

    Raises:
        InputError: samples or targets that do not fit, or weights that are not finite numbers.
        DivergedError: the objective left the finite numbers; the model is as it was before.
    """
    problem = RidgeObjective(model, x, y, loss=config.loss, ridge=config.ridge)
    w = problem.vector(model)
    if not bool(torch.isfinite(w).all()):
        bad = int((~torch.isfinite(w)).sum())
        raise InputError("model", f"{bad} NaN or infinite weights", "finite weights", "make the network anew")
    run = _Run(problem, config, progress)
    run.note(0, w)
    w = run.adam(w)
    w, stopped = run.descend(w)
    problem.store(model, w)
    value, gradient = problem(w)
    last = run.note(run.step, w)
    return RidgeFit(
        loss=last.loss,
        norm_sq=last.norm_sq,
        objective=value,
        residual=problem.residual(w, gradient),
        steps=run.step,
        stopped=stopped,
        history=tuple(run.history),
    )


class _Run:
    """One training: what is done, and what was seen on the way."""

    def __init__(self, problem: RidgeObjective, config: RidgeConfig, progress: Progress | None) -> None:
        self.problem, self.config, self.progress = problem, config, progress
        self.step = 0
        self.history: list[RidgePoint] = []
        self._every = max(1, config.total // _HISTORY)

    def note(self, step: int, w: Tensor) -> RidgePoint:
        """Take a point into the history, once."""
        norm_sq = float(w.square().sum(dtype=torch.float64))
        point = RidgePoint(step, self.problem.data_term(w), norm_sq)
        if not (self.history and self.history[-1].step == step):
            self.history.append(point)
        return point

    def _tell(self, w: Tensor, value: float) -> None:
        self.step += 1
        if not math.isfinite(value):
            raise DivergedError(f"the objective is not a finite number at step {self.step}; try a learning_rate below "
                                f"{self.config.learning_rate / 3:.3g}, or scale the data")  # fmt: skip
        if self.step % self._every == 0:
            self.note(self.step, w)
        if self.progress is not None:
            self.progress(self.step, self.config.total, value)

    def adam(self, w: Tensor) -> Tensor:
        """The first steps."""
        steps = self.config.adam_steps
        if not steps:
            return w
        leaf = w.clone().requires_grad_()
        optimiser = torch.optim.Adam([leaf], fused=w.device.type in ("cpu", "cuda"))
        for i in range(steps):
            cosine = 0.5 * (1 + math.cos(math.pi * i / steps))
            optimiser.param_groups[0]["lr"] = self.config.learning_rate * cosine * min(1.0, (i + 1) / _WARM_UP)
            value, leaf.grad = self.problem(leaf.detach())
            optimiser.step()
            self._tell(leaf.detach(), value)
        return leaf.detach()

    def descend(self, w: Tensor) -> tuple[Tensor, str]:
        """The second-order descent, and why it ended."""
        if not self.config.iterations:
            return w, "iterations"
        descent = PreconditionedDescent(self.problem, w, torch_generator(self.config.seed, "finish"))
        before = descent.value
        for i in range(self.config.iterations):
            if i and i % REFRESH == 0:
                descent.refresh()
            if not descent.step():
                return descent.w, "precision"
            self._tell(descent.w, descent.value)
            if (i + 1) % _WINDOW == 0:
                if before - descent.value < self.config.tolerance * before:
                    return descent.w, "tolerance"
                before = descent.value
        return descent.w, "iterations"
