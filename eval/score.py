"""Predictions and references of a run folder -> `scores.json`. Needs no model and no data set."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

from eval.rouge_profiles import METRICS, score_prediction

NUM_RESAMPLES = 2000
CONFIDENCE = 0.95


def score_predictions(
    predictions: Iterable[Mapping[str, Any]], examples: Iterable[Mapping[str, Any]], profile: str, system: str
) -> list[dict[str, Any]]:
    """Return one result a task, template and length, in the order in which they first appear.

    Args:
        predictions: Lines of `predictions.jsonl`.
        examples: Lines of `examples.jsonl`.
        profile: Of `PROFILES`.
        system: Name of what predicted.
    """
    known = {(line["task"], line["id"]): line for line in examples}
    groups: dict[tuple[str, str, int], list[Mapping[str, Any]]] = defaultdict(list)
    for line in predictions:
        groups[line["task"], line["template"], line["maxlen"]].append(line)
    results = []
    for (task, template, maxlen), lines in groups.items():
        sources = [known[task, line["id"]] for line in lines]
        documents = [str(source["document_id"]) for source in sources]
        scores = [
            score_prediction(profile, line["text"], source["references"])
            for line, source in zip(lines, sources, strict=True)
        ]
        results.append(
            {
                "task": task,
                "template": template,
                "profile": profile,
                "system": system,
                "maxlen": maxlen,
                "num_examples": len(lines),
                "num_documents": len(set(documents)),
                "num_truncated": sum(line["context_tokens_dropped"] > 0 for line in lines),
                "metrics": {
                    metric: mean_with_interval([score[metric] for score in scores], documents) for metric in METRICS
                },
                "cost": cost(lines),
            }
        )
    return results


def mean_with_interval(values: Sequence[float], documents: Sequence[str]) -> dict[str, float | None]:
    """Return the mean and its 95% percentile-bootstrap interval over documents.

    Documents are resampled, not examples: several queries about one meeting are no independent evidence. With a single
    document there is no interval.
    """
    sums: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for value, document in zip(values, documents, strict=True):
        sums[document] += value
        counts[document] += 1
    low, high = interval_of_ratio(list(sums.values()), list(counts.values()))
    return {"mean": float(np.mean(values)), "low": low, "high": high}


def interval_of_ratio(sums: Sequence[float], counts: Sequence[float]) -> tuple[float | None, float | None]:
    """Return the 95% percentile-bootstrap interval of total sum to total count, one of each a document.

    With a single document there is none.
    """
    if len(sums) < 2:
        return None, None

    def ratio(totals: NDArray[np.float64], sizes: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        of_all: NDArray[np.float64] = totals.sum(axis=axis) / sizes.sum(axis=axis)
        return of_all

    interval = bootstrap(
        (np.array(sums, dtype=np.float64), np.array(counts, dtype=np.float64)),
        ratio,
        n_resamples=NUM_RESAMPLES,
        paired=True,
        vectorized=True,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def cost(lines: Sequence[Mapping[str, Any]]) -> dict[str, float | int | None]:
    """Return what the predictions cost.

    Speeds are tokens of all predictions over seconds of all, of one process; memory is the largest of any; attention
    FLOPs are the mean of a prediction, None where the attention is of a kind that has no closed form here.
    """
    peaks = [line["peak_bytes"] for line in lines if line["peak_bytes"] is not None]
    flops = [line["attention_flops"] for line in lines if line["attention_flops"] is not None]
    return {
        "prefill_tokens_per_second": _rate(lines, "prompt_tokens", "prefill_seconds"),
        "decode_tokens_per_second": _rate(lines, "num_generated_tokens", "decode_seconds"),
        "seconds": float(np.mean([line["seconds"] for line in lines])),
        "peak_memory_bytes": max(peaks, default=None),
        "cache_bytes": max(line["cache_bytes"] for line in lines),
        "attention_flops": float(np.mean(flops)) if len(flops) == len(lines) else None,
    }


def _rate(lines: Sequence[Mapping[str, Any]], tokens: str, seconds: str) -> float | None:
    total = sum(line[seconds] for line in lines)
    return sum(line[tokens] for line in lines) / total if total > 0 else None
