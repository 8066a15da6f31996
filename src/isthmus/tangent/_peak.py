"""Where alignment is largest along the layers, and whether the samples tell."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus._errors import InputError

PEAK_LEVEL = 0.95
FEWEST_REPLICATES = 50


@dataclasses.dataclass(frozen=True)
class Peak:
    """The layers that align most.

    Attributes:
        index: index of the layer with the largest alignment.
        first, last: indices of the first and last layer that cannot be told from it.
        members: indices of all that cannot be told from it.
        value: the largest alignment.
        stderr: its standard error.
        clear: whether there is a peak.
        why: the reason where there is none.
    """

    index: int
    first: int
    last: int
    members: tuple[int, ...]
    value: float
    stderr: float
    clear: bool
    why: str


def find_peak(values: Float[Tensor, " layers"], replicates: Float[Tensor, "b layers"]) -> Peak:
    """The layer with the largest value, those that cannot be told from it, and whether that is a peak.

    With `D` the replicates minus their mean and `s_jl` the standard deviation of `D_j − D_l`:

    - *Flat*: the curve is flat unless `max_jl (A_j − A_l)/s_jl` exceeds the 95% quantile of `max_jl (D_j − D_l)/s_jl`
      over replicates, so that equal layers are called unequal in 5% of cases.
    - *Members*: layer `l` is one of the best unless `max_j (A_j − A_l)/s_jl` exceeds the 95% quantile of
      `max_j (D_j − D_l)/s_jl` (a confidence set of the argmax: a best layer is left out in 5% of cases).
    - *Clear*: not flat, and the layers from the first to the last member are at most half of all.

    On layers of equal alignment (20 to 200 samples, 2 to 20 layers, noise that they share or not) a peak was found in
    0 to 1% of cases, and the curve called not flat in 0 to 2.5%: a resampling draws samples twice, which makes
    differences between kernels of few samples look larger than they are.

    Args:
        values: alignment of each layer, in order.
        replicates: the same under weightings of the samples, jointly for all layers.

    Raises:
        InputError: no layers, or fewer than 50 replicates.
    """
    layers = values.shape[0]
    if layers == 0:
        raise InputError("values", "no layers", "at least one layer with an alignment")
    if replicates.shape[0] < FEWEST_REPLICATES:
        raise InputError("bootstrap", replicates.shape[0], f"at least {FEWEST_REPLICATES} replicates to find a peak")
    values, drawn = values.double().cpu(), replicates.double().cpu()
    drawn = drawn - drawn.mean(0)
    top = int(values.argmax())
    stderr = float(drawn[:, top].std())
    smallest = max(16 * torch.finfo(torch.float64).eps * float(values.abs().max()), 1e-300)
    inside, most, chance = [top], 0.0, torch.zeros(drawn.shape[0], dtype=torch.float64)
    for one in range(layers):  # by how much each is beaten, and by how much it would be by chance
        differences = drawn - drawn[:, one : one + 1]
        spread = differences.square().sum(0).div(drawn.shape[0] - 1).sqrt().clamp(min=smallest)
        beaten = float(((values - values[one]) / spread).max())
        null = (differences / spread).amax(1)
        most, chance = max(most, beaten), torch.maximum(chance, null)
        if beaten <= float(torch.quantile(null, PEAK_LEVEL)):
            inside.append(one)
    members = tuple(sorted(set(inside)))
    flat = not most > float(torch.quantile(chance, PEAK_LEVEL))
    wide = 2 * (members[-1] - members[0] + 1) > layers
    why = ""
    if layers == 1:
        why = "there is one layer"
    elif flat:
        why = "the layers differ by no more than chance"
    elif wide:
        why = f"{members[-1] - members[0] + 1} of {layers} layers cannot be told from the largest"
    return Peak(top, members[0], members[-1], members, float(values[top]), stderr, not why, why)


def bootstrap_weights(n: int, draws: int, generator: torch.Generator) -> Float[Tensor, "n b"]:
    """How often each of `n` samples is drawn in `draws` resamplings with replacement."""
    drawn = torch.randint(n, (draws, n), generator=generator)
    counts = torch.zeros(draws, n, dtype=torch.float64)
    return counts.scatter_add_(1, drawn, torch.ones(draws, n, dtype=torch.float64)).mT.contiguous()


def peak_sentence(names: Sequence[str], peak: Peak) -> str:
    """A peak in words."""
    size = f"{peak.value:.2g} ± {peak.stderr:.1g}"
    if not peak.clear:
        return f"no clear peak of alignment: {peak.why} (largest: {names[peak.index]}, {size})"
    if peak.first == peak.last:
        return f"{names[peak.index]} aligns most, {size}"
    return f"{names[peak.first]} to {names[peak.last]} align most, {size}"
