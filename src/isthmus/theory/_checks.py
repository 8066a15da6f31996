"""Checks of numbers that a caller gives, each raising `InputError` with the name that the caller wrote."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from torch import Tensor

from isthmus._errors import InputError


def plain(value: object) -> object:
    """Numbers of Python in place of arrays, tensors and their scalars; anything else as it is."""
    return value.tolist() if isinstance(value, (np.ndarray, np.generic, Tensor)) else value


def real(argument: str, value: object, expected: str, fits: Callable[[float], bool]) -> float:
    """`value` as a finite float that `fits`; raises `InputError` that says `expected` otherwise (of a bool, too)."""
    found = plain(value)
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        raise InputError(argument, value, expected)
    try:
        number = float(found)
    except OverflowError:
        number = math.inf
    if not (math.isfinite(number) and fits(number)):
        raise InputError(argument, value, expected)
    return number


def positive(argument: str, value: object) -> float:
    """`value` as a finite number above 0, or `InputError`."""
    return real(argument, value, "a finite number above 0", lambda x: x > 0)


def whole(argument: str, value: object, expected: str, *, least: int) -> int:
    """`value` as an int of at least `least`; raises `InputError` that says `expected` otherwise (of a bool, too)."""
    found = plain(value)
    if isinstance(found, bool) or not isinstance(found, int) or found < least:
        raise InputError(argument, value, expected)
    return found
