"""The charts of the page in their order: which curves, which question, and what this run answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from isthmus.report._compressedfigures import compressed_sections
from isthmus.report._costfigures import cost_sections
from isthmus.report._dynamicsfigures import dynamics_sections
from isthmus.report._figures import Budget, Figure, Recipe, Section, curve_figure
from isthmus.report._measured import ALIGNMENT, measured_sections
from isthmus.report._monitoredfigures import during_training
from isthmus.report._pathfigures import plane_figure, spectrum_figure
from isthmus.report._propagated import propagation_sections
from isthmus.report._read import Curve, RunView, number
from isthmus.report._reproducedfigures import reproduced_sections
from isthmus.report._sweptfigures import swept_sections

_H = "H rank"
_H_SYM = "H rank, symmetric"
_H_STABLE = "H rank, stabilised"


def _span(curve: Curve) -> str:
    return f"{number(float(curve.y.min()), 3)} to {number(float(curve.y.max()), 3)}"


def _median(curve: Curve) -> float:
    return float(np.median(curve.y))


def _range(curve: Curve) -> float:
    return float(curve.y.max() - curve.y.min())


def _energy_curves(run: RunView) -> list[Curve]:
    depth = run.scalar("leaky", "effective_depth")
    cost = run.curve("cost_of_identity", "representation")
    return [
        run.curve("hamiltonian_symmetric", "step", "Hamiltonian, symmetric"),
        run.curve("kinetic_energy", "step", "kinetic energy"),
        cost.scaled(-(depth or 0.0) / 2, "potential energy") if depth
        else dataclasses.replace(cost.at(np.empty(0, np.int64)), name="potential energy",
                                 reasons=cost.reasons or ("no effective depth L̃ > 0, so there is no energy",)),
    ]  # fmt: skip


def _energy_answer(_run: RunView, curves: Mapping[str, Curve]) -> str:
    parts = list(curves.values())
    if len(parts) < 3:
        return ""
    h, kinetic, potential = parts
    larger = max(_range(kinetic), _range(potential))
    said = f"H runs from {_span(h)}, the kinetic energy from {_span(kinetic)}, the potential from {_span(potential)}."
    if larger > 0 and _range(h) > 0:
        ratio = larger / _range(h)
        said += (
            f" H varies {number(ratio, 2)} times less than the larger of its parts."
            if ratio > 1.5
            else " H does not vary less than its parts, so it is not conserved here."
        )
    return said


def _rank_curves(run: RunView) -> list[Curve]:
    gammas = run.gammas("cost_of_identity")
    costs = [run.curve("cost_of_identity", "representation", f"COI, γ₀ = {number(g)}", gamma0=g) for g in gammas] or [
        run.curve("cost_of_identity", "representation", "COI")
    ]
    return [
        run.curve("hamiltonian_rank", "step", _H),
        run.curve("hamiltonian_rank_symmetric", "step", _H_SYM),
        run.curve("hamiltonian_rank_stable", "step", _H_STABLE),
        *costs[:5],
    ]


def _rank_answer(run: RunView, curves: Mapping[str, Curve]) -> str:
    said: list[str] = []
    pair = curves.get(_H_SYM) or curves.get(_H)
    if pair is not None:
        said.append(f"−2H/L̃ ({pair.name}) has median {number(_median(pair), 3)} (from {_span(pair)}).")
    cost = run.curve("cost_of_identity", "representation")
    if len(cost):
        low = int(cost.y.argmin())
        said.append(
            f"The cost of identity at γ₀ = {number(run.gamma0)} has its minimum {number(float(cost.y[low]), 3)} at "
            f"p = {number(float(cost.x[low]), 2)}."
        )
    k = run.bottleneck
    said.append(f"The verdict puts the bottleneck rank at k* = {k}." if k else "The verdict names no bottleneck rank.")
    return " ".join(said)


def _bottleneck_rule(run: RunView) -> list[tuple[float, str]]:
    return [(float(run.bottleneck), f"k* = {run.bottleneck}")] if run.bottleneck else []


def _standard_ranks(run: RunView) -> list[Curve]:
    names = ("numerical_rank", "effective_rank", "participation_ratio", "nuclear_rank", "stable_rank")
    return [run.curve(name, "representation") for name in names]


def _standard_answer(_run: RunView, curves: Mapping[str, Curve]) -> str:
    lows = [f"{name} {number(float(c.y.min()), 3)}" for name, c in curves.items()]
    return f"The smallest values along the path: {', '.join(lows)}."


def _stationarity_answer(_run: RunView, curves: Mapping[str, Curve]) -> str:
    curve = next(iter(curves.values()))
    median = _median(curve)
    worst = int(curve.y.argmax())
    meaning = (
        "well below 1: the Hamiltonian can be read." if median < 0.3
        else "below 1 but not small: read the Hamiltonian as a rough number." if median < 1
        else "not below 1: what the Hamiltonian says here is noise."
    )  # fmt: skip
    return (
        f"The median residual is {number(median, 2)}, the largest {number(float(curve.y[worst]), 2)} "
        f"(at p = {number(float(curve.x[worst]), 2)}); the median is {meaning}"
    )


def _step_answer(_run: RunView, curves: Mapping[str, Curve]) -> str:
    curve = next(iter(curves.values()))
    ratio = float(curve.y.max() / curve.y.min()) if curve.y.min() > 0 else np.inf
    ends = int(((curve.x < 0.2) | (curve.x > 0.8)).sum())
    if ratio < 1.01:
        return f"All {len(curve)} steps are equally long ({number(float(curve.y[0]), 3)})."
    return (
        f"The longest step is {number(ratio, 2)} times the shortest; {ends} of {len(curve)} layers stand in the outer "
        "fifths, p < 0.2 or p > 0.8."
    )


def _speed_answer(_run: RunView, curves: Mapping[str, Curve]) -> str:
    curve = next(iter(curves.values()))
    low, high = int(curve.y.argmin()), int(curve.y.argmax())
    ratio = f", {number(float(curve.y[high] / curve.y[low]), 2)} times slower" if curve.y[low] > 0 else ""
    return f"Fastest at p = {number(float(curve.x[high]), 2)}, slowest at p = {number(float(curve.x[low]), 2)}{ratio}."


def _loss_curves(run: RunView) -> list[Curve]:
    return [
        run.curve("loss", None, "training loss", split="train", along="step"),
        run.curve("loss", None, "test loss", split="test", along="step"),
        run.curve("ridge_term", None, "ridge term", along="step"),
    ]


def _loss_answer(_run: RunView, curves: Mapping[str, Curve]) -> str:
    ends = [f"{name} {number(float(c.y[-1]), 3)}" for name, c in curves.items()]
    last = max(float(c.x[-1]) for c in curves.values())
    return f"After {number(last)} epochs: {', '.join(ends)}."


def _score_curves(run: RunView) -> list[Curve]:
    metric = "accuracy" if "accuracy" in run.present() or "r_squared" not in run.present() else "r_squared"
    name = "accuracy" if metric == "accuracy" else "R²"
    return [
        run.curve(metric, None, f"{said} {name}", split=split, along="step")
        for said, split in (("test", "test"), ("training", "train"))
    ]


def _settling_curves(run: RunView) -> list[Curve]:
    return [
        run.curve("gradient_norm", None, "gradient norm", along="step"),
        run.curve("learning_rate", None, "learning rate", along="step"),
    ]


def _jacobian_curves(run: RunView) -> list[Curve]:
    return [run.curve("jacobian_log_singular_value", None, "log singular value", along="index")]


def _jacobian_answer(run: RunView, curves: Mapping[str, Curve]) -> str:
    curve = next(iter(curves.values()))
    depth = run.scalar("leaky", "effective_depth")
    within = int((np.abs(curve.y) < depth).sum()) if depth else 0
    tail = f" {within} of {len(curve)} lie within ±L̃ = {number(depth)}." if depth else ""
    return f"They run from {_span(curve)} nats.{tail}"


_ENERGIES = Recipe(
    "energies", "Is the energy conserved along the path?",
    "On an optimal path H = kinetic + potential energy stays constant while its two parts trade places: the potential "
    "energy −(L̃/2)·COI counts dimensions, the kinetic energy is high where the representation moves.",
    "energy", _energy_curves, _energy_answer, log=True,
)  # fmt: skip
_RANKS = Recipe(
    "ranks", "How many dimensions does the bottleneck hold?",
    "Every curve estimates one number. With growing L̃ the Hamiltonian rank −2H/L̃ (H rank) rises to the bottleneck "
    "rank from below, and the minimum of the cost of identity (COI) falls to it from above.",
    "dimensions", _rank_curves, _rank_answer, log=True, rules=_bottleneck_rule,
)  # fmt: skip
_STANDARD = Recipe(
    "standard-ranks", "What do the standard measures of rank say?",
    "Five common ways to count the dimensions of a representation from its singular values. They weigh weak "
    "directions differently, so their order is more telling than any one of them.",
    "dimensions", _standard_ranks, _standard_answer, log=True,
)  # fmt: skip
_STATIONARITY = Recipe(
    "stationarity", "Can the Hamiltonian be trusted?",
    "Distance of each layer's weights from what an optimal network would have there, relative to their size. "
    "0 is a critical point of the objective; near or above 1 the Hamiltonian means nothing.",
    "stationarity residual", lambda run: [run.curve("stationarity", "step", "stationarity residual")],
    _stationarity_answer, overlay=True, log=True, zero=True,
)  # fmt: skip
_STEPS = Recipe(
    "layer-steps", "Where do the layers stand?",
    "Length of each layer's step along the depth axis; the steps add up to 1. Short steps mean many layers there.",
    "layer step ρ", lambda run: [run.curve("layer_step", "step", "layer step ρ")], _step_answer, overlay=True,
    zero=True,
)  # fmt: skip
_SPEED = Recipe(
    "speed", "Where does the representation move?",
    "Relative change of the representation per unit of depth. A bottleneck shows as a slow middle between two fast "
    "ends; adaptive layers flatten the change per layer, not this curve.",
    "speed c (1/depth)", lambda run: [run.curve("path_speed", "step", "speed c")], _speed_answer, overlay=True,
    log=True, zero=True,
)  # fmt: skip
_JACOBIAN = Recipe(
    "jacobian", "How much does the whole network stretch each direction?",
    "Logarithms of the singular values of the input–output map, averaged over samples; bars are one standard error. "
    "A direction with |log s| near or above L̃ is too expensive to count fully in −2H/L̃.",
    "log singular value (nats)", _jacobian_curves, _jacobian_answer, overlay=True, along="number",
)  # fmt: skip
_LOSS = Recipe(
    "loss", "Did training settle?",
    "The data term of the objective, and the ridge term that pays for the weights. Theory speaks about the end of a "
    "flat curve.",
    "loss", _loss_curves, _loss_answer, log=True, along="epoch",
)  # fmt: skip
_SCORE = Recipe(
    "score", "How well does it predict?",
    "Share of right answers (accuracy) or of explained variance (R²), on the samples trained on and on held-out ones.",
    "score", _score_curves, _loss_answer, along="epoch",
)  # fmt: skip
_SETTLING = Recipe(
    "settling", "How close is it to a critical point?",
    "Norm of the objective's gradient and the optimiser's step size over training. At a critical point the gradient "
    "vanishes.",
    "gradient norm, learning rate", _settling_curves, _loss_answer, log=True, along="epoch",
)  # fmt: skip


def build_sections(runs: Sequence[RunView], budget: Budget) -> list[Section]:
    """Every section of the page: a paper's figures, a cost, a sweep, or what fits any model, and Leaky ResNets."""
    if len(runs) == 1 and runs[0].reproduction is not None:
        return reproduced_sections(runs[0], runs[0].reproduction, budget)
    if len(runs) == 1 and runs[0].cost is not None:
        return cost_sections(runs[0], runs[0].cost, budget)
    if len(runs) == 1 and runs[0].sweep is not None:
        return swept_sections(runs[0], runs[0].sweep, budget)
    if len(runs) == 1 and runs[0].dynamics is not None:
        return dynamics_sections(runs[0], runs[0].dynamics, budget)
    if len(runs) == 1 and runs[0].compression is not None:
        return compressed_sections(runs[0], runs[0].compression, budget)
    if all(run.predicted for run in runs):
        return propagation_sections(runs, budget)
    during = [
        during_training(run, run.training, budget, order=order, several=len(runs) > 1)
        for order, run in enumerate(runs)
        if run.training is not None
    ]
    any_model = measured_sections(runs, budget) if any(run.layers is not None for run in runs) else []
    measured_only = all(run.layers is not None for run in runs)
    return [*during, *any_model, *([] if measured_only else _leaky_sections(runs, budget))]


