"""Folders written by an earlier commit are read, scored, resumed and extended as they were (`tests/golden`).

Everything goes through the command lines, which outlive the names of functions.
"""

from __future__ import annotations

import json
import re
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.run_folders import without_checksums

GOLDEN = Path(__file__).parent / "golden" / "fca1ebb"
CHANGED_SYSTEMS = ("matched_lead", "matched_tail", "matched_oracle", "foreign_oracle", "common_answer")
PARTS = ("answers", "answers-local", "losses", "losses-local", "search")
MODEL = "--model model --threads 1"
RUN = f"--task data/reports.yaml,data/questions.yaml --template ask,bare {MODEL} --output run --maxlen"
LOCAL = ["span=24 sinks=2"]

Command = Callable[..., str]

pytestmark = pytest.mark.usefixtures("no_plots", "fresh_accelerator")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the golden folder, which is the working directory: its commands name relative paths."""
    copy = tmp_path / "golden"
    shutil.copytree(GOLDEN, copy, symlinks=True)
    monkeypatch.chdir(copy)
    return copy


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Return a function that runs `python -m MODULE ...` in the folder and returns what it prints."""

    def run(module: str, arguments: str, *more: str) -> str:
        monkeypatch.setattr(sys, "argv", [module, *arguments.split(), *more])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        printed = capsys.readouterr()
        assert ended.value.code == 0, printed.err
        return printed.out

    return run


def read(file: Path) -> Any:
    text = without_checksums(file.read_text())
    return [json.loads(line) for line in text.splitlines()] if file.suffix == ".jsonl" else json.loads(text)


# What says how sure one may be, which later versions reckon otherwise; scores and differences stay as they were.
_CLAIMS = {
    "error",
    "detectable",
    "needs_documents",
    "non_inferior",
    "claim_low",
    "p_holm",
    "p_corrected",
    "num_same_prompts",
}
_CLAIMS |= {"is_within_margin", "rank_range", "notes", "example_scores", "common_answer"}


def _is_of_lengths(one: Any) -> bool:
    return isinstance(one, dict) and "second" in one and one["first"]["maxlen"] != one["second"]["maxlen"]


def _is_common_answer(one: Any) -> bool:
    """Return whether a score is that of the common answer, which leaves out the example's own since."""
    return isinstance(one, dict) and one.get("system") == "common_answer"


def without_claims(content: Any) -> Any:
    """Return a content without its claims, and ratios of perplexities without their intervals.

    Comparisons of lengths leave out examples with the same prompt since, and are left out here.
    """
    if isinstance(content, list):
        return [without_claims(one) for one in content if not _is_of_lengths(one) and not _is_common_answer(one)]
    if not isinstance(content, dict):
        return content
    # A difference that is the same everywhere had an interval of no width, and has none since.
    is_constant = "wins" in content and content["low"] == content["high"]
    dropped = _CLAIMS | ({"low", "high"} if "ratio" in content or is_constant else set())
    return {name: without_claims(value) for name, value in content.items() if name not in dropped}


def assert_same(folder: Path, *names: str) -> None:
    """Check that files of the copy are those of the golden folder, byte for byte, apart from checksums."""
    assert [
        name for name in names if without_checksums((folder / name).read_text()) != (GOLDEN / name).read_text()
    ] == []


def as_before(path: Path) -> Any:
    """Return what a run's scores say of the systems that 0.1 knew, in the fields that it had, and their examples."""
    scores = without_claims(read(path / "scores.json"))
    added = ("words", "num_ended_by_length", "flaws")
    for name in ("example_scores", "scoring_version", "letters", "accept_ascii_words", "parity", "useful_lengths"):
        scores.pop(name, None)
    scores["results"] = [
        {name: value for name, value in one.items() if name not in added}
        for one in scores["results"]
        if one["system"] not in CHANGED_SYSTEMS
    ]
    lines = [one for one in read(path / "example_scores.jsonl") if one["system"] not in CHANGED_SYSTEMS]
    return scores, [{name: value for name, value in one.items() if name != "flaws"} for one in lines]


def assert_same_scores(folder: Path, name: str) -> None:
    assert without_claims(read(folder / name)) == without_claims(read(GOLDEN / name))


def intervals(report: Path) -> set[str]:
    """Return the means with intervals that a report prints."""
    return set(re.findall(r"[-+]?\d+\.\d+ \[[-+\d., ]+\]", report.read_text()))


def means(report: Path) -> set[str]:
    return {text.partition(" ")[0] for text in intervals(report)}


def test_scoring_again_gives_the_same_scores(run: Command, folder: Path) -> None:
    (folder / "run" / "scores.json").unlink()
    (folder / "run" / "report.md").unlink()
    run("eval.score", "run")
    assert as_before(folder / "run") == as_before(GOLDEN / "run")
    assert_same(folder, "run/predictions.jsonl")
    expected = intervals(GOLDEN / "run" / "report.md")
    assert expected
    # Two comparisons of lengths leave out examples with the same prompt since, and one had an interval of no width.
    lost = {"+71.43 [-42.9, +100.0]", "+1.33 [-4.0, +6.7]", "-100.00 [-100.0, -100.0]"}
    assert expected - intervals(folder / "run" / "report.md") == lost


