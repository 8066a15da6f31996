from __future__ import annotations

import pytest
import torch
from torch import Tensor

from isthmus import InputError
from isthmus.theory import linear_geodesic


def test_a_map_without_stretch_keeps_every_dimension() -> None:
    geo = linear_geodesic(torch.eye(3), torch.zeros(3, 3), depth=5, effective_depth=2.0, ridge=0.1)
    assert torch.equal(geo.path, torch.eye(3).expand(6, 3, 3))
    assert geo.hamiltonian_rank == 3
    assert geo.kinetic_energy == 0
    assert geo.parameter_cost == pytest.approx(2 * 3)


def test_momenta_solve_the_adjoint_equations_and_give_the_weights() -> None:
    log_map = torch.diag(torch.tensor([0.9, -0.3, 0.2]))
    geo = linear_geodesic(torch.randn(3, 7), log_map, depth=6, effective_depth=3.0, ridge=0.1)
    for ell in range(1, 7):
        leak = 1 - 3.0 / 6
        backward = leak * geo.momenta[ell] + geo.weight.T @ geo.momenta[ell] / 6
        assert torch.allclose(geo.momenta[ell - 1], backward, atol=1e-13)
        forward = leak * geo.path[ell - 1] + geo.weight @ geo.path[ell - 1] / 6
        assert torch.allclose(geo.path[ell], forward, atol=1e-13)
        assert torch.allclose(3.0 * geo.momenta[ell] @ geo.path[ell - 1].T, geo.weight, atol=1e-12)
    residual = 2 / (0.1 * 7) * (geo.target - geo.path[-1])  # B_L = −(1/λ) ∂C/∂A_L of the square cost
    assert torch.allclose(residual, geo.momenta[-1], atol=1e-12)


def test_parameter_cost_counts_rank_and_logarithms() -> None:
    # (1/L̃)‖W‖² = L̃k + 2Σm + (1/L̃)Σm² (docs/theory 1.10), from the weight itself
    log_map = torch.diag(torch.tensor([0.5, -0.2]))
    geo = linear_geodesic(torch.randn(2, 5), log_map, depth=9, effective_depth=4.0, ridge=0.1)
    assert geo.parameter_cost == pytest.approx(float(geo.weight.square().sum()) / 4)


@pytest.mark.parametrize(
    ("x", "log_map", "change", "needle"),
    [
        (torch.randn(3, 2), torch.zeros(3, 3), {}, "full row rank"),
        (torch.randn(2, 5), torch.tensor([[0.0, 1.0], [0.0, 0.0]]), {}, "symmetric 2 × 2"),
        (torch.randn(2, 5), torch.zeros(3, 3), {}, "symmetric 2 × 2"),
        (torch.randn(2, 5), torch.zeros(2, 2), {"depth": 0}, "depth ≥ 1"),
        (torch.randn(2, 5), torch.zeros(2, 2), {"effective_depth": 0.0}, "others > 0"),
        (torch.randn(2, 5), torch.zeros(2, 2), {"ridge": 0.0}, "others > 0"),
    ],
)
def test_bad_input(x: Tensor, log_map: Tensor, change: dict[str, float], needle: str) -> None:
    settings = {"depth": 4, "effective_depth": 2.0, "ridge": 0.1} | change
    with pytest.raises(InputError, match=needle):
        linear_geodesic(x, log_map, **settings)  # pyright: ignore[reportArgumentType]
