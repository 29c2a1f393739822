"""The run folders in a folder and below, as a list shows them: what they are, how far they are, what they scored."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from eval.errors import UserError
from eval.records.disk import read_json
from eval.records.run_folder import RunFolder, is_locked, kind_of
from eval.records.schema import PerplexityRecord, PlacementRecord, RunRecord, Scores, TrainingRecord
from eval.records.typed import from_json
from eval.reporting.columns import percent
from eval.reporting.tables import select
from eval.scoring.profiles import headline, metric_name

RUNNING, FINISHED, UNSCORED, INTERRUPTED, DAMAGED = "running", "finished", "not scored", "interrupted", "damaged"
ANSWERS = "answers"
_KINDS: dict[type, str] = {
    RunRecord: ANSWERS,
    PerplexityRecord: "perplexity",
    PlacementRecord: "placement",
    TrainingRecord: "training",
}
_REPORTS = ("report.html", "report.md")
_HIDDEN = "."


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """A run folder.

    Attributes:
        name: The folder as seen from the one that is listed; `.` for that one itself.
        kind: `answers`, `perplexity`, `placement` or `training`; empty for one that cannot be read.
        state: One of the names above.
        remark: What is wrong with a damaged one.
        tasks: Names of its tasks.
        model: Its model.
        plan: Text form of its plan.
        lengths: Lengths in tokens, ascending.
        started: When its last session began, UTC.
        scores: Headline score of each task at its greatest length, and of what it is, in words.
        files: Reports and comparisons in the folder, the report first.
    """

    name: str
    kind: str = ""
    state: str = DAMAGED
    remark: str = ""
    tasks: Sequence[str] = ()
    model: str = ""
    plan: str = ""
    lengths: Sequence[int] = ()
    started: str = ""
    scores: Sequence[tuple[str, str]] = ()
    files: Sequence[str] = ()


def find_runs(root: Path) -> dict[str, Path]:
    """Return the folders that hold a `run.json`, by their names; links are not followed."""
    return {folder.relative_to(root).as_posix(): folder for folder in _folders(root) if (folder / "run.json").is_file()}


def find_pages(root: Path) -> list[str]:
    """Return the leaderboards and reports of studies in a folder and below, as seen from it."""
    names = {"leaderboard.json": "leaderboard.html", "study.json": "report.md"}
    pages = [folder / page for folder in _folders(root) for file, page in names.items() if (folder / file).is_file()]
    return [page.relative_to(root).as_posix() for page in pages if page.is_file()]


def _folders(root: Path) -> Iterator[Path]:
    for folder, names, _ in os.walk(root):
        names[:] = sorted(name for name in names if not name.startswith(_HIDDEN))
        yield Path(folder)


def read_row(root: Path, name: str) -> RunRow:
    """Return what a list shows of a run; one that is damaged is listed with the reason."""
    path = root / name
    try:
        record = _read_record(path, *_stamp(path / "run.json"))
        is_scored = isinstance(record, RunRecord) and (path / "scores.json").is_file()
        scores = _read_scores(path / "scores.json", *_stamp(path / "scores.json")) if is_scored else None
    except (UserError, OSError, ValueError) as error:
        return RunRow(name=name, remark=str(error), files=_files(path))
    sessions = record.sessions
    lengths = {length for task in record.tasks.values() for length in getattr(task, "maxlen", [])}
    if isinstance(one := getattr(record.identity, "maxlen", None), int):
        lengths.add(one)
    return RunRow(
        name=name,
        kind=_KINDS[type(record)],
        state=state_of(path, record),
        tasks=list(record.tasks),
        model=record.identity.model.label,
        plan=getattr(record, "plan_description", ""),
        lengths=sorted(lengths),
        started=sessions[-1].started if sessions else "",
        scores=list(_describe(record, scores)) if scores else [],
        files=_files(path),
    )


def _kind(path: Path) -> type:
    """Return the kind of a `run.json`; that of a run for one of no kind, which is refused when it is read."""
    try:
        content = read_json(path / "run.json")
    except (OSError, ValueError):
        return RunRecord
    return (kind_of(content) if isinstance(content, dict) else None) or RunRecord


def state_of(path: Path, record: Any) -> str:
    """Return whether a command is at work in a run folder, and how the last one ended."""
    sessions = record.sessions
    has_ended = bool(sessions) and sessions[-1].finished is not None and not any((path / "journal").glob("*.jsonl"))
    if not has_ended:
        return RUNNING if is_locked(path) else INTERRUPTED
    is_scored = not isinstance(record, RunRecord) or (path / "scores.json").is_file()
    return FINISHED if is_scored else UNSCORED


def _files(path: Path) -> list[str]:
    names = [name for name in _REPORTS if (path / name).is_file()][:1]
    return [*names, *sorted(page.name for page in path.glob("compare-*.html"))]


def _stamp(file: Path) -> tuple[int, int]:
    """Return time and size of a file, which is read again once it has others."""
    stat = file.stat()
    return stat.st_mtime_ns, stat.st_size


@lru_cache(maxsize=4096)
def _read_record(path: Path, *_: int) -> Any:
    return RunFolder(path, remedy="restore it").read_record(_kind(path))


@lru_cache(maxsize=4096)
def _read_scores(file: Path, *_: int) -> Scores:
    return from_json(Scores, read_json(file), str(file))


def _describe(record: RunRecord, scores: Scores) -> Iterator[tuple[str, str]]:
    for task in record.tasks:
        results = select(scores.results, task=task, subset="all", kind="model")
        if results:
            longest = max(results, key=lambda one: one.maxlen)
            metric = headline(longest.profile)
            score = f"{metric_name(metric)} {percent(longest.metrics[metric], digits=1)}"
            of_task = f"{task} " if len(record.tasks) > 1 else ""
            yield score, f"{of_task}at {longest.maxlen:,}, n = {longest.num_examples:,}"
