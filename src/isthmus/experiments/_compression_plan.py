"""What a compression would take, before it is started: samples, memory, time."""

from __future__ import annotations

import copy
import dataclasses
import os
import time

from isthmus.experiments._compression import CompressionConfig, prepare_compression
from isthmus.train import depth_curves, fit


@dataclasses.dataclass(frozen=True)
class CompressionPlan:
    """Sizes of a compression, and its expected seconds, measured here and now.

    Attributes:
        layers: of the full network.
        width: of its path.
        train, choosing, judging: samples; the latter two in words, too.
        memory: bytes of the path of the training samples, with copies.
        seconds: of judging every depth by every method, and of fine-tuning.
        epochs: of fine-tuning at each depth.
    """

    layers: int
    width: int
    train: int
    choosing: str
    judging: str
    memory: int
    seconds: float
    epochs: int

    def lines(self) -> list[tuple[str, str]]:
        """Names and values, for printing."""
        minutes = f"{self.seconds:.0f} s" if self.seconds < 120 else f"{self.seconds / 60:.1f} min"
        tuned = f", with {self.epochs:,} epochs of fine-tuning at each" if self.epochs else ""
        return [
            ("width × layers", f"{self.width} × {self.layers}"),
            ("samples, training", f"{self.train:,}"),
            ("samples that choose", self.choosing),
            ("samples that judge", self.judging),
            ("memory, about", f"{self.memory / 2**20:,.0f} MiB"),
            ("time, at most about", f"{minutes} for {self.layers - 1} depths{tuned}"),
        ]


def plan_compression(run: str | os.PathLike[str], config: CompressionConfig | None = None) -> CompressionPlan:
    """Check everything, and estimate what a compression would take: makes some of its networks, and writes nothing.

    Raises:
        InputError: as `run_compression`, but for the tolerance that no depth meets.
    """
    config = config or CompressionConfig()
    source, tuning = prepare_compression(run, config)
    model, train, layers = source.model, source.train, source.model.depth
    begun = time.perf_counter()
    depth_curves(model, [(part.x, part.y) for part in (source.choosing, source.judging)], loss=source.loss,
                 depths=[layers - 1], x_train=train.x)  # fmt: skip
    seconds = (time.perf_counter() - begun) * (layers - 1)
    if tuning is not None:
        made = copy.deepcopy(model)
        one = dataclasses.replace(tuning, epochs=1)
        fit(made, train.x, train.y, one)  # warm up
        begun = time.perf_counter()
        fit(made, train.x, train.y, one)
        seconds += (time.perf_counter() - begun) * tuning.epochs * (layers - 1) / 2
    size = 3 * (layers + 1) * len(train) * model.width * 8
    return CompressionPlan(layers, model.width, len(train), f"{len(source.choosing):,} ({source.choosing.what})",
                           f"{len(source.judging):,} ({source.judging.what})", size, seconds,
                           0 if tuning is None else tuning.epochs)  # fmt: skip
