"""The engine without a model: the whole chain of a run, and nothing of torch."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from eval.config.engine import ENGINES
from eval.generation.backend import Backend
from eval.generation.mock import WordTokenizer
from eval.merge import main as merge
from eval.prompting.prompts import PromptBuilder
from eval.run import main
from tasks import Template

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    rows = [
        {
            "context": f"Report {index} says that river {index} rose. " + "Nothing else was seen. " * 20,
            "target": "It rose.",
        }
        for index in range(6)
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = f"--engine mock --task custom --data {tmp_path / 'data.jsonl'} --maxlen 40 80 --max-new-tokens 8"
    return [*command.split(), "--output", str(tmp_path / "run"), "--no-texts"]


def predictions(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def test_a_run_without_a_model_is_scored_and_imports_no_torch(arguments: list[str], tmp_path: Path) -> None:
    code = f"""
import sys
from eval.reporting import page, run_report
from eval.merge import main as merge
from eval.run import main
# Charts and their library take seconds, and have tests of their own.
page._vega, run_report.save_charts = lambda: "", lambda folder, specs, own: []
status = main({arguments!r})
loaded = [name for name in ("torch", "transformers", "accelerate") if name in sys.modules]
sys.exit(str(loaded) if loaded else status)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = predictions(tmp_path / "run")
    assert len(lines) == 12
    assert {line["text"] for line in lines} >= {"Report 0 says that river 0 rose. Nothing"}
    assert {line["finish_reason"] for line in lines} == {"length"}
    # What the engine cannot know is unknown, and not 0.
    assert {line["seconds"] for line in lines} == {line["peak_bytes"] for line in lines} == {None}
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert scores["results"][0]["cost"] == dict.fromkeys(scores["results"][0]["cost"])
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.usefixtures("no_plots")
def test_answers_come_from_a_table_and_one_may_be_of_a_length(arguments: list[str], tmp_path: Path) -> None:
    table = [
        {"id": "test-0", "text": "It rose."},
        {"id": "test-0", "text": "", "maxlen": 80},
        {"id": "test-1", "text": "word " * 20},
    ]
    file = tmp_path / "answers.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in table))
    assert main([*arguments, "--answers", str(file)]) == 0
    texts = {(line["id"], line["maxlen"]): line for line in predictions(tmp_path / "run")}
    assert texts["test-0", 40]["text"] == "It rose."
    assert texts["test-0", 40]["finish_reason"] == "stop"
    assert texts["test-0", 80]["text"] == ""
    assert texts["test-1", 40]["text"] == " ".join(["word"] * 8)
    assert texts["test-2", 40]["text"].startswith("Report 2")


