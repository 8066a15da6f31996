"""Real data that needs no network: scikit-learn's 1,797 handwritten digits."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from isthmus._errors import InputError
from isthmus._random import numpy_generator
from isthmus.data._task import Task, make_task


def digits(seed: int = 0, test_fraction: float = 0.2) -> Task:
    """The 8 × 8 digits of scikit-learn as a 10-class task, split by class with a seeded generator.

    Three or more pixels are constant over the training digits; a `DataWarning` names them.

    Args:
        seed: of the split.
        test_fraction: share of each class held out, in (0, 1).

    Raises:
        InputError: a fraction outside (0, 1), or one that leaves a class without samples on one side.
    """
    from sklearn.datasets import load_digits

    if not 0 < test_fraction < 1:
        raise InputError("test_fraction", test_fraction, "a number in (0, 1)")
    loaded: Any = load_digits()
    x, y = torch.from_numpy(loaded.data), torch.from_numpy(loaded.target.astype(np.int64))
    rng = numpy_generator(seed, "digits split")
    held_out = np.zeros(len(y), dtype=bool)
    for label in range(10):
        members = np.flatnonzero(loaded.target == label)
        count = round(test_fraction * len(members))
        if not 0 < count < len(members):
            raise InputError("test_fraction", test_fraction, "a share that leaves every digit in both splits",
                             "0.2 is the default")  # fmt: skip
        held_out[rng.permutation(members)[:count]] = True
    test = torch.from_numpy(held_out)
    return make_task(
        "digits",
        "classification",
        (x[~test], y[~test]),
        (x[test], y[test]),
        feature_names=[str(name) for name in loaded.feature_names],
        class_names=[str(c) for c in loaded.target_names],
        description={"source": "sklearn.datasets.load_digits", "split_seed": seed, "test_fraction": test_fraction},
    )
