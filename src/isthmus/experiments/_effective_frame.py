"""What every figure of the effective theory's paper is made of: settings that name its networks, and a function.

The settings of a figure are a frozen dataclass with `networks`; its function is called
`figure(settings, networks, folder, table)`, where `networks` are those that the settings named, each now complete in
`folder / network.name`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from isthmus.experiments._images import ImageFile


@runtime_checkable
class EffectiveNetwork(Protocol):
    """What one folder holds: a network, or several that are trained together."""

    @property
    def name(self) -> str:
        """Of its folder: what tells it apart for a reader, and a digest of everything."""
        ...

    def train(self, folder: Path) -> None:
        """Make `folder / name` complete, from nothing or from what a killed process left."""
        ...


@runtime_checkable
class FigureSettings(Protocol):
    """Sizes and training of one figure."""

    @property
    def reads_images(self) -> bool:
        """Whether its networks are trained on the user's images."""
        ...

    def networks(self, file: ImageFile, device: str) -> Sequence[Any]:
        """The networks it needs, each an `EffectiveNetwork`; another figure may name the same ones."""
        ...
