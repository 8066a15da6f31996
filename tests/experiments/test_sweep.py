"""Sweeps: what they run, that every run counts once, and that one which is killed costs only itself."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from isthmus import InputError, IsthmusError
from isthmus._errors import RunFolderError, WriteError
from isthmus._records import MetricTable, RunFolder
from isthmus.experiments import (
    Sweep,
    SweepRun,
    _sources,
    _sweep,
    _sweep_local,
    make_sweep,
    plan_sweep,
    read_sweep,
    run_sweep,
    sweep_states,
)
from isthmus.experiments import _sweep_folder as folders

BASE: dict[str, Any] = {"data": "teacher", "teacher_widths": [4, 2, 4], "n_train": 30, "n_test": 10, "width": 6,
                        "depth": 5, "effective_depth": 1, "epochs": 3}  # fmt: skip
HEAD = "[base]\n" + "\n".join(f"{key} = {value!r}" for key, value in BASE.items()) + "\n"


def one(**settings: Any) -> tuple[Sweep, SweepRun]:
    sweep = make_sweep(BASE, runs=[settings])
    return sweep, sweep.runs[0]


def parts(folder: Path) -> list[Path]:
    return list((folder / "runs").glob(".*"))


@contextlib.contextmanager
def killing(folder: Path, digest: str) -> Iterator[list[int]]:
    """SIGKILL whoever makes the run with this digest, as soon as it has begun."""
    killed: list[int] = []

    def watch() -> None:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and not killed:
            for record in (folder / "runs").glob(f".part-{digest}-*/run.json"):
                killed.append(int(record.parent.name.split("-")[-2]))
                os.kill(killed[0], signal.SIGKILL)
                return
            time.sleep(0.002)

    thread = threading.Thread(target=watch)
    thread.start()
    yield killed
    thread.join()


def test_a_grid_is_every_combination_with_the_last_axis_fastest() -> None:
    sweep = make_sweep(BASE | {"effective_depth": 2}, grid={"ridge": [1e-3, 0.1], "seed": [0, 1, 2]}, name="g")
    found = [(run.config.ridge, run.config.seed, run.source["seed"]) for run in sweep.runs]
    assert found == [(r, s, s) for r in (1e-3, 0.1) for s in (0, 1, 2)]
    assert sweep.axes == {"ridge": (1e-3, 0.1), "seed": (0, 1, 2)}
    assert len({run.digest for run in sweep.runs}) == 6
    assert sweep.runs[5].name == f"ridge=0.1_seed=2_{sweep.runs[5].digest}"
    assert sweep.runs[0].config.effective_depth == 2.0
    assert sweep.runs[0].source["widths"] == [4, 2, 4]


def test_a_list_has_axes_where_its_runs_differ(tmp_path: Path) -> None:
    file = tmp_path / "two.toml"
    file.write_text(HEAD + 'seed = 3\n[sweep]\ncommand = "train"\n[[run]]\n[[run]]\ndepth = 9\nbatch-size = 10\n')
    sweep = read_sweep(file)
    assert sweep.name == "two"
    assert sweep.axes == {"depth": (5, 9), "batch_size": (None, 10)}
    assert [run.config.depth for run in sweep.runs] == [5, 9]
    assert {run.config.seed for run in sweep.runs} == {3}


def test_the_digest_knows_the_whole_configuration_and_the_content_of_a_file(tmp_path: Path) -> None:
    base = {"target": "y", "task": "regression", "width": 6, "depth": 5, "effective_depth": 1, "epochs": 3}

    def digest(file: Path, **changes: Any) -> str:
        return make_sweep(base | {"data": str(file)}, runs=[changes]).runs[0].digest

    (tmp_path / "other").mkdir()
    here, there = tmp_path / "t.csv", tmp_path / "other" / "t.csv"
    here.write_text("x,z,y\n" + "".join(f"{i},{i % 3},{i * i % 11}\n" for i in range(40)))
    shutil.copy(here, there)
    same = digest(here)
    assert digest(there) == same, "a sweep can be moved"
    assert digest(here, ridge=1e-3) == same, "a usual value that is said is the usual value"
    assert digest(here, ridge=2e-3) != same
    assert digest(here, test_fraction=0.3) != same
    there.write_text(there.read_text().replace("1,1,1\n", "1,1,2\n"))
    assert digest(there) != same


BAD: dict[str, tuple[str, tuple[str, ...]]] = {
    "unknown table": (HEAD + "[gird]\nseed = [0]", ("config: got gird", "did you mean 'grid'")),
    "unknown key in sweep": (
        HEAD + "[sweep]\ncomand = 'train'\n[grid]\nseed=[0]",
        ("comand", "did you mean 'command'"),
    ),
    "unknown command": (HEAD + "[sweep]\ncommand = 'measure'\n[grid]\nseed=[0]", ("sweep.command: got measure",)),
    "unknown axis": (HEAD + "[grid]\nrigde = [1]", ("grid: got rigde", "did you mean 'ridge'")),
    "unknown base": (HEAD + "epoch = 3\n[grid]\nseed=[0]", ("base: got epoch", "did you mean 'epochs'")),
    "unknown key of a run": (HEAD + "[[run]]\n[[run]]\nsteeps = 'a'", ("run 2: got steeps", "'steps'")),
    "an option": (HEAD + "[grid]\nout = ['a']", ("grid: got out", "an option of the command")),
    "neither": (HEAD, ("sweep: got neither",)),
    "both": (HEAD + "[grid]\nseed=[0]\n[[run]]\nseed=1", ("sweep: got both",)),
    "no list": (HEAD + "[grid]\nridge = 0.1", ("grid.ridge: got 0.1", "belongs into [base]")),
    "twice with both dashes": (
        HEAD + "n-test = 3\n[grid]\nseed=[0]",
        ("base: got n-test, expected each setting once",),
    ),
    "an axis with both dashes": (
        HEAD + "[grid]\nbatch_size=[1]\nbatch-size=[2, 3]",
        ("grid: got batch-size, expected each setting once",),
    ),
    "too large": (HEAD + f"[grid]\nridge=[{10**400}]", ("ridge: got 1000", "less than 64 bits")),
    "too many": (
        HEAD + "[grid]\n" + "\n".join(f"{name} = {list(range(1, 2000))}" for name in ("seed", "ridge", "gamma0")),
        ("grid: got 7,988,005,999 combinations, expected at most 10,000 runs",),
    ),
    "zero and minus zero": (HEAD + "[grid]\ngradient_tolerance = [0.0, -0.0]", ("expected runs that differ",)),
    "empty list": (HEAD + "[grid]\nridge = []", ("grid.ridge: got []",)),
    "twice": (HEAD + "[grid]\ndepth = [7]", ("grid: got depth", "[base] does not have")),
    "same runs": (HEAD + "[grid]\nridge = [0.1, 0.2, 0.1]", ("ridge = 0.1, expected runs that differ",)),
    "wrong type": (HEAD + "[grid]\nridge = ['big']", ("ridge: got big, expected a number",)),
    "a half": (HEAD + "[grid]\nseed = [0.5]", ("seed: got 0.5, expected a whole number",)),
    "true": (HEAD + "[grid]\nseed = [true]", ("seed: got True, expected a whole number",)),
    "a value that cannot be": (HEAD + "[grid]\nwidth = [5]\n", ("grid: got width",)),
    "a network that cannot be": (
        HEAD.replace("effective_depth = 1\n", "") + "[grid]\neffective_depth = [1, 9]",
        ("depth: got 5", "try depth=10", "in run 2 of 2 (effective_depth = 9)"),
    ),
    "no data": ("[grid]\nseed=[0]", ("data: got nothing", "[base]")),
    "unknown data": ("[base]\ndata = 'digts'\n[grid]\nseed=[0]", ("data: got digts", "'digits'")),
    "a missing file": ("[base]\ndata = 'no.csv'\ntarget = 'y'\n[grid]\nseed=[0]", ("no.csv",)),
    "of a file": (HEAD + "target = 'y'\n[grid]\nseed=[0]", ("target: got", "it is for files")),
    "of a teacher": ("[base]\ndata = 'digits'\nn_train = 9\n[grid]\nseed=[0]", ("n_train: got 9", "teachers")),
    "no TOML": ("[base", ("config:", "a TOML file")),
    "no table": ("base = 3\n[grid]\nseed=[0]", ("base: got 3, expected a table",)),
    "no table of sweep": ("sweep = 3\n" + HEAD + "[grid]\nseed=[0]", ("sweep: got 3, expected a table",)),
    "no list of runs": ("run = 3\n" + HEAD, ("run: got 3, expected a list of tables",)),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_sentence(name: str, tmp_path: Path) -> None:
    text, needles = BAD[name]
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(InputError) as caught:
        read_sweep(tmp_path / "bad.toml")
    for needle in needles:
        assert needle in str(caught.value)


def test_a_name_that_is_too_long_is_no_file() -> None:
    with pytest.raises(InputError, match="expected an existing TOML file"):
        read_sweep("a" * 300 + ".toml")


def test_a_setting_of_the_data_that_a_run_does_not_give_is_shown_as_it_is(tmp_path: Path) -> None:
    shared = {key: value for key, value in BASE.items() if key != "n_train"}
    sweep = make_sweep(shared, runs=[{}, {"n_train": 50}])
    assert sweep.axes == {"n_train": (1000, 50)}
    assert sweep.runs[0].source["n_train"] == 1000
    file = tmp_path / "t.csv"
    file.write_text("x,y\n" + "".join(f"{i},{i * i % 11}\n" for i in range(40)))
    of_file = {"width": 6, "depth": 5, "effective_depth": 1, "data": str(file), "target": "y", "task": "regression"}
    assert make_sweep(of_file, runs=[{}, {"test_fraction": 0.5}]).axes == {"test_fraction": (0.2, 0.5)}


def test_a_file_is_read_once_for_its_hash_however_many_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, read = tmp_path / "t.csv", list[Path]()
    file.write_text("x,y\n" + "".join(f"{i},{i * i % 11}\n" for i in range(40)))
    digest = _sources._digest
    monkeypatch.setattr(_sources, "_digest", lambda path: read.append(path) or digest(path))
    base = {"width": 6, "depth": 5, "effective_depth": 1, "data": str(file), "target": "y", "task": "regression"}
    sweep = make_sweep(base, grid={"ridge": [1e-3, 1e-2, 1e-1], "seed": [0, 1]})
    assert len(read) == 1 + 2, "once for the hash, and once for the samples of each seed"
    assert [run.source["seed"] for run in sweep.runs] == [0, 1] * 3


def test_a_result_is_claimed_once(tmp_path: Path) -> None:
    first, second, place = (tmp_path / name for name in ("a", "b", "place"))
    for part in (first, second):
        part.mkdir()
        (part / "run.json").write_text(part.name)
    assert folders.claim(first, place)
    assert not folders.claim(second, place)
    assert (place / "run.json").read_text() == "a"
    assert not first.exists()
    assert not second.exists()
    with pytest.raises(WriteError, match="could not be renamed"):
        folders.claim(first, tmp_path / "elsewhere")


def test_a_place_that_somebody_has_half_removed_is_taken(tmp_path: Path) -> None:
    part, place = tmp_path / "part", tmp_path / "place_0123456789"
    for folder in (part, place):
        folder.mkdir()
    (place / "model.safetensors").write_text("left")
    (part / "run.json").write_text("new")
    assert folders.claim(part, place)
    assert [path.name for path in tmp_path.iterdir()] == [place.name]
    assert [path.name for path in place.iterdir()] == ["run.json"]


def test_only_a_failed_run_is_forgotten(tmp_path: Path) -> None:
    """Two commands with --retry-failed: the second comes when the first has completed what had failed, or forgotten."""
    runs = tmp_path / "runs"
    for name, status in (("a_0123456789", "complete"), ("b_0123456780", "failed")):
        (runs / name).mkdir(parents=True)
        (runs / name / "run.json").write_text(f'{{"schema_version": 1, "status": "{status}"}}')
    for name in ("a_0123456789", "b_0123456780", "b_0123456780"):
        folders.forget(runs / name)
    assert [path.name for path in runs.iterdir()] == ["a_0123456789"]


def test_parts_of_runs_that_are_not_settled_stay(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for name in ("a_0123456789", ".part-0123456789-host-1-a", ".part-0123456780-host-1-b", ".part-0000000000-host-1-c"):
        (runs / name).mkdir(parents=True)
        (runs / name / "run.json").write_text("{}")
    folders.remove_parts(tmp_path, ["0123456789", "0123456780"])
    assert not (runs / ".part-0123456789-host-1-a").exists()
    assert len(parts(tmp_path)) == 2


def test_a_sweep_beside_another_one_loses_nothing_when_that_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one has settled the run and removed the part that this one still writes into."""
    sweep, run = one()
    (tmp_path / "runs").mkdir()
    (tmp_path / "run.json").write_text("{}")
    train = folders.run_leaky

    def slower(task: Any, config: Any, part: Path, **named: Any) -> RunFolder:
        monkeypatch.setattr(folders, "run_leaky", train)
        made = RunFolder.create(part, command="train", configuration={}, seed=0, device="cpu", dtype="float32")
        assert folders.execute(run, tmp_path, page=False)
        folders.remove_parts(tmp_path, [run.digest])
        made.finish()  # raises WriteError: its folder is gone
        raise AssertionError

    monkeypatch.setattr(folders, "run_leaky", slower)
    assert not folders.execute(run, tmp_path, page=False)
    assert sweep_states(sweep, tmp_path) == {run.digest: "complete"}
    assert parts(tmp_path) == []


