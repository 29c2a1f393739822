"""Sections of a study's report about what runs and trainings cost, and what trainings came to."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from eval.records.journal import read_lines
from eval.records.schema import DocumentLoss, Evaluation, Prediction, TrainingRecord, TrainingStep
from eval.reporting.columns import COSTS, Column, legend_of, number_or_dash
from eval.reporting.tables import Rows
from eval.studies.charts import loss_chart
from eval.studies.section import Draft, in_both, share

Lines = Mapping[str, Prediction | DocumentLoss]  # by document or answer
Losses = Mapping[int, float]  # by step

_OF_RUNS = {column.key: column for column in COSTS}
_COSTS = [
    _OF_RUNS["attention_flops"],
    _OF_RUNS["cache_bytes"],
    Column(
        key="prefill_seconds",
        heading="prefill s",
        digits=2,
        legend="prefill: what reading the prompt takes by itself, or measuring the document.",
    ),
    Column(key="decode_seconds", heading="decode s", digits=2),
]
_TIMES = ("prefill_seconds", "decode_seconds", "seconds")
_COST_LEGEND = (
    f"Means of a document or answer. {legend_of(_COSTS)} n: documents or answers. Shares, in brackets, are of the "
    "reference over those that both have, whose number is shared. Operations and bytes are counted, seconds are "
    "measured."
)
_TRAINING_LEGEND = (
    "Losses are nats a target token on the held-out documents; in brackets the gap to the reference at the same step, "
    "of the same documents. A training logs one loss an evaluation, of one seed, so that gaps have no intervals: for "
    "these, measure the checkpoints with eval/perplexity.py."
)


def write_costs(draft: Draft) -> None:
    """Write attention, cache and seconds of runs and measurements, and their shares of the reference."""
    lines = {name: draft.lines(name) for name in draft.folders}
    rows = [["task", "template", "maxlen", "part", "n", "shared", *(column.heading for column in _COSTS)]]
    for setting in sorted({setting for some in lines.values() for setting in some}):
        for name, some in lines.items():
            if setting in some:
                before = lines[draft.reference].get(setting, {}) if draft.reference not in (None, name) else {}
                task, template, maxlen = setting
                cells = _cost_cells(before, some[setting], are_timed_alike=draft.is_timed_alike(name))
                rows.append([task, template, f"{maxlen:,}", name, *cells])
    draft.table("Cost", rows)
    draft.note_machines()
    draft.say(_COST_LEGEND)


def _cost_cells(before: Lines, lines: Lines, *, are_timed_alike: bool) -> list[str]:
    pair = in_both(before, lines)
    cells = [str(len(lines)), str(len(pair[0])) if pair[0] else "-"]
    for column in _COSTS:
        reference, shared, all_lines = (_mean(some, column.key) for some in (*pair, lines))
        is_share = are_timed_alike or column.key not in _TIMES
        of_reference = share(shared, reference) if is_share else "-"
        cell = number_or_dash(all_lines, column.digits, column.unit)
        cells.append(cell if of_reference == "-" else f"{cell} ({of_reference})")
    return cells


def _mean(lines: Lines, key: str) -> float | None:
    """Return the mean of a cost; None where one is not known."""
    values = [_cost(line, key) for line in lines.values()]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _cost(line: Prediction | DocumentLoss, key: str) -> float | None:
    if isinstance(line, Prediction):
        found: float | None = getattr(line, key)
        return found
    return line.seconds if key == "prefill_seconds" else getattr(line, key, None)  # nothing is decoded


def write_training(draft: Draft) -> None:
    """Write held-out losses by step, their gaps to the reference, and seconds a step."""
    logs = {name: read_lines(Evaluation, folder / "evals.jsonl") for name, folder in draft.folders.items()}
    losses = {name: {one.step: one.loss for one in log} for name, log in logs.items()}
    held_out = {name: _held_out(draft.records[name]) for name in draft.folders}
    incomparable = [name for name in draft.others if draft.reference and held_out[name] != held_out[draft.reference]]
    draft.table("Held-out loss by step", _loss_rows(losses, draft.reference, incomparable))
    if any(losses.values()):
        label = draft.section.label
        named = {label(name): some for name, some in losses.items()}
        reference = draft.reference and label(draft.reference)
        draft.chart("loss", "Held-out loss by step", loss_chart(named, reference, list(map(label, incomparable))))
    rows = [_training_row(draft, name, losses[name]) for name in draft.folders]
    draft.table("Trainings", [list(rows[0]), *(list(row.values()) for row in rows)])
    for name in incomparable:
        draft.say(f"`{name}` holds out other documents than `{draft.reference}`: their losses do not compare.")
    draft.note_machines()
    draft.say(_TRAINING_LEGEND)


def _loss_rows(losses: Mapping[str, Losses], reference: str | None, incomparable: Sequence[str]) -> Rows:
    """Return losses by step, with gaps to the reference; those `incomparable` are of other documents and have none."""
    before = losses[reference] if reference else {}
    alone = {reference, *incomparable}
    rows = [["step", *losses]]
    for step in sorted({step for some in losses.values() for step in some}):
        cells = [
            _loss_cell(some.get(step), None if name in alone else before.get(step)) for name, some in losses.items()
        ]
        rows.append([f"{step:,}", *cells])
    return rows


def _loss_cell(loss: float | None, before: float | None) -> str:
    if loss is None:
        return ""
    return f"{loss:.4f}" if before is None else f"{loss:.4f} ({loss - before:+.4f})"


def _training_row(draft: Draft, name: str, losses: Losses) -> dict[str, str]:
    record: TrainingRecord = draft.records[name]
    steps = read_lines(TrainingStep, draft.folders[name] / "steps.jsonl")
    best = min(losses, key=lambda step: losses[step], default=None)
    return {
        "part": name,
        "spans": f"`{record.plan_description}`",
        "steps": f"{len(steps):,}",
        "tokens": f"{sum(step.num_tokens for step in steps):,}",
        "s/step, median": number_or_dash(statistics.median(one.seconds for one in steps) if steps else None, 2),
        "peak GiB": number_or_dash(record.peak_bytes, 2, 2**30),
        "rows held out": number_or_dash(record.num_held_out_rows, 0),
        "lowest loss": "-" if best is None else f"{losses[best]:.4f}",
        "at step": number_or_dash(best, 0),
    }


def _held_out(record: TrainingRecord) -> tuple[Any, ...]:
    return record.held_out_documents, record.identity.held_out_limit, record.identity.maxlen
