"""Measure a path: geometry, bottleneck and Jacobian, as rows of the table, arrays and a verdict."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
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
    PathGeometry,
    PathMoments,
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
"""Why a path at `L̃ = 0` has no energies: the note of their rows."""

NO_MOMENTA = "needs momenta B = −(1/λ) ∂C/∂A: give targets, a loss and a ridge λ > 0"
"""Why a path without momenta has no Hamiltonian, stationarity or bounds: the note of their rows."""

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
        g = self.geometry
        common: dict[str, Any] = {"split": split, "seed": seed, "n": g.n}
        rows: dict[str, list[int]] = {}
        for one in path_series(g):
            if self._wanted(one.metric):
                rows.setdefault(one.metric, record_series(table, one, g.positions.tolist(), **common))
        found = self.bottleneck
        if self._wanted("bottleneck_rank"):
            note = f"{found.agreement:.0%} of the trusted estimates agree"
            known = Series("bottleneck_rank", "path", (float(found.rank),), note)
            none = Series("bottleneck_rank", "path", (), why=f"no bottleneck: {found.reason}")
            rows["bottleneck_rank"] = record_series(table, known if found.found else none, [], **common)
        name = "jacobian_log_singular_value"
        if self.jacobian is not None and self._wanted(name):
            j = self.jacobian
            zero = "a singular value is 0 at some sample"
            rows[name] = []
            for i, (mean, err) in enumerate(zip(j.mean.tolist(), j.stderr.tolist(), strict=True)):
                where: dict[str, Any] = {**common, "layer": "model", "index": i + 1, "n": j.n}
                fine = np.isfinite(mean)
                row = table.add(name, mean, stderr=err, **where) if fine else table.skip(name, zero, **where)
                rows[name].append(row)
        return rows

    def _wanted(self, metric: str) -> bool:
        return self.metrics is None or metric in self.metrics

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


@dataclasses.dataclass(frozen=True)
class Series:
    """One metric along the path: a value per node (`representation`), step (`step`, `weight`), or one (`path`).

    Attributes:
        metric: its name in the table.
        layer: what the values are of.
        values: the values; empty where `why` says why there are none.
        note: how they were computed, where that is a choice.
        missing: reasons by position in `values`, for values that do not exist.
    """

    metric: str
    layer: str
    values: tuple[float, ...]
    note: str = ""
    why: str = ""
    missing: Mapping[int, str] = dataclasses.field(default_factory=dict[int, str])


def path_series(g: PathGeometry) -> Iterator[Series]:
    """Every metric of a path, the default γ₀ before the others; those that do not exist here say why."""

    def series(metric: str, layer: str, values: Tensor | float | None, note: str = "", why: str = "") -> Series:
        if values is None:
            return Series(metric, layer, (), note, why)
        numbers = values.tolist() if isinstance(values, Tensor) else [values]
        return Series(metric, layer, tuple(float(v) for v in numbers), note)

    for layer, s in (("representation", g.spectrum), ("weight", g.weight_spectrum)):
        yield series("numerical_rank", layer, numerical_rank(s), f"tol={DEFAULT_RANK_TOLERANCE:g}")
        yield series("stable_rank", layer, stable_rank(s))
        yield series("nuclear_rank", layer, nuclear_rank(s))
        yield series("participation_ratio", layer, participation_ratio(s))
        yield series("effective_rank", layer, effective_rank(s))
    yield series("participation_ratio_centred", "representation", participation_ratio(g.spectrum_centred))
    yield series("weight_norm_sq", "weight", g.weight_norm_sq)
    yield series("bias_norm_sq", "weight", g.bias_norm_sq)

    for gamma0, cost in g.cost.items():
        yield series("cost_of_identity", "representation", cost.stabilised, f"gamma0={gamma0:g}")
    first = g.cost[g.gamma0]
    yield series("identity_residual", "representation", first.residual)
    infinite = "infinite: A leaves the row space of S (identity_residual)"
    missing = {i: infinite for i, finite in enumerate(first.finite.tolist()) if not finite}
    yield dataclasses.replace(series("cost_of_identity_exact", "representation", first.exact), missing=missing)
    for gamma0, e in g.energies.items():
        note = f"gamma0={gamma0:g}"
        yield series("kinetic_energy", "step", e.kinetic, note)
        yield series("hamiltonian_stable", "step", e.stable, note)
        yield series("hamiltonian_rank_stable", "step", e.stable_rank_estimate, note)
        yield series("path_length", "path", e.path_length, note)
    if not g.energies:
        for name in _STABLE:
            yield series(name, "path" if name == "path_length" else "step", None, why=NO_LEAK)

    yield series("negative_fraction", "representation", g.negative_fraction)
    yield series("relative_move", "step", g.relative_move)
    yield series("path_speed", "step", g.speed)
    yield series("layer_step", "step", g.layer_steps)
    yield series("path_length_euclidean", "path", g.length, "divided by √N")
    yield series("balance", "step", g.balance if g.effective_depth > 0 else None, why=NO_LEAK)

    why = NO_MOMENTA if g.effective_depth > 0 else NO_LEAK
    h = g.hamiltonians
    values = (None,) * 4 if h is None else (h.pair, h.symmetric, h.rank(h.pair), h.rank(h.symmetric))
    for name, value in zip(_HAMILTONIAN, values, strict=True):
        yield series(name, "step", value, why=why)
    yield series("stationarity", "step", g.stationarity, why=NO_MOMENTA)
    yield series("momentum_norm", "representation", g.momentum_norm, why=NO_MOMENTA)
    yield series("momentum_weight_norm", "step", g.momentum_weight_norm, why=NO_MOMENTA)
    b = g.bounds
    bounds = (None,) * 3 if b is None else (b.lower, b.upper, b.slack)
    for name, value in zip(_BOUNDS, bounds, strict=True):
        yield series(name, "path", value, "" if b is None else f"gamma0={b.gamma0:g}", why)


def record_series(
    table: MetricTable, one: Series, positions: Sequence[float], *, step: int | None = None, **common: Any
) -> list[int]:
    """Append the rows of one series; returns their numbers.

    Args:
        table: the table.
        one: the series.
        positions: `p_ℓ` of the nodes 0..L; values of steps stand in the middle of theirs.
        step: the epoch, for a series taken during training.
        common: further columns, the same in every row.
    """
    where: dict[str, Any] = {**common, "step": step}
    if one.why and not one.values:
        return [table.skip(one.metric, one.why, layer=one.layer, **where)]
    if one.layer == "path":
        return [table.add(one.metric, one.values[0], layer="path", note=one.note, **where)]
    first = 0 if one.layer == "representation" else 1
    middles = [0.5 * (a + b) for a, b in itertools.pairwise(positions)]
    at = positions if first == 0 else middles
    if not one.missing:
        return table.extend(one.values, one.metric, layer=one.layer, positions=at, first=first, note=one.note, **where)
    rows: list[int] = []
    for i, (value, p) in enumerate(zip(one.values, at, strict=True)):
        node: dict[str, Any] = {"layer": f"{one.layer}.{first + i}", "index": first + i, "position": p, **where}
        reason = one.missing.get(i)
        rows.append(table.skip(one.metric, reason, **node) if reason else table.add(one.metric, value, **node))
    return rows


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


def geometry_of(model: LeakyResNet, moments: PathMoments, gamma0s: tuple[float, ...] = GAMMA0S) -> PathGeometry:
    """`path_geometry` of a Leaky ResNet whose path gave `moments` (arXiv 2405.17573, docs/theory 1.4–1.7)."""
    rho = model.layer_steps.double()
    return path_geometry(
        moments,
        weight=model.augmented_weight(),
        layer_steps=rho / rho.sum(),  # of sum 1 in float64, whatever the model's dtype
        effective_depth=model.effective_depth,
        has_bias=model.bias is not None,
        gamma0s=gamma0s,
    )


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
    geometry = geometry_of(model, moments, tuple(gamma0s))
    jacobian = None
    if min(jacobian_samples, x.shape[0]) >= 2:
        exact = copy.deepcopy(model).double().requires_grad_(False)
        points = x[:jacobian_samples].to(exact.layer_steps.device, torch.float64)
        jacobian = jacobian_spectrum(lambda v: exact(v[None])[0], points)
    return PathMeasurement(geometry, find_bottleneck(geometry), jacobian, wanted)
