from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import curve_fit
from torch import Tensor

from isthmus import InputError
from isthmus.theory import CostFit, fit_cost, linear_cost


def with_singular_values(s: list[float], rows: int, columns: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    u = torch.linalg.qr(torch.randn(rows, rows, generator=g)).Q[:, : len(s)]
    v = torch.linalg.qr(torch.randn(columns, columns, generator=g)).Q[:, : len(s)]
    return u @ torch.diag(torch.tensor(s)) @ v.mT


def least_factorization(matrix: Tensor, depth: int, width: int, seed: int) -> float:
    """`min Σ ‖W_ℓ‖²` over `W_L … W_1 = A`, by descent: `W_1 … W_{L−1}` are free, and `W_L = A (W_{L−1} … W_1)⁺`."""
    g = torch.Generator().manual_seed(seed)
    shapes = [(width, matrix.shape[1]), *[(width, width)] * (depth - 2)]
    layers = [torch.randn(*shape, generator=g).requires_grad_() for shape in shapes]
    descent = torch.optim.LBFGS(
        layers,
        max_iter=400,
        history_size=50,
        tolerance_grad=1e-12,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )

    def cost() -> Tensor:
        product = layers[0]
        for layer in layers[1:]:
            product = layer @ product
        last = torch.linalg.lstsq(product.mT, matrix.mT).solution.mT
        return last.square().sum() + sum(layer.square().sum() for layer in layers)

    def closure() -> Tensor:
        descent.zero_grad()
        value = cost()
        value.backward()
        return value

    descent.step(closure)
    return float(cost().detach())


@pytest.mark.parametrize(
    ("s", "shape", "depth", "width", "reached"),
    [
        ([2.0, 0.5], (2, 2), 2, 2, 1e-6),
        ([3.0, 0.2], (2, 2), 3, 3, 1e-6),
        ([1.5, 0.8, 0.3], (4, 3), 4, 4, 1e-6),
        ([1.0], (3, 1), 3, 2, 1e-6),
        ([2.5, 0.4], (2, 2), 5, 3, 1e-6),
        ([2.0, 0.5], (3, 3), 3, 3, 1e-3),  # of rank 2 of 3: its third direction dies out slowly
    ],
)
def test_no_factorization_that_descent_finds_is_cheaper_and_the_best_costs_the_same(
    s: list[float], shape: tuple[int, int], depth: int, width: int, reached: float
) -> None:
    matrix = with_singular_values(s, *shape)
    found = [least_factorization(matrix, depth, width, seed) for seed in range(2)]
    exact = float(linear_cost(matrix, depth).cost[0])
    assert min(found) == pytest.approx(exact, rel=reached)  # by 400 iterations
    assert min(found) > exact * (1 - 1e-12)


def test_two_layers_cost_twice_the_nuclear_norm_and_one_layer_its_square() -> None:
    matrix = torch.randn(4, 6)
    one, two = linear_cost(matrix, [1, 2]).cost.tolist()
    assert one == pytest.approx(float(matrix.square().sum()))
    assert two == pytest.approx(2 * float(torch.linalg.matrix_norm(matrix, "nuc")))


def test_terms_of_a_map_of_rank_two() -> None:
    found = linear_cost(with_singular_values([3.0, 0.5], 4, 5), [7])
    assert found.rank == 2
    assert found.first == pytest.approx(2 * math.log(1.5))
    assert found.second == pytest.approx(2 * (math.log(3) ** 2 + math.log(0.5) ** 2))


def test_half_the_input_has_a_negative_first_term() -> None:
    assert linear_cost(torch.tensor([[0.5]]), 1).first == pytest.approx(-2 * math.log(2))


def slope_in_depth(depths: Tensor, values: Tensor) -> float:
    return float((values[-1] / values[-2]).abs().log() / (depths[-1] / depths[-2]).log())


def test_remainders_fall_as_the_first_and_the_second_power_of_depth() -> None:
    found = linear_cost(with_singular_values([3.0, 0.5, 0.9], 3, 3), [2**j for j in range(4, 13)])
    after_first = found.cost - found.depths * found.rank - found.first
    assert slope_in_depth(found.depths, after_first) == pytest.approx(-1, abs=2e-3)
    assert slope_in_depth(found.depths, found.remainder) == pytest.approx(-2, abs=2e-3)
    third = 4 / 3 * sum(math.log(s) ** 3 for s in (3.0, 0.5, 0.9))
    assert float(found.remainder[-1] * found.depths[-1] ** 2) == pytest.approx(third, rel=1e-3)


@given(
    st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=4),
    st.lists(st.integers(1, 2000), min_size=1, max_size=4),
)
@settings(deadline=None)
def test_terms_and_remainder_add_up_to_the_cost(s: list[float], depths: list[int]) -> None:
    found = linear_cost(torch.diag(torch.tensor(s, dtype=torch.float64)), depths)
    total = found.depths * found.rank + found.first + found.second / found.depths + found.remainder
    size = found.cost + found.depths * found.rank + abs(found.first) + found.second / found.depths
    assert bool(((total - found.cost).abs() <= 1e-13 * size).all())


