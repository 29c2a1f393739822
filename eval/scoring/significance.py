"""Scores by example -> intervals, paired tests and claims that resample documents, never examples.

Several queries about one meeting are no independent evidence, so the document is the unit: it is drawn, or exchanged
between two systems, with all its examples. Everything is seeded: the same scores give the same numbers.

Legend: `N` examples, `D` documents, `K` scores of an example whose corpus means are combined by the geometric mean (one
in most profiles, three in SCROLLS' headline), `C` columns of totals, `B` resamples, `S` systems.

Arguments of several functions: `values` are (N,) or (N, K) scores, a row an example; `documents` are N names, of the
document of each example; `within` is the range of the scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import scipy  # its parts are imported at their first use: `scipy.stats` takes seconds
from numpy.typing import ArrayLike

from eval.records.schema import Estimate, PairedResult, PerplexityRatio
from eval.scoring.bootstrap import (
    ALPHA,
    NUM_RESAMPLES,
    PICKS_AT_ONCE,
    ROUNDING,
    Floats,
    Statistic,
    combined,
    detectable_difference,
    difference_of,
    geometric_mean,
    ratio,
    resample,
    studentized,
)

Range: TypeAlias = tuple[float, float]

FRACTIONS: Range = (0.0, 1.0)
# A hundredth of ROUGE's range: a smaller loss counts as none.
MARGIN = 0.01
NUM_EXCHANGES = 9999
# Fewer documents have no interval: no exchange of so few could come out below p = 0.05, and of two that happen to agree
# resamples would make an interval of no width.
MIN_DOCUMENTS = 6


def mean_interval(
    values: ArrayLike, documents: ArrayLike, *, within: Range = FRACTIONS, num_resamples: int = NUM_RESAMPLES
) -> Estimate:
    """Return the mean over all examples and its 95% interval over documents; none where all documents are alike.

    A document weighs as many examples as it has: the mean is total score over total count. With K > 1 columns it is the
    geometric mean of the K means.

    Raises:
        ValueError: Scores are missing or out of range, or there is not one document for each.
    """
    columns = _by_document(_fractions(values, within), documents)
    mean = float(geometric_mean(columns.sum(axis=0))[0])
    if ends := _ends(columns, geometric_mean, num_resamples):
        low, high = _placed(max(ends[0], 0.0), within), _placed(min(ends[1], 1.0), within)
        return Estimate(mean=_placed(mean, within), low=low, high=high)
    return Estimate(mean=_placed(mean, within), low=None, high=None)


def interval_of_ratio(sums: Sequence[float], counts: Sequence[float]) -> tuple[float | None, float | None]:
    """Return the 95% interval of total sum to total count, one of each a document.

    With fewer than `MIN_DOCUMENTS` there is none. A document without a count is left out.

    Raises:
        ValueError: The lengths differ, or a number is not finite.
    """
    if len(sums) != len(counts):
        raise ValueError(f"{len(sums)} sums but {len(counts)} counts; give one of each for every document")
    ends = _ends(_counted(sums, counts, "a document's sum or count"), geometric_mean, NUM_RESAMPLES)
    return ends[:2] if ends else (None, None)


def ratio_of_perplexities(
    first: Sequence[float], second: Sequence[float], tokens: Sequence[int], *, num_resamples: int = NUM_RESAMPLES
) -> PerplexityRatio:
    """Return the second system's perplexity over the first's on the same tokens.

    The logarithm of the ratio is the total difference of losses over all tokens; its interval, a bootstrap-t over
    documents, is taken there, and so each document is its own control.

    Losses are negative log likelihoods of each document in nats; a document without a predicted token is left out.

    Raises:
        ValueError: The lengths differ, a number is not finite, or there is no token.
    """
    if not len(first) == len(second) == len(tokens):
        raise ValueError(
            f"{len(first)} and {len(second)} losses but {len(tokens)} counts; give each for every document"
        )
    gains = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    columns = _counted(gains, tokens, "a document's loss or count")
    if not len(columns):
        raise ValueError("no document has a predicted token; there is nothing to compare")
    log_ratio = float(ratio(columns.sum(axis=0))[0])
    low = high = detectable = None
    if ends := _ends(columns, ratio, num_resamples):
        low, high = float(np.exp(ends[0])), float(np.exp(ends[1]))
        detectable = float(np.exp(detectable_difference(len(columns), ends[2])))
    return PerplexityRatio(
        ratio=float(np.exp(log_ratio)), low=low, high=high, detectable=detectable, num_documents=len(columns)
    )


def compare_paired(
    first: ArrayLike,
    second: ArrayLike,
    documents: ArrayLike,
    *,
    within: Range = FRACTIONS,
    num_resamples: int = NUM_RESAMPLES,
    num_exchanges: int = NUM_EXCHANGES,
) -> PairedResult:
    """Return how the values of a second system differ from those of a first on the same examples, in the same order.

    The p-value is that of a permutation test: were the two systems alike, each document's scores could as well have
    come from the one as from the other, so documents are exchanged at random, all examples of one together, and p is
    how often the difference is at least as large as the one observed, counted as (b + 1) / (m + 1). Where D documents
    can be exchanged in no more than `num_exchanges` ways (13 documents or fewer), all 2^D are counted instead, the
    observed one among them: p is then exact, and never below 2 / 2^D.

    A single document has no p-value, and fewer than `MIN_DOCUMENTS` have no interval. Without an interval, or where the
    differences do not spread at all, there is no detectable difference.

    Raises:
        ValueError: Scores are missing or out of range, or the lengths differ.
    """
    before, after = _fractions(first, within), _fractions(second, within)
    if before.shape != after.shape:
        raise ValueError(f"scores of shapes {before.shape} and {after.shape} are not of the same examples")
    num_scores = before.shape[1]
    columns = _by_document(np.hstack([before, after]), documents)
    statistic = difference_of(num_scores)
    difference = float(statistic(columns.sum(axis=0))[0])
    gains = combined(after) - combined(before)
    wins, losses = int((gains > ROUNDING).sum()), int((gains < -ROUNDING).sum())
    low = high = p_value = detectable = None
    if len(columns) > 1:
        p_value = _exchange_test(columns, num_scores, num_exchanges)
    # Documents that all score the same under both systems do not tell how far others may differ.
    is_constant = (np.ptp(columns[:, :-1] / columns[:, -1:], axis=0) < ROUNDING).all()
    tells_nothing = not wins and not losses and is_constant
    size = within[1] - within[0]
    if len(columns) >= MIN_DOCUMENTS and not tells_nothing:
        start, end, error = studentized(columns, statistic, num_resamples)
        low, high = size * max(start, -1.0), size * min(end, 1.0)
        detectable = size * detectable_difference(len(columns), error) if error else None
    return PairedResult(
        difference=size * difference,
        low=low,
        high=high,
        p_value=p_value,
        wins=wins,
        ties=len(gains) - wins - losses,
        losses=losses,
        num_examples=len(gains),
        num_documents=len(columns),
        detectable=detectable,
    )


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p-values corrected over the table by Holm's method; None stays None and is not counted.

    Raises:
        ValueError: A p-value is not between 0 and 1.
    """
    known = [p for p in p_values if p is not None]
    if not all(0 <= p <= 1 for p in known):
        raise ValueError(f"p-values lie between 0 and 1, got {next(p for p in known if not 0 <= p <= 1)}")
    corrected: dict[int, float] = {}
    largest = 0.0
    for rank, (p, index) in enumerate(sorted((p, i) for i, p in enumerate(p_values) if p is not None)):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        corrected[index] = largest
    return [corrected.get(index) for index in range(len(p_values))]