@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_full_disk_stops_a_sweep_and_ends_its_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    sweep = make_sweep(BASE, grid={"seed": [0, 1, 2]})
    begun, full = tmp_path / "begun", sweep.runs[1]

    def execute(run: SweepRun, folder: Path, *, page: bool) -> bool:
        if run != full:
            begun.write_text(str(os.getpid()))
            time.sleep(10)
            begun.write_text("it was not ended")
        while not begun.exists():
            time.sleep(0.01)
        raise WriteError("no space")

    monkeypatch.setattr(_sweep_local, "execute", execute)
    monkeypatch.setattr(_sweep_local, "_context", lambda: multiprocessing.get_context("fork"))
    with pytest.raises(WriteError, match="make room, and the same command goes on"):
        run_sweep(sweep, tmp_path / "out", jobs=2, page=False)
    assert "no space" in capfd.readouterr().err
    assert RunFolder.open(tmp_path / "out").run["status"] == "failed"
    assert set(sweep_states(sweep, tmp_path / "out").values()) == {"to do"}
    with pytest.raises(ProcessLookupError):
        os.kill(int(begun.read_text()), 0)


@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_process_that_cannot_begin_is_no_failure_of_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a script that calls `run_sweep` where its own processes come by."""
    sweep, run = one()
    monkeypatch.setattr(_sweep_local, "_one", lambda *_: sys.exit(1))
    monkeypatch.setattr(_sweep_local, "_context", lambda: multiprocessing.get_context("fork"))
    with pytest.raises(IsthmusError, match=r"below `if __name__ == \"__main__\":`"):
        run_sweep(sweep, tmp_path / "out", page=False)
    assert sweep_states(sweep, tmp_path / "out") == {run.digest: "to do"}

    def begun(run: SweepRun, folder: Path, page: bool) -> None:
        folders.new_part(folder, run).mkdir()
        sys.exit(1)

    monkeypatch.setattr(_sweep_local, "_one", begun)
    with pytest.raises(IsthmusError, match=r"1 of 1 runs failed; .*its process ended with exit code 1; they are kept"):
        run_sweep(sweep, tmp_path / "out", page=False)
    assert parts(tmp_path / "out") == []


def test_the_best_of_each_number_is_named() -> None:
    table, listed = MetricTable(), list[dict[str, Any]]()
    for number, (loss, accuracy) in enumerate([(2.0, 0.5), (1.0, 0.75), (3.0, 0.9), (0.5, 0.2)], 1):
        listed.append({"digest": str(number), "name": "x", "settings": {"depth": number}, "status": "complete"})
        table.add("loss", loss, layer=str(number), split="test")
        table.add("accuracy", accuracy, layer=str(number), split="test")
        table.add("accuracy", 1 - accuracy, layer=str(number), split="train")
    claims = {claim.name: claim for claim in _sweep._claims(table.frame(), listed, [])}
    assert claims["best_loss"].text == "The lowest test loss, 0.5, is that of depth = 4."
    assert claims["best_accuracy"].text == "The highest test accuracy, 0.9, is that of depth = 3."
    assert (claims["best_loss"].rows, claims["best_accuracy"].rows) == ((9,), (7,))


ENDLESS = """
from isthmus.experiments import make_sweep, run_sweep
if __name__ == "__main__":
    run_sweep(make_sweep({base!r}, runs=[{{}}]), {out!r}, page=False)
