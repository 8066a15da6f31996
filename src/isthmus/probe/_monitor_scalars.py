"""Numbers of a monitored training for TensorBoard, an extra: `pip install "isthmus[tensorboard]"`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import polars as pl

from isthmus._errors import InputError
from isthmus.geometry import GAMMA0S


def require_tensorboard() -> None:
    """Raise `InputError` that says what to install, unless TensorBoard is there."""
    if importlib.util.find_spec("tensorboard") is None:
        raise InputError("tensorboard", "asked for, but not installed", "the extra",
                         'pip install "isthmus[tensorboard]"')  # fmt: skip


class Scalars:
    """Writes rows of a table as scalars with the tag `metric/layer`.

    Args:
        folder: where the events go.
    """

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder))

    def add(self, step: int, rows: pl.DataFrame) -> None:
        """Write the values of one step; a metric at several γ₀ is written at the first."""
        first = pl.col("note").str.starts_with(f"gamma0={GAMMA0S[0]:g}") | ~pl.col("note").str.starts_with("gamma0=")
        good = rows.filter((pl.col("status") == "ok") & first)
        for metric, layer, value in good.select("metric", "layer", "value").iter_rows():
            self._writer.add_scalar(f"{metric}/{layer}" if layer else metric, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the file of events."""
        self._writer.close()
