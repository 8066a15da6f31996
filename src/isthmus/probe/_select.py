"""Which modules are measured: the repeated blocks, all of them, or those that patterns name."""

from __future__ import annotations

import dataclasses
import fnmatch
import itertools
import re
from collections.abc import Sequence

from torch import nn

from isthmus._errors import InputError, near_name_hint
from isthmus.models import LeakyBlock
from isthmus.probe._survey import MOST_CALLS, Call, Survey, TensorUse

BLOCKS = "blocks"
_LOOK_AHEAD = 24


@dataclasses.dataclass(frozen=True, eq=False)
class Site:
    """A representation that is measured: what one call of a module gives, or is given.

    Attributes:
        label: name in the table.
        call: the call it belongs to.
        kind: `block`, `layer`, or `input` for the start of a chain of blocks.
        at_input: whether it is what the call is given.
        pooled: whether all calls of the module count together.
        previous: the site before it on the residual stream, where it is one that no module gives as its output; its
            move is measured from there.
    """

    label: str
    call: Call
    kind: str
    at_input: bool = False
    pooled: bool = False
    previous: Site | None = None

    @property
    def at(self) -> int:
        """When it is there, on the survey's clock."""
        return self.call.start if self.at_input else self.call.end

    @property
    def value(self) -> TensorUse | None:
        """The tensor."""
        return self.call.input if self.at_input else self.call.output

    @property
    def dimension(self) -> int:
        """Where its features stand."""
        return self.call.input_dimension if self.at_input else self.call.dimension

    @property
    def why(self) -> str:
        """Why it cannot be measured, or an empty string."""
        return "" if self.at_input else self.call.why


def _own_matrices(module: nn.Module) -> bool:
    return any(p.dim() >= 2 for p in module.parameters(recurse=False))


def is_weight_layer(call: Call) -> bool:
    """Whether a call multiplies its (real) input by a matrix of its own module."""
    return call.input is not None and _own_matrices(call.module)


def _preserves(call: Call) -> bool:
    return call.input is not None and call.output is not None and call.input.shape == call.output.shape


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _chains(survey: Survey) -> list[list[Call]]:
    """Groups of blocks: calls of one class, with parts, inside one parent, each fed by the one before.

    Blocks may stand in a list or be numbered attributes. At least half of the neighbours must be chained directly.
    """
    groups: dict[tuple[str, type], list[Call]] = {}
    for call in sorted(survey.calls, key=lambda c: c.start):
        composite = next(call.module.children(), None) is not None
        if composite and call.number == 0 and call.output is not None and call.depth > 0:
            groups.setdefault((_parent(call.name), type(call.module)), []).append(call)
    found: list[list[Call]] = []
    for group in groups.values():
        repeated = len(group) > 1 and any(True for _ in group[0].module.parameters())
        if not repeated and not isinstance(group[0].module, LeakyBlock):  # which is one, whatever is in it
            continue
        if isinstance(group[0].module, (nn.ModuleList, nn.ModuleDict)):
            continue
        if group[0].input is None:  # given no representation (tokens): an encoder beside a decoder, not a block
            continue
        fed = sum(
            a.output is not None and b.input is not None and (a.output.key == b.input.key or _leads(survey, a, b))
            for a, b in itertools.pairwise(group)
        )
        if fed >= (len(group) - 1) / 2:
            found.append(group)
    return found


def _leads(survey: Survey, a: Call, b: Call) -> bool:
    """Whether `b` begins after `a` with a tensor of the same samples and at least one call in between, or none."""
    if a.end > b.start or a.output is None or b.input is None or len(a.output.shape) != len(b.input.shape):
        return False
    between = [c for c in survey.calls if a.end < c.start and c.end < b.start and c.output is not None]
    keys = {c.input.key for c in between if c.input is not None}
    return a.output.key in keys and any(c.output is not None and c.output.key == b.input.key for c in between)


