"""Signal propagation as a part of a measurement: its rows and its claim, or the reason why there are none."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from torch import nn

from isthmus._records import Claim, MetricTable
from isthmus.probe._aligned import Aligned, _given, _why_not
from isthmus.probe._extras import attempted
from isthmus.probe._one import MeasureOptions
from isthmus.probe._progress import Progress, duration
from isthmus.probe._propagated import SIGNALS, UNCALLED, Propagation, plan_propagation, propagation_within
from isthmus.theory import SignalPropagation

INFINITE_WIDTH = "infinite width"
"""What predicted rows have in the column `baseline`."""

_NO_ERROR = "no standard error: without one of the samples there would be no such layer"
_NO_CROSSING = "the forward loss does not fall to the backward correlation"


@dataclasses.dataclass(frozen=True)
class Signals:
    """Signal propagation of a model, or why there is none."""

    found: Propagation | None
    why: str


def measured_signals(
    model: nn.Module, data: Any, options: MeasureOptions, samples: int, bar: Progress, *, along: bool = False
) -> Signals:
    """Signal propagation on the samples that alignment is measured on (docs/theory 4.3), where there can be one."""
    reason = _why_no_signals(data, options, samples, along=along)
    if reason:
        return Signals(None, reason)
    given = _given(options, samples, "*")
    return Signals(*attempted(lambda: propagation_within(bar, model, data, max_memory=options.max_memory, **given)))


def planned_signals(model: nn.Module, data: Any, options: MeasureOptions, samples: int, *, along: bool) -> str:
    """What the signal propagation of a measurement will take, in words, or why there will be none."""
    reason = _why_no_signals(data, options, samples, along=along)
    if reason:
        return f"none: {reason}"
    given = _given(options, samples, "*")
    planned, why = attempted(lambda: plan_propagation(model, data, max_memory=options.max_memory, **given))
    if planned is None:
        return f"none: {why}"
    n, passes, memory, seconds = planned
    return f"{n} samples, {passes} backward passes, about {duration(seconds)}, at most {memory / 2**20:.3g} MiB"


def _why_no_signals(data: Any, options: MeasureOptions, samples: int, *, along: bool) -> str:
    if options.metrics is not None and options.metrics.isdisjoint(SIGNALS):
        return "not asked for"
    return _why_not(data, options, samples, along=along)


def record_signals(
    table: MetricTable, signals: Signals, wanted: frozenset[str] | None, initial: Signals | None = None
) -> dict[str, list[int]]:
    """Rows of every layer, measured and predicted; returns the numbers of those behind the claim.

    Args:
        table: takes the rows.
        signals: of the model.
        wanted: metrics asked for; all if None.
        initial: of the same model freshly initialised, from whose variances the prediction is then made.
    """
    names = [name for name in SIGNALS if wanted is None or name in wanted]
    if signals.found is None:
        return {name: [table.skip(name, signals.why, layer="model")] for name in names}
    predicted, source = _prediction(signals.found, initial)
    rows = {name: list[int]() for name in names}
    last = max(len(signals.found.layers) - 1, 1)
    for k, layer in enumerate(signals.found.layers):
        where: dict[str, Any] = {"layer": layer.name, "index": k, "position": k / last}
        for name, mean in (("forward_loss", layer.forward_loss), ("backward_correlation", layer.backward_correlation)):
            if name not in rows:
                continue
            if mean is None:
                rows[name].append(table.skip(name, layer.note, n=signals.found.n, **where))
            else:
                note = f"{mean.left_out} samples that are zero are left out" if mean.left_out else ""
                rows[name].append(table.add(name, mean.value, stderr=mean.stderr, n=mean.samples, note=note, **where))
            if predicted is not None:
                values: Any = getattr(predicted, name)
                table.add(name, float(values[k]), baseline=INFINITE_WIDTH, note=source, **where)
    for layer in signals.found.uncalled:
        for name in [name for name in names if name != "equilibrium_layer"]:
            rows[name].append(table.skip(name, UNCALLED, layer=layer))
    name = "equilibrium_layer"
    if name in rows:
        found, error = signals.found, signals.found.equilibrium_stderr
        note = "" if error is not None else found.why_no_equilibrium or _NO_ERROR
        rows[name].append(_crossing(table, found.equilibrium, note, n=found.n, stderr=error))
        if predicted is None:
            rows[name].append(table.skip(name, source, layer="model", baseline=INFINITE_WIDTH))
        else:
            note = source if predicted.equilibrium is not None else _NO_CROSSING
            rows[name].append(_crossing(table, predicted.equilibrium, note, baseline=INFINITE_WIDTH))
    return rows


def _prediction(found: Propagation, initial: Signals | None) -> tuple[SignalPropagation | None, str]:
    """The prediction, and what it is made from; or none, and why."""
    fresh = initial.found if initial is not None else None
    if fresh is not None and fresh.predicted is not None and len(fresh.layers) == len(found.layers):
        return fresh.predicted, f"{fresh.activation}, variances of a fresh initialisation"
    return found.predicted, found.why or f"{found.activation}, variances of the weights as they are"


def _crossing(table: MetricTable, layer: float | None, note: str, *, stderr: float | None = None, **where: Any) -> int:
    if layer is None:
        return table.skip("equilibrium_layer", note, layer="model", **where)
    return table.add("equilibrium_layer", layer, layer="model", stderr=stderr, note=note, **where)


def signal_claims(
    signals: Signals, rows: dict[str, list[int]], aligned: Aligned, initial: Signals | None = None
) -> list[Claim]:
    """Where the Equilibrium Hypothesis expects alignment to be largest, beside where it is."""
    found = signals.found
    if found is None or "equilibrium_layer" not in rows:
        return []
    predicted, source = _prediction(found, initial)
    names = [layer.name for layer in found.layers]
    expected = None if predicted is None else predicted.equilibrium
    if expected is None and found.equilibrium is None:
        return []
    said: list[str] = []
    if found.equilibrium is not None:
        said.append(f"{_between(names, found.equilibrium)} by the signals of these samples")
    if expected is not None:
        said.append(f"{_between(names, expected)} by those of infinite width ({source})")
    text = f"By the Equilibrium Hypothesis training aligns layers most {', '.join(said)}"
    values: dict[str, float | int | str | None] = {
        "measured": found.equilibrium, "measured_stderr": found.equilibrium_stderr, "predicted": expected,
    }  # fmt: skip
    if aligned.found is not None:
        peak = aligned.found.peak()
        values["alignment_peak"] = peak.layer
        if peak.layer:
            text += f". Here it is largest at {peak.layer}" + ("" if peak.clear else ", without a clear peak")
    return [Claim("equilibrium", f"{text}.", "finding", tuple(rows["equilibrium_layer"]), values)]


def _between(names: list[str], layer: float) -> str:
    before = math.floor(layer)
    if before == layer or before + 1 >= len(names):
        return f"at {names[before]}"
    return f"between {names[before]} and {names[before + 1]}"
