"""Another number of layers for a trained path: closed forms, orders of convergence, and what must stay as it is."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from isthmus import InputError
from isthmus.models import Adaptive, LeakyResNet
from isthmus.train import RESAMPLE_METHODS, resample


def network(depth: int = 8, effective_depth: float = 3.0, *, width: int = 6, bias: bool = True, seed: int = 0,
            activation: str = "relu", steps: str | Adaptive = "equidistant") -> LeakyResNet:  # fmt: skip
    made = LeakyResNet(4, 3, width=width, depth=depth, effective_depth=effective_depth, bias=bias, seed=seed,
                       activation=activation, steps=steps, dtype=torch.float64)  # fmt: skip
    if made.bias is not None:
        with torch.no_grad():
            made.bias.normal_(generator=torch.Generator().manual_seed(seed))
    return made


def inputs(n: int = 30, seed: int = 1) -> Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).detach().norm())


def smooth(depth: int, activation: str = "relu") -> LeakyResNet:
    """A path whose weights are the values at the layers' middles of one smooth function of depth."""
    made = network(depth, 2.0, activation=activation)
    rng = torch.Generator().manual_seed(3)
    first, second, third = torch.randn(3, 6, 6, generator=rng, dtype=torch.float64)
    p = ((torch.arange(depth, dtype=torch.float64) + 0.5) / depth)[:, None, None]
    with torch.no_grad():
        made.weight.copy_(first + torch.sin(3 * p) * second + p**2 * third)
        assert made.bias is not None
        made.bias.copy_((p[:, :, 0] * first[0]).expand_as(made.bias))
    return made


