"""A study on random tiny models: what runs, what is not run again, what a failure stops, and what is reported."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.state import AcceleratorState, GradientState

from eval import finetune, perplexity, run, study
from eval.errors import UserError
from eval.records.run_folder import locked
from eval.studies import launch
from eval.studies.folder import open_study_folder
from eval.studies.parts import read_study
from tests.helpers.tiny_models import save_tiny_checkpoint

SCRIPTS = {"eval/run.py": run.main, "eval/perplexity.py": perplexity.main, "eval/finetune.py": finetune.main}
SECRET = "zanzibar"  # stands in every document and reference
WORDS = f"long documents hold many {SECRET} words and every word costs a token of context to read".split()
RUN, PERPLEXITY, FINETUNE = SCRIPTS
SHIPPED = [file for name in ("study", "paper") for file in sorted((launch.ROOT / "configs" / name).glob("*.yaml"))]
assert len(SHIPPED) > 2

Content = dict[str, Any]

pytestmark = pytest.mark.usefixtures("no_plots")


def main(arguments: Sequence[str]) -> int:
    """Return the exit status of a command line, and print what Python prints when it exits."""
    try:
        return study.main(arguments)
    except SystemExit as end:
        print(end.code, file=sys.stderr)
        return 1


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def text(seed: int, num_words: int) -> str:
        return " ".join(WORDS[(seed * 7 + i * (seed + 3)) % len(WORDS)] for i in range(num_words))

    file = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = [{"article": text(i, 60 + 5 * i), "abstract": f"{SECRET} {text(i + 50, 8)}"} for i in range(8)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Run scripts in this process, and return what was launched."""
    calls: list[list[str]] = []

    def launch_here(words: Sequence[str], log: Path) -> int:
        calls.append(list(words))
        status = SCRIPTS[words[0]](list(words[1:]))
        AcceleratorState._reset_state(True)
        GradientState._reset_state()
        return status

    monkeypatch.setattr(launch, "launch", launch_here)
    return calls


def part(name: str, script: str, needs: Sequence[str] = (), **settings: Any) -> Content:
    return {"name": name, "script": script, "settings": settings, "needs": list(needs)}


@pytest.fixture
def content(model: Path, data: Path) -> Content:
    """A study of each kind of part that is not a search."""
    least = {"task": "arxiv", "data": str(data), "model": str(model), "threads": 1}
    local = "local span=24 sinks=2"
    trained = "{output}/train/last"
    training = least | {"maxlen": 300, "max_steps": 2, "eval_every": 1, "held_out": 0.25, "learning_rate": 1.0e-3}
    return {
        "title": "What spans cost",
        "text": "A tiny one.",
        "defaults": {
            RUN: least | {"maxlen": [300, 500], "max_new_tokens": 12, "template": "instruct-plain"},
            PERPLEXITY: least | {"maxlen": [128, 300]},
            FINETUNE: training,
        },
        "parts": [
            part("answers-trained", RUN, model=trained),
            part("answers", RUN, plan="full"),
            part("answers-local", RUN, plan=local),
            part("train", FINETUNE, plan="full"),
            part("train-local", FINETUNE, plan=local),
            part("losses", PERPLEXITY, plan="full"),
            part("losses-local", PERPLEXITY, plan=local),
        ],
        "sections": [
            {
                "kind": "perplexity",
                "title": "Perplexity",
                "parts": ["losses", "losses-local"],
                "reference": "losses",
                "from_position": 256,
            },
            {
                "kind": "rouge",
                "title": "Scores",
                "parts": ["answers", "answers-local", "answers-trained"],
                "reference": "answers",
                "text": "Said of scores.",
            },
            {"kind": "training", "title": "Training", "parts": ["train", "train-local"], "reference": "train"},
            {"kind": "cost", "title": "Cost", "parts": ["answers", "answers-local", "losses"], "reference": "answers"},
            {
                "kind": "repetition",
                "title": "Repetition",
                "parts": ["answers", "answers-local"],
                "reference": "answers",
            },
        ],
    }


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_a_shipped_study_is_read(file: Path) -> None:
    shipped = read_study(file)
    assert shipped.parts
    assert shipped.sections or shipped.claims


