"""A scored run folder as comparisons and leaderboards read it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from eval.errors import UserError
from eval.records.disk import read_json
from eval.records.journal import fingerprint, sha256
from eval.records.read_run import open_run, read_inputs
from eval.records.run_folder import RunFolder
from eval.records.schema import ExampleRecord, ExampleScore, Prediction, RunRecord, Scores
from eval.records.typed import from_json, to_json
from eval.scoring.consistency import find_contradiction
from eval.scoring.examples import SCORING_VERSION, Setting, setting_of
from eval.scoring.metric_files import check_used


def predictions_digest(predictions: Iterable[Prediction], think_end_token: str | None) -> str:
    """Return a digest of predictions and of which part of them is scored, used to detect stale scores."""
    lines = sorted([*one.key, one.fingerprint, *(answer.text for answer in one.answers)] for one in predictions)
    return fingerprint(lines, think_end_token) if think_end_token else fingerprint(lines)


@dataclass(frozen=True, kw_only=True)
class ScoredRun:
    """What was asked, answered and scored.

    Examples are by task and id, digests of documents by task and document id, the model's lines by setting and id, and
    so are the leads: the first words of what was shown, as many as the answer has, where a metric has a use for them.
    """

    path: Path
    record: RunRecord
    scores: Scores
    examples: Mapping[tuple[str, str], ExampleRecord]
    documents: Mapping[tuple[str, str], str]
    lines: Mapping[Setting, Mapping[str, ExampleScore]]
    leads: Mapping[Setting, Mapping[str, ExampleScore]]
    num_absent: int

    @cached_property
    def content(self) -> dict[tuple[str, str], str]:
        """Return a digest of each example that was answered: its document, query, and references."""
        answered = {(task, name) for (task, _, _), lines in self.lines.items() for name in lines}
        return {
            key: fingerprint(self.documents[key[0], one.document_id], one.query, one.references)
            for key, one in self.examples.items()
            if key in answered
        }


def thinking_of(record: RunRecord) -> Any:
    """Return how thoughts are told from answers, or whether they were switched off; `auto` for neither."""
    thinking = record.identity.thinking
    return str(record.config.get("thinking", "auto")) if thinking is None else to_json(thinking)


def settings_of(record: RunRecord, task: str) -> dict[str, Any]:
    """Return the settings of a task's answers besides model, plan, dtype, template and length, by name."""
    identity, about = record.identity, record.tasks[task]
    return {
        "truncation": identity.truncation,
        "max_new_tokens": about.max_new_tokens,
        "split": about.split,
        "seed": identity.seed,
        **identity.generation,
        **({"stop": [*(identity.generation.get("stop") or ()), *about.stop]} if about.stop else {}),
        **({"shots": about.shots} if about.shots else {}),
        "generation_version": identity.generation_version,
        **({"engine": identity.engine} if identity.engine else {}),
        **({} if thinking_of(record) == "auto" else {"thinking": thinking_of(record)}),
        **({"think_end_token": record.think_end_token} if record.think_end_token else {}),
    }


def read_scored(path: Path) -> ScoredRun:
    """Return a run whose scores are those of its predictions.

    Raises:
        UserError: The folder holds no run, or a file of it cannot be read.
        UserError: It is another kind of run, or its scores are not there, stale, or of another version.
    """
    folder, record = open_run(path)
    again = f"run: python -m eval.score {path}"
    scores, lines = _read_scores(folder, again)
    inputs = read_inputs(folder, record)
    if scores.predictions != predictions_digest(inputs.predictions, record.think_end_token):
        if inputs.dropped:
            raise UserError(f"{path}: {inputs.dropped}; the run's own command makes them again")
        raise UserError(f"the scores in {path} are not those of its predictions; {again}")
    check_used(path, scores.further or {}, again)
    if problem := find_contradiction(record, scores, lines, inputs.examples):
        raise UserError(f"the scores in {path} contradict themselves or its run.json: {problem}; {again}")
    by_setting: dict[Setting, dict[str, ExampleScore]] = {}
    leads: dict[Setting, dict[str, ExampleScore]] = {}
    for line in lines:
        if line.is_model or line.system == "matched_lead":
            of_kind = by_setting if line.is_model else leads
            of_kind.setdefault(setting_of(line), {})[line.id] = line
    return ScoredRun(
        path=path,
        record=record,
        scores=scores,
        examples={(one.task, one.id): one for one in inputs.examples},
        documents={(one.task, one.document_id): sha256(one.text) for one in inputs.documents},
        lines=by_setting,
        leads=leads,
        num_absent=inputs.num_absent,
    )


def _read_scores(folder: RunFolder, again: str) -> tuple[Scores, list[ExampleScore]]:
    path = folder.path
    try:
        content = read_json(path / "scores.json")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} has no scores that can be read ({error}); {again}") from error
    if not isinstance(content, dict) or content.get("scoring_version") != SCORING_VERSION:
        raise UserError(f"{path} was scored by another version of the code; {again}")
    scores = from_json(Scores, content, str(path / "scores.json"), remedy=again)
    try:
        lines = folder.read_lines(ExampleScore, "example_scores.jsonl")
    except UserError as error:
        raise UserError(f"{path} has no scores that can be read ({error}); {again}") from error
    if scores.example_scores != fingerprint(to_json(lines)):
        raise UserError(f"scoring {path} was interrupted, or is at work; {again}")
    return scores, lines
