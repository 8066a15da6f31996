"""Checkpoints of a training run: whole or not at all, loaded without unpickling, tied to their configuration."""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isthmus._errors import InputError, IsthmusError
from isthmus._records import write_whole
from isthmus.models import LeakyResNet
from isthmus.train._config import FitConfig

FORMAT = 1
"""Version of the file's layout."""


class CheckpointError(IsthmusError):
    """A checkpoint could not be written; the one before is untouched."""


def data_fingerprint(*tensors: Tensor) -> str:
    """SHA-256 of shapes, dtypes and bytes: the same data, and only they, give the same string."""
    digest = hashlib.sha256()
    for t in tensors:
        digest.update(f"{tuple(t.shape)} {t.dtype}".encode())
        digest.update(t.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def run_identity(model: LeakyResNet, config: FitConfig, data: str) -> dict[str, str]:
    """What must be the same for a run to be continued: settings, network, precision, data."""
    settings = dataclasses.asdict(config)
    if not config.pairs:
        del settings["pairs"]  # which runs that began before there were any do not name
    identity = {f"config.{k}": repr(v) for k, v in settings.items()}
    return identity | {
        "model": model.extra_repr(),
        "dtype": str(model.weight.dtype),
        "data": data,
    }


def save_checkpoint(path: Path, identity: dict[str, str], state: dict[str, Any]) -> None:
    """Write a checkpoint whole.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written; says where, and that the last one is kept.
    """
    content = {"isthmus_checkpoint": FORMAT, "identity": identity, "state": state}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda part: torch.save(content, part))
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        kept = "the checkpoint before it is kept" if path.exists() else "there is none before it"
        raise CheckpointError(
            f"checkpoint {path} could not be written ({error}); {kept}; make room and resume"
        ) from None


def load_checkpoint(path: Path, identity: dict[str, str]) -> dict[str, Any]:
    """Read a checkpoint back, with `weights_only=True`.

    Raises:
        InputError: the file is missing, corrupt, foreign or of a newer version, or belongs to a run with other settings
            (each difference is named).
    """
    expected = "a checkpoint written by this version of isthmus"
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError("checkpoint", str(path), "an existing checkpoint", "start the run anew") from None
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:120]
        raise InputError("checkpoint", str(path), f"{expected} (it cannot be read: {reason})", "start anew") from None
    if not isinstance(content, dict) or content.get("isthmus_checkpoint") != FORMAT:
        raise InputError("checkpoint", str(path), expected, "it comes from elsewhere")
    found: dict[str, str] = content["identity"]
    for key in sorted({*identity, *found}):
        if identity.get(key) != found.get(key):
            expected = f"{found.get(key)}, as in the run to resume"
            hint = "resume with the run's own configuration, or start a new run"
            raise InputError(key.removeprefix("config."), identity.get(key), expected, hint)
    return content["state"]
