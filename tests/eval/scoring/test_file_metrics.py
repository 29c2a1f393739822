"""Further metrics of predictions from files: scored where these have what is needed, else refused in a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eval.score import main as score

METRIC = """
from eval.metrics.base import Metric, Value

class Seen(Metric):
    name, version = "seen", 3
    needs = frozenset({"window"})
    reads = needs | {"query", "document", "references"}
    batch_size = 2
    values = {name: Value(label=name, title=name) for name in ("shown", "kept", "asked")}

    def score(self, batch):
        return [
            {
                "shown": float(item.prediction in item.window),
                "kept": len(item.window) / len(item.document),
                "asked": None if item.query is None else float("colour" in item.query),
            }
            for item in batch
        ]
"""
DOCUMENT = " ".join(f"Sentence {number} says that the sea is blue." for number in range(9))
Rows = list[dict[str, Any]]


def scored(tmp_path: Path, predictions: Rows, references: Rows, metrics: str) -> int:
    for name, rows in {"predictions": predictions, "references": references}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "seen.py").write_text(METRIC)
    files = [f"--{name}={tmp_path / name}.jsonl" for name in ("predictions", "references")]
    return score([*files, "--metrics", metrics.replace("seen", f"{tmp_path / 'seen.py'}:Seen")])


def texts(count: int = 3) -> tuple[Rows, Rows]:
    predictions = [{"id": number, "prediction": f"Sentence {number} says"} for number in range(count)]
    return predictions, [{"id": number, "reference": "The sea is blue."} for number in range(count)]


def test_metrics_read_document_window_and_query_of_either_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictions, references = texts(4)
    references[0] |= {"document": DOCUMENT, "query": "Which colour?"}
    predictions[1] |= {"document": DOCUMENT, "window": DOCUMENT[: len(DOCUMENT) // 2]}
    references[2] |= {"context": DOCUMENT, "input": "Where is it?"}  # as LongBench has them
    references[3]["input"] = f"Which colour?\n\n{DOCUMENT}"  # as SCROLLS has them
    assert scored(tmp_path, predictions, references, "seen") == 0
    content = json.loads(capsys.readouterr().out)
    assert [one["further"] for one in content["examples"]] == [
        {"seen.shown": 1.0, "seen.kept": 1.0, "seen.asked": 1.0},
        {"seen.shown": 1.0, "seen.kept": pytest.approx(0.5, abs=0.01), "seen.asked": None},
        {"seen.shown": 1.0, "seen.kept": 1.0, "seen.asked": 0.0},
        {"seen.shown": 1.0, "seen.kept": 1.0, "seen.asked": None},
    ]
    means = content["results"][0]["further"]
    assert (means["seen.asked"]["mean"], means["seen.asked"]["num_examples"]) == (0.5, 2)
    assert content["further"]["seen"]["version"] == 3
    assert "source_sha256" in content["further"]["seen"]["provenance"]


def test_an_item_without_what_a_metric_needs_has_no_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictions, references = texts()
    references[1]["document"] = DOCUMENT
    assert scored(tmp_path, predictions, references, "seen") == 0
    content = json.loads(capsys.readouterr().out)
    assert [one["further"]["seen.shown"] for one in content["examples"]] == [None, 1.0, None]
    assert content["results"][0]["further"]["seen.shown"]["num_examples"] == 1
    assert "seen.asked" not in content["results"][0]["further"]  # a mean of nothing is none


def test_files_without_documents_are_refused_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert scored(tmp_path, *texts(), "seen") == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == (
        "error: metric seen needs the window of an item, and no item has it; add the field document or window to "
        "either file, or leave the metric out\n"
    )


def test_diagnostics_score_what_needs_no_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictions, references = texts()
    references[0]["document"] = DOCUMENT
    assert scored(tmp_path, predictions, references, "diagnostics") == 0
    first, second, _ = (one["further"] for one in json.loads(capsys.readouterr().out)["examples"])
    assert (first["diagnostics.words"], first["diagnostics.novel_1"]) == (3, 0)
    assert (second["diagnostics.words"], second["diagnostics.novel_1"]) == (3, None)


def test_values_of_files_are_not_kept_so_there_is_nothing_to_forget(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        score(["--predictions", "a", "--references", "b", "--metrics", "diagnostics", "--metrics-again"])
    assert "--metrics-again is for the folder of a run" in capsys.readouterr().err


def test_files_are_checked_before_a_metric_is_opened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictions, references = texts()
    predictions[0]["id"] = "another"
    assert scored(tmp_path, predictions, references, "there-is-none") == 2
    assert "ids are in one file alone" in capsys.readouterr().err


def test_a_judge_may_see_documents_only_where_a_metric_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        score(["--predictions", "a", "--references", "b", "--judge-may-see-documents"])
    assert "--judge-may-see-documents is for a judge among --metrics" in capsys.readouterr().err
