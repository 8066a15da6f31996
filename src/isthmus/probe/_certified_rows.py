"""Rows and claims of the certificate of bottleneck structure, and of the tangent kernel in closed form."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from jaxtyping import Float
from torch import Tensor

from isthmus._records import Claim, MetricTable
from isthmus.geometry import NEAR
from isthmus.probe._aligned import Aligned
from isthmus.probe._certified import (
    CERTIFICATE,
    LEVELS,
    OF_CHAINS,
    OF_KERNEL,
    STABILITY,
    Certificates,
    Certified,
    ClosedKernel,
    wanted_of,
)
from isthmus.tangent import largest_stable_rate

Rows = dict[str, dict[str, list[int]]]


class _Writer:
    """Adds the rows that are asked for, and remembers their numbers by metric and layer."""

    def __init__(self, table: MetricTable, wanted: frozenset[str]) -> None:
        self.table, self.wanted = table, wanted
        self.rows: Rows = {}

    def add(self, metric: str, value: float | int | None, layer: str, *, why: str = "", **where: Any) -> None:
        if metric not in self.wanted:
            return
        if value is None:
            row = self.table.skip(metric, layer=layer, **{**where, "note": why})
        else:
            row = self.table.add(metric, value, layer=layer, **where)
        self.rows.setdefault(metric, {}).setdefault(layer, []).append(row)


@dataclasses.dataclass(frozen=True)
class CertifiedRows:
    """What was written of the certificates.

    Attributes:
        claims: in words.
        given: metrics of tangent kernels that are in closed form, so that nothing else has to say why they are missing.
        chains, layers, kernels: chains, their layers, and layers with a kernel in closed form, for the record.
    """

    claims: list[Claim]
    given: frozenset[str]
    chains: list[dict[str, Any]]
    layers: list[dict[str, Any]]
    kernels: list[dict[str, Any]]


def record_certified(
    table: MetricTable, certificates: Certificates, aligned: Aligned, metrics: frozenset[str] | None
) -> CertifiedRows:
    """Rows of the certificate, of the tangent kernel in closed form where no alignment has it, and of the stability."""
    write = _Writer(table, wanted_of(metrics))
    _record_certificates(write, certificates)
    kernel = certificates.kernel
    given: frozenset[str] = frozenset()
    top, n, why = aligned.top, None if aligned.found is None else aligned.found.n, aligned.why_top or aligned.why
    if kernel is not None:
        given = frozenset(OF_KERNEL if aligned.found is None else () if aligned.top is not None else OF_KERNEL[1:])
        _record_kernel(_Writer(table, write.wanted & given), certificates, kernel)
        if top is None:
            top, n, why = kernel.top, kernel.trace.shape[0], kernel.why_top
    _record_stability(write, top, n, why)
    layers = [
        {"name": name, "type": "Linear", "shape": list(w.shape)}
        for one in certificates.chains
        for name, w in zip(one.captured.chain.names, one.captured.weights, strict=True)
    ]
    for index, entry in enumerate(layers):
        entry |= {"index": index, "position": index / max(len(layers) - 1, 1)}
    chains = [
        {"name": one.captured.chain.label, "type": "Linear, ReLU", "index": order,
         "width": len(one.captured.chain.names), "position": order / max(len(certificates.chains) - 1, 1)}
        for order, one in enumerate(certificates.chains)
    ]  # fmt: skip
    claims = [*_certificate_claims(certificates, write.rows), *_stability_claims(certificates, write.rows, top, n)]
    kernels: list[dict[str, Any]] = []
    if kernel is not None and aligned.found is None:  # the layers are those of the one chain
        kept = certificates.chains[0].captured
        sizes = [w.numel() + (0 if b is None else b.numel()) for w, b in zip(kept.weights, kept.biases, strict=True)]
        kernels = [{**entry, "shape": None, "width": size} for entry, size in zip(layers, sizes, strict=True)]
    return CertifiedRows(claims, given, chains, layers, kernels)


def _record_certificates(write: _Writer, certificates: Certificates) -> None:
    total = sum(len(one.captured.chain.names) for one in certificates.chains)
    first = 0
    for order, one in enumerate(certificates.chains):
        _record_layers(write, one, first, max(total - 1, 1))
        _record_chain(write, one, order, max(len(certificates.chains) - 1, 1))
        first += len(one.captured.chain.names)
    for chain in certificates.refused:
        write.add("bottleneck_bound", None, chain.label, why=chain.why)
    if not certificates.chains:
        for metric in CERTIFICATE:
            write.add(metric, None, "model", why=certificates.why)


def _record_layers(write: _Writer, one: Certified, first: int, last: int) -> None:
    kept, names = one.captured, one.captured.chain.names
    near, centred = (one.spectra.near_one(mean=mean).tolist() for mean in (True, False))
    gaps: list[float | None] = [None] * len(names) if one.found is None else one.found.gap[one.best].tolist()
    at, why_not = "" if one.found is None else _at(one), one.why_not_centred
    for ell, name in enumerate(names):
        where: dict[str, Any] = {"index": first + ell, "position": (first + ell) / last}
        tied = "its weights are shared with another module" if name in kept.shared else ""
        write.add(
            "bottleneck_gap", gaps[ell], name, n=one.used - one.kinks, note=_joined(at, tied), why=one.why, **where
        )
        write.add("singular_values_near_one", near[ell], name, note=tied, **where)
        write.add("singular_values_near_one_centred", None if why_not else centred[ell], name, note=tied, why=why_not,
                  n=kept.inputs.shape[0], **where)  # fmt: skip
        if ell + 1 < len(names):
            said = _joined(f"neurons between it and {names[ell + 1]}", tied)
            write.add(
                "neuron_balance", one.balance[ell], name, note=said, why="all weights of its neurons are 0", **where
            )


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def _at(one: Certified) -> str:
    """At which inputs, and of how many."""
    assert one.found is not None
    tried = one.used - one.kinks
    kept = one.captured
    what = "positions" if kept.positions else "samples"
    some = f", evenly spaced among {kept.seen}" if one.used < kept.seen else ""
    kinks = f"; {one.kinks} on a kink of a ReLU left out" if one.kinks else ""
    return f"k={int(one.found.rank[one.best])}; best of {tried} {what}{some}{kinks}"


def _record_chain(write: _Writer, one: Certified, order: int, last: int) -> None:
    label, found = one.captured.chain.label, one.found
    place: dict[str, Any] = {"position": order / last}
    if found is None:
        for metric in OF_CHAINS:
            write.add(metric, None, label, why=one.why, **place)
        return
    best, said, tied = one.best, _at(one), one.captured.shared
    shared = f"weights shared with another module count at each use: {', '.join(tied[:3])}" if tied else ""
    where: dict[str, Any] = {**place, "n": one.used - one.kinks}
    note = _joined(said, shared)
    depth = len(one.captured.chain.names)
    write.add("bottleneck_gap", float(found.gap[best].sum()), label, note=_joined("sum over layers", note), **where)
    write.add("bottleneck_bound", float(found.bound[best]), label, note=note, **where)
    write.add("bottleneck_bound_median", float(found.bound.quantile(0.5)), label, note=shared, **where)
    write.add("certified_rank", int(found.rank[best]), label, note=note, **where)
    write.add("bottleneck_tightness", float(found.tightness[best]), label, note=note, **where)
    for metric, shares in (
        ("bottleneck_share_within", found.share_within(LEVELS)),
        ("bottleneck_share_certified", found.share_certified(LEVELS)),
    ):
        for level, share in zip(LEVELS, shares[best].tolist(), strict=True):
            write.add(metric, share, label, note=f"level={level:g}; {round(share * depth)} of {depth} layers", **where)
    write.add("norm_excess", float(found.excess[best]), label, note=note, **where)
    write.add("regularity_bound", _regularity(one), label, note=note, **where)


def _regularity(one: Certified) -> float:
    """`2 Σ_{i≤k} log s_i(Jf)`."""
    assert one.found is not None
    k = int(one.found.rank[one.best])
    return 2 * float(one.found.log_singular_values[one.best, :k].sum())


def _record_kernel(write: _Writer, certificates: Certificates, kernel: ClosedKernel) -> None:
    """Rows of the tangent kernel in closed form (docs/theory 3.4)."""
    (one,) = [c for c in certificates.chains if c.kernel is kernel]
    names, n = one.captured.chain.names, kernel.trace.shape[0]
    for ell, name in enumerate(names):
        where: dict[str, Any] = {"index": ell, "position": ell / max(len(names) - 1, 1), "n": n, "note": "closed form"}
        mean, error = _mean(kernel.trace[:, ell])
        write.add("tangent_trace", mean, name, stderr=error, **where)
    total, error = _mean(kernel.trace.sum(1))
    said = f"closed form; sum over layers, {total / len(names):.4g} for each of {len(names)}"
    write.add("tangent_trace", total, "model", stderr=error, n=n, note=said)
    write.add("tangent_top_eigenvalue", kernel.top, "model", n=n, note="closed form", why=kernel.why_top)


def _mean(values: Float[Tensor, " n"]) -> tuple[float, float | None]:
    n = values.numel()
    return float(values.mean()), float(values.std()) / n**0.5 if n > 1 else None


def _record_stability(write: _Writer, top: float | None, n: int | None, why: str) -> None:
    """Sharpness `2 λ_max(Θ)/n` and the largest stable learning rate, of `λ_max/n` or why there is none."""
    loss = "loss: squared error summed over outputs, mean over these samples"
    rate = None if top is None else largest_stable_rate(max(top, 0.0), 1)
    zero = rate is not None and not math.isfinite(rate)
    write.add("sharpness", None if top is None else 2 * top, "model", n=n, note=loss, why=why)
    write.add("largest_stable_rate", None if zero else rate, "model", n=n, note=loss,
              why="the tangent kernel is 0, and every rate is stable" if zero else why)  # fmt: skip


def _certificate_claims(certificates: Certificates, rows: Rows) -> list[Claim]:
    """What the certificate says in words of the chain that is nearest to bottleneck structure."""
    judged = [one for one in certificates.chains if one.found is not None]
    if not judged or "bottleneck_bound" not in rows:
        return []
    one = max(judged, key=lambda c: (_within(c), -_per_layer(c)))
    text, finding = _sentence(one)
    if len(judged) > 1:
        text += f" Of {len(judged)} chains of linear layers joined by ReLU it is the nearest to it."
    assert one.found is not None
    found, best, label = one.found, one.best, one.captured.chain.label
    behind = [rows.get(m, {}).get(label, []) for m in OF_CHAINS]
    behind += [rows.get("bottleneck_gap", {}).get(name, []) for name in (label, *one.captured.chain.names)]
    values: dict[str, float | int | str | None] = {
        "chain": label, "layers": len(one.captured.chain.names), "rank": int(found.rank[best]),
        "bound": float(found.bound[best]), "within": _within(one), "tightness": float(found.tightness[best]),
        "excess": float(found.excess[best]), "regularity": _regularity(one),
    }  # fmt: skip
    level = "finding" if finding else "none"
    return [Claim("certificate", text, level, tuple(row for part in behind for row in part), values)]


def _within(one: Certified) -> float:
    assert one.found is not None
    return float(one.found.share_within([NEAR])[one.best, 0])


def _per_layer(one: Certified) -> float:
    assert one.found is not None
    return float(one.found.bound_per_layer[one.best])


def _sentence(one: Certified) -> tuple[str, bool]:
    """What one chain shows, and whether it is bottleneck structure: most layers carry `k ≥ 1` dimensions."""
    assert one.found is not None
    found, best, names = one.found, one.best, one.captured.chain.names
    depth, k = len(names), int(found.rank[best])
    within = round(_within(one) * depth)
    certified = round(float(found.share_certified([NEAR])[best, 0]) * depth)
    bound, tried = float(found.bound[best]), one.used - one.kinks
    where = f"{names[0]} to {names[-1]}"
    at = (
        f"at the best of {tried} {'positions' if one.captured.positions else 'samples'}"
        if tried > 1
        else "at one input"
    )
    if k == 0:
        why = ("the network is dead there, its Jacobian 0" if int(found.jacobian_rank[best]) == 0 else
               "no singular value of the Jacobian is above e^(−L/2)")  # fmt: skip
        return (f"Bottleneck certificate of {where} ({depth} layers): nothing is certified. The smallest bound, "
                f"Δ = ‖θ‖² = {bound:.3g} {at}, has k = 0: {why}."), False  # fmt: skip
    plural = "dimension" if k == 1 else "dimensions"
    sums = f"‖θ‖² − kL = {float(found.excess[best]):.3g} against 2 Σ log s_i = {_regularity(one):.3g}, {at}"
    if 2 * within > depth:
        return (f"Layers {where} carry k = {k} {plural}: {within} of {depth} layers lie within {NEAR:g} of it (√gap), "
                f"and the bound alone certifies {certified}; tightness {float(found.tightness[best]):.2g}; "
                f"{sums}."), True  # fmt: skip
    each = bound / depth
    vouched = "no layer" if certified == 0 else f"{certified} of {depth} layers"
    return (f"Bottleneck certificate of {where} ({depth} layers): no bottleneck structure. The smallest bound, "
            f"Δ = {bound:.3g} with k = {k}, is {each:.3g} for each layer, where {NEAR**2:g} would do: it certifies "
            f"{vouched}, and {within} of {depth} lie within {NEAR:g} of carrying {k} {plural}; {sums}. Weights that "
            "were not trained long with weight decay look like this."), False  # fmt: skip


def _stability_claims(certificates: Certificates, rows: Rows, top: float | None, n: int | None) -> list[Claim]:
    """How sharp the loss is, of a network that is one chain."""
    whole = any(one.captured.whole for one in certificates.chains)
    if not whole or top is None or "sharpness" not in rows or top <= 0:
        return []
    text = (f"Sharpness: (2/N) λ_max(Θ) = {2 * top:.3g} on {n} samples: gradient descent on their squared error, "
            "summed over outputs, is stable below a learning rate of about "
            f"{largest_stable_rate(top, 1):.2g}.")  # fmt: skip
    behind = [row for m in (*STABILITY, "tangent_top_eigenvalue") for row in rows.get(m, {}).get("model", [])]
    return [Claim("sharpness", text, "none", tuple(behind), {"sharpness": 2 * top, "n": n})]
