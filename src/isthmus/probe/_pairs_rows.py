"""Tracked pairs as rows of the tidy table, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch

from isthmus._records import COLUMNS, METRICS

OF_PAIRS = ("pair_h", "pair_y", "pair_v", "pair_mean")
"""Metrics of pairs; a row of `pair_h` for each layer, of the others one."""

_NOT_FINITE = "not a finite number"


def pair_rows(
    steps: Sequence[int], values: np.ndarray, *, layers: Sequence[str], pairs: Sequence[str],
    failed: Mapping[int, str],
) -> pl.DataFrame:  # fmt: skip
    """The table of what was recorded: by step, then metric and layer, then pair.

    Args:
        steps: steps, in order.
        values: `(times, layers + 3, pairs)`: h of every layer, then y, v and m; NaN where there is no number.
        layers: names of the layers.
        pairs: names of the pairs.
        failed: steps without numbers, with the reason.
    """
    times, count, last = len(steps), len(layers), max(len(layers) - 1, 1)
    metrics = ["pair_h"] * count + list(OF_PAIRS[1:])
    nothing = [None] * 3
    kinds = {
        "layer": [*layers, "", "", ""], "index": [*range(count), *nothing],
        "position": [*(k / last for k in range(count)), *nothing], "metric": metrics,
        "unit": [METRICS[metric].unit for metric in metrics],
    }  # fmt: skip
    each = np.arange(times * len(metrics) * len(pairs))
    of_kind, of_pair = (each // len(pairs)) % len(metrics), each % len(pairs)
    of_step = each // (len(metrics) * len(pairs))
    frame = pl.DataFrame({"step": list(steps)}, schema={"step": pl.Int64})[of_step]
    parts = pl.DataFrame(kinds, schema={name: COLUMNS[name] for name in kinds})[of_kind]
    named = pl.DataFrame({"pair": list(pairs)}, schema={"pair": pl.String})[of_pair]
    numbers = np.asarray(values, dtype=np.float64).reshape(-1)
    finite = np.isfinite(numbers)
    why = pl.col("step").replace_strict(dict(failed), default=_NOT_FINITE, return_dtype=pl.String)
    whole = pl.concat([frame, parts, named], how="horizontal").with_columns(
        pl.Series("value", np.where(finite, numbers, np.nan)).fill_nan(None), pl.Series("finite", finite)
    )
    return whole.with_columns(
        pl.lit("").alias("split"), pl.lit("").alias("baseline"), pl.lit(None, COLUMNS["seed"]).alias("seed"),
        pl.lit(None, COLUMNS["stderr"]).alias("stderr"), pl.lit(None, COLUMNS["n"]).alias("n"),
        pl.when("finite").then(pl.lit("ok")).otherwise(pl.lit("failed")).alias("status"),
        pl.when("finite").then(pl.lit("")).otherwise(why).alias("note"),
    ).select(*COLUMNS)  # fmt: skip


def state_of(rows: pl.DataFrame, record: Mapping[str, Any], arrays: Mapping[str, np.ndarray], *, before: int) \
        -> dict[str, Any]:  # fmt: skip
    """The state of a tracker (`PairTracker.state_dict`) out of the run folder that it wrote, of the steps before one.

    Args:
        rows: the table of the run.
        record: its mapping `pairs`.
        arrays: its arrays.
        before: the step.

    Raises:
        KeyError, TypeError, ValueError: not what a tracker wrote.
    """
    names, layers = [str(one["pair"]) for one in record["pairs"]], [str(name) for name in record["layers"]]
    kept = rows.filter(pl.col("step") < before)
    steps, values, failed = values_of(kept, layers=len(layers), pairs=len(names))
    matrices = {name.removeprefix("pairs/"): torch.from_numpy(np.array(value)) for name, value in arrays.items()
                if name.startswith("pairs/")}  # fmt: skip
    trace = {"steps": steps, "times": [float(step) for step in steps], "failed": failed, "provisional": False,
             "values": torch.from_numpy(np.array(values)), "stride": int(record["stride"]),
             "left_out": int(record.get("left_out", 0))}  # fmt: skip
    return {"pairs": names, "layers": layers, "at": before, "time": 0.0, "rates": False, "trace": trace,
            "first_at": int(record["matrices"]["first"]), "last_at": int(record["matrices"]["last"]),
            "matrices": matrices}  # fmt: skip


def values_of(rows: pl.DataFrame, *, layers: int, pairs: int) -> tuple[list[int], list[np.ndarray], dict[int, str]]:
    """Steps, values and failures of the rows that `pair_rows` made.

    Raises:
        ValueError: rows of another shape.
    """
    of_pairs = rows.filter(pl.col("metric").is_in(OF_PAIRS))
    steps = of_pairs["step"].unique(maintain_order=True).to_list()
    values = of_pairs["value"].fill_null(np.nan).to_numpy().reshape(len(steps), layers + 3, pairs)
    why = of_pairs.filter(~pl.col("note").is_in(["", _NOT_FINITE])).group_by("step").agg(pl.col("note").first())
    return steps, list(values), {int(step): str(note) for step, note in why.iter_rows()}
