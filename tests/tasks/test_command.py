"""`python -m tasks`: the list, one task, and a prompt as a model will see it."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks import LONGBENCH, LONGBENCH_E, SCROLLS, SUMMARIES, TASKS, Task
from tasks.__main__ import main, markdown_rows
from tests.helpers.official_files import write_official
from tests.helpers.tiny_models import save_tiny_checkpoint

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_checkpoint(tmp_path_factory.mktemp("model")))


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 0
    return capsys.readouterr().out


def error(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert not captured.out
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("error: ")
    return captured.err


def test_the_list_names_every_task_in_100_columns(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "list").splitlines()
    assert max(map(len, lines)) <= 100
    starts = [line.split() for line in lines if not line.startswith(" ")]
    assert [cells[0] for cells in starts[1:]] == list(TASKS)
    assert ["qasper", "validation", "(1,726)", "f1", "128", "1"] in starts
    assert ["book_sum", "test", "(not", "stated)", "hf", "512", "1"] in starts
    for task in TASKS.values():
        assert " ".join(task.licence.split()) in " ".join(" ".join(lines).split())


def made() -> Task:
    return replace(TASKS["plos"], name="made")


def failing() -> Task:
    raise RuntimeError("no licence\nfound")


def test_the_list_has_tasks_of_others_and_goes_on_without_broken_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    points = [EntryPoint(name, f"{__name__}:{name}", "masformer.tasks") for name in ("failing", "made")]
    monkeypatch.setattr("tasks.entry_points", lambda **about: EntryPoints(points).select(**about))
    (tmp_path / "shared.yaml").write_text("data: a.jsonl\n")
    for form in ("--json", "--markdown", None):
        assert main(["list", *([form] if form else []), "--tasks-from", str(tmp_path)]) == 0
        output = capsys.readouterr()
        names = [one["name"] for one in json.loads(output.out)] if form == "--json" else output.out
        assert "shared" in names
        assert "made" in names
        assert output.err == (
            f"warning: task 'failing' of the entry point {__name__}:failing cannot be loaded: no licence found; "
            "install its package again, or take it out\n"
        )
    assert "task 'failing' of the entry point" in error(capsys, "show", "failing")


def test_the_list_as_json_says_all_that_the_tasks_say(capsys: pytest.CaptureFixture[str]) -> None:
    described: list[dict[str, Any]] = json.loads(printed(capsys, "list", "--json"))
    assert [about["name"] for about in described] == list(TASKS)
    for about in described:
        task = TASKS[about["name"]]
        assert about["splits"] == dict(task.splits)
        assert about["revision"] == task.revision
        assert about["templates"] == {k: {"text": v.text, "chat": v.chat} for k, v in task.templates.items()}
        assert about["metrics"] == (task.profile if task.has_references else None)


@pytest.mark.parametrize("task", [*TASKS, "own.yaml"])
def test_a_task_is_shown_with_its_templates(
    task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text("instruction: Say what burns.\n")
    lines = printed(capsys, "show", task).splitlines()
    assert max(map(len, lines)) <= 100
    text = " ".join(" ".join(line.removeprefix("  |") for line in lines).split())
    if task in TASKS:
        assert " ".join(TASKS[task].source.split()) in text
        for name, template in TASKS[task].templates.items():
            assert f"template {name}" in text
            assert " ".join(template.text.split()) in text
    else:
        assert "Say what burns. {context}" in text


def test_a_prompt_is_shown_as_the_model_will_see_it(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(write_official("quality", tmp_path))
    shared = ("show", "quality", "--example", "--data", data, "--model", model, "--index", "1")
    whole = printed(capsys, *shared)
    assert "\n<|im_start|>user\nHere is an article or a story.\n\nReport 1. It rained" in whole
    assert whole.endswith("\n (D) Nothing<|im_end|>\n<|im_start|>assistant\n\n")
    assert "cut here" not in whole
    # One token a byte, special tokens aside: counts can be made by hand.
    prompt = whole.split("maxlen (tokens)               2,048\n\n")[1].removesuffix("\n")
    num_tokens = len(prompt.encode()) - sum(
        prompt.count(token) * (len(token) - 1) for token in ("<|im_start|>", "<|im_end|>")
    )
    assert f"prompt (tokens)               {num_tokens:,}\n" in whole
    context = "Report 1. It rained for a week. The river rose, and the bridge was closed.\n\nNobody was hurt."
    assert f"context (tokens)              {len(context)} of {len(context)}, 0 cut\n" in whole

    maxlen = str(num_tokens + 64 - 50)  # fifty tokens less than it needs
    mark = "[... 50 tokens of the context cut here ...]\n"
    left = len(context) - 50
    for policy, shown in {
        "head": f"{context[:left]}\n{mark}",
        "tail": f"\n{mark}{context[50:]}",
        "middle": f"{context[: left - left // 2]}\n{mark}{context[-(left // 2) :]}",
    }.items():
        text = printed(capsys, *shared, "--maxlen", maxlen, "--truncation", policy)
        assert f"Here is an article or a story.\n\n{shown}\n\nAnswer the following question" in text
        assert f"context (tokens)              {left} of {len(context)}, 50 cut\n" in text
    assert runpy.run_module("eval.prompt")["main"](["quality", *shared[3:]]) == 0
    assert capsys.readouterr().out == whole
    plain = printed(capsys, *shared, "--template", "query_first-plain")
    assert "(no chat template)" in plain
    assert plain.endswith("Answer:\n")


def test_mistakes_are_one_line_and_exit_2(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(write_official("qasper", tmp_path))
    example = ("show", "qasper", "--example", "--data", data, "--model", model)
    assert "--help explains" in error(capsys)
    assert "--help explains" in error(capsys, "list", "--jsn")
    assert "unknown task 'qaspr', perhaps 'qasper'; python -m tasks list names all" in error(capsys, "show", "qaspr")
    assert "give a YAML task file" in error(capsys, "show", "custom")
    assert "task file no.yaml cannot be read" in error(capsys, "show", "no.yaml")
    assert "--maxlen applies only with --example" in error(capsys, "show", "qasper", "--maxlen", "3")
    assert "task text has no prompts" in error(capsys, "show", "text", "--example")
    assert "--index is -1; give 0 or more" in error(capsys, *example, "--index", "-1")
    assert "shots is -1; give 0 or more" in error(capsys, *example, "--shots", "-1")
    assert "--index is 3, and task qasper has 3 examples there" in error(capsys, *example, "--index", "3")
    assert "maxlen 100 is too small: " in error(capsys, *example, "--maxlen", "100")
    assert "has no template 'short'; known: context_first, " in error(capsys, *example, "--template", "short")
    assert "has no truncation 'left'; known: head, middle, tail" in error(capsys, *example, "--truncation", "left")
    assert "task qasper has no split 'dev'" in error(capsys, *example, "--split", "dev")
    assert "no such file or folder" in error(capsys, *example, "--data", str(tmp_path / "none"))
    assert "does not exist; give a folder" in error(capsys, *example, "--model", str(tmp_path / "none"))


def test_the_command_loads_no_model_code_for_what_needs_none() -> None:
    code = (
        "import sys; from tasks.__main__ import main; main(['show', 'qasper']); main(['list']);"
        "print({'torch', 'transformers', 'eval', 'pyarrow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize(
    ("file", "suite"),
    [("scrolls", SCROLLS), ("longbench", LONGBENCH), ("longbench-e", LONGBENCH_E), ("summaries", SUMMARIES)],
    ids=lambda x: str(x)[:11],
)
def test_the_configs_of_suites_name_their_tasks(file: str, suite: tuple[str, ...]) -> None:
    assert tuple(yaml.safe_load((ROOT / "configs" / f"{file}.yaml").read_text())["task"]) == suite


def test_the_table_in_the_documentation_is_that_of_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = ROOT / "docs" / "tasks.md"
    remedy = "run: python -m tasks list --write docs/tasks.md"
    assert f"\n\n{printed(capsys, 'list', '--markdown')}\n" in page.read_text(encoding="utf-8"), remedy

    stale = tmp_path / "tasks.md"
    head, rule, *rows = markdown_rows(TASKS.values())
    stale.write_text("\n".join(("# A", "", head, rule, rows[0], "| gone |", "", "B", "", "C")), encoding="utf-8")
    printed(capsys, "list", "--write", str(stale))
    assert stale.read_text(encoding="utf-8") == "\n".join(("# A", "", head, rule, *rows, "", "B", "", "C", ""))
    stale.write_text("nothing", encoding="utf-8")
    assert "holds no table of tasks" in error(capsys, "list", "--write", str(stale))


def test_a_task_file_is_checked_with_the_first_rows_of_its_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"ticket": "The printer is on fire." * i, "gist": ["Fire.", "It burns."]} for i in (1, 2, 3)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = tmp_path / "tickets.yaml"
    file.write_text("data: a.jsonl\ncontext_field: ticket\ntarget_field: gist\nshots: 1\n")
    lines = printed(capsys, "check", str(file)).splitlines()
    assert lines[0] == f"{file}: task tickets, the first 2 examples of split test"
    assert lines[2] == "references: 4, 1 to 2 words, 2 in the median"
    assert lines[3].startswith("shots:      1, ")
    listed = printed(capsys, "list", "--tasks-from", str(tmp_path))
    assert "\ntickets " in listed
    assert "shots:              1 of train, seed 0" in printed(capsys, "show", "tickets", "--tasks-from", str(tmp_path))
    file.write_text("data: a.jsonl\ncontext_field: ticket\ntarget_field: gist\nmetrics: bleurt\n")
    assert "task 'tickets' asks for unknown metrics 'bleurt'; known: hf" in error(capsys, "check", str(file))
    file.write_text("data: a.jsonl\ncontext_field: text\ntarget_field: gist\n")
    assert "a.jsonl line 1: no field 'text', fields found: ticket, gist" in error(capsys, "check", str(file))
