"""Gradients that are no numbers end a training, but not where the scaler of float16 looks for its scale."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from eval.finetune import main
from eval.records.schema import TrainingStep
from eval.training.trainer import Trainer
from tests.helpers.trainings import expect_error, lines

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


@pytest.fixture
def infinite(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each norm of gradients be infinite."""
    monkeypatch.setattr(Accelerator, "clip_grad_norm_", lambda *_: torch.tensor(torch.inf))


@pytest.mark.usefixtures("infinite")
def test_infinite_gradients_name_step_examples_and_dtype(least: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    expect_error(least, capsys, "gradients are not finite at step 1 (train-", ") in float32", "--learning-rate")


@pytest.mark.usefixtures("infinite")
def test_a_scaler_that_looks_for_its_scale_ends_nothing(
    least: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Trainer.step

    def scaled(trainer: Trainer, *arguments: Any) -> TrainingStep:
        accelerator: Any = trainer.accelerator
        accelerator.scaler = SimpleNamespace(scale=lambda loss: loss)
        try:
            return original(trainer, *arguments)
        finally:
            accelerator.scaler = None

    monkeypatch.setattr(Trainer, "step", scaled)
    assert main(least) == 0
    assert [line["grad_norm"] for line in lines(tmp_path / "run", "steps.jsonl")] == [None] * 6
    assert "Infinity" not in (tmp_path / "run" / "steps.jsonl").read_text()
