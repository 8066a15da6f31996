"""`track_pairs`: how far apart pairs of samples are, in every layer, while a model trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from isthmus.probe._one import Forward
from isthmus.probe._pairs_tracker import PairTracker
from isthmus.probe._select import BLOCKS

MAX_SAMPLES = 256


def track_pairs(
    model: nn.Module,
    samples: Any,
    targets: Any = None,
    *,
    pairs: int | Sequence[Sequence[int]] = 16,
    layers: str | Sequence[str] = BLOCKS,
    forward: Forward | None = None,
    max_samples: int = MAX_SAMPLES,
    first_step: int = 0,
    seed: int = 0,
) -> PairTracker:
    """Track how far apart pairs of samples are, in every layer of a model, while it trains.

    Of every pair the state of two points is recorded: `h = ‖dh‖²` of every layer, `y = ‖dy‖²` of the predictions,
    `v = ‖dy‖² − dy·dy*`, and `m = ‖ȳ − ȳ*‖²` (arXiv 2402.09142, docs/theory 2.1), with all distances among the samples
    at the first and the last record. One pass of the model over the samples of the pairs, in evaluation mode, makes a
    record; the model comes back as it was, so that training is the same with and without.

    The first record is made here. `step()` after every step of the optimiser makes one at every step until 512 are
    kept (of many pairs in many layers fewer, at least 64: a million numbers in all); then every other one is dropped,
    and half as many are made from then on. So records are uniform in time, and which are kept follows from the number
    of steps alone. A record that fails or is not finite is kept without numbers,
    with its reason, and warned about once; the training goes on. In a distributed training only rank 0 records.

    Args:
        model: any `torch.nn.Module`; wrappers for data parallelism and compilation are taken off.
        samples: in any form that `measure` takes, all of one shape.
        targets: a row for each sample, or their key or index in a batch. Class numbers become unit vectors beside the
            predictions as the model gives them: the theory is for the mean-square loss.
        pairs: how many, or pairs of sample numbers. A number of them is chosen by the seed as evenly as there are:
            within and across classes (or near and far in target), near and far in input. Samples that repeat the inputs
            of an earlier one are left out.
        layers: as for `measure`. What is only given to the model does not change and is left out.
        forward: `forward(model, batch) → outputs`, where calling the model on a batch is not enough.
        max_samples: samples to choose from at most, the first ones (of more than 512 of them, 512 that are drawn);
            those of pairs that are named may be any.
        first_step: step at which the training begins.
        seed: of the choice, and of random states in a pass.

    Returns:
        A `PairTracker`: `.step()`, `.record(step)`, `.traces`, `.table`, `.matrices`, `.save(folder)`.

    Raises:
        InputError: what cannot be used: samples that are not there, identical or not finite, targets that do not fit
            the outputs, a pattern that no module matches, more pairs in so many layers than can be kept.
        ModelError: the model raised an error; it is the cause.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        >>> x, y = torch.randn(64, 4), torch.randn(64, 2)
        >>> optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> tracker = track_pairs(net, x, y, pairs=4)
        >>> for _ in range(10):
        ...     optimiser.zero_grad()
        ...     torch.nn.functional.mse_loss(net(x), y).backward()
        ...     optimiser.step()
        ...     tracker.step()
        >>> tracker.traces.h.shape  # layers, pairs, times
        (2, 4, 11)
    """
    return PairTracker(model, samples, targets, pairs=pairs, layers=layers, forward=forward, max_samples=max_samples,
                       first_step=first_step, seed=seed)  # fmt: skip
