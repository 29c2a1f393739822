"""Read and validate a run folder for scoring; errors name what is missing or damaged."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eval.errors import UserError
from eval.records.journal import sha256
from eval.records.run_folder import RunFolder, in_order, keys_of
from eval.records.schema import DocumentRecord, ExampleRecord, Key, Prediction, RunRecord, Unit
from eval.records.thoughts import describe_thinking, is_unfinished


@dataclass(frozen=True, kw_only=True)
class RunInputs:
    """A run as scoring reads it.

    Attributes:
        record: `run.json`.
        predictions: In the order of the examples, then templates and lengths.
        examples: Lines of `examples.jsonl`.
        documents: Lines of `documents.jsonl.gz`.
        num_absent: Predictions that are not there yet.
        notes: What else a reader must know of the run, in sentences.
        dropped: Lines of the journal that could not be used, in words; empty where there are none.
        thinking: What is scored of answers with thoughts, in sentences.
        repeated: Which documents stand under several names, in sentences.
    """

    record: RunRecord
    predictions: Sequence[Prediction]
    examples: Sequence[ExampleRecord]
    documents: Sequence[DocumentRecord]
    num_absent: int
    notes: Sequence[str]
    dropped: str = ""
    thinking: Sequence[str] = ()
    repeated: Sequence[str] = ()


def open_run(path: Path) -> tuple[RunFolder, RunRecord]:
    """Return the folder of a run of `eval/run.py`, and its record.

    Raises:
        UserError: It holds none.
    """
    folder = RunFolder(path, remedy="give the folder of a run of eval/run.py")
    record = folder.read_record(RunRecord)
    if record is None:
        raise UserError(f"{path} holds no run; give the folder of one")
    return folder, record


def read_inputs(folder: RunFolder, record: RunRecord) -> RunInputs:
    """Return what scoring needs, predictions in the journal of an interrupted run included.

    Raises:
        UserError: Something is missing.
    """
    journal = folder.read_journal(Prediction)
    dropped = journal.describe()
    inputs = gather_inputs(folder.path, record, journal.lines, folder.read_examples(), folder.read_documents())
    if not dropped:
        return inputs
    return replace(inputs, notes=[*inputs.notes, f"{dropped[0].upper()}{dropped[1:]}."], dropped=dropped)


def gather_inputs(
    path: Path,
    record: RunRecord,
    lines: Mapping[Key, Prediction],
    examples: Sequence[ExampleRecord],
    documents: Sequence[DocumentRecord],
) -> RunInputs:
    """Return what scoring needs, once it is known to be complete.

    Args:
        path: The folder, for messages.
        record: `run.json`.
        lines: Predictions by key.
        examples: Lines of `examples.jsonl`.
        documents: Lines of `documents.jsonl.gz`.

    Raises:
        UserError: Something is missing.
    """
    if not lines:
        raise UserError(f"{path} has no predictions yet; the run's own command makes them")
    texts = {(one.task, one.document_id) for one in documents}
    known = {(one.task, one.id): one.document_id for one in examples}
    if bare := next((one for one in examples if not one.references), None):
        raise UserError(f"{path / 'examples.jsonl'}: example '{bare.id}' has no reference; restore the file")
    for (task, template, name, _), line in lines.items():
        shown = None if line.window is None else line.window.document_id
        needed = {(task, known.get((task, name))), *([(task, shown)] if shown is not None else [])}
        if not needed <= texts:
            raise UserError(
                f"{path} lacks the document of {name}, as runs of earlier versions do; make the run again with "
                "--overwrite"
            )
        if task not in record.tasks or template not in record.tasks[task].templates:
            raise UserError(f"{path / 'run.json'} knows no template '{template}' of task '{task}'; it was changed")
    order = keys_of(record, examples)
    predictions = in_order(lines, order)
    notes = list(_reuse(predictions))
    num_absent = sum(key not in lines for key in order)
    if num_absent:
        notes.append(describe_absent(record, num_absent))
    notes += notes_on_tasks(record.tasks, Counter(one.task for one in examples))
    if by_first_line := [name for name, task in record.tasks.items() if task.scores_first_line]:
        notes.append(
            f"Scored by the first line of each answer, as the benchmark does: {', '.join(by_first_line)}. Texts that "
            "are shown are whole."
        )
    thinking = list(describe_thinking(predictions, record))
    repeated = list(repeated_documents(examples, documents))
    return RunInputs(
        record=record,
        predictions=predictions,
        examples=examples,
        documents=documents,
        num_absent=num_absent,
        notes=[*notes, *thinking, *repeated],
        thinking=thinking,
        repeated=repeated,
    )


def describe_absent(record: RunRecord, num_absent: int) -> str:
    """Return why a run has no answer to some of its prompts, in a sentence."""
    # A later session without --until, which answers the rest, may be interrupted itself.
    if record.config.get("until") and record.until is not None and record.until.stopped is not None:
        return f"Left out: {num_absent} predictions about documents that --until did not come to."
    return f"Not there yet: {num_absent} predictions of a run that was interrupted."


def repeated_documents(examples: Sequence[ExampleRecord], documents: Sequence[DocumentRecord]) -> Iterator[str]:
    """Yield, for each task in which one text stands under several names, that it does; clusters may hold it."""
    units = {(one.task, one.document_id): one.unit for one in examples}
    names: dict[tuple[str, str], dict[Unit, str]] = defaultdict(dict)
    for one in documents:
        unit = units.get((one.task, one.document_id))
        if unit is not None and (words := " ".join(one.text.split())):
            names[one.task, sha256(words)].setdefault(unit, one.document_id)
    by_task: dict[str, list[list[str]]] = defaultdict(list)
    for (task, _), same in names.items():
        if len(same) > 1:
            by_task[task].append(list(same.values()))
    for task, groups in by_task.items():
        first, second = groups[0][:2]
        yield (
            f"{sum(map(len, groups)) - len(groups)} documents of {task} are copies of others under another id, such as "
            f"'{first}' and '{second}'; intervals count each as evidence of its own: take copies out of the data."
        )


def answer_of(prediction: Prediction, think_end_token: str | None) -> Prediction:
    """Return a prediction with the part of its texts that is scored."""
    if think_end_token is None:
        return prediction
    answers = [
        replace(
            one,
            text="" if is_unfinished(one.text, think_end_token) else one.text.rpartition(think_end_token)[2].strip(),
        )
        for one in prediction.answers
    ]
    return replace(prediction, text=answers[0].text, samples=prediction.samples and answers)


def _reuse(predictions: Sequence[Prediction]) -> Iterator[str]:
    """Yield what shared prefixes saved, in a sentence, where the engine tells."""
    requested = sum(one.prompt_tokens for one in predictions)
    prefilled = [one.prefilled_tokens for one in predictions if one.prefilled_tokens is not None]
    if len(prefilled) == len(predictions):
        share = sum(prefilled) / max(requested, 1)
        yield f"Prefilled: {sum(prefilled):,} tokens of {requested:,} asked for ({share:.2f})."


def notes_on_tasks(tasks: Mapping[str, Any], counts: Mapping[str, int]) -> Iterator[str]:
    """Yield how each task's documents were selected, and what was left out, in sentences.

    Args:
        tasks: Records by name, each with `rows`, `limit`, `sample` and `min_words`.
        counts: Number of examples of each task, for folders whose `rows` do not tell.
    """
    for name, task in tasks.items():
        rows = task.rows
        yield from describe_selection(name, task, counts.get(name, 0))
        if num_short := rows.get("num_short", 0):
            yield (
                f"{num_short:,} examples of {name} were left out: their documents have fewer than "
                f"{task.min_words:,} words."
            )
        if num_few := rows.get("num_few_tokens", 0):
            yield f"{num_few:,} documents of {name} were left out: they have fewer than {task.min_tokens:,} tokens."
        if num_bad := rows.get("num_bad", 0):
            first = f" The first: {rows['bad'][0]}." if rows.get("bad") else ""
            yield f"{num_bad} rows of {name} could not be used and were skipped.{first}"
        if shots := getattr(task, "shots", None):
            yield (
                f"Each prompt of {name} begins with solved examples of split {shots['split']} "
                f"({len(shots['ids'])}), whose documents are not scored."
            )


_MAX_STRATA = 12


def describe_selection(name: str, task: Any, count: int) -> Iterator[str]:
    """Yield which documents of a task were taken, in a sentence, where not all were; arguments as above."""
    strata = task.rows.get("strata", {})
    if task.sample is not None:
        kept = [f"{stratum} {drawn} of {read}" for stratum, (drawn, read) in strata.items()]
        num_drawn = task.rows.get("num_documents", task.sample)  # which folders of earlier versions do not tell
        chosen = f"A sample of {name}: {num_drawn:,} documents drawn with seed {task.sample_seed}"
        if scan := task.source.get("scan"):
            chosen += f" from the first {scan:,} rows"
        if num_drawn < task.sample:
            chosen = (
                f"All {num_drawn:,} documents of {name} that can be drawn, fewer than the {task.sample:,} of --sample"
            )
    elif task.limit is not None and task.rows.get("num_examples", count) >= task.limit:
        kept = [f"{stratum} {drawn}" for stratum, (drawn, _) in strata.items() if drawn]
        chosen = f"The first {task.limit:,} examples of {name}, in its order and not drawn at random: --sample draws"
    else:
        return
    rest = [f"and {len(kept) - _MAX_STRATA} more"] if len(kept) > _MAX_STRATA else []
    yield f"{chosen}{'; documents by kind: ' if kept else ''}{', '.join([*kept[:_MAX_STRATA], *rest])}."
