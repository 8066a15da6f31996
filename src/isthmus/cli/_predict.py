"""`isthmus predict`: a trained run on a new file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape

from isthmus._errors import InputError

if TYPE_CHECKING:
    import polars as pl

    from isthmus.experiments import SavedModel


def predict(
    run: Annotated[Path, Parameter(help="A run folder.")],
    data: Annotated[Path, Parameter(help="Samples: .csv, .parquet, .npy or .npz. Columns are found by name.")],
    /,
    *,
    out: Annotated[
        Path,
        Parameter(name=("--out", "-o"), help="New file: .csv, .parquet, .npy (predictions) or .npz (with classes)."),
    ],
) -> None:
    """Predict targets, or labels and probabilities of classes, for every row of a file."""
    from isthmus._records import write_whole
    from isthmus.data import check_table_file, read_inputs
    from isthmus.experiments import load

    _check_out(out)
    check_table_file(data)
    model = load(run)
    frame = read_inputs(data, model.schema)
    found = _predictions(model, frame)
    try:
        write_whole(out, lambda path: _write(model, found, path, out.suffix.lower()))
    except OSError as error:
        raise InputError("out", str(out), f"a file that can be written ({error.strerror})") from None
    ignored = [name for name in frame.columns if name not in {c.name for c in model.schema.inputs}]
    console = Console()
    if ignored:
        names = ", ".join(repr(name) for name in ignored[:8]) + (" …" if len(ignored) > 8 else "")
        console.print(f"columns not used: {escape(names)}", highlight=False, soft_wrap=True)
    console.print(f"predictions: {escape(str(out))} ({frame.height} rows)", highlight=False, soft_wrap=True)


def _check_out(out: Path) -> None:
    from isthmus.data import TABLE_FORMATS

    if out.suffix.lower() not in TABLE_FORMATS:
        raise InputError("out", str(out), f"a file of a known type ({', '.join(TABLE_FORMATS)})")
    if out.exists() or out.is_symlink():
        raise InputError("out", str(out), "a path where nothing is yet", "choose another name, or remove what is there")
    if not out.absolute().parent.is_dir():
        raise InputError("out", str(out), "a path in a folder that is there")


def _predictions(model: SavedModel, frame: pl.DataFrame) -> dict[str, Any]:
    """Frames: `labels` or `targets`, and for classes `probabilities`, from one pass through the network."""
    if model.schema.kind == "regression":
        return {"targets": model.predict(frame)}
    probabilities = model.predict_proba(frame)
    best = probabilities.to_numpy().argmax(1)
    return {"labels": model.schema.label_values()[best], "probabilities": probabilities}


def _write(model: SavedModel, found: dict[str, Any], path: Path, kind: str) -> None:
    import polars as pl

    classes = model.schema.kind == "classification"
    if kind in (".csv", ".parquet"):
        frame: pl.DataFrame | None = found.get("targets")
        if frame is None:
            frame = pl.DataFrame({model.schema.targets[0]: found["labels"]}).hstack(found["probabilities"])
        frame.write_csv(path) if kind == ".csv" else frame.write_parquet(path)
        return
    with path.open("wb") as file:  # an open file, since NumPy appends its suffix to a path
        if kind == ".npy":
            np.save(file, found["labels"] if classes else found["targets"].to_numpy(), allow_pickle=False)
        elif classes:
            np.savez(file, labels=found["labels"], probabilities=found["probabilities"].to_numpy(),
                     classes=model.schema.label_values())  # fmt: skip
        else:
            np.savez(file, y=found["targets"].to_numpy(), names=np.array(model.schema.targets, dtype=np.str_))
