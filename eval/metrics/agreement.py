"""What people think of a metric, as `eval.meta` measured it; reports show grey what was not seen to agree with people.

    mark("hf", "rouge2", version=2)  # "°"
    headline_correlations("hf", "rougeL", version=2)  # {"SQuALITY overall": "0.31 [0.12, 0.48]", ...}

The file is made by `python -m eval.meta --output` from the sets that docs/metrics.md names. Another version of a metric
is another metric, of which nothing is known.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("agreement.json")
MARK = "°"
SHORT_LEGEND = f"{MARK}: not seen to agree with people"
LEGEND = f"{MARK} and grey: not seen to agree with people within systems on any rated set; see docs/metrics.md."


def mark(metric: str, value: str, version: int | None = None) -> str:
    """Return the mark of a value that no set shows to agree with people within systems; empty for others.

    Without a version that of the file is meant.
    """
    return MARK if any(_is_of(one, metric, value, version) for one in _content()["doubted"]) else ""


def headline_correlations(metric: str, value: str, version: int) -> dict[str, str]:
    """Return r with people within systems by set and rating; empty for what was not measured."""
    return {
        f"{one['set']} {one['rating']}": _shown(one["within"])
        for one in _content()["agreements"]
        if one["is_headline"] and _is_of(one, metric, value, version)
    }


def _is_of(one: dict[str, Any], metric: str, value: str, version: int | None) -> bool:
    return (one["metric"], one["value"]) == (metric, value) and version in (None, one["version"])


def _shown(found: dict[str, Any]) -> str:
    if found["r"] is None:
        return "-"
    interval = "" if found["low"] is None else f" [{found['low']:.2f}, {found['high']:.2f}]"
    return f"{found['r']:.2f}{interval}"


@cache
def _content() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return content
