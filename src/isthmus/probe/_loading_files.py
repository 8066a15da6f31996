"""Files of weights and of samples, read without ever running what a pickle holds; words for their errors."""

from __future__ import annotations

import difflib
import pickle
import re
import struct
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from isthmus._errors import InputError

_NOT_TORCH = "it is not what torch.save writes"


LONGEST_REASON = 300
"""Characters of an error that a record or a warning quotes."""


def said(error: BaseException, limit: int = 200) -> str:
    """An exception on one line, of at most `limit` characters beside its type."""
    text = " ".join(str(error).split())
    text = text if len(text) <= limit else text[: limit - 3] + "..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def reason_of(error: BaseException) -> str:
    """What an exception says, on one line of at most 300 characters; its type where it says nothing."""
    return " ".join(str(error).split())[:LONGEST_REASON] or type(error).__name__


def listed(names: Iterable[str], limit: int = 8) -> str:
    """Names in quotes, at most `limit` of them."""
    every = list(names)
    shown = ", ".join(map(repr, every[:limit]))
    return shown if len(every) <= limit else f"{shown} and {len(every) - limit} more"


def near(name: str, known: Iterable[str]) -> str:
    """`did you mean …?`, or the first of the known names where none is close."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    return f"there are {listed(names)}" if names else ""


def there(path: str | Path, argument: str, formats: tuple[str, ...]) -> Path:
    """A file of a known type that is there and not empty."""
    file = Path(path)
    if file.is_dir():
        raise InputError(argument, str(file), "a file (this is a folder)", f"name a file in it: {', '.join(formats)}")
    if file.suffix.lower() not in formats:
        raise InputError(argument, str(file), f"a file of a known type ({', '.join(formats)})")
    if not file.is_file():
        beside = [p.name for p in file.parent.iterdir() if p.suffix.lower() in formats] if file.parent.is_dir() else []
        raise InputError(argument, str(file), "a file that is there", near(file.name, beside))
    if file.stat().st_size == 0:
        raise InputError(argument, str(file), f"a readable {file.suffix.lower()} file (this one is empty)")
    return file


def unreadable(file: Path, argument: str, why: str) -> InputError:
    """The error of a file that is not what its name says."""
    return InputError(argument, str(file), f"a readable {file.suffix.lower()} file ({why})",
                      "write or download it again")  # fmt: skip


def read_safetensors(file: Path, argument: str) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file."""
    try:
        return safetensors.torch.load_file(file)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise unreadable(file, argument, said(error)) from error


def read_torch(file: Path, argument: str, what: str) -> Any:
    """What `torch.save` wrote, if it holds only tensors and plain containers."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript, pickle protocols: said below as errors
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        if named is None and file.read_bytes()[:1] not in (b"\x80", b"P"):  # no pickle, and no archive of one
            raise unreadable(file, argument, _NOT_TORCH) from error
        raise _refused(file, argument, what, named.group(1) if named else "") from error
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, IndexError, AttributeError, TypeError,
            struct.error) as error:  # fmt: skip
        if "TorchScript" in str(error):
            raise InputError(argument, str(file), f"{what} alone (this is a TorchScript archive, which holds code)",
                             "save the state_dict() as safetensors") from error  # fmt: skip
        raise unreadable(
            file, argument, said(error) if isinstance(error, (OSError, RuntimeError)) else _NOT_TORCH
        ) from error


def _refused(file: Path, argument: str, what: str, named: str) -> InputError:
    source, made = repr(str(file)), repr(str(file.with_suffix(".safetensors")))
    line = (f"import torch, safetensors.torch as st; s = torch.load({source}, map_location='cpu', weights_only=False); "
            "s = s.state_dict() if hasattr(s, 'state_dict') else s; s = {'x': s} if torch.is_tensor(s) else s; "
            "s = s.get('state_dict', s.get('model_state_dict', s.get('model', s))); "
            "s = s.state_dict() if hasattr(s, 'state_dict') else s; "
            f"st.save_file({{k: torch.as_tensor(v).clone() for k, v in s.items()}}, {made})")  # fmt: skip
    why = f"it asks for {named}" if named else "it asks for more than tensors"
    return InputError(argument, str(file), f"{what} alone (this is a pickle that may run code: {why})",
                      f"where it is trusted, convert it to safetensors with this line of Python: `{line}`")  # fmt: skip
