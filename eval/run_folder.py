"""The folder of one run: what was asked, what was predicted, what it scored.

    run.json            settings, provenance of model and data, and one entry a session that worked on it
    examples.jsonl      id, document, query and references of each example, so that scoring needs no data set
    predictions.jsonl   one line a prediction
    journal/            lines of a run that has not ended: one file a process, merged when all are done
    scores.json         `results`: one entry a task, template, profile, system and length
    report.md           the same for people

A folder belongs to one set of settings. Lengths, examples and tasks may be added; any other difference is refused.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import RawIOBase
from pathlib import Path
from typing import Any

Key = tuple[str, str, str, int]


class RunFolderError(ValueError):
    """An output folder that cannot take this run."""


def prediction_key(line: Mapping[str, Any]) -> Key:
    """Return what names a prediction within its folder: task, template, id, maxlen."""
    return line["task"], line["template"], line["id"], line["maxlen"]


class RunFolder:
    """Reads and writes the files of one run.

    Args:
        path: Of the folder; need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read_run(self) -> dict[str, Any] | None:
        """Return `run.json`; None when the folder is new or empty.

        Raises:
            RunFolderError: The path is no folder, or holds something that is no run.
        """
        file = self.path / "run.json"
        if not self.path.exists():
            return None
        if not self.path.is_dir():
            raise RunFolderError(f"output {self.path} is a file; give a folder with --output")
        if not file.exists():
            # What a run leaves that was killed before its first record, or worked beside the main process's machine.
            if any(not file.name.startswith(".") and file.name != "journal" for file in self.path.iterdir()):
                raise RunFolderError(f"output folder {self.path} holds files but no run; give another with --output")
            return None
        try:
            run = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunFolderError(f"{file} cannot be read: {error}; give another folder with --output") from error
        if not isinstance(run, dict) or not {"identity", "tasks", "sessions"} <= run.keys():
            raise RunFolderError(f"{file} is not the record of a run; give another folder with --output")
        return run

    def check_accepts(self, identity: Mapping[str, Any], tasks: Mapping[str, Mapping[str, Any]]) -> None:
        """Check that a run with these settings may continue what is in the folder.

        Args:
            identity: Settings that hold for the whole folder, by name.
            tasks: Settings of each task, by task and name; `maxlen` and `limit` may grow, `rows` is a remark.

        Raises:
            RunFolderError: A setting differs; it is named with both values.
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
                elif name not in ("maxlen", "rows"):
                    self._check_equal(f"{name} of {task}", held.get(name), value)

    def _check_equal(self, name: str, held: Any, asked: Any) -> None:
        if held == asked:
            return
        if isinstance(held, dict) and isinstance(asked, dict):
            for part in sorted({*held, *asked}):
                self._check_equal(f"{name} {part}", held.get(part), asked.get(part))
        raise self._differs(name, held, asked)

    def _differs(self, name: str, held: Any, asked: Any) -> RunFolderError:
        return RunFolderError(
            f"output folder {self.path} holds another run: {name} is {_short(held)} there and {_short(asked)} now; "
            "give another folder with --output, or the same settings"
        )

    @contextmanager
    def lock(self, held: Mapping[str, Any] | None) -> Iterator[None]:
        """Keep other runs out of the folder for as long as this lasts.

        Args:
            held: What `read_run` returned when this run was checked against the folder.

        Raises:
            RunFolderError: Another run is at work in it, or was since then.
        """
        file = self.path / ".lock"
        with _disk_errors(file):
            self.path.mkdir(parents=True, exist_ok=True)
            stream = file.open("w")
        with stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunFolderError(
                    f"output folder {self.path} is in use by another run; wait for it, or give another with --output"
                ) from None
            except OSError as error:
                raise RunFolderError(
                    f"output folder {self.path} cannot be locked: {error.strerror}; give one elsewhere with --output"
                ) from error
            if self.read_run() != held:
                raise RunFolderError(f"output folder {self.path} was changed by another run meanwhile; run again")
            yield

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Replace a JSON file of the folder in one step, so that no reader and no crash sees half of it."""
        self._replace(name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def write_text(self, name: str, content: str) -> None:
        """Replace a text file of the folder in one step."""
        self._replace(name, content)

    def write_lines(self, name: str, lines: Iterable[Mapping[str, Any]]) -> None:
        """Replace a JSON-lines file of the folder in one step."""
        self._replace(name, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))

    def _replace(self, name: str, content: str) -> None:
        partial = self.path / f".{name}.partial"
        with _disk_errors(self.path / name):
            self.path.mkdir(parents=True, exist_ok=True)
            with partial.open("w", encoding="utf-8") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(self.path / name)

    def read_examples(self) -> list[dict[str, Any]]:
        """Return the lines of `examples.jsonl`; none when there is no such file yet."""
        return list(_read_lines(self.path / "examples.jsonl")[0])

    def read_predictions(self) -> tuple[dict[Key, dict[str, Any]], int]:
        """Return all predictions, those in the journal of an interrupted run included, and the torn lines dropped."""
        found: dict[Key, dict[str, Any]] = {}
        torn = 0
        for file in (self.path / "predictions.jsonl", *sorted((self.path / "journal").glob("*.jsonl"))):
            lines, broken = _read_lines(file)
            torn += broken
            for line in lines:
                found.setdefault(prediction_key(line), line)
        return found, torn

    def open_journal(self, process: int) -> RawIOBase:
        """Return the journal of one process, open for appending; a torn last line is cut off first."""
        file = self.path / "journal" / f"{process:05}.jsonl"
        with _disk_errors(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            if file.exists():
                whole = file.read_bytes().rfind(b"\n") + 1
                os.truncate(file, whole)
            return file.open("ab", buffering=0)

    def merge_journal(self, order: Sequence[Key], tasks: Container[str]) -> tuple[list[dict[str, Any]], list[Key]]:
        """Write all predictions to `predictions.jsonl`, drop the journal, return the lines and the keys of absent ones.

        Args:
            order: Keys of all that should be there.
            tasks: Whose predictions this run was to make; of others some may be absent.

        Raises:
            RunFolderError: A prediction of these tasks is absent; the journal stays.
        """
        found, _ = self.read_predictions()
        absent = [key for key in order if key not in found]
        lost = [key for key in absent if key[0] in tasks]
        if lost:
            raise RunFolderError(
                f"{len(lost)} predictions are not in {self.path}, {lost[0][2]} at {lost[0][3]} among them; if other "
                "machines made them, move their journal/ files there and run the same command again"
            )
        known = set(order)
        lines = [found[key] for key in [*order, *(key for key in found if key not in known)] if key in found]
        self.write_lines("predictions.jsonl", lines)
        shutil.rmtree(self.path / "journal", ignore_errors=True)
        return lines, absent


def append_line(journal: RawIOBase, line: Mapping[str, Any]) -> None:
    """Append one JSON line and see it onto the disk.

    Raises:
        RunFolderError: The disk is full, or gone.
    """
    rest = (json.dumps(line, ensure_ascii=False) + "\n").encode()
    with _disk_errors(Path(getattr(journal, "name", "journal"))):
        # Unbuffered, so that closing after a failure does not fail again; a write may take only a part.
        while rest:
            rest = rest[journal.write(rest) or 0 :]
        os.fsync(journal.fileno())


@contextmanager
def _disk_errors(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunFolderError(
            f"{file} cannot be written: {error.strerror or error}; what is there is kept; resume "
            "once there is room and permission"
        ) from error


def _read_lines(file: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the JSON lines of a file and the number of lines that are torn."""
    lines: list[dict[str, Any]] = []
    torn = 0
    for text in _text_lines(file):
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if isinstance(line, dict) and {"task", "id"} <= line.keys():
            lines.append(line)
        else:
            torn += 1
    return lines, torn


def _text_lines(file: Path) -> Iterator[str]:
    if file.exists():
        with file.open(encoding="utf-8", errors="replace") as stream:
            yield from stream


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return the value as JSON would give it back."""
    plain: dict[str, Any] = json.loads(json.dumps(value))
    return plain


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
