"""Perplexity of measured losses: an interval over documents, and buckets of positions."""

from __future__ import annotations

import math
from typing import Any

import pytest

from eval.records.schema import DocumentLoss, Estimate, ExampleRecord
from eval.reporting.perplexity_report import score_perplexity


def loss_line(name: str, **values: Any) -> DocumentLoss:
    return DocumentLoss(
        task="text",
        template="text",
        id=name,
        maxlen=600,
        num_tokens_dropped=0,
        peak_bytes=None,
        attention_flops=None,
        cache_bytes=10,
        **values,
    )


def example(name: str) -> ExampleRecord:
    return ExampleRecord(task="text", id=name, document_id=name, query=None, references=[], evidence=None)


def test_the_interval_of_a_perplexity_is_over_documents() -> None:
    lines = [
        loss_line(
            str(i),
            num_tokens=500,
            negative_log_likelihood=1000.0 + 50 * i,
            buckets=[(0, 600, 1000.0, 500)],
            seconds=1.0,
        )
        for i in range(8)
    ]
    (result,) = score_perplexity(lines, [example(str(i)) for i in range(8)], "tiny")
    metric = result.metrics["perplexity"]
    assert metric.mean == pytest.approx(math.exp(1175 / 500))
    assert metric.low is not None
    assert metric.high is not None
    assert math.exp(2.1) < metric.low < metric.value < metric.high < math.exp(2.7)


def test_a_bucket_that_nobody_reaches_is_not_there_and_one_document_has_no_interval() -> None:
    line = loss_line("a", num_tokens=100, negative_log_likelihood=200.0, buckets=[(0, 256, 200.0, 100)], seconds=2.0)
    (result,) = score_perplexity([line], [example("a")], "m")
    assert result.metrics["perplexity"] == Estimate(mean=pytest.approx(math.exp(2)), low=None, high=None)
    assert len(result.by_position) == 1
    assert result.cost.tokens_per_second == 50
    assert result.cost.attention_flops is None
