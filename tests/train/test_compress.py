"""Loss against depth, and the smallest depth within a stated loss."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from isthmus import InputError
from isthmus.models import LeakyResNet
from isthmus.train import (
    RESAMPLE_METHODS,
    FitConfig,
    compress,
    data_term,
    depth_curve,
    depth_curves,
    fit,
    resample,
    score,
)

FIT = FitConfig(epochs=150, learning_rate=1e-2, log_points=2)


def data(n: int, seed: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x, torch.stack([x[:, 0] * x[:, 1], x[:, 2].abs()], 1)


@pytest.fixture(scope="module")
def trained() -> LeakyResNet:
    model = LeakyResNet(4, 2, width=10, depth=8, effective_depth=2.0, dtype=torch.float64)
    fit(model, *data(80, 0), FIT)
    return model


def loss_of(model: LeakyResNet, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float(data_term("square", model(x), y))


def test_the_full_depth_is_the_model_itself_and_every_point_its_network(trained: LeakyResNet) -> None:
    (x, y), (seen, _) = data(40, 1), data(80, 0)
    curve = depth_curve(trained, x, y, x_train=seen)
    assert curve.full.loss == loss_of(trained, x, y)
    assert [(p.depth, p.method) for p in curve.points] == [(d, m) for d in range(8, 0, -1) for m in RESAMPLE_METHODS]
    for point in curve.points:
        if point.depth == 8:
            assert (point.loss, point.score) == (curve.full.loss, curve.full.score)
        elif point.loss is not None:
            made = resample(trained, point.depth, seen, method=point.method)
            assert point.loss == loss_of(made, x, y)
            with torch.no_grad():
                assert ("r_squared", point.score) == score("square", made(x), y)
        else:
            assert point.method != "drop"
            assert point.depth <= 4
            assert "depth" in point.note or "at least" in point.note
    assert curve.points[-1].loss is not None  # one layer, the others dropped


def test_a_curve_is_printed_framed_and_drawn(trained: LeakyResNet) -> None:
    x, y = data(40, 1)
    curve = depth_curve(trained, x, y, depths=[6, 2], methods=["merge", "drop"])
    frame = curve.frame()
    assert frame["depth"].to_list() == [8, 8, 6, 6, 2, 2]
    assert frame["loss"].null_count() == 1  # merging to 2 layers: ρL̃ = 1
    lines = str(curve).splitlines()
    assert lines[1].split() == ["layers", "merge", "drop"]
    assert lines[2].split() == ["8", *[f"{curve.full.loss:.4g}"] * 2]
    assert lines[-1].split()[:2] == ["2", "–"]
    spec = curve.chart().to_dict()
    drawn = [row for rows in spec["datasets"].values() for row in rows if "method" in row]
    assert {(r["depth"], r["method"]) for r in drawn} == {
        (8, "merge"),
        (8, "drop"),
        (6, "merge"),
        (6, "drop"),
        (2, "drop"),
    }


def test_the_smallest_depth_within_the_tolerance_is_taken(trained: LeakyResNet) -> None:
    x, y = data(40, 1)
    curve = depth_curve(trained, x, y, methods=["merge"])
    known = {p.depth: p.loss for p in curve.points if p.loss is not None}
    for depth in sorted(known)[:-1]:
        cost = known[depth]
        bound = max(cost, known[8])
        wanted = min(d for d, value in known.items() if value <= bound and d < 8)
        found = compress(trained, x, y, tolerance=(bound - known[8]) * (1 + 1e-9), relative=False, method="merge")
        again = compress(trained, x, y, tolerance=(bound / known[8] - 1) * (1 + 1e-9), method="merge")
        assert found.depth == again.depth == wanted
        assert found.model.depth == wanted
        assert found.loss == known[wanted] == loss_of(found.model, x, y)
        assert found.loss <= found.bound
        assert [p.depth for p in found.curve.points] == list(range(8, 0, -1))


def test_a_loss_that_does_not_rise_as_layers_go_is_no_obstacle() -> None:
    """Layers that multiply by 3, 0.5 and 0.4 lose the first, then the second: 0.6, 0.2 and 0.4, of which 0.45 is met
    within the full network's loss by one layer and not by two."""
    model = LeakyResNet(1, 1, width=1, depth=3, effective_depth=0.0, activation="identity", bias=False)
    with torch.no_grad():
        model.input_weight.fill_(1.0)
        model.output_weight.fill_(1.0)
        model.weight.copy_(3 * (torch.tensor([3.0, 0.5, 0.4]) - 1).view(3, 1, 1))
    x = torch.tensor([[1.0], [-1.0]])
    found = compress(model, x, 0.45 * x, tolerance=0.0, method="drop")
    assert found.depth == 1
    assert [p.loss for p in found.curve.points] == pytest.approx([0.15**2, 0.25**2, 0.05**2])


