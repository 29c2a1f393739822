"""Single steps of a training."""

from __future__ import annotations

import itertools

import pytest

from eval.training.trainer import learning_rate_at


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [learning_rate_at(step, 1.0, 4, 20, "cosine") for step in range(1, 21)]
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rates[4] == max(rates) == 1.0
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[4:]))
    assert 0 < rates[-1] < 0.02
    assert learning_rate_at(20, 1.0, 4, 20, "constant") == 1.0
    assert learning_rate_at(13, 1.0, 4, 20, "linear") == pytest.approx(8 / 16)
