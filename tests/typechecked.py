"""Every annotation of the package is checked while the tests run.

jaxtyping checks shapes, and needs ten times as long per call as beartype alone (it binds the arguments, and checks them
twice). So it has the functions whose annotations hold a shape, and beartype has all others.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any, get_args, get_type_hints

import jaxtyping
from beartype import BeartypeConf, beartype

_with_shapes = jaxtyping.jaxtyped
_without_shapes = beartype(conf=BeartypeConf(violation_type=jaxtyping.TypeCheckError))


def _resolved(annotation: Any, names: dict[str, Any]) -> Any:
    """The type that an annotation stands for; `Any` where it does not exist yet, as jaxtyping has it."""

    def holder(value: Any) -> None:
        del value

    holder.__annotations__["value"] = annotation
    try:
        return get_type_hints(holder, names, include_extras=True)["value"]
    except (NameError, AttributeError, TypeError, ValueError, SyntaxError):
        return Any


def _holds_shape(annotation: Any) -> bool:
    if isinstance(annotation, list | tuple):
        return any(map(_holds_shape, annotation))
    return getattr(annotation, "__module__", "").startswith("jaxtyping") or _holds_shape(get_args(annotation))


def _function(function: FunctionType, typechecker: Any) -> Callable[..., Any]:
    written = function.__annotations__
    types = {name: _resolved(annotation, function.__globals__) for name, annotation in written.items()}
    if any(map(_holds_shape, types.values())):
        return _with_shapes(function, typechecker=typechecker)
    function.__annotations__ = types
    checked = _without_shapes(function)
    function.__annotations__ = written
    checked.__annotations__ = written
    return checked


def _jaxtyped(*, typechecker: Any) -> Callable[[Any], Any]:
    def decorate(item: Any) -> Any:
        if inspect.isfunction(item):
            return _function(item, typechecker)
        initialiser = vars(item).get("__init__") if dataclasses.is_dataclass(item) else None
        if initialiser is not None and not hasattr(initialiser, "__wrapped__"):
            item.__init__ = _function(initialiser, typechecker)
        return item

    return decorate


def check_annotations(package: str) -> None:
    """Check every module of `package` that is imported from now on."""
    jaxtyping.jaxtyped = _jaxtyped
    jaxtyping.install_import_hook(package, "beartype.beartype")
