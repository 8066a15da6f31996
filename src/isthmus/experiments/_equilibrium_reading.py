"""What the figures of the alignment paper read off trained networks: places of peaks, predictions, intervals."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np

from isthmus._random import numpy_generator
from isthmus._records import MetricTable
from isthmus.experiments._aligned_networks import TrainedAligned
from isthmus.experiments._aligned_profiles import END, MIDWAY, START, Profile
from isthmus.experiments._reproduction import Holds, Row
from isthmus.theory import EquilibriumLaw, equilibrium_law

CLOSE, ROUGH = 0.1, 0.2
"""Distance of a place from its prediction, as a share of the depth, within which that is held, or partly."""

MOST, HALF = 0.75, 0.5
"""Share of networks within which a claim about each of them is held, or partly."""

_RESAMPLINGS = 2000


@functools.cache
def _law() -> EquilibriumLaw:
    return equilibrium_law("relu", weight_variance=2)


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean and the ends of its 95% interval."""

    mean: float
    low: float
    high: float

    def said(self, digits: int = 2) -> str:
        """In words."""
        return f"{self.mean:.{digits}f} (95%: {self.low:.{digits}f} to {self.high:.{digits}f})".replace("-", "−")


@dataclasses.dataclass(frozen=True)
class Reading:
    """One network.

    Attributes:
        depth: `L`.
        seed: of everything.
        crossing: `ℓ*` of infinite width; None where there is none.
        start: alignments before training, on training samples.
        midway: where the training loss is first below 0.1; None where it does not come so far.
        end: at the end, on training samples.
        test: at the end, on test samples.
        loss: on the training samples at the end.
        test_error: share of wrong classes.
        trained: whether the loss went below the one that stops.
    """

    depth: int
    seed: int
    crossing: float | None
    start: Profile
    midway: Profile | None
    end: Profile
    test: Profile
    loss: float
    test_error: float
    trained: bool

    @property
    def place(self) -> float:
        """Place of the largest alignment at the end."""
        return self.end.top

    @property
    def middle(self) -> float:
        """Half of the depth, as a guess."""
        return self.depth / 2

    @property
    def power_law(self) -> float:
        """`2.14 L^{3/5}`, as a guess."""
        law = _law()
        return law.coefficient * self.depth**law.exponent

    def miss(self, guess: float) -> float:
        """Distance of the place from a guess, as a share of the depth."""
        return abs(self.place - guess) / self.depth


def read(t: TrainedAligned) -> Reading | None:
    """What is behind the figures; None of a network that diverged."""
    start, end, test = t.profile(START), t.profile(END), t.profile(END, "test")
    if start is None or end is None or test is None:
        return None
    return Reading(
        depth=t.network.depth, seed=t.network.seed, crossing=t.prediction, start=start, midway=t.profile(MIDWAY),
        end=end, test=test, loss=t.number("loss"), test_error=t.number("test_error"), trained=t.stopped == "loss",
    )  # fmt: skip


def read_all(networks: Sequence[TrainedAligned]) -> tuple[list[Reading], str]:
    """All that did not diverge, and a sentence about those that did."""
    found = [read(t) for t in networks]
    lost = [t for t, one in zip(networks, found, strict=True) if one is None]
    said = ", ".join(f"L = {t.network.depth}, rate {t.network.rate:.3g}, seed {t.network.seed}" for t in lost)
    return [one for one in found if one is not None], f" Diverged, and left out: {said}." if lost else ""


def over_groups(groups: Sequence[Sequence[float]]) -> Interval | None:
    """Mean of the groups' means and its 95% Student interval, for these groups and new members of each.

    Members of all groups are taken to scatter alike around their group's mean; None where no group has two.
    """
    import scipy.stats  # not at the top: it takes a while to load

    kept = [np.asarray(group, dtype=np.float64) for group in groups if len(group)]
    freedom = sum(len(group) - 1 for group in kept)
    if not kept or freedom < 1:
        return None
    variance = sum(float(np.square(group - group.mean()).sum()) for group in kept) / freedom
    error = math.sqrt(variance * sum(1 / len(group) for group in kept)) / len(kept)
    mean = float(np.mean([group.mean() for group in kept]))
    half = float(scipy.stats.t.ppf(0.975, freedom)) * error
    return Interval(mean, mean - half, mean + half)


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> Interval:
    """Spearman's correlation of pairs, and the middle 95% of it over resamplings of the pairs (at least 3)."""
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    drawn = numpy_generator(0, "rank correlation").integers(len(first), size=(_RESAMPLINGS, len(first)))
    low, high = np.quantile(_spearman(first[drawn], second[drawn]), [0.025, 0.975])
    return Interval(float(_spearman(first[None], second[None])[0]), float(low), float(high))


def _spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of each row; 0 where all values of one are the same."""
    import scipy.stats

    ranks = [np.asarray(scipy.stats.rankdata(values, axis=1)) for values in (a, b)]
    ranks = [values - values.mean(1, keepdims=True) for values in ranks]
    size = np.sqrt(np.square(ranks[0]).sum(1) * np.square(ranks[1]).sum(1))
    return (ranks[0] * ranks[1]).sum(1) / np.where(size > 0, size, 1)


def share_holds(values: Sequence[bool]) -> Holds:
    """How a claim about each network holds: in at least three quarters, in half, or in fewer."""
    share = float(np.mean(values)) if len(values) else 0.0
    return "held" if share >= MOST else "partly" if share >= HALF else "not"


def by_depth(found: Sequence[Reading]) -> dict[int, list[Reading]]:
    """Ascending in the depth."""
    return {depth: [r for r in found if r.depth == depth] for depth in sorted({r.depth for r in found})}


def spread(panel: str, series: str, x: float | int, values: Sequence[float]) -> list[Row]:
    """The mean over seeds with the least and the largest; nothing where there is no value."""
    if not len(values):
        return []
    return [Row(panel, series, x, float(np.mean(values)), min(values), max(values), n=len(values))]


def curve_rows(panel: str, series: str, profiles: Sequence[Profile], scale: float | int = 1) -> list[Row]:
    """Alignment against place over `scale`, mean over networks of the same layers."""
    if not profiles:
        return []
    columns = zip(*(p.values for p in profiles), strict=True)
    return [
        row
        for position, values in zip(profiles[0].positions, columns, strict=True)
        for row in spread(panel, series, position / scale, values)
    ]


def record_profile(table: MetricTable, profile: Profile, *, depth: int, seed: int, note: str) -> int:
    """A row for the largest alignment, where it is; returns its number."""
    top = profile.values.index(profile.value)
    return table.add("alignment", profile.value, index=top, position=profile.top / depth, step=profile.step,
                     split=profile.split, seed=seed, stderr=profile.stderr[top], note=note)  # fmt: skip
