"""Weighted epochs that can be gone on with: what the scikit-learn estimators train by."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from isthmus._errors import DivergedError, InputError
from isthmus._random import torch_generator
from isthmus.models import Adaptive, LeakyResNet, path_gradients
from isthmus.train._steps import update_steps


def weighted_data_term(
    loss: str, outputs: Float[Tensor, "n outputs"], targets: Shaped[Tensor, "n ..."], weight: Float[Tensor, " n"]
) -> Float[Tensor, ""]:
    """`Σ_i w_i cost(y_i, f_i) / Σ_i w_i`; with equal weights it is `data_term` (arXiv 2405.17573, docs/theory 1.2).

    Raises:
        InputError: an unknown loss.
    """
    if loss == "square":
        costs = (targets - outputs).square().sum(1)
    elif loss == "cross_entropy":
        costs = torch.nn.functional.cross_entropy(outputs, targets, reduction="none")
    else:
        raise InputError("loss", loss, "'square' or 'cross_entropy'")
    return torch.dot(costs, weight) / weight.sum()


class Descent:
    """Adam on `C + (λ/2μ) Σ ρ_ℓ‖W_ℓ‖²`, epoch by epoch, with sample weights (arXiv 2405.17573, docs/theory 1.2).

    The state (moments of Adam, order of the batches) stays between epochs, also in a pickle, so that training can be
    gone on with. Deterministic on the CPU.

    Args:
        model: trained in place; its dtype and device decide where.
        loss: `square` or `cross_entropy`.
        ridge: `λ`.
        seed: of the order of mini-batches.
    """

    def __init__(self, model: LeakyResNet, *, loss: str, ridge: float, seed: int) -> None:
        self.model, self.loss, self.ridge = model, loss, ridge
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        fused = model.weight.device.type in ("cpu", "cuda")
        self._adam = torch.optim.Adam(self._parameters, fused=fused)
        self._shuffle = torch_generator(seed, "batches")
        self.epochs = 0

    def epoch(
        self,
        x: Float[Tensor, "n features"],
        y: Shaped[Tensor, "n ..."],
        weight: Float[Tensor, " n"],
        *,
        batch_size: int | None,
        rate: float,
    ) -> float:
        """One pass over the data at one step size; returns the objective met on the way (mean over batches).

        Raises:
            DivergedError: a weight or the objective is no longer a finite number.
        """
        n = x.shape[0]
        batch = min(batch_size or n, n)
        self._adam.param_groups[0]["lr"] = rate
        total, met = 0.0, 0.0
        embedded = self._embedded(x)
        rows = None if batch == n else torch.randperm(n, generator=self._shuffle).to(x.device).split(batch)
        for chosen in [None] if rows is None else rows:
            yb, wb = (y, weight) if chosen is None else (y[chosen], weight[chosen])
            share = float(wb.sum())
            if share == 0:
                continue
            objective = None
            if embedded is not None:
                objective = self._step_by_hand(embedded if chosen is None else embedded[chosen], yb, wb / share)
            if objective is None:
                objective = self._step_by_autograd(x if chosen is None else x[chosen], yb, wb)
            self._adam.step()
            total, met = total + share * objective, met + share
        self.epochs += 1
        value = total / met if met else 0.0
        if not (math.isfinite(value) and all(bool(torch.isfinite(p).all()) for p in self._parameters)):
            raise DivergedError(f"the objective is not a finite number at epoch {self.epochs} (step size {rate:.3g}); "
                                f"try a learning_rate below {rate / 3:.3g}")  # fmt: skip
        steps = self.model.steps
        if isinstance(steps, Adaptive) and self.epochs % steps.interval == 0:
            update_steps(self.model, steps, x[weight > 0])
        return value

    def _embedded(self, x: Tensor) -> Tensor | None:
        """`A_0` of all samples, where the maps around the path are fixed."""
        m = self.model
        with torch.no_grad():
            return m.embed(x) if m.input_map == m.output_map == "fixed" and x.dtype == m.weight.dtype else None

    def _step_by_hand(self, a0: Tensor, y: Tensor, share: Tensor) -> float | None:
        """The objective of a batch and its gradients, without a graph; None where `path_gradients` does not apply."""
        m, q = self.model, self.model.output_matrix
        costs: list[Tensor] = []

        def cotangent(end: Tensor) -> Tensor:
            outputs = end @ q.mT
            if self.loss == "square":
                missed = outputs - y
                costs.append(torch.dot(missed.square().sum(1), share))
                return (missed.mul_(2 * share[:, None])) @ q
            logs = outputs.log_softmax(1)
            costs.append(-torch.dot(logs.gather(1, y[:, None])[:, 0], share))
            slope = logs.exp_()
            slope[torch.arange(len(y), device=y.device), y] -= 1
            return slope.mul_(share[:, None]) @ q

        found = path_gradients(a0, m.weight, m.bias, m.layer_steps, m.effective_depth, m.activation, cotangent)
        if found is None:
            return None
        with torch.no_grad():
            decay = (self.ridge / m.mu) * m.layer_steps
            for parameter, gradient in zip((m.weight, m.bias), found, strict=True):
                if parameter is not None and gradient is not None:
                    each = decay.view(-1, *(1,) * (parameter.dim() - 1))
                    parameter.grad = gradient.addcmul_(parameter, each)
            return float(costs[0] + self.ridge * m.weight_cost())

    def _step_by_autograd(self, x: Tensor, y: Tensor, weight: Tensor) -> float:
        """The same through the graph."""
        self._adam.zero_grad(set_to_none=True)
        objective = weighted_data_term(self.loss, self.model(x), y, weight) + self.ridge * self.model.weight_cost()
        objective.backward()
        return float(objective.detach())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shuffle": self._shuffle.get_state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._shuffle = torch.Generator().set_state(state["_shuffle"])
