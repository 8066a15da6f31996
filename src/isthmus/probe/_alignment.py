"""`align`: how well each layer's tangent kernel aligns with the targets."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from isthmus._errors import InputError
from isthmus._random import torch_generator
from isthmus.probe._alignment_estimate import Estimated, EstimateSettings, estimate_layers
from isthmus.probe._alignment_targets import centred_targets
from isthmus.probe._one import Forward
from isthmus.probe._options import options_of
from isthmus.probe._progress import Progress, progress_bar
from isthmus.probe._tangent_features import FeatureStore
from isthmus.probe._tangent_layers import TangentLayer
from isthmus.probe._tangent_pass import totals
from isthmus.probe._tangent_plan import LayerPlan, estimate_groups, plan_layers, planned_memory, take_exact
from isthmus.probe._tangent_setting import TangentSetting, tangent_setting
from isthmus.tangent import KernelAlignment, Peak, bootstrap_weights, find_peak, kernel_alignment, peak_sentence

METHODS = ("auto", "exact", "estimate")
SAMPLES, PROBES, NONE = "samples", "probes", ""


@dataclasses.dataclass(frozen=True)
class LayerAlignment:
    """One layer's tangent kernel and the targets.

    Attributes:
        name: of the module whose own parameters these are.
        order: its place in order of execution.
        parameters: number of parameters.
        alignment: `A_ℓ` in [0, 1]; None where the centred kernel is zero (see `note`).
        stderr: its standard error; None where there is none.
        alignment_traced: the same of the class-traced kernel.
        stderr_traced: its standard error.
        error_from: `samples` (bootstrap), `probes` (jackknife: of the estimate alone, for these samples), or empty.
        trace: `Tr K_ℓ / n` of the uncentred kernel: sum over outputs, mean over samples, of squared norms of gradients.
        trace_stderr: its standard error; 0 where it is exact.
        method: `exact: Grams`, `exact: per-sample gradients`, `estimate: m probes`.
        method_traced: the same for the traced alignment.
        why: why this method.
        memory: peak bytes planned for it.
        note: what should be known.
    """

    name: str
    order: int
    parameters: int
    alignment: float | None
    stderr: float | None
    alignment_traced: float | None
    stderr_traced: float | None
    error_from: str
    trace: float
    trace_stderr: float
    method: str
    method_traced: str
    why: str
    memory: int
    note: str


@dataclasses.dataclass(frozen=True)
class Alignment:
    """Alignment along the layers of a model.

    Attributes:
        layers: one entry per layer, in order of execution.
        n: samples.
        outputs: outputs C.
        targets: `classes` or `real`.
        replicates: alignments under bootstrap weightings of the samples, a column per layer; NaN for layers without.
        replicates_traced: the same of the traced ones.
        memory: peak bytes planned, of all that is held at once.
        notes: what was decided on the way.
    """

    layers: tuple[LayerAlignment, ...]
    n: int
    outputs: int
    targets: str
    replicates: Float[Tensor, "b layers"]
    replicates_traced: Float[Tensor, "b layers"]
    memory: int
    notes: tuple[str, ...]

    def __getitem__(self, name: str) -> LayerAlignment:
        """The layer of a name."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    def peak(self, *, traced: bool = False) -> AlignmentPeak:
        """The layer with the largest alignment, the range that cannot be told from it, or no clear peak.

        The rule is that of `isthmus.tangent.find_peak`: at 95%, over the bootstrap's weightings of the samples, with
        the weights of the model as they are. There is no clear peak where the layers differ by no more than chance
        (equal layers are called unequal in 5% of cases), and where those from the first to the last that cannot be
        told from the largest are more than half of all. Layers without an alignment, or without replicates (those
        that were estimated), leave the question open.

        Args:
            traced: of the class-traced alignment.
        """
        drawn = self.replicates_traced if traced else self.replicates
        values = [one.alignment_traced if traced else one.alignment for one in self.layers]
        known = [i for i, value in enumerate(values) if value is not None]
        if not known:
            return AlignmentPeak(False, "", "", "", (), None, None, "no layer has an alignment")
        names = [self.layers[i].name for i in known]
        found = [float(value) for value in values if value is not None]
        columns = drawn[:, known]
        if columns.shape[0] == 0 or not bool(columns.isfinite().all()):
            top = max(range(len(found)), key=found.__getitem__)
            why = "without exact kernels of all layers and a bootstrap, samples cannot tell"
            text = f"no clear peak of alignment: {why} (largest: {names[top]}, {found[top]:.2g})"
            return AlignmentPeak(False, names[top], names[top], names[top], (names[top],), found[top], None, text)
        peak = find_peak(torch.tensor(found, dtype=torch.float64), columns)
        return _named(peak, names)


