"""Records -> tables as lists of texts, and these as Markdown or for a terminal."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from eval.records.schema import BoardRow, Comparison, GroupScore, ModelRecord, Result, ScrollsEntry, Session
from eval.reporting.columns import (
    BASELINE_STYLES,
    COMPARISONS,
    CUT,
    ENDED,
    EVIDENCE,
    MAXLEN,
    NOISE,
    WORDS,
    Column,
    N,
    costs_of,
    of_cost,
    percent,
    score,
    system_name,
    units_of,
)
from eval.scoring.profiles import metric_name
from eval.scoring.scrolls import SCROLLS_TASKS
from eval.scoring.significance import MIN_DOCUMENTS
from tasks.terminal import plain_text

Rows = list[list[str]]
Row = TypeVar("Row")

GROUPS_REMARK = "Groups of examples that the task's publishers report apart."
WIDTH = 120  # characters of a line in a terminal


def select(rows: Iterable[Row], **fields: Any) -> list[Row]:
    """Return the records that have these values."""
    return [row for row in rows if all(getattr(row, name) == value for name, value in fields.items())]


def table_of(columns: Sequence[Column], records: Iterable[Any]) -> Rows:
    """Return a header and one row a record."""
    return [[column.heading for column in columns], *([column.cell(one) for column in columns] for one in records)]


def quality_table(results: Sequence[Result]) -> Rows:
    """Return a header and rows of one task, template and subset: the model at each length, its baselines below."""

    def of_model(column: Column) -> Column:
        return replace(column, show=lambda result: column.cell(result) if result.kind == "model" else "")

    def with_interval(metric: str) -> Column:
        return replace(score(metric, results[0].profile), show=lambda result: percent(result.metrics[metric]))

    columns = [MAXLEN, Column(heading="system", show=system_name), *map(of_model, (N, CUT)), WORDS, of_model(ENDED)]
    columns += map(with_interval, results[0].metrics)
    columns += [EVIDENCE] if any(result.evidence_visible for result in results) else []
    lengths = list(dict.fromkeys(result.maxlen for result in results))
    order = ["model", *(baseline.heading for baseline in BASELINE_STYLES.values())]
    rows = sorted(results, key=lambda result: (lengths.index(result.maxlen), order.index(system_name(result))))
    return table_of(columns, rows)


def group_table(scores: Sequence[GroupScore]) -> Rows:
    """Return a header of lengths and one row a group and metric, of one task and template."""
    lengths = sorted({one.maxlen for one in scores})
    known = {(one.group, metric, one.maxlen): percent(of) for one in scores for metric, of in one.metrics.items()}
    sizes = {one.group: one.num_examples for one in scores}
    return [
        ["group", "n", "metric", *(f"{length:,}" for length in lengths)],
        *(
            [group, f"{size:,}", metric_name(metric), *(known.get((group, metric, length), "") for length in lengths)]
            for group, size in sizes.items()
            for metric in scores[0].metrics
        ),
    ]


def noise_table(results: Sequence[Result]) -> Rows:
    """Return a header and one row a length and metric of results with several samples; empty where there are none."""
    rows = [(result, metric) for result in results if result.noise for metric in result.noise]
    return table_of(NOISE, rows) if rows else []


def cost_table(results: Sequence[Result]) -> Rows:
    """Return a header and one row a length, of the model's results."""
    return table_of(
        [MAXLEN, *map(of_cost, costs_of(results))], [result for result in results if result.cost is not None]
    )


def comparison_table(comparisons: Sequence[Any], label: str, name: Callable[[Any], str]) -> Rows:
    """Return a header and one row a comparison; a column of this label names what is compared with what."""
    return table_of([Column(heading=label, show=name), *COMPARISONS], comparisons)


def name_settings(comparison: Comparison) -> str:
    """Return which settings of a run a comparison is of."""
    first, second = comparison.first, comparison.second
    if first.template == second.template:
        return f"{first.maxlen:,} to {second.maxlen:,}"
    return f"{first.template} to {second.template} at {first.maxlen:,}"


def scrolls_table(rows: Sequence[ScrollsEntry], names: Sequence[Column]) -> Rows:
    """Return a header and one row a SCROLLS score, after columns that name it and before the seven headline scores."""

    def of_task(task: str) -> Column:
        return Column(heading=task, show=lambda row: f"{100 * row.tasks[task]:.2f}")

    score = Column(heading="SCROLLS score", show=percent)
    return table_of([*names, MAXLEN, score, *map(of_task, SCROLLS_TASKS)], rows)


def describe_missing(missing: Sequence[str], *, has_scores: bool) -> str:
    """Return why there is no SCROLLS score, or not everywhere, in a sentence; empty where nothing is missing."""
    if not missing:
        return ""
    where = "not everywhere" if has_scores else "none"
    return f"SCROLLS score, the mean of seven tasks: {where}; missing: {', '.join(missing)}."


def describe_intervals(rows: Sequence[Result | BoardRow]) -> str:
    """Return what stands behind the means of results, or why nothing does."""
    units = [units_of(row) for row in rows]
    names = " or ".join(sorted({name for _, name in units}, reverse=True))
    if any(estimate.low is not None for row in rows for estimate in row.metrics.values()):
        return f"95% bootstrap intervals over {names}"
    few, alike = f"fewer than {MIN_DOCUMENTS} {names}", f"all {names} score alike"
    reasons = dict.fromkeys(few if count < MIN_DOCUMENTS else alike for count, _ in units)
    return f"no intervals: {', or '.join(reasons)}"


def code(text: str) -> str:
    """Return a name as code in the prose of reports, where it stands between backquotes."""
    name = text.replace("`", "'")
    return f"`{name}`" if text else ""


def describe_model(model: ModelRecord, dtype: str, session: Session) -> str:
    """Return the line of a report that says which model made the numbers."""
    stored = f", weights {session.quantization}" if session.quantization else ""
    return f"{code(model.label)} ({model.source}), {dtype}{stored}"


def markdown(text: str) -> str:
    """Return prose of a report as Markdown in one line: `code` stays code, and all other marks are text."""
    parts = re.split(r"(`[^`]+`)", plain_text(" ".join(text.split())))
    return "".join(part if index % 2 else _escaped(part) for index, part in enumerate(parts))


def _escaped(text: str) -> str:
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    # A bracket alone is text, as those of intervals are; before one of these it would end a link.
    return re.sub(r"[\\`*~]|\](?=[(\[:])|^#|(?<!\w)_|_(?!\w)", r"\\\g<0>", text)


def as_markdown(rows: Sequence[Sequence[str]], num_names: int = 0) -> str:
    """Return a Markdown table, numbers to the right and so many first columns, of names, to the left."""
    rows = [list(map(markdown, row)) for row in rows]
    lines = [rows[0], [":---" if index < num_names else "---:" for index in range(len(rows[0]))], *rows[1:]]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def as_columns(rows: Sequence[Sequence[str]], within: int | None = None, num_names: int = 1) -> str:
    """Return a table for a terminal, columns to the right.

    Args:
        rows: A header and rows.
        within: Most characters of a line: a wider table goes on below.
        num_names: First columns that name a row, which are repeated there.
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    parts: list[list[int]] = [list(range(num_names))]
    for column in range(num_names, len(widths)):
        needed = sum(widths[one] + 2 for one in parts[-1]) + widths[column]
        if within is not None and needed > within and len(parts[-1]) > num_names:
            parts.append(list(range(num_names)))
        parts[-1].append(column)
    return "\n\n".join(
        "\n".join("  ".join(row[column].rjust(widths[column]) for column in part) for row in rows) for part in parts
    )
