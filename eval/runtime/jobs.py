"""What the scripts share: how a command ends, and a folder that is opened, resumed and finished.

    @command(again="the same command")
    def main(argv):
        with job.lock(process):
            ...

    sys.exit(main(sys.argv[1:]))

A mistake that a user can mend ends in one line and status 2; a bug of ours in a traceback.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import wraps
from io import RawIOBase
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

from eval.errors import UserError
from eval.records.journal import Journal, Line, append_line, some_of
from eval.records.merging import merge_examples
from eval.records.run_folder import RunFolder
from eval.records.schema import ExampleRecord, Key
from eval.runtime.processes import Process, is_first_here, rank_of
from eval.runtime.provenance import describe_session, is_like, utc_now
from masformer.errors import user_message as masformer_message
from tasks import DataError, LoadedExamples
from tasks.command import as_typed, end_command, named_path

Record = TypeVar("Record")


class CommandParser(argparse.ArgumentParser):
    """Reports a mistake in the flags in one line.

    Args:
        command: The command as a user types it.
        description: Docstring of its module.
    """

    def __init__(self, command: str, description: str | None) -> None:
        super().__init__(
            prog=as_typed(command),
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.register("type", Path, named_path)  # of every flag with `type=Path`

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (--help explains the flags)\n")

    def format_help(self) -> str:
        return as_typed(super().format_help())


def margin_share(text: str) -> float:
    """Return a margin of non-inferiority: a fraction of at least 0 and below 1."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number") from None
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 0 and below 1; scores count from 0 to 1 here")
    return value


def listed_names(text: str) -> list[str]:
    """Return the names of a list with commas between them, one at least."""
    names = [name for name in (part.strip() for part in text.split(",")) if name]
    if not names:
        raise argparse.ArgumentTypeError(f"'{text}' names nothing; give one name or more, or leave it out")
    return names


Main = Callable[[Sequence[str]], None]


def command(again: str | None = None) -> Callable[[Main], Callable[[Sequence[str]], int]]:
    """Return a decorator that gives a script its ending: it then returns an exit status.

    Args:
        again: What continues after an interrupt; None for a command that begins anew.
    """

    return lambda main: wraps(main)(lambda argv: run_command(main, argv, again))


def run_command(main: Main, argv: Sequence[str], again: str | None = None) -> int:
    """Run a script, and return its exit status: 0, 2 after one line on what is wrong, 130 after an interrupt.

    Args:
        main: The script, given the arguments of the command line.
        argv: Those arguments.
        again: What continues after an interrupt; None for a command that begins anew.
    """
    rank = rank_of(os.environ)
    return end_command(
        lambda: main(argv),
        user_message,
        again=None if again is None else _remedy(again, argv),
        speaks=_speaks,
        who="" if rank is None else f"process {rank}: ",
    )


def _speaks(error: BaseException) -> bool:
    # A mistake in the settings is the same for all processes, and one of each machine reports it.
    return is_first_here(os.environ) or getattr(error, "is_of_one_process", False)


def user_message(error: BaseException) -> str | None:
    """Return one line for an error that a user can mend; None for our own bugs."""
    if isinstance(error, (UserError, DataError)):
        return str(error)
    return masformer_message(error)


def _remedy(again: str, argv: Sequence[str]) -> str:
    without = ", without --overwrite," if "--overwrite" in argv else ""
    return f"{again}{without} goes on where this one stopped"


