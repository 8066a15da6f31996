"""The page of a prediction without a network: signal propagation at infinite width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from isthmus.report import _charts
from isthmus.report._figures import Budget, Drawn, Figure, Panel, Recipe, Section, curve_figure, span_of
from isthmus.report._read import Curve, RunView, number, shorten

INFINITE_WIDTH = "infinite width"
"""What the rows of such a run have in the column `baseline`."""

_LOSS, _BACKWARD = "forward loss 1 − c", "backward correlation g"
_FACTS = (("activation φ", "activation"), ("slope below 0", "slope"), ("layers L", "depth"),
          ("weight variance σ_w²", "weight_variance"), ("bias variance σ_b²", "bias_variance"),
          ("correlation of the inputs c_0", "correlation"), ("mean square of the inputs", "second_moment"))  # fmt: skip


def predicted(run: RunView) -> bool:
    """Whether the run is such a prediction."""
    return "propagation" in run.run


def _curves(run: RunView) -> list[Curve]:
    return [
        run.curve(metric, "aligned", name, along="index", baseline=INFINITE_WIDTH)
        for metric, name in (("forward_loss", _LOSS), ("backward_correlation", _BACKWARD))
    ]


def _equilibrium(run: RunView) -> float | None:
    found = run.curve("equilibrium_layer", None, baseline=INFINITE_WIDTH)
    return float(found.y[-1]) if len(found) else None


def _answer(run: RunView, curves: Mapping[str, Curve]) -> str:
    said = [
        f"The {c.name} goes from {number(float(c.y[0]), 3)} at layer {c.index[0]} to {number(float(c.y[-1]), 3)} at "
        f"layer {c.index[-1]}."
        for c in curves.values()
    ]
    layer = _equilibrium(run)
    met = (
        f"They are equal at layer ℓ* = {number(layer)}."
        if layer is not None
        else "The first does not fall to the second."
    )
    return " ".join([*said, met])


def _draw(recipe: Recipe, drawn: Sequence[Drawn], several: bool) -> list[Panel]:
    everything = [curve for _, curves, _ in drawn for curve in curves]
    scale = _charts.scale_kind(np.concatenate([c.y for c in everything]))
    panels: list[Panel] = []
    for run, curves, said in drawn:
        layer = _equilibrium(run)
        spec = _charts.lines(
            curves, y_title=recipe.y_title, span=span_of(everything), along="layer", scale=scale, zero=True,
            uprights=[] if layer is None else [(layer, f"ℓ* = {number(layer)}")],
            description=f"Line chart of {', '.join(c.name for c in curves)} against the layer. {said} The data are in "
            "the table below.",
        )  # fmt: skip
        panels.append(Panel(run.label if several else "", spec))
    return panels


_PROPAGATION = Recipe(
    "propagation", "Where are forward and backward information of the same size?",
    "The forward loss 1 − c is what is left to tell two inputs apart, the backward correlation g what their "
    "derivatives still have in common. By the Equilibrium Hypothesis, training aligns the layers most where the two "
    "cross, at ℓ*.",
    "1 − c and g", _curves, _answer, along="layer", draw=_draw,
)  # fmt: skip


def propagation_sections(runs: Sequence[RunView], budget: Budget) -> list[Section]:
    """The section of predictions, for one run or several side by side."""
    figures: list[Figure] = [curve_figure(_PROPAGATION, runs, budget)]
    return [Section("propagation", "Signal propagation", "Two inputs on their way through a random network of infinite "
                    "width: how alike their activations are at each layer, and how alike the output's derivatives.",
                    [], figures)]  # fmt: skip


def _shown(value: object) -> str:
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number(float(value)) if plain and isinstance(value, (int, float)) else shorten(value, 80)


def propagation_facts(run: RunView) -> list[tuple[str, str]]:
    """What was predicted, in a few numbers."""
    part = run.part("propagation")
    found = [(name, _shown(part[key])) for name, key in _FACTS if part.get(key) is not None]
    return [*found, ("equilibrium layer ℓ*", number(_equilibrium(run)))]


def propagation_subtitle(run: RunView) -> str:
    """One line under the title."""
    kind = "A residual network" if run.part("propagation").get("residual") is True else "A multilayer network"
    return f"{kind} of infinite width: theory alone, nothing was trained or measured"
