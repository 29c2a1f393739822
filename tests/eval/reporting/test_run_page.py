"""The report of a run: its page holds what the folder has, its plots are drawn."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from eval.records.read_run import RunInputs
from eval.records.schema import ExampleScore, Sample, Share, ThinkingRecord
from eval.reporting.page import PAGE_BYTES, RESERVE_BYTES, as_table
from eval.reporting.samples import gather_samples, that_fit
from eval.reporting.tables import quality_table
from eval.score import main as score
from tests.eval.test_score import half, write_mixed
from tests.helpers.browser import chromium, open_page
from tests.helpers.records import result
from tests.helpers.run_folders import document, document_line, example_line, prediction_line, run_record, write_run


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with its report and plots, to read alone."""
    folder = tmp_path_factory.mktemp("scored") / "run"
    folder.mkdir()
    write_run(folder, half)
    assert score([str(folder)]) == 0
    return folder


def test_the_report_and_the_plots_are_there(scored: Path) -> None:
    assert "| 100 | model | 6 | " in (scored / "report.md").read_text()
    page = (scored / "report.html").read_text()
    assert document(3, 20)[:40] in page
    for title in ("R1 over length", "RLsum against attention per example", "Where the oracle", "Comparisons: plos"):
        assert title in page
    names = {file.name for file in (scored / "plots").iterdir()}
    for name in ("finding", "length-rouge1", "cost-seconds", "positions"):
        assert {f"plos-instruct-{name}.png", f"plos-instruct-{name}.svg"} <= names
    assert "](plots/plos-instruct-finding.svg)" in (scored / "report.md").read_text()
    assert (scored / "plots" / "plos-instruct-positions.png").read_bytes().startswith(b"\x89PNG")
    assert (scored / "plots" / "plos-instruct-positions.svg").read_text().startswith("<svg")


def test_tables_sort_by_their_first_number() -> None:
    table = as_table("a", [["name", "score", "cost"], ["b", "12.50 [3.1, 20.2]", "1,024"], ["a", "-", "7"]])
    assert [column.is_number for column in table.columns] == [False, True, True]
    assert [[cell.sort for cell in row] for row in table.rows] == [["b", 12.5, 1024], ["a", None, 7]]


def test_samples_carry_scores_costs_and_what_was_shown(scored: Path) -> None:
    page = (scored / "report.html").read_text()
    found = re.search(r'<script type="application/json" id="sample-data">(.*?)</script>', page, re.DOTALL)
    assert found
    samples = json.loads(found.group(1))
    assert [example["id"] for example in samples["examples"]] == [f"test-{i}" for i in range(6)]
    answer = samples["examples"][5]["answers"][1]
    assert (answer["maxlen"], answer["kept"], answer["scores"]["rouge1"]) == (200, [[0, 400]], 1)


THOUGHT = "It was </script> long."


@pytest.fixture
def thoughtful(tmp_path: Path, no_plots: None) -> Path:
    """A scored run with a thought before each answer."""
    folder = tmp_path / "run"
    folder.mkdir()
    made = write_run(folder, half, record=run_record(thinking=ThinkingRecord(start="<t>", end="</t>", max_tokens=9)))
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    about = {"thought": THOUGHT, "num_thought_tokens": 7, "thought_finish_reason": "stop"}
    lines = [line | about for line in lines]
    lines[0]["thought_finish_reason"] = "length"
    lines[1] |= {"thought_finish_reason": "turn", "text": ""}
    made.write_lines("predictions.jsonl", lines)
    assert score([str(folder)]) == 0
    return folder


