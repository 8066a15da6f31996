"""The figures of the Leaky ResNet paper, from tiny networks: everything is made, nothing is made twice or lost."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import safetensors.torch
import scipy.stats
import torch

from isthmus._errors import DivergedError, InputError, RunFolderError
from isthmus._records import RunFolder
from isthmus.cli import main
from isthmus.experiments import (
    FIGURES,
    LeakyConfig,
    _leaky_networks,
    _paper,
    check_figures,
    plan_reproduction,
    reproduce_leaky_resnets,
)
from isthmus.experiments._leaky_figure1 import _approach, by_effective_depth, departure, weight_counts
from isthmus.experiments._leaky_figure2 import paired_interval
from isthmus.experiments._leaky_networks import Network, Trained, train_networks
from isthmus.experiments._leaky_paper import _needs, teacher_logs
from isthmus.experiments._leaky_presets import PRESETS, SCHEMES, Preset
from isthmus.experiments._reproduction import COLUMNS, PaperFigure, Row, above_zero, claim, graded
from isthmus.experiments._sources import task_from_source
from isthmus.models import LeakyResNet, as_steps
from isthmus.probe import measure_path
from isthmus.report import save_charts
from isthmus.train import data_term

TINY = Preset("quick", "seconds", n=24, width=30, depth=4, effective_depths=(1.0, 2.0, 3.0), shown=2.0, finer=6,
              seeds=(0, 1), depths=(4, 6), shown_depth=6, step_seeds=(0, 1), training=(3, 0, 9),
              step_training=(3, 0, 9))  # fmt: skip


@pytest.fixture(scope="module")
def tiny() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "quick", TINY)
        # three formats of every chart take long; the command below makes all of one figure's
        patch.setattr(_paper, "save_charts", lambda run, folder: save_charts(run, folder, formats=("svg",)))
        yield


@pytest.fixture(scope="module")
def made(tiny: None, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    torch.set_num_threads(1)
    return reproduce_leaky_resnets(tmp_path_factory.mktemp("paper") / "run")


def figure_data(run: RunFolder, key: str) -> pl.DataFrame:
    return pl.read_csv(run.path / "figures" / f"{key}.csv")


def network_of(run: RunFolder, network: Network) -> tuple[LeakyResNet, Any]:
    """The network rebuilt from its file alone, and its task."""
    folder = run.path / "networks" / network.name
    c = network.config
    model = LeakyResNet(30, 30, width=c.width, depth=c.depth, effective_depth=c.effective_depth, steps=c.steps)
    model.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
    return model, task_from_source(network.source)


def stamps(run: RunFolder) -> dict[str, int]:
    """When each network's weights were written."""
    return {p.parent.name: p.stat().st_mtime_ns for p in run.path.glob("networks/*/model.safetensors")}


# ── what is made ─────────────────────────────────────────────────────────────────────────────────────────────


def test_every_figure_has_charts_data_and_judged_claims(made: RunFolder) -> None:
    about = made.run["reproduction"]
    assert [f["key"] for f in about["figures"]] == list(FIGURES)
    assert "averages over" in about["setting"]  # the reading of λ is said
    for figure in about["figures"]:
        data = figure_data(made, figure["key"])
        assert tuple(data.columns) == COLUMNS
        assert set(data["panel"]) == {panel["key"] for panel in figure["panels"]}
        for panel in figure["panels"]:
            assert (made.path / "charts" / f"fig-{figure['key']}-{panel['key']}.svg").stat().st_size > 1000
    claims = made.verdict()
    assert {c.name.split("/")[0] for c in claims} == set(FIGURES)
    assert {c.values["holds"] for c in claims} <= {"held", "partly", "not", "not judged"}
    assert all("nan" not in c.text and "inf" not in c.text for c in claims)
    assert (made.path / "report.html").stat().st_size > 100_000
    assert made.run["status"] == "complete"


def test_rows_behind_claims_are_of_the_metric_the_claim_is_about(made: RunFolder) -> None:
    frame = made.metrics()
    behind = {c.name: c.rows for c in made.verdict()}
    for name, metric in (("1a/from-below", "hamiltonian_rank_symmetric"), ("1a/from-above", "cost_of_identity"),
                         ("1a/stationarity", "stationarity"), ("1a/theorem-4", "bound_upper")):  # fmt: skip
        rows = frame[list(behind[name])]
        assert rows.height == len(TINY.effective_depths) * len(TINY.seeds)
        assert set(rows["metric"]) == {metric}
        assert set(rows["seed"]) == set(TINY.seeds)


