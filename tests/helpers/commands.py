"""What tests of the scripts share: made-up documents, files of a run folder, launches, and errors of one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TEXT = "long documents hold many words and every word costs a token of context to read"
WORDS = TEXT.split()


def document(seed: int, num_words: int) -> str:
    return " ".join(WORDS[(seed * 7 + i * (seed + 3)) % len(WORDS)] for i in range(num_words))


def read(folder: Path, name: str) -> Any:
    """Return what a JSON or JSON lines file of a run folder holds."""
    content = (folder / name).read_text()
    return [json.loads(line) for line in content.splitlines()] if name.endswith("jsonl") else json.loads(content)


def launch(
    script: str, arguments: Sequence[str], *launcher: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a script of `eval/` by `accelerate launch`."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "MASTER_"))} | environment
    # Port 0 is any free one, so that tests may run side by side.
    port = ["--main_process_port", "0"] if {"--multi_gpu", "--config_file"} & set(launcher) else []
    command = ["-m", "accelerate.commands.accelerate_cli", "launch", "-q", *launcher, *port, script, *arguments]
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=300, check=False
    )


def error_of(
    main: Callable[[Sequence[str]], int], arguments: Sequence[str], capsys: pytest.CaptureFixture[str], *parts: str
) -> list[str]:
    """Check that a script ends with status 2 and one line of error that holds the parts; return all that it said."""
    capsys.readouterr()
    assert main(arguments) == 2
    said = capsys.readouterr().err.strip().splitlines()
    errors = [line for line in said if line.startswith("error: ")]
    assert len(errors) == 1, said
    assert not any("Traceback" in line for line in said)
    for part in parts:
        assert part in errors[0], errors[0]
    return said
