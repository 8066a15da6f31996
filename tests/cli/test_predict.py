"""A user's own table, by command: from a file to a page and predictions, and everything bad on the way."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.datasets import load_diabetes, load_wine

import isthmus
from isthmus import InputError
from isthmus._errors import DataWarning, RunFolderError
from isthmus.cli import main
from isthmus.data import load_table

QUICK = ("--width", "24", "--depth", "6", "--effective-depth", "2", "--epochs", "20", "--quiet")


def frame_of(loaded: Any) -> pl.DataFrame:
    return pl.DataFrame(loaded.data, schema=list(loaded.feature_names)).with_columns(target=loaded.target)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tables and a run on each."""
    torch.set_default_dtype(torch.float32)  # as a user's process starts
    place = tmp_path_factory.mktemp("tables")
    loaded: Any = load_diabetes()
    diabetes = frame_of(loaded).with_columns(ward=pl.Series((["east", "west", None] * 200)[: len(loaded.data)]))
    diabetes.write_csv(place / "diabetes.csv")
    wine = frame_of(load_wine()).with_columns(
        target=pl.Series('</b>,"[red]' + str(i) + "\n" for i in np.asarray(load_wine(return_X_y=True)[1]))
    )
    wine.write_parquet(place / "wine.parquet")
    common = ["--target", "target", *QUICK]
    assert main(["train", "--data", str(place / "diabetes.csv"), "--impute", "median", "--task", "regression",
                 "--dtype", "float64", "--out", str(place / "d"), *common]) == 0  # fmt: skip
    assert main(["train", "--data", str(place / "wine.parquet"), "--out", str(place / "w"), *common]) == 0
    return place


def written_csv(path: Path) -> pl.DataFrame:
    """By the standard library: polars leaves quotes in a header doubled."""
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    text = pl.DataFrame(rows, schema=header, orient="row")
    return text.with_columns(pl.exclude("target").cast(pl.Float64)) if len(header) > 1 else text.cast(pl.Float64)


def test_run_json_keeps_the_columns(place: Path) -> None:
    record = json.loads((place / "d" / "run.json").read_text())
    ward = record["task"]["columns"]["inputs"][-1]
    assert ward == {"name": "ward", "kind": "one-hot", "categories": ["east", "missing", "west"], "median": None}
    assert record["task"]["columns"]["targets"] == ["target"]
    wine = json.loads((place / "w" / "run.json").read_text())
    assert any("task: classification, since target 'target' is text" in text for text in wine["warnings"])


def test_predictions_are_the_networks_own(place: Path) -> None:
    """By NumPy alone: scale, run the recursion, unscale."""
    model = isthmus.load(place / "d")
    frame = pl.read_csv(place / "diabetes.csv")
    loaded: Any = load_diabetes()
    word = frame["ward"].fill_null("missing").to_numpy()
    raw = np.column_stack([loaded.data, *(word == c for c in ("east", "missing", "west"))]).astype(float)
    arrays = isthmus.experiments._saved.RunFolder.open(place / "d").arrays()
    state = {n: v.numpy() for n, v in model.module.state_dict().items()}
    a = (raw - arrays["scaling/x_mean"]) / arrays["scaling/x_scale"] @ state["input_weight"].T
    for rho, W, b in zip(state["layer_steps"], state["weight"], state["bias"], strict=True):
        a = (1 - rho * 2.0) * a + rho * (np.maximum(a, 0) @ W.T + b)
    expected = a @ state["output_weight"].T * arrays["scaling/y_scale"] + arrays["scaling/y_mean"]
    predicted = model.predict(frame)
    assert predicted.columns == ["target"]
    assert predicted.to_numpy() == pytest.approx(expected, rel=1e-10)  # float64, another order of summation
    assert np.corrcoef(predicted["target"], frame["target"])[0, 1] > 0.5


