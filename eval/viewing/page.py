"""A list of runs, or one run in progress -> the page that shows it and asks for what is new."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval.reporting.page import as_json, served_page

_ASSETS = Path(__file__).parent / "page_assets"
_SHARED = ("dom.js", "copy.js", "plots.js")  # the theme is kept with that of reports


def render_view(root: Path, kind: str, content: Mapping[str, Any]) -> tuple[str, str]:
    """Return the page, and its Content-Security-Policy.

    Args:
        root: The folder of the runs.
        kind: `runs` for the list, `run` for one of them.
        content: What it shows.
    """
    return served_page(_ASSETS, "view", _SHARED, root=str(root), kind=kind, content=as_json(content))
