"""Top eigenpairs of a tangent kernel that is never formed, and the learning rate it allows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from isthmus._errors import InputError, IsthmusError


@dataclasses.dataclass(frozen=True)
class Eigenpairs:
    """Largest eigenvalues of a kernel, descending, with their eigenvectors.

    Attributes:
        values: eigenvalues `λ_i`, float64.
        vectors: orthonormal eigenvectors, `(k, n, C)`.
        residuals: `‖Θ u_i − λ_i u_i‖`, measured.
        products: how many times the kernel was applied.
    """

    values: Float[Tensor, " k"]
    vectors: Float[Tensor, "k n c"]
    residuals: Float[Tensor, " k"]
    products: int


def top_eigenpairs(
    product: Callable[[Tensor], Tensor], n: int, outputs: int, k: int, *, tolerance: float | int = 0.0,
    start: Float[Tensor, "n c"] | None = None,
) -> Eigenpairs:  # fmt: skip
    """The `k` largest eigenpairs of a symmetric operator on `(n, C)`, by Lanczos with restarts (ARPACK).

    Args:
        product: `v ↦ Θ v`, of shape `(n, C)`, for example `J(Jᵀ v)`.
        n: samples.
        outputs: outputs C.
        k: eigenpairs, at most nC.
        tolerance: relative accuracy of the eigenvalues; 0 for machine precision.
        start: where the iteration begins.

    Raises:
        InputError: a `k` out of range, or a product that is not finite.
        IsthmusError: the iteration does not converge.
    """
    size, count = n * outputs, 0
    if isinstance(k, bool) or not 1 <= k <= size:
        raise InputError("k", k, f"a whole number from 1 to {size}, the samples times the outputs")

    def apply(v: Any) -> Any:
        nonlocal count
        count += 1
        given = torch.from_numpy(np.ascontiguousarray(v, dtype=np.float64)).reshape(n, outputs)
        made = product(given).detach().cpu().double().reshape(-1)
        if not bool(made.isfinite().all()):
            raise InputError("product", "values that are not finite", "a kernel of finite numbers",
                             "look for a root or a norm at 0, or an overflow")  # fmt: skip
        return made.numpy()

    if k >= size - 1 or size <= 20:  # ARPACK finds no more than size − 1, and nothing is saved
        dense = np.stack([apply(column) for column in np.eye(size)])
        values, vectors = np.linalg.eigh((dense + dense.T) / 2)
    else:
        begin = None if start is None else start.detach().cpu().double().reshape(-1).numpy()
        import scipy.sparse.linalg  # not at the top: it takes a while to load

        sparse = cast("Any", scipy.sparse.linalg)
        operator = sparse.LinearOperator((size, size), matvec=apply, dtype=np.float64)
        try:
            values, vectors = sparse.eigsh(operator, k=k, which="LA", tol=float(tolerance), v0=begin)
        except sparse.ArpackNoConvergence as error:
            raise IsthmusError(f"the eigenvalues did not converge after {count} products with the kernel; "
                               "ask for fewer or more of them") from error  # fmt: skip
    order = np.argsort(values)[::-1][:k]
    values, vectors = values[order], vectors[:, order]
    residuals = [float(np.linalg.norm(apply(u) - s * u)) for s, u in zip(values, vectors.T, strict=True)]
    found = torch.from_numpy(np.ascontiguousarray(vectors.T)).reshape(k, n, outputs)
    return Eigenpairs(torch.from_numpy(values.copy()), found, torch.tensor(residuals, dtype=torch.float64), count)


def largest_stable_rate(top_eigenvalue: float | int, samples: int, ridge: float | int = 0.0) -> float:
    """`η = 2 / ((2/N) λ_max(Θ) + 2λ)`: above it, gradient descent on the ridge loss is unstable.

    The loss is `(1/N) Σ_i ‖y_i − f(x_i)‖² + λ‖θ‖²`, whose Hessian at a good fit is about `(2/N) JᵀJ + 2λ`; a step `η`
    is stable where its largest eigenvalue is at most `2/η` (arXiv 2305.19008, docs/theory 3.4).

    Args:
        top_eigenvalue: `λ_max(Θ)` of the full kernel, uncentred, over the `N` samples.
        samples: `N`.
        ridge: `λ`.

    Returns:
        The rate; infinite where the kernel and the ridge are zero.

    Raises:
        InputError: a negative or infinite eigenvalue or ridge, or no samples.

    Example:
        >>> largest_stable_rate(50.0, 100)
        2.0
    """
    if not 0 <= top_eigenvalue < math.inf:
        raise InputError("top_eigenvalue", top_eigenvalue, "a finite number ≥ 0")
    if not 0 <= ridge < math.inf:
        raise InputError("ridge", ridge, "a finite number ≥ 0")
    if isinstance(samples, bool) or samples < 1:
        raise InputError("samples", samples, "a whole number of at least 1")
    sharpness = 2 * top_eigenvalue / samples + 2 * ridge
    return math.inf if sharpness == 0 else 2 / sharpness
