"""Shared by tests of measurements and searches."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.tiny_models import save_tiny_checkpoint


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the plots of searches, which take a second a run."""
    monkeypatch.setattr("eval.reporting.placement_report.save_charts", lambda folder, specs, own: [])
