"""A scored run as `report.html`, and its charts as files for papers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from eval.charts import document_positions, length_curves, oracle_positions, quality_cost, save_chart
from eval.page import Cell, Chart, Column, Heading, Prose, Section, Table, document_budget, fit_documents, render_page
from eval.report import (
    COMPARISON_LEGEND,
    COST_LEGEND,
    LEGEND,
    Rows,
    blocks_of,
    facts_of,
    metric_name,
    select,
)
from eval.run_folder import RunFolder

Line = Mapping[str, Any]
_COSTS = {
    "attention_flops": "attention operations",
    "seconds": "time, prefill and decoding",
    "cache_bytes": "bytes of keys and values",
}


def write_page(
    folder: RunFolder,
    record: Line,
    scores: Line,
    lines: Sequence[Line],
    predictions: Sequence[Line],
    examples: Sequence[Line],
    documents: Sequence[Line],
    notes: Sequence[str],
    *,
    with_texts: bool,
) -> None:
    """Write `report.html` and `plots/` into a run folder.

    Args:
        folder: Of the run.
        record: Its `run.json`.
        scores: Its `scores.json`.
        lines: Of `example_scores.jsonl`.
        predictions: Lines of `predictions.jsonl`.
        examples: Lines of `examples.jsonl`.
        documents: Lines of `documents.jsonl.gz`.
        notes: What else is to be said, in sentences.
        with_texts: Put texts of documents, references and predictions into the page.
    """
    charts = {
        (task, template): dict(_charts(task, template, scores, lines, predictions, documents))
        for task in record["tasks"]
        for template in record["tasks"][task]["templates"]
        if select(scores["results"], task=task, template=template)
    }
    sections: list[Section] = []
    for task in record["tasks"]:
        blocks = list(blocks_of(record, scores, task))
        if blocks:
            about = record["tasks"][task]
            sections += [Heading(text=task), Prose(text=f"{about['description']}. Split `{about['split']}`.")]
        for (of_task, template), drawn in charts.items():
            if of_task == task:
                sections += [Heading(text=f"Template {template}", level=3), *drawn.values()]
        for title, remark, rows in blocks:
            sections += [Prose(text=remark)] if remark else []
            sections += [as_table(title, rows)]
    sections += [
        Heading(text="What the columns mean"),
        Prose(text="\n\n".join([*notes, LEGEND, COMPARISON_LEGEND, COST_LEGEND])),
    ]
    title = f"{', '.join(record['tasks'])}: {record['identity']['model']['reference']}"
    samples = gather_samples(lines, predictions, examples, documents, with_texts=with_texts)
    folder.write_text("report.html", render_page(title, list(facts_of(record, scores).items()), sections, samples))
    folder.make(folder.path / "plots")
    for (task, template), drawn in charts.items():
        for name, chart in drawn.items():
            for suffix in (".png", ".svg"):
                save_chart(chart.spec, folder.path / "plots" / f"{task}-{template}-{name}{suffix}")


def _charts(
    task: str,
    template: str,
    scores: Line,
    lines: Sequence[Line],
    predictions: Sequence[Line],
    documents: Sequence[Line],
) -> Iterator[tuple[str, Chart]]:
    """Return the charts of a task and template, by the name of their file."""
    results = select(scores["results"], task=task, template=template, subset="all")
    for metric in results[0]["metrics"]:
        yield (
            f"length-{metric}",
            Chart(
                title=f"{metric_name(metric)} over length",
                caption="95% bootstrap intervals over documents. Dashed: what needs no model.",
                spec=length_curves(results, metric),
            ),
        )
    metric = list(results[0]["metrics"])[-1]
    for cost, name in _COSTS.items():
        if any(result["cost"] and result["cost"][cost] is not None for result in results):
            yield (
                f"cost-{cost}",
                Chart(
                    title=f"{metric_name(metric)} against {name}",
                    caption="Of an example, in the mean; bytes are those of the largest.",
                    spec=quality_cost(results, metric, cost),
                ),
            )
    lengths = {line["document_id"]: len(line["text"]) for line in documents if line["task"] == task}
    positions, coverage = document_positions(
        select(lines, task=task, template=template), select(predictions, task=task, template=template), lengths
    )
    yield (
        "positions",
        Chart(
            title="Where the oracle's sentences lie",
            caption="Above: how many documents show each position. Below: sentences that the oracle picks at the "
            "greatest length.",
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


def gather_samples(
    lines: Sequence[Line],
    predictions: Sequence[Line],
    examples: Sequence[Line],
    documents: Sequence[Line],
    *,
    with_texts: bool,
) -> dict[str, Any]:
    """Return what the page's browser of samples shows; without texts, only scores and costs."""
    model = {
        (line["task"], line["template"], line["id"], line["maxlen"]): line["metrics"]
        for line in lines
        if line["is_model"]
    }
    oracles = {(line["task"], line["id"]): line["sentences"] for line in lines if "sentences" in line}
    answers: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in predictions:
        answers.setdefault((line["task"], line["id"]), []).append(
            {
                "template": line["template"],
                "maxlen": line["maxlen"],
                "text": line["text"] if with_texts else None,
                "scores": {
                    name: round(value, 5)
                    for name, value in model[line["task"], line["template"], line["id"], line["maxlen"]].items()
                },
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
        for line in examples
        if (line["task"], line["id"]) in answers
    ]
    texts = {f"{line['task']}/{line['document_id']}": line["text"] for line in documents}
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
    return {"metrics": list(next(iter(model.values()))), "documents": fitted, "examples": shown}