def write(tmp_path: Path, content: Content) -> Path:
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


def test_a_study_is_run_reported_and_not_run_again(
    content: Content,
    launched: list[list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file, output = write(tmp_path, content), tmp_path / "out"
    arguments = [str(file), "--output", str(output)]
    assert main(arguments) == 0
    # What is needed comes first, and the order is else that of the file.
    names = [Path(words[words.index("--output") + 1]).name for words in launched]
    assert names == ["answers", "answers-local", "train", "answers-trained", "train-local", "losses", "losses-local"]
    trained = launched[3]
    assert trained[trained.index("--model") + 1] == str(output / "train" / "last")
    report = (output / "report.md").read_text()
    for said in ("Said of scores.", "A tiny one.", "accelerate launch eval/finetune.py", "detectable", "Gallery"):
        assert said in report
    assert "cannot be made" not in report
    assert "Missing" not in report
    assert len(list((output / "plots").glob("*.svg"))) == 4
    assert all(f"plots/{plot.name}" in report for plot in (output / "plots").glob("*.svg"))
    # Texts are in the run folders alone.
    assert SECRET in (output / "answers" / "examples.jsonl").read_text()
    published = [*(output / "gallery").rglob("*"), output / "report.md", output / "study.json", *output.glob("plots/*")]
    texts = [SECRET, *(line["text"] for line in map(json.loads, (output / "answers/predictions.jsonl").open()))]
    for one in published:
        if one.is_file() and one.suffix != ".png":
            found = one.read_text()
            assert not any(text in found for text in texts if len(text) > 4), one
    launched.clear()
    capsys.readouterr()
    # Once is enough to draw.
    for module in ("studies.report", "reporting.leaderboard_report"):
        monkeypatch.setattr(f"eval.{module}.save_charts", lambda folder, specs, own: [])
    with locked(output):
        assert main(arguments) == 2  # one study at a time, of which a report may be written meanwhile
        assert "is in use by another run" in capsys.readouterr().err
        (output / "report.md").unlink()
        assert main([*arguments, "--report"]) == 0
        assert (output / "report.md").read_text() == report
    # A study that was killed when a part had ended notes it at the next start.
    noted = json.loads((output / "study.json").read_text())
    assert noted["parts"].pop("losses-local")
    (output / "study.json").write_text(json.dumps(noted))
    assert main(arguments) == 0
    assert launched == []
    assert "answers: done before" in capsys.readouterr().out
    assert json.loads((output / "study.json").read_text())["parts"].keys() >= {"losses-local", "answers"}


def small(content: Content, *names: str) -> Content:
    """Return a study of these parts alone, without sections."""
    return content | {"parts": [one for one in content["parts"] if one["name"] in names], "sections": []}


def test_what_was_asked_anew_is_extended_or_refused_by_its_script(
    content: Content, launched: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = small(content, "losses", "losses-local")
    arguments = [str(write(tmp_path, chosen)), "--output", str(tmp_path / "out")]
    assert main(arguments) == 0
    launched.clear()
    chosen["parts"][0]["settings"]["maxlen"] = [64, 128, 300]
    chosen["parts"][1]["settings"]["plan"] = "local span=30 sinks=2"
    write(tmp_path, chosen)
    capsys.readouterr()
    assert main(arguments) == 1
    assert len(launched) == 2
    said = capsys.readouterr().err
    assert "holds another run: plan is" in said
    (line,) = [line for line in said.splitlines() if "part 'losses-local' ended with status 2" in line]
    assert f"accelerate launch eval/perplexity.py --task arxiv --data {content['defaults'][PERPLEXITY]['data']}" in line
    assert f"log: {tmp_path / 'out' / 'losses-local.log'}" in line
    results = json.loads((tmp_path / "out" / "losses" / "scores.json").read_text())["results"]
    assert [result["maxlen"] for result in results] == [64, 128, 300]
    # The first is done now, and the other is tried again.
    launched.clear()
    assert main(arguments) == 1
    assert len(launched) == 1


def test_a_part_that_fails_stops_those_that_need_it_alone(
    content: Content, launched: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = small(content, "train", "answers-trained", "losses")
    chosen["parts"][1]["settings"]["model"] = str(tmp_path / "nowhere")
    chosen["sections"] = [one for one in content["sections"] if one["kind"] == "training"]
    chosen["sections"][0]["parts"] = ["train"]
    file, output = write(tmp_path, chosen), tmp_path / "out"
    assert main([str(file), "--output", str(output)]) == 1
    printed = capsys.readouterr()
    assert "answers-trained: not run, for it needs train" in printed.out
    assert "error: 2 part(s) not done: train, answers-trained" in printed.err
    assert [words[0] for words in launched] == [FINETUNE, PERPLEXITY]
    report = (output / "report.md").read_text()
    assert "Missing: `train` (not begun). The commands below make them." in report
    assert "There is no gallery" in report


def test_a_training_that_has_begun_is_resumed(
    content: Content, launched: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, output = write(tmp_path, small(content, "train")), tmp_path / "out"
    assert main([str(file), "--output", str(output)]) == 0
    assert "--resume" not in launched[0]
    record = json.loads((output / "train" / "run.json").read_text())
    record["sessions"][-1]["finished"] = None
    (output / "train" / "run.json").write_text(json.dumps(record))
    capsys.readouterr()
    assert main([str(file), "--output", str(output), "--list"]) == 0
    listed = capsys.readouterr().out
    assert listed.startswith("train: partly\n  accelerate launch eval/finetune.py --task arxiv")
    assert listed.endswith("/out/train --resume\n")
    assert main([str(file), "--output", str(output)]) == 0
    assert launched[1][-1] == "--resume"


def test_only_runs_a_part_with_what_it_needs_and_the_list_says_what_blocks(
    content: Content, launched: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, output = write(tmp_path, content), tmp_path / "out"
    assert main([str(file), "--output", str(output), "--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert "answers-trained: not begun, blocked by train" in listed
    assert not output.exists()
    chosen = read_study(file).chosen(["answers-trained", "losses"])
    assert [one.name for one in chosen] == ["train", "answers-trained", "losses"]
    assert main([str(file), "--only", "nothing"]) == 2
    assert "--only nothing" in capsys.readouterr().err
    assert launched == []


def test_a_part_that_was_run_by_its_own_command_is_done(
    content: Content, launched: list[list[str]], tmp_path: Path
) -> None:
    file, output = write(tmp_path, small(content, "losses")), tmp_path / "out"
    read = read_study(file)
    assert perplexity.main(read.parts["losses"].command(output)[1:]) == 0
    assert open_study_folder(read, output).state(read.parts["losses"]) == "done"
    assert main([str(file), "--output", str(output)]) == 0
    assert launched == []


def test_a_part_whose_input_was_made_anew_is_not_done(
    content: Content, launched: list[list[str]], tmp_path: Path
) -> None:
    content["parts"].append(part("losses-after", PERPLEXITY, needs=["losses"], plan="full"))
    file, output = write(tmp_path, small(content, "losses", "losses-after")), tmp_path / "out"
    assert main([str(file), "--output", str(output)]) == 0
    record = json.loads((output / "losses" / "run.json").read_text())
    record["sessions"][-1]["finished"] = "2001-01-01T00:00:00+00:00"
    (output / "losses" / "run.json").write_text(json.dumps(record))
    folder = open_study_folder(read_study(file), output)
    assert [folder.state(one) for one in folder.study.parts.values()] == ["done", "made by other settings or inputs"]


@pytest.mark.parametrize(
    ("name", "text"),
    [("study.json", '{"parts": {"losses": 5}}'), ("study.json", '{"parts": [1]}'), ("losses/run.json", "sessions")],
)
def test_damaged_records_are_no_tracebacks(
    name: str, text: str, content: Content, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, output = write(tmp_path, small(content, "losses")), tmp_path / "out"
    (output / "losses").mkdir(parents=True)
    if text == "sessions":
        text = json.dumps({"identity": {}, "tasks": {}, "sessions": [5]})
    (output / name).write_text(text)
    status = main([str(file), "--output", str(output), "--list"])
    printed = capsys.readouterr()
    if name == "study.json":
        assert status == 2
        assert printed.err.count("\n") == 1
    else:
        assert status == 0
        assert "losses: not begun" in printed.out


def test_what_a_changed_part_needs_makes_it_another(content: Content, tmp_path: Path) -> None:
    before = read_study(write(tmp_path, content))
    next(one for one in content["parts"] if one["name"] == "train")["settings"]["seed"] = 1
    after = read_study(write(tmp_path, content))
    changed = [name for name in before.parts if before.digest(name) != after.digest(name)]
    assert changed == ["train", "answers-trained"]


def no_part(content: Content) -> None:
    content["parts"] = []


def unknown_key(content: Content) -> None:
    content["part"] = []


def unknown_flag(content: Content) -> None:
    content["parts"][0]["settings"]["maxlength"] = 5


def bad_value(content: Content) -> None:
    content["parts"][0]["settings"]["maxlen"] = ["many"]


def own_output(content: Content) -> None:
    content["parts"][0]["settings"]["output"] = "elsewhere"


def unknown_script(content: Content) -> None:
    content["parts"][0]["script"] = "eval/score.py"


def unknown_need(content: Content) -> None:
    content["parts"][0]["settings"]["model"] = "{output}/nothing/last"


def circle(content: Content) -> None:
    content["parts"][1]["needs"] = ["answers-trained"]
    content["parts"][0]["needs"] = ["answers"]


def twice(content: Content) -> None:
    content["parts"].append(content["parts"][0])


def bad_name(content: Content) -> None:
    content["parts"][0]["name"] = "../up"


def long_name(content: Content) -> None:
    content["parts"][0]["name"] = "a" * 300


def no_title(content: Content) -> None:
    content["sections"][0]["title"] = " "


def name_of_a_file(content: Content) -> None:
    content["parts"][0]["name"] = "study.json"


def wrong_kind(content: Content) -> None:
    content["sections"][0]["kind"] = "rouge"


def no_reference(content: Content) -> None:
    del content["sections"][0]["reference"]


def other_reference(content: Content) -> None:
    content["sections"][0]["reference"] = "answers"


def same_title(content: Content) -> None:
    content["sections"][1]["title"] = "Perplexity"


def bad_label(content: Content) -> None:
    content["sections"][0]["labels"] = {"losses": 7}


def same_label(content: Content) -> None:
    content["sections"][0]["labels"] = {"losses": "full", "losses-local": "full"}


def no_ladder(content: Content) -> None:
    content["sections"].append({"kind": "ladder", "title": "Ladder", "parts": ["answers"]})


def off_the_buckets(content: Content) -> None:
    content["sections"][0]["from_position"] = 300


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (no_part, "parts is empty"),
        (unknown_key, "the file: unknown key 'part'; known: title, parts"),
        (unknown_flag, "part 'answers-trained': unknown key 'maxlength'"),
        (bad_value, "part 'answers-trained': argument --maxlen: 'many' is not a whole number"),
        (own_output, "part 'answers-trained': 'output' is no setting of a part"),
        (unknown_script, "script 'eval/score.py' is not known"),
        (unknown_need, "part 'answers-trained' needs 'nothing', which is no part"),
        (circle, "parts need each other in a circle: answers-trained, answers"),
        (twice, "two parts are called 'answers-trained'"),
        (bad_name, "part 1 is called '../up'"),
        (long_name, "it names a folder: at most 100 letters, digits"),
        (no_title, "section 1: title is empty; write a text"),
        (name_of_a_file, "part 1 is called 'study.json'"),
        (
            wrong_kind,
            "section 'Perplexity': 'losses' is a part of eval/perplexity.py; rouge shows those of eval/run.py",
        ),
        (no_reference, "section 'Perplexity': reference is missing"),
        (no_ladder, "section 'Ladder': 'answers' has no ladder; add `ladder: true` to that part"),
        (other_reference, "reference 'answers' is none of its parts: losses, losses-local"),
        (off_the_buckets, "from_position is 300"),
        (bad_label, "section 'Perplexity': labels has 'losses': 7; write 'name: words in quotes' lines"),
        (same_label, "section 'Perplexity': labels calls two names 'full'"),
        (same_title, "two sections are called 'Perplexity'"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_a_file_cannot_hold_is_told_in_one_line(
    change: Callable[[Content], None],
    said: str,
    content: Content,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change(content)
    # As a file has no anchors where a dictionary is there twice.
    file = write(tmp_path, json.loads(json.dumps(content)))
    with pytest.raises(UserError):
        read_study(file)
    assert main([str(file), "--output", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: study {file}: ")
    assert said in line
    assert not (tmp_path / "out").exists()


# Stands for a script that saves when it is ended.
_SAVING = """
import signal, sys, time
from pathlib import Path
def end(*_):
    print("saving")
    time.sleep(0.5)
    Path(sys.argv[1]).write_text("saved")
    sys.exit(143)
signal.signal(signal.SIGTERM, end)
print("at work")
time.sleep(600)
"""


def test_a_terminal_that_is_gone_leaves_a_part_the_time_to_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "part.py").write_text(_SAVING)
    monkeypatch.setattr(launch, "ROOT", tmp_path)

    class Gone:
        @property
        def buffer(self) -> Gone:
            return self

        def write(self, text: bytes) -> int:
            if b"at work" in text:  # what the launcher says comes before
                raise OSError("no such terminal")
            return len(text)

        def flush(self) -> None: ...

    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", Gone())
        with pytest.raises(KeyboardInterrupt):
            launch.launch(["part.py", str(tmp_path / "state")], tmp_path / "log")
    assert (tmp_path / "state").read_text() == "saved"
    assert "saving" in (tmp_path / "log").read_text()


def test_a_report_needs_a_folder(content: Content, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "typo"
    assert main([str(write(tmp_path, content)), "--output", str(output), "--report"]) == 2
    assert f"there is no folder '{output}' to report on" in capsys.readouterr().err
    assert not output.exists()


# Stands for a script: it holds its folder, is at work for long in its first session, and ends in its second.
_SCRIPT = """
import os, shutil, sys, time
from pathlib import Path
from eval.records.run_folder import (RunFolder, locked)
path = Path(sys.argv[sys.argv.index("--output") + 1])
has_begun = path.exists()
with locked(path):
    print("at work")
    time.sleep(0 if has_begun else 600)
    shutil.copy(os.environ["RECORD"], path / "run.json")
    RunFolder(path).write_json("scores.json", {})
    print("at its end")
"""


def test_an_interrupted_study_ends_its_part_and_goes_on_by_the_same_command(
    content: Content, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, output = write(tmp_path, small(content, "losses")), tmp_path / "out"
    log, handler = output / "losses.log", signal.getsignal(signal.SIGTERM)
    (tmp_path / "eval").mkdir()
    (tmp_path / PERPLEXITY).write_text(_SCRIPT)
    assert all((launch.ROOT / script).is_file() for script in SCRIPTS)
    monkeypatch.setenv("PYTHONPATH", str(launch.ROOT))
    monkeypatch.setenv("RECORD", str(launch.ROOT / "tests" / "golden" / "fca1ebb" / "perplexity" / "run.json"))
    monkeypatch.setattr(launch, "ROOT", tmp_path)

    def interrupt() -> None:
        deadline = time.monotonic() + 120
        while not (log.exists() and "at work" in log.read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    scheduler = threading.Thread(target=interrupt)
    try:
        scheduler.start()
        assert main([str(file), "--output", str(output)]) == 130
        scheduler.join()
        assert capfd.readouterr().err.endswith("interrupted: the same command goes on where this one stopped\n")
        # Neither the study's lock nor the part's is held by anything that was left.
        assert main([str(file), "--output", str(output)]) == 0
    finally:
        signal.signal(signal.SIGTERM, handler)
    printed = capfd.readouterr().out
    assert "1 of 1 parts are done" in printed
    # Both sessions are in the log, and what the script printed is on the terminal too.
    assert log.read_text().count("$ eval/perplexity.py") == 2
    assert "at its end" in log.read_text()
    assert "at its end" in printed
