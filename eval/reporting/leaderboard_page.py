"""A leaderboard as a page that opens offline: rows that can be told apart, intervals drawn beside each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from eval.records.schema import Board, Leaderboard
from eval.reporting.board_labels import key_of, labels_of
from eval.reporting.charts import Chart
from eval.reporting.columns import ENDED, num_answers
from eval.reporting.leaderboard_tables import (
    DIFFERS,
    RANK,
    RESCORE,
    RUN,
    board_columns,
    describe_board,
    describe_ranks,
    facts_of,
    legends,
    remarks_on,
    scrolls_block,
    title_of,
)
from eval.reporting.page import Cell, Heading, Prose, Section, Span, Table, as_table, render_page
from eval.reporting.tables import table_of


def render_html(content: Leaderboard, charts: Mapping[str, Mapping[str, Chart]], links: Mapping[str, str]) -> str:
    """Return the page; it holds no text of any document.

    Args:
        content: What is ranked.
        charts: Of each board, by its task and their names.
        links: Addresses of the reports, by run.
    """
    sections: list[Section] = []
    for board in content.boards:
        sections += [Heading(text=board.task)]
        sections += [Prose(text=found, is_lead=True)] if (found := describe_ranks(board)) else []
        sections += [Prose(text=describe_board(board)), _table(board, content.cost, links)]
        sections += [Prose(text=remark) for remark in remarks_on(board)]
        sections += charts[board.task].values()
    remark, table = scrolls_block(content)
    if remark:
        sections += [Heading(text="SCROLLS score"), Prose(text=remark)]
        sections += [as_table("Ranking: SCROLLS score", table)] if table else []
    if content.left_out:
        rows = [[one.run, one.task or "all", one.reason] for one in content.left_out]
        sections += [Heading(text="Left out"), as_table("Runs that are not ranked", [["run", "task", "reason"], *rows])]
        sections += [Prose(text=RESCORE)]
    sections += [Heading(text="Commands"), Prose(text="As each run recorded them; names of runs are folders.")]
    commands = [[one.run, f"`{command}`"] for one in content.runs for command in one.commands]
    sections += [as_table("Commands that made the runs", [["run", "command"], *commands])]
    facts = [f"{name}: {text}." for name, text in facts_of(content).items()]
    sections += [Heading(text="What the columns mean"), Prose(text="\n\n".join([*facts, *legends(content)]))]
    return render_page(title_of(content), [], sections)


def _table(board: Board, cost: str, links: Mapping[str, str]) -> Table:
    """Return the table of a board: a label leads each row, and what matters less is shown when it is asked for."""
    columns, others = board_columns(board, cost)
    columns = [column for column in columns if column.heading != DIFFERS]
    everything, labels = [*columns, *others], labels_of(board.rows)
    notes = {column.heading: column.note for column in everything}
    table = as_table(f"Ranking: {board.task}", table_of(everything, board.rows), notes)
    names = [column.heading for column in columns]
    scores = [row.metrics[board.metric] for row in board.rows]
    ends = [end for one in scores for end in (one.mean, one.low, one.high) if end is not None]
    place, bar = names.index(RUN), names.index(RUN) + 2  # the score stands behind the label and the length
    rows = []
    for row, estimate, cells in zip(board.rows, scores, table.rows, strict=True):
        shown = [replace(cell, is_strong=row.is_within_margin) for cell in cells]
        label = labels[key_of(row)]
        shown[place] = Cell(
            text=f"`{label.name}`", detail=label.differs, title=row.plan, link=links.get(row.run, ""), sort=label.name
        )
        shown[0] = replace(shown[0], sort=row.rank)
        if ENDED in columns and row.num_ended_by_length is not None:
            of_length = columns.index(ENDED)
            shown[of_length] = replace(shown[of_length], sort=row.num_ended_by_length / num_answers(row))
        if estimate.mean is not None:
            shown[bar] = replace(shown[bar], span=Span.of(estimate.mean, estimate.low, estimate.high, ends))
        rows.append(shown)
    heads = [
        replace(head, is_extra=index >= len(columns), is_label=index == place)
        for index, head in enumerate(table.columns)
    ]
    caption = f"{table.caption}. Bars are 95% intervals, from {100 * min(ends):.1f} to {100 * max(ends):.1f}."
    # Ranges of ranks and shares are numbers, though they do not read as such.
    heads = [replace(head, is_number=head.is_number or head.name in (RANK.heading, ENDED.heading)) for head in heads]
    return replace(
        table,
        caption=caption if any(one.low is not None for one in scores) else table.caption,
        columns=heads,
        rows=rows,
    )
