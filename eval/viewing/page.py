"""A list of runs, or one run in progress -> the page that shows it and asks for what is new."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from eval.reporting.page import as_json, asset, policy_of, template_in

_ASSETS = Path(__file__).parent / "page_assets"
_SHARED = ("dom.js", "copy.js", "plots.js")  # the theme is kept with that of reports


def render_view(root: Path, kind: str, content: Mapping[str, Any]) -> tuple[str, str]:
    """Return the page, and its Content-Security-Policy.

    Args:
        root: The folder of the runs.
        kind: `runs` for the list, `run` for one of them.
        content: What it shows.
    """
    script = "".join(map(asset, _SHARED)) + (_ASSETS / "view.js").read_text(encoding="utf-8")
    script = f"(() => {{\n'use strict';\n{script}\n}})();"
    policy = policy_of([script], connect="'self'")
    page = (
        template_in(_ASSETS)
        .get_template("view.html")
        .render(
            policy=policy,
            root=str(root),
            kind=kind,
            style=Markup(asset("page.css") + (_ASSETS / "view.css").read_text(encoding="utf-8")),
            content=as_json(content),
            script=Markup(script),
        )
    )
    return page, policy
