from __future__ import annotations

import pytest
import torch
from torch import Tensor

from isthmus import InputError
from isthmus.tangent import jacobian_spectrum


@pytest.mark.parametrize(("inputs", "outputs"), [(6, 3), (3, 6)])
def test_spectrum_equals_finite_differences(inputs: int, outputs: int) -> None:
    first, second = torch.randn(inputs, 8), torch.randn(8, outputs)

    def function(v: Tensor) -> Tensor:
        return torch.tanh(v @ first) @ second

    x = torch.randn(70, inputs)
    ours = jacobian_spectrum(function, x, chunk=16)
    logs = []
    for row in x:
        step = 1e-6
        columns = [
            (function(row + step * e) - function(row - step * e)) / (2 * step) for e in torch.eye(inputs)
        ]  # central differences: error step² plus rounding/step, about 1e-10
        logs.append(torch.linalg.svdvals(torch.stack(columns, -1)).log())
    logs = torch.stack(logs)
    assert torch.allclose(ours.mean, logs.mean(0), atol=1e-6)
    assert torch.allclose(ours.stderr, logs.std(0) / 70**0.5, atol=1e-6)
    assert ours.n == 70


def test_a_linear_map_has_no_spread() -> None:
    m = torch.diag(torch.tensor([3.0, 0.5]))
    found = jacobian_spectrum(lambda v: m @ v, torch.randn(4, 2))
    assert found.mean.exp().tolist() == pytest.approx([3.0, 0.5])
    assert float(found.stderr.max()) == pytest.approx(0, abs=1e-15)


def test_bad_input() -> None:
    with pytest.raises(InputError, match="at least 2 samples"):
        jacobian_spectrum(lambda v: v, torch.randn(1, 2))
