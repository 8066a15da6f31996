"""Strict, deterministic, float64: every test states its own tolerance."""

from __future__ import annotations

from collections.abc import Iterator

import hypothesis
import pytest
import torch

from typechecked import check_annotations

# Shapes and types in signatures are checked while the tests run, and only then.
check_annotations("isthmus")

# Tests time nothing: a busy machine fails none.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def _deterministic_float64() -> Iterator[None]:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)
    torch.use_deterministic_algorithms(False)
