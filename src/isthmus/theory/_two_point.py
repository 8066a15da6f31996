"""Two points while a network learns to tell them apart: the three equations, solved exactly, and where they lead."""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus._errors import InputError
from isthmus.theory._two_point_flow import decoder_parts, flow, halves, modes

Numbers = float | int | Tensor

_SLACK = 1e-9
"""What rounding may add to `dy·dy*` beyond `‖dy‖ ‖dy*‖`, as a share of it."""


@dataclasses.dataclass(frozen=True)
class TwoPointPath:
    """The state of pairs of samples over time (arXiv 2402.09142, docs/theory 2.1).

    Attributes:
        times: `t`, in steps where the rates are per step.
        h: `‖dh‖²`, squared distance of the two hidden representations.
        y: `‖dy‖²`, squared distance of the two predictions.
        v: `‖dy‖² − dy·dy*`.
        loss: `¼ (2 e^{−2η_ȳ t} m_0 + v + ½ (Y − y))`, the mean-square loss of the pair.
    """

    times: Float[Tensor, " times"]
    h: Float[Tensor, "*systems times"]
    y: Float[Tensor, "*systems times"]
    v: Float[Tensor, "*systems times"]
    loss: Float[Tensor, "*systems times"]


@dataclasses.dataclass(frozen=True)
class TwoPointLimit:
    """Where pairs of samples end, and how fast (arXiv 2402.09142, docs/theory 2.3).

    Attributes:
        invariant: `A = h − (η_h/η_y) X y/h`, constant in time.
        h: `h_∞ = ½ (A + √(A² + 4 (η_h/η_y) X Y))`; `max(A, 0)` where the targets agree.
        y: `Y`, the squared distance of the targets.
        growth_rate: `½ η_y √(A² + 4 (η_h/η_y) X Y)` per unit of time: from small weights h grows as `e^{rate·t}`.
            It is `η_y h_∞` where `A = 0`.
        time_scale: `1 / growth_rate`; infinite where the rate is 0.
        laziness: `A / √(A² + 4 (η_h/η_y) X Y)`: 0 is rich, 1 lazy, −1 a start with all its weight in the decoder.
    """

    invariant: Float[Tensor, "*systems"]
    h: Float[Tensor, "*systems"]
    y: Float[Tensor, "*systems"]
    growth_rate: Float[Tensor, "*systems"]
    time_scale: Float[Tensor, "*systems"]
    laziness: Float[Tensor, "*systems"]


def numbers(argument: str, value: Numbers, *, least: str = "> 0") -> Tensor:
    """The value as float64, checked: finite, and `> 0`, `>= 0` or any number."""
    found = torch.as_tensor(value).detach().double()
    fits = {"> 0": found > 0, ">= 0": found >= 0, "": torch.ones_like(found, dtype=torch.bool)}[least]
    if not found.numel() or not bool((torch.isfinite(found) & fits).all()):
        raise InputError(argument, value, f"finite numbers{' ' if least else ''}{least.replace('>=', '≥')}")
    return found


def check_distances(dx2: Numbers, dy2: Numbers) -> tuple[Tensor, Tensor]:
    """Squared distances of the inputs, which have to differ, and of the targets, which need not."""
    distances = numbers("dx2", dx2, least=">= 0")
    if bool((distances == 0).any()):
        raise InputError(
            "dx2", dx2, "a squared distance > 0", "identical inputs cannot be told apart: leave such pairs out"
        )
    return distances, numbers("dy2", dy2, least=">= 0")


def check_state(h: Tensor, y: Tensor, v: Tensor, Y: Tensor) -> None:
    """`|dy·dy*| ≤ ‖dy‖ ‖dy*‖`, without which no two vectors have this state."""
    allowed = (y * Y).sqrt()
    if bool(((y - v).abs() > allowed + _SLACK * (allowed + y + v.abs())).any()):
        raise InputError("v0", v, "|y0 − v0| ≤ √(y0 · dy2), since y0 − v0 is dy·dy*", "v is ‖dy‖² − dy·dy*")


