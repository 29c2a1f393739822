"""A leaderboard ranks what can be paired, marks what may be claimed, and names what it leaves out."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval.leaderboard import main as leaderboard
from eval.records.run_folder import RunFolder
from eval.records.schema import ExampleRecord, Leaderboard, ModelRecord, Prediction, RunRecord, TemplateRecord
from eval.records.typed import from_json
from eval.reporting.board_charts import charts_of
from eval.reporting.board_labels import labels_of
from eval.score import main as score
from eval.scoring.board import command_for_readers, shorten
from eval.scoring.profiles import PROFILES
from tests.helpers.browser import chromium, open_page
from tests.helpers.run_folders import (
    document,
    document_line,
    example_line,
    run_record,
    with_session,
    with_task,
    write_run,
)

HOSTILE = "</script><img src=x onerror=alert(1)>`|*"


def record(model: str = "tiny", plan: str = "full", tasks: Sequence[str] = ("plos",)) -> RunRecord:
    made = run_record(
        tasks,
        model=ModelRecord(reference=model, source="folder", files={"weights": model}),
        seed=0,
        generation={"num_beams": 1},
        generation_version=4,
    )
    return replace(made, plan_description=plan)


def share(quality: float) -> Callable[[ExampleRecord, int], str]:
    """Answer with a part of the reference, a greater one at the greater length."""

    def answer(example: ExampleRecord, maxlen: int) -> str:
        words = example.references[0].split()
        return " ".join(words[: round(quality * len(words) * (1 if maxlen > 100 else 0.75))])

    return answer


def add_run(path: Path, answer: Callable[[ExampleRecord, int], str], profile: str = "hf", **options: Any) -> RunFolder:
    folder = write_run(path, answer, **{"record": record()} | options)
    assert score([str(path), "--profile", profile]) == 0
    return folder


def edit(path: Path, name: str, change: Callable[[Any], Any]) -> None:
    """Change a JSON file, or each line of a JSON-lines file, whose checksums go."""
    text = (path / name).read_text()
    contents = [json.loads(line) for line in ([text] if name.endswith(".json") else text.splitlines())]
    lines = [change({key: content[key] for key in content if key != "crc32"}) for content in contents]
    (path / name).write_text("".join(json.dumps(line) + "\n" for line in lines if line is not None))


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the pages of the runs, which are not read here, and draw no pictures."""
    monkeypatch.setattr("eval.reporting.score_run.write_page", lambda *_, **__: None)
    monkeypatch.setattr("eval.reporting.charts.draw_chart", lambda spec, suffix: b"drawn")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder of three scored runs: `good`, `fair`, whose attention costs half, and `poor`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eval.reporting.score_run.write_page", lambda *_, **__: None)
        root = tmp_path_factory.mktemp("runs")
        add_run(root / "good", share(1.0), record=record("large"))
        add_run(root / "poor", share(0.3), record=record("tiny", "local span=8"))
        fair = write_run(root / "deep" / "fair", share(0.7), record=record("tiny"))
        edit(fair.path, "predictions.jsonl", lambda line: line | {"attention_flops": line["attention_flops"] // 2})
        assert score([str(fair.path)]) == 0
        yield root


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> Path:
    """Return a copy of the three runs that a test may change."""
    return Path(shutil.copytree(made, tmp_path / "runs"))


def ranked(root: Path, *options: str) -> dict[str, Any]:
    assert leaderboard([str(root), *options]) == 0
    content: dict[str, Any] = json.loads((root / "leaderboard" / "leaderboard.json").read_text())
    return content


def charts(content: dict[str, Any], index: int = 0) -> dict[str, Any]:
    """Return the charts of one board."""
    made = from_json(Leaderboard, content, "leaderboard.json")
    return dict(charts_of(made.boards[index], made.cost))


def reasons(content: dict[str, Any]) -> dict[str, str]:
    return {one["run"]: one["reason"] for one in content["left_out"]}


def said(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def test_rows_are_ranked_by_the_headline_metric(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = ranked(runs)
    (board,) = content["boards"]
    rows = board["rows"]
    order = [("good", 200), ("good", 100), ("deep/fair", 200), ("deep/fair", 100), ("poor", 200), ("poor", 100)]
    assert [(row["run"], row["maxlen"]) for row in rows] == order
    assert [row["rank"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["is_best"] for row in rows] == [True, *[False] * 5]
    assert (board["profile"], board["metric"], content["margin"]) == ("hf", "rougeLsum", 0.01)
    assert (board["num_examples"], board["num_documents"], board["num_runs"]) == (6, 6, 3)
    assert rows[0]["metrics"]["rougeLsum"]["mean"] == 1
    assert {"lead", "tail", "visible_oracle"} <= rows[0]["yardsticks"].keys()
    assert content["left_out"] == []
    printed = capsys.readouterr().out
    for part in ("deep/fair", "local span=8", "best observed", "Left out: nothing.", "leaderboard.html"):
        assert part in printed


def test_equal_rows_share_a_rank_and_twins_are_told_apart(runs: Path) -> None:
    shutil.copytree(runs / "good", runs / "twin")
    content = ranked(runs)
    (board,) = content["boards"]
    assert [(row["run"], row["rank"]) for row in board["rows"]][:4] == [
        ("good", 1),
        ("twin", 1),
        ("good", 3),
        ("twin", 3),
    ]
    assert [row["rank_range"] for row in board["rows"]][:2] == [[1, 2], [1, 2]]
    spec = charts(content)["plos-length"].spec
    assert spec["facet"]["sort"] == ["good", "twin", "deep/fair", "poor"]


def test_what_is_left_out_is_named_with_the_reason(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("training", "alien", "unscored", "stale", "old", "unfinished", "other-profile", "torn", "half"):
        shutil.copytree(runs / "poor", runs / name)
    edit(runs / "training", "run.json", lambda held: {name: held[name] for name in held if name != "grouping"})
    edit(runs / "alien", "run.json", lambda held: {"steps": 3})
    (runs / "unscored" / "scores.json").unlink()
    edit(runs / "stale", "predictions.jsonl", lambda line: line | {"text": "other"})
    edit(runs / "old", "scores.json", lambda held: held | {"scoring_version": 0})
    edit(runs / "unfinished", "predictions.jsonl", lambda line: None if line["id"] == "test-5" else line)
    assert score([str(runs / "unfinished")]) == 0
    assert score([str(runs / "other-profile"), "--profile", "scrolls"]) == 0
    edit(runs / "torn", "scores.json", lambda held: {"scoring_version": held["scoring_version"]})
    edit(runs / "half", "example_scores.jsonl", lambda line: None if line["id"] == "test-5" else line)
    content = ranked(runs)
    expected = {
        "training": "training/run.json has no field 'grouping'",
        "alien": "alien/run.json is not the record of a run",
        "unscored": "has no scores that can be read",
        "stale": "not those of its predictions",
        "old": "was scored by another version of the code",
        "unfinished": "unfinished: 2 of its predictions are not there yet",
        "other-profile": "scored under profile scrolls where hf is ranked",
        "torn": "torn/scores.json has no field 'profiles'",
        "half": "was interrupted, or is at work",
    }
    assert reasons(content).keys() == expected.keys()
    for name, part in expected.items():
        assert part in reasons(content)[name]
    assert {row["run"] for row in content["boards"][0]["rows"]} == {"good", "deep/fair", "poor"}
    printed = " ".join(capsys.readouterr().out.split())
    folder = runs / "leaderboard"
    for text in (printed, (folder / "leaderboard.md").read_text(), (folder / "leaderboard.html").read_text()):
        for part in ("unfinished: 2 of its predictions", "run.json has no field", "9 left out"):
            assert part in text


def test_a_link_to_a_run_is_named_and_not_followed(runs: Path) -> None:
    (runs / "again").symlink_to(runs / "good")
    assert reasons(ranked(runs)) == {"again": "a link; give the folder that it leads to"}


def test_files_beside_the_plots_stay(runs: Path) -> None:
    ranked(runs)
    plots = runs / "leaderboard" / "plots"
    for name in ("leaderboard-notes.txt", "leaderboard-gone-length-rouge1.svg", "mine-length-rouge1.png"):
        (plots / name).write_text("")
    ranked(runs)
    left = {file.name for file in plots.iterdir()}
    assert {"leaderboard-notes.txt", "mine-length-rouge1.png"} <= left
    assert "leaderboard-gone-length-rouge1.svg" not in left


def test_the_csv_has_settings_and_yardsticks(runs: Path) -> None:
    ranked(runs)
    with (runs / "leaderboard" / "leaderboard.csv").open() as stream:
        row = next(csv.DictReader(stream))
    assert {"seed", "truncation", "max_new_tokens", "generation_version", "lead_rouge1_mean_fraction"} <= row.keys()
    assert float(row["visible_oracle_rouge1_mean_fraction"]) > 0


def test_a_folder_that_cannot_be_looked_into_is_left_out(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def deny(path: Any) -> Any:
        if Path(path).name == "deep":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", deny)
    assert reasons(ranked(runs)) == {"deep": "cannot be read: Permission denied"}


def test_a_board_ranks_the_examples_that_most_runs_share(runs: Path) -> None:
    everything = [example_line(index) for index in range(6)]
    texts = {f"doc-{index}": document(index, 3 if index < 2 else 20) for index in range(6)}
    changed = {
        "few": {"examples": everything[:4]},
        "many": {"examples": [example_line(index) for index in range(8)]},
        "others": {"examples": [*everything[:5], example_line(7)]},
        "references": {"examples": [*everything[:5], example_line(5, references=["other words"])]},
        "query": {"examples": [*everything[:5], example_line(5, query="What is it about?")]},
        "document": {"documents": texts | {"doc-5": document(9, 20)}},
        "version": {"record": with_task(record(), version=2)},
    }
    for name, options in changed.items():
        add_run(runs / name, share(0.5), **options)
    content = ranked(runs)
    assert {row["run"] for row in content["boards"][0]["rows"]} == {"good", "deep/fair", "poor"}
    assert {one["task"] for one in content["left_out"]} == {"plos"}
    assert reasons(content) == {
        "few": "has 4 examples where 6 are ranked",
        "many": "has 8 examples where 6 are ranked",
        "others": "has other examples than those ranked: 'test-5' is not among them",
        "references": "has another set of references under id 'test-5' than those ranked",
        "query": "has another query under id 'test-5' than those ranked",
        "document": "has another document under id 'test-5' than those ranked",
        "version": "has version 2 of the task where 1 is ranked",
    }


def test_of_two_sets_as_common_the_larger_is_ranked(tmp_path: Path) -> None:
    add_run(tmp_path / "a", share(1.0), examples=[example_line(index) for index in range(3)])
    add_run(tmp_path / "b", share(0.5), examples=[example_line(index) for index in range(4)])
    assert reasons(ranked(tmp_path)) == {"a": "has 3 examples where 4 are ranked"}


def test_templates_are_rows_of_their_own_and_evidence_is_shown(tmp_path: Path) -> None:
    examples = [example_line(index, query="What?", evidence=[[0, 300]]) for index in range(6)]
    instruct = record().tasks["plos"].templates["instruct"]
    templates = {"instruct": instruct, "brief": TemplateRecord(text="In short: {context}")}
    folder = write_run(tmp_path / "run", share(0.6), examples, record=with_task(record(), templates=templates))
    lines = list(folder.read_journal(Prediction).lines.values())
    brief = [replace(line, template="brief", text="something else") for line in lines]
    folder.write_lines("predictions.jsonl", [*lines, *brief])
    assert score([str(folder.path)]) == 0
    (board,) = ranked(tmp_path)["boards"]
    assert [row["template"] for row in board["rows"]] == ["instruct", "instruct", "brief", "brief"]
    assert 0.6 < board["rows"][1]["evidence_visible"]["mean"] < 1
    header = (tmp_path / "leaderboard" / "leaderboard.md").read_text().split("| rank |")[1].splitlines()[0]
    assert {"template", "evidence %"} <= {name.strip() for name in header.split("|")}


def test_each_task_has_a_board(runs: Path) -> None:
    tasks = ("plos", "aclsum")
    examples = [example_line(index, task=task) for task in tasks for index in range(6)]
    texts = {f"doc-{index}": document(index, 3 if index < 2 else 20) for index in range(6)}
    folder = write_run(runs / "two", share(0.9), examples, texts, record(tasks=tasks))
    folder.write_documents(document_line(task, name, texts[name]) for task in tasks for name in texts)
    assert score([str(folder.path)]) == 0
    content = ranked(runs)
    assert {board["task"]: board["num_runs"] for board in content["boards"]} == {"plos": 4, "aclsum": 1}
    with (runs / "leaderboard" / "leaderboard.csv").open() as stream:
        assert [line["task"] for line in csv.DictReader(stream)].count("aclsum") == 2


def test_the_profile_is_the_one_that_most_have_or_the_one_asked_for(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("good", "poor"):
        assert score([str(runs / name), "--profile", "scrolls"]) == 0
    content = ranked(runs)
    assert [(board["profile"], board["metric"], len(board["rows"])) for board in content["boards"]] == [
        ("scrolls", "geometric", 4)
    ]
    assert list(reasons(content)) == ["deep/fair"]
    assert content["boards"][0]["rows"][0]["metrics"]["geometric"]["mean"] == 1
    content = ranked(runs, "--profile", "hf")
    assert [row["run"] for row in content["boards"][0]["rows"]] == ["deep/fair", "deep/fair"]
    capsys.readouterr()
    assert leaderboard([str(runs), "--profile", "longbench"]) == 2
    error = said(capsys)
    assert "nothing to rank" in error
    assert "good: scored under profile scrolls where longbench is ranked" in error


def test_each_board_is_ranked_under_the_profile_of_its_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = ("plos", "qasper")
    asked = with_task(record(tasks=tasks), "qasper", profile="f1")
    examples = [example_line(index, task=task, document_id=f"{task}-{index}") for task in tasks for index in range(6)]
    texts = {line.document_id: document(index, 20) for index, line in enumerate(examples)}
    for name, quality in (("good", 0.9), ("fair", 0.5), ("other", 0.5)):
        write_run(tmp_path / name, share(quality), examples, texts, asked)
        assert score([str(tmp_path / name)]) == 0
    assert score([str(tmp_path / "other"), "--profile", "scrolls"]) == 0
    content = ranked(tmp_path)
    assert [(board["task"], board["profile"], board["metric"], board["num_runs"]) for board in content["boards"]] == [
        ("plos", "hf", "rougeLsum", 2),
        ("qasper", "f1", "f1", 2),
    ]
    assert [(one["run"], one["task"]) for one in content["left_out"]] == [("other", "plos"), ("other", "qasper")]
    assert content["scrolls_score"] is None
    assert {"common_answer", "visible_oracle"} <= content["boards"][1]["rows"][0]["yardsticks"].keys()
    folder = tmp_path / "leaderboard"
    for text in (" ".join(capsys.readouterr().out.split()), (folder / "leaderboard.md").read_text()):
        assert "Ranked by F1, answers, profile f1, F1 and exact match x 100." in text
        assert "Ranked by RLsum, ROUGE profile hf, F x 100." in text
        of_answers = text.split("qasper: paper" if "qasper: paper" in text else "## qasper")[1].split("eft out")[0]
        assert "ROUGE" not in of_answers
    with (folder / "leaderboard.csv").open() as stream:
        lines = list(csv.DictReader(stream))
    assert {(line["task"], line["profile"]) for line in lines} == {("plos", "hf"), ("qasper", "f1")}
    for line in lines:
        assert (line["f1_mean_fraction"] == "") == (line["task"] == "plos")
        assert (line["rouge1_mean_fraction"] == "") == (line["task"] == "qasper")
    layers = charts(content, 1)["qasper-length"].spec["spec"]["layer"]
    assert {layer["encoding"]["y"]["title"] for layer in layers} == {"F1 × 100 (f1)"}


def test_marks_say_what_lies_within_the_margin_of_the_best(tmp_path: Path) -> None:
    examples = [example_line(index) for index in range(12)]

    def nearly(example: ExampleRecord, maxlen: int) -> str:
        return example.references[0] + (" again" if example.id == "test-3" else "")

    add_run(tmp_path / "best", lambda example, maxlen: example.references[0], examples=examples)
    add_run(tmp_path / "close", nearly, examples=examples)
    add_run(tmp_path / "far", share(0.5), examples=examples)

    def within(margin: str) -> set[str]:
        content = ranked(tmp_path, "--margin", margin)
        return {row["run"] for row in content["boards"][0]["rows"] if row["is_within_margin"]}

    # Of twelve documents none collapsed, which leaves collapses of 22% of all open.
    assert within("0.02") == set()
    assert within("0.3") == {"best", "close"}
    assert within("0.9") == {"best", "close", "far"}
    # Nothing is shown to be best itself: the best observed row is better by too little on one example.
    assert within("0") == set()
    notes = ranked(tmp_path, "--margin", "0")["boards"][0]["notes"]
    assert any("No row is shown to be within the margin of the best" in note for note in notes)
    page = (tmp_path / "leaderboard" / "leaderboard.md").read_text()
    assert "less than 0 below the best" in page


def test_many_examples_of_one_document_are_no_evidence(tmp_path: Path) -> None:
    examples = [example_line(index, document_id="doc-0", query=str(index)) for index in range(12)]
    for name, quality in (("a", 1.0), ("b", 0.9)):
        add_run(tmp_path / name, share(quality), examples=examples)
    (board,) = ranked(tmp_path, "--margin", "0.9")["boards"]
    assert (board["num_examples"], board["num_documents"]) == (12, 1)
    assert not any(row["is_within_margin"] for row in board["rows"])


def test_the_frontier_is_what_nothing_beats_at_no_more_cost(runs: Path) -> None:
    def on_frontier(*options: str) -> set[tuple[str, int]]:
        rows = ranked(runs, *options)["boards"][0]["rows"]
        return {(row["run"], row["maxlen"]) for row in rows if row["is_on_frontier"]}

    assert on_frontier() == {("deep/fair", 100), ("good", 100), ("good", 200)}
    content = ranked(runs)
    panel = charts(content)["plos-cost"].spec["concat"][0]
    assert panel["title"]["text"] == "Attention per example (TFLOP)"
    steps = panel["layer"][0]
    assert steps["mark"]["style"] == "frontier"
    assert [(row["run"], row["maxlen"]) for row in steps["data"]["values"]] == [
        ("deep/fair", 100),
        ("good", 100),
        ("good", 200),
    ]
    named = {row["label"] for one in panel["layer"] if one["mark"]["type"] == "text" for row in one["data"]["values"]}
    assert named == {"deep/fair 100", "good 100", "good 200"}
    assert on_frontier("--cost", "cache_bytes") == {("good", 100), ("good", 200)}
    assert on_frontier("--cost", "seconds") == {("good", 200)}
    edit(runs / "good", "predictions.jsonl", lambda line: line | {"attention_flops": None})
    assert score([str(runs / "good")]) == 0
    assert on_frontier() == {("deep/fair", 100), ("deep/fair", 200)}
    notes = ranked(runs)["boards"][0]["notes"]
    assert "2 row(s) have no known attention_flops and are not on the frontier." in notes


def test_notes_warn_of_what_does_not_compare(runs: Path) -> None:
    assert not [note for note in ranked(runs)["boards"][0]["notes"] if "margin" not in note]

    def on_a_gpu(held: Any) -> Any:
        held["sessions"][0]["machine"]["device"] = "GPU"
        held["identity"]["model"]["files"]["weights"] = "others"
        held["tasks"]["plos"]["templates"]["instruct"]["text"] = "In short: {context}"
        held["identity"]["truncation"] = "tail"
        return held

    edit(runs / "poor", "run.json", on_a_gpu)
    content = ranked(runs)
    machines, weights, template, *_ = content["boards"][0]["notes"]
    assert charts(content)["plos-cost"].caption.endswith("Times were measured in different places.")
    assert "GPU, 1 process(es), 1 thread(s) each: poor" in machines
    assert weights == "A model of the same name has other weights in deep/fair, and in poor."
    assert template == "The template instruct has other words in deep/fair, good, and in poor."
    assert "| `truncation=tail` |" in (runs / "leaderboard" / "leaderboard.md").read_text()


def served(root: Path, name: str, args: Sequence[str] = (), concurrency: int = 16, **told: Any) -> None:
    """Write what a run of a server would be: nothing is known of its cache, its memory and its operations."""
    made = with_session(record("large"), engine={"name": "vllm", "version": "0.32.0", "concurrency": concurrency})
    engine = {"name": "vllm", "prompts_as": "ids", "args": list(args)}
    folder = write_run(root / name, share(0.9), record=replace(made, identity=replace(made.identity, engine=engine)))
    unknown = ("prefill_seconds", "decode_seconds", "cache_bytes", "attention_flops", "peak_bytes", "batch_size")
    told = {"seconds": 0.5, "first_token_seconds": 0.25, "token_seconds": 0.025, "cached_tokens": 25} | told
    edit(folder.path, "predictions.jsonl", lambda line: line | dict.fromkeys(unknown) | told)
    assert score([str(folder.path)]) == 0


def test_seconds_of_two_clocks_are_in_no_ranking(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    served(runs, "server")
    content = ranked(runs, "--cost", "seconds")
    board = content["boards"][0]
    assert not any(row["is_on_frontier"] for row in board["rows"])
    said = "Seconds were taken in different ways and do not compare: share of a batch: "
    (note,) = [note for note in board["notes"] if note.startswith(said)]
    assert "request beside others: server. No row is on the frontier." in note
    chart = charts(content)["plos-cost"]
    assert said in chart.caption
    panels = {panel["title"]["text"]: panel["layer"] for panel in chart.spec["concat"]}
    has_steps = {title: layers[0]["mark"].get("style") == "frontier" for title, layers in panels.items()}
    assert has_steps.pop("Time per example (s)") is False
    assert all(has_steps.values())
    for name in ("leaderboard.md", "leaderboard.html"):
        assert said in (runs / "leaderboard" / name).read_text()
    assert said in " ".join(capsys.readouterr().out.split())
    with (runs / "leaderboard" / "leaderboard.csv").open() as stream:
        lines = {line["run"]: line for line in csv.DictReader(stream)}
    assert (lines["good"]["engine"], lines["good"]["seconds_are"]) == ("local", "share of a batch")
    assert (lines["server"]["engine"], lines["server"]["seconds_are"]) == ("vllm 0.32.0", "request beside others")
    cached = "cached_prompt_tokens_fraction"
    assert (lines["server"][cached], lines["good"][cached]) == ("0.25", "")  # of the lower row, at 100
    # Costs that are counted compare, and servers do not tell them.
    notes = ranked(runs)["boards"][0]["notes"]
    assert "2 row(s) have no known attention_flops and are not on the frontier." in notes


def test_seconds_of_requests_beside_more_others_are_said_not_to_compare(tmp_path: Path) -> None:
    served(tmp_path, "alone", concurrency=1)
    served(tmp_path, "many")
    board = ranked(tmp_path, "--cost", "seconds")["boards"][0]
    (note,) = [note for note in board["notes"] if note.startswith("Speeds, times and peak memory were measured in")]
    assert "1 request(s) at a time: alone; " in note
    assert "16 request(s) at a time: many." in note
    assert not board["is_one_machine"]


def test_rows_are_told_apart_by_their_engines(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ranked(runs)
    assert "| engine |" not in (runs / "leaderboard" / "leaderboard.md").read_text()
    served(runs, "eager", ["--enforce-eager"])
    served(runs, "server", seconds=None)
    content = ranked(runs)
    text = (runs / "leaderboard" / "leaderboard.md").read_text()
    assert "| engine |" in text
    assert "| `local` |" in text
    assert '| `vllm 0.32.0: args=["--enforce-eager"]` |' in text
    assert "| `vllm 0.32.0: args=[]` |" in text
    assert "other settings" not in text
    rows = from_json(Leaderboard, content, "leaderboard.json").boards[0].rows
    labels = {label.name: label.differs for label in labels_of(rows).values()}
    assert labels["good"] == "large, full, local"
    assert labels["eager"] == 'large, full, vllm 0.32.0: args=["--enforce-eager"]'


def test_csv_and_json_agree_and_nothing_is_rounded(runs: Path) -> None:
    content = ranked(runs)
    with (runs / "leaderboard" / "leaderboard.csv").open() as stream:
        lines = list(csv.DictReader(stream))
    rows = content["boards"][0]["rows"]
    assert len(lines) == len(rows)
    for line, row in zip(lines, rows, strict=True):
        assert [line[name] for name in ("run", "model", "plan", "dtype", "template")] == [
            row[name] for name in ("run", "model", "plan", "dtype", "template")
        ]
        assert (int(line["rank"]), int(line["maxlen_tokens"])) == (row["rank"], row["maxlen"])
        for metric in PROFILES["hf"].metrics:
            assert float(line[f"{metric}_mean_fraction"]) == row["metrics"][metric]["mean"]
            low = row["metrics"][metric]["low"]
            assert line[f"{metric}_low_fraction"] == ("" if low is None else str(low))
            oracle = row["yardsticks"]["visible_oracle"][metric]["mean"]
            assert float(line[f"visible_oracle_{metric}_mean_fraction"]) == oracle
        assert float(line["attention_flops_per_example"]) == row["cost"]["attention_flops"]
        assert int(line["peak_memory_bytes"]) == row["cost"]["peak_memory_bytes"]
        assert line["evidence_visible_mean_fraction"] == ""
        assert line["is_on_frontier"] == str(row["is_on_frontier"])
    (command,) = content["runs"][0]["commands"]
    assert command == "accelerate launch eval/run.py --task plos"


def test_the_same_runs_give_the_same_files(runs: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert leaderboard([str(runs), "--output", str(tmp_path / name)]) == 0
    for file in (tmp_path / "one").glob("leaderboard.*"):
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()
    assert {file.suffix for file in (tmp_path / "one").glob("leaderboard.*")} == {".md", ".csv", ".json", ".html"}


def test_a_second_leaderboard_replaces_the_first_and_is_no_run(runs: Path) -> None:
    first = ranked(runs)
    (runs / "leaderboard" / "plots" / "leaderboard-gone-length-rouge1.png").write_text("of a task that is no more")
    (runs / "leaderboard" / "plots" / "mine.png").write_text("of somebody else")
    assert ranked(runs) == first
    names = {file.name for file in (runs / "leaderboard" / "plots").iterdir()}
    assert "leaderboard-gone-length-rouge1.png" not in names
    assert {"mine.png", "leaderboard-plos-cost.svg", "leaderboard-plos-length.png"} <= names


def test_names_are_text_wherever_they_stand(runs: Path) -> None:
    edit(runs / "poor", "run.json", lambda held: held | {"plan_description": HOSTILE + "\n\ud800"})
    (runs / "poor").rename(runs / "<script>alert(2)<")
    shutil.copytree(runs / "good", runs / "<b>")
    (runs / "<b>" / "scores.json").unlink()
    ranked(runs)
    page = (runs / "leaderboard" / "leaderboard.html").read_text()
    assert "<img src=x" not in page
    assert "<script>alert" not in page
    text = (runs / "leaderboard" / "leaderboard.md").read_text()
    assert "| `</script><img src=x onerror=alert(1)>'\\|* ?` |" in text
    assert "- &lt;b>: has no scores" in text
    with (runs / "leaderboard" / "leaderboard.csv").open() as stream:
        assert [line["plan"] for line in csv.DictReader(stream)][-1] == f"{HOSTILE} ?"


def test_no_text_and_no_path_of_this_machine_is_written(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def moved(held: Any) -> Any:
        held["identity"]["model"]["reference"] = str(runs / "trained" / "full" / "best")
        return held

    edit(runs / "good", "run.json", moved)
    (runs / "poor" / "scores.json").unlink()
    content = ranked(runs)
    assert content["boards"][0]["rows"][0]["model"] == "trained/full/best"
    printed = capsys.readouterr().out.split("leaderboard: ")[0]
    written = [file.read_text() for file in (runs / "leaderboard").glob("leaderboard.*")]
    for text in (printed, *written):
        assert str(runs) not in text
        assert document(2, 20)[:40] not in text
        assert example_line(2).references[0][:40] not in text


def test_long_references_of_models_are_cut_where_they_differ() -> None:
    paths = ["/home/a/x/full/best", "/home/a/y/full/best", "/home/b/y/full/best", "tiny", "runs/of/some/model/best"]
    assert list(shorten(paths[:2]).values()) == ["x/full/best", "y/full/best"]
    assert list(shorten(paths).values()) == ["a/x/full/best", "a/y/full/best", "b/y/full/best", *paths[3:]]
    session = run_record().sessions[0]
    session = replace(
        session, command=["--model=/home/one/two/three/best", "--output", "/home/one/runs", "--limit", "4"]
    )
    assert command_for_readers(session) == (
        "accelerate launch eval/run.py --model=two/three/best --output home/one/runs --limit 4"
    )
    assert shorten(["/best", "/a/best"]) == {"/best": "best", "/a/best": "a/best"}


def test_each_panel_has_the_scores_and_the_oracle_of_its_run(runs: Path) -> None:
    spec = charts(ranked(runs))["plos-length"].spec
    rows = spec["data"]["values"]
    assert [(row["panel"], row["kind"], row["maxlen"]) for row in rows if row["panel"] == "good"] == [
        ("good", kind, maxlen) for maxlen in (100, 200) for kind in ("model", "oracle")
    ]
    context = spec["spec"]["layer"][0]["data"]["values"]
    assert {row["run"] for row in context} == {"good", "deep/fair", "poor"}
    assert spec["facet"]["sort"] == ["good", "deep/fair", "poor"]


def test_what_cannot_be_ranked_is_told_in_one_line(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = {
        "is not a folder": [str(tmp_path / "none")],
        "no folder in it or below holds a run.json": [str(tmp_path / "empty")],
        "holds a run; give another with --output": [str(runs), "--output", str(runs / "good")],
        "cannot be written": [str(runs), "--output", str(runs / "good" / "run.json")],
    }
    (tmp_path / "empty").mkdir()
    for part, arguments in wrong.items():
        assert leaderboard(arguments) == 2
        assert part in said(capsys)
    with pytest.raises(SystemExit) as exit_info:
        leaderboard([str(runs), "--margin", "1.5"])
    assert exit_info.value.code == 2
    assert "must be at least 0 and below 1" in said(capsys)
    (runs / "poor" / "scores.json").unlink()
    assert leaderboard([str(runs / "poor")]) == 2
    assert "poor: has no scores that can be read" in said(capsys)


def test_json_instead_of_tables(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = ranked(runs, "--json")
    assert json.loads(capsys.readouterr().out) == content


def test_a_picture_that_cannot_be_written_leaves_no_half(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    ranked(runs)
    monkeypatch.setattr("eval.reporting.charts.draw_chart", lambda spec, suffix: b"half")
    monkeypatch.setattr("os.fsync", full)
    capsys.readouterr()
    assert leaderboard([str(runs)]) == 2
    assert "No space left on device" in said(capsys)
    drawn = (runs / "leaderboard" / "plots").glob("leaderboard-*")
    assert {file.read_text() for file in drawn} == {"drawn"}
    assert not [*(runs / "leaderboard" / "plots").glob(".*")]


def test_the_pictures_are_drawn(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    shutil.rmtree(runs / "poor")
    ranked(runs)
    plots = runs / "leaderboard" / "plots"
    assert (plots / "leaderboard-plos-cost.png").read_bytes().startswith(b"\x89PNG")
    assert (plots / "leaderboard-plos-length.svg").read_text().startswith("<svg")
    assert not [file for file in plots.iterdir() if "partial" in file.name]


def test_the_page_filters_sorts_and_requests_nothing(runs: Path) -> None:
    edit(runs / "poor", "run.json", lambda held: held | {"plan_description": HOSTILE})
    (runs / "poor").rename(runs / "<script>alert(2)<")
    shutil.copytree(runs / "good", runs / "twin")
    (runs / "good" / "report.html").write_text("<title>report of good</title>")
    ranked(runs)
    file = runs / "leaderboard" / "leaderboard.html"
    with chromium() as browser:
        opened = open_page(browser, file, viewport={"width": 900, "height": 800})
        page = opened.page
        board = page.locator("div.board").first
        rows = board.locator("tbody tr")
        assert rows.count() == 8
        assert "2 of 8 rows may be the best" in page.locator("p.lead").inner_text()
        page.get_by_label("Filter rows").first.fill("frontier deep/fair")
        assert [row.is_visible() for row in rows.all()].count(True) == 1
        page.get_by_label("Filter rows").first.fill("")
        page.locator("th button", has_text="RLsum").first.click()
        page.locator("th button", has_text="RLsum").first.click()
        ranks = [row.locator("td").first.inner_text() for row in rows.all()]
        assert ranks[0] == "8"
        assert ranks[-2:] == ["1\N{EN DASH}2"] * 2
        page.locator("th button", has_text="attn TFLOP").first.click()
        costs = [float(row.locator("td").nth(6).inner_text()) for row in rows.all()]
        assert costs == sorted(costs, reverse=True)
        # Eight columns, or all; the label stays in view while the others move.
        assert [head.is_visible() for head in board.locator("th").all()].count(True) == 8
        toggle = board.locator("button.columns")
        toggle.click()
        assert all(head.is_visible() for head in board.locator("th").all())
        page.evaluate("document.querySelector('.board .scroll').scrollLeft = 600")
        label, rank = (rows.first.locator(name).first.bounding_box() for name in ("td.label", "td"))
        assert label["x"] >= 0
        assert rank["x"] < 0
        toggle.click()
        assert [head.is_visible() for head in board.locator("th").all()].count(True) == 8
        # Names are text, and a row leads to its report where there is one.
        assert page.get_by_text("<script>alert(2)<").first.is_visible()
        assert board.locator("td.label a").count() == 2
        assert opened.requests == [file.as_uri()]
        assert opened.complaints == []
        board.locator("td.label a").first.click()
        page.wait_for_url("**/good/report.html")
        assert page.title() == "report of good"


def test_the_page_fits_a_phone(runs: Path) -> None:
    ranked(runs)
    with chromium() as browser:
        opened = open_page(browser, runs / "leaderboard" / "leaderboard.html", viewport={"width": 390, "height": 844})
        page = opened.page
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        row = page.locator("div.board tbody tr").first
        boxes = [cell.bounding_box() for cell in row.locator("td").all() if cell.is_visible()]
        assert len(boxes) == 8
        assert all(box["x"] >= 0 and box["x"] + box["width"] <= 390 for box in boxes)
        assert row.locator("td.label").bounding_box()["y"] == min(box["y"] for box in boxes)
        assert row.locator(".span b").is_visible()
        assert opened.complaints == []
