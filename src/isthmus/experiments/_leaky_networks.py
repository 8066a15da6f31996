"""The networks behind the figures of the Leaky ResNet paper: trained once, kept, measured, several at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from isthmus._records import RunFolder
from isthmus.experiments._kept import digest_of, open_network
from isthmus.experiments._leaky_run import DURING_TRAINING, LeakyConfig, resume_leaky, run_leaky
from isthmus.experiments._sources import task_from_source
from isthmus.experiments._workers import Progress, train_missing
from isthmus.geometry import DEFAULT_GAMMA0


def _settings(config: LeakyConfig) -> dict[str, Any]:
    """What a network is named after: without pairs as before there were any, so that those that are kept are found."""
    settings = dataclasses.asdict(config)
    if not config.pairs:
        del settings["pairs"]
    return settings


@dataclasses.dataclass(frozen=True)
class Network:
    """A network that a figure needs: its data and its settings."""

    source: Mapping[str, Any]
    config: LeakyConfig

    @property
    def name(self) -> str:
        """Name of its folder: what tells it apart for a reader, and a digest of everything."""
        widths = "-".join(str(w) for w in self.source["widths"])
        c = self.config
        return (f"{widths}_{c.steps}_L{c.depth}_lt{c.effective_depth:g}_seed{c.seed}_"
                f"{digest_of([dict(self.source), _settings(self.config)])}")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained network, read from its folder.

    Attributes:
        network: what it is.
        run: its folder.
        table: its rows after training.
    """

    network: Network
    run: RunFolder
    table: pl.DataFrame

    @classmethod
    def open(cls, network: Network, folder: Path) -> Trained:
        """Read it. Raises `RunFolderError` where it is not there or not complete."""
        run = open_network(folder / network.name)
        frame = run.metrics().filter(pl.col("note").fill_null("") != DURING_TRAINING)
        return cls(network, run, frame)

    @property
    def lt(self) -> float:
        """`L̃`."""
        return float(self.network.config.effective_depth)

    @property
    def seed(self) -> int:
        """Of data and weights."""
        return self.network.config.seed

    @property
    def seconds(self) -> float:
        """Wall time of its training and measurement."""
        return float(self.run.run.get("seconds") or 0.0)

    def rows(self, metric: str, layer: str | None = None, *, gamma0: float | None = None) -> pl.DataFrame:
        """Rows of one metric after training, in order; `layer` is what they are of (`representation`, `weight`, …)."""
        chosen = self.table.filter((pl.col("metric") == metric) & pl.col("step").is_null() & (pl.col("status") == "ok"))
        if layer is not None:
            chosen = chosen.filter(pl.col("layer").str.split(".").list.first() == layer)
        if gamma0 is not None:
            chosen = chosen.filter(pl.col("note") == f"gamma0={gamma0:g}")
        return chosen.sort("index")

    def along(
        self, metric: str, layer: str | None = None, *, gamma0: float | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Positions and values of a metric along the path."""
        rows = self.rows(metric, layer, gamma0=gamma0)
        return rows["position"].to_numpy(), rows["value"].to_numpy()

    def values(self, metric: str, layer: str | None = None, *, gamma0: float | None = None) -> np.ndarray:
        """Values of a metric."""
        return self.rows(metric, layer, gamma0=gamma0)["value"].to_numpy()

    def scalar(self, metric: str, *, gamma0: float | None = None) -> float:
        """A metric of the whole path."""
        return float(self.values(metric, gamma0=gamma0)[0])

    def least_cost(self, gamma0: float = DEFAULT_GAMMA0) -> float:
        """`min_p ‖A_p‖²_{K+γ}`."""
        return float(self.values("cost_of_identity", "representation", gamma0=gamma0).min())

    def inside(self, metric: str, low: float = 0.1, high: float = 0.9, *, gamma0: float | None = None) -> np.ndarray:
        """Values along the path whose positions are in `[low, high]`; the one nearest the middle where none is."""
        p, v = self.along(metric, gamma0=gamma0)
        chosen = (p >= low) & (p <= high)
        return v[chosen] if chosen.any() else v[[int(np.abs(p - 0.5).argmin())]]

    @property
    def rank(self) -> float:
        """Median of the symmetric `−2H/L̃` over p in [0.1, 0.9]."""
        return float(np.median(self.inside("hamiltonian_rank_symmetric")))

    @property
    def residual(self) -> float:
        """Stationarity residual of the median layer."""
        return float(np.median(self.values("stationarity")))

    @property
    def weight_counts(self) -> np.ndarray:
        """Singular values of `W_ℓ` above `L̃/2`, by layer."""
        return (self.spectrum("weight") > 0.5 * self.lt).sum(1)

    def loss(self, split: str) -> float:
        """Data term at the end of training."""
        rows = self.table.filter((pl.col("metric") == "loss") & (pl.col("split") == split)).sort("step")
        return float(rows["value"][-1])

    def spectrum(self, of: str) -> np.ndarray:
        """Singular values, `(nodes or layers, width)`: of `weight`, `representation` or `representation_centred`."""
        return self.run.arrays()[f"spectra/{of}"]


def train_networks(
    networks: Sequence[Network],
    folder: Path,
    *,
    jobs: int = 1,
    progress: Progress | None = None,
) -> list[Trained]:
    """Train what is not there yet, and give all of them, in the order asked for.

    Each network is a run folder of its own under `folder`: it is made once, whatever figure asks for it; a killed one
    resumes from its checkpoint. With `jobs > 1` each trains in a process of its own with its share of the threads. They
    are not batched: at the paper's width of 100 a batch is slower (`benchmarks/ensemble.py`).

    Raises:
        InputError: fewer than 1 job.
        DivergedError: some networks could not be trained; the others are kept.
    """
    unique = {network.name: network for network in networks}
    train_missing(unique, _train, folder, jobs=jobs, progress=progress)
    return [Trained.open(network, folder) for network in networks]


def _train(network: Network, folder: Path) -> None:
    """Train one network, or go on with one that was interrupted."""
    path = folder / network.name
    if (path / "run.json").exists():
        resume_leaky(path, page=False)
        return
    task = task_from_source(network.source)
    run_leaky(task, network.config, path, command="reproduce", title=f"Leaky ResNet on {task.name}",
              data=network.source, page=False)  # fmt: skip
