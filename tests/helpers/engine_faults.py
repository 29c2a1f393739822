"""What may go wrong with a server, for `tests.helpers.engine_standin`; errors in the words of the real servers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

KEPT = "kept"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What goes wrong with an answer. A piece is a line of a stream with a word, or all of an answer that is none.

    Attributes:
        status: HTTP status of a refusal.
        body: JSON or text in the place of an answer; may name {key}, {sent} and {longest}.
        headers: Further ones.
        close_after: Pieces after which the connection is closed; 0 answers nothing at all.
        is_clean: The connection closes as if the answer were whole.
        garble_after: Pieces after which comes one that is no JSON.
        told_after: Pieces after which comes `body`, as an error within a stream.
        silent_after: Pieces after which nothing comes for `silence` seconds.
        byte_seconds: Time between single bytes.
        dies: The server ends, with all connections.
        model: Another model's name.
        finish_reason: Another reason of the end; None is one that is not told.
        max_tokens: Tokens after which the answer is cut.
        is_empty: An answer without choices.
        num_choices: As many answers, whatever was asked for.
        lost_tokens: Tokens of the prompt that the server cuts.
        has_usage: Whether it counts tokens.
    """

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    close_after: int | None = None
    is_clean: bool = False
    garble_after: int | None = None
    told_after: int | None = None
    silent_after: int | None = None
    silence: float = 0.0
    byte_seconds: float = 0.0
    dies: bool = False
    model: str | None = None
    finish_reason: str | None = KEPT
    max_tokens: int | None = None
    is_empty: bool = False
    num_choices: int | None = None
    lost_tokens: int = 0
    has_usage: bool = True


def openai_error(message: str, kind: str, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def vllm_error(message: str, kind: str, code: int) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


HEALTHY = Fault()
TOO_MANY = Fault(status=429, body=openai_error("Rate limit reached for requests", "requests", "rate_limit_exceeded"))
NO_QUOTA = Fault(
    status=429,
    body=openai_error(
        "You exceeded your current quota, please check your plan and billing details.",
        "insufficient_quota",
        "insufficient_quota",
    ),
)
BROKEN = Fault(status=500, body=vllm_error("EngineCore encountered an issue.", "InternalServerError", 500))
BUSY = Fault(status=503, body="<html><head><title>503 Service Temporarily Unavailable</title></head></html>")
PAGE = Fault(body="<!DOCTYPE html>\n<html><body>Please sign in to the network.</body></html>")
# As vLLM 0.32 says it (vllm/renderers/params.py), and as OpenAI does of completions.
TOO_LONG_FOR_VLLM = Fault(
    status=400,
    body=vllm_error(
        "This model's maximum context length is {longest} tokens. However, your prompt contains {sent} input tokens, "
        "which exceeds this limit even without any output tokens. Please reduce the length of the input prompt.",
        "BadRequestError",
        400,
    ),
)
TOO_LONG_FOR_OPENAI = Fault(
    status=400,
    body=openai_error(
        "This model's maximum context length is {longest} tokens, however you requested {asked} tokens ({sent} in your "
        "prompt; {room} for the completion). Please reduce your prompt; or completion length.",
        "invalid_request_error",
        "context_length_exceeded",
    ),
)
WRONG_KEY = Fault(
    status=401,
    body=openai_error(
        "Incorrect API key provided: {key}. You can find your API key at https://platform.openai.com/account/api-keys.",
        "invalid_request_error",
        "invalid_api_key",
    ),
)
CHAT_ALONE = Fault(
    status=404,
    body=openai_error(
        "This is a chat model and not supported in the v1/completions endpoint. Did you mean to use "
        "v1/chat/completions?",
        "invalid_request_error",
    ),
)
NO_IDS = Fault(status=400, body=openai_error("[] is not of type 'string' - 'prompt'", "invalid_request_error"))
OLD_ROOM = Fault(
    status=400,
    body=openai_error(
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
        "invalid_request_error",
        "unsupported_parameter",
    ),
)
NO_SUCH_PATH = Fault(status=404, body={"detail": "Not Found"})


def with_headers(fault: Fault, **headers: str) -> Fault:
    """Return a fault with further headers; `retry_after="1"` becomes `Retry-After: 1`."""
    return replace(fault, headers={name.replace("_", "-").title(): value for name, value in headers.items()})


@dataclass
class Call:
    """A request that came.

    Attributes:
        headers: By name in small letters.
        number: Place among those that were posted; None for one that asks for no answer.
        ids: Tokens of the prompt.
        cached: Those of them that were in the prefix cache.
        status: HTTP status of the answer; None before there is one.
        is_whole: The answer went out to its end.
        is_running: It counts among those of the moment.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: Mapping[str, Any] = field(default_factory=dict)
    number: int | None = None
    ids: Sequence[int] = ()
    cached: int = 0
    status: int | None = None
    is_whole: bool = False
    is_running: bool = False


When = Callable[[Call], bool]


def numbered(*numbers: int) -> When:
    """Return what holds for the requests of these numbers."""
    return lambda call: call.number in numbers


def from_number(first: int) -> When:
    """Return what holds for all requests from one on."""
    return lambda call: call.number is not None and call.number >= first
