"""Files of a folder that somebody else may have made: written whole, never through a link, never outside the folder.

    write_whole(folder, "report.md", b"...")   # replaced in one step, and on the disk when this returns
    inside(folder, "plots")                    # the path; an error for "..", "/x" and links

A folder that a user names may be a link itself; what lies in it may not be one where it is written. This guards against
a folder that was prepared, not against somebody who changes it at the same time.
"""

from __future__ import annotations

import errno
import glob
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

from eval.errors import UserError
from tasks.readers.kept import open_to_read, sync_folder

# What neither room nor permission mends: a file where a folder should be, or a name that no disk takes.
_NO_PLACE = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)
# Greatest size of a JSON file that is read at once.
MAX_BYTES = 2**30


def inside(folder: Path, name: str) -> Path:
    """Return the path of a file or folder within a folder.

    Args:
        folder: May be a link.
        name: Parts with slashes between them.

    Raises:
        UserError: The name leaves the folder, or a part of it on the disk is a link.
    """
    path = folder
    for part in _parts_of(folder, name):
        path = path / part
        if path.is_symlink():
            raise UserError(f"{path} is a link, and nothing is written through it; put a folder or file in its place")
    return path


def _parts_of(folder: Path, name: str) -> list[str]:
    parts = name.split("/")
    if "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise UserError(f"{name!r} is no name of a file within {folder}; take this folder only from whom you trust")
    return parts


def write_whole(folder: Path, name: str, content: bytes) -> Path:
    """Replace a file within a folder in one step, wait until it is on the disk, and return its path.

    No reader and no crash sees half of it. Folders on the way are made. A link in its place is replaced, not followed.

    Raises:
        UserError: The name leaves the folder, or the disk refuses.
    """
    *parts, last = _parts_of(folder, name)
    file = make_folder(folder) / last if not parts else make_folder(folder, "/".join(parts)) / last
    with disk_errors(file):
        remove_partials(file.parent, last)
        # A name that nobody can prepare a link at.
        partial = file.with_name(f".{last}.{secrets.token_hex(8)}.partial")
        try:
            with open(partial, "xb", opener=_no_link) as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(file)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        sync_folder(file.parent)
    return file


def remove_partials(folder: Path, name: str = "") -> None:
    """Delete what writers of a file, or of all files, left when they were killed."""
    start = f".{glob.escape(name)}" if name else ".*"
    for pattern in (f"{start}.{'[0-9a-f]' * 16}.partial", f"{start}.partial"):  # the second is that of version 0.1
        for left in folder.glob(pattern):
            if left.is_symlink() or left.is_file():
                left.unlink(missing_ok=True)


def make_folder(folder: Path, name: str = "") -> Path:
    """Return a folder, or one within it, which is made if needed and stays after a crash.

    Raises:
        UserError: The name leaves the folder, or the disk refuses.
    """
    path = inside(folder, name) if name else folder
    with disk_errors(path):
        missing = [one for one in (path, *path.parents) if not one.exists()]
        if not path.is_dir():
            path.mkdir(parents=True, exist_ok=True)
        for one in missing:
            sync_folder(one.parent)
    return path


def open_append(folder: Path, name: str) -> FileIO:
    """Return a file within a folder, unbuffered and open for appending; it is made if needed.

    Raises:
        UserError: It is a link, or the disk refuses.
    """
    file = inside(folder, name)
    with disk_errors(file):
        is_new = not file.exists()
        if not is_new and not file.is_file():
            raise UserError(f"{file} is no regular file; take it away, and run the same command again")
        stream = open(file, "ab", buffering=0, opener=_no_link)  # noqa: SIM115  # the caller closes it
        if is_new:
            sync_folder(file.parent)
        return stream


def _no_link(path: str, flags: int) -> int:
    """Open a file for writing as `open` does, and refuse a link."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def read_whole(file: Path) -> bytes:
    """Return the bytes of a file that is read at once.

    Raises:
        OSError: It cannot be read, is no regular file, or is greater than any file of a run.
    """
    with open_to_read(file) as stream:
        if os.fstat(stream.fileno()).st_size > MAX_BYTES:
            raise OSError(0, f"it has more than {MAX_BYTES:,} bytes", str(file))
        return stream.read()


def read_json(file: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no JSON.
    """
    return parse_json(read_whole(file))


def parse_json(text: bytes | str) -> Any:
    """Return parsed JSON; bytes are UTF-8.

    Raises:
        ValueError: It is none, is not UTF-8, or is nested too deeply to read.
    """
    try:
        return json.loads(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


@contextmanager
def disk_errors(file: Path) -> Iterator[None]:
    """Turn what the disk refuses into an error of one line."""
    try:
        yield
    except OSError as error:
        remedy = "run the same command again once there is room and permission"
        if error.errno in _NO_PLACE:
            remedy = "give another path"
        raise UserError(
            f"{file} cannot be written: {error.strerror or error}; what is there is kept; {remedy}"
        ) from error
