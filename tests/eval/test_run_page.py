"""The report of a run: its page holds what the folder has, its plots are drawn."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from eval.page import PAGE_BYTES
from eval.report import quality_table
from eval.run_page import as_table, gather_samples
from eval.score import main as score
from tests.eval.test_score import half
from tests.run_folders import document, example_line, prediction_line, write_run


def test_the_report_and_the_plots_are_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, half)
    assert score([str(tmp_path)]) == 0
    assert "| 100 | model | 6 | " in (tmp_path / "report.md").read_text()
    page = (tmp_path / "report.html").read_text()
    assert document(3, 20)[:40] in page
    for title in ("R1 over length", "RLsum against attention operations", "Where the oracle", "Comparisons: plos"):
        assert title in page
    names = {file.name for file in (tmp_path / "plots").iterdir()}
    for name in ("length-rouge1", "cost-seconds", "positions"):
        assert {f"plos-instruct-{name}.png", f"plos-instruct-{name}.svg"} <= names
    assert (tmp_path / "plots" / "plos-instruct-positions.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "plots" / "plos-instruct-positions.svg").read_text().startswith("<svg")


def test_tables_sort_by_their_first_number() -> None:
    table = as_table("a", [["name", "score", "cost"], ["b", "12.50 [3.1, 20.2]", "1,024"], ["a", "-", "7"]])
    assert [column.is_number for column in table.columns] == [False, True, True]
    assert [[cell.sort for cell in row] for row in table.rows] == [["b", 12.5, 1024], ["a", None, 7]]


def test_samples_carry_scores_costs_and_what_was_shown(tmp_path: Path) -> None:
    write_run(tmp_path, half)
    assert score([str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    found = re.search(r'<script type="application/json" id="sample-data">(.*?)</script>', page, re.DOTALL)
    assert found
    samples = json.loads(found.group(1))
    assert [example["id"] for example in samples["examples"]] == [f"test-{i}" for i in range(6)]
    answer = samples["examples"][5]["answers"][1]
    assert (answer["maxlen"], answer["kept"], answer["scores"]["rouge1"]) == (200, [[0, 400]], 1)


def samples_of(num_documents: int, num_characters: int, *, with_texts: bool) -> dict[str, Any]:
    text = (document(1, 40) * (num_characters // 1000))[:num_characters]
    examples = [example_line(index) for index in range(num_documents)]
    predictions = [
        prediction_line(example, maxlen, "an answer", len(text)) for example in examples for maxlen in (100, 200)
    ]
    lines = [
        {name: line[name] for name in ("task", "template", "id", "maxlen")}
        | {"system": system, "is_model": system == "tiny", "metrics": {"rouge1": 0.5}}
        | ({"sentences": [[20, 90]]} if system == "visible_oracle" else {})
        for line in predictions
        for system in ("tiny", "visible_oracle")
    ]
    documents = [{"task": "plos", "document_id": line["document_id"], "text": text} for line in examples]
    return gather_samples(lines, predictions, examples, documents, with_texts=with_texts)


def test_documents_that_do_not_fit_the_page_are_shown_around_what_matters() -> None:
    samples = samples_of(300, 60_000, with_texts=True)
    assert len(json.dumps(samples)) < PAGE_BYTES
    (start, first), *_ = samples["documents"]["plos/doc-0"]["pieces"]
    assert start == 0
    assert len(first) > 400  # both cuts and the oracle's sentence
    small = samples_of(3, 60_000, with_texts=True)
    assert len(small["documents"]["plos/doc-0"]["text"]) == 60_000


def test_samples_without_texts_hold_none() -> None:
    samples = samples_of(3, 2_000, with_texts=False)
    for example in samples["examples"]:
        assert (example["query"], example["references"]) == (None, None)
        assert [answer["text"] for answer in example["answers"]] == [None, None]
    assert samples["documents"]["plos/doc-0"] == {"text": None, "length": 2_000, "pieces": []}


def test_a_table_of_one_length_has_the_model_above_its_yardsticks() -> None:
    estimate = {"mean": 0.5, "low": 0.4, "high": 0.6}
    common = {
        "maxlen": 1024,
        "num_examples": 4,
        "num_documents": 2,
        "num_truncated": 3,
        "metrics": {"rouge1": estimate},
    }
    results = [
        {"kind": "yardstick", "system": "lead", "evidence_visible": None, **common},
        {"kind": "yardstick", "system": "visible_oracle", "evidence_visible": None, **common},
        {"kind": "model", "system": "m", "evidence_visible": estimate | {"num_examples": 4}, **common},
    ]
    assert quality_table(results) == [
        ["maxlen", "", "n", "cut", "R1", "evidence %"],
        ["1,024", "model", "4 (2)", "3", "50.00 [40.0, 60.0]", "50.0 [40.0, 60.0]"],
        ["1,024", "visible oracle", "", "", "50.00 [40.0, 60.0]", ""],
        ["1,024", "lead", "", "", "50.00 [40.0, 60.0]", ""],
    ]
