"""A leaderboard as Markdown, CSV, and tables for a terminal."""

from __future__ import annotations

import csv
import io
import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from eval.records.engines import LOCAL, clock_of
from eval.records.schema import Board, BoardRow, Estimate, Leaderboard, ScrollsRow
from eval.reporting.board_labels import describe_shared, key_of, labels_of
from eval.reporting.checks import marks_column, marks_of
from eval.reporting.columns import (
    BASELINE_STYLES,
    COUNTS,
    ENDED,
    EVIDENCE,
    MAXLEN,
    Column,
    charted_costs,
    costs_of,
    doubt_legend,
    legend_of,
    metric_heading,
    of_cost,
    of_value,
    percent,
    percent_mean,
    score,
    text,
)
from eval.reporting.tables import (
    WIDTH,
    Rows,
    as_columns,
    as_markdown,
    code,
    describe_missing,
    markdown,
    scrolls_table,
    table_of,
)
from eval.reporting.useful_lengths import USEFUL_OF_ROW
from eval.scoring.baselines import ORACLES
from eval.scoring.board import clocks_of, describe_settings, engines_of, varying
from eval.scoring.profiles import describe_profile, describe_profiles, metric_columns, metric_name

_RANK_LEGEND = (
    "Rows are in the order of their means; an interval is that of its row alone (95%, bootstrap over documents). rank: "
    "the places that the row may have. Above it are at least the rows shown to be better, below it those shown to be "
    "worse, by exchanging documents between all pairs of rows, corrected for the number of pairs. Rows whose ranks "
    "overlap may come out either way. best observed: the highest mean. within margin: shown to lose less than the "
    "margin, as given to this command, to whichever row is truly best, even if one more document collapsed: the upper "
    "bound of the loss to every other row lies below it. The best observed has to pass as well, so nothing is owed to "
    "having picked it, and bounds are corrected for the number of rows: the chance of any false mark in the table is "
    "about 5% at most. frontier: no other row costs no more, is no worse, and is better in one of the two."
)
RESCORE = (
    "Scores are made anew, without the model, by `python -m eval.score RUN`, with `--profile` under another profile."
)
_BESIDE = {name: baseline.column for name, baseline in BASELINE_STYLES.items() if baseline.column is not None}
_FIRST_BESIDE = (*ORACLES, "common_answer")
RUN, DIFFERS = "run", "differs in"
RANK = Column(heading="rank", show=lambda row: _rank(row), legend="rank: the places that the row may have")
_CLAIMS = {"best observed": "is_best", "within margin": "is_within_margin", "frontier": "is_on_frontier"}
_MARKS = Column(
    heading="marks",
    show=lambda row: ", ".join(mark for mark, field in _CLAIMS.items() if getattr(row, field)),
    legend="marks: best observed: the highest mean; within margin: shown to be as good as the best, whichever that is; "
    "frontier: no other row costs no more, is no worse, and is better in one of the two",
)
_CLOCK = Column(
    heading="seconds are",
    show=lambda row: clock_of(row.settings.get("engine")),
    legend="seconds are: what was timed; those of different kinds do not compare",
)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a formula begins with
# Columns whose cells others have chosen.
_NAMES = (RUN, DIFFERS, "model", "plan", "engine", "template", "dtype", "other settings")


def _rank(row: BoardRow) -> str:
    first, last = row.rank_range or (row.rank, row.rank)
    return str(first) if first == last else f"{first}\N{EN DASH}{last}"


def legends(content: Leaderboard) -> list[str]:
    """Return what the columns mean, in paragraphs."""
    costs = costs_of(row for board in content.boards for row in board.rows)
    doubt = doubt_legend(board.profile for board in content.boards)
    is_marked = any(marks_of(row, board.metric) for board in content.boards for row in board.rows)
    marks = [marks_column(content.boards[0].metric).legend] if is_marked else []
    has_useful = any(row.useful_length is not None for board in content.boards for row in board.rows)
    useful = [USEFUL_OF_ROW.legend] if has_useful else []
    counts = legend_of([*_BESIDE.values(), *COUNTS, EVIDENCE])
    return [_RANK_LEGEND, *marks, *useful, counts, *doubt, legend_of(costs)]


