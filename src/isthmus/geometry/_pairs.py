"""The state of pairs of samples, and all their distances (docs/theory, section 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from isthmus._errors import InputError


class PairStates(NamedTuple):
    """The state of two points, for each of some pairs (float64).

    Attributes:
        h: `‖dh‖²`, squared distance of the hidden representations.
        y: `‖dy‖²`, squared distance of the predictions.
        v: `‖dy‖² − dy·dy*`, which is 0 where the predictions are as far apart as the targets, in their direction.
        m: `‖ȳ − ȳ*‖²`, how far the mean prediction of a pair is from its mean target.
    """

    h: Float[Tensor, " pairs"]
    y: Float[Tensor, " pairs"]
    v: Float[Tensor, " pairs"]
    m: Float[Tensor, " pairs"]


def pair_distances(rows: Shaped[Tensor, "n ..."], pairs: Sequence[tuple[int, int]]) -> Float[Tensor, " pairs"]:
    """Squared Euclidean distances `‖r_i − r_j‖²` of some pairs of rows, in float64.

    Args:
        rows: one sample in each row; whatever follows the first dimension is flattened.
        pairs: pairs `(i, j)` of row numbers.

    Raises:
        InputError: no pair, or a row number outside `0 … n − 1`.
    """
    return _differences(rows, _ends(len(rows), pairs)).square().sum(1)


def pair_states(
    hidden: Shaped[Tensor, "_ ..."],
    outputs: Shaped[Tensor, "_ ..."],
    targets: Shaped[Tensor, "_ ..."],
    pairs: Sequence[tuple[int, int]],
) -> PairStates:
    """The state `h, y, v` of two points, and their mean error `m` (arXiv 2402.09142, docs/theory 2.1).

    `h = ‖dh‖²`, `y = ‖dy‖²`, `v = ‖dy‖² − dy·dy*` and `m = ‖ȳ − ȳ*‖²`, where `d` is the difference of the two samples
    and a bar their mean. The loss of a pair alone, `½ mean_i ‖y_i − y_i*‖²`, is `¼ (2m + v + ½ (Y − y))` with
    `Y = ‖dy*‖²`. Differences are taken first, in float64, so that nothing is lost where two samples are close.

    Args:
        hidden: a representation of every sample; channels, positions and features are flattened.
        outputs: the predictions.
        targets: what they should be, as many numbers for each sample.
        pairs: pairs `(i, j)` of row numbers.

    Raises:
        InputError: rows that do not belong together, no pair, or a row number outside `0 … n − 1`.

    Example:
        >>> points = torch.tensor([[0.0], [2.0]])
        >>> state = pair_states(points, points, torch.tensor([[0.0], [1.0]]), [(0, 1)])
        >>> state.h.item(), state.y.item(), state.v.item(), state.m.item()
        (4.0, 4.0, 2.0, 0.25)
    """
    if not len(hidden) == len(outputs) == len(targets):
        raise InputError("hidden", f"{len(hidden)} rows, {len(outputs)} of outputs, {len(targets)} of targets",
                         "one row of each for every sample")  # fmt: skip
    if outputs[:1].numel() != targets[:1].numel():
        raise InputError("targets", tuple(targets.shape), f"as many numbers for each sample as the outputs have "
                         f"{tuple(outputs.shape)}")  # fmt: skip
    ends = _ends(len(hidden), pairs)
    predicted, wanted = _differences(outputs, ends), _differences(targets, ends)
    y = predicted.square().sum(1)
    first, second = ends
    error = _flat(outputs)[first] - _flat(targets)[first] + (_flat(outputs)[second] - _flat(targets)[second])
    return PairStates(
        h=_differences(hidden, ends).square().sum(1), y=y, v=y - (predicted * wanted).sum(1),
        m=(0.5 * error).square().sum(1),
    )  # fmt: skip


def squared_distances(rows: Shaped[Tensor, "n ..."]) -> Float[Tensor, "n n"]:
    """All squared Euclidean distances `‖r_i − r_j‖²`, in float64, summed over differences.

    Exact where rows lie close together far from the origin, which the shorter sum over products is not. It costs
    `n² × width` operations.

    Args:
        rows: one sample in each row; whatever follows the first dimension is flattened.
    """
    flat = _flat(rows)
    n = len(flat)
    found = flat.new_zeros(n, n)
    upper = torch.triu_indices(n, n, 1, device=flat.device)
    found[upper[0], upper[1]] = torch.nn.functional.pdist(flat).square() if flat.shape[1] else 0.0
    return found + found.mT


def _flat(rows: Tensor) -> Tensor:
    return rows.reshape(len(rows), -1).double()


def _ends(n: int, pairs: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    wrong = next((pair for pair in pairs if not all(0 <= end < n for end in pair)), None)
    if not pairs or wrong is not None:
        raise InputError("pairs", wrong or "none", f"pairs of row numbers from 0 to {n - 1}")
    both = torch.tensor(pairs, dtype=torch.long)
    return both[:, 0], both[:, 1]


def _differences(rows: Tensor, ends: tuple[Tensor, Tensor]) -> Tensor:
    first, second = (end.to(rows.device) for end in ends)
    flat = rows.reshape(len(rows), -1)
    return flat[first].double() - flat[second].double()