def test_command_and_call_agree_in_every_format(place: Path, tmp_path: Path) -> None:
    for run, data in (("d", "diabetes.csv"), ("w", "wine.parquet")):
        model = isthmus.load(place / run)
        frame = (pl.read_csv if run == "d" else pl.read_parquet)(place / data)
        expected = model.predict(frame)
        for suffix in (".csv", ".parquet", ".npy", ".npz"):
            out = tmp_path / f"{run}{suffix}"
            assert main(["predict", str(place / run), str(place / data), "-o", str(out)]) == 0
            if suffix == ".npy":
                found = pl.DataFrame({"target": np.load(out).reshape(-1)})
            elif suffix == ".npz":
                arrays = np.load(out)
                found = pl.DataFrame({"target": arrays["labels" if run == "w" else "y"].reshape(-1)})
            else:
                found = pl.read_parquet(out) if suffix == ".parquet" else written_csv(out)
                if run == "w":
                    probabilities = model.predict_proba(frame)
                    assert found.columns == ["target", *(f"target={label}" for label in model.schema.labels)]
                    assert np.allclose(found.drop("target").to_numpy(), probabilities.to_numpy(), rtol=1e-12)
                    assert np.allclose(probabilities.to_numpy().sum(1), 1, rtol=1e-12)
            assert found["target"].to_list() == expected["target"].to_list()
    wine = pl.read_parquet(place / "wine.parquet")
    assert (isthmus.load(place / "w").predict(wine)["target"] == wine["target"]).mean() > 0.9