def test_a_tolerance_that_no_depth_meets_names_the_best(trained: LeakyResNet) -> None:
    x, _ = data(40, 1)
    with torch.no_grad():
        exact = trained(x)  # the model's own loss is 0
    points = depth_curve(trained, x, exact, methods=["refit"]).points[1:]
    best = min((p for p in points if p.loss is not None), key=lambda p: p.loss or 0.0)
    with pytest.raises(InputError, match="fine-tuning") as caught:
        compress(trained, x, exact, tolerance=0.5)
    assert caught.value.argument == "tolerance"
    assert f"{best.loss:.4g} with {best.depth} layers" in str(caught.value)


def test_fine_tuning_trains_every_depth_and_repeats_itself(trained: LeakyResNet) -> None:
    (x, y), (seen, targets) = data(40, 1), data(80, 0)
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    few = FitConfig(epochs=5, learning_rate=1e-3, log_points=2)
    first, second = (
        compress(trained, x, y, tolerance=9.0, x_train=seen, y_train=targets, finetune=few) for _ in range(2)
    )
    plain = compress(trained, x, y, tolerance=9.0, x_train=seen)
    assert first.curve == second.curve
    assert torch.equal(first.model.weight, second.model.weight)
    assert all(a.loss != b.loss for a, b in zip(first.curve.points[1:], plain.curve.points[1:], strict=True) if a.loss)
    by_hand = resample(trained, first.depth, seen, method="refit")
    fit(by_hand, seen, targets, few)
    assert torch.equal(by_hand.weight, first.model.weight)
    assert loss_of(first.model, seen, targets) < loss_of(
        resample(trained, first.depth, seen, method="refit"), seen, targets
    )
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())


def test_the_same_networks_are_judged_by_samples_that_did_not_choose(trained: LeakyResNet) -> None:
    (x, y), (seen, targets), (x_judge, y_judge) = data(40, 1), data(80, 0), data(30, 5)
    plain = compress(trained, x, y, tolerance=9.0, x_train=seen, x_judge=x_judge, y_judge=y_judge)
    assert plain.judged == depth_curve(trained, x_judge, y_judge, methods=["refit"], x_train=seen)
    assert plain.curve == depth_curve(trained, x, y, methods=["refit"], x_train=seen)
    assert compress(trained, x, y, tolerance=9.0, x_train=seen).judged is None
    few = FitConfig(epochs=3, learning_rate=1e-3, log_points=2)
    tuned = compress(trained, x, y, tolerance=9.0, x_train=seen, y_train=targets, finetune=few, x_judge=x_judge,
                     y_judge=y_judge)  # fmt: skip
    assert tuned.judged is not None
    assert tuned.judged.full == plain.judged.full
    (point,) = [p for p in tuned.judged.points if p.depth == tuned.depth]
    assert point.loss == loss_of(tuned.model, x_judge, y_judge)
    with pytest.raises(InputError, match="both of them") as caught:
        compress(trained, x, y, tolerance=9.0, x_judge=x_judge)
    assert caught.value.argument == "x_judge"
    with pytest.raises(InputError, match="as many rows as x_judge") as caught:
        compress(trained, x, y, tolerance=9.0, x_judge=x_judge, y_judge=y_judge[1:])


