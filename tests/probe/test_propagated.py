from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from isthmus import InputError
from isthmus.probe import Propagation, propagation
from isthmus.theory import propagate_signal


def chain(widths: list[int], activation: Callable[[], nn.Module], weight: float = 2.0, bias: float = 0.0) -> nn.Module:
    parts = list[nn.Module]()
    for before, after in itertools.pairwise(widths):
        layer = nn.Linear(before, after)
        nn.init.normal_(layer.weight, std=math.sqrt(weight / before))
        nn.init.normal_(layer.bias, std=math.sqrt(bias))
        parts += [layer, activation()]
    return nn.Sequential(*parts[:-1])


def measured(model: nn.Module, data: object, **given: object) -> Propagation:
    return propagation(model, data, progress=False, **given)  # pyright: ignore[reportArgumentType]


def mean_pair(rows: Tensor) -> float:
    flat = rows.detach().flatten(1)
    pairs = itertools.combinations(range(len(flat)), 2)
    found = [float(nn.functional.cosine_similarity(flat[i], flat[j], 0)) for i, j in pairs]
    return math.fsum(found) / len(found)


class Functional(nn.Module):
    """A chain whose activation is no module."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(5, 9), nn.Linear(9, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(torch.tanh(self.second(torch.tanh(self.first(x)))))


def test_every_number_against_pairs_one_by_one() -> None:
    net, x = Functional(), torch.randn(9, 5)
    found = measured(net, x, batch_size=4)
    read = [x]
    given = list[Tensor]()
    for k, layer in enumerate((net.first, net.second, net.third)):
        given.append(layer(read[-1]))
        read.append(torch.tanh(given[k]))
    rows = [torch.autograd.grad(given[-1][:, c].sum(), given, retain_graph=True) for c in range(3)]
    assert [one.name for one in found.layers] == ["first", "second", "third"]
    for k, one in enumerate(found.layers):
        assert one.forward_loss is not None
        assert one.backward_correlation is not None
        assert one.forward_loss.value == pytest.approx(1 - mean_pair(read[k]), abs=1e-13)
        derivatives = torch.stack([row[k] for row in rows], 1)
        assert one.backward_correlation.value == pytest.approx(mean_pair(derivatives), abs=1e-13)
        assert one.forward_loss.stderr > 0
    assert (found.n, found.outputs, found.activation, found.why) == (9, 3, "tanh", "")


def test_the_prediction_is_the_recursion_from_the_models_own_variances() -> None:
    net, x = Functional(), 2 * torch.randn(9, 5)
    found = measured(net, x)
    weights = [float(layer.weight.detach().square().sum()) / layer.out_features for layer in (net.first, net.second)]
    biases = [float(layer.bias.detach().square().mean()) for layer in (net.first, net.second)]
    expected = propagate_signal("tanh", depth=2, weight_variance=weights, bias_variance=biases,
                                correlation=mean_pair(x), second_moment=float(x.square().mean()))  # fmt: skip
    assert found.predicted is not None
    assert found.predicted.forward_loss.tolist() == pytest.approx(expected.forward_loss.tolist(), rel=1e-9)
    assert found.predicted.backward_correlation.tolist() == pytest.approx(expected.backward_correlation.tolist())


def test_wide_networks_at_initialisation_follow_their_prediction() -> None:
    x = torch.randn(15, 60) + 0.5
    gaps, crossings = list[Tensor](), list[float]()
    for _ in range(6):
        found = measured(chain([60, *[200] * 6, 3], nn.ReLU), x)
        assert found.predicted is not None
        values = [[one.forward_loss.value, one.backward_correlation.value] for one in found.layers
                  if one.forward_loss and one.backward_correlation]  # fmt: skip
        expected = torch.stack([found.predicted.forward_loss, found.predicted.backward_correlation], 1)
        gaps.append(torch.tensor(values) - expected)
        assert found.equilibrium is not None
        assert found.predicted.equilibrium is not None
        crossings.append(found.equilibrium - found.predicted.equilibrium)
    drawn = torch.stack(gaps)
    assert bool((drawn.mean(0).abs() <= 5 * drawn.std(0) / math.sqrt(6) + 0.01).all())
    assert float(drawn.square().mean().sqrt()) < 0.06
    assert abs(sum(crossings) / 6) < 0.3


@pytest.mark.parametrize(
    ("activation", "name"),
    [(nn.ReLU, "relu"), (lambda: nn.ReLU(inplace=True), "relu"), (nn.GELU, "gelu"), (nn.Identity, "linear"),
     (lambda: nn.LeakyReLU(0.3), "LeakyReLU(negative_slope=0.3)"),
     (lambda: nn.Hardswish(inplace=True), "Hardswish()"),
     (lambda: nn.CELU(0.5, inplace=True), "CELU(alpha=0.5, inplace=True)"),
     (lambda: nn.Sequential(nn.ELU(), nn.Dropout(0.5)), "elu")],
)  # fmt: skip
def test_activations_are_found_by_what_they_do(activation: Callable[[], nn.Module], name: str) -> None:
    found = measured(chain([6, 8, 8, 2], activation), torch.randn(12, 6))
    assert found.activation == name
    assert found.predicted is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.half, torch.float32])
@pytest.mark.parametrize(
    ("activation", "name"), [(nn.ReLU, "relu"), (nn.LeakyReLU, "leaky_relu"), (nn.GELU, "gelu"), (nn.SiLU, "silu")]
)
def test_of_activations_within_rounding_the_nearest_is_taken(
    activation: Callable[[], nn.Module], name: str, dtype: torch.dtype
) -> None:
    found = measured(chain([30, 64, 64, 3], activation).to(dtype), torch.randn(40, 30).to(dtype))
    assert found.activation == name


@pytest.mark.parametrize(("activation", "name"), [(nn.ReLU, "relu"), (nn.LeakyReLU, "leaky_relu"), (nn.GELU, "gelu")])
def test_activations_are_told_apart_where_products_are_rounded_as_on_a_gpu(
    activation: Callable[[], nn.Module], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("isthmus.probe._propagated_prediction.rounding", lambda _: 2.0**-10)
    net = chain([30, 64, 64, 3], activation).float()
    for layer in net.children():
        if isinstance(layer, nn.Linear):
            noise = 2.0**-11 * torch.randn(layer.out_features, dtype=torch.float32)
            layer.register_forward_hook(lambda _m, _a, out, noise=noise: out * (1 + noise))  # pyright: ignore
    assert measured(net, torch.randn(40, 30).float()).activation == name


def test_the_relu_is_taken_where_several_activations_do_the_same() -> None:
    net, x = chain([6, 8, 2], nn.ReLU), torch.rand(12, 6)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.abs_()
    assert measured(net, x).activation == "relu"
    assert measured(nn.Sequential(net[0], net[2]), x).activation == "relu"  # pyright: ignore[reportIndexIssue]


class Bent(nn.Module):
    """A leaky ReLU that is no module of torch, nor near to one by bfloat16's rounding."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.06 * x)