def title_of(content: Leaderboard) -> str:
    """Return the title of the page."""
    return f"Leaderboard: {', '.join(board.task for board in content.boards)}"


def facts_of(content: Leaderboard) -> dict[str, str]:
    """Return what holds for all boards."""
    metrics = ", ".join(dict.fromkeys(metric_name(board.metric) for board in content.boards))
    profiles = {board.task: board.profile for board in content.boards}
    num_left_out = len({one.run for one in content.left_out})
    return {
        "ranked by": f"{metrics}; {describe_profiles(profiles)}",
        "margin": f"less than {100 * content.margin:g} below the best ({metrics} x 100), as given to this command",
        "frontier": f"{metrics} against {charted_costs()[content.cost].phrase}",
        "runs": f"{len(content.runs)} ranked, {num_left_out} left out",
    }


def _plural(count: int, name: str) -> str:
    return f"{count} {name}{'s' * (count != 1)}"


def describe_board(board: Board) -> str:
    """Return what a board ranks, in a sentence or two."""
    examples, documents = board.num_examples, board.num_documents
    counted = f"{examples} examples" + (f" about {documents} documents" if documents != examples else "")
    scored = f"{metric_name(board.metric)}, {describe_profile(board.profile)}".replace("`", "")
    return (
        f"{board.description}. Ranked by {scored}. {_plural(len(board.rows), 'row')} of "
        f"{_plural(board.num_runs, 'run')}, all on the same {counted} of the split {board.split}."
    )


def board_columns(board: Board, cost: str) -> tuple[list[Column], list[Column]]:
    """Return the columns of a board that matter most, and the others.

    The cost is that of the frontier.
    """
    rows, metric, labels = board.rows, board.metric, labels_of(board.rows)
    settings, engines = varying(rows), engines_of(rows)

    def baseline(name: str) -> Column:
        column = _BESIDE[name]
        return replace(column, show=lambda row: percent_mean(row.yardsticks.get(name, {}).get(metric)))

    costs = {column.key: of_cost(column) for column in costs_of(rows)}
    beside = [name for name in _BESIDE if any(name in row.yardsticks for row in rows)]
    # Of the baselines the first that there is: with as many words as the answer, else the best of what was shown.
    first = next((name for name in _FIRST_BESIDE if name in beside), None)
    do_differ = any(label.differs for label in labels.values())
    has_checks = any(marks_of(row, metric) for row in rows)
    has_ended = any(row.num_ended_by_length is not None for row in rows)
    has_useful = any(row.useful_length is not None and row.useful_length.low is not None for row in rows)
    columns = [
        RANK,
        Column(heading=RUN, show=lambda row: labels[key_of(row)].name),
        *([Column(heading=DIFFERS, show=lambda row: labels[key_of(row)].differs)] if do_differ else []),
        MAXLEN,
        Column(heading=metric_heading(metric, board.profile), show=lambda row: percent(row.metrics[metric])),
        *([baseline(first)] if first else []),
        *([USEFUL_OF_ROW] if has_useful else []),
        *([marks_column(metric)] if has_checks else []),
        *([ENDED] if has_ended and not has_checks else []),
        costs.pop(cost),
        _MARKS,
    ]
    others = [baseline(name) for name in beside if name != first]
    others += [score(name, board.profile) for name in rows[0].metrics if name != metric]
    others += [of_value(key, value) for key, value in (board.further or {}).items()]
    if any(row.evidence_visible for row in rows):
        others.append(replace(EVIDENCE, show=lambda row: percent_mean(row.evidence_visible, 1)))
    others += [column for column in COUNTS if column is not ENDED or (has_ended and has_checks)]
    others += [*costs.values(), *([_CLOCK] if len(clocks_of(rows)) > 1 else [])]
    others += [text("model"), text("plan")]
    others += [Column(heading="engine", show=lambda row: engines[row.run])] if engines else []
    others += [text("template"), text("dtype")]
    if settings:
        others.append(Column(heading="other settings", show=lambda row: describe_settings(row, settings)))
    return columns, others


def remarks_on(board: Board) -> list[str]:
    """Return what to know before comparing the rows of a board, in sentences."""
    return [remark for remark in (describe_shared(board.rows), *board.notes) if remark]


