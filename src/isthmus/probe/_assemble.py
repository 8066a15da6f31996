"""From a measured model to a `Measurement`: rows of the whole model, of modules left out, claims, and the record."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from isthmus._errors import InputError
from isthmus._records import Claim, MetricTable
from isthmus.geometry import DEFAULT_GAMMA0
from isthmus.models import LeakyResNet
from isthmus.probe._aligned import (
    ALIGNMENT,
    Aligned,
    aligned_entries,
    alignment_claims,
    leaky_alignment,
    record_alignment,
)
from isthmus.probe._batches import Batch, Batches
from isthmus.probe._certified import CERTIFICATE, STABILITY
from isthmus.probe._certified_rows import record_certified
from isthmus.probe._guard import untouched
from isthmus.probe._losses import loss_of
from isthmus.probe._measure import NO_LEAK, NO_MOMENTA, check_metrics, measure_path
from isthmus.probe._measurement import Measurement
from isthmus.probe._model_verdict import model_verdict, passage_of
from isthmus.probe._numbers import REPRESENTATION, WEIGHT, why_not
from isthmus.probe._one import JACOBIAN, Measured, MeasureOptions, layers_text
from isthmus.probe._progress import Progress
from isthmus.probe._propagated import SIGNALS
from isthmus.probe._propagated_rows import Signals, record_signals, signal_claims
from isthmus.probe._select import BLOCKS
from isthmus.probe._stacks import record_stacks
from isthmus.probe._verdict import path_verdict
from isthmus.tangent import MapJacobian

EVERYWHERE = frozenset(
    (*REPRESENTATION, *WEIGHT, *JACOBIAN, *ALIGNMENT, *SIGNALS, *CERTIFICATE, *STABILITY, "loss", "bottleneck_rank")
)
"""Metrics of any model."""


def _left_out(main: Measured, layers: str | Sequence[str]) -> list[dict[str, str]]:
    """Every module that has no row of its own yet, with the reason."""
    present = {one.site.call.name for one in main.plan.sites if not one.site.at_input}
    patterns = [layers] if isinstance(layers, str) else list(layers)
    found: list[dict[str, str]] = []
    for name, module in main.survey.modules.items():
        if name in present or (name == "(model)" and len(main.survey.modules) > 1):
            continue
        if not main.survey.calls_of(name):
            reason = main.survey.why_not_called(name)
        elif patterns == [BLOCKS] or not any(fnmatch.fnmatch(name, p) for p in patterns):
            reason = f"not selected by layers={layers_text(layers)!r}"
        else:
            reason = "called in another way than in the first pass"
        found.append({"name": name, "type": type(module).__name__, "reason": reason})
    return found


def _record_model(table: MetricTable, main: Measured, options: MeasureOptions) -> dict[str, list[int]]:
    """Rows of the whole model: loss, Jacobian, bottleneck."""
    rows: dict[str, list[int]] = {}

    def wanted(name: str) -> bool:
        return options.metrics is None or name in options.metrics

    samples = main.numbers.result.samples
    if wanted("loss"):
        value = main.numbers.result.loss
        if value is None:
            rows["loss"] = [table.skip("loss", "give a loss and targets", layer="model")]
        else:
            weight = main.numbers.result.weight
            note = f"{options.loss_name}, mean over {'samples' if weight == samples else f'{weight} labels'}"
            rows["loss"] = [table.add("loss", value, layer="model", n=samples, note=note)]
    j = main.jacobian
    if j is None:
        for name in JACOBIAN:
            if wanted(name):
                rows[name] = [table.skip(name, main.why_no_jacobian, layer="model")]
    else:
        rows |= _record_jacobian(table, j, {name for name in JACOBIAN if wanted(name)})
    if wanted("bottleneck_rank"):
        passage = passage_of(main.numbers, main.weights, j)
        if passage.found:
            note = f"{passage.evidence} of 3 kinds of evidence; beside the mean"
            rows["bottleneck_rank"] = [
                table.add("bottleneck_rank", float(passage.k), layer="model", n=samples, note=note)
            ]
        else:
            reason = f"no bottleneck: {passage.reason}"
            rows["bottleneck_rank"] = [table.skip("bottleneck_rank", reason, layer="model")]
    return rows


def _record_jacobian(table: MetricTable, j: MapJacobian, wanted: set[str]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    where: dict[str, Any] = {"layer": "model", "n": j.n, "note": f"tol={j.tolerance:g}; {j.mode} mode"}
    for name, mean in (("jacobian_rank", j.rank), ("jacobian_log_pseudodet", j.log_pseudodet)):
        if name in wanted:
            rows[name] = [table.add(name, mean.mean, stderr=mean.stderr, **where)]
    name = "jacobian_log_singular_value"
    if name in wanted:
        rows[name] = []
        pairs = zip(j.log_singular.mean.tolist(), j.log_singular.stderr.tolist(), strict=True)
        for i, (mean, error) in enumerate(pairs, start=1):
            at: dict[str, Any] = {"layer": "model", "index": i, "n": j.n}
            if math.isfinite(mean):
                rows[name].append(table.add(name, mean, stderr=error, **at))
            else:
                rows[name].append(table.skip(name, "a singular value is 0 at some sample", **at))
    return rows


def assemble(
    model: nn.Module,
    main: Measured,
    other: Measured | None,
    aligned: Aligned,
    aligned_other: Aligned | None,
    signals: Signals,
    initial: Signals | None,
    table: MetricTable,
    options: MeasureOptions,
    notes: Sequence[str],
    seconds: float,
) -> Measurement:
    """Complete the table, say the verdict, and keep the record.

    Args:
        model: the model that was measured.
        main: what was measured of it.
        other: what was measured of the baseline.
        aligned: how its layers align with the targets.
        aligned_other: how those of the baseline do.
        signals: how alike samples are in it, forwards and backwards.
        initial: how alike they are in the baseline.
        table: with the rows of their representations.
        options: as given.
        notes: what was decided on the way.
        seconds: time it took.

    Raises:
        InputError: every module that was to be measured failed.
    """
    if not main.numbers.measured:
        first = next((one.track.failed for one in main.plan.sites if one.track is not None), "")
        raise InputError("layers", layers_text(options.layers), "at least one module that can be measured",
                         f"{main.numbers.result.first_bad or main.plan.sites[0].site.label}: {first}")  # fmt: skip
    for each in (main,) if other is None else (main, other):
        each.numbers.write_weights(table, each.weights)
        record_stacks(table, each.stacks, each.numbers.places(), options.metrics, each.numbers.baseline)
    skipped = [
        {"name": one.site.label, "type": type(one.site.call.module).__name__, "reason": why_not(one)}
        for one in main.plan.sites
        if why_not(one)
    ]
    left_out = _left_out(main, options.layers)
    for one in left_out:
        table.skip("observations", one["reason"], layer=one["name"])
    rows = _record_model(table, main, options)
    certified = record_certified(table, main.certificates, aligned, options.metrics)
    kernels = record_alignment(table, aligned, options.metrics, elsewhere=certified.given)
    if aligned_other is not None:
        record_alignment(table, aligned_other, options.metrics, "init")
    propagated = record_signals(table, signals, options.metrics, initial)
    numbers = main.numbers
    for name, found in rows.items():
        numbers.rows.setdefault(name, {})["model"] = found
    claims = model_verdict(numbers, main.weights, main.jacobian, None if other is None else other.numbers)
    said = [*alignment_claims(aligned, kernels, aligned_other), *signal_claims(signals, propagated, aligned, initial),
            *certified.claims]  # fmt: skip
    at = len(claims) - 1 if claims and claims[-1].name == "advice" else len(claims)
    claims[at:at] = said
    arrays = numbers.arrays(main.weights)
    if other is not None:
        arrays |= other.numbers.arrays(other.weights)
    if numbers.result.unlike:
        names = ", ".join(numbers.result.unlike[:5])
        notes = [*notes, f"{names}: later batches called it more often than the first did; those calls were left out"]
    layers = [
        {"name": one.site.label, "type": type(one.site.call.module).__name__, "kind": one.site.kind, "index": i,
         "position": numbers.position(i), "width": one.track.width}
        for i, one in enumerate(numbers.measured) if one.track is not None
    ]  # fmt: skip
    last = max(len(main.weights) - 1, 1)
    weights = [{"name": w.name, "type": w.module, "index": i, "position": i / last, "shape": list(w.shape)}
               for i, w in enumerate(main.weights)]  # fmt: skip
    everything_else = [*skipped, *left_out]
    measured: dict[str, Any] = {
        "model": type(model).__name__, "parameters": sum(p.numel() for p in model.parameters()),
        "samples": numbers.result.samples, "layers": layers_text(options.layers),
        "loss": options.loss_name or None, "baseline": "" if other is None else "init", "sites": layers,
        "aligned": aligned_entries(model, aligned) or certified.kernels, "chains": certified.chains,
        "chained": certified.layers,
        "weights": weights, "skipped": everything_else, "seconds": round(seconds, 3),
    }  # fmt: skip
    record = _record(model, options, {"measured": measured})
    record["configuration"]["alignment_samples"] = aligned.asked
    return Measurement(table.frame(), claims, arrays, layers, everything_else, [*notes, *main.notes], record)


def _record(model: nn.Module, options: MeasureOptions, extra: dict[str, Any]) -> dict[str, Any]:
    first = next((t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()), None)
    configuration = {
        "layers": options.layers, "loss": options.loss_name, "max_samples": options.max_samples,
        "batch_size": options.batch_size, "max_memory": options.max_memory,
        "jacobian_samples": options.jacobian_samples,
        "metrics": None if options.metrics is None else sorted(options.metrics),
    }  # fmt: skip
    return {
        "configuration": configuration, "seed": options.seed, "title": type(model).__name__,
        "device": "cpu" if first is None else str(first.device),
        "dtype": "" if first is None else str(first.dtype).removeprefix("torch."), **extra,
    }  # fmt: skip


def measure_leaky(
    model: LeakyResNet, data: Any, options: MeasureOptions, notes: Sequence[str], bar: Progress, *,
    ridge: float | int | None, alignment_samples: int,
) -> Measurement:  # fmt: skip
    """A Leaky ResNet along its path, in float64 on a copy of it (`measure_path`)."""
    ridge = None if ridge is None else float(ridge)
    metrics = check_metrics(options.metrics, ridge=ridge, effective_depth=model.effective_depth)
    with untouched(model, options.seed):
        batches = Batches(data, model, targets=options.targets, own_forward=False, max_samples=options.max_samples,
                          batch_size=options.batch_size, place=lambda t: t)  # fmt: skip
        held = list(batches)
    x = torch.cat([b.args[0] if b.args else next(iter(b.kwargs.values())) for b in held])
    if x.dim() != 2 or x.shape[1] != model.in_features:
        raise InputError("data", f"inputs of shape {tuple(x.shape)}", f"(samples, {model.in_features}) for this model")
    targets = [b.targets for b in held if b.targets is not None]
    y = torch.cat(targets) if len(targets) == len(held) else None
    loss = options.loss
    if loss is not None and y is None:
        raise InputError("targets", "none in the data", f"targets for the loss {options.loss_name!r}")
    if loss is None and y is not None and ridge is not None:
        loss, _ = loss_of(None, y)

    def mean_loss(outputs: Tensor, t: Tensor) -> Tensor:
        assert loss is not None
        return loss(outputs, Batch((), {}, None, t, {}, t.shape[0]))

    samples = min(options.jacobian_samples, len(x))
    found = measure_path(model, x, y, loss=None if loss is None else mean_loss, ridge=ridge, metrics=metrics,
                         jacobian_samples=samples)  # fmt: skip
    table = MetricTable()
    rows = found.record(table, split="", seed=None)
    claims: list[Claim] = path_verdict(
        found, rows, why_no_momenta=NO_LEAK if model.effective_depth == 0 else NO_MOMENTA
    )
    aligned = leaky_alignment(model, x, y, options, alignment_samples, bar)
    kernels = record_alignment(table, aligned, options.metrics)
    claims += alignment_claims(aligned, kernels)
    nodes = found.geometry.positions.tolist()
    layers = [{"name": f"representation.{i}", "type": "LeakyResNet", "kind": "path", "index": i, "position": p,
               "width": model.width} for i, p in enumerate(nodes)]  # fmt: skip
    leaky = {"in_features": model.in_features, "out_features": model.out_features, "width": model.width,
             "depth": model.depth, "effective_depth": model.effective_depth, "ridge": ridge,
             "gamma0": DEFAULT_GAMMA0}  # fmt: skip
    record = _record(model, dataclasses.replace(options, layers="path"), {"leaky": leaky})
    record["configuration"]["alignment_samples"] = alignment_samples
    arrays: dict[str, np.ndarray] = found.arrays()
    return Measurement(table.frame(), claims, arrays, layers, [], [*notes, *batches.notes], record)