def broadcast(**values: Tensor) -> list[Tensor]:
    """The values in one common shape."""
    try:
        return [*torch.broadcast_tensors(*values.values())]
    except RuntimeError:
        shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in values.items())
        raise InputError(", ".join(values), shapes, "shapes that broadcast to one shape of systems") from None


def two_point(
    times: Float[Tensor, " times"],
    h0: Numbers,
    y0: Numbers,
    v0: Numbers,
    *,
    eta_h: Numbers,
    eta_y: Numbers,
    dx2: Numbers,
    dy2: Numbers,
    mean_gap: Numbers = 0.0,
    eta_mean: Numbers = 0.0,
) -> TwoPointPath:
    """The distance of two hidden representations while the network learns, exactly and at any times.

    With `X = ‖dx‖²`, `Y = ‖dy*‖²` the state follows

        dh/dt = −η_h X v,
        dy/dt = −v (η_y h + η_h X y/h),
        dv/dt = −½ η_y (3v − y + Y) h − ½ η_h X (y + v) v/h

    (arXiv 2402.09142, docs/theory 2.1), of which this is the closed form (docs/theory 2.2): no step size, and no
    trouble where h is small, at any length of time. Many systems at once: everything but `times` broadcasts.

    Args:
        times: `t ≥ 0`, in any order.
        h0: `h(0) > 0`.
        y0: `y(0) ≥ 0`.
        v0: `v(0)`, with `|y0 − v0| ≤ √(y0 · dy2)`.
        eta_h: effective learning rate of the encoder.
        eta_y: effective learning rate of the decoder.
        dx2: `X`, squared distance of the two inputs.
        dy2: `Y`, squared distance of the two targets; 0 where they agree.
        mean_gap: `m_0`, squared distance of the mean prediction from the mean target at the start; for the loss.
        eta_mean: `η_ȳ`, effective learning rate of the mean; for the loss.

    Raises:
        InputError: numbers out of range, identical inputs, a state that no vectors have, or unlike shapes.

    Example:
        >>> path = two_point(torch.tensor([0.0, 100.0]), 0.01, 0.0, 0.0, eta_h=1, eta_y=1, dx2=1, dy2=0.25)
        >>> round(float(path.h[-1]), 4)  # ½ (0.01 + √(0.01² + 4 · 0.25))
        0.505
    """
    t = numbers("times", times, least=">= 0")
    inputs, targets = check_distances(dx2, dy2)
    h, y, v, rate_h, rate_y, X, Y, gap, rate_mean = broadcast(
        h0=numbers("h0", h0), y0=numbers("y0", y0, least=">= 0"), v0=numbers("v0", v0, least=""),
        eta_h=numbers("eta_h", eta_h), eta_y=numbers("eta_y", eta_y), dx2=inputs, dy2=targets,
        mean_gap=numbers("mean_gap", mean_gap, least=">= 0"), eta_mean=numbers("eta_mean", eta_mean, least=">= 0"),
    )  # fmt: skip
    check_state(h, y, v, Y)
    a, b = decoder_parts(h, y, v, Y)
    column = [x[..., None] for x in (h, a, b, rate_h, rate_y, X, Y)]
    found = flow(t, modes(*column))
    mean = 2 * torch.exp(-2 * rate_mean[..., None] * t) * gap[..., None]
    loss = (mean + found.v + (column[-1] - found.y) / 2) / 4
    return TwoPointPath(times=t, h=found.h, y=found.y, v=found.v, loss=loss)


