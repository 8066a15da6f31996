"""Which pairs of samples are tracked: those asked for, checked, or a few of every kind."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from isthmus._errors import InputError
from isthmus._random import torch_generator
from isthmus.geometry import pair_distances, squared_distances
from isthmus.probe._batches import Batch
from isthmus.probe._pairs_model import rows_taken
from isthmus.probe._tensors import tensors_in

Pair = tuple[int, int]

_WHOLE = (torch.int16, torch.int32, torch.int64)
_QUARTER = 0.25
_MOST = 512
"""Samples that pairs are chosen among, so that their number, which is squared, stays small."""


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What the model is given, in a row for each sample.

    Attributes:
        numbers: real inputs and images of bytes, flattened.
        tokens: whole numbers, each of which counts as a unit vector of its own.
    """

    numbers: Float[Tensor, "n width"]
    tokens: Int[Tensor, "n positions"]

    @classmethod
    def of(cls, batch: Batch) -> Inputs:
        """The inputs in a batch, without its targets and masks."""
        named = [*((str(i), value) for i, value in enumerate(batch.args)), *batch.kwargs.items()]
        found = [t for name, value in named if "mask" not in name for t in tensors_in(value) if t is not batch.targets]
        rows = [t.reshape(batch.size, -1) for t in found if t.dim() and t.shape[0] == batch.size]
        numbers = [t.double() + 0.0 for t in rows if t.dtype not in _WHOLE]  # −0 is 0
        tokens = [t.long() for t in rows if t.dtype in _WHOLE]
        nothing = torch.empty(batch.size, 0)
        return cls(torch.cat([nothing.double(), *numbers], 1), torch.cat([nothing.long(), *tokens], 1))

    def repeats(self) -> Bool[Tensor, " n"]:
        """Samples that are identical to an earlier one."""
        seen: set[bytes] = set()
        again: list[bool] = []
        for numbers, tokens in zip(self.numbers, self.tokens, strict=True):
            row = numbers.numpy().tobytes() + tokens.numpy().tobytes()
            again.append(row in seen)
            seen.add(row)
        return torch.tensor(again)

    def taken(self, rows: Sequence[int]) -> Inputs:
        """Some of the samples."""
        return Inputs(self.numbers[list(rows)], self.tokens[list(rows)])

    def distances(self) -> Float[Tensor, "n n"]:
        """All squared distances; two different tokens are 2 apart."""
        return squared_distances(self.numbers) + 2 * self._differing()

    def roughly(self) -> Float[Tensor, "n n"]:
        """The same fast and in single precision, to sort pairs by."""
        rows = (self.numbers - self.numbers.mean(0)).float()
        return torch.cdist(rows, rows).square().double() + 2 * self._differing()

    def _differing(self) -> Float[Tensor, "n n"]:
        tokens = self.tokens.double()
        return torch.cdist(tokens, tokens, p=0.0)


@dataclasses.dataclass(frozen=True)
class TrackedPair:
    """Two samples, by the order in which they were given.

    Attributes:
        ends: numbers of the two samples.
        kind: why they were chosen, in words.
    """

    ends: Pair
    kind: str

    @property
    def name(self) -> str:
        """As in the column `pair`."""
        return f"{self.ends[0]}-{self.ends[1]}"


def asked_pairs(pairs: Any) -> int | tuple[Pair, ...]:
    """A number of pairs, or the pairs themselves.

    Raises:
        InputError: neither, no pairs, a sample beside itself, or one pair twice.
    """
    expected = "a number of pairs, or pairs of sample numbers such as [(0, 1), (0, 2)]"
    if not isinstance(pairs, Iterable) or isinstance(pairs, (str, bytes)):
        number = -1 if isinstance(pairs, bool) else _whole(pairs)
        if number < 1:
            raise InputError("pairs", pairs, expected)
        return number
    found: list[Pair] = []
    given: list[Any] = list(pairs)
    for one in given:
        ends = [_whole(end) for end in one] if isinstance(one, Iterable) and not isinstance(one, str) else []
        if len(ends) != 2 or min(ends) < 0:
            raise InputError("pairs", repr(one), "two sample numbers, from 0")
        if ends[0] == ends[1]:
            raise InputError("pairs", repr(one), "two different samples")
        if (ends[0], ends[1]) in found or (ends[1], ends[0]) in found:
            raise InputError("pairs", repr(one), "every pair once")
        found.append((ends[0], ends[1]))
    if not found:
        raise InputError("pairs", given, expected)
    return tuple(found)


