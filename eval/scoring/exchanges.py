"""Permutation tests of two systems: documents are exchanged between them, with all their examples.

Legend: `N` examples, `D` documents or clusters, `K` scores of an example whose means are combined by the geometric
mean, `B` exchanges, `R` rows of a table. Scores are fractions of their range.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from eval.scoring.bootstrap import ALPHA, PICKS_AT_ONCE, ROUNDING, Floats, Ints, combined, difference_of
from eval.scoring.significance import FRACTIONS, Range, by_document, fractions, size_of


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A row to compare: (N,) or (N, K) scores of two systems on the same examples, and the document of each.

    A document has one name in all rows of a table. Scores of short answers are right or wrong in the main, though some
    are partly right, so a document can lose a whole one.
    """

    first: ArrayLike
    second: ArrayLike
    documents: Iterable[Any]
    within: Range = FRACTIONS
    are_answers: bool = False


class Row:
    """A pair as (D, 2K + 1) totals of each document: first system, second system, count.

    Raises:
        ValueError: Scores are missing or out of range, or the lengths differ.
    """

    def __init__(self, pair: Pair) -> None:
        self.size = size_of(pair.within)
        self.most = (pair.within[1] - pair.within[0]) / self.size  # that scores can differ by
        self.before, self.after = fractions(pair.first, pair.within), fractions(pair.second, pair.within)
        if self.before.shape != self.after.shape:
            shapes = f"{self.before.shape} and {self.after.shape}"
            raise ValueError(f"scores of shapes {shapes} are not of the same examples")
        documents = list(pair.documents)
        self.names = sorted(set(documents))
        self.columns = by_document(np.hstack([self.before, self.after]), documents)
        self.num_scores = self.before.shape[1]
        self.num_documents = len(self.columns)
        self.are_answers = pair.are_answers
        self.statistic = difference_of(self.num_scores)

    @cached_property
    def pooled(self) -> Floats:
        """Return (K,) means of both systems together, which no exchange changes."""
        means: Floats = (self.before.mean(axis=0) + self.after.mean(axis=0)) / 2
        return means

    @cached_property
    def weights(self) -> Floats:
        """Return (K,) what a gain in each score adds to the combined one, about the pooled means."""
        if self.num_scores == 1:
            return np.ones(1)
        flat = np.zeros(self.num_scores)
        slopes: Floats = np.divide(
            combined(self.pooled), self.num_scores * self.pooled, out=flat, where=self.pooled > ROUNDING
        )
        return slopes

    @cached_property
    def influences(self) -> Floats:
        """Return (D,) how much of the difference is each document's, which an exchange gives the other sign."""
        gains = self.columns[:, self.num_scores : -1] - self.columns[:, : self.num_scores]
        found: Floats = gains @ self.weights / self.columns[:, -1].sum()
        return found

    @cached_property
    def is_binary(self) -> bool:
        """Return whether all scores are right or wrong."""
        return self.num_scores == 1 and bool(np.isin([self.before, self.after], (0.0, 1.0)).all())

    @cached_property
    def collapse(self) -> float:
        """Return what a document loses that collapses: a whole answer, or the most that one had of the first system."""
        if self.are_answers or self.is_binary:
            return 1.0
        return float(greatest_scores(self.columns[:, : self.num_scores], self.columns[:, -1:]))

    def distance(self) -> Callable[..., Floats]:
        """Return a function of (..., D) signs, 1 for a document as it is and -1 for one exchanged: the difference."""
        before, after = self.columns[:, : self.num_scores], self.columns[:, self.num_scores : -1]
        half_sum, half_gain = (before + after).sum(axis=0) / 2, (after - before) / 2
        count = self.columns[:, -1].sum()
        lowest = -np.inf if self.num_scores == 1 else 0.0  # rounding must not take a mean below 0 into a root

        # Rounding must not part equal differences.
        def distance(signs: Floats) -> Floats:
            gain = signs @ half_gain
            after, before = (np.maximum(half_sum + sign * gain, lowest) / count for sign in (1, -1))
            return np.abs(combined(after) - combined(before)).round(12)

        return distance


