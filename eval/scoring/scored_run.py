"""A scored run folder as comparisons and leaderboards read it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from eval.errors import UserError
from eval.records.journal import fingerprint, prediction_key, read_lines
from eval.records.read_run import open_run, read_inputs
from eval.scoring.examples import SCORING_VERSION, Setting


def predictions_digest(predictions: Iterable[Mapping[str, Any]]) -> str:
    """Return a digest of what was scored, by which scores that are not of these predictions are told."""
    return fingerprint(sorted([*prediction_key(line), line["fingerprint"], line["text"]] for line in predictions))


@dataclass(frozen=True, kw_only=True)
class ScoredRun:
    """What was asked, answered and scored.

    Attributes:
        path: Of the folder.
        record: `run.json`.
        scores: `scores.json`.
        examples: Lines of `examples.jsonl` by task and id.
        documents: Digests of their texts by task and document id.
        lines: Lines of `example_scores.jsonl` of the model, by task, template and maxlen, then by id.
        num_absent: Predictions that are not there yet.
    """

    path: Path
    record: Mapping[str, Any]
    scores: Mapping[str, Any]
    examples: Mapping[tuple[str, str], Mapping[str, Any]]
    documents: Mapping[tuple[str, str], str]
    lines: Mapping[Setting, Mapping[str, Mapping[str, Any]]]
    num_absent: int

    @cached_property
    def content(self) -> dict[tuple[str, str], str]:
        """Return a digest of each example that was answered: its document, query, and references."""
        answered = {(task, name) for (task, _, _), lines in self.lines.items() for name in lines}
        return {
            key: fingerprint(self.documents[key[0], line["document_id"]], line["query"], line["references"])
            for key, line in self.examples.items()
            if key in answered
        }


def settings_of(record: Mapping[str, Any], task: str) -> dict[str, Any]:
    """Return the settings of a task's answers besides model, plan, dtype, template and length, by name."""
    identity, about = record["identity"], record["tasks"][task]
    return {
        "truncation": identity["truncation"],
        "max_new_tokens": about["max_new_tokens"],
        "split": about["split"],
        "seed": identity.get("seed"),
        **identity.get("generation", {}),
        "generation_version": identity.get("generation_version"),
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def read_scored(path: Path) -> ScoredRun:
    """Return a run whose scores are those of its predictions.

    Raises:
        UserError: The folder holds no run, or a file of it cannot be read.
        UserError: It is another kind of run, or its scores are not there, stale, or of another version.
    """
    folder, record = open_run(path)
    again = f"run: python -m eval.score {path}"
    try:
        scores = json.loads((path / "scores.json").read_text(encoding="utf-8"))
        lines = read_lines(path / "example_scores.jsonl")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} has no scores that can be read ({error}); {again}") from error
    if not isinstance(scores, dict) or scores.get("scoring_version") != SCORING_VERSION:
        raise UserError(f"{path} was scored by another version of the code; {again}")
    if scores.get("example_scores") != fingerprint(lines):
        raise UserError(f"scoring {path} was interrupted, or is at work; {again}")
    inputs = read_inputs(folder, record)
    if scores.get("predictions") != predictions_digest(inputs.predictions):
        raise UserError(f"the scores in {path} are not those of its predictions; {again}")
    by_setting: dict[Setting, dict[str, Mapping[str, Any]]] = {}
    for line in lines:
        if line["is_model"]:
            by_setting.setdefault((line["task"], line["template"], line["maxlen"]), {})[line["id"]] = line
    return ScoredRun(
        path=path,
        record=record,
        scores=scores,
        examples={(line["task"], line["id"]): line for line in inputs.examples},
        documents={(line["task"], line["document_id"]): _digest(line["text"]) for line in inputs.documents},
        lines=by_setting,
        num_absent=inputs.num_absent,
    )
