"""A judge that reads prompts by their marks and answers by looking, behind the stand-in for a server."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from eval.metrics.base import Item
from tests.helpers.engine_faults import Call
from tests.helpers.engine_standin import EngineStandIn, engine_standin

MODEL = "tiny-instruct"
Write = Callable[..., Path]


def between(text: str, start: str, end: str) -> str:
    """Return what stands between two marks."""
    return text.partition(start)[2].partition(end)[0].strip()


def list_in(text: str, title: str) -> list[str]:
    """Return the numbered list below a title."""
    return re.findall(r"^\d+\. (.+)$", between(text, f"{title}:\n", "\n\n"), re.MULTILINE)


def prompt_of(call: Call) -> str:
    """Return the prompt of a request."""
    return str(call.body["messages"][0]["content"])


def looks(call: Call) -> str:
    """Return what a judge says that looks for words, and reads nothing between the lines."""
    prompt = prompt_of(call)
    references = " ".join(re.findall(r"<reference>\n(.*?)\n</reference>", prompt, re.DOTALL))
    if '"key_points"' in prompt:
        return json.dumps({"key_points": re.findall(r"\w[^.]+\.", references)})
    if '"said"' in prompt:
        answer = between(prompt, "<answer>", "</answer>")
        points = list_in(prompt, "Key points")
        return json.dumps({"said": [number for number, one in enumerate(points, 1) if one.strip(" .") in answer]})
    if '"supported"' in prompt:
        sentences = list_in(prompt, "Sentences of the answer")
        found = [number for number, one in enumerate(sentences, 1) if one.strip(" .") in references]
        return json.dumps({"supported": found})
    first, second = (between(prompt, f"<answer_{number}>", f"</answer_{number}>") for number in (1, 2))
    shares = [sum(word in references for word in answer.split()) for answer in (first, second)]
    return json.dumps({"better": "tie" if shares[0] == shares[1] else "1" if shares[0] > shares[1] else "2"})


@pytest.fixture
def server() -> Iterator[EngineStandIn]:
    with engine_standin(says=looks) as running:
        yield running


@pytest.fixture
def write(tmp_path: Path, server: EngineStandIn) -> Write:
    """Return what writes a judge's file."""

    def written(mode: str = "key-points", name: str = "judge.yaml", **settings: Any) -> Path:
        file = tmp_path / name
        content = {"base_url": server.base_url, "model": MODEL, "mode": mode, "max_retries": 0, **settings}
        file.write_text(yaml.safe_dump(content), encoding="utf-8")
        return file

    return written


REFERENCES = ("Rivers carry stones. Stones become sand.", "Ice melts in spring. Floods follow.")


def item(prediction: str, **fields: Any) -> Item:
    """Return an item about rivers."""
    about = {"references": REFERENCES, "query": "What do rivers do?", **fields}
    return Item(fingerprint=prediction, prediction=prediction, **about)
