"""What intervals resample: clusters, documents in the inputs of SCROLLS, names and copies that are easily mistaken."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.leaderboard import main as leaderboard
from eval.records.read_run import repeated_documents
from eval.records.schema import ExampleRecord
from eval.score import main as score
from eval.scoring.claims import compare_paired, within_margin_of_best
from eval.scoring.significance import describe_range, mean_interval, ratio_of_perplexities
from tests.helpers.run_folders import document_line, example_line, model_results, run_record, write_run

pytestmark = pytest.mark.usefixtures("no_plots")

TURNS = "\n\n".join(f"A turn of meeting {{0}}, the {index} of all." for index in range(3))
LONG = "It goes on for a while. " * 5
INPUTS = {
    "qmsum": "What was said on point {1}?\n\n" + TURNS,
    "quality": "What of {1}?\n\n (A) {1}\n (B) b\n (C) c\n (D) d{1}\n\n\nA story.\n\nIt is the story {0}. " + LONG,
    "contract_nli": "Point {1} holds.\n\nContract {0}, without a blank line. " + LONG,
    "one line": "Document {0}, in which no question is asked.",
}


def write_items(folder: Path, rows: Sequence[dict[str, Any]]) -> list[str]:
    """Write right and wrong answers to the rows, and return the command that scores them."""
    answers = [{"id": row["id"], "prediction": "yes" if index % 3 else "no"} for index, row in enumerate(rows)]
    files = {"predictions": answers, "references": [row | {"output": "yes"} for row in rows]}
    for name, lines in files.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    named = [part for name in files for part in (f"--{name}", str(folder / f"{name}.jsonl"))]
    return [*named, "--profile", "exact_match"]


def result_of(folder: Path, rows: Sequence[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> Any:
    assert score(write_items(folder, rows)) == 0
    return json.loads(capsys.readouterr().out)["results"][0]


@pytest.mark.parametrize("kind", INPUTS)
def test_questions_of_scrolls_are_clustered_by_the_document_in_their_input(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"id": f"q{index}", "input": INPUTS[kind].format(index // 5, index % 5)} for index in range(40)]
    found = result_of(tmp_path, rows, capsys)
    assert (found["num_examples"], found["num_documents"]) == (40, 8)
    named = result_of(tmp_path, [{"id": row["id"], "document_id": f"{n // 5}"} for n, row in enumerate(rows)], capsys)
    assert found["metrics"] == named["metrics"]
    alone = result_of(tmp_path, [{"id": row["id"]} for row in rows], capsys)
    assert alone["num_documents"] == 40
    assert alone["metrics"] != found["metrics"]


@pytest.mark.parametrize(
    "template",
    [
        "What is {0}?\n\nAnswer with one phrase taken from the text above, and with nothing else.",
        "Translate sentence {0} into French.\n\nTranslation:",
        "Sort these words.",
        "Say it.\n\nIn {0} words.\n\nGo:",
    ],
)
def test_prompts_that_hold_no_document_are_items_by_themselves(
    template: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"id": f"q{index}", "input": template.format(index)} for index in range(12)]
    assert result_of(tmp_path, rows, capsys)["num_documents"] == 12


def test_a_note_says_that_items_share_a_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": f"q{n}", "input": f"Who is {n}?\n\nThe text of all the questions. {LONG}"} for n in range(12)]
    assert score(write_items(tmp_path, rows)) == 0
    assert "note: 12 items are about 1 document, by their `input`" in capsys.readouterr().err
    assert score(write_items(tmp_path, [row | {"document_id": row["id"]} for row in rows])) == 0
    assert "by their" not in capsys.readouterr().err


def test_a_name_says_more_than_an_input_and_a_cluster_more_than_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"id": f"q{index}", "input": "What?\n\nThe same.", "document_id": f"d{index // 2}"} for index in range(24)]
    assert result_of(tmp_path, rows, capsys)["num_documents"] == 12
    clustered = [row | {"cluster_id": f"{index // 4}"} for index, row in enumerate(rows)]
    found = result_of(tmp_path, clustered, capsys)
    by_cluster = result_of(tmp_path, [row | {"document_id": f"{n // 4}"} for n, row in enumerate(rows)], capsys)
    assert found["num_documents"] == 12
    assert found["metrics"] == by_cluster["metrics"]


def test_names_that_differ_by_nul_are_two_documents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # NumPy's own texts end before a NUL, so that both of a pair would be one.
    names = [name for letter in "abcdefgh" for name in (letter, f"{letter}\0")]
    scores = np.arange(16) / 16
    assert mean_interval(scores, names) == mean_interval(scores, range(16))
    paired = compare_paired(scores, scores[::-1], names)
    assert paired.num_documents == 16
    assert paired == compare_paired(scores, scores[::-1], range(16))
    systems = {"one": scores, "other": scores + 0.01}
    assert within_margin_of_best(systems, names, 0.5) == within_margin_of_best(systems, range(16), 0.5)
    for field in ("id", "document_id", "cluster_id"):
        rows = [{"id": f"q{index}"} | {field: name} for index, name in enumerate(names)]
        found = result_of(tmp_path, rows, capsys)
        assert (found["num_examples"], found["num_documents"]) == (16, 16)
        assert found["metrics"] == result_of(tmp_path, [{"id": f"q{n}"} for n in range(16)], capsys)["metrics"]


def test_texts_that_differ_by_nul_are_no_copies() -> None:
    examples = [example_line(index) for index in range(2)]
    texts = ["A text.\0", "A text."]
    lines = [document_line("plos", example.document_id, text) for example, text in zip(examples, texts, strict=True)]
    assert list(repeated_documents(examples, lines)) == []


def test_copies_under_another_id_are_told_unless_a_cluster_holds_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    examples = [example_line(index, document_id=f"d{index}") for index in range(4)]
    texts = ["The same  text.", "The same\ntext. ", "Another text.", "The same text."]
    lines = [document_line("plos", one.document_id, text) for one, text in zip(examples, texts, strict=True)]
    [said] = repeated_documents(examples, lines)
    assert said.startswith("2 documents of plos are copies of others under another id, such as 'd0' and 'd1'; interv")
    together = [replace(one, cluster_id="book") if one.id != "test-2" else one for one in examples]
    assert list(repeated_documents(together, lines)) == []
    # In one cluster with one of its copies, and not with the other.
    [said] = repeated_documents([replace(together[0], cluster_id=None), *together[1:]], lines)
    assert said.startswith("1 documents of plos")
    # Other tasks may have the same documents.
    others = [replace(one, task="arxiv") for one in lines[1:2]]
    assert list(repeated_documents([examples[0], replace(examples[1], task="arxiv")], [lines[0], *others])) == []
    documents = {one.document_id: " ".join(one.text.split()) for one in lines}
    write_run(tmp_path, lambda example, maxlen: "Text.", examples, documents=documents, record=run_record())
    assert score([str(tmp_path)]) == 0
    told = "2 documents of plos are copies of others under another id"
    assert told in " ".join(capsys.readouterr().out.split())
    assert told in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("within", "described"),
    [
        ((0.0, math.inf), "a number of at least 0"),
        ((-math.inf, 2.0), "a number of at most 2"),
        ((-math.inf, math.inf), "a number that is finite"),
        ((-1.0, 1.0), "a number from -1 to 1"),
    ],
)
def test_a_range_without_an_end_is_told_without_infinity(within: tuple[float, float], described: str) -> None:
    assert f"a number {describe_range(within)}" == described
    for wrong in (math.inf, -math.inf, math.nan):
        with pytest.raises(ValueError, match=f"is {wrong}; give {described} for each"):
            mean_interval([0.5, wrong], ["a", "b"], within=within)
    scores = np.linspace(within[0], 1, 12) if math.isfinite(within[0]) else np.linspace(-5, 1, 12)
    estimate = mean_interval(scores, range(12), within=within)
    assert all(math.isfinite(value) for value in vars(estimate).values())
    paired = compare_paired(scores, scores[::-1], range(12), within=within)
    assert all(math.isfinite(value) for value in vars(paired).values() if value is not None)


def test_a_ratio_that_no_float_holds_has_no_interval() -> None:
    tokens = [10] * 8
    far = ratio_of_perplexities([0.0] * 8, [8000.0 + index for index in range(8)], tokens)
    assert math.isfinite(far.ratio)
    assert far.ratio > 1e300
    assert (far.low, far.high) == (None, None)
    wide = ratio_of_perplexities([0.0] * 8, [8000.0 * (index % 2) for index in range(8)], tokens)
    assert math.isclose(math.log(wide.ratio), 400)
    assert (wide.low, wide.high) == (None, None)
    near = ratio_of_perplexities([0.0] * 8, [8.0 + index for index in range(8)], tokens)
    assert near.low is not None
    assert near.high is not None
    assert near.low < near.ratio < near.high


def test_reports_count_clusters_where_these_are_resampled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def answer(example: ExampleRecord, maxlen: int) -> str:
        words = example.references[0].split()
        return " ".join(words[: 3 + int(example.id.removeprefix("test-")) // 2 + (maxlen > 100)])

    printed = {}
    for name, size in (("twos", 2), ("fours", 4)):
        examples = [example_line(index, cluster_id=f"book {index // size}") for index in range(16)]
        write_run(tmp_path / name, answer, examples, record=run_record())
        assert score([str(tmp_path / name)]) == 0
        printed[name] = " ".join(capsys.readouterr().out.split())
        for one in model_results(tmp_path / name):
            assert (one.num_documents, one.num_clusters) == (16, 16 // size)
    assert "95% bootstrap intervals over clusters" in printed["twos"]
    # Two documents fit both lengths, and their cluster with them.
    assert "n = 14 examples in 7 clusters" in printed["twos"]
    # Sixteen documents have an interval; four books have none, and that is why.
    assert "no intervals: fewer than 6 clusters" in printed["fours"]
    report = (tmp_path / "twos" / "report.md").read_text()
    assert "| 100 | model | 16 (8 clusters) |" in report
    assert "| 14 (7 clusters) |" in report
    assert leaderboard([str(tmp_path), "--output", str(tmp_path / "board")]) == 0
    rows = json.loads((tmp_path / "board" / "leaderboard.json").read_text())["boards"][0]["rows"]
    assert {row["num_clusters"] for row in rows} <= {8, 4}
