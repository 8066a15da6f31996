"""The table of a compression, and what its run folder says of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from isthmus._records import MetricTable
from isthmus.experiments._compression_source import CompressionSource, Part
from isthmus.models import LeakyResNet
from isthmus.train import Compressed, DepthCurve, data_term

CHOOSING, JUDGING = "choosing", "judging"
"""Splits of the rows: samples that choose the depth, and samples that took no part in it."""

FULL = "full"
"""What rows of the full network have as `layer`."""


@dataclasses.dataclass(frozen=True)
class Curves:
    """Loss against depth by every method, on the samples that choose and that judge, and what was chosen."""

    choosing: DepthCurve
    judging: DepthCurve
    small: Compressed

    @property
    def judged(self) -> DepthCurve:
        """The curve that the chosen network is on, on the samples that judge."""
        assert self.small.judged is not None
        return self.small.judged


def series_of(method: str, *, tuned: bool) -> str:
    """What rows of a method have as `layer`."""
    return f"{method}, tuned" if tuned else method


def per_sample(model: LeakyResNet, part: Part, loss: str) -> np.ndarray:
    """The loss of every sample, in float64."""
    with torch.no_grad():
        outputs = model(part.x.to(model.weight)).double().cpu()
    targets = part.y.double() if part.y.is_floating_point() else part.y
    return np.array([float(data_term(loss, outputs[i : i + 1], targets[i : i + 1])) for i in range(len(part))])


def compression_rows(
    source: CompressionSource, method: str, curves: Curves, *, tuned: bool
) -> tuple[MetricTable, dict[str, int]]:
    """A row for the loss, and one for the score, of every method, depth and part of the samples.

    Returns:
        The table, and of the full network and the chosen one the row numbers of their losses and scores, by
        `<full or small>/<split>/<metric>`.
    """
    table, rows = MetricTable(), dict[str, int]()
    seed = source.fit.seed
    chosen = series_of(method, tuned=tuned)
    for split, part, every, small in (
        (CHOOSING, source.choosing, curves.choosing, curves.small.curve),
        (JUDGING, source.judging, curves.judging, curves.judged),
    ):
        where: dict[str, Any] = {"split": split, "seed": seed, "n": len(part)}
        known = [(point.method, point) for point in (every.full, *every.points)]
        if tuned:
            known += [(chosen, point) for point in small.points]
        for name, point in known:
            for metric, value in (("loss", point.loss), (every.score_name, point.score)):
                at: dict[str, Any] = {**where, "layer": name, "index": point.depth}
                if value is None or math.isnan(value):
                    why = point.note or "not defined for one sample or constant targets"
                    row = table.skip(metric, why, **at)
                else:
                    row = table.add(metric, value, **at)
                if name == FULL:
                    rows[f"{FULL}/{split}/{metric}"] = row
                elif name == chosen and point.depth == curves.small.depth:
                    rows[f"small/{split}/{metric}"] = row
    return table, rows


def compression_record(
    source: CompressionSource, config: Mapping[str, Any], curves: Curves, change: np.ndarray
) -> dict[str, Any]:
    """The mapping `compression` of `run.json`.

    Args:
        source: what was compressed.
        config: the settings.
        curves: what was found.
        change: of every sample that judges, the loss of the small network minus that of the full one.
    """
    small, tolerance, relative = curves.small, float(config["tolerance"]), not config["absolute"]
    judged = next(point for point in curves.judged.points if point.depth == small.depth)
    full = curves.judging.full.loss
    assert full is not None
    error = float(change.std(ddof=1)) / math.sqrt(len(change)) if len(change) > 1 else None
    return {
        "source": source.folder.path.name, "depth_before": source.model.depth, "depth": small.depth,
        "series": series_of(config["method"], tuned=bool(config["finetune"])), "method": config["method"],
        "finetune": config["finetune"], "tolerance": tolerance, "relative": relative,
        "score": curves.choosing.score_name,
        "effective_depth_before": source.model.effective_depth, "effective_depth": small.model.effective_depth,
        CHOOSING: {
            "n": len(source.choosing), "what": source.choosing.what, "full": curves.choosing.full.loss,
            "loss": small.loss, "bound": small.bound,
        },
        JUDGING: {
            "n": len(source.judging), "what": source.judging.what, "full": full, "loss": judged.loss,
            "bound": (1 + tolerance) * full if relative else full + tolerance, "change_stderr": error,
            "full_score": curves.judging.full.score, "score": judged.score,
        },
    }  # fmt: skip