def test_an_activation_that_is_not_known_is_not_taken_for_one_that_is() -> None:
    found = measured(chain([30, 64, 64, 3], Bent).bfloat16(), torch.randn(40, 30).bfloat16())
    assert "not joined by one known activation alone" in found.why


def test_an_activation_that_works_in_place_does_not_disturb_the_others() -> None:
    net = chain([6, 8, 8, 2], nn.Hardswish)
    both = nn.ModuleDict({"first": nn.Hardtanh(-0.1, 0.1, inplace=True), "net": net})
    found = propagation(both, torch.randn(12, 6), forward=lambda model, x: model["net"](x), progress=False)
    assert found.activation == "Hardswish()"


def test_skips_are_found_in_bfloat16() -> None:
    found = measured(Residual().bfloat16(), torch.randn(40, 5).bfloat16())
    assert "not joined by one known activation alone" in found.why


def test_hooks_of_an_activation_see_the_models_own_runs_only() -> None:
    shapes = set[tuple[int, ...]]()
    net = chain([6, 8, 2], nn.Hardswish)
    net[1].register_forward_hook(lambda _m, args, _out: shapes.add(args[0].shape))  # pyright: ignore
    assert measured(net, torch.randn(12, 6)).activation == "Hardswish()"
    assert {shape[1:] for shape in shapes} == {(8,)}
    assert len(shapes) <= 3  # one sample, the few that are tried, and all


