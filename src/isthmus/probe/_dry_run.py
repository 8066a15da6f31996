"""What a measurement will take, before it is made: memory, time, and what would be left out."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn

from isthmus.probe._aligned import check_alignment_samples, planned_alignment
from isthmus.probe._one import Forward, prepared
from isthmus.probe._options import options_of
from isthmus.probe._pass import run_pass
from isthmus.probe._path_model import path_of
from isthmus.probe._progress import duration
from isthmus.probe._propagated_rows import planned_signals
from isthmus.probe._select import BLOCKS

_TRIED = 384


@dataclasses.dataclass(frozen=True)
class MeasurePlan:
    """What a measurement will take.

    Attributes:
        model: class of the model.
        samples: number of samples; None where the data do not say.
        measured: number of representations that will be measured.
        widest: the widest of them, and its number of features.
        skipped: representations that will not, with the reason.
        memory: bytes of all second moments.
        limit: bytes they may take.
        seconds_pass: time of the pass; None without a number of samples.
        seconds_spectra: time of the eigenvalues.
        alignment: what the alignment of the layers will take, or why there will be none.
        signals: the same of signal propagation.
    """

    model: str
    samples: int | None
    measured: int
    widest: tuple[str, int]
    skipped: Sequence[tuple[str, str]]
    memory: int
    limit: int
    seconds_pass: float | None
    seconds_spectra: float
    alignment: str
    signals: str

    def lines(self) -> list[tuple[str, str]]:
        """Name and value, as they are printed."""
        total = None if self.seconds_pass is None else self.seconds_pass + self.seconds_spectra
        found = [
            ("model", self.model),
            ("samples", "not said by the data" if self.samples is None else str(self.samples)),
            ("representations", f"{self.measured}, the widest {self.widest[0]} with {self.widest[1]} features"),
            ("memory", f"{self.memory / 2**20:.3g} MiB for second moments (at most {self.limit / 2**20:.4g} MiB)"),
            ("time", "unknown" if total is None else f"about {duration(total)} ({duration(self.seconds_pass or 0.0)} "
                     f"for the pass, {duration(self.seconds_spectra)} for spectra)"),
            ("alignment", self.alignment),
            ("signals", self.signals),
        ]  # fmt: skip
        return found + [(f"skipped: {name}", reason) for name, reason in self.skipped]


def plan_measure(
    model: nn.Module,
    data: Any,
    *,
    layers: str | Sequence[str] = BLOCKS,
    targets: Any = None,
    loss: Any = None,
    forward: Forward | None = None,
    max_samples: int | None = None,
    device: torch.device | str | None = None,
    metrics: Collection[str] | None = None,
    batch_size: int | None = None,
    max_memory: float | int | None = None,
    alignment_samples: int = 128,
    seed: int = 0,
) -> MeasurePlan:
    """Run one batch, time it, and say what `measure` with the same arguments will take.

    Memory is exact (8 bytes for each entry of each second moment). Time is one batch times their number, and the
    eigenvalues of one small matrix times the third power of the widths. Those of the alignment and of signal
    propagation are said beside it. Not in it are the Jacobian, the bottleneck certificate, which takes seconds, the
    largest eigenvalue of the tangent kernel, and a baseline, which takes nearly all of it again.

    Raises:
        InputError: as `measure`.
    """
    bare, options, _ = options_of(
        model, layers=layers, targets=targets, loss=loss, forward=forward, max_samples=max_samples, device=device,
        metrics=metrics, batch_size=batch_size, max_memory=max_memory, jacobian_samples=0, seed=seed,
    )  # fmt: skip
    check_alignment_samples(alignment_samples)
    with prepared(bare, data, options) as ready:
        skipped = [(one.site.label, one.why) for one in ready.plan.sites if one.track is None]
        seconds = math.inf
        for _ in range(2):  # the first one also warms up
            start = time.perf_counter()
            run_pass(bare, [ready.first], ready.plan, ready.survey, ready.handles, forward=forward, loss=options.loss,
                     backward=options.backward)  # fmt: skip
            seconds = min(seconds, time.perf_counter() - start)
            for handle in ready.handles:
                handle.remove()
        total = ready.batches.total
        widths = [(one.site.label, one.track.width) for one in ready.plan.sites if one.track is not None]
        size = ready.first.size
    along = path_of(bare, None) is not None
    alignment = planned_alignment(bare, data, options, alignment_samples, along=along)
    signals = planned_signals(bare, data, options, alignment_samples, along=along)
    return MeasurePlan(
        model=type(bare).__name__,
        samples=total,
        measured=len(widths),
        widest=max(widths, key=lambda pair: pair[1], default=("none", 0)),
        skipped=skipped,
        memory=ready.plan.memory,
        limit=ready.plan.limit,
        seconds_pass=None if total is None else seconds * math.ceil(total / size),
        seconds_spectra=_spectra_seconds([track.width for track in ready.plan.tracks]),
        alignment=alignment,
        signals=signals,
    )


def _spectra_seconds(widths: Sequence[int]) -> float:
    """Two spectra and an eigendecomposition of each width, scaled from one that is timed."""
    trial = torch.eye(_TRIED, dtype=torch.float64) + torch.ones(_TRIED, _TRIED, dtype=torch.float64) / _TRIED
    start = time.perf_counter()
    torch.linalg.eigvalsh(trial)
    one = time.perf_counter() - start
    return sum(4 * one * (width / _TRIED) ** 3 for width in widths)
