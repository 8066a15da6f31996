"""Run folders of monitored trainings, made up for the page: every number of every step differs from every other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isthmus._records import Claim, MetricTable, RunFolder

STEPS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
GAMMAS = (1e-3, 1e-2)


def rank(step: int, k: int, count: int) -> float:
    """The centred participation ratio of layer `k` of `count` at a step: it falls in the middle, rises at the end."""
    p = k / max(count - 1, 1)
    learned = 1 - np.exp(-step / 60)
    return float(30 - 22 * learned * np.exp(-((4 * p - 2.2) ** 2)) + 4 * learned * p + 0.01 * k)


def aligned(step: int, k: int, count: int) -> tuple[float, float]:
    """Alignment of layer `k` at a step, and its standard error."""
    p = k / max(count - 1, 1)
    learned = 1 - np.exp(-step / 90)
    return float(0.05 + 0.5 * learned * np.exp(-((3 * p - 1.6) ** 2)) + 0.001 * k), 0.01 + 0.02 * p


def spectrum(step: int, k: int, count: int, values: int) -> np.ndarray:
    """Singular values of layer `k` at a step."""
    return (2 + 0.1 * k + 0.001 * step) * np.exp(-np.arange(values) / rank(step, k, count))


def _measure(table: MetricTable, step: int, names: Sequence[str], weights: Sequence[str], alignment: bool) -> None:
    count, last = len(names), max(len(names) - 1, 1)
    for k, name in enumerate(names):
        where: dict[str, Any] = {"layer": name, "index": k, "position": k / last, "step": step}
        value = rank(step, k, count)
        table.add("observations", 256.0, n=256, **where)
        table.add("participation_ratio_centred", value, **where)
        for metric, factor in (("effective_rank", 1.3), ("numerical_rank", 2.0), ("stable_rank", 0.2),
                               ("nuclear_rank", 1.6), ("participation_ratio", 0.9)):  # fmt: skip
            table.add(metric, factor * value, **where)
        for gamma in GAMMAS:
            table.add("cost_of_identity", value / gamma**0.1, note=f"gamma0={gamma:g}; read by the next", **where)
        if k:
            table.add("relative_move", 0.02 + 0.5 / (1 + k) * (1 + np.log1p(step)) / 7, **where)
        else:
            table.skip("relative_move", "the first representation has none before it", **where)
    for k, name in enumerate(weights):
        table.add("effective_rank", 50 - k - 0.01 * step, layer=name, index=k, position=0.0, step=step)
    if alignment:
        for k, name in enumerate(names):
            value, error = aligned(step, k, count)
            table.add("alignment", value, layer=name, index=k, position=k / last, step=step, stderr=error, n=64)
            table.add("tangent_trace", 3.0 + k, layer=name, index=k, position=k / last, step=step)
        table.add("tangent_trace", 99.0, layer="model", step=step)
    else:
        table.skip("alignment", "give targets", layer="model", step=step)
    table.add("loss", 2.3 * np.exp(-step / 100) + 0.05, layer="model", step=step)


def monitored(
    path: Path,
    names: Sequence[str] | Mapping[int, Sequence[str]] = ("in", *(f"blocks.{k}" for k in range(5))),
    *,
    steps: Sequence[int] = STEPS,
    failed: Mapping[int, str] | None = None,
    alignment: bool = True,
    values: int = 48,
    arrays: bool = True,
    losses: int = 40,
    title: str = "A small network",
    monitor: Mapping[str, Any] | None = None,
    claims: Sequence[Claim] | None = None,
) -> RunFolder:
    """A run folder as a monitored training writes it; `names` may differ from step to step."""
    layers = {step: list(names[step] if isinstance(names, Mapping) else names) for step in steps}
    last = layers[steps[-1]] if steps else []
    weights = [f"{name}.weight" for name in last]
    place = max(len(last) - 1, 1)
    sites = [{"name": n, "type": "Block", "kind": "block", "index": k, "position": k / place, "width": 64}
             for k, n in enumerate(last)]  # fmt: skip
    matrices = [{"name": n, "type": "Linear", "index": k, "position": k / place, "shape": [64, 64]}
                for k, n in enumerate(weights)]  # fmt: skip
    failed = {} if failed is None else failed
    run = RunFolder.create(
        path, command="monitor", configuration={"layers": "blocks"}, seed=0, device="cpu", dtype="float32", extra={
            "title": title, "warnings": [], "measured": {
                "model": "Sequential", "parameters": 4321, "samples": 256, "layers": "blocks", "baseline": "",
                "loss": "cross_entropy", "sites": sites, "weights": matrices, "skipped": [],
            },
            "monitor": {
                "steps": [*steps], "scheduled": 13, "postponed": 2, "budget": 0.05, "share": 0.031,
                "seconds_measuring": 1.24, "seconds_training": 40.0,
                "failed": {str(step): reason for step, reason in failed.items()},
            } | dict(monitor or {}),
        },
    )  # fmt: skip
    table, kept = MetricTable(), dict[str, np.ndarray]()
    for step in sorted({*steps, *failed}):
        if step in failed:
            table.add("participation_ratio_centred", None, layer="model", step=step, status="failed", note=failed[step])
            continue
        _measure(table, step, layers[step], weights, alignment)
        rows = [spectrum(step, k, len(layers[step]), values) for k in range(len(layers[step]))]
        kept[f"steps/{step}/spectra/representation_centred"] = np.array(rows, dtype=np.float32)[:, :64]
        if step == steps[-1]:
            kept["spectra/representation_centred"] = np.array(rows)
            kept["spectra/weight"] = np.linspace(3, 0.1, 20) * np.ones((len(weights), 1))
    end = max([*steps, *failed, 1])
    for step in np.unique(np.geomspace(1, end, losses).astype(int)).tolist() if losses else []:
        table.add("loss", 2.2 * np.exp(-step / 90) + 0.04, step=step, split="train")
    run.write_metrics(table)
    run.write_verdict([Claim("bottleneck", "No bottleneck.", "none")] if claims is None else claims)
    run.write_arrays(kept if arrays and kept else {"nothing": np.zeros(0)})
    run.finish()
    return run
