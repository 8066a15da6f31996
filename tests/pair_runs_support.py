"""Runs with recorded pairs whose answers are known: the exact curves of the theory, with planted rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from isthmus._records import MetricTable, RunFolder
from isthmus.theory import final_distances, two_point

ETA_H, ETA_Y, ETA_MEAN = 2e-3, 0.05, 0.01
PAIRS = ((0, 1), (2, 3), (0, 4), (1, 5))
SAMPLES = 6


class PlantedRun:
    """Curves of pairs of samples that follow the theory exactly.

    A layer of scale c has h scaled by c, and rates c·η_h and η_y/c: then y and v are the same at every layer.

    Attributes:
        scales: of each layer, by its name.
        steps: training steps.
        h: by layer, (pairs, times).
        y: (pairs, times).
        v: (pairs, times).
        m: (pairs, times).
        dx2: squared distances of the inputs of all samples.
        dy2: those of the targets.
    """

    def __init__(self, scales: Mapping[str, float], *, first: float = 0.02, times: int = 80, last: int = 400) -> None:
        generator = torch.Generator().manual_seed(1)
        inputs, targets = (torch.randn(SAMPLES, width, generator=generator, dtype=torch.float64) for width in (4, 2))
        self.scales = dict(scales)
        self.dx2, self.dy2 = (torch.cdist(rows, rows).square() for rows in (inputs, targets))
        self.h0, self.y0 = first * self.dx2, 1e-3 * self.dx2
        self.steps = [int(step) for step in np.linspace(0, last, times).round()]
        one, other = torch.tensor(PAIRS).T
        t = torch.tensor(self.steps, dtype=torch.float64)
        path = two_point(
            t, self.h0[one, other], self.y0[one, other], self.y0[one, other], eta_h=ETA_H, eta_y=ETA_Y,
            dx2=self.dx2[one, other], dy2=self.dy2[one, other],
        )  # fmt: skip
        self.h = {name: scale * path.h for name, scale in self.scales.items()}
        self.y, self.v = path.y.clone(), path.v.clone()
        self.m = torch.exp(-2 * ETA_MEAN * t) * torch.tensor([0.5, 1.0, 2.0, 3.0])[:, None]

    def matrices(self) -> dict[str, np.ndarray]:
        """Distances of all samples, whose ends are those of the theory."""
        found = {"inputs": self.dx2, "targets": self.dy2, "outputs/first": self.y0, "outputs/last": self.dy2}
        for name, scale in self.scales.items():
            first = scale * self.h0
            found[f"hidden/{name}/first"] = first
            found[f"hidden/{name}/last"] = final_distances(
                self.dx2, self.dy2, first, self.y0, ratio=scale**2 * ETA_H / ETA_Y
            )
        return {f"pairs/{name}": value.numpy().copy() for name, value in found.items()}

    def save(self, folder: Path, *, rates: float | None = None, without: Sequence[int] = (), **changes: Any) -> Path:
        """Write the run as `track_pairs` does.

        Args:
            folder: where.
            rates: learning rate, where times are sums of it.
            without: numbers of the records that failed.
            changes: of the mapping `pairs` of `run.json`.
        """
        one, other = torch.tensor(PAIRS).T
        names = [f"{i}-{j}" for i, j in PAIRS]
        record: dict[str, Any] = {
            "samples": list(range(SAMPLES)), "layers": list(self.scales), "time": "step", "stride": 1, "notes": [],
            "matrices": {"first": 0, "last": self.steps[-1]},
            "pairs": [{"pair": name, "dx2": float(x), "dy2": float(y), "kind": "as given"} for name, x, y in
                      zip(names, self.dx2[one, other], self.dy2[one, other], strict=True)],
        }  # fmt: skip
        if rates is not None:
            record |= {"time": "sum of learning rates", "times": {str(s): rates * s for s in self.steps}}
        run = RunFolder.create(
            folder, command="pairs", configuration={}, seed=0, device="cpu", dtype="float64",
            extra={"title": "Planted", "pairs": record | changes},
        )  # fmt: skip
        table = MetricTable()

        def add(metric: str, value: float, **where: Any) -> None:
            if where.pop("failed"):
                table.add(metric, None, status="failed", note="planted", **where)
            else:
                table.add(metric, value, **where)

        for k, step in enumerate(self.steps):
            for i, pair in enumerate(names):
                for layer, h in self.h.items():
                    add("pair_h", float(h[i, k]), layer=layer, step=step, pair=pair, failed=k in without)
                for metric, values in (("pair_y", self.y), ("pair_v", self.v), ("pair_mean", self.m)):
                    add(metric, float(values[i, k]), step=step, pair=pair, failed=k in without)
        run.write_metrics(table)
        run.write_arrays(self.matrices())
        run.write_verdict([])
        run.finish()
        return folder
