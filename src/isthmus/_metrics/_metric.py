"""What the definition of a number says."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Metric:
    """Definition of one number: what it is of, its formula, unit, source, and how far to trust it."""

    name: str
    of: str
    definition: str
    unit: str
    source: str
    trust: str = ""