"""


@pytest.mark.slow  # a script of its own
def test_the_runs_of_a_sweep_that_is_killed_end_with_it(tmp_path: Path) -> None:
    script, out = tmp_path / "script.py", tmp_path / "out"
    script.write_text(ENDLESS.format(base=BASE | {"epochs": 10**7}, out=str(out)))
    sweep = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (begun := list((out / "runs").glob(".part-*/run.json"))) and time.monotonic() < deadline:
        time.sleep(0.1)
    pid = int(begun[0].parent.name.split("-")[-2])
    os.kill(pid, 0)  # it is there
    sweep.kill()
    sweep.wait()
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_run_that_is_executed_twice_at_once_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep, run = one()
    (tmp_path / "runs").mkdir()
    (tmp_path / "run.json").write_text("{}")
    train, inside = folders.run_leaky, list[bool]()

    def twice(*given: Any, **named: Any) -> RunFolder:
        made = train(*given, **named)
        if not inside:
            inside.append(True)
            inside.append(folders.execute(run, tmp_path, page=False))  # another process, and faster
        return made

    monkeypatch.setattr(folders, "run_leaky", twice)
    assert not folders.execute(run, tmp_path, page=False)
    assert inside == [True, True]
    assert not folders.execute(run, tmp_path, page=False)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [run.name]
    assert sweep_states(sweep, tmp_path) == {run.digest: "complete"}


@pytest.mark.parametrize("error", [
    WriteError("no space"), OSError(errno.ENOSPC, "no space"), RunFolderError("out", "x", "a path that can be written"),
])  # fmt: skip
def test_a_full_disk_is_no_failure_of_the_run(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, run = one()
    (tmp_path / "runs").mkdir()
    (tmp_path / "run.json").write_text("{}")

    def full(*_: Any, **__: Any) -> RunFolder:
        raise error

    monkeypatch.setattr(folders, "run_leaky", full)
    with pytest.raises(WriteError):
        folders.execute(run, tmp_path)
    assert sweep_states(sweep, tmp_path) == {run.digest: "to do"}
    with pytest.raises(RunFolderError, match="cannot see"):
        folders.execute(run, tmp_path / "elsewhere")


def test_what_fails_or_is_killed_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of four runs diverges, and one is killed; then the sweep goes on, and tries again only when asked."""
    listed = [{}, {"learning_rate": 1e30, "epochs": 40}, {"epochs": 10**7}, {"seed": 1}]
    sweep, out = make_sweep(BASE, runs=listed), tmp_path / "sweep"
    good, _, killed, other = sweep.runs
    seen: list[tuple[int, int, int]] = []
    with killing(out, killed.digest) as pids, pytest.raises(IsthmusError, match="2 of 4 runs failed; the first is"):
        run_sweep(sweep, out, jobs=2, progress=lambda *numbers: seen.append(numbers), page=False)
    assert len(pids) == 1
    assert seen[0] == (0, 0, 4)
    assert seen[-1] == (4, 2, 4)
    assert parts(out) == []
    assert {path.name for path in (out / "runs").iterdir()} == {run.name for run in sweep.runs}
    record = RunFolder.open(out)
    assert record.run["status"] == "failed"
    listed = record.run["sweep"]["runs"]
    assert [entry["status"] for entry in listed] == ["complete", "failed", "failed", "complete"]
    assert "DivergedError" in listed[1]["error"]
    assert listed[2]["error"].startswith("its process was killed (SIGKILL)")

    table = record.metrics()
    assert set(table["layer"]) == {good.digest, other.digest}
    assert table.select("layer", "metric", "split").is_unique().all()
    for number, run in ((1, good), (4, other)):
        own = RunFolder.open(out / "runs" / run.name).metrics()
        last = own.filter((pl.col("metric") == "loss") & (pl.col("split") == "test") & (pl.col("step") == 3))
        row = table.filter((pl.col("layer") == run.digest) & (pl.col("metric") == "loss") & (pl.col("split") == "test"))
        assert row["value"].item() == last["value"].item()
        assert row["index"].item() == number
        assert row["seed"].item() == run.config.seed
    assert [claim.name for claim in record.verdict()] == ["runs", "best_loss", "best_r_squared", "failed"]

    before = {path: path.stat().st_mtime_ns for path in (out / "runs").glob("*/run.json")}
    with pytest.raises(IsthmusError, match="2 of 4 runs failed"):
        run_sweep(sweep, out, page=False)
    assert {path: path.stat().st_mtime_ns for path in (out / "runs").glob("*/run.json")} == before

    fewer = make_sweep(BASE, runs=[{}, {"seed": 1}])  # the same configurations, with other names
    shutil.rmtree(out / "runs" / good.name)
    folders.record_failure(good, out, "was in the way")
    with pytest.raises(IsthmusError, match="1 of 2 runs failed"):
        run_sweep(fewer, out, page=False)
    again = run_sweep(fewer, out, retry_failed=True, page=False)
    assert again.run["status"] == "complete"
    assert again.run["error"] is None
    assert set(again.metrics()["layer"]) == {good.digest, other.digest}
    assert again.verdict()[-1].text.startswith("2 folders are of configurations that the sweep no longer has")
    assert (out / "runs" / other.name / "run.json").stat().st_mtime_ns == before[out / "runs" / other.name / "run.json"]

    assert [entry["page"] for entry in again.run["sweep"]["runs"]] == [False, False]
    monkeypatch.setattr(_sweep, "write_page", lambda path: (path / "report.html").write_text("page"))
    paged = run_sweep(fewer, out)
    assert [entry["page"] for entry in paged.run["sweep"]["runs"]] == [True, True]
    assert (out / "report.html").is_file()
    assert all((out / "runs" / entry["name"] / "report.html").is_file() for entry in paged.run["sweep"]["runs"])


