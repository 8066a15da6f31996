"""Costs of trained networks against what can be proven of them, planted fits, and runs that break off."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from torch import Tensor

from isthmus import InputError
from isthmus._errors import DivergedError, IsthmusError, RunFolderError
from isthmus._records import MetricTable, RunFolder
from isthmus.data import Scaling, Task, teacher
from isthmus.experiments import CostConfig, _cost_networks, cost_folder, cost_network, plan_cost, run_cost
from isthmus.experiments._cost_fit import best_start, fit_seeds
from isthmus.experiments._cost_networks import CostNetwork, jobs_of, train_chains
from isthmus.experiments._cost_rows import cost_result, measure_network
from isthmus.experiments._cost_verdict import cost_verdict
from isthmus.models import FullyConnected
from isthmus.theory import linear_cost

DEPTHS = (3, 4, 6, 9)
SETTINGS = CostConfig(depths=DEPTHS, width=8, ridge=1e-4, steps=80)
QUICK = CostConfig(depths=(2, 3, 4), width=5, ridge=1e-3, steps=4)


def map_of_rank_2() -> Tensor:
    """Singular values 3 and 1.5, along the axes of the inputs: with positive inputs a ReLU network carries them."""
    g = torch.Generator().manual_seed(0)
    u = torch.linalg.qr(torch.randn(4, 2, generator=g, dtype=torch.float64)).Q
    return u @ torch.diag(torch.tensor([3.0, 1.5], dtype=torch.float64))


def task_of(x: Tensor, y: Tensor) -> Task:
    """Samples as they are, without scaling, so that positive inputs stay positive."""
    n = len(x) * 2 // 3
    scaling = Scaling(x.new_zeros(x.shape[1]), x.new_ones(x.shape[1]), y.new_zeros(y.shape[1]), 1.0)
    names = tuple(f"x{i}" for i in range(x.shape[1]))
    return Task("linear", "regression", x[:n], y[:n], x[n:], y[n:], scaling, names, (), {})


@pytest.fixture(scope="module")
def linear() -> Task:
    x = torch.rand(90, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.2
    return task_of(x, x @ map_of_rank_2().mT)


@pytest.fixture(scope="module")
def run(linear: Task, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    torch.set_default_dtype(torch.float64)
    return run_cost(linear, SETTINGS, tmp_path_factory.mktemp("cost") / "run", page=False)


def rows(run: RunFolder, metric: str, **where: Any) -> pl.DataFrame:
    found = run.metrics().filter(pl.col("metric") == metric)
    for key, value in where.items():
        found = found.filter(pl.col(key) == value)
    return found


def jacobian(model: FullyConnected, x: Tensor) -> Tensor:
    return torch.autograd.functional.jacobian(lambda row: model(row[None])[0], x)


def test_no_network_is_cheaper_than_its_jacobian(run: RunFolder, linear: Task) -> None:
    """`Jf(x)` is a product of `L` matrices of norm `‖W_ℓ‖` at most: its own cost is no higher, at any sample."""
    for depth in DEPTHS:
        model = cost_network(run.path, depth)
        cost = float(rows(run, "representation_cost", index=depth)["value"][0])
        assert cost == pytest.approx(float(sum(p.detach().square().sum() for p in model.parameters())), rel=1e-12)
        for x in linear.x_train[:20]:
            assert cost >= float(linear_cost(jacobian(model, x), depth).cost)


def test_costs_of_a_linear_map_are_near_their_closed_form(run: RunFolder) -> None:
    exact = linear_cost(map_of_rank_2(), DEPTHS)
    costs = torch.tensor(rows(run, "representation_cost").sort("index")["value"].to_list())
    assert bool((costs / exact.cost < 1.1).all())
    assert bool((costs / exact.cost > 0.99).all())  # below it only by what the ridge gives up of the fit
    rank, error = rows(run, "cost_rank")["value"][0], rows(run, "cost_rank")["stderr"][0]
    assert rank == pytest.approx(2, abs=0.1)
    assert 0 < error < 0.1
    assert rows(run, "cost_regularity")["value"][0] == pytest.approx(exact.first, abs=1)
    slopes = rows(run, "cost_slope").sort("index")
    second = rows(run, "cost_second_order")["value"][0]
    assert slopes["value"].to_list() == pytest.approx([rank - second / depth**2 for depth in DEPTHS])


def test_rows_are_what_their_definitions_say(run: RunFolder, linear: Task) -> None:
    depth = DEPTHS[-1]
    model = cost_network(run.path, depth)
    loss = (model(linear.x_train) - linear.y_train).square().mean()
    objective = loss + SETTINGS.ridge * sum(p.square().sum() for p in model.parameters())
    slope = torch.cat([g.flatten() for g in torch.autograd.grad(objective, list(model.parameters()))])
    norm = model.norm_sq().sqrt().item()
    assert rows(run, "loss", index=depth, split="train")["value"][0] == pytest.approx(loss.item(), rel=1e-9)
    test = (model(linear.x_test) - linear.y_test).square().mean()
    assert rows(run, "loss", index=depth, split="test")["value"][0] == pytest.approx(test.item(), rel=1e-9)
    residual = float(slope.norm()) / (2 * SETTINGS.ridge * norm)
    assert rows(run, "critical_residual", index=depth)["value"][0] == pytest.approx(residual, rel=1e-6)
    logs = torch.stack([torch.linalg.svdvals(jacobian(model, x)).log() for x in linear.x_train])
    bound = rows(run, "cost_regularity_bound")
    assert bound["value"][0] == pytest.approx(float(2 * logs.sum(1).max()), rel=1e-9)
    assert bound["note"][0] == "k=2"
    gap = rows(run, "bottleneck_gap", layer="network", index=depth)["value"][0]
    layers = rows(run, "bottleneck_gap").filter(pl.col("layer").str.starts_with("layers."))
    assert len(layers) == depth
    assert layers["value"].sum() == pytest.approx(gap)
    assert gap <= rows(run, "bottleneck_bound", index=depth)["value"][0]
    spectra = run.arrays()["spectra/weight"]
    assert spectra[1] == pytest.approx(torch.linalg.svdvals(model.weights[1].detach()).numpy())
    pairs = zip(model.weights[:-1], model.biases[:-1], model.weights[1:], strict=True)
    worst = max(((w.square().sum(1) + b.square() - v.square().sum(0)).abs().sum()
                 / (w.square().sum() + b.square().sum() + v.square().sum())).item() for w, b, v in pairs)  # fmt: skip
    assert rows(run, "neuron_balance", layer="network", index=depth)["value"][0] == pytest.approx(worst)


def test_the_bound_is_the_largest_over_samples_of_rank_k() -> None:
    """Of a random network, whose Jacobian is another one at every sample."""
    task = task_of(torch.randn(90, 2), torch.randn(90, 4))
    model = FullyConnected(2, 4, width=30, depth=3, seed=3, dtype=torch.float64)
    for bias in model.biases:
        bias.data.normal_(generator=torch.Generator().manual_seed(0))
    measured = measure_network(CostNetwork(0, 3, 0.0, 1.0, 0.0, 0, 0.0, 0.0, model), task)
    values = torch.stack([torch.linalg.svdvals(jacobian(model, x)) for x in task.x_train])
    assert values[:, 1].max() > 1.5 * values[:, 1].min()
    for k in (1, 2):
        assert measured.regularity_bound(k) == pytest.approx(float(2 * values[:, :k].log().sum(1).max()), rel=1e-9)
    assert measured.regularity_bound(3) is None
    assert measured.regularity_bound(0) is None  # an empty sum bounds nothing


def test_the_verdict_names_everything_with_its_rows(run: RunFolder) -> None:
    claims = {claim.name: claim for claim in run.verdict()}
    assert list(claims) == ["rank", "regularity", "slope", "certificate", "balance", "fit", "training"]
    table = run.metrics()
    metrics = {name: set(table[list(claim.rows)]["metric"]) for name, claim in claims.items()}
    assert metrics["rank"] == {"cost_rank", "representation_cost"}
    assert metrics["regularity"] == {"cost_regularity", "cost_second_order", "cost_regularity_bound"}
    assert metrics["training"] == {"critical_residual", "loss"}
    assert "about 2 dimensions" in claims["rank"].text
    assert "scatter of 4 depths of one seed" in claims["rank"].text
    assert "above its lower bound" in claims["regularity"].text
    assert "with k = 2" in claims["certificate"].text
    assert "upper estimates" in claims["training"].text
    assert run.run["loss_reduction"] == "mean over samples and outputs"


def expansion(depths: tuple[int, ...], values: Tensor) -> Tensor:
    d = torch.tensor(depths)
    return torch.stack([d, torch.ones_like(d), 1 / d], -1).to(values) @ values


def test_errors_of_several_seeds_are_those_of_their_scatter() -> None:
    """Every seed has terms of its own, the same at all its depths: errors that knew only depths would be far off."""
    depths = (4, 6, 8, 12, 16)
    planted = torch.tensor([3.0, 5.0, 20.0]) + torch.randn(6, 3) * torch.tensor([0.1, 2.0, 3.0])
    costs = torch.stack([expansion(depths, values) for values in planted])
    fit = fit_seeds(depths, costs)
    assert torch.allclose(fit.values, planted.mean(0))
    assert torch.allclose(torch.tensor(fit.stderr), planted.std(0) / math.sqrt(6))
    slopes = torch.stack([values[0] - values[2] / 16**2 for values in planted])
    value, error = fit.slope([16.0])
    assert value[0] == pytest.approx(float(slopes.mean()))
    assert error[0] == pytest.approx(float(slopes.std()) / math.sqrt(6))
    assert fit.chi_squared == pytest.approx(0, abs=1e-9)


def test_errors_of_one_seed_come_from_the_scatter_around_the_fit() -> None:
    """The standard error is right over many draws: the pull has the spread of Student's t with 3 degrees of freedom."""
    depths, truth = (4, 6, 8, 12, 16, 24), torch.tensor([3.0, 5.0, 20.0])
    inside = 0
    for _ in range(400):
        fit = fit_seeds(depths, (expansion(depths, truth) + 0.1 * torch.randn(6))[None])
        error = fit.stderr[0]
        assert error is not None
        inside += abs(float(fit.values[0]) - 3) < 1.638 * error  # t of 3 degrees of freedom: 80 %
    assert 290 <= inside <= 350


