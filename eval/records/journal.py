"""The journal: one line a prediction, on the disk before the next is begun, keyed by all that could change it.

    {"task": "plos", "template": "instruct", "id": "...", "maxlen": 8192, "fingerprint": "5f2b...", "text": "..."}

Each process appends to a file of its own. What a kill, a full disk or a broken one leaves of a line is dropped and
counted; a line whose fingerprint is not the one that the run would give it now is never used.
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
from typing import Any

from eval.errors import UserError

Key = tuple[str, str, str, int]


@dataclass(kw_only=True)
class Journal:
    """The lines of some files, and what had to be left out of them.

    Attributes:
        lines: One a prediction.
        torn: Lines that end in the middle.
        garbled: Whole lines that are no predictions.
        duplicates: Predictions that were there already.
        stale: Lines whose fingerprint is another than the one asked for.
    """

    lines: dict[Key, dict[str, Any]] = field(default_factory=dict)
    torn: int = 0
    garbled: int = 0
    duplicates: int = 0
    stale: int = 0

    def describe(self) -> str:
        """Return what was left out, for people; empty when nothing was."""
        counts = {
            "torn": self.torn,
            "garbled": self.garbled,
            "duplicated": self.duplicates,
            "of other content": self.stale,
        }
        found = [f"{count:,} {name}" for name, count in counts.items() if count]
        return f"lines dropped from the journal: {', '.join(found)}" if found else ""


def prediction_key(line: Mapping[str, Any]) -> Key:
    """Return what names a prediction within its folder: task, template, id, maxlen."""
    return line["task"], line["template"], line["id"], line["maxlen"]


def fingerprint(*parts: Any) -> str:
    """Return a digest of JSON-ready values: of all that could change a prediction."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode(errors="surrogatepass")).hexdigest()[:32]


def read_journal(files: Iterable[Path], expected: Mapping[Key, str] | None = None) -> Journal:
    """Return the predictions of some files; the first line of a key counts.

    Args:
        files: Those that do not exist hold nothing.
        expected: Fingerprints by key; a line with another is stale. Keys that are not in it are taken as they are.
    """
    found = Journal()
    for file in files:
        for line, is_whole in _read_lines(file):
            if line is None or not {"task", "template", "id", "maxlen"} <= line.keys():
                found.garbled += is_whole
                found.torn += not is_whole
                continue
            key = prediction_key(line)
            if expected is not None and line.get("fingerprint") != expected.get(key, line.get("fingerprint")):
                found.stale += 1
            elif key in found.lines:
                found.duplicates += 1
            else:
                found.lines[key] = line
    return found


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON-lines file; none when there is no such file."""
    return [line for line, _ in _read_lines(file) if line is not None]


def _read_lines(file: Path) -> Iterator[tuple[dict[str, Any] | None, bool]]:
    """Return each line as an object, None where it is none, and whether the line was ended."""
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


def append_line(journal: RawIOBase, line: Mapping[str, Any]) -> None:
    """Append one JSON line and see it onto the disk.

    Raises:
        UserError: The disk is full, or gone.
    """
    rest = (json.dumps(line, ensure_ascii=False) + "\n").encode(errors="backslashreplace")
    with disk_errors(Path(getattr(journal, "name", "journal"))):
        # Unbuffered, so that closing after a failure does not fail again; a write may take only a part.
        while rest:
            rest = rest[journal.write(rest) or 0 :]
        os.fsync(journal.fileno())


@contextmanager
def disk_errors(file: Path) -> Iterator[None]:
    """Tell what the disk refuses in one line."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{file} cannot be written: {error.strerror or error}; what is there is kept; run the "
            "same command again once there is room and permission"
        ) from error
