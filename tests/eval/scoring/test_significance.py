"""Intervals cover, tests keep their size, and documents are resampled: on simulated scores and by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product
from statistics import NormalDist

import numpy as np
import pytest
from numpy.typing import NDArray

from eval.records.schema import PairedResult
from eval.scoring.claims import MARGIN, compare_paired, within_margin_of_best
from eval.scoring.significance import (
    interval_of_ratio,
    mean_interval,
    p_of_ratio,
    ratio_of_perplexities,
    ratios_of_perplexities,
)

MANY = 2000
simulated = pytest.mark.parametrize("count", [200, pytest.param(MANY, marks=pytest.mark.nightly)])
# Fewer than by default; the code is the same.
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


def assert_within(shares: Sequence[bool], low: float, high: float) -> None:
    """Check how often something happened; of fewer simulations, with as much more room as chance takes."""
    expected = (low + high) / 2
    room = 2.5 * math.sqrt(expected * (1 - expected)) * (len(shares) ** -0.5 - MANY**-0.5)
    assert low - room <= np.mean(shares) <= high + room


@simulated
@pytest.mark.parametrize(
    ("name", "num_scores", "num_documents"),
    [
        ("beta", 1, 50),
        ("beta", 1, 200),
        ("lognormal", 1, 50),
        ("lognormal", 1, 200),
        ("beta", 3, 50),
        ("lognormal", 3, 200),
        ("falling", 1, 50),
    ],
)
def test_interval_of_a_mean_covers_it(name: str, num_scores: int, num_documents: int, count: int) -> None:
    draw, mean = DRAWS[name]
    truth = mean * LEVELS[:num_scores].prod() ** (1 / num_scores)
    rng = np.random.default_rng(1)
    covered = []
    for _ in range(count):
        (values,), documents = draw(rng, num_documents, 1, num_scores)
        estimate = mean_interval(values, documents, num_resamples=FEW_RESAMPLES)
        covered.append(estimate.low <= truth <= estimate.high)
    assert_within(covered, 0.92, 0.97)


def paired(draw: Draw, num_documents: int, num_scores: int, count: int, factor: float = 1.0) -> list[PairedResult]:
    """Return comparisons of two systems that are alike but for a factor on the second one's scores."""
    rng = np.random.default_rng(2)
    results = []
    for _ in range(count):
        (first, second), documents = draw(rng, num_documents, 2, num_scores)
        results.append(
            compare_paired(first, factor * second, documents, num_resamples=FEW_RESAMPLES, num_exchanges=FEW_EXCHANGES)
        )
    return results


@simulated
@pytest.mark.parametrize("num_documents", [50, 200])
@pytest.mark.parametrize(("name", "num_scores"), [("beta", 1), ("lognormal", 3)])
def test_where_there_is_no_difference_one_in_twenty_is_found(
    name: str, num_scores: int, num_documents: int, count: int
) -> None:
    results = paired(DRAWS[name][0], num_documents, num_scores, count)
    assert_within([result.p_value < 0.05 for result in results], 0.035, 0.065)
    assert_within([result.low <= 0 <= result.high for result in results], 0.92, 0.97)


@simulated
@pytest.mark.parametrize("num_documents", [50, 200])
def test_a_loss_of_the_margin_is_covered_and_hardly_ever_called_as_good(num_documents: int, count: int) -> None:
    draw, mean = DRAWS["lognormal"]
    results = paired(draw, num_documents, 1, count, factor=1 - MARGIN / mean)
    assert_within([result.low <= -MARGIN <= result.high for result in results], 0.92, 0.97)
    assert np.mean([result.non_inferior for result in results]) <= 0.025


@simulated
def test_the_detectable_difference_is_found_four_times_in_five(count: int) -> None:
    rng = np.random.default_rng(4)
    (first, second), documents = beta_scores(rng, 20_000, 2)
    # An error falls with the root of the number of documents: what 50 of them can show, free of their own noise.
    of_many = compare_paired(first, second, documents, num_resamples=2, num_exchanges=1).detectable
    of_fifty = of_many * math.sqrt(20_000 / 50)
    found = []
    for _ in range(count):
        (first, second), documents = beta_scores(rng, 50, 2)
        # Halved, so that there is room to add the difference.
        result = compare_paired(
            first / 2, (second + of_fifty) / 2, documents, num_resamples=2, num_exchanges=FEW_EXCHANGES
        )
        found.append(result.p_value < 0.05)
    assert_within(found, 0.76, 0.84)


