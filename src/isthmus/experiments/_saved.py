"""A trained network from its run folder: predictions in the user's units. Weights are read, never unpickled."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, final

import numpy as np
import polars as pl
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from isthmus._errors import InputError, RunFolderError
from isthmus._records import RunFolder
from isthmus.data import Column, Scaling, TableSchema
from isthmus.models import LeakyResNet

_DTYPES = {"float32": torch.float32, "float64": torch.float64}
_BATCH = 8192


@final
class SavedModel:
    """A trained Leaky ResNet, the scaling of its data, and the columns it was trained on.

    Attributes:
        module: the network, between scaled inputs and scaled outputs, in the precision it was trained in, on the CPU.
        scaling: of inputs and targets.
        schema: the columns of the user's table (for data that were no table: one numeric column per input).
    """

    def __init__(self, module: LeakyResNet, scaling: Scaling, schema: TableSchema) -> None:
        self.module, self.scaling, self.schema = module, scaling, schema

    def __repr__(self) -> str:
        return f"SavedModel({self.schema.kind}, {self.module!r})"

    def _inputs(self, data: pl.DataFrame | np.ndarray | Tensor) -> np.ndarray:
        if isinstance(data, pl.DataFrame):
            return self.schema.encode(data)
        array = data.detach().cpu().numpy() if isinstance(data, Tensor) else np.asarray(data)
        if array.ndim == 2 and array.shape[1] == len(self.schema.inputs) and array.dtype.kind in "biufU":
            columns = {c.name: np.ascontiguousarray(array[:, i]) for i, c in enumerate(self.schema.inputs)}
            return self.schema.encode(pl.DataFrame(columns))
        raise InputError("data", f"an array of {array.dtype} of shape {array.shape}",
                         f"a matrix of (samples, {len(self.schema.inputs)} input columns)")  # fmt: skip

    @torch.no_grad()
    def outputs(self, data: pl.DataFrame | np.ndarray | Tensor) -> np.ndarray:
        """Outputs `(n, outputs)` in float64: targets in the user's units, or a score per class.

        Args:
            data: a frame, whose columns are found by name, or an array with the input columns in order.

        Raises:
            InputError: see `TableSchema.encode`.
        """
        x = self.scaling.inputs(torch.from_numpy(self._inputs(data)))
        weight = self.module.weight
        pieces = [self.module(piece.to(weight.device, weight.dtype)).cpu().double() for piece in x.split(_BATCH)]
        return self.scaling.outputs(torch.cat(pieces)).numpy()

    def predict(self, data: pl.DataFrame | np.ndarray | Tensor) -> Any:
        """Targets in the user's units, or class labels: a frame for a frame, an array for an array.

        An array of targets is `(n, outputs)`; one of labels is `(n,)`. A frame has one column for each target.

        Raises:
            InputError: see `TableSchema.encode`.
        """
        outputs = self.outputs(data)
        if self.schema.kind == "classification":
            labels = self.schema.label_values()[outputs.argmax(1)]
            return pl.DataFrame({self.schema.targets[0]: labels}) if isinstance(data, pl.DataFrame) else labels
        if not isinstance(data, pl.DataFrame):
            return outputs
        return pl.DataFrame({name: outputs[:, i] for i, name in enumerate(self.schema.targets)})

    def predict_proba(self, data: pl.DataFrame | np.ndarray | Tensor) -> Any:
        """Probabilities `(n, classes)`: the softmax of the scores; columns of a frame are named `target=label`.

        Raises:
            InputError: the run is a regression, or see `TableSchema.encode`.
        """
        if self.schema.kind != "classification":
            raise InputError("predict_proba", "a regression", "a run on classes", "use predict")
        probabilities = torch.from_numpy(self.outputs(data)).softmax(1).numpy()
        if not isinstance(data, pl.DataFrame):
            return probabilities
        names = [f"{self.schema.targets[0]}={label}" for label in self.schema.labels]
        return pl.DataFrame({name: probabilities[:, i] for i, name in enumerate(names)})


def load(run: str | os.PathLike[str]) -> SavedModel:
    """The trained network of a run folder, ready to predict.

    Args:
        run: a folder that `isthmus train` or `isthmus demo` wrote.

    Raises:
        RunFolderError: no such folder, or files in it that are missing, broken or of another network.

    Example:
        >>> model = load("runs/my-run")  # doctest: +SKIP
        >>> model.predict(frame)  # doctest: +SKIP
    """
    folder = RunFolder.open(run)
    try:
        module, schema = _module(folder.run), _schema(folder.run["task"], folder.run["leaky"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunFolderError("run", str(folder.path), f"a run.json of a trained Leaky ResNet ({error!r})") from None
    state = _weights(folder)
    expected = {name: (tuple(v.shape), v.dtype) for name, v in module.state_dict().items()}
    found = {name: (tuple(v.shape), v.dtype) for name, v in state.items()}
    wrong = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
    if wrong:
        raise RunFolderError("run", str(folder.path), "a model.safetensors that fits its run.json "
                             f"({', '.join(map(repr, wrong[:4]))} does not)", "train again")  # fmt: skip
    if not all(bool(torch.isfinite(v).all()) for v in state.values()):
        raise RunFolderError("run", str(folder.path), "finite weights in model.safetensors", "train again")
    module.load_state_dict(state)
    arrays = {n.removeprefix("scaling/"): a for n, a in folder.arrays().items() if n.startswith("scaling/")}
    try:
        scaling = Scaling.from_arrays(arrays)
    except (KeyError, IndexError) as error:
        raise RunFolderError("run", str(folder.path), f"the scaling in arrays.safetensors (no {error})") from None
    outputs = len(schema.labels) or len(schema.targets)
    widths = (scaling.x_mean.shape, scaling.x_scale.shape, scaling.y_mean.shape[0] or module.out_features)
    fits = ((len(schema.feature_names),),) * 2 == widths[:2] and widths[2] == module.out_features == outputs
    if not fits or len(schema.feature_names) != module.in_features:
        raise RunFolderError("run", str(folder.path), "columns, scaling and weights of one network", "train again")
    return SavedModel(module.eval(), scaling, schema)


def _weights(folder: RunFolder) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(folder.path / "model.safetensors")
    except FileNotFoundError:
        raise RunFolderError("run", str(folder.path), f"a run folder with model.safetensors (status here: "
                             f"{folder.run.get('status')})", "train to the end") from None  # fmt: skip
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise RunFolderError("run", str(folder.path), f"a readable model.safetensors ({error})") from None


def _module(record: Mapping[str, Any]) -> LeakyResNet:
    leaky, configuration = record["leaky"], record["configuration"]
    return LeakyResNet(
        leaky["in_features"],
        leaky["out_features"],
        width=leaky["width"],
        depth=leaky["depth"],
        effective_depth=leaky["effective_depth"],
        steps=leaky["steps"],
        activation=leaky["activation"],
        input_map=configuration["input_map"],
        output_map=configuration["output_map"],
        dtype=_DTYPES[record["dtype"]],
    )


def _schema(task: Mapping[str, Any], leaky: Mapping[str, Any]) -> TableSchema:
    """The columns of a table, or for other data one numeric column per input."""
    if task.get("columns") is not None:
        return TableSchema.from_dict(task["columns"])
    inputs = tuple(Column(name, "numeric") for name in task["feature_names"])
    if task["kind"] == "classification":
        labels = tuple(task["class_names"])
        whole = all(label.isdecimal() for label in labels)
        return TableSchema(inputs, ("class",), "classification", labels, "integer" if whole else "text")
    return TableSchema(inputs, tuple(f"y{i}" for i in range(leaky["out_features"])), "regression")
