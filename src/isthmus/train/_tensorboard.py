"""Training curves for TensorBoard, an extra: `pip install "isthmus[tensorboard]"`."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from isthmus.probe import require_tensorboard as require_tensorboard
from isthmus.train._log import EpochLog


@contextmanager
def tensorboard_scalars(
    folder: Path, then: Callable[[int, int, EpochLog | None], None] | None = None
) -> Generator[Callable[[int, int, EpochLog | None], None]]:
    """A `progress` for `fit` that writes every recorded epoch's metrics as scalars, then calls `then`.

    Tags are `split/metric`, and `layer_step/ℓ` for the layer steps; the step is the epoch.

    Raises:
        InputError: TensorBoard is not installed.
    """
    require_tensorboard()
    from torch.utils.tensorboard.writer import SummaryWriter

    writer: Any = SummaryWriter(str(folder))

    def progress(epoch: int, epochs: int, log: EpochLog | None) -> None:
        if log is not None:
            for split, values in (("train", log.train), ("validation", log.validation), ("test", log.test)):
                for metric, value in values.items():
                    writer.add_scalar(f"{split}/{metric}", value, epoch)
            for layer, step in enumerate(log.layer_steps, 1):
                writer.add_scalar(f"layer_step/{layer}", step, epoch)
        if then is not None:
            then(epoch, epochs, log)

    try:
        yield progress
    finally:
        writer.close()