def test_figure_1_shows_what_the_networks_measure(made: RunFolder) -> None:
    """Against the networks themselves, loaded from their weights and measured again."""
    data = figure_data(made, "1a").filter(pl.col("panel") == "rank")
    for lt in TINY.effective_depths:
        costs, pairs, symmetric, stable = [], [], [], []
        for seed in TINY.seeds:
            network = TINY.rank_network(lt, seed)
            model, task = network_of(made, network)
            g = measure_path(model, task.x_train, task.y_train, loss=lambda o, t: data_term("square", o, t),
                             ridge=0.03, jacobian_samples=0).geometry  # fmt: skip
            costs.append([float(g.cost[gamma0].stabilised.min()) for gamma0 in (1e-3, 1e-2, 1e-4)])
            assert g.hamiltonians is not None
            pairs.append(float(g.hamiltonians.rank(g.hamiltonians.pair).median()))
            symmetric.append(g.hamiltonians.rank(g.hamiltonians.symmetric).numpy())
            stable.append(float(np.median(g.energies[1e-3].stable_rank_estimate.numpy())))
        here = data.filter(pl.col("x") == lt)
        found = {row["series"]: row for row in here.iter_rows(named=True)}
        # the same float64 measurement of the same weights: rounding only
        wanted = np.mean(costs, axis=0)
        for i, gamma0 in enumerate(("0.001", "0.01", "0.0001")):
            assert found[f"least COI, γ₀ = {gamma0}"]["y"] == pytest.approx(wanted[i], rel=1e-9)
            assert found[f"least COI, γ₀ = {gamma0}"]["low"] == pytest.approx(min(c[i] for c in costs), rel=1e-9)
        assert found["−2H_γ/L̃, stable"]["y"] == pytest.approx(np.mean(stable), rel=1e-6)
        assert found["−2H/L̃, symmetric"]["y"] == pytest.approx(np.mean([np.median(s) for s in symmetric]), rel=1e-6)
        assert found["−2H/L̃, symmetric"]["low"] == pytest.approx(np.mean([s.min() for s in symmetric]), rel=1e-6)
        assert found["−2H/L̃, pair"]["n"] == len(TINY.seeds)
        assert math.isfinite(pairs[0])


def test_figure_2a_shows_the_test_errors_and_their_paired_differences(made: RunFolder) -> None:
    data = figure_data(made, "2a")
    errors: dict[tuple[int, str], list[float]] = {}
    for depth in TINY.depths:
        for scheme in SCHEMES:
            for seed in TINY.step_seeds:
                model, task = network_of(made, TINY.step_network(depth, scheme, seed))
                with torch.no_grad():
                    outputs = model.double()(task.x_test)
                errors.setdefault((depth, scheme), []).append(float(data_term("square", outputs, task.y_test)))
            row = data.filter((pl.col("panel") == "test") & (pl.col("series") == scheme) & (pl.col("x") == depth))
            # float32 forward in the run, float64 here
            assert row["y"][0] == pytest.approx(np.mean(errors[depth, scheme]), rel=1e-4)
    for scheme in SCHEMES[1:]:
        gains = [np.mean([1 - errors[d, scheme][s] / errors[d, "equidistant"][s] for d in TINY.depths]) for s in (0, 1)]
        (said,) = [c for c in made.verdict() if c.name == f"2a/{scheme}-better"]
        assert said.values["mean"] == pytest.approx(np.mean(gains), abs=1e-4)


