"""Score the predictions of a run folder, write its scores and reports, and print what they come to."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from eval.errors import UserError
from eval.records.disk import read_json
from eval.records.journal import fingerprint
from eval.records.read_run import RunInputs, answer_of
from eval.records.run_folder import RunFolder
from eval.records.schema import RunRecord, Scores
from eval.records.typed import to_json
from eval.reporting.run_report import render_full, render_report, write_page
from eval.reporting.short_report import render_short
from eval.scoring.claims import MARGIN
from eval.scoring.comparisons import compare_settings
from eval.scoring.examples import SCORING_VERSION, score_examples, summarize
from eval.scoring.profiles import PROFILES
from eval.scoring.scored_run import predictions_digest
from eval.scoring.scrolls import scrolls_score


def score_run(
    folder: RunFolder, inputs: RunInputs, profile: str | None = None, margin: float = MARGIN, *, with_texts: bool
) -> tuple[Scores, list[Path]]:
    """Score the predictions of a run, write scores and reports, and return `scores.json` and the plots.

    The folder is locked. Without a profile each task has its own. With texts, the page shows those of documents,
    references and predictions.

    Raises:
        UserError: A task has a profile that nobody knows.
    """
    record = inputs.record
    profiles = {task: profile or own for task, own in record.profiles.items()}
    if unknown := [name for name in profiles.values() if name not in PROFILES]:
        raise UserError(
            f"{folder.path / 'run.json'} names the profile '{unknown[0]}'; give one of {', '.join(PROFILES)} with "
            "--profile, or restore the file"
        )
    by_first_line = [name for name, task in record.tasks.items() if task.scores_first_line]
    system = record.identity.model.reference
    answers = [answer_of(one, record.think_end_token) for one in inputs.predictions]
    scored = score_examples(answers, inputs.examples, inputs.documents, profiles, system, by_first_line)
    lines = [one.line for one in scored.scored]
    results = summarize(scored.scored)
    scores = Scores(
        profiles=profiles,
        scoring_version=SCORING_VERSION,
        predictions=predictions_digest(inputs.predictions, record.think_end_token),
        example_scores=fingerprint(to_json(lines)),
        texts=with_texts,
        yardsticks=scored.baselines,
        results=results,
        comparisons=compare_settings(scored.scored, margin),
        scrolls_score=scrolls_score(results, Counter(example.task for example in inputs.examples)),
    )
    folder.write_lines("example_scores.jsonl", lines)
    folder.write_text("report.md", render_report(record, scores, inputs.notes))
    plots = write_page(folder, inputs, scores, lines, with_texts=with_texts)
    # The last of all: until it is there, the folder's scores are not those that it describes, and are refused.
    folder.write_json("scores.json", scores)
    return scores, plots


def print_scores(folder: RunFolder, inputs: RunInputs, scores: Scores, *, is_full: bool = False) -> None:
    """Print what a run scored and where its page is; in full with all tables of the report and their legends."""
    render = render_full(inputs.record, scores, inputs.notes) if is_full else render_short(inputs, scores)
    print(f"\n{render}")
    print(f"report: {folder.path / 'report.html'}" + (f"\nfolder: {folder.path}" if is_full else ""))


def has_texts(path: Path, record: RunRecord) -> bool:
    """Return whether the page of a run may hold texts: the last session's setting, or else as the page is now."""
    setting = record.config.get("texts")
    return had_texts(path) if setting is None else bool(setting)


def had_texts(path: Path) -> bool:
    """Return whether the page of a run folder holds texts, which is the default of a run without scores."""
    try:
        scores = read_json(path / "scores.json")
    except (OSError, ValueError):
        return True
    return bool(scores.get("texts", True)) if isinstance(scores, dict) else True
