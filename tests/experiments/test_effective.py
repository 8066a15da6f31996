"""Two-point experiments of the effective theory's paper: training by hand, claims on made-up runs, the pipeline."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from isthmus._errors import InputError, RunFolderError
from isthmus._records import Claim, MetricTable, RunFolder
from isthmus.experiments import PAPERS, _effective_layers, _paper, plan_effective, reproduce_effective
from isthmus.experiments._effective_layers import alternative_claims, depth_claims, figure_depth_profile
from isthmus.experiments._effective_networks import Member, PairNetworks, PairTrace, TrainedPairs, whole_part
from isthmus.experiments._effective_presets import GAINS, PRESETS, GridEnd, PairFigure, grid_figure, zoo_figure
from isthmus.experiments._effective_reading import Followed, family, follow, follow_all
from isthmus.experiments._effective_scale import grid_claims, predicted_end, ratio_at_centre, regression, scale_claims
from isthmus.experiments._effective_two_points import fit_claims
from isthmus.experiments._images import image_file
from isthmus.models import ZOO, ZooSetting, zoo_network
from isthmus.report import save_charts
from isthmus.theory import Alternative, TwoPointFit, two_point, two_point_limit

SMALL = ZooSetting("small", gain=1.2, learning_rate=0.05, width=6, hidden_layers=3, watched=1)
OWN = ("two-points", "depth-profile", "alternatives", "grid", "initial-scale")


def member(seed: int = 0, **changes: Any) -> Member:
    return dataclasses.replace(Member("small", 1.2, 0.05, seed), **changes)


def trained(networks: PairNetworks, folder: Path) -> list[PairTrace]:
    networks.train(folder)
    return TrainedPairs.open(networks, folder).traces


# ── training, against the same by hand ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_steps_and_records_are_those_of_torch(optimiser: Any, tmp_path: Path) -> None:
    setting = dataclasses.replace(SMALL, optimiser=optimiser)
    (trace,) = trained(PairNetworks(setting, (member(3, dx2=2.25, dy2=0.25),), 12, every=4), tmp_path)
    net = zoo_network(setting, 1, 1, 3)
    kind = torch.optim.SGD if optimiser == "sgd" else torch.optim.Adam
    steps = kind(net.parameters(), lr=0.05)
    x = torch.tensor([[-1.0], [0.5]], dtype=torch.float32)
    wanted = torch.tensor([[0.6], [1.1]], dtype=torch.float32)
    assert trace.epochs.tolist() == [0, 4, 8, 12]
    assert trace.diverged is None
    for epoch in range(13):
        hidden, out = net.states(x)
        loss = 0.5 * (out - wanted).square().sum() / 2
        seen, hidden = out.detach(), [a.detach() for a in hidden]
        if epoch % 4 == 0:
            at = epoch // 4
            for layer, a in enumerate(hidden):
                assert float(trace.h[layer, at]) == pytest.approx(float((a[1] - a[0]).square().sum()), rel=1e-4)
            dy = float(seen[1] - seen[0])
            assert float(trace.y[at]) == pytest.approx(dy**2, rel=1e-4)
            assert float(trace.v[at]) == pytest.approx(dy**2 - 0.5 * dy, rel=1e-4)
            assert float(trace.m[at]) == pytest.approx(float((seen - wanted).mean()) ** 2, rel=1e-3, abs=1e-7)
            assert float(trace.loss[at]) == pytest.approx(float(loss.detach()), rel=1e-4)
        steps.zero_grad()
        loss.backward()
        steps.step()
    assert torch.equal(trace.watched, trace.h[1])


def test_networks_trained_together_are_those_trained_alone(tmp_path: Path) -> None:
    members = (member(0), member(1, gain=0.9, rate=0.1, name="other"), member(2, dx2=4.0, dy2=0.1))
    together = trained(PairNetworks(SMALL, members, 15), tmp_path)
    for one, mine in zip(members, together, strict=True):
        (alone,) = trained(PairNetworks(SMALL, (one,), 15), tmp_path)
        assert mine.member == one
        assert (mine.setting.name, mine.setting.gain) == (one.name, one.gain)
        for name in ("h", "y", "v", "m"):
            assert torch.allclose(getattr(mine, name), getattr(alone, name), rtol=1e-4, atol=1e-7), name


def test_one_layer_alone_is_that_of_all(tmp_path: Path) -> None:
    (whole,) = trained(PairNetworks(SMALL, (member(),), 5), tmp_path)
    (watched,) = trained(PairNetworks(SMALL, (member(),), 5, all_layers=False), tmp_path)
    assert watched.layers == (1,)
    assert whole.layers == (0, 1, 2)
    assert torch.equal(watched.watched, whole.watched)


def test_dropout_trains_with_masks_and_is_recorded_without(tmp_path: Path) -> None:
    setting = dataclasses.replace(SMALL, kind="dropout", width=40)
    (trace,) = trained(PairNetworks(setting, (member(),), 3), tmp_path)
    net = zoo_network(setting, 1, 1, 0).eval()
    x = torch.tensor([[-1.0], [0.0]], dtype=torch.float32)
    seen = net.states(x)[0][1].detach()
    assert float(trace.h[1, 0]) == pytest.approx(float((seen[1] - seen[0]).square().sum()), rel=1e-4)
    (plain,) = trained(PairNetworks(dataclasses.replace(setting, kind="mlp"), (member(),), 3), tmp_path)
    assert float(plain.y[0]) == float(trace.y[0])
    assert float(plain.y[1]) != pytest.approx(float(trace.y[1]), rel=1e-4)


def test_a_network_that_diverges_is_kept_up_to_there_and_its_neighbours_whole(tmp_path: Path) -> None:
    networks = PairNetworks(SMALL, (member(0), member(1, gain=3.0, rate=40.0)), 30)
    fine, wild = trained(networks, tmp_path)
    assert fine.diverged is None
    assert len(fine.epochs) == 31
    assert wild.diverged == len(wild.epochs)
    assert bool(torch.isfinite(wild.h).all())
    alone = PairNetworks(SMALL, (networks.members[1],), 30)
    (again,) = trained(alone, tmp_path)
    assert again.diverged == wild.diverged
    one = Followed(wild, "x")
    assert not one.learned


def test_a_run_is_whole_until_predictions_leave_the_targets_far_behind() -> None:
    assert whole_part(np.array([0.1, 1.0, 2.0]), 0.5) == 3
    assert whole_part(np.array([0.1, 1.0, 6.1, 0.2]), 0.5) == 2
    assert whole_part(np.array([0.1, math.nan, 0.1]), 0.5) == 1
    assert whole_part(np.array([100.0, 50.0]), 0.5) == 2


# ── groups and presets ───────────────────────────────────────────────────────────────────────────────────────


def test_narrow_networks_of_one_shape_are_one_group_and_wide_ones_stand_alone() -> None:
    wide = zoo_figure([ZOO["default"], ZOO["gain_1.1"], ZOO["narrow"]], (0, 1), 5)
    assert [len(g.members) for g in wide.groups] == [1, 1, 1, 1, 2]
    small = [dataclasses.replace(ZOO[name], width=8) for name in ("default", "gain_1.1", "tanh", "skip", "adam")]
    groups = zoo_figure(small, (0, 1), 5).groups
    assert [len(g.members) for g in groups] == [4, 2, 1, 1, 1, 1]
    assert {m.name for m in groups[0].members} == {"default", "gain_1.1"}
    assert len({g.name for g in groups}) == len(groups)


@pytest.mark.parametrize("name", ["quick", "paper", "full"])
def test_every_preset_has_the_networks_of_its_figures(name: str) -> None:
    preset, file = PRESETS[name], image_file(None)
    assert set(preset.figures) == set(PAPERS["effective-theory"].paper.figures)
    own = {key: {n.name for n in preset.figures[key].networks(file, "cpu")} for key in OWN}
    assert own["depth-profile"] <= own["initial-scale"] <= own["two-points"] == own["alternatives"]
    assert {m.name for g in preset.two_points.groups for m in g.members} == set(ZOO)
    assert {m.name for g in preset.initial_scale.groups for m in g.members} >= set(GAINS)
    assert {m.name for g in preset.grid.groups for m in g.members} == {"rich", "lazy"}
    for group in preset.grid.groups:
        assert group.epochs % group.every == 0
        assert len({(m.dx2, m.dy2) for m in group.members} | {(9.0, 9.0)}) > 1
    if name != "quick":
        for group in preset.two_points.groups:
            first = group.members[0]
            published = ZOO[first.name]
            assert (first.gain, first.rate) == (published.gain, published.learning_rate)
            assert dataclasses.replace(group.setting, name="") == dataclasses.replace(published, name="")
            assert group.epochs >= 3000


def test_another_device_is_another_network() -> None:
    figure = zoo_figure([SMALL], (0,), 5)
    here, there = (figure.networks(image_file(None), device)[0] for device in ("cpu", "cuda"))
    assert there.device == "cuda"
    assert here.name != there.name


# ── readings and claims on made-up runs ──────────────────────────────────────────────────────────────────────


def made_up(
    name: str = "default", *, eta: tuple[float, float] = (0.02, 0.05), start: float = 0.01, seed: int = 0,
    gain: float = 1.0, dx2: float = 1.0, dy2: float = 0.5, steps: int = 300, bend: float = 0.0, layers: int = 1,
) -> Followed:  # fmt: skip
    """A run that follows the theory, but for `bend`, which moves h."""
    t = torch.linspace(0, 3 * steps, steps, dtype=torch.float64)
    path = two_point(t, start, 0.0, 0.0, eta_h=eta[0], eta_y=eta[1], dx2=dx2, dy2=dy2)
    h = path.h * (1 + bend * torch.sin(t / 20))
    setting = dataclasses.replace(ZOO.get(name, SMALL), name=name, watched=0)
    trace = PairTrace(setting, Member(name, gain, 0.01, seed, dx2, dy2), tuple(range(layers)), None, t,
                      h.expand(layers, -1), path.y, path.v, torch.zeros_like(t))  # fmt: skip
    return Followed(trace, "made-up")


def held(claims: list[Claim]) -> dict[str, str]:
    return {c.name.split("/")[1]: str(c.values["holds"]) for c in claims}


def test_a_run_that_follows_the_theory_gives_its_rates_back_and_is_predicted() -> None:
    one = made_up()
    assert one.fit is not None
    assert one.limit is not None
    assert (one.fit.eta_h, one.fit.eta_y) == pytest.approx((0.02, 0.05), rel=1e-6)
    assert one.relative == pytest.approx((2.0, 5.0), rel=1e-6)
    assert one.worst > 1 - 1e-9
    miss = one.miss(one.second_half), one.miss(one.from_middle)
    assert max(m for m in miss if m is not None) < 1e-4
    assert None not in miss
    assert float(one.limit.h) == pytest.approx(one.ends[1], rel=1e-4)
    assert one.learned
    middle = one.from_middle
    assert middle is not None
    error = one.trace.v + (0.5 - one.trace.y) / 2
    cut = len(middle.fit.times) - 1
    assert error[cut] <= error[0] / 4 < error[cut - 1]


def test_a_run_in_which_nothing_happens_has_no_fit() -> None:
    one = made_up()
    still = dataclasses.replace(one.trace, h=torch.ones_like(one.trace.h))
    flat = Followed(still, "x")
    assert flat.fit is None
    assert flat.limit is None
    assert flat.relative is None
    assert flat.worst == -1.0
    assert flat.miss(flat.second_half) is None
    assert held(fit_claims([flat])) == {"three-curves": "not judged"}


def test_fits_are_judged_by_the_worst_curve_of_each_setting() -> None:
    good = [made_up(name) for name in ("default", "relu", "tanh", "skip")]
    bad = [made_up(name, bend=0.9) for name in ("elu", "linear", "cnn")]
    claims = fit_claims([*good, made_up("elu")])
    assert held(claims) == {"three-curves": "held", "second-half": "held", "from-half-way": "held",
                            "learned": "not judged", "effective-rates": "not judged"}  # fmt: skip
    assert held(fit_claims([*good, *bad]))["three-curves"] == "partly"
    assert held(fit_claims([good[0], *bad]))["three-curves"] == "not"
    text = fit_claims([good[0], *bad])[0].text
    assert "in 1 of 4 settings" in text
    assert "elu" in text
    assert held(fit_claims([good[0], *bad]))["second-half"] == "not"


def depth_fits(misfits: list[float]) -> dict[int, TwoPointFit]:
    fit = made_up().fit
    assert fit is not None
    return {layer: dataclasses.replace(fit, misfit=float(m)) for layer, m in enumerate(misfits)}


def test_the_best_layer_is_to_lie_inside() -> None:
    good = [depth_fits([10, 5, 1, 2, 5]), depth_fits([10, 1, 2, 3, 3])]
    assert held(depth_claims(good, 5)) == {"best-inside": "held", "early-layers-fail": "held",
                                           "late-layers-fail": "held", "layers-that-fit": "not judged"}  # fmt: skip
    bad = [depth_fits([1, 2, 3, 4, 1.5]), depth_fits([1.5, 3, 3, 2, 1])]
    assert set(list(held(depth_claims(bad, 5)).values())[:3]) == {"not"}
    assert held(depth_claims([good[0], bad[0]], 5))["best-inside"] == "partly"
    assert held(depth_claims([], 5)) == {"best-inside": "not judged"}


def test_alternatives_are_judged_by_all_of_them() -> None:
    better, worse = {"a": [2.0, 3.0], "b": [1.5, 1.2]}, {"a": [2.0, 3.0], "b": [0.5, 0.7]}
    assert held(alternative_claims({"default": better, "relu": better})) == {
        "theory-is-best-by-default": "held", "theory-is-best": "held"}  # fmt: skip
    mixed = alternative_claims({"default": worse, "relu": better})
    assert held(mixed) == {"theory-is-best-by-default": "partly", "theory-is-best": "partly"}
    assert "default (b, 0.6)" in mixed[1].text
    assert held(alternative_claims({"relu": worse}))["theory-is-best"] == "not"
    assert held(alternative_claims({}))["theory-is-best"] == "not judged"
    # A setting that lacks an alternative can be lost, and not won.
    part = alternative_claims({"default": better, "relu": {"a": [2.0]}, "tanh": {"a": [0.5]}})
    assert "all of 2 alternatives in 1 of 2 settings; it is beaten in tanh (a, 0.5)" in part[1].text
    assert held(alternative_claims({"relu": {}}))["theory-is-best"] == "not judged"


def cells(end: str, *, dx: float = 1.0, dy: float = 1.0, start: float = 1e-4) -> list[Followed]:
    """Runs whose h goes from `start` to `0.1 dx^… dy^…`, by seed a little off."""
    found: list[Followed] = []
    for seed in (0, 1, 2):
        for x in (0.5, 1.0, 1.5):
            for y in (0.5, 0.75, 1.0):
                one = made_up(end, eta=(0.01, 1.0), seed=seed, dx2=x**2, dy2=y**2, start=1e-4, steps=400)
                last = 0.1 * x**dx * y**dy * (1 + 0.02 * seed * x)
                h = torch.linspace(start * last if end == "lazy" else start, last, 400, dtype=torch.float64)[None]
                found.append(Followed(dataclasses.replace(one.trace, h=h), "x"))
    return found


def test_exponents_of_final_distances_are_found_with_their_errors() -> None:
    law = regression(cells("rich", dx=0.3, dy=0.8))
    assert law is not None
    # Seeds differ by a factor that goes with dx, so only its exponent has an error.
    assert law.dy.value == pytest.approx(0.8, abs=1e-9)
    assert law.dx.value == pytest.approx(0.3, abs=0.05)
    assert law.dy.stderr < 1e-9 < law.dx.stderr
    assert law.cells == 27
    assert regression(cells("rich")[:9]) is None
    lost = [Followed(dataclasses.replace(c.trace, diverged=7), "x") for c in cells("rich")]
    assert regression(lost) is None


def test_the_grid_is_judged_at_both_ends() -> None:
    good = held(grid_claims({"rich": cells("rich"), "lazy": cells("lazy", dx=2.0, dy=0.0, start=0.98)}))
    assert good["rich-targets"] == good["rich-inputs"] == good["lazy-targets"] == good["lazy-stays"] == "held"
    bad = held(grid_claims({"rich": cells("rich", dx=0.2, dy=0.75), "lazy": cells("lazy", dy=0.5, start=0.5)}))
    assert bad["rich-targets"] == "partly"
    assert bad["rich-inputs"] == bad["lazy-targets"] == bad["lazy-stays"] == "not"
    assert held(grid_claims({"rich": cells("rich")[:9]})) == {"rich-law": "not judged"}


def test_final_distances_of_cells_are_predicted_from_the_middle_one() -> None:
    found = [made_up("rich", eta=(0.002, 0.1), seed=s, dx2=x**2, dy2=y**2, start=1e-3, steps=600)
             for s in (0, 1) for x in (0.75, 1.0, 1.5) for y in (0.5, 0.7, 1.0)]  # fmt: skip
    ratio = ratio_at_centre(found)
    assert ratio == pytest.approx(0.02, rel=1e-5)
    for one in found:
        theirs = two_point_limit(1e-3, 0.0, eta_h=0.002, eta_y=0.1, dx2=one.trace.member.dx2, dy2=one.trace.member.dy2)
        assert predicted_end(one, 0.02) == pytest.approx(float(theirs.h), rel=1e-9)
    claims = held(grid_claims({"rich": found}))
    assert claims["rich-prediction"] == claims["rich-targets"] == claims["rich-inputs"] == "held"
    off = [Followed(dataclasses.replace(one.trace, h=2 * one.trace.h), "x") for one in found[:-1]] + found[-1:]
    assert held(grid_claims({"rich": off}))["rich-prediction"] in ("held", "partly", "not")


def test_gains_go_from_rich_to_lazy() -> None:
    sizes = dict(zip(GAINS, (1e-5, 1e-4, 1e-2, 0.1, 0.5, 3.0, 200.0), strict=True))
    groups = {name: [made_up(name, start=size, gain=ZOO[name].gain, seed=s) for s in (0,)]
              for name, size in sizes.items()}  # fmt: skip
    assert held(scale_claims(groups)) == {
        "rich-to-lazy": "held", "rich-end": "held", "lazy-end": "held", "final-distance": "held",
        "learned": "not judged"}  # fmt: skip
    turned = dict(zip(groups, reversed(groups.values()), strict=True))
    swapped = {name: [Followed(dataclasses.replace(o.trace, member=dataclasses.replace(o.trace.member,
               gain=ZOO[name].gain)), "x") for o in group] for name, group in turned.items()}  # fmt: skip
    claims = held(scale_claims(swapped))
    assert claims["rich-to-lazy"] == claims["rich-end"] == claims["lazy-end"] == "not"
    assert held(scale_claims({name: groups[name] for name in GAINS[:2]})) == {"rich-to-lazy": "not judged"}


def test_families_name_every_setting() -> None:
    assert {family(name) for name in ZOO} == {"default", "size", "activation", "gain", "skip", "cnn", "dropout", "adam"}


# ── the pipeline ─────────────────────────────────────────────────────────────────────────────────────────────


def tiny() -> Any:
    settings = [
        dataclasses.replace(one, width=6 if one.kind != "convolutional" else 45, hidden_layers=3 if one.layers > 2 else
                            one.hidden_layers, watched=1 if one.layers > 1 else 0, learning_rate=0.1)
        for name, one in ZOO.items() if name in ("gain_0.9", "default", "gain_1.6", "cnn", "adam")
    ]  # fmt: skip
    return dataclasses.replace(
        PRESETS["quick"], two_points=zoo_figure(settings, (0,), 40),
        grid=grid_figure(dataclasses.replace(SMALL, width=5), (0.5, 1.0, 1.5), (0.5, 1.0), (0, 1),
                         (GridEnd("rich", 1.0, 0.2, 40), GridEnd("lazy", 3.0, 0.01, 40)), 20),
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "quick", tiny())
        patch.setattr(_paper, "save_charts", lambda run, folder: save_charts(run, folder, formats=("svg",)))
        # two seconds for each network, and tested with its own
        patch.setattr(_effective_layers, "compare_two_point", lambda fit: (Alternative("one", 2 * fit.misfit, 2.0),))
        out = tmp_path_factory.mktemp("paper") / "run"

        def stop(done: int, total: int, name: str) -> None:
            if done == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            reproduce_effective(out, figures=OWN, progress=stop)
        assert RunFolder.open(out).run["status"] == "interrupted"
        kept = {p.parent.name: p.stat().st_mtime_ns for p in out.glob("networks/*/arrays.safetensors")}
        assert len(kept) == 2
        counted: list[int] = []
        run = reproduce_effective(out, figures=OWN, progress=lambda done, total, name: counted.append(total))
        yield run, kept, counted


def test_networks_that_are_there_are_not_trained_again(made: Any) -> None:
    run, kept, counted = made
    for name, written in kept.items():
        assert (run.path / "networks" / name / "arrays.safetensors").stat().st_mtime_ns == written
    names = {p.name for p in (run.path / "networks").iterdir()}
    assert len(names) == counted[0] == 5


def test_every_figure_has_charts_data_and_judged_claims(made: Any) -> None:
    run = made[0]
    assert run.run["status"] == "complete"
    assert [f["key"] for f in run.run["reproduction"]["figures"]] == list(OWN)
    for figure in run.run["reproduction"]["figures"]:
        data = pl.read_csv(run.path / "figures" / f"{figure['key']}.csv")
        assert set(data["panel"]) <= {panel["key"] for panel in figure["panels"]}
        for panel in figure["panels"]:
            if panel["key"] in set(data["panel"]):
                assert (run.path / "charts" / f"fig-{figure['key']}-{panel['key']}.svg").exists()
    assert {c.name.split("/")[0] for c in run.verdict()} == set(OWN)
    rows = run.metrics().filter(pl.col("metric") == "eta_h")
    assert rows.height > 4
    assert rows["value"].min() > 0
    for c in run.verdict():
        assert all(run.metrics()["metric"][row] in ("eta_h", "eta_y") for row in c.rows)


def test_several_figures_read_a_network_once(made: Any) -> None:
    run = made[0]
    figure = PairFigure(tiny().two_points.groups)
    networks = figure.networks(image_file(None), "cpu")
    found, seconds = follow_all(networks, run.path / "networks")
    assert seconds > 0
    assert follow(networks[0], run.path / "networks")[0][0] is found[0]
    table = MetricTable()
    profile = figure_depth_profile(figure, networks, run.path / "networks", table)
    assert {row.panel for row in profile.rows} <= {"misfit", "left", "rates", "distance"}
    assert {int(row.x) for row in profile.rows} == {0, 1, 2}


def test_bad_input_is_refused(made: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"two-pionts.*two-points"):
        plan_effective("quick", ("two-pionts",))
    with pytest.raises(InputError, match="preset"):
        plan_effective("papr")
    with pytest.raises(InputError, match="structure"):
        plan_effective("paper", ("structure", "grid"))
    assert plan_effective("paper", ("grid",)) == 2
    with pytest.raises(InputError, match="jobs"):
        reproduce_effective(tmp_path / "run", jobs=0)
    with pytest.raises(RunFolderError, match="preset 'full'"):
        reproduce_effective(made[0].path, preset="full", figures=("grid",))
    record = json.loads((made[0].path / "run.json").read_text())
    assert record["configuration"]["paper"] == "effective-theory"
