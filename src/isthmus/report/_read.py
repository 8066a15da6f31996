"""A run folder as the page reads it: tolerant of what is missing, with a reason for everything that is absent."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import polars as pl

from isthmus._errors import InputError, RunFolderError
from isthmus._records import COLUMNS, METRICS, Claim, RunFolder
from isthmus.report._compressed import read_compression
from isthmus.report._cost import read_cost
from isthmus.report._dynamics import read_dynamics
from isthmus.report._layers import ALIGNED, CHAINED, NAME_LIMIT, WHOLE_MODEL, middle, read_layers
from isthmus.report._monitored import last_arrays, read_training
from isthmus.report._reproduced import read_reproduction
from isthmus.report._swept import read_sweep_record

NOT_RECORDED = "not recorded by this run"
_KINDS = ("representation", "step", "weight", "path")
_TEXT_LIMIT = 600


def shorten(text: object, limit: int = _TEXT_LIMIT) -> str:
    """`text` as one string of at most `limit` characters, so that no single name can fill the page."""
    shown = str(text)
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def number(value: float | None, digits: int = 4) -> str:
    """A number as the page shows it: `digits` significant digits, a true minus sign, a dash where there is none."""
    if value is None or not np.isfinite(value):
        return "—"
    whole = float(value).is_integer()
    shown = f"{value:.{digits}g}"
    if abs(value) < 1e6 and (whole or "e+" in shown):
        shown = f"{value if whole else float(shown):.0f}"
    return shown.replace("-", "−")


@dataclasses.dataclass(frozen=True)
class Curve:
    """Values of one metric along depth, epochs or an index; `reasons` says why some or all are missing.

    Attributes:
        name: label in the legend.
        kind: what a row is of (`representation`, `step`, `weight`, `epoch`, …).
        index: layer or row numbers.
        x: depth, epoch or index.
        y: values.
        stderr: standard errors; NaN where there is none.
        reasons: why values are missing; empty where none is.
        places: name of the layer of each row; empty where layers have numbers only.
        baseline: what the values are to be compared with; empty for the model's own.
    """

    name: str
    kind: str
    index: np.ndarray
    x: np.ndarray
    y: np.ndarray
    stderr: np.ndarray
    reasons: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    baseline: str = ""

    def __len__(self) -> int:
        return len(self.x)

    def named(self, name: str) -> Curve:
        """The same curve under another label."""
        return dataclasses.replace(self, name=name)

    def scaled(self, factor: float, name: str) -> Curve:
        """The curve times `factor`, under another label."""
        return dataclasses.replace(self, name=name, y=self.y * factor, stderr=self.stderr * abs(factor))

    def at(self, rows: np.ndarray) -> Curve:
        """The rows with these numbers only."""
        return dataclasses.replace(
            self, index=self.index[rows], x=self.x[rows], y=self.y[rows], stderr=self.stderr[rows],
            places=tuple(self.places[k] for k in rows.tolist()) if self.places else (),
        )  # fmt: skip

    def place(self, row: int) -> str:
        """Where a row is: the name of its layer, or its kind and number."""
        return self.places[row] if self.places else f"{self.kind} {self.index[row]}"

    def thinned(self, limit: int) -> Curve:
        """At most about `limit` rows: evenly spaced ones, with the first, last, smallest and largest kept."""
        if len(self) <= limit:
            return self
        kept = {*evenly(len(self), limit).tolist(), int(np.argmin(self.y)), int(np.argmax(self.y))}
        return self.at(np.array(sorted(kept)))


def evenly(n: int, limit: int) -> np.ndarray:
    """At most `limit` of the numbers 0 … n−1, evenly spaced, the first and the last among them."""
    return np.unique(np.linspace(0, n - 1, min(n, max(limit, 2))).round().astype(np.int64))


def reasons_of(rows: pl.DataFrame) -> tuple[str, ...]:
    """Why rows have no value, each reason once."""
    bad = rows.filter(pl.col("status") != "ok")
    if bad.is_empty():
        return ()
    counts = bad.group_by("status", "note", maintain_order=True).len()
    found = [
        f"{status}: {shorten(note)}" + (f" ({n} rows)" if n > 1 else "") for status, note, n in counts.head(4).rows()
    ]
    more = counts.height - len(found)
    return (*found, f"and {more} more reasons") if more > 0 else tuple(found)


def _sound(claim: Any) -> Claim:
    """A claim from a file, whose fields may be of any type, with fields of the right one."""
    raw: Any = claim.values if isinstance(claim.values, dict) else {}
    values = {str(k): v if v is None or isinstance(v, (str, int, float)) else str(v) for k, v in raw.items()}
    rows = tuple(row for row in claim.rows if isinstance(row, int))
    level = claim.level if claim.level in ("finding", "caution") else "none"
    return Claim(str(claim.name), str(claim.text), level, rows, values)


class RunView:
    """One run, loaded once. Files that are missing or broken become `problems`, not errors.

    Of a monitored training `frame` and `arrays` hold the last measurement, `whole` the rows of every step.
    """

    def __init__(self, folder: RunFolder, label: str = "") -> None:
        self.folder, self.run = folder, folder.run
        self.problems: list[str] = []
        self.label = label or self.title
        self.reproduction = read_reproduction(folder.path, self.run)
        self.problems += self.reproduction.problems if self.reproduction else ()
        self.predicted = "propagation" in self.run and self.reproduction is None
        self.cost = read_cost(self.run) if self.reproduction is None else None
        self.dynamics = read_dynamics(self.run) if self.reproduction is None and self.cost is None else None
        self.compression = read_compression(self.run) if self.reproduction is None and self.cost is None else None
        self.claims = [_sound(claim) for claim in self._load("verdict.json", folder.verdict, [])]
        # A reproduction has no arrays, its data are in CSV files; nor has a sweep.
        self.arrays: dict[str, np.ndarray] = (
            {} if self.reproduction or "sweep" in self.run else self._load("arrays.safetensors", folder.arrays, {})
        )
        table = self._load("metrics.parquet", folder.metrics, pl.DataFrame(schema=COLUMNS))
        self.sweep = read_sweep_record(self.run, table) if self.reproduction is None and self.cost is None else None
        self.problems += self.sweep.problems if self.sweep is not None else ()
        self.layers = read_layers(self.run) if self.reproduction is None else None
        self.whole = table.with_row_index("row").with_columns(
            self._of().alias("of"),
            pl.col("note").fill_null("").str.extract(r"^gamma0=([0-9.eE+-]+)").cast(pl.Float64, strict=False)
            .alias("gamma0"),
            pl.col("note").fill_null("").str.extract(r"^level=([0-9.eE+-]+)").cast(pl.Float64, strict=False)
            .alias("level"),
        )  # fmt: skip
        self.training = read_training(self.run, table)
        self.frame = self.whole
        if self.training is not None:
            self.frame = self.whole.filter(self.training.counts())
            self.arrays, said = last_arrays(self.arrays, self.training)
            self.problems += [shorten(text) for text in (*self.training.problems, *said)]

    def _of(self) -> pl.Expr:
        """What a row is of: the beginning of the layer's name, or the list that a measured run gives of its layers."""
        name = pl.col("layer").fill_null("")
        kernel = pl.col("metric").is_in(ALIGNED)
        of_kernel = pl.when(pl.col("index").is_null()).then(pl.lit("model")).otherwise(pl.lit("aligned"))
        of_chain = pl.when(pl.col("index").is_null()).then(pl.lit("chain")).otherwise(pl.lit("chained"))
        if self.layers is None:
            first = name.str.split(".").list.first()
            return pl.when(kernel).then(of_kernel).when(first.is_in(_KINDS)).then(first).otherwise(pl.lit(""))
        return (
            pl.when(pl.col("metric").is_in(WHOLE_MODEL)).then(pl.lit("model"))
            .when(kernel).then(of_kernel)
            .when(pl.col("metric").is_in(CHAINED)).then(of_chain)
            .when(name.is_in([layer.name for layer in self.layers.sites])).then(pl.lit("representation"))
            .when(name.is_in([layer.name for layer in self.layers.weights])).then(pl.lit("weight"))
            .when(name == "").then(pl.lit("")).otherwise(pl.lit("module"))
        )  # fmt: skip

    def _load(self, name: str, read: Any, otherwise: Any) -> Any:
        try:
            return read()
        except RunFolderError as error:
            there = (self.folder.path / name).exists()
            why = f"cannot be read: expected {shorten(error.expected)}" if there else "is missing from the run folder"
            self.problems.append(f"{name} {why}.")
            return otherwise

    @property
    def title(self) -> str:
        """Title of the run, or the name of its folder."""
        return shorten(self.run.get("title") or self.folder.path.name, 160)

    def part(self, key: str) -> Mapping[str, Any]:
        """A mapping inside `run.json`; empty where it is absent or something else."""
        found = self.run.get(key)
        return cast("Mapping[str, Any]", found) if isinstance(found, dict) else {}

    def scalar(self, part: str, key: str) -> float | None:
        """A number inside a part of `run.json`."""
        found = self.part(part).get(key)
        return float(found) if isinstance(found, (int, float)) and not isinstance(found, bool) else None

    @property
    def gamma0(self) -> float | None:
        """γ₀ that this run's stabilised numbers use unless they say otherwise."""
        return self.scalar("leaky", "gamma0")

    @property
    def positions(self) -> np.ndarray:
        """Depths p_0 … p_L of the representations; empty where unknown."""
        found = self.arrays.get("position")
        if found is not None and found.ndim == 1 and np.isfinite(found).all():
            return found.astype(np.float64)
        return np.empty(0)

    def gammas(self, metric: str) -> list[float]:
        """The values of γ₀ for which `metric` was recorded, from small to large."""
        tags = self.frame.filter(pl.col("metric") == metric).get_column("gamma0").drop_nulls().unique().sort()
        return [float(g) for g in tags]

    def rows_of(self, metric: str, of: str | None) -> pl.DataFrame:
        """Rows of a metric for one kind of layer; rows without a layer count too, they hold reasons."""
        rows = self.frame.filter(pl.col("metric") == metric)
        if of is None:
            return rows
        fitting = rows.filter(pl.col("of").is_in([of, ""]))
        return fitting if not fitting.is_empty() else rows.filter(pl.col("status") != "ok")

    def curve(
        self,
        metric: str,
        of: str | None,
        name: str = "",
        *,
        gamma0: float | None = None,
        split: str | None = None,
        along: str = "position",
        baseline: str = "",
    ) -> Curve:
        """Values of `metric` as recorded last, ordered along `position`, `step` (epochs) or `index`."""
        rows = self.rows_of(metric, of).filter(pl.col("baseline").fill_null("") == baseline)
        tags = rows.get_column("gamma0").drop_nulls().unique()
        wanted = gamma0 if gamma0 is not None else self.gamma0
        if wanted is not None and len(tags):
            chosen = min(tags, key=lambda g: abs(float(g) - wanted))
            rows = rows.filter(pl.col("gamma0").is_null() | (pl.col("gamma0") == chosen))
        if split is not None:
            rows = rows.filter(pl.col("split").fill_null("") == split)
        elif rows.get_column("split").n_unique() > 1 and "train" in rows.get_column("split"):
            rows = rows.filter(pl.col("split") == "train")
        if along != "step" and rows.get_column("step").n_unique() > 1:
            last = rows.get_column("step").max() if rows.get_column("step").null_count() == 0 else None
            rows = rows.filter(pl.col("step").is_null() if last is None else pl.col("step") == last)
        good = rows.filter((pl.col("status") == "ok") & pl.col("value").is_not_null())
        good = good.with_columns(
            pl.col("index").fill_null(pl.int_range(pl.len())).alias("index"),
            pl.coalesce(pl.col(along), pl.col("index"), pl.int_range(pl.len())).cast(pl.Float64).alias("x"),
        ).sort("x", "index", maintain_order=True)
        label = name or metric.replace("_", " ")
        reasons = reasons_of(rows) if rows.height else (NOT_RECORDED,)
        kind = "epoch" if along == "step" else (of or "index")
        named = of in ("aligned", "chained") or (self.layers is not None and of in ("representation", "weight"))
        places = tuple(middle(name or "", NAME_LIMIT) for name in good["layer"]) if named else ()
        return Curve(label, kind, good["index"].to_numpy(), good["x"].to_numpy(), good["value"].to_numpy(),
                     good["stderr"].fill_null(np.nan).to_numpy(), reasons, places, baseline)  # fmt: skip

    def single(self, metric: str) -> float | None:
        """The one value of a metric of the whole path, or None."""
        found = self.curve(metric, None)
        return float(found.y[-1]) if len(found) else None

    @property
    def bottleneck(self) -> int | None:
        """k*, the agreed rank inside the bottleneck, where the run found one."""
        found = self.single("bottleneck_rank")
        return round(found) if found is not None and found >= 1 else None

    @functools.cached_property
    def gamma_text(self) -> str:
        """γ₀ and the stationarity residual, to be read beside every Hamiltonian number."""
        residual = self.curve("stationarity", "step")
        known = (
            f"median {number(float(np.median(residual.y)), 2)}, largest {number(float(residual.y.max()), 2)}"
            if len(residual)
            else f"unknown ({residual.reasons[0]})"
        )
        return f"γ₀ = {number(self.gamma0)} · stationarity residual: {known}"

    def present(self) -> list[str]:
        """Names of the known metrics that the table holds, in the order of the catalogue."""
        found = set(self.frame.get_column("metric").unique())
        return [name for name in METRICS if name in found]


