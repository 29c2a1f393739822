"""Made-up documents, and the files of a folder as plain values."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.helpers.run_folders import without_checksums

TEXT = "long documents hold many words and every word costs a token of context to read"
WORDS = TEXT.split()


def text(seed: int, num_words: int, words: Sequence[str] = WORDS) -> str:
    return " ".join(words[(seed * 7 + i * (seed + 3)) % len(words)] for i in range(num_words))


def read(folder: Path, name: str) -> Any:
    """Return a file of a folder: JSON, or JSON lines."""
    content = (folder / name).read_text()
    return (
        [json.loads(line) for line in without_checksums(content).splitlines()]
        if name.endswith("jsonl")
        else json.loads(content)
    )