def find_blocks(survey: Survey) -> list[Call]:
    """The repeated blocks of a model, in order; empty where there are none.

    Blocks that do no more than call blocks one after the other (the stages of a ResNet), or mostly change the shape
    where theirs mostly keep it, are replaced by those.
    """
    groups = _chains(survey)

    def inside(group: list[Call], outer: Call) -> bool:
        return all(c.name.startswith(f"{outer.name}.") for c in group)

    def outermost(among: list[list[Call]]) -> list[list[Call]]:
        return [g for g in among if not any(inside(g, c) for other in among if other is not g for c in other)]

    def keeping(level: list[list[Call]]) -> float:
        blocks = [c for group in level for c in group]
        return sum(map(_preserves, blocks)) / len(blocks)

    chosen: list[Call] = []
    for top in outermost(groups):
        level = [top]
        while True:
            blocks = [c for group in level for c in group]
            nested = outermost([g for g in groups if any(inside(g, c) for c in blocks)])
            if not nested or not all(any(inside(g, c) for g in nested) for c in blocks):
                break
            stages = all(any(_is_last_of(c, g) for g in nested) for c in blocks)
            if not stages and not keeping(level) < 0.5 < 0.75 <= keeping(nested):
                break
            level = nested
        chosen.extend(c for group in level for c in group)
    return sorted({id(c): c for c in chosen}.values(), key=lambda c: c.end)


def _is_last_of(call: Call, group: list[Call]) -> bool:
    """Whether a call gives what the last block inside it gave."""
    last = group[-1]
    own = call.output is not None and last.output is not None and last.output.key == call.output.key
    return own and last.name.startswith(f"{call.name}.")


def _labels(calls: Sequence[Call], survey: Survey, kind: str) -> list[Site]:
    sites: list[Site] = []
    for call in calls:
        times = len(survey.calls_of(call.name))
        pooled = times > MOST_CALLS
        if pooled and call.number:
            continue
        label = call.name if times == 1 or pooled else f"{call.name} (call {call.number + 1})"
        sites.append(Site(label, call, kind, pooled=pooled))
    return sites


def select_sites(survey: Survey, layers: str | Sequence[str]) -> list[Site]:
    """The representations that `layers` asks for, in the order of execution.

    Args:
        survey: of the model.
        layers: `"blocks"`: the repeated blocks and the input of each chain of them; where there are none, the layers
            that have weight matrices and the input of the first. `"*"`: every module, and the input of the first weight
            layer. Otherwise one or several globs of module names.

    Raises:
        InputError: a pattern that no module matches (with the closest names), or only modules that are never called.
    """
    calls = [c for c in survey.calls if c.name != "(model)" or len(survey.modules) == 1]
    patterns = [layers] if isinstance(layers, str) else list(layers)
    if not patterns:
        raise InputError("layers", "nothing", "'blocks', '*' or globs of module names")
    if patterns == [BLOCKS]:
        blocks = find_blocks(survey)
        if blocks:
            again = [c for b in blocks for c in survey.calls_of(b.name)]
            return sorted(_with_inputs(_labels(again, survey, "block")), key=lambda s: s.at)
        stream = _stream(survey)
        if stream:
            return stream
        with_weights = [c for c in calls if _own_matrices(c.module) and c.output is not None]
        sites = _labels(with_weights or calls, survey, "layer")
        return [*_start(with_weights or calls), *sites]
    known = [name for name in survey.modules if name != "(model)" or len(survey.modules) == 1]
    wanted: set[str] = set()
    for pattern in patterns:
        matching = set(fnmatch.filter(known, pattern)) | ({pattern} & set(known))
        if not matching:
            raise InputError("layers", pattern, "'blocks', '*' or a pattern that matches a module's name",
                             near_name_hint(pattern, known) if len(known) < 2000 else "")  # fmt: skip
        wanted |= matching
    chosen = [c for c in calls if c.name in wanted]
    if not chosen:
        name = sorted(wanted)[0]
        raise InputError("layers", ", ".join(patterns), "modules that a forward pass calls",
                         f"{name}: {survey.why_not_called(name)}")  # fmt: skip
    blocks = {id(b) for b in find_blocks(survey)}
    sites = _labels(chosen, survey, "layer")
    sites = [dataclasses.replace(s, kind="block") if id(s.call) in blocks else s for s in sites]
    return [*_start([c for c in calls if is_weight_layer(c)]), *sites] if patterns == ["*"] else sites