def greatest_scores(totals: Floats, counts: Floats) -> Floats:
    """Return the greatest mean score of a document, from (..., D, K) totals and (D, 1) counts of examples."""
    greatest: Floats = np.abs(combined(totals / counts)).max(axis=-1)
    return greatest


def exchange_test(row: Row, num_exchanges: int) -> float | None:
    """Return the two-sided p-value of exchanging two systems document by document; None for a single document."""
    if row.num_documents < 2:
        return None
    distance = row.distance()
    drawn = np.concatenate([distance(signs) for signs in exchanges(row.num_documents, num_exchanges)])
    count = (drawn >= distance(np.ones(row.num_documents))).sum()
    return float(p_values_of(count, len(drawn), row.num_documents))


def p_values_of(counts: Any, num_drawn: int, num_documents: int) -> Any:
    """Return the p value of each count of exchanges that differ as much: exact where these are all that there are."""
    return counts / num_drawn if num_drawn == 2**num_documents else (counts + 1) / (num_drawn + 1)


def max_t(
    rows: Sequence[Row], p_values: Sequence[float | None], num_exchanges: int
) -> tuple[list[float | None], list[float]]:
    """Return corrected p-values, and how many standard errors a difference of each row must have to be shown."""
    tested = [index for index, p_value in enumerate(p_values) if p_value is not None]
    corrected, criticals = list(p_values), [0.0] * len(rows)
    if len(tested) < 2:
        return corrected, criticals
    spreads = [float(np.linalg.norm(rows[index].influences)) for index in tested]
    functions = [rows[index].distance() for index in tested]
    codes = document_codes([rows[index] for index in tested])

    def in_spreads(signs: Floats) -> Floats:
        """Return (B, R) differences of the rows after (B, D) exchanges."""
        found = [
            function(signs[:, own]) / spread if spread > ROUNDING else np.zeros(len(signs))
            for function, own, spread in zip(functions, codes, spreads, strict=True)
        ]
        return np.column_stack(found).round(9)

    num_documents = 1 + max(int(own.max()) for own in codes)
    observed = in_spreads(np.ones((1, num_documents)))[0]
    exchanged = np.vstack([in_spreads(signs) for signs in exchanges(num_documents, num_exchanges)])
    # From the row that differs least on, the largest of the rows up to there.
    order = np.argsort(observed, kind="stable")
    largest = np.maximum.accumulate(exchanged[:, order], axis=1)
    counts = (largest >= observed[order]).sum(axis=0)
    shares = np.maximum.accumulate(p_values_of(counts, len(exchanged), num_documents)[::-1])[::-1]
    # Significant is a row above this value, which one table in twenty reaches.
    critical = float(np.sort(largest[:, -1])[-math.ceil(ALPHA * len(exchanged))])
    for place, share in zip(order, shares, strict=True):
        index = tested[place]
        corrected[index] = max(float(share), p_values[index] or 0.0)
        # A sum of D signed values over the root of the sum of their squares is at most the root of D.
        room = rows[index].num_documents - critical**2
        freedom = rows[index].num_documents - 1
        criticals[index] = critical * math.sqrt(freedom / room) if room > ROUNDING else math.inf
    return corrected, criticals


def document_codes(rows: Sequence[Row]) -> list[Ints]:
    """Return the numbers of each row's documents, the same for the same document."""
    codes: dict[Any, int] = {}
    return [np.array([codes.setdefault(name, len(codes)) for name in row.names], dtype=np.int64) for row in rows]


def exchanges(num_documents: int, num_exchanges: int) -> Iterator[Floats]:
    """Yield (B, D) signs: all ways where they are few, else so many at random."""
    if 2**num_documents <= num_exchanges:
        numbers = np.arange(2**num_documents)[:, None]
        yield (1 - 2 * ((numbers >> np.arange(num_documents)) & 1)).astype(np.float64)
        return
    rng, at_once = np.random.default_rng(0), max(1, PICKS_AT_ONCE // num_documents)
    for start in range(0, num_exchanges, at_once):
        size = min(at_once, num_exchanges - start), num_documents
        yield (2 * rng.integers(0, 2, size, dtype=np.int8) - 1).astype(np.float64)
