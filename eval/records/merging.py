"""What a session adds to a folder: tasks, examples and documents that grow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from eval.records.schema import DocumentRecord, ExampleRecord
from tasks import LoadedExamples

Task = TypeVar("Task")


def merge_tasks(saved: Mapping[str, Task], tasks: Mapping[str, Task]) -> dict[str, Task]:
    """Return the tasks of two records, with the lengths and templates of both."""
    merged = dict(saved)
    for name, task in tasks.items():
        merged[name] = _merge(saved[name], task) if name in saved else task
    return merged


def _merge(saved: Any, task: Any) -> Any:
    changes: dict[str, Any] = {"maxlen": sorted({*task.maxlen, *saved.maxlen})}
    if hasattr(task, "templates"):
        changes["templates"] = saved.templates | task.templates
    return replace(task, **changes)


def merge_examples(saved: Sequence[ExampleRecord], loaded: Mapping[str, LoadedExamples]) -> list[ExampleRecord]:
    """Return the saved examples and the loaded ones."""
    lines = {(line.task, line.id): line for line in saved}
    for name, source in loaded.items():
        for example in source.examples:
            lines[name, example.id] = ExampleRecord(
                task=name,
                id=example.id,
                document_id=example.document_id,
                cluster_id=example.cluster_id,
                query=example.query,
                references=list(example.references),
                evidence=None if example.evidence is None else [list(span) for span in example.evidence],
                classes=list(example.classes) or None,
                groups=list(example.groups) or None,
            )
    return list(lines.values())


def merge_documents(
    saved: Sequence[DocumentRecord], loaded: Mapping[str, LoadedExamples]
) -> list[DocumentRecord] | None:
    """Return the saved documents and the loaded ones; None where all that is loaded is saved."""
    lines = {(line.task, line.document_id): line for line in saved}
    for name, source in loaded.items():
        for example in source.examples:
            line = DocumentRecord(task=name, document_id=example.document_id, text=example.context)
            lines.setdefault((name, example.document_id), line)
    return list(lines.values()) if len(lines) > len(saved) else None


def pinned(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a provenance that pins content; how many rows were read depends on the limit."""
    return {name: value for name, value in provenance.items() if not name.startswith("num_")}


def row_counts(loaded: LoadedExamples) -> dict[str, Any]:
    """Return the counts of rows in the provenance of examples, and those of examples and of documents by stratum."""
    counts = {name: value for name, value in loaded.provenance.items() if name.startswith("num_")}
    counts["num_examples"] = len(loaded.examples)
    counts["num_documents"] = len({example.document_id for example in loaded.examples})
    strata = {name: list(numbers) for name, numbers in loaded.strata.items()}
    return counts | ({"strata": strata} if strata else {})


def selection(config: Any) -> dict[str, int | None]:
    """Return the fields of a record that say how documents were drawn, from settings with `sample`."""
    return {"sample": config.sample, "sample_seed": None if config.sample is None else config.sample_seed}
