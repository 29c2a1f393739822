"""Run folders in which one value was changed: every command ends well or in one line, never in a traceback."""

from __future__ import annotations

import copy
import gzip
import json
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from eval.compare import main as compare
from eval.export import main as export
from eval.leaderboard import main as leaderboard
from eval.merge import main as merge
from eval.records.journal import fingerprint, read_lines
from eval.records.schema import ExampleScore
from eval.records.typed import to_json
from eval.run import main as run
from eval.score import main as score
from tests.helpers.run_folders import without_checksums

pytestmark = pytest.mark.usefixtures("no_plots", "fresh_accelerator")

ABSENT = object()
NESTED: Any = []
for _ in range(80):
    NESTED = [NESTED]
ODD = [None, -1, 0, 10**40, 1e308, float("nan"), True, "", "x", "../../evil", "\ud800", [], {}, [None], NESTED, ABSENT]
FILES = (
    "run.json",
    "scores.json",
    "examples.jsonl",
    "predictions.jsonl",
    "example_scores.jsonl",
    "documents.jsonl.gz",
)
Case = tuple[str, tuple[Any, ...], Any]


@pytest.fixture
def good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a run that has ended, beside a second one; its command is `RUN`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("eval.reporting.page._vega", lambda: "")
    monkeypatch.setattr("eval.reporting.charts.draw_chart", lambda spec, suffix: b"drawn")
    rows = [{"article": f"Report {n} on {n} old bridges. " * 9, "abstract": f"Bridges {n}."} for n in range(3)]
    Path("data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("good", "other"):
        assert run([*RUN, "--output", name]) == 0
    return tmp_path / "good"


RUN = ["--engine", "mock", "--task", "arxiv", "--data", "data.jsonl", "--max-new-tokens", "16", "--maxlen", "60", "80"]
COMMANDS: dict[str, Callable[[], int]] = {
    "score": lambda: score(["work/run"]),
    "compare": lambda: compare(["work/run", "other"]),
    "export": lambda: export(["work/run", "--output", "exported"]),
    "inspect": lambda: export(["work/run", "--to", "inspect", "--output", "exported"]),
    "dataset": lambda: export(["work/run", "--to", "dataset", "--output", "exported"]),
    "lm-eval-tasks": lambda: export(["work/run", "--to", "lm-eval-tasks", "--output", "exported"]),
    "eval-results": lambda: export(
        ["work/run", "--to", "eval-results", "--benchmark", "arxiv=owner/papers", "--output", "exported"]
    ),
    "leaderboard": lambda: leaderboard(["work", "--output", "board"]),
    "merge": lambda: merge(["work/run", "--output", "merged"]),
    "resume": lambda: run([*RUN, "--output", "work/run"]),
}


def content_of(file: Path) -> Any:
    """Return a file as JSON, lines as a list without their checksums."""
    text = gzip.decompress(file.read_bytes()).decode() if file.suffix == ".gz" else file.read_text()
    return (
        json.loads(text)
        if file.suffix == ".json"
        else [json.loads(line) for line in without_checksums(text).splitlines()]
    )


def write(file: Path, content: Any) -> None:
    text = json.dumps(content) if file.suffix == ".json" else "".join(json.dumps(line) + "\n" for line in content)
    file.write_bytes(gzip.compress(text.encode()) if file.suffix == ".gz" else text.encode())


def paths(content: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield where a value stands, of lists the first entries alone."""
    yield above
    parts = (
        content.items() if isinstance(content, dict) else enumerate(content[:1]) if isinstance(content, list) else ()
    )
    for name, part in parts:
        yield from paths(part, (*above, name))


def changed(content: Any, path: Sequence[Any], value: Any) -> Any:
    if not path:
        return {} if value is ABSENT else value
    made = copy.deepcopy(content)
    inner = made
    for name in path[:-1]:
        inner = inner[name]
    if value is ABSENT:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return made


def tamper(good: Path, case: Case) -> None:
    """Write `work/run` as the good run with one value changed, and the digest of its scores with it."""
    name, path, value = case
    for folder in ("work", "merged", "exported", "board"):
        shutil.rmtree(folder, ignore_errors=True)
    work = Path("work/run")
    shutil.copytree(good, work)
    record = content_of(work / "run.json")
    write(work / "run.json", record | {"checksums": False})
    content = changed(content_of(work / name), path, value)
    if name.endswith("json") or isinstance(content, list):
        write(work / name, content)
    if name == "example_scores.jsonl":
        # Who changes scores by hand can change their digest too.
        try:
            digest = fingerprint(to_json(read_lines(ExampleScore, work / name)))
        except ValueError:
            return
        write(work / "scores.json", content_of(work / "scores.json") | {"example_scores": digest})


@pytest.mark.parametrize("count", [60, pytest.param(1500, marks=pytest.mark.nightly)])
def test_one_odd_value_is_never_a_traceback(count: int, good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = [(name, path, value) for name in FILES for path in paths(content_of(good / name)) for value in ODD]
    chance = random.Random(count)
    names = list(COMMANDS)
    failed: list[Any] = []
    for number, case in enumerate(chance.sample(cases, min(count, len(cases)))):
        name = names[number % len(names)]
        tamper(good, case)
        capsys.readouterr()
        try:
            status = COMMANDS[name]()
        except Exception as error:  # what this test is about
            failed.append((name, *case[:2], str(case[2])[:30], f"{type(error).__name__}: {error}"[:200]))
            continue
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        if (status, len(errors)) not in ((0, 0), (2, 1)):
            failed.append((name, *case[:2], str(case[2])[:30], status, errors))
    assert failed == []
    assert not list(good.parent.rglob("*evil*"))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 60_000, "\xff", "", "9" * 5_000])
@pytest.mark.parametrize("name", FILES[:5])
def test_a_file_that_is_no_record_is_one_line(
    name: str, text: str, good: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tamper(good, ("run.json", ("colour",), "blue"))
    (Path("work/run") / name).write_bytes(text.encode("latin-1") + b"\n")
    for command in ("score", "compare", "leaderboard"):
        capsys.readouterr()
        status = COMMANDS[command]()
        assert (status, capsys.readouterr().err.count("error: ")) in ((0, 0), (2, 1))