@pytest.mark.parametrize("method", RESAMPLE_METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_same_depth_is_the_same_function_to_the_bit(method: str, dtype: torch.dtype) -> None:
    model, x = network(7).to(dtype), inputs().to(dtype)
    again = resample(model, 7, x, method=method)
    assert torch.equal(again(x), model(x))
    assert torch.equal(again.layer_steps, model.layer_steps)


def test_the_same_uneven_steps_are_the_same_function_to_the_bit() -> None:
    model, x = network(4), inputs()
    model.set_layer_steps(torch.tensor([0.1, 0.3, 0.2, 0.4], dtype=torch.float64))
    again = resample(model, 4, steps=model.layer_steps)
    assert torch.equal(again(x), model(x))
    assert not torch.equal(resample(model, 4)(x), model(x))  # equidistant ones are others


@pytest.mark.parametrize("method", RESAMPLE_METHODS)
def test_the_model_and_the_random_state_are_left_as_they_are(method: str) -> None:
    model, x = network(8).eval(), inputs()
    model.input_weight.requires_grad_(False)
    model(x).sum().backward()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradient, state = model.weight.grad, torch.get_rng_state()
    made = resample(model, 5, x, method=method)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.weight.grad is gradient
    assert torch.equal(torch.get_rng_state(), state)
    assert not made.training
    assert made.weight.grad is None
    assert made.weight.requires_grad
    made(x).sum().backward()  # it can be trained
    assert made.weight.grad is not None
    assert made.weight.data_ptr() != model.weight.data_ptr()


def test_merging_two_layers_without_weights_leaves_the_leak_of_one_long_step() -> None:
    model, x = network(2, 0.9, bias=False), inputs()
    with torch.no_grad():
        model.weight.zero_()
    merged = resample(model, 1, x, method="merge")
    assert torch.allclose(model(x), (1 - 0.45) ** 2 * model.readout(model.embed(x)), rtol=1e-12)
    assert torch.allclose(merged(x), (1 - 2 * 0.45) * model.readout(model.embed(x)), rtol=1e-12)


def test_the_mean_of_the_weights_is_kept() -> None:
    model = network(9)
    whole = (model.layer_steps[:, None, None] * model.weight).sum(0)
    for made in (resample(model, 5), resample(model, 23), resample(model, 6, inputs(), method="merge")):
        assert torch.allclose((made.layer_steps[:, None, None] * made.weight).sum(0), whole, rtol=1e-12, atol=1e-13)
        assert math.isclose(float(made.layer_steps.sum()), 1.0, rel_tol=1e-12)


def test_means_over_layers_that_are_cut_are_those_of_a_fine_grid() -> None:
    model = network(5, 1.0)
    made = resample(model, 4, steps=[0.15, 0.35, 0.2, 0.3])
    for j, (low, high) in enumerate(((0.0, 0.15), (0.15, 0.5), (0.5, 0.7), (0.7, 1.0))):
        p = low + (high - low) * (torch.arange(3000, dtype=torch.float64) + 0.5) / 3000
        layer = (p * 5).long()
        assert torch.allclose(made.weight[j], model.weight[layer].mean(0), atol=2e-3)
        assert made.bias is not None
        assert model.bias is not None
        assert torch.allclose(made.bias[j], model.bias[layer].mean(0), atol=2e-3)


def test_a_linear_path_goes_to_its_exponential_with_the_first_power_of_the_step() -> None:
    model = network(8, 2.0, activation="identity", bias=False)
    rng = torch.Generator().manual_seed(5)
    half = torch.randn(6, 6, generator=rng, dtype=torch.float64) / 3
    with torch.no_grad():
        model.weight.copy_((2.0 * torch.eye(6, dtype=torch.float64) + half).expand_as(model.weight))
    x = inputs()
    limit = model.readout(model.embed(x) @ torch.matrix_exp(half).mT)
    error = [distance(resample(model, depth)(x), limit) for depth in (40, 80, 160, 320)]
    for coarse, fine in itertools.pairwise(error):
        assert coarse / fine == pytest.approx(2.0, rel=0.05)


def test_halving_all_steps_moves_the_outputs_by_the_first_power_of_the_step() -> None:
    x, moved, coarse = inputs(), [], []
    for depth in (40, 80, 160, 320):
        model = smooth(depth)
        split = resample(model, 2 * depth, steps=model.layer_steps.repeat_interleave(2) / 2)
        assert torch.equal(split.weight[0], split.weight[1])
        moved.append(distance(split(x), model(x)))
        coarse.append(distance(resample(model, depth // 2)(x), model(x)))
    for errors in (moved, coarse):
        for one, two in itertools.pairwise(errors):
            assert one / two == pytest.approx(2.0, rel=0.1)


def test_one_layer_in_two_halves_errs_by_the_square_of_its_step() -> None:
    x, errors = inputs(), []
    model = network(2, 1.0)
    for rho in (0.04, 0.02, 0.01, 0.005):
        model.set_layer_steps(torch.tensor([rho, 1 - rho], dtype=torch.float64))
        halves = torch.tensor([rho / 2, rho / 2, 1 - rho], dtype=torch.float64)
        split = resample(model, 3, steps=halves)
        errors.append(distance(split.path(x)[2], model.path(x)[1]))
    for one, two in itertools.pairwise(errors):
        assert one / two == pytest.approx(4.0, rel=0.1)


def test_slow_layers_are_merged_first_and_fast_ones_stay_to_the_bit() -> None:
    model, x = network(8, 0.0, bias=False), inputs()
    with torch.no_grad():
        model.weight[3:6] *= 1e-3
    merged = resample(model, 6, x, method="merge")
    assert merged.layer_steps.tolist() == pytest.approx([1 / 8, 1 / 8, 1 / 8, 3 / 8, 1 / 8, 1 / 8])
    for new, old in ((0, 0), (1, 1), (2, 2), (4, 6), (5, 7)):
        assert torch.equal(merged.weight[new], model.weight[old])
    assert torch.allclose(merged.weight[3], model.weight[3:6].mean(0), rtol=1e-14)


def test_merged_steps_weigh_by_their_lengths() -> None:
    model, x = network(3, 0.0), inputs()
    model.set_layer_steps(torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64))
    with torch.no_grad():
        model.weight[:2] *= 1e-6
        assert model.bias is not None
        model.bias[:2] *= 1e-6
    merged = resample(model, 2, x, method="merge")
    assert merged.bias is not None
    assert torch.allclose(merged.weight[0], 0.4 * model.weight[0] + 0.6 * model.weight[1], rtol=1e-12)
    assert torch.allclose(merged.bias[0], 0.4 * model.bias[0] + 0.6 * model.bias[1], rtol=1e-12)


def partitions(count: int) -> list[list[range]]:
    """All ways to cut `count` layers into groups of neighbours."""
    cuts = itertools.chain.from_iterable(itertools.combinations(range(1, count), k) for k in range(count))
    return [[range(low, high) for low, high in itertools.pairwise((0, *some, count))] for some in cuts]


@pytest.mark.parametrize(("depth", "effective_depth", "cap"), [(10, 3.7, None), (9, 0.0, None), (8, 4.1, 0.9)])
def test_the_groups_are_the_best_of_all_partitions(depth: int, effective_depth: float, cap: float | None) -> None:
    """Against every partition: the least depth that any has, and at each depth the least sum of products of moves."""
    steps = "equidistant" if cap is None else Adaptive(cap=cap)
    model, x = network(depth, effective_depth, steps=steps, seed=depth), inputs()
    rho = torch.rand(depth, generator=torch.Generator().manual_seed(depth), dtype=torch.float64) + 0.3
    rho = rho / rho.sum()
    model.set_layer_steps(rho)
    path = model.path(x).detach()
    moves = ((path[1:] - path[:-1]).norm(dim=(1, 2)) / path[1:].norm(dim=(1, 2))).tolist()

    def fits(groups: list[range]) -> bool:
        lengths = [effective_depth * sum(float(rho[i]) for i in one) for one in groups if len(one) > 1]
        return all(length < 1 if cap is None else length <= cap for length in lengths)

    def lost(groups: list[range]) -> float:
        return sum(moves[i] * moves[j] for one in groups for i, j in itertools.combinations(one, 2))

    known: dict[int, float] = {}
    for groups in filter(fits, partitions(depth)):
        known[len(groups)] = min(known.get(len(groups), math.inf), lost(groups))
    assert sorted(known) == list(range(min(known), depth + 1))
    for wanted, least in known.items():
        made, ends = resample(model, wanted, x, method="merge"), torch.cumsum(rho, 0)
        cuts = [0, *(int((ends - end).abs().argmin()) + 1 for end in torch.cumsum(made.layer_steps, 0))]
        groups = [range(low, high) for low, high in itertools.pairwise(cuts)]
        assert fits(groups)
        assert lost(groups) == pytest.approx(least, rel=1e-9, abs=1e-15)
    if min(known) > 1:
        with pytest.raises(InputError, match=f"at least {min(known)}") as caught:
            resample(model, min(known) - 1, x, method="refit")
        assert caught.value.hint == f"try depth={min(known)}"
    else:
        assert effective_depth == 0


def test_a_step_that_is_too_long_already_stays_by_itself() -> None:
    model, x = network(4, 1.8), inputs()
    model.set_layer_steps(torch.tensor([0.6, 0.1, 0.1, 0.2], dtype=torch.float64))
    assert resample(model, 2, x, method="merge").layer_steps.tolist() == pytest.approx([0.6, 0.4])
    longer = network(4, 2.4)
    longer.set_layer_steps(model.layer_steps)
    with pytest.raises(InputError, match="at least 3"):  # two groups fit, but no two equal steps would
        resample(longer, 2, x, method="merge")


def test_a_layer_that_ends_at_the_origin_can_be_joined() -> None:
    model, x = network(4, 0.0, activation="identity", bias=False), inputs()
    with torch.no_grad():
        model.weight[2] = -4 * torch.eye(6, dtype=torch.float64)  # 1 − ρ·4 = 0: its relative move is infinite
    made = resample(model, 3, x, method="merge")
    assert made.layer_steps.tolist() == pytest.approx([0.25, 0.25, 0.5])  # the layer after it stands still
    assert bool(torch.isfinite(resample(model, 1, x, method="merge")(x)).all())


@pytest.mark.parametrize("steps", ["equidistant", "adaptive", "irregular"])
def test_no_step_grows_past_its_bound(steps: str) -> None:
    model, x = network(12, 5.0, steps=steps), inputs()
    bound = model.steps.cap if isinstance(model.steps, Adaptive) else 1.0
    with pytest.raises(InputError, match="at least") as caught:
        resample(model, 1, x, method="merge")
    least = int(caught.value.hint.partition("=")[2])
    assert 5 < least < 12
    made = resample(model, least, x, method="merge")
    assert float(made.layer_steps.max()) * 5.0 <= bound * (1 + 1e-6)
    with pytest.raises(InputError, match="try depth"):
        resample(model, least - 1, x, method="refit")


def test_dropped_layers_do_nothing() -> None:
    model, x = network(6, 3.0), inputs()
    path = model.path(x)
    moves = (path[1:] - path[:-1]).norm(dim=(1, 2)) / path[1:].norm(dim=(1, 2))
    kept = sorted(moves.argsort(descending=True)[:4].tolist())
    a = model.embed(x)
    assert model.bias is not None
    for i in kept:
        rho = model.layer_steps[i]
        a = (1 - rho * 3.0) * a + rho * (torch.relu(a) @ model.weight[i].mT + model.bias[i])
    made = resample(model, 4, x, method="drop")
    assert made.effective_depth == pytest.approx(2.0)
    assert torch.allclose(made(x), model.readout(a), rtol=1e-11, atol=1e-12)


def test_a_refitted_layer_is_the_least_squares_of_the_normal_equations() -> None:
    model, x = network(2, 0.5), inputs(40)
    made = resample(model, 1, x, method="refit")
    path = model.path(x).detach()
    s = torch.cat([torch.relu(path[0]), torch.ones(40, 1, dtype=torch.float64)], 1)
    target = path[2] - (1 - 0.5) * path[0]
    start = model.augmented_weight().mean(0).detach()
    pull = 1e-3 * s.square().sum() / s.shape[1]
    # The same problem as rows of an ordinary least squares.
    rows = torch.cat([s, pull.sqrt() * torch.eye(s.shape[1], dtype=torch.float64)])
    wanted = torch.linalg.lstsq(rows, torch.cat([target, pull.sqrt() * start.mT])).solution.mT
    assert torch.allclose(made.augmented_weight()[0], wanted, rtol=1e-8, atol=1e-10)
    merged = resample(model, 1, x, method="merge")
    assert (made(x) - model(x)).norm() < (merged(x) - model(x)).norm()


def test_refitting_a_path_that_one_step_makes_gives_that_step() -> None:
    model, x = network(2, 0.0, activation="identity", bias=False), inputs(200)
    with torch.no_grad():
        model.input_weight.copy_(torch.eye(6, 4, dtype=torch.float64))
        model.weight.copy_(torch.eye(6, dtype=torch.float64).expand_as(model.weight))
    made = resample(model, 1, x, method="refit")  # (1 + 1/2)² = 1 + 5/4, while the mean gives 1 + 1
    assert torch.allclose(made(x), model(x), rtol=2e-3)
    assert torch.allclose(resample(model, 1, x, method="merge")(x) / model(x), torch.tensor(2 / 2.25).double())


def test_refitting_stays_with_the_mean_where_layers_read_zeros() -> None:
    model = network(4, 0.0, bias=False)
    x = torch.zeros(3, 4, dtype=torch.float64)
    assert torch.equal(resample(model, 2, x, method="refit").weight, resample(model, 2, x, method="merge").weight)


def test_learned_maps_adaptive_rules_and_activations_are_kept() -> None:
    model = LeakyResNet(9, 7, width=5, depth=6, effective_depth=1.0, steps=Adaptive(interval=3), activation=torch.tanh,
                        dtype=torch.float32)  # fmt: skip
    made = resample(model, 4)
    assert made.steps == Adaptive(interval=3)
    assert made.activation_name == model.activation_name
    assert made.weight.dtype == torch.float32
    assert torch.equal(made.input_matrix, model.input_matrix)
    assert torch.equal(made.output_matrix, model.output_matrix)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 12), st.floats(0, 0.49), st.sampled_from(["merge", "refit", "drop"]))
def test_every_depth_that_can_be_had_is_a_network(depth: int, wanted: int, leak: float, method: str) -> None:
    model, x = network(depth, leak * depth), inputs(5)
    made, refused = None, ""
    try:
        made = resample(model, wanted, x, method=method)
    except InputError as error:
        refused = error.argument
    if made is None:
        assert refused == "depth"
        assert wanted > depth or (method != "drop" and wanted <= 2 * leak * depth + 1)
        return
    assert made.depth == wanted
    assert bool(torch.isfinite(made(x)).all())
    assert float(made.layer_steps.max()) * made.effective_depth < 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"depth": 0}, "depth"),
        ({"depth": 3}, "depth"),  # 1/3 · 3 = 1
        ({"depth": 9, "method": "merge", "x": 1}, "depth"),
        ({"depth": 4, "method": "merged"}, "method"),
        ({"depth": 4, "method": "merge"}, "x"),
        ({"depth": 4, "method": "drop", "x": 0}, "x"),
        ({"depth": 4, "method": "drop", "x": -1}, "x"),
        ({"depth": 4, "method": "refit", "x": 1, "steps": [0.25] * 4}, "steps"),
        ({"depth": 4, "steps": [0.25] * 3}, "steps"),
        ({"depth": 4, "steps": [0.5, 0.5, 0.5, -0.5]}, "steps"),
        ({"depth": 5, "steps": [0.6, 0.1, 0.1, 0.1, 0.1]}, "steps"),
    ],
)
def test_bad_input_is_named(arguments: dict[str, object], named: str) -> None:
    given = dict(arguments)
    if "x" in given:
        given["x"] = {1: inputs(), 0: inputs(0), -1: torch.full((2, 4), math.nan)}[given["x"]]  # pyright: ignore
    with pytest.raises(InputError) as caught:
        resample(network(8, 3.0), **given)  # pyright: ignore
    assert caught.value.argument == named