def is_non_inferior(result: PairedResult, margin: float = MARGIN) -> bool:
    """Return whether the second system is as good as the first: the interval rules out a loss of the margin or more.

    Fix the margin before looking at the scores. Without an interval nothing is ruled out.
    """
    return result.low is not None and result.low > -margin


def within_margin_of_best(
    values_by_system: Mapping[str, ArrayLike],
    documents: ArrayLike,
    margin: float = MARGIN,
    *,
    within: Range = FRACTIONS,
    num_resamples: int = NUM_RESAMPLES,
) -> dict[str, bool]:
    """Return for each system whether it is shown to lie within the margin of the best, whichever that is.

    A system is marked if against every other one the upper bound of what it loses to that one lies below the margin.
    Nothing is assumed of the system that came out best: it has to pass the same test, and where few documents leave
    wide bounds, no system may be marked at all. So there is no picking of a best that would need a correction.

    The claim "no other system is better by the margin" is false only if some one system is, and then the comparison
    with that one has to be wrong. Requiring all comparisons to pass therefore needs no correction over the opponents
    (an intersection-union test). There is one such claim a system, so each bound has the one-sided level 1 - 0.05 / S
    (Bonferroni), and the chance of any false mark in the table is 5% at most.

    With 60 systems that is the 99.9% bound, where quantiles of a few thousand resamples are noise. So a bound is the
    difference plus Student's t, with D - 1 degrees of freedom, times the standard error of the difference over the
    resamples of the documents, which all S x S comparisons share.

    The values of all systems are on the same examples in the same order.

    Raises:
        ValueError: Scores are missing or out of range, or the lengths differ.
    """
    scores = {name: _fractions(values, within) for name, values in values_by_system.items()}
    shapes = {values.shape for values in scores.values()}
    if len(shapes) != 1:
        raise ValueError(f"scores of shapes {sorted(shapes)} are not of the same examples; give some, all of one shape")
    columns = _by_document(np.hstack(list(scores.values())), documents)
    num_documents, num_systems = len(columns), len(scores)
    if num_documents < MIN_DOCUMENTS:
        return dict.fromkeys(scores, num_systems == 1)

    def means(totals: Floats) -> Floats:
        by_score = totals[:, :-1].reshape(len(totals), num_systems, -1) / totals[:, -1:, None]
        return combined(by_score)

    distribution = resample(columns, lambda totals: means(totals).T, num_resamples).bootstrap_distribution
    covariance = np.atleast_2d(np.cov(distribution)) * num_documents / (num_documents - 1)
    variances = np.diag(covariance)
    errors = np.sqrt(np.maximum(variances[:, None] + variances - 2 * covariance, 0.0))
    observed = means(columns.sum(axis=0, keepdims=True))[0]
    quantile = float(scipy.stats.t.ppf(1 - ALPHA / num_systems, num_documents - 1))
    losses = observed[None, :] - observed[:, None] + quantile * errors  # (S, S), of the row's system to the column's
    np.fill_diagonal(losses, -np.inf)
    passed = ((within[1] - within[0]) * losses < margin).all(axis=1)
    return {name: bool(has_passed) for name, has_passed in zip(scores, passed, strict=True)}


