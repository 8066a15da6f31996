"""Many runs that differ in some settings: each made once, one table of final numbers, one page to compare them."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from isthmus._errors import IsthmusError, RunFolderError
from isthmus._records import Claim, MetricTable, RunFolder, check_new_folder
from isthmus.experiments._sweep_cluster import check_workers, connected, run_on_cluster
from isthmus.experiments._sweep_folder import RUNS, State, claimed_runs, forget, is_settled, remove_parts, state_of
from isthmus.experiments._sweep_local import run_here
from isthmus.experiments._sweep_settings import Sweep, SweepRun, title_of
from isthmus.experiments._workers import check_jobs
from isthmus.report import write_page

_LEFT_OUT = ("learning_rate",)
_OF_THE_PATH = ("bottleneck_rank",)
_SHARED_DISK_SECONDS = 60


def sweep_folder(sweep: Sweep) -> Path:
    """Where a sweep is kept where no folder is given: always the same one, so that it goes on."""
    return Path("runs") / sweep.name


def check_sweep_folder(out: str | os.PathLike[str]) -> Path:
    """A folder that a sweep can begin in, or go on in; absolute.

    Raises:
        RunFolderError: something else is there, or it cannot be written.
    """
    folder = Path(out).absolute()
    if (folder / "run.json").is_file():
        if RunFolder.open(folder).run.get("command") != "sweep":
            raise RunFolderError("out", str(out), "a new folder, or that of a sweep", "choose another name")
        if not all(os.access(inside, os.W_OK) for inside in (folder, folder / RUNS) if inside.exists()):
            raise RunFolderError("out", str(out), "a folder that can be written", "choose a folder you own")
        return folder
    return check_new_folder(folder)


def sweep_states(sweep: Sweep, out: str | os.PathLike[str]) -> dict[str, State]:
    """Which runs of a sweep are complete, failed, or to do, by digest."""
    there = claimed_runs(Path(out))
    return {run.digest: state_of(there.get(run.digest)) for run in sweep.runs}


def run_sweep(
    sweep: Sweep,
    out: str | os.PathLike[str],
    *,
    jobs: int = 1,
    scheduler: str | None = None,
    retry_failed: bool = False,
    progress: Callable[[int, int, int], None] | None = None,
    page: bool = True,
) -> RunFolder:
    """Make every run of a sweep that is not there yet, then the table and the page that compare them.

    Each run has a folder of its own under `out / "runs"`, named after its settings and the hash of its whole
    configuration, and is made in a process of its own. It is made beside its place and takes it by one rename: a run
    that is executed twice counts once. The same call goes on where it stopped. `metrics.parquet` has the final numbers
    of every complete run: `layer` is the run's digest and `index` its number in `run.json`, beginning at 1.

    In a script, call it below `if __name__ == "__main__":`, for the runs' processes import the script.

    Args:
        sweep: from `make_sweep` or `read_sweep`.
        out: folder of the sweep; a new one, or one to go on in.
        jobs: processes at the same time, each with one thread; of this machine.
        scheduler: address of a Dask scheduler that runs them instead (extra `dask`); its workers must see `out`.
        retry_failed: try those again that failed.
        progress: called as `progress(settled, failed, runs)`.
        page: write the pages of the runs, and that of the sweep.

    Returns:
        The folder of the sweep.

    Raises:
        InputError: fewer than 1 job, or a scheduler that cannot be used; nothing is written then.
        RunFolderError: `out` is something else, or cannot be written.
        WriteError: the disk is full.
        IsthmusError: some runs failed; the others are complete, and the page shows which.
            Or a process could not begin, or the scheduler was lost: the same call goes on.
    """
    check_jobs(jobs)
    folder = check_sweep_folder(out)
    cluster = contextlib.nullcontext() if scheduler is None else connected(scheduler)
    with cluster as client:
        if scheduler is not None:
            data = sorted({str(run.source["name"]) for run in sweep.runs if "sha256" in run.source})
            check_workers(client, scheduler, folder, data)
        record = _begin(sweep, folder)
        states, there = sweep_states(sweep, folder), claimed_runs(folder)
        if retry_failed:
            for digest in [digest for digest, state in states.items() if state == "failed"]:
                forget(there[digest])
                states[digest] = "to do"
        waiting = [run for run in sweep.runs if states[run.digest] == "to do"]

        def settled(run: SweepRun | None) -> None:
            if run is not None:
                states[run.digest] = state_of(folder / RUNS / run.name if is_settled(folder, run) else None)
            if progress is not None:
                done = [state for state in states.values() if state != "to do"]
                progress(len(done), done.count("failed"), len(states))

        settled(None)
        begun = time.monotonic()
        try:
            if client is None:
                run_here(waiting, folder, jobs=jobs, page=page, settled=settled)
            else:
                run_on_cluster(client, waiting, folder, page=page, settled=settled)
                _await(folder, [run.digest for run in sweep.runs])
        except BaseException as error:
            with contextlib.suppress(OSError):
                record.finish("interrupted" if isinstance(error, KeyboardInterrupt) else "failed", error=f"{error}")
            raise
        remove_parts(folder, [run.digest for run in waiting])
    seconds = (record.run.get("seconds") or 0.0) + time.monotonic() - begun
    return _finish(sweep, record, seconds, page=page)


def _begin(sweep: Sweep, folder: Path) -> RunFolder:
    if (folder / "run.json").is_file():
        record = RunFolder.open(folder)
        record.write_run(status="running", finished=None, error=None, configuration=sweep.configuration)
    else:
        first = sweep.runs[0].config
        record = RunFolder.create(folder, command="sweep", configuration=sweep.configuration, seed=first.seed,
                                  device=first.device, dtype=first.dtype,
                                  extra={"title": f"Sweep {sweep.name}", "sweep": {}})  # fmt: skip
    (folder / RUNS).mkdir(exist_ok=True)
    return record


def _await(folder: Path, digests: Sequence[str]) -> None:
    """Wait until the names that other machines made are seen here: shared disks may show them late."""
    deadline = time.monotonic() + _SHARED_DISK_SECONDS
    while set(digests) - set(claimed_runs(folder)) and time.monotonic() < deadline:
        time.sleep(0.5)


def _final_rows(run: RunFolder) -> pl.DataFrame:
    """The rows of the whole network at its last recorded epoch, and the agreed rank."""
    table = run.metrics()
    whole = (pl.col("layer") == "model") & pl.col("step").is_not_null() & ~pl.col("metric").is_in(_LEFT_OUT)
    last = table.filter(whole).filter(pl.col("step") == pl.col("step").max())
    return pl.concat([last, table.filter((pl.col("layer") == "path") & pl.col("metric").is_in(_OF_THE_PATH))])


def _finish(sweep: Sweep, record: RunFolder, seconds: float, *, page: bool) -> RunFolder:
    """The table of all runs, the verdict, the record and the page."""
    table, listed = MetricTable(), list[dict[str, Any]]()
    there = claimed_runs(record.path)
    for number, run in enumerate(sweep.runs, 1):
        path = there.get(run.digest)
        entry: dict[str, Any] = {"digest": run.digest, "name": run.name if path is None else path.name,
                                 "settings": dict(run.settings), "seed": run.config.seed,
                                 "status": state_of(path)}  # fmt: skip
        listed.append(entry)
        if path is None:
            continue
        made = RunFolder.open(path)
        if page and entry["status"] == "complete" and not (path / "report.html").is_file():
            write_page(path)  # made without pages, before
        entry["page"] = (path / "report.html").is_file()
        if entry["status"] != "complete":
            entry["error"] = str(made.run.get("error") or "no reason recorded")
            continue
        entry["seconds"] = made.run.get("seconds")
        for row in _final_rows(made).iter_rows(named=True):
            table.add(row["metric"], row["value"], layer=run.digest, index=number, step=row["step"],
                      split=row["split"] or "", seed=run.config.seed, status=row["status"],
                      note=row["note"] or "")  # fmt: skip
    others = sorted(path.name for digest, path in there.items() if digest not in {run.digest for run in sweep.runs})
    frame = table.frame()
    record.write_metrics(frame)
    record.write_verdict(_claims(frame, listed, others))
    bad = [entry for entry in listed if entry["status"] != "complete"]
    said = _said(bad, len(listed), record.path) if bad else None
    axes = {name: list(values) for name, values in sweep.axes.items()}
    record.finish("failed" if bad else "complete", sweep={"axes": axes, "runs": listed}, seconds=seconds, error=said)
    if page:
        write_page(record.path)
    if said is not None:
        raise IsthmusError(said)
    return record


def _said(bad: Sequence[Mapping[str, Any]], runs: int, folder: Path) -> str:
    first = bad[0]
    others = "the others are complete" if len(bad) < runs else "they are kept"
    return (f"{len(bad)} of {runs} runs failed; the first is {title_of(first['settings']) or first['name']}: "
            f"{first.get('error', 'it is missing')}; {others}, in {folder}; the same command with --retry-failed tries "
            "these again")  # fmt: skip


def _claims(table: pl.DataFrame, listed: Sequence[Mapping[str, Any]], others: Sequence[str]) -> list[Claim]:
    claims: list[Claim] = []
    good = table.with_row_index("row").filter((pl.col("status") == "ok") & pl.col("value").is_not_null())
    titles = {entry["digest"]: title_of(entry["settings"]) or entry["name"] for entry in listed}
    complete = sum(entry["status"] == "complete" for entry in listed)
    claims.append(Claim("runs", f"{complete} of {len(listed)} runs are complete.", "finding",
                        values={"complete": complete, "runs": len(listed)}))  # fmt: skip
    for metric, label, largest in (("loss", "loss", False), ("accuracy", "accuracy", True), ("r_squared", "R²", True)):
        for split in ("validation", "test", "train"):  # the one that says most, of those that there are
            rows = good.filter((pl.col("metric") == metric) & (pl.col("split") == split))
            if rows.height > 1:
                best = rows.sort("value", descending=largest, maintain_order=True).row(0, named=True)
                claims.append(Claim(f"best_{metric}", f"The {'highest' if largest else 'lowest'} {split} {label}, "
                                    f"{best['value']:.3g}, is that of {titles[best['layer']]}.", "finding",
                                    (best["row"],), {metric: best["value"]}))  # fmt: skip
                break
    failed = [entry for entry in listed if entry["status"] != "complete"]
    if failed:
        claims.append(Claim("failed", f"{len(failed)} of {len(listed)} runs failed: "
                            + "; ".join(f"{titles[entry['digest']]} ({entry.get('error', 'missing')})"
                                        for entry in failed[:5])
                            + (f"; and {len(failed) - 5} more" if len(failed) > 5 else "") + ".", "caution",
                            values={"failed": len(failed)}))  # fmt: skip
    if others:
        claims.append(Claim("others", f"{len(others)} folders are of configurations that the sweep no longer has, and "
                            f"are not in its table: {', '.join(others[:3])}{', …' if len(others) > 3 else ''}.",
                            "caution", values={"others": len(others)}))  # fmt: skip
    return claims
