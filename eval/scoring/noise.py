"""How far samples of an answer differ, beside how far documents do.

Sampled answers make a mean uncertain twice: another draw of documents gives another mean, and so does another draw of
answers about the same ones. More samples lessen the second part alone. The interval of a mean holds both.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from eval.records.schema import Noise
from eval.scoring.significance import unit_codes


def noise_of(samples: ArrayLike, documents: Iterable[Any], error: float | None) -> Noise:
    """Return both parts of the spread of a score.

    These are the moment estimates of a model with random effects of documents and of samples within a prompt. A
    geometric mean of several columns stands for its linear part around the means of the columns.

    Args:
        samples: (N, K, J) scores: N prompts, K samples of each, J columns whose means a geometric mean joins.
        documents: N names, of the document or cluster of each prompt.
        error: Standard error of the mean over documents; None where there is no interval.
    """
    scores = np.asarray(samples, dtype=np.float64)
    num_prompts, num_samples, num_columns = scores.shape
    means = scores.mean(axis=(0, 1))
    whole = float(means.prod() ** (1 / num_columns))
    slopes = np.divide(whole, num_columns * means, out=np.zeros_like(means), where=means > 0)
    values = scores @ slopes  # (N, K)
    of_prompts = values.var(axis=1, ddof=1)
    apart, _ = spread_of(values, documents)
    of_mean = float(of_prompts.sum()) / num_samples / num_prompts**2
    return Noise(
        samples=float(of_prompts.mean()) ** 0.5,
        documents=apart**0.5,
        share_of_samples=min(of_mean / error**2, 1.0) if error else None,
    )


def spread_of(values: ArrayLike, documents: Iterable[Any]) -> tuple[float, float]:
    """Return the variance of documents' means without what samples add, and what one sample of each prompt adds.

    Args:
        values: (N, K) scores: N prompts, K samples of each. A single sample shows no noise of its own, and what it adds
            counts as a difference between documents.
        documents: N names, of the document or cluster of each prompt.
    """
    scores, codes = np.asarray(values, dtype=np.float64), unit_codes(documents)
    num_samples, counts = scores.shape[1], np.bincount(codes)
    of_prompts = scores.var(axis=1, ddof=1) if num_samples > 1 else np.zeros(len(scores))
    of_documents = np.bincount(codes, weights=scores.mean(axis=1)) / counts
    added = float((np.bincount(codes, weights=of_prompts) / counts**2).mean())
    apart = float(of_documents.var(ddof=1)) - added / num_samples if len(counts) > 1 else 0.0
    return max(apart, 0.0), added
