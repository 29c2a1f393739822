"""Scores of runs as a section of a card: of the data set that a run becomes, or of the checkpoint that it is of."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from eval.errors import UserError
from eval.interop.samples import model_results
from eval.records.disk import read_json, write_whole
from eval.records.read_run import read_inputs
from eval.records.run_folder import RunFolder
from eval.records.schema import RunRecord
from eval.reporting.checks import all_checks
from eval.reporting.finding import meanings
from eval.reporting.short_report import score_table
from eval.reporting.tables import as_markdown, describe_intervals, markdown
from eval.scoring.profiles import describe_profiles
from eval.scoring.scored_run import ScoredRun

_CARD = "README.md"


def describe_scores(run: ScoredRun) -> str:
    """Return a run's scores in Markdown: what they are, a table, and what a reader must know of them."""
    record, scores = run.record, run.scores
    models = sorted(model_results(run).values(), key=lambda one: (one.task, one.template, one.maxlen))
    profiles = {result.task: result.profile for result in models}
    about = f"{describe_profiles(profiles)}; {describe_intervals(models)}."
    inputs = read_inputs(RunFolder(run.path), record)
    notes = [*(_describe_data(task, record) for task in record.tasks), *meanings(record, scores)]
    session = record.sessions[-1]
    made = f"{record.identity.dtype}, {session.machine.device}, {(session.finished or session.started)[:10]}"
    notes += [*all_checks(inputs, scores), f"Computed in {made}."]
    table = as_markdown(score_table(models, scores.results))
    return "\n\n".join([markdown(about), table, "\n".join(f"- {markdown(note)}" for note in notes)])


def _describe_data(task: str, record: RunRecord) -> str:
    about = record.tasks[task]
    pinned = about.source.get("revision") or about.source.get("version") or ""
    name = f"{about.source['name']} {pinned}".strip()
    return f"{task}: {about.description}; {name}, split {about.split}; licence: {about.licence or 'not stated'}."


def add_to_checkpoint(runs: Sequence[ScoredRun], folder: Path) -> Path:
    """Write the scores of runs to the card of the converted checkpoint that they are of, in place of former ones.

    Raises:
        SaveError: The folder holds no converted checkpoint.
        UserError: A run is of another model or plan.
    """
    from masformer.checkpoints.card import with_scores
    from masformer.checkpoints.saving import checkpoint_files

    checkpoint_files(folder)
    for run in runs:
        _check_model(run, folder)
    card = folder / _CARD
    try:
        text = card.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{card} cannot be read ({error}); convert the checkpoint again") from error
    scores = "\n\n".join(map(describe_scores, runs))
    return write_whole(folder, _CARD, with_scores(text, scores).encode(errors="replace"))


def _check_model(run: ScoredRun, folder: Path) -> None:
    model, plan = run.record.identity.model, run.record.identity.plan
    again = f"run it with --model {folder}"
    if model.adapter is not None or model.quantize is not None or not model.files:
        raise UserError(f"{run.path} is of {model.label} and not of the checkpoint in {folder}; {again}")
    for name, digest in model.files.items():
        if not (folder / name).is_file() or _digest(folder / name) != digest:
            raise UserError(
                f"{run.path} is of {model.label}, and not of the checkpoint in {folder}: {name} is not the same; "
                f"{again}"
            )
    stored = read_json(folder / "config.json")["masformer"].get("plan")
    if run.record.config.get("plan", "auto") != "auto" and plan != stored:
        raise UserError(f"{run.path} has another plan than the checkpoint in {folder}; {again} and without --plan")


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