def describe_ranks(board: Board) -> str:
    """Return what the ranks of a board let one say, in a sentence; empty for a single row."""
    num_rows = len(board.rows)
    firsts = [row for row in board.rows if row.rank_range and row.rank_range[0] == 1]
    if num_rows == 1 or not firsts:
        return ""
    if len(firsts) == 1:
        [row] = firsts
        name = code(labels_of(board.rows)[key_of(row)].name)
        return f"{name} at {row.maxlen:,} tokens is shown to be better than every other row."
    if all(row.rank_range == [1, num_rows] for row in board.rows):
        return f"No row is shown to be better than another: any of the {num_rows} may be the best."
    return f"{len(firsts)} of {num_rows} rows may be the best: no row is shown to be better than they are."


def scrolls_block(content: Leaderboard) -> tuple[str, Rows]:
    """Return a remark on the SCROLLS score, and its table; both empty where no system has two of its tasks."""
    if content.scrolls_score is None:
        return "", []
    rows = content.scrolls_score.rows
    names = [text("model"), text("plan"), *([text("template")] if len({row.template for row in rows}) > 1 else [])]
    names.append(Column(heading="run", show=lambda row: ", ".join(row.runs)))
    remarks = ["The mean of the seven tasks' headline scores, each as on its board."] if rows else []
    lacking: dict[str, list[str]] = {}
    for one in content.scrolls_score.missing:
        lacking.setdefault(describe_missing(one.missing, has_scores=one.has_scores), []).extend(one.runs)
    remarks += [f"{', '.join(runs)}: {text}" for text, runs in lacking.items()]
    return " ".join(remarks), scrolls_table(rows, names) if rows else []


def left_out_lines(content: Leaderboard) -> list[str]:
    """Return which runs are not ranked, and why."""
    return [f"{one.run}{f' ({one.task})' if one.task else ''}: {one.reason}" for one in content.left_out]


def render_terminal(content: Leaderboard) -> str:
    """Return the boards for a terminal, without the columns that would not fit one."""
    parts = []
    for board in content.boards:
        columns = [column for column in board_columns(board, content.cost)[0] if column.heading != DIFFERS]
        labels = labels_of(board.rows).values()
        runs = [textwrap.fill(f"{one.name}: {one.differs}", WIDTH) for one in labels if one.differs]
        rows = table_of(columns, board.rows)
        title = textwrap.fill(f"{board.task}: {describe_board(board)}", WIDTH)
        notes = [
            textwrap.fill(note.replace("`", ""), WIDTH) for note in [describe_ranks(board), *remarks_on(board)] if note
        ]
        parts.append("\n".join([title, "", as_columns(rows), *_below(runs), *_below(notes)]))
    remark, table = scrolls_block(content)
    if remark:
        below = ["", as_columns(table)] if table else []
        parts.append("\n".join(["SCROLLS score", textwrap.fill(remark, WIDTH), *below]))
    lines = [textwrap.fill(line, WIDTH, subsequent_indent="  ") for line in left_out_lines(content)]
    parts.append("\n".join(["Left out:", *lines, RESCORE] if lines else ["Left out: nothing."]))
    facts = [f"{name}: {text.replace('`', '')}" for name, text in facts_of(content).items()]
    parts.append("\n".join([*facts, *(textwrap.fill(legend, WIDTH) for legend in legends(content))]))
    return "\n\n".join(parts)


def _below(lines: Sequence[str]) -> list[str]:
    return ["", *lines] if lines else []


def render_markdown(content: Leaderboard, plots: Mapping[str, Sequence[tuple[str, str]]]) -> str:
    """Return `leaderboard.md`; plots are titles and paths of the pictures, by task."""
    parts = [
        f"# {markdown(title_of(content))}",
        "",
        *(f"- {name}: {markdown(text)}" for name, text in facts_of(content).items()),
    ]
    for board in content.boards:
        parts += ["", f"## {markdown(board.task)}", "", markdown(describe_board(board)), ""]
        columns = [column for of_kind in board_columns(board, content.cost) for column in of_kind]
        parts += [as_markdown(_with_code(table_of(columns, board.rows)))]
        found = describe_ranks(board)
        parts += [line for note in [found, *remarks_on(board)] if note for line in ("", markdown(note))]
        parts += [line for title, path in plots[board.task] for line in ("", f"![{markdown(title)}]({path})")]
    remark, table = scrolls_block(content)
    if remark:
        parts += [
            "",
            "## SCROLLS score",
            "",
            markdown(remark),
            *(["", as_markdown(_with_code(table))] if table else []),
        ]
    parts += ["", "## Left out", ""]
    lines = left_out_lines(content)
    parts += [*(f"- {markdown(line)}" for line in lines), "", RESCORE] if lines else ["Nothing."]
    parts += ["", "## Commands", "", "As each run recorded them; names of runs are folders.", ""]
    parts += [
        f"- {markdown(code(one.run))}: {markdown(code(command))}" for one in content.runs for command in one.commands
    ]
    parts += ["", "## What the columns mean", *(line for legend in legends(content) for line in ("", legend)), ""]
    return "\n".join(parts)


