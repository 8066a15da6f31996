"""Pairs of samples during a training: what is recorded of them, kept, resumed and written."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from torch import nn

from isthmus._errors import InputError
from isthmus._random import check_seed
from isthmus._records import RunFolder, check_new_folder
from isthmus.geometry import pair_distances, pair_states, squared_distances
from isthmus.probe._loading_files import LONGEST_REASON, said
from isthmus.probe._monitor_schedule import check_rate, check_step
from isthmus.probe._one import Forward, home_of, layers_text, rank_of_process, unwrapped
from isthmus.probe._pairs_choice import Inputs, asked_pairs, pair_targets, tracked_pairs
from isthmus.probe._pairs_model import Seen, Subject, matched_targets, read_samples, rows_taken
from isthmus.probe._pairs_rows import pair_rows
from isthmus.probe._pairs_trace import FEWEST, NUMBERS, Trace

COMMAND = "pairs"

_LARGE = 2**25
"""Bytes of the representations of a record beyond which they are not held until the next one."""

_COUNTED, _RECORDED = ("at", "time", "rates"), ("pairs", "layers", "trace", "first_at", "last_at", "matrices")
_SAME = 1e-9
"""Distances that differ by less, of their size, are of the same samples, whatever machine computed them."""

_STEPS, _RATES = "step", "sum of learning rates"
_CLASSES = "class numbers stand for unit vectors: the theory is for the mean-square loss"


class PairWarning(UserWarning):
    """A record of pairs during training failed; the training goes on."""


class PairTraces(NamedTuple):
    """Courses of the state of two points, for every pair (float64; NaN where there is no number).

    Attributes:
        h: `‖dh‖²`, of shape (layers, pairs, times).
        y: `‖dy‖²`, of shape (pairs, times).
        v: `‖dy‖² − dy·dy*`, of shape (pairs, times).
        m: `‖ȳ − ȳ*‖²`, of shape (pairs, times).
    """

    h: np.ndarray
    y: np.ndarray
    v: np.ndarray
    m: np.ndarray


class PairTracker:
    """Pairs of samples that are tracked during a training; made by `track_pairs`.

    Attributes:
        layers: names of the representations, in order of execution.
        samples: numbers of the samples that some pair has, ascending.
        pairs: the two samples of every pair.
        kinds: why each pair was chosen, in words.
        notes: what was decided without being asked, and what was left out.
    """

    def __init__(self, model: nn.Module, samples: Any, targets: Any, *, pairs: Any, layers: str | Sequence[str],
                 forward: Forward | None, max_samples: int, first_step: int, seed: int) -> None:  # fmt: skip
        self.layers: tuple[str, ...] = ()
        self.samples: tuple[int, ...] = ()
        self.pairs: tuple[tuple[int, int], ...] = ()
        self.kinds: tuple[str, ...] = ()
        self.notes: list[str] = []
        self._at = check_step("first_step", first_step, 0, "a whole number that is not negative")
        self._time, self._rates, self._warned = 0.0, None, False
        self._trace = Trace()
        self._subject: Subject | None = None
        self._first: dict[str, np.ndarray] = {}
        self._last: dict[str, np.ndarray] | Seen = {}
        self._first_at = self._last_at = self._at
        self._seed = check_seed(seed)
        self._layers_asked = layers
        asked = asked_pairs(pairs)
        bare, notes = unwrapped(model)
        if rank_of_process() != 0:
            return
        self.notes += notes
        self._model = bare
        most = max_samples if isinstance(asked, int) else 1 + max(end for pair in asked for end in pair)
        batch = read_samples(bare, samples, targets, own_forward=forward is not None, most=most, seed=seed)
        chosen, said_of = tracked_pairs(asked, batch, seed)
        self.notes += said_of
        self.pairs, self.kinds = tuple(one.ends for one in chosen), tuple(one.kind for one in chosen)
        self._names = [one.name for one in chosen]
        self.samples = tuple(sorted({end for pair in self.pairs for end in pair}))
        place = {sample: row for row, sample in enumerate(self.samples)}
        self._rows = [(place[i], place[j]) for i, j in self.pairs]
        tracked = rows_taken(batch, self.samples)
        self._subject = Subject(bare, tracked, forward=forward, layers=layers, seed=seed)
        self.layers = tuple(self._subject.layers)
        width = (len(self.layers) + 3) * len(self.pairs)
        if width * FEWEST > NUMBERS:
            most = NUMBERS // FEWEST // (len(self.layers) + 3)
            raise InputError("pairs", f"{len(self.pairs)} pairs in {len(self.layers)} layers", f"at most {most} pairs "
                             f"in so many layers", "ask for fewer of them, or fewer layers=")  # fmt: skip
        self._trace = Trace(width)
        self.notes += self._subject.notes
        seen = self._subject.see()
        assert tracked.targets is not None
        self._targets = matched_targets(tracked.targets, seen.outputs)
        if self._targets.shape[1:] != tracked.targets.shape[1:] and not tracked.targets.is_floating_point():
            self.notes.append(_CLASSES)
        apart = Inputs.of(tracked).distances()
        self._apart = [float(apart[i, j]) for i, j in self._rows]
        self._fixed = {"inputs": apart.numpy(), "targets": squared_distances(self._targets).numpy()}
        self._first = self._last = self._matrices(seen)
        self._keep(seen)

    @property
    def steps(self) -> list[int]:
        """Steps that are recorded."""
        return list(self._trace.steps)

    @property
    def last_step(self) -> int:
        """The last step that was counted."""
        return self._at

    @property
    def stride(self) -> int:
        """Steps between two records; it doubles each time that 512 are kept."""
        return self._trace.stride

    @property
    def times(self) -> np.ndarray:
        """The time of every record: the step, or the sum of learning rates where `step` is given them."""
        return np.array(self._trace.times if self._rates else self._trace.steps, dtype=np.float64)

    @property
    def traces(self) -> PairTraces:
        """What was recorded, as arrays.

        Raises:
            InputError: on a process that records nothing.
        """
        self._recording()
        values = np.moveaxis(np.array(self._trace.values), 0, -1)
        return PairTraces(values[:-3], values[-3], values[-2], values[-1])

    @property
    def table(self) -> pl.DataFrame:
        """What was recorded, one number per row (docs/architecture.md, Names of the numbers).

        Raises:
            InputError: on a process that records nothing.
        """
        self._recording()
        return pair_rows(self._trace.steps, np.array(self._trace.values), layers=self.layers, pairs=self._names,
                         failed=self._trace.failed)  # fmt: skip

    @property
    def matrices(self) -> dict[str, np.ndarray]:
        """Squared distances of all tracked samples, by name: `inputs`, `targets`, and at the first record and the last
        that is finite `outputs/first`, `outputs/last`, `hidden/<layer>/first` and `hidden/<layer>/last`.

        Raises:
            InputError: on a process that records nothing.
        """
        self._recording()
        last = self._last = self._matrices(self._last) if isinstance(self._last, Seen) else self._last
        return {**self._fixed, **{f"{name}/first": value for name, value in self._first.items()},
                **{f"{name}/last": value for name, value in last.items()}}  # fmt: skip

    def record(self, step: int, *, lr: Any = None) -> None:
        """Record now, whatever the stride says: one pass of the model, which comes back as it was.

        Args:
            step: number of the step, after all that are recorded.
            lr: sum of the learning rates of the steps since the last that was counted, where `step` is given them.

        Raises:
            InputError: a step that does not come after the last one, or a learning rate as for `step`.
        """
        last = self._trace.steps[-1] if self._trace.steps else -1
        step = check_step("step", step, max(last + 1, self._at), f"a step after {last} (a whole number)")
        if step > self._at:
            self.count(step, lr=lr)
        elif lr is not None:
            raise InputError("lr", lr, f"none, for the learning rate of step {step} was counted")
        self.observe()

    def step(self, *, lr: Any = None) -> None:
        """Count one step of the optimiser, and record where the stride says.

        Args:
            lr: learning rate of the step (a number, or a tensor of one), to have sums of learning rates as times; give
                it at every step or at none.

        Raises:
            InputError: a learning rate at some steps only, or one that is no number of at least 0.
        """
        self.count(self._at + 1, lr=lr)
        if self._subject is not None and self._trace.due(self._at - 1, self._at):
            self.observe()

    def count(self, step: int, *, lr: Any = None) -> None:
        """Count up to a step, and record nothing.

        Args:
            step: number of the step.
            lr: as for `step`.

        Raises:
            InputError: as for `step`.
        """
        if self._rates is not None and self._rates != (lr is not None):
            raise InputError("lr", lr, "a learning rate at every step, or at none")
        rate = 0.0 if lr is None else check_rate("lr", lr)
        self._rates, self._at, self._time = lr is not None, step, self._time + rate

    def due(self, before: int, now: int) -> bool:
        """Whether a record is due at a step after `before` and not after `now`."""
        return self._subject is not None and self._trace.due(before, now)

    def leave_out(self, *, widen: bool) -> None:
        """Record nothing at a step that is due.

        Args:
            widen: whether half as many are due from now on.
        """
        self._trace.left_out += 1
        self._trace.stride *= 2 if widen else 1

    def observe(self, *, provisional: bool = False) -> None:
        """Record the last step that was counted; what fails is kept as a failure, warned about once.

        Args:
            provisional: only until the next record.
        """
        if self._subject is None:
            return
        try:
            seen = self._subject.see()
        except Exception as error:  # noqa: BLE001 - a model that trains must not be stopped by one that looks at it
            reason = said(error, LONGEST_REASON)
            nothing = np.full((len(self.layers) + 3, len(self.pairs)), np.nan)
            self._trace.add(self._at, self._time, nothing, why=reason, provisional=provisional)
            self._warn(f"pairs could not be recorded at step {self._at} ({reason})")
            return
        self._keep(seen, provisional=provisional)

    def settle(self) -> None:
        """Record the last step that was counted, unless that is done; only until the next record."""
        if self._subject is not None and self._trace.steps[-1] != self._at:
            self.observe(provisional=True)

    def _keep(self, seen: Seen, *, provisional: bool = False) -> None:
        states = [pair_distances(hidden, self._rows) for hidden in seen.hidden]
        own = pair_states(seen.outputs, seen.outputs, self._targets.to(seen.outputs.device), self._rows)
        values = torch.stack([*states, own.y, own.v, own.m]).cpu().numpy()
        first = not self._trace.steps
        self._trace.add(self._at, self._time, np.where(np.isfinite(values), values, np.nan), provisional=provisional)
        if np.isfinite(values).all():
            self._last_at = self._at
            if not first:
                self._last = self._matrices(seen) if seen.bytes > _LARGE else seen
        else:
            self._warn(f"a record of pairs is not finite at step {self._at}")

    def _matrices(self, seen: Seen) -> dict[str, np.ndarray]:
        named = [("outputs", seen.outputs), *((f"hidden/{name}", h) for name, h in zip(self.layers, seen.hidden,
                                                                                      strict=True))]  # fmt: skip
        return {name: squared_distances(rows).cpu().numpy() for name, rows in named}

    def _said(self) -> list[str]:
        out = self._trace.left_out
        return [*self.notes, *([f"records left out to stay within the budget: {out}"] if out else [])]

    def _recording(self) -> Subject:
        if self._subject is None:
            raise InputError("tracker", f"rank {rank_of_process()}", "rank 0, the only process that records")
        return self._subject

    def _warn(self, text: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(f"{text}; the training goes on, and such a thing is said once", PairWarning, stacklevel=4)

    def run_record(self) -> dict[str, Any]:
        """The mapping `pairs` of `run.json` (docs/architecture.md, A run folder)."""
        self._recording()
        wanted = pair_targets(self._rows, self._targets)
        found: dict[str, Any] = {
            "samples": list(self.samples),
            "pairs": [{"pair": name, "dx2": dx2, "dy2": dy2, "kind": kind}
                      for name, dx2, dy2, kind in zip(self._names, self._apart, wanted, self.kinds, strict=True)],
            "layers": list(self.layers), "time": _RATES if self._rates else _STEPS, "stride": self.stride,
            "matrices": {"first": self._first_at, "last": self._last_at},
            "notes": self._said(),
        }  # fmt: skip
        if self._trace.left_out:
            found["left_out"] = self._trace.left_out
        if self._rates:
            found["times"] = {str(s): t for s, t in zip(self._trace.steps, self._trace.times, strict=True)}
        return found

    def run_arrays(self) -> dict[str, np.ndarray]:
        """The matrices, by their names in `arrays.safetensors`."""
        return {f"pairs/{name}": value for name, value in self.matrices.items()}

    def save(self, folder: str | os.PathLike[str]) -> RunFolder | None:
        """Write a run folder, whole or not at all, which `isthmus dynamics` reads; nothing on a process that records
        nothing.

        The last step is recorded, too, whatever the stride says.

        Args:
            folder: where; nothing may be there yet.

        Returns:
            The run folder, or None where nothing is written.

        Raises:
            RunFolderError: the folder exists and is not empty, or cannot be made.
            WriteError: a full disk.
        """
        if self._subject is None:
            return None
        check_new_folder(folder, "folder")
        self.settle()
        device, dtype = home_of(self._model)
        run = RunFolder.create(
            folder, command=COMMAND, seed=self._seed, device=str(device), dtype=str(dtype).removeprefix("torch."),
            configuration={"layers": layers_text(self._layers_asked), "pairs": len(self.pairs)},
            extra={"title": type(self._model).__name__, "pairs": self.run_record(), "warnings": list(self.notes)},
        )  # fmt: skip
        run.write_metrics(self.table)
        run.write_arrays(self.run_arrays())
        run.write_verdict([])
        run.finish()
        return run

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that a training that is resumed goes on recording; `torch.load` reads it with
        `weights_only=True`. On a process that records nothing it is what was counted alone.
        """
        counted = {"at": self._at, "time": self._time, "rates": self._rates}
        if self._subject is None:
            return counted
        matrices = {name: torch.from_numpy(value) for name, value in self.matrices.items()}
        return {**counted, "pairs": self._names, "layers": list(self.layers), "trace": self._trace.state(),
                "first_at": self._first_at, "last_at": self._last_at, "matrices": matrices}  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what `state_dict` said; call it after the model has its weights of then.

        Raises:
            InputError: no state, or that of other samples, targets, pairs or layers.
        """
        needed = _COUNTED if self._subject is None else (*_COUNTED, *_RECORDED)
        missing = [name for name in needed if name not in state]
        if missing:
            raise InputError("state", f"none with {', '.join(missing)}", "what state_dict() returned")
        if self._subject is None:
            self._at, self._time, self._rates = (state[name] for name in _COUNTED)
            return
        if self._names != state["pairs"] or list(self.layers) != state["layers"]:
            given, own = (f"{', '.join(pairs)} in {', '.join(layers)}" for pairs, layers in
                          ((state["pairs"], state["layers"]), (self._names, self.layers)))  # fmt: skip
            raise InputError("state", given, f"the state of a tracker of {own}",
                             "give the same samples, pairs, layers and seed")  # fmt: skip
        for name, own in self._fixed.items():
            given = state["matrices"][name].numpy()
            if given.shape != own.shape or not np.allclose(given, own, rtol=_SAME, atol=_SAME * own.max()):
                raise InputError("state", f"that of a tracker of other {name}", "the state of a tracker of the same "
                                 "samples and targets", "give what was given then, in the same order")  # fmt: skip
        self._at, self._time, self._rates = (state[name] for name in _COUNTED)
        self._trace.load(dict(state["trace"]))
        self._first_at, self._last_at = state["first_at"], state["last_at"]
        self._first, self._last = (
            {name.removesuffix(f"/{when}"): value.numpy() for name, value in state["matrices"].items()
             if name.endswith(f"/{when}")} for when in ("first", "last")
        )  # fmt: skip