def test_three_depths_of_one_seed_have_no_errors() -> None:
    fit = fit_seeds((4, 8, 16), expansion((4, 8, 16), torch.tensor([2.0, 1.0, 1.0]))[None])
    assert fit.values.tolist() == pytest.approx([2, 1, 1])
    assert fit.stderr == [None] * 3
    assert "no errors" in fit.how


def test_a_rank_below_a_half_asks_for_deeper_networks(run: RunFolder, linear: Task) -> None:
    measured = [measure_network(one, linear) for one in train_chains(linear, SETTINGS, run.path / "networks")[0]]
    falling = [
        dataclasses.replace(m, network=dataclasses.replace(m.network, norm_sq=5 + 30 / m.depth)) for m in measured
    ]
    result = cost_result([falling], MetricTable())
    assert result.rank == 0
    claim = cost_verdict(result, ridge=1e-4)[0]
    assert (claim.name, claim.level) == ("rank", "caution")
    assert "add deeper ones, or give more steps" in claim.text
    assert "R⁽⁰⁾ rounds to 0, so no bound is known" in cost_verdict(result, ridge=1e-4)[1].text


def test_what_stands_below_its_bound_says_why(run: RunFolder, linear: Task) -> None:
    """R⁽⁰⁾ = 2.4 rounds to 2, and what it has too much for every layer is missing from R⁽¹⁾."""
    measured = [measure_network(one, linear) for one in train_chains(linear, SETTINGS, run.path / "networks")[0]]
    steep = [
        dataclasses.replace(m, network=dataclasses.replace(m.network, norm_sq=2.4 * m.depth + 0.5)) for m in measured
    ]
    claim = cost_verdict(cost_result([steep], MetricTable()), ridge=1e-4)[1]
    assert (claim.name, claim.level) == ("regularity", "caution")
    for text in ("below its lower bound", "R⁽⁰⁾ = 2.4 is above k = 2", "‖θ‖² − kL = 4.1 at L = 9"):
        assert text in claim.text


