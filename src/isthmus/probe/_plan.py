"""What one pass has to collect, and what of it fits: tracks of tensors, products between them, and their memory."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

import torch

from isthmus._errors import InputError
from isthmus.geometry import CrossAccumulator, StreamAccumulator
from isthmus.probe._batches import Batch
from isthmus.probe._path_model import PathNode
from isthmus.probe._select import Site, next_weight_layer
from isthmus.probe._survey import SURVEY_SAMPLES, Call, Survey, TensorUse
from isthmus.probe._tensors import kept_rows, observation_shape

MOST_WIDTH = 8192
"""Wider representations are skipped: the eigenvalues of one would take several minutes."""

SHARE_OF_MEMORY = 0.5
NO_WEIGHTS_AFTER = "no weight layer reads it"


@dataclasses.dataclass(eq=False)
class Track:
    """One tensor of the pass whose second moments are collected, wherever it is used.

    Attributes:
        use: the tensor in the survey.
        call: the call at which it is met.
        at_input: whether it is met before the call (as its input) or after.
        dimension: where its features stand.
        moments: its accumulator.
        pooled: whether every call of the module counts.
        partners: products that wait for it.
        padding: `decoder` where the padding is that of the decoder, for models that have two.
        failed: why there are no moments after all.
    """

    use: TensorUse
    call: Call
    at_input: bool
    dimension: int
    pooled: bool = False
    moments: StreamAccumulator = dataclasses.field(default_factory=StreamAccumulator)
    padding: str = ""
    partners: list[Product] = dataclasses.field(default_factory=list["Product"])
    failed: str = ""

    @property
    def width(self) -> int:
        """Number of features."""
        shape = self.use.shape
        return 1 if len(shape) == 1 else shape[1] if self.dimension == 1 else shape[-1]

    @property
    def rows(self) -> tuple[int, ...]:
        """Observation shape in the survey."""
        return observation_shape(torch.empty(self.use.shape, device="meta"), self.dimension)


@dataclasses.dataclass(eq=False)
class Product:
    """`A Sᵀ` of a representation and the input of the weight layer that reads it."""

    left: Track
    right: Track
    sum: CrossAccumulator = dataclasses.field(default_factory=CrossAccumulator)
    failed: str = ""

    @property
    def same(self) -> bool:
        """Whether the weight layer reads the representation itself."""
        return self.left is self.right


@dataclasses.dataclass(eq=False)
class MeasuredSite:
    """A site and what is collected of it; `why` says why nothing is, `no_cost` why it has no cost of identity.

    Attributes:
        site: the site.
        track: its second moments.
        reader: the weight layer that reads it.
        product: its product with that layer's input.
        moves: whether output minus input is collected.
        moved_norm_sq: `‖A_out − A_in‖²`.
        gradients: second moments of `∂C/∂A` (times N).
        no_gradient: why there are none.
    """

    site: Site
    track: Track | None = None
    why: str = ""
    reader: Call | None = None
    product: Product | None = None
    no_cost: str = ""
    moves: bool = False
    no_move: str = ""
    moved_norm_sq: float = 0.0
    gradients: StreamAccumulator | None = None
    no_gradient: str = ""


@dataclasses.dataclass(frozen=True)
class PassPlan:
    """Everything one pass collects.

    Attributes:
        sites: every selected site, measured or not.
        tracks: the tensors whose moments are collected.
        products: the products between them.
        memory: bytes of all accumulators.
        limit: bytes they may take.
    """

    sites: tuple[MeasuredSite, ...]
    tracks: tuple[Track, ...]
    products: tuple[Product, ...]
    memory: int
    limit: int


def available_memory(device: torch.device) -> int:
    """Bytes that are free on a device now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not said on this system
        return 4 * 2**30


def _bytes(width: int, other: int | None = None) -> int:
    return 8 * width * (width if other is None else other)


def size_text(number: float | int) -> str:
    """Bytes in words."""
    return f"{number / 2**30:.3g} GiB" if number >= 2**29 else f"{number / 2**20:.3g} MiB"


