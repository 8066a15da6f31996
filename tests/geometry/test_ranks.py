from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isthmus import InputError
from isthmus.geometry import (
    effective_rank,
    nuclear_rank,
    numerical_rank,
    participation_ratio,
    spectrum_of_gram,
    stable_rank,
)

SOFT = (stable_rank, nuclear_rank, participation_ratio, effective_rank)


@pytest.mark.parametrize("rank", SOFT)
def test_equal_singular_values_count_as_many(rank) -> None:
    s = torch.cat([torch.full((4,), 3.0), torch.zeros(2)])
    assert float(rank(s)) == pytest.approx(4, abs=1e-12)
    assert float(rank(torch.zeros(6))) == 0
    assert float(rank(1e-200 * s)) == pytest.approx(4, abs=1e-12)  # no underflow of squares or fourth powers


def test_known_values() -> None:
    s = torch.tensor([2.0, 1.0])
    assert float(stable_rank(s)) == pytest.approx(5 / 4)
    assert float(nuclear_rank(s)) == pytest.approx(9 / 5)
    assert float(participation_ratio(s)) == pytest.approx(25 / 17)
    entropy = -(0.8 * math.log(0.8) + 0.2 * math.log(0.2))
    assert float(effective_rank(s)) == pytest.approx(math.exp(entropy))
    assert numerical_rank(torch.tensor([[1.0, 0.02, 0.001], [0.0, 0.0, 0.0]])).tolist() == [2, 0]
    with pytest.raises(InputError, match=r"tolerance: got 1\.5"):
        numerical_rank(s, tolerance=1.5)


@given(st.integers(0, 10_000))
def test_rotations_and_scale_change_nothing(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    m = torch.randn(5, 9, generator=g, dtype=torch.float64)
    q, _ = torch.linalg.qr(torch.randn(5, 5, generator=g, dtype=torch.float64))
    direct = torch.linalg.svdvals(m)
    rotated = spectrum_of_gram((q @ m) @ (q @ m).T)
    assert torch.allclose(rotated, direct, rtol=1e-6)  # roots of a Gram matrix: half the digits, if well conditioned
    for rank in SOFT:
        assert float(rank(7 * rotated)) == pytest.approx(float(rank(direct)), rel=1e-6)
        assert 1 <= float(rank(direct)) <= 5


def test_gram_spectrum_does_not_invent_dimensions() -> None:
    m = torch.randn(6, 2) @ torch.randn(2, 30)
    assert (spectrum_of_gram(m @ m.T) > 0).sum() == 2
