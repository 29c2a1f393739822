"""Sections of a study's report about what runs and trainings cost, and what trainings came to."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from eval.records.journal import read_lines
from eval.records.schema import DocumentLoss, Prediction, RunRecord, TrainingRecord
from eval.reporting.columns import COSTS, Column, legend_of, number_or_dash
from eval.reporting.tables import Rows
from eval.scoring.examples import Setting
from eval.studies.charts import loss_chart
from eval.studies.section import Draft, mean, share
from eval.training.folder import TrainFolder

Costs = Mapping[str, Mapping[str, float | None]]  # by document or answer, then by key of `_COSTS`

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
_COST_LEGEND = (
    f"Means of a document or answer. {legend_of(_COSTS)} n: documents or answers. Shares, in brackets, are of the "
    "reference over those that both have, whose number is shared. Operations and bytes are counted, seconds are "
    "measured."
)
_TRAINING_LEGEND = (
    "Losses are nats a target token on the held-out documents; in brackets the gap to the reference at the same step. "
    "A training logs one loss an evaluation, of one seed, so that gaps have no intervals: measure the checkpoints with "
    "eval/perplexity.py for that."
)


def write_costs(draft: Draft) -> None:
    """Write attention, cache and seconds of runs and measurements, and their shares of the reference."""
    costs = {name: _read_costs(draft, name) for name in draft.folders}
    rows = [["task", "template", "maxlen", "part", "n", "shared", *(column.heading for column in _COSTS)]]
    for setting in sorted({setting for of_part in costs.values() for setting in of_part}):
        for name in draft.folders:
            if setting in costs[name]:
                before = costs[draft.reference].get(setting) if draft.reference not in (None, name) else None
                task, template, maxlen = setting
                rows.append([task, template, f"{maxlen:,}", name, *_cost_cells(costs[name][setting], before or {})])
    draft.table("Cost", rows)
    draft.note_machines()
    draft.say(_COST_LEGEND)


def _read_costs(draft: Draft, name: str) -> dict[Setting, dict[str, dict[str, float | None]]]:
    file = draft.folders[name] / "predictions.jsonl"
    is_run = isinstance(draft.records[name], RunRecord)
    lines: Sequence[Prediction | DocumentLoss] = (
        read_lines(Prediction, file) if is_run else read_lines(DocumentLoss, file)
    )
    costs: dict[Setting, dict[str, dict[str, float | None]]] = {}
    for line in lines:
        values = vars(line) if isinstance(line, Prediction) else {**vars(line), "prefill_seconds": line.seconds}
        of_setting = costs.setdefault((line.task, line.template, line.maxlen), {})
        of_setting[line.id] = {column.key: values.get(column.key) for column in _COSTS}
    return costs


def _cost_cells(costs: Costs, before: Costs) -> list[str]:
    shared = [name for name in costs if name in before]
    cells = [str(len(costs)), str(len(shared)) if shared else "-"]
    for column in _COSTS:
        key = column.key
        value, *both = (
            mean([some[name][key] for name in names])
            for some, names in ((costs, list(costs)), (costs, shared), (before, shared))
        )
        of_reference = share(*both)
        cell = number_or_dash(value, column.digits, column.unit)
        cells.append(cell if of_reference == "-" else f"{cell} ({of_reference})")
    return cells


def write_training(draft: Draft) -> None:
    """Write held-out losses by step, their gaps to the reference, and seconds a step."""
    losses = {
        name: {one.step: one.loss for one in TrainFolder(folder).evaluations()}
        for name, folder in draft.folders.items()
    }
    draft.table("Held-out loss by step", _loss_rows(losses, draft.reference))
    points = [
        {"name": name, "step": step, "loss": loss} for name, some in losses.items() for step, loss in some.items()
    ]
    if points:
        draft.chart("loss", "Held-out loss by step", loss_chart(points))
    header = [
        "part",
        "spans",
        "steps",
        "tokens",
        "s/step, median",
        "peak GiB",
        "rows held out",
        "lowest loss",
        "at step",
    ]
    draft.table("Trainings", [header, *(_training_row(draft, name, losses[name]) for name in draft.folders)])
    for name in draft.others:
        if draft.reference and _held_out(draft.records[name]) != _held_out(draft.records[draft.reference]):
            draft.say(f"`{name}` holds out other documents than `{draft.reference}`: their losses do not compare.")
    draft.note_machines()
    draft.say(_TRAINING_LEGEND)


def _loss_rows(losses: Mapping[str, Mapping[int, float]], reference: str | None) -> Rows:
    before = losses[reference] if reference else {}
    rows = [["step", *losses]]
    for step in sorted({step for some in losses.values() for step in some}):
        cells = []
        for name, some in losses.items():
            gap = (
                f" ({some[step] - before[step]:+.4f})" if name != reference and step in some and step in before else ""
            )
            cells.append(f"{some[step]:.4f}{gap}" if step in some else "")
        rows.append([f"{step:,}", *cells])
    return rows


def _training_row(draft: Draft, name: str, losses: Mapping[int, float]) -> list[str]:
    record: TrainingRecord = draft.records[name]
    steps = TrainFolder(draft.folders[name]).steps()
    best = min(losses, key=lambda step: losses[step], default=None)
    return [
        name,
        f"`{record.plan_description}`",
        f"{len(steps):,}",
        f"{sum(step.num_tokens for step in steps):,}",
        number_or_dash(statistics.median(step.seconds for step in steps) if steps else None, 2),
        number_or_dash(record.peak_bytes, 2, 2**30),
        number_or_dash(record.num_held_out_rows, 0),
        "-" if best is None else f"{losses[best]:.4f}",
        number_or_dash(best, 0),
    ]


def _held_out(record: TrainingRecord) -> tuple[Any, ...]:
    return record.held_out_documents, record.identity.held_out_limit, record.identity.maxlen