def test_a_depth_that_is_too_small_for_the_expansion_is_named() -> None:
    depths = (2, 8, 12, 16, 24, 32)
    good = expansion(depths, torch.tensor([2.0, 1.0, 4.0]))[None] + 0.001 * torch.randn(1, 6)
    assert best_start(depths, good)[0] == 2
    bent = good.clone()
    bent[0, 0] += 30.0  # a term beyond R⁽²⁾/L
    start, without = best_start(depths, bent)
    assert start == 8
    assert without == pytest.approx(2, abs=0.05)


def test_the_same_call_goes_on_and_new_depths_are_added(tmp_path: Path) -> None:
    task = teacher(widths=(3, 1, 2), n_train=12, n_test=4)
    whole = run_cost(task, QUICK, tmp_path / "whole", page=False)
    with pytest.MonkeyPatch.context() as patch:
        trained: list[int] = []
        fit = _cost_networks.fit_ridge

        def stop_at_4(model: FullyConnected, *rest: Any, **more: Any) -> Any:
            if model.depth == 4:
                raise KeyboardInterrupt
            trained.append(model.depth)
            return fit(model, *rest, **more)

        patch.setattr(_cost_networks, "fit_ridge", stop_at_4)
        with pytest.raises(KeyboardInterrupt):
            run_cost(task, QUICK, tmp_path / "broken", page=False)
    assert trained == [2, 3]
    assert RunFolder.open(tmp_path / "broken").run["status"] == "interrupted"
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "broken" / "networks").glob("*/model.safetensors")}
    assert len(before) == 2
    seen: list[tuple[float, float]] = []
    again = run_cost(task, QUICK, tmp_path / "broken", page=False, progress=lambda a, b, _: seen.append((a, b)))
    assert again.metrics().equals(whole.metrics(), null_equal=True)
    assert again.verdict() == whole.verdict()
    assert {p: p.stat().st_mtime_ns for p in before} == before
    done = [share for share, _ in seen]
    assert done == sorted(done)
    assert done[0] > 0
    assert done[-1] == pytest.approx(seen[-1][1])

    deeper = dataclasses.replace(QUICK, depths=(2, 3, 4, 5), seeds=2)
    more = run_cost(task, deeper, tmp_path / "broken", page=False)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert len(rows(more, "representation_cost", note="mean over seeds")) == 4
    assert "scatter of 2 seeds" in more.run["cost"]["errors"]
    assert cost_network(more.path, 5, seed=1).depth == 5
    with pytest.raises(InputError, match="depth: got 7"):
        cost_network(more.path, 7)
    with pytest.raises(RunFolderError, match=r"ridge = 0\.001"):
        run_cost(task, dataclasses.replace(QUICK, ridge=1e-2), tmp_path / "broken", page=False)
    with pytest.raises(RunFolderError, match="the same data"):
        run_cost(teacher(widths=(3, 1, 2), n_train=12, n_test=4, seed=1), QUICK, tmp_path / "broken", page=False)


