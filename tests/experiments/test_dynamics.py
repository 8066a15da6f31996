"""`run_dynamics`: planted rates come back, an altered layer is found out, and rich and lazy networks are told apart."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from isthmus import InputError, track_pairs
from isthmus._errors import RunFolderError
from isthmus._records import Claim, RunFolder
from isthmus.experiments import run_dynamics
from isthmus.experiments._dynamics_fits import _r_squared, fit_layer
from isthmus.experiments._dynamics_source import read_pairs
from isthmus.theory import two_point_limit
from pair_runs_support import ETA_H, ETA_MEAN, ETA_Y, PAIRS, PlantedRun

SCALES = {"first": 1.0, "second": 4.0}


def _values(run: RunFolder, metric: str, layer: str, baseline: str = "") -> list[float | None]:
    rows = run.metrics().filter(
        (pl.col("metric") == metric) & (pl.col("layer") == layer) & (pl.col("baseline") == baseline)
    )
    return rows["value"].to_list()


def _claim(run: RunFolder, name: str) -> Claim:
    (found,) = [claim for claim in run.verdict() if claim.name == name]
    return found


def _hashes(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Two layers that follow the theory exactly, and one whose h does not; every file of the run stays as it is."""
    folder = tmp_path_factory.mktemp("dynamics")
    planted = PlantedRun({**SCALES, "altered": 1.0})
    h = planted.h["altered"]
    planted.h["altered"] = h[:, :1] + (h[:, -1:] - h[:, :1]) * torch.linspace(0, 1, h.shape[1]).square()
    source = planted.save(folder / "run")
    before, seen = _hashes(source), list[tuple[int, int, str]]()
    run = run_dynamics(source, folder / "out", progress=lambda *at: seen.append(at))
    assert _hashes(source) == before
    assert seen == [(0, 3, "first"), (1, 3, "second"), (2, 3, "altered"), (3, 3, "")]
    return run


def test_planted_rates_come_back(found: RunFolder) -> None:
    for layer, scale in SCALES.items():
        np.testing.assert_allclose(_values(found, "eta_h", layer), scale * ETA_H, rtol=1e-6)
        np.testing.assert_allclose(_values(found, "eta_y", layer), ETA_Y / scale, rtol=1e-6)
        np.testing.assert_allclose(_values(found, "eta_h_median", layer), scale * ETA_H, rtol=1e-6)
        np.testing.assert_allclose(_values(found, "two_point_r_squared", layer), 1, atol=1e-9)
        assert max(x for x in _values(found, "two_point_error", layer) if x is not None) < 1e-6
        assert _values(found, "two_point_share", layer) == [1.0]
    np.testing.assert_allclose(_values(found, "eta_mean", ""), ETA_MEAN, rtol=1e-6)


def test_the_regime_is_that_of_the_planted_start(found: RunFolder) -> None:
    planted = PlantedRun(SCALES)
    one, other = torch.tensor(PAIRS).T
    limit = two_point_limit(
        planted.h0[one, other], planted.y0[one, other], eta_h=ETA_H, eta_y=ETA_Y, dx2=planted.dx2[one, other],
        dy2=planted.dy2[one, other],
    )  # fmt: skip
    for layer in SCALES:
        np.testing.assert_allclose(_values(found, "laziness", layer), limit.laziness, atol=1e-6)
    assert "richly" in _claim(found, "regime").text


def test_final_distances_are_those_of_the_theory(found: RunFolder) -> None:
    for layer in SCALES:
        (predicted,), (start,) = (_values(found, "structure_correlation", layer, b) for b in ("", "initial distances"))
        assert predicted == pytest.approx(1, abs=1e-9)
        assert start is not None
        assert start < 0.95
    arrays = found.arrays()
    np.testing.assert_allclose(arrays["structure/predicted"][:2], arrays["structure/last"][:2], rtol=1e-4, atol=1e-5)
    rows = found.metrics().filter(pl.col("metric") == "structure_correlation")
    assert rows["n"][0] == 15 - len(PAIRS)  # of 6 samples, without the pairs that were fitted


