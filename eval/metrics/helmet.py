"""HELMET's metrics: the better of a whole answer and of its line after a cue such as "Answer:", or its first line.

    score_letter("Answer: B. The mill", ["B", "B. the mill"]) -> [{"accuracy": 1.0}, {"accuracy": 1.0}]

Source: `default_post_process`, `choice_post_process` and that of `load_multi_lexsum` in data.py, `parse_output` and
`calculate_metrics` in utils.py of princeton-nlp/HELMET at 4526dfb. Without a chat template it puts the cue before an
answer first, which here is the prompt's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from eval.metrics.answers import answer_words, exact_match, token_f1
from eval.metrics.rouge import stemmed_words
from eval.metrics.rouge_lcs import SentenceBits

ANSWER, SUMMARY = "Answer:", "Summary:"
# Answers that agree with others in full or not at all.
_VERDICTS = ("yes", "no", "noanswer")
Compare = Callable[[str, str], dict[str, float]]


def answer_line(text: str, cue: str = ANSWER) -> str:
    """Return the rest of the first line with the cue, or the first line where there is none."""
    found = re.search(rf"{cue}(.*)", text, re.IGNORECASE)
    line = (found[1] if found else text.split("\n", 1)[0]).strip()
    return (line[len(cue) :] if line.lower().startswith(cue.lower()) else line).strip()


def score_phrase(prediction: str, references: Sequence[str]) -> list[dict[str, float]]:
    """Return ROUGE-L F, with stems, beside each reference."""
    return [{"rougeL": scores["rougeL"]} for scores in score_summary(prediction, references, ANSWER)]


def score_summary(prediction: str, references: Sequence[str], cue: str = SUMMARY) -> list[dict[str, float]]:
    """Return ROUGE-L F and recall, with stems, beside each reference."""
    return _better(prediction, references, cue, _rouge_l)


def score_answer(prediction: str, references: Sequence[str]) -> list[dict[str, float]]:
    """Return ROUGE-L F and recall, with stems, and F1, exact match and containment of SQuAD's words, beside each."""
    return _better(prediction, references, ANSWER, lambda ours, theirs: _rouge_l(ours, theirs) | _words(ours, theirs))


def _better(prediction: str, references: Sequence[str], cue: str, compare: Compare) -> list[dict[str, float]]:
    """Return each value of the whole answer or of its line, whichever is greater, beside each reference."""
    line = answer_line(prediction, cue)
    pairs = [(compare(prediction, reference), compare(line, reference)) for reference in references]
    return [{name: max(value, of_line[name]) for name, value in whole.items()} for whole, of_line in pairs]


def _rouge_l(prediction: str, reference: str) -> dict[str, float]:
    ours, theirs = stemmed_words(prediction), stemmed_words(reference)
    hits = SentenceBits([theirs]).lcs_length(ours)
    if not hits:
        return {"rougeL": 0.0, "rougeL_recall": 0.0}
    precision, recall = hits / len(ours), hits / len(theirs)
    return {"rougeL": 2 * precision * recall / (precision + recall), "rougeL_recall": recall}


def _words(prediction: str, reference: str) -> dict[str, float]:
    ours, theirs = (" ".join(answer_words(text)) for text in (prediction, reference))
    differs = ours != theirs and not {ours, theirs}.isdisjoint(_VERDICTS)
    return {
        "f1": 0.0 if differs else token_f1(prediction, reference),
        "exact_match": float(ours == theirs),
        "contained": float(theirs in ours),
    }


def score_letter(prediction: str, references: Sequence[str]) -> list[dict[str, float]]:
    """Return whether an answer is a reference, or contains the last one: the letter with the text of the option.

    In SQuAD's words, as HELMET compares them, the letter A is an article, so an empty answer is right where A is.
    """
    contains = references[-1].lower() in prediction.lower()
    texts = (prediction, answer_line(prediction))
    return [
        {"accuracy": float(contains or any(exact_match(text, reference) for text in texts))} for reference in references
    ]
