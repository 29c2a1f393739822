"""Data, logs and launches of small trainings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from eval.finetune import main
from tests.helpers.texts import read, text

ROOT = Path(__file__).parents[2]
COMPARED = {
    "steps.jsonl": ("step", "loss", "grad_norm", "learning_rate", "num_tokens"),
    "evals.jsonl": ("step", "loss"),
}


def write_rows(file: Path, count: int, **changes: Any) -> Path:
    rows = [{"article": text(i, 12 + 5 * i), "abstract": text(i + 50, 4), **changes} for i in range(count)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    """Return what does not differ between two trainings that are the same: all but times."""
    return [{key: line[key] for key in COMPARED[name]} for line in read(folder, name)]


def launch(arguments: list[str], *launcher: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "MASTER_"))} | environment
    command = ["-m", "accelerate.commands.accelerate_cli", "launch", "-q", *launcher, "eval/finetune.py", *arguments]
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=300, check=False
    )


def expect_error(arguments: list[str], capsys: pytest.CaptureFixture[str], *parts: str) -> None:
    """Assert that a training ends with status 2 and one line that holds the parts."""
    capsys.readouterr()
    assert main(arguments) == 2
    found = capsys.readouterr().err.splitlines()
    errors = [line for line in found if line.startswith("error: ")]
    assert len(errors) == 1, found
    assert not any("Traceback" in line for line in found)
    for part in parts:
        assert part in errors[0], errors[0]
