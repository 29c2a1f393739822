"""What a session adds to a folder: nothing that is there is lost, and what is new comes after it."""

from __future__ import annotations

from dataclasses import replace

from eval.records.merging import merge_documents, merge_examples, merge_tasks, pinned, row_counts
from eval.records.schema import DocumentRecord, DocumentsTask, TemplateRecord
from tasks import Example, LoadedExamples
from tests.helpers.run_folders import document_line, example_line, run_record

TASK = run_record(lengths=[200, 100]).tasks["plos"]


def loaded(*numbers: int) -> dict[str, LoadedExamples]:
    examples = tuple(
        Example(
            id=f"test-{n}",
            document_id=f"doc-{n}",
            context=f"text {n}",
            references=("answer",),
            evidence=((0, 4),),
        )
        for n in numbers
    )
    return {"plos": LoadedExamples(examples=examples, provenance={})}


def test_lengths_and_templates_of_a_task_grow() -> None:
    added = replace(TASK, maxlen=[400, 100], templates={"other": TemplateRecord(text="{context}")}, limit=9)
    merged = merge_tasks({"plos": TASK}, {"plos": added, "qmsum": TASK})
    assert merged["qmsum"] == TASK
    assert merged["plos"].maxlen == [100, 200, 400]
    assert list(merged["plos"].templates) == ["instruct", "other"]
    assert merged["plos"].limit == 9, "the latest setting holds"


def test_tasks_without_templates_grow_too() -> None:
    saved = DocumentsTask(version=1, source={}, split=None, limit=None, maxlen=[100])
    assert merge_tasks({"text": saved}, {"text": replace(saved, maxlen=[50])})["text"].maxlen == [50, 100]


def test_examples_are_replaced_in_their_place_and_new_ones_follow() -> None:
    saved = [example_line(0), example_line(1)]
    merged = merge_examples(saved, loaded(2, 1))
    assert [one.id for one in merged] == ["test-0", "test-1", "test-2"]
    assert merged[0] == saved[0]
    assert (merged[1].references, merged[1].evidence) == (["answer"], [[0, 4]])


def test_documents_are_written_again_only_when_one_is_new() -> None:
    saved = [document_line("plos", f"doc-{n}", f"text {n}") for n in (0, 1)]
    assert merge_documents(saved, loaded(1, 0)) is None
    assert merge_documents(saved, loaded(1, 2)) == [
        *saved,
        DocumentRecord(task="plos", document_id="doc-2", text="text 2"),
    ]


def test_counts_of_rows_do_not_pin_data() -> None:
    provenance = {"kind": "file", "sha256": "1", "num_rows": 7, "num_bad": 1}
    assert pinned(provenance) == {"kind": "file", "sha256": "1"}
    read = LoadedExamples(examples=(), provenance=provenance)
    assert row_counts(read) == {"num_rows": 7, "num_bad": 1, "num_examples": 0, "num_documents": 0}
    assert row_counts(replace(read, strata={"pone": (1, 2)}))["strata"] == {"pone": [1, 2]}
