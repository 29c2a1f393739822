"""The journal: one line a prediction, written to the disk at once, keyed by all that could change it.

    {"task": "plos", "template": "instruct", "id": "...", "maxlen": 8192, "text": "...", "crc32": "5f2b81c0"}

Each process appends to its own file. Every line of a run folder ends with a checksum of the bytes before it. Lines that
a kill or a full disk tore, and lines that the disk changed, are dropped and counted. A line whose fingerprint differs
from the run's is never used.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import RawIOBase
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from eval.errors import UserError
from eval.records.disk import disk_errors, open_append, parse_json
from eval.records.schema import Key
from eval.records.typed import Record, from_json, to_json
from tasks.readers.kept import open_to_read

# The end of a line, and what it is without one: folders of version 0.1 have lines without checksums.
_CHECKSUM = re.compile(rb', "crc32": "([0-9a-f]{8})"\}')
_CHECKSUM_BYTES = len(b', "crc32": "00000000"}')
# Far above any line: a sparse file of many GB takes no room on a disk, and would take all memory.
_MAX_LINE_BYTES = 1 << 28
_TAIL_BYTES = 1 << 20
_NUM_PLACES = 3  # that a remark names
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
        garbled: Whole lines that are no record, or whose checksum does not fit.
        duplicates: Records whose key was there already.
        stale: Records with another fingerprint than the expected one.
        places: File and line of those that are garbled.
    """

    lines: dict[Key, Line] = field(default_factory=dict)
    torn: int = 0
    garbled: int = 0
    duplicates: int = 0
    stale: int = 0
    places: list[str] = field(default_factory=list)

    def describe(self) -> str:
        """Return what was dropped, for people; empty when nothing was."""
        counts = {
            "torn": self.torn,
            f"damaged ({some_of(self.places)})": self.garbled,
            "duplicated": self.duplicates,
            "of other content": self.stale,
        }
        dropped = [f"{count:,} {name}" for name, count in counts.items() if count]
        return f"lines dropped from the journal: {', '.join(dropped)}" if dropped else ""


def some_of(places: Sequence[str]) -> str:
    """Return the first of some places, and how many there are more."""
    more = len(places) - _NUM_PLACES
    return "; ".join([*places[:_NUM_PLACES], *([f"and {more:,} more"] if more > 0 else [])])


def sha256(text: str) -> str:
    """Return a digest of a text, whatever characters it has."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def fingerprint(*parts: Any) -> str:
    """Return a digest of JSON-ready values: of all that could change a prediction."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode(errors="surrogatepass")).hexdigest()[:32]


def read_journal(
    kind: type[Line],
    files: Iterable[Path],
    expected: Mapping[Key, str] | None = None,
    *,
    needs_checksums: bool = False,
) -> Journal[Line]:
    """Return the records of some files; the first line of a key counts.

    Args:
        kind: What the lines are.
        files: Files that do not exist are empty.
        expected: Fingerprints by key; a line with another one is stale. Keys that it lacks are accepted.
        needs_checksums: A line without a checksum is damaged, and not of an earlier version.

    Raises:
        UserError: A line lacks a field, or one has another type; or a file cannot be read.
    """
    journal = Journal[Line]()
    for file in files:
        for number, (line, is_whole) in enumerate(_read_lines(file, needs_checksums), start=1):
            key = None if line is None else _key_of(line)
            if not is_whole:
                journal.torn += 1
            elif line is None or key is None:
                journal.garbled += 1
                journal.places.append(f"{file}, line {number}")
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


def read_lines(
    kind: type[Record], file: Path, *, needs_checksums: bool = False, damaged: list[str] | None = None
) -> list[Record]:
    """Return the records of a JSON-lines file; none when there is no such file. A torn last line is left out.

    Args:
        kind: What the lines are.
        file: The file.
        needs_checksums: A line without a checksum is damaged, and not of an earlier version.
        damaged: Receives file and line of damaged lines, which are left out then.

    Raises:
        UserError: A line lacks a field, or one has another type, or is damaged; or the file cannot be read.
    """
    records = []
    for number, (line, is_whole) in enumerate(_read_lines(file, needs_checksums), start=1):
        where = f"{file}, line {number}"
        if line is not None:
            records.append(from_json(kind, line, where, remedy=_LINE_REMEDY))
        elif is_whole and damaged is None:
            raise UserError(f"{where} is damaged: it is no JSON object with a fitting checksum; {_LINE_REMEDY}")
        elif is_whole and damaged is not None:
            damaged.append(where)
    return records


def _read_lines(file: Path, needs_checksums: bool) -> Iterator[tuple[dict[str, Any] | None, bool]]:
    """Yield each line as an object, None where it is torn or damaged, and whether the line is whole."""
    if not file.exists():
        return
    try:
        with open_to_read(file) as stream:
            while text := stream.readline(_MAX_LINE_BYTES + 1):
                if len(text) > _MAX_LINE_BYTES:
                    raise OSError(0, f"it has a line of more than {_MAX_LINE_BYTES:,} bytes", str(file))
                # A line without its end may lack more than that.
                is_whole = text.endswith(b"\n")
                yield (parse_line(text, needs_checksum=needs_checksums) if is_whole else None), is_whole
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}; restore it") from error


def parse_line(text: bytes, *, needs_checksum: bool = False) -> dict[str, Any] | None:
    """Return a line as an object, without its checksum; None for one that is damaged."""
    text = text.rstrip(b"\n")
    rest = text[-_CHECKSUM_BYTES:]
    found = _CHECKSUM.fullmatch(rest)
    if found is None and needs_checksum:
        return None
    if found is not None:
        text = text[:-_CHECKSUM_BYTES]
        if zlib.crc32(text) != int(found[1], 16):
            return None
        text += b"}"
    try:
        line = parse_json(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) else None


def line_of(record: Any) -> bytes:
    """Return a record as a JSON line with its checksum."""
    text = json.dumps(to_json(record), ensure_ascii=False)
    # JSON writes half of a pair of surrogates, which has no UTF-8, as Python does.
    content = text[:-1].encode(errors="backslashreplace")
    return b'%b, "crc32": "%08x"}\n' % (content, zlib.crc32(content))


def open_journal(folder: Path, name: str) -> RawIOBase:
    """Return a journal within a folder, open for appending; a torn last line is cut off first.

    Raises:
        UserError: It cannot be written, or is a link.
    """
    journal = open_append(folder, name)
    file = folder / name
    with disk_errors(file):
        with open_to_read(file) as stream:
            end = size = os.fstat(stream.fileno()).st_size
            while end:
                start = max(0, end - _TAIL_BYTES)
                stream.seek(start)
                size = start + stream.read(end - start).rfind(b"\n") + 1
                end = start if size == start else 0
        os.ftruncate(journal.fileno(), size)
    return journal


def append_line(journal: RawIOBase, record: Any) -> None:
    """Append a record as one JSON line with its checksum; see `append_lines`."""
    append_lines(journal, [record])


def append_lines(journal: RawIOBase, records: Iterable[Any]) -> None:
    """Append records, each as one JSON line with its checksum, and wait until they are on the disk.

    Raises:
        UserError: The disk is full, or gone.
    """
    rest = b"".join(map(line_of, records))
    with disk_errors(Path(str(getattr(journal, "name", "journal")))):
        # Unbuffered, so that closing after a failure does not fail again; a write may take only a part.
        while rest:
            rest = rest[journal.write(rest) or 0 :]
        os.fsync(journal.fileno())
