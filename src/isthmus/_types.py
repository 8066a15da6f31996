"""Shape aliases used in signatures (checked at run time under pytest only)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

Samples = Float[Tensor, "n width"]
"""A batch of representations: rows are samples (the transpose of the formulas' `A`)."""
