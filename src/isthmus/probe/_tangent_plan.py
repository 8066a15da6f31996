"""Which layers' kernels are computed exactly and which are estimated, by the memory that each takes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from isthmus._errors import InputError
from isthmus.probe._plan import size_text
from isthmus.probe._progress import Progress
from isthmus.probe._tangent_features import GRADIENTS, GRAMS, HELD, OUTER, PIECES, FeatureStore
from isthmus.probe._tangent_layers import WHOLE, TangentLayer
from isthmus.probe._tangent_pass import collect
from isthmus.probe._tangent_setting import TangentSetting
from isthmus.tangent import PIECE_BYTES, OuterFeatures

FEWEST_PROBES = 8
MOST_MULTIPLICATIONS = 1e13
"""Of exact kernels, unless an estimate takes nearly as many: some minutes on one core."""

_TIMES_AN_ESTIMATE = 4
_TRIED_OUTPUTS = 2
_PASSING = 48
"""Multiplications that take as long as a number of a Gram being written, multiplied and summed."""

_WORDS = {GRADIENTS: "exact: per-sample gradients", PIECES: "exact: per-sample gradients, in pieces",
          GRAMS: "exact: Grams", HELD: "exact: Grams"}  # fmt: skip
_POSITION_BYTES = 2**27
_BLOCKS = 7
"""Matrices n × n in float64 that the work on one layer holds."""


@dataclasses.dataclass(frozen=True)
class LayerPlan:
    """How one layer is computed.

    Attributes:
        layer: the layer.
        form: what is kept of it: gradients, or factors and what is made of them.
        features: bytes of its features, and of what a batch has at its output while they are made.
        work: bytes of the work on it.
        exact: whether it is computed exactly.
        probes: number of probes, where it is not.
        method: in words.
        why: why so.
        multiplications: of the work on it, where it is exact.
    """

    layer: TangentLayer
    form: str
    features: int
    work: int
    exact: bool
    probes: int
    method: str
    why: str
    multiplications: float | int = 0

    @property
    def memory(self) -> int:
        """Peak bytes, of what was chosen."""
        return self.features + self.work if self.exact else estimate_memory(self.layer, self.probes)

    def store(self, setting: TangentSetting) -> FeatureStore:
        """What collects its features."""
        return FeatureStore(self.layer, setting.outputs, setting.n, form=self.form)


def estimate_memory(layer: TangentLayer, probes: int) -> int:
    """Bytes of `J_ℓᵀ v` of all probes, in float64, and one gradient in the model's own dtype."""
    return (probes + 2) * layer.size * 8


@dataclasses.dataclass(frozen=True)
class _Size:
    """What one sample of a layer takes.

    Attributes:
        factors: bytes of its factors; 0 where it has none.
        gradients: bytes of its gradients.
        passing: bytes that pass by.
        positions: of its factors.
        inner, outer: numbers of an input and of an output at one position; 0 inner for row numbers.
        item: bytes of a number.
    """

    factors: int
    gradients: int
    passing: int
    positions: int
    inner: int
    outer: int
    item: int


