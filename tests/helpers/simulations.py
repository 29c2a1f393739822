"""Scores of two systems of which the truth is known, and how often what is claimed of them is false.

`benchmarks/claims.py` prints the table of docs/scoring.md, and the tests check its rates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval.records.schema import PairedResult
from eval.scoring.claims import MARGIN, compare_table
from eval.scoring.exchanges import Pair

Floats = NDArray[np.float64]
# Scores of the first system and of the second (R, D), from a generator, a number of documents and a true difference.
Draw = Callable[[np.random.Generator, int, float], tuple[Floats, Floats]]

DOCUMENTS = (6, 10, 20, 50, 200)
ROWS = 4  # of a table, as of the lengths of a run
_COLLAPSE, _RATE = 0.15, 0.1
_RIGHT = 0.5
_VERY_HIGH = 0.012


def near_normal(rng: np.random.Generator, num_documents: int, difference: float) -> tuple[Floats, Floats]:
    """Scores about 0.3 whose differences have a spread of 3 points, half of it shared by the rows."""
    first = (0.3 + 0.05 * rng.standard_normal((ROWS, num_documents))).clip(0.1, 0.5)
    shared, own = rng.standard_normal((1, num_documents)), rng.standard_normal((ROWS, num_documents))
    return first, first + difference + 0.03 * (shared + own) / np.sqrt(2)


def collapsing(rng: np.random.Generator, num_documents: int, difference: float) -> tuple[Floats, Floats]:
    """Scores about 0.3 of which one in ten loses 15 points, and the others gain what the mean difference leaves."""
    first = (0.3 + 0.05 * rng.standard_normal((ROWS, num_documents))).clip(0.2, 0.5)
    collapses = rng.random((ROWS, num_documents)) < _RATE
    gain = difference + _RATE * _COLLAPSE + 0.005 * rng.standard_normal((ROWS, num_documents))
    return first, first + gain - _COLLAPSE * collapses


def right_or_wrong(rng: np.random.Generator, num_documents: int, difference: float) -> tuple[Floats, Floats]:
    """Answers of which half are right; the second system changes one in twenty, and the difference."""
    first = (rng.random((ROWS, num_documents)) < _RIGHT).astype(np.float64)
    lost, won = ((0.05 + max(sign * difference, 0.0) / _RIGHT) for sign in (-1, 1))
    chance = np.where(first == 1, lost, won)
    changed = rng.random((ROWS, num_documents)) < chance
    return first, np.where(changed, 1 - first, first)


def partly_right(rng: np.random.Generator, num_documents: int, difference: float) -> tuple[Floats, Floats]:
    """F1 of answers: 30% are right and 5% half right. A loss, or a gain, is of whole answers."""
    shape = ROWS, num_documents
    first = np.where(rng.random(shape) < 0.05, 0.5, rng.random(shape) < 0.3)
    changed = rng.random(shape) < abs(difference) / (0.31 if difference < 0 else 0.69)
    return first, np.where(changed, float(difference > 0), first)


def some_high(rng: np.random.Generator, num_documents: int, difference: float) -> tuple[Floats, Floats]:
    """Scores about 0.06 of which one in ten is about 0.45. A loss is of all that a document has."""
    shape = ROWS, num_documents
    first = np.where(rng.random(shape) < 0.1, 0.45, 0.06) + 0.01 * rng.standard_normal(shape).clip(-2, 2)
    gain = 0.005 * rng.standard_normal(shape)
    if difference > 0:
        return first, first + difference + gain
    changed = rng.random(shape) < -difference / 0.099
    return first, np.where(changed, 0.0, first + gain)


DRAWS: Mapping[str, Draw] = {
    "near normal": near_normal,
    "one in ten collapses": collapsing,
    "0/1": right_or_wrong,
    "F1 with partial answers": partly_right,
    "small mean, some high": some_high,
}


def few_very_high(rng: np.random.Generator, num_documents: int, difference: float) -> tuple[Floats, Floats]:
    """Scores about 0.06, and of 0.9 in 1.2% of the documents. A loss is of all that these have."""
    shape = ROWS, num_documents
    is_high = rng.random(shape) < _VERY_HIGH
    first = np.where(is_high, 0.9, 0.06) + 0.01 * rng.standard_normal(shape).clip(-2, 2)
    changed = is_high & (rng.random(shape) < max(-difference, 0.0) / (0.9 * _VERY_HIGH))
    second = first + max(difference, 0.0) + 0.005 * rng.standard_normal(shape)
    return first, np.where(changed, 0.0, second)


# Its greatest scores are so rare that few documents may hold none. Claims of a fixed number of documents assume that no
# document has more to lose than those at hand (`eval.scoring.claims`), and are wrong here; claims at any stop are not.
RARE_DRAWS: Mapping[str, Draw] = {"small mean, few very high": few_very_high}
ALL_DRAWS: Mapping[str, Draw] = {**DRAWS, **RARE_DRAWS}
ANSWERS = ("0/1", "F1 with partial answers")  # whose effects and margins are of whole answers


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Shares of simulated tables.

    Attributes:
        covered: Rows whose own interval holds the true difference, a loss of the margin; of those with an interval.
        bounded: Tables whose bounds for claims all lie below the true difference.
        false_difference: Tables that show a difference where the systems are alike.
        false_as_good: Tables that call a row as good that loses the margin.
        power: Rows shown to differ that do, by 3 points (30 in 0/1 scores).
        as_good: Rows called as good that lose nothing.
    """

    covered: float | None
    bounded: float
    false_difference: float
    false_as_good: float
    power: float
    as_good: float


def rates(name: str, num_documents: int, count: int, *, num_rows: int = ROWS) -> Rates:
    """Return what a number of simulated tables comes to."""
    draw = ALL_DRAWS[name]

    def tables(difference: float, *, are_alike: bool = False) -> Iterator[Sequence[PairedResult]]:
        rng = np.random.default_rng(0)
        for _ in range(count):
            first, second = draw(rng, num_documents, difference)
            if are_alike:  # which of two systems wrote an answer is a matter of chance
                exchanged = rng.random(num_documents) < 0.5
                first, second = np.where(exchanged, second, first), np.where(exchanged, first, second)
            pairs = [
                Pair(
                    first=first[row],
                    second=second[row],
                    documents=range(num_documents),
                    are_answers=name in ANSWERS,
                )
                for row in range(num_rows)
            ]
            yield compare_table(pairs, MARGIN, num_resamples=300, num_exchanges=999)

    null, losing = list(tables(0.0)), list(tables(-MARGIN))
    alike = tables(0.0, are_alike=True)
    effect = 0.3 if name in ANSWERS else 0.03
    covers = [
        one.low <= -MARGIN <= one.high
        for table in losing
        for one in table
        if one.low is not None and one.high is not None
    ]
    return Rates(
        covered=float(np.mean(covers)) if covers else None,
        bounded=float(np.mean([all((one.claim_low or -1.0) <= -MARGIN for one in table) for table in losing])),
        false_difference=float(np.mean([any(map(differs, table)) for table in alike])),
        false_as_good=float(np.mean([any(one.non_inferior for one in table) for table in losing])),
        power=float(np.mean([differs(one) for table in tables(effect) for one in table])),
        as_good=float(np.mean([one.non_inferior for table in null for one in table])),
    )


def differs(one: PairedResult) -> bool:
    """Return whether a difference is shown at the level of the table."""
    return one.p_corrected is not None and one.p_corrected < 0.05
