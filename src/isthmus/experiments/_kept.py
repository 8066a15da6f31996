"""A network in a run folder of its own: what names it, how it begins, and what is kept of it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import safetensors.torch
from torch import nn

from isthmus._errors import RunFolderError
from isthmus._records import RunFolder, write_whole


def digest_of(settings: Any) -> str:
    """Ten hexadecimal digits of what is ready for JSON, for the name of a folder."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]


def is_complete(path: Path) -> bool:
    """Whether a run folder is there, finished."""
    return (path / "run.json").exists() and RunFolder.open(path).run.get("status") == "complete"


def begin_network(
    path: Path, *, command: str, configuration: Mapping[str, Any], seed: int, device: str, dtype: str
) -> RunFolder:
    """A new folder, or that of a training that was killed, which begins again in it."""
    if (path / "run.json").exists():
        return RunFolder.open(path)
    shutil.rmtree(path, ignore_errors=True)  # killed before its record was whole
    return RunFolder.create(path, command=command, configuration=configuration, seed=seed, device=device, dtype=dtype)


def open_network(path: Path) -> RunFolder:
    """The folder of a trained network. Raises `RunFolderError` where it is not there or not complete."""
    if not is_complete(path):
        raise RunFolderError("run", str(path), "a network that is trained", "run the command again")
    return RunFolder.open(path)


NetworkT = TypeVar("NetworkT")
TrainedT = TypeVar("TrainedT", bound="Trained[Any]")


@dataclasses.dataclass(frozen=True)
class Trained(Generic[NetworkT]):
    """A trained network, read from its folder.

    Attributes:
        network: what it is.
        run: its folder.
    """

    network: NetworkT
    run: RunFolder

    @classmethod
    def open(cls: type[TrainedT], network: NetworkT, folder: Path) -> TrainedT:
        """Read it. Raises `RunFolderError` where it is not there or not complete."""
        named: Any = network  # some names are properties, some are cached ones: no protocol has both
        return cls(network, open_network(folder / named.name))

    def number(self, name: str) -> float:
        """One of the numbers that its training left."""
        return float(self.run.run["trained"][name])


def save_weights(run: RunFolder, model: nn.Module, name: str = "model") -> None:
    """Write `name.safetensors`, whole."""
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    write_whole(run.path / f"{name}.safetensors", lambda p: safetensors.torch.save_file(state, p))
