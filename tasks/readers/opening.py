"""Files as people send them: plain, or packed as .gz, .bz2, .xz, .zst or .zip; and one guard around what unpacks them.

with open_packed(Path("val.jsonl.zst")) as (stream, name):  # name is "val.jsonl"
    stream.readline()
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

from tasks.base import DataError
from tasks.readers.kept import reading
from tasks.readers.rows import one_line


def _zst(file: IO[bytes]) -> Any:
    import pyarrow  # has the codec that Python 3.11 lacks

    return pyarrow.CompressedInputStream(file, "zstd")


_UNPACK: dict[str, Callable[[Any], Any]] = {
    ".gz": lambda file: gzip.GzipFile(fileobj=file),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": _zst,
}
PACKED = (*_UNPACK, ".zip")
_START_BYTES = 64 * 1024
_NAMES = {".gz": "gzip", ".bz2": "bzip2", ".zst": "zstd"}


@contextmanager
def parsing(what: str, remedy: str) -> Iterator[None]:
    """Make one line of whatever a library raises about the bytes it is given.

    Libraries document no list of it: a damaged file has raised LZMAError, LookupError, RecursionError and more.

    Args:
        what: The file and what it is not, such as "a.zip: not a readable zip file".
        remedy: What to do about it.

    Raises:
        DataError: Something was raised; errors that are one already stay.
    """
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
        raise DataError(f"{what} ({reason}); {remedy}") from error


def unpacked_name(name: str) -> str:
    """Return a file's name without the suffix of its packing."""
    return name[: -len(PurePosixPath(name).suffix)] if PurePosixPath(name).suffix.lower() in PACKED else name


@contextmanager
def open_packed(path: Path, *, may_be_pipe: bool = False) -> Iterator[tuple[IO[bytes], str]]:
    """Open a file, unpacked if need be, and give its name without the suffix of the packing; of a zip, its one file.

    A pipe will do where the caller reads once (`may_be_pipe`).

    Raises:
        DataError: It cannot be read, is damaged, or is a zip file with several files.
    """
    suffix = path.suffix.lower()
    with _opened(path, may_be_pipe=may_be_pipe) as file:
        if suffix == ".zip":
            with zipfile.ZipFile(file) as archive, archive.open(_only_member(archive, path.name)) as stream:
                yield stream, PurePosixPath(stream.name).name
        elif suffix in _UNPACK:
            yield io.BufferedReader(_UNPACK[suffix](file)), path.stem
        else:
            yield file, path.name


def holds_records(path: Path) -> bool:
    """Return whether a file is read record by record: it is no array of JSON, and no zip file of several files."""
    suffix = path.suffix.lower()
    with _opened(path) as file:
        if suffix == ".zip":
            with zipfile.ZipFile(file) as archive:
                return len(_members(archive)) < 2
        return suffix != ".json" or file.read(_START_BYTES).lstrip()[:1] != b"["


@contextmanager
def _opened(path: Path, *, may_be_pipe: bool = False) -> Iterator[IO[bytes]]:
    suffix = path.suffix.lower()
    kind = f"{_NAMES.get(suffix, suffix[1:])} file" if suffix in PACKED else "file"
    guard = parsing(f"{path.name}: not a readable {kind}", "check it, or fetch it again")
    with reading(path, may_be_pipe=may_be_pipe) as file, guard:
        yield file


def _members(archive: zipfile.ZipFile) -> list[str]:
    """Return the files of an archive, without what macOS and editors put beside them."""
    return [
        member
        for member in archive.namelist()
        if not member.endswith("/") and not any(part.startswith((".", "__MACOSX")) for part in member.split("/"))
    ]


def _only_member(archive: zipfile.ZipFile, name: str) -> str:
    files = _members(archive)
    if len(files) != 1:
        listed = ", ".join(files)[:300] or "none"
        raise DataError(f"{name} holds {len(files)} files ({listed}); unpack it, and give the one to read")
    return files[0]
