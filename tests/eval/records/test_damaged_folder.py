"""A run.json that somebody changed by hand is one line in every command, which names the field and its value."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from eval.leaderboard import main as leaderboard
from eval.run import main as run
from eval.score import main as score

GOLDEN = Path(__file__).parents[2] / "golden" / "fca1ebb"
DATA = "--task data/reports.yaml,data/questions.yaml --template ask,bare --maxlen 300 500"
RESUMED = f"{DATA} --model model --threads 1 --output runs/run".split()
COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], list[str]]] = {
    "score": (score, ["runs/run"]),
    "resume": (run, RESUMED),
    "leaderboard": (leaderboard, ["runs"]),
}

pytestmark = pytest.mark.usefixtures("no_plots", "no_weights", "fresh_accelerator")


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the run.json of a copy of a golden run; its model and data lie in the working directory."""
    monkeypatch.chdir(tmp_path)
    for name in ("data", "model"):
        (tmp_path / name).symlink_to(GOLDEN / name)
    shutil.copytree(GOLDEN / "run", tmp_path / "runs" / "run")
    return tmp_path / "runs" / "run" / "run.json"


def remove_split(content: dict[str, Any]) -> None:
    del content["tasks"]["reports"]["split"]


def misspell_number(content: dict[str, Any]) -> None:
    content["tasks"]["reports"]["maxlen"][1] = "500"


def count_with_a_truth_value(content: dict[str, Any]) -> None:
    content["sessions"][0]["threads"] = True


def replace_sessions(content: dict[str, Any]) -> None:
    content["sessions"] = "none"


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (remove_split, "run.json has no field 'tasks.reports.split', as in folders of earlier versions; restore"),
        (misspell_number, "run.json: field 'tasks.reports.maxlen[1]' is \"500\", expected a whole number; restore"),
        (count_with_a_truth_value, "run.json: field 'sessions[0].threads' is true, expected a whole number; restore"),
        (replace_sessions, "run.json is not the record of a run; "),
    ],
)
def test_a_changed_record_is_one_line_and_left_as_it_is(
    name: str,
    change: Callable[[dict[str, Any]], None],
    told: str,
    record: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    content = json.loads(record.read_text())
    change(content)
    record.write_text(json.dumps(content))
    before = record.read_bytes()
    main, arguments = COMMANDS[name]
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert told in line
    assert record.read_bytes() == before


@pytest.mark.parametrize("name", ["score", "resume", "leaderboard"])
def test_unknown_fields_are_ignored(name: str, record: Path) -> None:
    content = json.loads(record.read_text())
    content["colour"] = content["identity"]["colour"] = content["sessions"][0]["machine"]["colour"] = "blue"
    record.write_text(json.dumps(content))
    main, arguments = COMMANDS[name]
    assert main(arguments) == 0