def test_a_plan_counts_what_is_to_do(tmp_path: Path) -> None:
    sweep = make_sweep(BASE, grid={"seed": [0, 1]})
    plan = plan_sweep(sweep, dict(sweep_states(sweep, tmp_path / "new")), jobs=8)
    assert (plan.runs, plan.tried, plan.jobs) == (2, 2, 2)
    assert plan.seconds > 0
    assert plan_sweep(sweep, {run.digest: "complete" for run in sweep.runs}).runs == 0
    assert not (tmp_path / "new").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep, run = one()
    RunFolder.create(tmp_path / "run", command="train", configuration=dataclasses.asdict(run.config), seed=0,
                     device="cpu", dtype="float32")  # fmt: skip
    before = (tmp_path / "run" / "run.json").read_text()
    with pytest.raises(RunFolderError, match="a new folder, or that of a sweep"):
        run_sweep(sweep, tmp_path / "run")
    assert (tmp_path / "run" / "run.json").read_text() == before
    folder = tmp_path / "sweep"
    RunFolder.create(folder, command="sweep", configuration={}, seed=0, device="cpu", dtype="float32")
    (folder / "runs").mkdir()
    monkeypatch.setattr(_sweep.os, "access", lambda path, mode: path != folder / "runs")
    with pytest.raises(RunFolderError, match="a folder that can be written"):
        run_sweep(sweep, folder)
    with pytest.raises(InputError, match="jobs: got 0"):
        run_sweep(sweep, tmp_path / "new", jobs=0)
    assert not (tmp_path / "new").exists()
