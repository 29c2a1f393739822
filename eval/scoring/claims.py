"""Two or more systems on the same examples -> differences, tests, and claims that hold for a whole table.

    [row] = compare_table([Pair(first=before, second=after, documents=names)], margin=0.01)
    row.p_corrected < 0.05  # they differ
    row.non_inferior  # the second loses less than the margin

Documents are exchanged between two systems, or resampled, with all their examples. A claim is made of all documents,
not of those at hand, and a few hardly ever hold the one in ten that collapses; so one is added (see `guarded_loss`).

Legend: `N` examples, `D` documents or clusters, `K` scores of an example whose means are combined by the geometric
mean, `C` columns of totals, `B` exchanges, `R` rows of a table, `S` systems. Scores are fractions of their range.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy  # its parts are imported at their first use: `scipy.stats` takes seconds
from numpy.typing import ArrayLike

from eval.records.schema import PairedResult
from eval.scoring.bootstrap import (
    ALPHA,
    NUM_RESAMPLES,
    ROUNDING,
    Floats,
    combined,
    detectable_difference,
    estimated,
    resample,
    studentized,
)
from eval.scoring.exchanges import Pair, Row, document_codes, exchange_test, greatest_scores, max_t
from eval.scoring.significance import (
    FRACTIONS,
    MIN_DOCUMENTS,
    Range,
    by_document,
    fractions,
    size_of,
)

# A hundredth of ROUGE's range: a smaller loss counts as none.
MARGIN = 0.01
NUM_EXCHANGES = 9999
_NUM_DRAWS = 20_000  # of the noise of all rows, for the level of claims


def compare_paired(
    first: ArrayLike,
    second: ArrayLike,
    documents: Iterable[Any],
    margin: float = MARGIN,
    *,
    within: Range = FRACTIONS,
    are_answers: bool = False,
    num_resamples: int = NUM_RESAMPLES,
    num_exchanges: int = NUM_EXCHANGES,
) -> PairedResult:
    """Return how the scores of a second system differ from those of a first: `compare_table` with one row."""
    pair = Pair(first=first, second=second, documents=documents, within=within, are_answers=are_answers)
    return compare_table([pair], margin, num_resamples=num_resamples, num_exchanges=num_exchanges)[0]


def compare_table(
    table: Sequence[Pair],
    margin: float = MARGIN,
    *,
    num_resamples: int = NUM_RESAMPLES,
    num_exchanges: int = NUM_EXCHANGES,
) -> list[PairedResult]:
    """Return how second systems differ from first ones, a row each of a table at whose level all claims hold.

    The p-value is that of a permutation test: were the two systems alike, each document's scores could as well have
    come from the one as from the other, so documents are exchanged at random, all examples of one together, and p is
    how often the difference is at least as large as the one observed, counted as (b + 1) / (m + 1). Where D documents
    can be exchanged in no more than `num_exchanges` ways (13 documents or fewer), all 2^D are counted instead, the
    observed one among them: p is then exact, and never below 2 / 2^D.

    Corrected p-values (`p_corrected`) are of the same exchanges of documents in all rows, by the largest difference of
    any row in units of its own spread (max-T, stepwise), so rows that depend on each other cost little. Of tables in
    which nothing differs, one in twenty has a corrected p below 0.05. As good (`non_inferior`) is at a level at which
    one table in forty makes a false claim of it.

    A single document has no p-value, and fewer than `MIN_DOCUMENTS` have no interval. The interval is that of its row
    alone. Without an interval, or where the differences do not spread at all, there is no detectable difference.

    Source: the stepwise procedure is Westfall and Young, Resampling-based multiple testing (1993), algorithm 2.8.

    Raises:
        ValueError: Scores are missing or out of range, or the lengths differ.
    """
    rows = [Row(pair) for pair in table]
    p_values = [exchange_test(row, num_exchanges) for row in rows]
    corrected, criticals = max_t(rows, p_values, num_exchanges)
    level = _level_of_claims(rows)
    return [
        _result(row, p_value, p_table, critical, level, margin, num_rows=len(rows), num_resamples=num_resamples)
        for row, p_value, p_table, critical in zip(rows, p_values, corrected, criticals, strict=True)
    ]


def _result(
    row: Row,
    p_value: float | None,
    corrected: float | None,
    critical: float,
    level: float,
    margin: float,
    *,
    num_rows: int,
    num_resamples: int,
) -> PairedResult:
    difference = row.size * float(row.statistic(row.columns.sum(axis=0))[0])
    gains = row.after - row.before
    wins, ties, losses = count_outcomes(gains @ row.weights)
    low = high = detectable = bound = None
    is_as_good = False
    can_show = row.num_documents >= MIN_DOCUMENTS
    if can_show and not _tells_nothing(row):
        start, end, error = studentized(row.columns, row.statistic, num_resamples)
        if error:  # without it documents do not tell how far others may lie
            low, high = row.size * max(start, -row.most), row.size * min(end, row.most)
        found = detectable_difference(row.num_documents, error, critical) if error else None
        can_show = found is not None if error else row.num_documents >= fewest_documents(num_rows)
        detectable = None if found is None else row.size * found
        bound = row.size * max(_bound(row, difference / row.size, error, level), -row.most)
        is_as_good = (bound if low is None else min(low, bound)) > -margin
    return PairedResult(
        difference=difference,
        low=low,
        high=high,
        p_value=p_value,
        wins=wins,
        ties=ties,
        losses=losses,
        num_examples=len(gains),
        num_documents=row.num_documents,
        detectable=detectable,
        needs_documents=None if can_show else max(fewest_documents(num_rows), row.num_documents + 1),
        margin=margin,
        non_inferior=is_as_good,
        claim_low=bound,
        p_corrected=corrected,
    )


def _tells_nothing(row: Row) -> bool:
    """Return whether all documents score the same under both systems, which does not tell how far others may differ."""
    is_constant = (np.ptp(row.columns[:, :-1] / row.columns[:, -1:], axis=0) < ROUNDING).all()
    return bool(is_constant and not (np.abs((row.after - row.before) @ row.weights) > ROUNDING).any())


def count_outcomes(gains: Floats) -> tuple[int, int, int]:
    """Return wins, ties and losses."""
    wins, losses = int((gains > ROUNDING).sum()), int((gains < -ROUNDING).sum())
    return wins, len(gains) - wins - losses, losses


def fewest_documents(num_rows: int) -> int:
    """Return how many documents can show a difference in a table of so many rows, whatever the other rows are."""
    return math.floor(math.log2(2 * num_rows / ALPHA)) + 1


def open_collapses(num_documents: int) -> float:
    """Return the share of all documents that may collapse although none of so many did, with 95% confidence."""
    return float(1 - ALPHA ** (1 / num_documents))


def _level_of_claims(rows: Sequence[Row]) -> float:
    """Return the one-sided level of each row at which a table makes a false claim of as good in one case of forty.

    The noise of rows is drawn together, as dependent as they are over documents, and normal.
    """
    level = ALPHA / 2
    if len(rows) < 2:
        return level
    codes = document_codes(rows)
    influences = np.zeros((1 + max(int(own.max()) for own in codes), len(rows)))
    for column, (row, own) in enumerate(zip(rows, codes, strict=True)):
        gradient = row.statistic(row.columns.sum(axis=0))[1]
        influences[own, column] = row.columns @ gradient
    scale = np.linalg.norm(influences, axis=0)
    scaled = influences / np.where(scale > ROUNDING, scale, 1.0)
    correlation = scaled.T @ scaled
    np.fill_diagonal(correlation, 1.0)
    rng = np.random.default_rng(0)
    noise = rng.multivariate_normal(np.zeros(len(rows)), correlation, _NUM_DRAWS, method="eigh")
    largest = float(np.quantile(noise.max(axis=1), 1 - level))
    return float(np.clip(scipy.stats.norm.sf(largest), level / len(rows), level))


def _bound(row: Row, difference: float, error: float, level: float) -> float:
    """Return a lower bound of the difference for claims."""
    if _is_of_answers(row):
        gains = row.after[:, 0] - row.before[:, 0]
        return paired_score_bound(int((gains > 0).sum()), int((gains < 0).sum()), len(gains), level)
    quantile = float(scipy.stats.t.ppf(1 - level, row.num_documents))
    return -float(guarded_loss(-difference, error, row.num_documents, row.collapse, quantile))


def guarded_loss(loss: Any, error: Any, num_documents: int, collapse: Any, quantile: float) -> Any:
    """Return an upper bound of a mean loss over documents, with one more document that loses as much as a collapse.

    Ten documents of which none collapsed leave collapses of a quarter of all documents open. A bound that is made from
    their spread alone knows nothing of that: it allows for what was seen. With the added document it allows for what so
    many documents would not have shown. The loss of answers is a whole one, and else the greatest score that the first
    system has on a document. So a claim assumes that no other document has more to lose than those at hand. Where one
    of eighty has most of the range and the rest next to nothing, it is false more often than not; the bets of
    `eval.scoring.anytime` assume nothing of the kind. `benchmarks/claims.py` counts false claims.

    Arrays of losses, errors and collapses give an array of bounds.
    """
    mean, spread = _with_collapse(loss, error, num_documents, collapse)
    return mean + quantile * spread


def _with_collapse(loss: Any, error: Any, num_documents: int, collapse: Any) -> tuple[Any, Any]:
    """Return the mean loss and its standard error with the added document."""
    with_it = num_documents + 1
    mean = (num_documents * loss + collapse) / with_it
    squares = num_documents * (num_documents - 1) * error**2 + num_documents / with_it * (collapse - loss) ** 2
    return mean, (squares / (num_documents * with_it)) ** 0.5


def p_of_loss(pair: Pair, margin: float = MARGIN) -> float:
    """Return the one-sided p value of a loss of the margin: below 0.025, `claim_low` of the row alone rules it out.

    A margin below 0 is a gain that the second system has to have. Fewer than `MIN_DOCUMENTS`, and documents that all
    score the same under both systems, show nothing: 1.

    Raises:
        ValueError: Scores are missing or out of range, or the lengths differ.
    """
    row = Row(pair)
    if row.num_documents < MIN_DOCUMENTS or _tells_nothing(row):
        return 1.0
    gains, most = row.after - row.before, margin / row.size
    if _is_of_answers(row):
        wins, losses = int((gains > 0).sum()), int((gains < 0).sum())
        return float(scipy.stats.norm.sf(_paired_score(wins, losses, len(gains), -most)))
    difference, error = estimated(row.columns, row.statistic)
    mean, spread = _with_collapse(-difference, error, row.num_documents, row.collapse)
    # If every document loses exactly as much as the added one, the error is 0.
    if not spread:
        return 0.0 if mean < most else 1.0
    return float(scipy.stats.t.sf((most - mean) / spread, row.num_documents))


def _is_of_answers(row: Row) -> bool:
    """Return whether each document has one answer, which is right or wrong."""
    return row.is_binary and bool((row.columns[:, -1] == 1).all())


def _paired_score(wins: int, losses: int, num_pairs: int, difference: float) -> float:
    """Return how many standard errors an observed difference of two shares lies above this one (Tango)."""
    first = 2 * num_pairs
    second = (2 * num_pairs - wins + losses) * difference - wins - losses
    third = -losses * difference * (1 - difference)
    share = (math.sqrt(max(second**2 - 4 * first * third, 0.0)) - second) / (2 * first)
    variance = num_pairs * max(2 * share + difference * (1 - difference), 0.0)
    distance = wins - losses - num_pairs * difference
    return distance / math.sqrt(variance) if variance else math.copysign(math.inf, distance)


def paired_score_bound(wins: int, losses: int, num_pairs: int, level: float) -> float:
    """Return the lower bound of the difference of two shares of right answers to the same questions.

    Source: Tango, Equivalence test and confidence interval for the difference in proportions for the paired-sample
    design, Statistics in Medicine 17 (1998), equation 9 and its variance under the bound. No package has it.
    """
    quantile = float(scipy.stats.norm.isf(level))

    def score(difference: float) -> float:
        return _paired_score(wins, losses, num_pairs, difference) - quantile

    # At the estimate itself the score of pairs that are all ties is 0 and no bound.
    lowest, highest = -1 + ROUNDING, (wins - losses) / num_pairs - 1e-9
    if highest <= lowest or score(lowest) <= 0:
        return -1.0
    return float(scipy.optimize.brentq(score, lowest, highest))


def within_margin_of_best(
    values_by_system: Mapping[str, ArrayLike],
    documents: Iterable[Any],
    margin: float = MARGIN,
    *,
    within: Range = FRACTIONS,
    are_answers: bool = False,
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

    With 60 systems that is the 99.9% bound, where quantiles of a few thousand resamples are noise. So a bound is made
    with Student's t and the standard error of the difference over the resamples of the documents, which all S x S
    comparisons share. One document that collapses is added to each, as `guarded_loss` says.

    The values of all systems are on the same examples in the same order.

    Raises:
        ValueError: Scores are missing or out of range, or the lengths differ.
    """
    scores = {name: fractions(values, within) for name, values in values_by_system.items()}
    shapes = {values.shape for values in scores.values()}
    if len(shapes) != 1:
        raise ValueError(f"scores of shapes {sorted(shapes)} are not of the same examples; give some, all of one shape")
    together = np.hstack(list(scores.values()))
    columns = by_document(together, documents)
    num_documents, num_systems = len(columns), len(scores)
    if num_documents < MIN_DOCUMENTS or num_systems == 1:
        return dict.fromkeys(scores, num_systems == 1)

    def means(times: Floats) -> Floats:
        totals = times @ columns
        by_score = totals[:, :-1].reshape(len(totals), num_systems, -1) / totals[:, -1:, None]
        return combined(by_score)

    every = np.arange(num_documents)
    distribution = resample([every], lambda times: means(times).T, num_resamples).bootstrap_distribution
    covariance = np.atleast_2d(np.cov(distribution)) * num_documents / (num_documents - 1)
    variances = np.diag(covariance)
    errors = np.sqrt(np.maximum(variances[:, None] + variances - 2 * covariance, 0.0))
    observed = means(np.ones((1, num_documents)))[0]
    quantile = float(scipy.stats.t.ppf(1 - ALPHA / num_systems, num_documents - 1))
    is_binary = len(together.T) == num_systems and bool(np.isin(together, (0.0, 1.0)).all())
    totals = np.moveaxis(columns[:, :-1].reshape(num_documents, num_systems, -1), 0, 1)
    is_whole = are_answers or is_binary
    collapses = np.ones(num_systems) if is_whole else greatest_scores(totals, columns[:, -1:])
    # (S, S) bounds of what the row's system loses to the column's.
    losses = guarded_loss(observed[None, :] - observed[:, None], errors, num_documents, collapses[None, :], quantile)
    np.fill_diagonal(losses, -np.inf)
    passed = (size_of(within) * losses < margin).all(axis=1)
    return {name: bool(has_passed) for name, has_passed in zip(scores, passed, strict=True)}
