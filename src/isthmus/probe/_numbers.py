"""From accumulated moments to numbers: spectra, ranks and the cost of identity of every representation and weight."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from isthmus._records import MetricTable
from isthmus.geometry import (
    DEFAULT_RANK_TOLERANCE,
    GAMMA0S,
    RowSpace,
    StreamMoments,
    effective_rank,
    identity_cost_from_moments,
    nuclear_rank,
    numerical_rank,
    participation_ratio,
    spectrum_of_gram,
    stable_rank,
)
from isthmus.probe._pass import PassResult
from isthmus.probe._plan import MOST_WIDTH, MeasuredSite, PassPlan
from isthmus.probe._stacks import step_of

REPRESENTATION = (
    "observations", "numerical_rank", "stable_rank", "nuclear_rank", "participation_ratio", "effective_rank",
    "participation_ratio_centred", "cost_of_identity", "cost_of_identity_exact", "identity_residual",
    "negative_fraction", "relative_move", "backward_norm", "backward_participation_ratio",
)  # fmt: skip
WEIGHT = ("numerical_rank", "stable_rank", "nuclear_rank", "participation_ratio", "effective_rank",
          "weight_norm_sq", "bias_norm_sq")  # fmt: skip
COST = ("cost_of_identity", "cost_of_identity_exact", "identity_residual")
_EPS64 = torch.finfo(torch.float64).eps


def _ranks(s: Tensor) -> dict[str, float]:
    return {
        "numerical_rank": float(numerical_rank(s)),
        "stable_rank": float(stable_rank(s)),
        "nuclear_rank": float(nuclear_rank(s)),
        "participation_ratio": float(participation_ratio(s)),
        "effective_rank": float(effective_rank(s)),
    }


def _resolution(eps: float, width: int) -> float:
    """Rounding unit per dimension of a shifted Gram matrix.

    Its error in operator norm is a fraction of the products' rounding unit, whatever the width (measured: at most
    3e-8 of the largest eigenvalue with float32 products, widths 64–768), where `spectrum_of_gram` and `RowSpace`
    would allow `width` times as much.
    """
    return max(eps / width, _EPS64)


@dataclasses.dataclass(frozen=True)
class Spectra:
    """Singular values of `A/√N`, descending, of the representation and of the representation minus its mean."""

    raw: Float[Tensor, " k"]
    centred: Float[Tensor, " k"]
    n: int


@dataclasses.dataclass(frozen=True)
class WeightMatrix:
    """Singular values of a weight matrix (`out × in`, kernels flattened), and where it stands.

    Attributes:
        name: name of the parameter.
        module: class of its module.
        at: order of the first call of the module; None where it is never called.
        shape: shape of the parameter.
        spectrum: singular values, descending; empty where `why` says why.
        norm_sq: `‖W‖² + ‖b‖²`.
        bias_norm_sq: `‖b‖²`; None without a bias.
        why: why there is no spectrum.
        tied: other names of the same parameter.
    """

    name: str
    module: str
    at: int | None
    shape: tuple[int, ...]
    spectrum: Float[Tensor, " k"]
    norm_sq: float
    bias_norm_sq: float | None
    why: str = ""
    tied: tuple[str, ...] = ()


def spectra_of(moments: StreamMoments) -> Spectra:
    """Both spectra of a representation from its moments."""
    eps = _resolution(moments.eps, moments.gram.shape[0])
    raw, centred = (spectrum_of_gram(g, eps=eps) / moments.n**0.5 for g in (moments.gram, moments.centred_gram))
    scale = raw.amax() * moments.eps**0.5  # what is left of a constant representation is rounding
    return Spectra(raw.cpu(), torch.where(centred > scale * 0.1, centred, 0.0).cpu(), moments.n)


def bias_of(module: nn.Module) -> Tensor | None:
    """The bias a module adds to its product, where it has one of its own."""
    for name in ("bias", "in_proj_bias", "bias_ih_l0"):
        found = getattr(module, name, None)
        if isinstance(found, Tensor):
            return found
    return None


def weight_matrices(model: nn.Module, order: dict[str, int], names: set[str] | None = None) -> list[WeightMatrix]:
    """Every weight matrix of a model with its singular values, in the order of execution.

    A parameter that several modules share (tied embeddings) counts once, where it is used first.

    Args:
        model: the model.
        order: first call of every module, by name.
        names: modules whose weights are wanted; None for all.
    """
    users: dict[int, list[tuple[str, str, nn.Module, Tensor]]] = {}
    for module_name, module in model.named_modules():
        for own, parameter in module.named_parameters(recurse=False):
            if parameter.dim() < 2 or (own != "weight" and sum(size > 1 for size in parameter.shape) < 2):
                continue
            users.setdefault(id(parameter), []).append((module_name or "(model)", own, module, parameter))
    matrices: list[WeightMatrix] = []
    for tied in users.values():
        wanted = [user for user in tied if names is None or user[0] in names]
        if not wanted:
            continue
        chosen = min(wanted, key=lambda user: (user[0] not in order, order.get(user[0], 0)))  # whoever is called first
        others = tuple(_parameter_name(user) for user in tied if user is not chosen)
        place, own, module, parameter = chosen
        bias = bias_of(module) if own == "weight" else None
        matrix = _weight(_parameter_name(chosen), module, parameter, bias, order.get(place))
        matrices.append(dataclasses.replace(matrix, tied=others))
    return sorted(matrices, key=lambda w: (w.at is None, w.at or 0))


def _parameter_name(user: tuple[str, str, nn.Module, Tensor]) -> str:
    return user[1] if user[0] == "(model)" else f"{user[0]}.{user[1]}"


def _weight(name: str, module: nn.Module, parameter: Tensor, bias: Tensor | None, at: int | None) -> WeightMatrix:
    empty = torch.empty(0, dtype=torch.float64)
    shape = tuple(parameter.shape)
    kind = type(module).__name__
    why = (
        "" if parameter.is_floating_point() and not parameter.is_quantized else f"not real numbers ({parameter.dtype})"
    )
    matrix = parameter.detach()
    if not why:
        if isinstance(module, nn.modules.conv._ConvTransposeNd):
            matrix = matrix.transpose(0, 1)
        matrix = matrix.reshape(-1, shape[-1]) if shape[0] == 1 and len(shape) > 2 else matrix.flatten(1)
        if min(matrix.shape) > MOST_WIDTH:
            why = f"{tuple(matrix.shape)}: more than {MOST_WIDTH} singular values would take minutes"
        elif not bool(torch.isfinite(matrix).all()):
            why = "its values are not finite (NaN or infinite)"
    if why:
        return WeightMatrix(name, kind, at, shape, empty, 0.0, None, why)
    exact = matrix.double() if matrix.numel() <= 2**24 else matrix.float()
    if matrix.shape[0] > 4 * matrix.shape[1] or matrix.shape[1] > 4 * matrix.shape[0]:
        small = exact.mT @ exact if matrix.shape[0] > matrix.shape[1] else exact @ exact.mT
        eps = torch.finfo(exact.dtype).eps
        spectrum = spectrum_of_gram(small.double(), eps=_resolution(eps, small.shape[0]))
    else:
        spectrum = torch.linalg.svdvals(exact).double()
    squared = None if bias is None else float(bias.detach().double().square().sum())
    norm_sq = float(spectrum.square().sum()) + (squared or 0.0)
    return WeightMatrix(name, kind, at, shape, spectrum.cpu(), norm_sq, squared)


class Numbers:
    """Writes the numbers of one pass into a table, and keeps the spectra.

    Args:
        plan: the pass, filled.
        result: what the pass said.
        wanted: names of the metrics to write; None for all.
        baseline: value of the `baseline` column.
    """

    def __init__(self, plan: PassPlan, result: PassResult, *, wanted: frozenset[str] | None, baseline: str) -> None:
        self.plan, self.result, self.wanted, self.baseline = plan, result, wanted, baseline
        self.measured = [one for one in plan.sites if one.track is not None and not why_not(one)]
        self.spectra: dict[int, Spectra] = {}
        self.rows: dict[str, dict[str, list[int]]] = {}
        self.cost: dict[int, float] = {}
        self._gradients = {id(one.track): one.gradients for one in plan.sites if one.gradients is not None}

    def position(self, index: int) -> float:
        """Depth of a measured site, from 0 to 1."""
        last = len(self.measured) - 1
        return index / last if last > 0 else 0.0

    def places(self) -> dict[str, tuple[int, float]]:
        """Index and position of every measured site by its label."""
        return {one.site.label: (index, self.position(index)) for index, one in enumerate(self.measured)}

    def write(self, table: MetricTable, progress: Callable[[int, int], None] | None = None) -> None:
        """Every row of every site, measured or not."""
        index = 0
        for done, one in enumerate(self.plan.sites):
            why = why_not(one)
            if why:
                self._row(table, "observations", None, one.site.label, why=why, failed=one.track is not None)
            else:
                self._site(table, one, index)
                index += 1
            if progress is not None:
                progress(done + 1, len(self.plan.sites))

    def _row(
        self, table: MetricTable, metric: str, value: float | int | None, layer: str, *, why: str = "",
        failed: bool = False, **where: Any,
    ) -> None:  # fmt: skip
        if self.wanted is not None and metric not in self.wanted and metric != "observations":
            return
        common: dict[str, Any] = {"layer": layer, "baseline": self.baseline, **where}
        if value is None:
            common["note"] = why
            row = table.add(metric, None, status="failed" if failed else "skipped", **common)
        else:
            row = table.add(metric, float(value), **common)
        self.rows.setdefault(metric, {}).setdefault(layer, []).append(row)

    def _site(self, table: MetricTable, one: MeasuredSite, index: int) -> None:
        assert one.track is not None
        label = one.site.label
        m = one.track.moments.result()
        where: dict[str, Any] = {"index": index, "position": self.position(index), "n": m.n}
        if id(one.track) not in self.spectra:
            self.spectra[id(one.track)] = spectra_of(m)
        s = self.spectra[id(one.track)]
        pooled = "all calls of the module together" if one.site.pooled else ""
        self._row(table, "observations", m.n, label, note=pooled, **where)
        for metric, value in _ranks(s.raw).items():
            note = f"tol={DEFAULT_RANK_TOLERANCE:g}" if metric == "numerical_rank" else ""
            self._row(table, metric, value, label, note=note, **where)
        centred = float(participation_ratio(s.centred))
        self._row(table, "participation_ratio_centred", centred, label, **where)
        self._costs(table, one, m, where)
        norm_sq = m.norm_sq
        share = m.negative_norm_sq / norm_sq if norm_sq > 0 else 0.0
        self._row(table, "negative_fraction", min(share, 1.0), label, **where)
        no_move = one.no_move or "the representation is 0"
        if one.moves and norm_sq > 0:
            move = (one.moved_norm_sq / norm_sq) ** 0.5
            said = "its output minus its own input" if one.site.previous is None else f"from {one.site.previous.label}"
            self._row(table, "relative_move", move, label, note=said, **where)
        else:
            move = None
            self._row(table, "relative_move", None, label, why=no_move, **where)
        rho = None if one.site.at_input else step_of(one.site.call.module)
        if rho is not None:  # a block of a leaky stack
            self._row(table, "layer_step", rho, label, **where)
            self._row(table, "path_speed", None if move is None else move / rho, label, why=no_move, **where)
        self._backward(table, one, where)

    def _costs(self, table: MetricTable, one: MeasuredSite, m: StreamMoments, where: dict[str, Any]) -> None:
        product, label = one.product, one.site.label
        why = one.no_cost
        if product is not None:
            why = product.failed or product.right.failed
        if product is None or one.reader is None or why or (self.wanted is not None and not self.wanted & set(COST)):
            for metric in COST:
                self._row(table, metric, None, label, why=why or "not asked for", failed=product is not None, **where)
            return
        s = product.right.moments.result()
        has_bias = bias_of(one.reader.module) is not None
        gram = s.with_ones() if has_bias else s.gram
        if product.same:
            cross = gram[: m.mean.shape[0]]
        else:
            cross = product.sum.result_with_ones() if has_bias else product.sum.result()
        space = RowSpace.of(gram, eps=_resolution(s.eps, gram.shape[0]))
        norm_sq = torch.tensor(m.norm_sq, dtype=torch.float64, device=gram.device)
        read = f"S: input of {one.reader.name}{' and 1' if has_bias else ''}"
        costs = {gamma0: identity_cost_from_moments(cross, norm_sq, space, gamma0) for gamma0 in GAMMA0S}
        for gamma0, cost in costs.items():
            note = f"gamma0={gamma0:g}; {read}"
            self._row(table, "cost_of_identity", float(cost.stabilised), label, note=note, **where)
        first = costs[GAMMA0S[0]]
        self.cost[id(one)] = float(first.stabilised)
        exact, residual = float(first.exact), float(first.residual)
        self._row(table, "identity_residual", residual, label, note=read, **where)
        if residual < max(1e-4, 10 * max(s.eps, m.eps) ** 0.5):
            self._row(table, "cost_of_identity_exact", exact, label, note=read, **where)
        else:
            why = "infinite: A leaves the row space of S (identity_residual)"
            self._row(table, "cost_of_identity_exact", None, label, why=why, **where)

    def _backward(self, table: MetricTable, one: MeasuredSite, where: dict[str, Any]) -> None:
        gradients = self._gradients.get(id(one.track))
        label = one.site.label
        if gradients is None or not gradients.n:
            why = one.no_gradient or "no gradient reaches it"
            for metric in ("backward_norm", "backward_participation_ratio"):
                self._row(table, metric, None, label, why=why, **where)
            return
        g = gradients.result()
        spectrum = spectrum_of_gram(g.gram, eps=_resolution(g.eps, g.gram.shape[0]))
        self._row(table, "backward_norm", g.norm_sq**0.5 / self.result.weight, label, **where)
        self._row(table, "backward_participation_ratio", float(participation_ratio(spectrum)), label, **where)

    def write_weights(self, table: MetricTable, weights: Sequence[WeightMatrix]) -> None:
        """Every row of every weight matrix."""
        last = max(len(weights) - 1, 1)
        for index, w in enumerate(weights):
            where: dict[str, Any] = {"index": index, "position": index / last}
            if w.why:
                for metric in WEIGHT:
                    self._row(table, metric, None, w.name, why=w.why, **where)
                continue
            note = f"shared with {', '.join(w.tied)}" if w.tied else ""
            for metric, value in _ranks(w.spectrum).items():
                tol = f"tol={DEFAULT_RANK_TOLERANCE:g}" if metric == "numerical_rank" else ""
                said = "; ".join(part for part in (tol, note) if part)
                self._row(table, metric, value, w.name, note=said, **where)
            self._row(table, "weight_norm_sq", w.norm_sq, w.name, note=note, **where)
            self._row(table, "bias_norm_sq", w.bias_norm_sq, w.name, why="no bias", **where)

    def arrays(self, weights: Sequence[WeightMatrix]) -> dict[str, np.ndarray]:
        """Spectra as matrices, one row per site or weight, padded with NaN."""
        prefix = f"baseline/{'spectra'}" if self.baseline else "spectra"
        found = [self.spectra[id(one.track)] for one in self.measured if id(one.track) in self.spectra]
        return {
            f"{prefix}/representation": _padded([s.raw for s in found]),
            f"{prefix}/representation_centred": _padded([s.centred for s in found]),
            f"{prefix}/weight": _padded([w.spectrum for w in weights]),
        }


def why_not(one: MeasuredSite) -> str:
    """Why a site has no numbers, or an empty string."""
    if one.track is None:
        return one.why
    return one.track.failed or ("" if one.track.moments.n else "no observations reached it")


def _padded(rows: Sequence[Tensor]) -> np.ndarray:
    width = max((row.numel() for row in rows), default=0)
    out = np.full((len(rows), width), np.nan)
    for i, row in enumerate(rows):
        out[i, : row.numel()] = row.numpy()
    return out