def _with_code(table: Rows) -> Rows:
    header, *rows = table
    return [
        header,
        *([code(cell) if name in _NAMES else cell for name, cell in zip(header, row, strict=True)] for row in rows),
    ]


def render_csv(content: Leaderboard) -> str:
    """Return `leaderboard.csv`: fractions and base units; what is not known is empty."""
    lines = [_plain_row(board, row) for board in content.boards for row in board.rows]
    lines += [_plain_score(row) for row in (content.scrolls_score.rows if content.scrolls_score else [])]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    names = list(dict.fromkeys(name for line in lines for name in line))
    writer.writerow(map(_plain_cell, names))
    writer.writerows([_plain_cell(line.get(name, "")) for name in names] for line in lines)
    return stream.getvalue()


def _plain_cell(value: Any) -> Any:
    """Return a cell that no spreadsheet takes for a formula: such a text gets an apostrophe before it."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _plain_score(row: ScrollsRow) -> dict[str, Any]:
    """Return a SCROLLS score as a row whose task is none of the boards'."""
    found: dict[str, Any] = {"task": "scrolls_score", "run": ", ".join(row.runs)}
    found |= {name: getattr(row, name) for name in ("model", "plan", "dtype", "template")}
    return found | {"maxlen_tokens": row.maxlen, **dict(_fractions("scrolls_score", row))}


def _plain_row(board: Board, row: BoardRow) -> dict[str, Any]:
    found: dict[str, Any] = {"task": board.task, "profile": board.profile, "rank": row.rank}
    found |= dict(zip(("rank_low", "rank_high"), row.rank_range or (None, None), strict=True))
    found |= {name: getattr(row, name) for name in ("run", "model", "plan", "dtype", "template")}
    found["maxlen_tokens"] = row.maxlen
    found |= {
        name: value if isinstance(value, (str, int, float)) else json.dumps(value)
        for name, value in row.settings.items()
        if name != "engine"
    }
    if any(one.engine for one in board.rows):
        found |= {"engine": row.engine or LOCAL, "engine_settings": json.dumps(row.settings.get("engine"))}
    if len(clocks_of(board.rows)) > 1:
        found["seconds_are"] = clock_of(row.settings.get("engine"))
    found |= {name: getattr(row, name) for name in ("num_examples", "num_documents", "num_truncated")}
    for metric in metric_columns(board.profile):
        found |= dict(_fractions(metric, row.metrics[metric]))
        for system in BASELINE_STYLES:
            found |= dict(_fractions(f"{system}_{metric}", row.yardsticks.get(system, {}).get(metric)))
    for key in board.further or {}:
        found |= {f"{key}_{end}": value for end, value in _ends((row.further or {}).get(key))}
    found |= dict(_fractions("evidence_visible", row.evidence_visible))
    for end in ("observed", "low", "high") if any(one.useful_length for one in board.rows) else ():
        found[f"useful_length_{end}_tokens"] = getattr(row.useful_length, end, None)
    found |= {column.plain_name or column.key: column.value(row.cost) for column in costs_of(board.rows)}
    return found | {name: getattr(row, name) for name in _CLAIMS.values()}


def _fractions(name: str, estimate: Estimate | None) -> Iterator[tuple[str, float | None]]:
    for end, value in _ends(estimate):
        yield f"{name}_{end}_fraction", value


def _ends(estimate: Estimate | None) -> Iterator[tuple[str, float | None]]:
    for end in ("mean", "low", "high"):
        yield end, getattr(estimate, end) if estimate else None
