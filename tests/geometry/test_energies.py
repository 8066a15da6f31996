from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from isthmus import InputError
from isthmus.geometry import (
    PathGeometry,
    RowSpace,
    balance_residual,
    hamiltonians,
    kinetic_energy,
    path_geometry,
    path_speed,
    rank_bounds,
    relative_move,
    stationarity,
)
from isthmus.theory import LinearGeodesic, linear_geodesic
from tests_support import moments_of, relu_features

LT = 4.0


def geodesic(depth: int, n: int = 12, width: int = 5) -> LinearGeodesic:
    g = torch.Generator().manual_seed(3)
    q, _ = torch.linalg.qr(torch.randn(width, width, generator=g))
    log_map = q @ torch.diag(torch.tensor([1.2, 0.7, -0.4, 0.1, -1.1])) @ q.T
    x = torch.randn(width, n, generator=g)
    return linear_geodesic(x, 0.5 * (log_map + log_map.T), depth=depth, effective_depth=LT, ridge=1e-3)


def geometry_of(geo: LinearGeodesic, gamma0: float = 1e-12) -> PathGeometry:
    depth = geo.path.shape[0] - 1
    moments = moments_of(geo.path, geo.path, geo.momenta, batches=4)
    weight = geo.weight.expand(depth, -1, -1)
    rho = torch.full((depth,), 1 / depth)
    return path_geometry(moments, weight=weight, layer_steps=rho, effective_depth=LT, has_bias=False, gamma0s=(gamma0,))


def test_discrete_closed_form_to_rounding() -> None:
    geo = geodesic(depth=10)
    found = geometry_of(geo)
    assert found.hamiltonians is not None
    assert found.stationarity is not None
    tol = 1e-10
    assert torch.allclose(found.hamiltonians.pair, torch.full((10,), geo.hamiltonian), rtol=0, atol=tol)
    rank = found.hamiltonians.rank(found.hamiltonians.pair)
    assert torch.allclose(rank, torch.full((10,), geo.hamiltonian_rank), rtol=0, atol=tol)
    cost = found.cost[1e-12]
    assert torch.allclose(cost.exact, torch.full((11,), geo.cost_of_identity), rtol=0, atol=tol)
    # ∂_pA = Λ A_{ℓ−1} exactly, so the kinetic energy is the continuum's at every step; γ₀ = 1e-12 costs up to 4e-6
    # of rounding (docs/theory 1.4), so the exact norm of the moved part is what is compared at 1e-10.
    moments = moments_of(geo.path, geo.path)
    space = RowSpace.of(moments.feature_gram, eps=moments.product_eps)[:-1]
    exact, outside = space.exact_norm_sq(moments.moved_cross, moments.moved_norm_sq)
    assert torch.allclose(exact * 100 / (2 * LT), torch.full((10,), geo.kinetic_energy), rtol=0, atol=tol)
    assert float(outside.max()) < 1e-4  # resolution of the moments
    assert torch.allclose(found.stationarity, torch.zeros(10), rtol=0, atol=tol)
    cost_of_weights = float((found.weight_norm_sq * found.layer_steps).sum()) / LT
    assert cost_of_weights == pytest.approx(geo.parameter_cost, abs=tol)


def test_closed_form_is_stationary_by_autograd() -> None:
    geo = geodesic(depth=6)
    n = geo.path.shape[-1]
    weight = geo.weight.expand(6, -1, -1).clone().requires_grad_()
    a = geo.path[0]
    nodes = []
    for ell in range(6):
        a = (1 - LT / 6) * a + weight[ell] @ a / 6
        a.retain_grad()
        nodes.append(a)
    cost = (geo.target - a).square().sum() / n
    objective = cost + 1e-3 / (2 * LT) * weight.square().sum() / 6
    objective.backward()
    assert weight.grad is not None
    # Weights of size 10, λ/L̃ρ of size 1e-5: rounding of the loss gradient.
    assert float(weight.grad.abs().max()) < 1e-14
    for ell, node in enumerate(nodes):  # momenta are −(1/λ) ∂C/∂A: the ridge does not depend on A
        assert node.grad is not None
        assert torch.allclose(-node.grad / 1e-3, geo.momenta[ell + 1], rtol=0, atol=1e-10)