def trial(setting: TangentSetting, layers: Sequence[TangentLayer]) -> dict[str, _Size]:
    """Find out on the first samples and outputs which layers' gradients can be had at their outputs.

    Returns:
        Of every layer what a sample takes; no factors (0 bytes) where it has none.
    """
    few, outputs = setting.few(), min(_TRIED_OUTPUTS, setting.outputs)
    signs = torch.zeros(few.size, setting.outputs, dtype=setting.dtype, device=setting.device)
    signs[:, :outputs] = torch.arange(1, few.size + 1, device=setting.device)[:, None]
    signs[:, 1:outputs] *= -1
    stores = {layer.name: FeatureStore(layer, outputs, few.size) for layer in layers if layer.kind != WHOLE}
    collect(setting, layers, stores, signs, batches=[few], outputs=outputs)
    found: dict[str, _Size] = {}
    for layer in layers:
        item = max(4, next(iter(layer.parameters.values())).element_size())
        factors = positions = inner = outer = passing = 0
        if layer.kind != WHOLE:
            passing = -(-stores[layer.name].passing * setting.outputs // (few.size * outputs))
        if layer.kind in OUTER:
            made = stores[layer.name].features()
            if isinstance(made, OuterFeatures):
                factors = -(-(_bytes(made.a) + _bytes(made.g) * setting.outputs // outputs) // few.size)
                positions, outer = made.positions, made.g.shape[-1]
                inner = made.a.shape[-1] if made.a.is_floating_point() and made.weight else 0
        found[layer.name] = _Size(factors, setting.outputs * layer.size * item, passing, positions, inner, outer, item)
    return found


def _bytes(t: Tensor) -> int:
    return t.numel() * t.element_size()


@dataclasses.dataclass(frozen=True, order=True)
class _Form:
    """A way to a layer's kernel: multiplications for a pair of samples in one of its blocks, and bytes."""

    multiplications: float | int
    name: str
    features: int
    work: int

    @property
    def bytes(self) -> int:
        """In all."""
        return self.features + self.work


def _forms(layer: TangentLayer, size: _Size, n: int, outputs: int, passing: int, common: int) -> list[_Form]:
    """The ways that a layer has, whether they fit or not.

    Args:
        layer: the layer.
        size: what a sample takes.
        n: samples.
        outputs: outputs C.
        passing: bytes that pass by.
        common: bytes of the work that does not depend on the layer.
    """
    t, rows = size.positions, n * size.positions
    forms = list[_Form]()
    if t != 1:
        forms.append(_Form(layer.size, GRADIENTS, n * size.gradients + passing, common))
    if size.factors:
        factors, inner = n * size.factors + passing, size.inner if t > 1 else 0
        grams = 2 * n * n * size.item if t == 1 else min(_POSITION_BYTES, 3 * rows * rows * size.item)
        grams = common + max(grams, 3 * t * t * n * size.item)
        forms.append(_Form(t * t * (inner + size.outer + _PASSING), GRAMS, factors, grams))
        if t > 1:
            blocks = outputs * (outputs + 1) // 2
            forms.append(_Form(t * t * (inner / blocks + size.outer + _PASSING), HELD, factors,
                               grams + rows * rows * size.item))  # fmt: skip
        if t > 1 and size.inner:
            made = 2 * t / (n * outputs)  # the gradients themselves, once for all pairs and blocks
            kernel = 10 * (n * outputs) ** 2 + 2 * max(PIECE_BYTES, n * outputs * size.inner * size.item)
            forms.append(_Form(layer.size * (1 + made), PIECES, factors, common + kernel))
    return forms


def plan_layers(
    setting: TangentSetting, layers: Sequence[TangentLayer], *, method: str, probes: int = 0, draws: int = 0,
    work: Callable[[int], int] | None = None, passes: int = 0, asked: tuple[str, str] = ("method", "exact"),
) -> list[LayerPlan]:  # fmt: skip
    """Choose for every layer.

    Exact where its features and the work on it fit into memory, and the multiplications of all layers are at most
    `MOST_MULTIPLICATIONS`, or few times those of an estimate. Of Grams at positions (the forward one held or not) and
    gradients (held or formed in pieces), that which takes the fewest multiplications of those that fit.

    Args:
        setting: model and data.
        layers: the layers.
        method: `auto`, `exact` or `estimate`.
        probes: of an estimate.
        draws: bootstrap weightings.
        work: bytes of the work on one layer with n samples, instead of that of alignment.
        passes: backward passes of an estimate.
        asked: the argument that asks for exact ones, and its value, for the error.

    Raises:
        InputError: `exact` that does not fit, with the largest number of samples that would.
    """
    sizes = trial(setting, layers)
    outputs, blocks = setting.outputs, setting.outputs * (setting.outputs + 1) // 2

    def shared(n: int) -> int:
        if work is not None:
            return work(n)
        return 8 * (_BLOCKS * n * n + draws * n * (4 * outputs + 4))

    most = max(batch.size for batch in setting.batches)

    def need(layer: TangentLayer, n: int) -> _Form:
        size = sizes[layer.name]
        forms = _forms(layer, size, n, outputs, min(n, most) * size.passing, shared(n))
        fitting = [form for form in forms if form.bytes <= setting.limit]
        return min(fitting) if fitting else min(forms, key=lambda form: form.bytes)

    chosen = [(layer, need(layer, setting.n)) for layer in layers]
    fits = {layer.name: form.bytes <= setting.limit for layer, form in chosen}
    a_pass = 3 * setting.n * sum(max(1, sizes[layer.name].positions) * layer.size for layer in layers)
    costs = {layer.name: setting.n**2 * blocks * form.multiplications for layer, form in chosen if fits[layer.name]}
    total, other = sum(costs.values()) + outputs * a_pass, passes * a_pass
    slow = method == "auto" and total > max(MOST_MULTIPLICATIONS, _TIMES_AN_ESTIMATE * other)
    plans: list[LayerPlan] = []
    for layer, form in chosen:
        needed = form.bytes
        if not fits[layer.name] and method == "exact":
            fitting = _largest(lambda n, one=layer: need(one, n).bytes <= setting.limit, setting.n)
            other = ", or take method='auto'" if asked[0] == "method" else ", or give fewer layers"
            raise InputError(*asked, f"at most {size_text(setting.limit)}; {layer.name} needs {size_text(needed)} for "
                             f"{setting.n} samples", (f"give max_samples={fitting}, raise max_memory" if fitting >= 3
                             else "raise max_memory, give a smaller batch_size") + other)  # fmt: skip
        if fits[layer.name] and method != "estimate" and not slow:
            why = f"{size_text(needed)} of {size_text(setting.limit)}"
            if layer.kind == WHOLE:
                why += f"; of the whole model, one sample at a time: {layer.why}"
            plans.append(LayerPlan(layer, form.name, form.features, form.work, True, 0, _WORDS[form.name], why,
                                   costs[layer.name]))  # fmt: skip
            continue
        m = min(probes, setting.limit // max(8 * layer.size, 1) - 2)
        if m < min(probes, FEWEST_PROBES):
            raise InputError("max_memory", size_text(setting.limit), f"at least "
                             f"{size_text(estimate_memory(layer, min(probes, FEWEST_PROBES)))}, for an estimate of "
                             f"{layer.name}", "leave that layer out with layers=, or give fewer probes")  # fmt: skip
        why = f"exact needs {size_text(needed)}, more than {size_text(setting.limit)}"
        if fits[layer.name]:
            why = f"exact takes {total:.1e} multiplications in all layers, an estimate {other:.1e}"
        why = "asked for" if method == "estimate" else why
        if m < probes:
            why += f"; {m} of {probes} probes fit"
        plans.append(LayerPlan(layer, form.name, form.features, form.work, False, m, f"estimate: {m} probes", why))
    return plans


def take_exact(
    setting: TangentSetting, plans: Sequence[LayerPlan], cotangent: Tensor,
    take: Callable[[LayerPlan, FeatureStore, Tensor], None], progress: Progress | None = None,
) -> list[TangentLayer]:  # fmt: skip
    """Collect the features of layers, as many at once as fit, and hand each to `take`, with its `Jᵀv`.

    Args:
        setting: model and data.
        plans: of layers that are exact.
        cotangent: `v`, `(n, C)`.
        take: what is done with one.
        progress: shows how far.

    Returns:
        Layers whose gradients a later batch showed to be found by differentiating the whole model: to be planned anew.
    """
    again: list[TangentLayer] = []
    taken = 0
    for group in exact_groups(plans, setting.limit):
        kinds = {p.layer.name: p.layer.kind for p in group}
        stores = {p.layer.name: p.store(setting) for p in group}
        said = None if progress is None else functools.partial(_said, progress, setting.n)
        sums = collect(setting, [p.layer for p in group], stores, cotangent, said)
        for p in group:
            store, products = stores.pop(p.layer.name), sums.pop(p.layer.name)
            if p.layer.kind != kinds[p.layer.name]:
                again.append(p.layer)
                continue
            take(p, store, products)
            del store
            taken += 1
            if progress is not None:
                progress("alignment: kernels", taken, len(plans))
    return again


def _said(progress: Progress, total: int, done: int) -> None:
    progress("alignment: gradients", done, total)


def _largest(fits: Callable[[int], bool], most: int) -> int:
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low


def planned_memory(plans: Sequence[LayerPlan], limit: int) -> int:
    """Peak bytes of all that is held at once, of exact layers and of estimates."""
    exact, rest = [p for p in plans if p.exact], [p for p in plans if not p.exact]
    held = [sum(p.features for p in group) + max(p.work for p in group) for group in exact_groups(exact, limit)]
    return max([*held, *(sum(p.memory for p in group) for group in estimate_groups(rest, limit))], default=0)


def exact_groups(plans: Sequence[LayerPlan], limit: int) -> list[list[LayerPlan]]:
    """Layers whose features fit together, with the work on one of them, for one pass each."""
    groups: list[list[LayerPlan]] = []
    held = work = 0
    for plan in plans:
        if not groups or held + plan.features + max(work, plan.work) > limit:
            groups.append([])
            held = work = 0
        groups[-1].append(plan)
        held, work = held + plan.features, max(work, plan.work)
    return groups


def estimate_groups(plans: Sequence[LayerPlan], limit: int) -> list[list[LayerPlan]]:
    """Layers with as many probes each, whose `J_ℓᵀ v` fit together."""
    groups: list[list[LayerPlan]] = []
    held = 0
    for plan in sorted(plans, key=lambda p: -p.probes):
        if not groups or groups[-1][0].probes != plan.probes or held + plan.memory > limit:
            groups.append([])
            held = 0
        groups[-1].append(plan)
        held += plan.memory
    return groups
