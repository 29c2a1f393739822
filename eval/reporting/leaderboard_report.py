"""A leaderboard as a page that opens offline, its charts, and the files of its folder."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from eval.records.engines import clocks_apart
from eval.records.run_folder import RunFolder
from eval.records.schema import Board, BoardRow, Leaderboard, Result
from eval.records.typed import to_json
from eval.reporting.charts import Chart, cost_charts, length_chart, quality_cost, save_charts
from eval.reporting.leaderboard_tables import (
    RESCORE,
    board_columns,
    describe_board,
    facts_of,
    legends,
    render_csv,
    render_markdown,
    scrolls_block,
    title_of,
)
from eval.reporting.page import Heading, Prose, Section, Table, as_table, render_page
from eval.reporting.tables import describe_intervals, table_of
from eval.scoring.board import clocks_of, describe_settings, engines_of, result_of, varying

Charts = dict[str, Chart]  # by the name of their file, without its end
Curve = dict[int, BoardRow]  # by maxlen

_PREFIX = "leaderboard"


def write_leaderboard(output: Path, content: Leaderboard) -> None:
    """Write `leaderboard.md`, `.csv`, `.json` and `.html`, and `plots/`; each file is there whole or not at all.

    Raises:
        UserError: The disk refuses.
    """
    folder = RunFolder(output)
    charts = {board.task: charts_of(board, content.cost) for board in content.boards}
    specs = {name: chart.spec for of_task in charts.values() for name, chart in of_task.items()}
    save_charts(output / "plots", specs, rf"{_PREFIX}-.+-(length|cost)-\w+")
    pictures = {
        task: [(chart.title, f"plots/{name}.svg") for name, chart in of_task.items()]
        for task, of_task in charts.items()
    }
    texts = {
        "md": render_markdown(content, pictures),
        "csv": render_csv(content),
        "json": json.dumps(to_json(content), indent=2, ensure_ascii=False) + "\n",
        "html": render_html(content, charts),
    }
    for suffix, text in texts.items():
        folder.write_text(f"{_PREFIX}.{suffix}", text)


def render_html(content: Leaderboard, charts: Mapping[str, Charts]) -> str:
    """Return the page; it holds no text of any document. Charts are given by task."""
    sections: list[Section] = []
    for board in content.boards:
        first, *others = charts[board.task].values()
        sections += [Heading(text=board.task), Prose(text=describe_board(board))]
        sections += [_table(board, content.cost), *(Prose(text=note) for note in board.notes)]
        sections += [first, *others]
    remark, table = scrolls_block(content)
    if remark:
        sections += [Heading(text="SCROLLS score"), Prose(text=remark)]
        sections += [as_table("Ranking: SCROLLS score", table)] if table else []
    rows = [[one.run, one.task or "all", one.reason] for one in content.left_out]
    left_out = [as_table("Runs that are not ranked", [["run", "task", "reason"], *rows]), Prose(text=RESCORE)]
    sections += [Heading(text="Left out"), *(left_out if rows else [Prose(text="Nothing.")])]
    sections += [Heading(text="Commands"), Prose(text="As each run recorded them; names of runs are folders.")]
    commands = [[one.run, f"`{command}`"] for one in content.runs for command in one.commands]
    sections += [as_table("Commands that made the runs", [["run", "command"], *commands])]
    sections += [Heading(text="What the columns mean"), Prose(text="\n\n".join(legends(content)))]
    return render_page(title_of(content), list(facts_of(content).items()), sections)


def _table(board: Board, cost: str) -> Table:
    columns = board_columns(board, cost)
    notes = {column.heading: column.note for column in columns}
    table = as_table(f"Ranking: {board.task}", table_of(columns, board.rows), notes)
    rows = [
        [replace(cell, is_strong=row.is_best or row.is_within_margin) for cell in cells]
        for row, cells in zip(board.rows, table.rows, strict=True)
    ]
    return replace(table, rows=rows)


def charts_of(board: Board, cost: str) -> Charts:
    """Return a board's charts: the frontier, by its cost, curves over length, then quality against the other costs."""
    results = [*_model_results(board), *_baseline_results(board)]
    caption = (
        "The shaded steps are the frontier: no other point costs no more and is no worse. Its points have their "
        "maximum lengths beside them."
    )
    costs = cost_charts(results, board.metric, caption, draw_frontier=True)
    if "seconds" in costs and (apart := clocks_apart(clocks_of(board.rows))):
        spec = quality_cost(results, board.metric, "seconds")
        costs["seconds"] = replace(costs["seconds"], caption=f"{apart} So there is no frontier.", spec=spec)
    if "seconds" in costs and not board.is_one_machine:
        caption = f"{costs['seconds'].caption} Times were measured in different places."
        costs["seconds"] = replace(costs["seconds"], caption=caption)
    metrics = [board.metric, *(name for name in board.rows[0].metrics if name != board.metric)]
    curves = {name: length_chart(results, name, describe_intervals(board.rows)) for name in metrics}
    ordered = {f"cost-{cost}": costs.pop(cost)} if cost in costs else {}
    ordered |= {f"length-{name}": chart for name, chart in curves.items()}
    ordered |= {f"cost-{key}": chart for key, chart in costs.items()}
    slug = re.sub(r"[^A-Za-z0-9_.]+", "-", board.task)
    return {f"{_PREFIX}-{slug}-{name}": chart for name, chart in ordered.items()}


