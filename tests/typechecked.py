"""Every annotation of the package is checked while the tests run.

beartype checks each argument and each result once. Names of dimensions (`n` in `Float[Tensor, "n d"]`) stand for one
number within a call: jaxtyping keeps them for as long as the call lasts. Its own decorator does the same, but binds the
arguments and checks them twice, which took a fifth of all the time that tests need.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import threading
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any, get_args, get_type_hints

import jaxtyping
from beartype import BeartypeConf, beartype

_jaxtyped_by_itself = jaxtyping.jaxtyped
_checked = beartype(conf=BeartypeConf(violation_type=jaxtyping.TypeCheckError))


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


class _Running(threading.local):
    """The local functions that are being called in this thread."""

    def __init__(self) -> None:
        self.stack: list[FunctionType] = []


_running = _Running()
_checks: dict[CodeType, Callable[..., Any]] = {}


def _local_function(function: FunctionType, typechecker: Any) -> Callable[..., Any]:
    """One check serves all functions that a `def` inside a function makes: making it takes longer than most calls."""
    checked = _checks.get(function.__code__)
    if checked is None:

        @functools.wraps(function)
        def innermost(*args: Any, **kwargs: Any) -> Any:
            return _running.stack[-1](*args, **kwargs)

        checked = _checks[function.__code__] = _function(innermost, typechecker)
        del innermost.__wrapped__  # the first function of the `def` need not live on

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        _running.stack.append(function)
        try:
            return checked(*args, **kwargs)
        finally:
            _running.stack.pop()

    return called


def _function(function: FunctionType, typechecker: Any) -> Callable[..., Any]:
    written = function.__annotations__
    names = inspect.unwrap(function).__globals__
    types = {name: _resolved(annotation, names) for name, annotation in written.items()}
    shapes = any(map(_holds_shape, types.values()))
    if shapes and inspect.isgeneratorfunction(function):  # runs after the call has returned
        return _jaxtyped_by_itself(function, typechecker=typechecker)
    function.__annotations__ = types
    checked = _checked(function)
    function.__annotations__ = written
    checked.__annotations__ = written
    if not shapes:
        return checked

    @functools.wraps(checked)
    def scoped(*args: Any, **kwargs: Any) -> Any:
        with _jaxtyped_by_itself("context"):
            return checked(*args, **kwargs)

    return scoped


def _jaxtyped(*, typechecker: Any) -> Callable[[Any], Any]:
    def decorate(item: Any) -> Any:
        if inspect.isfunction(item):
            simple = not inspect.isgeneratorfunction(item) and all(
                isinstance(annotation, str) for annotation in item.__annotations__.values()
            )
            if simple and "<locals>" in item.__qualname__:
                return _local_function(item, typechecker)
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
