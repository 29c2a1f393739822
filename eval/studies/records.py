"""What the parts of a study measured, without any text of documents or answers: small files to publish.

Lines of JSON are packed as they are. In JSON files and the report, references that are a baseline (`common_answer`) and
rows that could not be used (`bad`) are cut. An absolute path begins at the study's folder, and elsewhere is the name of
a file. `claims.json` is copied as it is, since its digests are of its words.

From the copies follow, without the folders of the parts:

- means, intervals and paired differences of scores: `example_scores.jsonl.gz`;
- rungs of the ladder, and claims about them: `ladder.json`;
- perplexities and their ratios, with intervals where documents are in no clusters: `predictions.jsonl.gz`;
- losses of trainings by step: `steps.jsonl.gz` and `evals.jsonl.gz`.

What needs texts does not: scores of answers, repetition. Nor do costs by example, the intervals of plans on held-out
documents, the report, and tables and pictures of the gallery, which are copies: `eval.study --report` reads the folders
of the parts.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.errors import UserError
from eval.records.disk import disk_errors, parse_json, write_whole
from eval.studies.folder import DONE, LADDER, StudyFolder
from eval.studies.parts import FINETUNE, PERPLEXITY, PLACEMENT, RUN, Part
from eval.studies.registry import FILE as CLAIMS

# Files of each script that hold no document and no answer; those of answers hold scores by example.
_FILES = {
    RUN: ("run.json", "scores.json", "example_scores.jsonl", LADDER),
    PERPLEXITY: ("run.json", "scores.json", "predictions.jsonl"),
    PLACEMENT: ("run.json", "placement.json", "plan.json", "plan-majority.json"),
    FINETUNE: ("run.json", "steps.jsonl", "evals.jsonl"),
}
_OF_STUDY = ("study.json", CLAIMS, "report.md")
# What ends a path within a text; before it there is no host, no closing tag and no part of a relative path.
_END = r"\s'\"`,;:|<>()\[\]"
_ABSOLUTE = re.compile(rf"(?<![\w.:/~<-])/(?:[^/{_END}]+/)+[^/{_END}]*")


def copy_records(folder: StudyFolder, parts: Sequence[Part], target: Path) -> None:
    """Copy what parts measured that are done, each to a folder under `target`, and the claims and the report.

    Raises:
        UserError: The disk refuses, or a file is broken.
    """
    for name in _OF_STUDY:  # first: `check_target` knows a folder of copies by study.json, also after a kill
        _copy(folder.path / name, target, folder.path)
    for part in parts:
        if folder.state(part) == DONE:
            for name in _FILES[part.script]:
                _copy(folder.path / part.name / name, target / part.name, folder.path)
    for name in ("leaderboard.md", "leaderboard.csv"):
        _copy(folder.path / "gallery" / name, target / "gallery", folder.path)
    for plots in ("plots", "gallery/plots"):
        pictures = {plot.name: plot for plot in sorted((folder.path / plots).glob("*.svg"))}
        with disk_errors(target):
            # Of a report before this one; without one, those are left that the copy of an earlier study links to.
            for plot in (target / plots).glob("*.svg") if (folder.path / "report.md").is_file() else ():
                if plot.name not in pictures:
                    plot.unlink()
        for plot in pictures.values():
            _copy(plot, target / plots, folder.path)


def check_target(target: Path, study: Path) -> None:
    """Check that copies would stand in the place of earlier copies alone.

    Args:
        target: Folder of the copies; need not exist.
        study: Folder of the study.

    Raises:
        UserError: It is a file, within the folder of the study, or holds something else.
    """
    if target.exists() and not target.is_dir():
        raise UserError(f"--records {target} is a file; give a folder")
    if target.resolve().is_relative_to(study.resolve()):
        raise UserError(f"--records {target} is within the study's folder {study}; give one elsewhere")
    names = {one.name for one in target.iterdir()} if target.is_dir() else set()
    # A folder that commands work in has a lock, and a copy has none.
    is_copy = names.isdisjoint((".lock", "run.json")) and _OF_STUDY[0] in names
    if not is_copy and any(name in (".lock", "run.json") or not name.startswith(".") for name in names):
        raise UserError(f"--records {target} holds other files than copies of a study's; give another folder")


def _copy(source: Path, target: Path, study: Path) -> None:
    if not source.is_file():
        return
    content, name = source.read_bytes(), source.name
    if source.suffix == ".jsonl":
        content, name = gzip.compress(content, mtime=0), f"{name}.gz"  # the same lines give the same file
    elif source.suffix == ".json" and name != CLAIMS:
        content = _published(source, content, study)
    elif source.suffix == ".md":
        content = without_paths(content.decode(), study).encode()
    write_whole(target, name, content)


def _published(source: Path, content: bytes, study: Path) -> bytes:
    """Return a JSON file without texts of the data and without absolute paths."""
    try:
        parsed = parse_json(content)
    except ValueError as error:
        raise UserError(f"{source} cannot be read: {error}; run its part again") from error
    return (json.dumps(_cut(parsed, study), indent=2, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


def _cut(content: Any, study: Path) -> Any:
    if isinstance(content, dict):
        cut = {key: _cut(value, study) for key, value in content.items()}
        if "common_answer" in cut:
            cut["common_answer"] = None
        if isinstance(cut.get("bad"), list):
            cut["bad"] = []
        return cut
    if isinstance(content, list):
        return [_cut(one, study) for one in content]
    return without_paths(content, study) if isinstance(content, str) else content


def without_paths(text: str, study: Path) -> str:
    """Return a text, or a path alone, in which paths begin at the study's folder, and other absolute ones are names."""
    roots = sorted({str(study.absolute()), str(study.resolve())}, key=len, reverse=True)
    if text.startswith("/") and "/" in text[1:] and "\n" not in text:  # a path may have spaces
        path = Path(text)
        root = next((root for root in roots if path.is_relative_to(root)), None)
        if root is not None:
            return str(path.relative_to(root))
        if path.exists() or " " not in text:
            return path.name
    for root in roots:
        inside = re.compile(rf"(?<![\w./~-]){re.escape(root)}(?:/(?=[^{_END}])|(?=/?(?:[{_END}]|$)))")
        text = inside.sub(lambda found: "" if found[0].endswith("/") else ".", text)
    return _ABSOLUTE.sub(lambda found: Path(found[0]).name, text)
