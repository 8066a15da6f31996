"""Streaming moments against one dense product in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isthmus import InputError
from isthmus.geometry import CrossAccumulator, PathAccumulator, StreamAccumulator, symmetric_product


def split(n: int, sizes: list[int]) -> list[slice]:
    edges, start = [], 0
    for size in sizes:
        edges.append(slice(start, min(n, start + size)))
        start += size
    return [*edges, slice(start, n)] if start < n else edges


@given(
    n=st.integers(1, 60), width=st.integers(1, 12), offset=st.sampled_from([0.0, 3.0, 1e4]),
    sizes=st.lists(st.integers(1, 30), max_size=4), seed=st.integers(0, 99),
)  # fmt: skip
def test_moments_of_batches_are_those_of_the_whole(
    n: int, width: int, offset: float, sizes: list[int], seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(n, width, generator=g, dtype=torch.float64) + offset
    s = torch.randn(n, 5, generator=g, dtype=torch.float64) - offset
    left, right, cross = StreamAccumulator(), StreamAccumulator(), CrossAccumulator()
    for part in split(n, sizes):
        if a[part].shape[0]:
            cross.update(left.update(a[part]), right.update(s[part]))
    m = left.result()
    centred = a - a.mean(0)
    scale = max(1.0, offset**2) * n
    assert m.n == n == cross.n
    # float64 rounding, relative to the largest product
    torch.testing.assert_close(m.gram, a.T @ a, rtol=1e-12, atol=1e-13 * scale)
    torch.testing.assert_close(m.centred_gram, centred.T @ centred, rtol=1e-9, atol=1e-11 * max(1.0, offset) * n)
    torch.testing.assert_close(cross.result(), a.T @ s, rtol=1e-12, atol=1e-13 * scale)
    assert m.norm_sq == pytest.approx(float(a.square().sum()), rel=1e-12)
    assert m.negative_norm_sq == pytest.approx(float(a.clamp(max=0).square().sum()), rel=1e-12, abs=1e-300)
    ones = torch.cat([a, torch.ones(n, 1, dtype=torch.float64)], 1)
    torch.testing.assert_close(m.with_ones(), ones.T @ ones, rtol=1e-12, atol=1e-13 * scale)
    with_one = torch.cat([s, torch.ones(n, 1, dtype=torch.float64)], 1)
    torch.testing.assert_close(cross.result_with_ones(), a.T @ with_one, rtol=1e-12, atol=1e-13 * scale)


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_float32_batches_lose_no_more_than_the_products_do(offset: float) -> None:
    """Against full float64: the error in operator norm is below float32's rounding unit, also far from the origin."""
    torch.manual_seed(0)
    width, n = 96, 6000
    decay = torch.logspace(0, -4, width, dtype=torch.float64)
    x = (torch.randn(n, width, dtype=torch.float64) * decay + offset).float()
    acc = StreamAccumulator()
    for part in x.split(500):
        acc.update(part)
    exact = x.double()
    centred = exact - exact.mean(0)
    error = acc.result().centred_gram - centred.T @ centred
    largest = torch.linalg.matrix_norm(centred, 2) ** 2
    # x itself holds 24 bits of `offset`: what the products add must stay below that
    assert float(torch.linalg.matrix_norm(error, 2) / largest) < 1.2e-7 * max(1.0, offset / 10)
    plain = (x.T @ x).double() - n * torch.outer(x.mean(0), x.mean(0)).double()
    if offset:  # without the shift the spread drowns
        worse = torch.linalg.matrix_norm(plain - centred.T @ centred, 2) / largest
        assert float(worse) > 100 * float(torch.linalg.matrix_norm(error, 2) / largest)


@pytest.mark.parametrize("width", [1, 95, 96, 192, 300, 1000])
def test_symmetric_product(width: int) -> None:
    x = torch.randn(40, width, dtype=torch.float64)
    found = symmetric_product(x)
    torch.testing.assert_close(found, x.T @ x, rtol=1e-12, atol=1e-12)


def test_half_precision_batches_are_multiplied_in_float32() -> None:
    x = torch.randn(500, 8).bfloat16()
    acc = StreamAccumulator()
    for part in x.split(100):
        acc.update(part)
    torch.testing.assert_close(acc.result().gram, x.double().T @ x.double(), rtol=1e-5, atol=1e-3)


