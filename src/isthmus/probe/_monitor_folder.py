"""The run folder of a monitored training: every measurement so far, on disk as soon as it is made."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl

from isthmus._errors import RunFolderError
from isthmus._records import Claim, MetricTable, RunFolder, check_new_folder
from isthmus.probe._measurement import Measurement
from isthmus.probe._monitor_verdict import change_claims, moved_rows
from isthmus.probe._pairs_rows import OF_PAIRS, state_of
from isthmus.probe._pairs_tracker import PairTracker

COMMAND = "monitor"
LARGEST = 64
"""Values kept of every row of the arrays of one step: of spectra the largest."""

_LAST = "verdict.json"  # of the files that are written before `run.json`
_SAME = {
    "parameters": "the names or shapes of the model's parameters", "n": "the number of samples",
    "samples": "the samples", "targets": "the targets", "loss": "the loss", "layers": "the layers",
}  # fmt: skip

_OF_STEPS = ("spectra/representation", "spectra/representation_centred", "spectra/weight")


class MonitorFolder:
    """Collects measurements and writes them.

    Args:
        path: the folder; nothing may be there, unless `resume`.
        resume: go on with what is there, if it is a monitored training.
        first_step: step at which training begins or goes on. Of a folder that is resumed, what was measured there or
            later is dropped, for it is measured again; None to go on at the last measurement.

    Raises:
        RunFolderError: something else is there, or no folder can be made.

    Attributes:
        before: what a run that is resumed has spent, for the `Ledger`.
        pairs: what records pairs of samples, where that was asked for.
        pairs_before: its state in a run that is resumed, at `first_step`.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, resume: bool = False, first_step: int | None = None
    ) -> None:  # fmt: skip
        self.path = Path(path)
        self.run: RunFolder | None = None
        self.steps: list[int] = []
        self.failed: dict[int, str] = {}
        self.first_step = first_step or 0
        self.before: dict[str, Any] = {}
        self._known: Mapping[str, Any] = {}
        self._fingerprint: Mapping[str, Any] = {}
        self._frames: list[pl.DataFrame] = []
        self._losses = MetricTable()
        self._arrays: dict[int, dict[str, np.ndarray]] = {}
        self._names: dict[str, list[str]] = {"sites": [], "weights": []}
        self._last: Measurement | None = None
        self._claims: list[Claim] = []
        self.pairs: PairTracker | None = None
        self.pairs_before: dict[str, Any] | None = None
        if resume and (self.path / "run.json").exists():
            self._read(first_step)
        else:
            check_new_folder(self.path)

    def _read(self, first_step: int | None) -> None:
        run = RunFolder.open(self.path)
        before = run.run.get("monitor")
        if run.run.get("command") != COMMAND or not isinstance(before, dict):
            raise RunFolderError("out", str(self.path), "the folder of a monitored training (this one is of "
                                 f"{run.run.get('command')!r})", "choose another folder")  # fmt: skip
        self.run, part = run, cast("dict[str, Any]", before)
        try:
            known = [int(step) for step in part["steps"]]
            failed = {int(step): str(why) for step, why in part["failed"].items()}
            names = {key: [str(name) for name in part[key]] for key in ("sites", "weights")}
            spent = {key: float(part[f"seconds_{key}"]) for key in ("training", "measuring")}
            start, postponed = float(part.get("seconds_start", 0)), int(part["postponed"])
            scheduled = int(part["scheduled"]) if part.get("scheduled") is not None else None
            spent["pairs"] = float(part.get("seconds_pairs", 0))
            spent["measuring"] -= spent["pairs"]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RunFolderError("out", str(self.path), "a run.json that is whole (its mapping `monitor`: "
                                 f"{error!r})", "choose another folder") from None  # fmt: skip
        self.first_step = first = max(known, default=0) if first_step is None else first_step
        if len(known) + len(failed) <= 1 and not (self.path / _LAST).exists():
            return  # killed while the first measurement was written: there is nothing to go on with
        self.before = {**spent, "start": start, "postponed": postponed, "scheduled": scheduled}
        found = part.get("fingerprint")
        self._known = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
        self.steps = [step for step in known if step < first]
        self.failed = {step: why for step, why in failed.items() if step < first}
        self._names = names
        table, at = run.metrics(), pl.col("step")
        # A run that was killed between two files may hold rows of a step that run.json does not know yet.
        loss = (pl.col("metric") == "loss") & (pl.col("split") == "train") & (at <= first)
        measured = at.is_in([*self.steps, *self.failed]) & ~pl.col("metric").is_in(OF_PAIRS)
        self._frames = [table.filter(measured | loss)]
        arrays = run.arrays()
        if "pairs" in run.run:
            try:
                self.pairs_before = state_of(table, run.run["pairs"], arrays, before=first)
            except (KeyError, TypeError, ValueError) as error:
                raise RunFolderError("out", str(self.path), f"a folder that is whole (its pairs: {error!r})",
                                     "choose another folder") from None  # fmt: skip
        for name, array in arrays.items():
            step, _, rest = name.removeprefix("steps/").partition("/")
            if name.startswith("steps/") and int(step) in self.steps:
                self._arrays.setdefault(int(step), {})[rest] = array

    def check_same(self, fingerprint: Mapping[str, Any]) -> None:
        """Check that what is measured now is what was measured before, where a folder is resumed that says so.

        Args:
            fingerprint: of what is measured now; the folder keeps it.

        Raises:
            RunFolderError: something differs, and what.
        """
        self._fingerprint = fingerprint
        before = self._known
        differ = [key for key in _SAME if key in before and before[key] != fingerprint[key]]
        if "n" in differ:
            differ = [key for key in differ if key not in ("samples", "targets")]
        if differ:
            said = [f"{_SAME[key]} ({before[key]} before, {fingerprint[key]} now)" if key in ("n", "loss", "layers")
                    else _SAME[key] for key in differ]  # fmt: skip
            expected = f"the folder of a training of this model, measured on these samples (other: {', '.join(said)})"
            raise RunFolderError("out", str(self.path), expected, "choose another folder")

    @property
    def rows(self) -> pl.DataFrame:
        """Every row so far, without those of pairs."""
        return pl.concat([*self._frames, self._losses.frame()])

    @property
    def table(self) -> pl.DataFrame:
        """Every row so far."""
        return self.rows if self.pairs is None else pl.concat([self.rows, self.pairs.table])

    def add_loss(self, step: int, value: float, n: int | None, note: str) -> None:
        """A row of the training loss."""
        self._losses.add("loss", value, step=step, split="train", layer="model", n=n, note=note)

    def add(self, step: int, found: Measurement) -> pl.DataFrame:
        """Add one measurement, and return its rows."""
        rows = found.table.with_columns(pl.lit(step, pl.Int64).alias("step"))
        self._flush()
        first = sum(frame.height for frame in self._frames)
        self._frames.append(rows)
        self.steps.append(step)
        self._arrays[step] = self._placed(found)
        self._last = found
        self._claims = [moved_rows(claim, first) for claim in found.verdict]
        return rows

    def fail(self, step: int, reason: str) -> None:
        """Record why there is no measurement of a step."""
        self._flush()
        row = MetricTable()
        row.add("observations", None, step=step, layer="model", status="failed", note=reason)
        self._frames.append(row.frame())
        self.failed[step] = reason

    def _flush(self) -> None:
        if len(self._losses):
            self._frames.append(self._losses.frame())
            self._losses = MetricTable()

    def _placed(self, found: Measurement) -> dict[str, np.ndarray]:
        """The spectra of one step, small, a row for every layer that any step has measured."""
        part = found.record.get("measured", {})
        sites = [str(one["name"]) for one in part.get("sites", found.layers)]
        weights = [str(one["name"]) for one in part.get("weights", ())]
        placed: dict[str, np.ndarray] = {}
        for name in _OF_STEPS:
            array = found.arrays.get(name)
            if array is None or array.ndim != 2:
                continue
            kind = "weights" if name == "spectra/weight" else "sites"
            own = weights if kind == "weights" else sites
            if len(own) != len(array):  # a Leaky ResNet names no weights: its rows are its layers, in order
                own = [str(row) for row in range(len(array))]
            known = self._names[kind]
            known += [layer for layer in own if layer not in known]
            small = np.full((len(known), min(array.shape[1], LARGEST)), np.nan, np.float32)
            small[[known.index(layer) for layer in own]] = array[:, :LARGEST]
            placed[name] = small
        return placed

    def _step_arrays(self) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        for step, arrays in self._arrays.items():
            for name, array in arrays.items():
                kind = "weights" if name == "spectra/weight" else "sites"
                missing = len(self._names[kind]) - len(array)
                full = np.pad(array, ((0, missing), (0, 0)), constant_values=np.nan) if missing else array
                found[f"steps/{step}/{name}"] = full
        return found

    def write(self, monitor: Mapping[str, Any], configuration: Mapping[str, Any], *, status: str = "running") -> None:
        """Write every file, each whole or not at all; `run.json`, which names the steps, last.

        Args:
            monitor: what `run.json` says of the monitoring: what the `Ledger` records, and the last step.
            configuration: how it was asked for.
            status: of the run.

        Raises:
            RunFolderError: the folder cannot be made.
            WriteError: a full disk.
        """
        own = {"steps": self.steps, "failed": {str(step): why for step, why in self.failed.items()}, **self._names,
               "fingerprint": self._fingerprint}  # fmt: skip
        part = {**own, **{key: _finite(value) for key, value in monitor.items()}}
        assert self._last is not None  # the first measurement is made before there is a folder
        details = dict(self._last.record)
        details["configuration"] = {**details["configuration"], **configuration}
        details |= {"warnings": list(self._last.notes), "monitor": part}
        if self.pairs is not None:
            details["pairs"] = self.pairs.run_record()
        if self.run is None:
            made = dict(details)
            self.run = RunFolder.create(
                self.path, command=COMMAND, configuration=made.pop("configuration"), seed=made.pop("seed"),
                device=made.pop("device"), dtype=made.pop("dtype"), extra=made,
            )  # fmt: skip
        pairs = {} if self.pairs is None else self.pairs.run_arrays()
        self.run.write_metrics(self.table)
        self.run.write_arrays({**self._last.arrays, **self._step_arrays(), **pairs})
        self.run.write_verdict([*self._claims, *change_claims(self.rows, self.failed)])
        if status == "running":
            self.run.write_run(status=status, finished=None, **details)
        else:
            self.run.finish(status, **details)

    def note(self, name: str, value: float) -> None:
        """Write one more number into the mapping `monitor` of `run.json`."""
        assert self.run is not None  # the folder is written before anything is noted
        self.run.write_run(monitor={**self.run.run["monitor"], name: _finite(value)})


def _finite(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) and math.isfinite(value) else value
