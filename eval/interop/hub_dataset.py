"""A scored run folder as a data set of the hub: Parquet files and a card that `datasets` reads.

    hf upload --repo-type dataset OWNER/NAME runs/my-run/dataset .

`samples` has a row for each answer and its scores, `scores` one for each mean, and `documents` each text once: the
characters `shown_spans` of `shown_document_id` are what a prompt showed, in its order. Scores are fractions. A run that
was scored with `--no-texts` gives no documents, queries, references and answers.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import DatasetCard, DatasetCardData

from eval.interop.cards import describe_scores
from eval.interop.samples import answered_examples, file_name
from eval.records.disk import inside, write_whole
from eval.records.run_folder import RunFolder
from eval.records.windows import shown_of
from eval.reporting.tables import markdown
from eval.scoring.scored_run import ScoredRun

_SETTING = {"task": pa.string(), "template": pa.string(), "maxlen": pa.int64()}
_SAMPLE = {
    **_SETTING,
    "id": pa.string(),
    "document_id": pa.string(),
    "sample": pa.int64(),
    "num_generated_tokens": pa.int64(),
    "finish_reason": pa.string(),
    "prompt_tokens": pa.int64(),
    "context_tokens_kept": pa.int64(),
    "context_tokens_dropped": pa.int64(),
    "context_spans": pa.list_(pa.list_(pa.int64())),
    "shown_document_id": pa.string(),
    "shown_spans": pa.list_(pa.list_(pa.int64())),
    "seconds": pa.float64(),
    "cache_bytes": pa.int64(),
    "attention_flops": pa.int64(),
    "peak_bytes": pa.int64(),
}
_TEXTS = {
    "query": pa.string(),
    "references": pa.list_(pa.string()),
    "answer": pa.string(),
    "scored_answer": pa.string(),
    "thought": pa.string(),
}
_SCORE = {
    **_SETTING,
    "system": pa.string(),
    "kind": pa.string(),
    "subset": pa.string(),
    "metric": pa.string(),
    "mean": pa.float64(),
    "low": pa.float64(),
    "high": pa.float64(),
    "error": pa.float64(),
    "num_examples": pa.int64(),
    "num_documents": pa.int64(),
}
_DOCUMENT = {"task": pa.string(), "document_id": pa.string(), "text": pa.string()}

Row = dict[str, Any]


def export_run(run: ScoredRun, output: Path) -> list[Path]:
    """Write a run as a data set into a folder, and return the files, the card last."""
    has_texts = run.scores.texts
    metrics = dict.fromkeys(
        metric for lines in run.lines.values() for line in lines.values() for metric in line.metrics
    )
    samples = _SAMPLE | (_TEXTS if has_texts else {}) | dict.fromkeys(metrics, pa.float64())
    tables = {"samples": (_samples(run), samples), "scores": (_scores(run), _SCORE)}
    if has_texts:
        tables["documents"] = (_documents(run), _DOCUMENT)
    else:  # an earlier export may have written them, and the folder is published whole
        inside(output, "documents.parquet").unlink(missing_ok=True)
    files = [
        write_whole(output, f"{name}.parquet", _parquet(rows, columns)) for name, (rows, columns) in tables.items()
    ]
    return [*files, write_whole(output, "README.md", _card(run, list(tables)).encode(errors="replace"))]


def _parquet(rows: Iterator[Row], columns: Mapping[str, pa.DataType]) -> bytes:
    """Return a file with these columns; what a row has besides is left out."""
    table = pa.Table.from_pylist(
        [{name: _encodable(row.get(name)) for name in columns} for row in rows], pa.schema(columns)
    )
    stream = io.BytesIO()
    pq.write_table(table, stream, compression="zstd")
    return stream.getvalue()


def _encodable(value: Any) -> Any:
    """Return a value whose texts are Unicode: halves of surrogate pairs become question marks."""
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    return [_encodable(one) for one in value] if isinstance(value, list) else value


def _samples(run: ScoredRun) -> Iterator[Row]:
    for (task, template, maxlen), examples in answered_examples(run):
        for one in examples:
            prediction = one.prediction
            same = {name: getattr(prediction, name) for name in _SAMPLE if hasattr(prediction, name)}
            scores = one.line.samples or [one.line.metrics]
            name, spans = shown_of(prediction, one.example.document_id)
            for number, (answer, scored, values) in enumerate(zip(prediction.answers, one.scored, scores, strict=True)):
                yield same | {
                    "task": task,
                    "template": template,
                    "maxlen": maxlen,
                    "document_id": one.example.document_id,
                    "shown_document_id": name,
                    "shown_spans": [list(span) for span in spans],
                    "query": one.example.query,
                    "references": list(one.example.references),
                    "sample": number,
                    "num_generated_tokens": answer.num_generated_tokens,
                    "finish_reason": answer.finish_reason,
                    "answer": answer.text,
                    "scored_answer": scored,
                    "thought": answer.thought,
                    **values,
                }


def _scores(run: ScoredRun) -> Iterator[Row]:
    for result in run.scores.results:
        same = {name: getattr(result, name) for name in _SCORE if hasattr(result, name)}
        for metric, estimate in result.metrics.items():
            yield same | {
                "metric": metric,
                **{name: getattr(estimate, name) for name in ("mean", "low", "high", "error")},
            }


def _documents(run: ScoredRun) -> Iterator[Row]:
    for one in RunFolder(run.path).read_documents():
        yield {"task": one.task, "document_id": one.document_id, "text": one.text}


def _card(run: ScoredRun, tables: list[str]) -> str:
    record = run.record
    model = record.identity.model.label
    configs = [
        {"config_name": name, "data_files": f"{name}.parquet", **({"default": True} if name == "samples" else {})}
        for name in tables
    ]
    data = DatasetCardData(
        pretty_name=f"Answers of {file_name(model)}", tags=["masformer", "long-context", "evaluation"], configs=configs
    )
    prompts = [
        f"- {markdown(task)}, {markdown(template)}: {markdown(one.text)}"
        for task, about in record.tasks.items()
        for template, one in about.templates.items()
    ]
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# Answers of {markdown(model)} about long documents",
        f"Plan: {markdown(record.plan_description)}. Lengths count all tokens of a prompt and the room for its answer.",
        f"## Scores\n\n{describe_scores(run)}",
        "## Prompts\n\n" + "\n".join(prompts),
        "## Columns\n\n`samples` has a row for each answer and its scores, as fractions; `scores` has means with 95% "
        "intervals, of baselines too"
        + (
            "; `documents` has each text: of `shown_document_id`, `shown_spans` were shown, in the order of the prompt."
            if run.scores.texts
            else "."
        ),
        "Texts of documents have the licences of their sources.",
    ]
    return str(DatasetCard("\n\n".join(parts) + "\n"))
