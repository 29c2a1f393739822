"""Small run folders written by hand, for tests of what reads them: no model, no generation."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval.records.run_folder import RunFolder
from eval.records.schema import (
    DocumentRecord,
    ExampleRecord,
    Grouping,
    Identity,
    Machine,
    ModelRecord,
    Prediction,
    Result,
    RunRecord,
    Scores,
    Session,
    TaskRecord,
    TemplateRecord,
)
from eval.records.typed import from_json

WORDS = [
    "the",
    "model",
    "reads",
    "a",
    "long",
    "paper",
    "and",
    "finds",
    "what",
    "its",
    "authors",
    "say",
    "about",
    "attention",
    "over",
    "many",
    "tokens",
]
LENGTHS = (100, 200)


def sentence(seed: int, num_words: int = 8) -> str:
    return " ".join(WORDS[(seed * 7 + index * (seed + 3)) % len(WORDS)] for index in range(num_words)) + "."


def document(seed: int, num_sentences: int = 12) -> str:
    return " ".join(sentence(seed * 31 + index).capitalize() for index in range(num_sentences))


def example_line(index: int, **changes: Any) -> ExampleRecord:
    reference = f"{sentence(index * 31 + 2)} {sentence(index * 31 + 9)}"
    example = ExampleRecord(
        task="plos",
        id=f"test-{index}",
        document_id=f"doc-{index}",
        query=None,
        references=[reference],
        evidence=None,
    )
    return replace(example, **changes)


def prediction_line(example: ExampleRecord, maxlen: int, text: str, num_characters: int, **changes: Any) -> Prediction:
    """Return a prediction whose prompt showed two characters of the document for each token of maxlen."""
    kept = min(2 * maxlen, num_characters)
    prediction = Prediction(
        task=example.task,
        template="instruct",
        id=example.id,
        maxlen=maxlen,
        fingerprint=f"{example.id}-{maxlen}",
        text=text,
        prompt_tokens=maxlen,
        context_tokens_kept=kept,
        context_tokens_dropped=num_characters - kept,
        context_spans=[[0, kept]],
        num_generated_tokens=10,
        finish_reason="stop",
        seconds=3.0,
        prefill_seconds=2.0,
        decode_seconds=1.0,
        batch_size=2,
        group=0,
        truncation="head",
        cache_bytes=1000 * maxlen,
        attention_flops=10**9 * maxlen**2,
        prefilled_tokens=10,
        peak_bytes=2**30,
    )
    return replace(prediction, **changes)


def document_line(task: str, name: str, text: str) -> DocumentRecord:
    return DocumentRecord(task=task, document_id=name, text=text)


def without_checksums(text: str) -> str:
    """Return JSON lines as version 0.1 wrote them."""
    return re.sub(r', "crc32": "[0-9a-f]{8}"\}$', "}", text, flags=re.MULTILINE)


def read_scores(folder: Path) -> Scores:
    """Return `scores.json`."""
    return from_json(Scores, json.loads((folder / "scores.json").read_text()), "scores.json")


def model_results(folder: Path) -> list[Result]:
    """Return the results of a scored folder that are a model's, about all of its examples."""
    return [one for one in read_scores(folder).results if (one.kind, one.subset) == ("model", "all")]


def run_record(
    tasks: Sequence[str] = ("plos",), lengths: Sequence[int] = LENGTHS, profile: str = "hf", **identity: Any
) -> RunRecord:
    about = TaskRecord(
        description="paper -> abstract",
        version=1,
        licence="CC BY",
        source={"kind": "package", "name": "allofplos", "version": "0"},
        split="test",
        templates={"instruct": TemplateRecord(text="Summarize: {context}", prompt_sha256="0")},
        profile=profile,
        max_new_tokens=16,
        limit=None,
        maxlen=list(lengths),
    )
    session = Session(
        started="2026-01-01T00:00:00+00:00",
        finished="2026-01-01T00:01:00+00:00",
        command=["--task", "plos"],
        world_size=1,
        threads=1,
        machine=Machine(device="CPU (test)"),
        commit="0" * 40,
        dirty=False,
    )
    settings = Identity(
        model=ModelRecord(reference="tiny", source="folder"), plan=None, dtype="float32", truncation="head"
    )
    return RunRecord(
        config={"shard": None},
        plan_description="full",
        world_size=1,
        identity=replace(settings, **identity),
        tasks=dict.fromkeys(tasks, about),
        sessions=[session],
        grouping=Grouping(num_shares=1, batch_size=16, memory_budget=1),
    )


def with_task(record: RunRecord, task: str = "plos", **changes: Any) -> RunRecord:
    """Return a record with other settings of one task."""
    return replace(record, tasks={**record.tasks, task: replace(record.tasks[task], **changes)})


def with_session(record: RunRecord, **changes: Any) -> RunRecord:
    """Return a record with other values of its first session."""
    first, *others = record.sessions
    return replace(record, sessions=[replace(first, **changes), *others])


def write_run(
    path: Path,
    answer: Callable[[ExampleRecord, int], str],
    examples: Sequence[ExampleRecord] | None = None,
    documents: Mapping[str, str] | None = None,
    record: RunRecord | None = None,
) -> RunFolder:
    """Write a run that has ended and was not scored.

    Args:
        path: The folder.
        answer: Returns the text of a prediction for an example and a maxlen.
        examples: Six of `example_line` by default.
        documents: Texts by document id; those of `document` by default.
        record: `run.json`; that of `run_record` by default.
    """
    examples = [example_line(index) for index in range(6)] if examples is None else examples
    record = record or run_record()
    tasks = {one.document_id: one.task for one in examples}
    # The first two documents are short, so that the greatest length shows all of them.
    texts = documents or {name: document(index, 3 if index < 2 else 20) for index, name in enumerate(sorted(tasks))}
    folder = RunFolder(path)
    folder.write_json("run.json", record)
    folder.write_lines("examples.jsonl", examples)
    folder.write_documents(document_line(tasks[name], name, text) for name, text in texts.items() if name in tasks)
    folder.write_lines(
        "predictions.jsonl",
        [
            prediction_line(one, maxlen, answer(one, maxlen), len(texts[one.document_id]))
            for one in examples
            for maxlen in record.tasks[one.task].maxlen
        ],
    )
    return folder
