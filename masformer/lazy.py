"""Names of a package that are imported when they are first used, so that a command need not wait for torch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from importlib import import_module
from typing import Any


def lazily(package: str, names: Collection[str], modules: Sequence[str]) -> Callable[[str], Any]:
    """Return the `__getattr__` of a package.

    Args:
        package: Its name.
        names: What it exports.
        modules: Its modules that have them, those without torch first.
    """

    def get(name: str) -> Any:
        if name in names:
            for module in modules:
                found = vars(import_module(f"{package}.{module}"))
                if name in found:
                    return vars(sys.modules[package]).setdefault(name, found[name])
        raise AttributeError(f"module '{package}' has no attribute '{name}'")

    return get
