"""One streaming pass: every batch through the model once, what is met on the way into second moments."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from isthmus._errors import InputError
from isthmus.geometry import Shifted, squared_norm
from isthmus.probe._batches import Batch
from isthmus.probe._plan import MeasuredSite, PassPlan, Product, Track
from isthmus.probe._survey import Survey, explained, module_name, run_model, survey_model
from isthmus.probe._tensors import kept_rows, main_tensor, mapped, observation_shape, rows_of

LossOf = Callable[[Any, Batch], Tensor]
"""`(outputs, batch) → mean loss of the batch`."""

NOT_REACHED = "its weight layer was not reached"
_NOT_FINITE = "its values are not finite (NaN or infinite), first in batch {batch}"


@dataclasses.dataclass(frozen=True)
class PassResult:
    """What a pass says beside what the plan's accumulators hold.

    Attributes:
        samples: number of samples N.
        weight: what the loss is a mean over: class numbers that are not ignored, or samples.
        batches: number of batches.
        loss: `C`, the mean over all samples, where a loss was asked for.
        first_bad: label of the first module, in order of execution, whose values were not finite.
        unlike: names of modules that were called more often than in the survey.
    """

    samples: int
    weight: int
    batches: int
    loss: float | None
    first_bad: str
    unlike: tuple[str, ...]


class _Collector:
    """The hooks and what they fill."""

    def __init__(self, plan: PassPlan, survey: Survey, handles: list[RemovableHandle], backward: bool) -> None:
        self.plan, self.backward = plan, backward
        self.batch_number = self.labels = 0
        self.masks: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.held: dict[int, tuple[Shifted, Tensor]] = {}
        self.spare: list[Tensor] = []
        self.waiting: dict[int, int] = {}
        self.inputs: dict[str, Tensor] = {}
        self.sources: list[Tensor] = []
        self.bad: list[tuple[int, str]] = []
        self.tracks: dict[tuple[str, int, bool], list[Track]] = {}
        self.sites: dict[tuple[str, int, bool], list[MeasuredSite]] = {}
        self.most = {name: len(survey.calls_of(name)) for name in survey.modules}
        self.unlike: set[str] = set()
        self.pooled: set[str] = set()
        for track in plan.tracks:
            self.tracks.setdefault((track.call.name, track.call.number, track.at_input), []).append(track)
            if track.pooled:
                self.pooled.add(track.call.name)
        self.stream: dict[int, tuple[Tensor, int]] = {}
        self.followed = {id(one.site.previous) for one in plan.sites if one.site.previous is not None}
        for one in plan.sites:
            needed = one.moves or one.gradients is not None or id(one.site) in self.followed
            if one.track is not None and needed:
                key = (one.site.call.name, one.site.call.number, one.site.at_input)
                self.sites.setdefault(key, []).append(one)
        wanted = {name for name, _, _ in (*self.tracks, *self.sites)}
        if backward:
            wanted |= {c.name for c in survey.calls if c.input is None and c.output is not None}
        for name, module in survey.modules.items():
            if name in wanted:
                handles.append(module.register_forward_pre_hook(self._before(name), with_kwargs=True))
                handles.append(module.register_forward_hook(self._after(name), with_kwargs=True))

    def start(self, batch: Batch, number: int) -> None:
        """Make ready for a batch."""
        self.batch_number, self.labels, self.masks = number, batch.labels, batch.masks
        self.counts.clear()
        self.held.clear()
        self.inputs.clear()
        self.stream.clear()
        self.sources = []

    def _before(self, name: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            number = 0 if name in self.pooled else self.counts.get(name, 0)
            self.counts[name] = number + 1
            key = (name, number, True)
            moving = [s for s in self.sites.get((name, number, False), ()) if s.moves]
            if key not in self.tracks and key not in self.sites and not moving:
                return
            tensor = main_tensor((args, kwargs))[0]
            if tensor is None:
                return
            self._meet(key, tensor)
            for one in self.sites.get(key, ()):
                self._follow(one, tensor)
            if moving:
                self.inputs[f"{name}:{number}"] = tensor.detach().clone() if moving[0].site.call.mutates else tensor

        return hook

    def _after(self, name: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            number = 0 if name in self.pooled else self.counts.get(name, 1) - 1
            if number >= self.most[name] and name not in self.pooled:
                self.unlike.add(name)
                return None
            tensor = main_tensor(output)[0]
            if tensor is None:
                return None
            changed = None
            if self.backward and not tensor.requires_grad and main_tensor((args, kwargs))[0] is None:
                leaf = tensor.detach().requires_grad_()  # an embedding: gradients begin here
                self.sources.append(leaf)
                fresh = leaf.clone()  # not a leaf, so that it may be changed in place
                changed = mapped(output, lambda t: fresh if t is tensor else t) if output is not tensor else fresh
                tensor = fresh
            key = (name, number, False)
            self._meet(key, tensor)
            start = self.inputs.pop(f"{name}:{number}", None)
            for one in self.sites.get(key, ()):
                if one.moves and start is not None:
                    self._move(one, start, tensor)
            return changed

        return hook

    def _rows(self, tensor: Tensor, dimension: int, name: str) -> Tensor | None:
        keep, why = kept_rows(observation_shape(tensor, dimension), self.masks, name)
        if why:
            return None
        if dimension == -1 or tensor.dim() <= 2:
            return rows_of(tensor, dimension, keep)
        rows = tensor.transpose(0, 1).reshape(tensor.shape[1], -1).mT  # channels stay whole: half the time of `rows_of`
        return rows if keep is None else rows[keep.to(rows.device)]

    def _borrow(self, like: Tensor) -> Tensor:
        """Memory for a batch, of the smallest that is spare and large enough: fresh memory costs more than the sums."""
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        kind = (dtype, like.device, torch.is_inference_mode_enabled())
        fits = [t for t in self.spare if (t.dtype, t.device, t.is_inference()) == kind and t.numel() >= like.numel()]
        if not fits:
            return torch.empty(like.numel(), dtype=dtype, device=like.device)
        found = min(fits, key=Tensor.numel)
        self.spare = [t for t in self.spare if t is not found]
        return found

    def _meet(self, key: tuple[str, int, bool], tensor: Tensor) -> None:
        for track in self.tracks.get(key, ()):
            if not track.failed:
                self._add(track, tensor.detach())
        if self.backward and tensor.requires_grad:
            for one in self.sites.get(key, ()):
                if one.gradients is not None:
                    tensor.register_hook(self._gradient(one, self.labels))

    def _add(self, track: Track, tensor: Tensor) -> None:
        rows = self._rows(tensor, track.dimension, track.padding)
        if rows is None or rows.shape[0] == 0:
            track.failed = f"its padding could not be told apart in batch {self.batch_number}" if rows is None else ""
            return
        if rows.shape[1] != track.width:
            track.failed = f"its width changed from {track.width} to {rows.shape[1]} in batch {self.batch_number}"
            return
        memory = self._borrow(rows)
        try:
            shifted = track.moments.update(rows, out=memory)
        except InputError:
            track.failed = _NOT_FINITE.format(batch=self.batch_number)
            self.bad.append((track.call.end if not track.at_input else track.call.start, track.call.name))
            return
        if not track.partners:
            self.spare.append(memory)
            return
        self.held[id(track)] = shifted, memory
        self.waiting[id(track)] = len(track.partners)
        for product in track.partners:
            if id(product.left) in self.held and id(product.right) in self.held:
                self._multiply(product)

    def _multiply(self, product: Product) -> None:
        left, right = self.held[id(product.left)][0], self.held[id(product.right)][0]
        if left.rows.shape[0] == right.rows.shape[0]:
            product.sum.update(left, right)
        else:
            product.failed = f"its positions differ from those of the weight layer's input in batch {self.batch_number}"
        for track in (product.left, product.right):
            self.waiting[id(track)] -= 1
            if not self.waiting[id(track)]:
                self.spare.append(self.held.pop(id(track))[1])

    def _move(self, one: MeasuredSite, start: Tensor, end: Tensor) -> None:
        dimension = one.site.dimension
        before: Tensor | None = start.detach()
        after: Tensor | None = end.detach()
        if self.masks:
            padding = one.track.padding if one.track is not None else ""
            before = self._rows(start.detach(), dimension, padding)
            after = self._rows(end.detach(), dimension, padding)
        if before is None or after is None or before.shape != after.shape:
            one.moves, one.no_move = False, f"its input and output differ in shape in batch {self.batch_number}"
            return
        exact = torch.float64 if after.dtype == torch.float64 else torch.float32

        def difference(a: Tensor, b: Tensor) -> Tensor:
            return a.to(exact) - b.to(exact)

        one.moved_norm_sq += float(squared_norm(difference, after, before))

    def _follow(self, one: MeasuredSite, here: Tensor) -> None:
        """The move along a residual stream that no module gives as its output."""
        start = None if one.site.previous is None else self.stream.pop(id(one.site.previous), None)
        if one.moves and start is not None:
            before, version = start
            if before._version == version:
                self._move(one, before, here)
            else:
                one.moves, one.no_move = False, "the stream is changed in place"
        if id(one.site) in self.followed:
            self.stream[id(one.site)] = (here, here._version)

    def _gradient(self, one: MeasuredSite, labels: int) -> Callable[[Tensor], None]:
        def hook(gradient: Tensor) -> None:
            padding = one.track.padding if one.track is not None else ""
            rows = self._rows(gradient.detach(), one.site.dimension, padding)
            if rows is None or rows.shape[0] == 0 or one.gradients is None:
                return
            try:
                memory = self._borrow(rows)
                one.gradients.update(rows * labels, negative=False, out=memory)
                self.spare.append(memory)
            except InputError:
                one.no_gradient = f"the gradient is not finite, first in batch {self.batch_number}"
                one.gradients = None

        return hook


def run_pass(
    model: nn.Module,
    batches: Iterable[Batch],
    plan: PassPlan,
    survey: Survey,
    handles: list[RemovableHandle],
    *,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    loss: LossOf | None = None,
    backward: bool = True,
    progress: Callable[[int], None] | None = None,
) -> PassResult:
    """Run every batch through the model once, in evaluation mode, and fill the plan's accumulators.

    With a loss, each batch goes backward, too, where that is wanted: gradients reach the activations only, never the
    parameters.

    Args:
        model: the model, inside `untouched`.
        batches: the data.
        plan: what is collected.
        survey: of the model.
        handles: takes the hooks' handles; whoever holds the list removes them.
        forward: how the model is called on a batch; None for by position and name.
        loss: mean loss of a batch.
        backward: whether its gradients are wanted.
        progress: called with the number of samples done.

    Raises:
        InputError: data that does not fit, or a loss that does not depend on any activation.
        ModelError: the model raised an error.
    """
    if loss is not None and backward:
        model.requires_grad_(False)  # gradients of activations only; embeddings start them anew (`untouched` restores)
    collector = _Collector(plan, survey, handles, loss is not None and backward)
    done = number = weight = 0
    total = 0.0
    for number, batch in enumerate(batches, start=1):
        collector.start(batch, number - 1)
        try:
            if loss is None or not batch.labels:
                with torch.no_grad():
                    run_model(model, batch, forward)
            elif not backward:
                with torch.no_grad():
                    total += batch.labels * float(loss(run_model(model, batch, forward), batch))
                weight += batch.labels
            else:
                total += batch.labels * _backward(model, batch, collector, forward, loss)
                weight += batch.labels
        except InputError:
            raise
        except Exception as error:
            for handle in handles:
                handle.remove()
            survey_model(model, batch, handles, forward=forward, samples=batch.size, number=number - 1)  # names it
            raise explained(error, [], batch, number - 1) from error
        done += batch.size
        if progress is not None:
            progress(done)
    for product in plan.products:
        if not product.same and not product.failed and not product.sum.n:
            product.failed = product.left.failed or product.right.failed or NOT_REACHED
    first_bad = min(collector.bad)[1] if collector.bad else ""
    value = total / weight if loss is not None and weight else None
    return PassResult(done, weight, number, value, first_bad, tuple(sorted(map(module_name, collector.unlike))))


def _backward(
    model: nn.Module,
    batch: Batch,
    collector: _Collector,
    forward: Callable[[nn.Module, Any], Any] | None,
    loss: LossOf,
) -> float:
    leaves: list[Tensor] = []

    def leaf(t: Tensor) -> Tensor:
        if not t.is_floating_point():
            return t
        leaves.append(t.detach().requires_grad_())
        return leaves[-1]  # `run_model` gives the model a copy, which it may change in place

    with torch.enable_grad():
        started = dataclasses.replace(batch, args=mapped(batch.args, leaf), kwargs=mapped(batch.kwargs, leaf),
                                      whole=batch.whole if forward is None else mapped(batch.whole, leaf))  # fmt: skip
        value = loss(run_model(model, started, forward), batch)
        starts = leaves + collector.sources
        if not value.requires_grad or not starts:
            raise InputError("loss", "a number without a gradient", "a loss that depends on the model's activations",
                             "a forward pass under torch.no_grad() cannot be measured backward")  # fmt: skip
        torch.autograd.grad(value, starts, allow_unused=True)
    return float(value.detach())