def test_closed_form_tends_to_the_continuum_at_order_one() -> None:
    errors = []
    for depth in (20, 40, 80):
        geo = geodesic(depth)
        log_map = geo.weight - LT * torch.eye(5)
        continuum = torch.linalg.matrix_exp(log_map) @ geo.path[0]
        errors.append(float((geo.path[-1] - continuum).norm() / continuum.norm()))
    order = -np.polyfit(np.log([20, 40, 80]), np.log(errors), 1)[0]
    assert order == pytest.approx(1, abs=0.05)


def test_symmetric_hamiltonian_is_conserved_to_second_order() -> None:
    # On the closed form the pair value is exactly constant; the symmetric one differs from the continuum's by
    # O(1/L) but varies along the path by O(1/L²) at most: here with unequal log-eigenvalues.
    spreads = []
    for depth in (20, 40, 80):
        found = geometry_of(geodesic(depth))
        assert found.hamiltonians is not None
        values = found.hamiltonians.symmetric
        spreads.append(float(values.max() - values.min()))
    assert max(spreads) < 1e-9  # the linear path is a fixed geodesic: both versions are constant to rounding


@given(st.integers(0, 10_000), st.sampled_from([1e-1, 1e-3, 1e-5]))
def test_identity_between_hamiltonian_and_cost(seed: int, gamma0: float) -> None:
    # −(2/L̃)H = ‖A‖²_{K+γ} − ‖∂A/L̃ + γB‖²_{K+γ} + γ‖B‖² with ∂A = L̃(BK − A): exact for any A, B (docs/theory 1.5).
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(4, 15, generator=g, dtype=torch.float64)
    b = torch.randn(4, 15, generator=g, dtype=torch.float64)
    s = relu_features(a)
    gamma = gamma0 * float(torch.linalg.matrix_norm(s, 2)) ** 2
    moved = LT * (b @ s.T @ s - a)
    moments = moments_of(torch.stack([a, a + moved]), torch.stack([s, s]), torch.stack([b, b]))
    space = RowSpace.of(moments.feature_gram, eps=moments.product_eps)
    cost = space.stabilised_norm_sq(moments.cross, moments.norm_sq, gamma0)[0]
    m = moved / LT + gamma * b
    combined = space[:1].stabilised_norm_sq((m @ s.T)[None], m.square().sum()[None], gamma0)[0]
    assert moments.momentum is not None
    left = hamiltonians(moments.momentum, LT).rank(hamiltonians(moments.momentum, LT).pair)[0]
    terms = [float(cost), -float(combined), gamma * float(b.square().sum())]
    largest = max(abs(t) for t in terms)
    assert float(left) == pytest.approx(sum(terms), abs=1e-14 / gamma0 * largest + 1e-12 * largest)