@dataclasses.dataclass(frozen=True)
class AlignmentPeak:
    """Where alignment is largest.

    Attributes:
        clear: whether there is a peak.
        layer: the layer with the largest alignment.
        first, last: the first and last layer that cannot be told from it.
        members: all of them.
        value: the largest alignment.
        stderr: its standard error.
        text: a sentence.
    """

    clear: bool
    layer: str
    first: str
    last: str
    members: tuple[str, ...]
    value: float | None
    stderr: float | None
    text: str


def _named(peak: Peak, names: Sequence[str]) -> AlignmentPeak:
    return AlignmentPeak(peak.clear, names[peak.index], names[peak.first], names[peak.last],
                         tuple(names[i] for i in peak.members), peak.value, peak.stderr,
                         peak_sentence(names, peak))  # fmt: skip


def align(
    model: nn.Module,
    data: Any,
    *,
    targets: Any = None,
    layers: str | Sequence[str] = "*",
    forward: Forward | None = None,
    max_samples: int | None = None,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    method: str = "auto",
    probes: int = 64,
    traced: bool | None = None,
    max_memory: float | int | None = None,
    bootstrap: int = 200,
    seed: int = 0,
    progress: bool = True,
) -> Alignment:
    """How well the tangent kernel of each layer aligns with the targets.

    With `J_ℓ` the Jacobian of the outputs `(n, C)` with respect to a layer's own parameters, `ỹ` the centred targets
    and `K_ℓ = (I_C ⊗ H) J_ℓ J_ℓᵀ (I_C ⊗ H)`,

        A_ℓ = ỹᵀ K_ℓ ỹ / (‖K_ℓ‖_F ‖ỹ‖²)

    in [0, 1] (arXiv 2110.11749, docs/theory 4.1), and the class-traced one of `Σ_c K^{cc}` with `Σ_c ỹ_c ỹ_cᵀ`.

    *Exact*: one forward and C backward passes give the gradients of every layer at its output; linear layers,
    convolutions and embeddings have their kernels from forward and backward Grams or per-sample gradients, other
    modules are differentiated alone, and what cannot be told apart at a module's output (recurrent layers, attention,
    shared parameters, bare parameters beside parts) by differentiating the whole model one sample at a time. Every
    way is checked against a plain backward pass. *Estimate*: `‖K_ℓ‖_F` from centred random signs, any n, memory of
    `probes` gradients; the numerator `‖J_ℓᵀỹ‖²` is exact in either. The model runs in evaluation mode and comes back
    as it was; the batches of the data are kept.

    Args:
        model: any `torch.nn.Module` with outputs `(n, C)`, or whose outputs `forward` brings into that shape.
        data: as for `measure`.
        targets: classes (whole numbers, `(n,)`) or real numbers `(n, C)`; as for `measure`.
        layers: globs of names of modules that have parameters of their own.
        forward: `forward(model, batch) → (n, C)`, where calling the model on a batch is not enough.
        max_samples: samples to use at most.
        batch_size: samples per batch of data that are not batched yet.
        device: where to compute: a copy of the model is moved there; where the model is, if None.
        method: `exact`, `estimate`, or `auto`: exact for each layer that fits into memory, where that does not take
            far longer than estimates.
        probes: of an estimate.
        traced: whether estimates give the class-traced alignment, which takes them C backward passes for every fourth
            probe; None for where C is at most 16. Exact ones always give it.
        max_memory: bytes to take at most; half of what is free, if None.
        bootstrap: resamplings of the samples, for standard errors and the peak; 0 for none.
        seed: of probes and resamplings.
        progress: show what is going on, and the time left, on stderr.

    Raises:
        InputError: what cannot be used: targets, outputs, globs, gradients that are not finite, samples that
            influence each other, or an exact kernel that does not fit.
        ModelError: the model raised an error; it is the cause.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> found = align(net, torch.randn(40, 4), targets=torch.arange(40) % 2, progress=False)
        >>> len(found.layers)
        2
    """
    with progress_bar(progress) as bar:
        return align_within(
            bar, model, data, targets=targets, layers=layers, forward=forward, max_samples=max_samples,
            batch_size=batch_size, device=device, method=method, probes=probes, traced=traced, max_memory=max_memory,
            bootstrap=bootstrap, seed=seed,
        )  # fmt: skip