def test_other_figures_show_what_is_in_the_networks_files(made: RunFolder) -> None:
    shown = Trained.open(TINY.rank_network(2.0, 0), made.path / "networks")
    arrays = shown.run.arrays()
    data = figure_data(made, "1b").filter((pl.col("panel") == "weight") & (pl.col("series") == "s2")).sort("x")
    np.testing.assert_allclose(data["y"].to_numpy(), arrays["spectra/weight"][:, 1], rtol=1e-12)
    energies = figure_data(made, "1c").filter(pl.col("seed") == 0)
    frame = shown.table.filter((pl.col("metric") == "kinetic_energy") & (pl.col("note") == "gamma0=0.001")).sort(
        "index"
    )
    kinetic = energies.filter(pl.col("series") == "kinetic energy").sort("x")
    np.testing.assert_allclose(kinetic["y"].to_numpy(), frame["value"].to_numpy(), rtol=1e-12)
    adaptive = Trained.open(TINY.step_network(6, "adaptive", 0), made.path / "networks")
    path = figure_data(made, "2c").filter((pl.col("panel") == "path") & (pl.col("series") == "adaptive"))
    np.testing.assert_allclose(path["x"].to_numpy(), adaptive.run.arrays()["path/projection"][:, 0], rtol=1e-12)
    counts = figure_data(made, "2b").filter((pl.col("panel") == "count") & (pl.col("seed") == 0)).sort("x")
    assert counts["y"].to_list() == (adaptive.spectrum("weight") > 1.5).sum(1).tolist()
    lengths = figure_data(made, "3").filter(pl.col("series").str.starts_with("path length") & (pl.col("x") == 2.0))
    both = [
        Trained.open(TINY.rank_network(2.0, s), made.path / "networks").scalar("path_length_euclidean") for s in (0, 1)
    ]
    assert lengths["y"][0] == pytest.approx(np.mean(both), rel=1e-12)
    assert teacher_logs(shown) == task_from_source(shown.network.source).description["jacobian_log_singular_values"]


# ── nothing twice, nothing lost ──────────────────────────────────────────────────────────────────────────────


def copied(run: RunFolder, to: Path) -> RunFolder:
    """A copy, so that the one made for all tests stays as it is."""
    shutil.copytree(run.path, to, copy_function=shutil.copy2)
    return RunFolder.open(to)


def test_what_is_there_is_used_again_also_by_other_figures(made: RunFolder, tmp_path: Path) -> None:
    ours = copied(made, tmp_path / "run")
    again = reproduce_leaky_resnets(ours.path, figures=["3", "2b"])
    assert stamps(again) == stamps(made)
    assert [f["key"] for f in again.run["reproduction"]["figures"]] == ["2b", "3"]