@pytest.mark.parametrize("gamma0", [1e-2, 1e-4])
def test_energies_equal_dense_formulas(random_path: tuple[Tensor, Tensor, Tensor], gamma0: float) -> None:
    a, s, b = random_path
    rho = torch.tensor([0.1, 0.3, 0.2, 0.25, 0.15])
    weight = torch.randn(5, 7, 8)
    moments = moments_of(a, s, b, batches=5)
    found = path_geometry(moments, weight=weight, layer_steps=rho, effective_depth=LT, has_bias=True, gamma0s=(gamma0,))
    assert found.hamiltonians is not None
    assert found.stationarity is not None
    for i in range(5):
        k = s[i].T @ s[i]
        gamma = gamma0 * torch.linalg.matrix_norm(s[i], 2) ** 2
        inverse = torch.linalg.inv(k + gamma * torch.eye(40))
        d = (a[i + 1] - a[i]) / rho[i]
        kinetic = torch.trace(d @ inverse @ d.T) / (2 * LT)
        cost = torch.trace(a[i] @ inverse @ a[i].T)
        h = LT / 2 * (b[i + 1] @ s[i].T).square().sum() - LT * torch.trace(b[i + 1] @ a[i].T)
        h_same = LT / 2 * (b[i + 1] @ s[i + 1].T).square().sum() - LT * torch.trace(b[i + 1] @ a[i + 1].T)
        tol = {"rel": 1e-13 / gamma0, "abs": 0}  # rounding over γ₀
        energies = found.energies[gamma0]
        assert float(energies.kinetic[i]) == pytest.approx(float(kinetic), **tol)
        assert float(energies.cost.stabilised[i]) == pytest.approx(float(cost), **tol)
        assert float(energies.stable[i]) == pytest.approx(float(kinetic - LT / 2 * cost), **tol)
        assert float(found.hamiltonians.pair[i]) == pytest.approx(float(h), rel=1e-12)
        assert float(found.hamiltonians.symmetric[i]) == pytest.approx(float(h + h_same) / 2, rel=1e-12)
        residual = torch.linalg.norm(weight[i] - LT * b[i + 1] @ s[i].T) / torch.linalg.norm(weight[i])
        assert float(found.stationarity[i]) == pytest.approx(float(residual), rel=1e-12)
        assert float(found.speed[i]) == pytest.approx(float(d.norm() / a[i + 1].norm()), rel=1e-12)
        assert float(found.relative_move[i]) == pytest.approx(float((a[i + 1] - a[i]).norm() / a[i + 1].norm()))
    assert float(found.length) == pytest.approx(float((a[1:] - a[:-1]).norm(dim=(1, 2)).sum() / 40**0.5))
    assert torch.allclose(found.spectrum, torch.linalg.svdvals(a / 40**0.5), atol=1e-8)  # roots of rounding
    centred = (a - a.mean(-1, keepdim=True)) / 40**0.5
    assert torch.allclose(found.spectrum_centred, torch.linalg.svdvals(centred), atol=1e-7)
    negative = a.clamp(max=0).square().sum((1, 2)) / a.square().sum((1, 2))
    assert torch.allclose(found.negative_fraction, negative)
    assert torch.allclose(found.weight_norm_sq, weight.square().sum((1, 2)))
    assert torch.allclose(found.bias_norm_sq, weight[..., -1].square().sum(1))


def relu_flow(depth: int, steps: int, scale: float = 0.02) -> tuple[Tensor, Tensor]:
    """A stationary discrete ReLU path, by symplectic Euler with the implicit step in B solved by iteration."""
    g = torch.Generator().manual_seed(11)
    a = torch.randn(4, 9, generator=g).abs() + 0.2
    b = scale * torch.rand(4, 9, generator=g)  # positive, so that A stays so: kinks would lower the order
    rho = 1 / depth
    path, momenta = [a], [b]
    for _ in range(steps):
        s = relu_features(a)
        b_next = b
        for _ in range(200):  # B_ℓ from B_{ℓ−1} = B_ℓ + ρ ∂_A H(A_{ℓ−1}, B_ℓ), a contraction for small ρ
            grad = LT * ((a > 0).double() * ((b_next @ s.T).T @ b_next)[:4] - b_next)
            b_next = b - rho * grad
        a = a + rho * LT * (b_next @ s.T @ s - a)
        b = b_next
        path.append(a)
        momenta.append(b)
    return torch.stack(path), torch.stack(momenta)


