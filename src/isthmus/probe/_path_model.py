"""A model that names its own path, so that it is measured along it like any other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from isthmus._errors import InputError, near_name_hint
from isthmus.probe._guard import untouched
from isthmus.probe._tensors import mapped

PathOf = Callable[..., Any]
"""`(*inputs) → A_0, …, A_L`."""


class PathNode(nn.Module):
    """One representation of a path, with the one before it as input, so that its move can be measured."""

    def forward(self, before: Tensor, here: Tensor) -> Tensor:
        return here


class PathModel(nn.Module):
    """Calls `path` on the inputs and hands every representation to a module of its own, `path.0` … `path.L`."""

    def __init__(self, model: nn.Module, path: PathOf, nodes: int) -> None:
        super().__init__()
        self.model = model
        self.path = nn.ModuleList(PathNode() for _ in range(nodes))
        self._path_of = path

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The last representation."""
        before: Tensor | None = None
        for node, here in zip(self.path, _representations(self._path_of(*args, **kwargs)), strict=True):
            before = node(here if before is None else before, here)
        assert before is not None
        return before


def path_of(model: nn.Module, path: Any) -> PathOf | None:
    """The path to measure along, or None.

    Raises:
        InputError: a name that is no method of the model, or something that is neither a name nor callable.
    """
    if path is False:
        return None
    if path is None:
        found = getattr(model, "path", None)
        return found if callable(found) and not isinstance(found, nn.Module) else None
    if isinstance(path, str):
        found = getattr(model, path, None)
        if not callable(found):
            methods = [n for n in dir(type(model)) if not n.startswith("_") and n not in dir(nn.Module)]
            raise InputError("path", path, "the name of a method of the model", near_name_hint(path, methods))
        return found
    if not callable(path):
        raise InputError("path", type(path).__name__, "a callable, the name of a method, or False")
    return path


def _representations(value: Any) -> Sequence[Tensor]:
    found = list(value.unbind(0)) if isinstance(value, Tensor) else list(value)
    if len(found) < 2 or not all(isinstance(a, Tensor) and a.dim() >= 2 for a in found):
        expected = "at least two representations (samples, …, width): a list, or one tensor with nodes first"
        raise InputError("path", f"{len(found)} items of {type(value).__name__}", expected)
    return found


def path_model(model: nn.Module, path: PathOf, first: Any) -> PathModel:
    """The model as it is measured along its path.

    Args:
        model: the model.
        path: its path.
        first: a `Batch`, for the number of representations.
    """
    with untouched(model, 0), torch.no_grad():
        nodes = len(_representations(path(*mapped(first.args, torch.clone), **mapped(first.kwargs, torch.clone))))
    made = PathModel(model, path, nodes)
    made.training = model.training
    return made
