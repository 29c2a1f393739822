"""Prompt files with texts put in -> questions, and what a judge says -> JSON that was asked for.

    question = Question(kind="said", text=prompt.fill({...}), schema=object_of(said=list_of("integer")))
    read_numbers(reply.text, "said", 5)  # frozenset({1, 3})

What cannot be read raises `UnreadError` with the kind of failure. It is counted, and never a score.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from eval.errors import UserError
from eval.judging.settings import Scale

_PLACE = re.compile(r"\{(\w+)\}")
_PROMPTS = Path(__file__).parent / "prompts"
_MAX_POINTS = 100
# What a prompt says where an example has no query.
_NO_QUERY = "Summarize the document."
_CHOICES = {"1": "first", "2": "second", "tie": "tie"}
Choice = Literal["first", "second", "tie"]


class UnreadError(Exception):
    """A reply that does not hold what was asked for.

    Attributes:
        kind: Why, in a word or two that failures are counted by.
    """

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt file: its name, and its text with places such as {prediction}."""

    name: str
    text: str

    @property
    def digest(self) -> str:
        """Return a hash of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    @property
    def places(self) -> set[str]:
        """Return the names of the places."""
        return set(_PLACE.findall(self.text))

    def fill(self, values: Mapping[str, str]) -> str:
        """Return the text with values put in; braces within values stay as they are."""
        return _PLACE.sub(lambda match: values.get(match[1], match[0]), self.text)


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a judge is asked, once a repeat, with the schema of the JSON that is to come."""

    kind: str
    text: str
    schema: Mapping[str, Any]


def built_in(name: str) -> Prompt:
    """Return a prompt of the package."""
    return Prompt(name=name, text=(_PROMPTS / f"{name}.txt").read_text(encoding="utf-8"))


def read_prompt(file: Path, places: Sequence[str], required: Sequence[str]) -> Prompt:
    """Return a user's prompt.

    Args:
        file: A text file.
        places: Names that may stand in braces; other braces are text, such as those of JSON.
        required: Names of which each must be there.

    Raises:
        UserError: It cannot be read, or lacks a place.
    """
    try:
        prompt = Prompt(name=file.name, text=file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prompt {file} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if absent := [name for name in required if name not in prompt.places]:
        raise UserError(f"prompt {file} has no {{{absent[0]}}}; put it where that text belongs")
    if unknown := sorted(prompt.places - {*places}):
        raise UserError(f"prompt {file} has the place {{{unknown[0]}}}; known: {', '.join(places)}")
    return prompt


def texts_of(query: str | None, references: Sequence[str]) -> dict[str, str]:
    """Return what prompts say of an example, by place."""
    marked = (f"<reference>\n{one.strip()}\n</reference>" for one in references)
    return {"query": query or _NO_QUERY, "references": "\n\n".join(marked)}


def numbered(texts: Sequence[str]) -> str:
    """Return texts as a list with numbers from 1."""
    return "\n".join(f"{number}. {' '.join(text.split())}" for number, text in enumerate(texts, start=1))


def object_of(**properties: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of an object with these properties and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def list_of(kind: str) -> dict[str, Any]:
    """Return the schema of a list."""
    return {"type": "array", "items": {"type": kind}}


def read_points(text: str) -> list[str]:
    """Return the key points in a reply. Raises `UnreadError`."""
    points = _found(text, ["key_points"])["key_points"]
    if not isinstance(points, list) or not 1 <= len(points) <= _MAX_POINTS:
        raise UnreadError("other JSON")
    # Poor judges repeat the prompt's own example, of which each point is dots.
    if not all(isinstance(one, str) and any(map(str.isalnum, one)) for one in points):
        raise UnreadError("other JSON")
    return [one.strip() for one in points]


def read_numbers(text: str, name: str, count: int) -> frozenset[int]:
    """Return the numbers, from 1 to a count, in a reply. Raises `UnreadError`."""
    numbers = _found(text, [name])[name]
    if not isinstance(numbers, list) or not all(type(one) is int for one in numbers):
        raise UnreadError("other JSON")
    if not all(1 <= one <= count for one in numbers):
        raise UnreadError("out of range")
    return frozenset(numbers)


def read_choice(text: str) -> Choice:
    """Return which answer a reply prefers. Raises `UnreadError`."""
    choice = _found(text, ["better"])["better"]
    if str(choice) not in _CHOICES:
        raise UnreadError("other JSON")
    return _CHOICES[str(choice)]  # type: ignore[return-value]


def read_values(text: str, scales: Mapping[str, Scale]) -> dict[str, float]:
    """Return the values of a rubric in a reply. Raises `UnreadError`."""
    found = _found(text, list(scales))
    values = {}
    for label, scale in scales.items():
        if type(found[label]) not in (int, float):
            raise UnreadError("other JSON")
        if not scale.low <= found[label] <= scale.high:
            raise UnreadError("out of range")
        values[label] = float(found[label])
    return values


def _found(text: str, names: Sequence[str]) -> dict[str, Any]:
    """Return the last JSON object of a reply that has all names; text may stand around it."""
    decoder, found, start = json.JSONDecoder(), None, text.find("{")
    has_json = False
    while start >= 0:
        try:
            value, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            end = start + 1
        else:
            has_json = True
            if isinstance(value, dict) and all(name in value for name in names):
                found = value
        start = text.find("{", end)
    if found is None:
        raise UnreadError("other JSON" if has_json else "no JSON" if text.strip() else "empty")
    return found
