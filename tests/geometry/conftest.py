from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests_support import relu_features


@pytest.fixture
def random_path() -> tuple[Tensor, Tensor, Tensor]:
    """A random ReLU path with momenta: (6 nodes, width 7, 40 samples)."""
    g = torch.Generator().manual_seed(5)
    a = torch.randn(6, 7, 40, generator=g) * torch.logspace(0, -1.5, 7)[:, None]
    return a, relu_features(a), torch.randn(6, 7, 40, generator=g)
