"""LongBench's metrics of numbers and of lines of code, which no package has.

    score_numbers("Paragraphs 3 and 7", ["Paragraph 7"]) -> [{"number": 0.5}]
    score_next_line("# first\nreturn x", ["return y"]) -> [{"edit_similarity": 0.88}]

Source: `count_score`, `retrieval_score` and `code_sim_score` in LongBench/metrics.py of THUDM/LongBench at 2e00731, and
`ratio` of the package fuzzywuzzy 0.18, without python-Levenshtein, which LongBench does not require.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

_NUMBER = re.compile(r"\d+")
_MARKS = ("`", "#", "//")


def score_numbers(prediction: str, references: Sequence[str]) -> list[dict[str, float]]:
    """Return which share of a prediction's numbers is the first number of each reference, 0 without numbers."""
    numbers = _NUMBER.findall(prediction)
    return [
        {"number": numbers.count(wanted.group()) / len(numbers) if numbers and wanted else 0.0}
        for wanted in map(_NUMBER.search, references)
    ]


def score_next_line(prediction: str, references: Sequence[str]) -> list[dict[str, float]]:
    """Return how similar the first line without marks of comments or code blocks is to each reference."""
    lines = prediction.lstrip("\n").split("\n")
    line = next((line for line in lines if not any(mark in line for mark in _MARKS)), "")
    ratios = (SequenceMatcher(None, line, reference).ratio() for reference in references)
    return [{"edit_similarity": round(100 * ratio) / 100} for ratio in ratios]
