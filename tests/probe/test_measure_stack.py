"""A model with a leaky stack: moves, speeds and energies against those of stored states and of a Leaky ResNet."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from torch import Tensor, nn

from isthmus import InputError, LeakyResNet, measure
from isthmus.models import LeakyStack, convert
from isthmus.probe import Measurement, measure_path
from isthmus.probe._stacks import ENERGIES, OF_MOMENTA

RHO = torch.tensor([0.1, 0.2, 0.3, 0.15, 0.25], dtype=torch.float64)
QUICK: dict[str, Any] = {"progress": False, "jacobian_samples": 0, "alignment_samples": 0}


def fully_connected(*, bias: bool = True) -> tuple[LeakyResNet, nn.Sequential]:
    """A Leaky ResNet, and the same network as a model with a leaky stack."""
    net = LeakyResNet(4, 3, width=6, depth=5, effective_depth=2.0, bias=bias, input_map="learned", seed=1)
    net.set_layer_steps(RHO)
    blocks = [nn.Sequential(nn.ReLU(), nn.Linear(6, 6, bias=bias)) for _ in range(5)]
    enter, out = nn.Linear(4, 6, bias=False), nn.Linear(6, 3, bias=False)
    with torch.no_grad():
        enter.weight.copy_(net.input_matrix)
        out.weight.copy_(net.output_matrix)
        for index, block in enumerate(blocks):
            linear: Any = block[1]
            linear.weight.copy_(net.weight[index])
            if net.bias is not None:
                net.bias[index] = linear.bias
    stack = LeakyStack(blocks, effective_depth=2.0)
    stack.set_layer_steps(RHO)
    return net, nn.Sequential(enter, stack, out)


def values(found: Measurement, metric: str, **where: Any) -> list[float]:
    return found.table.filter(pl.col("status") == "ok").filter(metric=metric, **where)["value"].to_list()


@pytest.mark.parametrize("bias", [True, False])
def test_energies_are_those_of_a_leaky_resnet(bias: bool) -> None:
    net, model = fully_connected(bias=bias)
    x = torch.randn(40, 4)
    expected = measure_path(net, x, jacobian_samples=0).geometry
    energies = expected.energies[expected.gamma0]
    found = measure(model, x, batch_size=16, **QUICK)
    for metric, values_expected in (
        ("relative_move", expected.relative_move), ("path_speed", expected.speed), ("layer_step", RHO),
        ("kinetic_energy", energies.kinetic), ("hamiltonian_stable", energies.stable),
        ("hamiltonian_rank_stable", energies.stable_rank_estimate),
        ("path_length", torch.tensor([energies.path_length])),
    ):  # fmt: skip
        got = torch.tensor(values(found, metric))
        torch.testing.assert_close(
            got, values_expected, rtol=1e-7, atol=1e-9, msg=lambda m, metric=metric: f"{metric}: {m}"
        )
    rows = found.table.filter(metric="kinetic_energy")
    assert rows["layer"].to_list() == [f"1.{i}" for i in range(5)]
    assert rows["index"].to_list() == found.table.filter(metric="path_speed")["index"].to_list()
    assert rows["note"].unique().to_list() == ["gamma0=0.001"]
    skipped = found.table.filter(pl.col("metric").is_in(OF_MOMENTA))
    assert set(skipped["metric"]) == set(OF_MOMENTA)
    assert all("momenta" in note for note in skipped["note"])


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True, dropout=0.0)
    return nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)


def test_any_stack_has_moves_and_speeds_and_says_why_it_has_no_energies() -> None:
    model = convert(encoder(), "layers.*", effective_depth=1.0, steps="adaptive")
    x = torch.randn(10, 5, 8)
    model.layers.update_steps(x)
    states: list[Tensor] = [x]
    for block in model.eval().layers:
        states.append(block(states[-1]))
    moves = torch.stack([(b - a).norm() / b.norm() for a, b in itertools.pairwise(states)]).detach()
    found = measure(model, x, **QUICK)
    torch.testing.assert_close(torch.tensor(values(found, "relative_move")), moves, rtol=1e-6, atol=0)
    speeds = torch.tensor(values(found, "path_speed"))
    torch.testing.assert_close(speeds, moves / model.layers.layer_steps, rtol=1e-6, atol=0)
    assert found.table.filter(metric="path_speed")["layer"].to_list() == [f"layers.{i}" for i in range(4)]
    skipped = found.table.filter(pl.col("metric").is_in([*ENERGIES, *OF_MOMENTA]))
    assert set(skipped["metric"]) == {*ENERGIES, *OF_MOMENTA}
    assert skipped["status"].unique().to_list() == ["skipped"]
    assert all("here f is what a block adds to its input" in note for note in skipped["note"])
    assert skipped["layer"].unique().to_list() == ["layers"]


@pytest.mark.parametrize("inner", [lambda: [nn.Linear(6, 6)], lambda: [nn.Tanh(), nn.Identity(), nn.Tanh()]])
def test_one_block_and_blocks_without_weights_have_speeds_too(inner: Callable[[], list[nn.Module]]) -> None:
    stack = LeakyStack(inner(), effective_depth=0.0)
    model, x = nn.Sequential(nn.Linear(6, 6), stack, nn.Linear(6, 2)), torch.randn(10, 6)
    states: list[Tensor] = [model[0](x).detach()]
    for block in stack:
        states.append(block(states[-1]).detach())
    speeds = [float((b - a).norm() / b.norm()) * len(stack) for a, b in itertools.pairwise(states)]
    found = measure(model, x, **QUICK)
    assert values(found, "path_speed") == pytest.approx(speeds, rel=1e-6)


def test_a_model_with_a_stack_comes_back_as_it_was_and_has_a_baseline() -> None:
    _, model = fully_connected()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x, y = torch.randn(30, 4), torch.randint(3, (30,))
    found = measure(model, (x, y), loss="cross_entropy", baseline="init", progress=False, alignment_samples=16)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert (
        len(values(found, "path_speed", baseline="init")) == len(values(found, "kinetic_energy", baseline="init")) == 5
    )
    assert values(found, "kinetic_energy", baseline="init") != values(found, "kinetic_energy", baseline="")
    assert len(values(found, "alignment", baseline="")) >= 5


@pytest.mark.slow
def test_a_model_with_a_stack_has_a_page(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    measure(fully_connected()[1], torch.randn(30, 4), **QUICK).report(page)
    assert "path_speed" in page.read_text(encoding="utf-8")


class Parent(nn.Module):
    """Goes through the blocks itself, and may do something in between."""

    def __init__(self, stack: LeakyStack, shift: float) -> None:
        super().__init__()
        self.stack, self.shift = stack, shift

    def forward(self, x: Tensor) -> Tensor:
        for block in self.stack:
            x = block(x) + self.shift
        return x


class Padded(nn.Module):
    def __init__(self, stack: LeakyStack) -> None:
        super().__init__()
        self.stack = stack

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        return self.stack(x)


def blocks(count: int = 3, **settings: Any) -> list[nn.Module]:
    return [nn.Sequential(nn.ReLU(), nn.Linear(6, 6, **settings)) for _ in range(count)]


class Unused(nn.Module):
    def __init__(self, stack: LeakyStack) -> None:
        super().__init__()
        self.stack, self.linear = stack, nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (lambda: LeakyStack(blocks(), effective_depth=0.0), "here L̃ = 0"),
        (lambda: LeakyStack([nn.Linear(6, 6), *blocks()], effective_depth=1.0), "here block 0 is a Linear"),
        (lambda: LeakyStack([*blocks(), *blocks(1, bias=False)], effective_depth=1.0), "some blocks have a bias"),
        (lambda: Parent(LeakyStack(blocks(), effective_depth=1.0), 0.5), "not called one after the other"),
        (lambda: Unused(LeakyStack(blocks(), effective_depth=1.0)), "never called"),
    ],
)
def test_reasons_why_there_are_no_energies(model: Any, why: str) -> None:
    found = measure(model(), torch.randn(20, 6), **QUICK)
    rows = found.table.filter(pl.col("metric").is_in(ENERGIES))
    assert set(rows["metric"]) == set(ENERGIES)
    assert all(why in note for note in rows["note"]), rows["note"].to_list()


def test_along_a_path_of_the_model_there_are_no_energies_of_blocks() -> None:
    model = Parent(LeakyStack(blocks(), effective_depth=1.0), 0.0)

    def path(x: Tensor) -> list[Tensor]:
        return list(itertools.accumulate(model.stack, lambda state, block: block(state), initial=x))

    found = measure(model, torch.randn(20, 6), path=path, **QUICK)
    rows = found.table.filter(pl.col("metric").is_in(ENERGIES))
    assert set(rows["note"]) == {"a path is measured: measure modules with path=False"}
    assert set(rows["layer"]) == {"stack"}
    assert len(values(found, "relative_move")) == 3
    assert values(measure(model, torch.randn(20, 6), path=False, **QUICK), "kinetic_energy")


@pytest.mark.parametrize("later", [False, True])
def test_energies_do_not_count_padding(later: bool) -> None:
    model = Padded(LeakyStack(blocks(), effective_depth=1.0))
    mask = (torch.arange(5)[None] < torch.tensor([5, 3, 4, 2])[:, None]).long()
    full = {"x": torch.randn(4, 5, 6), "attention_mask": torch.ones_like(mask)}
    found = measure(model, [full] * later + [{"x": torch.randn(4, 5, 6), "attention_mask": mask}], **QUICK)
    assert values(found, "observations", layer="stack.0") == [14 + 20 * later]
    rows = found.table.filter(pl.col("metric").is_in(ENERGIES))
    assert set(rows["note"]) == {"the batches are padded"}


def test_a_parent_that_goes_through_the_blocks_itself_gives_the_same_energies() -> None:
    stack = LeakyStack(blocks(), effective_depth=1.0)
    x = torch.randn(20, 6)
    whole, single = (measure(m, x, **QUICK) for m in (stack, Parent(stack, 0.0)))
    assert values(whole, "kinetic_energy") == values(single, "kinetic_energy")
    assert whole.table.filter(metric="kinetic_energy")["layer"].to_list() == ["0", "1", "2"]


def test_energies_of_a_stack_in_half_precision_are_those_of_its_path_in_float64() -> None:
    model = fully_connected()[1].bfloat16()
    x = torch.randn(40, 4, dtype=torch.bfloat16)
    found, exact = measure(model, x, **QUICK), measure(copy.deepcopy(model).double(), x.double(), **QUICK)
    for metric in ENERGIES:
        got, expected = (torch.tensor(values(one, metric)) for one in (found, exact))
        torch.testing.assert_close(got, expected, rtol=0.05, atol=0.05 * float(expected.abs().max()))


def test_states_that_are_not_finite_do_not_end_the_measurement() -> None:
    x = torch.randn(20, 6)
    x[3, 2] = 1e308
    model = nn.Sequential(LeakyStack(blocks(), effective_depth=1.0), nn.Tanh(), nn.Linear(6, 6))
    rows = measure(model, x, layers=["1", "2"], **QUICK).table.filter(metric="kinetic_energy")
    assert rows["status"].to_list() == ["skipped"]
    assert "not finite" in rows["note"][0]


def test_metrics_of_a_stack_can_be_asked_for_where_there_is_one() -> None:
    _, model = fully_connected()
    x = torch.randn(20, 4)
    found = measure(model, x, metrics=["path_speed"], **QUICK)
    assert set(found.table["metric"]) == {"path_speed", "observations"}
    assert set(measure(model, x, metrics=["kinetic_energy"], **QUICK).table["metric"]) == {
        "kinetic_energy",
        "observations",
    }
    with pytest.raises(InputError, match="metrics: got path_speed"):
        measure(encoder(), torch.randn(3, 5, 8), metrics=["path_speed"], **QUICK)
