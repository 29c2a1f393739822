"""Sections of a study's report about what runs and trainings cost, and what trainings came to."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.records.journal import read_lines
from eval.reporting.columns import number_or_dash
from eval.reporting.tables import Rows
from eval.studies.charts import loss_chart
from eval.studies.parts import RUN
from eval.studies.section import Content, Given, Record, mean, share, timed_alike
from eval.training.folder import TrainFolder

Setting = tuple[str, str, int]  # task, template, maxlen
Costs = Mapping[str, float | None]  # of one document or answer

_COST_LEGEND = (
    "Means of a document or answer. attention: matrix products in closed form. cache: keys and values at the end. "
    "prefill: what reading the prompt takes by itself, or measuring the document. n: documents or answers. Shares, in "
    "brackets, are of the reference over those that both have, whose number is shared. Operations and bytes are "
    "counted, seconds are measured."
)
_TRAINING_LEGEND = (
    "Losses are nats a target token on the held-out documents; in brackets the gap to the reference at the same step. "
    "A training logs one loss an evaluation, of one seed, so that gaps have no intervals: measure the checkpoints with "
    "eval/perplexity.py for that."
)


def cost_section(given: Given) -> Content:
    """Return attention, cache and seconds of runs and measurements, and their shares of the reference."""
    content = Content(section=given.section)
    costs = {name: _costs(folder, given.scripts[name]) for name, folder in given.folders.items()}
    measures = ["attention TFLOP", "cache MiB", "prefill s", "decode s"]
    rows = [["task", "template", "maxlen", "part", "n", "shared", *measures]]
    for setting in sorted({setting for found in costs.values() for setting in found}):
        for name in given.folders:
            if setting in costs[name]:
                before = costs[given.reference].get(setting) if given.reference else None
                task, template, maxlen = setting
                rows.append([task, template, f"{maxlen:,}", name, *_cost_cells(costs[name][setting], before)])
    content.table("Cost", rows)
    content.say(timed_alike(given.records()))
    content.say(_COST_LEGEND)
    return content


def _costs(folder: Path, script: str) -> dict[Setting, dict[str, Costs]]:
    """Return what each document or answer has cost, by setting."""
    prefill, decode = ("prefill_seconds", "decode_seconds") if script == RUN else ("seconds", None)
    found: dict[Setting, dict[str, Costs]] = {}
    for line in read_lines(folder / "predictions.jsonl"):
        found.setdefault((line["task"], line["template"], line["maxlen"]), {})[line["id"]] = {
            "flops": line["attention_flops"],
            "cache": line["cache_bytes"],
            "prefill": line[prefill],
            "decode": line[decode] if decode else None,
        }
    return found


def _cost_cells(costs: Mapping[str, Costs], before: Mapping[str, Costs] | None) -> list[str]:
    shared = [] if before is None or before is costs else [name for name in costs if name in before]
    cells = [str(len(costs)), str(len(shared)) if shared else "-"]
    for name, (digits, unit) in {"flops": (3, 1e12), "cache": (1, 2**20), "prefill": (2, 1), "decode": (2, 1)}.items():
        cell = number_or_dash(mean([one[name] for one in costs.values()]), digits, unit)
        if before is not None and shared:
            now, held = (mean([one[document][name] for document in shared]) for one in (costs, before))
            of = share(now, held)
            cell += "" if of == "-" else f" ({of})"
        cells.append(cell)
    return cells


def training_section(given: Given) -> Content:
    """Return held-out losses by step, their gaps to the reference, and seconds a step."""
    content, records = Content(section=given.section), given.records()
    evals = {
        name: {line["step"]: line["loss"] for line in TrainFolder(folder).read_log("evals.jsonl")}
        for name, folder in given.folders.items()
    }
    content.table("Held-out loss by step", _loss_rows(given, evals))
    rows = [{"name": name, "step": step, "loss": loss} for name, found in evals.items() for step, loss in found.items()]
    if rows:
        content.chart("loss", "Held-out loss by step", loss_chart(rows))
    steps = {name: TrainFolder(folder).read_log("steps.jsonl") for name, folder in given.folders.items()}
    content.table("Trainings", _training_rows(records, evals, steps))
    for name in given.others:
        if given.reference and _held_out(records[name]) != _held_out(records[given.reference]):
            content.say(f"`{name}` holds out other documents than `{given.reference}`: their losses do not compare.")
    content.say(timed_alike(records))
    content.say(_TRAINING_LEGEND)
    return content


def _loss_rows(given: Given, evals: Mapping[str, Mapping[int, float]]) -> Rows:
    before = evals[given.reference] if given.reference else {}
    rows = [["step", *evals]]
    for step in sorted({step for found in evals.values() for step in found}):
        cells = []
        for name, found in evals.items():
            gap = f" ({found[step] - before[step]:+.4f})" if step in found and step in before else ""
            cells.append(f"{found[step]:.4f}{'' if name == given.reference else gap}" if step in found else "")
        rows.append([f"{step:,}", *cells])
    return rows


def _training_rows(
    records: Mapping[str, Record],
    evals: Mapping[str, Mapping[int, float]],
    steps: Mapping[str, Sequence[Mapping[str, Any]]],
) -> Rows:
    rows = [
        ["part", "spans", "steps", "tokens", "s/step, median", "peak GiB", "rows held out", "lowest loss", "at step"]
    ]
    for name, record in records.items():
        best = min(evals[name], key=lambda step: evals[name][step], default=None)
        seconds = statistics.median(line["seconds"] for line in steps[name]) if steps[name] else None
        rows.append(
            [
                *(name, f"`{record['plan_description']}`", f"{len(steps[name]):,}"),
                f"{sum(line['num_tokens'] for line in steps[name]):,}",
                number_or_dash(seconds, 2),
                number_or_dash(record["peak_bytes"], 2, 2**30),
                number_or_dash(record["num_held_out_rows"], 0),
                "-" if best is None else f"{evals[name][best]:.4f}",
                "-" if best is None else f"{best:,}",
            ]
        )
    return rows


def _held_out(record: Record) -> tuple[Any, ...]:
    return record["held_out_documents"], record["identity"]["held_out_limit"], record["identity"]["maxlen"]