def _model_results(board: Board) -> list[Result]:
    """Return the rows as results, each under a name that no other run on the board has."""
    rows = _in_order(board)
    fields = [
        "model",
        "plan",
        *(name for name in ("dtype", "template") if len({getattr(row, name) for row in rows}) > 1),
    ]
    settings, engines = varying(rows), engines_of(rows)
    names = {}
    for row in rows:
        parts = [getattr(row, name) for name in fields] + ([engines[row.run]] if engines else [])
        parts += [describe_settings(row, settings)] if settings else []
        names[row.run, row.template] = ", ".join(parts)
    names = _told_apart(names)
    return [result_of(board, row, names[row.run, row.template]) for row in rows]


def _in_order(board: Board) -> list[BoardRow]:
    return sorted(board.rows, key=lambda row: (row.run, row.template, row.maxlen))


def _told_apart(names: Mapping[tuple[str, str], str]) -> dict[tuple[str, str], str]:
    """Return names by run and template, those that are not alone with the run behind them."""
    found = list(names.values())
    return {key: name if found.count(name) == 1 else f"{name}, {' '.join(key)}" for key, name in names.items()}


def _baseline_results(board: Board) -> Iterator[Result]:
    """Yield curves of what needs no model, each once, however many runs share it.

    Windows differ with the tokenizer, and with them what lies in their reach. The oracle's curves are all drawn; one of
    the others is drawn where all runs have the same.
    """
    rows = _in_order(board)
    for baseline in dict.fromkeys(name for row in rows for name in row.yardsticks):
        curves: list[Curve] = []
        for key in dict.fromkeys((row.run, row.template) for row in rows):
            own = {row.maxlen: row for row in rows if (row.run, row.template) == key and baseline in row.yardsticks}
            _join(curves, own, baseline)
        if len(curves) > 1 and baseline != "visible_oracle":
            continue
        firsts = [next(iter(curve.values())) for curve in curves]
        names = {(row.run, row.template): f"oracle, {row.model.rsplit('/', 1)[-1]}" for row in firsts}
        for curve, name in zip(curves, _told_apart(names).values(), strict=True):
            for _, row in sorted(curve.items()):
                yield result_of(board, row, baseline if len(curves) == 1 else name, baseline)


def _join(curves: list[Curve], own: Curve, baseline: str) -> None:
    """Add a run's curve to one that agrees with it at each length that both have, or else as a new one."""

    def means(row: BoardRow) -> list[float]:
        return [one.mean for one in row.yardsticks[baseline].values() if one.mean is not None]

    def agree(curve: Curve) -> bool:
        shared = [maxlen for maxlen in own if maxlen in curve]
        return bool(shared) and all(
            math.isclose(one, other, abs_tol=1e-9)
            for maxlen in shared
            for one, other in zip(means(curve[maxlen]), means(own[maxlen]), strict=True)
        )

    for curve in curves:
        if agree(curve):
            curve |= {maxlen: row for maxlen, row in own.items() if maxlen not in curve}
            return
    if own:
        curves.append(dict(own))
