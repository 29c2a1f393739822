"""A leaderboard as a page that opens offline, its charts, and the files of its folder."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval.records.run_folder import RunFolder
from eval.reporting.charts import COSTS, cost_name, length_curves, quality_cost, save_charts
from eval.reporting.leaderboard_tables import (
    LEGENDS,
    RESCORE,
    board_table,
    describe_board,
    facts_of,
    render_csv,
    render_markdown,
    scrolls_block,
    title_of,
)
from eval.reporting.page import Chart, Heading, Prose, Section, Table, render_page
from eval.reporting.run_report import as_table
from eval.reporting.tables import describe_intervals
from eval.scoring.board import describe_settings, varying
from eval.scoring.profiles import metric_name

Content = Mapping[str, Any]
Charts = dict[str, Chart]  # by the name of their file, without its end

_PREFIX = "leaderboard"
_NOTES = {
    "marks": "best observed: the highest mean; within margin: shown to be as good as the best, whichever that is; "
    "frontier: no other row costs no more, is no worse, and is better in one of the two",
    "oracle": "what sentences of this row's window score that were picked with the references in hand",
    "common answer": "what most examples have among their references",
    "cut": "examples whose context was truncated",
    "n": "examples (documents where fewer)",
}


def write_leaderboard(output: Path, content: dict[str, Any]) -> None:
    """Write `leaderboard.md`, `.csv`, `.json` and `.html`, and `plots/`; each file is there whole or not at all.

    Raises:
        UserError: The disk refuses.
    """
    folder = RunFolder(output)
    charts = {board["task"]: charts_of(board, content) for board in content["boards"]}
    specs = {name: chart.spec for of_task in charts.values() for name, chart in of_task.items()}
    save_charts(output / "plots", specs, rf"{_PREFIX}-.+-(length|cost)-\w+")
    pictures = {
        task: [(chart.title, f"plots/{name}.svg") for name, chart in of_task.items()]
        for task, of_task in charts.items()
    }
    texts = {
        "md": render_markdown(content, pictures),
        "csv": render_csv(content),
        "json": json.dumps(content, indent=2, ensure_ascii=False) + "\n",
        "html": render_html(content, charts),
    }
    for suffix, text in texts.items():
        folder.write_text(f"{_PREFIX}.{suffix}", text)


def render_html(content: Content, charts: Mapping[str, Charts]) -> str:
    """Return the page; it holds no text of any document.

    Args:
        content: `leaderboard.json`.
        charts: Of each task.
    """
    sections: list[Section] = []
    for board in content["boards"]:
        first, *others = charts[board["task"]].values()
        sections += [Heading(text=board["task"]), Prose(text=describe_board(board))]
        sections += [_table(board, content["cost"]), *(Prose(text=note) for note in board["notes"])]
        sections += [first, *others]
    remark, table = scrolls_block(content)
    if remark:
        sections += [Heading(text="SCROLLS score"), Prose(text=remark)]
        sections += [as_table("Ranking: SCROLLS score", table)] if table else []
    sections += [Heading(text="Left out"), *_left_out(content)]
    sections += [Heading(text="Commands"), Prose(text="As each run recorded them; names of runs are folders.")]
    commands = [[one["run"], f"`{command}`"] for one in content["runs"] for command in one["commands"]]
    sections += [as_table("Commands that made the runs", [["run", "command"], *commands])]
    sections += [Heading(text="What the columns mean"), Prose(text="\n\n".join(LEGENDS))]
    return render_page(title_of(content), list(facts_of(content).items()), sections)


def _table(board: Content, cost: str) -> Table:
    table = as_table(f"Ranking: {board['task']}", board_table(board, cost))
    return replace(
        table,
        columns=[replace(column, note=_NOTES.get(column.name, "")) for column in table.columns],
        rows=[
            [replace(cell, is_strong=row["is_best"] or row["is_within_margin"]) for cell in cells]
            for row, cells in zip(board["rows"], table.rows, strict=True)
        ],
    )


def _left_out(content: Content) -> list[Section]:
    rows = [[one["run"], one["task"] or "all", one["reason"]] for one in content["left_out"]]
    if not rows:
        return [Prose(text="Nothing.")]
    return [as_table("Runs that are not ranked", [["run", "task", "reason"], *rows]), Prose(text=RESCORE)]


def charts_of(board: Content, content: Content) -> Charts:
    """Return a board's charts: the frontier, curves over length, then quality against the other costs."""
    metric, asked = board["metric"], content["cost"]
    results = [*_model_results(board), *_yardstick_results(board)]
    slug = re.sub(r"[^A-Za-z0-9_.]+", "-", board["task"])
    costs = {
        cost: Chart(
            title=f"{metric_name(metric)} against {cost_name(cost)}",
            caption="The shaded steps are the frontier: no other point costs no more and is no worse. Its points "
            "have their maximum lengths beside them."
            + ("" if board["is_one_machine"] or cost != "seconds" else " Times were measured in different places."),
            spec=quality_cost(results, metric, cost, draw_frontier=True),
        )
        for cost in (asked, *(cost for cost in COSTS if cost != asked))
        if any(row["cost"] and row["cost"][cost] is not None for row in board["rows"])
    }
    intervals = describe_intervals(board["rows"])
    curves = {
        name: Chart(
            title=f"{metric_name(name)} over length",
            caption=f"{intervals[0].upper()}{intervals[1:]}. Dashed: what needs no model.",
            spec=length_curves(results, name),
        )
        for name in (metric, *(name for name in board["rows"][0]["metrics"] if name != metric))
    }
    ordered = {f"cost-{asked}": costs.pop(asked)} if asked in costs else {}
    ordered |= {f"length-{name}": chart for name, chart in curves.items()}
    ordered |= {f"cost-{cost}": chart for cost, chart in costs.items()}
    return {f"{_PREFIX}-{slug}-{name}": chart for name, chart in ordered.items()}


