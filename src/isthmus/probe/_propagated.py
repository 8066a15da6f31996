"""Signal propagation of a real model on real samples, beside what infinite width predicts from its own weights."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from isthmus._errors import InputError
from isthmus._random import torch_generator
from isthmus.probe._batches import Batch
from isthmus.probe._one import Forward
from isthmus.probe._options import options_of
from isthmus.probe._progress import Progress, progress_bar
from isthmus.probe._propagated_prediction import Link, predict
from isthmus.probe._tangent_layers import WHOLE, TangentLayer
from isthmus.probe._tangent_pass import _Capture, gradients_of
from isthmus.probe._tangent_setting import TangentSetting, tangent_setting
from isthmus.tangent import PairMean, forward_loss, in_double, jackknifed, mean_cosine
from isthmus.theory import SignalPropagation, equilibrium_layer

SIGNALS = ("forward_loss", "backward_correlation", "equilibrium_layer")
"""Metrics of signal propagation that any model can have."""

UNCALLED = "it is never called in a forward pass (unused, or its parent uses its weights directly)"

MOST_OUTPUTS = 64
"""Outputs that are differentiated one by one; of more, as many random mixtures are."""

SAMPLES = 200


@dataclasses.dataclass(frozen=True)
class LayerSignal:
    """Signals at one layer with parameters of its own: its input, and the outputs' derivatives at its output.

    Attributes:
        name: of the layer.
        forward_loss: `1 − c` of what the layer reads; None where it has none.
        backward_correlation: `g` of the derivatives at what it gives; None where it has none.
        note: why something is None.
    """

    name: str
    forward_loss: PairMean | None
    backward_correlation: PairMean | None
    note: str


@dataclasses.dataclass(frozen=True)
class Propagation:
    """Forward loss and backward correlation of each layer, measured and predicted (docs/theory 4.3).

    Entry k of `layers` is of the layer that reads `α_k`: of the first layer, the input. Its tangent kernel is made of
    these two, and its alignment is to be compared with them.

    Attributes:
        layers: in order of execution.
        uncalled: names of those that a forward pass never calls, which have no place among the others.
        n: samples.
        outputs: outputs C.
        equilibrium: where the measured forward loss falls to the backward correlation, counted as the layers are and
            between two by interpolation. Layers without one of the two numbers are passed over.
        equilibrium_stderr: its standard error, over samples as theirs (jackknife); None where without one of the
            samples there would be no such layer.
        why_no_equilibrium: why there is no such layer.
        predicted: the same at infinite width; None where the model is no plain chain.
        activation: name of φ that the layers were found to be joined by; empty where there is none.
        why: why there is no prediction.
        notes: what was decided on the way.
    """

    layers: tuple[LayerSignal, ...]
    uncalled: tuple[str, ...]
    n: int
    outputs: int
    equilibrium: float | None
    equilibrium_stderr: float | None
    why_no_equilibrium: str
    predicted: SignalPropagation | None
    activation: str
    why: str
    notes: tuple[str, ...]


@dataclasses.dataclass
class _Seen:
    """What a layer read and where its output is, batch by batch."""

    inputs: list[Tensor]
    edges: list[Any]
    why_forward: str = ""
    why_backward: str = ""


def propagation(
    model: nn.Module,
    data: Any,
    *,
    layers: str | Sequence[str] = "*",
    forward: Forward | None = None,
    max_samples: int = SAMPLES,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    max_memory: float | int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Propagation:
    """How alike samples are at each layer of a model, forwards and backwards, beside the prediction of infinite width.

    Of each layer with parameters: the forward loss `1 − c` of its input over all pairs of samples, and the backward
    correlation `g` of the derivatives of all outputs at its output; and where the one falls to the other, the
    equilibrium layer; with standard errors over samples (arXiv 2110.11749, docs/theory 4.3).

    The prediction is the recursion of `isthmus.theory.propagate_signal` from the model's own variances,
    `σ_w² = ‖W_ℓ‖²/rows` and `σ_b² = ‖b_ℓ‖²/rows`, and the data's own `c_0`. It is for weights drawn at random: measure
    at initialisation. It is made where the model is a chain of linear layers joined by one activation, which is
    verified on the samples: each layer reads φ of what the one before gives, and the last one gives the outputs. φ is
    the one of `isthmus.theory.ACTIVATIONS` and of the model's activation modules that comes nearest, within rounding.

    The model runs in evaluation mode and comes back as it was.

    Args:
        model: any `torch.nn.Module` with outputs `(n, C)`, or whose outputs `forward` brings into that shape.
        data: as for `measure`.
        layers: globs of names of modules that have parameters of their own.
        forward: `forward(model, batch) → (n, C)`, where calling the model on a batch is not enough.
        max_samples: samples to use at most, at least 3. Of more than 64 outputs, 64 random mixtures are differentiated.
        batch_size: samples per batch of data that are not batched yet.
        device: where to compute: a copy of the model is moved there; where the model is, if None.
        max_memory: bytes to take at most; half of what is free, if None.
        seed: of the mixtures.
        progress: show what is going on, on stderr.

    Raises:
        InputError: fewer than 3 samples, more than fit into memory, outputs of another shape, samples that influence
            each other, or a glob without layers.
        ModelError: the model raised an error; it is the cause.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> found = propagation(net, torch.randn(40, 4), progress=False)
        >>> found.activation, len(found.layers), len(found.predicted.forward_loss)
        ('relu', 2, 2)
    """
    with progress_bar(progress) as bar:
        return propagation_within(
            bar, model, data, layers=layers, forward=forward, max_samples=max_samples, batch_size=batch_size,
            device=device, max_memory=max_memory, seed=seed,
        )  # fmt: skip


def propagation_within(
    bar: Progress, model: nn.Module, data: Any, *, layers: str | Sequence[str] = "*", seed: int = 0, **given: Any
) -> Propagation:
    """`propagation`, with a progress bar that is there already, and the options of `measure`."""
    bare, options, notes = options_of(model, layers=layers, seed=seed, **given)
    with tangent_setting(bare, data, options) as setting:
        if setting.n < 3:
            raise InputError("data", f"{setting.n} samples", "at least 3, for means over pairs")
        called = [layer for layer in setting.layers if layer.calls]
        uncalled = tuple(layer.name for layer in setting.layers if not layer.calls)
        seen, outs = _forward(setting, called, setting.batches)
        grams = _backward(setting, seen, outs, seed, lambda done, total: bar("signal propagation", done, total))
        found = [_layer(layer.name, seen[layer.name], grams.get(layer.name), setting.n) for layer in called]
        links = [_link(layer, seen[layer.name], one) for layer, one in zip(called, found, strict=True)]
        activation, predicted, why = predict(setting.model, links, torch.cat(outs).detach())
        notes += [note for note in setting.notes if note not in notes]
    if setting.outputs > MOST_OUTPUTS:
        notes.append(f"derivatives of {MOST_OUTPUTS} random mixtures of the {setting.outputs} outputs")
    notes += [f"{name} is left out: {UNCALLED}" for name in uncalled]
    return Propagation(tuple(found), uncalled, setting.n, setting.outputs, *_crossing(found), predicted, activation,
                       why, tuple(notes))  # fmt: skip


def plan_propagation(
    model: nn.Module, data: Any, *, layers: str | Sequence[str] = "*", seed: int = 0, **given: Any
) -> tuple[int, int, int, float]:
    """What `propagation` will take: samples, backward passes, bytes at most, and seconds, from a trial on a batch.

    Raises:
        InputError: as `propagation`.
    """
    bare, options, _ = options_of(model, layers=layers, seed=seed, **given)
    with tangent_setting(bare, data, options) as setting:
        passes, first = min(setting.outputs, MOST_OUTPUTS), setting.batches[:1]
        called = [layer for layer in setting.layers if layer.calls]
        forwards, backwards, memory = math.inf, math.inf, 0
        for _ in range(2):  # the first one also warms up
            start = time.perf_counter()
            seen, outs = _forward(setting, called, first)
            middle = time.perf_counter()
            _backward(setting, seen, outs, seed, lambda _done, _total: None, most=1)
            forwards = min(forwards, middle - start)
            backwards = min(backwards, time.perf_counter() - middle)
            memory = _bytes_of_a_sample(seen, first[0].size) * setting.n
        return setting.n, passes, memory, (forwards + passes * backwards) * setting.n / first[0].size


def _forward(
    setting: TangentSetting, layers: Sequence[TangentLayer], batches: Sequence[Batch]
) -> tuple[dict[str, _Seen], list[Tensor]]:
    """One forward pass with the graph kept: what each layer read, and the outputs."""
    seen = {layer.name: _Seen([], []) for layer in layers}
    outs = list[Tensor]()
    near = [layer for layer in layers if layer.kind != WHOLE]
    for layer in layers:
        if layer.kind == WHOLE:
            seen[layer.name].why_forward = seen[layer.name].why_backward = layer.why
    for number, batch in enumerate(batches):
        capture = _Capture(setting, near)
        try:
            outs.append(setting.run(batch, number))
        finally:
            capture.close()
        for layer in near:
            _keep(seen[layer.name], capture.calls[layer.name], batch.size)
        if number == 0:
            _check_memory(setting, seen, batch.size)
    return seen, outs


def _keep(one: _Seen, calls: Sequence[Any], size: int) -> None:
    if len(calls) != 1:
        one.why_forward = one.why_backward = f"it is called {len(calls)} times"
        return
    (call,) = calls
    read = call.args[0] if call.args else None
    if not isinstance(read, Tensor) or not read.is_floating_point():
        one.why_forward = "it does not read one tensor of real numbers"
    elif read.dim() < 2 or read.shape[0] != size:
        one.why_forward = "what it reads has no row for each sample"
    elif call.changed():
        one.why_forward = "what it reads is changed in place"
    else:
        one.inputs.append(read.detach())
    if call.edge is None or len(call.shape) < 2 or call.shape[0] != size:
        one.why_backward = "what it gives has no gradient, or no row for each sample"
    else:
        one.edges.append(call.edge)


def _bytes_of_a_sample(seen: Mapping[str, _Seen], size: int) -> int:
    """What the graph keeps of a sample is about its inputs; one row of derivatives of each comes on top."""
    return 4 * sum(t.numel() * t.element_size() for one in seen.values() for t in one.inputs) // size


def _check_memory(setting: TangentSetting, seen: Mapping[str, _Seen], size: int) -> None:
    each = _bytes_of_a_sample(seen, size)
    if each * setting.n > setting.limit:
        raise InputError("max_samples", setting.n, f"at most about {max(setting.limit // max(each, 1), 1)}, which fit "
                         f"into {setting.limit / 2**20:.0f} MiB", "or give more max_memory")  # fmt: skip


def _backward(
    setting: TangentSetting, seen: Mapping[str, _Seen], outs: Sequence[Tensor], seed: int,
    done: Callable[[int, int], None], most: int = MOST_OUTPUTS,
) -> dict[str, Tensor]:  # fmt: skip
    """`Σ_c ⟨∂f_c(x_i), ∂f_c(x_j)⟩` at the output of each layer: one backward pass for each output."""
    count = min(setting.outputs, most)
    mixtures = torch.eye(setting.outputs, dtype=setting.dtype)
    if setting.outputs > most:
        drawn = torch.randint(2, (count, setting.outputs), generator=torch_generator(seed, "signal outputs"))
        mixtures = (2 * drawn - 1).to(setting.dtype)
    usable = {name: one.edges for name, one in seen.items() if len(one.edges) == len(outs)}
    grams: dict[str, Tensor] = {}
    if not usable:
        return grams
    for number, mixture in enumerate(mixtures):
        pieces: dict[str, list[Tensor]] = {name: [] for name in usable}
        for k, out in enumerate(outs):
            found = gradients_of(out, [edges[k] for edges in usable.values()], mixture.to(out).expand_as(out))
            for name, gradient in zip(usable, found, strict=True):
                pieces[name].append(out.new_zeros(len(out), 1) if gradient is None else gradient.flatten(1))
        for name, rows in pieces.items():
            if len({row.shape[1] for row in rows}) > 1:
                seen[name].why_backward = "batches differ in size"
                continue
            whole = torch.cat(rows)
            gram = in_double(whole @ whole.mT).cpu()
            grams[name] = grams[name] + gram if name in grams else gram
        done(number + 1, len(mixtures))
    return grams


def _layer(name: str, one: _Seen, gram: Tensor | None, n: int) -> LayerSignal:
    loss = backward = None
    widths = {tuple(t.shape[1:]) for t in one.inputs}
    if not one.why_forward and len(widths) > 1:
        one.why_forward = "batches differ in size"
    if not one.why_forward:
        try:
            loss = forward_loss(torch.cat(one.inputs))
        except InputError as error:
            one.why_forward = _no_mean(error, "what it reads is", n)
    if not one.why_backward and gram is not None:
        try:
            backward = mean_cosine(gram)
        except InputError as error:
            one.why_backward = _no_mean(error, "the derivatives at what it gives are", n)
    reasons = [f"forward: {one.why_forward}"] if loss is None else []
    reasons += [f"backward: {one.why_backward}"] if backward is None else []
    return LayerSignal(name, loss, backward, "; ".join(reasons))


def _no_mean(error: InputError, what: str, n: int) -> str:
    """Why there is no mean over pairs, from what `mean_cosine` refuses."""
    if error.argument != "samples":
        return f"{what} not finite"
    if not error.value:
        return f"{what} zero at every sample"
    return f"{what} zero at all but {error.value} of {n} samples, and a mean over pairs needs 3"


def _link(layer: TangentLayer, one: _Seen, found: LayerSignal) -> Link:
    whole = bool(one.inputs) and (found.forward_loss is not None or len({t.shape[1:] for t in one.inputs}) == 1)
    return Link(layer, torch.cat(one.inputs) if whole else None, found.forward_loss, one.why_forward)


def _crossing(layers: Sequence[LayerSignal]) -> tuple[float | None, float | None, str]:
    """The equilibrium layer, its standard error, or why there is none; of the layers that have both numbers."""
    known = [(place, one.forward_loss, one.backward_correlation) for place, one in enumerate(layers)
             if one.forward_loss is not None and one.backward_correlation is not None]  # fmt: skip
    if len(known) < 2:
        return None, None, "fewer than two layers have both a forward loss and a backward correlation"
    places = [place for place, _, _ in known]
    losses = torch.tensor([loss.value for _, loss, _ in known], dtype=torch.float64)
    backward = torch.tensor([mean.value for _, _, mean in known], dtype=torch.float64)
    value = _place(losses, backward, places)
    if value is None:
        above = losses > backward
        does = (
            "stays above" if above.all() else "rises past, and does not fall to," if above.any() else "is never above"
        )
        return None, None, f"the forward loss {does} the backward correlation"
    without = zip(torch.stack([loss.without.cpu() for _, loss, _ in known], 1),
                  torch.stack([mean.without.cpu() for _, _, mean in known], 1), strict=True)  # fmt: skip
    left_out = [place for one in without if (place := _place(*one, places)) is not None]
    if len(left_out) < len(known[0][1].without):
        return value, None, ""
    return value, jackknifed(value, torch.tensor(left_out, dtype=torch.float64), correct=False).stderr, ""


def _place(losses: Tensor, backward: Tensor, places: Sequence[int]) -> float | None:
    """Where the forward loss falls to the backward correlation, counted as all layers are."""
    found = equilibrium_layer(losses, backward)
    if found is None:
        return None
    before = math.floor(found)
    after = min(before + 1, len(places) - 1)
    return places[before] + (found - before) * (places[after] - places[before])
