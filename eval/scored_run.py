"""A scored run folder as comparisons and leaderboards read it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from eval.command import ScoringError
from eval.journal import fingerprint, read_lines
from eval.run_folder import RunFolder, keys_of
from eval.scoring import SCORING_VERSION, Setting


def predictions_digest(predictions: Mapping[Any, Mapping[str, Any]]) -> str:
    """Return a digest of what was scored, by which scores that are not of these predictions are told."""
    return fingerprint(sorted([*key, line["fingerprint"], line["text"]] for key, line in predictions.items()))


@dataclass(frozen=True, kw_only=True)
class ScoredRun:
    """What was asked, answered and scored.

    Attributes:
        path: Of the folder.
        record: `run.json`.
        scores: `scores.json`.
        examples: Lines of `examples.jsonl` by task and id.
        lines: Lines of `example_scores.jsonl` of the model, by task, template and maxlen, then by id.
        num_absent: Predictions that are not there yet.
    """

    path: Path
    record: Mapping[str, Any]
    scores: Mapping[str, Any]
    examples: Mapping[tuple[str, str], Mapping[str, Any]]
    lines: Mapping[Setting, Mapping[str, Mapping[str, Any]]]
    num_absent: int

    @cached_property
    def content(self) -> dict[tuple[str, str], str]:
        """Return a digest of each example that was answered: its document, query, and references."""
        answered = {(task, name) for (task, _, _), lines in self.lines.items() for name in lines}
        texts = {
            (line["task"], line["document_id"]): hashlib.sha256(line["text"].encode(errors="surrogatepass")).hexdigest()
            for line in RunFolder(self.path).read_documents()
        }
        return {
            key: fingerprint(texts[key[0], line["document_id"]], line["query"], line["references"])
            for key, line in self.examples.items()
            if key in answered
        }


def read_scored(path: Path) -> ScoredRun:
    """Return a run whose scores are those of its predictions.

    Raises:
        RunFolderError: The folder holds no run, or a file of it cannot be read.
        ScoringError: It is another kind of run, or its scores are not there, stale, or of another version.
    """
    folder = RunFolder(path)
    record = folder.read_run()
    if record is None:
        raise ScoringError(f"{path} holds no run; give the folder of one")
    if "grouping" not in record:
        raise ScoringError(f"{path} is a training or a measurement of perplexity; give a run of eval/run.py")
    again = f"run: python -m eval.score {path}"
    try:
        scores = json.loads((path / "scores.json").read_text(encoding="utf-8"))
        lines = read_lines(path / "example_scores.jsonl")
    except (OSError, ValueError) as error:
        raise ScoringError(f"{path} has no scores that can be read ({error}); {again}") from error
    if scores.get("scoring_version") != SCORING_VERSION:
        raise ScoringError(f"{path} was scored by another version of the code; {again}")
    predictions = folder.read_predictions().lines
    if scores["predictions"] != predictions_digest(predictions):
        raise ScoringError(f"the scores in {path} are not those of its predictions; {again}")
    by_setting: dict[Setting, dict[str, Mapping[str, Any]]] = {}
    for line in lines:
        if line["is_model"]:
            by_setting.setdefault((line["task"], line["template"], line["maxlen"]), {})[line["id"]] = line
    if sum(map(len, by_setting.values())) != len(predictions):
        raise ScoringError(f"{path / 'example_scores.jsonl'} lacks predictions; {again}")
    examples = folder.read_examples()
    return ScoredRun(
        path=path,
        record=record,
        scores=scores,
        examples={(line["task"], line["id"]): line for line in examples},
        lines=by_setting,
        num_absent=len({*keys_of(record, examples)} - predictions.keys()),
    )
