"""Fig 2 of the Leaky ResNet paper (arXiv 2405.17573, docs/theory 1.8): layer steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from isthmus.experiments._leaky_networks import Trained
from isthmus.experiments._leaky_presets import SCHEMES, Preset
from isthmus.experiments._reproduction import Holds, Panel, PaperFigure, Row, above_zero, claim, graded, spectrum_rows
from isthmus.geometry import GAMMA0S

_P = "depth p"
_SETTING = "Teacher 30→6→3→30 of three ResNets, L̃ = 3"

StepNetworks = Mapping[tuple[int, str], Sequence[Trained]]
"""By number of layers and scheme: one network a seed, in the order of the seeds."""


def paired_interval(differences: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Mean of paired differences, and the ends of its Student interval.

    Args:
        differences: one per pair, at least 2.
        level: coverage.
    """
    import scipy.stats  # not at the top: it takes a while to load

    d = np.asarray(differences, dtype=np.float64)
    half = float(scipy.stats.t.ppf(0.5 + level / 2, len(d) - 1)) * float(d.std(ddof=1)) / math.sqrt(len(d))
    return float(d.mean()), float(d.mean()) - half, float(d.mean()) + half


def _advantage(
    networks: StepNetworks, depths: Sequence[int], scheme: str
) -> tuple[list[float], dict[int, list[float]]]:
    """Relative gain in test error over equidistant steps: per seed (mean over depths), and per depth."""
    by_depth = {
        depth: [1 - other.loss("test") / base.loss("test")
                for base, other in zip(networks[depth, "equidistant"], networks[depth, scheme], strict=True)]
        for depth in depths
    }  # fmt: skip
    return [float(np.mean(pairs)) for pairs in zip(*by_depth.values(), strict=True)], by_depth


def figure_2a(preset: Preset, networks: StepNetworks) -> PaperFigure:
    """Test error against `L` for each scheme."""
    rows: list[Row] = []
    for scheme in SCHEMES:
        for depth in preset.depths:
            for panel, values in (
                ("test", [t.loss("test") for t in networks[depth, scheme]]),
                ("objective", [float(t.run.run["objective"]) for t in networks[depth, scheme]]),
                ("stationarity", [t.residual for t in networks[depth, scheme]]),
            ):
                error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
                mean = float(np.mean(values))
                rows.append(Row(panel, scheme, depth, mean, mean - error, mean + error, n=len(values)))
    claims = []
    for scheme in SCHEMES[1:]:
        seeds, by_depth = _advantage(networks, preset.depths, scheme)
        mean, low, high = paired_interval(seeds)
        for depth, values in by_depth.items():
            m, a, b = paired_interval(values)
            rows.append(Row("advantage", scheme, depth, 100 * m, 100 * a, 100 * b, n=len(values)))
        said = ", ".join(f"{100 * float(np.mean(v)):+.1f}".replace("-", "−") for v in by_depth.values())
        claims.append(claim(
            "2a", f"{scheme}-better", above_zero(low, high),
            f"{scheme.capitalize()} steps lower the test error by {100 * mean:.2f}% against equidistant ones (mean "
            f"over L; 95% interval over {len(seeds)} seeds, paired: {100 * low:.2f}% to {100 * high:.2f}%). By L = "
            f"{', '.join(map(str, preset.depths))}: {said}%. The paper: a small but consistent advantage."
            .replace("-", "−"), mean=mean, low=low, high=high,
        ))  # fmt: skip
    return PaperFigure(
        "2a", "Test error against the number of layers, for three rules of layer steps",
        "Test error against L for equidistant, irregular and adaptive steps: a small but consistent advantage of the "
        "latter two.",
        f"{_SETTING}, {len(preset.step_seeds)} seeds of data and weights, the same for every scheme. Bars: one "
        "standard error; of the advantage, the 95% interval of paired differences.",
        (
            Panel("test", "Test error", "layers L", "test error C"),
            Panel("advantage", "Advantage over equidistant steps", "layers L", "lower test error (%)",
                  rules=((0.0, "none"),)),
            Panel("objective", "Objective on the training samples", "layers L", "C + ridge"),
            Panel("stationarity", "Stationarity residual of the median layer", "layers L", "residual", y_scale="log"),
        ),
        tuple(rows), tuple(claims), sum(t.seconds for group in networks.values() for t in group),
    )  # fmt: skip


