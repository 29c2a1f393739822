"""Where `eval` and `tasks` are, for what is installed: they are found by name, because this package is below both."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType


def find_suite() -> None:
    """Put the folder of `eval` and `tasks` first on the path: a private one in a wheel, else the checkout's root."""
    package = Path(__file__).resolve().parent
    private = package / "_suite"
    folder = str(private if private.is_dir() else package.parent)
    if folder not in sys.path[:1]:
        sys.path.insert(0, folder)


def suite_module(name: str) -> ModuleType:
    """Return a module of `eval` or `tasks`, from whatever folder the program runs in."""
    find_suite()
    return import_module(name)
