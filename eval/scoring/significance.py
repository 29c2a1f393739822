"""Scores by example -> intervals that resample documents, never examples; `eval.scoring.claims` has tests and claims.

Several queries about one meeting are no independent evidence, so the document is the unit: it is drawn with all its
examples. Where documents come in clusters (the chapters of a book), the cluster takes the place of the document.
Everything is seeded: the same scores give the same numbers.

Legend: `N` examples, `D` documents or clusters, `K` scores of an example whose corpus means are combined by the
geometric mean (one in most profiles, three in SCROLLS' headline), `C` columns of totals, `B` resamples.

Arguments of several functions: `values` are (N,) or (N, K) scores, a row an example; `documents` are N names, of the
document of each example; `within` is the range of the scores, of which an end may be infinite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from eval.records.schema import Estimate, PerplexityRatio
from eval.scoring.bootstrap import (
    NUM_RESAMPLES,
    ROUNDING,
    Floats,
    Ints,
    Statistic,
    detectable_difference,
    geometric_mean,
    ratio,
    studentized,
    studentized_draws,
    studentized_rows,
)

Range: TypeAlias = tuple[float, float]

FRACTIONS: Range = (0.0, 1.0)
# Fewer documents have no interval: no exchange of so few could come out below p = 0.05, and of two that happen to agree
# resamples would make an interval of no width.
MIN_DOCUMENTS = 6
# Of ratios: the exponential of more than 709 is no float.
_MAX_LOG = 700.0


def mean_interval(
    values: ArrayLike, documents: Iterable[Any], *, within: Range = FRACTIONS, num_resamples: int = NUM_RESAMPLES
) -> Estimate:
    """Return the mean over all examples and its 95% interval over documents; none where all documents are alike.

    A document weighs as many examples as it has: the mean is total score over total count. With K > 1 columns it is the
    geometric mean of the K means.

    Raises:
        ValueError: Scores are missing or out of range, or there is not one document for each.
    """
    columns = by_document(fractions(values, within), documents)
    mean = _placed(float(geometric_mean(columns.sum(axis=0))[0]), within)
    if ends := _ends(columns, geometric_mean, num_resamples):
        low, high = (_placed(end, within) for end in ends[:2])
        return Estimate(mean=mean, low=max(low, within[0]), high=min(high, within[1]), error=size_of(within) * ends[2])
    return Estimate(mean=mean, low=None, high=None)


def interval_of_ratio(sums: Sequence[float], counts: Sequence[float]) -> tuple[float | None, float | None]:
    """Return the 95% interval of total sum to total count, one of each a document.

    With fewer than `MIN_DOCUMENTS` there is none. A document without a count is left out.

    Raises:
        ValueError: The lengths differ, or a number is not finite.
    """
    if len(sums) != len(counts):
        raise ValueError(f"{len(sums)} sums but {len(counts)} counts; give one of each for every document")
    columns = np.column_stack([sums, counts]).astype(np.float64)
    if not np.isfinite(columns).all():
        raise ValueError("a document's sum or count is not a finite number; leave out what was not measured")
    ends = _ends(columns[columns[:, 1] > 0], geometric_mean, NUM_RESAMPLES)
    return ends[:2] if ends else (None, None)


def ratio_of_perplexities(
    first: Sequence[float], second: Sequence[float], tokens: Sequence[int], *, num_resamples: int = NUM_RESAMPLES
) -> PerplexityRatio:
    """Return the second system's perplexity over the first's on the same tokens; see `ratios_of_perplexities`.

    Losses are negative log likelihoods of each document in nats; a document without a predicted token is left out.

    Raises:
        ValueError: The lengths differ, a number is not finite, or there is no token.
    """
    if not len(first) == len(second) == len(tokens):
        raise ValueError(
            f"{len(first)} and {len(second)} losses but {len(tokens)} counts; give each for every document"
        )
    losses: dict[Hashable, Sequence[float]] = dict(enumerate(zip(first, second, tokens, strict=True)))
    return ratios_of_perplexities([losses], num_resamples=num_resamples)[0]


def ratios_of_perplexities(
    table: Sequence[Mapping[Hashable, Sequence[float]]],
    stratum_of: Callable[[Hashable], Hashable] = lambda _: None,
    *,
    num_resamples: int = NUM_RESAMPLES,
) -> list[PerplexityRatio]:
    """Return second systems' perplexities over first ones', a row each of a table whose intervals hold together.

    A row has, for each document or cluster, both losses in nats and the tokens. The logarithm of a ratio is the total
    difference of losses over all tokens; its interval, a bootstrap-t over documents, is taken there, and so each
    document is its own control. The documents of each stratum, as of each task, are resampled apart. All intervals of
    the table cover at once in 95% of tables (max-T), and `detectable` is at that level.

    Raises:
        ValueError: A number is not finite, or a row has no token.
    """
    rows = list(map(_differences, table))
    settled = [index for index, row in enumerate(rows) if len(row) >= MIN_DOCUMENTS]
    names = list(dict.fromkeys(name for index in settled for name in rows[index]))
    columns = [np.array([rows[index].get(name, (0.0, 0.0)) for name in names]) for index in settled]
    ends: dict[int, tuple[float, float, float]] = {}
    if columns:
        strata = _strata([stratum_of(name) for name in names])
        values, errors, quantile = studentized_rows(columns, ratio, num_resamples, strata)
        ends = {
            index: (value, error, quantile)
            for index, value, error in zip(settled, values, errors, strict=True)
            if error  # documents that are all alike do not tell how far others may lie
        }
    return [_ratio_of(row, ends.get(index)) for index, row in enumerate(rows)]


def p_of_ratio(
    losses: Mapping[Hashable, Sequence[float]],
    ratio_without: float = 1.0,
    stratum_of: Callable[[Hashable], Hashable] = lambda _: None,
    *,
    num_resamples: int = NUM_RESAMPLES,
) -> float | None:
    """Return the two-sided p value of a ratio of perplexities, were the true one `ratio_without`.

    It is below 0.05 where that lies outside the interval of `ratios_of_perplexities` for this row alone. None stands
    for too few documents, or for such as are all alike.
    """
    row = _differences(losses)
    if len(row) < MIN_DOCUMENTS:
        return None
    strata = _strata([stratum_of(name) for name in row])
    [value], [error], drawn = studentized_draws([np.array(list(row.values()))], ratio, num_resamples, strata)
    if drawn is None:
        return None
    distance = abs(value - math.log(ratio_without)) / error
    return float((1 + (drawn.bootstrap_distribution >= distance).sum()) / (1 + num_resamples))


def detectable_ratio(
    losses: Mapping[Hashable, Sequence[float]],
    level: float,
    stratum_of: Callable[[Hashable], Hashable] = lambda _: None,
    *,
    num_resamples: int = NUM_RESAMPLES,
) -> float | None:
    """Return the smallest ratio of perplexities that `p_of_ratio` tells from 1 at a level, with a probability of 0.8.

    None stands for too few documents, for such as are all alike, and for a level that no p value can reach.
    """
    row = _differences(losses)
    if len(row) < MIN_DOCUMENTS or level * (1 + num_resamples) <= 1:
        return None
    strata = _strata([stratum_of(name) for name in row])
    _, [error], drawn = studentized_draws([np.array(list(row.values()))], ratio, num_resamples, strata)
    if drawn is None:
        return None
    critical = float(np.quantile(drawn.bootstrap_distribution, 1 - level))
    least = detectable_difference(len(row), error, critical, level=level)
    return None if least is None else _exp(least)


def _differences(losses: Mapping[Hashable, Sequence[float]]) -> dict[Hashable, tuple[float, float]]:
    """Return what each document or cluster with tokens loses more in the second system, and its tokens."""
    gains = [(after - before, float(tokens)) for before, after, tokens in losses.values()]
    if not np.isfinite(gains).all():
        raise ValueError("a document's loss or count is not a finite number; leave out what was not measured")
    row = {name: gain for name, gain in zip(losses, gains, strict=True) if gain[1] > 0}
    if not row:
        raise ValueError("no document has a predicted token; there is nothing to compare")
    return row


def _ratio_of(row: Mapping[Hashable, tuple[float, float]], found: tuple[float, float, float] | None) -> PerplexityRatio:
    totals = np.array(list(row.values())).sum(axis=0)
    low = high = detectable = None
    if found:
        value, error, quantile = found
        least = detectable_difference(len(row), error, quantile)
        detectable = None if least is None else _exp(least)
        if value + quantile * error < _MAX_LOG:
            low, high = _exp(value - quantile * error), _exp(value + quantile * error)
    return PerplexityRatio(
        ratio=_exp(float(ratio(totals)[0])), low=low, high=high, detectable=detectable, num_documents=len(row)
    )


def _exp(value: float) -> float:
    """Return exp(value), the greatest that is written where no float holds it."""
    return math.exp(min(value, _MAX_LOG))


def _strata(names: Sequence[Hashable]) -> list[Ints]:
    """Return the documents of each stratum of at least two; those that are alone make up one, or join the first."""
    members: dict[Hashable, list[int]] = {}
    for index, name in enumerate(names):
        members.setdefault(name, []).append(index)
    strata = [of_one for of_one in members.values() if len(of_one) > 1]
    alone = [index for of_one in members.values() if len(of_one) == 1 for index in of_one]
    if len(alone) == 1 and strata:
        strata[0] += alone
    elif alone:
        strata.append(alone)
    return [np.array(sorted(of_one), dtype=np.int64) for of_one in strata]


def fractions(values: ArrayLike, within: Range) -> Floats:
    """Return scores as (N, K) fractions of their range."""
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim not in (1, 2) or scores.size == 0:
        raise ValueError(f"scores have the shape {scores.shape}; give one row of at least one score for each example")
    scores = scores.reshape(len(scores), -1)
    fractions = (scores - _offset(within)) / size_of(within)
    first, last = ((end - _offset(within)) / size_of(within) for end in within)
    wrong = ~((fractions >= first - ROUNDING) & (fractions <= last + ROUNDING) & np.isfinite(fractions))
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        expected = "a fraction from 0 to 1" if within == FRACTIONS else f"a number {describe_range(within)}"
        raise ValueError(f"the score of example {row} is {scores[row, column]}; give {expected} for each")
    return fractions.clip(first, last)


def describe_range(within: Range) -> str:
    """Return what numbers of a range are, behind "a number"; an infinite end bounds nothing, and is none itself."""
    low, high = within
    if math.isfinite(high - low):
        return f"from {low:g} to {high:g}"
    bounds = ([f"at least {low:g}"] if math.isfinite(low) else []) + (
        [f"at most {high:g}"] if math.isfinite(high) else []
    )
    return f"of {bounds[0]}" if bounds else "that is finite"


def size_of(within: Range) -> float:
    """Return how wide a range is; 1 where an end is infinite, as that of a number of words."""
    return within[1] - within[0] if math.isfinite(within[1] - within[0]) else 1.0


def _offset(within: Range) -> float:
    return within[0] if math.isfinite(within[1] - within[0]) else 0.0


def _placed(fraction: float, within: Range) -> float:
    """Return the score that a fraction of the range is."""
    return _offset(within) + size_of(within) * fraction


def _ends(columns: Floats, statistic: Statistic, num_resamples: int) -> tuple[float, float, float] | None:
    """Return the ends of an interval and the standard error; None for few documents and for documents all alike."""
    if len(columns) < MIN_DOCUMENTS:
        return None
    found = studentized(columns, statistic, num_resamples)
    # Documents that are all alike do not tell how far others may lie.
    return found if found[2] else None


def unit_codes(documents: Iterable[Any]) -> Ints:
    """Return a number for each name, the same for the same name.

    NumPy's own texts end at their last character that is not NUL, so "a" and "a\\0" would be one document.
    """
    names = list(documents)
    codes = {name: code for code, name in enumerate(sorted(set(names)))}
    return np.array([codes[name] for name in names], dtype=np.int64)


def by_document(scores: Floats, documents: Iterable[Any]) -> Floats:
    """Return (D, C) totals: a sum for each column of scores, then the number of examples."""
    names = list(documents)
    if len(names) != len(scores):
        raise ValueError(f"{len(scores)} scores but {len(names)} names of documents; name one document for each score")
    codes = unit_codes(names)
    sums = [np.bincount(codes, weights=column) for column in scores.T]
    return np.column_stack([*sums, np.bincount(codes)]).astype(np.float64)
