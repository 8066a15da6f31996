"""Alignment as a part of a measurement: its rows, its claim, or the reason why there is none."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from torch import nn

from isthmus._errors import InputError
from isthmus._records import Claim, MetricTable
from isthmus.probe._alignment import Alignment, align
from isthmus.probe._one import MeasureOptions
from isthmus.probe._progress import Progress
from isthmus.probe._survey import ModelError
from isthmus.probe._tangent import tangent_eigenpairs

ALIGNMENT = ("alignment", "alignment_traced", "tangent_trace", "tangent_top_eigenvalue")
"""Metrics of the tangent kernels."""

_LEAST_SAMPLES = 3
_LONGEST_REASON = 300


@dataclasses.dataclass(frozen=True)
class Aligned:
    """Samples asked for; alignments of the layers and the largest eigenvalue of the whole kernel over n, or reasons."""

    asked: int
    found: Alignment | None
    why: str
    top: float | None = None
    why_top: str = ""


def check_alignment_samples(samples: int) -> int:
    """Raises `InputError` unless `samples` is 0, or enough for an alignment."""
    if isinstance(samples, bool) or (samples != 0 and samples < _LEAST_SAMPLES):
        raise InputError("alignment_samples", samples, f"0, or at least {_LEAST_SAMPLES}")
    return samples


def measured_alignment(
    model: nn.Module, data: Any, options: MeasureOptions, samples: int, bar: Progress, *, along: bool
) -> Aligned:
    """The alignment of every layer on the first samples (arXiv 2110.11749, docs/theory 4.1), where there can be one.

    Args:
        model: the model.
        data: as given to `measure`.
        options: of the measurement.
        samples: to use at most; 0 for none.
        bar: shows progress.
        along: whether a path is measured instead of layers.
    """
    wanted = set(ALIGNMENT) if options.metrics is None else options.metrics & set(ALIGNMENT)
    reason = _why_not(data, options, samples, along=along)
    if reason or not wanted:
        return Aligned(samples, None, reason or "not asked for", None, reason or "not asked for")
    bar("alignment", 0, None)
    use = samples if options.max_samples is None else min(samples, options.max_samples)
    given: dict[str, Any] = {"forward": options.forward, "max_samples": use, "batch_size": options.batch_size,
                             "seed": options.seed}  # fmt: skip
    try:
        found = align(model, data, targets=options.targets, max_memory=options.max_memory, progress=False, **given)
    except (InputError, ModelError, RuntimeError) as error:  # an extra must not cost the rest of the measurement
        return Aligned(samples, None, _said(error), None, _said(error))
    if "tangent_top_eigenvalue" not in wanted:
        return Aligned(samples, found, "", None, "not asked for")
    try:
        top = float(tangent_eigenpairs(model, data, 1, targets=options.targets, **given).values[0]) / found.n
    except (InputError, ModelError, RuntimeError) as error:
        return Aligned(samples, found, "", None, _said(error))
    return Aligned(samples, found, "", top)


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:_LONGEST_REASON] or type(error).__name__


def _why_not(data: Any, options: MeasureOptions, samples: int, *, along: bool) -> str:
    if samples == 0:
        return "alignment_samples=0"
    if options.loss is None:
        return "give targets, or a loss for those in the data"
    if options.loss_name == "model":
        return "the loss is the model's own: give targets and loss='cross_entropy' or 'square'"
    if along:
        return "a path is measured; its layers share one tensor of weights, or are not modules"
    if isinstance(data, Iterator):
        return "the data can be read only once; give tensors, a DataLoader, or a list of batches"
    return ""


def record_alignment(table: MetricTable, aligned: Aligned, wanted: frozenset[str] | None) -> dict[str, list[int]]:
    """Rows of every layer, and of the whole model; returns their numbers by metric."""
    names = [name for name in ALIGNMENT if wanted is None or name in wanted]
    if aligned.found is None:
        return {name: [table.skip(name, aligned.why, layer="model")] for name in names}
    found, rows = aligned.found, {name: list[int]() for name in names}
    last = max(len(found.layers) - 1, 1)
    for layer in found.layers:
        where: dict[str, Any] = {
            "layer": layer.name,
            "index": layer.order,
            "position": layer.order / last,
            "n": found.n,
        }
        spread = f"; standard error from {layer.error_from}" if layer.error_from else ""
        for name, value, error, method in (
            ("alignment", layer.alignment, layer.stderr, layer.method + spread),
            ("alignment_traced", layer.alignment_traced, layer.stderr_traced, layer.method_traced + spread),
            ("tangent_trace", layer.trace, layer.trace_stderr, layer.method),
        ):
            if name not in rows:
                continue
            note = f"{method}; {layer.note}" if layer.note else method
            if value is None:
                rows[name].append(table.skip(name, layer.note or "its centred kernel is zero", **where))
            else:
                rows[name].append(table.add(name, value, stderr=error, note=note, **where))
    if "tangent_trace" in rows:
        whole = sum(layer.trace for layer in found.layers)
        rows["tangent_trace"].append(
            table.add("tangent_trace", whole, layer="model", n=found.n, note="sum over layers")
        )
    name = "tangent_top_eigenvalue"
    if name in rows:
        if aligned.top is None:
            rows[name].append(table.skip(name, aligned.why_top, layer="model"))
        else:
            rows[name].append(table.add(name, aligned.top, layer="model", n=found.n, note="Lanczos, full kernel"))
    return rows


def alignment_claims(aligned: Aligned, rows: dict[str, list[int]]) -> list[Claim]:
    """Which layers align most with the targets, and how sure that is."""
    found = aligned.found
    if found is None or "alignment" not in rows:
        return []
    peak = found.peak()
    text = f"Alignment with the targets ({found.n} samples): {peak.text}."
    values: dict[str, float | int | str | None] = {"layer": peak.layer, "first": peak.first, "last": peak.last,
                                                   "value": peak.value, "stderr": peak.stderr}  # fmt: skip
    return [Claim("alignment", text, "finding" if peak.clear else "none", tuple(rows["alignment"]), values)]
