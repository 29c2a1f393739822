"""What the parts of a study measured, without any text: small files to publish, from which its tables follow.

`JSON` files are copied as they are and lines of JSON packed. Prompts, answers and documents stay behind.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path

from eval.records.disk import disk_errors
from eval.studies.folder import DONE, LADDER, StudyFolder
from eval.studies.parts import FINETUNE, PERPLEXITY, PLACEMENT, RUN, Part
from eval.studies.registry import FILE as CLAIMS

# Files of each script that hold no texts; those of answers hold scores and costs by example.
_FILES = {
    RUN: ("run.json", "scores.json", "example_scores.jsonl", LADDER),
    PERPLEXITY: ("run.json", "scores.json", "predictions.jsonl"),
    PLACEMENT: ("run.json", "placement.json", "plan.json"),
    FINETUNE: ("run.json", "steps.jsonl", "evals.jsonl"),
}
_OF_STUDY = ("study.json", CLAIMS, "report.md")


def copy_records(folder: StudyFolder, parts: Sequence[Part], target: Path) -> None:
    """Copy what parts measured that are done, each to a folder under `target`, and the claims and the report.

    Raises:
        UserError: The disk refuses.
    """
    for part in parts:
        if folder.state(part) == DONE:
            for name in _FILES[part.script]:
                _copy(folder.path / part.name / name, target / part.name)
    for name in _OF_STUDY:
        _copy(folder.path / name, target)
    for plot in sorted((folder.path / "plots").glob("*.svg")):
        _copy(plot, target / "plots")


def _copy(source: Path, target: Path) -> None:
    if not source.is_file():
        return
    with disk_errors(target):
        target.mkdir(parents=True, exist_ok=True)
        if source.suffix == ".jsonl":
            # The same lines give the same file.
            (target / f"{source.name}.gz").write_bytes(gzip.compress(source.read_bytes(), mtime=0))
        else:
            (target / source.name).write_bytes(source.read_bytes())
