"""`eval.labels`: labels of some answers of a run, and its metrics of all."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from eval.labels import main
from eval.ratings.sheet import Scale, SheetFile, gather
from eval.score import main as score
from tests.helpers.run_folders import document, example_line, run_record, sentence, write_run

NUM_DOCUMENTS, NUM_LABELLED = 40, 12


def quality(name: str) -> int:
    """Return how many of four sentences an answer gets right."""
    return int(name.partition("-")[2]) * 7 % 5


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a scored run whose answers say from none to four sentences of their references."""
    sentences = {
        f"test-{index}": [sentence(index * 31 + place) for place in range(4)] for index in range(NUM_DOCUMENTS)
    }
    examples = [
        example_line(index, references=[" ".join(sentences[f"test-{index}"])]) for index in range(NUM_DOCUMENTS)
    ]

    def answer(example: Any, maxlen: int) -> str:
        right = sentences[example.id][: quality(example.id)]
        return " ".join([*right, *(f"x{place} y z w v u t s." for place in range(4 - len(right)))])

    documents = {f"doc-{index}": document(index) for index in range(NUM_DOCUMENTS)}
    path = tmp_path_factory.mktemp("labels") / "run"
    write_run(path, answer, examples, documents, run_record(lengths=(100,)))
    assert score([str(path)]) == 0
    return path


def write_labels(run: Path, file: Path, labels: list[tuple[str, Any]], column: str = "rating:overall") -> Path:
    """Write labels of examples, in the order given."""
    lines = map(json.loads, (run / "predictions.jsonl").read_text().splitlines())
    texts = {line["id"]: line["text"] for line in lines}
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "document_id", "system", "rater", "prediction", column])
        for rater, (name, value) in enumerate(labels):
            writer.writerow([name, name, "s", rater, f" {texts[name]}\n", value])
    return file


# From 0 to 100, near the share of sentences that are right.
LABELS = [(name, 25 * quality(name) + int(name[-1]) % 3) for name in map("test-{}".format, range(NUM_LABELLED))]


def test_a_metric_narrows_the_interval_of_people_s_mean(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_labels(run, tmp_path / "labels.csv", LABELS)
    assert main([str(run), "--labels", str(file), "--json"]) == 0
    rows = {row["metric"]: row["found"] for row in json.loads(capsys.readouterr().out)}
    found = rows["rouge1"]
    truth = sum(25 * quality(f"test-{index}") for index in range(NUM_DOCUMENTS)) / NUM_DOCUMENTS
    assert found["low"] < truth + 1 < found["high"]
    assert found["gain"] > 2
    assert (found["num_labels"], found["num_answers"], found["num_documents"]) == (NUM_LABELLED, NUM_DOCUMENTS, 12)
    assert found["labelled"][1] < found["low"] < found["high"] < found["labelled"][2]
    assert main([str(run), "--labels", str(file), "--metric", "rouge1"]) == 0
    out = capsys.readouterr().out
    assert "12 of 40 answers have a label" in out
    assert "rouge2" not in out


def test_several_people_count_by_their_mean_and_empty_cells_not_at_all(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = [("test-0", 1), ("test-1", 2), ("test-2", 3), ("test-2", 9), ("test-2", ""), ("test-3", None)]
    file = write_labels(run, tmp_path / "labels.csv", labels, "rating:mine")
    assert main([str(run), "--labels", str(file), "--rating", "mine", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["found"]["labelled"] == [3.0, None, None]


def test_one_answer_of_several_systems_counts_by_the_mean_of_all_labels(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_labels(run, tmp_path / "labels.csv", [("test-0", 5), ("test-0", 1), ("test-0", "")])
    lines = file.read_text().replace(",s,0,", ",s,,").replace(",s,1,", ",t,,").replace(",s,2,", ",u,,")
    file.write_text(lines)
    assert main([str(run), "--labels", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["found"]["labelled"] == [3.0, None, None]


@pytest.mark.parametrize(
    ("rating", "arguments", "message"),
    [
        ("", [], "is empty"),
        (" ", [], "holds no rating yet"),
        ("x", ["--rating", "mine"], "has no rating 'mine'; it has rating"),
        ("good", [], "rating rating is 'good'; give a number"),
        ("1", [], "has a label: id and prediction must be those of an answer"),
    ],
)
def test_a_mistake_is_one_line(
    rating: str, arguments: list[str], message: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "labels.csv"
    number = 1 if rating == "x" else rating
    file.write_text(f"id,document_id,system,prediction,rating\ntest-0,d,s,x,{number}\n" if rating else "")
    assert main([str(run), "--labels", str(file), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_metric_that_the_run_has_not_is_named(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_labels(run, tmp_path / "labels.csv", LABELS)
    assert main([str(run), "--labels", str(file), "--metric", "judge:mine.recall"]) == 2
    assert "has no metric 'judge:mine.recall'; known: rouge1" in capsys.readouterr().err


def test_a_rating_sheet_labels_the_answers_of_its_run(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(run, other)
    sheet = gather([run, other], [Scale(name="overall", low=1, high=5)], [], NUM_LABELLED, 0)
    file = SheetFile(tmp_path / "sheet.jsonl", sheet)
    for answer in sheet.answers:
        file.rate([answer], "anna", {"overall": 1 + quality(answer.id.rpartition("/")[2])})
    assert main([str(run), "--labels", str(tmp_path / "sheet.jsonl"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)[0]["found"]
    assert found["num_labels"] == NUM_LABELLED
    truth = sum(1 + quality(answer.id.rpartition("/")[2]) for answer in sheet.answers) / len(sheet.answers)
    assert found["labelled"][0] == pytest.approx(truth)
