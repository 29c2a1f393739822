"""Scores of systems on the same examples -> the ranks that each may have.

    rank_ranges({"a": scores, "b": others}, documents)  # {"a": (1, 2), "b": (1, 2)}: neither is shown to be better

Every system is tested against every other by exchanging documents, as `eval.scoring.claims` tests two, and all pairs
together: of boards on which no two systems differ, one in twenty shows a difference.

Legend: `D` documents or clusters, `K` scores of an example whose means are combined by the geometric mean, `S` systems,
`R` pairs of systems, `B` exchanges.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from eval.scoring.bootstrap import ALPHA, ROUNDING, Floats, combined
from eval.scoring.claims import NUM_EXCHANGES
from eval.scoring.exchanges import exchanges, p_values_of
from eval.scoring.significance import FRACTIONS, Range, by_document, fractions

_NUMBERS_AT_ONCE = 2**22  # differences of a block of exchanges: few enough for any machine's memory


def rank_ranges(
    values_by_system: Mapping[str, ArrayLike],
    documents: Iterable[Any],
    *,
    within: Range = FRACTIONS,
    num_exchanges: int = NUM_EXCHANGES,
) -> dict[str, tuple[int, int]]:
    """Return the first and the last rank that each system may have.

    The first counts the systems that are shown to be better, the last those that are shown to be worse. The others may
    come out either way, so the ranges of systems that are not shown to differ overlap. All pairs are tested together by
    the largest difference of any pair in units of its own spread (max-T). What is shown is then left out, and the
    others are tested again, until no more is found.

    The values of all systems are on the same examples in the same order.

    Source: Romano and Wolf, Exact and approximate stepdown methods for multiple hypothesis testing, Journal of the
    American Statistical Association 100 (2005), algorithm 4.1, with the exchanges of `eval.scoring.exchanges`.

    Raises:
        ValueError: Scores are missing or out of range, or the lengths differ.
    """
    names = list(values_by_system)
    columns = by_document(np.hstack([fractions(values, within) for values in values_by_system.values()]), documents)
    totals = columns[:, :-1].reshape(len(columns), len(names), -1) / columns[:, -1].sum()  # (D, S, K)
    first, second = np.triu_indices(len(names), 1)
    means = totals.sum(axis=0)
    middle = (means[first] + means[second]) / 2  # (R, K), which no exchange changes

    def differences(half_gains: Floats, middle: Floats) -> Floats:
        """Return the second system's means less the first's, from half of what it gains in each score."""
        if totals.shape[2] == 1:
            return 2 * half_gains[..., 0]
        # Rounding must not take a mean below 0 into a root.
        after, before = (np.maximum(middle + sign * half_gains, 0.0) for sign in (1, -1))
        return combined(after) - combined(before)

    spreads = _spreads(totals, first, second, middle)
    gains = differences((means[second] - means[first]) / 2, middle)
    observed = np.divide(np.abs(gains.round(12)), spreads, out=np.zeros_like(spreads), where=spreads > ROUNDING).round(
        9
    )

    def largest(is_open: Any) -> Iterator[Floats]:
        """Yield the largest difference of the open pairs, in spreads, after each exchange."""
        one, other, between, spread = first[is_open], second[is_open], middle[is_open], spreads[is_open]
        size = max(1, _NUMBERS_AT_ONCE // between.size)
        for signs in exchanges(len(columns), num_exchanges):
            for start in range(0, len(signs), size):
                found = np.tensordot(signs[start : start + size], totals, axes=1)  # (B, S, K)
                apart = np.abs(differences((found[:, other] - found[:, one]) / 2, between).round(12))
                yield (apart / spread).round(9).max(axis=1)

    is_open, is_shown = spreads > ROUNDING, np.zeros(len(first), dtype=bool)
    while is_open.any():
        drawn = np.sort(np.concatenate(list(largest(is_open))))
        counts = len(drawn) - np.searchsorted(drawn, observed)
        found = is_open & (p_values_of(counts, len(drawn), len(columns)) < ALPHA)
        if not found.any():
            break
        is_shown |= found
        is_open &= ~found
    above, below = np.zeros(len(names), dtype=int), np.zeros(len(names), dtype=int)
    for one, other, gain in zip(first[is_shown], second[is_shown], gains[is_shown], strict=True):
        better, worse = (other, one) if gain > 0 else (one, other)
        above[worse] += 1
        below[better] += 1
    return {name: (1 + int(above[index]), len(names) - int(below[index])) for index, name in enumerate(names)}


def _spreads(totals: Floats, first: Any, second: Any, middle: Floats) -> Floats:
    """Return (R,) the spread of each pair's difference over all exchanges, as `Row.influences` has it."""
    num_scores = totals.shape[2]
    weights = np.ones_like(middle)
    if num_scores > 1:
        value, flat = combined(middle)[:, None], np.zeros_like(middle)
        weights = np.divide(value, num_scores * middle, out=flat, where=middle > ROUNDING)
    squares = np.zeros(len(first))
    for of_document in totals:  # one after the other: all at once are D x R x K numbers
        squares += ((of_document[second] - of_document[first]) * weights).sum(axis=1) ** 2
    found: Floats = np.sqrt(squares)
    return found