def test_several_sets_of_samples_are_judged_at_once(trained: LeakyResNet) -> None:
    sets, (seen, _) = [data(40, 1), data(30, 5)], data(80, 0)
    heard: list[tuple[int, int, int]] = []
    found = depth_curves(trained, sets, depths=[5, 2], x_train=seen, progress=lambda *given: heard.append(given))
    assert found == [depth_curve(trained, x, y, depths=[5, 2], x_train=seen) for x, y in sets]
    assert heard == [(i, 12, depth) for i, depth in enumerate([8] * 4 + [5] * 4 + [2] * 4)]
    assert depth_curves(trained, sets, depths=[5])[0] == depth_curve(trained, *sets[0], depths=[5])
    with pytest.raises(InputError, match="at least one set") as caught:
        depth_curves(trained, [])
    assert caught.value.argument == "parts"


@pytest.mark.parametrize(("method", "least"), [("refit", 3), ("equidistant", 3), ("drop", 1)])
def test_the_work_is_counted_in_layers_and_epochs(trained: LeakyResNet, method: str, least: int) -> None:
    """At L̃ = 2 eight equal steps need three groups, and equal steps three layers."""
    (x, y), (seen, targets), few = data(40, 1), data(80, 0), FitConfig(epochs=4, log_points=2, learning_rate=1e-3)
    heard: list[tuple[int, int, int]] = []
    compress(trained, x, y, tolerance=99.0, method=method, x_train=seen, y_train=targets, finetune=few,
             progress=lambda done, work, depth: heard.append((done, work, depth)))  # fmt: skip
    assert {work for _, work, _ in heard} == {4 * sum(range(least, 8))}
    done = [done for done, _, _ in heard]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, heard[0][1])
    assert heard[:3] == [(0, heard[0][1], 7), (7, heard[0][1], 7), (14, heard[0][1], 7)]


def test_classes_are_judged_by_their_accuracy() -> None:
    x, _ = data(60, 2)
    y = (x[:, 0] > 0).long()
    model = LeakyResNet(4, 2, width=8, depth=6, effective_depth=1.0, dtype=torch.float64)
    fit(model, x, y, dataclasses.replace(FIT, loss="cross_entropy", epochs=40))
    found = compress(model, x, y, tolerance=1.0, loss="cross_entropy")
    assert found.curve.score_name == "accuracy"
    assert found.curve.full.score == float((model(x).argmax(1) == y).double().mean())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"tolerance": -0.1}, "tolerance"),
        ({"tolerance": math.nan}, "tolerance"),
        ({"tolerance": True}, "tolerance"),
        ({"tolerance": 1, "loss": "cube"}, "loss"),
        ({"tolerance": 1, "method": "shrink"}, "method"),
        ({"tolerance": 1, "finetune": FIT}, "finetune"),
        ({"tolerance": 1, "loss": "mean_square", "finetune": FIT, "x_train": 1, "y_train": 1}, "finetune"),
        ({"tolerance": 1, "y": torch.zeros(40, 3)}, "y"),
        ({"tolerance": 1, "y": torch.zeros(39, 2)}, "y"),
    ],
)
def test_bad_input_is_named(trained: LeakyResNet, arguments: dict[str, object], named: str) -> None:
    x, y = data(40, 1)
    seen = dict(zip(("x_train", "y_train"), data(80, 0), strict=True))
    given = {"x": x, "y": y} | arguments | {name: seen[name] for name in seen if name in arguments}
    with pytest.raises(InputError) as caught:
        compress(trained, **given)  # pyright: ignore
    assert caught.value.argument == named


def test_networks_without_numbers_or_layers_to_lose_are_refused(trained: LeakyResNet) -> None:
    x, y = data(40, 1)
    with pytest.raises(InputError, match="2 layers"):
        compress(resample(trained, 1, x, method="drop"), x, y, tolerance=1.0)
    broken = resample(trained, 8)
    with torch.no_grad():
        broken.weight[0, 0, 0] = math.inf
    with pytest.raises(InputError, match="diverged"):
        compress(broken, x, y, tolerance=1.0)
    with pytest.raises(InputError, match="depths"):
        depth_curve(trained, x, y, depths=[0])
