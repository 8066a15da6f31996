"""Lists the public names of every package on docs/reference/names.md; tests/docs/test_public_names.py compares them.

python docs/tools/public_names.py
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "names.md"
INTERNAL = {"cli"}  # its public face are the commands
HEAD = """# Public names

All names that can be relied on, by package; [What may change](deprecation.md) says how far. This page is made by
`docs/tools/public_names.py`, and a test compares it with the code: a name that is added or taken away shows here.
"""


def exported(init: Path) -> list[str]:
    """Names that an `__init__` re-exports: `from … import x as x`, without those it takes from outside the package."""
    tree = ast.parse(init.read_text(encoding="utf-8"))
    return sorted(
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("isthmus.")
        for alias in node.names
        if alias.asname == alias.name
    )


def public_names() -> dict[str, list[str]]:
    """Public names of `isthmus` and of each of its packages."""
    source = ROOT / "src" / "isthmus"
    packages = sorted(p.parent for p in source.glob("[a-z]*/__init__.py") if p.parent.name not in INTERNAL)
    inside = {f"isthmus.{p.name}": exported(p / "__init__.py") for p in packages}
    return {"isthmus": exported(source / "__init__.py")} | inside


def page() -> str:
    """The page as it should be."""
    return HEAD + "".join(
        f"\n## {package}\n\n" + "".join(f"- `{name}`\n" for name in names) for package, names in public_names().items()
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE}: {sum(map(len, public_names().values()))} names\n")
