"""Shared by tests of trainings."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.tiny_models import save_tiny_checkpoint
from tests.helpers.trainings import write_rows


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "train.jsonl", 12)


@pytest.fixture
def least(model: Path, data: Path, tmp_path: Path) -> list[str]:
    """Arguments of a training that works."""
    arguments = (
        f"--task arxiv --model {model} --data {data} --maxlen 400 --threads 1 --learning-rate 1e-3 --max-steps 6"
    )
    return [*arguments.split(), "--held-out", "0.2", "--eval-every", "2", "--output", str(tmp_path / "run")]
