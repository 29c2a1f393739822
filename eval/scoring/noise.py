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
    codes = unit_codes(documents)
    counts = np.bincount(codes)
    of_documents = np.bincount(codes, weights=values.mean(axis=1)) / counts
    # What samples add to the spread of the documents' means.
    added = float((np.bincount(codes, weights=of_prompts) / num_samples / counts**2).mean())
    apart = float(of_documents.var(ddof=1)) - added if len(counts) > 1 else 0.0
    of_mean = float(of_prompts.sum()) / num_samples / num_prompts**2
    return Noise(
        samples=float(of_prompts.mean()) ** 0.5,
        documents=max(apart, 0.0) ** 0.5,
        share_of_samples=min(of_mean / error**2, 1.0) if error else None,
    )