def test_an_altered_layer_is_not_described(found: RunFolder) -> None:
    assert _values(found, "two_point_share", "altered") == [0.0]
    claim = _claim(found, "two_point")
    assert "2 of 3 layers" in claim.text
    assert "Not described: altered" in claim.text
    rows = found.metrics()[list(claim.rows)]
    assert set(rows["metric"]) == {"two_point_share"}
    assert rows["layer"].to_list() == [*SCALES, "altered"]


def test_what_the_run_folder_holds(found: RunFolder) -> None:
    assert found.run["command"] == "dynamics"
    assert found.run["dynamics"]["source"] == "run"
    arrays = found.arrays()
    assert arrays["dynamics/fitted"].shape == (3, len(PAIRS), 3, 80)
    np.testing.assert_allclose(arrays["dynamics/fitted"][:2], arrays["dynamics/measured"][:2], rtol=1e-4, atol=1e-6)
    cut = np.isfinite(arrays["dynamics/predicted"][0, 0, 0])
    assert not cut[:8].any()
    assert cut[-1]
    assert (found.path / "report.html").exists()


def test_layers_and_pairs_can_be_chosen(tmp_path: Path) -> None:
    source = PlantedRun(SCALES).save(tmp_path / "run")
    run = run_dynamics(source, tmp_path / "out", layers=("sec*",), pairs=("2-3",), page=False)
    rows = run.metrics().filter(pl.col("metric") == "eta_h")
    assert rows.select("layer", "pair", "index", "position").rows() == [("second", "2-3", 1, 1.0)]


def test_times_are_sums_of_learning_rates_where_the_run_says_so(tmp_path: Path) -> None:
    source = PlantedRun({"first": 1.0}).save(tmp_path / "run", rates=0.5)
    run = run_dynamics(source, tmp_path / "out", page=False)
    np.testing.assert_allclose(_values(run, "eta_h", "first"), 2 * ETA_H, rtol=1e-6)
    assert "sum of learning rates" in run.metrics()["note"][0]


def test_a_run_that_diverged_is_fitted_before_it_did(tmp_path: Path) -> None:
    planted = PlantedRun({"first": 1.0})
    wanted = planted.dy2[tuple(zip(*PAIRS, strict=True))][:, None]
    too_far = 10.0 ** torch.arange(1, 21)
    planted.h["first"][:, 60:] *= too_far
    planted.y[:, 60:] = too_far**2 * wanted
    planted.v[:, 60:] = planted.y[:, 60:] - too_far * wanted
    for curve in (planted.h["first"], planted.y, planted.v):
        curve[:, 70:] = torch.nan
    run = run_dynamics(planted.save(tmp_path / "run"), tmp_path / "out", page=False)
    np.testing.assert_allclose(_values(run, "eta_h", "first"), ETA_H, rtol=1e-6)
    claim = _claim(run, "diverged")
    assert claim.level == "caution"
    assert "4 of 4 fits" in claim.text
    assert "of 80 records the first 60 are fitted" in run.metrics().filter(pl.col("metric") == "eta_h")["note"][0]


def test_a_pair_that_moves_away_in_a_run_that_learns_is_no_divergence(tmp_path: Path) -> None:
    planted = PlantedRun({"first": 1.0})
    planted.v[0] += 10 * planted.dy2[PAIRS[0]] * torch.linspace(0, 1, planted.v.shape[1])
    run = run_dynamics(planted.save(tmp_path / "run"), tmp_path / "out", page=False)
    assert "diverged" not in [claim.name for claim in run.verdict()]
    assert "1 of 4 fits are of pairs whose predictions moved away" in _claim(run, "moved_away").text
    assert _values(run, "two_point_share", "first") == [0.75]
    np.testing.assert_allclose(_values(run, "eta_h", "first")[1:], ETA_H, rtol=1e-6)
    errors = run.metrics().filter(pl.col("metric") == "two_point_error")
    assert errors["note"].to_list() == ["the predictions moved away from their targets", "", "", ""]


