"""SQuALITY, EIPs and LongBench v2: what their files become, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from eval.metrics.longbench import score_choice
from eval.prompting.prompts import PromptBuilder
from tasks import TASKS, DataError, LoadedExamples, LoadRequest
from tests.helpers.official_files import as_lines, sample_records, write_official
from tests.helpers.tiny_models import tiny_tokenizer

SHARED = Path(__file__).parents[3] / "shared" / "data"


def load(task: str, data: Path | None, split: str = "test", **options: Any) -> LoadedExamples:
    return TASKS[task].load(LoadRequest(split=split, data=data, **options))


def changed(task: str, folder: Path, change: Mapping[str, Any]) -> Path:
    return write_official(task, folder, as_lines([{**sample_records(task)[0], **change}]))


def test_squality_has_a_question_an_example_with_all_of_its_references(tmp_path: Path) -> None:
    examples = load("squality", write_official("squality", tmp_path)).examples
    assert [example.id for example in examples] == ["72-1", "72-2", "73-1", "73-2"]
    assert [example.document_id for example in examples] == ["72", "72", "73", "73"]
    assert examples[0].query == "What happens?"
    assert examples[0].references == ("Rain, one.", "Rain, two.")
    hidden = [{"question_text": "Why?", "question_number": 1, "responses": []}]
    with pytest.raises(DataError, match=r"line 1, questions\[0\]: field 'responses' is empty; the references"):
        load("squality", changed("squality", tmp_path, {"questions": hidden}))
    with pytest.raises(DataError, match=r"field 'passage_id' is missing or empty"):
        load("squality", changed("squality", tmp_path, {"metadata": {}}))
    with pytest.raises(DataError, match=r"squality has no data of its own; give --data the folder of train\.jsonl"):
        load("squality", None)


PROPOSAL = """---
eip: {number}
title: Rivers
created: {created}
---

## Abstract

{abstract}

## Motivation

{body}
"""


def clone(folder: Path) -> Path:
    (folder / "EIPS").mkdir(parents=True)
    long = {"abstract": "The river rose again. " * 12, "body": "The bridge was closed. " * 300}
    for number, created, change in (
        (1, "2015-10-27", {}),
        (20, "2024-02-01", {}),
        (100, "2025-01-31", {}),
        (101, "2026-01-31", {}),
        (102, "2026-02-01", {"abstract": "Too short."}),
        (103, "2026-02-01", {"body": "Too short."}),
    ):
        file = folder / "EIPS" / f"eip-{number}.md"
        file.write_text(PROPOSAL.format(number=number, created=created, **{**long, **change}))
    (folder / "EIPS" / "eip-104.md").write_text("No head and no abstract.\n")
    return folder


def test_proposals_of_a_clone_are_split_by_the_year_they_were_created(tmp_path: Path) -> None:
    data = clone(tmp_path / "EIPs")
    found = {split: load("eips", data, split) for split in ("train", "validation", "test")}
    ids = {split: [example.id for example in loaded.examples] for split, loaded in found.items()}
    assert ids == {"train": ["eip-1"], "validation": ["eip-20"], "test": ["eip-100", "eip-101"]}
    assert found["test"].strata == {"2025": [1, 1], "2026": [1, 1]}
    assert found["test"].provenance["num_skipped"] == 5
    example = found["test"].examples[0]
    assert example.references == (("The river rose again. " * 12).strip(),)
    assert example.context.startswith("## Motivation\n\nThe bridge was closed.")
    assert "river" not in example.context
    assert load("eips", data / "EIPS").examples == found["test"].examples


def test_proposals_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 1: field 'created' is 'May 2025'; expected a date such as"):
        load("eips", changed("eips", tmp_path, {"created": "May 2025"}))
    with pytest.raises(DataError, match="eips has no data of its own; give --data a clone"):
        load("eips", None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty holds no \.md file; give --data a clone"):
        load("eips", tmp_path / "empty")
    data = clone(tmp_path / "EIPs")
    (data / "EIPS" / "eip-105.md").write_bytes(b"---\ntitle: \xff\n---\n")
    with pytest.raises(DataError, match="UTF-8"):
        load("eips", data)
    assert len(load("eips", data, on_bad_row="skip").examples) == 2


def test_longbench_2_asks_and_scores_as_its_own_code_does(tmp_path: Path) -> None:
    example = load("longbench2", write_official("longbench2", tmp_path)).examples[0]
    template = TASKS["longbench2"].templates["longbench"]
    prompt = PromptBuilder(tiny_tokenizer(), template).text(example.query, example.context, is_turn=True)
    # What `get_pred` of pred.py at 2e00731 makes of this record with prompts/0shot.txt.
    assert prompt == (
        "Please read the following text and answer the question below.\n\n<text>\n"
        "It rained for 2 days. The river rose, and the bridge was closed.\n</text>\n\n"
        "What is the correct answer to this question: What was closed?\nChoices:\n"
        "(A) the gate\n(B) the bridge\n(C) the mill\n(D) nothing\n\nFormat your response as follows: "
        '"The correct answer is (insert answer here)".'
    )
    assert example.references == ("B",)
    assert example.stratum == "easy, short"
    for text, right in {
        "The correct answer is (B).": 1,
        " **The correct answer is B**": 1,
        "The correct answer is (A). No: The correct answer is (B)": 0,
        "The correct answer is A, not The correct answer is (B)": 1,  # the form with brackets counts first
        "B": 0,
        "the correct answer is (B)": 0,
        "": 0,
    }.items():
        assert score_choice(text, ["B"]) == [{"accuracy": right}], text
    with pytest.raises(DataError, match="field 'answer' is 'E'; expected A, B, C, D"):
        load("longbench2", changed("longbench2", tmp_path, {"answer": "E"}))


@pytest.mark.parametrize(
    ("task", "split", "file", "count"),
    [("squality", "validation", "squality", 125), ("eips", "test", "eips/eips.jsonl", 92)],
)
def test_real_files(task: str, split: str, file: str, count: int) -> None:
    if not (SHARED / file).exists():
        pytest.skip(f"{SHARED / file} is not here")
    examples = load(task, SHARED / file, split).examples
    assert len(examples) == count
    assert {len(example.references) for example in examples} == {4 if task == "squality" else 1}
