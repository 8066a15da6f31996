"""The papers whose figures can be made again, by the name that commands know them by."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from isthmus._records import RunFolder
from isthmus.experiments._bottleneck_paper import BOTTLENECK, plan_bottleneck, reproduce_bottleneck
from isthmus.experiments._effective_paper import EFFECTIVE, plan_effective, reproduce_effective
from isthmus.experiments._equilibrium_paper import EQUILIBRIUM, plan_equilibrium, reproduce_equilibrium
from isthmus.experiments._leaky_paper import LEAKY, plan_reproduction, reproduce_leaky_resnets
from isthmus.experiments._paper import Paper


@dataclasses.dataclass(frozen=True)
class Reproducible:
    """A paper, and what makes its figures.

    Attributes:
        paper: names of its figures and presets.
        plan: `plan(preset, figures, device=…)`, how many networks they need.
        reproduce: `reproduce(out, preset=…, figures=…, jobs=…, device=…, progress=…)`, the folder.
        reads_data: both also take `data=…`, a file of samples.
    """

    paper: Paper
    plan: Callable[..., int]
    reproduce: Callable[..., RunFolder]
    reads_data: bool = False


PAPERS = {
    "leaky-resnets": Reproducible(LEAKY, plan_reproduction, reproduce_leaky_resnets),
    "bottleneck": Reproducible(BOTTLENECK, plan_bottleneck, reproduce_bottleneck),
    "equilibrium": Reproducible(EQUILIBRIUM, plan_equilibrium, reproduce_equilibrium, reads_data=True),
    "effective-theory": Reproducible(EFFECTIVE, plan_effective, reproduce_effective, reads_data=True),
}
"""By the name in `isthmus reproduce`."""