def _whole(value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        return -1


def tracked_pairs(asked: int | Sequence[Pair], batch: Batch, seed: int) -> tuple[list[TrackedPair], list[str]]:
    """The pairs asked for, or as many chosen (`choose_pairs`); of more than 512 samples among 512 that are drawn.

    Only the samples that come into question are looked at, for all of them may be far more.

    Args:
        asked: what `asked_pairs` found.
        batch: all samples, with their targets.
        seed: of the choice.

    Returns:
        The pairs, and what is to be said of the choice.

    Raises:
        InputError: a pair of samples that are not there or do not differ, or no two samples that do.
    """
    n, notes = batch.size, list[str]()
    if not isinstance(asked, int):
        wrong = next((pair for pair in asked if max(pair) >= n), None)
        if wrong is not None:
            raise InputError("pairs", repr(wrong), f"two samples, from 0 to {n - 1}")
        rows = sorted({end for pair in asked for end in pair})
    elif n > _MOST:
        drawn = torch.randperm(n, generator=torch_generator(seed, "pairs"))[:_MOST]
        rows = drawn.sort().values.tolist()
        notes.append(f"pairs were chosen among {_MOST} of the {n} samples, drawn by the seed")
    else:
        rows = list(range(n))
    some = rows_taken(batch, rows)
    assert some.targets is not None
    inputs = Inputs.of(some)
    if not isinstance(asked, int):
        place = {sample: row for row, sample in enumerate(rows)}
        return [_given(pair, (place[pair[0]], place[pair[1]]), inputs, some.targets) for pair in asked], notes
    chosen, said_of = choose_pairs(asked, inputs, some.targets, seed)
    found = [TrackedPair((rows[one.ends[0]], rows[one.ends[1]]), one.kind) for one in chosen]
    return found, [*notes, *said_of]


def _given(pair: Pair, rows: Pair, inputs: Inputs, targets: Tensor) -> TrackedPair:
    if bool(inputs.taken(rows).repeats()[1]):
        raise InputError("pairs", repr(pair), "two samples whose inputs differ",
                         "identical inputs cannot be told apart")  # fmt: skip
    return TrackedPair(pair, _joined("as given", _side(classes_of(targets), rows)))


def classes_of(targets: Tensor) -> Tensor | None:
    """Class numbers, where the targets are such."""
    return targets.reshape(-1) if not targets.is_floating_point() and targets[:1].numel() == 1 else None


def choose_pairs(count: int, inputs: Inputs, targets: Tensor, seed: int) -> tuple[list[TrackedPair], list[str]]:
    """Pairs of every kind, as evenly as there are: within and across classes (or near and far in target), near and far
    in input; samples that no pair has yet come first.

    Args:
        count: number of pairs.
        inputs: of all samples.
        targets: of all samples.
        seed: of the choice.

    Returns:
        The pairs, and what is to be said of the choice.

    Raises:
        InputError: no two samples differ in their inputs.
    """
    n, generator = len(targets), torch_generator(seed, "pairs")
    repeats = inputs.repeats()
    first, second = torch.triu_indices(n, n, 1)
    usable = ~(repeats[first] | repeats[second])
    first, second = first[usable], second[usable]
    notes = [f"{int(repeats.sum())} of {n} samples repeat the inputs of an earlier one and were left out"]
    if not len(first):
        raise InputError("samples", f"{n - int(repeats.sum())} with inputs that differ", "at least 2 to make a pair of")
    order = torch.randperm(len(first), generator=generator)
    first, second = first[order], second[order]
    ends = [(int(i), int(j)) for i, j in zip(first, second, strict=True)]
    groups = _groups(inputs.roughly()[first, second], targets, first, second)
    chosen: dict[Pair, str] = {}
    used: set[int] = set()
    waiting = [(kind, _fresh_first([ends[k] for k in members], chosen, used)) for kind, members in groups]
    while len(chosen) < count and waiting:
        for one in list(waiting):
            kind, rest = one
            pair = next(rest, None) if len(chosen) < count else None
            if pair is not None:
                chosen[pair] = kind
                used.update(pair)
            elif len(chosen) < count:
                waiting.remove(one)
    rest = _fresh_first(ends, chosen, used)
    classes = classes_of(targets)
    while len(chosen) < count and (pair := next(rest, None)) is not None:
        chosen[pair] = _joined("between near and far", _side(classes, pair))
        used.update(pair)
    if len(chosen) < count:
        notes.append(f"{len(chosen)} pairs were tracked: there are no more of {n} samples")
    return [TrackedPair(pair, kind) for pair, kind in chosen.items()], notes if repeats.any() else notes[1:]


def _groups(distances: Tensor, targets: Tensor, first: Tensor, second: Tensor) -> list[tuple[str, list[int]]]:
    """Members of every kind: the nearest and the farthest quarter of each side of the targets."""
    classes = classes_of(targets)
    if classes is not None:
        same = classes[first] == classes[second]
        sides = {"across classes": ~same, "within a class": same}
    else:
        rows = targets.reshape(len(targets), -1).float()
        apart = torch.cdist(rows, rows)[first, second]
        sides = {
            "targets far": apart >= apart.quantile(1 - _QUARTER),
            "targets near": apart <= apart.quantile(_QUARTER),
        }
    groups: list[tuple[str, list[int]]] = []
    for side, inside in sides.items():
        members = inside.nonzero()[:, 0]
        by_distance = members[distances[members].argsort(stable=True)]
        some = math.ceil(_QUARTER * len(members))
        near, far = by_distance[:some], by_distance[max(some, len(members) - some) :]
        for name, part in (("near", near), ("far", far)):
            groups.append((f"{name}, {side}", sorted(part.tolist())))  # in the order drawn, not by distance
    return groups


def _fresh_first(ends: Sequence[Pair], chosen: dict[Pair, str], used: set[int]) -> Iterator[Pair]:
    """Pairs not chosen yet: those of two samples that are in none, then of one, then the rest."""
    for taken in range(3):
        for pair in ends:
            if pair not in chosen and sum(end in used for end in pair) <= taken:
                yield pair


def _side(classes: Tensor | None, pair: Pair) -> str:
    if classes is None:
        return ""
    return "within a class" if bool(classes[pair[0]] == classes[pair[1]]) else "across classes"


def _joined(*words: str) -> str:
    return ", ".join(word for word in words if word)


def pair_targets(pairs: Sequence[Pair], targets: Tensor) -> list[float]:
    """`‖dy*‖²` of every pair."""
    return pair_distances(targets, pairs).tolist()
