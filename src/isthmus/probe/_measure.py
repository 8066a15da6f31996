"""Measure a path: geometry, bottleneck and Jacobian, as rows of the table, arrays and a verdict."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from isthmus._errors import InputError
from isthmus._records import MetricTable, check_metric
from isthmus.geometry import (
    DEFAULT_RANK_TOLERANCE,
    GAMMA0S,
    Bottleneck,
    IdentityCost,
    PathGeometry,
    effective_rank,
    find_bottleneck,
    nuclear_rank,
    numerical_rank,
    participation_ratio,
    path_geometry,
    stable_rank,
)
from isthmus.models import LeakyResNet
from isthmus.probe._probe import MeanLoss, probe_path
from isthmus.tangent import JacobianSpectrum, jacobian_spectrum

NO_LEAK = "the effective depth is 0 (a plain ResNet): no leak, so no cost of identity in an energy"
NO_MOMENTA = "needs momenta B = −(1/λ) ∂C/∂A: give targets, a loss and a ridge λ > 0"

_HAMILTONIAN = ("hamiltonian", "hamiltonian_symmetric", "hamiltonian_rank", "hamiltonian_rank_symmetric")
_MOMENTUM = (*_HAMILTONIAN, "stationarity", "momentum_norm", "momentum_weight_norm")
_BOUNDS = ("bound_lower", "bound_upper", "bound_slack")
_STABLE = ("kinetic_energy", "hamiltonian_stable", "hamiltonian_rank_stable", "path_length")
NEED_MOMENTA = frozenset((*_MOMENTUM, *_BOUNDS))


@dataclasses.dataclass(frozen=True)
class PathMeasurement:
    """What `measure_path` returns; `record` writes it into a table, `arrays` gives its spectra and projection."""

    geometry: PathGeometry
    bottleneck: Bottleneck
    jacobian: JacobianSpectrum | None
    metrics: frozenset[str] | None

    def record(self, table: MetricTable, *, split: str = "train", seed: int | None = None) -> dict[str, list[int]]:
        """Append every number to `table`; returns the row numbers by metric (of the default γ₀)."""
        return _Recorder(self, table, split, seed).rows

    def arrays(self) -> dict[str, np.ndarray]:
        """Spectra of `A_ℓ/√N` and `W_ℓ`, positions, layer steps, and the path in two dimensions (float64)."""
        g = self.geometry
        named = {
            "position": g.positions,
            "spectra/representation": g.spectrum,
            "spectra/representation_centred": g.spectrum_centred,
            "spectra/weight": g.weight_spectrum,
            "layer_steps": g.layer_steps,
            "path/projection": g.projection,
            "path/projection_explained": g.projection_explained,
        }
        return {name: value.detach().cpu().numpy() for name, value in named.items()}


class _Recorder:
    """Writes one measurement into a table, leaving out metrics that were not asked for and explaining absent ones."""

    def __init__(self, measured: PathMeasurement, table: MetricTable, split: str, seed: int | None) -> None:
        self.wanted, self.table = measured.metrics, table
        self.common: dict[str, Any] = {"split": split, "seed": seed, "n": measured.geometry.n}
        self.rows: dict[str, list[int]] = {}
        g = measured.geometry
        self.nodes, self.middles = g.positions.tolist(), g.step_positions.tolist()
        self._spectra(g)
        self._costs(g)
        self._path(g)
        self._momenta(g)
        self._model(measured)

    def _series(self, metric: str, values: Tensor | None, layer: str, *, why: str = "", note: str = "",
                keep: bool = True) -> None:  # fmt: skip
        if self.wanted is not None and metric not in self.wanted:
            return
        if values is None:
            self.rows[metric] = [self.table.skip(metric, why, layer=layer, **self.common)]
            return
        positions, first = (self.nodes, 0) if layer == "representation" else (self.middles, 1)
        rows = self.table.extend(
            values.tolist(), metric, layer=layer, positions=positions, first=first, note=note, **self.common
        )
        if keep and metric not in self.rows:
            self.rows[metric] = rows

    def _one(self, metric: str, value: float | None, *, why: str = "", note: str = "") -> None:
        if self.wanted is not None and metric not in self.wanted:
            return
        if value is None:
            row = self.table.skip(metric, why, layer="path", **self.common)
        else:
            row = self.table.add(metric, value, layer="path", note=note, **self.common)
        self.rows.setdefault(metric, [row])

    def _spectra(self, g: PathGeometry) -> None:
        for layer, s in (("representation", g.spectrum), ("weight", g.weight_spectrum)):
            self._series("numerical_rank", numerical_rank(s), layer, note=f"tol={DEFAULT_RANK_TOLERANCE:g}")
            self._series("stable_rank", stable_rank(s), layer)
            self._series("nuclear_rank", nuclear_rank(s), layer)
            self._series("participation_ratio", participation_ratio(s), layer)
            self._series("effective_rank", effective_rank(s), layer)
        self._series("participation_ratio_centred", participation_ratio(g.spectrum_centred), "representation")
        self._series("weight_norm_sq", g.weight_norm_sq, "weight")
        self._series("bias_norm_sq", g.bias_norm_sq, "weight")

    def _costs(self, g: PathGeometry) -> None:
        for gamma0, cost in g.cost.items():
            self._series("cost_of_identity", cost.stabilised, "representation", note=f"gamma0={gamma0:g}")
        first = g.cost[g.gamma0]
        self._series("identity_residual", first.residual, "representation")
        self._exact_cost(first)
        for name in _STABLE[:3]:
            if not g.energies:
                self._series(name, None, "step", why=NO_LEAK)
        for gamma0, e in g.energies.items():
            note = f"gamma0={gamma0:g}"
            self._series("kinetic_energy", e.kinetic, "step", note=note)
            self._series("hamiltonian_stable", e.stable, "step", note=note)
            self._series("hamiltonian_rank_stable", e.stable_rank_estimate, "step", note=note)
            self._one("path_length", e.path_length, note=note)
        if not g.energies:
            self._one("path_length", None, why=NO_LEAK)

    def _exact_cost(self, cost: IdentityCost) -> None:
        name = "cost_of_identity_exact"
        if self.wanted is not None and name not in self.wanted:
            return
        infinite = "infinite: A leaves the row space of S (identity_residual)"
        self.rows[name] = []
        for i, (value, finite) in enumerate(zip(cost.exact.tolist(), cost.finite.tolist(), strict=True)):
            at = {"layer": f"representation.{i}", "index": i, "position": self.nodes[i]}
            where: dict[str, Any] = {**at, **self.common}
            row = self.table.add(name, value, **where) if finite else self.table.skip(name, infinite, **where)
            self.rows[name].append(row)

    def _path(self, g: PathGeometry) -> None:
        self._series("negative_fraction", g.negative_fraction, "representation")
        self._series("relative_move", g.relative_move, "step")
        self._series("path_speed", g.speed, "step")
        self._series("layer_step", g.layer_steps, "step")
        self._one("path_length_euclidean", g.length, note="divided by √N")
        balance = g.balance if g.effective_depth > 0 else None
        self._series("balance", balance, "step", why=NO_LEAK)

    def _momenta(self, g: PathGeometry) -> None:
        why = NO_MOMENTA if g.effective_depth > 0 else NO_LEAK
        h = g.hamiltonians
        values = (None,) * 4 if h is None else (h.pair, h.symmetric, h.rank(h.pair), h.rank(h.symmetric))
        for name, value in zip(_HAMILTONIAN, values, strict=True):
            self._series(name, value, "step", why=why)
        self._series("stationarity", g.stationarity, "step", why=NO_MOMENTA)
        self._series("momentum_norm", g.momentum_norm, "representation", why=NO_MOMENTA)
        self._series("momentum_weight_norm", g.momentum_weight_norm, "step", why=NO_MOMENTA)
        b = g.bounds
        for name, value in zip(_BOUNDS, (None,) * 3 if b is None else (b.lower, b.upper, b.slack), strict=True):
            self._one(name, value, why=why, note="" if b is None else f"gamma0={b.gamma0:g}")

    def _model(self, measured: PathMeasurement) -> None:
        found = measured.bottleneck
        if found.found:
            self._one("bottleneck_rank", found.rank, note=f"{found.agreement:.0%} of the trusted estimates agree")
        else:
            self._one("bottleneck_rank", None, why=f"no bottleneck: {found.reason}")
        name = "jacobian_log_singular_value"
        if measured.jacobian is None or (self.wanted is not None and name not in self.wanted):
            return
        j = measured.jacobian
        zero = "a singular value is 0 at some sample"
        self.rows[name] = []
        for i, (mean, err) in enumerate(zip(j.mean.tolist(), j.stderr.tolist(), strict=True)):
            where: dict[str, Any] = {**self.common, "layer": "model", "index": i + 1, "n": j.n}
            fine = np.isfinite(mean)
            row = self.table.add(name, mean, stderr=err, **where) if fine else self.table.skip(name, zero, **where)
            self.rows[name].append(row)


def check_metrics(
    metrics: Collection[str] | None, *, ridge: float | None, effective_depth: float | None = None
) -> frozenset[str] | None:
    """The metrics asked for, or None for all that apply.

    Raises:
        InputError: an unknown name, or a metric that needs momenta asked for by name without a ridge `λ > 0`, or a
            Hamiltonian asked for by name at effective depth 0.
    """
    if metrics is None:
        return None
    names = frozenset(check_metric(name).name for name in metrics)
    needy = sorted(names & NEED_MOMENTA)
    if needy and not (ridge is not None and ridge > 0):
        raise InputError("ridge", ridge, f"a number > 0 for {', '.join(needy)} (B = −(1/λ) ∂C/∂A)",
                         "train with a ridge, or leave these metrics out")  # fmt: skip
    leaky = sorted(names & frozenset((*_HAMILTONIAN, *_BOUNDS, *_STABLE, "balance")))
    if leaky and effective_depth == 0:
        raise InputError("effective_depth", effective_depth, f"a number > 0 for {', '.join(leaky)}",
                         "a plain ResNet has no leak; leave these metrics out")  # fmt: skip
    return names


def measure_path(
    model: LeakyResNet,
    x: Float[Tensor, "n inputs"],
    y: Shaped[Tensor, "rows ..."] | None = None,
    *,
    loss: MeanLoss | None = None,
    ridge: float | None = None,
    gamma0s: Sequence[float] = GAMMA0S,
    metrics: Collection[str] | None = None,
    jacobian_samples: int = 64,
) -> PathMeasurement:
    """Everything section 1 of the theory says of a network, over the samples `x`.

    Evaluated in float64 on a copy; the model, its mode and all random states stay as they were. Source: arXiv
    2405.17573, docs/theory 1.4–1.7.

    Args:
        model: the network.
        x: samples.
        y: targets, for momenta.
        loss: data term, a mean over the samples it is given.
        ridge: `λ` of the objective the model was trained on.
        gamma0s: γ₀ of the stabilised costs, the default one first.
        metrics: names to record; None for all that apply.
        jacobian_samples: samples (the first ones) at which the input–output Jacobian is taken; 0 for none.

    Raises:
        InputError: data that does not fit, an unknown metric, or one that needs a ridge asked for without one.
    """
    wanted = check_metrics(metrics, ridge=ridge, effective_depth=model.effective_depth)
    moments = probe_path(model, x, y, loss=loss, ridge=ridge)
    geometry = path_geometry(
        moments,
        weight=model.augmented_weight(),
        layer_steps=model.layer_steps.double() / model.layer_steps.double().sum(),
        effective_depth=model.effective_depth,
        has_bias=model.bias is not None,
        gamma0s=tuple(gamma0s),
    )
    jacobian = None
    if min(jacobian_samples, x.shape[0]) >= 2:
        exact = copy.deepcopy(model).double().requires_grad_(False)
        points = x[:jacobian_samples].to(exact.layer_steps.device, torch.float64)
        jacobian = jacobian_spectrum(lambda v: exact(v[None])[0], points)
    return PathMeasurement(geometry, find_bottleneck(geometry), jacobian, wanted)
