"""The folder of one run: what was asked, what was predicted, what it scored.

    run.json            settings, provenance of model and data, and one entry a session that worked on it
    examples.jsonl      id, document, query and references of each example, so that scoring needs no data set
    documents.jsonl.gz  text of each document, so that what a length showed of it can be scored too
    predictions.jsonl   one line a prediction
    journal/            lines of a run that has not ended: one file a process, merged when all are done
    scores.json         `results`, one entry a task, template, length, subset and system, and `comparisons`
    example_scores.jsonl  one line a prediction, and one a yardstick beside it
    report.md, report.html, plots/  the same for people

A folder belongs to one set of settings. Lengths, templates, examples and tasks may be added; any other
difference is refused.
"""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import re
import shutil
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import RawIOBase
from pathlib import Path
from typing import Any

from eval.errors import UserError
from eval.records.journal import Journal, Key, disk_errors, open_journal, read_journal, read_lines

# Made anew by scoring.
_RESULT_FILES = ("scores.json", "example_scores.jsonl", "report.md", "report.html")
_FILES = ("run.json", "examples.jsonl", "documents.jsonl.gz", "predictions.jsonl", *_RESULT_FILES)


class RunFolder:
    """Reads and writes the files of one run.

    Args:
        path: Of the folder; need not exist.
        advice: What else may be done where another run is in the way.
        remedy: What to do where the folder holds no run.
    """

    def __init__(self, path: Path, advice: str = "", remedy: str = "give another folder with --output") -> None:
        self.path = path
        self.advice = advice
        self.remedy = remedy

    def read_run(self, *, is_replaced: bool = False) -> dict[str, Any] | None:
        """Return `run.json`; None when the folder is new or empty.

        Args:
            is_replaced: What is there will not be used, so that one that cannot be read is none.

        Raises:
            UserError: The path is no folder, or holds something that is no run.
        """
        file = self.path / "run.json"
        if not self.path.exists():
            return None
        if not self.path.is_dir():
            raise UserError(f"{self.path} is a file; {self.remedy}")
        if not file.exists():
            # What a run leaves that was killed before its first record, or worked beside the main process's machine.
            if any(not file.name.startswith(".") and file.name != "journal" for file in self.path.iterdir()):
                raise UserError(f"folder {self.path} holds files but no run; {self.remedy}")
            return None
        try:
            run = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            if is_replaced:
                return None
            raise UserError(f"{file} cannot be read: {error}; {self.remedy}") from error
        kinds = {"identity": dict, "tasks": dict, "sessions": list}
        if not isinstance(run, dict) or not all(isinstance(run.get(name), kind) for name, kind in kinds.items()):
            raise UserError(f"{file} is not the record of a run; {self.remedy}")
        return run

    def check_accepts(self, identity: Mapping[str, Any], tasks: Mapping[str, Mapping[str, Any]]) -> None:
        """Check that a run with these settings may continue what is in the folder.

        Args:
            identity: Settings that hold for the whole folder, by name.
            tasks: Settings of each task, by task and name; `maxlen`, `templates` and `limit` may grow, `rows` is a
                remark.

        Raises:
            UserError: A setting differs; it is named with both values.
        """
        run = self.read_run()
        if run is None:
            return
        for name, value in _plain(identity).items():
            self._check_equal(name, run["identity"].get(name), value)
        for task, settings in _plain(tasks).items():
            held = run["tasks"].get(task)
            if held is None:
                continue
            for name, value in settings.items():
                if name == "limit":
                    if value is not None and (held["limit"] is None or value < held["limit"]):
                        raise self._differs(f"limit of {task}", held["limit"], value)
                elif name == "templates":
                    for template in value.keys() & held.get(name, {}).keys():
                        self._check_equal(f"template '{template}' of {task}", held[name][template], value[template])
                elif name not in ("maxlen", "rows"):
                    self._check_equal(f"{name} of {task}", held.get(name), value)

    def _check_equal(self, name: str, held: Any, asked: Any) -> None:
        if held == asked:
            return
        if isinstance(held, dict) and isinstance(asked, dict):
            for part in sorted({*held, *asked}):
                self._check_equal(f"{name} {part}", held.get(part), asked.get(part))
        raise self._differs(name, held, asked)

    def _differs(self, name: str, held: Any, asked: Any) -> UserError:
        return UserError(
            f"output folder {self.path} holds another run: {name} is {_short(held)} there and {_short(asked)} now; "
            f"give another folder with --output, or the same settings{self.advice}"
        )

    @contextmanager
    def lock(self, held: Mapping[str, Any] | None, *, is_replaced: bool = False) -> Iterator[None]:
        """Keep other runs out of the folder for as long as this lasts.

        Args:
            held: What `read_run` returned when this run was checked against the folder.
            is_replaced: As it was told.

        Raises:
            UserError: Another run is at work in it, or was since then.
        """
        with locked(self.path):
            if self.read_run(is_replaced=is_replaced) != held:
                raise UserError(f"output folder {self.path} was changed by another run meanwhile; run again")
            yield

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Replace a JSON file of the folder in one step, so that no reader and no crash sees half of it."""
        self.write_text(name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def write_text(self, name: str, content: str) -> None:
        """Replace a text file of the folder in one step."""
        self._replace(name, content.encode())

    def write_lines(self, name: str, lines: Iterable[Mapping[str, Any]]) -> None:
        """Replace a JSON-lines file of the folder in one step."""
        self.write_text(name, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))

    def _replace(self, name: str, content: bytes) -> None:
        file = self.path / name
        partial = file.with_name(f".{file.name}.partial")
        with disk_errors(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(file)

    def write_documents(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Replace `documents.jsonl.gz` in one step."""
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        # No time within, so that the same documents are the same file.
        self._replace("documents.jsonl.gz", gzip.compress(text.encode(errors="surrogatepass"), 6, mtime=0))

    def read_documents(self) -> list[dict[str, Any]]:
        """Return the lines of `documents.jsonl.gz`; none when there is no such file yet.

        Raises:
            UserError: It cannot be read.
        """
        file = self.path / "documents.jsonl.gz"
        if not file.exists():
            return []
        try:
            with gzip.open(file) as stream:
                return [json.loads(line.decode(errors="surrogatepass")) for line in stream]
        except (OSError, EOFError, ValueError) as error:
            raise UserError(f"{file} cannot be read: {error}; make the run again with --overwrite") from error

    def read_examples(self) -> list[dict[str, Any]]:
        """Return the lines of `examples.jsonl`; none when there is no such file yet."""
        return read_lines(self.path / "examples.jsonl")

    def read_predictions(self, expected: Mapping[Key, str] | None = None) -> Journal:
        """Return all predictions, those in the journal of an interrupted run included.

        Args:
            expected: Fingerprints by key, as `read_journal` takes them.
        """
        return read_journal(
            [self.path / "predictions.jsonl", *sorted((self.path / "journal").glob("*.jsonl"))], expected
        )

    def read_finished(self) -> dict[Key, dict[str, Any]]:
        """Return the predictions of sessions that came to their end."""
        return read_journal([self.path / "predictions.jsonl"]).lines

    def open_journal(self, name: str) -> RawIOBase:
        """Return the journal of one process, open for appending; a torn last line is cut off first."""
        return open_journal(self.path / "journal" / f"{name}.jsonl")

    def merge_journal(
        self, order: Sequence[Key], required: Container[Key], expected: Mapping[Key, str] | None = None
    ) -> tuple[list[dict[str, Any]], list[Key]]:
        """Write all predictions to `predictions.jsonl`, drop the journal, return the lines and the keys of absent ones.

        Args:
            order: Keys of all that should be there.
            required: Those that this run was to make; others may be absent.
            expected: Fingerprints by key, as `read_journal` takes them.

        Raises:
            UserError: One that this run was to make is absent; the journal stays.
        """
        found = self.read_predictions(expected).lines
        absent = [key for key in order if key not in found]
        lost = [key for key in absent if key in required]
        if lost:
            raise UserError(
                f"{len(lost)} predictions are not in {self.path}, {lost[0][2]} at {lost[0][3]} among them; the process "
                "that was to make them did not; run the same command again"
            )
        lines = in_order(found, order)
        self.write_lines("predictions.jsonl", lines)
        shutil.rmtree(self.path / "journal", ignore_errors=True)
        return lines, absent

    def make(self, path: Path) -> None:
        """Make a folder within this one."""
        with disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)

    def clear(self) -> None:
        """Take out what a run has left, and nothing else."""
        with disk_errors(self.path):
            # The record goes last: while it is there, this is a run's folder.
            if (self.path / "journal").exists():
                shutil.rmtree(self.path / "journal")
            own = re.compile(rf"({own_plots(self.read_run(is_replaced=True) or {'tasks': {}})})\.(png|svg)")
            for plot in (self.path / "plots").glob("*"):
                if own.fullmatch(plot.name):
                    plot.unlink()
            for name in reversed(_FILES):
                (self.path / name).unlink(missing_ok=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep others out of a folder, which is made where it is not there, for as long as this lasts.

    Raises:
        UserError: It is in use, or cannot be locked.
    """
    file = path / ".lock"
    with disk_errors(file):
        path.mkdir(parents=True, exist_ok=True)
        stream = file.open("w")
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"output folder {path} is in use by another run; wait for it, or give another with --output"
            ) from None
        except OSError as error:
            raise UserError(
                f"output folder {path} cannot be locked: {error.strerror}; give one elsewhere with --output"
            ) from error
        yield


def own_plots(record: Mapping[str, Any]) -> str:
    """Return a regular expression for the names of a run's plots, without their ends; no other file is the run's."""
    prefixes = [
        f"{task}-{template}" for task, about in record["tasks"].items() for template in about.get("templates", ())
    ]
    return rf"({'|'.join(map(re.escape, prefixes))})-(length-\w+|cost-\w+|positions)"


def in_order(found: Mapping[Key, dict[str, Any]], order: Sequence[Key]) -> list[dict[str, Any]]:
    """Return predictions in an order, those that it does not name after the others."""
    known = set(order)
    return [found[key] for key in [*order, *(key for key in found if key not in known)] if key in found]


def keys_of(record: Mapping[str, Any], examples: Sequence[Mapping[str, Any]]) -> list[Key]:
    """Return what names each prediction of a run that is done, in order."""
    return [
        (line["task"], template, line["id"], maxlen)
        for line in examples
        for template in record["tasks"][line["task"]]["templates"]
        for maxlen in record["tasks"][line["task"]]["maxlen"]
    ]


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return the value as JSON would give it back."""
    plain: dict[str, Any] = json.loads(json.dumps(value))
    return plain


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