@pytest.mark.usefixtures("no_weights")
def test_the_command_of_a_finished_run_generates_nothing(run: Command, folder: Path) -> None:
    run("eval.run", f"{RUN} 300 500")
    assert_same(folder, *(f"run/{name}" for name in ("predictions.jsonl", "examples.jsonl")))
    assert as_before(folder / "run") == as_before(GOLDEN / "run")
    now, before = (read(path / "run" / "run.json") for path in (folder, GOLDEN))
    for task in now["tasks"].values():  # which are counted since
        assert 0 < task["rows"].pop("num_documents") <= task["rows"].pop("num_examples")
    assert (now["identity"], now["tasks"], now["sessions"]) == (before["identity"], before["tasks"], before["sessions"])


def test_a_run_is_extended_by_a_length(run: Command, folder: Path) -> None:
    run("eval.run", f"{RUN} 300 400 500")
    lines, before = (read(path / "run" / "predictions.jsonl") for path in (folder, GOLDEN))
    assert [line for line in lines if line["maxlen"] != 400] == before
    added = [line for line in lines if line["maxlen"] == 400]
    assert len(added) == len(before) / 2
    assert read(folder / "run" / "run.json")["sessions"][-1]["num_to_generate"] == len(added)


def test_two_runs_compare_as_before_and_a_run_with_itself(run: Command, folder: Path) -> None:
    compared = json.loads(run("eval.compare", "study/answers study/answers-local --json"))
    # Further metrics came later, and these runs have none.
    assert without_claims(compared) == without_claims(read(folder / "compare.json")) | {"further": [], "left_out": []}
    assert "300" in run("eval.compare", "run run")


def test_the_leaderboard_ranks_as_before(run: Command, folder: Path) -> None:
    board, expected = json.loads(run("eval.leaderboard", ". --json")), read(folder / "leaderboard.json")
    # Why a folder is no run is said in other words since.
    for content in (board, expected):
        content["left_out"] = [(one["run"], one["task"]) for one in content["left_out"]]
    for one in expected["runs"]:  # commands are told as a user types them
        one["commands"] = [f"accelerate launch {command}" for command in one["commands"]]
    assert without_claims(board) == without_claims(expected)


def test_a_run_is_exported(run: Command, folder: Path) -> None:
    run("eval.export", "run")
    (file,) = (folder / "run" / "lm_eval").rglob("results_*.json")
    results = read(file)["results"]
    assert results["reports_ask_300"]["rouge1,none"] == 0.16276129915835796
    assert len(list(file.parent.glob("samples_*.jsonl"))) == len(results) == 8


@pytest.mark.usefixtures("no_weights")
def test_a_perplexity_is_not_measured_again(run: Command, folder: Path) -> None:
    (folder / "perplexity" / "scores.json").unlink()
    arguments = f"--task text --data data/texts --maxlen 128 400 {MODEL} --output perplexity --plan"
    run("eval.perplexity", arguments, "local span=24 sinks=2")
    assert_same(folder, "perplexity/predictions.jsonl", "perplexity/examples.jsonl")
    assert_same_scores(folder, "perplexity/scores.json")
    assert intervals(folder / "perplexity" / "report.md") >= intervals(GOLDEN / "perplexity" / "report.md")


@pytest.mark.usefixtures("no_weights")
def test_a_search_is_not_measured_again(run: Command, folder: Path) -> None:
    search = f"--task text --data data/texts --maxlen 200 --limit 2 --budget layers=1 {MODEL} --output placement"
    run("eval.placement", f"{search} --held-out-split test --random 1 --local", *LOCAL)
    assert_same(folder, "placement/measurements.jsonl", "placement/predictions.jsonl")
    for name in ("placement.json", "plan.json"):
        assert_same_scores(folder, f"placement/{name}")


def test_a_finished_training_is_not_trained_again(run: Command, folder: Path) -> None:
    (folder / "finetune" / "report.md").unlink()
    training = "--maxlen 400 --max-steps 2 --held-out 0.25 --eval-every 1 --lora-rank 2"
    arguments = f"--task data/reports.yaml {training} {MODEL} --output finetune --resume --plan"
    run("eval.finetune", arguments, "full@1 span=24 sinks=2")
    assert_same(folder, "finetune/steps.jsonl", "finetune/evals.jsonl")
    assert (folder / "finetune" / "report.md").exists()


def test_a_finished_study_is_reported_and_not_run_again(run: Command, folder: Path) -> None:
    (folder / "study" / "report.md").unlink()
    printed = run("eval.study", "study.yaml --output study")
    assert all(f"{part}: done before" in printed for part in PARTS)
    assert_same(folder, "study/study.json", *(f"study/{part}/run.json" for part in PARTS))
    expected = intervals(GOLDEN / "study" / "report.md")
    assert expected
    # Intervals of ratios hold for a whole table since, and so are wider; one of no width is none.
    assert means(folder / "study" / "report.md") >= means(GOLDEN / "study" / "report.md") - {"-100.00"}
