"""What tests of several scripts share."""

from __future__ import annotations

from typing import Any

import pytest

from masformer.checkpoints.open import Checkpoint


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the files of plots, which are drawn and looked at in tests of their own: they take a second a run."""
    monkeypatch.setattr("eval.reporting.run_report.save_charts", lambda folder, specs, own: [])


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test when weights are loaded."""

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were loaded before the input was checked")

    monkeypatch.setattr(Checkpoint, "load_model", fail)