def _start(calls: Sequence[Call]) -> list[Site]:
    """What the first of some calls is given, where that is a representation."""
    first = min(calls, key=lambda c: c.start, default=None)
    if first is None or first.input is None or len(first.input.shape) < 2:
        return []
    return [Site(f"{first.name} (input)", first, "input", at_input=True)]


def _stream(survey: Survey) -> list[Site]:
    """The residual stream of a model that adds branches to it outside of any module: the inputs of the branches.

    A branch keeps the shape of its input, and the input of the next one depends on what it gave.
    """
    groups: dict[tuple[str, type], list[Call]] = {}
    for call in sorted(survey.calls, key=lambda c: c.start):
        composite = next(call.module.children(), None) is not None
        if composite and call.number == 0 and call.depth > 0 and _preserves(call):
            groups.setdefault((re.sub(r"\d+", "*", call.name), type(call.module)), []).append(call)
    found: dict[int, Site] = {}
    for group in groups.values():
        if len(group) < 2 or _own_shape(group) is None or any(id(c) in found for c in group):
            continue
        read = [_reads(survey, a, b) for a, b in itertools.pairwise(group)]
        if not all(read):
            continue
        first = group[0]
        here = Site(f"{first.name} (input)", first, "input", at_input=True)
        found[id(first)] = here
        for branch, after in zip(group, [*group[1:], _reader_after(survey, group[-1])], strict=True):
            if after is not None:
                here = Site(f"{branch.name} (stream)", after, "block", at_input=True, previous=here)
                found[id(after)] = here
    return sorted(found.values(), key=lambda s: s.at)


def _own_shape(group: Sequence[Call]) -> tuple[int, ...] | None:
    """The one shape of all inputs of a group, or None where they differ."""
    shapes = {c.input.shape for c in group if c.input is not None}
    return shapes.pop() if len(shapes) == 1 else None


def _reads(survey: Survey, a: Call, b: Call) -> bool:
    return a.end < b.start and a.output is not None and b.input is not None and survey.reads(a.output, b.input)


def _reader_after(survey: Survey, last: Call) -> Call | None:
    """The first call after the last branch that is given the stream."""
    for call in sorted(survey.calls, key=lambda c: c.start):
        same = call.input is not None and last.input is not None and call.input.shape == last.input.shape
        if call.start > last.end and same and _reads(survey, last, call):
            return call
    return None


def _with_inputs(blocks: list[Site]) -> list[Site]:
    """Before the first block of a chain, the input of it: the start of the residual stream."""
    sites: list[Site] = []
    produced = {s.call.output.key for s in blocks if s.call.output is not None}
    before = None
    for site in blocks:
        call = site.call
        start = call.input is not None and call.input.key not in produced and len(call.input.shape) > 1
        if start and call.input is not None and (before is None or _parent(before) != _parent(call.name)):
            sites.append(Site(f"{site.label} (input)", call, "input", at_input=True))
        before = call.name
        sites.append(site)
    return sites


def next_weight_layer(survey: Survey, site: Site) -> Call | None:
    """The first call that multiplies something computed from a representation by a weight matrix of its own."""
    value = site.value
    later = [c for c in survey.calls if c.start >= site.at and is_weight_layer(c)]  # an input is read by its own call
    for call in sorted(later, key=lambda c: c.start)[:_LOOK_AHEAD]:
        if value is not None and call.input is not None and survey.reads(value, call.input):
            return call
    return None
