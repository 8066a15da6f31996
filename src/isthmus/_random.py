"""The only maker of random generators: every draw of the package is reproducible from a seed and a purpose."""

from __future__ import annotations

import hashlib
import operator

import numpy as np
import torch

from isthmus._errors import InputError


def check_seed(seed: int) -> int:
    """Return `seed` if it is an integer in [0, 2⁶³), else raise `InputError`."""
    try:
        value = operator.index(seed)
    except TypeError:
        value = -1
    if not 0 <= value < 2**63:
        raise InputError("seed", seed, "an integer in [0, 2**63)")
    return value


def _derive(seed: int, purpose: str) -> int:
    digest = hashlib.sha256(f"{check_seed(seed)}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def torch_generator(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator for one purpose; different purposes of one seed are independent streams.

    Draws are made on the CPU and moved, so that a seed gives the same numbers on every device.
    """
    return torch.Generator("cpu").manual_seed(_derive(seed, purpose))


def numpy_generator(seed: int, purpose: str) -> np.random.Generator:
    """The NumPy twin of `torch_generator`."""
    return np.random.default_rng(_derive(seed, purpose))
