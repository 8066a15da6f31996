"""Short paths through random points, and the samples that force a network along one."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from jaxtyping import Float, Int

from isthmus._errors import InputError, near_name_hint
from isthmus._random import numpy_generator
from isthmus.data._task import Task, make_task
from isthmus.models import whole_number

_PARTS = ("encoder", "decoder", "free")
_LEAST_GAIN = 1e-12


@dataclasses.dataclass(frozen=True)
class Tour:
    """An open path through points.

    Attributes:
        order: the points by number, in the order of the path.
        length: of the path.
        bound: no path through the points is shorter: half the distances of every point to its two nearest ones, less
            the two largest of the second ones (the ends of a path have one neighbour).
    """

    order: Int[np.ndarray, " n"]
    length: float
    bound: float


def short_tour(points: Float[np.ndarray, "n k"], *, periodic: bool = False) -> Tour:
    """A short open path through points: nearest neighbours, then 2-opt until turning round no stretch shortens it.

    Such paths are 5 to 10% longer than the shortest, whatever `n`; their length grows like `n^{1 − 1/k}` for uniform
    points in `k` dimensions (Beardwood, Halton and Hammersley, 1959). The first point stays where it is.

    Args:
        points: in rows, at least 3.
        periodic: distances on the unit torus instead of in space; there is then no boundary, whose points have fewer
            neighbours.

    Raises:
        InputError: fewer than 3 points, or values that are not finite.
    """
    if len(points) < 3 or not np.isfinite(points).all():
        raise InputError("points", f"{len(points)} points", "at least 3 points with finite coordinates")

    def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        gap = a - b
        if periodic:
            gap -= np.round(gap)
        return np.sqrt(np.square(gap).sum(-1))

    n = len(points)
    order = np.arange(n)
    nearest = np.empty((n, 2))
    for i in range(n):
        nearest[i] = np.partition(distance(points, points[i]), 2)[1:3]
    for i in range(n - 1):  # the nearest of those not yet visited comes next
        rest = distance(points[order[i + 1 :]], points[order[i]])
        j = i + 1 + int(rest.argmin())
        order[i + 1], order[j] = order[j], order[i + 1]
    path = points[order]
    shorter = True
    while shorter:
        shorter = False
        edges = np.append(distance(path[1:], path[:-1]), 0.0)  # an edge of length 0 behind the last point
        for i in range(n - 2):
            # turn round what lies between i and j: edges (i, i+1), (j, j+1) become (i, j), (i+1, j+1)
            joined = distance(path[i + 2 :], path[i])
            other = np.append(distance(path[i + 3 :], path[i + 1]), 0.0)
            gain = edges[i] + edges[i + 2 :] - joined - other
            best = int(gain.argmax())
            if gain[best] > _LEAST_GAIN:
                j = i + 2 + best
                path[i + 1 : j + 1] = path[i + 1 : j + 1][::-1].copy()
                order[i + 1 : j + 1] = order[i + 1 : j + 1][::-1].copy()
                edges[i + 1 : j] = edges[i + 1 : j][::-1].copy()
                edges[i], edges[j] = joined[best], other[best]
                shorter = True
    seconds = np.sort(nearest[:, 1])
    bound = 0.5 * float(nearest.sum() - seconds[-2:].sum())
    return Tour(order, float(distance(path[1:], path[:-1]).sum()), bound)


def tour_task(points: int = 32, dimension: int = 2, part: str = "free", seed: int = 0) -> Task:
    """A short path through random points as samples: what a network of inner dimension 1 has to learn.

    Points are uniform in the unit cube, and `t` is the length along the path up to each, over its whole length. A
    network with a layer of one neuron that interpolates the identity on the points factors into an encoder `x ↦ t` and
    a decoder `t ↦ x` along some path through them (arXiv 2305.19008, docs/theory 3.5). The test samples are the middles
    of the path's edges.

    Args:
        points: how many, at least 3.
        dimension: `k*`, that of the cube.
        part: `encoder` (from point to `t`), `decoder` (from `t` to point) or `free` (from point to point).
        seed: of the points; the three parts of one seed have the same.

    Raises:
        InputError: fewer than 3 points, a dimension below 1, or an unknown part.
    """
    whole_number("points", points, 3)
    whole_number("dimension", dimension)
    if part not in _PARTS:
        raise InputError("part", part, ", ".join(_PARTS), near_name_hint(part, _PARTS))
    cloud = numpy_generator(seed, f"tour of {points} points in {dimension}").random((points, dimension))
    tour = short_tour(cloud)
    path = torch.from_numpy(cloud[tour.order])
    along = torch.cat([path.new_zeros(1), (path[1:] - path[:-1]).norm(dim=1).cumsum(0)])[:, None] / tour.length
    middles = (path[1:] + path[:-1]) / 2, (along[1:] + along[:-1]) / 2
    train = {"points": path, "along": along}
    test = {"points": middles[0], "along": middles[1]}
    x, y = {"encoder": ("points", "along"), "decoder": ("along", "points"), "free": ("points", "points")}[part]
    return make_task(
        f"{part} of a path through {points} points",
        "regression",
        (train[x], train[y]),
        (test[x], test[y]),
        feature_names=["t"] if x == "along" else [f"x{i}" for i in range(dimension)],
        description={
            "source": "tour", "points": points, "dimension": dimension, "part": part, "length": tour.length,
            "rank": dimension if part == "free" else 1, "seed": seed,
        },
    )  # fmt: skip