def test_an_interrupted_reproduction_goes_on_and_ends_the_same(tiny: None, made: RunFolder, tmp_path: Path) -> None:
    def stop(done: int, total: int, name: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reproduce_leaky_resnets(tmp_path / "run", figures=["1b"], progress=stop)
    run = RunFolder.open(tmp_path / "run")
    assert run.run["status"] == "interrupted"
    kept = stamps(run)
    assert len(kept) == 2
    network = run.path / "networks" / TINY.rank_network(2.0, 0).name
    record = json.loads((network / "run.json").read_text())
    (network / "run.json").write_text(json.dumps({**record, "status": "running"}))  # as a kill leaves it
    (network / "model.safetensors").unlink()
    done = reproduce_leaky_resnets(tmp_path / "run", figures=["1b"])
    assert done.run["status"] == "complete"
    for name in kept:
        ours, theirs = (
            safetensors.torch.load_file(r.path / "networks" / name / "model.safetensors") for r in (done, made)
        )
        assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


def test_networks_that_fail_cost_only_themselves(tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = _leaky_networks.run_leaky

    def sometimes(task: Any, config: LeakyConfig, *rest: Any, **more: Any) -> Any:
        if config.seed == 0:
            raise DivergedError("planted")
        return real(task, config, *rest, **more)

    monkeypatch.setattr(_leaky_networks, "run_leaky", sometimes)
    with pytest.raises(DivergedError, match=r"1 of 2 networks could not be trained; .*_seed0_.*planted"):
        reproduce_leaky_resnets(tmp_path / "run", figures=["1c"])
    run = RunFolder.open(tmp_path / "run")
    assert run.run["status"] == "failed"
    assert len(stamps(run)) == 1
    monkeypatch.undo()
    monkeypatch.setitem(PRESETS, "quick", TINY)
    assert reproduce_leaky_resnets(tmp_path / "run", figures=["1c"]).run["status"] == "complete"


@pytest.mark.slow  # two processes in a row are trained in by test_bottleneck.py too
def test_processes_train_the_same_networks(tiny: None, made: RunFolder, tmp_path: Path) -> None:
    networks = [TINY.rank_network(2.0, seed) for seed in TINY.seeds]
    seen: list[tuple[int, int]] = []
    train_networks(networks, tmp_path, jobs=2, progress=lambda done, total, name: seen.append((done, total)))
    assert seen == [(0, 2), (1, 2), (2, 2)]
    for network in networks:
        ours = safetensors.torch.load_file(tmp_path / network.name / "model.safetensors")
        theirs = safetensors.torch.load_file(made.path / "networks" / network.name / "model.safetensors")
        assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


# ── bad input ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["leaky-resnet"], "paper: got leaky-resnet, expected leaky-resnets"),
        (["leaky-resnets", "--figure", "1d"], "figure: got 1d, expected one of 1a, 1b"),
        (["leaky-resnets", "--preset", "papr"], "preset: got papr, expected quick, paper, full"),
        (["leaky-resnets", "--jobs", "0"], "jobs: got 0, expected at least 1"),
        (["leaky-resnets", "--device", "abacus"], "device"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", *words, "--out", str(tmp_path / "run")]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else_is_left_alone(tiny: None, made: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(RunFolderError, match="nothing is yet"):
        reproduce_leaky_resnets(tmp_path)
    with pytest.raises(RunFolderError, match="preset 'paper'"):
        reproduce_leaky_resnets(made.path, preset="paper")
    network = made.path / "networks" / TINY.rank_network(2.0, 0).name
    with pytest.raises(RunFolderError, match="a new folder, or one of preset"):
        reproduce_leaky_resnets(network)
    assert [p.name for p in tmp_path.iterdir()] == ["letter.txt"]


def test_the_command_prints_every_claim_and_where_things_are(
    tiny: None, made: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = copied(made, tmp_path / "run")
    shutil.rmtree(ours.path / "charts")
    monkeypatch.setattr(_paper, "save_charts", save_charts)
    assert main(["reproduce", "leaky-resnets", "--figure", "1c", "--out", str(ours.path), "--jobs", "1"]) == 0
    out, err = capsys.readouterr()
    assert "Fig 1c, conserved:" in out
    assert str(ours.path / "report.html") in out
    assert "2 networks for figures 1c" in " ".join(err.split())
    (figure,) = RunFolder.open(ours.path).run["reproduction"]["figures"]
    assert {p.name for p in (ours.path / "charts").iterdir()} == {
        f"fig-1c-{panel['key']}.{kind}" for panel in figure["panels"] for kind in ("png", "svg", "pdf")
    }


# ── parts ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_network_s_name_changes_with_every_setting() -> None:
    network = TINY.rank_network(2.0, 0)
    names = {network.name}
    for field in dataclasses.fields(LeakyConfig):
        value: Any = getattr(network.config, field.name)
        other = {bool: True, int: 5, float: 0.7, str: "x", tuple: ("loss",), type(None): 7}[type(value)]
        if other == value:
            other = value + 1
        names.add(Network(network.source, dataclasses.replace(network.config, **{field.name: other})).name)
    names.add(Network({**network.source, "n_train": 25}, network.config).name)
    assert len(names) == len(dataclasses.fields(LeakyConfig)) + 2
    assert TINY.rank_network(2.0, 0).name == network.name


@pytest.mark.parametrize("name", ["quick", "paper", "full"])
def test_every_network_of_a_preset_can_be_built(name: str) -> None:
    preset = PRESETS[name]
    networks = _needs(preset, FIGURES, "cpu").all()
    assert plan_reproduction(name) == len({n.name for n in networks})
    for network in networks:
        c = network.config
        assert as_steps(c.steps).initial(c.depth, c.effective_depth).shape == (c.depth,)
    assert preset.shown in preset.effective_depths
    assert preset.shown_depth in preset.depths
    if name != "quick":
        assert len(preset.seeds) >= 3
        assert len(preset.step_seeds) >= 5


def test_each_figure_asks_for_no_more_networks_than_it_needs() -> None:
    seeds, lts = len(TINY.seeds), len(TINY.effective_depths)
    counts = {key: len(_needs(TINY, [key], "cpu").all()) for key in FIGURES}
    assert counts == {"1a": seeds * (lts + 1 + 2), "1b": seeds, "1c": seeds, "2a": 2 * 2 * 3, "2b": 2, "2c": 2 * 3,
                      "3": seeds * lts}  # fmt: skip
    assert check_figures(["3", "1a"]) == ("1a", "3")
    assert check_figures([]) == FIGURES


@pytest.mark.parametrize(
    ("values", "below", "holds"),
    [
        ([-5.0, 0.0, 2.7], True, "held"),
        ([-5.0, 0.0, 2.2], True, "partly"),  # within 1
        ([-5.0, 0.0, 1.0], True, "not"),  # too far
        ([-5.0, 2.9, 2.7], True, "partly"),  # not monotone, but near
        ([-5.0, 0.0, 3.9], True, "partly"),  # beyond
        ([-5.0, 0.0, 4.2], True, "not"),
        ([9.0, 5.0, 3.3], False, "held"),
        ([9.0, 5.0, 3.8], False, "partly"),
        ([3.0, 5.0, 9.0], False, "not"),
    ],
)
def test_an_approach_is_judged_by_side_order_and_distance(values: list[float], below: bool, holds: str) -> None:
    assert _approach(values, below=below) == holds


def test_grades_and_claims() -> None:
    assert [graded(v, held=0.1, partly=0.3) for v in (0.1, 0.2, 0.4)] == ["held", "partly", "not"]
    made = claim("1a", "x", "partly", "text", (3,), worst=1.0)
    assert (made.name, made.level, made.rows, made.values) == (
        "1a/x",
        "caution",
        (3,),
        {"holds": "partly", "worst": 1.0},
    )
    assert [above_zero(*pair) for pair in ((0.1, 0.2), (-0.1, 0.2), (-0.2, 0.1), (-0.2, -0.1))] == [
        "held", "partly", "not", "not",
    ]  # fmt: skip


def test_the_paired_interval_is_student_s() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 7))
    mean, low, high = paired_interval((a - b).tolist())
    wanted = scipy.stats.ttest_rel(a, b).confidence_interval(0.95)
    assert mean == pytest.approx((a - b).mean(), rel=1e-12)
    assert (low, high) == pytest.approx((wanted.low, wanted.high), rel=1e-10)


def test_numbers_read_from_a_network_s_folder(made: RunFolder) -> None:
    t = Trained.open(TINY.rank_network(3.0, 1), made.path / "networks")
    rank = t.rows("hamiltonian_rank_symmetric")
    inner = rank.filter((pl.col("position") >= 0.1) & (pl.col("position") <= 0.9))["value"].to_numpy()
    assert departure(t) == pytest.approx(np.abs(inner / np.median(inner) - 1).max(), rel=1e-12)
    counts = (t.spectrum("weight") > 1.5).sum(1)
    # L = 4: the middles of the layers are at 1/8, 3/8, 5/8, 7/8; none lies in [0.4, 0.6], two are nearest to ½
    assert weight_counts(t) == ((counts[1] + counts[2]) / 2, (counts[0] + counts[-1]) / 2)
    assert list(by_effective_depth([t, Trained.open(TINY.rank_network(1.0, 0), made.path / "networks")])) == [1.0, 3.0]
    with pytest.raises(RunFolderError):
        Trained.open(TINY.rank_network(3.0, 9), made.path / "networks")


def test_data_are_written_whole_with_empty_cells_for_nothing() -> None:
    rows = (Row("a", "x, y", 1.0, 0.1 + 0.2, seed=3), Row("a", "b", 2.0, 3.0, 4.0, 5.0, n=6))
    figure = PaperFigure("9", "t", "s", "u", (), rows, (), 0.0)
    assert figure.csv().splitlines() == ["panel,series,x,y,low,high,seed,n", 'a,"x, y",1.0,0.30000000000000004,,,3,',
                                         "a,b,2.0,3.0,4.0,5.0,,6"]  # fmt: skip


def test_jobs_must_be_one_at_least(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="jobs: got 0"):
        train_networks([], tmp_path, jobs=0)


@pytest.mark.slow
def test_the_quick_preset_as_a_user_runs_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "leaky-resnets", "--out", str(tmp_path / "run"), "--quiet"]) == 0
    run = RunFolder.open(tmp_path / "run")
    assert len(run.run["reproduction"]["figures"]) == len(FIGURES)
    assert "Fig 1a, from below" in " ".join(capsys.readouterr().out.replace("-", " ").split())
