"""The contrasts of windows in words and as a table: where what more context could give is lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from eval.records.schema import Contrast, RunRecord, Scores
from eval.records.windows import ORACLE, base_of, window_of
from eval.reporting.columns import COMPARISONS, Column
from eval.reporting.finding import judged
from eval.reporting.tables import Rows, select, table_of

# What a contrast is called, what is compared, and with what.
_WORDS = {
    "not_in_window": ("not in the window", "{alone} alone", "the window without it"),
    "not_used": ("in the window and not used", "{alone} alone", "the window that holds it"),
    "position": ("position", "the evidence in front", "the evidence in its place"),
    "document": ("from the document", "the document", "another document in its place"),
}
WINDOWS_REMARK = (
    "Differences between windows of the same documents. Not in the window: the evidence alone and the window without "
    "it. In the window and not used: the evidence alone and the window that holds it. Position: the evidence in front "
    "and in its place. From the document: it and another one in its place. Evidence is what the data set marks (gold), "
    "else the oracle's sentences. Left out are examples without evidence, or whose evidence the window does not show "
    "whole."
)


# Columns of paired comparisons in the report of a terminal.
_SHORT = ("metric", "n", "difference", "verdict")


def windows_table(scores: Scores, task: str, *, is_short: bool = False) -> Rows:
    """Return a header and one row a contrast of a task; empty where there is none."""
    rows = select(scores.windows or (), task=task)
    several = len({base_of(row.first.template) for row in rows}) > 1

    def name(row: Contrast) -> str:
        where = f"{base_of(row.first.template)}: " if several else ""
        return f"{where}{_WORDS[row.contrast][0]}, {row.first.maxlen:,}"

    compared = [column for column in COMPARISONS if column.heading in _SHORT or not is_short]
    columns = [Column(heading="contrast", show=name), *compared, _EVIDENCE, _LEFT_OUT]
    return table_of(columns, rows) if rows else []


def _sources(row: Contrast) -> str:
    return ", ".join(f"{count} {name}" for count, name in ((row.num_gold, "gold"), (row.num_oracle, "oracle")) if count)


_EVIDENCE = Column(heading="evidence", show=lambda row: _sources(row) or "-")
_LEFT_OUT = Column(heading="left out", show=lambda row: str(row.num_left_out))


def window_meanings(record: RunRecord, scores: Scores) -> Iterator[str]:
    """Yield each contrast of each task at the greatest length that has it, in a sentence."""
    tasks = [task for task in record.tasks if select(scores.windows or (), task=task)]
    for task in tasks:
        where = f"{task}, " if len(tasks) > 1 else ""
        for sentence in _meanings(scores, task):
            yield f"{where or sentence[0].upper()}{sentence if where else sentence[1:]}"


def _meanings(scores: Scores, task: str) -> Iterator[str]:
    of_task: Sequence[Contrast] = select(scores.windows or (), task=task)
    settings = dict.fromkeys((base_of(row.first.template), row.contrast) for row in of_task)
    several = len({template for template, _ in settings}) > 1
    for template, contrast in settings:
        rows = [row for row in of_task if (base_of(row.first.template), row.contrast) == (template, contrast)]
        last = max(rows, key=lambda row: row.first.maxlen)
        title, subject, other = _WORDS[contrast]
        alone = "the oracle's sentences" if window_of(last.second.template) == ORACLE else "the evidence"
        subject = f"{subject.format(alone=alone)} at {last.first.maxlen:,} tokens"
        found = judged(last, subject, other, is_plural=subject.startswith("the oracle's"))
        where = f"{template}, " if several else ""
        yield f"{where}{title}: {found[0].lower()}{found[1:]}"