def _leaky_sections(runs: Sequence[RunView], budget: Budget) -> list[Section]:
    def figures(*recipes: Recipe) -> list[Figure]:
        return [curve_figure(recipe, runs, budget) for recipe in recipes]

    gamma = [(run.label, run.gamma_text) for run in runs if run.layers is None]
    spectra = [
        spectrum_figure(
            "representation-spectrum", "spectra/representation", "How many directions survive at each depth?",
            "Singular values of the representation A_p/√N. Where only a few lines stay high, the data pass "
            "through a space of that many dimensions.",
            "singular value of A_p/√N", "representation", runs, budget,
        ),
        spectrum_figure(
            "weight-spectrum", "spectra/weight", "How many directions do the layers use?",
            "Singular values of the weights W_p. In a bottleneck the layers keep only the directions that survive, "
            "each at a cost of about L̃ against the leak.",
            "singular value of W_p", "weight", runs, budget,
        ),
    ]  # fmt: skip
    aligned = any(len(run.curve("alignment", "aligned")) for run in runs if run.layers is None)
    return [
        Section("spectra", "Spectra", "What passes through the network, and what the layers do about it. Hairlines "
                "mark the layers.", [], spectra),
        Section("energies", "Energies and rank", "The network as a mechanical system: its Hamiltonian counts the "
                "dimensions of the bottleneck.", gamma, figures(_ENERGIES, _RANKS)),
        Section("trust", "How far to trust it", "Two checks that do not depend on each other: how stationary the "
                "network is, and what measures of rank say that need no theory.", [],
                figures(_STATIONARITY, _STANDARD)),
        Section("path", "Layers and path", "Where the layers stand, and how fast the representation moves past them.",
                [], [*figures(_STEPS, _SPEED), plane_figure(runs, budget), *figures(_JACOBIAN),
                      *(figures(ALIGNMENT) if aligned and all(run.layers is None for run in runs) else [])]),
        # Only a training loop knows epochs; a monitored training has its steps in a section of its own.
        *([] if all(run.training is not None for run in runs) else [
            Section("training", "Training", "How the network got there.", [], figures(_LOSS, _SCORE, _SETTLING)),
        ]),
    ]  # fmt: skip
