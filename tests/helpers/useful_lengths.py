"""Scores over lengths whose truth is known, and how often their useful lengths are wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval.records.schema import PairedResult
from eval.scoring.claims import MARGIN, compare_table
from eval.scoring.exchanges import Pair
from eval.scoring.useful import Places, find_useful

Floats = NDArray[np.float64]
# (L, D) scores over lengths, of true means (L,), from a generator and a number of documents.
Draw = Callable[[np.random.Generator, int, Floats], Floats]

# True means in points. Some lengths lose just the margin of one point to a longer one, where tests are at their level.
CURVES: Mapping[str, Sequence[float]] = {
    "saturates": (24.0, 29.0, 30.0, 30.0),
    "goes on": (27.0, 28.0, 29.0, 30.0),
    "falls again": (28.0, 30.0, 29.0, 28.0),
    "flat": (30.0, 30.0, 30.0, 30.0),
    "rises late": (24.0, 24.0, 25.0, 30.0),
}


def near_normal(rng: np.random.Generator, num_documents: int, means: Floats) -> Floats:
    """Scores whose differences between two lengths have a spread of 3 points."""
    level = 0.05 * rng.standard_normal(num_documents)
    own = 0.03 / np.sqrt(2) * rng.standard_normal((len(means), num_documents))
    return np.clip(means[:, None] + level + own, 0.0, 1.0)


def collapsing(rng: np.random.Generator, num_documents: int, means: Floats) -> Floats:
    """Scores of which one in ten, at each length by itself, loses 15 points, and the others have as much more."""
    level = 0.03 * rng.standard_normal(num_documents)
    own = 0.005 * rng.standard_normal((len(means), num_documents))
    collapses = rng.random(own.shape) < 0.1
    return np.clip(means[:, None] + level + own + 0.015 - 0.15 * collapses, 0.0, 1.0)


def one_collapses(rng: np.random.Generator, num_documents: int, means: Floats) -> Floats:
    """The same at the lengths that are worse than a longer one alone, which hides their loss where none collapsed."""
    level = 0.03 * rng.standard_normal(num_documents)
    own = 0.005 * rng.standard_normal((len(means), num_documents))
    is_worse = means < np.maximum.accumulate(means[::-1])[::-1]
    collapses = (rng.random(own.shape) < 0.1) & is_worse[:, None]
    return np.clip(means[:, None] + level + own + 0.015 * is_worse[:, None] - 0.15 * collapses, 0.0, 1.0)


def answers(rng: np.random.Generator, num_documents: int, means: Floats) -> Floats:
    """Right and wrong answers; most documents have the same at all lengths."""
    own = rng.random((len(means), num_documents)) < 0.1
    draw = np.where(own, rng.random(own.shape), rng.random(num_documents))
    return (draw < means[:, None]).astype(np.float64)


DRAWS: Mapping[str, Draw] = {
    "near normal": near_normal,
    "each collapses": collapsing,
    "the worse collapses": one_collapses,
    "0/1": answers,
}


def true_place(curve: Sequence[float], *, is_margin_lost: bool) -> int:
    """Return the place of the smallest length that loses less than the margin, or no more, to any longer one."""
    most = 100 * MARGIN + (-1e-9 if is_margin_lost else 1e-9)
    longer = [curve[place + 1 :] for place in range(len(curve))]
    losses = [max(others, default=mean) - mean for mean, others in zip(curve, longer, strict=True)]
    return next(place for place, loss in enumerate(losses) if loss < most)


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Shares of simulations.

    Attributes:
        too_short: The upper end is shorter than the useful length.
        too_long: The lower end is longer than the useful length, or than one that loses just the margin.
        highs: How often each place is the upper end.
        lows: How often each place is the lower end.
    """

    too_short: float
    too_long: float
    highs: list[float]
    lows: list[float]


def rates(name: str, curve: str, num_documents: int, count: int, num_resamples: int = 300) -> Rates:
    """Return what a number of simulations of one truth comes to."""
    rng, points = np.random.default_rng(0), CURVES[curve]
    means = np.array(points) / 100
    found = [_find(DRAWS[name](rng, num_documents, means), num_resamples) for _ in range(count)]
    places = range(len(points))
    return Rates(
        too_short=float(np.mean([one.high < true_place(points, is_margin_lost=True) for one in found])),
        too_long=float(np.mean([one.low > true_place(points, is_margin_lost=False) for one in found])),
        highs=[float(np.mean([one.high == place for one in found])) for place in places],
        lows=[float(np.mean([one.low == place for one in found])) for place in places],
    )


def _find(scores: Floats, num_resamples: int) -> Places:
    documents = range(scores.shape[1])

    def compare(pairs: Sequence[tuple[int, int]]) -> list[PairedResult]:
        table = [Pair(first=scores[one], second=scores[other], documents=documents) for one, other in pairs]
        return compare_table(table, MARGIN, num_resamples=num_resamples, num_exchanges=19)

    return find_useful(len(scores), compare, MARGIN)
