from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from isthmus import InputError
from isthmus.geometry import RowSpace, identity_cost
from tests_support import moments_of, relu_features


def dense_norm_sq(m: Tensor, s: Tensor, gamma: float) -> float:
    """`Tr[M (SᵀS + γI)⁻¹ Mᵀ]` by a solve with the N × N matrix."""
    k = s.T @ s + gamma * torch.eye(s.shape[1])
    return float((m * torch.linalg.solve(k, m.T).T).sum())


@pytest.mark.parametrize("gamma0", [1e-1, 1e-3, 1e-6])
def test_stabilised_cost_equals_the_dense_formula(random_path: tuple[Tensor, Tensor, Tensor], gamma0: float) -> None:
    a, s, _ = random_path
    moments = moments_of(a, s, batches=3)
    space = RowSpace.of(moments.feature_gram, eps=moments.product_eps)
    ours = space.stabilised_norm_sq(moments.cross, moments.norm_sq, gamma0)
    for node in range(a.shape[0]):
        gamma = gamma0 * float(torch.linalg.matrix_norm(s[node], 2)) ** 2
        # Both sides lose eps/γ₀ to rounding (docs/theory 1.4: 1e-11 at γ₀ = 1e-6).
        assert float(ours[node]) == pytest.approx(dense_norm_sq(a[node], s[node], gamma), rel=1e-15 / gamma0 + 1e-12)


def test_stabilised_cost_when_samples_are_fewer_than_dimensions() -> None:
    a = torch.randn(9, 4)
    s = relu_features(a)
    gamma0 = 1e-3
    moments = moments_of(a.expand(2, 9, 4), s.expand(2, 10, 4))
    space = RowSpace.of(moments.feature_gram, eps=moments.product_eps)
    gamma = gamma0 * float(torch.linalg.matrix_norm(s, 2)) ** 2
    ours = float(space.stabilised_norm_sq(moments.cross, moments.norm_sq, gamma0)[0])
    assert ours == pytest.approx(dense_norm_sq(a, s, gamma), rel=1e-11)  # rounding of S Sᵀ over γ₀


def test_exact_cost_is_the_least_squares_weight() -> None:
    # Oracle: the minimal-norm W with W S = A, by LAPACK's gelsd, which knows nothing of second moments.
    a = torch.randn(6, 5)  # 5 samples in 6 dimensions: almost surely A lies in the row space of S
    s = relu_features(a)
    w = torch.linalg.lstsq(s.T, a.T, driver="gelsd").solution.T
    assert float((w @ s - a).abs().max()) < 1e-12
    cost = identity_cost(a.T, s.T)
    assert bool(cost.finite)
    assert float(cost.exact) == pytest.approx(float(w.square().sum()), rel=1e-9)  # condition of S squared, times eps


def test_cost_counts_dimensions_of_a_non_negative_representation() -> None:
    a = torch.rand(10, 3) @ torch.rand(3, 200)
    without_bias = identity_cost(a.T, a.T)
    assert bool(without_bias.finite)
    assert float(without_bias.exact) == pytest.approx(3, abs=1e-6)
    # With the appended 1 outside the row space of A it is still the rank …
    with_bias = identity_cost(a.T, relu_features(a).T)
    assert float(with_bias.exact) == pytest.approx(3, abs=1e-6)
    # … and where 1 lies in the row space of A it is rank − ‖a‖²/(1 + ‖a‖²), a = (Aᵀ)⁺1 (docs/theory 1.4).
    a[0] = 2.0
    a = torch.rand(10, 1) @ torch.full((1, 200), 1.5) + torch.rand(10, 2) @ torch.rand(2, 200)
    ones = torch.ones(200, 1)
    coefficient = torch.linalg.lstsq(a.T, ones, driver="gelsd").solution
    norm_sq = float(coefficient.square().sum())
    cost = identity_cost(a.T, relu_features(a).T)
    assert float(cost.exact) == pytest.approx(3 - norm_sq / (1 + norm_sq), abs=1e-6)


def test_infinite_cost_is_said_to_be_infinite() -> None:
    a = torch.randn(8, 100)
    cost = identity_cost(a.T, relu_features(a).T)
    projector = torch.linalg.pinv(relu_features(a)) @ relu_features(a)
    assert not bool(cost.finite)
    expected = float(torch.linalg.norm(a - a @ projector) / torch.linalg.norm(a))
    assert float(cost.residual) == pytest.approx(expected, rel=1e-9)


@given(st.integers(0, 10_000))
def test_lower_bounds_of_the_cost(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    a = torch.rand(5, 3, generator=g, dtype=torch.float64) @ torch.rand(3, 20, generator=g, dtype=torch.float64)
    norm_sq = float(a.square().sum())
    nuclear = float(torch.linalg.matrix_norm(a, "nuc"))
    assert float(identity_cost(a.T, a.T).exact) >= nuclear**2 / norm_sq * (1 - 1e-9)
    with_bias = identity_cost(a.T, relu_features(a).T)
    assert float(with_bias.exact) >= nuclear**2 / (norm_sq + 20) * (1 - 1e-9)


@given(st.integers(0, 10_000), st.sampled_from([1e-2, 1e-4]))
def test_rotation_of_samples_and_monotone_in_gamma(seed: int, gamma0: float) -> None:
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(4, 12, generator=g, dtype=torch.float64)
    s = relu_features(a)
    q, _ = torch.linalg.qr(torch.randn(12, 12, generator=g, dtype=torch.float64))
    plain = float(identity_cost(a.T, s.T, gamma0=gamma0).stabilised)
    rotated = float(identity_cost((a @ q).T, (s @ q).T, gamma0=gamma0).stabilised)
    assert rotated == pytest.approx(plain, rel=1e-14 / gamma0)
    assert float(identity_cost(a.T, s.T, gamma0=2 * gamma0).stabilised) < plain


def test_float32_products_are_good_to_their_rounding_over_gamma0() -> None:
    a = torch.randn(500, 20)
    s = relu_features(a.T).T
    exact = float(identity_cost(a, s, gamma0=1e-3).stabilised)
    single = float(identity_cost(a.float(), s.float(), gamma0=1e-3).stabilised)
    assert single == pytest.approx(exact, rel=1e-6 / 1e-3)


def test_a_zero_representation_costs_nothing() -> None:
    zero = torch.zeros(4, 3)
    cost = identity_cost(zero, zero)
    assert float(cost.stabilised) == 0
    assert float(cost.exact) == 0


@pytest.mark.parametrize(
    ("a", "s", "gamma0", "needle"),
    [
        (torch.zeros(0, 3), torch.zeros(0, 3), 1e-3, "at least one"),
        (torch.zeros(4, 3), torch.zeros(5, 3), 1e-3, "as many samples"),
        (torch.full((4, 3), math.nan), torch.zeros(4, 3), 1e-3, "not finite"),
        (torch.ones(4, 3), torch.ones(4, 3), 0.0, "gamma0: got 0.0"),
    ],
)
def test_bad_input(a: Tensor, s: Tensor, gamma0: float, needle: str) -> None:
    with pytest.raises(InputError, match=needle):
        identity_cost(a, s, gamma0=gamma0)