_ALONE = {
    "reproduction": "a reproduction of a paper has a page of its own: give it alone",
    "cost": "a representation cost has a page of its own: give it alone",
    "sweep": "a sweep has a page of its own: give it alone, or folders of its runs",
    "dynamics": "a run's dynamics have a page of their own: give it alone",
    "compression": "a compression has a page of its own: give it alone",
}
"""What of a view stands on a page alone, and what to try."""


def load_runs(folders: Sequence[RunFolder]) -> list[RunView]:
    """One view per folder; labels are titles, numbered where two are the same.

    Raises:
        InputError: a prediction beside runs of other kinds; a reproduction of a paper, a representation cost, a
            sweep, a run's dynamics, or a compression among several folders.
    """
    views = [RunView(folder) for folder in folders]
    predictions = [view.title for view in views if view.predicted]
    if 0 < len(predictions) < len(views):
        raise InputError("run", predictions[0], "runs of training or measuring, which can stand side by side",
                         "predictions of signal propagation stand beside each other only")  # fmt: skip
    for part, hint in _ALONE.items() if len(views) > 1 else ():
        for view in views:
            if getattr(view, part) is not None:
                raise InputError("run", view.title, "runs of training or measuring, which can stand side by side", hint)
    seen: dict[str, int] = {}
    for view in views:
        seen[view.title] = count = seen.get(view.title, 0) + 1
        view.label = view.title if count == 1 else f"{view.title} ({count})"
    return views
