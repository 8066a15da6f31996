"""The parts of the page that are words and tables: verdict, facts, every number with its definition, provenance."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import polars as pl

from isthmus._records import METRICS, Claim
from isthmus.report._compressedfigures import compressed_facts, compressed_subtitle
from isthmus.report._dynamicsfigures import dynamics_facts, dynamics_subtitle
from isthmus.report._figures import Table
from isthmus.report._propagated import propagation_facts, propagation_subtitle
from isthmus.report._read import RunView, number, shorten
from isthmus.report._swept import Swept, shown

_CLAIMS = 40
_CLAIM_ROWS = 60
_NAMES = 60
_CONFIGURATION = 20_000
_WITH_GAMMA = ("hamiltonian", "kinetic_energy", "cost_of_identity", "path_length", "bound_", "momentum", "bottleneck")


@dataclasses.dataclass(frozen=True)
class ShownClaim:
    """One claim of the verdict with the table behind it."""

    claim: Claim
    text: str
    values: list[tuple[str, str]]
    table: Table
    note: str


@dataclasses.dataclass(frozen=True)
class ShownNumber:
    """One metric: what it is, what this page's runs hold, and how far to trust it."""

    name: str
    of: str
    definition: str
    unit: str
    source: str
    trust: str
    summaries: list[tuple[str, str]]
    beside: list[tuple[str, str]]


def _value(value: object) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return number(float(value))
    return "—" if value in (None, "") else shorten(value, 160)


def shown_claims(run: RunView, level: str) -> list[ShownClaim]:
    """Claims of one level, each with the rows of the table that stand behind it."""
    return [shown_claim(run, claim) for claim in [c for c in run.claims if c.level == level][:_CLAIMS]]


def shown_claim(run: RunView, claim: Claim) -> ShownClaim:
    """A claim with the rows of the table that stand behind it."""
    listed: list[Any] = list(claim.rows)  # from a file, so not yet known to be numbers
    wanted = [r for r in listed if isinstance(r, int) and 0 <= r < run.whole.height]
    found = [run.whole.row(r, named=True) for r in wanted[:_CLAIM_ROWS]]
    rows = [_claim_row(row) for row in found]
    columns = ("metric", "layer", "p", "value", "± stderr", "unit", "note")
    if run.training is not None:  # rows of several steps may stand behind one claim
        rows = [(*row[:2], _value(full["step"]), *row[2:]) for row, full in zip(rows, found, strict=True)]
        columns = (*columns[:2], "step", *columns[2:])
    note = f"{_CLAIM_ROWS} of {len(wanted)} rows are shown." if len(wanted) > _CLAIM_ROWS else ""
    values = [(shorten(k, 80), _value(v)) for k, v in list(claim.values.items())[:_NAMES]]
    table = Table(f"Rows behind this claim ({shorten(claim.name, 80)})", columns, rows)
    return ShownClaim(claim, shorten(claim.text), values, table, note)


def _claim_row(row: dict[str, Any]) -> tuple[str, ...]:
    note = row["note"] or ""
    if row["status"] != "ok":
        note = f"{row['status']}: {note}"
    return (
        shorten(row["metric"], 80), shorten(row["layer"] or "", 80), number(row["position"]), number(row["value"]),
        number(row["stderr"], 2), shorten(row["unit"] or "", 40), shorten(note, 200),
    )  # fmt: skip


