"""The run folder: names of the numbers, the tidy table they live in, and files written whole or not at all.

Imports no torch: whoever reads results needs only NumPy, polars and safetensors. The schema is described in
`docs/architecture.md` (A run folder; Names of the numbers).
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import safetensors
import safetensors.numpy

from isthmus._errors import InputError, RunFolderError, WriteError
from isthmus._metrics import METRICS as METRICS
from isthmus._metrics import Metric as Metric
from isthmus._metrics import check_metric as check_metric

SCHEMA_VERSION = 1
"""Version of the folder's layout; a reader refuses a folder with a newer one."""

Status = Literal["ok", "skipped", "failed"]

COLUMNS: dict[str, Any] = {
    "step": pl.Int64(),
    "split": pl.String(),
    "layer": pl.String(),
    "index": pl.Int64(),
    "position": pl.Float64(),
    "pair": pl.String(),
    "seed": pl.Int64(),
    "metric": pl.String(),
    "value": pl.Float64(),
    "stderr": pl.Float64(),
    "n": pl.Int64(),
    "unit": pl.String(),
    "baseline": pl.String(),
    "status": pl.String(),
    "note": pl.String(),
}
"""Columns of `metrics.parquet`, in order, with their types. Missing values are null, never NaN."""


class MetricTable:
    """Builds the tidy table row by row; `frame()` gives it as polars."""

    def __init__(self) -> None:
        self._rows: list[dict[str, object]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(
        self,
        metric: str,
        value: float | int | None,
        *,
        layer: str = "",
        index: int | None = None,
        position: float | int | None = None,
        step: int | None = None,
        split: str = "",
        pair: str = "",
        seed: int | None = None,
        stderr: float | int | None = None,
        n: int | None = None,
        baseline: str = "",
        status: Status = "ok",
        note: str = "",
    ) -> int:
        """Append one row and return its number. A value that is not finite becomes a `failed` row that says so.

        Raises:
            InputError: `metric` is not in `METRICS`, or a row that is not `ok` gives no reason.
        """
        definition = check_metric(metric)
        if status == "ok" and (value is None or not math.isfinite(value)):
            status, note = "failed", f"{note}; not a finite number ({value})".removeprefix("; ")
        if status != "ok":
            value = None
            if not note:
                raise InputError("note", note, f"the reason why {metric!r} is {status}")
        if stderr is not None and not math.isfinite(stderr):
            stderr = None
        row = (step, split, layer, index, position, pair, seed, metric, value, stderr, n)
        self._rows.append(
            dict(zip(COLUMNS, (*row, definition.unit, baseline, status, note), strict=True)),
        )
        return len(self._rows) - 1

    def skip(self, metric: str, note: str, **where: Any) -> int:
        """Append a row that says why `metric` has no value here."""
        return self.add(metric, None, status="skipped", note=note, **where)

    def extend(self, values: Sequence[float], metric: str, *, layer: str, positions: Sequence[float], first: int,
               note: str = "", **common: Any) -> list[int]:  # fmt: skip
        """One row per layer: `layer.<index>`, with indices from `first` and the given positions."""
        return [
            self.add(metric, float(v), layer=f"{layer}.{first + i}", index=first + i, position=float(p), note=note,
                     **common)
            for i, (v, p) in enumerate(zip(values, positions, strict=True))
        ]  # fmt: skip

    def frame(self) -> pl.DataFrame:
        """The table so far, with the columns and types of `COLUMNS`."""
        return pl.DataFrame(self._rows, schema=COLUMNS, orient="row")


@dataclasses.dataclass(frozen=True)
class Claim:
    """One sentence of a verdict, and the row numbers of the table that stand behind it.

    Attributes:
        name: what the claim is about, stable between versions (`bottleneck`, `stationarity`, …).
        text: the sentence, in plain words.
        level: `finding`, or `caution` where the reader should trust less, or `none` where nothing was found.
        rows: row numbers of `metrics.parquet`.
        values: the numbers used in the sentence, by name.
    """

    name: str
    text: str
    level: Literal["finding", "caution", "none"]
    rows: tuple[int, ...] = ()
    values: Mapping[str, float | int | str | None] = dataclasses.field(default_factory=dict[str, Any])


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk, and rename it: whole or not at all.

    Raises:
        WriteError: the disk is full, or the folder cannot be written.
    """
    temporary = path
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except (OSError, pl.exceptions.PolarsError, safetensors.SafetensorError) as error:
        raise WriteError(f"{path} could not be written ({error}); make room and try again") from error
    finally:
        if temporary != path:
            temporary.unlink(missing_ok=True)


def _json_ready(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(k): _json_ready(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_ready(v) for v in value]
    if isinstance(value, np.generic):
        return _json_ready(value.item())
    if isinstance(value, Path):
        return str(value)
    return value


def _git_commit() -> str | None:
    """Commit of the user's working folder, or None where there is none (provenance only)."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        out = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
        if out.returncode == 0:
            return out.stdout.strip()
    return None


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("isthmus", "torch", "numpy", "scipy", "scikit-learn", "polars", "safetensors", "altair"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def fresh_folder(name: str) -> Path:
    """A folder under `runs/` that does not exist yet, named after the command and the time."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = Path("runs") / f"{name}-{stamp}"
    again = 1
    while folder.exists():
        again += 1
        folder = Path("runs") / f"{name}-{stamp}-{again}"
    return folder


def check_new_folder(path: str | os.PathLike[str], argument: str = "out") -> Path:
    """Check, writing nothing, that a run folder can be made at `path`.

    Raises:
        RunFolderError: something is there already, or no folder can be made there.
    """
    folder = Path(path)
    try:
        there = folder.exists()
    except OSError as error:  # a name that is too long
        raise RunFolderError(argument, str(folder), f"a path that can be written ({error.strerror})") from None
    if there and (not folder.is_dir() or any(folder.iterdir())):
        raise RunFolderError(argument, str(folder), "a path where nothing is yet",
                             "choose another name, or remove what is there")  # fmt: skip
    parent = folder.absolute()
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise RunFolderError(argument, str(folder), f"a path that can be written ({parent} cannot)",
                             "choose a folder you own")  # fmt: skip
    return folder


class RunFolder:
    """One run on disk. Make it with `create`, read it with `open`; every file is written whole or not at all."""

    def __init__(self, path: Path, run: dict[str, Any]) -> None:
        self.path, self.run = path, run

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        command: str,
        configuration: Mapping[str, Any],
        seed: int,
        device: str,
        dtype: str,
        extra: Mapping[str, Any] | None = None,
    ) -> RunFolder:
        """Make the folder and its `run.json` with status `running`.

        Raises:
            RunFolderError: the folder exists and is not empty, or cannot be made.
        """
        folder = check_new_folder(path)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError("out", str(folder), f"a path that can be written ({error.strerror})") from None
        run = cls(folder, {
            "schema_version": SCHEMA_VERSION, "command": command, "status": "running", "created": _now(),
            "finished": None, "seed": seed, "device": device, "dtype": dtype,
            "configuration": _json_ready(configuration), "versions": _versions(), "platform": platform.platform(),
            "git_commit": _git_commit(), **(_json_ready(extra) if extra else {}),
        })  # fmt: skip
        run.write_run()
        return run

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunFolder:
        """Open an existing run folder.

        Raises:
            RunFolderError: no folder, no readable `run.json`, or a schema newer than this version knows.
        """
        folder = Path(path)
        try:
            run: Any = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RunFolderError("run", str(folder), "a run folder (one with a run.json)",
                                 "see the path that the command printed") from None  # fmt: skip
        except (OSError, ValueError) as error:
            raise RunFolderError("run", str(folder), f"a readable run.json ({error})") from None
        version: Any = run.get("schema_version") if isinstance(run, dict) else None
        if not isinstance(version, int) or version > SCHEMA_VERSION:
            expected = f"a run folder of schema {SCHEMA_VERSION} or older (found {version})"
            hint = "install a newer isthmus" if isinstance(version, int) else "this folder is of something else"
            raise RunFolderError("run", str(folder), expected, hint)
        return cls(folder, run)

    def write_run(self, **changes: Any) -> None:
        """Write `run.json`, after merging `changes` into it."""
        self.run.update(_json_ready(changes))
        text = json.dumps(self.run, indent=2, ensure_ascii=False, allow_nan=False)
        write_whole(self.path / "run.json", lambda p: p.write_text(text + "\n", encoding="utf-8"))

    def finish(self, status: str = "complete", **changes: Any) -> None:
        """Record how the run ended."""
        self.write_run(status=status, finished=_now(), **changes)

    def write_metrics(self, table: MetricTable | pl.DataFrame) -> None:
        """Write `metrics.parquet`."""
        frame = table.frame() if isinstance(table, MetricTable) else table
        if dict(frame.schema) != COLUMNS:
            raise InputError("table", list(frame.columns), f"the columns {list(COLUMNS)}")
        write_whole(self.path / "metrics.parquet", frame.write_parquet)

    def write_verdict(self, claims: Sequence[Claim]) -> None:
        """Write `verdict.json`."""
        text = json.dumps([_json_ready(dataclasses.asdict(c)) for c in claims], indent=2, ensure_ascii=False)
        write_whole(self.path / "verdict.json", lambda p: p.write_text(text + "\n", encoding="utf-8"))

    def write_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Write `arrays.safetensors`; names are paths such as `spectra/weight`."""
        whole = {name: np.ascontiguousarray(a) for name, a in arrays.items()}
        write_whole(self.path / "arrays.safetensors", lambda p: safetensors.numpy.save_file(whole, p))

    def metrics(self) -> pl.DataFrame:
        """The table of the run. Raises `RunFolderError` where the file is missing or foreign."""
        frame = self._read("metrics.parquet", pl.read_parquet)
        if dict(frame.schema) != COLUMNS:
            raise RunFolderError("run", str(self.path), "metrics.parquet with the columns of schema 1")
        return frame

    def verdict(self) -> list[Claim]:
        """The claims of the run. Raises `RunFolderError` where the file is missing or foreign."""
        loaded = self._read("verdict.json", lambda p: json.loads(p.read_text(encoding="utf-8")))
        try:
            return [Claim(c["name"], c["text"], c["level"], tuple(c["rows"]), c["values"]) for c in loaded]
        except (KeyError, TypeError) as error:
            raise RunFolderError("run", str(self.path), f"a verdict.json of schema 1 ({error!r})") from None

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays of the run. Raises `RunFolderError` where the file is missing or foreign."""
        return self._read("arrays.safetensors", lambda p: dict(safetensors.numpy.load_file(p)))

    def _read(self, name: str, read: Callable[[Path], Any]) -> Any:
        try:
            return read(self.path / name)
        except FileNotFoundError:
            raise RunFolderError("run", str(self.path), f"a run folder with {name} (status here: "
                                 f"{self.run.get('status')})", "run the command again") from None  # fmt: skip
        except (OSError, ValueError, pl.exceptions.PolarsError, safetensors.SafetensorError) as error:
            raise RunFolderError("run", str(self.path), f"a readable {name} ({error})") from None

    def __iter__(self) -> Iterator[Path]:
        return iter(sorted(self.path.iterdir()))
