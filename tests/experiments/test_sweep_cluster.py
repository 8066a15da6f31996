"""Sweeps on a cluster: a real one with several worker processes of which one is killed, and every bad scheduler."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import isthmus
from isthmus import InputError
from isthmus._records import RunFolder
from isthmus.experiments import _sweep_cluster, _sweep_local, make_sweep, run_sweep

BASE: dict[str, Any] = {"data": "teacher", "teacher_widths": [4, 2, 4], "n_train": 30, "n_test": 10, "width": 6,
                        "depth": 5, "effective_depth": 1, "epochs": 60}  # fmt: skip


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Three worker processes; a fork server imports torch once for all of them."""
    import dask

    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        from distributed import LocalCluster
        from distributed.utils import get_mp_context

        get_mp_context().set_forkserver_preload(["distributed", *_sweep_local.IMPORTED_ONCE])
        with LocalCluster(n_workers=3, threads_per_worker=1, processes=True, dashboard_address=None,
                          silence_logs=50) as made:  # fmt: skip
            yield made


def kill_one_at_work(runs: Path, workers: set[int], killed: list[tuple[int, str]]) -> None:
    """SIGKILL the first worker that is found making a run after another one is complete."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not killed:
        if any(not path.name.startswith(".") for path in runs.glob("*")):
            for record in runs.glob(".part-*/run.json"):
                _, digest, *_, pid, _ = record.parent.name.split("-")
                if int(pid) in workers:
                    os.kill(int(pid), signal.SIGKILL)
                    killed.append((int(pid), digest))
                    return
        time.sleep(0.001)


def test_a_lost_worker_loses_nothing_and_nothing_counts_twice(cluster: Any, tmp_path: Path) -> None:
    sweep, out = make_sweep(BASE, grid={"ridge": [1e-3, 1e-2], "seed": [0, 1, 2, 3]}), tmp_path / "sweep"
    workers = {nanny.pid for nanny in cluster.workers.values()}
    assert len(workers) == 3
    killed: list[tuple[int, str]] = []
    killer = threading.Thread(target=kill_one_at_work, args=(out / "runs", workers, killed))
    killer.start()
    seen: list[tuple[int, int, int]] = []
    run = run_sweep(sweep, out, scheduler=cluster.scheduler_address, page=False,
                    progress=lambda *numbers: seen.append(numbers))  # fmt: skip
    killer.join()
    ((_, digest),) = killed
    assert digest in {one.digest for one in sweep.runs}
    assert seen[-1] == (8, 0, 8)
    assert run.run["status"] == "complete"
    assert [entry["status"] for entry in run.run["sweep"]["runs"]] == ["complete"] * 8
    assert sorted(path.name for path in (out / "runs").iterdir()) == sorted(one.name for one in sweep.runs)
    table = run.metrics()
    assert set(table["layer"]) == {one.digest for one in sweep.runs}
    assert table.select("layer", "metric", "split").is_unique().all()
    losses = table.filter(metric="loss", split="test")["value"]
    assert losses.len() == losses.n_unique() == 8
    assert not list(tmp_path.glob(".*")), "the token is removed"

    made = {path: path.stat().st_mtime_ns for path in (out / "runs").glob("*/run.json")}
    assert RunFolder.open(out).run["seconds"] > 0
    run_sweep(sweep, out, scheduler=cluster.scheduler_address, page=False)  # nothing is left to do
    assert {path: path.stat().st_mtime_ns for path in (out / "runs").glob("*/run.json")} == made


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nowhere", "carrier-pigeon://127.0.0.1:9", ""])
def test_a_scheduler_that_is_not_there(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                       capfd: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    monkeypatch.setattr(_sweep_cluster, "CONNECT_SECONDS", 0.3)
    sweep = make_sweep(BASE, runs=[{}])
    with pytest.raises(InputError, match=r"scheduler: got .*, expected the address of a Dask scheduler that answers"):
        run_sweep(sweep, tmp_path / "out", scheduler=address)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError, match=r'not installed; install it with `pip install "isthmus\[dask\]"`'):
        run_sweep(make_sweep(BASE, runs=[{}]), tmp_path / "out", scheduler="tcp://127.0.0.1:8786")
    assert list(tmp_path.iterdir()) == []


class Workers:
    """A client of workers that come or do not, and see or do not."""

    def __init__(self, *, come: bool = True, sees: Any = True, version: str = isthmus.__version__) -> None:
        self.come, self.sees, self.version = come, sees, version

    def wait_for_workers(self, n_workers: int, timeout: float) -> None:
        if not self.come:
            raise TimeoutError

    def run(self, function: Any, *given: Any) -> dict[str, tuple[str, bool, list[str]]]:
        here = function(*given)
        assert here[:2] == (isthmus.__version__, True), "this process sees its own file"
        if isinstance(self.sees, Exception):
            raise self.sees
        return {"tcp://a": here, "tcp://b": (self.version, self.sees, here[2])}


@pytest.mark.parametrize(("workers", "said"), [
    (Workers(come=False), "at least one worker"),
    (Workers(sees=False), r"out: got .*every worker sees \(1 of 2 do not, tcp://b first\)"),
    (Workers(version="0.0.1"), r"workers with isthmus .*, as this command has \(tcp://b has 0\.0\.1\)"),
    (Workers(sees=ModuleNotFoundError("no isthmus")), "can import the same isthmus.*no isthmus"),
])  # fmt: skip
def test_workers_that_cannot_be_used(workers: Workers, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        _sweep_cluster.check_workers(workers, "tcp://x", tmp_path / "new" / "out")
    assert list(tmp_path.iterdir()) == []


def test_workers_that_can_be_used(tmp_path: Path) -> None:
    _sweep_cluster.check_workers(Workers(), "tcp://x", tmp_path / "new" / "out")
    assert list(tmp_path.iterdir()) == []
    absent = str(tmp_path / "absent.csv")
    with pytest.raises(InputError, match=r"data: got .*absent.csv, expected a file that every worker sees .*tcp://a"):
        _sweep_cluster.check_workers(Workers(), "tcp://x", tmp_path / "new" / "out", [absent])
    assert list(tmp_path.iterdir()) == []
    token = tmp_path / "token"
    token.write_text("another file system's")
    assert not _sweep_cluster._sees(str(token), "ours", [])[1]
    assert not _sweep_cluster._sees(str(tmp_path / "absent"), "ours", [])[1]