def align_within(
    bar: Progress,
    model: nn.Module,
    data: Any,
    *,
    method: str = "auto",
    probes: int = 64,
    traced: bool | None = None,
    bootstrap: int = 200,
    seed: int = 0,
    layers: str | Sequence[str] = "*",
    **given: Any,
) -> Alignment:
    """`align`, with a progress bar that is there already."""
    if method not in METHODS:
        raise InputError("method", method, f"one of {', '.join(METHODS)}")
    if isinstance(probes, bool) or probes < 4:
        raise InputError("probes", probes, "a whole number of at least 4")
    if isinstance(bootstrap, bool) or bootstrap < 0 or 0 < bootstrap < 50:
        raise InputError("bootstrap", bootstrap, "0, or at least 50 resamplings")
    bare, options, notes = options_of(model, layers=layers, seed=seed, **given)
    with tangent_setting(bare, data, options) as setting:
        y, kind = centred_targets(setting.batches, setting.outputs)
        weights = bootstrap_weights(setting.n, bootstrap, torch_generator(seed, "alignment bootstrap"))
        work = _Work(setting, y, weights if bootstrap else None, method, EstimateSettings(probes, traced, seed), bar)
        found, plans, memory = work.done()
        notes += [note for note in setting.notes if note not in notes]
    empty = torch.full((bootstrap, len(plans)), torch.nan, dtype=torch.float64)
    drawn, drawn_traced = empty.clone(), empty.clone()
    entries: list[LayerAlignment] = []
    for i, plan in enumerate(plans):
        one = found[plan.layer.name]
        if isinstance(one, KernelAlignment) and one.replicates.numel():
            drawn[:, i], drawn_traced[:, i] = one.replicates, one.replicates_traced
        entries.append(_entry(plan, one))
    if bootstrap:  # a resampling of one class only has no alignment
        whole = [bool(drawn[:, i].isfinite().any()) for i in range(len(plans))]
        kept = drawn[:, whole].isfinite().all(1) & drawn_traced[:, whole].isfinite().all(1)
        drawn, drawn_traced = drawn[kept], drawn_traced[kept]
        entries = [_with_errors(e, drawn[:, i], drawn_traced[:, i]) for i, e in enumerate(entries)]
    return Alignment(tuple(entries), setting.n, setting.outputs, kind, drawn, drawn_traced, memory, tuple(notes))


def plan_alignment(
    model: nn.Module, data: Any, *, layers: str | Sequence[str] = "*", seed: int = 0, bootstrap: int = 200,
    probes: int = 64, traced: bool | None = None, **given: Any,
) -> tuple[int, str, int, float]:  # fmt: skip
    """What `align` would do: samples, in which way, bytes at most, and seconds, from a trial on the first batch.

    Raises:
        InputError: as `align`.
    """
    bare, options, _ = options_of(model, layers=layers, seed=seed, **given)
    with tangent_setting(bare, data, options) as setting:
        y, _ = centred_targets(setting.batches, setting.outputs)
        settings = EstimateSettings(probes, traced, seed)
        work = _Work(setting, y, bootstrap_weights(setting.n, bootstrap, torch_generator(seed, "plan")), "auto",
                     settings, lambda _stage, _done, _total: None)  # fmt: skip
        plans = work.plans(setting.layers)
        exact, rest = [p for p in plans if p.exact], [p for p in plans if not p.exact]
        passes = (setting.outputs + 1) * bool(exact) + settings.passes(y, setting.outputs) * bool(rest)
        seconds = sum(p.multiplications for p in exact) / _multiplications_per_second(setting)
        seconds += passes * _seconds_of_a_pass(setting, y)
        how = f"exact for {len(exact)} of {len(plans)} layers" if exact and rest else "exact" if exact else "estimated"
        return setting.n, f"{how}, {passes} backward passes", planned_memory(plans, setting.limit), seconds


