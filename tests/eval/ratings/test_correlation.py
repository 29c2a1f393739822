"""Correlations with people: within systems, over documents, and what they are by hand."""

from __future__ import annotations

import numpy as np
import pytest
import scipy

from eval.ratings.correlation import _fisher_z, correlate, deviation_within, mean_shift, order_systems

RNG = np.random.default_rng(7)
NUM_DOCUMENTS, SYSTEMS = 12, ("a", "b", "c")
DOCUMENTS = [f"d{index}" for index in range(NUM_DOCUMENTS) for _ in SYSTEMS]
GROUPS = list(SYSTEMS) * NUM_DOCUMENTS
X = RNG.normal(size=len(GROUPS))
Y = 0.6 * X + RNG.normal(size=len(GROUPS))
RESAMPLES = 500


def shifted(values: np.ndarray, by: dict[str, float]) -> np.ndarray:
    return values + np.array([by[group] for group in GROUPS])


def test_the_correlation_within_systems_is_that_of_what_their_means_leave() -> None:
    left = [side - np.array([side[[one == group for one in GROUPS]].mean() for group in GROUPS]) for side in (X, Y)]
    found = correlate(X, Y, GROUPS, DOCUMENTS, num_resamples=RESAMPLES)
    assert found.r == pytest.approx(np.corrcoef(*left)[0, 1])
    assert found.num_summaries == len(X)
    assert found.low is not None
    assert found.high is not None
    assert -1 < found.low < found.r < found.high < 1


def test_what_whole_systems_gain_changes_nothing_within_them() -> None:
    plain = correlate(X, Y, GROUPS, DOCUMENTS, num_resamples=RESAMPLES)
    moved = shifted(X, {"a": 0, "b": 50, "c": -9}), shifted(Y, {"a": 1, "b": -80, "c": 0})
    found = correlate(*moved, GROUPS, DOCUMENTS, num_resamples=RESAMPLES)
    for name in ("r", "low", "high", "spearman", "kendall"):
        assert getattr(found, name) == pytest.approx(getattr(plain, name), abs=1e-9)
    pooled = correlate(*moved, [None] * len(X), DOCUMENTS, num_resamples=RESAMPLES)
    assert pooled.r is not None
    assert pooled.r < -0.5


def test_ranks_of_one_group_are_those_of_scipy() -> None:
    rough_x, rough_y = np.round(X, 0), np.round(Y, 0)  # with ties
    found = correlate(rough_x, rough_y, [0] * len(X), DOCUMENTS, num_resamples=RESAMPLES)
    assert found.spearman == pytest.approx(scipy.stats.spearmanr(rough_x, rough_y).statistic)
    assert found.kendall == pytest.approx(scipy.stats.kendalltau(rough_x, rough_y).statistic)


def test_ranks_compare_no_summaries_of_two_systems() -> None:
    # Within each system the order is turned round; between them it is the same.
    x, y = [1, 2, 3, 11, 12, 13], [3, 2, 1, 13, 12, 11]
    found = correlate(x, y, list("aaabbb"), range(6), num_resamples=RESAMPLES)
    assert (found.r, found.spearman, found.kendall) == pytest.approx((-1, -1, -1))


def test_documents_are_resampled_and_not_summaries() -> None:
    plain = correlate(X, Y, GROUPS, DOCUMENTS, num_resamples=RESAMPLES)
    twice = [np.concatenate([side, side]) for side in (X, Y)]
    same = correlate(*twice, GROUPS * 2, DOCUMENTS * 2, num_resamples=RESAMPLES)
    assert (same.low, same.high) == pytest.approx((plain.low, plain.high))
    others = [f"{name} again" for name in DOCUMENTS]
    apart = correlate(*twice, GROUPS * 2, DOCUMENTS + others, num_resamples=RESAMPLES)
    assert apart.high is not None
    assert plain.high is not None
    assert plain.low is not None
    assert apart.low is not None
    assert apart.high - apart.low < 0.85 * (plain.high - plain.low)


def test_the_gradient_is_the_slope_of_fishers_z() -> None:
    totals = np.array([5.0, 4.0, 3.0, -2.0, 1.0, 2.5, 14.0, 9.0, 4.0])  # counts, x, y of two groups; squares, product
    statistic = _fisher_z(2)
    value, gradient = statistic(totals)
    step = 1e-6
    for index, slope in enumerate(gradient):
        moved = totals.copy()
        moved[index] += step
        assert (statistic(moved)[0] - value) / step == pytest.approx(slope, abs=1e-4)


def test_a_constant_side_has_no_correlation() -> None:
    found = correlate([float(len(group)) for group in GROUPS], Y, GROUPS, DOCUMENTS)
    assert (found.r, found.low, found.spearman, found.kendall) == (None, None, None, None)


def test_few_documents_have_no_interval() -> None:
    found = correlate(X[:15], Y[:15], GROUPS[:15], DOCUMENTS[:15])
    assert found.r is not None
    assert (found.low, found.high) == (None, None)


def test_systems_are_ordered_by_their_means() -> None:
    x, y = [1, 3, 2, 2, 5, 5], [1, 1, 2, 2, 9, 7]
    found = order_systems(x, y, list("aabbcc"))  # means 2, 2, 5 against 1, 2, 8: one tie, two pairs alike
    assert (found.num_systems, found.num_pairs, found.num_same) == (3, 3, 2)
    assert found.r == pytest.approx(np.corrcoef([2, 2, 5], [1, 2, 8])[0, 1])
    assert order_systems([1, 2], [1, 2], "ab").r is None  # two systems always lie on a line


def test_a_shift_is_in_standard_deviations() -> None:
    assert deviation_within([1, 3, 10, 14], "aabb") == pytest.approx(np.sqrt((1 + 1 + 4 + 4) / 2))
    changes = RNG.normal(2, 1, size=20)
    found = mean_shift(changes, list(range(20)), 4)
    assert found.mean == pytest.approx(changes.mean() / 4)
    assert found.low is not None
    assert found.high is not None
    assert 0 < found.low < found.mean < found.high
    assert mean_shift([1, 2, 3], [1, 2, 3], 1).low is None