def _fractions(values: ArrayLike, within: Range) -> Floats:
    """Return scores as (N, K) fractions of their range."""
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim not in (1, 2) or scores.size == 0:
        raise ValueError(f"scores have the shape {scores.shape}; give one row of at least one score for each example")
    low, high = within
    fractions = (scores.reshape(len(scores), -1) - low) / (high - low)
    wrong = ~((fractions >= -ROUNDING) & (fractions <= 1 + ROUNDING))
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        value = scores.reshape(len(scores), -1)[row, column]
        expected = "a fraction from 0 to 1" if within == FRACTIONS else f"a number from {low:g} to {high:g}"
        raise ValueError(f"the score of example {row} is {value}; give {expected} for each")
    return fractions.clip(0.0, 1.0)


def _placed(fraction: float, within: Range) -> float:
    """Return the score that a fraction of the range is."""
    return within[0] + (within[1] - within[0]) * fraction


def _ends(columns: Floats, statistic: Statistic, num_resamples: int) -> tuple[float, float, float] | None:
    """Return the ends of an interval and the standard error; None for few documents and for documents all alike."""
    if len(columns) < MIN_DOCUMENTS:
        return None
    found = studentized(columns, statistic, num_resamples)
    # Documents that are all alike do not tell how far others may lie.
    return found if found[2] else None


def _counted(sums: ArrayLike, counts: ArrayLike, what: str) -> Floats:
    """Return (D, 2) sums and counts of the documents that have a count."""
    columns = np.column_stack([np.asarray(sums, dtype=np.float64), np.asarray(counts, dtype=np.float64)])
    if not np.isfinite(columns).all():
        raise ValueError(f"{what} is not a finite number; leave out what was not measured")
    counted: Floats = columns[columns[:, 1] > 0]
    return counted


def _by_document(scores: Floats, documents: ArrayLike) -> Floats:
    """Return (D, C) totals: a sum for each column of scores, then the number of examples."""
    names = np.asarray(documents)
    if names.shape != (len(scores),):
        raise ValueError(f"{len(scores)} scores but documents of shape {names.shape}; name one document for each score")
    _, index = np.unique(names, return_inverse=True)
    sums = [np.bincount(index, weights=column) for column in scores.T]
    return np.column_stack([*sums, np.bincount(index)]).astype(np.float64)


def _exchange_test(columns: Floats, num_scores: int, num_exchanges: int) -> float:
    """Return the two-sided p-value of exchanging two systems document by document.

    Columns are (D, 2K + 1) totals of each document: first system, second system, count.
    """
    num_documents = len(columns)
    before, after = columns[:, :num_scores], columns[:, num_scores:-1]
    half_sum, half_gain = (before + after).sum(axis=0) / 2, (after - before) / 2
    count = columns[:, -1].sum()

    # 1 leaves a document as it is, -1 exchanges it. Rounding must not part equal differences, nor take a mean below 0.
    def distance(signs: Floats, axis: int) -> Floats:
        gain = signs @ half_gain
        after, before = (np.maximum(half_sum + sign * gain, 0.0) / count for sign in (1, -1))
        return np.abs(combined(after) - combined(before)).round(12)

    as_observed = np.ones(num_documents)
    if 2**num_documents <= num_exchanges:
        exact = scipy.stats.permutation_test(
            (as_observed,),
            distance,
            permutation_type="samples",
            vectorized=True,
            alternative="greater",
            n_resamples=np.inf,
        )
        return float(exact.pvalue)
    rng = np.random.default_rng(0)
    sampled = scipy.stats.monte_carlo_test(
        as_observed,
        lambda size: 2.0 * rng.integers(0, 2, size, dtype=np.int8) - 1.0,
        distance,
        vectorized=True,
        n_resamples=num_exchanges,
        batch=max(1, PICKS_AT_ONCE // num_documents),
        alternative="greater",
    )
    return float(sampled.pvalue)
