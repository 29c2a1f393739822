"""Files of a cache, each after its SHA-256, so that what a power cut or a disk has damaged is fetched again."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from tasks.base import DataError


def keep(path: Path, data: bytes) -> None:
    """Write a file of the cache with its checksum, whole or not at all, even if the machine loses its power.

    Raises:
        DataError: It cannot be written.
    """
    partial = path.with_name(f".{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not a temporary file of Python: those are for the user's eyes alone, and a cache may be shared.
        with partial.open("xb") as stream:
            stream.write(hashlib.sha256(data).digest() + data)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise DataError(
            f"cannot write the hub's cache, {path.parent}: {error.strerror or error}; set HF_HOME to a folder with "
            "room that you may write"
        ) from error
    finally:
        with suppress(OSError):  # there is none where all went well
            partial.unlink()


def read_kept(path: Path) -> bytes | None:
    """Return the content of a file that `keep` wrote; None if there is none, or it is damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, data = content[:32], content[32:]
    return data if hashlib.sha256(data).digest() == digest else None


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk: files that were made, renamed or deleted."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems of networks cannot; the files themselves are synced.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def open_to_read(file: Path, *, may_be_pipe: bool = False) -> IO[bytes]:
    """Return a file, open for reading.

    Args:
        may_be_pipe: It is read once, so that a pipe will do. One that nobody writes to is empty, and keeps no reader
            waiting.

    Raises:
        OSError: It cannot be read, or is no regular file.
    """
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if may_be_pipe and stat.S_ISFIFO(mode):
        os.set_blocking(descriptor, True)
    elif not stat.S_ISREG(mode):
        os.close(descriptor)
        raise OSError(0, "it is no regular file (write a pipe to one first)", str(file))
    return os.fdopen(descriptor, "rb")


@contextmanager
def reading(file: Path, what: str | None = None, *, may_be_pipe: bool = False) -> Iterator[IO[bytes]]:
    """Open a file as `open_to_read` does; what goes wrong, also later, is a `DataError` that begins with `what`."""
    try:
        with open_to_read(file, may_be_pipe=may_be_pipe) as stream:
            yield stream
    except OSError as error:
        raise DataError(f"{what or file} cannot be read: {error.strerror or error}; check the path") from error
