"""Weights from a file into a model: all of them or none."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from isthmus._errors import InputError
from isthmus.probe._loading_files import listed, read_safetensors, read_torch, said, there

WEIGHT_FORMATS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")

_NESTED = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")


def load_weights(model: nn.Module, path: str | Path, *, strict: bool = True) -> None:
    """Copy weights from a file into a model, in the model's dtype and on its device: all of them or none.

    The file is a `.safetensors`, or what `torch.save` wrote of a dictionary of tensors, alone or under `state_dict`,
    `model_state_dict` or `model`; the prefixes `module.` (DataParallel) and `_orig_mod.` (torch.compile) are
    stripped. Pickles that hold anything else are refused, for they run code. Of tied weights one name is enough.

    Args:
        model: receives the weights.
        path: of the file.
        strict: every name of the model and of the file is needed; if not, names in only one of them are left
            out (a wrong shape is still refused, and so is a file without any of the model's names).

    Raises:
        InputError: a file that is missing, broken or refused, or that does not fit the model.

    Example:
        >>> load_weights(model, "weights.safetensors")  # doctest: +SKIP
    """
    file = there(path, "weights", WEIGHT_FORMATS)
    if file.suffix.lower() == ".safetensors":
        state: dict[str, Any] = dict(read_safetensors(file, "weights"))
    else:
        state = _state_dict(file, read_torch(file, "weights", "weights"))
    _copy_all_or_none(model, file, _without_prefixes(state, model.state_dict()), strict)


def _state_dict(file: Path, loaded: Any) -> dict[str, Any]:
    state = loaded
    while isinstance(state, Mapping):
        inner = next((state[k] for k in _NESTED if isinstance(state.get(k), Mapping)), None)
        if inner is None:
            break
        state = inner
    named = isinstance(state, Mapping) and all(isinstance(k, str) for k in state)
    if not named or not any(isinstance(v, Tensor) for v in state.values()):
        found = f"a {type(loaded).__name__}"
        if isinstance(loaded, Mapping):
            found += f" with {listed(map(str, loaded))}"
        raise InputError("weights", str(file), f"a dictionary of tensors by name, alone or under one of "
                         f"{listed(_NESTED)} (this holds {found})", "save model.state_dict()")  # fmt: skip
    return dict(cast("Mapping[str, Any]", state))


def _without_prefixes(state: dict[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """`module.` and `_orig_mod.` removed where all names have them and none of the model's has."""
    while True:
        for prefix in _PREFIXES:
            if all(k.startswith(prefix) for k in state) and not any(k.startswith(prefix) for k in wanted):
                state = {k.removeprefix(prefix): v for k, v in state.items()}
                break
        else:
            return state


def _tied(model: nn.Module) -> dict[str, list[str]]:
    """For each name of the state, all names of the same tensor."""
    groups: dict[object, list[str]] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        same: object = name
        if isinstance(value, Tensor) and not is_lazy(value):
            same = id(value)
            if value.numel() and value.device.type != "meta":
                same = (value.data_ptr(), value.dtype, value.shape, value.stride())
        groups.setdefault(same, []).append(name)
    return {name: names for names in groups.values() for name in names}


def _copy_all_or_none(model: nn.Module, file: Path, state: dict[str, Any], strict: bool) -> None:
    wanted, tied = model.state_dict(), _tied(model)
    problems = [*_wrong_shapes(wanted, state), *_torn_apart(tied, state)]
    if not problems and not any(name in wanted for name in state):
        problems = [f"none of its {len(state)} names is the model's ({listed(state, 3)})"]
    if problems:
        raise _unfit(file, problems, "")
    kept = {k: v.detach().clone() for k, v in wanted.items() if isinstance(v, Tensor) and not is_lazy(v)}
    if set(state) == set(wanted):
        kept.clear()  # names and shapes fit: no second copy of a large model
    try:
        # torch's own rules for names of older versions (BatchNorm's counter, weight norm) decide what is missing
        missing, unexpected = model.load_state_dict(state, strict=False)
    except (RuntimeError, AttributeError, TypeError, ValueError) as error:
        _restore(model, kept)
        raise InputError("weights", str(file), f"weights that fit the model ({said(error)})") from error
    missing = [k for k in missing if not any(other in state for other in tied.get(k, ()))]
    if strict and (missing or unexpected):
        _restore(model, kept)
        hint = _near_names(unexpected, missing)
        raise _unfit(file, [_counted("missing", missing), _counted("unexpected", unexpected)], hint)


def _restore(model: nn.Module, kept: Mapping[str, Tensor]) -> None:
    state = model.state_dict()
    for name, value in kept.items():
        state[name].copy_(value)


def _counted(word: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    return f"{len(names)} {word}: {listed(names[:3])}" + (" …" if len(names) > 3 else "")


def _near_names(unexpected: Sequence[str], missing: Sequence[str]) -> str:
    for name in unexpected:
        close = difflib.get_close_matches(name, missing, n=1, cutoff=0.6)
        if close:
            return f"is {name!r} the model's {close[0]!r}?"
    return "" if missing else "give strict=False to leave out what the model does not have"


def _wrong_shapes(wanted: Mapping[str, Any], state: Mapping[str, Any]) -> list[str]:
    wrong: list[str] = []
    for name, mine in wanted.items():
        if name not in state or not isinstance(mine, Tensor) or is_lazy(mine):
            continue
        theirs = state[name]
        if not isinstance(theirs, Tensor):
            wrong.append(f"{name!r} is a {type(theirs).__name__} and no tensor")
        elif theirs.shape != mine.shape:
            wrong.append(f"{name!r} has shape {tuple(theirs.shape)} and the model's {tuple(mine.shape)}")
        elif theirs.is_complex() and not mine.is_complex():
            wrong.append(f"{name!r} is complex and the model's is not")
    if not wrong:
        return []
    return [f"{len(wrong)} of a wrong shape: " + ", ".join(wrong[:3]) + (" …" if len(wrong) > 3 else "")]


def _torn_apart(tied: Mapping[str, list[str]], state: Mapping[str, Any]) -> list[str]:
    """Names of one tensor of the model for which the file has several values."""
    for names in tied.values():
        saved = [k for k in names if isinstance(state.get(k), Tensor)]
        other = next((k for k in saved[1:] if not _same(state[saved[0]], state[k])), None)
        if other is not None:
            return [f"{saved[0]!r} and {other!r} differ there and are one tensor in the model"]
    return []


def _same(first: Tensor, second: Tensor) -> bool:
    return first.dtype == second.dtype and torch.equal(first, second)


def _unfit(file: Path, problems: Iterable[str], hint: str) -> InputError:
    return InputError("weights", str(file), f"weights that fit the model ({'; '.join(p for p in problems if p)})", hint)