def test_remainder_is_accurate_where_the_difference_has_lost_its_digits() -> None:
    depth = 10**6
    t = 2 * math.log(3) / depth
    exact = depth * (t**3 / 6 + t**4 / 24 + t**5 / 120)
    assert float(linear_cost(torch.tensor([[3.0]]), depth).remainder[0]) == pytest.approx(exact, rel=1e-13)


@pytest.mark.parametrize("t", [-3.0, -1.0000001, -0.9999999, 0.9999999, 1.0000001, 5.0])
def test_remainder_has_no_seam_between_series_and_difference(t: float) -> None:
    found = linear_cost(torch.tensor([[math.exp(t / 2)]]), 1).remainder[0]
    exact = sum(t**j / math.factorial(j) for j in range(3, 60))
    assert float(found) == pytest.approx(exact, rel=1e-13)


def test_rounding_noise_costs_nothing_at_great_depth() -> None:
    matrix = with_singular_values([2.0, 1.0], 30, 30)  # its other 28 singular values are about 1e-16
    found = linear_cost(matrix, 1000)
    assert found.rank == 2
    assert float(found.cost[0]) == pytest.approx(1000 * (2**0.002 + 1))
    assert linear_cost(matrix, 1000, tolerance=0.7).rank == 1


def test_a_zero_map_costs_nothing() -> None:
    found = linear_cost(torch.zeros(2, 3), [1, 5])
    assert (found.rank, found.first, found.second) == (0, 0, 0)
    assert found.cost.tolist() == found.remainder.tolist() == [0, 0]


def test_weights_of_linear_map_in_single_precision_and_with_gradient_are_left_alone() -> None:
    matrix = torch.eye(2, dtype=torch.float32, requires_grad=True)
    found = linear_cost(matrix, 3)
    assert float(found.cost[0]) == 6
    assert not found.cost.requires_grad


def cost_model(depth: np.ndarray, rank: float, first: float, second: float) -> np.ndarray:
    return rank * depth + first + second / depth


@pytest.mark.parametrize("with_errors", [True, False])
def test_fit_agrees_with_a_general_purpose_fit(with_errors: bool) -> None:
    rng = np.random.default_rng(3)
    depths = np.repeat([4.0, 8, 16, 32, 64], 3)
    errors = rng.uniform(0.05, 0.4, depths.size)
    costs = cost_model(depths, 3, 2.5, 4) + errors * rng.standard_normal(depths.size)
    given_errors = errors if with_errors else None
    values, covariance = curve_fit(cost_model, depths, costs, sigma=given_errors, absolute_sigma=with_errors)
    ours = fit_cost(depths.tolist(), costs.tolist(), None if given_errors is None else given_errors.tolist())
    # curve_fit differentiates numerically: about 1e-7 of each number
    assert ours.values.numpy() == pytest.approx(values, rel=1e-5)
    assert ours.covariance.numpy() == pytest.approx(covariance, rel=1e-5)
    assert ours.stderr.numpy() == pytest.approx(np.sqrt(np.diag(covariance)), rel=1e-5)
    assert ours.residuals.numpy() == pytest.approx(costs - cost_model(depths, *values), abs=1e-5)
    assert ours.degrees_of_freedom == 12
    assert (ours.chi_squared is not None) == with_errors