def _summary(rows: pl.DataFrame) -> str:
    good = rows.filter(pl.col("status") == "ok").get_column("value").drop_nulls()
    said: list[str] = []
    if len(good) == 1:
        said.append(number(float(good[0])))
    elif len(good):
        low, mid, high = (float(v) for v in good.sort().gather([0, len(good) // 2, len(good) - 1]))
        said.append(f"{number(low)} … {number(mid)} … {number(high)} ({len(good)} values)")
    bad = rows.filter(pl.col("status") != "ok")
    for status, note, n in bad.group_by("status", "note", maintain_order=True).len().head(3).rows():
        said.append(f"{status}{f' in {n} rows' if n > 1 else ''}: {shorten(note, 240)}")
    return "; ".join(said)


def _summaries(run: RunView, name: str) -> list[tuple[str, str]]:
    rows = run.frame.filter(pl.col("metric") == name)
    if rows.is_empty():
        return []
    groups = rows.select("of", "split", "gamma0", "level", "baseline").unique(maintain_order=True).head(12).rows()
    found: list[tuple[str, str]] = []
    for of, split, gamma, level, baseline in groups:
        part = rows.filter(pl.col("of").eq_missing(of) & pl.col("split").eq_missing(split)
                           & pl.col("gamma0").eq_missing(gamma) & pl.col("level").eq_missing(level)
                           & pl.col("baseline").eq_missing(baseline))  # fmt: skip
        compared = shorten(baseline or "", 40)
        chosen = [f"{name} = {number(v)}" for name, v in (("γ₀", gamma), ("ε", level)) if v is not None]
        tags = [t for t in (of, split, *chosen, compared) if t]
        found.append((", ".join(tags) if len(groups) > 1 else "", _summary(part)))
    return found


def _whole(run: RunView) -> bool:
    """Whether a run is of many networks, or of another run, with a page of its own kind."""
    many = run.cost is not None or run.reproduction is not None or run.sweep is not None
    return many or run.dynamics is not None or run.compression is not None


def shown_numbers(runs: Sequence[RunView]) -> tuple[list[ShownNumber], list[str]]:
    """Every metric that some run holds, and the names of those that none does."""
    present = {name for run in runs for name in run.present()}
    shown: list[ShownNumber] = []
    for name, metric in METRICS.items():
        if name not in present:
            continue
        summaries: list[tuple[str, str]] = []
        beside: list[tuple[str, str]] = []
        for run in runs:
            prefix = run.label if len(runs) > 1 else ""
            summaries += [
                (": ".join(t for t in (prefix, tag) if t), text or "no value") for tag, text in _summaries(run, name)
            ]
            if name.startswith(_WITH_GAMMA) and run.layers is None and not _whole(run):
                beside.append((prefix, run.gamma_text))
        shown.append(ShownNumber(name, metric.of, metric.definition, metric.unit or "none", metric.source,
                                 metric.trust, summaries, beside))  # fmt: skip
    # What a cost, a prediction, a reproduction or a sweep does not hold is not missing from it.
    whole = any(_whole(run) or run.predicted for run in runs)
    return shown, [] if whole else [name for name in METRICS if name not in present]


def facts(run: RunView) -> list[tuple[str, str]]:
    """What the run is, in a few numbers."""
    if run.reproduction is not None:
        return [("paper", run.reproduction.paper), ("preset", run.reproduction.preset),
                ("machine", run.reproduction.machine)]  # fmt: skip
    if run.cost is not None:
        return _cost_facts(run)
    if run.sweep is not None:
        return _sweep_facts(run.sweep)
    if run.dynamics is not None:
        return dynamics_facts(run.dynamics)
    if run.compression is not None:
        return compressed_facts(run.compression)
    if run.predicted:
        return propagation_facts(run)
    if run.layers is not None:
        return _measured_facts(run)
    leaky, task = run.part("leaky"), run.part("task")
    found: list[tuple[str, str]] = [
        (name, _value(leaky[key]))
        for name, key in (("effective depth L̃", "effective_depth"), ("layers L", "depth"), ("width", "width"),
                          ("layer steps", "steps"), ("ridge λ", "ridge"), ("γ₀", "gamma0"))
        if leaky.get(key) is not None
    ]  # fmt: skip
    if leaky.get("in_features") is not None and leaky.get("out_features") is not None:
        found.append(("inputs → outputs", f"{_value(leaky['in_features'])} → {_value(leaky['out_features'])}"))
    if task.get("n_train") is not None:
        found.append(("samples, train + test", f"{_value(task['n_train'])} + {_value(task.get('n_test'))}"))
    for metric, name in (("accuracy", "test accuracy"), ("r_squared", "test R²")):
        curve = run.curve(metric, None, split="test", along="step")
        if len(curve):
            found.append((name, number(float(curve.y[-1]), 3)))
    return found


def _count(value: object) -> str:
    """A whole number with its thousands apart."""
    whole = isinstance(value, (int, float)) and not isinstance(value, bool) and float(value).is_integer()
    return f"{int(value):,}".replace(",", "\u202f") if whole and isinstance(value, (int, float)) else _value(value)


def _cost_facts(run: RunView) -> list[tuple[str, str]]:
    """What was trained, on what."""
    task, configuration = run.part("task"), run.part("configuration")
    found = [(name, _names(configuration.get(key)) if key == "depths" else _value(configuration.get(key)))
             for name, key in (("depths L", "depths"), ("width", "width"), ("seeds", "seeds"), ("ridge λ", "ridge"),
                               ("iterations at each depth", "steps"))]  # fmt: skip
    found.append(("inputs → outputs", f"{_value(task.get('inputs'))} → {_value(task.get('outputs'))}"))
    found.append(("samples, train + test", f"{_value(task.get('n_train'))} + {_value(task.get('n_test'))}"))
    return [*found, ("loss", f"{_value(run.run.get('loss'))} ({_value(run.run.get('loss_reduction'))})")]


def _sweep_facts(found: Swept) -> list[tuple[str, str]]:
    """How many runs there are, and what differs between them."""
    states = [run.status for run in found.runs]
    facts = [("runs", _count(len(states))), ("complete", _count(states.count("complete")))]
    facts += [("failed", _count(states.count("failed")))] if "failed" in states else []
    return facts + [(axis, shorten(", ".join(map(shown, values)), 160)) for axis, values in found.axes.items()]


def _measured_facts(run: RunView) -> list[tuple[str, str]]:
    """What was measured, of which model."""
    part, layers = run.part("measured"), run.layers
    found: list[tuple[str, str]] = [
        (name, _count(part[key]))
        for name, key in (("model", "model"), ("parameters", "parameters"), ("samples", "samples"))
        if part.get(key) is not None
    ]
    if layers is not None:
        asked = part.get("layers")
        found.append(("layers measured", str(len(layers.sites)) + (f" ({shorten(asked, 60)})" if asked else "")))
        found.append(("weight matrices", str(len(layers.weights))))
        found.append(("layers skipped", str(len(layers.skipped))))
    loss = run.single("loss")
    name = part.get("loss")
    if name or loss is not None:
        found.append((f"loss ({shorten(name, 60)})" if name else "loss", number(loss)))
    else:
        found.append(("loss", "none given"))
    found.append(("compared with", shorten(part.get("baseline") or "nothing", 60)))
    if run.training is not None and run.training.steps:
        found.append(("training step", f"{_count(run.training.last)}, the last of {len(run.training.steps)} measured"))
    return found


def subtitle(run: RunView) -> str:
    """One line under the title: which network, which task."""
    if run.reproduction is not None:
        return f"Figures of {run.reproduction.paper}, made again"
    if run.cost is not None:
        task = run.part("task")
        data = f"{_value(task.get('kind'))} of {_value(task.get('name'))}"
        return f"Fully-connected ReLU networks of several depths · {data}"
    if run.sweep is not None:
        return f"One Leaky ResNet for each of {_count(len(run.sweep.runs))} configurations"
    if run.dynamics is not None:
        return dynamics_subtitle()
    if run.compression is not None:
        return compressed_subtitle()
    if run.predicted:
        return propagation_subtitle(run)
    if run.layers is not None:
        part = run.part("measured")
        said = f"{_value(part['model'])}, measured layer by layer" if part.get("model") else "A model, layer by layer"
        said += f" on {_count(part['samples'])} samples" if part.get("samples") is not None else ""
        return said + (" during training" if run.training is not None else "")
    leaky, task = run.part("leaky"), run.part("task")
    parts = [
        f"Leaky ResNet with {_value(leaky.get('activation'))} activation" if leaky else "",
        f"{_value(task.get('kind'))} of {_value(task.get('name'))}" if task.get("name") else "",
    ]
    return " · ".join(p for p in parts if p)


def state(run: RunView) -> list[str]:
    """What the reader should know before reading: an unfinished run, files that are missing, warnings."""
    said = list(run.problems)
    status = run.run.get("status")
    if status != "complete":
        said.append(f"The run's status is {shorten(status, 80)}, not complete: its numbers may be partial.")
    return said


def _names(value: object) -> str:
    if not isinstance(value, (list, tuple)) or not value:
        return ""
    shown = ", ".join(shorten(v, 120) for v in value[:_NAMES])
    return shown + (f" and {len(value) - _NAMES} more" if len(value) > _NAMES else "")


def provenance(run: RunView) -> tuple[list[tuple[str, str]], str, list[str]]:
    """Where the numbers come from: facts by name, the configuration as text, and the warnings."""
    record, task = run.run, run.part("task")
    versions = ", ".join(f"{shorten(k, 60)} {shorten(v, 60)}" for k, v in list(run.part("versions").items())[:_NAMES])
    rows = [
        ("command", record.get("command")), ("status", record.get("status")), ("seed", record.get("seed")),
        ("created", record.get("created")), ("finished", record.get("finished")), ("device", record.get("device")),
        ("dtype", record.get("dtype")), ("git commit", record.get("git_commit")), ("platform", record.get("platform")),
        ("versions", versions), ("task", task.get("name")), ("features", _names(task.get("feature_names"))),
        ("classes", _names(task.get("class_names"))),
    ]  # fmt: skip
    shown = [(name, shorten(value, 8000)) for name, value in rows if value not in (None, "")]
    configuration = json.dumps(record.get("configuration"), indent=2, ensure_ascii=False, default=str)
    raw = record.get("warnings")
    warnings: list[object] = list(raw) if isinstance(raw, list) else []
    texts = [shorten(w) for w in warnings[:_NAMES]]
    if len(warnings) > _NAMES:
        texts.append(f"and {len(warnings) - _NAMES} more, in run.json")
    return shown, shorten(configuration, _CONFIGURATION), texts