_TRIED = 512


def _multiplications_per_second(setting: TangentSetting) -> float:
    a = torch.ones(_TRIED, _TRIED, dtype=setting.dtype, device=setting.device)
    float((a @ a)[0, 0])
    start = time.perf_counter()
    float((a @ a)[0, 0])
    return _TRIED**3 / (time.perf_counter() - start)


def _seconds_of_a_pass(setting: TangentSetting, y: Tensor) -> float:
    """A forward and a backward pass over all samples, from one over the first batch."""
    first = setting.batches[0]
    seconds = math.inf
    for _ in range(2):
        start = time.perf_counter()
        found = totals(setting.run(first), setting.layers, y[: first.size].to(setting.device, setting.dtype))
        sum(float(g.flatten()[0]) for one in found.values() for g in one.values())
        seconds = min(seconds, time.perf_counter() - start)
    return seconds * setting.n / first.size


@dataclasses.dataclass(frozen=True)
class _Work:
    """Alignments of the layers of a setting."""

    setting: TangentSetting
    y: Tensor
    weights: Tensor | None
    method: str
    estimate: EstimateSettings
    bar: Progress

    def plans(self, layers: Sequence[TangentLayer]) -> list[LayerPlan]:
        """How each layer is computed."""
        passes = self.estimate.passes(self.y, self.setting.outputs)
        draws = 0 if self.weights is None else self.weights.shape[1]
        return plan_layers(self.setting, layers, method=self.method, probes=self.estimate.probes, draws=draws,
                           passes=passes)  # fmt: skip

    def done(self) -> tuple[dict[str, KernelAlignment | Estimated], list[LayerPlan], int]:
        """Alignments by layer, how each was computed, in order of execution, and the most bytes planned at once."""
        setting, found = self.setting, dict[str, KernelAlignment | Estimated]()
        done: list[LayerPlan] = []
        memory = 0

        def take(plan: LayerPlan, store: FeatureStore, pulled: Tensor) -> None:
            numerator = float(pulled.square().sum())
            found[plan.layer.name] = kernel_alignment(
                store.features(), self.y, numerator=numerator, weights=self.weights
            )
            done.append(plan)

        waiting = list(setting.layers)
        while waiting:
            plans = self.plans(waiting)
            exact, rest = [p for p in plans if p.exact], [p for p in plans if not p.exact]
            memory = max(memory, planned_memory(plans, setting.limit))
            waiting = take_exact(setting, exact, self.y.to(setting.device, setting.dtype), take, self.bar)
            for group in estimate_groups(rest, setting.limit):
                with_probes = dataclasses.replace(self.estimate, probes=group[0].probes)
                found |= estimate_layers(setting, [p.layer for p in group], self.y, with_probes, self.bar)
                done += group
        return found, sorted(done, key=lambda p: p.layer.order), memory


def _entry(plan: LayerPlan, one: KernelAlignment | Estimated) -> LayerAlignment:
    layer = plan.layer
    note = layer.note
    if one.alignment is None:
        said = "its centred kernel is zero: no alignment"
        note = f"{note}; {said}" if note else said
    estimated = isinstance(one, Estimated)
    return LayerAlignment(
        name=layer.name, order=layer.order, parameters=layer.size, alignment=one.alignment,
        stderr=one.stderr if isinstance(one, Estimated) else None, alignment_traced=one.alignment_traced,
        stderr_traced=one.stderr_traced if isinstance(one, Estimated) else None,
        error_from=PROBES if estimated else NONE, trace=one.trace,
        trace_stderr=one.trace_stderr if isinstance(one, Estimated) else 0.0, method=plan.method,
        method_traced=one.method_traced if isinstance(one, Estimated) else plan.method, why=plan.why,
        memory=plan.memory, note=note,
    )  # fmt: skip


def _with_errors(entry: LayerAlignment, drawn: Tensor, traced: Tensor) -> LayerAlignment:
    if drawn.shape[0] < 2 or not bool(drawn.isfinite().all()):
        return entry
    return dataclasses.replace(entry, stderr=float(drawn.std()), stderr_traced=float(traced.std()), error_from=SAMPLES)
