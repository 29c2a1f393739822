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
from eval.reporting.run_report import command_of
from eval.scoring.flaws import flaws_of
from eval.viewing.runs import RUNNING, state_of

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
class RunProgress:
    """How far a run is.

    `share` is that of the last session, by predicted cost where the engine predicts one, else by answers.
    `seconds_left` is None where nobody knows.
    """

    state: str
    started: str
    command: str
    num_answered: int
    num_wanted: int
    share: float | None
    seconds_left: float | None
    doing: str
    remark: str
    lengths: Sequence[LengthRow]
    answers: Sequence[AnswerRow]


def read_progress(path: Path, now: datetime | None = None) -> RunProgress:
    """Return how far a run of `eval/run.py` is.

    Raises:
        UserError: The folder holds none, or a file of it is damaged.
    """
    folder, record = open_run(path)
    examples = folder.read_examples()
    journal: Journal[Prediction] = folder.read_journal(Prediction)
    keys = keys_of(record, examples)
    known = {(one.task, one.id): one for one in examples}
    lines = [line for line in journal.lines.values() if (line.task, line.id) in known]
    state = state_of(path, record)
    share, left, doing = _ahead(path, record, len(keys) - len(lines), now or datetime.now(UTC))
    is_running = state == RUNNING
    return RunProgress(
        state=state,
        started=record.sessions[-1].started,
        command=command_of(record),
        num_answered=len(lines),
        num_wanted=len(keys),
        share=share if is_running else None,
        seconds_left=left if is_running else None,
        doing=doing if is_running else "",
        remark=journal.describe(),
        lengths=_lengths(keys, lines),
        answers=[_answer(line, known[line.task, line.id]) for line in lines[: -_NUM_ANSWERS - 1 : -1]],
    )


def _ahead(path: Path, record: RunRecord, num_missing: int, now: datetime) -> tuple[float | None, float | None, str]:
    """Return the share of the last session that is done, the seconds that are left, and what it does."""
    session = record.sessions[-1]
    started = _time(session.started)
    try:
        file = path / "journal" / "progress.json"
        told = from_json(ProgressRecord, read_json(file), str(file))
    except (OSError, ValueError, UserError):
        told = None
    # That of an earlier session stays until the next one writes its own.
    if told is not None and _time(told.written) >= started:
        left = told.seconds * (1 - told.share) / told.share if told.share else None
        since = (now - _time(told.written)).total_seconds()
        return told.share, left if left is None else max(left - since, 0.0), told.doing
    wanted = session.num_to_generate
    # A job of several, which share the answers, does not know how many of those that are missing are its own.
    if not wanted or record.config.get("shard") or not 0 < wanted - num_missing <= wanted:
        return None, None, ""
    share = (wanted - num_missing) / wanted
    return share, (now - started).total_seconds() * (1 - share) / share, ""


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