def test_a_prediction_that_fails_does_not_cost_the_measured_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> None:
        raise ZeroDivisionError("float division by zero")

    net, x = Functional(), torch.randn(9, 5)
    right = measured(net, x)
    monkeypatch.setattr("isthmus.probe._propagated_prediction.propagate_signal", failing)
    found = measured(net, x)
    assert found.layers == right.layers
    assert (found.predicted, found.activation) == (None, "")
    assert found.why == "the prediction failed (ZeroDivisionError: float division by zero)"


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.relu(self.first(x))
        return self.last(x + torch.relu(self.second(x)))


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.last = nn.Embedding(11, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.table(x).mean(1))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.middle, self.last = nn.Linear(5, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.middle(torch.relu(self.middle(x)))))


def images() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(144, 3))


@pytest.mark.parametrize(
    ("model", "data", "why"),
    [
        (Residual, torch.randn(8, 5), "not joined by one known activation alone"),
        (images, torch.randn(8, 1, 8, 8), "0 (Conv2d) is no linear layer"),
        (lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3), nn.Softmax(1)), torch.randn(8, 4),
         "the outputs are not what 2 gives"),
        (lambda: nn.Linear(4, 3), torch.randn(8, 4), "there is one layer"),
        (Words, torch.randint(11, (8, 3)), "table (Embedding) is no linear layer"),
        (Twice, torch.randn(8, 5), "middle: it is called 2 times"),
        (lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Flatten(), nn.Linear(18, 2)), torch.randn(8, 3, 5),
         "0 reads 3 rows of each sample, not one"),
    ],
)  # fmt: skip
def test_models_without_a_prediction_say_why(model: Callable[[], nn.Module], data: Tensor, why: str) -> None:
    data = data.double() if data.is_floating_point() else data
    found = measured(model(), data)
    assert found.predicted is None
    assert why in found.why
    for one in found.layers:
        assert (one.forward_loss is None) == ("forward:" in one.note)
        assert (one.backward_correlation is None) == ("backward:" in one.note)


def test_reasons_of_layers_that_have_no_number() -> None:
    words = measured(Words(), torch.randint(11, (8, 3)))
    assert words.layers[0].note == "forward: it does not read one tensor of real numbers"
    assert words.layers[0].backward_correlation is not None
    assert words.equilibrium is None
    assert words.why_no_equilibrium == "fewer than two layers have both a forward loss and a backward correlation"
    twice = measured(Twice(), torch.randn(8, 5))
    assert "it is called 2 times" in twice.layers[0].note
    dead = chain([5, 6, 2], nn.ReLU)
    with torch.no_grad():
        next(dead.children()).bias -= 100  # pyright: ignore[reportOperatorIssue]
    assert measured(dead, torch.randn(8, 5)).layers[1].note == "forward: what it reads is zero at every sample"


def zeroed(model: nn.Module, name: str) -> nn.Module:
    with torch.no_grad():
        model.get_parameter(name).zero_()
    return model