@pytest.mark.usefixtures("no_plots")
def test_a_mock_run_resumes_and_refuses_other_answers(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    first = predictions(tmp_path / "run")
    assert main([*arguments, "--maxlen", "40", "60", "80"]) == 0
    assert "12 of 18 predictions are there" in capsys.readouterr().out
    assert [line for line in predictions(tmp_path / "run") if line["maxlen"] != 60] == first
    file = tmp_path / "answers.jsonl"
    file.write_text('{"id": "test-0", "text": "Another."}\n')
    assert main([*arguments, "--answers", str(file)]) == 2
    assert "holds another run: engine answers" in capsys.readouterr().err


@pytest.mark.usefixtures("no_plots")
def test_a_session_killed_after_its_last_answer_is_ended_by_the_next(arguments: list[str], tmp_path: Path) -> None:
    assert main(arguments) == 0
    file = tmp_path / "run" / "run.json"
    killed = json.loads(file.read_text())
    killed["sessions"][-1]["finished"] = None
    file.write_text(json.dumps(killed))
    (tmp_path / "run" / "scores.json").unlink()
    assert main(arguments) == 0
    (session,) = json.loads(file.read_text())["sessions"]
    assert session["finished"] is not None
    ended = file.read_text()
    assert main(arguments) == 0
    assert file.read_text() == ended  # a session that has ended keeps its time


@pytest.mark.usefixtures("no_plots")
def test_shards_of_a_mock_run_are_joined(arguments: list[str], tmp_path: Path) -> None:
    from eval.merge import main as merge

    whole = tmp_path / "run"
    assert main(arguments) == 0
    parts = [str(tmp_path / f"part-{part}") for part in (1, 2)]
    for part, folder in enumerate(parts, start=1):
        assert main([*arguments, "--output", folder, "--shard", f"{part}/2"]) == 0
        assert len(predictions(Path(folder))) == 6
    assert merge([*parts, "--output", str(tmp_path / "joined")]) == 0
    assert predictions(tmp_path / "joined") == predictions(whole)


@pytest.mark.nightly
def test_two_processes_share_a_mock_run(arguments: list[str], tmp_path: Path) -> None:
    launcher = "-m accelerate.commands.accelerate_cli launch --multi_gpu --num_processes 2"
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launcher.split(), "eval/run.py", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(predictions(tmp_path / "run")) == 12
    assert done.stdout.count("report:") == 1
    assert json.loads((tmp_path / "run" / "run.json").read_text())["world_size"] == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no json", 'line 1 is no {"id": ..., "text": ...}'),
        ('{"id": "a"}', "line 1 is no"),
        ("[1]", "line 1 is no"),
        ("[" * 60_000, "line 1 is no"),
        ("\udcff\udcfe{}", "not UTF-8 text but UTF-16; save it as UTF-8"),
    ],
)
def test_a_table_that_cannot_be_read_is_one_line(
    line: str, message: str, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text(line + "\n", errors="surrogateescape")
    assert main([*arguments, "--answers", str(file)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert str(file) in error
    assert not (tmp_path / "run").exists()
    assert main([*arguments, "--answers", str(tmp_path / "none.jsonl")]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_answers_are_for_the_mock_alone(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, "--engine", "local", "--answers", "answers.jsonl"]) == 2
    assert "--engine mock alone" in capsys.readouterr().err


def test_words_are_tokens_that_put_a_text_together_again() -> None:
    tokenizer = WordTokenizer()
    text = "  One two,\n\nthree  "
    encoded = tokenizer(text, return_offsets_mapping=True)
    assert tokenizer.decode(encoded.input_ids) == text
    assert "".join(text[start:stop] for start, stop in encoded.offset_mapping) == text
    builder = PromptBuilder(tokenizer, Template(text="Say it: {context} Now."))  # type: ignore[arg-type]
    parts = builder.fixed_parts(None, tuple(tokenizer("a b").input_ids))
    assert tokenizer.decode([*parts.prefix, *parts.context, *parts.suffix]) == "Say it: a b Now."


def test_every_engine_can_be_imported() -> None:
    for target in ENGINES.values():
        module, _, name = target.partition(":")
        engine = getattr(importlib.import_module(module), name)
        made = engine if isinstance(engine, type) else get_type_hints(engine)["return"]
        assert issubclass(made, Backend)
        assert not inspect.isabstract(made)


def test_a_sample_grows_and_answers_nothing_twice(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"id": f"doc{index}", "context": f"Report {index}. " + "Nothing was seen. " * 20, "target": "It rose."}
        for index in range(60)
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main([*arguments, "--sample", "20"]) == 0
    first = {(line["id"], line["maxlen"]): line for line in predictions(tmp_path / "run")}
    assert main([*arguments, "--sample", "40"]) == 0
    grown = {(line["id"], line["maxlen"]): line for line in predictions(tmp_path / "run")}
    assert (len(first), len(grown)) == (40, 80)
    assert first.items() <= grown.items()
    # Neither is the beginning of the file, which a limit would take.
    for drawn in (first, grown):
        assert {name for name, _ in drawn} != {f"doc{index}" for index in range(len(drawn) // 2)}
    sessions = json.loads((tmp_path / "run" / "run.json").read_text())["sessions"]
    assert [session["num_to_generate"] for session in sessions] == [40, 40]
    for index in ("1", "2"):
        shard = [*arguments, "--sample", "40", "--shard", f"{index}/2"]
        assert main([*shard, "--output", str(tmp_path / f"part{index}")]) == 0
    assert merge(["--output", str(tmp_path / "merged"), str(tmp_path / "part1"), str(tmp_path / "part2")]) == 0
    merged = predictions(tmp_path / "merged")
    assert {(line["id"], line["maxlen"]): line["fingerprint"] for line in merged} == {
        key: line["fingerprint"] for key, line in grown.items()
    }
    for wrong, message in {
        ("--sample", "30"): "sample of custom is 40 there and 30 now",
        ("--sample", "60", "--sample-seed", "1"): "sample_seed of custom is 0 there and 1 now",
        ("--limit", "50"): "sample_seed of custom is 0 there and null now",
        ("--limit", "5", "--sample", "5"): "--sample 5 draws documents and --limit 5 takes the first",
    }.items():
        capsys.readouterr()
        assert main([*arguments, *wrong]) == 2
        assert message in capsys.readouterr().err


def test_a_run_says_that_its_first_examples_are_no_sample(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--limit", "3"]) == 0
    text = "The first 3 examples of custom, in its order and not drawn at random"
    assert text in capsys.readouterr().out
    assert text in (tmp_path / "run" / "report.md").read_text()


def test_a_sample_larger_than_its_source_is_all_of_it(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--sample", "500"]) == 0
    num_documents = json.loads((tmp_path / "run" / "run.json").read_text())["tasks"]["custom"]["rows"]["num_documents"]
    text = f"All {num_documents} documents of custom that can be drawn, fewer than the 500 of --sample"
    assert text in (tmp_path / "run" / "report.md").read_text()


def test_a_run_says_that_references_need_more_room(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    where = arguments.index("--max-new-tokens") + 1
    arguments[where] = "2"
    assert main([*arguments, "--dry-run"]) == 0
    assert "2 new tokens; 6 of 6 references need more" in capsys.readouterr().out


def test_a_run_says_that_a_task_has_more_room_by_itself(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    where = arguments.index("--max-new-tokens") + 1
    for room, told in (("128", True), ("256", False), ("300", False)):
        arguments[where] = room
        assert main([*arguments, "--maxlen", "600", "--dry-run"]) == 0
        printed = capsys.readouterr().out
        assert ("custom: 128 new tokens are 50% of the task's own 256" in printed) == told
    del arguments[where - 1 : where + 1]
    assert main([*arguments, "--maxlen", "600", "--dry-run"]) == 0
    assert "the task's own" not in capsys.readouterr().out
