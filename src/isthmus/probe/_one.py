"""One model through one pass: prepared, run, its weights and its Jacobian."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from isthmus._errors import InputError
from isthmus.models import check_device
from isthmus.probe._batches import Batch, Batches
from isthmus.probe._certified import OF_KERNEL, STABILITY, Certificates, certify, wanted_of
from isthmus.probe._chains import Chain, find_chains
from isthmus.probe._extras import attempted
from isthmus.probe._guard import untouched
from isthmus.probe._losses import outputs_of
from isthmus.probe._numbers import COST, Numbers, WeightMatrix, weight_matrices
from isthmus.probe._pass import LossOf, PassResult, run_pass
from isthmus.probe._path_model import PathModel
from isthmus.probe._plan import PassPlan, plan_pass
from isthmus.probe._progress import Progress
from isthmus.probe._select import BLOCKS, select_sites
from isthmus.probe._shards import Shards
from isthmus.probe._stacks import PADDED, WatchedStack, watch_stacks
from isthmus.probe._survey import Survey, run_model, survey_model
from isthmus.probe._tensors import concatenated, mapped, tensors_in
from isthmus.tangent import MapJacobian, map_jacobian

JACOBIAN = ("jacobian_rank", "jacobian_log_pseudodet", "jacobian_log_singular_value")
BACKWARD = ("backward_norm", "backward_participation_ratio")
Forward = Callable[[nn.Module, Any], Any]


@dataclasses.dataclass(frozen=True)
class MeasureOptions:
    """The options of `measure`, checked."""

    layers: str | Sequence[str]
    targets: Any
    loss: LossOf | None
    loss_name: str
    forward: Forward | None
    max_samples: int | None
    batch_size: int | None
    max_memory: float | int | None
    jacobian_samples: int
    metrics: frozenset[str] | None
    seed: int
    shards: Shards | None = None

    @property
    def backward(self) -> bool:
        """Whether gradients of the activations are wanted: three times the work of a forward pass."""
        return self.loss is not None and (self.metrics is None or not self.metrics.isdisjoint(BACKWARD))


@dataclasses.dataclass(frozen=True)
class Measured:
    """One model measured: the pass, filled, and what was computed of it."""

    survey: Survey
    plan: PassPlan
    numbers: Numbers
    weights: list[WeightMatrix]
    jacobian: MapJacobian | None
    why_no_jacobian: str
    notes: list[str]
    certificates: Certificates
    stacks: list[WatchedStack]


def unwrapped(model: Any) -> tuple[nn.Module, list[str]]:
    """The model itself inside its wrappers, and a note for each that was taken off.

    Raises:
        InputError: not a module, or one whose weights are sharded over processes.
    """
    notes: list[str] = []
    while True:
        if not isinstance(model, nn.Module):
            raise InputError("model", type(model).__name__, "a torch.nn.Module")
        kind = type(model).__name__
        parts = any(hasattr(p, "ds_id") or type(p.data).__name__ == "DTensor" for p in model.parameters())
        if parts or "FullyShardedDataParallel" in kind or kind.startswith("FSDP"):
            kind += ", whose weights are in parts (DeepSpeed, DTensor)" if parts else ""
            raise InputError("model", kind, "a model whose weights are whole on this process",
                             "gather its full state dict into a plain model first")  # fmt: skip
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            notes.append(f"{kind} was taken off: its module was measured on this process")
            model = cast("nn.Module", model.module)
        elif hasattr(model, "_orig_mod"):
            notes.append("the model is compiled: the one it was made from was measured (compiled code runs past hooks)")
            model = cast("Any", model)._orig_mod
        else:
            return model, notes


def home_of(model: nn.Module) -> tuple[torch.device, torch.dtype | None]:
    """Device and floating dtype of a model's weights."""
    devices = {t.device for t in (*model.parameters(), *model.buffers())}
    if any(device.type == "meta" for device in devices):
        raise InputError("model", "weights on the meta device", "weights that hold numbers", "load them first")
    if len(devices) > 1:
        raise InputError("model", f"weights on {', '.join(sorted(map(str, devices)))}", "weights on one device",
                         "move the model, or give device=")  # fmt: skip
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    return (next(iter(devices)) if devices else torch.device("cpu")), dtype


def placed_on(model: nn.Module, device: torch.device | str | None) -> nn.Module:
    """The model, or where another device is asked for a copy of it there."""
    if device is None:
        return model
    wanted = check_device(device)
    return model if home_of(model)[0] == wanted else copy.deepcopy(model).to(wanted)