@simulated
@pytest.mark.parametrize("num_documents", [50, 200])
def test_systems_worse_by_the_margin_are_rarely_marked_as_near_the_best(num_documents: int, count: int) -> None:
    draw, mean = DRAWS["lognormal"]
    margin = 0.03
    rng = np.random.default_rng(3)
    best_marked, others_marked, nearer_marked = [], [], []
    for _ in range(count):
        values, documents = draw(rng, num_documents, 5, 1)
        nearer = [values[0], *values[1:] * (1 - margin / 2 / mean)]
        marks = within_margin_of_best(
            dict(zip("abcde", nearer, strict=True)), documents, margin, num_resamples=FEW_RESAMPLES
        )
        nearer_marked += [marks[name] for name in "bcde"]
        values[1:] *= 1 - margin / mean
        by_system = dict(zip("abcde", values, strict=True))
        marks = within_margin_of_best(by_system, documents, margin, num_resamples=FEW_RESAMPLES)
        best_marked.append(marks["a"])
        others_marked.append(any(marks[name] for name in "bcde"))
    # One more document that collapses keeps this below the level; that marks depend on the distance is seen halfway.
    assert np.mean(others_marked) <= 0.065
    assert np.mean(nearer_marked) > 0.25 or num_documents < 200
    # The best has to allow for one more document that collapses, as all have to.
    assert np.mean(best_marked) > 0.9 or num_documents < 200


def test_a_mean_weighs_documents_by_their_examples() -> None:
    estimate = mean_interval([0.2, 0.4, 0.9, 0.5, 0.5, 0.5, 0.5], list("aabcdef"))
    assert estimate.mean == pytest.approx(0.5)
    assert estimate.low < 0.5 < estimate.high


def test_several_scores_are_combined_after_their_means() -> None:
    estimate = mean_interval([[0.1, 0.4], [0.3, 0.0]], ["a", "b"])
    assert estimate.mean == pytest.approx(math.sqrt(0.2 * 0.2))


def test_documents_are_resampled_not_examples() -> None:
    values = np.random.default_rng(5).random(20).repeat(10)
    by_document = mean_interval(values, np.arange(20).repeat(10))
    by_example = mean_interval(values, np.arange(200))
    assert by_document.mean == pytest.approx(by_example.mean)
    width, narrow = (estimate.high - estimate.low for estimate in (by_document, by_example))
    # Ten copies of an example are no more evidence than one, but look like the root of ten times as much.
    assert width / narrow == pytest.approx(math.sqrt(10), rel=0.15)
    once = mean_interval(values[::10], np.arange(20))
    assert (by_document.low, by_document.high) == pytest.approx((once.low, once.high))


def test_the_order_of_examples_and_the_names_of_documents_do_not_matter() -> None:
    rng = np.random.default_rng(6)
    values, names = rng.random((30, 3)), [f"paper {number}" for number in rng.integers(0, 9, 30)]
    order = rng.permutation(30)
    expected, got = mean_interval(values, names), mean_interval(values[order], [names[index] for index in order])
    assert (got.mean, got.low, got.high) == pytest.approx((expected.mean, expected.low, expected.high))


def test_intervals_are_symmetric_and_end_at_what_a_score_can_be() -> None:
    estimate = mean_interval(np.linspace(0.2, 0.6, 30), range(30))
    assert estimate.high - estimate.mean == pytest.approx(estimate.mean - estimate.low)
    assert mean_interval([0, 0, 0, 0, 0, 1], list("abcdef")).low == 0
    assert mean_interval([0, 0, 0, 1, 0, 1], list("abcdef")).high == 1


def test_a_few_documents_that_differ_do_not_blow_up_the_interval() -> None:
    result = compare_paired([0.5] * 50, [0.5] * 47 + [0.6] * 3, range(50))
    assert result.low < 0 < result.high < 0.03


@pytest.mark.filterwarnings("error")
def test_a_score_that_is_zero_throughout_is_no_number_too_small() -> None:
    rng = np.random.default_rng(12)
    first, second = rng.random((30, 3)), rng.random((30, 3))
    first[:, 1] = 0
    assert mean_interval(first, range(30)) == mean_interval(np.zeros(30), range(30))
    for num_documents in (10, 30):
        result = compare_paired(first, second, np.arange(30) % num_documents)
        assert result.low < result.difference < result.high
        assert result.p_value == pytest.approx(2 / 2**10 if num_documents == 10 else 1e-4)


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_equal_scores_tell_nothing_of_other_documents(value: float) -> None:
    estimate = mean_interval([value] * 8, list("aabbcdef"))
    assert (estimate.mean, estimate.low, estimate.high) == (pytest.approx(value), None, None)
    assert interval_of_ratio([value] * 8, [1] * 8) == (None, None)
    result = compare_paired([value] * 8, [value] * 8, list("aabbcdef"))
    assert (result.difference, result.low, result.high, result.detectable) == (0.0, None, None, None)
    assert not result.non_inferior
    # Where scores differ, and the two systems do not, eight documents leave a collapse of one in three open.
    alike = compare_paired([0.1, 0.9] * 4, [0.1, 0.9] * 4, list("abcdefgh"))
    assert (alike.low, alike.high, alike.non_inferior) == (None, None, False)


