"""A task with a symmetry: what gradient flow on a rank-one cost does, up to the rotations that leave it alone."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus._errors import InputError
from isthmus._random import torch_generator
from isthmus.data._task import Task, make_task
from isthmus.models import whole_number

FLOW_TIMES = (0.1, 0.2, 0.3, 0.4, 0.5)
"""Default times of the targets; the flow's own is about ¼."""

_STEP = 1e-3
"""Of the Runge-Kutta method, whose error is then below 1e-8."""


def flow_statistics(
    v: Float[Tensor, "n d"], x: Float[Tensor, "n d"], times: Sequence[float] = FLOW_TIMES
) -> Float[Tensor, "n statistics"]:
    """`(vᵀx(t), ‖x(t)‖²)` at every time along the gradient flow of `‖vvᵀ − xxᵀ‖²` from `x`, for unit vectors `v`.

    The flow `ẋ = 4 (vᵀx) v − 4 ‖x‖² x` moves `m = vᵀx` and `r = ‖x‖²` by themselves: `ṁ = 4 m (1 − r)` and
    `ṙ = 8 (m² − r²)` (arXiv 2305.19008, docs/theory 3.6). Columns are `m, r` at the first time, then at the next.

    Args:
        v: unit vectors in rows.
        x: starting points in rows.
        times: at which to read them off, ascending from 0 on.

    Raises:
        InputError: times that are negative or do not ascend, or none.
    """
    ascending = all(a < b for a, b in itertools.pairwise(times))
    if not times or times[0] < 0 or not ascending:
        raise InputError("times", tuple(times), "ascending times ≥ 0")

    def rate(s: Tensor) -> Tensor:
        m, r = s
        return torch.stack([4 * m * (1 - r), 8 * (m.square() - r.square())])

    state, now, found = torch.stack([(v * x).sum(1), x.square().sum(1)]), 0.0, list[Tensor]()
    for time in times:
        steps = max(1, round((time - now) / _STEP))
        h = (time - now) / steps
        for _ in range(steps):
            a = rate(state)
            b = rate(state + h / 2 * a)
            c = rate(state + h / 2 * b)
            state = state + h / 6 * (a + 2 * b + 2 * c + rate(state + h * c))
        now = time
        found += [state[0], state[1]]
    return torch.stack(found, 1)


def rotation_task(
    dimension: int = 4,
    times: Sequence[float] = FLOW_TIMES,
    n_train: int = 600,
    n_test: int = 1000,
    seed: int = 0,
) -> Task:
    """Regression from `(v, x)` to `flow_statistics`: the targets do not change under a rotation of both vectors.

    So they are a function of two numbers, `vᵀx` and `‖x‖²`, of the `2 · dimension` that are given: a network learns the
    symmetry where its bottleneck is a function of those two (arXiv 2305.19008, docs/theory 3.6). `v` is uniform on the
    unit sphere, `x` Gaussian with mean square norm 1. The flow's endpoint itself is `v` times the sign of `vᵀx`, which
    is not a function of two numbers but of `v` and one bit; the targets are the part of the flow that is invariant.

    Args:
        dimension: entries of `v` and of `x`.
        times: see `flow_statistics`.
        n_train: training samples.
        n_test: test samples.
        seed: of the samples.

    Raises:
        InputError: a dimension below 2, a count that is too small, or times that do not ascend.
    """
    for argument, value, least in (("dimension", dimension, 2), ("n_train", n_train, 2), ("n_test", n_test, 1)):
        whole_number(argument, value, least)
    generator = torch_generator(seed, "rotation task")
    v, x = torch.randn(2, n_train + n_test, dimension, generator=generator, dtype=torch.float64)
    v, x = v / v.norm(dim=1, keepdim=True), x / dimension**0.5
    y = flow_statistics(v, x, times)
    whole = torch.cat([v, x], 1)
    return make_task(
        f"gradient flow in {dimension} dimensions",
        "regression",
        (whole[:n_train], y[:n_train]),
        (whole[n_train:], y[n_train:]),
        feature_names=[f"{name}{i}" for name in ("v", "x") for i in range(dimension)],
        description={
            "source": "gradient flow", "dimension": dimension, "times": list(times), "rank": 2, "seed": seed,
            "n_train": n_train, "n_test": n_test,
        },
    )  # fmt: skip