def _model_results(board: Content) -> list[dict[str, Any]]:
    """Return the rows as results of `scores.json`, each under a name that no other run on the board has."""
    rows = sorted(board["rows"], key=lambda row: (row["run"], row["template"], row["maxlen"]))
    fields = ["model", "plan", *(name for name in ("dtype", "template") if len({row[name] for row in rows}) > 1)]
    settings = varying(rows)
    names = {}
    for row in rows:
        parts = [row[name] for name in fields] + ([describe_settings(row, settings)] if settings else [])
        names[row["run"], row["template"]] = ", ".join(parts)
    names = _told_apart(names)
    return [
        {
            **row,
            "kind": "model",
            "profile": board["profile"],
            "plan": None,
            "system": names[row["run"], row["template"]],
        }
        for row in rows
    ]


def _told_apart(names: Mapping[tuple[str, str], str]) -> dict[tuple[str, str], str]:
    """Return names by run and template, those that are not alone with the run behind them."""
    found = list(names.values())
    return {key: name if found.count(name) == 1 else f"{name}, {' '.join(key)}" for key, name in names.items()}


def _yardstick_results(board: Content) -> Iterator[dict[str, Any]]:
    """Yield curves of what needs no model, each once, however many runs share it.

    Windows differ with the tokenizer, and with them what lies in their reach. The oracle's curves are all drawn; one of
    the others is drawn where all runs have the same.
    """
    rows = sorted(board["rows"], key=lambda row: (row["run"], row["template"], row["maxlen"]))
    for system in dict.fromkeys(system for row in rows for system in row["yardsticks"]):
        curves: list[dict[int, Content]] = []
        for key in dict.fromkeys((row["run"], row["template"]) for row in rows):
            own = {
                row["maxlen"]: row
                for row in rows
                if (row["run"], row["template"]) == key and system in row["yardsticks"]
            }
            _join(curves, own, system)
        if len(curves) > 1 and system != "visible_oracle":
            continue
        firsts = [next(iter(curve.values())) for curve in curves]
        names = {(row["run"], row["template"]): f"oracle, {row['model'].rsplit('/', 1)[-1]}" for row in firsts}
        for curve, name in zip(curves, _told_apart(names).values(), strict=True):
            for maxlen, row in sorted(curve.items()):
                yield {
                    "kind": "yardstick",
                    "system": system if len(curves) == 1 else name,
                    "profile": board["profile"],
                    "maxlen": maxlen,
                    "num_examples": row["num_examples"],
                    "metrics": row["yardsticks"][system],
                }


def _join(curves: list[dict[int, Content]], own: dict[int, Content], system: str) -> None:
    """Add a run's curve to one that agrees with it at each length that both have, or else as a new one."""

    def agree(curve: Mapping[int, Content]) -> bool:
        shared = [maxlen for maxlen in own if maxlen in curve]
        return bool(shared) and all(
            math.isclose(one["mean"], own[maxlen]["yardsticks"][system][metric]["mean"], abs_tol=1e-9)
            for maxlen in shared
            for metric, one in curve[maxlen]["yardsticks"][system].items()
        )

    for curve in curves:
        if agree(curve):
            curve |= {maxlen: row for maxlen, row in own.items() if maxlen not in curve}
            return
    curves.append(dict(own))
