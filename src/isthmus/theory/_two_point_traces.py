"""Traces of two samples over a run, checked: which of their times a fit can use, and what is wrong with them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from isthmus._errors import InputError

Start = Literal["measured", "fitted"]

_LEAST = 8
_EXPLODED = 4
"""Gradient flow cannot make `‖dy − dy*‖²` larger: beyond this multiple of its start a run that ends in NaN diverges."""


def check_times(t: Tensor) -> None:
    """Enough times, finite and increasing."""
    if t.ndim != 1 or len(t) < _LEAST:
        hint = "measure the pair more often"
        raise InputError("t", f"shape {tuple(t.shape)}", f"one list of at least {_LEAST} times", hint)
    if not bool(torch.isfinite(t).all()) or not bool((t.diff() > 0).all()):
        raise InputError("t", t, "finite times, each later than the one before")


def usable(h: Tensor, y: Tensor, v: Tensor, dy2: float) -> tuple[int, str]:
    """How many of the times can be fitted, and in words why not all of them.

    Raises:
        InputError: traces that cannot be fitted.
    """
    named = {"h": h, "y": y, "v": v}
    used, note = len(h), ""
    first, name = min((_first_bad(row), name) for name, row in named.items())
    if first < used:
        what = f"{float(named[name][first])} at index {first}"
        if bool(torch.isfinite(torch.stack([h, y, v])[:, first:]).all(0).any()):
            hint = "leave out the times at which nothing was measured"
            raise InputError(name, what, "finite numbers, or none from there on", hint)
        distance = (2 * v - y)[:first] + dy2
        fine = (distance <= _EXPLODED * (distance[:1] + dy2)).nonzero()
        used = int(fine[-1]) + 1 if len(fine) else 0
        if used < _LEAST:
            raise InputError(name, what, f"finite numbers at the first {_LEAST} times or more", "did the run diverge?")
        note = f"the run diverged ({name} is {what}): fitted to the first {used} of {len(h)} times"
    for name, trace in named.items():
        row = trace[:used]
        if name != "v" and bool((row < 0).any()):
            raise InputError(name, float(row.min()), "squared distances, which are ≥ 0", "v alone may be negative")
        if float(row.max() - row.min()) <= 1e-12 * float(row.abs().max()):
            raise InputError(
                name, f"{float(row[0]):.6g} at all times", "a trace that changes", "nothing is learned here"
            )
    if not float(h[0]) > 0:
        raise InputError("h", "0 at the first time", "two representations that differ at the start")
    return used, note


def _first_bad(row: Tensor) -> int:
    bad = (~torch.isfinite(row)).nonzero()
    return int(bad[0]) if len(bad) else len(row)


def gap_of_means(loss: Tensor, y: Tensor, v: Tensor, dy2: Tensor) -> Tensor:
    """`‖ȳ − ȳ*‖²` from the loss of the pair, of which `⅛ ‖dy − dy*‖²` is the other part."""
    return 2 * loss - (v + (dy2 - y) / 2) / 2


def check_gap(name: str, gap: Tensor) -> None:
    """Squared distances of means at the times that are used, from which a rate can be had.

    Raises:
        InputError: a gap that is not finite, negative, closed from the start, or constant.
    """
    if not bool(torch.isfinite(gap).all()):
        raise InputError(name, "numbers that are not finite", "finite numbers at the times that are fitted")
    first, low, high = float(gap[0]), float(gap.min()), float(gap.max())
    if low < -0.01 * max(high, 0.0) or not first > 0:
        expected = "numbers ≥ 0, and > 0 at the first time"
        hint = "" if name == "mean" else "loss is ½·MSE of the pair: summed over outputs, the mean of the two samples"
        raise InputError(name, f"‖ȳ − ȳ*‖² from {first:g} on, down to {low:g}", expected, hint)
    if high - low <= 1e-9 * high:
        raise InputError(name, f"‖ȳ − ȳ*‖² = {first:g} at all times", "a mean that moves", "nothing is learned here")