class _Planner:
    def __init__(self, survey: Survey, batch: Batch, limit: int) -> None:
        self.survey, self.limit = survey, limit
        self.masks = batch.first(SURVEY_SAMPLES).masks
        self.tracks: dict[tuple[int, int], Track] = {}
        self.memory = 0

        self.decoded = _decoder_start(survey) if len(self.masks) > 1 else None

    def _padding(self, use: TensorUse, name: str) -> str:
        """Whose padding a tensor has: keys and values of a cross-attention stand in the decoder and are not its own."""
        inside = "decoder" in name
        foreign = self.decoded is not None and not self.survey.reads(self.decoded, use)
        return "decoder" if inside and not foreign else ""

    def _unfit(self, use: TensorUse, dimension: int, name: str) -> str:
        probe = Track(use, self.survey.calls[0], False, dimension)
        if probe.width > MOST_WIDTH:
            return (f"{probe.width} features are more than the {MOST_WIDTH} whose eigenvalues can be taken in minutes: "
                    "choose narrower modules with layers=")  # fmt: skip
        return kept_rows(probe.rows, self.masks, name)[1]

    def track(self, use: TensorUse, call: Call, at_input: bool, dimension: int, pooled: bool) -> Track | str:
        """The track of a tensor, made if it fits; else the reason why not."""
        if use.key in self.tracks:
            return self.tracks[use.key]
        padding = self._padding(use, call.name)
        why = self._unfit(use, dimension, padding)
        made = Track(use, call, at_input, dimension, pooled, padding=padding)
        cost = _bytes(made.width)
        if not why and self.memory + cost > self.limit:
            why = (
                f"its {made.width} features need {size_text(cost)} for their second moments, and too little is left of "
                f"{size_text(self.limit)}: choose fewer or narrower modules with layers=, or raise max_memory"
            )
        if why:
            return why
        self.tracks[use.key] = made
        self.memory += cost
        return made

    def site(self, site: Site, want_gradients: bool) -> MeasuredSite:
        """What to collect of a site, its cost of identity apart."""
        value = site.value
        if value is None:
            return MeasuredSite(site, why=site.why or "it gave no tensor")
        found = self.track(value, site.call, site.at_input, site.dimension, site.pooled)
        if isinstance(found, str):
            return MeasuredSite(site, why=found)
        made = MeasuredSite(site, found)
        call = site.call
        composite = next(call.module.children(), None) is not None
        if site.previous is not None:
            made.moves = True
        elif site.kind == "input" or site.pooled:
            made.no_move = "the start of a chain of blocks" if site.kind == "input" else "called many times in a pass"
        elif call.input is None or call.output is None or call.input.shape != call.output.shape:
            given = "no tensor" if call.input is None else f"shape {call.input.shape}"
            made.no_move = f"its input ({given}) is not of the shape of its output {call.output and call.output.shape}"
        elif isinstance(call.module, PathNode):
            made.moves = call.input.key != call.output.key
            made.no_move = "" if made.moves else "the start of the path"
        elif site.kind != "block" and not composite and not any(True for _ in call.module.parameters()):
            made.no_move = "a module without parts or weights"
        else:
            made.moves = True
        if want_gradients:
            cost = _bytes(found.width)
            if self.memory + cost > self.limit:
                made.no_gradient = f"its {found.width} features need {size_text(cost)} more memory: raise max_memory"
            elif found.at_input != site.at_input or found.call is not call:
                made.no_gradient = "the same tensor as that of another row"
            else:
                made.gradients = StreamAccumulator()
                self.memory += cost
        else:
            made.no_gradient = "give a loss and targets"
        return made

    def cost(self, made: MeasuredSite) -> None:
        """Plan the cost of identity of a site: its reader, and the product with what the reader is given."""
        if made.track is None:
            return
        reader = next_weight_layer(self.survey, made.site)
        if made.site.pooled or reader is None:
            made.no_cost = NO_WEIGHTS_AFTER if reader is None else "called many times in a pass"
            return
        made.reader = reader
        assert reader.input is not None
        probe = Track(reader.input, reader, True, reader.input_dimension)
        if _flat(probe.rows) != _flat(made.track.rows):
            made.no_cost = (f"positions differ: {made.track.rows} here, {probe.rows} at the input of {reader.name}, "
                            "the weight layer that reads it")  # fmt: skip
            return
        right = self.track(reader.input, reader, True, reader.input_dimension, False)
        if isinstance(right, str):
            made.no_cost = f"the input of {reader.name}, the weight layer that reads it: {right}"
            return
        if right is not made.track:
            cost = _bytes(made.track.width, right.width)
            if self.memory + cost > self.limit:
                made.no_cost = f"its product with the input of {reader.name} needs {size_text(cost)}: raise max_memory"
                return
            self.memory += cost
        made.product = Product(made.track, right)


def _decoder_start(survey: Survey) -> TensorUse | None:
    """The first representation inside the decoder."""
    for call in sorted(survey.calls, key=lambda c: c.start):
        if "decoder." in call.name and (call.input is not None or call.output is not None):
            return call.input if call.input is not None else call.output
    return None


def _flat(rows: tuple[int, ...]) -> int:
    count = 1
    for size in rows:
        count *= size
    return count


def plan_pass(
    survey: Survey, sites: Sequence[Site], batch: Batch, *, gradients: bool, max_memory: float | int | None,
    device: torch.device, costs: bool = True,
) -> PassPlan:  # fmt: skip
    """Decide what is collected, within the memory there is; what does not fit says so and what to choose instead.

    Args:
        survey: of the model.
        sites: the representations asked for.
        batch: a batch, for its padding.
        gradients: whether backward signals are collected.
        max_memory: bytes for all accumulators; half of what is free where None.
        device: where they live.
        costs: whether the cost of identity is collected.

    Raises:
        InputError: a `max_memory` that is not positive.
    """
    if max_memory is not None and not max_memory > 0:
        raise InputError("max_memory", max_memory, "a number of bytes > 0, or None for half of what is free")
    limit = int(SHARE_OF_MEMORY * available_memory(device) if max_memory is None else max_memory)
    planner = _Planner(survey, batch, limit)
    order = sorted(sites, key=lambda s: 0 if s.value is None else max(s.value.shape[-1], 1))
    made = {id(site): planner.site(site, gradients) for site in order}  # narrow ones first: they keep their place
    found = [made[id(site)] for site in sites]
    for one in found:
        if costs:
            planner.cost(one)
        else:
            one.no_cost = "not asked for"
    products = [one.product for one in found if one.product is not None]
    for product in products:
        if not product.same:
            product.left.partners.append(product)
            product.right.partners.append(product)
    return PassPlan(tuple(found), tuple(planner.tracks.values()), tuple(products), planner.memory, limit)