def test_what_cannot_be_added_adds_nothing() -> None:
    acc = StreamAccumulator()
    acc.update(torch.ones(3, 2))
    with pytest.raises(InputError, match="not finite"):
        acc.update(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(InputError, match="not finite"):
        acc.update(torch.tensor([[1.0, float("inf")]]))
    with pytest.raises(InputError, match="the width of the first batch, 2"):
        acc.update(torch.ones(3, 4))
    with pytest.raises(InputError, match="at least one sample"):
        acc.update(torch.ones(0, 2))
    assert acc.result().gram.tolist() == [[3.0, 3.0], [3.0, 3.0]]
    with pytest.raises(InputError, match="at least one batch"):
        StreamAccumulator().result()
    with pytest.raises(InputError, match="at least one batch"):
        CrossAccumulator().result()
    with pytest.raises(InputError, match="as many samples as left"):
        CrossAccumulator().update(
            StreamAccumulator().update(torch.ones(3, 2)), StreamAccumulator().update(torch.ones(2, 2))
        )


@pytest.mark.parametrize("sizes", [(4, 7, 2), (0, 5, 3), (6, 0, 0)])
def test_merged_sums_are_those_of_all_samples(sizes: tuple[int, ...]) -> None:
    a, s = torch.randn(sum(sizes), 3) + 5, torch.randn(sum(sizes), 2) - 4
    held = [(StreamAccumulator(), StreamAccumulator(), CrossAccumulator()) for _ in sizes]
    for (left, right, cross), x, y in zip(held, a.split(sizes), s.split(sizes), strict=True):
        if len(x):
            cross.update(left.update(x), right.update(y))
    for other in held[1:]:
        for mine, theirs in zip(held[0], other, strict=True):
            before = {name: value.clone() for name, value in theirs.parts().items()}
            mine.merge(theirs.parts())
            assert all(torch.equal(value, before[name]) for name, value in theirs.parts().items())
    left, right, cross = held[0]
    m = left.result()
    assert m.n == cross.n == right.n == len(a)
    torch.testing.assert_close(m.mean, a.mean(0), rtol=1e-13, atol=0)
    torch.testing.assert_close(m.centred_gram, (a - a.mean(0)).T @ (a - a.mean(0)), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(cross.result(), a.T @ s, rtol=1e-12, atol=1e-11)
    assert m.negative_norm_sq == pytest.approx(float(a.clamp(max=0).square().sum()))


def test_merged_sums_are_not_those_of_the_other() -> None:
    mine, theirs = StreamAccumulator(), StreamAccumulator()
    theirs.update(torch.ones(2, 3))
    mine.merge(theirs.parts())
    mine.update(torch.zeros(2, 3))
    assert theirs.result().gram.tolist() == [[2.0] * 3] * 3
    assert mine.result().n == 4
    assert mine.result().eps == theirs.result().eps


def test_merging_other_widths_is_an_error() -> None:
    narrow, wide = StreamAccumulator(), StreamAccumulator()
    cross, other = CrossAccumulator(), CrossAccumulator()
    cross.update(narrow.update(torch.ones(3, 2)), narrow.update(torch.ones(3, 2)))
    other.update(wide.update(torch.ones(3, 4)), wide.update(torch.ones(3, 4)))
    with pytest.raises(InputError, match="width 4"):
        narrow.merge(wide.parts())
    with pytest.raises(InputError, match="widths"):
        cross.merge(other.parts())


def test_merged_paths_are_those_of_all_samples() -> None:
    path, features, momenta = torch.randn(3, 9, 2), torch.randn(3, 9, 4), torch.randn(3, 9, 2)
    first, second, everything = PathAccumulator(), PathAccumulator(), PathAccumulator()
    first.update(path[:, :4], features[:, :4], momenta[:, :4])
    second.update(path[:, 4:], features[:, 4:], momenta[:, 4:])
    everything.update(path, features, momenta)
    merged = PathAccumulator()
    for one in (PathAccumulator(), first, second):
        merged.merge(one.parts())
    found, expected = merged.parts(), everything.parts()
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12)
    assert merged.result().n == 9
    plain = PathAccumulator()
    plain.update(path, features)
    with pytest.raises(InputError, match="momenta"):
        plain.merge(first.parts())