def test_a_ratio_has_the_interval_of_the_mean_that_it_is() -> None:
    values, documents = [0.4, 0.5, 0.4, 0.6, 0.5, 0.4, 0.1, 0.2, 0.3], list("aabbbcdef")
    estimate = mean_interval(values, documents)
    assert interval_of_ratio([0.9, 1.5, 0.4, 0.1, 0.2, 0.3], [2, 3, 1, 1, 1, 1]) == pytest.approx(
        (estimate.low, estimate.high)
    )
    assert interval_of_ratio([0.9, 0.0, 1.5, 0.4, 0.1, 0.2, 0.3], [2, 0, 3, 1, 1, 1, 1]) == pytest.approx(
        (estimate.low, estimate.high)
    )
    low, high = interval_of_ratio([600.0, 800.0, 700.0] * 2, [200, 300, 250] * 2)
    assert low < 2100 / 750 < high


@pytest.mark.parametrize("count", [2, 5])
def test_few_documents_have_no_interval_and_settle_nothing(count: int) -> None:
    names = list("abcdef")[:count]
    assert mean_interval([0.5] * count, names).low is None
    assert interval_of_ratio([1.0] * count, [2] * count) == (None, None)
    result = compare_paired([0.1] * count, [0.9] * count, names)
    # The least that exchanging so few can come to.
    assert (result.low, result.high, result.p_value) == (None, None, pytest.approx(2 / 2**count))
    assert not result.non_inferior
    assert not any(within_margin_of_best({"a": [0.1] * count, "b": [0.9] * count}, names).values())
    assert mean_interval([0.5, 0.6] * 3, list("abcdef")).low is not None


def test_one_document_has_a_mean_and_nothing_else() -> None:
    estimate = mean_interval([0.2, 0.4], ["a", "a"])
    assert (estimate.mean, estimate.low, estimate.high) == (pytest.approx(0.3), None, None)
    assert interval_of_ratio([3.0], [2]) == (None, None)
    result = compare_paired([0.2, 0.4], [0.3, 0.4], ["a", "a"])
    assert (result.difference, result.wins, result.ties) == (pytest.approx(0.05), 1, 1)
    assert result.low is result.high is result.p_value is result.detectable is None
    assert not result.non_inferior
    assert within_margin_of_best({"x": [0.2], "y": [0.2]}, ["a"]) == {"x": False, "y": False}


