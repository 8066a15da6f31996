"""Which layers' kernels are computed exactly and which are estimated, by the memory that each takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from isthmus._errors import InputError
from isthmus.probe._tangent_features import OUTER, FeatureStore
from isthmus.probe._tangent_layers import WHOLE, TangentLayer
from isthmus.probe._tangent_pass import collect
from isthmus.probe._tangent_setting import TangentSetting
from isthmus.tangent import OuterFeatures

FEWEST_PROBES = 8
_POSITION_BYTES = 2**27
_BLOCKS = 7
"""Matrices n × n in float64 that the work on one layer holds."""


@dataclasses.dataclass(frozen=True)
class LayerPlan:
    """How one layer is computed.

    Attributes:
        layer: the layer.
        positions: whether factors at positions are kept; gradients are, otherwise.
        hold: whether forward Grams of several positions are held, too.
        features: bytes of its features, and of what a batch has at its output while they are made.
        work: bytes of the work on it.
        exact: whether it is computed exactly.
        probes: number of probes, where it is not.
        method: in words.
        why: why so.
    """

    layer: TangentLayer
    positions: bool
    hold: bool
    features: int
    work: int
    exact: bool
    probes: int
    method: str
    why: str

    @property
    def memory(self) -> int:
        """Peak bytes, of what was chosen."""
        return self.features + self.work if self.exact else estimate_memory(self.layer, self.probes)

    def store(self, setting: TangentSetting) -> FeatureStore:
        """What collects its features."""
        return FeatureStore(self.layer, setting.outputs, setting.n, positions=self.positions, hold=self.hold)


def size_text(number: float | int) -> str:
    """Bytes in words."""
    return f"{number / 2**30:.3g} GiB" if number >= 2**29 else f"{number / 2**20:.3g} MiB"


def estimate_memory(layer: TangentLayer, probes: int) -> int:
    """Bytes of `J_ℓᵀ v` of all probes, in float64, and one gradient in the model's own dtype."""
    return (probes + 2) * layer.size * 8


@dataclasses.dataclass(frozen=True)
class _Size:
    """What one sample of a layer takes: bytes of its factors and of its gradients, bytes that pass by.

    And how many multiplications a pair of samples takes in a block, forward and backward Gram.
    """

    factors: int
    gradients: int
    passing: int
    positions: int
    forward: int
    backward: int


