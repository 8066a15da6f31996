"""Samples whose inputs and targets both come from a few hidden numbers, and a non-negative map of known cost."""

from __future__ import annotations

import math

import torch

from isthmus._errors import InputError
from isthmus._random import torch_generator
from isthmus.data._task import Scaling, Task, make_task
from isthmus.data._teachers import shallow_network
from isthmus.models import whole_number


def latent_teacher(
    latent: int = 8,
    used: int = 2,
    inputs: int = 20,
    outputs: int = 20,
    n_train: int = 300,
    n_test: int = 1000,
    seed: int = 0,
) -> Task:
    """Regression with inputs `x = g(z)` and targets `y = h(z_1 … z_used)` of a hidden `z` (docs/theory 3.6).

    `z` is standard Gaussian with `latent` entries; `g` and `h` are random networks with one hidden layer of 100 tanh
    units. Inputs fill `latent` dimensions and targets `used`, so the map from `x` to `y` has bottleneck rank `used`
    (arXiv 2305.19008). The paper's own networks and numbers of samples are not known to us. Columns of inputs are
    centred and scaled to mean square 1, and targets are centred and scaled by one number to mean square 1.

    Args:
        latent: entries of `z`.
        used: entries that the targets depend on.
        inputs: entries of `x`, at least `latent` for `x` to determine `z`.
        outputs: entries of `y`.
        n_train: training samples.
        n_test: test samples.
        seed: of networks and samples.

    Raises:
        InputError: a count below 1 (below 2 training samples), or `used` above `latent`.
    """
    for argument, value in (("latent", latent), ("used", used), ("inputs", inputs), ("outputs", outputs),
                            ("n_test", n_test)):  # fmt: skip
        whole_number(argument, value)
    whole_number("n_train", n_train, 2)
    if used > latent:
        raise InputError("used", used, f"at most latent = {latent}")
    weights, samples = torch_generator(seed, "latent weights"), torch_generator(seed, "latent samples")
    g, h = shallow_network(latent, inputs, weights), shallow_network(used, outputs, weights)
    z = torch.randn(n_train + n_test, latent, generator=samples, dtype=torch.float64)
    x, y = g(z), h(z[:, :used])
    return make_task(
        f"latent {latent}→{used}",
        "regression",
        (x[:n_train], y[:n_train]),
        (x[n_train:], y[n_train:]),
        feature_names=[f"x{i}" for i in range(inputs)],
        description={
            "source": "latent teacher", "latent": latent, "used": used, "rank": used, "seed": seed,
            "n_train": n_train, "n_test": n_test,
        },
    )  # fmt: skip


def nonnegative_map(
    values: tuple[float, ...] | list[float] = (3.0, 0.5),
    block: int = 2,
    n_train: int = 100,
    n_test: int = 100,
    seed: int = 0,
) -> Task:
    """Regression `y = A x` on inputs `x ≥ 0`, with `A ≥ 0` of known singular values: its cost is known exactly.

    `A = Σ s_i u_i v_iᵀ` with non-negative unit vectors `u_i` of disjoint supports, and the same for `v_i`, so that a
    ReLU network can carry `v_iᵀ x ≥ 0` through the depth: `R(A; L) = L Σ s_i^{2/L}`, as for a linear network (arXiv
    2305.19008, docs/theory 3.2). Inputs are uniform on [0, 1] and nothing is centred or scaled, which would cost more.

    Args:
        values: singular values of `A`, each above 0.
        block: entries of each `u_i` and `v_i`; inputs and outputs have `block` times as many as there are values.
        n_train: training samples.
        n_test: test samples.
        seed: of the vectors and samples.

    Raises:
        InputError: no value, a value that is not a finite number above 0, or a count below 1.
    """
    if not values or not all(math.isfinite(v) and v > 0 for v in values):
        raise InputError("values", values, "finite numbers above 0")
    for argument, value, least in (("block", block, 1), ("n_train", n_train, 2), ("n_test", n_test, 1)):
        whole_number(argument, value, least)
    generator = torch_generator(seed, "non-negative map")
    side = block * len(values)
    matrix = torch.zeros(side, side, dtype=torch.float64)
    for i, s in enumerate(values):
        u, v = 0.5 + torch.rand(2, block, generator=generator, dtype=torch.float64)
        here = slice(i * block, (i + 1) * block)
        matrix[here, here] = s * torch.outer(u / u.norm(), v / v.norm())
    x = torch.rand(n_train + n_test, side, generator=generator, dtype=torch.float64)
    y = x @ matrix.mT
    one, none = torch.ones(side, dtype=torch.float64), torch.zeros(side, dtype=torch.float64)
    return Task(
        name=f"non-negative map of rank {len(values)}",
        kind="regression",
        x_train=x[:n_train], y_train=y[:n_train], x_test=x[n_train:], y_test=y[n_train:],
        scaling=Scaling(none, one, none.clone(), 1.0),
        feature_names=tuple(f"x{i}" for i in range(side)),
        class_names=(),
        description={
            "source": "non-negative map", "singular_values": list(values), "matrix": matrix.tolist(),
            "rank": len(values), "seed": seed, "n_train": n_train, "n_test": n_test,
        },
    )  # fmt: skip
