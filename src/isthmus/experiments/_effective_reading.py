"""What the two-point figures read off their networks: fits at a layer, forecasts, and where they end."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from isthmus._errors import InputError
from isthmus._records import MetricTable
from isthmus.experiments._effective_networks import PairNetworks, PairTrace, TrainedPairs
from isthmus.theory import TwoPointFit, TwoPointForecast, TwoPointLimit, fit_two_point, forecast_two_point
from isthmus.theory import two_point_limit as limit_of

GOOD, FAIR = 0.95, 0.8
"""R² of the worst of the three curves."""

MOST, HALF = 0.8, 0.5
"""Share of what a claim is about."""

LEARNED = 1e-2
"""Loss below which a network has learned, as in the published code."""

SEEN = 1e-6
"""Ratio of the rates below which a fit says that `h` does not move; such rates are not drawn."""

NAMES = ("h", "y", "v")

FAMILIES = {
    "default": "default", "shallow": "size", "narrow": "size", "two_layer": "size", "linear": "activation",
    "elu": "activation", "tanh": "activation", "relu": "activation", "swish": "activation",
}  # fmt: skip


def family(name: str) -> str:
    """What a setting changes, for the legend of a chart."""
    return "gain" if name.startswith("gain") else FAMILIES.get(name, name)


@dataclasses.dataclass(frozen=True, eq=False)
class Followed:
    """One network with its fits, made when they are asked for; None where no fit can be made.

    Attributes:
        trace: what was recorded.
        folder: name of the run folder it is from.
    """

    trace: PairTrace
    folder: str

    @property
    def name(self) -> str:
        """Of the setting."""
        return self.trace.setting.name

    @functools.cached_property
    def fit(self) -> TwoPointFit | None:
        """At the watched layer, over everything."""
        return self.fit_at(self.trace.setting.watched)

    def fit_at(self, layer: int) -> TwoPointFit | None:
        """At any recorded layer."""
        t = self.trace
        try:
            return fit_two_point(t.epochs, t.h[t.layers.index(layer)], t.y, t.v, dx2=t.member.dx2, dy2=t.member.dy2)
        except InputError:
            return None

    @property
    def worst(self) -> float:
        """The smallest R² of the three curves, at most 0 where there is no fit."""
        return -1.0 if self.fit is None else max(-1.0, float(self.fit.r_squared.min()))

    @property
    def loss(self) -> float:
        """At the end."""
        return float(self.trace.loss[-1])

    @property
    def learned(self) -> bool:
        """Whether it came to a small loss."""
        return self.trace.diverged is None and self.loss <= LEARNED

    def _forecast(self, share: float) -> TwoPointForecast | None:
        t = self.trace
        try:
            return forecast_two_point(t.epochs, t.watched, t.y, t.v, dx2=t.member.dx2, dy2=t.member.dy2, share=share)
        except InputError:
            return None

    @functools.cached_property
    def second_half(self) -> TwoPointForecast | None:
        """The second half of the epochs from the first."""
        return self._forecast(0.5)

    @functools.cached_property
    def from_middle(self) -> TwoPointForecast | None:
        """The rest, from where the squared error of `dy` is first a quarter of that at the start."""
        error = self.trace.v + (self.trace.member.dy2 - self.trace.y) / 2
        behind = error <= error[0] / 4
        if not bool(behind.any()) or error[0] <= 0:
            return None
        return self._forecast((int(behind.int().argmax()) + 1) / len(error))

    def miss(self, forecast: TwoPointForecast | None) -> float | None:
        """Root mean squared error of a forecast over the range of the curve, of the worst of the three."""
        if forecast is None:
            return None
        curves = torch.stack([self.trace.watched, self.trace.y, self.trace.v])
        return float((forecast.error / (curves.amax(1) - curves.amin(1))).max())

    @property
    def ends(self) -> tuple[float, float]:
        """`h` of the watched layer at the start and at the end."""
        return float(self.trace.watched[0]), float(self.trace.watched[-1])

    @functools.cached_property
    def limit(self) -> TwoPointLimit | None:
        """Where the fitted rates lead from the measured start (docs/theory 2.3)."""
        if self.fit is None:
            return None
        return limit_of(float(self.trace.watched[0]), float(self.trace.y[0]), eta_h=self.fit.eta_h,
                        eta_y=self.fit.eta_y, dx2=self.trace.member.dx2, dy2=self.trace.member.dy2)  # fmt: skip

    @property
    def moves(self) -> bool:
        """Whether the fit gives the encoder a rate that can be drawn."""
        return self.fit is not None and self.fit.eta_h > SEEN * self.fit.eta_y

    @property
    def relative(self) -> tuple[float, float] | None:
        """`η_h` and `η_y` over the learning rate."""
        rate = self.trace.member.rate
        return None if self.fit is None else (self.fit.eta_h / rate, self.fit.eta_y / rate)


@functools.lru_cache(maxsize=1024)
def follow(networks: PairNetworks, folder: Path) -> tuple[tuple[Followed, ...], float]:
    """The networks of a group, and the time they took; fits are kept, since several figures look at the same ones."""
    trained = TrainedPairs.open(networks, folder)
    return tuple(Followed(trace, networks.name) for trace in trained.traces), trained.seconds


def follow_all(networks: Sequence[PairNetworks], folder: Path) -> tuple[list[Followed], float]:
    """All networks of a figure, and the time they took."""
    found = [follow(one, folder) for one in networks]
    return [one for group, _ in found for one in group], sum(seconds for _, seconds in found)


def by_name(found: Iterable[Followed]) -> dict[str, list[Followed]]:
    """The networks of each setting, in their order."""
    groups: dict[str, list[Followed]] = {}
    for one in found:
        groups.setdefault(one.name, []).append(one)
    return groups


def record_fit(table: MetricTable, one: Followed, fit: TwoPointFit, *, figure: str, layer: int) -> list[int]:
    """Rows of both rates at a layer; returns their numbers."""
    note = f"figure {figure}: {one.name}"
    seed = one.trace.member.seed
    return [
        table.add("eta_h", fit.eta_h, stderr=fit.eta_h_stderr, index=layer, seed=seed, n=len(fit.times), note=note),
        table.add("eta_y", fit.eta_y, stderr=fit.eta_y_stderr, index=layer, seed=seed, n=len(fit.times), note=note),
    ]


def thinned(count: int, most: int = 100) -> np.ndarray:
    """At most so many of `count` records, the ends among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))
