"""Intervals cover, tests keep their size, and documents are resampled: on simulated scores and by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import pytest
from numpy.typing import NDArray

from eval.significance import (
    MARGIN,
    PairedResult,
    compare_paired,
    is_non_inferior,
    mean_interval,
    within_margin_of_best,
)

NUM_SIMULATIONS = 2000
# Fewer than by default, so that this file takes a minute; the code is the same.
FEW_RESAMPLES, FEW_EXCHANGES = 500, 499

# What R1, R2 and RL of one prediction are in units of the first.
LEVELS = np.array([1.0, 0.4, 0.7])

# (S, N, K) scores of S systems on the same N examples, and the N document names.
Scores = tuple[NDArray[np.float64], NDArray[np.int64]]
Draw = Callable[[np.random.Generator, int, int, int], Scores]


def beta_scores(rng: np.random.Generator, num_documents: int, num_systems: int = 1, num_scores: int = 1) -> Scores:
    """Skewed scores of mean 1/6, with effects of the document and of the system on the document."""
    sizes = rng.integers(1, 13, num_documents)
    level = rng.beta(1.2, 6, num_documents).clip(1e-6, 1 - 1e-6)
    level = rng.beta(20 * level, 20 * (1 - level), (num_systems, num_documents)).clip(1e-6, 1 - 1e-6)
    level = np.repeat(level, sizes, axis=1)[..., None]
    scores = rng.beta(8 * level, 8 * (1 - level), (*level.shape[:2], num_scores))
    return scores * LEVELS[:num_scores], np.repeat(np.arange(num_documents), sizes)


def lognormal_scores(rng: np.random.Generator, num_documents: int, num_systems: int = 1, num_scores: int = 1) -> Scores:
    """Scores with a long tail, cut at 1; most documents have few examples and some have 12."""
    sizes = np.minimum(rng.geometric(0.3, num_documents), 12)
    level = 0.4 * rng.standard_normal(num_documents) + 0.2 * rng.standard_normal((num_systems, num_documents))
    noise = 0.3 * rng.standard_normal((num_systems, sizes.sum(), num_scores))
    scores = np.minimum(1, 0.15 * np.exp(np.repeat(level, sizes, axis=1)[..., None] + noise))
    return scores * LEVELS[:num_scores], np.repeat(np.arange(num_documents), sizes)


def falling_scores(rng: np.random.Generator, num_documents: int, num_systems: int = 1, num_scores: int = 1) -> Scores:
    """Scores that are the lower the more examples the document has."""
    scores, documents = beta_scores(rng, num_documents, num_systems, num_scores)
    return scores * (1 - 0.06 * np.bincount(documents)[documents])[:, None], documents


def mean_of_lognormal_scores() -> float:
    spread, normal = math.sqrt(0.4**2 + 0.2**2 + 0.3**2), NormalDist()
    cut = math.log(1 / 0.15) / spread
    return 0.15 * math.exp(spread**2 / 2) * normal.cdf(cut - spread) + 1 - normal.cdf(cut)


# Sizes are uniform on 1 to 12: 6.5 on average, 325/6 their mean square, which a mean over examples weighs by.
DRAWS: dict[str, tuple[Draw, float]] = {
    "beta": (beta_scores, 1 / 6),
    "lognormal": (lognormal_scores, mean_of_lognormal_scores()),
    "falling": (falling_scores, 1 / 6 * (1 - 0.06 * (325 / 6) / 6.5)),
}


@pytest.mark.parametrize("num_documents", [50, 200])
@pytest.mark.parametrize(
    ("name", "num_scores"), [("beta", 1), ("lognormal", 1), ("falling", 1), ("beta", 3), ("lognormal", 3)]
)
def test_interval_of_a_mean_covers_it(name: str, num_scores: int, num_documents: int) -> None:
    draw, mean = DRAWS[name]
    truth = mean * LEVELS[:num_scores].prod() ** (1 / num_scores)
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(NUM_SIMULATIONS):
        (values,), documents = draw(rng, num_documents, 1, num_scores)
        estimate = mean_interval(values, documents, num_resamples=FEW_RESAMPLES)
        covered += estimate.low <= truth <= estimate.high
    assert 0.92 <= covered / NUM_SIMULATIONS <= 0.97


def paired(draw: Draw, num_documents: int, num_scores: int, gain: float) -> list[PairedResult]:
    rng = np.random.default_rng(2)
    results = []
    for _ in range(NUM_SIMULATIONS):
        (first, second), documents = draw(rng, num_documents, 2, num_scores)
        results.append(
            compare_paired(
                first,
                second * (1 + gain),
                documents,
                num_resamples=FEW_RESAMPLES,
                num_exchanges=FEW_EXCHANGES,
            )
        )
    return results


@pytest.mark.parametrize("num_documents", [50, 200])
@pytest.mark.parametrize(("name", "num_scores"), [("beta", 1), ("lognormal", 3)])
def test_without_a_difference_it_is_found_as_often_as_promised(name: str, num_scores: int, num_documents: int) -> None:
    results = paired(DRAWS[name][0], num_documents, num_scores, gain=0.0)
    assert 0.035 <= np.mean([result.p_value < 0.05 for result in results]) <= 0.065
    assert 0.92 <= np.mean([result.low <= 0 <= result.high for result in results]) <= 0.97


@pytest.mark.parametrize("num_documents", [50, 200])
def test_a_loss_of_the_margin_is_covered_and_not_called_as_good(num_documents: int) -> None:
    draw, mean = DRAWS["beta"]
    results = paired(draw, num_documents, 1, gain=-MARGIN / mean)
    assert 0.92 <= np.mean([result.low <= -MARGIN <= result.high for result in results]) <= 0.97
    assert 0.01 <= np.mean([is_non_inferior(result) for result in results]) <= 0.035


def test_the_detectable_difference_is_found_four_times_in_five() -> None:
    draw, mean = DRAWS["beta"]
    detectable = float(np.mean([result.detectable for result in paired(draw, 50, 1, gain=0.0)]))
    found = [result.p_value < 0.05 for result in paired(draw, 50, 1, gain=detectable / mean)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize("num_documents", [50, 200])
def test_systems_worse_by_the_margin_are_rarely_marked_as_near_the_best(num_documents: int) -> None:
    rng = np.random.default_rng(3)
    false_marks = 0
    for _ in range(NUM_SIMULATIONS):
        values, documents = beta_scores(rng, num_documents, 5)
        values[1:] *= 1 - MARGIN * 6
        marks = within_margin_of_best(dict(zip("abcde", values, strict=True)), documents, num_resamples=FEW_RESAMPLES)
        false_marks += any(marks[name] for name in "bcde")
    assert 0.005 <= false_marks / NUM_SIMULATIONS <= 0.065
