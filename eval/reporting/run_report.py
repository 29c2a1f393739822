"""A scored run as `report.html`, and its charts as files for papers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.records.read_run import RunInputs
from eval.records.run_folder import RunFolder, own_plots
from eval.reporting.charts import (
    COSTS,
    cost_name,
    document_positions,
    length_curves,
    oracle_positions,
    quality_cost,
    save_charts,
)
from eval.reporting.page import (
    PAGE_BYTES,
    RESERVE_BYTES,
    Cell,
    Chart,
    Column,
    Heading,
    Prose,
    Section,
    Table,
    document_budget,
    fit_documents,
    num_json_bytes,
    render_page,
)
from eval.reporting.tables import (
    COMPARISON_LEGEND,
    COST_LEGEND,
    LEGEND,
    Rows,
    blocks_of,
    describe_intervals,
    describe_task,
    facts_of,
    scrolls_blocks,
    select,
)
from eval.scoring.profiles import PROFILES, headline, metric_name

Line = Mapping[str, Any]
# Least room for a document in a page that does not hold all: its ends, cuts and the oracle's sentences.
_DOCUMENT_BYTES = 2_000


def write_page(
    folder: RunFolder, inputs: RunInputs, scores: Line, lines: Sequence[Line], *, with_texts: bool
) -> list[Path]:
    """Write `report.html` and `plots/` into a run folder, and return the PNG files.

    Args:
        folder: Of the run.
        inputs: Of the folder.
        scores: `scores.json`.
        lines: Of `example_scores.jsonl`.
        with_texts: Put texts of documents, references and predictions into the page.
    """
    record = inputs.record
    charts = {
        (task, template): dict(_charts(task, template, scores, lines, inputs))
        for task in record["tasks"]
        for template in record["tasks"][task]["templates"]
        if select(scores["results"], task=task, template=template)
    }
    sections: list[Section] = []
    for task in record["tasks"]:
        blocks = list(blocks_of(record, scores, task))
        if blocks:
            sections += [Heading(text=task), Prose(text=describe_task(record, scores, task))]
        for (of_task, template), drawn in charts.items():
            if of_task == task:
                sections += [Heading(text=f"Template {template}", level=3), *drawn.values()]
        for title, remark, rows in blocks:
            sections += [Prose(text=remark)] if remark else []
            sections += [as_table(title, rows)]
    for title, remark, rows in scrolls_blocks(scores):
        sections += [Heading(text=title), *([Prose(text=remark)] if remark else [])]
        sections += [as_table(title, rows)] if rows else []
    sections += [
        Heading(text="What the columns mean"),
        Prose(text="\n\n".join([*inputs.notes, LEGEND, COMPARISON_LEGEND, COST_LEGEND])),
    ]
    title = f"{', '.join(record['tasks'])}: {record['identity']['model']['reference']}"
    samples = gather_samples(lines, inputs, with_texts=with_texts)
    samples["headlines"] = {task: PROFILES[name].headline[-1] for task, name in scores["profiles"].items()}
    folder.write_text("report.html", render_page(title, list(facts_of(record, scores).items()), sections, samples))
    specs = {f"{'-'.join(at)}-{name}": chart.spec for at, drawn in charts.items() for name, chart in drawn.items()}
    return save_charts(folder.path / "plots", specs, own_plots(record))


def _charts(
    task: str,
    template: str,
    scores: Line,
    lines: Sequence[Line],
    inputs: RunInputs,
) -> Iterator[tuple[str, Chart]]:
    """Return the charts of a task and template, by the name of their file."""
    results = select(scores["results"], task=task, template=template, subset="all")
    intervals = describe_intervals(results)
    objective = scores["yardsticks"][task]["objective"]
    aim = f" (the oracle aims at {objective.split(',')[0]})" if objective else ""
    for metric in results[0]["metrics"]:
        yield (
            f"length-{metric}",
            Chart(
                title=f"{metric_name(metric)} over length",
                caption=f"{intervals[0].upper()}{intervals[1:]}. Dashed: what needs no model{aim}.",
                spec=length_curves(results, metric),
            ),
        )
    metric = headline(scores["profiles"][task])
    for cost in COSTS:
        if any(result["cost"] and result["cost"][cost] is not None for result in results):
            yield (
                f"cost-{cost}",
                Chart(
                    title=f"{metric_name(metric)} against {cost_name(cost)}",
                    caption="Of an example, in the mean; bytes are those of the largest.",
                    spec=quality_cost(results, metric, cost),
                ),
            )
    lengths = {line["document_id"]: len(line["text"]) for line in inputs.documents if line["task"] == task}
    positions, coverage = document_positions(
        select(lines, task=task, template=template), select(inputs.predictions, task=task, template=template), lengths
    )
    shown, title = "How many examples show each position of their document.", "What each length shows"
    if objective:
        title = "Where the oracle's sentences lie"
        shown = f"Above: {shown.lower()} Below: sentences that the oracle picks at the greatest length."
    yield (
        "positions",
        Chart(
            title=title,
            caption=shown,
            spec=oracle_positions(positions, coverage),
        ),
    )


def as_table(caption: str, rows: Rows) -> Table:
    """Return a table of a report for the page; cells sort by their first number."""
    header, *body = rows
    are_numbers = [
        any(row[column] for row in body)
        and all(_number(row[column]) is not None or row[column] in ("", "-") for row in body)
        for column in range(len(header))
    ]
    return Table(
        caption=caption,
        columns=[Column(name=name, is_number=flag) for name, flag in zip(header, are_numbers, strict=True)],
        rows=[
            [
                Cell(text=text, sort=_number(text) if flag else text or None)
                for text, flag in zip(row, are_numbers, strict=True)
            ]
            for row in body
        ],
    )


def _number(text: str) -> float | None:
    first = text.split(" ")[0].replace(",", "").lstrip("<")
    try:
        return float(first)
    except ValueError:
        return None


def gather_samples(lines: Sequence[Line], inputs: RunInputs, *, with_texts: bool) -> dict[str, Any]:
    """Return what the page's browser of samples shows; without texts, only scores and costs.

    Where a page does not hold all, some are left out, evenly, and it says so.
    """
    model = {
        (line["task"], line["template"], line["id"], line["maxlen"]): line["metrics"]
        for line in lines
        if line["is_model"]
    }
    # Of the greatest length.
    with_oracle = sorted((line for line in lines if "sentences" in line), key=lambda line: int(line["maxlen"]))
    oracles = {(line["task"], line["id"]): line["sentences"] for line in with_oracle}
    answers: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in inputs.predictions:
        answers.setdefault((line["task"], line["id"]), []).append(
            {
                "template": line["template"],
                "maxlen": line["maxlen"],
                "text": line["text"] if with_texts else None,
                "scores": model[line["task"], line["template"], line["id"], line["maxlen"]],
                "kept": line["context_spans"],
                "context_tokens_kept": line["context_tokens_kept"],
                "context_tokens_dropped": line["context_tokens_dropped"],
                "seconds": round(line["seconds"], 3),
                "cache_bytes": line["cache_bytes"],
                "finish_reason": line["finish_reason"],
            }
        )
    shown = [
        {
            "task": line["task"],
            "id": line["id"],
            "document": f"{line['task']}/{line['document_id']}",
            "query": line["query"] if with_texts else None,
            "references": line["references"] if with_texts else None,
            "evidence": line["evidence"],
            "oracle": oracles.get((line["task"], line["id"]), []),
            "answers": answers[line["task"], line["id"]],
        }
        for line in inputs.examples
        if (line["task"], line["id"]) in answers
    ]
    num_examples = len(shown)
    shown = _that_fit(shown)
    texts = {f"{line['task']}/{line['document_id']}": line["text"] for line in inputs.documents}
    texts = {name: texts[name] for name in dict.fromkeys(example["document"] for example in shown)}
    if with_texts:
        interest: dict[str, list[tuple[int, int]]] = {}
        for example in shown:
            spans = interest.setdefault(example["document"], [])
            spans += [(start, end) for answer in example["answers"] for start, end in answer["kept"]]
            spans += [(start, end) for start, end in [*example["oracle"], *(example["evidence"] or [])]]
        fitted = fit_documents(texts, interest, document_budget(shown))
    else:
        fitted = {name: {"text": None, "length": len(text), "pieces": []} for name, text in texts.items()}
    note = ""
    if len(shown) < num_examples:
        note = f"{len(shown):,} of {num_examples:,} examples, evenly spaced: a page of 10 MB holds no more."
    metrics = list(dict.fromkeys(metric for scores in model.values() for metric in scores))
    return {"metrics": metrics, "documents": fitted, "examples": shown, "note": note}


def _that_fit(examples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return as many examples as a page holds beside some text of their documents, evenly spaced, one at least."""
    kept, room = list(examples), PAGE_BYTES - RESERVE_BYTES
    while len(kept) > 1:
        num_bytes = num_json_bytes(kept) + _DOCUMENT_BYTES * len({example["document"] for example in kept})
        if num_bytes <= room:
            break
        count = max(1, min(len(kept) - 1, int(len(kept) * room / num_bytes)))
        kept = [examples[index * len(examples) // count] for index in range(count)]
    return kept