def test_identical_systems_do_not_differ() -> None:
    values = np.random.default_rng(7).random((60, 3))
    result = compare_paired(values, values, np.arange(60) // 2)
    assert (result.difference, result.low, result.high, result.p_value) == (0, None, None, 1)
    assert (result.wins, result.ties, result.losses, result.detectable) == (0, 60, 0, None)
    assert (result.num_examples, result.num_documents) == (60, 30)
    assert not result.non_inferior
    assert not any(within_margin_of_best({"x": values, "y": values}, np.arange(60) // 2).values())
    many = np.random.default_rng(7).random((600, 3))
    assert compare_paired(many, many, np.arange(600) // 2).non_inferior
    assert all(within_margin_of_best({"x": many, "y": many}, np.arange(600) // 2).values())


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ([0.1, 0.2, 0.3], 2 / 8),  # all one way, or all the other
        ([0.3, -0.1, 0.2], 4 / 8),  # 0.6 and 0.4, and the same below 0
        ([0.2, -0.2, 0.0], 1.0),
    ],
)
def test_few_documents_are_exchanged_in_every_way(gains: list[float], expected: float) -> None:
    first = np.array([0.5, 0.4, 0.3])
    assert compare_paired(first, first + gains, list("abc")).p_value == pytest.approx(expected)
    # The examples of a document go together: the same p-value, although 2^6 exchanges of examples would be possible.
    twice = compare_paired(first.repeat(2), (first + gains).repeat(2), list("aabbcc"))
    assert twice.p_value == pytest.approx(expected)


def test_p_of_geometric_means_equals_a_count_by_hand() -> None:
    rng = np.random.default_rng(8)
    first, second, documents = rng.random((12, 3)), rng.random((12, 3)), np.arange(12) // 2

    def distance(exchanged: NDArray[np.bool_]) -> float:
        one, other = (np.where(exchanged[documents, None], a, b) for a, b in ((second, first), (first, second)))
        return abs(np.prod(other.mean(axis=0)) ** (1 / 3) - np.prod(one.mean(axis=0)) ** (1 / 3))

    observed = distance(np.zeros(6, dtype=bool))
    every = [distance(np.array(choice)) for choice in product([False, True], repeat=6)]
    expected = np.mean([value >= observed - 1e-12 for value in every])
    assert compare_paired(first, second, documents).p_value == pytest.approx(expected)


def test_drawn_exchanges_count_the_observed_one_and_agree_with_all() -> None:
    first = np.full(40, 0.2)
    assert compare_paired(first, first + 0.1, range(40), num_exchanges=99).p_value == pytest.approx(1 / 100)
    rng = np.random.default_rng(9)
    first, second = rng.random(12), rng.random(12)
    exact = compare_paired(first, second, range(12))
    drawn = compare_paired(first, second, range(12), num_exchanges=4000)
    assert drawn.p_value != exact.p_value
    assert drawn.p_value == pytest.approx(exact.p_value, abs=0.02)


def test_wins_ties_and_losses_are_counted_by_example() -> None:
    result = compare_paired([0.1, 0.2, 0.3, 0.4], [0.3, 0.2, 0.1, 0.5], ["a", "a", "b", "b"])
    assert (result.wins, result.ties, result.losses) == (2, 1, 1)
    # What one score gains counts although the other is 0 in both systems.
    first, second = [[0.1, 0.0], [0.3, 0.0], [0.2, 0.6]], [[0.2, 0.0], [0.2, 0.0], [0.2, 0.6]]
    result = compare_paired(first, second, list("abc"))
    assert (result.wins, result.ties, result.losses) == (1, 1, 1)


def test_detectable_is_what_noncentral_t_shows_times_the_standard_error() -> None:
    gains = np.array([0.1, -0.1, 0.2, 0.0, 0.05, 0.1])
    result = compare_paired([0.5] * 6, 0.5 + gains, list("abcdef"))
    # Of noncentral t with 5 degrees of freedom about 3.514, four in five lie above 2.571, which is t at 97.5%.
    assert result.detectable == pytest.approx(3.5139 * gains.std(ddof=1) / math.sqrt(6), rel=1e-3)


def test_as_good_takes_documents_enough_for_one_more_that_collapses() -> None:
    rng = np.random.default_rng(10)
    first = rng.random(400)
    second = np.clip(first + rng.normal(0, 0.02, 400), 0, 1)
    close = compare_paired(first, second, range(400))
    assert -MARGIN < close.claim_low < close.low < 0
    assert close.non_inferior
    assert not compare_paired(first, second, range(400), margin=-close.claim_low).non_inferior
    few = compare_paired(first[:60], second[:60], range(60))
    assert few.low > -MARGIN
    assert not few.non_inferior


def test_the_system_that_came_out_best_is_not_privileged() -> None:
    rng = np.random.default_rng(11)
    few = {name: rng.random(5) for name in "abc"}
    assert within_margin_of_best(few, range(5)) == {"a": False, "b": False, "c": False}
    assert within_margin_of_best({"a": few["a"]}, range(5)) == {"a": True}
    level = rng.random(1200) * 0.9
    many = {"best": level + 0.05, "near": level + 0.045 + rng.normal(0, 0.001, 1200), "far": level}
    assert within_margin_of_best(many, range(1200)) == {"best": True, "near": True, "far": False}
    assert within_margin_of_best(many, range(1200), margin=0.004) == {"best": True, "near": False, "far": False}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval([0.1, math.nan], list("ab")), "the score of example 1 is nan"),
        (lambda: mean_interval([0.1, 35.0], list("ab")), "the score of example 1 is 35.0; give a fraction"),
        (lambda: mean_interval([], []), "at least one score"),
        (lambda: mean_interval([0.1, 0.2], ["a"]), "2 scores but"),
        (lambda: mean_interval([0.1, 0.2], ["a", "b", "c"]), "2 scores but"),
        (lambda: compare_paired([0.1, 0.2], [0.1], list("ab")), "not of the same examples"),
        (lambda: compare_paired([0.1, 0.2], [math.nan, 0.1], list("ab")), "the score of example 0 is nan"),
        (lambda: within_margin_of_best({"x": [0.1, 0.2], "y": [0.1]}, list("ab")), "not of the same examples"),
        (lambda: within_margin_of_best({}, list("ab")), "give some"),
        (lambda: interval_of_ratio([1.0, 2.0], [1]), "2 sums but 1 counts"),
        (lambda: interval_of_ratio([1.0, math.inf], [1, 2]), "not a finite number"),
    ],
)
def test_what_cannot_be_compared_says_why_in_one_line(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def losses(
    rng: np.random.Generator, num_documents: int, effect: float, *, skewed: bool = True
) -> tuple[list[float], list[float], list[int]]:
    """Losses of two systems that share what is hard about a document and differ by the effect a token in the mean."""
    tokens = rng.integers(200, 4000, num_documents)
    level = 2.5 + 0.5 * rng.standard_normal(num_documents)
    spread = rng.exponential(1, num_documents) - 1 if skewed else rng.standard_normal(num_documents)
    gain = effect + 0.02 * spread
    return list(tokens * level), list(tokens * (level + gain)), list(tokens)


def test_a_ratio_of_perplexities_by_hand() -> None:
    same = ratio_of_perplexities([30.0, 10.0], [33.0, 10.0], [20, 10])
    assert same.ratio == pytest.approx(math.exp(43 / 30) / math.exp(40 / 30))
    assert (same.low, same.high, same.detectable, same.num_documents) == (None, None, None, 2)
    # Documents that differ a thousandfold in loss and all lose a hundredth of a nat a token.
    tokens = [100 * index for index in range(8)]
    first = [count * 10.0 ** (index % 4 - 2) for index, count in enumerate(tokens)]
    exact = ratio_of_perplexities(first, [loss + 0.01 * n for loss, n in zip(first, tokens, strict=True)], tokens)
    assert exact.ratio == pytest.approx(math.exp(0.01))
    assert exact.num_documents == 7  # that without tokens says nothing
    alike = ratio_of_perplexities(first, first, tokens)
    assert (alike.ratio, alike.low, alike.high) == (1.0, None, None)


def test_a_row_of_few_documents_keeps_its_interval_beside_one_of_many() -> None:
    rng = np.random.default_rng(0)
    many, few = ({f"{n}": (100.0, 101 + rng.normal(), 1000.0) for n in range(count)} for count in (20, 6))
    # Some of a few thousand resamples of twenty documents hold none of the six.
    beside, alone = ratios_of_perplexities([many, few]), ratios_of_perplexities([few])
    for one in beside:
        assert one.low is not None
        assert one.high is not None
        assert one.low < one.ratio < one.high
        assert one.detectable is not None
        assert one.detectable > 1
    assert beside[1].low is not None
    assert alone[0].low is not None
    assert 0.99 < beside[1].low / alone[0].low < 1.01
    assert p_of_ratio(few) is not None


def test_a_ratio_of_perplexities_needs_numbers() -> None:
    with pytest.raises(ValueError, match="give each for every document"):
        ratio_of_perplexities([1.0], [1.0, 2.0], [1, 1])
    with pytest.raises(ValueError, match="not a finite number"):
        ratio_of_perplexities([1.0], [math.nan], [1])
    with pytest.raises(ValueError, match="nothing to compare"):
        ratio_of_perplexities([1.0], [1.0], [0])


@simulated
@pytest.mark.parametrize(("skewed", "least"), [(False, 0.93), (True, 0.88)])
def test_the_interval_of_a_ratio_of_perplexities_covers(skewed: bool, least: float, count: int) -> None:
    rng = np.random.default_rng(0)
    found = [
        ratio_of_perplexities(*losses(rng, 20, 0.01, skewed=skewed), num_resamples=FEW_RESAMPLES) for _ in range(count)
    ]
    covered = [bool(one.low and one.high and one.low <= math.exp(0.01) <= one.high) for one in found]
    assert_within(covered, least, 0.975)


@pytest.mark.nightly
def test_what_is_called_detectable_is_detected() -> None:
    rng = np.random.default_rng(0)
    # An effect of the size that is called detectable is told from none in about four of five studies.
    shown = [ratio_of_perplexities(*losses(rng, 30, 0, skewed=False), num_resamples=FEW_RESAMPLES) for _ in range(100)]
    effect = math.log(np.median([one.detectable for one in shown if one.detectable is not None]))
    again = [
        ratio_of_perplexities(*losses(rng, 30, effect, skewed=False), num_resamples=FEW_RESAMPLES) for _ in range(400)
    ]
    power = sum(one.low is not None and one.low > 1 for one in again) / len(again)
    assert 0.72 <= power <= 0.88
