"""Scores equal the reference package; intervals resample documents; costs add up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

from eval.rouge_profiles import METRICS, PROFILES, score_prediction, split_sentences
from eval.score import cost, mean_with_interval, score_predictions

PREDICTION = "The cats were running. They quickly jumped over many fences! Nobody knew why."
REFERENCES = [
    "A cat runs. It jumps over a fence. Nobody knows why it was running quickly.",
    "Many fences were jumped over by the cats.",
]


@pytest.mark.parametrize("profile", list(PROFILES))
def test_profiles_equal_rouge_score(profile: str) -> None:
    scorer = RougeScorer(list(METRICS), use_stemmer=profile == "hf")
    scores = [
        scorer.score("\n".join(split_sentences(reference)), "\n".join(split_sentences(PREDICTION)))
        for reference in REFERENCES
    ]
    expected = {metric: max(score[metric].fmeasure for score in scores) for metric in METRICS}
    assert score_prediction(profile, PREDICTION, REFERENCES) == pytest.approx(expected, abs=1e-12)


def test_profiles_differ_and_are_known_by_hand() -> None:
    # One word each; "running" and "runs" share the stem "run".
    assert score_prediction("scrolls", "running", ["runs"])["rouge1"] == 0
    assert score_prediction("hf", "running", ["runs"])["rouge1"] == 1
    # Unigrams a b c against a b d: 2 of 3 both ways; bigrams 1 of 2.
    scores = score_prediction("scrolls", "aa bb cc", ["aa bb dd"])
    assert scores["rouge1"] == pytest.approx(2 / 3)
    assert scores["rouge2"] == pytest.approx(1 / 2)


def test_sentences_make_rougelsum_another_number_than_rougel() -> None:
    scores = score_prediction("scrolls", "Dogs bark. Cats meow.", ["Cats meow. Dogs bark."])
    assert scores["rougeL"] == pytest.approx(0.5)
    assert scores["rougeLsum"] == pytest.approx(1.0)


def test_empty_prediction_scores_zero() -> None:
    assert score_prediction("hf", "", ["something"]) == dict.fromkeys(METRICS, 0.0)


def test_interval_resamples_documents_not_examples() -> None:
    values = [0.0] * 50 + [1.0] * 50
    by_document = mean_with_interval(values, ["a"] * 50 + ["b"] * 50)
    by_example = mean_with_interval(values, [str(i) for i in range(100)])
    assert by_document == {"mean": 0.5, "low": 0.0, "high": 1.0}
    assert by_example["low"] is not None
    assert by_example["low"] == pytest.approx(0.4, abs=0.03)


def test_interval_weighs_documents_by_their_examples() -> None:
    rng = np.random.default_rng(1)
    documents = [str(i) for i in rng.integers(0, 30, 300)]
    values = rng.random(300).tolist()
    got = mean_with_interval(values, documents)
    names = sorted(set(documents))
    sums = np.array([sum(v for v, d in zip(values, documents, strict=True) if d == n) for n in names])
    counts = np.array([documents.count(n) for n in names])
    picks = rng.integers(0, len(names), (4000, len(names)))
    means = sums[picks].sum(axis=1) / counts[picks].sum(axis=1)
    assert got["mean"] == pytest.approx(np.mean(values))
    assert got["low"] == pytest.approx(np.quantile(means, 0.025), abs=0.005)
    assert got["high"] == pytest.approx(np.quantile(means, 0.975), abs=0.005)


def test_one_document_has_no_interval() -> None:
    assert mean_with_interval([0.2, 0.4], ["a", "a"]) == {"mean": pytest.approx(0.3), "low": None, "high": None}


def line(example: str, maxlen: int, text: str, **changes: Any) -> dict[str, Any]:
    return {
        "task": "t",
        "template": "instruct",
        "id": example,
        "maxlen": maxlen,
        "text": text,
        "prompt_tokens": 100,
        "context_tokens_dropped": 5,
        "num_generated_tokens": 10,
        "seconds": 3.0,
        "prefill_seconds": 2.0,
        "decode_seconds": 1.0,
        "cache_bytes": 7,
        "peak_bytes": None,
        "attention_flops": 11,
    } | changes


def test_one_result_a_length_with_counts_of_examples_and_documents() -> None:
    examples = [
        {"task": "t", "id": name, "document_id": document, "references": ["aa bb"]}
        for name, document in (("x", "d1"), ("y", "d1"), ("z", "d2"))
    ]
    lines = [line(name, maxlen, "aa bb" if maxlen == 20 else "") for name in "xyz" for maxlen in (10, 20)]
    short, long = score_predictions(lines, examples, "hf", "model")
    assert (short["maxlen"], short["num_examples"], short["num_documents"]) == (10, 3, 2)
    assert short["metrics"]["rouge1"]["mean"] == 0
    assert long["metrics"]["rouge1"] == {"mean": 1, "low": 1, "high": 1}
    assert {name: long[name] for name in ("task", "template", "profile", "system")} == {
        "task": "t",
        "template": "instruct",
        "profile": "hf",
        "system": "model",
    }


def test_costs_are_sums_over_sums_and_missing_stays_missing() -> None:
    lines = [line("x", 10, "", prefill_seconds=1.0, peak_bytes=5), line("y", 10, "", prompt_tokens=500)]
    assert cost(lines) == {
        "prefill_tokens_per_second": 200.0,
        "decode_tokens_per_second": 10.0,
        "seconds": 3.0,
        "peak_memory_bytes": 5,
        "cache_bytes": 7,
        "attention_flops": 11.0,
    }
    assert cost([line("x", 10, "", attention_flops=None)])["attention_flops"] is None
