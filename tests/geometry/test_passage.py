"""Breaks of spectra, and the narrow passage they add up to."""

from __future__ import annotations

import math

import pytest
import torch

from isthmus.geometry import Node, WeightNode, find_passage, random_gap, widest_gap


def spectrum(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_widest_gap() -> None:
    found = widest_gap(spectrum(8, 4, 1, 0.5, 0.4, 0.3))
    assert (found.k, found.ratio) == (2, 4.0)
    assert found.lead == pytest.approx(math.log(4) / math.log(2))
    assert widest_gap(spectrum(8, 7, 6, 5, 1, 1)).k != 4  # only the first half is looked at
    assert widest_gap(spectrum(8, 7, 6, 5, 1, 1), most=5).k == 4
    assert widest_gap(spectrum(1, 1, 0, 0)).ratio == math.inf
    assert widest_gap(spectrum(1, 0.5, 1e-3, 1e-6), most=3).k == 2  # below 1% of the largest is noise
    assert widest_gap(spectrum(1, 0.5, 1e-4, 1e-4), floor=0.25).ratio == 2.0
    assert widest_gap(spectrum(0.1, 0.0, 0.0, 0.0), floor=0.2).k == 0
    assert widest_gap(spectrum(3)).k == 0
    assert widest_gap(torch.zeros(4, dtype=torch.float64)).k == 0
    assert widest_gap(spectrum(2, 2, 2, 2)).k == 0


@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (16, 16), (48, 48), (10, 100), (96, 32), (5, 200)])
def test_random_gap_is_passed_by_chance_once_in_a_thousand(rows: int, columns: int) -> None:
    torch.manual_seed(rows * columns)
    draws = torch.linalg.svdvals(torch.randn(600, rows, columns))
    ratios = torch.tensor([widest_gap(s).ratio for s in draws])
    above = int((ratios > random_gap(rows, columns)).sum())
    assert above <= 4  # of 600, where 0.6 are expected: five or more have a chance below 1e-3
    assert float(ratios.max()) > 1 + 0.2 * (random_gap(rows, columns) - 1)  # and the bound is not idle


def nodes(spectra: list[torch.Tensor], width: int = 40) -> list[Node]:
    return [Node(f"layer{i}", float(2 * i), width, s, 1000, float(s[0])) for i, s in enumerate(spectra)]


def flat(width: int = 40) -> torch.Tensor:
    return torch.linspace(1.0, 0.5, width, dtype=torch.float64)


def broken(k: int, factor: float, width: int = 40) -> torch.Tensor:
    s = flat(width)
    return torch.where(torch.arange(width) < k, s, s / factor)


def weight(at: float, s: torch.Tensor, shape: tuple[int, int] = (40, 40)) -> WeightNode:
    return WeightNode(f"w{at:g}", at, shape, s)


def test_a_run_that_the_weights_confirm() -> None:
    run = nodes([flat(), broken(3, 4), broken(3, 9), flat()])
    found = find_passage(run, [weight(1, flat()), weight(3, broken(3, 2)), weight(99, broken(3, 9))])
    assert found.found
    assert (found.k, found.first, found.last, found.before) == (3, 1, 2, 40)
    assert found.weights == ("w3",)  # not the one far behind the run
    assert found.counted == 2
    assert found.gap == pytest.approx(9, rel=0.05)
    assert found.evidence == 2


def test_a_run_alone_proves_nothing() -> None:
    run = nodes([flat(), broken(3, 4), broken(3, 9), flat()])
    found = find_passage(run, [weight(3, flat())])
    assert not found.found
    assert "layer1 to layer2 breaks off at 3" in found.reason
    assert not find_passage(run, [weight(3, broken(4, 9))]).found  # at another number
    assert not find_passage(run, [weight(3, broken(3, random_gap(40, 40) * 0.95))]).found  # no more than chance does


def test_the_jacobian_is_further_evidence_if_it_breaks_off_clearly() -> None:
    run, weights = nodes([flat(), broken(3, 4), flat()]), [weight(1, broken(3, 2))]
    clear = spectrum(0, -0.1, -0.2, -3, -3.1, -3.2)
    found = find_passage(run, weights, clear)
    assert found.jacobian == pytest.approx(math.exp(2.8), rel=1e-4)
    assert found.evidence == 3
    assert find_passage(run, weights, spectrum(0, -1, -2, -3.5, -4.5, -5.5)).jacobian is None  # evenly spread
    assert find_passage(run, weights, spectrum(0, -0.1, -0.15, -0.6, -0.61, -0.62)).jacobian is None  # by less than 2
    assert find_passage(run, weights, spectrum(0, -3, -3.1, -3.2)).jacobian is None  # after 1
    assert find_passage(run, weights, spectrum(-math.inf, -math.inf)).jacobian is None
    alone = find_passage(run, [], clear)
    assert not alone.found
    assert "though the Jacobian does" in alone.reason


def test_what_is_given_is_not_the_networks_work() -> None:
    run = nodes([broken(3, 9), broken(3, 9), flat()])
    run[0] = Node("data", 0.0, 40, broken(3, 9), 1000, 1.0, given=True)
    found = find_passage(run, [weight(1, broken(3, 2))])
    assert not found.found
    assert "data breaks off at 3 before the network has done anything" in found.reason
    assert find_passage(run[1:], [weight(3, broken(3, 2))]).found


def test_a_layer_built_narrow_is_said_to_be() -> None:
    run = nodes([flat(), broken(3, 1e6), flat()])
    found = find_passage(run, [weight(1, flat(3), (3, 40))])
    assert found.found
    assert found.built == "w1"
    assert not find_passage(run, [weight(3, flat(3), (3, 40))]).found  # it stands behind the run and narrows nothing


def test_no_narrower_than_what_comes_in() -> None:
    run = nodes([broken(5, 1e9), broken(5, 1e9), broken(5, 1e9)])
    found = find_passage(run, [weight(1, broken(5, 9))])
    assert not found.found
    assert "after 5 dimensions, of 5 that came in" in found.reason


def test_what_rounding_left_is_no_evidence() -> None:
    """A representation that is constant up to float32: its centred part is noise."""
    noise = torch.where(torch.arange(40) < 2, 1e-4, 1e-9).double()
    constant = [Node("a", 0, 40, flat(), 1000, 1.0), Node("b", 1, 40, noise, 1000, 1.0)]
    assert not find_passage(constant, [weight(0.5, broken(2, 9))]).found


def test_too_little_to_say() -> None:
    assert "fewer than two" in find_passage(nodes([flat()]), []).reason
    assert "no representation" in find_passage(nodes([flat(), flat()]), []).reason
    few = [Node("a", 0, 40, flat(), 3, 1.0), Node("b", 1, 40, broken(5, 99), 3, 1.0)]
    assert not find_passage(few, [weight(0.5, broken(5, 9))]).found  # three observations cannot show five dimensions