def two_point_limit(
    h0: Numbers, y0: Numbers, *, eta_h: Numbers, eta_y: Numbers, dx2: Numbers, dy2: Numbers
) -> TwoPointLimit:
    """The fixed point that pairs of samples come to, with the rate, and how rich or lazy they learn.

    It is the only fixed point with `h > 0` (where the targets agree: with `A > 0`), and almost every start comes to
    it: those that do not have `A ≤ 0` and point exactly away from the target, and end at `h = 0`
    (arXiv 2402.09142, docs/theory 2.3).

    Args:
        h0: `h(0) > 0`.
        y0: `y(0) ≥ 0`.
        eta_h: effective learning rate of the encoder.
        eta_y: effective learning rate of the decoder.
        dx2: `X`, squared distance of the two inputs.
        dy2: `Y`, squared distance of the two targets.

    Raises:
        InputError: numbers out of range, identical inputs, or shapes that do not broadcast.

    Example:
        >>> limit = two_point_limit(1e-6, 0.0, eta_h=4, eta_y=1, dx2=1, dy2=0.25)
        >>> round(float(limit.h), 4), round(float(limit.laziness), 4)  # rich: √(4 · 0.25)
        (1.0, 0.0)
    """
    inputs, targets = check_distances(dx2, dy2)
    h, y, rate_h, rate_y, X, Y = broadcast(
        h0=numbers("h0", h0), y0=numbers("y0", y0, least=">= 0"), eta_h=numbers("eta_h", eta_h),
        eta_y=numbers("eta_y", eta_y), dx2=inputs, dy2=targets,
    )  # fmt: skip
    ratio = rate_h * X / rate_y
    A = h - ratio * y / h
    m, up, _ = halves(A, (ratio * Y).sqrt())
    growth = rate_y * m
    return TwoPointLimit(
        invariant=A,
        h=up.square(),
        y=Y.clone(),
        growth_rate=growth,
        time_scale=1 / growth,
        laziness=torch.where(m > 0, A / 2 / torch.where(m > 0, m, 1.0), 0.0),
    )


def final_distances(
    dx2: Float[Tensor, "samples samples"],
    dy2: Float[Tensor, "samples samples"],
    h0: Float[Tensor, "samples samples"] | None = None,
    y0: Float[Tensor, "samples samples"] | None = None,
    *,
    ratio: float | int = 1.0,
) -> Float[Tensor, "samples samples"]:
    """Squared distances of the hidden representations of a trained layer, for all pairs of a data set.

    `h_∞ = ½ (A + √(A² + 4 (η_h/η_y) X Y))` for each pair, `A = h_0 − (η_h/η_y) X y_0/h_0`; without a start the rich
    limit `√(η_h/η_y) √(X Y)` (arXiv 2402.09142, docs/theory 2.3). Pairs whose inputs are the same sample (`X = 0`)
    stay at 0.

    Args:
        dx2: squared distances of the inputs.
        dy2: squared distances of the targets.
        h0: squared distances of the hidden representations at the start; None for the rich limit.
        y0: squared distances of the predictions at the start; 0 if None.
        ratio: `η_h/η_y`.

    Raises:
        InputError: negative squared distances or numbers that are not finite, matrices of different shapes, `h0` of 0
            where the inputs differ, or `y0` without `h0`.

    Example:
        >>> d = torch.tensor([[0.0, 4.0], [4.0, 0.0]])
        >>> float(final_distances(d, d)[0, 1])
        4.0
    """
    scale = float(numbers("ratio", ratio))
    inputs, targets = numbers("dx2", dx2, least=">= 0"), numbers("dy2", dy2, least=">= 0")
    if h0 is None and y0 is not None:
        raise InputError("h0", h0, "the distances of the representations at the start, where y0 is given")
    h = torch.zeros_like(inputs) if h0 is None else numbers("h0", h0, least=">= 0")
    y = torch.zeros_like(inputs) if y0 is None else numbers("y0", y0, least=">= 0")
    X, Y, h, y = broadcast(dx2=inputs, dy2=targets, h0=h, y0=y)
    apart = X > 0
    if h0 is not None and bool((h[apart] == 0).any()):
        raise InputError("h0", h0, "squared distances > 0 where the inputs differ")
    A = h - scale * X * y / torch.where(h > 0, h, 1.0)
    _, up, _ = halves(A, (scale * X * Y).sqrt())
    return torch.where(apart, up.square(), 0.0)
