"""Text of bytes that people send: UTF-8 with or without a byte order mark, and one line about anything else."""

from __future__ import annotations

import codecs
from collections import Counter
from typing import Any

# The longer marks first: that of UTF-32 begins with that of UTF-16.
_MARKS = {
    "UTF-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
    "UTF-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}


def wide_encoding(start: bytes) -> str | None:
    """Return the name of the encoding if a text begins as in UTF-16 or UTF-32, which PowerShell and Excel write."""
    for name, marks in _MARKS.items():
        if start.startswith(marks):
            return name
    # Without a mark: every other byte of a Latin text is zero.
    zeros = [byte == 0 for byte in start[:4]]
    return "UTF-16" if zeros[:2] in ([True, False], [False, True]) and zeros[2:] in ([], zeros[:2]) else None


def decode_text(data: bytes) -> str:
    """Return the text of UTF-8 bytes, without a byte order mark.

    Raises:
        UnicodeDecodeError: They are no UTF-8; the reason says what they may be and what to do.
    """
    if name := wide_encoding(data[:4]):  # first: without a mark, UTF-16 of Latin text is UTF-8 with zeros
        raise UnicodeDecodeError("utf-8", data, 0, 1, f"not UTF-8 text but {name}; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        error.reason = f"not UTF-8 text ({error.reason}), perhaps Windows-1252; save it as UTF-8"
        raise


def unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON, whose parser would keep the last of two values of one name.

    Raises:
        ValueError: A name is there twice.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the name {name[:100]!r} is there twice in one object")
    return found
