"""Profiles are closed lists of values: what a name stands for does not change."""

from __future__ import annotations

import pytest

from eval.metrics.base import Item, Value, check_metric, checked_scores
from eval.metrics.overlap import CHRF, ROUGE_PLAIN, Overlap
from eval.scoring.examples import SCORING_VERSION
from eval.scoring.profiles import PROFILES, Profile, score_prediction

_ROUGE = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
# With another number a profile is another one, or SCORING_VERSION is raised with the version of the metric.
CLOSED = {
    "hf": (["rouge-stemmed@1"], _ROUGE, ["rougeLsum"]),
    "scrolls": (["rouge-plain@1"], _ROUGE, ["rouge1", "rouge2", "rougeL"]),
    "longbench": (["rouge-l-of-sets@1"], ["rougeL"], ["rougeL"]),
    "f1": (["answers@1"], ["f1", "exact_match"], ["f1"]),
    "exact_match": (["answers@1"], ["exact_match", "f1"], ["exact_match"]),
    "longbench_number": (["longbench-numbers@1"], ["number"], ["number"]),
    "longbench_code": (["longbench-code@1"], ["edit_similarity"], ["edit_similarity"]),
    "longbench_choice": (["longbench-choice@1"], ["accuracy"], ["accuracy"]),
    "longbench_class": (["longbench-class@1"], ["accuracy"], ["accuracy"]),
    "helmet_qa": (["helmet-phrase@1"], ["rougeL"], ["rougeL"]),
    "helmet_choice": (["helmet-letter@1"], ["accuracy"], ["accuracy"]),
    "helmet_answer": (
        ["helmet-answer@1"],
        ["rougeL", "rougeL_recall", "f1", "exact_match", "contained"],
        ["rougeL"],
    ),
    "helmet_summary": (["helmet-summary@1"], ["rougeL", "rougeL_recall"], ["rougeL"]),
    "found_all": (["all-found@1"], ["found", "all_found"], ["found"]),
    "found_any": (["any-found@1"], ["found"], ["found"]),
    "unicode": (["rouge-unicode@1"], _ROUGE, ["rougeLsum"]),
    "chrf": (["chrf@1"], ["chrf"], ["chrf"]),
    "f1_unicode": (["answers-unicode@1"], ["f1", "exact_match"], ["f1"]),
}


def test_a_profile_has_the_values_that_it_always_had() -> None:
    found = {
        name: ([f"{one.name}@{one.version}" for one in known.scorers], list(known.metrics), list(known.headline))
        for name, known in PROFILES.items()
    }
    assert (SCORING_VERSION, found) == (2, CLOSED)


@pytest.mark.parametrize("name", PROFILES)
def test_what_a_profile_lists_are_metrics_as_others_are(name: str) -> None:
    item = Item(
        fingerprint="", prediction="The cat sat. It ran.", references=("A cat ran.", "It sat."), classes=("It ran.",)
    )
    rows: dict[str, float | None] = {}
    for metric in PROFILES[name].scorers:
        check_metric(metric)
        rows |= checked_scores(metric, [item])[0]
    assert {value: rows[value] for value in PROFILES[name].listed} == score_prediction(
        name, item.prediction, item.references, item.classes
    )


def test_a_profile_may_list_values_of_two_metrics() -> None:
    both = Profile(scorers=(CHRF, ROUGE_PLAIN), listed=("rouge2", "chrf"), headline=("chrf",), source="this test")
    assert [value.label for value in both.metrics.values()] == ["R2", "chrF"]


def test_two_metrics_of_a_profile_have_no_value_of_one_name() -> None:
    other = Overlap("other", {"chrf": Value(label="other", title="Other")}, lambda ours, theirs: [])
    both = Profile(scorers=(CHRF, other), listed=("chrf",), headline=("chrf",), source="this test")
    with pytest.raises(AssertionError, match="two scorers have a value of one name"):
        _ = both.metrics
