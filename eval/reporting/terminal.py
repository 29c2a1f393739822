"""How wide a terminal is, and text that fits it."""

from __future__ import annotations

import shutil
import textwrap

_MOST, _LEAST, _UNKNOWN = 120, 40, 100


def width() -> int:
    """Return how many characters a line may have: those of the terminal, within reason, or 100 where there is none."""
    return min(max(shutil.get_terminal_size((_UNKNOWN, 24)).columns, _LEAST), _MOST)


def fill(text: str) -> str:
    """Return a paragraph in lines that fit, all but the first indented."""
    return textwrap.fill(text, width(), subsequent_indent="  ")
