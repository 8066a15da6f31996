"""What a measured model says in words: where it is narrow, which layers are idle or overworked, how sure that is."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from isthmus._records import Claim
from isthmus.geometry import Node, Passage, WeightNode, find_passage, participation_ratio
from isthmus.probe._numbers import Numbers, WeightMatrix
from isthmus.probe._plan import MeasuredSite
from isthmus.tangent import MapJacobian

IDLE = 0.05
"""A block that moves the representation by less than 5% of its norm is called idle."""

OVERWORKED = 3.0
"""A block that moves it by at least three times the median of all blocks (at least four) is called overworked."""

FEW_OBSERVATIONS = 10
CONSTANT = 1e-4
_SHOWN = 6

Rows = Mapping[str, Mapping[str, Sequence[int]]]


def _names(labels: Sequence[str]) -> str:
    shown = ", ".join(labels[:_SHOWN])
    return shown + (f" and {len(labels) - _SHOWN} more" if len(labels) > _SHOWN else "")


def _behind(rows: Rows, labels: Sequence[str], *metrics: str) -> tuple[int, ...]:
    return tuple(row for m in metrics for label in labels for row in rows.get(m, {}).get(label, ()))


def passage_of(numbers: Numbers, weights: Sequence[WeightMatrix], jacobian: MapJacobian | None) -> Passage:
    """The narrow passage of a measured model (`find_passage`)."""
    nodes = [_node(one, numbers) for one in numbers.measured]
    matrices = [
        WeightNode(w.name, w.at, (w.shape[0], _columns(w.shape)), w.spectrum)
        for w in weights
        if w.at is not None and not w.why and w.spectrum.numel()
    ]
    stretched = None if jacobian is None else jacobian.log_singular.mean.cpu()
    return find_passage(nodes, matrices, stretched)


def _columns(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape[1:]:
        count *= size
    return count


def _node(one: MeasuredSite, numbers: Numbers) -> Node:
    assert one.track is not None
    s = numbers.spectra[id(one.track)]
    given = one.site.kind == "input" and one is numbers.measured[0]
    return Node(one.site.label, one.site.at, one.track.width, s.centred, s.n, float(s.raw.amax()), given)


def model_verdict(
    numbers: Numbers, weights: Sequence[WeightMatrix], jacobian: MapJacobian | None, baseline: Numbers | None
) -> list[Claim]:
    """The claims of one measured model, most important first.

    Args:
        numbers: of the model, written.
        weights: its weight matrices.
        jacobian: of the whole map, where there is one.
        baseline: numbers of the same architecture, freshly initialised.
    """
    passage = passage_of(numbers, weights, jacobian)
    return [
        *_broken(numbers),
        _bottleneck(passage, numbers),
        *_evidence(passage, numbers),
        _narrowest(numbers, baseline),
        *_blocks(numbers),
        *_constant(numbers),
        *_sample(numbers),
        *_advice(passage, numbers),
    ]


def _broken(numbers: Numbers) -> list[Claim]:
    name = numbers.result.first_bad
    if not name:
        return []
    text = f"{name} is the first module whose values are not finite (NaN or infinite); nothing is said of what follows."
    return [Claim("not_finite", text, "caution", _behind(numbers.rows, [name], "observations"))]


def _span(passage: Passage, numbers: Numbers) -> list[str]:
    return [one.site.label for one in numbers.measured[passage.first : passage.last + 1]]


def _bottleneck(passage: Passage, numbers: Numbers) -> Claim:
    if not passage.found:
        every = [o.site.label for o in numbers.measured]
        behind = _behind(numbers.rows, every, "participation_ratio_centred")
        return Claim("bottleneck", f"No bottleneck: {passage.reason}.", "none", behind)
    labels = _span(passage, numbers)
    where = labels[0] if len(labels) == 1 else f"{labels[0]} to {labels[-1]} ({len(labels)} layers)"
    plural = "dimension" if passage.k == 1 else "dimensions"
    text = f"Keeps {passage.k} {plural} (beside the mean) of {passage.before}, at {where}"
    if passage.built and not passage.weights:
        text += f"; it is built so: {passage.built} has {passage.k} rows or columns"
    values = {"rank": passage.k, "before": passage.before, "first": labels[0], "last": labels[-1], "gap": passage.gap,
              "evidence": passage.evidence}  # fmt: skip
    behind = _behind(numbers.rows, labels, "participation_ratio_centred", "effective_rank", "cost_of_identity")
    return Claim("bottleneck", text + ".", "finding", behind, values)


def _evidence(passage: Passage, numbers: Numbers) -> list[Claim]:
    if not passage.found:
        return []
    labels = _span(passage, numbers)
    parts = [f"the representation breaks off after {passage.k} by a factor of up to {_factor(passage.gap)}"]
    if passage.weights:
        parts.append(f"so do {len(passage.weights)} of {passage.counted} weight matrices there, more than chance would")
    elif passage.built:
        parts.append(f"{passage.built} is no wider")
    else:
        parts.append(f"none of the {passage.counted} weight matrices there does")
    if passage.jacobian is not None:
        parts.append(f"so does the input–output Jacobian, by {_factor(passage.jacobian)}")
    costs = [numbers.cost[id(o)] for o in numbers.measured[passage.first : passage.last + 1] if id(o) in numbers.cost]
    if costs:
        parts.append(f"least cost of identity there {min(costs):.3g} (the mean counts in it)")
    text = f"{passage.evidence} of 3 kinds of evidence agree: {'; '.join(parts)}."
    values = {"evidence": passage.evidence, "gap": passage.gap, "weights": len(passage.weights),
              "jacobian": passage.jacobian}  # fmt: skip
    behind = (
        *_behind(numbers.rows, labels, "cost_of_identity"),
        *_behind(numbers.rows, passage.weights, "numerical_rank", "stable_rank"),
        *_behind(numbers.rows, ["model"], "jacobian_log_singular_value"),
    )
    level = "finding" if passage.evidence == 3 else "caution"
    return [Claim("agreement", text, level, behind, values)]


def _factor(ratio: float) -> str:
    return "more than 1000" if ratio > 1000 else f"{ratio:.2g}"


def _narrowest(numbers: Numbers, baseline: Numbers | None) -> Claim:
    widths = [o.track.width for o in numbers.measured if o.track is not None]
    wide = [o for o in numbers.measured if o.track is not None and 2 * o.track.width >= statistics.median(widths)]
    sizes = {o.site.label: _centred(o, numbers) for o in wide}  # a head of few outputs is narrow by its task
    if not sizes:
        return Claim("narrowest", "Nothing was measured.", "none")
    label = min(sizes, key=lambda name: sizes[name])
    width = next(o.track.width for o in numbers.measured if o.site.label == label and o.track is not None)
    text = f"Narrowest layer: {label}, with {sizes[label]:.2g} of {width} dimensions (centred participation ratio)"
    values: dict[str, float | int | str | None] = {"layer": label, "value": sizes[label], "width": width}
    if baseline is not None:
        fresh = {o.site.label: _centred(o, baseline) for o in baseline.measured}
        if label in fresh:
            text += f"; freshly initialised it has {fresh[label]:.2g}"
            values["fresh"] = fresh[label]
    return Claim(
        "narrowest", text + ".", "finding", _behind(numbers.rows, [label], "participation_ratio_centred"), values
    )


def _centred(one: MeasuredSite, numbers: Numbers) -> float:
    return float(participation_ratio(numbers.spectra[id(one.track)].centred))


def moves_of(numbers: Numbers) -> dict[str, float]:
    """Relative move of every block that has one."""
    found: dict[str, float] = {}
    for one in numbers.measured:
        if one.moves and one.site.kind == "block" and one.track is not None:
            norm_sq = one.track.moments.result().norm_sq
            if norm_sq > 0:
                found[one.site.label] = (one.moved_norm_sq / norm_sq) ** 0.5
    return found


def _blocks(numbers: Numbers) -> list[Claim]:
    moves = moves_of(numbers)
    if len(moves) < 2:
        why = "no two blocks keep the shape of their input" if numbers.measured else "nothing was measured"
        return [Claim("idle", f"Idle layers: not judged ({why}).", "none")]
    behind = _behind(numbers.rows, list(moves), "relative_move")
    median = statistics.median(moves.values())
    idle = [name for name, move in moves.items() if move < IDLE]
    busy = [name for name, move in moves.items() if len(moves) >= 4 and move >= OVERWORKED * median and move >= IDLE]
    values: dict[str, float | int | str | None] = {"median": median, "least": min(moves.values()),
                                                   "most": max(moves.values())}  # fmt: skip
    low, high = min(moves, key=lambda n: moves[n]), max(moves, key=lambda n: moves[n])
    span = f"blocks move it by {moves[low]:.2g} ({low}) to {moves[high]:.2g} ({high}) of its norm"
    if idle:
        text = f"Idle layers: {_names(idle)} move the representation by less than {IDLE:.0%} of its norm ({span})."
    else:
        text = f"No idle layers: {span}."
    claims = [Claim("idle", text, "finding" if idle else "none", behind, {**values, "count": len(idle)})]
    if busy:
        text = f"Overworked layers: {_names(busy)} move it at least {OVERWORKED:g} times as far as the median block."
        claims.append(Claim("overworked", text, "finding", behind, {**values, "count": len(busy)}))
    return claims


def _constant(numbers: Numbers) -> list[Claim]:
    flat: list[str] = []
    for one in numbers.measured:
        assert one.track is not None
        m = one.track.moments.result()
        spread = float(m.centred_gram.diagonal().sum())
        if m.norm_sq > 0 and spread < CONSTANT * m.norm_sq:
            flat.append(one.site.label)
    if not flat:
        return []
    text = f"Almost constant: at {_names(flat)} the mean holds more than {1 - CONSTANT:.2%} of the squared norm."
    return [Claim("constant", text, "caution", _behind(numbers.rows, flat, "stable_rank"), {"count": len(flat)})]


def _sample(numbers: Numbers) -> list[Claim]:
    few = [o for o in numbers.measured if o.track is not None and o.track.moments.n < FEW_OBSERVATIONS * o.track.width]
    if not few:
        return []
    worst = min(few, key=lambda o: o.track.moments.n / o.track.width if o.track is not None else 0)
    assert worst.track is not None
    seen = f"{worst.site.label}: {worst.track.moments.n} for {worst.track.width}"
    text = (
        f"{len(few)} layers were measured on fewer than {FEW_OBSERVATIONS} observations per unit of width ({seen}): "
        "their ranks are limited by the sample; give more samples."
    )
    return [Claim("sample", text, "caution", _behind(numbers.rows, [o.site.label for o in few], "observations"),
                  {"layers": len(few), "observations": worst.track.moments.n, "width": worst.track.width})]  # fmt: skip


def _advice(passage: Passage, numbers: Numbers) -> list[Claim]:
    moves = moves_of(numbers)
    advice: list[str] = []
    if len(moves) >= 2 and min(moves.values()) < IDLE:
        advice.append("leave an idle layer out and compare the loss: fewer layers may do")
    if len(moves) >= 4 and max(moves.values()) >= OVERWORKED * statistics.median(moves.values()):
        advice.append("give the overworked part more layers, or smaller steps")
    if passage.found and not passage.built:
        advice.append(f"a width of a few times {passage.k} may be enough inside the bottleneck")
    if passage.found and passage.evidence < 3:
        advice.append("measure on other samples to see whether the number of dimensions stays")
    if not advice:
        return []
    text = "What to try: " + "; ".join(advice) + "."
    return [Claim("advice", text, "none", _behind(numbers.rows, list(moves), "relative_move"))]
