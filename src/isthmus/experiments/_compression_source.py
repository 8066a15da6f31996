"""A finished run as its compression needs it: its network, its data again, and which samples choose and judge."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isthmus._errors import DataWarning, InputError, RunFolderError
from isthmus._random import torch_generator
from isthmus._records import RunFolder
from isthmus.data import Task
from isthmus.experiments._saved import SavedModel, load
from isthmus.experiments._sources import task_from_source
from isthmus.models import LeakyResNet
from isthmus.train import FitConfig, training_rows

CHOOSERS = ("auto", "validation", "test")
"""Which held-out samples choose a depth."""

_SHARED = ("ridge", "batch_size", "precision", "seed", "validation_fraction")


@dataclasses.dataclass(frozen=True)
class Part:
    """Some samples: inputs, targets, and which ones they are, in words."""

    x: Tensor
    y: Tensor
    what: str

    def __len__(self) -> int:
        return len(self.x)


@dataclasses.dataclass(frozen=True)
class CompressionSource:
    """What a compression starts from.

    Attributes:
        folder: the run.
        saved: its network and scaling.
        task: its data, made again.
        fit: those settings of its training that a short training more shares.
        train: the samples that it was trained on.
        choosing: the held-out samples that choose the depth.
        judging: the held-out samples that take no part in the choice.
    """

    folder: RunFolder
    saved: SavedModel
    task: Task
    fit: FitConfig
    train: Part
    choosing: Part
    judging: Part

    @property
    def model(self) -> LeakyResNet:
        """The trained network."""
        return self.saved.module

    @property
    def configuration(self) -> Mapping[str, Any]:
        """The settings of its training."""
        return self.folder.run["configuration"]

    @property
    def loss(self) -> str:
        """Name of the data term."""
        return self.fit.loss


def read_compressible(run: str | os.PathLike[str], choose_by: str) -> CompressionSource:
    """The network and the data of a finished run, its held-out samples divided into those that choose and that judge.

    Args:
        run: folder of a run of `isthmus train`, `demo`, a sweep, or `compress`.
        choose_by: `validation` samples of the run, with all test samples to judge; `test`: one half of the test
            samples, drawn from the run's seed, with the other half to judge; `auto`: the first where there are such.

    Raises:
        RunFolderError: no run folder, one of another kind, one that did not complete, or files in it that are broken.
        InputError: data that are gone or have changed, a network of one layer, or too few held-out samples.
    """
    folder = RunFolder.open(run)
    status, command = folder.run.get("status"), folder.run.get("command")
    if not isinstance(folder.run.get("leaky"), dict) or not isinstance(folder.run.get("configuration"), dict):
        raise RunFolderError("run", str(folder.path), f"a run of a Leaky ResNet (this one is of `{command}`)",
                             "train one: isthmus train")  # fmt: skip
    if status != "complete":
        raise RunFolderError("run", str(folder.path), f"a run that is complete (status here: {status})",
                             "finish it: isthmus train --resume")  # fmt: skip
    saved = load(run)
    if saved.module.depth == 1:
        raise InputError("run", f"a network of 1 layer ({folder.path})", "one of at least 2 layers")
    task = _task(folder, saved)
    try:
        settings: Mapping[str, Any] = folder.run["configuration"]
        config = FitConfig(loss=folder.run["loss"], **{name: settings[name] for name in _SHARED})
    except (KeyError, TypeError, ValueError) as error:
        raise RunFolderError("run", str(folder.path), f"a run.json of `isthmus train` ({error!r})") from None
    kept, held = training_rows(len(task.x_train), config)
    choosing, judging = _divided(task, held, choose_by, config.seed)
    train = Part(task.x_train[kept], task.y_train[kept], "those it was trained on")
    return CompressionSource(folder, saved, task, config, train, choosing, judging)


def _task(folder: RunFolder, saved: SavedModel) -> Task:
    """The data of the run, which must be those that it was trained on."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)  # said when the run was started, and kept in its record
            task = task_from_source(folder.run["configuration"]["data"])
    except (KeyError, TypeError) as error:
        raise RunFolderError("run", str(folder.path), f"a run.json that says which data it was trained on ({error!r})",
                             "data given as tensors are not kept: use isthmus.train.compress") from None  # fmt: skip
    made, trained = task.scaling.to_arrays(), saved.scaling.to_arrays()
    same = all(made[name].shape == values.shape and np.allclose(made[name], values) for name, values in trained.items())
    if not same or (task.in_features, task.out_features) != (saved.module.in_features, saved.module.out_features):
        raise InputError("run", str(folder.path), "data that can be made again as they were (their scaling is another)",
                         "train again with this version")  # fmt: skip
    return task


def _divided(task: Task, held: Tensor, choose_by: str, seed: int) -> tuple[Part, Part]:
    """The samples that choose, and those that judge; no sample does both."""
    n = len(task.x_test)
    if choose_by == "validation" and not len(held):
        raise InputError("choose_by", choose_by, "'test' with this run, which held out no validation samples")
    if n < 2:
        raise InputError(
            "run", f"{n} test sample{'s' if n != 1 else ''}", "at least 2, so that some can judge what others chose"
        )
    if choose_by != "test" and len(held):
        return (Part(task.x_train[held], task.y_train[held], "the run's validation samples"),
                Part(task.x_test, task.y_test, "the run's test samples"))  # fmt: skip
    order = torch.randperm(n, generator=torch_generator(seed, "compress"))
    chosen, others = order[: n // 2], order[n // 2 :]
    return (Part(task.x_test[chosen], task.y_test[chosen], "one half of the run's test samples"),
            Part(task.x_test[others], task.y_test[others], "the other half of the run's test samples"))  # fmt: skip
