"""Alignment as a part of a measurement: its rows, its claim, or the reason why there is none."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Collection, Iterator
from typing import Any

from torch import Tensor, nn

from isthmus._errors import InputError
from isthmus._records import Claim, MetricTable
from isthmus.models import LeakyResNet
from isthmus.probe._alignment import Alignment, align_within, plan_alignment
from isthmus.probe._certified import STABILITY
from isthmus.probe._extras import attempted
from isthmus.probe._one import MeasureOptions
from isthmus.probe._progress import Progress, duration
from isthmus.probe._survey import module_name
from isthmus.probe._tangent import tangent_eigenpairs

ALIGNMENT = ("alignment", "alignment_traced", "tangent_trace", "tangent_top_eigenvalue")
"""Metrics of the tangent kernels."""

LEAKY = "weight.*"
"""Layers of an unrolled Leaky ResNet."""

_LEAST_SAMPLES = 3


@dataclasses.dataclass(frozen=True)
class Aligned:
    """Samples asked for; alignments of the layers and the largest eigenvalue of the whole kernel over n, or reasons.

    Attributes:
        positions: where the layers stand, where that is not evenly.
        first: number of the first layer.
    """

    asked: int
    found: Alignment | None
    why: str
    top: float | None = None
    why_top: str = ""
    positions: tuple[float, ...] | None = None
    first: int = 0

    def at(self, order: int) -> dict[str, Any]:
        """Index and position of a layer."""
        last = max(len(self.found.layers) - 1, 1) if self.found else 1
        return {"index": self.first + order,
                "position": order / last if self.positions is None else self.positions[order]}  # fmt: skip


def check_alignment_samples(samples: int) -> int:
    """Raises `InputError` unless `samples` is 0, or enough for an alignment."""
    if isinstance(samples, bool) or (samples != 0 and samples < _LEAST_SAMPLES):
        raise InputError("alignment_samples", samples, f"0, or at least {_LEAST_SAMPLES}")
    return samples


def measured_alignment(
    model: nn.Module, data: Any, options: MeasureOptions, samples: int, bar: Progress, *, along: bool = False,
    layers: str = "*",
) -> Aligned:  # fmt: skip
    """The alignment of every layer on the first samples (arXiv 2110.11749, docs/theory 4.1), where there can be one.

    Args:
        model: the model.
        data: as given to `measure`.
        options: of the measurement.
        samples: to use at most; 0 for none.
        bar: shows progress.
        along: whether a path is measured instead of layers.
        layers: globs of the layers.
    """
    known = frozenset((*ALIGNMENT, *STABILITY))
    wanted = known if options.metrics is None else options.metrics & known
    reason = _why_not(data, options, samples, along=along)
    if reason or not wanted:
        return Aligned(samples, None, reason or "not asked for", None, reason or "not asked for")
    bar("alignment", 0, None)
    given = _given(options, samples, layers)
    traced = None if "alignment_traced" in wanted else False
    found, why = attempted(
        lambda: align_within(bar, model, data, max_memory=options.max_memory, traced=traced, **given)
    )
    if found is None:
        return Aligned(samples, None, why, None, why)
    if wanted.isdisjoint(("tangent_top_eigenvalue", *STABILITY)):
        return Aligned(samples, found, "", None, "not asked for")
    bar("alignment: largest eigenvalue", 0, None)
    top, why = attempted(lambda: float(tangent_eigenpairs(model, data, 1, **given).values[0]))
    return Aligned(samples, found, "", None if top is None else top / found.n, why)


def planned_alignment(model: nn.Module, data: Any, options: MeasureOptions, samples: int, *, along: bool) -> str:
    """What the alignment of a measurement will take, in words, or why there will be none."""
    leaky = isinstance(model, LeakyResNet)
    reason = _why_not(data, options, samples, along=along and not leaky)
    if reason:
        return f"none: {reason}"
    given = _given(options, samples, LEAKY if leaky else "*")
    subject = UnrolledLeaky(model) if leaky else model
    planned, why = attempted(lambda: plan_alignment(subject, data, max_memory=options.max_memory, **given))
    if planned is None:
        return f"none: {why}"
    n, how, memory, seconds = planned
    return f"{n} samples, {how}, about {duration(seconds)}, at most {memory / 2**20:.3g} MiB"


def _given(options: MeasureOptions, samples: int, layers: str) -> dict[str, Any]:
    """The arguments that the alignment has from the options of a measurement."""
    use = samples if options.max_samples is None else min(samples, options.max_samples)
    return {"targets": options.targets, "forward": options.forward, "max_samples": use,
            "batch_size": options.batch_size, "seed": options.seed, "layers": layers}  # fmt: skip


def _why_not(data: Any, options: MeasureOptions, samples: int, *, along: bool) -> str:
    if samples == 0:
        return "alignment_samples=0"
    if options.loss is None:
        return "give targets, or a loss for those in the data"
    if options.loss_name == "model":
        return "the loss is the model's own: give targets and loss='cross_entropy' or 'square'"
    if along:
        return "a path is measured, whose steps are no modules: measure modules with path=False"
    if isinstance(data, Iterator):
        return "the data can be read only once; give tensors, a DataLoader, or a list of batches"
    return ""


def leaky_alignment(
    model: LeakyResNet, x: Tensor, y: Tensor | None, options: MeasureOptions, samples: int, bar: Progress
) -> Aligned:
    """The alignment of the layers `W_ℓ, b_ℓ` of a Leaky ResNet, each as a linear layer of its own, in float64."""
    y = y.double() if y is not None and y.is_floating_point() else y
    options = dataclasses.replace(options, targets=y)
    found = measured_alignment(UnrolledLeaky(model).double(), x.double(), options, samples, bar, layers=LEAKY)
    p = model.positions()
    middles = tuple(((p[1:] + p[:-1]) / 2).tolist())
    return dataclasses.replace(found, positions=middles, first=1)


class UnrolledLeaky(nn.Module):
    """A Leaky ResNet whose layers are modules `weight.1`, …, `weight.L` of their own, with equal outputs."""

    def __init__(self, model: LeakyResNet) -> None:
        super().__init__()
        self.ends = copy.deepcopy(model)
        self.weight = nn.ModuleDict()
        for i, w in enumerate(model.weight.detach()):
            layer = nn.Linear(model.width, model.width, model.bias is not None, device=w.device, dtype=w.dtype)
            layer.weight = nn.Parameter(w.clone())
            if model.bias is not None:
                layer.bias = nn.Parameter(model.bias.detach()[i].clone())
            self.weight[str(i + 1)] = layer

    def forward(self, x: Tensor) -> Tensor:
        """The outputs."""
        a, ends = self.ends.embed(x), self.ends
        for rho, layer in zip(ends.layer_steps, self.weight.values(), strict=True):
            a = (1 - rho * ends.effective_depth) * a + rho * layer(ends.activation(a))
        return nn.functional.linear(a, ends.output_matrix)


def record_alignment(
    table: MetricTable, aligned: Aligned, wanted: frozenset[str] | None, baseline: str = "",
    elsewhere: Collection[str] = (),
) -> dict[str, list[int]]:  # fmt: skip
    """Rows of every layer, and of the whole model, but for those `elsewhere`; returns their numbers by metric."""
    names = [name for name in ALIGNMENT if (wanted is None or name in wanted) and name not in elsewhere]
    if aligned.found is None:
        return {name: [table.skip(name, aligned.why, layer="model", baseline=baseline)] for name in names}
    found, rows = aligned.found, {name: list[int]() for name in names}
    for order, layer in enumerate(found.layers):
        where: dict[str, Any] = {"layer": layer.name, **aligned.at(order), "n": found.n, "baseline": baseline}
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
                other = layer.method_traced if layer.alignment is not None else "its centred kernel is zero"
                rows[name].append(table.skip(name, layer.note or other, **where))
            else:
                rows[name].append(table.add(name, value, stderr=error, note=note, **where))
    whole: dict[str, Any] = {"layer": "model", "n": found.n, "baseline": baseline}
    if "tangent_trace" in rows:
        total = sum(layer.trace for layer in found.layers)
        error = math.hypot(*(layer.trace_stderr for layer in found.layers))
        rows["tangent_trace"].append(table.add("tangent_trace", total, stderr=error, note="sum over layers", **whole))
    name = "tangent_top_eigenvalue"
    if name in rows:
        if aligned.top is None:
            rows[name].append(table.skip(name, aligned.why_top, **whole))
        else:
            rows[name].append(table.add(name, aligned.top, note="Lanczos, full kernel", **whole))
    return rows


def alignment_claims(aligned: Aligned, rows: dict[str, list[int]], other: Aligned | None = None) -> list[Claim]:
    """Which layers align most with the targets, and how sure that is; the same of a baseline, where there is one."""
    found = aligned.found
    if found is None or "alignment" not in rows:
        return []
    peak = found.peak()
    text = f"Alignment with the targets ({found.n} samples): {peak.text}."
    if other is not None and other.found is not None:
        text += f" Freshly initialised: {other.found.peak().text}."
    values: dict[str, float | int | str | None] = {"layer": peak.layer, "first": peak.first, "last": peak.last,
                                                   "value": peak.value, "stderr": peak.stderr}  # fmt: skip
    return [Claim("alignment", text, "finding" if peak.clear else "none", tuple(rows["alignment"]), values)]


def aligned_entries(model: nn.Module, aligned: Aligned) -> list[dict[str, Any]]:
    """The layers that have an alignment, for the record."""
    if aligned.found is None:
        return []
    types = {module_name(name): type(module).__name__ for name, module in model.named_modules()}
    return [{"name": layer.name, "type": types.get(layer.name, ""), **aligned.at(order), "width": layer.parameters}
            for order, layer in enumerate(aligned.found.layers)]  # fmt: skip
