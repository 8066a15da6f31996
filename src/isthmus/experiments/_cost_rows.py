"""The table of a representation cost: what every network costs and certifies, and the fit over depths."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from isthmus._records import MetricTable
from isthmus.data import Task
from isthmus.experiments._cost_fit import FittedCost, best_start, fit_seeds
from isthmus.experiments._cost_networks import CostNetwork, loss_of
from isthmus.geometry import (
    NEAR,
    BottleneckCertificate,
    WeightSpectra,
    bottleneck_certificate,
    differentiable_at,
    relative_balance,
    weight_spectra,
)
from isthmus.train import data_term, score

SAMPLES = 500
"""Training samples at which certificates are taken, evenly spaced."""

NETWORK, FIT = "network", "fit"
"""Names in the column `layer`: a network (its depth is the index), and the fit over depths."""


@dataclasses.dataclass(frozen=True)
class MeasuredNetwork:
    """A trained network with its certificate and scores.

    Attributes:
        network: what was trained.
        found: certificate at some training samples; None where all of them lie on a kink of a ReLU.
        balance: of every hidden layer: `Σ|in − out| / Σ(in + out)` over its neurons.
        spectra: of the weights.
        losses: `C` by split.
        scores: accuracy or R² by split.
        score: name of that score.
    """

    network: CostNetwork
    found: BottleneckCertificate | None
    balance: tuple[float, ...]
    spectra: WeightSpectra
    losses: dict[str, float]
    scores: dict[str, float]
    score: str

    @property
    def depth(self) -> int:
        """`L`."""
        return self.network.depth

    @property
    def best(self) -> int:
        """The sample with the smallest bound."""
        assert self.found is not None
        return int(self.found.bound.argmin())

    def regularity_bound(self, rank: int) -> float | None:
        """`max 2 Σ_{i≤k} log s_i(Jf)` over the samples where `Jf` has rank `k ≥ 1` at least."""
        if self.found is None or rank < 1 or rank > self.found.log_singular_values.shape[1]:
            return None
        values = 2 * self.found.log_singular_values[:, :rank].sum(1)
        return float(values.max()) if bool(torch.isfinite(values).any()) else None

    @property
    def jacobian_logs(self) -> Tensor:
        """`log s_i(Jf)` at the best sample."""
        assert self.found is not None
        return self.found.log_singular_values[self.best]


def measure_network(network: CostNetwork, task: Task) -> MeasuredNetwork:
    """Certificate at training samples, balance, spectra, and the scores of both splits; in float64, on the CPU."""
    model, loss = network.model, loss_of(task)
    weights, biases = [w.detach() for w in model.weights], [b.detach() for b in model.biases]
    chosen = torch.linspace(0, len(task.x_train) - 1, min(SAMPLES, len(task.x_train))).round().long()
    x = task.x_train[chosen]
    smooth = differentiable_at(weights, biases, x)
    losses, scores, name = dict[str, float](), dict[str, float](), ""
    for split, inputs, targets in (("train", task.x_train, task.y_train), ("test", task.x_test, task.y_test)):
        with torch.no_grad():
            outputs = model(inputs)
        losses[split] = float(data_term(loss, outputs, targets))
        name, scores[split] = score(loss, outputs, targets)
    balance = tuple(share or 0.0 for share in relative_balance(weights, biases))
    return MeasuredNetwork(
        network, bottleneck_certificate(weights, biases, x[smooth]) if bool(smooth.any()) else None, balance,
        weight_spectra(weights, biases, x), losses, scores, name,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class CostResult:
    """Everything that is known of a cost, and the rows of the table that hold it.

    Attributes:
        networks: a list for each seed, with ascending depths.
        fit: over depths.
        start: the smallest depth from which the expansion holds.
        without_first: `R⁽⁰⁾` where the smallest depth is left out; None where too few are left.
        rank: `R⁽⁰⁾` rounded, at least 0.
        bounds: `cost_regularity_bound` of the deepest network of each seed; None where it has none.
        rows: row numbers by metric; those of the deepest networks are under `deepest`.
    """

    networks: list[list[MeasuredNetwork]]
    fit: FittedCost
    start: int
    without_first: float | None
    rank: int
    bounds: list[float | None]
    rows: dict[str, list[int]]

    @property
    def deepest(self) -> MeasuredNetwork:
        """The deepest network of the first seed."""
        return self.networks[0][-1]

    def every(self) -> list[MeasuredNetwork]:
        """All networks."""
        return [network for chain in self.networks for network in chain]


def cost_result(networks: list[list[MeasuredNetwork]], table: MetricTable) -> CostResult:
    """Fit the costs, and write every number into the table."""
    depths = [m.depth for m in networks[0]]
    costs = torch.tensor([[m.network.norm_sq for m in chain] for chain in networks], dtype=torch.float64)
    fit = fit_seeds(depths, costs)
    start, without_first = best_start(depths, costs)
    rank = max(round(float(fit.values[0])), 0)
    write = _Writer(table)
    for chain in networks:
        for measured in chain:
            _record_network(write, measured)
        _record_layers(write, chain[-1])
    if fit.costs_stderr is not None:
        for depth, cost, error in zip(depths, fit.costs.tolist(), fit.costs_stderr.tolist(), strict=True):
            write("representation_cost", cost, layer=NETWORK, index=depth, stderr=error, n=len(networks),
                  note="mean over seeds")  # fmt: skip
    for metric, value, error in zip(("cost_rank", "cost_regularity", "cost_second_order"), fit.values.tolist(),
                                    fit.stderr, strict=True):  # fmt: skip
        write(metric, value, layer=FIT, stderr=error, n=costs.numel(), note=fit.how)
    for depth, value, error in zip(depths, *fit.slope([float(d) for d in depths]), strict=True):
        write("cost_slope", value, layer=FIT, index=depth, stderr=error, n=costs.numel(), note=fit.how)
    bounds = [chain[-1].regularity_bound(rank) for chain in networks]
    for chain, bound in zip(networks, bounds, strict=True):
        where: dict[str, Any] = {"layer": NETWORK, "index": chain[-1].depth, "seed": chain[-1].network.seed}
        if bound is None:
            write.skip("cost_regularity_bound", f"at no sample has the Jacobian rank {rank} (R⁽⁰⁾ rounded)", **where)
        else:
            write("cost_regularity_bound", bound, note=f"k={rank}", **where)
    return CostResult(networks, fit, start, without_first, rank, bounds, write.rows)


class _Writer:
    """Adds rows and remembers their numbers by metric."""

    def __init__(self, table: MetricTable) -> None:
        self._table = table
        self.rows: dict[str, list[int]] = {}

    def __call__(self, metric: str, value: float | int | None, **where: Any) -> int:
        row = self._table.add(metric, value, **where)
        self.rows.setdefault(metric, []).append(row)
        return row

    def skip(self, metric: str, why: str, **where: Any) -> None:
        self.rows.setdefault(metric, []).append(self._table.skip(metric, why, **where))


def _record_network(write: _Writer, m: MeasuredNetwork) -> None:
    where: dict[str, Any] = {"layer": NETWORK, "index": m.depth, "seed": m.network.seed}
    write("representation_cost", m.network.norm_sq, **where)
    write("critical_residual", m.network.residual, **where)
    for split in m.losses:
        write("loss", m.losses[split], split=split, **where)
        if m.scores[split] == m.scores[split]:
            write(m.score, m.scores[split], split=split, **where)
        else:
            write.skip(m.score, "not defined for one sample or constant targets", split=split, **where)
    write("neuron_balance", max(m.balance), note="the largest of its layers", **where)
    if m.found is None:
        for metric in ("bottleneck_bound", "bottleneck_gap", "certified_rank", "bottleneck_tightness", "norm_excess"):
            write.skip(metric, "all samples lie on the kink of a ReLU", **where)
        return
    best, found = m.best, m.found
    where |= {"n": found.rank.numel(), "note": f"k={int(found.rank[best])}; best of {found.rank.numel()} samples"}
    write("bottleneck_bound", float(found.bound[best]), **where)
    write("bottleneck_gap", float(found.gap[best].sum()), **where)
    write("certified_rank", int(found.rank[best]), **where)
    write("bottleneck_tightness", float(found.tightness[best]), **where)
    write("norm_excess", float(found.excess[best]), **where)
    for metric, share in (("bottleneck_share_within", found.share_within([NEAR])),
                          ("bottleneck_share_certified", found.share_certified([NEAR]))):  # fmt: skip
        write(metric, float(share[best, 0]), **(where | {"note": f"level={NEAR:g}; {where['note']}"}))


def _record_layers(write: _Writer, m: MeasuredNetwork) -> None:
    """Rows of every layer of a deepest network."""
    near = m.spectra.near_one().tolist()
    for layer in range(m.depth):
        where: dict[str, Any] = {
            "layer": f"layers.{layer}", "index": layer + 1, "position": layer / (m.depth - 1), "seed": m.network.seed,
        }  # fmt: skip
        write("singular_values_near_one", near[layer], **where)
        if m.found is not None:
            write("bottleneck_gap", float(m.found.gap[m.best, layer]), note=f"L={m.depth}", **where)
        if layer + 1 < m.depth:
            write("neuron_balance", m.balance[layer], note=f"L={m.depth}", **where)


def rows_where(result: CostResult, metrics: Sequence[str]) -> tuple[int, ...]:
    """Row numbers of these metrics."""
    return tuple(row for metric in metrics for row in result.rows.get(metric, ()))
