"""LongBench's metrics of numbers, lines of code, choices and classes, which no package has.

    score_choice("The correct answer is (B).", ["B"]) -> [{"accuracy": 1.0}]
    score_numbers("Paragraphs 3 and 7", ["Paragraph 7"]) -> [{"number": 0.5}]
    score_next_line("# first\nreturn x", ["return y"]) -> [{"edit_similarity": 0.88}]
    score_class("Type: Food or Sport", ["Food"], ["Food", "Sport", "Date"]) -> [{"accuracy": 0.5}]

Source: `count_score`, `retrieval_score`, `code_sim_score` and `classification_score` in LongBench/metrics.py of
THUDM/LongBench at 2e00731, and `ratio` of the package fuzzywuzzy 0.18, without python-Levenshtein, which LongBench does
not require. For choices `extract_answer` in pred.py there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

from eval.errors import UserError

_NUMBER = re.compile(r"\d+")
_CHOICES = (re.compile(r"The correct answer is \(([A-D])\)"), re.compile(r"The correct answer is ([A-D])"))
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


def score_choice(prediction: str, references: Sequence[str]) -> list[dict[str, float]]:
    """Return whether a prediction names the letter of each reference in the way that the prompt asks for."""
    text = prediction.strip().replace("*", "")
    found = next((match[1] for pattern in _CHOICES if (match := pattern.search(text))), None)
    return [{"accuracy": float(found == reference)} for reference in references]


def score_class(prediction: str, references: Sequence[str], classes: Sequence[str]) -> list[dict[str, float]]:
    """Return 1 over the number of classes that a prediction names, for each reference among them, else 0.

    A class whose name is part of the reference's does not count, unless it follows directly on another such class:
    LongBench removes the one while it looks for the next.

    Raises:
        UserError: There are no classes.
    """
    if not classes:
        raise UserError(
            "profile longbench_class needs the names of all classes beside each answer, and there are none; give files "
            "with `classes`, a list of texts, or choose another --profile"
        )
    return [{"accuracy": _share_of(reference, prediction, classes)} for reference in references]


def _share_of(reference: str, prediction: str, classes: Sequence[str]) -> float:
    found = [name for name in classes if name in prediction]
    for name in found:
        if name in reference and name != reference:
            found.remove(name)  # and so passes over the one that follows, as LongBench does
    return 1 / len(found) if reference in found else 0.0
