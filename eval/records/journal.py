"""The journal: one line a prediction, written to the disk at once, keyed by all that could change it.

    {"task": "plos", "template": "instruct", "id": "...", "maxlen": 8192, "fingerprint": "5f2b...", "text": "..."}

Each process appends to its own file. Lines that a kill or a full disk tore are dropped and counted. A line whose
fingerprint differs from the run's is never used.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import RawIOBase
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from eval.errors import UserError
from eval.records.schema import Key
from eval.records.typed import Record, from_json, to_json

_LINE_REMEDY = "restore the line, or delete it and run the run's own command, which makes it again"


class Keyed(Protocol):
    """A record of one line: a prediction, or a measurement."""

    @property
    def key(self) -> Key:
        """Return task, template, id and maxlen."""


Line = TypeVar("Line", bound=Keyed)


@dataclass(kw_only=True)
class Journal(Generic[Line]):
    """The records of some files, and counts of the lines that were dropped.

    Attributes:
        lines: Records by key.
        torn: Lines that end in the middle.
        garbled: Whole lines that are no record.
        duplicates: Records whose key was there already.
        stale: Records with another fingerprint than the expected one.
    """

    lines: dict[Key, Line] = field(default_factory=dict)
    torn: int = 0
    garbled: int = 0
    duplicates: int = 0
    stale: int = 0

    def describe(self) -> str:
        """Return what was dropped, for people; empty when nothing was."""
        counts = {
            "torn": self.torn,
            "garbled": self.garbled,
            "duplicated": self.duplicates,
            "of other content": self.stale,
        }
        dropped = [f"{count:,} {name}" for name, count in counts.items() if count]
        return f"lines dropped from the journal: {', '.join(dropped)}" if dropped else ""


def fingerprint(*parts: Any) -> str:
    """Return a digest of JSON-ready values: of all that could change a prediction."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode(errors="surrogatepass")).hexdigest()[:32]


def read_journal(kind: type[Line], files: Iterable[Path], expected: Mapping[Key, str] | None = None) -> Journal[Line]:
    """Return the records of some files; the first line of a key counts.

    Args:
        kind: What the lines are.
        files: Files that do not exist are empty.
        expected: Fingerprints by key; a line with another one is stale. Keys that it lacks are accepted.

    Raises:
        UserError: A line lacks a field, or one has another type.
    """
    journal = Journal[Line]()
    for file in files:
        for number, (line, is_whole) in enumerate(_read_lines(file), start=1):
            key = None if line is None else _key_of(line)
            if line is None or key is None:
                journal.garbled += is_whole
                journal.torn += not is_whole
            elif expected is not None and line.get("fingerprint") != expected.get(key, line.get("fingerprint")):
                journal.stale += 1
            elif key in journal.lines:
                journal.duplicates += 1
            else:
                journal.lines[key] = from_json(kind, line, f"{file}, line {number}", remedy=_LINE_REMEDY)
    return journal


def _key_of(line: Mapping[str, Any]) -> Key | None:
    names = [line.get(name) for name in ("task", "template", "id")]
    maxlen = line.get("maxlen")
    if not isinstance(maxlen, int) or not all(isinstance(name, str) for name in names):
        return None
    return str(names[0]), str(names[1]), str(names[2]), maxlen


def read_lines(kind: type[Record], file: Path) -> list[Record]:
    """Return the records of a JSON-lines file; none when there is no such file. Torn and garbled lines are left out.

    Raises:
        UserError: A line lacks a field, or one has another type.
    """
    return [
        from_json(kind, line, f"{file}, line {number}")
        for number, (line, _) in enumerate(_read_lines(file), start=1)
        if line is not None
    ]


def _read_lines(file: Path) -> Iterator[tuple[dict[str, Any] | None, bool]]:
    """Return each line as an object, None where it is none, and whether the line is whole."""
    if not file.exists():
        return
    with file.open("rb") as stream:
        for text in stream:
            try:
                line = json.loads(text.decode())
            except ValueError:
                line = None
            is_whole = text.endswith(b"\n")
            # A line without its end may lack more than that.
            yield (line if isinstance(line, dict) and is_whole else None), is_whole


def open_journal(file: Path) -> RawIOBase:
    """Return a journal, open for appending; a torn last line is cut off first.

    Raises:
        UserError: It cannot be written.
    """
    with disk_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.exists():
            os.truncate(file, file.read_bytes().rfind(b"\n") + 1)
        return file.open("ab", buffering=0)


def append_line(journal: RawIOBase, record: Any) -> None:
    """Append a record as one JSON line and wait until it is on the disk.

    Raises:
        UserError: The disk is full, or gone.
    """
    rest = (json.dumps(to_json(record), ensure_ascii=False) + "\n").encode(errors="backslashreplace")
    with disk_errors(Path(getattr(journal, "name", "journal"))):
        # Unbuffered, so that closing after a failure does not fail again; a write may take only a part.
        while rest:
            rest = rest[journal.write(rest) or 0 :]
        os.fsync(journal.fileno())


@contextmanager
def disk_errors(file: Path) -> Iterator[None]:
    """Turn what the disk refuses into an error of one line."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{file} cannot be written: {error.strerror or error}; what is there is kept; run the "
            "same command again once there is room and permission"
        ) from error