def test_errors_of_values_and_of_slopes_are_their_scatter_over_repetitions() -> None:
    g = torch.Generator().manual_seed(1)
    depths = torch.tensor([8.0, 16.0, 32.0, 64.0])
    stderr = torch.tensor([0.1, 0.2, 0.1, 0.3])
    costs = 2 * depths + 3 + 5 / depths
    fits: list[CostFit] = [fit_cost(depths, costs + stderr * torch.randn(4, generator=g), stderr) for _ in range(1000)]
    scatter = torch.stack([f.values for f in fits])
    assert torch.allclose(scatter.T.cov(), fits[0].covariance, rtol=0.2)  # 1000 repetitions: 4 standard errors
    assert bool(((scatter.mean(0) - torch.tensor([2.0, 3.0, 5.0])).abs() < 4 * fits[0].stderr / 1000**0.5).all())
    slopes = torch.stack([f.slope for f in fits])
    assert torch.allclose(slopes.std(0), fits[0].slope_stderr, rtol=0.1)
    assert torch.allclose(slopes.mean(0), 2 - 5 / depths**2, rtol=0, atol=4 * float(slopes.std(0).max()) / 1000**0.5)
    chi_squared = [f.chi_squared for f in fits]
    assert sum(c for c in chi_squared if c is not None) / 1000 == pytest.approx(1, abs=0.2)  # one degree of freedom


def test_fit_of_exact_costs_of_linear_maps_recovers_their_terms() -> None:
    depths = [2**j for j in range(6, 11)]
    exact = linear_cost(with_singular_values([1.5, 0.7, 0.9], 3, 3), depths)
    fit = fit_cost(depths, exact.cost)
    assert fit.values.tolist() == pytest.approx([exact.rank, exact.first, exact.second], rel=2e-3)
    assert fit.slope.tolist() == pytest.approx([exact.rank - exact.second / d**2 for d in depths], rel=1e-6)


def test_three_depths_are_enough_where_errors_are_given() -> None:
    fit = fit_cost([1, 2, 4], [4.0, 4.5, 6.25], [0.1, 0.1, 0.1])  # L + 2 + 1/L
    assert fit.values.tolist() == pytest.approx([1, 2, 1])
    assert (fit.degrees_of_freedom, fit.chi_squared) == (0, pytest.approx(0, abs=1e-20))


@pytest.mark.parametrize(
    ("call", "needle"),
    [
        (lambda: linear_cost(torch.tensor([[math.nan]]), 2), "matrix.*finite"),
        (lambda: linear_cost(torch.zeros(0, 3), 2), "matrix.*at least one entry"),
        (lambda: linear_cost(torch.eye(2), 0), "depths: got 0"),
        (lambda: linear_cost(torch.eye(2), []), "at least one depth"),
        (lambda: linear_cost(torch.eye(2), [3, -1]), "whole number ≥ 1"),
        (lambda: linear_cost(torch.eye(2), 2, tolerance=1), "tolerance"),
        (lambda: fit_cost([8, 16], [1, 2], [1, 1]), "at least 3 different depths.*these are 2"),
        (lambda: fit_cost([8, 8, 16, 16], [1, 2, 3, 4]), "at least 3 different depths"),
        (lambda: fit_cost([8, 16, 32], [1, 2, 3]), "at least 4 pairs where no stderr is given.*give stderr"),
        (lambda: fit_cost([8, 16, 32], [1, 2]), "costs.*3 of them"),
        (lambda: fit_cost([8, 16, 0], [1, 2, 3]), "depths.*> 0"),
        (lambda: fit_cost([8, 16, 32], [1, math.inf, 3]), "costs.*finite"),
        (lambda: fit_cost([8, 16, 32], [1, 2, 3], [0.1, 0.0, 0.1]), "stderr.*> 0"),
        (lambda: fit_cost(torch.ones(2, 2), torch.ones(4)), "(?s)depths.*a list"),
    ],
)
def test_bad_input(call: Callable[[], object], needle: str) -> None:
    with pytest.raises(InputError, match=needle):
        call()


def test_cost_is_never_below_that_of_a_random_factorization() -> None:
    for seed, depth in itertools.product(range(20), (2, 3, 6)):
        g = torch.Generator().manual_seed(seed)
        layers = [torch.randn(3, 3, generator=g) for _ in range(depth)]
        product = layers[0]
        for layer in layers[1:]:
            product = layer @ product
        assert float(linear_cost(product, depth).cost[0]) <= float(sum(w.square().sum() for w in layers))
