"""What the stand-in for a server answers: words that depend on the prompt alone, and likelihoods of its tokens."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.helpers.engine_faults import KEPT, Fault

BLOCK = 16
_WORDS = ("rivers", "run", "seven", "miles", "and", "more", "as", "old", "papers", "tell", "of", "stones", "that")


def digests_of(ids: Sequence[int]) -> list[int]:
    """Return a digest of each whole block and of all that stands before it."""
    digests, digest = [], 0
    for start in range(0, len(ids) - len(ids) % BLOCK, BLOCK):
        digest = hash((digest, *ids[start : start + BLOCK]))
        digests.append(digest)
    return digests


def byte_ids(text: str) -> list[int]:
    """Return a token for each byte of a text, and one for each mark."""
    pieces = re.findall(rb"<\|\w+\|>|.", text.encode(), re.DOTALL)
    return [piece[0] if len(piece) == 1 else 256 + zlib.crc32(piece) % 1000 for piece in pieces]


def log_likelihood(ids: Sequence[int], place: int) -> float | None:
    """Return that of a token of a prompt, which depends on all before it; None for the first."""
    return -(zlib.crc32(repr(list(ids[: place + 1])).encode()) % 4001) / 1000 if place else None


def words_of(ids: Sequence[int], index: int = 0, seed: int = 0, least: int = 0) -> list[str]:
    """Return the words with which one of several answers to a prompt ends by itself."""
    digest = zlib.crc32(repr((list(ids), index, seed)).encode())
    length = max(least, 3 + digest % 5)
    return [_WORDS[(digest >> place % 24) % len(_WORDS)] for place in range(length)]


@dataclass(frozen=True)
class Answer:
    """Pieces of one answer, with the reason of its end."""

    pieces: list[str]
    reason: str | None
    num_tokens: int


def shape(ids: Sequence[int], body: Mapping[str, Any], index: int, seed: int, room: int, fault: Fault) -> Answer:
    """Return an answer as it is asked for: at its length, and up to the first of the texts that stop it."""
    words = words_of(ids, index, seed, int(body.get("min_tokens") or 0))
    pieces = [word if place == 0 else f" {word}" for place, word in enumerate(words[:room])]
    # The token that ends an answer counts.
    reason, count = ("length", room) if len(words) >= room else ("stop", len(words) + 1)
    whole = "".join(pieces)
    stops = body.get("stop") or ()
    found = [whole.index(text) for text in ([stops] if isinstance(stops, str) else stops) if text in whole]
    if found:
        whole = whole[: min(found)]
        pieces, reason = re.findall(r" ?[^ ]+| $", whole), "stop"
        count = len(pieces) + 1
    return Answer(pieces, reason if fault.finish_reason == KEPT else fault.finish_reason, count)


def lines_of(body: Mapping[str, Any], answers: Sequence[Answer]) -> Iterator[dict[str, Any]]:
    """Yield the choices of each line of a stream, answers by turns."""
    is_chat = "messages" in body
    for place in range(max((len(one.pieces) for one in answers), default=0) + 1):
        for index, one in enumerate(answers):
            if place > len(one.pieces):
                continue
            is_last = place == len(one.pieces)
            text, reason = "" if is_last else one.pieces[place], one.reason if is_last else None
            said = (
                {"delta": {"content": text, **({} if place else {"role": "assistant"})}} if is_chat else {"text": text}
            )
            ids = {}
            if body.get("return_token_ids"):
                ids = {"token_ids": [2] * (reason == "stop") if is_last else [3 + zlib.crc32(text.encode()) % 90]}
            yield {"choices": [{"index": index, "finish_reason": reason, "logprobs": None, **said, **ids}]}


def whole_of(
    body: Mapping[str, Any], ids: Sequence[int], index: int, answer: Answer, *, is_telling: bool
) -> dict[str, Any]:
    """Return an answer that is no stream, with what vLLM and `echo` tell of the prompt."""
    text = "".join(answer.pieces)
    choice: dict[str, Any] = {"index": index, "finish_reason": answer.reason}
    if "messages" in body:
        return {**choice, "message": {"role": "assistant", "content": text}}
    choice |= {"text": text, "logprobs": None}
    known = [log_likelihood(ids, place) for place in range(len(ids))]
    if body.get("echo") and is_telling:
        prompt = body["prompt"] if isinstance(body["prompt"], str) else "".join(chr(one) for one in ids)
        choice["text"] = prompt + text
        if body.get("logprobs") is not None:
            losses = [*known, *[-0.5] * len(answer.pieces)]
            tokens = [*map(str, ids), *answer.pieces]
            choice["logprobs"] = {"tokens": tokens, "token_logprobs": losses, "top_logprobs": None}
    if body.get("prompt_logprobs") is not None and is_telling:
        choice["prompt_logprobs"] = [
            None if value is None else {str(token): {"logprob": value, "rank": 1, "decoded_token": str(token)}}
            for token, value in zip(ids, known, strict=True)
        ]
    return choice
