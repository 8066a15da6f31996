"""One measurement of several processes: each runs its part of the data, and the first one takes the sums."""

from __future__ import annotations

import dataclasses
import pickle
import socket
from collections.abc import Collection, Sequence
from numbers import Number
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler

from isthmus._errors import InputError
from isthmus._together import Together
from isthmus.geometry import CrossAccumulator, PathAccumulator, StreamAccumulator
from isthmus.probe._batches import Batch, sampler_of
from isthmus.probe._loading_files import reason_of
from isthmus.probe._pass import NOT_REACHED, PassResult
from isthmus.probe._plan import SHARE_OF_MEMORY, PassPlan, available_memory
from isthmus.probe._stacks import WatchedStack
from isthmus.probe._survey import SURVEY_SAMPLES, Survey, module_name
from isthmus.probe._tensors import mapped, tensors_in

Mergeable = StreamAccumulator | CrossAccumulator | PathAccumulator
_WHOLE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_CHUNK = 2**20
_ODD = 0x9E3779B97F4A7C15 - 2**64


class Shards(Together):
    """This process among those that measure together."""

    # ── before the pass ──────────────────────────────────────────────────────────────────────────────────────

    def agree(self, **options: Any) -> None:
        """Compare options: with others the processes would not meet where they should.

        Raises:
            InputError: one of them is not the same on all.
        """
        first, *rest = self.meet({name: _plain(value) for name, value in options.items()})
        for rank, other in enumerate(rest, start=1):
            for name, value in first.items():
                if other[name] != value:
                    raise InputError(name, f"{other[name]!r} on process {rank} and {value!r} on process 0",
                                     "the same options on all processes")  # fmt: skip

    def share(self, data: Any, max_samples: int | None) -> int | None:
        """Samples this process reads at most: none that a `DistributedSampler` repeats to fill up the last round.

        Raises:
            InputError: nothing is left for this process, or the sampler is that of another.
        """
        shares: list[int] = []
        if isinstance(max_samples, int):  # `Batches` refuses what is none
            shares.append(max_samples // self.size + (self.rank < max_samples % self.size))
            if max_samples < self.size:
                raise InputError("max_samples", max_samples, f"at least one sample for each of {self.size} processes")
        sampler = _distributed(data)
        if sampler is not None:
            if (sampler.rank, sampler.num_replicas) != (self.rank, self.size):
                raise InputError("data", f"the part of process {sampler.rank} of {sampler.num_replicas}",
                                 f"the part of process {self.rank} of {self.size}",
                                 "make the DistributedSampler without num_replicas and rank")  # fmt: skip
            n = len(cast("Any", sampler.dataset))
            shares.append(len(range(self.rank, n, self.size)))
            if n < self.size:
                raise InputError("data", f"{n} samples", f"at least one for each of {self.size} processes")
        return min(shares, default=max_samples)

    def memory(self, device: torch.device) -> int:
        """Bytes that the sums may take on every process, where it is not said: half of what is free, shared."""
        found = self.meet((socket.gethostname(), str(device), available_memory(device)))
        places = [place for *place, _ in found]
        return int(min(SHARE_OF_MEMORY * free / places.count(place) for *place, free in found))

    def begin(self, model: nn.Module, first: Batch) -> Batch:
        """The first samples of the first process, from which all plan the same pass.

        Buffers are those of the first process from here on (running means differ in a distributed training).

        Raises:
            InputError: weights that differ between the processes, the same data on all of them, or a batch that cannot
                be sent.
        """
        kinds = {name: type(module).__qualname__ for name, module in model.named_modules()}
        buffers = {name: _summed(b) for name, b in model.named_buffers()}
        weights = {name: _summed(p) for name, p in model.named_parameters()}
        weights |= {name: known[:2] for name, known in buffers.items()}  # what they hold may differ
        weights |= {module_name(name): kind for name, kind in kinds.items()}
        inputs = [_summed(t) for t in tensors_in((first.args, first.kwargs))]
        found = self.meet((weights, buffers, inputs))
        for rank, (other, _, seen) in enumerate(found[1:], start=1):
            unlike = sorted(name for name in {*other, *found[0][0]} if other.get(name) != found[0][0].get(name))
            if unlike:
                raise InputError("model", f"{unlike[0]} of process {rank} unlike that of process 0",
                                 "the same modules and weights on all processes",
                                 "load or broadcast them")  # fmt: skip
            if seen == found[0][2]:
                raise InputError("data", f"the same first batch on process {rank} as on process 0",
                                 "a part of the data on each process",
                                 "give the DataLoader a DistributedSampler")  # fmt: skip
        for name, buffer in model.named_buffers():
            if any(theirs.get(name) != found[0][1].get(name) for _, theirs, _ in found):
                with self.or_leave(), torch.no_grad():
                    buffer.copy_(self.from_first(buffer.cpu()))
        device = next((t.device for t in tensors_in((first.args, first.kwargs))), torch.device("cpu"))
        few = _placed(first.first(SURVEY_SAMPLES), torch.device("cpu"))
        if self.rank == 0:
            _check_sendable(few)
        self.meet()
        return _placed(self.from_first(few), device)

    # ── after the pass ───────────────────────────────────────────────────────────────────────────────────────

    def add_up(
        self, plan: PassPlan, result: PassResult, stacks: Sequence[WatchedStack], survey: Survey
    ) -> PassResult:  # fmt: skip
        """Add all that the processes have summed into the sums of the first one; what failed on one has failed."""
        products = [p for p in plan.products if not p.same]
        reasons = self._reasons([
            *(t.failed for t in plan.tracks),
            *("" if p.failed == NOT_REACHED else p.failed for p in products),
            *("" if one.moves else one.no_move for one in plan.sites),
            *("" if one.gradients is not None else one.no_gradient for one in plan.sites),
            *(stack.why for stack in stacks),
        ])  # fmt: skip
        for track in plan.tracks:
            track.failed = next(reasons)
        for product in products:
            product.failed = next(reasons)
        for one in plan.sites:
            one.no_move = next(reasons)
            one.moves = one.moves and not one.no_move
        for one in plan.sites:
            one.no_gradient = next(reasons)
            one.gradients = None if one.no_gradient else one.gradients
        for stack in stacks:
            stack.why = next(reasons)
        held: list[Mergeable] = [t.moments for t in plan.tracks if not t.failed]
        held += [p.sum for p in products if not p.failed]
        held += [one.gradients for one in plan.sites if one.gradients is not None]
        held += [stack.moments for stack in stacks if not stack.why]
        with self.or_leave():
            self._merge(held)
        for product in products:
            if not product.failed and not product.sum.n:
                product.failed = NOT_REACHED
        moved = self.meet([one.moved_norm_sq for one in plan.sites])
        for one, norms in zip(plan.sites, zip(*moved, strict=True), strict=True):
            one.moved_norm_sq = sum(norms)
        ends = {call.name: call.end for call in reversed(survey.calls)}
        return _added(self.meet(result), ends)

    def _reasons(self, mine: list[str]) -> Any:
        """For each: the reason of the first process that has one."""
        columns = zip(*self.meet(mine), strict=True)
        return iter([next((why for why in column if why), "") for column in columns])

    def _merge(self, held: Sequence[Mergeable]) -> None:
        """Neighbours in pairs, then pairs of pairs: the order is the same every time, and rounding with it."""
        shapes = self.meet([{name: tuple(t.shape) for name, t in one.parts().items()} for one in held])
        for one, known in zip(held, zip(*shapes, strict=True), strict=True):
            layout: dict[str, tuple[int, ...]] = next((shape for shape in known if shape), {})
            if layout:
                self._merge_one(one, layout)

    def _merge_one(self, one: Mergeable, layout: dict[str, tuple[int, ...]]) -> None:
        sizes = [torch.Size(shape).numel() for shape in layout.values()]
        step = 1
        while step < self.size:
            if self.rank % (2 * step):
                parts = one.parts()
                flat = [parts[name].reshape(-1).double().cpu() for name in layout] if parts else []
                given = torch.cat(flat) if flat else torch.zeros(sum(sizes), dtype=torch.float64)
                self.exchange(dist.send, given, self.rank - step)
                return
            if self.rank + step < self.size:
                given = torch.empty(sum(sizes), dtype=torch.float64)
                self.exchange(dist.recv, given, self.rank + step)
                cut = given.split(sizes)
                one.merge({name: t.view(shape) for (name, shape), t in zip(layout.items(), cut, strict=True)})
            step *= 2


def _plain(value: Any) -> Any:
    """An option as it is compared: numbers and names, and of everything else its type."""
    if value is None or isinstance(value, (str, Number)):
        return value
    if isinstance(value, (list, tuple, set, frozenset)):
        return sorted(map(str, cast("Collection[Any]", value)))
    return type(value).__name__


def _distributed(data: Any) -> DistributedSampler[Any] | None:
    """The `DistributedSampler` of a loader that has one."""
    sampler = sampler_of(cast("DataLoader[Any]", data)) if isinstance(data, DataLoader) else None
    return cast("DistributedSampler[Any]", sampler) if type(sampler) is DistributedSampler else None


def shard_notes(shards: Shards | None, data: Any) -> list[str]:
    """What should be known about the parts of the data."""
    sampler = _distributed(data)
    if shards is not None:
        count = "1 process" if shards.size == 1 else f"{shards.size} processes"
        return [f"{count} measured together; Jacobian, certificate, alignment and signals are of the "
                "first samples of process 0"]  # fmt: skip
    if sampler is None or sampler.num_replicas < 2:
        return []
    return [f"the DistributedSampler gave part {sampler.rank} of {sampler.num_replicas} of the data, and only that was "
            "measured; sharded=True on every process measures all parts together"]  # fmt: skip


def _summed(t: Tensor) -> tuple[Any, ...]:
    """Shape, dtype and a sum of a tensor's bits, each times a number of its place: equal for equal tensors only."""
    t = t.detach().resolve_conj()
    bits = (torch.view_as_real(t) if t.is_complex() else t).contiguous().reshape(-1)
    whole = bits.view(_WHOLE[bits.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=t.device)
    for number, chunk in enumerate(whole.split(_CHUNK)):
        place = torch.arange(number * _CHUNK, number * _CHUNK + len(chunk), device=t.device)
        total += (chunk * _scattered(place)).sum()
    return tuple(t.shape), str(t.dtype), int(total)


def _scattered(place: Tensor) -> Tensor:
    """An odd number for every place, without a pattern that data could share (whole numbers wrap around)."""
    mixed = place * _ODD
    return (mixed ^ (mixed >> 29)) * _ODD | 1


def _check_sendable(batch: Batch) -> None:
    try:
        pickle.dumps(batch)
    except Exception as error:
        raise InputError("data", f"a batch with something that cannot be sent to another process ({reason_of(error)})",
                         "batches of tensors, numbers and text", "leave it out of the batches") from error  # fmt: skip


def _placed(batch: Batch, device: torch.device) -> Batch:
    def place(t: Tensor) -> Tensor:
        return t.detach().to(device, copy=True)  # a view of a large batch would be sent with all of it

    whole = {f.name: mapped(getattr(batch, f.name), place) for f in dataclasses.fields(batch) if f.name != "size"}
    return dataclasses.replace(batch, **whole)


def _added(results: Sequence[PassResult], ends: dict[str, int]) -> PassResult:
    weight = sum(r.weight for r in results)
    total = sum(r.loss * r.weight for r in results if r.loss is not None)
    bad = sorted((r.first_bad for r in results if r.first_bad), key=lambda name: ends.get(name, 0))
    return PassResult(
        samples=sum(r.samples for r in results), weight=weight, batches=sum(r.batches for r in results),
        loss=total / weight if any(r.loss is not None for r in results) else None,
        first_bad=bad[0] if bad else "", unlike=tuple(sorted({name for r in results for name in r.unlike})),
    )  # fmt: skip
