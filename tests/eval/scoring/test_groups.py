"""Scores of the groups that a task's publishers report apart."""

from __future__ import annotations

from dataclasses import replace

import pytest

from eval.records.schema import DocumentRecord
from eval.reporting.tables import group_table
from eval.scoring.examples import score_examples
from eval.scoring.groups import scores_by_group
from tests.helpers.run_folders import document, example_line, prediction_line

TASK = {"plos": "longbench_choice"}
EXAMPLES = [
    replace(example_line(index), references=["A"], groups=groups)
    for index, groups in enumerate((["easy", "short"], ["easy", "long"], ["hard", "long"], None))
]
ANSWERS = ("The correct answer is (A)", "The correct answer is (B)", "The correct answer is A", "(A)")


def test_an_example_counts_in_each_of_its_groups_and_baselines_in_none() -> None:
    predictions = [
        prediction_line(example, maxlen, text if maxlen == 100 else ANSWERS[0], 1_000)
        for example, text in zip(EXAMPLES, ANSWERS, strict=True)
        for maxlen in (100, 200)
    ]
    documents = [
        DocumentRecord(task="plos", document_id=one.document_id, text=document(index))
        for index, one in enumerate(EXAMPLES)
    ]
    scored = score_examples(predictions, EXAMPLES, documents, TASK, "a model").scored
    assert any(not one.is_model for one in scored)
    groups = scores_by_group(scored, EXAMPLES)
    found = {(one.maxlen, one.group): (one.metrics["accuracy"].mean, one.num_examples) for one in groups}
    assert found == {
        (100, "easy"): (0.5, 2),
        (100, "hard"): (1.0, 1),
        (100, "long"): (0.5, 2),
        (100, "short"): (1.0, 1),
        **{(200, name): (1.0, count) for name, count in (("easy", 2), ("hard", 1), ("long", 2), ("short", 1))},
    }
    assert group_table(groups)[:2] == [
        ["group", "n", "metric", "100", "200"],
        ["easy", "2", "accuracy", "50.00", "100.00"],
    ]


@pytest.mark.parametrize("groups", [None, []])
def test_a_task_without_groups_has_no_scores_of_any(groups: list[str] | None) -> None:
    example = replace(EXAMPLES[0], groups=groups)
    documents = [DocumentRecord(task="plos", document_id=example.document_id, text=document(0))]
    scored = score_examples([prediction_line(example, 100, "(A)", 1_000)], [example], documents, TASK, "a model").scored
    assert scores_by_group(scored, [example]) == []