def test_relu_path_conserves_hamiltonian_balance_and_bounds() -> None:
    """Hamilton's equations, discretised: symmetric H varies at order 2, ‖W‖² − ‖W_0‖² = 2L̃∫‖b‖² (ratio 2)."""
    spreads, pair_spreads, ratios = [], [], []
    depths = (40, 80, 160)
    for depth in depths:
        a, b = relu_flow(depth, depth // 4)  # p from 0 to ¼: long enough to move, short of the blow-up
        s = relu_features(a)
        moments = moments_of(a, s, b)
        assert moments.momentum is not None
        h = hamiltonians(moments.momentum, LT)
        spreads.append(float(h.symmetric.max() - h.symmetric.min()))
        pair_spreads.append(float(h.pair.max() - h.pair.min()))
        weight = LT * moments.momentum.before
        assert float(stationarity(weight, moments.momentum, LT).max()) == 0
        rho = torch.full((depth // 4,), 1 / depth)
        norm_sq, bias_sq = weight.square().sum((1, 2)), weight[..., -1].square().sum(1)
        gain = float(norm_sq[-1] - norm_sq[0])
        inner = float((bias_sq[1:] + bias_sq[:-1]).sum() / 2 / depth)
        ratios.append(gain / (LT * inner))
        assert float(balance_residual(norm_sq, bias_sq, rho, LT).max()) < 10 / depth
        for gamma0 in (1e-1, 1e-3):
            space = RowSpace.of(moments.feature_gram, eps=moments.product_eps)
            bounds = rank_bounds(moments, space, rho, LT, gamma0)  # ρ enters ∂_pA only
            assert float(bounds.speed_lower.min()) >= -1e-9
            assert float(bounds.speed_upper.min()) >= -1e-9
            cost = space[:-1].stabilised_norm_sq(moments.cross[:-1], moments.norm_sq[:-1], gamma0)
            rank = h.rank(h.pair)
            g = space[:-1].gamma(gamma0) * moments.momentum.norm_sq[1:]
            assert bool((rank <= cost + g + 1e-9).all())
    order = -np.polyfit(np.log(depths), np.log(spreads), 1)[0]
    assert order == pytest.approx(2, abs=0.25)
    assert pair_spreads[-1] > 5 * spreads[-1]  # the pair version varies at order 1 only
    assert ratios[-1] == pytest.approx(2, abs=0.05)
    assert abs(ratios[-1] - 2) < 0.6 * abs(ratios[0] - 2) + 1e-3  # error O(1/L) at worst


def test_float_batches_and_order_do_not_matter(random_path: tuple[Tensor, Tensor, Tensor]) -> None:
    a, s, b = random_path
    one, many = moments_of(a, s, b), moments_of(a, s, b, batches=8)
    for name in ("feature_gram", "cross", "gram", "moved_cross", "moved_norm_sq", "path_gram"):
        assert torch.allclose(getattr(one, name), getattr(many, name), rtol=1e-13, atol=1e-13)
    order = torch.randperm(40)
    shuffled = moments_of(a[..., order], s[..., order], b[..., order])
    assert torch.allclose(one.cross, shuffled.cross, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("call", "needle"),
    [
        (lambda m, sp: kinetic_energy(m, sp, torch.full((5,), 0.2), 0.0), "effective_depth: got 0.0"),
        (lambda m, sp: rank_bounds(m, sp, torch.full((5,), 0.2), 1.0), "momenta"),
        (lambda m, sp: path_geometry(m, weight=torch.ones(5, 7, 7), layer_steps=torch.full((5,), 0.2),
                                     effective_depth=1.0, has_bias=True), "weight"),
        (lambda m, sp: path_geometry(m, weight=torch.ones(5, 7, 8), layer_steps=torch.full((5,), 0.3),
                                     effective_depth=1.0, has_bias=True), "of sum 1"),
    ],
)  # fmt: skip
def test_bad_input(random_path: tuple[Tensor, Tensor, Tensor], call, needle: str) -> None:
    moments = moments_of(*random_path[:2])
    space = RowSpace.of(moments.feature_gram, eps=moments.product_eps)
    with pytest.raises(InputError, match=needle):
        call(moments, space)


def test_accumulator_refuses_what_does_not_fit(random_path: tuple[Tensor, Tensor, Tensor]) -> None:
    from isthmus.geometry import PathAccumulator

    a, s, b = (t.mT for t in random_path)
    acc = PathAccumulator()
    with pytest.raises(InputError, match="at least one batch"):
        acc.result()
    acc.update(a, s, b)
    before = acc.result()
    with pytest.raises(InputError, match="first batch"):
        acc.update(a, s)
    with pytest.raises(InputError, match="1 sample"):
        acc.update(a[:, :0], s[:, :0], b[:, :0])
    bad = b.clone()
    bad[0, 0, 0] = torch.inf
    with pytest.raises(InputError, match="momenta: got values that are not finite"):
        acc.update(a, s, bad)
    assert torch.equal(acc.result().gram, before.gram)  # a refused batch leaves nothing behind


def test_a_move_that_is_not_a_number_is_not_0() -> None:
    moved = torch.tensor([math.nan, 0.0, 4.0, 1.0], dtype=torch.float64)
    norm_sq = torch.tensor([1.0, 1.0, 0.0, 16.0, 0.0], dtype=torch.float64)
    expected = torch.tensor([math.nan, 0.0, 0.5, math.inf], dtype=torch.float64)
    torch.testing.assert_close(relative_move(moved, norm_sq), expected, equal_nan=True)
    rho = torch.full((4,), 0.2)
    torch.testing.assert_close(path_speed(moved, norm_sq, rho), 5 * expected, equal_nan=True, rtol=1e-6, atol=0)
