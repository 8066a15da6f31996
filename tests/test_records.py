from __future__ import annotations

import datetime
import json
import math
import os
import pickle
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from isthmus import _records
from isthmus._errors import InputError, RunFolderError
from isthmus._records import COLUMNS, Claim, MetricTable, RunFolder, check_new_folder, fresh_folder, write_whole


def folder(path: Path) -> RunFolder:
    return RunFolder.create(
        path, command="test", configuration={"a": (1, math.inf)}, seed=3, device="cpu", dtype="float64"
    )


def test_a_table_has_every_column_and_no_nan() -> None:
    table = MetricTable()
    assert table.add("loss", 0.5, step=3, split="train", stderr=math.nan) == 0
    assert table.add("loss", math.nan) == 1
    assert table.skip("hamiltonian", "no leak", layer="step.1", index=1) == 2
    frame = table.frame()
    assert dict(frame.schema) == COLUMNS
    assert frame["value"].to_list() == [0.5, None, None]
    assert frame["stderr"].to_list() == [None, None, None]
    assert frame["status"].to_list() == ["ok", "failed", "skipped"]
    assert "not a finite number (nan)" in frame["note"][1]
    assert frame["unit"].to_list() == ["loss", "loss", "energy"]


def test_unknown_metrics_and_missing_reasons_are_refused() -> None:
    table = MetricTable()
    with pytest.raises(InputError, match="did you mean 'stable_rank'"):
        table.add("stablerank", 1.0)
    with pytest.raises(InputError, match="the reason why 'loss' is skipped"):
        table.skip("loss", "")
    assert len(table) == 0


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    run = folder(tmp_path / "run")
    table = MetricTable()
    table.add("loss", 0.1 + 0.2, step=1)
    claims = [Claim("bottleneck", "Keeps <3> of 30 – “dimensions”.", "finding", (0,), {"rank": 3, "share": None})]
    arrays = {"spectra/weight": np.linspace(0, 1, 7)[::2], "n": np.arange(3)}
    run.write_metrics(table)
    run.write_verdict(claims)
    run.write_arrays(arrays)
    run.finish("complete", objective=0.25)
    again = RunFolder.open(tmp_path / "run")
    assert again.metrics().equals(table.frame(), null_equal=True)
    assert again.verdict() == claims
    assert all(np.array_equal(again.arrays()[k], v) and again.arrays()[k].dtype == v.dtype for k, v in arrays.items())
    assert again.run["status"] == "complete"
    assert again.run["objective"] == 0.25
    assert again.run["configuration"] == {"a": [1, None]}  # JSON has no infinity
    assert again.run["schema_version"] == 1


def test_files_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")

    def fail_midway(path: Path) -> None:
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(target, fail_midway)
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    write_whole(target, lambda p: p.write_text("new"))
    assert target.read_text() == "new"
    assert target.stat().st_mode & 0o777 == 0o644


def test_existing_folders_are_kept(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    folder(tmp_path / "run")  # an empty folder may be used
    with pytest.raises(RunFolderError, match="where nothing is yet"):
        folder(tmp_path / "run")
    with pytest.raises(RunFolderError, match="where nothing is yet"):
        check_new_folder(tmp_path / "run" / "run.json")
    with pytest.raises(RunFolderError, match="can be written"):
        check_new_folder(tmp_path / "run" / "run.json" / "below")


def test_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The superuser may write anywhere, so the system's answer is planted; test_bad_input has a real unwritable place.
    monkeypatch.setattr(os, "access", lambda path, mode: not (Path(path) == tmp_path and mode == os.W_OK))
    with pytest.raises(RunFolderError, match="can be written"):
        check_new_folder(tmp_path / "run")


@pytest.mark.parametrize(
    ("content", "needle"),
    [
        (None, "a run folder"),
        ("{", "readable run.json"),
        ("[]", "schema"),
        ('{"schema_version": 2}', "newer isthmus"),
        ('{"schema_version": "1"}', "schema"),
    ],
)
def test_foreign_folders_are_refused(tmp_path: Path, content: str | None, needle: str) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(RunFolderError, match=needle):
        RunFolder.open(tmp_path)


def test_missing_and_corrupt_files_are_named(tmp_path: Path) -> None:
    run = folder(tmp_path / "run")
    for read, name in ((run.metrics, "metrics"), (run.verdict, "verdict"), (run.arrays, "arrays")):
        with pytest.raises(RunFolderError, match=rf"{name}.*status here: running"):
            read()
    for name in ("metrics.parquet", "verdict.json", "arrays.safetensors"):
        (run.path / name).write_bytes(b"not this")
    for read, name in ((run.metrics, "metrics"), (run.verdict, "verdict"), (run.arrays, "arrays")):
        with pytest.raises(RunFolderError, match=name):
            read()
    pl.DataFrame({"x": [1]}).write_parquet(run.path / "metrics.parquet")
    with pytest.raises(RunFolderError, match="columns"):
        run.metrics()
    (run.path / "verdict.json").write_text(json.dumps([{"name": "x"}]))
    with pytest.raises(RunFolderError, match=r"verdict\.json of schema 1"):
        run.verdict()


def test_folders_of_the_same_second_have_different_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Clock:
            return cls(2026, 1, 2, 3, 4, 5, tzinfo=tz)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_records.datetime, "datetime", Clock)
    for name in ("demo-20260102-030405", "demo-20260102-030405-2", "demo-20260102-030405-3"):
        folder = fresh_folder("demo")
        assert folder == Path("runs") / name
        folder.mkdir(parents=True)


@pytest.mark.parametrize("kind", [InputError, RunFolderError])
@pytest.mark.parametrize("value", [3, "three", list(range(200)), lambda: 3])
def test_an_error_says_the_same_in_another_process(kind: type[InputError], value: object) -> None:
    error = kind("depth", value, "2 or more", "try 20")
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is kind
    assert str(back) == str(error)
    assert (back.argument, back.expected, back.hint) == ("depth", "2 or more", "try 20")
