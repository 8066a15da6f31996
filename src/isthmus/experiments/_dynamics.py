"""A recorded training against the two-point theory: fits, verdict and page."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isthmus._records import MetricTable, RunFolder, check_new_folder
from isthmus.experiments._dynamics_fits import ERROR, R_SQUARED, LayerFits, fit_layer
from isthmus.experiments._dynamics_rows import LayerSummary, layer_rows, mean_rows, ratio_of
from isthmus.experiments._dynamics_source import RecordedPairs, read_pairs
from isthmus.experiments._dynamics_structure import Structure, order_of, structure_at
from isthmus.experiments._dynamics_verdict import dynamics_claims
from isthmus.report import write_page

_TIMES = 128
"""Times of the curves that the folder keeps; all of them are in the run that they are of."""

DynamicsProgress = Callable[[int, int, str], None]
"""`(done, total, layer)`: called with the number of layers that are fitted, of how many, and the name of the next."""


def run_dynamics(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    layers: Sequence[str] = (),
    pairs: Sequence[str] = (),
    command: str = "dynamics",
    progress: DynamicsProgress | None = None,
    page: bool = True,
) -> RunFolder:
    """Fit two effective learning rates to every pair at every layer of a run (arXiv 2402.09142, docs/theory 2.4).

    A pair is *described* at a layer where all three curves, h, y and v, are fitted with `R² ≥ 0.9`, and a fit to the
    first half of its way from the start to the target predicts every curve of the second half with an error (root mean
    square) of at most a tenth of the curve's whole change. A curve that moves by less than a twentieth of its size
    counts as one that moves by so much. A layer is described where at least half of the pairs that are judged are.
    Pairs whose predictions hardly move, or that cannot be fitted at all, are not judged; the table says why.

    The run is only read. Everything is computed before anything is written.

    Args:
        run: folder of a run with recorded pairs: `track_pairs(…).save`, `Monitor(pairs=16)` or `isthmus train --pairs`.
        out: the new run folder.
        layers: names or patterns of layers; all unless given.
        pairs: names of pairs, such as `3-17`; all unless given.
        command: name of the command, for the record.
        progress: called with layers done, their number, and the name of the layer at hand.
        page: write the page, too.

    Raises:
        RunFolderError: no run with recorded pairs, or a path where something is already.
        InputError: fewer than 8 records, or a layer or pair that was not recorded.
    """
    check_new_folder(out)
    source = read_pairs(run)
    found = source.chosen(tuple(layers), tuple(pairs))
    table, every, summaries = MetricTable(), list[LayerFits](), list[LayerSummary]()
    for k, layer in enumerate(found.layers):
        if progress is not None:
            progress(k, len(found.layers), layer)
        fits = fit_layer(found, k)
        every.append(fits)
        summaries.append(layer_rows(table, found, k, fits, structure_at(found, k, *ratio_of(fits))))
    mean_rows(table, found, every)
    if progress is not None:
        progress(len(found.layers), len(found.layers), "")
    folder = RunFolder.create(
        out, command=command, seed=0, device="cpu", dtype="float64",
        configuration={"run": str(run), "layers": list(layers), "pairs": list(pairs), "least_r_squared": R_SQUARED,
                       "largest_error": ERROR},
        extra={"title": f"Dynamics of {source.title}", "dynamics": _record(found, str(run))},
    )  # fmt: skip
    folder.write_metrics(table)
    folder.write_arrays(_arrays(found, every, summaries))
    folder.write_verdict(dynamics_claims(found, summaries, every))
    folder.finish()
    if page:
        write_page(folder.path)
    return folder


def _record(run: RecordedPairs, source: str) -> dict[str, Any]:
    """The mapping `dynamics` of `run.json`."""
    return {
        "source": Path(source).name, "layers": list(run.layers), "time": run.unit, "samples": list(run.samples),
        "records": len(run.times), "first": run.steps[0], "last": run.steps[-1],
        "pairs": [{"pair": name, "kind": kind, "dx2": float(x), "dy2": float(y)}
                  for name, kind, x, y in zip(run.pairs, run.kinds, run.dx2, run.dy2, strict=True)],
    }  # fmt: skip


def _arrays(run: RecordedPairs, every: Sequence[LayerFits], summaries: Sequence[LayerSummary]) -> dict[str, np.ndarray]:
    """Curves at some times, and matrices with samples that are alike beside each other, in single precision."""
    kept = np.unique(np.linspace(0, len(run.times) - 1, min(len(run.times), _TIMES)).round().astype(np.int64))
    arrays: dict[str, np.ndarray] = {
        f"dynamics/{name}": _single(np.stack([getattr(one, name)[..., kept] for one in every]))
        for name in ("measured", "fitted", "predicted")
    }
    arrays["dynamics/times"] = run.times[kept]
    some = [one.structure for one in summaries if isinstance(one.structure, Structure)]
    if some:
        targets, inputs = run.matrices["targets"], run.matrices["inputs"]
        order = order_of(targets + 1e-3 * inputs * (targets.max() or 1.0) / (inputs.max() or 1.0))
        nothing = np.full(inputs.shape, np.nan)
        for name in ("first", "last", "predicted"):
            parts = [getattr(one.structure, name) if isinstance(one.structure, Structure) else nothing
                     for one in summaries]  # fmt: skip
            arrays[f"structure/{name}"] = _single(np.stack(parts)[:, order][:, :, order])
        arrays["structure/samples"] = np.array(run.samples, dtype=np.int64)[order]
    return arrays


def _single(values: np.ndarray) -> np.ndarray:
    """In single precision; NaN for what does not fit in."""
    return np.where(np.abs(values) < np.finfo(np.float32).max, values, np.nan).astype(np.float32)