def test_records_that_failed_are_left_out(tmp_path: Path) -> None:
    notes = ["not tracked: head", "class numbers stand for unit vectors"]
    source = PlantedRun({"first": 1.0}).save(tmp_path / "run", without=(5, 6, 30, 78, 79), notes=notes)
    RunFolder.open(source).write_run(loss="cross_entropy", configuration={"loss": "auto"})
    run = run_dynamics(source, tmp_path / "out", page=False)
    np.testing.assert_allclose(_values(run, "eta_h", "first"), ETA_H, rtol=1e-6)
    assert run.run["dynamics"]["records"] == 75
    assert "diverged" not in [claim.name for claim in run.verdict()]
    assert _claim(run, "failed_records").text == "5 records could not be made and are left out: planted."
    assert _claim(run, "loss").values == {"loss": "cross_entropy"}
    assert _claim(run, "pairs").text == "About the pairs: class numbers stand for unit vectors."


def test_a_constant_curve_is_no_fit_of_one_that_moves() -> None:
    for moved, wanted in ((0.1, 0.0), (0.02, 1 - (0.02 / 0.05) ** 2)):
        curve = 1 - moved * (torch.arange(1000).numpy() + 0.5)[None] / 1000
        assert _r_squared(curve, np.full_like(curve, curve.mean())) == pytest.approx(wanted, abs=2e-3)


def test_where_nothing_was_learned_that_is_said(tmp_path: Path) -> None:
    planted = PlantedRun({"first": 1.0}, last=1)
    planted.steps = list(range(len(planted.steps)))
    run = run_dynamics(planted.save(tmp_path / "run"), tmp_path / "out", page=False)
    assert _claim(run, "two_point").level == "none"
    assert "nothing was learned here" in _claim(run, "left_out").text
    rows = run.metrics().filter(pl.col("metric") == "eta_h")
    assert set(rows["status"]) == {"skipped"}
    assert all("nothing was learned" in note for note in rows["note"])


def test_an_unfinished_training_is_said_to_be_so(tmp_path: Path) -> None:
    run = run_dynamics(PlantedRun({"first": 1.0}, last=100).save(tmp_path / "run"), tmp_path / "out", page=False)
    assert "had not come to its end" in _claim(run, "unfinished").text


def test_predictions_that_all_end_farther_off_are_said_to_do_so(tmp_path: Path) -> None:
    planted = PlantedRun({"first": 1.0})
    wanted = planted.dy2[tuple(zip(*PAIRS, strict=True))][:, None]
    planted.v += 10 * wanted * torch.linspace(0, 1, planted.v.shape[1])
    run = run_dynamics(planted.save(tmp_path / "run"), tmp_path / "out", page=False)
    assert "grew 19.9-fold" in _claim(run, "unfinished").text
    assert "4 of 4 fits" in _claim(run, "moved_away").text


def test_the_outputs_themselves_are_no_layer_to_judge(tmp_path: Path) -> None:
    planted = PlantedRun({"first": 1.0, "head": 1.0})
    planted.h["head"] = planted.y
    run = run_dynamics(planted.save(tmp_path / "run"), tmp_path / "out", page=False)
    assert _values(run, "two_point_share", "head") == [None]
    assert "these are the outputs" in _claim(run, "left_out").text


@pytest.mark.parametrize(
    ("size", "rate", "steps", "regime"),
    [pytest.param(0.05, 0.2, 400, "rich", marks=pytest.mark.slow), (6.0, 0.0005, 300, "lazy")],
)
def test_the_size_of_the_first_weights_makes_a_linear_network_rich_or_lazy(
    tmp_path: Path, size: float, rate: float, steps: int, regime: str
) -> None:
    torch.manual_seed(3)
    width = 30
    net = torch.nn.Sequential(torch.nn.Linear(2, width, bias=False), torch.nn.Linear(width, 2, bias=False))
    torch.nn.init.normal_(net[0].weight, std=size / width**0.5)
    torch.nn.init.normal_(net[1].weight, std=0.05 / width**0.5)
    x, y = torch.eye(2), torch.tensor([[1.0, 0.0], [-0.5, 0.5]])
    optimiser = torch.optim.SGD(net.parameters(), lr=rate)
    tracker = track_pairs(net, x, y, pairs=[(0, 1)], layers=["0"])
    for _ in range(steps):
        optimiser.zero_grad()
        (0.5 * (net(x) - y).square().sum(1).mean()).backward()
        optimiser.step()
        tracker.step()
    tracker.save(tmp_path / "run")
    run = run_dynamics(tmp_path / "run", tmp_path / "out", page=False)
    assert _values(run, "two_point_share", "0") == [1.0]
    values = _claim(run, "regime").values
    assert [name for name, count in values.items() if count] == [regime]


