"""Files of a cache, each after its SHA-256, so that what a power cut or a disk has damaged is fetched again."""

from __future__ import annotations

import hashlib
import os
import secrets
from contextlib import suppress
from pathlib import Path

from tasks.base import DataError


def keep(path: Path, data: bytes) -> None:
    """Write a file of the cache with its checksum, whole or not at all, even if the machine loses its power.

    Raises:
        DataError: It cannot be written.
    """
    partial = path.with_name(f".{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Not a temporary file of Python: those are for the user's eyes alone, and a cache may be shared.
            with partial.open("xb") as stream:
                stream.write(hashlib.sha256(data).digest() + data)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise DataError(
            f"cannot write the hub's cache, {path.parent}: {error.strerror or error}; set HF_HOME to a folder with "
            "room that you may write"
        ) from error


def read_kept(path: Path) -> bytes | None:
    """Return the content of a file that `keep` wrote; None if there is none, or it is damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, data = content[:32], content[32:]
    return data if hashlib.sha256(data).digest() == digest else None


def _sync_folder(folder: Path) -> None:
    """Make a rename last; some systems open no folders."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
