"""A user's data, in any of the usual forms, as batches that a model can be called with."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler

from isthmus._errors import InputError
from isthmus.probe._tensors import mapped, tensors_in

TARGET_NAMES = ("labels", "label", "targets", "target", "y")
"""Names taken as the targets where none is given."""

MASK_NAMES = ("attention_mask", "decoder_attention_mask", "padding_mask")

IGNORED = -100
"""The class number that cross-entropy leaves out, in PyTorch and in Hugging Face models."""

_ELEMENTS = 2**20
_TOKEN_BATCH = 32
_MOST_SAMPLES = 256


@dataclasses.dataclass(frozen=True)
class Batch:
    """One batch, ready for the model.

    Attributes:
        args: positional arguments of the model.
        kwargs: keyword arguments.
        whole: the batch as the user gave it, on the model's device, for a `forward` of the user's own.
        targets: targets, where there are any.
        masks: masks `(samples, positions)` by name, True where a position is not padding.
        size: number of samples.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    whole: Any
    targets: Tensor | None
    masks: dict[str, Tensor]
    size: int

    @property
    def labels(self) -> int:
        """What a mean loss of the batch is a mean over: class numbers that are not ignored, or samples."""
        t = self.targets
        return self.size if t is None or t.is_floating_point() else int((t != IGNORED).sum())

    def first(self, n: int) -> Batch:
        """The first `n` samples, or all where the batch cannot be cut."""
        packed = any(isinstance(value, PackedSequence) for value in (*self.args, *self.kwargs.values()))
        if n >= self.size or packed:
            return self

        def cut(t: Tensor) -> Tensor:
            if not t.dim() or t.shape[0] != self.size:
                return t
            if t.layout not in (torch.strided, torch.jagged):
                raise InputError("data", f"a sparse tensor of shape {tuple(t.shape)}", "dense tensors of samples",
                                 "make it dense, or let forward=lambda model, batch: … hold it")  # fmt: skip
            return t[:n]

        return Batch(
            mapped(self.args, cut), mapped(self.kwargs, cut), mapped(self.whole, cut),
            None if self.targets is None else cut(self.targets), mapped(self.masks, cut), n,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Signature:
    """What a model's `forward` accepts, as far as it says."""

    names: tuple[str, ...]
    required: int
    anything: bool

    @classmethod
    def of(cls, model: nn.Module) -> Signature:
        """Read it off `model.forward`."""
        try:
            parameters = list(inspect.signature(model.forward).parameters.values())
        except (TypeError, ValueError):
            return cls((), 1, True)
        plain = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        required = sum(p.default is p.empty and p.kind is not p.KEYWORD_ONLY for p in plain)
        return cls(tuple(p.name for p in plain), required, any(p.kind is p.VAR_KEYWORD for p in parameters))


class Batches:
    """Iterates over `Batch`es of at most `max_samples` samples; can be iterated once.

    Args:
        data: a tensor or array; a tuple or mapping of tensors; a `Dataset`; a `DataLoader`; or any iterable of
            batches, each a tensor, tuple, list or mapping.
        model: the model, whose `forward` says what is an input.
        targets: a tensor with one row per sample, or the key of the targets in a batch; None to take them where they
            stand by convention (the last of a tuple that `forward` does not need; `labels`, `y` … of a mapping).
        own_forward: whether the user's `forward` takes the whole batch.
        max_samples: samples to use at most.
        batch_size: samples per batch of data that are not batched yet; None to choose by their size.
        place: puts a tensor where the model is (device, and dtype of floating ones).

    Raises:
        InputError: data of no known form, without samples, of lengths that differ, or not finite.
    """

    def __init__(
        self,
        data: Any,
        model: nn.Module,
        *,
        targets: Tensor | str | int | None,
        own_forward: bool,
        max_samples: int | None,
        batch_size: int | None,
        place: Callable[[Tensor], Tensor],
    ) -> None:
        whole: dict[str, Any] = {"max_samples": max_samples, "batch_size": batch_size}
        for name, number in whole.items():
            if number is not None and not isinstance(number, int):
                raise InputError(name, number, "a whole number of at least 1, or None")
        if max_samples is not None and max_samples < 1:
            raise InputError("max_samples", max_samples, "a whole number of at least 1, or None for all")
        if batch_size is not None and batch_size < 1:
            raise InputError("batch_size", batch_size, "a whole number of at least 1")
        self.notes: list[str] = []
        self._signature = Signature.of(model)
        self._targets, self._own_forward, self._place = targets, own_forward, place
        self._most, self._model = max_samples, type(model).__name__
        self.total: int | None = None
        self._raw = self._parts(data, batch_size)
        if isinstance(targets, Tensor) and self.total is not None and len(targets) != self.total:
            raise InputError("targets", f"{len(targets)} rows", f"one row for each of the {self.total} samples")
        if self.total is not None and max_samples is not None:
            self.total = min(self.total, max_samples)

    def _parts(self, data: Any, batch_size: int | None) -> Iterator[Any]:
        data = _as_tensors(data)
        if isinstance(data, (Tensor, tuple, Mapping)):
            return self._slices(data, batch_size)
        if isinstance(data, DataLoader):
            loader = cast("DataLoader[Any]", data)
            with_length = cast("Any", loader.dataset)
            self.total = len(with_length) if hasattr(with_length, "__len__") else None
            if isinstance(self._targets, Tensor) and not isinstance(sampler_of(loader), SequentialSampler):
                raise InputError("targets", "a tensor", "targets inside the batches of a shuffled loader",
                                 "let its data set return (input, target), or set shuffle=False")  # fmt: skip
            return iter(loader)
        if isinstance(data, Dataset):
            known = cast("Dataset[Any]", data)
            self.total = len(cast("Any", known)) if hasattr(known, "__len__") else None
            return iter(DataLoader(known, batch_size=batch_size or 64))
        if isinstance(data, Iterable) and not isinstance(data, (str, bytes)):
            return iter(cast("Iterable[Any]", data))
        raise InputError("data", type(data).__name__, "a tensor, an array, a tuple or mapping of tensors, a "
                         "DataLoader, or an iterable of batches")  # fmt: skip

    def _slices(self, data: Any, batch_size: int | None) -> Iterator[Any]:
        sizes = {t.shape[0] if t.dim() else -1 for t in tensors_in(data)}
        if len(sizes) != 1 or -1 in sizes:
            shapes = ", ".join(str(tuple(t.shape)) for t in tensors_in(data)) or "nothing"
            raise InputError("data", shapes, "tensors with the samples in the first dimension, equally many in each")
        (n,) = sizes
        self.total = n
        step = batch_size or _batch_size(list(tensors_in(data)))
        return (mapped(data, lambda t, s=start: t[s : s + step]) for start in range(0, n, step))

    def __iter__(self) -> Iterator[Batch]:
        done = 0
        for number, raw in enumerate(self._raw):
            whole = _as_tensors(raw)
            if not any(True for _ in tensors_in(whole)):
                raise InputError("data", f"batch {number} of type {type(raw).__name__}", "batches that hold tensors")
            batch = self._batch(mapped(whole, self._place), number, done)
            if batch.size == 0:
                continue
            if self._most is not None and done + batch.size > self._most:
                batch = batch.first(self._most - done)
            done += batch.size
            yield batch
            if self._most is not None and done >= self._most:
                break
        if not done:
            raise InputError("data", "no samples", "at least one sample")

    def _batch(self, whole: Any, number: int, done: int) -> Batch:
        size = _samples(whole)
        args, kwargs, targets = self._split(whole)
        if isinstance(self._targets, Tensor):
            targets = self._targets[done : done + size]
            if targets.shape[0] != size:
                raise InputError("targets", f"{self._targets.shape[0]} rows",
                                 f"one row per sample (sample {done + size} of the data has none)")  # fmt: skip
            targets = self._place(targets)
        self._check(args, kwargs, number)
        masks: dict[str, Tensor] = {}
        if isinstance(whole, Mapping):
            for name in MASK_NAMES:
                mask = cast("Mapping[str, Any]", whole).get(name)
                if isinstance(mask, Tensor) and mask.dim() == 2:
                    masks[name] = mask > 0
        if all(bool(mask.all()) for mask in masks.values()):
            masks = {}  # no padding; where one has some, all are needed to tell sequences of other lengths apart
        return Batch(args, kwargs, whole, targets, masks, size)

    def _split(self, whole: Any) -> tuple[tuple[Any, ...], dict[str, Any], Tensor | None]:
        """Inputs by position and by name, and targets."""
        if isinstance(whole, (Tensor, PackedSequence)):
            return (whole,), {}, None
        if isinstance(whole, Mapping):
            return self._split_mapping(dict(cast("Mapping[str, Any]", whole)))
        items = list(cast("Sequence[Any]", whole))
        if isinstance(self._targets, int):
            if not -len(items) <= self._targets < len(items):
                raise InputError("targets", self._targets, f"an index into batches of {len(items)} items")
            return (
                tuple(items[: self._targets % len(items)] + items[self._targets % len(items) + 1 :]),
                {},
                items[self._targets],
            )
        taken = isinstance(self._targets, Tensor) or len(items) == 1 or self._signature.required >= len(items)
        if taken:
            return tuple(items), {}, None
        last = items[-1]
        if not isinstance(last, Tensor):
            return tuple(items), {}, None
        self._note("the last item of every batch was taken for its targets (give a mapping to name inputs)")
        inputs = items[:-1]
        if len(inputs) == 1 and isinstance(inputs[0], Mapping):
            args, kwargs, _ = self._split_mapping(dict(cast("Mapping[str, Any]", inputs[0])))
            return args, kwargs, last
        return tuple(inputs), {}, last

    def _split_mapping(self, named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any], Tensor | None]:
        s = self._signature
        targets: Tensor | None = None
        if isinstance(self._targets, str):
            if self._targets not in named:
                raise InputError("targets", self._targets, f"a key of the batches ({', '.join(map(str, named))})")
            targets = named[self._targets] if self._targets in s.names else named.pop(self._targets)
        for name in TARGET_NAMES:
            if targets is None and name in named:
                targets = named[name] if name in s.names or (s.anything and name == "labels") else named.pop(name)
        if self._own_forward or s.anything:
            return (), named, targets
        unknown = [name for name in named if name not in s.names]
        if len(named) == 1 and unknown:
            return tuple(named.values()), {}, targets
        if unknown:
            raise InputError("data", f"the keys {', '.join(map(str, named))}",
                             f"the arguments of {self._model}.forward ({', '.join(s.names)})",
                             f"rename or leave out {', '.join(map(repr, unknown))}, or give forward=")  # fmt: skip
        return (), named, targets

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    @staticmethod
    def _check(args: tuple[Any, ...], kwargs: dict[str, Any], number: int) -> None:
        named = itertools.chain(((f"input {i}", a) for i, a in enumerate(args)), kwargs.items())
        for name, value in named:
            if "mask" in name or "bias" in name:
                continue
            for tensor in tensors_in(value):
                if tensor.is_floating_point() and not _all_finite(tensor):
                    raise InputError("data", f"values that are not finite in batch {number} ({name})", "finite numbers",
                                     "remove or impute these samples")  # fmt: skip


