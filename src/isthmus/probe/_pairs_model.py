"""A model on the samples that are tracked: its representations and predictions, one forward pass at a time."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from isthmus._errors import InputError
from isthmus.models import LeakyResNet
from isthmus.probe._batches import Batch, Batches
from isthmus.probe._guard import untouched
from isthmus.probe._losses import outputs_of
from isthmus.probe._monitor_probe import held_probe
from isthmus.probe._one import Forward, home_of, layers_text, placing
from isthmus.probe._path_model import path_model, path_of
from isthmus.probe._select import BLOCKS, Site, select_sites
from isthmus.probe._survey import run_model, survey_model
from isthmus.probe._tensors import columns_last, concatenated, kept_rows, main_tensor, mapped, observation_shape
from isthmus.probe._tensors import tensors_in as tensors

_MOST_NAMED = 3


@dataclasses.dataclass(frozen=True)
class Seen:
    """What one pass showed, a row for each sample.

    Attributes:
        hidden: the representation of every layer, flattened.
        outputs: the predictions.
    """

    hidden: tuple[Shaped[Tensor, "n _"], ...]
    outputs: Shaped[Tensor, "n ..."]

    @property
    def bytes(self) -> int:
        """What they take."""
        return sum(t.numel() * t.element_size() for t in (*self.hidden, self.outputs))


@contextlib.contextmanager
def called_samples() -> Generator[None]:
    """What is wrong with the data is said of `samples`."""
    try:
        yield
    except InputError as error:
        if error.argument != "data":
            raise
        raise InputError("samples", error.value, error.expected, error.hint) from error.__cause__


def read_samples(
    model: nn.Module, samples: Any, targets: Any, *, own_forward: bool, most: int | None, seed: int
) -> Batch:
    """The first samples as one batch on the CPU, with their targets.

    Raises:
        InputError: what cannot be read, samples of several shapes, fewer than 2, no targets, or not finite.
    """
    if isinstance(targets, np.ndarray):
        targets = torch.from_numpy(targets)
    if not isinstance(targets, (Tensor, str, int, type(None))):
        raise InputError("targets", type(targets).__name__, "a tensor or array with a row per sample, or their key or "
                         "index in a batch")  # fmt: skip
    with called_samples():
        held, kept, n = held_probe(model, samples, targets=targets, own_forward=own_forward, max_samples=most,
                                   batch_size=None, seed=seed)  # fmt: skip
        sizes = [next(t.shape[0] if t.dim() else 1 for t in tensors(part)) for part in held]
        whole = concatenated(held, sizes)
        shapes = {tuple(t.shape) for t in tensors(held[0])}
        if whole is None or any(t.dim() and t.shape[0] != n for t in tensors(whole)):
            raise InputError("samples", f"batches of shapes such as {sorted(shapes)}", "samples of one shape, in the "
                             "first dimension", "pad them to one length, or give one batch")  # fmt: skip
        if n < 2:
            raise InputError("samples", f"{n} sample", "at least 2 to make a pair of")
        batch = as_batch(model, whole, kept, own_forward=own_forward)
    if batch.targets is None:
        raise InputError("targets", "none in the data", "the targets of the samples", "give targets=")
    if batch.targets.is_floating_point() and not bool(torch.isfinite(batch.targets).all()):
        raise InputError("targets", "values that are not finite", "finite numbers", "leave these samples out")
    return batch


def as_batch(model: nn.Module, whole: Any, targets: Any, *, own_forward: bool) -> Batch:
    """What a model takes, as one batch that stays where it is."""
    batches = Batches([whole], model, targets=targets, own_forward=own_forward, max_samples=None, batch_size=None,
                      place=lambda t: t)  # fmt: skip
    return next(iter(batches))


def rows_taken(batch: Batch, rows: Sequence[int]) -> Batch:
    """Some of the samples of a batch; what was one tensor stays one."""
    chosen = torch.tensor(rows)
    done: dict[int, Tensor] = {}

    def taken(t: Tensor) -> Tensor:
        if id(t) not in done:
            done[id(t)] = t[chosen] if t.dim() and t.shape[0] == batch.size else t
        return done[id(t)]

    args, kwargs, whole, targets, masks = mapped(
        (batch.args, batch.kwargs, batch.whole, batch.targets, batch.masks), taken
    )
    return Batch(args, kwargs, whole, targets, masks, len(rows))


class Subject:
    """A model, and where in it the tracked samples are looked at.

    Args:
        model: the model, without wrappers.
        batch: the samples, on the CPU.
        forward: how the model is called on a batch; None for by position and name.
        layers: as for `measure`.
        seed: of random states in a pass.

    Attributes:
        layers: names of the representations, in order of execution.
        notes: what was left out.

    Raises:
        InputError: a pattern that no module matches, no representation to track, or samples that do not fit.
        ModelError: the model raised an error.
    """

    def __init__(
        self, model: nn.Module, batch: Batch, *, forward: Forward | None, layers: str | Sequence[str], seed: int
    ) -> None:
        self._model, self._batch, self._forward, self._seed = model, batch, forward, seed
        self.notes: list[str] = []
        self._home, self._placed = None, batch
        along = path_of(model, None) if layers == BLOCKS and forward is None else None
        self._subject = model if along is None else path_model(model, along, self._there())
        with untouched(self._subject, seed) as handles, self._in_own_precision(), called_samples():
            for parameter in model.parameters():  # as for `measure`: frozen ones hide what is computed from what
                if parameter.is_floating_point() and parameter.is_leaf:
                    parameter.requires_grad_(True)
            survey = survey_model(self._subject, self._there(), handles, forward=forward)
            found = select_sites(survey, layers if along is None else "path.*")
            sites = [(site, self._why_not(site, survey.samples)) for site in found]
            start = [s for s, _ in sites if s.kind == "input" and s.value is not None
                     and not survey.tensors[s.value.key].requires_grad]  # fmt: skip
            survey.tensors.clear()
        self._sites = [site for site, why in sites if not why and site not in start]
        left_out = [f"{site.label}: {why}" for site, why in sites if why]
        left_out += [f"{site.label}: the data themselves, which training does not change" for site in start]
        if not self._sites:
            raise InputError("layers", layers_text(layers), "at least one representation that can be tracked",
                             "; ".join(left_out[:_MOST_NAMED]))  # fmt: skip
        if left_out:
            more = f" and {len(left_out) - _MOST_NAMED} more" if len(left_out) > _MOST_NAMED else ""
            self.notes.append(f"not tracked: {'; '.join(left_out[:_MOST_NAMED])}{more}")
        leaky = along is not None and isinstance(model, LeakyResNet)
        self.layers = [s.label.replace("path.", "representation.", 1) if leaky else s.label for s in self._sites]

    @staticmethod
    def _why_not(site: Site, samples: int) -> str:
        if site.why or site.value is None:
            return site.why or "no tensor"
        if site.pooled:
            return "called too often in one pass"
        return "" if site.value.shape[0] == samples else f"samples do not stand first in it {site.value.shape}"

    def _there(self) -> Batch:
        """The batch where the model is."""
        home = home_of(self._model)
        if self._home != home:
            notes: list[str] = []
            b = self._batch
            moved = mapped((b.args, b.kwargs, b.whole, b.targets, b.masks), placing(self._model, notes))
            args, kwargs, whole, targets, masks = moved
            self._home, self._placed = home, Batch(args, kwargs, whole, targets, masks, b.size)
            self.notes += [note for note in notes if note not in self.notes]
        return self._placed

    def _in_own_precision(self) -> torch.autocast:
        """Whatever autocast surrounds the training step."""
        return torch.autocast(next((p.device.type for p in self._model.parameters()), "cpu"), enabled=False)

    def see(self) -> Seen:
        """One pass in evaluation mode, which leaves the model as it was.

        Raises:
            InputError: an output without a real tensor, or a representation of another shape than before.
            ModelError: the model raised an error.
        """
        batch = self._there()
        taken: dict[int, Tensor] = {}
        with untouched(self._subject, self._seed) as handles, torch.no_grad(), self._in_own_precision():
            self._watch(handles, taken, batch)
            returned = run_model(self._subject, batch, self._forward)
            if self._subject is not self._model:
                returned = run_model(self._model, batch, None)
        missing = next((k for k in range(len(self._sites)) if k not in taken), None)
        if missing is not None:
            raise InputError("layers", self.layers[missing], "a representation that every pass meets")
        try:
            outputs = _at_home(outputs_of(returned).detach().clone())
        except InputError as error:
            raise InputError("forward", error.value, error.expected, "give forward= that returns predictions") from None
        if not outputs.dim() or len(outputs) != batch.size:
            raise InputError("forward", f"outputs of shape {tuple(outputs.shape)}",
                             f"a prediction for each of {batch.size} samples, in the first dimension")  # fmt: skip
        return Seen(tuple(taken[k] for k in range(len(self._sites))), outputs)

    def _watch(self, handles: list[RemovableHandle], taken: dict[int, Tensor], batch: Batch) -> None:
        modules = {name or "(model)": module for name, module in self._subject.named_modules()}
        counts: dict[str, int] = {}
        wanted = {(s.call.name, s.call.number, s.at_input): k for k, s in enumerate(self._sites)}

        def take(key: tuple[str, int, bool], value: Any) -> None:
            tensor = main_tensor(value)[0] if key in wanted else None
            if tensor is not None and tensor.shape[0] == batch.size:
                taken[wanted[key]] = _flat_copy(tensor.detach(), self._sites[wanted[key]].dimension, batch, key[0])

        def before(name: str) -> Any:
            def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                counts[name] = counts.get(name, 0) + 1
                take((name, counts[name] - 1, True), (args, kwargs))

            return hook

        def after(name: str) -> Any:
            def hook(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
                take((name, counts[name] - 1, False), output)

            return hook

        for name in {name for name, _, _ in wanted}:
            handles.append(modules[name].register_forward_pre_hook(before(name), with_kwargs=True))
            handles.append(modules[name].register_forward_hook(after(name)))


def _flat_copy(tensor: Tensor, dimension: int, batch: Batch, name: str) -> Tensor:
    """A row for each sample; what stands at padding is 0."""
    shape = observation_shape(tensor, dimension)
    keep, _ = kept_rows(shape, batch.masks, name)
    if keep is not None:
        features = columns_last(tensor, dimension)
        tensor = torch.where(keep.to(tensor.device).reshape(*shape, 1), features, torch.zeros_like(features))
    return _at_home(tensor.reshape(batch.size, -1).clone())


def _at_home(rows: Tensor) -> Tensor:
    return rows.cpu() if rows.device.type == "mps" else rows  # which has no double precision


def matched_targets(targets: Tensor, outputs: Tensor) -> Tensor:
    """What every output should be, in float64: numbers as they are, class numbers as unit vectors.

    Raises:
        InputError: neither a number for each output nor class numbers of these outputs.
    """
    n, width = len(outputs), outputs[:1].numel()
    classes = not targets.is_floating_point() and targets[:1].numel() == 1 and outputs.dim() == 2 and width > 1
    if classes:
        numbers = targets.reshape(n).long()
        wrong = numbers[(numbers < 0) | (numbers >= width)]
        if len(wrong):
            raise InputError("targets", int(wrong[0]), f"class numbers from 0 to {width - 1}, one for each output")
        return nn.functional.one_hot(numbers, width).double()
    if targets[:1].numel() != width:
        raise InputError("targets", f"targets of shape {tuple(targets.shape)}", f"a number for each output "
                         f"{tuple(outputs.shape)}, or a class number for each sample",
                         "give forward= that returns what the targets are of")  # fmt: skip
    return targets.reshape(n, width).double()