def placing(model: nn.Module, notes: list[str]) -> Callable[[Tensor], Tensor]:
    """Puts a tensor on the model's device, and a floating one into its dtype, which is noted."""
    device, dtype = home_of(model)

    def place(t: Tensor) -> Tensor:
        if t.is_inference():  # made under `torch.inference_mode`: no gradient can start at it, at a copy it can
            t = t.clone()
        if t.is_floating_point() and dtype is not None and t.dtype != dtype:
            said = f"inputs were cast from {t.dtype} to the model's {dtype}".replace("torch.", "")
            if said not in notes:
                notes.append(said)
            return t.to(device, dtype)
        return t.to(device)

    return place


def _opened(model: nn.Module, data: Any, options: MeasureOptions) -> Batches:
    notes: list[str] = []
    shards, most = options.shards, options.max_samples
    batches = Batches(
        data, model, targets=options.targets, own_forward=options.forward is not None,
        max_samples=most if shards is None else shards.share(data, most), batch_size=options.batch_size,
        place=placing(model, notes),
    )  # fmt: skip
    batches.notes = notes
    return batches


def first_batch(model: nn.Module, data: Any, options: MeasureOptions) -> Batch:
    """The first batch of data that can be read again; of several processes that of the first one."""
    with untouched(model, options.seed):
        first = next(iter(_opened(model, data, options)))
        return first if options.shards is None else options.shards.begin(model, first)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A model inside `untouched`, ready for its pass; `like` is the batch that was surveyed."""

    handles: list[RemovableHandle]
    batches: Batches
    rest: Iterator[Batch]
    first: Batch
    like: Batch
    survey: Survey
    plan: PassPlan
    chains: tuple[Chain, ...]
    why_no_chains: str


@contextmanager
def prepared(model: nn.Module, data: Any, options: MeasureOptions) -> Generator[Prepared]:
    """Inside `untouched`: the data opened, the first batch surveyed, and the pass planned."""
    device, _ = home_of(model)
    with untouched(model, options.seed) as handles:
        batches = _opened(model, data, options)
        rest = iter(batches)
        first, shards, most = next(rest), options.shards, options.max_memory
        like = first if shards is None else shards.begin(model, first)
        if shards is not None and most is None:
            most = shards.memory(device)
        for (
            parameter
        ) in model.parameters():  # frozen ones hide what is computed from what; `untouched` freezes them again
            if parameter.is_floating_point() and parameter.is_leaf:
                parameter.requires_grad_(True)
        survey = survey_model(model, like, handles, forward=options.forward)
        sites = select_sites(survey, options.layers)
        plan = plan_pass(survey, sites, like, gradients=options.backward, max_memory=most,
                         device=device, costs=options.metrics is None or bool(options.metrics & set(COST)))  # fmt: skip
        wanted = options.jacobian_samples > 0 and wanted_of(options.metrics)
        linear = wanted and not isinstance(model, PathModel)
        chains, why = attempted(lambda: find_chains(survey) if linear else ())
        survey.tensors.clear()
        yield Prepared(handles, batches, rest, first, like, survey, plan, chains or (), why)


class _Kept:
    """Hands on every batch, keeps the first `wanted` samples of them, and remembers whether one is padded."""

    def __init__(self, first: Batch, rest: Iterator[Batch], wanted: int) -> None:
        self._first, self._rest, self._wanted = first, rest, wanted
        self.batches: list[Batch] = []
        self.padded = False

    def __iter__(self) -> Iterator[Batch]:
        missing = self._wanted
        for batch in itertools.chain([self._first], self._rest):
            self.padded = self.padded or bool(batch.masks)
            if missing > 0:
                few = batch.first(missing)
                self.batches.append(few)
                missing -= few.size
            yield batch

    def joined(self) -> Batch:
        """The samples kept as one batch; of the first batch alone where later ones have another shape."""
        first, size = self.batches[0], sum(b.size for b in self.batches)
        everything = concatenated([(b.args, b.kwargs, b.whole, b.masks) for b in self.batches],
                                  [b.size for b in self.batches])  # fmt: skip
        if everything is None:
            return first
        args, kwargs, given, masks = everything
        return dataclasses.replace(first, args=args, kwargs=kwargs, whole=given, masks=masks, size=size)


def _passed(
    model: nn.Module, ready: Prepared, options: MeasureOptions, bar: Progress, label: str
) -> tuple[_Kept, PassResult, list[WatchedStack]]:
    """The pass: the first samples, what it says, and the stacks; of several processes together on the first one."""
    plan, survey, handles = ready.plan, ready.survey, ready.handles
    if not any(one.track is not None for one in plan.sites):
        reasons = "; ".join(f"{one.site.label}: {one.why}" for one in plan.sites[:3])
        raise InputError("layers", layers_text(options.layers), "at least one module that can be measured", reasons)
    kept = _Kept(ready.first, ready.rest, options.jacobian_samples)
    stacks = watch_stacks(model, ready.like.masks, options.metrics, handles)
    result = run_pass(
        model, kept, plan, survey, handles, forward=options.forward, loss=options.loss, backward=options.backward,
        progress=lambda done: bar(label, done, ready.batches.total),
    )  # fmt: skip
    for handle in handles:
        handle.remove()
    for stack in stacks:
        stack.why = stack.why or (PADDED if kept.padded else "")
    if options.shards is not None:
        result = options.shards.add_up(plan, result, stacks, survey)
    return kept, result, stacks


def contribute(model: nn.Module, data: Any, options: MeasureOptions, bar: Progress) -> None:
    """A pass over this process's part of the data, whose sums the first process takes."""
    with prepared(model, data, options) as ready:
        _passed(model, ready, options, bar, "batches")


