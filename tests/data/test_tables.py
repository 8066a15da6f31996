from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from isthmus import InputError
from isthmus._errors import DataNote, DataWarning
from isthmus.data import TableSchema, Task, load_table

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 3))
CLASSES = np.arange(60) % 3
NAMES = ["a", "b", "c"]


def quiet(path: Path, **options: Any) -> Task:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataNote)
        return load_table(path, **options)


def schema(task: Task) -> TableSchema:
    found = task.description["columns"]
    assert isinstance(found, dict)
    return TableSchema.from_dict(found)


def written(tmp_path: Path, frame: pl.DataFrame, name: str = "t.csv") -> Path:
    path = tmp_path / name
    frame.write_csv(path) if path.suffix == ".csv" else frame.write_parquet(path)
    return path


def table(y: Any, **more: Any) -> pl.DataFrame:
    return pl.DataFrame({**{n: X[: len(y), i] for i, n in enumerate(NAMES)}, **more, "y": y})


def assert_same(a: Task, b: Task) -> None:
    assert (a.kind, a.class_names) == (b.kind, b.class_names)
    for name in ("x_train", "y_train", "x_test", "y_test"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


@pytest.mark.parametrize("y", [CLASSES, X[:, 0] * 3 + 1.0])
def test_every_format_gives_the_same_task(y: np.ndarray, tmp_path: Path) -> None:
    frame = table(y)
    csv, parquet = written(tmp_path, frame), written(tmp_path, frame, "t.parquet")
    np.save(tmp_path / "t.npy", np.column_stack([X, y]))
    np.savez(tmp_path / "t.npz", x=X, y=y)
    np.savez(tmp_path / "named.npz", measured=X, wanted=y)
    first = quiet(csv)
    assert len(first.x_train) == 48
    assert first.kind == ("classification" if y is CLASSES else "regression")
    for other in (parquet, tmp_path / "t.npy", tmp_path / "t.npz"):
        assert_same(quiet(other), first)
    assert_same(quiet(tmp_path / "named.npz", inputs="measured", target="wanted"), first)
    assert_same(quiet(tmp_path / "t.npy", target=3), first)


def test_images_are_flattened_in_row_order(tmp_path: Path) -> None:
    images = RNG.normal(size=(30, 2, 3))
    np.savez(tmp_path / "i.npz", images=images, labels=np.arange(30) % 2)
    np.savez(tmp_path / "f.npz", x=images.reshape(30, 6), y=np.arange(30) % 2)
    assert_same(quiet(tmp_path / "i.npz"), quiet(tmp_path / "f.npz"))


@pytest.mark.parametrize(
    ("values", "kind", "labels"),
    [
        (["u", "v"] * 30, "classification", ("u", "v")),
        ([True, False] * 30, "classification", ("false", "true")),
        ([0, 1] * 30, "classification", ("0", "1")),
        ([5, 7] * 5, "classification", ("5", "7")),
        ([10, 9, 8] * 20, "classification", ("8", "9", "10")),
        (list(range(6)) * 10, "classification", tuple("012345")),
        (list(range(7)) * 8 + [0, 1, 2, 3], "regression", ()),
        (list(range(60)), "regression", ()),
        ([0.5, 1.5] * 30, "regression", ()),
        ([1.0, 2.0] * 30, "regression", ()),
    ],
)
def test_what_is_guessed_and_said(values: list[Any], kind: str, labels: tuple[str, ...], tmp_path: Path) -> None:
    path = written(tmp_path, table(values))
    with pytest.warns(DataNote) as caught:
        task = load_table(path, target="y")
    assert [str(w.message).split(",")[0] for w in caught] == [f"task: {kind}"]
    assert (task.kind, task.class_names) == (kind, labels)
    with pytest.warns(DataNote, match="target: column 'y', since none was named"):
        load_table(path, task=kind)


def test_the_guess_is_overridden(tmp_path: Path) -> None:
    path = written(tmp_path, table(CLASSES))
    task = load_table(path, target="y", task="regression")  # no note: warnings are errors here
    assert task.kind == "regression"
    back = task.scaling.outputs(torch.cat([task.y_train, task.y_test]))
    assert sorted(back[:, 0].round().tolist()) == sorted(CLASSES.tolist())


def test_several_targets_are_several_outputs(tmp_path: Path) -> None:
    task = quiet(written(tmp_path, table(X[:, 0])), target=["y", "b"])
    assert task.out_features == 2
    assert task.feature_names == ("a", "c")


def test_text_columns_are_one_hot_in_the_categories_of_the_training_rows(tmp_path: Path) -> None:
    colour = ["red", "blue", "green"] * 20
    task = load_table(written(tmp_path, table(X[:, 0], colour=colour, on=[True, False] * 30)), target="y",
                      task="regression")  # fmt: skip
    assert task.feature_names == ("a", "b", "c", "colour=blue", "colour=green", "colour=red", "on")
    assert schema(task).inputs[3].categories == ("blue", "green", "red")
    raw = task.x_train * task.scaling.x_scale + task.scaling.x_mean
    assert torch.allclose(raw[:, 3:6].sum(1), torch.ones(48), atol=1e-12)
    row = int((task.x_train[:, 0] == task.x_train[0, 0]).nonzero()[0])
    original = int(np.abs(X[:, 0] - float(raw[row, 0])).argmin())
    assert task.feature_names[3 + int(raw[row, 3:6].argmax())] == f"colour={colour[original]}"
    assert float(raw[row, 6]) == pytest.approx(1 - original % 2, abs=1e-12)


def test_missing_values_are_imputed_from_the_training_rows(tmp_path: Path) -> None:
    a: list[float | None] = list(X[:, 0])
    word: list[str | None] = ["u", "v"] * 30
    for i in range(0, 60, 7):
        a[i], word[i] = None, None
    frame = pl.DataFrame({"a": a, "word": word, "y": X[:, 1]})
    for name in ("t.csv", "t.parquet"):
        path = written(tmp_path, frame, name)
        with pytest.raises(InputError, match=r"missing values in 'a' \(9\), 'word' \(9\).*--impute median"):
            load_table(path, target="y", task="regression")
        task = load_table(path, target="y", task="regression", impute="median")
        raw = task.x_train[:, 0] * task.scaling.x_scale[0] + task.scaling.x_mean[0]
        known = raw.numpy()
        original = {round(v, 9) for v in a if v is not None}
        is_filled = np.array([round(float(v), 9) not in original for v in known])
        median = schema(task).inputs[0].median
        assert median == pytest.approx(np.median(known[~is_filled]), abs=1e-12)
        assert known[is_filled] == pytest.approx(np.full(is_filled.sum(), median), abs=1e-12)
        assert schema(task).inputs[1].categories == ("missing", "u", "v")


@pytest.mark.parametrize("impute", [None, "median"])
def test_test_rows_change_nothing_about_training(impute: str | None, tmp_path: Path) -> None:
    frame = table(X[:, 0], row=np.arange(60.0), word=["u", "v"] * 30)
    first = load_table(written(tmp_path, frame), target="y", task="regression", impute=impute)
    held_out = (first.x_test * first.scaling.x_scale + first.scaling.x_mean)[:, 3].round().int().tolist()
    assert len(held_out) == 12
    spoilt = frame.with_row_index("i").with_columns(
        pl.when(pl.col("i").is_in(held_out)).then(1e6).otherwise(pl.col(n)).alias(n) for n in (*NAMES, "y")
    )
    spoilt = spoilt.with_columns(word=pl.when(pl.col("i").is_in(held_out)).then(pl.lit("w")).otherwise("word"))
    path = written(tmp_path, spoilt.drop("i"), "spoilt.csv")
    with pytest.warns(DataWarning, match="'w' not among the categories of the training rows; all-zero in 12 rows"):
        second = load_table(path, target="y", task="regression", impute=impute)
    assert torch.equal(first.x_train, second.x_train)
    assert torch.equal(first.y_train, second.y_train)
    assert not torch.equal(first.x_test, second.x_test)
    assert schema(first) == schema(second)


def test_the_split_is_seeded_and_by_class(tmp_path: Path) -> None:
    y = ["common"] * 40 + ["rare"] * 10 + ["single"] * 1 + ["other"] * 9
    path = written(tmp_path, table(y))
    with pytest.warns(DataWarning, match="a single row, which stays in the training set: 'single'"):
        task = load_table(path, target="y", task="classification")
    with pytest.warns(DataWarning):
        other = load_table(path, target="y", task="classification", seed=1)
    with pytest.warns(DataWarning):
        again = load_table(path, target="y", task="classification")
    assert torch.bincount(task.y_test, minlength=4).tolist() == [8, 2, 2, 0]
    assert_same(task, again)
    assert not torch.equal(task.x_test, other.x_test)


def test_a_saved_index_and_other_separators(tmp_path: Path) -> None:
    frame = table(X[:, 0])
    plain = load_table(written(tmp_path, frame), target="y", task="regression")
    indexed = frame.with_row_index("")
    with pytest.warns(DataNote, match="counts the rows: left out"):
        assert_same(load_table(written(tmp_path, indexed, "i.csv"), target="y", task="regression"), plain)
    for mark in (";", "\t"):
        frame.write_csv(tmp_path / "s.csv", separator=mark, include_bom=True)
        assert_same(load_table(tmp_path / "s.csv", target="y", task="regression"), plain)


names = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), min_size=1, max_size=12)
odd = st.sampled_from(['"', ",", 'a,\n"b"', "</script>", "é√", "'", " ", "=1+1", "[red]"])


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(found=st.lists(names | odd, min_size=3, max_size=5, unique=True))
def test_odd_column_names_survive_both_formats(found: list[str], tmp_path: Path) -> None:
    frame = pl.DataFrame({name: X[:20, i % 3] + i for i, name in enumerate(found)})
    for suffix in (".csv", ".parquet"):
        task = load_table(written(tmp_path, frame, f"t{suffix}"), target=[found[-1]], task="regression")
        assert task.feature_names == tuple(found[:-1])
        assert TableSchema.from_dict(schema(task).to_dict()) == schema(task)
        raw = task.x_train * task.scaling.x_scale + task.scaling.x_mean
        assert set(raw[:, 0].numpy().round(9)) <= set(frame[found[0]].to_numpy().round(9))
