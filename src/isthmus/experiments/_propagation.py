"""Signal propagation at infinite width, from its settings to a page: theory alone, no network."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from pathlib import Path

import numpy as np
from torch.nn import functional

from isthmus._errors import InputError
from isthmus._records import Claim, MetricTable, RunFolder, check_new_folder
from isthmus.models import real_number
from isthmus.report import write_page
from isthmus.theory import (
    EquilibriumLaw,
    SignalPhase,
    SignalPropagation,
    equilibrium_law,
    propagate_signal,
    signal_phase,
)

BASELINE = "infinite width"
_WORTH_SAYING = 1e-4
_KEPT = 1e-9
_SAME = 1e-6
"""Relative differences of forward losses, and differences of correlations, that are rounding."""


@dataclasses.dataclass(frozen=True)
class PropagationConfig:
    """A random network of infinite width and two inputs, as a run records them.

    Attributes:
        depth: `L`, layers with an activation.
        activation: name of φ.
        slope: of `leaky_relu` below 0; None for its usual .01.
        weight_variance: `σ_w²`; weights have variance `σ_w²/fan-in`.
        bias_variance: `σ_b²`.
        correlation: `c_0`, cosine of the inputs.
        second_moment: `‖x‖² / dimension` of the inputs.
        residual: a residual network.
    """

    depth: int
    activation: str = "relu"
    slope: float | int | None = None
    weight_variance: float | int = 2.0
    bias_variance: float | int = 0.0
    correlation: float | int = 0.0
    second_moment: float | int = 1.0
    residual: bool = False


def _number(value: float | int) -> str:
    return f"{value:.4g}"


def _equilibrium_claim(signal: SignalPropagation, depth: int, row: int) -> Claim:
    layer, losses = signal.equilibrium, signal.forward_loss
    if layer is None:
        above = float(losses[0]) > float(signal.backward_correlation[0]) * (1 + _KEPT)
        text = "The forward loss stays above the backward correlation" if above else (
            "The forward loss is not above the backward correlation at the input"
        )  # fmt: skip
        text += ": there is no equilibrium layer."
    else:
        text = f"Forward loss and backward correlation are equal at layer {_number(layer)} of {depth}."
    first, least = float(losses[0]), float(losses.min())
    if 0 < first <= least * (1 + max(_KEPT, signal.error)):
        text += f" Nothing is lost forwards: the forward loss is nowhere below that of the input, {_number(first)}."
    if layer is None:
        return Claim("equilibrium", text, "none", (row,))
    return Claim("equilibrium", text, "finding", (row,), {"equilibrium_layer": layer, "depth": depth})


def _correlations(phase: SignalPhase, signal: SignalPropagation, start: float) -> str:
    """Where correlations go in the long run, in words."""
    losses = signal.forward_loss
    for loss, alike in ((0.0, "equal"), (2.0, "opposite")):
        if float(losses[0]) == loss and bool(((losses - loss).abs() <= _KEPT).all()):
            return f"The inputs are {alike}, and stay so."
    if phase.correlation is None:
        if 0 < phase.variance < math.inf:
            return "Every correlation is kept: inputs stay as alike as they are."
        have = "died out" if phase.variance == 0 else "grown large"
        return f"Once activations have {have}, every correlation is kept: inputs stay apart."
    limit = _number(phase.correlation)
    way = "more alike" if start < phase.correlation else "less alike"
    far = "as a power of the layer"
    if math.isfinite(phase.correlation_depth):
        far = f"closer by a factor e in {_number(phase.correlation_depth)} layers"
    if abs(start - phase.correlation) <= _SAME:
        return f"Correlations of pre-activations start at c* = {limit}, where they stay."
    return (
        f"Inputs become {way} with depth: correlations of pre-activations go from {_number(start)} to c* = {limit} in "
        f"the long run, {far}."
    )


def _phase_claim(phase: SignalPhase, signal: SignalPropagation, start: float, row: int) -> Claim:
    means = {
        "ordered": "gradients vanish",
        "critical": "gradients keep their size, and signals go deepest",
        "chaotic": "gradients explode",
        "unbounded": "the variance of activations grows without end",
    }
    text = f"The {phase.phase} phase (χ = {_number(phase.slope)}): {means[phase.phase]}"
    text += ", and activations die out. " if phase.variance == 0 else ". "
    values = {"slope": phase.slope, "variance": phase.variance if math.isfinite(phase.variance) else None,
              "correlation": phase.correlation, "first_correlation": start}  # fmt: skip
    return Claim("phase", text + _correlations(phase, signal, start), "finding", (row,), values)


def _law_claim(law: EquilibriumLaw, signal: SignalPropagation, depth: int, row: int) -> Claim:
    there = law.coefficient * depth**law.exponent
    text = f"As the depth L grows, the equilibrium layer comes near {_number(law.coefficient)} L^{law.exponent:.3g}"
    if signal.equilibrium is not None:
        off = abs(there / signal.equilibrium - 1)
        text += (
            f"; at L = {depth} that law is {100 * off:.0f} % off ({_number(there)}), so compare with the exact layer"
        )
    return Claim("law", text + ".", "finding", (row,), {"coefficient": law.coefficient, "exponent": law.exponent})


def _title(config: PropagationConfig) -> str:
    """What tells this run from others that stand beside it."""
    said = [config.activation, "residual"] if config.residual else [config.activation]
    said += [f"{config.depth} layers", f"σ_w² = {_number(config.weight_variance)}"]
    further = (("σ_b²", config.bias_variance), ("c_0", config.correlation))
    return "Signal propagation: " + ", ".join(said + [f"{name} = {_number(x)}" for name, x in further if x != 0])


def run_propagation(
    config: PropagationConfig, out: str | Path, *, command: str = "propagate", page: bool = True
) -> RunFolder:
    """Predict signal propagation and write a run folder with its page (arXiv 2110.11749, docs/theory 4.3).

    Everything is computed before anything is written. The rows have `infinite width` in the column `baseline`.

    Args:
        config: the network and its inputs.
        out: the new run folder.
        command: name of the command, for the record.
        page: write the page, too.

    Raises:
        InputError: settings that `propagate_signal` refuses, or a slope that is not finite or of another activation
            than `leaky_relu`.
        RunFolderError: the folder exists and is not empty, or cannot be made.
    """
    check_new_folder(out)
    if config.slope is not None and config.activation != "leaky_relu":
        raise InputError("slope", config.slope, f"none with the activation {config.activation!r}",
                         "it is of leaky_relu")  # fmt: skip
    phi = config.activation
    if config.slope is not None:
        slope = real_number("slope", config.slope, "a finite number", low=-math.inf)
        phi = functools.partial(functional.leaky_relu, negative_slope=slope)
    weight, bias, depth = config.weight_variance, config.bias_variance, config.depth
    signal = propagate_signal(
        phi, depth=depth, weight_variance=weight, bias_variance=bias, correlation=config.correlation,
        second_moment=config.second_moment, residual=config.residual,
    )  # fmt: skip
    first = weight * config.second_moment + bias  # the variance that the first layer sees
    start = (weight * config.second_moment * config.correlation + bias) / first
    phase = None if config.residual else signal_phase(phi, weight_variance=weight, bias_variance=bias, variance=first)
    law = None
    with contextlib.suppress(InputError):  # most networks have none
        law = (
            None
            if config.correlation == 1
            else equilibrium_law(
                phi, weight_variance=weight, bias_variance=bias, variance=first, residual=config.residual
            )
        )

    table = MetricTable()
    losses, correlations = signal.forward_loss.tolist(), signal.backward_correlation.tolist()
    for metric, values in (("forward_loss", losses), ("backward_correlation", correlations)):
        for layer, value in enumerate(values):
            table.add(metric, value, layer=f"representation.{layer}", index=layer, position=layer / depth,
                      baseline=BASELINE)  # fmt: skip
    if signal.equilibrium is None:
        row = table.skip("equilibrium_layer", "forward loss and backward correlation do not cross", baseline=BASELINE)
    else:
        row = table.add("equilibrium_layer", signal.equilibrium, baseline=BASELINE)
    claims = [_equilibrium_claim(signal, depth, row)]
    if phase is not None:
        claims.append(_phase_claim(phase, signal, start, table.add("signal_slope", phase.slope, baseline=BASELINE)))
    if law is not None:
        claims.append(_law_claim(law, signal, depth, row))
    if signal.error > _WORTH_SAYING:
        text = f"The integrals are good to a relative error of about {signal.error:.1g} only."
        claims.append(Claim("quadrature", text, "caution", values={"error": signal.error}))

    settings = dataclasses.asdict(config)
    run = RunFolder.create(
        out, command=command, configuration=settings, seed=0, device="cpu", dtype="float64",
        extra={"title": _title(config),
               "propagation": settings | {"error": signal.error}},
    )  # fmt: skip
    run.write_metrics(table)
    run.write_arrays({
        "propagation/forward_loss": np.array(losses), "propagation/backward_correlation": np.array(correlations),
        "propagation/second_moment": np.array(signal.second_moment.tolist()),
    })  # fmt: skip
    run.write_verdict(claims)
    run.finish("complete")
    if page:
        write_page(run.path)
    return run