def sampler_of(loader: DataLoader[Any]) -> Any:
    """What puts the samples of a loader in order; a batch sampler of the user's own itself."""
    batches = cast("Any", loader.batch_sampler)
    if batches is None:
        return loader.sampler
    return batches.sampler if type(batches) is BatchSampler else batches


def _as_tensors(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biufc":
            raise InputError("data", f"an array of {value.dtype}", "numbers")
        return torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, Mapping):
        return {key: _as_tensors(item) for key, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, tuple):
        items = [_as_tensors(item) for item in cast("tuple[Any, ...]", value)]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value


def _samples(whole: Any) -> int:
    first = whole[0] if isinstance(whole, (tuple, list)) and not isinstance(whole, PackedSequence) else whole
    if isinstance(first, PackedSequence):
        return int(first.batch_sizes[0])
    return next((t.shape[0] if t.dim() else 1) for t in tensors_in(whole))


def _batch_size(tensors: Sequence[Tensor]) -> int:
    if not any(t.is_floating_point() for t in tensors):
        return _TOKEN_BATCH
    per_sample = max(t[0].numel() if t.shape[0] else 1 for t in tensors)
    return max(1, min(_MOST_SAMPLES, _ELEMENTS // max(per_sample, 1)))


def _all_finite(tensor: Tensor) -> bool:
    """Whether no number is NaN or infinite, by the least and the largest: 20 times as fast on pictures."""
    if tensor.layout == torch.sparse_coo:
        tensor = tensor.coalesce()
    held = tensor.values() if tensor.is_nested or tensor.layout != torch.strided else tensor
    held = held.float() if held.element_size() == 1 else held  # numbers of 8 bits are not ordered
    return not held.numel() or all(bool(torch.isfinite(end)) for end in torch.aminmax(held))
