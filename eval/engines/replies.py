"""What servers send back: answers, whole or in pieces, counts, errors, and how long to wait."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openai import APIStatusError


@dataclass(kw_only=True)
class Choice:
    """One answer of a reply."""

    text: str = ""
    thought: str = ""
    finish_reason: str | None = None
    token_ids: list[int] | None = None


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a request brought; None is what the server does not tell.

    Attributes:
        choices: Answers, as many as were asked for.
        model: Name that the server gives.
        prompt_tokens: Tokens of the prompt.
        cached_tokens: Tokens of the prompt that were in the prefix cache.
        completion_tokens: Tokens of all answers.
        seconds: From sending the request to its end, without failed tries.
        first_token_seconds: From sending it to the first token.
    """

    choices: list[Choice]
    model: str | None
    prompt_tokens: int | None
    cached_tokens: int | None
    completion_tokens: int | None
    seconds: float
    first_token_seconds: float | None


def add_piece(choice: Choice, piece: Any) -> bool:
    """Add a piece of a stream to an answer; return whether it holds a token."""
    delta = getattr(piece, "delta", None) or getattr(piece, "message", None)
    text = getattr(piece, "text", None) if delta is None else getattr(delta, "content", None)
    thought = getattr(delta, "reasoning_content", None) or getattr(delta, "reasoning", None)
    ids = getattr(piece, "token_ids", None)
    choice.text += text or ""
    choice.thought += thought or ""
    if ids:
        choice.token_ids = [*(choice.token_ids or []), *ids]
    choice.finish_reason = getattr(piece, "finish_reason", None) or choice.finish_reason
    return bool(text or thought or ids or choice.finish_reason)


def count_of(found: Any, name: str) -> int | None:
    """Return a count that a server tells, of an object or a mapping; None where it tells none."""
    value = found.get(name) if isinstance(found, Mapping) else getattr(found, name, None)
    return value if isinstance(value, int) and value >= 0 else None


def words_of(error: APIStatusError) -> str:
    """Return what a server says about an error: its own words, of a page the beginning."""
    body = error.body
    if isinstance(body, Mapping):
        inner = body.get("error", body)
        said = inner.get("message") or inner.get("detail") if isinstance(inner, Mapping) else inner
        return " ".join(str(part) for part in (said, inner.get("code") if isinstance(inner, Mapping) else "") if part)
    return str(body or error.response.text)


def delay_of(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that `Retry-After` names, as a number or a date; None without one."""
    text = headers.get("retry-after", "")
    with contextlib.suppress(ValueError):
        return max(0.0, float(text))
    with contextlib.suppress(ValueError, TypeError):
        moment = parsedate_to_datetime(text)
        return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    return None