def test_thoughts_are_counted_in_tables_and_samples(thoughtful: Path) -> None:
    page, report = (thoughtful / "report.html").read_text(), (thoughtful / "report.md").read_text()
    assert "12 of 12 answers have one, 7 tokens in the median, 1 (8%) cut off after 9 tokens, 1 never ended" in report
    assert re.search(r"\| thought tok \|\n.*\n\| 100 \|.* 7 \|", report)
    found = re.search(r'<script type="application/json" id="sample-data">(.*?)</script>', page, re.DOTALL)
    assert found
    samples = json.loads(found.group(1))
    assert samples["columns"][-1]["key"] == "num_thought_tokens"
    assert samples["examples"][0]["answers"][0]["thought"] == THOUGHT


def test_a_thought_is_folded_above_its_answer(thoughtful: Path) -> None:
    with chromium() as browser:
        opened = open_page(browser, thoughtful / "report.html")
        first = opened.page.locator(".thought").first
        assert first.locator("summary").text_content() == "Thought, 7 tokens, not scored"
        assert not first.locator("p").is_visible()
        first.locator("summary").click()
        assert first.locator("p").text_content() == THOUGHT
        assert opened.complaints == []


def samples_of(
    num_documents: int, num_characters: int, *, with_texts: bool, answer: str = "an answer", **changes: Any
) -> Any:
    text = (document(1, 40) * (num_characters // 1000))[:num_characters]
    examples = [example_line(index) for index in range(num_documents)]
    predictions = [
        prediction_line(example, maxlen, answer, len(text), **changes) for example in examples for maxlen in (100, 200)
    ]
    lines = [
        ExampleScore(
            task="plos",
            template="instruct",
            id=one.id,
            document_id=one.id.replace("test", "doc"),
            maxlen=one.maxlen,
            system=system,
            is_truncated=True,
            is_model=system == "tiny",
            metrics={"rouge1": 0.5},
            sentences=[[20, 90]] if system == "visible_oracle" else None,
        )
        for one in predictions
        for system in ("tiny", "visible_oracle")
    ]
    documents = [document_line("plos", example.document_id, text) for example in examples]
    inputs = RunInputs(
        record=run_record(), predictions=predictions, examples=examples, documents=documents, num_absent=0, notes=[]
    )
    return gather_samples(lines, inputs, {"plos": "hf"}, with_texts=with_texts)


def test_a_thought_is_shown_where_a_later_sample_alone_has_one() -> None:
    plain = Sample(text="a", num_generated_tokens=1, finish_reason="stop", num_thought_tokens=0)
    thoughtful = Sample(text="b", num_generated_tokens=4, finish_reason="stop", num_thought_tokens=3, thought="hm")
    shown = samples_of(1, 2_000, with_texts=True, samples=[plain, thoughtful], num_thought_tokens=3)
    assert shown["examples"][0]["answers"][0]["thought"] == "[sample 1 of 2]\n\n\n[sample 2 of 2]\nhm"


def test_documents_that_do_not_fit_the_page_are_shown_around_what_matters() -> None:
    samples = samples_of(300, 60_000, with_texts=True)
    assert len(json.dumps(samples)) < PAGE_BYTES
    (start, first), *_ = samples["documents"]["plos/doc-0"]["pieces"]
    assert start == 0
    assert len(first) > 400  # both cuts and the oracle's sentence
    assert (len(samples["examples"]), samples["note"]) == (300, "")
    small = samples_of(3, 60_000, with_texts=True)
    assert len(small["documents"]["plos/doc-0"]["text"]) == 60_000


def test_examples_that_do_not_fit_the_page_are_left_out_evenly_and_counted() -> None:
    samples = samples_of(1_000, 8_000, with_texts=True, answer="a long answer " * 700)
    assert len(json.dumps(samples)) < PAGE_BYTES
    kept = [int(example["id"].removeprefix("test-")) for example in samples["examples"]]
    assert samples["note"].startswith(f"{len(kept)} of 1,000 examples")
    assert 200 < len(kept) < 1_000
    assert kept[0] == 0
    assert kept[-1] > 990
    assert {samples["documents"][example["document"]]["length"] for example in samples["examples"]} == {8_000}
    assert all(document["pieces"] or document["text"] for document in samples["documents"].values())


def test_examples_of_uneven_size_fit_the_page_too() -> None:
    answers = ["short", "a long answer " * 1300]
    examples = [{"document": str(index), "answers": [answers[index % 2]]} for index in range(1_500)]
    kept = that_fit(examples)
    assert 100 < len(kept) < 1_000
    assert len(json.dumps(kept)) + 2_000 * len(kept) < PAGE_BYTES - RESERVE_BYTES


def test_plots_of_earlier_scores_go_and_those_of_others_stay(scored: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(scored, folder)
    (folder / "plots" / "mine.png").write_bytes(b"")
    assert score([str(folder), "--profile", "longbench"]) == 0
    names = {file.name for file in (folder / "plots").iterdir()}
    assert "mine.png" in names
    assert {name for name in names if "length" in name} == {
        "plos-instruct-length-rougeL.png",
        "plos-instruct-length-rougeL.svg",
    }


@pytest.mark.usefixtures("no_plots")
def test_the_page_of_a_few_documents_says_that_there_are_no_intervals(tmp_path: Path) -> None:
    write_run(tmp_path, half, [example_line(index) for index in range(3)])
    assert score([str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "95% bootstrap" not in page.split("What the columns mean")[0]
    assert "no intervals: fewer than 6 documents" in page
    with chromium() as browser:
        opened = open_page(browser, tmp_path / "report.html")
        assert opened.complaints == []
        assert len(opened.requests) == 1


def test_samples_without_texts_hold_none() -> None:
    samples = samples_of(3, 2_000, with_texts=False)
    for example in samples["examples"]:
        assert (example["query"], example["references"]) == (None, None)
        assert [answer["text"] for answer in example["answers"]] == [None, None]
    assert samples["documents"]["plos/doc-0"] == {"text": None, "length": 2_000, "pieces": []}


def test_a_table_of_one_length_has_the_model_above_its_yardsticks() -> None:
    share = Share(mean=0.5, low=0.4, high=0.6, num_examples=4)
    counts = {"num_examples": 4, "num_documents": 2, "num_truncated": 3, "metrics": {"rouge1": share}}
    results = [
        result("lead", 1024, 0.5, kind="yardstick", **counts),
        result("visible_oracle", 1024, 0.5, kind="yardstick", **counts),
        result("m", 1024, 0.5, evidence_visible=share, **counts),
    ]
    assert quality_table(results) == [
        ["maxlen", "system", "n", "cut", "words", "by length", "R1", "evidence %"],
        ["1,024", "model", "4 (2)", "3", "95", "25%", "50.00 [40.0, 60.0]", "50.0 [40.0, 60.0]"],
        ["1,024", "visible oracle", "", "", "95", "", "50.00 [40.0, 60.0]", ""],
        ["1,024", "lead", "", "", "95", "", "50.00 [40.0, 60.0]", ""],
    ]


def test_the_page_of_several_profiles_shows_each_task_its_own_metrics(tmp_path: Path) -> None:
    write_mixed(tmp_path)
    assert score([str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    for title in ("F1 over length", "exact match over length", "RLsum over length", "F1 \u00d7 100 (f1)"):
        assert title in page
    assert (tmp_path / "plots" / "qasper-instruct-length-exact_match.png").exists()
    with chromium() as browser:
        opened = open_page(browser, tmp_path / "report.html")
        opened.page.locator(".controls select").last.select_option("run")
        scores = opened.page.locator(".list .item .score")
        # Half of the words at the smallest length and all of them at the greatest, which is shown first.
        assert set(scores.all_inner_texts()) == {"100.0"}
        headers = opened.page.locator(".sample table th[scope=col]")
        assert headers.all_inner_texts()[1:5] == ["R1", "R2", "RL", "RLsum"]
        opened.page.locator(".controls select").first.select_option("qasper")
        assert headers.all_inner_texts()[1:3] == ["F1", "exact match"]
        assert opened.complaints == []
