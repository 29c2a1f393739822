"""What the rows of a board are called: the name of the run, and only what sets rows apart."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from eval.records.schema import BoardRow
from eval.reporting.tables import code
from eval.scoring.board import describe_settings, engines_of, varying

_MOST_LAYERS = 3  # of a plan's list, in a label
Key = tuple[str, str]  # run and template


@dataclass(frozen=True, kw_only=True)
class Label:
    """What a run at one template is called, and what is not the same in all rows; empty where nothing differs."""

    name: str
    differs: str


def key_of(row: BoardRow) -> Key:
    """Return what the rows of one label share."""
    return row.run, row.template


def labels_of(rows: Sequence[BoardRow]) -> dict[Key, Label]:
    """Return a label for each run and template; no two have the same name."""
    runs = list(dict.fromkeys(row.run for row in rows))
    # Whole folders that all have in common tell nothing, but each keeps its last part.
    shared = os.path.commonpath(runs) if len(runs) > 1 else ""
    names = {run: run.removeprefix(f"{shared}/") if shared else run for run in runs}
    if len(set(names.values())) < len(names):
        names = dict(zip(runs, runs, strict=True))
    templates = dict.fromkeys(row.template for row in rows)
    engines = engines_of(rows)
    settings = varying(rows)
    shown = [name for name in ("model", "plan", "dtype") if len({getattr(row, name) for row in rows}) > 1]
    labels = {}
    for row in rows:
        parts = [shorten_plan(row.plan) if name == "plan" else getattr(row, name) for name in shown]
        parts += [engines[row.run]] if engines else []
        parts += [describe_settings(row, settings)] if settings else []
        name = f"{names[row.run]}, {row.template}" if len(templates) > 1 else names[row.run]
        labels[key_of(row)] = Label(name=name, differs=", ".join(parts))
    return labels


def shorten_plan(plan: str) -> str:
    """Return a plan's text with the first entries of a long list of layers or heads, and how many there are."""

    def shorter(found: re.Match[str]) -> str:
        entries = found[1].split(",")
        if len(entries) <= _MOST_LAYERS:
            return found[0]
        return f"@{','.join(entries[: _MOST_LAYERS - 1])},\N{HORIZONTAL ELLIPSIS} ({len(entries)})"

    return re.sub(r"@([0-9][0-9.,-]*)", shorter, plan)


def describe_shared(rows: Sequence[BoardRow]) -> str:
    """Return what all rows have in common, for people; empty where they share nothing that has a name."""
    names = ("model", "plan", "dtype", "template")
    shared = [
        f"{name} {code(getattr(rows[0], name))}" for name in names if len({getattr(row, name) for row in rows}) == 1
    ]
    tokens = {json.dumps(row.settings.get("max_new_tokens")) for row in rows}
    shared += [f"room for {tokens.pop()} new tokens"] if len(tokens) == 1 and "null" not in tokens else []
    return f"The same in all rows: {', '.join(shared)}." if shared else ""
