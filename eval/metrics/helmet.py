"""HELMET's metrics of short answers: the better of a whole answer and of its line after "Answer:", or its first line.

    score_letter("Answer: B. The mill", ["B", "B. the mill"]) -> [{"accuracy": 1.0}, {"accuracy": 1.0}]

Source: `default_post_process` and `choice_post_process` in data.py, `parse_output` and `calculate_metrics` in utils.py
of princeton-nlp/HELMET at 4526dfb. Without a chat template it puts "Answer:" before an answer first, which here is the
prompt's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from eval.metrics.answers import exact_match
from eval.metrics.rouge import score_rouge, stemmed_words

_CUE = "Answer:"
_AFTER_CUE = re.compile(rf"{_CUE}(.*)", re.IGNORECASE)


def answer_line(text: str) -> str:
    """Return the rest of the first line with "Answer:", or the first line where there is none."""
    found = _AFTER_CUE.search(text)
    line = (found[1] if found else text.split("\n", 1)[0]).strip()
    return (line[len(_CUE) :] if line.lower().startswith(_CUE.lower()) else line).strip()


def score_phrase(prediction: str, references: Sequence[str]) -> list[dict[str, float]]:
    """Return ROUGE-L F, with stems, beside each reference."""
    texts = (prediction, answer_line(prediction))
    whole, line = (score_rouge(text, references, split_words=stemmed_words) for text in texts)
    return [{"rougeL": max(one["rougeL"], other["rougeL"])} for one, other in zip(whole, line, strict=True)]


def score_letter(prediction: str, references: Sequence[str]) -> list[dict[str, float]]:
    """Return whether an answer is a reference, or contains the last one: the letter with the text of the option.

    In SQuAD's words, as HELMET compares them, the letter A is an article, so an empty answer is right where A is.
    """
    contains = references[-1].lower() in prediction.lower()
    texts = (prediction, answer_line(prediction))
    return [
        {"accuracy": float(contains or any(exact_match(text, reference) for text in texts))} for reference in references
    ]
