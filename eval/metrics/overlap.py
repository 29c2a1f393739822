"""Metrics that compare an answer with each of its references by shared words or characters: what profiles list.

    ROUGE_STEMMED.best("a cat sat", ["the cat sat"]) -> {"rouge1": 0.66, "rouge2": 0.5, ...}

Each fixes all that its numbers depend on. Another way to count is another metric, not another version of one of these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from eval.metrics.answers import score_all_found, score_answers, score_any_found
from eval.metrics.base import Item, Metric, Scores, Value
from eval.metrics.chrf import score_chrf
from eval.metrics.helmet import score_answer, score_letter, score_phrase, score_summary
from eval.metrics.longbench import score_choice, score_class, score_next_line, score_numbers
from eval.metrics.rouge import plain_words, score_rouge, score_rouge_l, stemmed_words
from eval.metrics.unicode_text import unicode_answer_words, unicode_sentences, unicode_words


class Overlap(Metric):
    """Compares an answer with each reference; the best over the references counts, value by value.

    Args:
        name: As its values are called in files.
        values: What `compare` gives.
        compare: Returns the values beside each reference, from prediction and references, and classes if it reads them.
        version: Raised when values change, and `SCORING_VERSION` with it.
    """

    needs = frozenset({"references"})
    reads = needs

    def __init__(
        self,
        name: str,
        values: Mapping[str, Value],
        compare: Callable[..., Sequence[Mapping[str, float]]],
        version: int = 1,
    ) -> None:
        self.name, self.version, self.values = name, version, values
        self._compare = compare

    def best(self, prediction: str, references: Sequence[str], classes: Sequence[str] = ()) -> dict[str, float]:
        """Return the values of an answer beside one reference or more; classes are for metrics that read them."""
        each = self._compare(prediction, references, *([classes] if "classes" in self.reads else []))
        return {name: max(scores[name] for scores in each) for name in self.values}

    def score(self, batch: Sequence[Item]) -> list[Scores]:
        return [dict(self.best(item.prediction, item.references, item.classes)) for item in batch]


class _OfClasses(Overlap):
    """Compares with the other classes too."""

    reads = frozenset({"references", "classes"})


_ROUGE = {
    "rouge1": Value(label="R1", title="ROUGE-1 F"),
    "rouge2": Value(label="R2", title="ROUGE-2 F"),
    "rougeL": Value(label="RL", title="ROUGE-L F"),
    "rougeLsum": Value(label="RLsum", title="ROUGE-Lsum F"),
}
_ANSWERS = {"f1": Value(label="F1", title="F1"), "exact_match": Value(label="exact match", title="Exact match")}

# Source: `examples/pytorch/summarization/run_summarization.py` of transformers at 00e6a18, and
# `metrics/rouge/rouge.py` of evaluate at 0851219.
ROUGE_STEMMED = Overlap("rouge-stemmed", _ROUGE, partial(score_rouge, split_words=stemmed_words))
# Source: `metrics/rouge.py` at 38b143b of the hub's data set tau/scrolls.
ROUGE_PLAIN = Overlap("rouge-plain", _ROUGE, partial(score_rouge, split_words=plain_words))
ROUGE_UNICODE = Overlap(
    "rouge-unicode", _ROUGE, partial(score_rouge, split_words=unicode_words, sentences=unicode_sentences)
)
# Source: `metrics.py` of THUDM/LongBench at f6227eb.
ROUGE_L_OF_SETS = Overlap("rouge-l-of-sets", {"rougeL": _ROUGE["rougeL"]}, score_rouge_l)
ANSWERS = Overlap("answers", _ANSWERS, score_answers)
ANSWERS_UNICODE = Overlap("answers-unicode", _ANSWERS, partial(score_answers, split_words=unicode_answer_words))
CHRF = Overlap("chrf", {"chrf": Value(label="chrF", title="chrF2")}, score_chrf)
NUMBERS = Overlap("longbench-numbers", {"number": Value(label="number", title="Right number")}, score_numbers)
NEXT_LINES = Overlap(
    "longbench-code", {"edit_similarity": Value(label="edit sim", title="Edit similarity")}, score_next_line
)
_ACCURACY = {"accuracy": Value(label="accuracy", title="Accuracy")}
CHOICES = Overlap("longbench-choice", _ACCURACY, score_choice)
CLASSES = _OfClasses("longbench-class", _ACCURACY, score_class)
PHRASES = Overlap("helmet-phrase", {"rougeL": _ROUGE["rougeL"]}, score_phrase)
LETTERS = Overlap("helmet-letter", _ACCURACY, score_letter)
_ROUGE_L = {"rougeL": _ROUGE["rougeL"], "rougeL_recall": Value(label="RL recall", title="ROUGE-L recall")}
_CONTAINED = Value(label="contained", title="Answer contained")
HELMET_ANSWERS = Overlap("helmet-answer", _ROUGE_L | _ANSWERS | {"contained": _CONTAINED}, score_answer)
HELMET_SUMMARIES = Overlap("helmet-summary", _ROUGE_L, score_summary)
_FOUND = {"found": Value(label="found", title="Answers found")}
# Source: see `eval.metrics.answers.answers_found`.
ALL_FOUND = Overlap(
    "all-found", _FOUND | {"all_found": Value(label="all found", title="All answers found")}, score_all_found
)
ANY_FOUND = Overlap("any-found", _FOUND, score_any_found)
