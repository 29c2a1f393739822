"""One line of what went wrong."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message that says something, or the exception's name."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)
