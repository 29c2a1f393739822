"""The mean that people would give all answers, from labels of some and a metric of all.

    powered_mean(metric, labels, documents)  # labels have None where nobody has looked

The metric's mean over answers without a label is put right by how far it is off where there is one. However poor the
metric is, the mean is that of people; a good one narrows the interval.

Source: Angelopoulos, Duchi, Zrnic, PPI++: Efficient Prediction-Powered Inference, arXiv 2311.01453, section 2 (means)
and 6 (the weight). Deviations: variances are those of documents, which hold several answers each; the quantile is
Student's; the weight is not cut to 0 to 1, so that a metric may have another unit than people, or be reversed.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy

from eval.scoring.bootstrap import ALPHA, ROUNDING, Floats
from eval.scoring.significance import MIN_DOCUMENTS, unit_codes


@dataclass(frozen=True, kw_only=True)
class PoweredMean:
    """A mean of people's labels over all answers, in their unit.

    Attributes:
        low: Lower end of the 95% interval; None with labels of fewer than `MIN_DOCUMENTS` documents.
        error: Standard error over documents.
        weight: What the metric counts for; 0 where it tells nothing of the labels.
        labelled: The mean of the labels alone, with the ends of its interval.
        gain: Times as many documents that would have to be labelled for such an interval without the metric.
    """

    mean: float
    low: float | None
    high: float | None
    error: float | None
    weight: float
    labelled: tuple[float, float | None, float | None]
    gain: float | None
    num_labels: int
    num_answers: int
    num_documents: int


def powered_mean(metric: Sequence[float], labels: Sequence[float | None], documents: Sequence[Hashable]) -> PoweredMean:
    """Return the mean of labels over all answers.

    Args:
        metric: Of each answer.
        labels: Of each answer, None where it has none. Which have one must not depend on what they say.
        documents: Of each answer.

    Raises:
        ValueError: No answer has a label, the lengths differ, or a number is not finite.
    """
    has_label = np.array([label is not None for label in labels])
    given = np.array([math.nan if label is None else label for label in labels], dtype=np.float64)
    values = np.asarray(metric, dtype=np.float64)
    if not len(values) == len(given) == len(documents):
        raise ValueError(f"{len(values)} values, {len(given)} labels, {len(documents)} documents; give one of each")
    if not has_label.any() or not np.isfinite(values).all() or not np.isfinite(given[has_label]).all():
        raise ValueError("no answer has a label, or a number is not finite")
    codes = unit_codes([str(document) for document in documents])
    num_labelled = len(set(codes[has_label]))
    of_labels = _influences(given, has_label, codes)
    # What the metric's mean over labelled answers has beyond that over the others, by document.
    apart = _influences(values, has_label, codes)
    weight = 0.0
    if not has_label.all():
        apart = apart - _influences(values, ~has_label, codes)
        if (spread := float(apart @ apart)) > ROUNDING**2:
            weight = float(of_labels @ apart) / spread
    plain = float(given[has_label].mean())
    correction = 0.0 if not weight else float(values[~has_label].mean() - values[has_label].mean())
    mean, own = plain + weight * correction, _error(of_labels, num_labelled)
    error = _error(of_labels - weight * apart, num_labelled)
    quantile = float(scipy.stats.t.ppf(1 - ALPHA / 2, max(num_labelled - 1, 1)))
    return PoweredMean(
        mean=mean,
        **dict(zip(("low", "high"), _ends(mean, error, quantile), strict=True)),
        error=error,
        weight=weight,
        labelled=(plain, *_ends(plain, own, quantile)),
        gain=(own / error) ** 2 if own and error else None,
        num_labels=int(has_label.sum()),
        num_answers=len(values),
        num_documents=num_labelled,
    )


def _influences(values: Floats, kept: np.ndarray, codes: np.ndarray) -> Floats:
    """Return (D,) what each document adds to the mean of the values that are kept, beyond its share of that mean."""
    chosen = values[kept]
    about = (chosen - chosen.mean()) / len(chosen)
    return np.bincount(codes[kept], weights=about, minlength=int(codes.max()) + 1).astype(np.float64)


def _error(influences: Floats, num_documents: int) -> float | None:
    """Return the standard error of a mean; None for too few documents with a label."""
    if num_documents < MIN_DOCUMENTS:
        return None
    return math.sqrt(float(influences @ influences) * num_documents / (num_documents - 1))


def _ends(mean: float, error: float | None, quantile: float) -> tuple[float | None, float | None]:
    return (None, None) if error is None else (mean - quantile * error, mean + quantile * error)
