from __future__ import annotations

import dataclasses

import pytest
import torch

from isthmus.geometry import Bottleneck, PathGeometry, find_bottleneck, path_geometry, project_path
from tests_support import moments_of, relu_features

LT = 6.0


def built_path(
    rank: int, *, width: int = 12, depth: int = 10, n: int = 300, ends: int = 3, spare: int = 0
) -> PathGeometry:
    """A hand-made path: full-dimensional for `ends` nodes on both sides, `rank` non-negative dimensions between."""
    g = torch.Generator().manual_seed(rank)
    weight = torch.zeros(depth, width, width + 1)
    nodes = []
    for node in range(depth + 1):
        if ends <= node <= depth - ends:
            a = torch.zeros(width, n)
            a[:rank] = torch.rand(rank, n, generator=torch.Generator().manual_seed(1)) + 0.01 * node
            nodes.append(a)
        else:
            nodes.append(torch.randn(width, n, generator=g))
    for step in range(depth):
        k = rank + spare if ends <= step < depth - ends else width
        weight[step, :k, :k] = LT * torch.eye(k)
    path = torch.stack(nodes)
    moments = moments_of(path, relu_features(path))
    rho = torch.full((depth,), 1 / depth)
    return path_geometry(moments, weight=weight, layer_steps=rho, effective_depth=LT, has_bias=True)


@pytest.mark.parametrize("rank", [1, 2, 3, 5])
def test_finds_a_known_bottleneck(rank: int) -> None:
    found: Bottleneck = find_bottleneck(built_path(rank))
    assert found.found, found.reason
    assert found.rank == rank
    assert (found.first, found.last) == (3, 7)
    assert (found.start, found.end) == (pytest.approx(0.3), pytest.approx(0.7))
    assert found.agreement == 1
    assert set(found.slow) == {4, 5, 6, 7}
    assert set(found.fast) == {1, 2, 3, 8, 9, 10}
    assert found.slowdown is not None
    assert found.slowdown > 10


def test_the_rank_is_the_median_of_what_the_estimates_say() -> None:
    found = find_bottleneck(built_path(3, spare=4))  # weights that keep 7 directions, of which 3 are used
    assert {e.metric: round(e.value) for e in found.evidence} == {
        "cost_of_identity": 3, "spectrum": 3, "weight_spectrum": 7,
    }  # fmt: skip
    assert found.rank == 3
    assert found.agreement == pytest.approx(2 / 3)


def test_says_when_there_is_none() -> None:
    wide = find_bottleneck(built_path(11))
    assert not wide.found
    assert "keeps 11 of 12" in wide.reason
    assert "keeps all 12 dimensions" in find_bottleneck(built_path(12)).reason
    narrow = built_path(12)
    spectrum = narrow.spectrum.clone()
    spectrum[0, 2:] = 0  # inputs of two dimensions
    found = find_bottleneck(dataclasses.replace(narrow, spectrum=spectrum))
    assert (found.rank, found.input_rank) == (12, 2)
    assert found.reason == "its narrowest part is estimated at 12 dimensions, more than the 2 of its input"


def test_says_when_nothing_passes() -> None:
    path = torch.stack([torch.randn(5, 50) * 1e-9 if i else torch.randn(5, 50) for i in range(4)])
    moments = moments_of(path, relu_features(path))
    geometry = path_geometry(
        moments, weight=torch.zeros(3, 5, 6), layer_steps=torch.full((3,), 1 / 3), effective_depth=2.0, has_bias=True
    )
    found = find_bottleneck(geometry)
    assert not found.found
    assert "almost) constant" in found.reason


def test_projection_keeps_distances_of_a_planar_path() -> None:
    angle = torch.linspace(0, 2, 9)
    plane = torch.stack([angle.cos(), 0.5 * angle.sin()], -1)
    basis, _ = torch.linalg.qr(torch.randn(40, 2))
    points = plane @ basis.T
    coordinates, explained = project_path(points @ points.T)
    assert torch.allclose(torch.cdist(coordinates, coordinates), torch.cdist(points, points), atol=1e-12)
    assert float(explained.sum()) == pytest.approx(1)
