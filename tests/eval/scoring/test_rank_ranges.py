"""Ranks that systems may have: by the tests that comparisons of two runs make, of all pairs together."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats

from eval.scoring.claims import compare_table
from eval.scoring.exchanges import Pair
from eval.scoring.rank_ranges import rank_ranges


def test_a_system_that_is_better_everywhere_is_first_and_twins_share_their_places() -> None:
    rng = np.random.default_rng(1)
    low = rng.uniform(0.2, 0.3, 12)
    systems = {"low": low, "twin": low, "high": low + rng.uniform(0.2, 0.3, 12)}
    assert rank_ranges(systems, range(12)) == {"low": (2, 3), "twin": (2, 3), "high": (1, 1)}


def test_too_few_documents_leave_every_rank_open() -> None:
    systems = {"low": [0.1] * 5, "high": [0.9] * 5}
    assert rank_ranges(systems, range(5)) == {"low": (1, 2), "high": (1, 2)}
    assert rank_ranges({"low": [0.1] * 8, "high": [0.9] * 8}, ["a"] * 8) == {"low": (1, 2), "high": (1, 2)}
    assert rank_ranges({"alone": [0.1, 0.2]}, "ab") == {"alone": (1, 1)}


@pytest.mark.parametrize(("num_documents", "num_scores"), [(10, 1), (10, 3), (40, 1), (40, 3)])
def test_the_claims_are_those_of_comparisons_of_all_pairs(num_documents: int, num_scores: int) -> None:
    rng = np.random.default_rng(num_documents + num_scores)
    documents = np.arange(2 * num_documents) // 2
    own = rng.uniform(0.2, 0.4, (2 * num_documents, num_scores))
    gains = (0.0, 0.002, 0.05, 0.12)
    systems = {str(gain): own + gain + 0.05 * rng.standard_normal(own.shape) for gain in gains}
    systems = {name: values.clip(0, 1) for name, values in systems.items()}
    pairs = list(itertools.combinations(systems, 2))
    table = [Pair(first=systems[one], second=systems[other], documents=documents) for one, other in pairs]
    expected = {name: [1, len(systems)] for name in systems}
    for (one, other), row in zip(pairs, compare_table(table, num_resamples=100), strict=True):
        if row.p_corrected is not None and row.p_corrected < 0.05:
            better, worse = (other, one) if row.difference > 0 else (one, other)
            expected[worse][0] += 1
            expected[better][1] -= 1
    found = rank_ranges(systems, documents)
    assert found == {name: tuple(ends) for name, ends in expected.items()}
    assert found["0.0"][0] > 1  # something is shown
    assert any(low < high for low, high in found.values())  # and something is not


def test_boards_on_which_nothing_differs_seldom_show_a_difference() -> None:
    rng = np.random.default_rng(0)
    count, false = 60, 0
    for _ in range(count):
        common = rng.uniform(0.2, 0.4, 10)
        systems = {str(index): common + 0.05 * rng.standard_normal(10) for index in range(5)}
        ranges = rank_ranges({name: values.clip(0, 1) for name, values in systems.items()}, range(10))
        false += any(ends != (1, 5) for ends in ranges.values())
    assert false <= scipy.stats.binom.ppf(0.999, count, 0.05)


def test_many_systems_take_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    systems = {str(index): rng.uniform(0.0, 0.02, 20) + index / 30 for index in range(12)}
    whole = rank_ranges(systems, range(20))
    monkeypatch.setattr("eval.scoring.rank_ranges._NUMBERS_AT_ONCE", 1000)
    assert rank_ranges(systems, range(20)) == whole
    assert whole["11"] == (1, 1)
