"""Griffe extension: a package's public names are those its `__init__` re-exports by a redundant alias."""

from __future__ import annotations

from typing import Any

import griffe


class RedundantAliases(griffe.Extension):
    """Gives every `__init__` without `__all__` the exports that its imports from the package itself declare."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Called once for the loaded package."""
        for module in (pkg, *pkg.modules.values()):
            if module.is_init_module and module.exports is None:
                module.exports = [
                    name
                    for name, path in module.imports.items()
                    if path.startswith(f"{pkg.name}.") and not name.startswith("_")
                ]