def test_columns_are_found_by_name(place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model, frame = isthmus.load(place / "d"), pl.read_csv(place / "diabetes.csv")
    shuffled = frame.select(*reversed(frame.columns)).drop("target").with_columns(extra=1)
    assert model.predict(shuffled).equals(model.predict(frame))
    shuffled.write_csv(tmp_path / "s.csv")
    assert main(["predict", str(place / "d"), str(tmp_path / "s.csv"), "-o", str(tmp_path / "o.csv")]) == 0
    assert "columns not used: 'extra'" in capfd.readouterr().out
    assert np.array_equal(pl.read_csv(tmp_path / "o.csv")["target"], model.predict(frame)["target"])


def test_an_array_has_the_input_columns_in_order(place: Path, tmp_path: Path) -> None:
    model, frame = isthmus.load(place / "w"), pl.read_parquet(place / "wine.parquet")
    x = frame.drop("target").to_numpy()
    assert model.predict(x).tolist() == model.predict(frame)["target"].to_list()
    assert np.array_equal(model.predict_proba(torch.from_numpy(x)), model.predict_proba(frame).to_numpy())
    np.save(tmp_path / "x.npy", x)
    assert main(["predict", str(place / "w"), str(tmp_path / "x.npy"), "-o", str(tmp_path / "o.npy")]) == 0
    assert np.load(tmp_path / "o.npy").tolist() == model.predict(x).tolist()
    with pytest.raises(InputError, match="13 input columns"):
        model.predict(x[:, 1:])


def test_unseen_categories_and_missing_values(place: Path) -> None:
    model, frame = isthmus.load(place / "d"), pl.read_csv(place / "diabetes.csv").head(6)
    with pytest.warns(DataWarning, match="'north' not among .*all-zero in 2 rows"):
        model.predict(frame.with_columns(ward=pl.Series(["north"] * 2 + ["east"] * 4)))
    median = model.schema.inputs[0].median
    filled = model.predict(frame.with_columns(age=pl.lit(median)))
    assert model.predict(frame.with_columns(age=pl.lit(None))).equals(filled)
    wine = pl.read_parquet(place / "wine.parquet")
    with pytest.raises(InputError, match=r"missing values in 'hue' \(178\)"):
        isthmus.load(place / "w").predict(wine.with_columns(hue=pl.lit(None)))


def test_runs_on_other_data_load_too(tmp_path: Path) -> None:
    out = tmp_path / "t"
    teacher = ["--data", "teacher", "--n-train", "40", "--n-test", "20", "--width", "32"]
    assert main(["train", *teacher, *QUICK[2:], "--out", str(out)]) == 0
    model = isthmus.load(out)
    assert model.module.weight.dtype == torch.float32
    assert model.predict(np.zeros((4, 30))).shape == (4, 30)
    with pytest.raises(InputError, match="regression"):
        model.predict_proba(np.zeros((4, 30)))


def test_broken_runs(place: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    weights = load_file(place / "w" / "model.safetensors")
    breaks: dict[str, Callable[[Path], object]] = {
        "with model.safetensors": lambda p: p.unlink(),
        "readable model.safetensors": lambda p: p.write_bytes(b"\x80\x04junk"),
        "fits its run.json": lambda p: save_file({**weights, "bias": weights["bias"][1:].contiguous()}, p),
        "finite weights": lambda p: save_file({**weights, "bias": weights["bias"] * float("nan")}, p),
        "run.json of a trained": lambda p: (p.parent / "run.json").write_text('{"schema_version": 1}'),
        "readable arrays": lambda p: (p.parent / "arrays.safetensors").write_bytes(b"junk"),
    }
    for i, (needle, spoil) in enumerate(breaks.items()):
        shutil.copytree(place / "w", tmp_path / str(i))
        spoil(tmp_path / str(i) / "model.safetensors")
        with pytest.raises(RunFolderError, match=needle):
            isthmus.load(tmp_path / str(i))


GOOD = {"a": np.arange(30) + 0.5, "b": np.arange(30) ** 2 / 7, "y": np.arange(30) * 0.1}


def changed(**columns: Any) -> bytes:
    return pl.DataFrame({**GOOD, **columns}).write_csv().encode()


def npz(**arrays: Any) -> bytes:
    import io

    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


MANY_TEXTS = pl.DataFrame({"t": [f"w{i}" for i in range(60)], "y": [0.5, 1.5] * 30}).write_csv().encode()

BAD: list[tuple[str, str, bytes | None, tuple[str, ...], tuple[str, ...]]] = [
    ("no such file", "x.csv", None, (), ("a file that is there",)),
    ("unknown type", "x.xlsx", b"1", (), (".csv, .parquet, .npy, .npz",)),
    ("empty file", "x.csv", b"", (), ("this one is empty",)),
    ("header only", "x.csv", b"a,b,y\n", (), ("has none",)),
    ("one row", "x.csv", b"a,b,y\n1,2,3\n", (), ("with 1 rows", "at least 3 rows")),
    ("no target", "x.csv", changed().replace(b",y\n", b",price\n", 1), (), ("--target", "'a', 'b', 'price'")),
    ("mistyped target", "x.csv", changed(price=GOOD["y"]), ("--target", "prise"), ("did you mean 'price'?",)),
    ("same target twice", "x.csv", changed(), ("--target", "y", "--target", "y"), ("each target once",)),
    ("missing", "x.csv", changed(a=[None] * 2 + [1.5] * 28), (), ("missing values in 'a' (2)", "--impute median")),
    ("missing by word", "x.csv", changed(a=["NA", "n/a"] + ["1.5", "2"] * 14), (), ("missing values in 'a' (2)",)),
    ("missing target", "x.csv", changed(y=[None] + [1.5, 2.5, 3.5] * 9 + [1.0] * 2), (),
     ("1 missing values in the target",)),
    ("infinite", "x.csv", changed(b=[1.0, float("inf")] * 15), (),
     ("column 'b'", "15 infinite values (first in row 2)")),
    ("text among numbers", "x.csv", changed(a=["1.5"] * 20 + ["tw\no"] + ["2"] * 9), (),
     ("column 'a'", r"'tw\no' in row 21")),
    ("decimal commas", "x.csv", changed(a=["1"] * 20 + ["2,5"] * 10), (), ("write decimals with a point",)),
    ("dates", "x.csv", changed(day=[f"2024-01-{d + 1:02d}" for d in range(30)]), (),
     ("column 'day'", "dates or times")),
    ("too many texts", "x.csv", MANY_TEXTS, (),
     ("column 't'", "60 different values", "at most 50 categories", "--inputs")),
    ("constant target", "x.csv", changed(y=[1.5] * 30), (), ("a constant target",)),
    ("one class", "x.csv", changed(y=["u"] * 30), (), ("one class",)),
    ("names as labels", "x.csv", changed(y=[f"w{i}" for i in range(30)]), (), ("30 different labels in 30 rows",)),
    ("labels that are numbers", "x.csv", changed(), ("--task", "classification"), ("not whole", "--task regression")),
    ("text as numbers", "x.csv", changed(y=["u", "v"] * 15), ("--task", "regression"), ("'u' in row 1", "numbers")),
    ("two columns of one name", "x.csv", b"a,a,y\n1,2,3\n1,2,4\n1,3,5\n", (), ("'a' more than once",)),
    ("ragged", "x.csv", b"a,y\n1,2\n1,2,3\n1,3\n", (), ("readable .csv",)),
    ("no UTF-8", "x.csv", b"a,y\n1,2\n\xff,2\n1,3\n", (), ("UTF-8",)),
    ("target alone", "x.csv", b"y\n1\n2\n3\n4\n", (), ("at least one input column",)),
    ("no Parquet", "x.parquet", b"junk", (), ("readable .parquet",)),
    ("no array", "x.npy", b"junk", (), ("readable .npy",)),
    ("pickled", "x.npz", npz(x=np.array([{}], dtype=object), y=np.ones(1)), (),
     ("pickled objects, which are never loaded",)),
    ("unknown arrays", "x.npz", npz(p=np.ones((5, 2)), q=np.ones(5)), (), ("'p', 'q'", "--inputs")),
    ("lengths", "x.npz", npz(x=np.ones((5, 2)), y=np.ones(4)), (), ("(5, 2)", "(4,)")),
    ("unknown task", "x.csv", changed(), ("--task", "regresion"), ("did you mean 'regression'?",)),
    ("unknown filling", "x.csv", changed(), ("--impute", "mean"), ("impute: got mean", "'median'")),
    ("fraction", "x.csv", changed(), ("--test-fraction", "1.5"), ("test_fraction: got 1.5",)),
    ("input that is no column", "x.csv", changed(), ("--inputs", "aa"), ("inputs", "did you mean 'a'?")),
]  # fmt: skip


@pytest.mark.parametrize("by_command", [False, True])
@pytest.mark.parametrize(("content", "options", "needles", "name"), [(b[2], b[3], b[4], b[1]) for b in BAD],
                         ids=[b[0] for b in BAD])  # fmt: skip
@pytest.mark.filterwarnings("ignore::isthmus._errors.DataNote")
def test_bad_tables(content: bytes | None, options: tuple[str, ...], needles: tuple[str, ...], name: str,
                    by_command: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    path, out = tmp_path / name, tmp_path / "run"
    if content is not None:
        path.write_bytes(content)
    if by_command:
        assert main(["train", "--data", str(path), "--out", str(out), *options, *QUICK]) == 2
        printed = capfd.readouterr()
        errors = [line for line in printed.err.splitlines() if not line.startswith("note: ")]
        assert printed.out == ""
        assert len(errors) == 1
        assert errors[0].startswith("error: ")
        message = errors[0]
    else:
        words: dict[str, Any] = {}
        for option, value in zip(options[::2], options[1::2], strict=True):
            key = option.removeprefix("--").replace("-", "_")
            words[key] = ([*words.get(key, []), value]) if key in ("target", "inputs") else value
        if "test_fraction" in words:
            words["test_fraction"] = float(words["test_fraction"])
        with pytest.raises(InputError) as caught:
            load_table(path, **words)
        message = str(caught.value)
    for needle in needles:
        assert needle in message
    assert sorted(p.name for p in tmp_path.iterdir()) == ([name] if content is not None else [])


def test_bad_predictions_write_nothing(place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    wine = pl.read_parquet(place / "wine.parquet")
    wine.rename({"hue": "hues"}).write_csv(tmp_path / "renamed.csv")
    wine.with_columns(hue=pl.lit("x")).write_csv(tmp_path / "text.csv")
    (tmp_path / "mine.csv").write_text("precious")
    before = sorted(tmp_path.iterdir())
    good = place / "wine.parquet"
    for run, data, out, needle in (
        (place / "w", tmp_path / "renamed.csv", "o.csv", "no column 'hue', expected every input column of the training "
         "data; did you mean 'hues'?"),
        (place / "w", tmp_path / "text.csv", "o.csv", "column 'hue': got 'x' in row 1"),
        (place / "w", tmp_path / "none.csv", "o.csv", "a file that is there"),
        (place / "w", good, "mine.csv", "where nothing is yet"),
        (place / "w", good, "o.txt", "known type"),
        (place / "w", good, "no/o.csv", "a folder that is there"),
        (tmp_path, good, "o.csv", "run.json"),
    ):  # fmt: skip
        assert main(["predict", str(run), str(data), "-o", str(tmp_path / out)]) == 2
        printed = capfd.readouterr()
        assert printed.err.startswith("error: ")
        assert len(printed.err.splitlines()) == 1
        assert needle in printed.err
        assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "mine.csv").read_text() == "precious"


def test_options_of_files_are_for_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--data", "digits", "--target", "y", "--out", str(tmp_path / "r"), *QUICK]) == 2
    assert "it is for files" in capfd.readouterr().err
