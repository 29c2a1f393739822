"""Evidence that is looked at after every document keeps its levels in simulations, and finds what there is to find."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import scipy.stats

from eval.scoring.anytime import AS_GOOD, DIFFERS, anytime_interval, as_good, differs
from tests.helpers.simulations import ALL_DRAWS, ANSWERS

MARGIN = 0.01
SPREAD = 0.063  # of differences of ROUGE between two lengths, as a fraction
MOST_DOCUMENTS = 150


def looks(num_documents: int) -> list[int]:
    """Return after how many documents a run looks: often at first, then every twentieth of what it has."""
    found = [1]
    while found[-1] < num_documents:
        found.append(min(found[-1] + max(1, found[-1] // 20), num_documents))
    return found


def stops(runs: Sequence[Callable[[int], bool]], num_documents: int) -> list[int | None]:
    """Return after how many documents each run makes its claim; None for one that never does."""
    return [next((count for count in looks(num_documents) if run(count)), None) for run in runs]


def stops_of_differences(gains: np.ndarray) -> list[int | None]:
    return stops([lambda count, of_run=of_run: differs(of_run[:count]) >= DIFFERS for of_run in gains], gains.shape[1])


def at_most(share: float, count: int) -> float:
    """Return a share with as much more as chance gives it in one run of a thousand."""
    return float(scipy.stats.binom.ppf(0.999, count, share)) / count


def test_one_document_pays_what_the_formulas_say() -> None:
    bets = [2 * math.exp(one * 0.1) / (math.exp(one * 0.1) + math.exp(-one * 0.1)) for one in 2.0 ** np.arange(-1, 6)]
    others = [2 - one for one in bets]  # a bet on the other sign has what this one lacks
    assert differs([0.1]) == pytest.approx(np.mean(bets + others))
    # The largest bet pays 1 + 0.11 / 0.99, and a document that loses a whole answer takes it whole.
    for parts, are_answers in (((0.9, 0.1), False), ((0.5, 0.5), True)):
        paid = parts[0] * (1 + 0.11 / 0.99) + parts[1] * (1 + 0.11 / 0.99 / 2)
        assert as_good([0.1], MARGIN, are_answers=are_answers) == pytest.approx(paid)
        assert as_good([-1.0], MARGIN, are_answers=are_answers) == pytest.approx(parts[1] / 2)


def test_losses_of_the_margin_pay_one_unit_on_average_whatever_their_size() -> None:
    for loss in (0.01, 0.1, 0.9, 1.0):
        share = MARGIN / loss
        paid = [as_good([gain], MARGIN) for gain in (-loss, 0.0)]
        assert share * paid[0] + (1 - share) * paid[1] == pytest.approx(1)


def test_no_documents_and_documents_without_a_difference_show_none() -> None:
    assert differs([]) == as_good([], MARGIN) == pytest.approx(1)
    assert differs([0.0] * 500) == pytest.approx(1)
    assert anytime_interval([]) == anytime_interval([0.1]) == (None, None)


def test_all_signs_of_a_document_pay_one_unit_on_average() -> None:
    gains = [0.02, -0.31, 0.07]
    signs = np.array([[(number >> place & 1) * 2 - 1 for place in range(3)] for number in range(8)])
    assert np.mean([differs(gains * of_all) for of_all in signs]) == pytest.approx(1)


def test_numbers_that_are_no_fractions_are_refused() -> None:
    for numbers in ([1.5], [[0.1]], [math.nan]):
        with pytest.raises(ValueError, match="give one for each document"):
            differs(numbers)


@pytest.mark.parametrize("spread", ["normal", "heavy tails"])
@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.nightly)])
def test_runs_without_a_difference_hardly_ever_show_one(spread: str, count: int) -> None:
    rng = np.random.default_rng(1)
    shape = count, MOST_DOCUMENTS
    noise = rng.standard_normal(shape) if spread == "normal" else rng.standard_t(3, shape) / math.sqrt(3)
    found = stops_of_differences((SPREAD * noise).clip(-1, 1))
    assert sum(one is not None for one in found) / count <= at_most(0.05, count)


# True difference, share of runs that show it, mean of the documents used: the table of docs/scoring.md.
@pytest.mark.parametrize(("difference", "share", "documents"), [(0.015, 0.5, 117), (0.03, 0.99, 47), (0.06, 1.0, 15)])
@pytest.mark.parametrize("count", [200, pytest.param(1000, marks=pytest.mark.nightly)])
def test_a_difference_ends_runs_the_earlier_the_larger_it_is(
    difference: float, share: float, documents: float, count: int
) -> None:
    gains = difference + SPREAD * np.random.default_rng(2).standard_normal((count, MOST_DOCUMENTS))
    found = stops_of_differences(gains)
    slack = 0.1 if count < 1000 else 0.05
    assert sum(one is not None for one in found) / count == pytest.approx(share, abs=slack)
    assert np.mean([one or MOST_DOCUMENTS for one in found]) == pytest.approx(documents, rel=slack)


def stops_of_as_good(name: str, loss: float, count: int) -> list[int | None]:
    """Return after how many of 600 documents each run is called as good, for a true loss."""
    rng, are_answers = np.random.default_rng(3), name in ANSWERS
    pairs = [[of_rows[0] for of_rows in ALL_DRAWS[name](rng, 600, -loss)] for _ in range(count)]
    runs = [
        lambda n, gain=second - first: as_good(gain[:n], MARGIN, are_answers=are_answers) >= AS_GOOD
        for first, second in pairs
    ]
    return stops(runs, 600)


@pytest.mark.parametrize("name", ALL_DRAWS)
@pytest.mark.parametrize("count", [200, pytest.param(1000, marks=pytest.mark.nightly)])
def test_runs_that_lose_the_margin_are_hardly_ever_called_as_good(name: str, count: int) -> None:
    found = stops_of_as_good(name, MARGIN, count)
    assert sum(one is not None for one in found) / count <= at_most(0.025, count)


@pytest.mark.parametrize("name", [name for name in ALL_DRAWS if name not in ANSWERS])
@pytest.mark.parametrize("count", [50, pytest.param(600, marks=pytest.mark.nightly)])
def test_runs_that_lose_nothing_are_called_as_good(name: str, count: int) -> None:
    found = stops_of_as_good(name, 0.0, count)
    assert sum(one is not None for one in found) / count > 0.7  # answers take a larger margin, or more questions


@pytest.mark.parametrize("count", [40, pytest.param(600, marks=pytest.mark.nightly)])
def test_an_interval_holds_the_difference_at_all_looks(count: int) -> None:
    gains = 0.02 + SPREAD * np.random.default_rng(4).standard_normal((count, MOST_DOCUMENTS))
    missed = 0
    for of_run in gains:
        ends = [anytime_interval(of_run[:size]) for size in looks(MOST_DOCUMENTS)[::3]]
        missed += any((low or -1) > 0.02 or (1 if high is None else high) < 0.02 for low, high in ends)
    assert missed / count <= at_most(0.05, count)
    low, high = anytime_interval(gains[0])
    assert low is not None
    assert high is not None
    assert high - low < 0.05
    # An interval without 0 is nearly the same claim as a difference.
    assert (low > 0) == (differs(gains[0]) >= DIFFERS)
