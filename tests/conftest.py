"""What tests of several folders share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from accelerate.state import AcceleratorState, GradientState

from masformer.checkpoints.open import Checkpoint
from tests.helpers.properties import load_profiles

load_profiles()
# No test depends on what is faster on its machine; those about choices say so.
os.environ.setdefault("MASFORMER_WAYS", "default")
# Nor on the terminal that they are started from.
os.environ["COLUMNS"] = "100"


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


@pytest.fixture
def fresh_accelerator() -> Iterator[None]:
    """Let each test set up accelerate anew, whose state belongs to the process."""
    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
