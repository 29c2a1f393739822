"""The key of a server and whether it is on this machine."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from eval.errors import UserError

KEY_VARIABLE = "OPENAI_API_KEY"


def read_key(variable: str | None, option: str = "--api-key-env") -> str | None:
    """Return the key in an environment variable, `KEY_VARIABLE` where none is named; None where that holds none.

    Args:
        variable: Name of the variable.
        option: What a user names it with, for errors.

    Raises:
        UserError: The variable that is named holds no key, or it has characters that no key can have.
    """
    key = os.environ.get(variable or KEY_VARIABLE, "").strip()
    if variable is not None and not key:
        # Not repeated: it may be the key itself, in the wrong place.
        raise UserError(
            f"{option} names no environment variable that holds a key; put the key into one, and give the name of "
            "it, such as OPENAI_API_KEY"
        )
    if not (key.isascii() and key.isprintable()):
        raise UserError(
            f"the environment variable {variable or KEY_VARIABLE} holds characters that no key can have, such as a "
            "line's end or a dash of typography; copy the key into it again"
        )
    return key or None


def is_here(address: str) -> bool:
    """Return whether an address is that of this machine's loopback."""
    host = urlsplit(address).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")