def measure_one(
    model: nn.Module, data: Any, options: MeasureOptions, bar: Progress, *, baseline: str = "",
    jacobian: bool = True,
) -> Measured:  # fmt: skip
    """One model through one pass, its weights, and its Jacobian."""
    with prepared(model, data, options) as ready:
        batches, survey, plan = ready.batches, ready.survey, ready.plan
        kept, result, stacks = _passed(model, ready, options, bar, f"{'baseline: ' if baseline else ''}batches")
        for one in stacks:
            one.why = attempted(one.finish)[1] or one.why
        found, why = None, "not asked for"
        if jacobian and (options.metrics is None or options.metrics & set(JACOBIAN)):
            made, failed = attempted(lambda: _jacobian(model, kept, options))
            found, why = (None, failed) if made is None else made
        order: dict[str, int] = {}
        for call in survey.calls:
            order[call.name] = min(order.get(call.name, call.start), call.start)
        globs = None if options.layers in (BLOCKS, "*") else {one.site.call.name for one in plan.sites}
        weights = weight_matrices(model, order, globs)
        certificates = _certificates(model, kept, ready, options, weights, bar) if jacobian else Certificates()
    numbers = Numbers(plan, result, wanted=options.metrics, baseline=baseline)
    return Measured(survey, plan, numbers, weights, found, why, batches.notes, certificates, stacks)


def _certificates(
    model: nn.Module, kept: _Kept, ready: Prepared, options: MeasureOptions, weights: Sequence[WeightMatrix],
    bar: Progress,
) -> Certificates:  # fmt: skip
    """The certificates of the chains of linear layers at the first samples, or the reason why there are none."""
    if options.jacobian_samples == 0:
        return Certificates(why="jacobian_samples=0")
    if isinstance(model, PathModel):
        return Certificates(why="a path is measured, whose steps are no modules: measure modules with path=False")
    wanted = wanted_of(options.metrics)
    if not wanted:
        return Certificates(why="not asked for")
    if ready.why_no_chains:
        return Certificates(why=ready.why_no_chains)
    spectra = {name: w.spectrum for w in weights for name in (w.name, *w.tied) if not w.why}
    kernel = not wanted.isdisjoint((*OF_KERNEL, *STABILITY))
    found, why = attempted(
        lambda: certify(model, kept.joined(), ready.chains, ready.handles, forward=options.forward, spectra=spectra,
                        samples=options.jacobian_samples, kernel=kernel, bar=bar))  # fmt: skip
    return Certificates(why=why) if found is None else found


def _jacobian(model: nn.Module, kept: _Kept, options: MeasureOptions) -> tuple[MapJacobian | None, str]:
    """The Jacobian of the whole map at the first samples, or the reason why there is none."""
    if options.jacobian_samples == 0:
        return None, "jacobian_samples=0"
    few = kept.joined()
    floats = [t for t in tensors_in(few.whole if options.forward else (few.args, few.kwargs)) if t.is_floating_point()]
    if not floats:
        return None, "the inputs are whole numbers (tokens), for which there is no derivative"
    if len(floats) > 1:
        return None, f"the model has {len(floats)} real inputs; give forward= with one of them"
    start = floats[0]

    def function(x: Float[Tensor, "n ..."]) -> Tensor:
        def put(t: Tensor) -> Tensor:
            if t is start:
                return x
            return t[: x.shape[0]] if t.dim() and t.shape[0] == few.size else t

        batch = dataclasses.replace(few, args=mapped(few.args, put), kwargs=mapped(few.kwargs, put),
                                    whole=mapped(few.whole, put), size=x.shape[0])  # fmt: skip
        return outputs_of(run_model(model, batch, options.forward))

    try:
        return map_jacobian(function, start), ""
    except InputError as error:
        return None, str(error)
    except RuntimeError as error:
        return None, f"the model cannot be differentiated ({' '.join(str(error).split())[:200]})"


def layers_text(layers: str | Sequence[str]) -> str:
    """What was asked to be measured, as one string."""
    return layers if isinstance(layers, str) else ", ".join(layers)


def rank_of_process() -> int:
    """Rank of this process in a distributed training; 0 where there is none."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    return 0
