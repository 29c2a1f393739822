"""What scoring needs of a run folder, checked once, so that what is missing or damaged is told by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.errors import UserError
from eval.records.journal import Journal, prediction_key
from eval.records.run_folder import RunFolder, in_order, keys_of

Line = Mapping[str, Any]

_PREDICTION = (
    *("task", "template", "id", "maxlen", "fingerprint", "text", "context_spans", "context_tokens_kept"),
    *("context_tokens_dropped", "prompt_tokens", "prefilled_tokens", "num_generated_tokens", "finish_reason"),
    *("seconds", "prefill_seconds", "decode_seconds", "cache_bytes", "peak_bytes", "attention_flops"),
)
_EXAMPLE = ("task", "id", "document_id", "query", "references", "evidence")
_DOCUMENT = ("task", "document_id", "text")


@dataclass(frozen=True, kw_only=True)
class RunInputs:
    """A run as scoring reads it.

    Attributes:
        record: `run.json`.
        predictions: In the order of the examples, then templates and lengths.
        examples: Lines of `examples.jsonl`.
        documents: Lines of `documents.jsonl.gz`.
        num_absent: Predictions that are not there yet.
        notes: What else is to be said of the run, in sentences.
    """

    record: Line
    predictions: Sequence[Line]
    examples: Sequence[Line]
    documents: Sequence[Line]
    num_absent: int
    notes: Sequence[str]


def open_run(path: Path) -> tuple[RunFolder, dict[str, Any]]:
    """Return the folder of a run of `eval/run.py`, and its record.

    Raises:
        UserError: It is none.
    """
    folder = RunFolder(path, remedy="give the folder of a run of eval/run.py")
    record = folder.read_run()
    if record is None:
        raise UserError(f"{path} holds no run; give the folder of one")
    if "grouping" not in record:
        raise UserError(f"{path} is a training, a search or a measurement of perplexity; give one of eval/run.py")
    return folder, record


def profiles_of(record: Line) -> dict[str, str]:
    """Return the profile of each task; runs of earlier versions had one for all."""
    return {task: about.get("profile") or record["identity"]["profile"] for task, about in record["tasks"].items()}


def tasks_scored_by_first_line(record: Line) -> list[str]:
    """Return the tasks whose answers are scored by their first line."""
    return [task for task, about in record["tasks"].items() if about.get("scores_first_line")]


def gather_inputs(
    path: Path, record: Line, found: Journal, examples: Sequence[Line], documents: Sequence[Line]
) -> RunInputs:
    """Return what scoring needs, once it is known to be there.

    Args:
        path: Of the folder, for messages.
        record: `run.json`.
        found: Predictions.
        examples: Lines of `examples.jsonl`.
        documents: Lines of `documents.jsonl.gz`.

    Raises:
        UserError: Something is missing.
    """
    if not found.lines:
        raise UserError(f"{path} has no predictions yet; the run's own command makes them")
    check_fields(path / "predictions.jsonl", found.lines.values(), _PREDICTION)
    check_fields(path / "examples.jsonl", examples, _EXAMPLE)
    check_fields(path / "documents.jsonl.gz", documents, _DOCUMENT)
    texts = {(line["task"], line["document_id"]) for line in documents}
    known = {(line["task"], line["id"]): line["document_id"] for line in examples}
    for task, template, name, _ in found.lines:
        if (task, name) not in known or (task, known[task, name]) not in texts:
            raise UserError(
                f"{path} lacks the document of {name}, as runs of earlier versions do; make the run again with "
                "--overwrite"
            )
        if template not in record["tasks"].get(task, {}).get("templates", {}):
            raise UserError(f"{path / 'run.json'} knows no template '{template}' of task '{task}'; it was changed")
    order = keys_of(record, examples)
    predictions = in_order(found.lines, order)
    notes = [_reuse(predictions)]
    num_absent = sum(key not in found.lines for key in order)
    if num_absent:
        notes.append(f"Not there yet: {num_absent} predictions of a run that was interrupted.")
    notes += notes_on_tasks(record)
    if dropped := found.describe():
        notes.append(f"{dropped[0].upper()}{dropped[1:]}.")
    return RunInputs(
        record=record,
        predictions=predictions,
        examples=examples,
        documents=documents,
        num_absent=num_absent,
        notes=notes,
    )


def read_inputs(folder: RunFolder, record: Line) -> RunInputs:
    """Return what scoring needs, predictions in the journal of an interrupted run included.

    Raises:
        UserError: Something is missing.
    """
    found, examples, documents = folder.read_predictions(), folder.read_examples(), folder.read_documents()
    return gather_inputs(folder.path, record, found, examples, documents)


def index_predictions(predictions: Iterable[Line]) -> Journal:
    """Return predictions as a journal holds them."""
    return Journal(lines={prediction_key(line): dict(line) for line in predictions})


def check_fields(file: Path, lines: Iterable[Line], fields: Sequence[str]) -> None:
    """Check that lines have the fields that will be read.

    Raises:
        UserError: One has not.
    """
    for number, line in enumerate(lines, start=1):
        absent = [field for field in fields if field not in line]
        if absent:
            raise UserError(
                f"{file}, line {number} has no field '{absent[0]}', as those of earlier versions; make the run again "
                "with --overwrite"
            )


def _reuse(predictions: Sequence[Line]) -> str:
    """Return what prompts that begin alike have saved, in a sentence."""
    asked = sum(line["prompt_tokens"] for line in predictions)
    prefilled = sum(line["prefilled_tokens"] for line in predictions)
    return f"Prefilled: {prefilled:,} tokens of {asked:,} asked for ({prefilled / max(asked, 1):.2f})."


def notes_on_tasks(record: Line) -> Iterator[str]:
    """Yield what a reader of the scores has to know about the tasks, in sentences."""
    for task, about in record["tasks"].items():
        rows = about.get("rows", {})
        if num_short := rows.get("num_short", 0):
            yield (
                f"{num_short:,} examples of {task} were left out: their documents have fewer than "
                f"{about['min_words']:,} words."
            )
        if num_few := rows.get("num_few_tokens", 0):
            yield f"{num_few:,} documents of {task} were left out: they have fewer than {about['min_tokens']:,} tokens."
        if num_bad := rows.get("num_bad", 0):
            said = f" The first: {rows['bad'][0]}." if rows.get("bad") else ""
            yield f"{num_bad} rows of {task} could not be used and were skipped.{said}"
    if by_first_line := tasks_scored_by_first_line(record):
        yield (
            f"Scored by the first line of each answer, as the benchmark does: {', '.join(by_first_line)}. Texts that "
            "are shown are whole."
        )