def trial(setting: TangentSetting, layers: Sequence[TangentLayer]) -> dict[str, _Size]:
    """Find out on the first samples which layers' gradients can be had at their outputs.

    Returns:
        Of every layer what a sample takes; no factors (0 bytes) where it has none.
    """
    few = setting.few()
    signs = torch.ones(few.size, setting.outputs, dtype=setting.dtype, device=setting.device)
    signs.view(-1)[::2] = -1
    signs *= torch.arange(1, few.size + 1, device=setting.device)[:, None]
    stores = {layer.name: FeatureStore(layer, setting.outputs, few.size, positions=True)
              for layer in layers if layer.kind != WHOLE}  # fmt: skip
    collect(setting, layers, stores, signs, batches=[few])
    found: dict[str, _Size] = {}
    for layer in layers:
        item = max(4, next(iter(layer.parameters.values())).element_size())
        factors = positions = forward = backward = passing = 0
        if layer.kind != WHOLE:
            passing = -(-stores[layer.name].passing // few.size)
        if layer.kind in OUTER:
            made = stores[layer.name].features()
            if isinstance(made, OuterFeatures):
                factors = -(-(_bytes(made.a) + _bytes(made.g)) // few.size)
                positions = made.positions
                forward = positions**2 * made.a.shape[-1] if positions > 1 else 0
                backward = positions**2 * made.g.shape[-1]
        found[layer.name] = _Size(factors, setting.outputs * layer.size * item, passing, positions, forward, backward)
    return found


def _bytes(t: Tensor) -> int:
    return t.numel() * t.element_size()


def plan_layers(
    setting: TangentSetting, layers: Sequence[TangentLayer], *, method: str, probes: int, draws: int,
    work: Callable[[int], int] | None = None,
) -> list[LayerPlan]:  # fmt: skip
    """Choose for every layer.

    Exact where its features and the work on it fit into memory. Of factors at positions (with the
    forward Gram held or not) and gradients, that which takes the fewest multiplications of those that fit.

    Args:
        setting: model and data.
        layers: the layers.
        method: `auto`, `exact` or `estimate`.
        probes: of an estimate.
        draws: bootstrap weightings.
        work: bytes of the work on one layer with n samples, instead of that of alignment.

    Raises:
        InputError: `exact` that does not fit, with the largest number of samples that would.
    """
    sizes = trial(setting, layers)

    def shared(n: int) -> int:
        if work is not None:
            return work(n)
        return 8 * (_BLOCKS * n * n + draws * n * (4 * setting.outputs + 4))

    most = max(batch.size for batch in setting.batches)

    blocks = setting.outputs * (setting.outputs + 1) // 2

    def need(layer: TangentLayer, n: int) -> tuple[bool, bool, int, int]:
        size = sizes[layer.name]
        item = max(4, next(iter(layer.parameters.values())).element_size())
        grams = 2 * n * n * item if size.positions == 1 else min(_POSITION_BYTES, 3 * (size.positions * n) ** 2 * item)
        grams = max(grams, 3 * size.positions**2 * n * item)
        common, passing = shared(n), min(n, most) * size.passing
        held = (size.positions * n) ** 2 * item
        forms: list[tuple[float | int, bool, bool, int, int]] = [(layer.size, False, False, n * size.gradients, common)]
        if size.factors:  # by multiplications, whether at positions, with forward Grams held, and bytes
            factors = n * size.factors
            forms.append((size.forward + size.backward, True, False, factors, common + grams))
            if size.positions > 1:
                forms.append((size.forward / blocks + size.backward, True, True, factors, common + grams + held))
        if size.positions == 1:
            forms = forms[1:]
        fitting = [form for form in forms if form[3] + form[4] + passing <= setting.limit]
        best = min(fitting) if fitting else min(forms, key=lambda form: form[3] + form[4])
        return best[1], best[2], best[3] + passing, best[4]

    plans: list[LayerPlan] = []
    for layer in layers:
        positions, hold, features, temporary = need(layer, setting.n)
        needed = features + temporary
        fits = needed <= setting.limit
        if not fits and method == "exact":
            fitting = _largest(lambda n, one=layer: sum(need(one, n)[2:]) <= setting.limit, setting.n)
            raise InputError("method", "exact", f"at most {size_text(setting.limit)}; {layer.name} needs "
                             f"{size_text(needed)} for {setting.n} samples", f"give max_samples={fitting}, raise "
                             "max_memory, or take method='auto'" if fitting >= 3 else
                             "raise max_memory, give a smaller batch_size, or take method='auto'")  # fmt: skip
        exact = fits and method != "estimate"
        if exact:
            words = "exact: Grams" if positions else "exact: per-sample gradients"
            why = f"{size_text(needed)} of {size_text(setting.limit)}"
            if layer.kind == WHOLE:
                why += f"; of the whole model, one sample at a time: {layer.why}"
            plans.append(LayerPlan(layer, positions, hold, features, temporary, True, 0, words, why))
            continue
        most_probes = setting.limit // max(8 * layer.size, 1) - 2
        m = min(probes, most_probes)
        if m < min(probes, FEWEST_PROBES):
            raise InputError("max_memory", size_text(setting.limit), f"at least "
                             f"{size_text(estimate_memory(layer, min(probes, FEWEST_PROBES)))}, for an estimate of "
                             f"{layer.name}", "leave that layer out with layers=, or give fewer probes")  # fmt: skip
        why = "asked for" if method == "estimate" else (f"exact needs {size_text(needed)}, more than "
                                                         f"{size_text(setting.limit)}")  # fmt: skip
        if m < probes:
            why += f"; {m} of {probes} probes fit"
        plans.append(LayerPlan(layer, False, False, features, temporary, False, m, f"estimate: {m} probes", why))
    return plans


def _largest(fits: Callable[[int], bool], most: int) -> int:
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low


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
