"""How far a run is, and its answers so far, from its journal."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from eval.errors import UserError
from eval.records.disk import read_json
from eval.records.journal import Journal
from eval.records.read_run import open_run
from eval.records.run_folder import keys_of
from eval.records.schema import ExampleRecord, Key, Prediction, ProgressRecord, RunRecord
from eval.records.typed import from_json
from eval.scoring.flaws import flaws_of
from eval.viewing.runs import RUNNING, state_of
from tasks.command import as_launched

# Answers that the page shows, the newest.
_NUM_ANSWERS = 50


@dataclass(frozen=True, kw_only=True)
class LengthRow:
    """The answers to one template at one length.

    `num_wanted` counts those that the run is to make. `words` and `seconds` are medians, None without an answer.
    """

    task: str
    template: str
    maxlen: int
    num_answered: int
    num_wanted: int
    words: float | None
    seconds: float | None
    num_ended_by_length: int
    num_empty: int
    num_loops: int


@dataclass(frozen=True, kw_only=True)
class AnswerRow:
    """An answer."""

    task: str
    template: str
    id: str
    maxlen: int
    query: str | None
    text: str
    references: Sequence[str]
    prompt_tokens: int
    finish_reason: str


@dataclass(frozen=True, kw_only=True)
class Ahead:
    """How far a run is.

    `share` is that of the session at work, by predicted cost where the engine predicts one, else by answers. It and
    `seconds_left` are None where nobody knows, and where nothing is at work.
    """

    num_answered: int
    num_wanted: int
    share: float | None
    seconds_left: float | None
    doing: str


@dataclass(frozen=True, kw_only=True)
class RunProgress:
    """A run and its answers so far, the newest first. `remark` says which lines of its journal were dropped."""

    state: str
    started: str
    command: str
    ahead: Ahead
    remark: str
    lengths: Sequence[LengthRow]
    answers: Sequence[AnswerRow]


def read_progress(path: Path, now: datetime | None = None) -> RunProgress:
    """Return how far a run of `eval/run.py` is, and its answers.

    Raises:
        UserError: The folder holds none, or a file of it is damaged.
    """
    record, keys, known, journal = _read(path)
    lines = [line for line in journal.lines.values() if (line.task, line.id) in known]
    return RunProgress(
        state=state_of(path, record),
        started=record.sessions[-1].started,
        command=as_launched(["eval/run.py", *words]) if (words := record.sessions[-1].command) else "",
        ahead=_ahead(path, record, len(lines), len(keys), now or datetime.now(UTC)),
        remark=journal.describe(),
        lengths=_lengths(keys, lines),
        answers=[_answer(line, known[line.task, line.id]) for line in lines[: -_NUM_ANSWERS - 1 : -1]],
    )


def read_ahead(path: Path, now: datetime | None = None) -> Ahead:
    """Return how far a run of `eval/run.py` is; errors are those of `read_progress`."""
    record, keys, known, journal = _read(path)
    num_answered = sum((line.task, line.id) in known for line in journal.lines.values())
    return _ahead(path, record, num_answered, len(keys), now or datetime.now(UTC))


_Read = tuple[RunRecord, list[Key], dict[tuple[str, str], ExampleRecord], Journal[Prediction]]


def _read(path: Path) -> _Read:
    folder, record = open_run(path)
    examples = folder.read_examples()
    known = {(one.task, one.id): one for one in examples}
    return record, keys_of(record, examples), known, folder.read_journal(Prediction)


def _ahead(path: Path, record: RunRecord, num_answered: int, num_wanted: int, now: datetime) -> Ahead:
    if state_of(path, record) != RUNNING:
        return Ahead(num_answered=num_answered, num_wanted=num_wanted, share=None, seconds_left=None, doing="")
    share, left, doing = _told(path, record, now) or _counted(record, num_wanted - num_answered, now)
    if record.until is not None:  # nobody knows when it stops
        share, left = None, None
    return Ahead(num_answered=num_answered, num_wanted=num_wanted, share=share, seconds_left=left, doing=doing)


def _told(path: Path, record: RunRecord, now: datetime) -> tuple[float, float | None, str] | None:
    """Return share, seconds left and work as the run wrote them; None where it did not."""
    try:
        file = path / "journal" / "progress.json"
        told = from_json(ProgressRecord, read_json(file), str(file))
    except (OSError, ValueError, UserError):
        return None
    # That of an earlier session stays until the next one writes its own.
    if _time(told.written) < _time(record.sessions[-1].started):
        return None
    since = (now - _time(told.written)).total_seconds()
    left = max(told.seconds * (1 - told.share) / told.share - since, 0.0) if told.share else None
    return told.share, left, told.doing


def _counted(record: RunRecord, num_missing: int, now: datetime) -> tuple[float | None, float | None, str]:
    """Return share and seconds left by the number of answers, which cost more at greater lengths."""
    session = record.sessions[-1]
    wanted = session.num_to_generate or 0
    # A job of several, which share the answers, does not know how many of those that are missing are its own.
    if record.config.get("shard") or not 0 < wanted - num_missing <= wanted:
        return None, None, ""
    share = (wanted - num_missing) / wanted
    return share, (now - _time(session.started)).total_seconds() * (1 - share) / share, ""


def _time(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _lengths(keys: Sequence[Key], lines: Sequence[Prediction]) -> list[LengthRow]:
    wanted = Counter((task, template, maxlen) for task, template, _, maxlen in keys)
    answered: Mapping[tuple[str, str, int], list[Prediction]] = defaultdict(list)
    for line in lines:
        answered[line.task, line.template, line.maxlen].append(line)
    rows = []
    for (task, template, maxlen), num_wanted in wanted.items():
        of_length = answered[task, template, maxlen]
        texts = [sample.text for line in of_length for sample in line.answers]
        flaws = Counter(flaw for text in texts for flaw in flaws_of(text, ""))
        rows.append(
            LengthRow(
                task=task,
                template=template,
                maxlen=maxlen,
                num_answered=len(of_length),
                num_wanted=num_wanted,
                words=_median([len(text.split()) for text in texts]),
                seconds=_median([line.seconds for line in of_length if line.seconds is not None]),
                num_ended_by_length=sum(line.finish_reason == "length" for line in of_length),
                num_empty=flaws["empty"],
                num_loops=flaws["loop"],
            )
        )
    return rows


def _median(values: Sequence[Any]) -> float | None:
    return median(values) if values else None


def _answer(line: Prediction, example: ExampleRecord) -> AnswerRow:
    return AnswerRow(
        task=line.task,
        template=line.template,
        id=line.id,
        maxlen=line.maxlen,
        query=example.query,
        text=line.text,
        references=example.references,
        prompt_tokens=line.prompt_tokens,
        finish_reason=line.finish_reason,
    )
