"""What tests of several folders share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
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
def refuses_simd(
    no_weights: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, Callable[[], int]], None]:
    """Check that a command on a machine without kernels of our own refuses one for a topic, before weights load."""

    def check(topic: str, command: Callable[[], int]) -> None:
        monkeypatch.setenv("MASFORMER_WAYS", f"{topic}=simd")
        monkeypatch.setattr("masformer.compiled.why_not", lambda source: "no C++ compiler")
        assert command() == 2
        [line] = capsys.readouterr().err.strip().splitlines()
        assert "MASFORMER_WAYS names 'simd', which this machine does not have: no C++ compiler; leave it out" in line

    return check


@pytest.fixture
def fresh_accelerator() -> Iterator[None]:
    """Let each test set up accelerate anew, whose state belongs to the process."""
    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