@pytest.mark.slow  # two processes import torch
def test_processes_give_the_same_numbers(tmp_path: Path) -> None:
    task = teacher(widths=(3, 1, 2), n_train=12, n_test=4)
    two = dataclasses.replace(QUICK, seeds=2)
    one = run_cost(task, two, tmp_path / "one", page=False)
    seen: list[float] = []
    other = run_cost(task, two, tmp_path / "other", jobs=2, page=False, progress=lambda a, b, _: seen.append(a / b))
    assert other.metrics().equals(one.metrics(), null_equal=True)
    assert seen[-1] == pytest.approx(1)


def test_a_network_that_was_killed_at_its_first_write_is_made_anew(tmp_path: Path) -> None:
    task = teacher(widths=(3, 1, 2), n_train=12, n_test=4)
    whole = run_cost(task, QUICK, tmp_path / "run", page=False)
    for kept in (tmp_path / "run" / "networks").iterdir():
        (kept / "run.json").rename(kept / ".run.json.abc.part")
    again = run_cost(task, dataclasses.replace(QUICK, ridge=0.001), tmp_path / "run", page=False)
    assert again.metrics().equals(whole.metrics(), null_equal=True)


def test_a_training_that_diverges_leaves_the_others(tmp_path: Path) -> None:
    task = teacher(widths=(3, 1, 2), n_train=12, n_test=4)
    with pytest.MonkeyPatch.context() as patch:
        fit = _cost_networks.fit_ridge

        def diverge(model: FullyConnected, x: Tensor, y: Tensor, config: Any, **more: Any) -> Any:
            if model.depth == 3 and config.seed == 0:
                raise DivergedError("the objective is not a finite number at step 1")
            return fit(model, x, y, config, **more)

        patch.setattr(_cost_networks, "fit_ridge", diverge)
        with pytest.raises(DivergedError, match=r"2 of 6 networks could not be trained.*not a finite number"):
            run_cost(task, dataclasses.replace(QUICK, seeds=2), tmp_path / "run", page=False)
    assert RunFolder.open(tmp_path / "run").run["status"] == "failed"
    kept = [json.loads(p.read_text())["status"] for p in (tmp_path / "run" / "networks").glob("*/run.json")]
    assert sorted(kept) == ["complete"] * 4 + ["failed"]
    assert run_cost(task, dataclasses.replace(QUICK, seeds=2), tmp_path / "run", page=False).run["status"] == "complete"


