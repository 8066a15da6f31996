"""Settings of the Leaky ResNet paper's figures (arXiv 2405.17573), in three sizes."""

from __future__ import annotations

import dataclasses
from typing import Any

from isthmus.experiments._leaky_networks import Network
from isthmus.experiments._leaky_run import LeakyConfig

OUTPUTS = 30
PAPER_RIDGE = 1e-3
RIDGE = PAPER_RIDGE * OUTPUTS
"""The paper's λ = 0.001 with its cost averaged over the outputs, in the units of a cost that sums over them."""

BOTTLENECK = 3
SCHEMES = ("equidistant", "irregular", "adaptive")


@dataclasses.dataclass(frozen=True)
class Preset:
    """Sizes and training of all figures.

    Attributes:
        name: of the preset.
        budget: what one figure may take, in words.
        n: training samples, and as many test samples.
        width: `w`.
        depth: `L` of Figs 1 and 3.
        effective_depths: `L̃` of Figs 1a and 3.
        shown: `L̃` of Figs 1b and 1c, and of the comparison of readings of λ.
        finer: `L` of the further networks at the largest `L̃`, which tell discretisation from the rest; 0 for none.
        seeds: of Figs 1 and 3.
        depths: `L` of Fig 2a.
        shown_depth: `L` of Figs 2b and 2c, one of `depths`.
        step_seeds: of Fig 2.
        training: epochs of Adam and SGD and iterations of the finish, for Figs 1 and 3.
        step_training: the same for Fig 2.
    """

    name: str
    budget: str
    n: int
    width: int
    depth: int
    effective_depths: tuple[float, ...]
    shown: float
    finer: int
    seeds: tuple[int, ...]
    depths: tuple[int, ...]
    shown_depth: int
    step_seeds: tuple[int, ...]
    training: tuple[int, int, int]
    step_training: tuple[int, int, int]

    def _network(self, widths: tuple[int, ...], kind: str, training: tuple[int, int, int], seed: int,
                 **settings: Any) -> Network:  # fmt: skip
        epochs, sgd_epochs, finish = training
        source = {"name": "teacher", "seed": seed, "widths": list(widths), "kind": kind, "n_train": self.n,
                  "n_test": self.n}  # fmt: skip
        given: dict[str, Any] = {"ridge": RIDGE, **settings}
        return Network(source, LeakyConfig(width=self.width, epochs=epochs, sgd_epochs=sgd_epochs, finish=finish,
                                           log_points=3, seed=seed, **given))  # fmt: skip

    def rank_network(self, effective_depth: float, seed: int, **settings: Any) -> Network:
        """A network of Figs 1 and 3: teacher 30→3→30 of two fully-connected networks.

        In float64: weights rounded to float32 alone leave a stationarity residual of 0.03 to 0.1 (docs/log.md).
        """
        given: dict[str, Any] = {"depth": self.depth, "dtype": "float64", **settings}
        return self._network((OUTPUTS, BOTTLENECK, OUTPUTS), "mlp", self.training, seed,
                             effective_depth=effective_depth, **given)  # fmt: skip

    def step_network(self, depth: int, steps: str, seed: int) -> Network:
        """A network of Fig 2: teacher 30→6→3→30 of three ResNets, `L̃ = 3`."""
        return self._network((OUTPUTS, 6, BOTTLENECK, OUTPUTS), "resnet", self.step_training, seed, depth=depth,
                             effective_depth=3.0, steps=steps)  # fmt: skip

    @property
    def setting(self) -> str:
        """What holds for all figures, in words."""
        return (
            f"Leaky ResNets of width {self.width} on random teachers, {self.n} Gaussian training and {self.n} test "
            "samples, inputs and targets centred and normalised (the mean of ‖y‖² is 30). Cost C = mean over samples "
            "of ‖y − f‖², summed over the 30 outputs, plus (λ/2L̃) Σ ρ‖W‖² with λ = 0.03: the paper's λ = 0.001 read "
            "with a cost that averages over outputs (the other readings stand beside Fig 1a). Figs 1 and 3: "
            f"{_trained(self.training)}, all in float64; Fig 2: {_trained(self.step_training)}, in float32. Every "
            "Hamiltonian is read off in float64, γ₀ = 0.001 unless said."
        )


def _trained(training: tuple[int, int, int]) -> str:
    epochs, sgd, finish = training
    then = f", {sgd} of SGD" if sgd else ""
    return f"full batch, {epochs} epochs of Adam (3e-2 falling to 0){then}, then a finish of {finish} iterations"


PRESETS = {
    preset.name: preset
    for preset in (
        Preset("quick", "a minute or two for all figures on 2 cores; too small to conclude from", n=200, width=32,
               depth=12, effective_depths=(3.0, 6.0, 10.0), shown=6.0, finer=0, seeds=(0,), depths=(6, 9),
               shown_depth=9, step_seeds=(0, 1), training=(60, 0, 180), step_training=(60, 0, 90)),
        Preset("paper", "at most 60 minutes for each figure on 2 cores", n=1000, width=100, depth=20,
               effective_depths=(2.0, 3.0, 5.0, 7.0, 10.0, 14.0, 18.0), shown=7.0, finer=40, seeds=(0, 1, 2),
               depths=(6, 9, 12, 18, 24), shown_depth=18, step_seeds=(0, 1, 2, 3, 4), training=(200, 0, 1080),
               step_training=(300, 0, 450)),
        Preset("full", "the published size and training: hours for each figure", n=1000, width=100, depth=20,
               effective_depths=(0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 12.0, 14.0, 16.0, 18.0), shown=7.0,
               finer=80, seeds=tuple(range(5)), depths=(4, 6, 8, 10, 12, 14, 16, 18, 20, 24, 30), shown_depth=18,
               step_seeds=tuple(range(10)), training=(5000, 1000, 1800), step_training=(5000, 1000, 900)),
    )
}  # fmt: skip
"""The presets by name."""
