"""Measured losses become perplexities with intervals over documents."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from eval.records.schema import DocumentLoss, Estimate
from eval.reporting.perplexity_report import perplexity_table, score_perplexity
from tests.helpers.run_folders import example_line

LOSS = DocumentLoss(
    task="plos",
    template="text",
    id="test-0",
    maxlen=600,
    num_tokens=100,
    num_tokens_dropped=0,
    negative_log_likelihood=200.0,
    buckets=[(0, 256, 200.0, 100)],
    seconds=2.0,
    cache_bytes=10,
    peak_bytes=None,
    attention_flops=None,
)


def test_the_interval_of_a_perplexity_is_over_documents() -> None:
    lines = [
        replace(LOSS, id=f"test-{index}", num_tokens=500, negative_log_likelihood=1000.0 + 50 * index)
        for index in range(8)
    ]
    (result,) = score_perplexity(lines, [example_line(index) for index in range(8)], "tiny")
    estimate = result.metrics["perplexity"]
    assert estimate.mean == pytest.approx(math.exp(1175 / 500))
    assert estimate.low is not None
    assert estimate.high is not None
    assert math.exp(2.1) < estimate.low < estimate.mean < estimate.high < math.exp(2.7)


def test_one_document_has_no_interval_and_unknown_costs_are_dashes() -> None:
    (result,) = score_perplexity([LOSS], [example_line(0)], "tiny")
    assert result.metrics["perplexity"] == Estimate(mean=pytest.approx(math.exp(2)), low=None, high=None)
    assert len(result.by_position) == 1
    assert result.cost.tokens_per_second == 50
    assert result.cost.attention_flops is None
    (header, row) = perplexity_table([result])
    cells = dict(zip(header, row, strict=True))
    assert (cells["tok/s"], cells["peak GiB"], cells["attn TFLOP"]) == ("50", "-", "-")
