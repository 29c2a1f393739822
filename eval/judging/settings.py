"""A judge's YAML file -> settings; unknown keys and values of other types are refused.

    base_url: https://api.example.com/v1
    api_key_env: MY_KEY
    model: NAME
    mode: key-points
    prices: {prompt: 0.15, completion: 0.60}

The file names the environment variable of the key, and never holds the key.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from eval.errors import UserError
from eval.records.rules import COST, COUNT, POSITIVE, SECONDS
from eval.records.typed import entry, from_json
from tasks.readers.yaml_file import read_yaml, shown

# Fields of a request that the judge itself sends.
_OWN = ("model", "messages", "temperature", "seed", "max_tokens", "max_completion_tokens", "response_format", "stream")


@dataclass(frozen=True, kw_only=True)
class Scale:
    """One value of a rubric."""

    low: float = entry("smallest value that the rubric allows")
    high: float = entry("greatest value that the rubric allows")
    title: str | None = entry("what the value says, for tables", default=None)
    better: Literal["higher", "lower"] | None = entry("which end is better; null where neither is", default="higher")


@dataclass(frozen=True, kw_only=True)
class Prices:
    """What a million tokens cost."""

    prompt: float = entry("price of a million tokens of prompts", rule=COST)
    completion: float = entry("price of a million tokens of answers, thoughts included", rule=COST)
    currency: str = entry("unit of the prices", default="USD")


@dataclass(frozen=True, kw_only=True)
class JudgeSettings:
    """What a judge's file says."""

    base_url: str = entry("address of the server, up to and with `/v1`")
    model: str = entry("name that is asked for")
    served_model: str | None = entry("name that the server answers under; null is `model`", default=None)
    api_key_env: str | None = entry("environment variable with the key; null sends none", default=None)
    mode: Literal["key-points", "rubric", "pairwise"] = entry("what is asked")
    prompt: str | None = entry(
        "prompt file of `rubric` or `pairwise`, beside this file; null is the built-in of `pairwise`", default=None
    )
    values: dict[str, Scale] = entry("values that `rubric` asks for, by label", default={})
    repeats: int = entry("times that each question is asked", default=1, rule=POSITIVE)
    temperature: float | None = entry("of sampling; null sends none", default=0.0, rule=COUNT)
    seed: int | None = entry("seed of the first repeat, one more for each further one; null sends none", default=0)
    max_tokens: int = entry("room for an answer, thoughts included", default=1024, rule=POSITIVE)
    answers_as: Literal["schema", "object", "text"] = entry(
        "what holds the answer to JSON: a JSON schema, a JSON object, or the prompt alone", default="schema"
    )
    extra: dict[str, Any] = entry("further fields of each request", default={})
    prices: Prices | None = entry("what tokens cost; null has no price in tables", default=None)
    replies: str | None = entry("file of the replies, beside this file; null is `NAME.replies.jsonl`", default=None)
    concurrency: int = entry("requests at a time", default=16, rule=POSITIVE)
    timeout: float = entry("seconds without a byte after which a request has failed", default=600.0, rule=SECONDS)
    max_retries: int = entry("times that a failed request is sent again", default=6, rule=COUNT)


def read_settings(file: Path) -> JudgeSettings:
    """Return the settings in a judge's file.

    Raises:
        DataError: It cannot be read, or is no YAML.
        UserError: A key is unknown or absent, or a value does not fit.
    """
    content = read_yaml(file, f"judge {file}")
    if not isinstance(content, Mapping):
        raise UserError(f"judge {file} holds {shown(content)}; give keys such as base_url, model and mode")
    _check_keys(file, JudgeSettings, content)
    if absent := [name for name in ("base_url", "model", "mode") if content.get(name) is None]:
        raise UserError(f"judge {file} has no {absent[0]}; add it")
    scales = content.get("values")
    for scale in scales.values() if isinstance(scales, Mapping) else ():
        _check_keys(file, Scale, scale)
    _check_keys(file, Prices, content.get("prices"))
    settings = from_json(JudgeSettings, content, f"judge {file}", remedy="mend the file")
    if problem := _problem_with(settings):
        raise UserError(f"judge {file}: {problem}")
    return settings


def _check_keys(file: Path, kind: type, content: Any) -> None:
    known = [one.name for one in fields(kind)]
    if unknown := [name for name in content if name not in known] if isinstance(content, Mapping) else []:
        raise UserError(f"judge {file} has the unknown key {shown(unknown[0])}; known: {', '.join(known)}")


def _problem_with(settings: JudgeSettings) -> str | None:
    """Return what does not fit together; None where all does."""
    url = urlsplit(settings.base_url)
    if url.scheme not in ("http", "https") or not url.netloc:
        return f"base_url {settings.base_url} is no address; give one such as http://localhost:8000/v1"
    if url.username or url.password or url.query:
        # It goes into records.
        return "base_url holds more than an address; put a key into the variable that api_key_env names"
    if taken := [name for name in settings.extra if name in _OWN]:
        return f"extra has {taken[0]}, which the judge sends itself; take it out"
    if settings.mode == "key-points" and settings.prompt is not None:
        return "mode key-points has its own prompts; take prompt out, or take mode rubric"
    if (settings.mode == "rubric") != bool(settings.values):
        return "mode rubric needs values, and no other mode has them"
    if settings.mode == "rubric" and settings.prompt is None:
        return "mode rubric needs a prompt file; name it with prompt"
    for label, scale in settings.values.items():
        if not (isinstance(label, str) and label.isidentifier()):
            return f"the value {shown(label)} is no name; use letters, digits and _"
        if not (math.isfinite(scale.high - scale.low) and scale.low < scale.high):
            return f"the value {label} goes from {scale.low:g} to {scale.high:g}; low must be below high"
    return None