@dataclass(kw_only=True)
class Job(Generic[Record, Line]):
    """A folder on which the processes of a launch work together, as one run.

    Attributes:
        folder: The folder.
        line: What a line of its journal is.
        saved: The existing `run.json` when the run was checked against it; None for a new one.
        record: The `run.json` to write.
        is_replaced: Begin anew; the existing run is deleted.
    """

    folder: RunFolder
    line: type[Line]
    saved: Record | None
    record: Record
    is_replaced: bool = False

    def existing(self, expected: Mapping[Key, str] | None = None) -> Journal[Line]:
        """Return the lines that are there and are used.

        Args:
            expected: Fingerprints by key; lines with others are stale.
        """
        return Journal[Line]() if self.is_replaced else self.folder.read_journal(self.line, expected)

    @contextmanager
    def lock(self, process: Process) -> Iterator[None]:
        """Keep other runs out of the folder; an error within is one of this process alone."""
        kind = type(self.record)
        lock = self.folder.lock(self.saved, kind, is_replaced=self.is_replaced) if process.is_main else nullcontext()
        with lock:
            try:
                self._take_up_ways(process)
                yield
            except Exception as error:
                if process.count > 1:
                    error.is_of_one_process = True  # type: ignore[attr-defined]
                raise

    def add_session(self, process: Process, argv: Sequence[str], **remarks: Any) -> None:
        """Note in the record that a session begins.

        Args:
            process: This process.
            argv: Arguments of the command line.
            remarks: Further fields of the session.
        """
        session = replace(describe_session(argv, process), **remarks)
        self.change(sessions=[*self._sessions, session])

    def merged_examples(self, data: Mapping[str, LoadedExamples]) -> tuple[list[ExampleRecord], str]:
        """Return the examples of the folder and of this session, and a remark on damaged lines made again."""
        damaged: list[str] = []
        saved = self.folder.read_examples(damaged)
        if not damaged:
            return merge_examples(saved, data), ""
        # In the place that they had: those of this session come in order, and others of their task were after them.
        made = merge_examples([], data)
        keys, tasks = {(one.task, one.id) for one in made}, {one.task: None for one in saved} | dict.fromkeys(data)
        made += [one for one in saved if (one.task, one.id) not in keys]
        places = {task: place for place, task in enumerate(tasks)}
        return sorted(made, key=lambda one: places[one.task]), f"damaged lines made again: {some_of(damaged)}"

    def write(self, examples: Iterable[Any]) -> None:
        """Write the record and the examples."""
        self.folder.write_json("run.json", self.record)
        self.folder.write_lines("examples.jsonl", examples)

    def write_line(self, journal: RawIOBase, line: Line, process: Process) -> None:
        """Write a line to the disk, in the journal of this process."""
        if process.is_main:
            self.note_ways()
        append_line(journal, line)

    def note_ways(self) -> None:
        """Write the ways that this session has taken so far to the disk, before anything that they have computed."""
        *others, last = self._sessions
        ways = _ways()
        if ways != last.ways:
            self.change(sessions=[*others, replace(last, ways=ways)])
            self.folder.write_json("run.json", self.record)

    def _take_up_ways(self, process: Process) -> None:
        """Compute as the last session did that ran as this one does."""
        alike = (session.ways for session in reversed(self._sessions) if session.ways and is_like(session, process))
        if tuning := _tuning():
            tuning.check_names()
            tuning.take_up(next(alike, {}))

    def end(self, **remarks: Any) -> None:
        """Note in the record that the last session has finished, if that is not noted; the caller writes the record.

        A session that was killed after its last answer is ended by the command that reports on it.

        Args:
            remarks: Further fields of the session.
        """
        if not self._sessions or self._sessions[-1].finished is not None:
            return
        *others, last = self._sessions
        self.change(sessions=[*others, replace(last, finished=utc_now(), ways=_ways(), **remarks)])

    def change(self, **fields: Any) -> None:
        """Replace fields of the record."""
        self.record = replace(self.record, **fields)  # type: ignore[type-var]

    @property
    def _sessions(self) -> list[Any]:
        return list(self.record.sessions)  # type: ignore[attr-defined]


def _tuning() -> Any:
    return sys.modules.get("masformer.tuning")  # imports torch, which not every engine needs


def _ways() -> dict[str, str] | None:
    return (_tuning().chosen() or None) if _tuning() else None


def template_clock(has_clock: bool, requested: str | None, saved: Any, output: Path) -> str | None:
    """Return what the clock of the chat template shows in all sessions of a folder; None for one without a clock.

    Args:
        has_clock: Whether the template has one.
        requested: `--template-date`.
        saved: The existing record; None for a new folder.
        output: The folder, for messages.

    Raises:
        UserError: The folder has another date.
    """
    if not has_clock:
        if requested:
            raise UserError(f"--template-date {requested}: the model's chat template asks for no date; leave it out")
        return None
    before: str | None = getattr(saved, "template_date", None)
    if saved is not None and before is None and saved.sessions:
        # Version 0.1 used the date of its first session.
        before = datetime.fromisoformat(saved.sessions[0].started).astimezone().replace(tzinfo=None).isoformat()
    if before and requested and before[:10] != requested:
        raise UserError(
            f"output folder {output} has prompts of {before[:10]}, and --template-date is {requested}; leave it out, "
            "or give another folder with --output"
        )
    return before or requested or datetime.now().isoformat(timespec="seconds")


def settings_json(config: Any, **resolved: Any) -> dict[str, Any]:
    """Return the settings of a command as JSON-ready values.

    Args:
        config: Dataclass of settings.
        resolved: Values in the place of defaults.
    """
    settings = asdict(config) | resolved
    return {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}


def print_facts(facts: Mapping[str, str | Sequence[str]]) -> None:
    """Print one name and text per line, texts in a column; empty texts are left out."""
    for name, texts in facts.items():
        for text in [texts] if isinstance(texts, str) else texts:
            if text:
                print(f"{name:<7} {text}")
