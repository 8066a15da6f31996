"""The list of public names is that of the code, and each can be imported from where it is listed."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path
from types import ModuleType

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "names.md"


def listed() -> dict[str, list[str]]:
    sections = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.M)[1:]
    return {s.splitlines()[0]: re.findall(r"^- `(\w+)`$", s, re.M) for s in sections}


def importable(module: ModuleType) -> set[str]:
    """What a reader finds in a package: `__all__`, else every name without an underscore that is no module."""
    names = {n for n, value in vars(module).items() if n[0] != "_" and not isinstance(value, ModuleType)}
    return set(getattr(module, "__all__", names - {"annotations"}))


def test_listed_names_are_those_of_the_code() -> None:
    source = Path(importlib.import_module("isthmus").__path__[0])
    packages = {f"isthmus.{p.parent.name}" for p in source.glob("[a-z]*/__init__.py")}
    assert set(listed()) == {"isthmus"} | packages - {"isthmus.cli"}
    for package, names in listed().items():
        module = importlib.import_module(package)
        assert set(names) == importable(module), (
            f"{package}: run `python docs/tools/public_names.py`, look at the change"
        )
        assert [name for name in names if not hasattr(module, name)] == []


def test_no_name_stands_twice() -> None:
    for names in listed().values():
        assert names == sorted(set(names))


def documented(path: Path, name: str) -> bool:
    """Whether the module that defines a name says what it is: a docstring, or a string behind the assignment."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    for node, behind in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return bool(ast.get_docstring(node))
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(isinstance(t, ast.Name) and t.id == name for t in targets):
            return isinstance(behind, ast.Expr) and isinstance(behind.value, ast.Constant)
        if isinstance(node, ast.ImportFrom) and name in {alias.asname or alias.name for alias in node.names}:
            return documented(source_of(node.module or ""), name)
    return False


def source_of(module: str) -> Path:
    source = Path(importlib.import_module("isthmus").__path__[0]).parent / Path(*module.split("."))
    return source / "__init__.py" if source.is_dir() else source.with_suffix(".py")


def test_every_public_name_is_described_so_that_the_reference_shows_it() -> None:
    # what has no docstring is left out of the pages that mkdocstrings makes, without a word
    assert [
        f"{p}.{n}" for p, ns in listed().items() if p != "isthmus" for n in ns if not documented(source_of(p), n)
    ] == []
