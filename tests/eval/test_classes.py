"""Answers that are one of several classes, and scores of groups, from data to report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval.run import main
from eval.score import main as score
from tests.helpers.official_files import write_official
from tests.helpers.tiny_models import save_tiny_checkpoint

pytestmark = pytest.mark.usefixtures("no_plots")


def test_classes_and_groups_go_from_data_to_report_and_are_scored_again(tmp_path: Path) -> None:
    data, answers, folder = write_official("longbench_e_trec", tmp_path), tmp_path / "answers.jsonl", tmp_path / "run"
    texts = ("\nPlace\nQuestion: Why?", "Place to stay", "Date")
    answers.write_text("".join(json.dumps({"id": f"{i:048x}", "text": text}) + "\n" for i, text in enumerate(texts)))
    arguments = ["--task", "longbench_e_trec", "--data", str(data), "--engine", "mock", "--answers", str(answers)]
    assert main([*arguments, "--maxlen", "300", "600", "--output", str(folder)]) == 0
    examples = [json.loads(line) for line in (folder / "examples.jsonl").read_text().splitlines()]
    assert [one["groups"] for one in examples] == [["0-4k"], ["4-8k"], ["8k+"]]
    assert all(one["classes"] == ["Date", "Place", "Place to stay"] for one in examples)
    scores = (folder / "scores.json").read_text()
    assert [
        (one["group"], one["maxlen"], one["metrics"]["accuracy"]["mean"]) for one in json.loads(scores)["groups"]
    ] == [(group, maxlen, mean) for maxlen in (300, 600) for group, mean in (("0-4k", 1), ("4-8k", 0.5), ("8k+", 0))]
    assert "| 4-8k | 1 | accuracy | 50.00 | 50.00 |" in (folder / "report.md").read_text()
    assert score([str(folder)]) == 0
    assert (folder / "scores.json").read_text() == scores


def test_a_profile_of_classes_is_refused_where_there_are_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_official("longbench_hotpotqa", tmp_path)
    arguments = ["--task", "longbench_hotpotqa", "--data", str(data), "--profile", "longbench_class", "--maxlen", "300"]
    assert main([*arguments, "--model", str(save_tiny_checkpoint(tmp_path / "model"))]) == 2
    told = "profile longbench_class needs the names of all classes, which task 'longbench_hotpotqa' does not have"
    assert told in capsys.readouterr().err


def test_a_file_as_longbench_writes_it_is_scored_by_its_own_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "trec.jsonl"
    about = {"answers": ["Place"], "all_classes": ["Date", "Place", "Place to stay"], "length": 3_000}
    texts = ("Place", "Date or Place", "Place to stay", "a place")
    file.write_text("".join(json.dumps({"pred": text, **about}) + "\n" for text in texts))
    fields = ["--prediction-field", "pred", "--reference-field", "answers", "--profile", "longbench_class"]
    arguments = ["--predictions", str(file), "--references", str(file), *fields]
    assert score(arguments) == 0
    scored = json.loads(capsys.readouterr().out)
    assert [one["metrics"]["accuracy"] for one in scored["examples"]] == [1.0, 0.5, 0.5, 0.0]
    file.write_text(json.dumps({"pred": "Place", "answers": ["Place"]}) + "\n")
    assert score(arguments) == 2
    assert "needs the names of all classes beside each answer, and there are none" in capsys.readouterr().err
