"""What a command line names: a model's factory, a file of weights, a file of samples. Nothing is ever unpickled."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import inspect
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from isthmus._errors import InputError
from isthmus.probe._loading_arrays import ARRAY_FORMATS as ARRAY_FORMATS
from isthmus.probe._loading_arrays import choose_arrays as choose_arrays
from isthmus.probe._loading_arrays import load_arrays as load_arrays
from isthmus.probe._loading_files import listed, near, said
from isthmus.probe._loading_weights import WEIGHT_FORMATS as WEIGHT_FORMATS
from isthmus.probe._loading_weights import load_weights as load_weights


def load_factory(spec: str, arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """The model that `package.module:factory` or `path/to/file.py:factory` names.

    The attribute may have dots, and may be a function, a class of `nn.Module`, or a model. The current directory
    (and the folder of a file) can be imported from while the module is imported and the factory runs, not later.
    The code that is named runs: it must be trusted.

    Args:
        spec: the module or file, a colon, and the name in it.
        arguments: keyword arguments of the factory.

    Raises:
        InputError: no colon, no such module, file or name, an error of the module or the factory, or no model.

    Example:
        >>> load_factory("torch.nn:Linear", {"in_features": 2, "out_features": 3})
        Linear(in_features=2, out_features=3, bias=True)
    """
    place, _, name = spec.rpartition(":")
    if not place or not name or not all(part.isidentifier() for part in name.split(".")):
        raise InputError("model", repr(spec), "package.module:factory or path/to/file.py:factory", _colon_hint(spec))
    file = place.endswith(".py") or "/" in place or os.sep in place
    folders = [str(Path(place).resolve().parent)] if file else []
    with _importable(*folders, str(Path.cwd())):
        module = _module_of_file(spec, Path(place)) if file else _module_of_name(spec, place)
        return _model(spec, _attribute(spec, module, name), dict(arguments or {}))


def _colon_hint(spec: str) -> str:
    if spec.endswith((".py", ":")):
        return f"say which function or class of it makes the model: {spec.rstrip(':')}:build"
    head, _, tail = spec.rpartition(".")
    return f"did you mean {f'{head}:{tail}'!r}?" if ":" not in spec and head and tail else ""


@contextlib.contextmanager
def _importable(*folders: str) -> Generator[None]:
    added = [folder for folder in dict.fromkeys(folders) if folder not in sys.path]
    sys.path[:0] = added
    importlib.invalidate_caches()
    try:
        yield
    finally:
        for folder in added:
            if folder in sys.path:  # the module may have changed the path itself
                sys.path.remove(folder)


def _module_of_file(spec: str, path: Path) -> ModuleType:
    if not path.is_file():
        folder = path.parent
        beside = [p.name for p in folder.glob("*.py")] if folder.is_dir() else []
        raise InputError("model", spec, f"a Python file that is there ({path} is not)", near(path.name, beside))
    name = "_isthmus_model_" + re.sub(r"\W", "_", str(path.resolve()))
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None:
        raise InputError("model", spec, "a Python file, ending in .py")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # dataclasses and pickles look their module up
    try:
        found.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _import_failed(spec, error) from error
    return module


def _module_of_name(spec: str, name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise InputError("model", spec, f"a module or a file ending in .py before the colon ({name!r} is neither)")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name == missing or name.startswith(missing + "."):
            raise InputError("model", spec, f"a module that can be imported ({missing!r} is not found)",
                             _neighbours(missing)) from error  # fmt: skip
        raise _import_failed(spec, error) from error
    except (Exception, SystemExit) as error:
        raise _import_failed(spec, error) from error


def _import_failed(spec: str, error: BaseException) -> InputError:
    if isinstance(error, ModuleNotFoundError) and error.name:
        return InputError("model", spec, f"a module that can be imported (it needs {error.name!r}, which is not found)",
                          "install what it needs, or run the command in its folder")  # fmt: skip
    hint = "put what it runs as a script under if __name__ == '__main__':" if isinstance(error, SystemExit) else ""
    return InputError("model", spec, f"a module that can be imported (it raised {said(error)})", hint)


def _neighbours(missing: str) -> str:
    """Modules with nearly this name: in its package, or at the top level."""
    parent, _, last = missing.rpartition(".")
    package = sys.modules.get(parent)
    folders = list(getattr(package, "__path__", [])) if package else None
    close = difflib.get_close_matches(last, {m.name for m in pkgutil.iter_modules(folders)}, n=3, cutoff=0.6)
    names = [f"{parent}.{name}" if parent else name for name in close]
    if names:
        return f"did you mean {' or '.join(map(repr, names))}?"
    return "run the command in the folder that holds it, or give the path of its file"


def _attribute(spec: str, module: ModuleType, name: str) -> object:
    found: object = module
    for i, part in enumerate(name.split(".")):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            owner = ".".join(name.split(".")[:i]) or "the module"
            raise InputError("model", spec, f"a name that is there ({owner} has no {part!r})",
                             near(part, _public(found))) from error  # fmt: skip
    return found


def _public(owner: object) -> list[str]:
    """Public names that may make a model; those defined here before those imported."""
    names = [n for n in dir(owner) if not n.startswith("_")]
    able = [n for n in names if callable(getattr(owner, n, None))]
    home = getattr(owner, "__name__", None)
    own = [n for n in able if getattr(getattr(owner, n), "__module__", None) == home]
    return own or able


def _model(spec: str, found: object, arguments: dict[str, Any]) -> nn.Module:
    if isinstance(found, nn.Module):
        if arguments:
            raise InputError("model", spec, "a factory where arguments are given (it is a model already)",
                             f"leave {listed(arguments)} out, or name the class")  # fmt: skip
        return found
    if not callable(found):
        raise InputError("model", spec, f"a function, a class or a model (it is a {type(found).__name__})")
    _check_arguments(spec, found, arguments)
    try:
        made = found(**arguments)
    except Exception as error:
        raise InputError("model", spec, f"a factory that makes a model (it raised {said(error)})",
                         "" if arguments else "give the arguments it needs, if any") from error  # fmt: skip
    if not isinstance(made, nn.Module):
        raise InputError("model", spec, f"a factory that returns an nn.Module (it returned a {type(made).__name__})")
    return made


def _check_arguments(spec: str, factory: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return  # without a signature only the call can tell
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    known = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    unknown = [name for name in arguments if name not in known]
    if unknown:
        raise InputError("model", spec, f"arguments of the factory ({unknown[0]!r} is none)",
                         near(unknown[0], known) or "it takes none")  # fmt: skip
