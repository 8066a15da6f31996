"""`measure`: one call on any PyTorch model and its data."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from isthmus._errors import InputError
from isthmus._records import MetricTable
from isthmus.models import LeakyResNet
from isthmus.probe._aligned import check_alignment_samples, measured_alignment
from isthmus.probe._assemble import EVERYWHERE, assemble, measure_leaky
from isthmus.probe._baseline import fresh_model
from isthmus.probe._measurement import Measurement
from isthmus.probe._one import Forward, contribute, first_batch, measure_one
from isthmus.probe._options import options_of
from isthmus.probe._path_model import path_model, path_of
from isthmus.probe._pretrained import with_origin
from isthmus.probe._pretrained_samples import PretrainedSamples
from isthmus.probe._progress import progress_bar
from isthmus.probe._propagated_rows import measured_signals
from isthmus.probe._select import BLOCKS
from isthmus.probe._shards import Shards, shard_notes
from isthmus.probe._stacks import STACK, stacks_in


def measure(
    model: nn.Module,
    data: Any,
    *,
    layers: str | Sequence[str] = BLOCKS,
    path: Any = None,
    targets: Any = None,
    loss: Any = None,
    forward: Forward | None = None,
    max_samples: int | None = None,
    device: torch.device | str | None = None,
    metrics: Collection[str] | None = None,
    baseline: Any = None,
    progress: bool = True,
    batch_size: int | None = None,
    max_memory: float | int | None = None,
    jacobian_samples: int = 16,
    alignment_samples: int = 128,
    ridge: float | int | None = None,
    sharded: bool = False,
    seed: int = 0,
) -> Measurement:
    """Measure where a model works, how many dimensions survive, and which layers are idle.

    The data run through the model once, in evaluation mode. Of every representation `A` that `layers` names (samples
    and positions are observations, channels or features are dimensions; padding never counts) only the second
    moments `A Aᵀ` are kept, and `A Sᵀ`, `S Sᵀ` with the input `S` of the next weight layer: products of a batch in
    float32 shifted by a running mean, sums in float64, nothing of size N × N. The model comes back as it was.

    Metrics, with their definitions in docs/architecture.md: the ranks of every representation and weight matrix, the
    cost of identity `‖A‖²_{K+γ} = Tr[A (SᵀS + γI)⁻¹ Aᵀ]` (arXiv 2405.17573, docs/theory 1.4), relative moves (1.3),
    the negative fraction (1.7), second moments of the gradients, and the rank and pseudo-determinant of the Jacobian
    of the whole map (arXiv 2305.19008, docs/theory 3.2); for every chain of `nn.Linear` modules joined by ReLU the
    bottleneck certificate, a bound on how far its weights are from carrying k dimensions (3.3). With targets, the
    alignment of every layer's tangent kernel with them (arXiv 2110.11749, docs/theory 4.1; `align` has more), and how
    alike samples are forwards and backwards (4.3; `propagation`). A Leaky ResNet, and any model with a `path` method,
    is measured along its path.

    Args:
        model: any `torch.nn.Module`; wrappers for data parallelism and compilation are taken off.
        data: a tensor or array; a tuple or mapping of them; a data set; a `DataLoader`; any iterable of batches.
        layers: `"blocks"`: the repeated blocks, or where there are none the layers with weight matrices; `"*"`: every
            module; or one or several globs of module names.
        path: `path(*inputs) → A_0, …, A_L`, or the name of such a method; `path` of the model where it has one. False
            to measure modules all the same.
        targets: targets of the loss: a tensor with a row per sample, or their key or index in a batch. Unless given,
            the last item of tuples that are too long for `forward`, or `labels`, `targets`, `y` of a mapping.
        loss: `"cross_entropy"`, `"square"`, `"model"` (the model's own), or a callable `(outputs, targets) → mean`.
            With one, gradients of the activations are measured, too.
        forward: `forward(model, batch) → outputs`, where calling the model on a batch is not enough.
        max_samples: samples to use at most.
        device: where to measure: a copy of the model is moved there; where the model is, if None.
        metrics: names of metrics to compute; all that apply, if None.
        baseline: `"init"` measures the same architecture freshly initialised, too; or a model, or a callable.
        progress: show what is going on, and the time left, on stderr.
        batch_size: samples per batch of data that are not batched yet.
        max_memory: bytes that all second moments may take; half of what is free, if None.
        jacobian_samples: samples at which the Jacobian and the bottleneck certificate are taken; 0 for none.
        alignment_samples: samples (the first ones) on which alignment and signal propagation are computed, two
            backward passes for each output; 0 for none.
        ridge: `λ` of the objective, for the Hamiltonian of a Leaky ResNet (with targets and a loss).
        sharded: whether the data here are this process's part of them, and the processes of `torch.distributed` measure
            all parts together. Call it on every process, with the same model and options; all get the same
            `Measurement`: that of one process with the data of process 0, then those of process 1, and so on, to
            rounding. Jacobian, certificate, alignment and signals are taken at the first samples of process 0. What a
            `DistributedSampler` repeats so that all processes have equally many does not count. If one process stops
            with an error, so do all.
        seed: of random states during the measurement, and of the baseline.

    Returns:
        A `Measurement`: `.table`, `.verdict`, `.save(folder)`, `.report()`.

    Raises:
        InputError: what cannot be used: an unknown pattern or metric, data that do not fit, no targets for a loss.
        ModelError: the model raised an error; it is the cause.
        IsthmusError: another process has stopped (`sharded`).

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> found = measure(net, torch.randn(100, 4), progress=False)
        >>> len(found.layers)  # the input of the first layer, and two layers
        3
    """

    def measured(shards: Shards | None) -> Measurement | None:
        placed, options, notes = options_of(
            model, layers=layers, targets=targets, loss=loss, forward=forward, max_samples=max_samples, device=device,
            metrics=metrics, batch_size=batch_size, max_memory=max_memory, jacobian_samples=jacobian_samples, seed=seed,
        )  # fmt: skip
        options = dataclasses.replace(options, shards=shards)
        helps = shards is not None and shards.rank > 0
        notes = [*notes, *shard_notes(shards, data)]
        check_alignment_samples(alignment_samples)
        if shards is not None:
            shards.agree(layers=layers, path=path, targets=targets, loss=loss, forward=forward, max_samples=max_samples,
                         metrics=options.metrics, baseline=baseline, max_memory=max_memory,
                         jacobian_samples=jacobian_samples, alignment_samples=alignment_samples, seed=seed)  # fmt: skip
        if isinstance(data, PretrainedSamples):
            notes = [*notes, *data.notes]
        along = path_of(placed, path)
        started = time.perf_counter()
        plain = path is None and forward is None and layers == BLOCKS and baseline is None
        if isinstance(placed, LeakyResNet) and plain:
            if shards is not None:
                raise InputError("sharded", True, "False for a Leaky ResNet, which is measured along its path at once",
                                 "measure it on one process, or its modules with path=False")  # fmt: skip
            with progress_bar(progress) as bar:
                return measure_leaky(
                    placed, data, options, notes, bar, ridge=ridge, alignment_samples=alignment_samples
                )
        known = EVERYWHERE | (STACK if stacks_in(placed) else frozenset())
        if options.metrics is not None and options.metrics - known:
            raise InputError("metrics", sorted(options.metrics - known)[0], "a metric of any model (this one is of a "
                             "Leaky ResNet, or of training)", f"known: {', '.join(sorted(known))}")  # fmt: skip
        if ridge is not None:
            raise InputError("ridge", ridge, "None where no path of a Leaky ResNet is measured",
                             "the ridge is for the Hamiltonian of a LeakyResNet")  # fmt: skip
        if (baseline is not None or along is not None) and read_once(data):
            asked = "baseline" if baseline is not None else "path"
            raise InputError("data", type(data).__name__, f"data that can be read twice, for {asked}",
                             "give tensors, a DataLoader, or a list of batches")  # fmt: skip
        with progress_bar(progress and not helps) as bar:
            subject = placed
            if along is not None:
                first = first_batch(placed, data, options)
                subject, options = path_model(placed, along, first), dataclasses.replace(options, layers="path.*")
            if helps:
                contribute(subject, data, options, bar)
            main = None if helps else measure_one(subject, data, options, bar)
            other = aligned_other = initial = None
            if baseline is not None:
                fresh = fresh_model(placed, baseline, options.seed)
                again = path_of(fresh, path)
                subject = fresh if again is None else path_model(fresh, again, first_batch(fresh, data, options))
                if helps:
                    contribute(subject, data, options, bar)
                    return None
                other = measure_one(subject, data, options, bar, baseline="init", jacobian=False)
                aligned_other = measured_alignment(
                    fresh, data, options, alignment_samples, bar, along=again is not None
                )
                initial = measured_signals(fresh, data, options, alignment_samples, bar, along=again is not None)
            if main is None:
                return None
            aligned = measured_alignment(placed, data, options, alignment_samples, bar, along=along is not None)
            signals = measured_signals(placed, data, options, alignment_samples, bar, along=along is not None)
            table = MetricTable()
            main.numbers.write(table, lambda done, total: bar("spectra", done, total))
            if other is not None:
                other.numbers.write(table, lambda done, total: bar("baseline: spectra", done, total))
            found = assemble(
                placed,
                main,
                other,
                aligned,
                aligned_other,
                signals,
                initial,
                table,
                options,
                notes,
                time.perf_counter() - started,
            )
            return with_origin(found, data)

    if not sharded:
        found = measured(None)
        assert found is not None
        return found
    with Shards.meeting("sharded") as shards:
        return shards.everywhere(lambda: measured(shards))


def read_once(data: Any) -> bool:
    """Whether data are gone once they have been read."""
    return isinstance(data, Iterator)