def test_a_dead_network_says_so(tmp_path: Path) -> None:
    task = teacher(widths=(3, 1, 2), n_train=12, n_test=4)
    steps = dataclasses.replace(QUICK, ridge=3.0, steps=40)
    with pytest.raises(IsthmusError, match=r"dead, its rank 0: .*λ = 3 costs more.*try ridge=0\.3"):
        run_cost(task, steps, tmp_path / "run", page=False)


def test_a_damaged_network_is_named(tmp_path: Path) -> None:
    task = teacher(widths=(3, 1, 2), n_train=12, n_test=4)
    run_cost(task, QUICK, tmp_path / "run", page=False)
    weights = next((tmp_path / "run" / "networks").glob("seed0_L3_*")) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:50])
    with pytest.raises(RunFolderError, match="remove this folder"):
        run_cost(task, QUICK, tmp_path / "run", page=False)


@pytest.mark.parametrize(
    ("change", "jobs", "said"),
    [
        ({"depths": (3, 4)}, 1, "depths: got 3,4, expected at least 3 different depths"),
        ({"depths": (3, 4, 4)}, 1, "depths: got 3,4,4, expected at least 3 different depths"),
        ({"depths": (1, 4, 8)}, 1, "depths: got 1, expected an integer of at least 2"),
        ({"width": 1}, 1, "width: got 1, expected at least the number of outputs, 2"),
        ({"ridge": 0.0}, 1, "ridge: got 0.0, expected a finite number > 0"),
        ({"ridge": math.nan}, 1, "ridge: got nan"),
        ({"steps": 0}, 1, "steps: got 0"),
        ({"seeds": 0}, 1, "seeds: got 0"),
        ({"seed": -1}, 1, "seed: got -1"),
        ({"device": "tpu0"}, 1, "device: got tpu0"),
        ({}, 0, "jobs: got 0"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(
    change: dict[str, Any], jobs: int, said: str, tmp_path: Path
) -> None:
    task = teacher(widths=(3, 1, 2), n_train=12, n_test=4)
    with pytest.raises(InputError) as caught:
        run_cost(task, dataclasses.replace(QUICK, **change), tmp_path / "run", jobs=jobs)
    assert str(caught.value).startswith(said)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("part", "name"), [("x_train", "inputs"), ("y_train", "targets")])
def test_constant_samples_are_not_blamed_on_the_ridge(part: str, name: str, tmp_path: Path) -> None:
    task = teacher(widths=(3, 1, 2), n_train=12, n_test=4)
    task = dataclasses.replace(task, **{part: getattr(task, part)[:1].repeat(12, 1)})
    with pytest.raises(InputError, match=f"{name} that are the same for all training samples.*whatever the ridge"):
        run_cost(task, QUICK, tmp_path / "run", page=False)
    assert not (tmp_path / "run").exists()


def test_depths_are_sorted_and_that_is_said(tmp_path: Path) -> None:
    task = teacher(widths=(3, 1, 2), n_train=12, n_test=4)
    found = run_cost(task, dataclasses.replace(QUICK, depths=(4, 2, 3, 3)), tmp_path / "run", page=False)
    assert found.run["cost"]["depths"] == [2, 3, 4]
    assert found.run["warnings"] == ["depths were put in order, each once: 2, 3, 4"]


def test_a_network_is_named_after_all_that_it_depends_on() -> None:
    """The depths before it, too: it begins from the network of the last of them."""
    task = teacher(widths=(3, 1, 2), n_train=12, n_test=4)
    name = jobs_of(task, QUICK)[0][-1].name
    assert name == jobs_of(task, dataclasses.replace(QUICK, depths=(2, 3, 4, 9), seeds=2))[0][2].name
    others = [{"depths": (2, 4, 5)}, {"width": 6}, {"ridge": 2e-3}, {"steps": 5}, {"seed": 1}, {"device": "cuda"}]
    changed = [jobs_of(task, dataclasses.replace(QUICK, **change)) for change in others]
    names = {job.name for chains in changed for job in chains[0] if job.depth == 4}
    assert len(names) == len(others)
    assert name not in names


def test_the_folder_is_named_after_what_must_stay_the_same() -> None:
    task = teacher(widths=(3, 1, 2), n_train=12, n_test=4)
    folder = cost_folder(task, QUICK)
    assert folder == cost_folder(task, dataclasses.replace(QUICK, depths=(2, 3, 4, 9), seeds=3))
    assert folder != cost_folder(task, dataclasses.replace(QUICK, ridge=1e-2))
    assert folder != cost_folder(teacher(widths=(3, 1, 2), n_train=12, n_test=4, seed=1), QUICK)
    assert folder.name.startswith("cost-teacher-3-1-2-")


def test_a_plan_counts_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    task = teacher(widths=(3, 1, 2), n_train=12, n_test=4)
    plan = plan_cost(task, dataclasses.replace(QUICK, seeds=2))
    assert (plan.networks, plan.samples, plan.inputs, plan.outputs) == (6, 12, 3, 2)
    assert plan.parameters == (3 + 1) * 5 + 2 * (5 + 1) * 5 + (5 + 1) * 2
    assert plan.seconds > 0
    assert plan.memory > 8 * plan.parameters
    assert not list(tmp_path.iterdir())


def test_single_precision_samples_are_taken_and_one_sample_is_refused(tmp_path: Path, linear: Task) -> None:
    single = dataclasses.replace(
        linear, **{name: getattr(linear, name).float() for name in ("x_train", "y_train", "x_test", "y_test")}
    )
    quick = dataclasses.replace(SETTINGS, steps=5)
    assert plan_cost(single, quick).samples == len(linear.x_train)
    found = run_cost(single, quick, tmp_path / "single", page=False)
    assert found.run["status"] == "complete"
    alone = dataclasses.replace(linear, x_train=linear.x_train[:1], y_train=linear.y_train[:1])
    with pytest.raises(InputError, match="1 training samples"):
        run_cost(alone, quick, tmp_path / "alone", page=False)
    assert not (tmp_path / "alone").exists()