def test_representations_that_leave_the_start_are_not_said_to_stay(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(2, 1, bias=False), torch.nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.5, -1.5]]))
        net[1].weight.fill_(1.8)
    x, y = torch.eye(2), torch.tensor([[0.1], [-0.1]])
    optimiser = torch.optim.SGD(net.parameters(), lr=0.03)
    tracker = track_pairs(net, x, y, pairs=[(0, 1)], layers=["0"])
    for _ in range(60):
        optimiser.zero_grad()
        (0.5 * (net(x) - y).square().sum(1).mean()).backward()
        optimiser.step()
        tracker.step()
    tracker.save(tmp_path / "run")
    assert tracker.traces.h[0, 0, -1] < 0.5 * tracker.traces.h[0, 0, 0]
    run = run_dynamics(tmp_path / "run", tmp_path / "out", page=False)
    (laziness,) = _values(run, "laziness_median", "0")
    assert laziness is not None
    assert laziness > 0.8
    claim = _claim(run, "regime")
    assert [name for name, count in claim.values.items() if count] == ["moved"]
    assert "near those of the start" not in claim.text


def test_bad_input_writes_nothing(tmp_path: Path) -> None:
    source = PlantedRun({"first": 1.0}).save(tmp_path / "run")
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"layers: got frist.*did you mean 'first'"):
        run_dynamics(source, out, layers=("frist",))
    with pytest.raises(InputError, match=r"pairs: got 9-9"):
        run_dynamics(source, out, pairs=("9-9",))
    with pytest.raises(RunFolderError, match="nothing is yet"):
        run_dynamics(source, source)
    short = PlantedRun({"first": 1.0}, times=7).save(tmp_path / "short")
    with pytest.raises(InputError, match=r"7 records of pairs with numbers, expected at least 8"):
        run_dynamics(short, out)
    with pytest.raises(RunFolderError, match=r"a run that recorded pairs of samples; record some"):
        run_dynamics(run_dynamics(source, tmp_path / "fine", page=False).path, out)
    for bad in ({"pairs": [{"pair": "0-1"}]}, {"layers": []}, {"layers": ["first", "first"]}, {"samples": 3}):
        broken = PlantedRun({"first": 1.0}).save(tmp_path / f"broken-{len(list(tmp_path.iterdir()))}", **bad)
        with pytest.raises(RunFolderError, match="a record of pairs as"):
            run_dynamics(broken, out)
    assert not out.exists()


def test_without_arrays_everything_but_the_structure_is_said(tmp_path: Path) -> None:
    source = PlantedRun({"first": 1.0}).save(tmp_path / "run")
    (source / "arrays.safetensors").unlink()
    run = run_dynamics(source, tmp_path / "out")
    assert _values(run, "two_point_share", "first") == [1.0]
    rows = run.metrics().filter(pl.col("metric") == "structure_correlation")
    assert set(rows["note"]) == {"the run holds no usable matrix pairs/inputs"}


def test_a_good_fit_without_a_good_prediction_is_not_enough(tmp_path: Path) -> None:
    fits = fit_layer(read_pairs(PlantedRun({"first": 1.0}).save(tmp_path / "run")), 0)
    assert fits.described.all()
    for error in (fits.error + 0.11, np.full_like(fits.error, np.nan)):
        worse = dataclasses.replace(fits, error=error)
        assert worse.fit_well.all()
        assert not worse.described.any()
