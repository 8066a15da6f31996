from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from isthmus._errors import InputError
from isthmus.models import Adaptive, Equidistant, Irregular, LayerSteps, as_steps

ROUNDING = 1e-14  # a few ulps of sums of at most 40 positive terms that add up to 1


@pytest.mark.parametrize("depth", [1, 2, 7, 20])
@pytest.mark.parametrize("rule", [Equidistant(), Irregular(), Irregular(0.9, symmetric=False), Adaptive()])
def test_initial_steps_are_positive_float64_and_sum_to_one(rule: LayerSteps, depth: int) -> None:
    rho = rule.initial(depth, 0.5 * depth)
    assert rho.dtype == torch.float64
    assert rho.shape == (depth,)
    assert bool((rho > 0).all())
    assert abs(float(rho.sum()) - 1) < ROUNDING


def test_equidistant_adaptive_and_flat_irregular_start_equal() -> None:
    for rule in (Equidistant(), Adaptive(), Irregular(a=0.0)):
        assert rule.initial(8, 3).tolist() == [0.125] * 8


@pytest.mark.parametrize("symmetric", [True, False])
def test_irregular_is_the_papers_formula(symmetric: bool) -> None:
    a, depth = 0.6, 6  # for even depth the formula sums to 1 by itself (docs/theory 1.3)
    rho = Irregular(a, symmetric).initial(depth, 2.0).tolist()
    for index in range(1, depth + 1):
        t = (index - 0.5) / depth if symmetric else index / depth
        expected = 1 / depth + a / depth * (0.25 - abs(t - 0.5))
        assert rho[index - 1] == pytest.approx(expected, abs=ROUNDING)


def test_irregular_symmetry_and_shorter_steps_at_the_ends() -> None:
    rho = Irregular(0.5).initial(9, 1.0)
    torch.testing.assert_close(rho, rho.flip(0), rtol=0, atol=ROUNDING)
    assert rho.argmax() == 4
    assert rho[0] < 1 / 9 < rho[4]
    papers = Irregular(0.5, symmetric=False).initial(9, 1.0)
    assert float((papers - papers.flip(0)).abs().max()) > 1e-3


