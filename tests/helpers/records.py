"""Records with plausible values, for tests that change a field or two."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from eval.records.schema import Compared, Comparison, Cost, Estimate, Prediction, Result
from tests.helpers.run_folders import example_line, prediction_line


def cost_of(maxlen: int) -> Cost:
    return Cost(
        prefill_tokens_per_second=400.0,
        decode_tokens_per_second=20.0,
        seconds=0.5,
        peak_memory_bytes=2**30,
        cache_bytes=maxlen * 2**10,
        attention_flops=maxlen * 1e9,
    )


def result(system: str, maxlen: int, mean: float, **changes: Any) -> Result:
    """Return a result of a model about all examples, with one metric."""
    made = Result(
        task="plos",
        template="instruct",
        profile="hf",
        system=system,
        kind="model",
        subset="all",
        maxlen=maxlen,
        num_examples=20,
        num_documents=20,
        num_truncated=3,
        words=95.0,
        num_ended_by_length=1,
        metrics={"rougeLsum": Estimate(mean=mean, low=mean - 0.02, high=mean + 0.02)},
        evidence_visible=None,
        cost=cost_of(maxlen),
    )
    return replace(made, **changes)


def comparison(difference: float, **changes: Any) -> Comparison:
    """Return a comparison of 1,024 tokens to 8,192 that settles nothing."""
    made = Comparison(
        task="plos",
        subset="all",
        metric="rougeLsum",
        first=Compared(template="instruct", maxlen=1024),
        second=Compared(template="instruct", maxlen=8192),
        difference=difference,
        low=difference - 0.05,
        high=difference + 0.05,
        p_value=0.5,
        wins=10,
        ties=0,
        losses=10,
        num_examples=20,
        num_documents=20,
        detectable=0.07,
        margin=0.01,
        non_inferior=False,
        p_corrected=0.5,
    )
    return replace(made, **changes)


def prediction(name: str, maxlen: int, **changes: Any) -> Prediction:
    return replace(prediction_line(example_line(0), maxlen, "an answer", 2 * maxlen), id=name, **changes)
