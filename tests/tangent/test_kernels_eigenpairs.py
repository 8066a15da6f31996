from __future__ import annotations

import math

import pytest
import torch

from isthmus import InputError
from isthmus.tangent import GradientFeatures, full_kernel, largest_stable_rate, top_eigenpairs, traced_kernel


def test_full_and_traced_kernels_are_symmetric_and_positive() -> None:
    features = GradientFeatures(torch.randn(3, 8, 4))
    full, traced = full_kernel(features), traced_kernel(features)
    assert torch.equal(full, full.mT)
    assert torch.equal(traced, traced.mT)
    # eigenvalues of a matrix of size 24 in float64, of some 30
    assert float(torch.linalg.eigvalsh(full)[0]) > -1e-12
    assert torch.allclose(traced, full.view(3, 8, 3, 8).diagonal(dim1=0, dim2=2).sum(-1), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("n", "outputs", "k"), [(60, 4, 4), (4, 3, 12), (5, 2, 2)])
def test_eigenpairs_are_those_of_the_dense_matrix(n: int, outputs: int, k: int) -> None:
    root = torch.randn(n * outputs, n * outputs)
    matrix = root @ root.mT
    found = top_eigenpairs(lambda v: (matrix @ v.flatten()).view(n, outputs), n, outputs, k)
    right = torch.linalg.eigvalsh(matrix).flip(0)[:k]
    # Lanczos to machine precision: some 1e-13 of the largest eigenvalue
    assert torch.allclose(found.values, right, rtol=0, atol=1e-11 * float(right[0]))
    flat = found.vectors.flatten(1)
    assert torch.allclose(flat @ flat.mT, torch.eye(k), atol=1e-10)
    assert torch.allclose(flat @ matrix, found.values[:, None] * flat, atol=1e-8 * float(right[0]))
    assert float(found.residuals.max()) < 1e-8 * float(right[0])
    if n == 60:
        assert found.products < n * outputs


def test_eigenpairs_out_of_range_are_refused() -> None:
    for k in (0, 7):
        with pytest.raises(InputError, match="from 1 to 6"):
            top_eigenpairs(lambda v: v, 3, 2, k)


def test_gradient_descent_is_stable_up_to_the_rate_and_not_beyond() -> None:
    # f = X θ, loss (1/N)‖y − Xθ‖² + λ‖θ‖²: the error along the top direction is multiplied by 1 − η (2/N λ_max + 2λ)
    x, ridge = torch.randn(20, 3), 0.3
    hessian = 2 / 20 * x.mT @ x + 2 * ridge * torch.eye(3)
    rate = largest_stable_rate(float(torch.linalg.eigvalsh(x @ x.mT)[-1]), 20, ridge)
    for factor, stable in ((0.99, True), (1.01, False)):
        growth = torch.linalg.eigvalsh(torch.eye(3) - factor * rate * hessian).abs().max()
        assert (float(growth) < 1) is stable


def test_rates_at_the_ends() -> None:
    assert largest_stable_rate(0.0, 10) == math.inf
    assert largest_stable_rate(0, 10, 0.5) == 2.0
    for arguments, match in (((-1.0, 10), "top_eigenvalue"), ((1.0, 0), "samples"), ((1.0, 1, -1.0), "ridge"),
                             ((math.nan, 10), "top_eigenvalue")):  # fmt: skip
        with pytest.raises(InputError, match=match):
            largest_stable_rate(*arguments)


def test_a_product_that_is_not_finite_is_refused() -> None:
    with pytest.raises(InputError, match="product: got values that are not finite"):
        top_eigenpairs(lambda v: v * math.nan, 40, 1, 1)
