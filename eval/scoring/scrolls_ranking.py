"""Boards of a leaderboard -> the SCROLLS score of each system that stands on all seven.

A system is a model under a plan and a way to generate on one split; its tasks may be answered in several run folders,
each in one of them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from eval.records.journal import fingerprint
from eval.scoring.scrolls import scrolls_score

Row = Mapping[str, Any]

# Of a task, not of a system.
_OF_TASK = ("max_new_tokens",)


def scrolls_ranking(boards: Iterable[Row], runs: Mapping[str, Row]) -> dict[str, Any] | None:
    """Return the SCROLLS scores, the best first, JSON-ready; None where no system has two of the seven tasks.

    `rows` has an entry a system, length and set of templates, `missing` what keeps others from one, by their runs.

    Args:
        boards: Of the leaderboard, each under one profile.
        runs: What made each run, by its name.
    """
    systems: dict[str, list[Row]] = {}
    for board in boards:
        for row in board["rows"]:
            result = {**row, "task": board["task"], "profile": board["profile"]}
            systems.setdefault(_system(row, runs[row["run"]]), []).append(result)
    rows: list[dict[str, Any]] = []
    missing: list[dict[str, Any]] = []
    for results in systems.values():
        found = scrolls_score(results)
        if found is None:
            continue
        names = list(dict.fromkeys(one["run"] for one in results))
        if twice := _answered_twice(results):
            missing.append(
                {"runs": names, "missing": [f"which folder counts for {', '.join(twice)}"], "has_scores": False}
            )
            continue
        about = {name: results[0][name] for name in ("model", "plan", "dtype")} | {"runs": names}
        rows += [about | score for score in found["scores"]]
        if found["missing"]:
            missing.append({"runs": names, "missing": found["missing"], "has_scores": bool(found["scores"])})
    if not rows and not missing:
        return None
    rows.sort(key=lambda row: (-row["mean"], row["runs"], row["template"], row["maxlen"]))
    return {"rows": rows, "missing": missing}


def _system(row: Row, about: Row) -> str:
    settings = {name: value for name, value in row["settings"].items() if name not in _OF_TASK}
    return fingerprint(row["model"], about["weights"], row["plan"], row["dtype"], json.dumps(settings, sort_keys=True))


def _answered_twice(results: Sequence[Row]) -> list[str]:
    """Return the tasks that a system has answered in several folders under one template and length."""
    keys = Counter((one["task"], one["template"], one["maxlen"]) for one in results)
    return sorted({task for (task, _, _), count in keys.items() if count > 1})
