"""Texts, ids and names for a terminal: control characters that could move its cursor or set its title are shown."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

# C0 without tab and newline, DEL, and C1. JSON reads what stands in their place as the same character.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def plain_text(text: str) -> str:
    """Return a text whose control characters are written as `\\u001b`."""
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


class _PlainStream:
    """A text stream that writes plain text; all else is that of the stream behind it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(plain_text(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def plain_output() -> Iterator[None]:
    """Let what is printed to the standard output be plain text, as long as this lasts; progress goes elsewhere."""
    stream = sys.stdout
    # Names and texts may also hold what an output cannot encode.
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    if stream is not None:
        sys.stdout = cast(TextIO, _PlainStream(stream))
    try:
        yield
    finally:
        sys.stdout = stream