@given(depth=st.integers(1, 40), a=st.floats(0, 0.999), ratio=st.floats(0, 1), symmetric=st.booleans())
def test_steps_that_are_accepted_keep_the_skip_factor_positive(
    depth: int, a: float, ratio: float, symmetric: bool
) -> None:
    effective_depth = ratio * depth / (1 + a / 4) * (1 - 1e-9)
    rho = Irregular(a, symmetric).initial(depth, effective_depth)
    assert float(rho.max()) * effective_depth < 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Equidistant().initial(7, 7.0), "depth: got 7, expected depth > effective_depth for effective_depth 7"),
        (lambda: Equidistant().initial(7, 9.5), "try depth=10 or more"),
        (lambda: Irregular(0.8).initial(6, 5.0), "(1 + a/4)·effective_depth with a = 0.8"),
        (lambda: Irregular(0.8).initial(6, 5.5), "try depth=7 or more"),
        (lambda: Adaptive(cap=0.5).initial(10, 5.0), "effective_depth/cap with cap = 0.5"),
        (lambda: Equidistant().initial(0, 1.0), "depth: got 0, expected an integer of at least 1"),
        (lambda: Equidistant().initial(3, -1.0), "effective_depth: got -1.0, expected a finite number of at least 0"),
        (lambda: Equidistant().initial(3, math.nan), "effective_depth: got nan"),
        (lambda: Equidistant().initial(3, math.inf), "effective_depth: got inf"),
        (lambda: Irregular(a=1.0), "a: got 1.0, expected a number in [0, 1)"),
        (lambda: Irregular(a=-0.1), "a: got -0.1"),
        (lambda: Irregular(a=math.nan), "a: got nan"),
        (lambda: Adaptive(interval=0), "interval: got 0, expected an integer of at least 1"),
        (lambda: Adaptive(damping=0.0), "damping: got 0.0, expected a number in (0, 1]"),
        (lambda: Adaptive(damping=1.1), "damping: got 1.1"),
        (lambda: Adaptive(floor=0.0), "floor: got 0.0"),
        (lambda: Adaptive(smallest=1.0), "smallest: got 1.0"),
        (lambda: Adaptive(cap=0.0), "cap: got 0.0"),
        (lambda: Adaptive(cap=math.inf), "cap: got inf"),
        (lambda: as_steps("adaptative"), "did you mean 'adaptive'?"),
        (lambda: as_steps("?"), "known: adaptive, equidistant, irregular"),
        (lambda: _update([0.5, 0.5], [1.0, math.nan]), "speed: got [1.0, nan], expected finite speeds"),
        (lambda: _update([0.5, 0.5], [1.0, math.inf]), "speed: got [1.0, inf]"),
        (lambda: _update([0.5, 0.5], [1.0, -1.0]), "speed: got [1.0, -1.0]"),
        (lambda: _update([1.0, 0.0], [1.0, 1.0]), "rho: got [1.0, 0.0], expected positive finite steps"),
        (lambda: _update([0.5, 0.5], [1.0, 1.0], 1.8), "effective_depth/cap with cap = 0.9"),
    ],
)
def test_bad_input_names_argument_value_and_what_to_try(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        make()


def _update(rho: list[float], speed: list[float], effective_depth: float = 0.5) -> Tensor:
    return Adaptive().update(torch.tensor(rho), torch.tensor(speed), effective_depth)


def test_as_steps_passes_rules_through_and_knows_names() -> None:
    rule = Irregular(0.25)
    assert as_steps(rule) is rule
    assert [as_steps(n) for n in ("equidistant", "irregular", "adaptive")] == [Equidistant(), Irregular(), Adaptive()]
    assert [as_steps(n).adaptive for n in ("equidistant", "irregular", "adaptive")] == [False, False, True]
    assert as_steps("irregular").name == "irregular"


@given(raw=st.lists(st.floats(0.2, 5), min_size=2, max_size=20), scale=st.floats(1e-12, 1e12))
def test_equal_moves_are_the_fixed_point(raw: list[float], scale: float) -> None:
    rho = torch.tensor(raw) / sum(raw)
    out = Adaptive(smallest=1e-3, floor=1e-6).update(rho, scale / rho, 0.0)
    torch.testing.assert_close(out, rho, rtol=1e-13, atol=0)  # logs and exps of numbers near 1


def test_equal_speeds_keep_equal_steps() -> None:
    rho = torch.full((10,), 0.1)
    torch.testing.assert_close(Adaptive().update(rho, torch.full((10,), 3.0), 5.0), rho, rtol=1e-14, atol=0)


def test_unprojected_update_is_the_formula() -> None:
    rho, speed, beta = torch.tensor([0.2, 0.3, 0.5]), torch.tensor([2.0, 1.0, 0.5]), 0.3
    expected = rho ** (1 - beta) * speed**-beta
    out = Adaptive(damping=beta).update(rho, speed, 0.0)
    torch.testing.assert_close(out, expected / expected.sum(), rtol=1e-14, atol=0)
    undamped = Adaptive(damping=1).update(rho, speed, 0.0)
    torch.testing.assert_close(undamped, speed**-1 / (speed**-1).sum(), rtol=1e-14, atol=0)


@settings(max_examples=300)
@given(data=st.data(), depth=st.integers(1, 30), ratio=st.floats(0, 0.999), damping=st.floats(0.01, 1))
def test_update_keeps_sum_bounds_and_order(data: st.DataObject, depth: int, ratio: float, damping: float) -> None:
    numbers = st.one_of(st.just(0.0), st.floats(1e-300, 1e300), st.floats(0.1, 10))
    speed = torch.tensor(data.draw(st.lists(numbers, min_size=depth, max_size=depth)))
    raw = torch.tensor(data.draw(st.lists(st.floats(1e-12, 1), min_size=depth, max_size=depth)))
    rule = Adaptive(damping=damping)
    effective_depth = ratio * rule.cap * depth
    out = rule.update(raw / raw.sum(), speed, effective_depth)
    assert abs(float(out.sum()) - 1) < 1e-12
    assert float(out.min()) >= rule.smallest / depth
    assert float(out.max()) * effective_depth <= rule.cap * (1 + 1e-15)
    equal = rule.update(torch.full((depth,), 1 / depth), speed, effective_depth)
    order = speed.argsort()
    assert bool((equal[order].diff() <= 0).all())  # from equal steps: the faster a layer, the shorter its step


def test_projection_against_a_dense_search() -> None:
    # The oracle scans t in clip(t ρ, lo, hi) finely; rules with β → 0⁺ leave ρ to the projection alone.
    generator = torch.Generator().manual_seed(1)
    rule, depth, effective_depth = Adaptive(damping=1e-9, smallest=0.5), 6, 3.0
    rho = torch.tensor([0.6, 0.2, 0.1, 0.06, 0.03, 0.01])
    out = rule.update(rho, torch.rand(depth, generator=generator) + 1, effective_depth)
    lo, hi = 0.5 / depth, 0.9 / effective_depth
    t = torch.linspace(0, 20, 2_000_001)
    sums = (t[:, None] * rho).clamp(lo, hi).sum(1)
    best = t[(sums - 1).abs().argmin()]
    torch.testing.assert_close(out, (best * rho).clamp(lo, hi), rtol=0, atol=1e-5)  # grid of t: 1e-5 · 0.6
    assert out[0] == hi
    assert out[-1] == lo


def test_layers_that_stand_still_survive() -> None:
    rho = torch.full((4,), 0.25)
    still = Adaptive().update(rho, torch.zeros(4), 1.0)
    torch.testing.assert_close(still, rho, rtol=1e-15, atol=0)
    one = Adaptive().update(rho, torch.tensor([0.0, 1.0, 1.0, 1.0]), 1.0)
    assert bool(torch.isfinite(one).all())
    assert one.argmax() == 0


def _weak_linear_speed(rho: Tensor, effective_depth: float) -> Tensor:
    """`c_ℓ` of `α_ℓ = (1 − ρL̃) α_{ℓ−1}`, the linear leaky network whose weights have decayed to 0."""
    skip = 1 - rho * effective_depth
    a = torch.cumprod(torch.cat([torch.ones(1), skip]), 0)
    return (a[1:] - a[:-1]).abs() / (rho * a[1:].abs())


def _iterate(rule: Adaptive, rho: Tensor, effective_depth: float, updates: int) -> Tensor:
    for _ in range(updates):
        rho = rule.update(rho, _weak_linear_speed(rho, effective_depth), effective_depth)
    return rho


def test_undamped_update_oscillates_for_ever_where_the_damped_one_converges() -> None:
    # Here ρ ← (1 − ρL̃)/(L − L̃): slope −L̃/(L − L̃), beyond −1 for mean ρL̃ > ½ (0.6 here); damped ½(1 − 1.5) = −¼.
    depth, effective_depth = 10, 6.0
    start = torch.full((depth,), 0.1) + 1e-3 * torch.linspace(-1, 1, depth)
    start = start / start.sum()
    undamped = Adaptive(damping=1.0, floor=1e-9)
    late = _iterate(undamped, start, effective_depth, 400)
    after_one, after_two = (_iterate(undamped, late, effective_depth, n) for n in (1, 2))
    torch.testing.assert_close(after_two, late, rtol=0, atol=1e-12)
    assert float((after_one - late).abs().max()) > 0.5 / depth
    damped = _iterate(Adaptive(), start, effective_depth, 60)
    torch.testing.assert_close(damped, torch.full((depth,), 0.1), rtol=0, atol=1e-12)  # 4⁻⁶⁰ and rounding


@pytest.mark.parametrize("updates", [4_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_many_updates_keep_sum_and_bounds(updates: int) -> None:
    rule, depth, effective_depth = Adaptive(damping=1.0), 5, 3.0
    generator = torch.Generator().manual_seed(0)
    rho = rule.initial(depth, effective_depth)
    speeds = 10 ** (20 * torch.rand(1000, depth, generator=generator) - 10)
    for n in range(updates // 4):
        rho = rule.update(rho, speeds[n % 1000], effective_depth)
    for _ in range(updates * 3 // 4):  # the same layer fast for ever: its step must stop at the bound, not underflow
        rho = rule.update(rho, speeds[0], effective_depth)
    assert abs(float(rho.sum()) - 1) < ROUNDING
    assert float(rho.min()) >= rule.smallest / depth
    assert float(rho.max()) <= rule.cap / effective_depth
