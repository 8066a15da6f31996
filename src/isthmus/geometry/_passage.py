"""The narrow passage of any model: runs of layers whose spectra break off at one number, and what confirms it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.geometry._dimension_gap import Gap, random_gap, widest_gap
from isthmus.geometry._ranks import numerical_rank

REPRESENTATION_GAP = 1.5
"""A representation counts as k-dimensional where `s_k / s_{k+1}` of the centred one is at least this."""

JACOBIAN_GAP = 2.0
LEAD = 2.0
"""A break of the Jacobian counts if it is twice as wide (in logarithms) as the second widest: the singular values of
a deep random network spread evenly in logarithms, and some break is always the widest."""

RESOLVED = 1e-3
"""What is below a thousandth of the whole representation's size is not judged: float32 activations do not hold it."""

NARROWER = 0.8


@dataclasses.dataclass(frozen=True)
class Node:
    """A representation as the search sees it.

    Attributes:
        label: its name.
        at: when it is there.
        width: number of features.
        spectrum: singular values of the centred representation.
        n: observations.
        scale: largest singular value with the mean.
        given: whether it is what comes in, and not what the network made.
    """

    label: str
    at: float | int
    width: int
    spectrum: Float[Tensor, " k"]
    n: int
    scale: float | int
    given: bool = False


@dataclasses.dataclass(frozen=True)
class WeightNode:
    """A weight matrix as the search sees it: its name, when its module is first called, and its singular values."""

    name: str
    at: float | int
    shape: tuple[int, int]
    spectrum: Float[Tensor, " k"]


@dataclasses.dataclass(frozen=True)
class Passage:
    """A run of neighbouring layers whose spectra break off at `k`.

    Attributes:
        found: whether it is a bottleneck: narrower than what comes before, and confirmed; `reason` says why not.
        reason: why not.
        k: number of dimensions.
        first, last: indices of the run in the nodes.
        before: largest numerical rank (1%) of a representation up to the run.
        gap: largest `s_k / s_{k+1}` in the run.
        weights: names of weight matrices in and beside the run that break off at `k` more than chance would.
        counted: number of weight matrices in and beside the run.
        jacobian: `s_k / s_{k+1}` of the Jacobian if it breaks off there; None if not, or if there is none.
        built: name of a weight matrix in the run that has no more than `k` rows or columns.
    """

    found: bool
    reason: str
    k: int = 0
    first: int = 0
    last: int = 0
    before: int = 0
    gap: float = 1.0
    weights: tuple[str, ...] = ()
    counted: int = 0
    jacobian: float | None = None
    built: str = ""

    @property
    def evidence(self) -> int:
        """How many of the kinds of evidence agree: representation, weights, Jacobian."""
        return 1 + bool(self.weights or self.built) + (self.jacobian is not None)


def _gap(node: Node) -> Gap:
    half = min(node.width, node.n - 1) // 2
    return widest_gap(node.spectrum, most=max(half, 1) if node.width > 1 else 0, floor=RESOLVED * node.scale)


def _runs(gaps: Sequence[Gap]) -> list[tuple[int, int, int, float]]:
    """`(k, first, last, score)` of neighbouring nodes that break off at the same k, best first."""
    found: list[tuple[int, int, int, float]] = []
    for clear, group in itertools.groupby(enumerate(gaps), key=lambda p: p[1].k * (p[1].ratio >= REPRESENTATION_GAP)):
        members = list(group)
        if clear:
            score = sum(min(gap.ratio, 100.0) for _, gap in members)
            found.append((clear, members[0][0], members[-1][0], score))
    return sorted(found, key=lambda run: -run[3])


def find_passage(
    nodes: Sequence[Node], weights: Sequence[WeightNode], jacobian: Float[Tensor, " k"] | None = None
) -> Passage:
    """Find the run of layers with a clear number of dimensions, and confirm it by what does not depend on it.

    A representation alone proves nothing: deep random networks contract towards few directions, too, and their
    Jacobians spread. So a run counts as a bottleneck only if it is narrower than what comes before it (by a fifth),
    does not begin with what is given to the network, and a weight matrix in or beside it breaks off at the same `k`
    by more than 999 of 1000 random matrices would (`random_gap`), or one before its end is built with `k` rows or
    columns. A Jacobian that breaks off at `k`, by a factor 2 and twice as widely as anywhere else, is recorded as
    further evidence; alone it is not enough (it was the whole case in 4 of 100 random networks).

    Args:
        nodes: representations in the order of execution.
        weights: weight matrices.
        jacobian: sample means of the Jacobian's log singular values.
    """
    if len(nodes) < 2:
        return Passage(False, "fewer than two representations were measured")
    gaps = [_gap(node) for node in nodes]
    runs = _runs(gaps)
    rejected = ""
    jacobian_gap = _jacobian_gap(jacobian)
    for k, first, last, _ in runs:
        before = max(int(numerical_rank(node.spectrum)) for node in nodes[: first + 1])
        start = nodes[first - 1].at if first else -1.0
        end = nodes[last + 1].at if last + 1 < len(nodes) else float("inf")
        beside = [w for w in weights if start <= w.at <= end]
        broken = [(w, widest_gap(w.spectrum)) for w in beside]
        confirming = [w.name for w, gap in broken if gap.k == k and gap.ratio > random_gap(*w.shape)]
        built = [w.name for w in beside if min(w.shape) == k and w.at <= nodes[last].at]  # it narrows what follows
        stretched = jacobian_gap if jacobian_gap is not None and jacobian_gap.k == k else None
        clear = stretched is not None and stretched.ratio >= JACOBIAN_GAP and stretched.lead >= LEAD
        confirmed = stretched.ratio if stretched is not None and clear else None
        gap = max(g.ratio for g in gaps[first : last + 1])
        passage = Passage(
            True, "", k, first, last, before, gap, tuple(confirming), len(beside), confirmed, built[0] if built else ""
        )  # fmt: skip
        if k > NARROWER * before:
            rejected = rejected or f"the clearest break is after {k} dimensions, of {before} that came in"
        elif nodes[first].given:
            rejected = rejected or f"{nodes[first].label} breaks off at {k} before the network has done anything"
        elif confirming or built:
            return passage
        else:
            where = nodes[first].label + (f" to {nodes[last].label}" if last > first else "")
            doubt = "which no weight matrix confirms" + ("" if confirmed is None else ", though the Jacobian does")
            rejected = rejected or f"{where} breaks off at {k}, {doubt}"
    return Passage(False, rejected or "no representation breaks off at a clear number of dimensions")


def _jacobian_gap(jacobian: Tensor | None) -> Gap | None:
    if jacobian is None or jacobian.numel() < 2 or not bool(torch.isfinite(jacobian[0])):
        return None
    return widest_gap((jacobian - jacobian[0]).exp(), most=jacobian.numel() - 1)
