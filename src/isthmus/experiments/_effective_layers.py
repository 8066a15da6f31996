"""Figures `depth-profile` and `alternatives` of the effective theory's paper: other layers, and other equations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from isthmus._records import Claim, MetricTable
from isthmus.experiments._effective_networks import PairNetworks
from isthmus.experiments._effective_presets import PairFigure
from isthmus.experiments._effective_reading import FAIR, MOST, by_name, follow_all, record_fit
from isthmus.experiments._effective_two_points import share_of
from isthmus.experiments._equilibrium_reading import share_holds, spread
from isthmus.experiments._reproduction import Holds, Panel, PaperFigure, Row, claim
from isthmus.experiments._ridge_reading import short
from isthmus.theory import TwoPointFit, compare_two_point

EDGE = 0.1
"""Share of the layers at either end that is not the middle."""

WORSE = 2.0
"""How many times the misfit of an end is to be that of the best layer."""


def depth_claims(fits: Sequence[Mapping[int, TwoPointFit]], layers: int, behind: Sequence[int] = ()) -> list[Claim]:
    """Judge where the theory fits best; criteria were fixed beforehand."""
    whole = [one for one in fits if len(one) == layers]
    if not whole or layers < 5:
        return [claim("depth-profile", "best-inside", "not judged", "No network has a fit at every one of 5 layers.")]
    best = [min(one, key=lambda layer: one[layer].misfit) for one in whole]
    edge = max(1, round(EDGE * layers))
    inside = [edge <= layer < layers - edge for layer in best]
    first = [one[0].misfit / one[b].misfit for one, b in zip(whole, best, strict=True)]
    last = [one[layers - 1].misfit / one[b].misfit for one, b in zip(whole, best, strict=True)]
    at = [0, layers // 4, layers // 2, 3 * layers // 4, layers - 1]
    fitting = [sum(float(f.r_squared.min()) >= FAIR for f in one.values()) for one in whole]
    median = [float(np.median([one[layer].misfit for one in whole])) for layer in at]
    return [
        claim("depth-profile", "best-inside", share_holds(inside),
              f"Layer with the smallest misfit, by seed: {', '.join(map(str, best))} of 0 to {layers - 1}. Misfit (sum "
              f"of squares over steps and curves), median over seeds, at the layers {', '.join(map(str, at))}: "
              f"{short(median)}. Wanted: not among the first or last {edge}, in three quarters of the networks "
              "(partly: in half).", behind),
        claim("depth-profile", "early-layers-fail", share_holds([r >= WORSE for r in first]),
              f"Misfit at the first hidden layer over that at the best one, by seed: {short(first)}. Wanted: at least "
              f"{WORSE:g} in three quarters of the networks (partly: in half)."),
        claim("depth-profile", "late-layers-fail", share_holds([r >= WORSE for r in last]),
              f"Misfit at the last hidden layer over that at the best one, by seed: {short(last)}. Wanted: at least "
              f"{WORSE:g} in three quarters of the networks (partly: in half)."),
        claim("depth-profile", "layers-that-fit", "not judged",
              f"Layers at which the worst of the three curves has R² of at least {FAIR}: "
              f"{', '.join(f'{n} of {layers}' for n in fitting)}."),
    ]  # fmt: skip


def figure_depth_profile(
    settings: PairFigure, networks: Sequence[PairNetworks], folder: Path, table: MetricTable
) -> PaperFigure:
    """The fit at every hidden layer of the default network."""
    every, seconds = follow_all(networks, folder)
    found = [one for one in every if one.name == "default"]
    fits = [{layer: fit for layer in one.trace.layers if (fit := one.fit_at(layer)) is not None} for one in found]
    behind = [
        row for one, of in zip(found, fits, strict=True)
        for layer, fit in of.items() for row in record_fit(table, one, fit, figure="depth-profile", layer=layer)
    ]  # fmt: skip
    layers = found[0].trace.setting.layers
    rows: list[Row] = []
    for layer in range(layers):
        here = [of[layer] for of in fits if layer in of]
        rows += spread("misfit", "all three curves", layer, [f.misfit for f in here])
        for i, name in enumerate(("h", "y", "v")):
            rows += spread("left", name, layer, [max(float(1 - f.r_squared[i]), 1e-8) for f in here])
        rows += spread("rates", "η_h", layer, [f.eta_h for f in here])
        rows += spread("rates", "η_y", layer, [f.eta_y for f in here])
        kept = [float(one.trace.h[one.trace.layers.index(layer), -1]) for one in found]
        rows += spread("distance", "at the end", layer, kept)
        kept = [float(one.trace.h[one.trace.layers.index(layer), 0]) for one in found]
        rows += spread("distance", "at the start", layer, kept)
    where = "hidden layer, from 0"
    return PaperFigure(
        "depth-profile", "Layer by layer: the theory is best in the middle",
        "The error of the fit against the layer that is taken as the representation: large in the first layers, and "
        "smallest in between.",
        f"The networks of the setting default, each of their {layers} hidden layers fitted by itself; y and v are "
        "those of the network. Bars: least and largest of the seeds.",
        (
            Panel("misfit", "Misfit", where, "Σ residual²", y_scale="log"),
            Panel("left", "What is left unexplained", where, "1 − R²", y_scale="log"),
            Panel("rates", "Fitted rates", where, "rate per step", y_scale="log"),
            Panel("distance", "Distance of the representations", where, "h", y_scale="log"),
        ),
        tuple(rows), tuple(depth_claims(fits, layers, behind)), seconds,
        note="The time is part of figure two-points'.",
    )  # fmt: skip


def alternative_claims(ratios: Mapping[str, Mapping[str, Sequence[float]]]) -> list[Claim]:
    """Judge other equations, by setting the misfit of each over the theory's; criteria were fixed beforehand."""
    if not ratios:
        return [claim("alternatives", "theory-is-best", "not judged", "No network has curves that can be fitted.")]
    names = list(dict.fromkeys(name for one in ratios.values() for name in one))
    # With an alternative missing only a defeat is known for sure.
    ratios = {key: one for key, one in ratios.items()
              if 0 < len(one) == len(names) or any(np.median(values) <= 1 for values in one.values())}  # fmt: skip
    if not ratios:
        return [claim("alternatives", "theory-is-best", "not judged", "Alternatives could not be integrated.")]
    made: list[Claim] = []
    if "default" in ratios:
        own = {name: float(np.median(values)) for name, values in ratios["default"].items()}
        worse = [value > 1 for value in own.values()]
        made.append(claim(
            "alternatives", "theory-is-best-by-default",
            "held" if all(worse) else "partly" if np.mean(worse) >= 0.5 else "not",
            f"Misfit of each alternative over the theory's in the setting default, median over seeds: {_said(own)}. "
            "Wanted: all above 1 (partly: half of them).",
        ))  # fmt: skip
    middle = {
        name: float(np.median([np.median(one[name]) for one in ratios.values() if name in one])) for name in names
    }
    best = {key: all(float(np.median(values)) > 1 for values in one.values()) for key, one in ratios.items()}
    beaten = {key: min(one, key=lambda name: float(np.median(one[name]))) for key, one in ratios.items()
              if not best[key]}  # fmt: skip
    by = ", ".join(f"{key} ({name}, {short([float(np.median(ratios[key][name]))])})" for key, name in beaten.items())
    holds: Holds = share_of(list(best.values()))
    made.append(claim(
        "alternatives", "theory-is-best", holds,
        f"The theory fits better than all of {len(names)} alternatives in {sum(best.values())} of {len(best)} settings"
        f"{'; it is beaten in ' + by if by else ''}. Misfit of each alternative over the theory's, median over "
        f"settings of medians over seeds: {_said(middle)}. Wanted: better than all in {MOST:.0%} (partly: in half).",
        share=float(np.mean(list(best.values()))),
    ))  # fmt: skip
    return made


