"""Short answers beside references, as the evaluation of SQuAD compares them: shared words, or the same words.

    token_f1("the cat sat", "A cat.") -> 0.666...
    exact_match("The cat!", "cat") -> 1.0

Both read texts after the same normalization: lower case, without ASCII punctuation, without the words a, an and the,
words parted by one space. SCROLLS' evaluator and LongBench's `qa_f1_score` are these functions.

Source: `evaluate-v1.1.py` of SQuAD, as `metrics/f1.py` and `metrics/exact_match.py` of the hub's data set tau/scrolls
and `metrics.py` of THUDM/LongBench at f6227eb have it. Version 2.0 of SQuAD differs where nothing is left of both
texts: there their F1 is 1, here 0, and their exact match is 1 in all of them.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")


def answer_words(text: str) -> list[str]:
    """Return the words of an answer that are compared."""
    return without_articles(text.lower().translate(_PUNCTUATION)).split()


def without_articles(text: str) -> str:
    """Return a text in lower case without the words that no comparison of answers counts."""
    return _ARTICLE.sub(" ", text)


def token_f1(prediction: str, reference: str) -> float:
    """Return the F1 of the words, each as often as it occurs, as a fraction."""
    return _f1(answer_words(prediction), answer_words(reference))


def exact_match(prediction: str, reference: str) -> float:
    """Return 1 if the words are the same in the same order, else 0."""
    return float(answer_words(prediction) == answer_words(reference))


def score_answers(
    prediction: str, references: Sequence[str], split_words: Callable[[str], list[str]] = answer_words
) -> list[dict[str, float]]:
    """Return F1 and exact match against each reference, in these words."""
    ours = split_words(prediction)
    theirs = [split_words(reference) for reference in references]
    return [{"f1": _f1(ours, words), "exact_match": float(ours == words)} for words in theirs]


def answers_found(prediction: str, references: Sequence[str]) -> list[float]:
    """Return 1 for each reference that the prediction contains, whatever its case, else 0.

    Source: `string_match_all` and `string_match_part` in `scripts/eval/synthetic/constants.py` of NVIDIA/RULER.
    """
    text = prediction.lower()
    return [float(reference.lower() in text) for reference in references]


def score_all_found(prediction: str, references: Sequence[str]) -> list[dict[str, float]]:
    """Return the share of the references that the prediction contains, and whether it contains them all, once."""
    found = answers_found(prediction, references)
    return [{"found": sum(found) / len(found), "all_found": float(all(found))}]


def score_any_found(prediction: str, references: Sequence[str]) -> list[dict[str, float]]:
    """Return whether the prediction contains each reference."""
    return [{"found": one} for one in answers_found(prediction, references)]


def _f1(ours: Sequence[str], theirs: Sequence[str]) -> float:
    hits = (Counter(ours) & Counter(theirs)).total()
    if not hits:
        return 0.0
    precision, recall = hits / len(ours), hits / len(theirs)
    return 2 * precision * recall / (precision + recall)


def first_line(text: str) -> str:
    """Return the first line after any line breaks at the beginning.

    Source: `scorer` in `eval.py` of THUDM/LongBench, for triviaqa and samsum among others.
    """
    return text.lstrip("\n").split("\n", 1)[0]