def test_what_is_all_zero_is_said_in_words() -> None:
    x = torch.randn(8, 5)
    inputs = measured(chain([5, 6, 2], nn.ReLU, bias=1.0), torch.zeros(8, 5))
    assert inputs.layers[0].note == "forward: what it reads is zero at every sample"
    assert inputs.why == "0: what it reads is zero at every sample"
    first = measured(zeroed(chain([5, 6, 2], nn.ReLU), "0.weight"), x)
    assert first.why == "the weights of 0 are all zero"
    last = measured(zeroed(chain([5, 6, 2], nn.ReLU), "2.weight"), x)
    assert last.layers[0].note == "backward: the derivatives at what it gives are zero at every sample"
    assert last.predicted is not None
    some = x.clone()
    some[2:] = 0
    text = "what it reads is zero at all but 2 of 8 samples, and a mean over pairs needs 3"
    found = measured(chain([5, 6, 2], nn.ReLU, bias=1.0), some)
    assert (found.layers[0].note, found.why) == (f"forward: {text}", f"0: {text}")


class Unused(nn.Module):
    """A chain beside a layer that nothing calls and one whose weights are used directly."""

    def __init__(self, used: nn.Sequential) -> None:
        super().__init__()
        self.early, self.used, self.late = nn.Linear(4, 4), used, nn.Linear(5, 5)
        self.late.weight = nn.Parameter(torch.eye(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x @ self.late.weight)


def test_layers_that_are_never_called_have_no_place() -> None:
    plain, x = chain([5, *[60] * 8, 3], nn.ReLU), torch.randn(12, 5)
    assert isinstance(plain, nn.Sequential)
    right, found = measured(plain, x), measured(Unused(plain), x)
    assert right.equilibrium is not None
    assert (right.uncalled, set(found.uncalled)) == ((), {"early", "late"})
    assert [one.name for one in found.layers] == [f"used.{one.name}" for one in right.layers]
    assert [one.forward_loss for one in found.layers] == [one.forward_loss for one in right.layers]
    assert found.equilibrium == right.equilibrium
    assert found.predicted is not None
    assert right.predicted is not None
    assert found.predicted.equilibrium == right.predicted.equilibrium
    assert "early is left out: it is never called in a forward pass" in " ".join(found.notes)
    assert measured(Unused(plain), x, layers="early").layers == ()


class Text(nn.Module):
    """Words, and a layer that runs twice, before a deep chain."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.twice, self.chain = nn.Embedding(50, 20), nn.Linear(20, 20), chain([20, *[60] * 8, 3], nn.ReLU)

    def forward(self, x: Tensor) -> Tensor:
        return self.chain(self.twice(self.twice(self.table(x).flatten(1))))


def test_the_crossing_is_of_the_layers_that_have_both_numbers() -> None:
    net, x = Text(), torch.arange(12)[:, None]
    found = measured(net, x)
    rest = measured(net.chain, net.twice(net.twice(net.table(x).flatten(1))).detach())
    assert [one.forward_loss is None for one in found.layers] == [True, True, *[False] * 9]
    assert rest.equilibrium is not None
    assert found.equilibrium == pytest.approx(2 + rest.equilibrium, rel=1e-9)
    assert found.equilibrium_stderr == pytest.approx(rest.equilibrium_stderr, rel=1e-6)


class Between(nn.Module):
    """A chain with layers that run twice in the middle, so that the crossing spans them."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 40), nn.Linear(40, 3)
        self.middle = nn.ModuleList(nn.Linear(40, 40) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.middle:
            x = torch.relu(layer(torch.relu(layer(x))))
        return self.last(x)


def test_a_crossing_over_layers_without_numbers_counts_them() -> None:
    found = measured(Between(4), torch.randn(12, 5))
    ends = [found.layers[0], found.layers[-1]]
    gaps = [one.forward_loss.value - one.backward_correlation.value for one in ends
            if one.forward_loss and one.backward_correlation]  # fmt: skip
    assert gaps[0] > 0 > gaps[1]
    assert found.equilibrium == pytest.approx(5 * gaps[0] / (gaps[0] - gaps[1]))


def test_the_error_of_the_crossing_is_the_jackknife_over_samples() -> None:
    net, x = chain([5, *[40] * 6, 3], nn.ReLU), torch.randn(9, 5)
    found = measured(net, x)
    without = [measured(net, torch.cat([x[:k], x[k + 1 :]])).equilibrium for k in range(9)]
    drawn = torch.tensor(without)
    assert found.equilibrium_stderr == pytest.approx(math.sqrt(8 / 9 * float((drawn - drawn.mean()).square().sum())))
    assert found.equilibrium_stderr is not None
    assert found.equilibrium_stderr > 0


def test_reasons_without_a_crossing() -> None:
    alike = measured(chain([5, 40, 3], nn.ReLU), 100 + torch.randn(9, 5))
    assert alike.why_no_equilibrium == "the forward loss is never above the backward correlation"
    assert (alike.equilibrium, alike.equilibrium_stderr) == (None, None)
    apart = measured(chain([5, 5], nn.ReLU), torch.randn(9, 5))
    assert apart.why_no_equilibrium.startswith("fewer than two layers")


@pytest.mark.slow
def test_the_error_of_the_crossing_is_the_scatter_of_samples_drawn_again() -> None:
    net = chain([20, *[60] * 8, 3], nn.ReLU)
    found = [measured(net, torch.randn(30, 20)) for _ in range(100)]
    scatter = float(torch.tensor([one.equilibrium for one in found]).std())
    claimed = math.sqrt(sum((one.equilibrium_stderr or math.nan) ** 2 for one in found) / len(found))
    assert claimed == pytest.approx(scatter, rel=0.25)


class Shared(nn.Module):
    """Outputs that have a part in common, which mixtures without signs would blow up."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 20), nn.Linear(20, 500)
        nn.init.normal_(self.last.weight)

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x)
        return self.last(z) + 0.2 * torch.relu(z).sum(1, keepdim=True)


def test_many_outputs_are_mixed() -> None:
    net, x = Shared(), torch.randn(10, 6)
    found, again = measured(net, x), measured(net, x)
    assert found.notes == ("derivatives of 64 random mixtures of the 500 outputs",)
    assert found.why == "the outputs are not what last gives"
    rows = net.last.weight.detach() + 0.2 * (net.first(x) > 0)[:, None]
    assert found.layers[0].backward_correlation is not None
    assert found.layers[0].backward_correlation.value == pytest.approx(mean_pair(rows), abs=0.02)
    assert found.layers[0] == again.layers[0]


def test_the_model_comes_back_as_it_was() -> None:
    net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 2)).train()
    net[0].weight.requires_grad_(False)
    net[3].weight.grad = torch.ones(2, 6)
    calls = list[int]()
    net[0].register_forward_hook(lambda *_: calls.append(1))
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    measured(net, torch.zeros(8, 5) + torch.arange(8.0)[:, None])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), net.state_dict().values(), strict=True))
    assert net.training
    assert not net[0].weight.requires_grad
    assert torch.equal(net[3].weight.grad, torch.ones(2, 6))
    assert len(net[0]._forward_hooks) == 1


@pytest.mark.parametrize(
    ("data", "given", "needle"),
    [
        (torch.ones(2, 5), {}, "at least 3, for means over pairs"),
        (torch.ones(1, 5), {}, "at least 3, for means over pairs"),
        (torch.ones(9, 5), {"max_samples": 2}, "at least 3, for means over pairs"),
        (torch.ones(9, 5), {"max_memory": 100}, "max_samples: got 9, expected at most about"),
        (torch.ones(9, 5), {"layers": "nothing"}, "a glob that matches"),
        (torch.full((9, 5), math.nan), {}, "not finite|finite"),
    ],
)
def test_bad_input(data: Tensor, given: dict[str, object], needle: str) -> None:
    with pytest.raises(InputError, match=needle):
        measured(chain([5, 6, 2], nn.ReLU), data.double(), **given)
