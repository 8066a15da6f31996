"""Final distances among samples at a layer: measured, and as docs/theory 2.3 predicts them."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from isthmus.experiments._dynamics_source import RecordedPairs
from isthmus.theory import final_distances

_LEAST = 3


@dataclasses.dataclass(frozen=True)
class Structure:
    """Squared distances among the recorded samples at one layer, `(samples, samples)`.

    Attributes:
        first: at the first record.
        last: at the last record.
        predicted: `h_∞` of every pair; NaN where the representations were equal at the start.
        correlation: Pearson's, of predicted and last, over pairs of samples.
        start: the same of first and last: what "nothing changes" would get.
        n: pairs behind both.
        note: which pairs these are.
    """

    first: np.ndarray
    last: np.ndarray
    predicted: np.ndarray
    correlation: float
    start: float
    n: int
    note: str


def structure_at(run: RecordedPairs, layer: int, ratio: float, said: str = "") -> Structure | str:
    """The structure of a layer, or the reason why there is none.

    Args:
        run: the recorded pairs.
        layer: number of the layer.
        ratio: `η_h/η_y` of the layer.
        said: what there is to know about it.
    """
    name = run.layers[layer]
    keys = ("inputs", "targets", "outputs/first", f"hidden/{name}/first", f"hidden/{name}/last")
    missing = [key for key in keys if key not in run.matrices]
    if missing:
        return f"the run holds no usable matrix pairs/{missing[0]}"
    X, Y, y0, h0, last = (run.matrices[key] for key in keys)
    if not all(bool((np.isfinite(part) & (part >= 0)).all()) for part in (X, Y, y0, h0, last)):
        return "a matrix of distances holds numbers that are none"
    if not np.isfinite(ratio):
        return "no pair is fitted, so η_h/η_y is unknown"
    alike = (h0 <= 0) & (X > 0)
    inputs = torch.from_numpy(np.where(alike, 0.0, X))
    found = final_distances(
        inputs, torch.from_numpy(Y.copy()), torch.from_numpy(h0.copy()), torch.from_numpy(y0.copy()), ratio=ratio
    ).numpy()
    predicted = np.where(alike, np.nan, found)
    rows, columns = np.triu_indices(len(X), 1)
    usable = np.isfinite(predicted[rows, columns])
    place = {sample: k for k, sample in enumerate(run.samples)}
    fitted = np.zeros(X.shape, dtype=bool)
    for pair in run.pairs:
        ends = [place.get(int(end)) for end in pair.split("-") if end.isdecimal()]
        if len(ends) == 2 and None not in ends:
            fitted[ends[0], ends[1]] = fitted[ends[1], ends[0]] = True
    others = usable & ~fitted[rows, columns]
    note = "pairs of samples that no rate was fitted to"
    if others.sum() < _LEAST:
        others, note = usable, "all pairs of samples, those that rates were fitted to included"
    if others.sum() < _LEAST:
        return f"{int(others.sum())} pairs of samples: a correlation needs {_LEAST}"
    rows, columns = rows[others], columns[others]
    end = last[rows, columns]
    return Structure(h0, last, predicted, _pearson(predicted[rows, columns], end), _pearson(h0[rows, columns], end),
                     len(rows), "; ".join(text for text in (note, said) if text))  # fmt: skip


def _pearson(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's correlation; NaN where either does not vary."""
    one, other = one - one.mean(), other - other.mean()
    size = float(np.sqrt(np.square(one).sum() * np.square(other).sum()))
    tiny = 1e-24 * max(len(one), 1)
    return float((one * other).sum()) / size if size > tiny else float("nan")


def order_of(matrices: np.ndarray) -> np.ndarray:
    """Samples in an order in which those that are near stand together, by average linkage of one matrix."""
    from scipy.cluster import hierarchy
    from scipy.spatial.distance import squareform

    if len(matrices) < _LEAST:
        return np.arange(len(matrices))
    condensed = squareform((matrices + matrices.T) / 2, checks=False)
    return hierarchy.leaves_list(hierarchy.linkage(condensed, "average", optimal_ordering=True)).astype(np.int64)