def _said(values: Mapping[str, float]) -> str:
    return "; ".join(f"{name} {short([value])}" for name, value in values.items())


def figure_alternatives(
    settings: PairFigure, networks: Sequence[PairNetworks], folder: Path, table: MetricTable
) -> PaperFigure:
    """Equations with one term doubled, and a logistic curve, against the theory."""
    found, seconds = follow_all(networks, folder)
    ratios: dict[str, dict[str, list[float]]] = {}
    rows: list[Row] = []
    missing: list[str] = []
    groups = by_name(one for one in found if one.fit is not None)
    groups = {key: group if key == "default" else group[:1] for key, group in groups.items()}
    for place, (key, group) in enumerate(groups.items()):
        per: dict[str, list[float]] = {}
        for one in group:
            assert one.fit is not None
            for other in compare_two_point(one.fit):
                if other.reason:
                    missing.append(f"{key} ({other.name}: {other.reason})")
                else:
                    per.setdefault(other.name, []).append(min(other.ratio, 1e12))
        if per:
            ratios[key] = per
        for name, values in per.items():
            rows += spread("ratio", name, place, values)
            rows += spread("default", name, list(per).index(name), values) if key == "default" else []
    note = "; ".join(f"{i}: {name}" for i, name in enumerate(groups))
    left_out = f" Left out: {', '.join(missing)}." if missing else ""
    return PaperFigure(
        "alternatives", "Other equations: what fits as well?",
        "Equations with one of the terms doubled, or logistic curves, fit worse than the theory.",
        "The curves of figure two-points, each alternative with two free rates and fitted from several starts, like "
        "the theory. The logistic curve goes between the measured ends of h and y, and is compared over these two. "
        "Of the setting default every seed, of the others the first. "
        f"Settings: {note}.{left_out}",
        (
            Panel("default", "Setting default", "alternative, in the order of the legend", "misfit over the theory's",
                  kind="points", y_scale="log", rules=((1.0, "the theory"),)),
            Panel("ratio", "All settings", "setting, by its number above", "misfit over the theory's", kind="points",
                  y_scale="log", rules=((1.0, "the theory"),)),
        ),
        tuple(rows), tuple(alternative_claims(ratios)), seconds, note="The time is part of figure two-points'.",
    )  # fmt: skip