def figure_2b(preset: Preset, networks: StepNetworks) -> PaperFigure:
    """Weight spectra of adaptive networks against `p`."""
    group = networks[preset.shown_depth, "adaptive"]
    first = group[0]
    p, _ = first.along("stationarity")
    rows = spectrum_rows("weight", p, first.spectrum("weight"), first.seed)
    at, least = [], []
    for t in group:
        where, _ = t.along("stationarity")
        counts = t.weight_counts
        rows += [Row("count", "singular values of W above L̃/2", float(x), float(c), seed=t.seed)
                 for x, c in zip(where, counts, strict=True)]  # fmt: skip
        at.append(float(counts[int(np.abs(where - 0.3).argmin())]))
        least.append(float(counts.min()))
    middle = float(np.median(at))
    holds: Holds = (
        "held" if abs(middle - 6) <= 1 and np.median(least) < middle else "partly" if abs(middle - 6) <= 3 else "not"
    )
    nodes, _ = first.along("cost_of_identity", "representation", gamma0=GAMMA0S[0])
    marks = tuple(map(float, nodes))
    ends = [_share_outside(t) for t in group]
    more: Holds = "held" if min(ends) > 0.4 else "partly" if float(np.median(ends)) > 0.4 else "not"
    return PaperFigure(
        "2b", f"Weight spectra of adaptive networks, L = {preset.shown_depth}",
        "Singular values of W_p against p with the layers as vertical lines, adaptive steps, L = 18: roughly "
        "6-dimensional near p = 0.3.",
        f"{_SETTING}, adaptive steps, L = {preset.shown_depth}; chart of seed {first.seed}, counts of all seeds. "
        "Hairlines: the layers.",
        (
            Panel("weight", "Weights W_p", _P, "singular value", rules=((1.5, "L̃/2"),), marks=marks),
            Panel("count", "How many count", _P, "dimensions", rules=((6.0, "6"), (3.0, "3")), marks=marks),
        ),
        tuple(rows),
        (
            claim("2b", "six-near-0.3", holds,
                  f"Singular values of W_p above L̃/2 near p = 0.3: {', '.join(f'{v:.0f}' for v in at)}, by seed; the "
                  f"fewest along the path: {', '.join(f'{v:.0f}' for v in least)}. The teacher's passages are 6 and 3 "
                  "(and the mean of the representation takes one more).", median=middle),
            claim("2b", "layers-at-the-ends", more,
                  "Share of the layers in the outer fifths, p < 0.2 or p > 0.8: "
                  f"{', '.join(f'{v:.2f}' for v in ends)}, by seed (0.40 for equidistant steps): adaptive steps put "
                  "more layers where the representation moves fast."),
        ),
        sum(t.seconds for t in group),
    )  # fmt: skip


def _share_outside(t: Trained) -> float:
    p, _ = t.along("stationarity")
    return float(((p < 0.2) | (p > 0.8)).mean())


def figure_2c(preset: Preset, networks: StepNetworks) -> PaperFigure:
    """The path in two dimensions for each scheme."""
    rows: list[Row] = []
    spread: dict[str, list[float]] = {}
    for scheme in SCHEMES:
        group = networks[preset.shown_depth, scheme]
        plane = group[0].run.arrays()["path/projection"]
        rows += [Row("path", scheme, float(x), float(y), seed=group[0].seed) for x, y in plane]
        spread[scheme] = []
        for t in group:
            p, moves = t.along("relative_move")
            rows += [Row("moves", scheme, float(x), float(m), seed=t.seed) for x, m in zip(p, moves, strict=True)]
            spread[scheme].append(float(moves.std() / moves.mean()))
    ratios = [a / e for a, e in zip(spread["adaptive"], spread["equidistant"], strict=True)]
    said = "; ".join(f"{scheme} {', '.join(f'{v:.2f}' for v in values)}" for scheme, values in spread.items())
    return PaperFigure(
        "2c", "The path in two dimensions",
        "Two-dimensional projection of the path A_p for each scheme: adaptive steps spread the layers evenly along it.",
        f"{_SETTING}, L = {preset.shown_depth}; each network's path in its own two principal directions, seed "
        f"{networks[preset.shown_depth, 'adaptive'][0].seed}; moves of all seeds.",
        (
            Panel("path", "The path", "first principal direction", "second", kind="path", square=True),
            Panel("moves", "Relative move of each layer", _P, "‖A_ℓ − A_ℓ₋₁‖ / ‖A_ℓ‖", y_scale="log"),
        ),
        tuple(rows),
        (claim("2c", "evenly-spread", graded(max(ratios), held=0.5, partly=0.9),
               f"Spread of the relative moves over the layers (standard deviation over mean), by seed: {said}. Held: "
               "adaptive below half of equidistant in every seed; the ratios are "
               f"{', '.join(f'{v:.2f}' for v in ratios)}.",
               worst=max(ratios)),),
        sum(t.seconds for scheme in SCHEMES for t in networks[preset.shown_depth, scheme]),
    )  # fmt: skip
