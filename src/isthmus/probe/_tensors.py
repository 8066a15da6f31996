"""What a module took or gave, as a matrix with one observation per row: which tensor, which dimension, which rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor inside tuples, lists, mappings (a `ModelOutput` is one), dataclasses and packed sequences."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, PackedSequence):
        yield value.data
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors_in(getattr(value, field.name))


def why_unusable(tensor: Tensor) -> str:
    """Why no second moments can be taken of a tensor, or an empty string."""
    if tensor.is_nested:
        return "a nested tensor: pad it to one shape"
    if tensor.layout != torch.strided:
        return f"a sparse tensor ({tensor.layout}): give it dense"
    if tensor.is_quantized:
        return f"a quantised tensor ({tensor.dtype}): measure the model before it is quantised"
    if tensor.is_complex():
        return f"a complex tensor ({tensor.dtype}): second moments are taken of real numbers"
    if not tensor.is_floating_point():
        return f"integers ({tensor.dtype}): they have no second moments"
    if tensor.dim() == 0:
        return "a single number"
    return "" if tensor.numel() else f"an empty tensor {tuple(tensor.shape)}"


def main_tensor(value: Any) -> tuple[Tensor | None, str]:
    """The first usable tensor of what a module took or gave; if there is none, None and the reason."""
    found = list(tensors_in(value))
    for tensor in found:
        if not why_unusable(tensor):
            return tensor, ""
    return (None, why_unusable(found[0])) if found else (None, f"no tensor ({type(value).__name__})")


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same structure with `change` applied to every tensor (tuples, lists and mappings are made anew)."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: mapped(item, change) for key, item in value.items()}
    if isinstance(value, PackedSequence):  # a tuple, too, whose other tensors say how it is packed
        return value._replace(data=change(value.data))
    if isinstance(value, tuple):
        items = [mapped(item, change) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, list):
        return [mapped(item, change) for item in value]
    return value


def concatenated(values: Sequence[Any], sizes: Sequence[int]) -> Any | None:
    """The same structure with the samples of every value one after the other; None where they do not fit together.

    Args:
        values: batches of one structure, their samples in the first dimension of every tensor.
        sizes: number of samples in each.
    """
    if len(values) == 1:
        return values[0]
    parts = [list(tensors_in(value)) for value in values]
    first = parts[0]
    for part, size in zip(parts, sizes, strict=True):
        if len(part) != len(first):
            return None
        if not all(t.dim() and t.shape[0] == size and t.shape[1:] == u.shape[1:]
                   for t, u in zip(part, first, strict=True)):  # fmt: skip
            return None
    whole = iter([torch.cat(columns) for columns in zip(*parts, strict=True)])
    return mapped(values[0], lambda _: next(whole))


def columns_last(tensor: Tensor, dimension: int) -> Tensor:
    """A view with the features in the last dimension. `dimension` is −1, or 1 for channels first."""
    return tensor if dimension == -1 or tensor.dim() <= 2 else tensor.movedim(1, -1)


def observation_shape(tensor: Tensor, dimension: int) -> tuple[int, ...]:
    """Shape of the observations (samples, then positions), without the features."""
    shape = tuple(columns_last(tensor, dimension).shape)
    return shape if len(shape) == 1 else shape[:-1]


def kept_rows(shape: tuple[int, ...], masks: Mapping[str, Tensor], name: str) -> tuple[Tensor | None, str]:
    """Which observations are not padding.

    Args:
        shape: observation shape of the tensor.
        masks: boolean masks `(samples, positions)` by name, True where a position counts.
        name: name of the module; where two masks fit and differ, one whose name starts with `decoder` goes with
            modules inside a decoder.

    Returns:
        A flat boolean mask of the observations, or None where none is padding; and, where the mask cannot be
        placed, the reason.
    """
    if not masks:
        return None, ""
    inside = "decoder" in name
    order = sorted(masks, key=lambda key: key.startswith("decoder") != inside)
    for key in order:
        mask = masks[key]
        n, positions = mask.shape
        if len(shape) <= 1 and shape != (n * positions,):
            return None, ""  # one observation per sample: pooled
        if shape == (n * positions,):
            return mask.flatten(), ""
        leading = shape[:1]
        if leading == (1,) and n > 1:
            return None, ""  # the same for every sample (embedded positions)
        if leading == (n,) and shape[1:].count(positions) == 1:
            place = 1 + shape[1:].index(positions)
            return _spread(mask, shape, 0, place), ""
        if leading == (n,) and positions in shape[1:]:
            return None, f"{positions} positions stand twice in observations of shape {shape}: which are padded?"
        if shape[:2] == (positions, n):
            return _spread(mask.mT, shape, 0, 1), ""
    sizes = " or ".join(str(tuple(masks[key].shape)) for key in order)
    return None, f"padding of {sizes} cannot be told apart in observations of shape {shape}"


def _spread(mask: Tensor, shape: tuple[int, ...], first: int, second: int) -> Tensor:
    view = [1] * len(shape)
    view[first], view[second] = shape[first], shape[second]
    return mask.reshape(view).expand(shape).flatten()


def rows_of(tensor: Tensor, dimension: int, keep: Tensor | None) -> Float[Tensor, "rows width"]:
    """The tensor as a matrix with one observation per row, without padding."""
    moved = columns_last(tensor, dimension)
    flat = moved.reshape(-1, moved.shape[-1]) if moved.dim() > 1 else moved.reshape(-1, 1)
    return flat if keep is None else flat[keep.to(flat.device)]
