"""Samples from a file of arrays, and which of the arrays are inputs and targets."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isthmus._errors import InputError
from isthmus.probe._batches import TARGET_NAMES
from isthmus.probe._loading_files import listed, near, read_safetensors, read_torch, said, there, unreadable

ARRAY_FORMATS = (".npz", ".npy", ".safetensors", ".pt")


def load_arrays(path: str | Path) -> dict[str, Tensor]:
    """The arrays of a file by name, one row per sample; a single array without a name is `x`.

    Reads `.npz`, `.npy`, `.safetensors`, and `.pt` of a tensor or a dictionary of tensors. Precision is kept (float64
    stays float64); unsigned integers become int64. Object arrays and pickles are refused, for they run code.

    Args:
        path: of the file.

    Returns:
        tensors on the CPU, all with the same number of rows.

    Raises:
        InputError: a file that is missing, broken or refused; arrays without numbers, without rows or of different
            lengths.

    Example:
        >>> load_arrays("samples.npz")["x"].shape  # doctest: +SKIP
        torch.Size([1797, 64])
    """
    file = there(path, "data", ARRAY_FORMATS)
    kind = file.suffix.lower()
    if kind == ".safetensors":
        arrays = read_safetensors(file, "data")
    elif kind == ".pt":
        arrays = _of_torch(file)
    else:
        arrays = {name: _tensor(file, name, array) for name, array in _of_numpy(file).items()}
    return _checked(file, arrays)


def _of_numpy(file: Path) -> dict[str, np.ndarray]:
    try:
        with file.open("rb") as stream:
            loaded: Any = np.load(stream, allow_pickle=False)
            return {"x": loaded} if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, SyntaxError) as error:
        if "allow_pickle" in str(error):
            objects = "Object arrays" in str(error)
            what = (
                "it holds an object array, which is a pickle"
                if objects
                else "it is no NumPy file, but perhaps a pickle"
            )
            raise InputError("data", str(file), f"arrays of numbers ({what} that may run code)",
                             "save each array with a numeric dtype") from error  # fmt: skip
        raise unreadable(file, "data", said(error)) from error


def _tensor(file: Path, name: str, array: np.ndarray) -> Tensor:
    if array.dtype.kind not in "biufc":
        raise InputError("data", str(file), f"arrays of numbers ({name!r} is of {array.dtype})",
                         "encode texts and dates as numbers")  # fmt: skip
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:  # torch can do little with the wide unsigned ones
        if array.size and int(array.max()) > np.iinfo(np.int64).max:
            raise InputError("data", str(file), f"integers of 64 bits with a sign ({name!r} has larger ones)")
        array = array.astype(np.int64)
    try:
        return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))
    except TypeError as error:
        raise InputError("data", str(file), f"a precision that torch has ({name!r} is of {array.dtype})",
                         "save it as float64") from error  # fmt: skip


def _of_torch(file: Path) -> dict[str, Tensor]:
    loaded = read_torch(file, "data", "tensors")
    if isinstance(loaded, Tensor):
        return {"x": loaded.detach()}
    found = f"a {type(loaded).__name__}"
    if isinstance(loaded, Mapping):
        odd = [str(k) for k, v in loaded.items() if not (isinstance(k, str) and isinstance(v, Tensor))]
        if not odd:
            return {str(k): v.detach() for k, v in loaded.items()}
        found += f" in which {listed(odd, 3)} is no named tensor"
    raise InputError("data", str(file), f"a tensor, or a dictionary of tensors by name (this holds {found})",
                     "torch.save({'x': x, 'y': y}, …)")  # fmt: skip


def _checked(file: Path, arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    if not arrays:
        raise InputError("data", str(file), "at least one array (there is none)")
    for name, value in arrays.items():
        if value.layout != torch.strided or value.is_quantized:
            raise InputError("data", str(file), f"dense tensors ({name!r} is not)", "save its to_dense()")
        if value.ndim == 0:
            raise InputError("data", str(file), f"arrays with a row per sample ({name!r} is a single number)")
        if value.numel() == 0:
            raise InputError(
                "data", str(file), f"arrays with numbers in them ({name!r} has shape {tuple(value.shape)})"
            )
    if len({value.shape[0] for value in arrays.values()}) > 1:
        lengths = ", ".join(f"{name!r} has {value.shape[0]}" for name, value in list(arrays.items())[:8])
        raise InputError("data", str(file), f"arrays with the same number of rows ({lengths})",
                         "give one file with one row per sample in every array")  # fmt: skip
    return arrays


def choose_arrays(
    arrays: Mapping[str, Tensor], inputs: Sequence[str] = (), targets: str | None = None
) -> tuple[Tensor | dict[str, Tensor], Tensor | None]:
    """Inputs and targets among named arrays.

    Targets that are not named are the array called y, labels, label, targets or target, if there is one that is no
    input. Inputs that are not named are all others; a single array is the input whatever its name.

    Args:
        arrays: what `load_arrays` returned.
        inputs: names of the inputs.
        targets: name of the targets.

    Returns:
        the inputs (a tensor for one, a dictionary in the order given for several), and the targets or None.

    Raises:
        InputError: a name that is not there, named twice, or that could be meant in two ways; or no input left.

    Example:
        >>> x, y = choose_arrays({"x": torch.zeros(5, 3), "y": torch.zeros(5)})
        >>> x.shape, y.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """
    chosen = [inputs] if isinstance(inputs, str) else list(inputs)
    for argument, names in (("inputs", chosen), ("targets", [] if targets is None else [targets])):
        for name in names:
            if name not in arrays:
                raise InputError(argument, repr(name), "an array of the file", near(name, arrays))
    twice = [name for name in chosen if chosen.count(name) > 1 or name == targets]
    if twice:
        raise InputError("inputs", listed(chosen), f"each array once, and no targets ({twice[0]!r} stands twice)")
    if targets is None and len(arrays) > 1:
        likely = [name for name in TARGET_NAMES if name in arrays and name not in chosen]
        if len(likely) > 1:
            raise InputError("targets", listed(likely), "one array of targets", "say which, and which are inputs")
        targets = likely[0] if likely else None
    chosen = chosen or [name for name in arrays if name != targets]
    if not chosen:
        raise InputError("inputs", "none", "at least one array that is not the targets", f"there are {listed(arrays)}")
    found = arrays[chosen[0]] if len(chosen) == 1 else {name: arrays[name] for name in chosen}
    return found, None if targets is None else arrays[targets]
