"""Text of bytes that people send: UTF-8 with or without a byte order mark, and one line about anything else."""

from __future__ import annotations

import codecs

# The longer marks first: that of UTF-32 begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def wide_encoding(start: bytes) -> str | None:
    """Return the name of the encoding if a text begins as in UTF-16 or UTF-32, which PowerShell and Excel write."""
    for mark, name in _MARKS.items():
        if start.startswith(mark):
            return name
    # Without a mark: every other byte of a Latin text is zero.
    return "UTF-16" if b"\0" in start[:4] and start[:4].strip(b"\0") else None


def decode_text(data: bytes) -> str:
    """Return the text of UTF-8 bytes, without a byte order mark.

    Raises:
        UnicodeDecodeError: They are no UTF-8; the reason says what they may be and what to do.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if name := wide_encoding(data[:4]):
            error.reason = f"not UTF-8 text but {name}; save it as UTF-8"
        else:
            error.reason = f"not UTF-8 text ({error.reason}), perhaps Windows-1252; save it as UTF-8"
        raise
