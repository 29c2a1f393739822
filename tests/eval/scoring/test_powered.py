"""Labels of some answers and a metric of all -> the mean of all labels."""

from __future__ import annotations

import numpy as np
import pytest

from eval.scoring.powered import powered_mean

NUM_SIMULATIONS = 300


def answers(
    seed: int, num_documents: int, num_labelled: int, noise: float, *, per_document: int = 3
) -> tuple[np.ndarray, list[float | None], list[int]]:
    """Return a metric, labels of some documents' answers with mean 2 over all documents, and documents."""
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(num_documents), per_document)
    truth = 2 + rng.normal(size=num_documents)[codes] + rng.normal(scale=0.5, size=len(codes))
    metric = 0.1 * truth + 0.3 + rng.normal(scale=noise, size=len(codes))
    labels = [float(one) if code < num_labelled else None for one, code in zip(truth, codes, strict=True)]
    return metric, labels, list(codes)


def test_a_case_by_hand() -> None:
    metric, labels = [0.0, 1.0, 2.0, 3.0], [1.0, 3.0, None, None]
    found = powered_mean(metric, labels, ["a", "b", "c", "d"])
    # Labels differ from their mean by -1 and 1, half of which each adds; the metric by half as much on both sides.
    # weight = (0.5 * 0.25 * 2) / (4 * 0.25**2) = 1
    assert found.weight == pytest.approx(1.0)
    assert found.mean == pytest.approx(2.0 + (2.5 - 0.5))
    assert found.labelled == (2.0, None, None)
    assert (found.low, found.error, found.num_labels, found.num_documents) == (None, None, 2, 2)


def test_one_answer_a_document_has_the_weight_and_error_of_the_paper() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=60)
    truth = values + rng.normal(size=60)
    found = powered_mean(values, [*truth[:20], *[None] * 40], list(range(60)))
    first, rest, given = values[:20], values[20:], truth[:20]
    variances = first.var() / 20 + rest.var() / 40
    weight = np.cov(given, first, ddof=0)[0, 1] / 20 / variances
    assert found.weight == pytest.approx(weight)
    assert found.mean == pytest.approx(weight * rest.mean() + (given - weight * first).mean())
    error = np.sqrt((given - weight * first).var() / 20 + weight**2 * rest.var() / 40)
    assert found.error == pytest.approx(error * np.sqrt(20 / 19))


@pytest.mark.parametrize("noise", [0.02, 0.5], ids=["good metric", "poor metric"])
def test_intervals_hold_the_mean_of_people_whatever_the_metric(noise: float) -> None:
    found = [powered_mean(*answers(seed, 100, 25, noise)) for seed in range(NUM_SIMULATIONS)]
    assert np.mean([one.low < 2 < one.high for one in found]) > 0.91
    assert np.mean([one.labelled[1] < 2 < one.labelled[2] for one in found]) > 0.91
    gain = np.median([one.gain for one in found])
    assert gain > 2 if noise == 0.02 else 0.95 < gain < 1.2


def test_a_metric_in_another_unit_or_reversed_helps_as_much() -> None:
    metric, labels, documents = answers(0, 100, 25, 0.02)
    found, turned = (powered_mean(one, labels, documents) for one in (metric, 100 - 50 * metric))
    assert turned.mean == pytest.approx(found.mean)
    assert turned.error == pytest.approx(found.error)


def test_a_metric_that_never_changes_leaves_the_labels_alone() -> None:
    _, labels, documents = answers(0, 40, 10, 0.02)
    found = powered_mean(np.full(len(labels), 0.5), labels, documents)
    assert (found.weight, found.gain) == (0.0, 1.0)
    assert (found.mean, found.low, found.high) == found.labelled


def test_with_all_answers_labelled_the_mean_is_theirs() -> None:
    metric, labels, documents = answers(0, 12, 12, 0.02)
    found = powered_mean(metric, labels, documents)
    assert found.mean == pytest.approx(np.mean(labels))  # type: ignore[arg-type]
    assert found.weight == 0.0


def test_answers_about_one_document_are_no_independent_evidence() -> None:
    metric, labels, documents = answers(0, 60, 20, 0.5, per_document=8)
    apart = powered_mean(metric, labels, list(range(len(labels))))
    assert powered_mean(metric, labels, documents).error > 1.5 * apart.error


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="no answer has a label"):
        powered_mean([0.1], [None], ["a"])
    with pytest.raises(ValueError, match="not finite"):
        powered_mean([0.1, np.nan], [1.0, None], ["a", "b"])
    with pytest.raises(ValueError, match="give one of each"):
        powered_mean([0.1], [1.0], [])
