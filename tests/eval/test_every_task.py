"""Every task from its official file through the main job to a scored prediction, in one run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from eval.run import main
from tasks import TASKS
from tests.helpers.official_files import write_official
from tests.helpers.tiny_models import save_tiny_checkpoint

pytestmark = pytest.mark.usefixtures("no_plots")

SHARED = Path(__file__).parents[3] / "shared" / "data"


def run(tasks: list[str], data: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """Run the tasks, and return the model's result of each."""
    model = save_tiny_checkpoint(folder / "model")
    arguments = (
        f"--model {model} --data {data} --maxlen 1500 --max-new-tokens 4 --limit 1 --threads 1 --truncation middle"
    )
    assert main(["--task", ",".join(tasks), *arguments.split(), "--output", str(folder / "run")]) == 0
    scores = json.loads((folder / "run" / "scores.json").read_text())
    return {
        result["task"]: result
        for result in scores["results"]
        if result["kind"] == "model" and result["subset"] == "all"
    }


def test_every_task_runs_from_its_official_file_to_a_scored_prediction(tmp_path: Path) -> None:
    data, work = tmp_path / "data", tmp_path / "work"
    data.mkdir()
    work.mkdir()
    tasks = [name for name, task in TASKS.items() if task.has_references]
    for task in tasks:
        write_official(task, data)
    results = run(tasks, data, work)
    assert list(results) == tasks
    for name, result in results.items():
        task = TASKS[name]
        assert result["profile"] == task.profile
        assert result["num_examples"] == 1
        assert all(0 <= metric["mean"] <= 1 for metric in result["metrics"].values())
    predictions = [json.loads(line) for line in (work / "run" / "predictions.jsonl").read_text().splitlines()]
    assert [line["task"] for line in predictions] == tasks
    for line in predictions:
        assert line["template"] == TASKS[line["task"]].default_template
        assert line["num_generated_tokens"] >= 1
        assert math.isfinite(line["seconds"])
    recorded = json.loads((work / "run" / "run.json").read_text())["tasks"]
    assert all(recorded[name]["rows"]["num_bad"] == 0 for name in tasks)


def test_real_files_of_scrolls_run_too(tmp_path: Path) -> None:
    data = SHARED
    if not (data / "gov_report").exists() or not (data / "qasper").exists():
        pytest.skip(f"{data} has no gov_report and qasper")
    results = run(["gov_report", "qasper"], data, tmp_path)
    assert {name: result["num_examples"] for name, result in results.items()} == {"gov_report": 1, "qasper": 1}
