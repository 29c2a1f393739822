"""Score the predictions of a run folder, write its scores and reports, and print what they come to."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from eval.errors import UserError
from eval.metrics.base import Metric
from eval.records.disk import read_json
from eval.records.journal import fingerprint
from eval.records.read_run import RunInputs, answer_of
from eval.records.run_folder import RunFolder, metric_files
from eval.records.schema import LettersKept, RunRecord, Scores, UsedMetric
from eval.records.typed import to_json
from eval.reporting.run_report import legends, render_full, render_report, write_page
from eval.reporting.short_report import render_short
from eval.reporting.terminal import fill
from eval.scoring.claims import MARGIN
from eval.scoring.comparisons import compare_further, compare_settings
from eval.scoring.depths import found_by_depth
from eval.scoring.examples import SCORING_VERSION, score_examples, summarize
from eval.scoring.flaws import with_flaws
from eval.scoring.further import add_metrics
from eval.scoring.groups import scores_by_group
from eval.scoring.letters import check_letters, count_letters
from eval.scoring.metric_files import values_by_key
from eval.scoring.parity import check_scores
from eval.scoring.profiles import PROFILES
from eval.scoring.scored_run import predictions_digest
from eval.scoring.scrolls import scrolls_score
from eval.scoring.useful import useful_lengths
from eval.scoring.windows import compare_windows


def score_run(
    folder: RunFolder,
    inputs: RunInputs,
    profile: str | None = None,
    margin: float = MARGIN,
    *,
    with_texts: bool,
    accept_ascii_words: bool | None = None,
    metrics: Sequence[Metric] = (),
    metrics_again: bool = False,
    answers_alone: bool = False,
) -> tuple[Scores, list[Path]]:
    """Score the predictions of a run, write scores and reports, and return `scores.json` and the plots.

    The folder is locked. Without a profile each task has its own. With texts, the page shows those of documents,
    references and predictions. With `accept_ascii_words` False, references of which a profile leaves too little are
    refused unless the run accepts them; None refuses none, for a run that was checked before it generated. Further
    metrics score what they did not yet, or all again, and with `answers_alone` no floors and ceilings. Metrics that the
    folder has values of are shown as well.

    Raises:
        UserError: A task has a profile that nobody knows, or that leaves too little of its references.
        UserError: A score is not that of the profile's reference package.
        UserError: The values of a further metric were made in another way, or changed.
    """
    record = inputs.record
    profiles = {task: profile or own for task, own in record.profiles.items()}
    if unknown := [name for name in profiles.values() if name not in PROFILES]:
        raise UserError(
            f"{folder.path / 'run.json'} names the profile '{unknown[0]}'; give one of {', '.join(PROFILES)} with "
            "--profile, or restore the file"
        )
    accepts = bool(accept_ascii_words or record.config.get("accept_ascii_words"))
    letters = _letters_of(inputs, profiles)
    if accept_ascii_words is False and not accepts:
        for task, of_task in letters.items():
            check_letters(f"task '{task}'", profiles[task], of_task)
    by_first_line = [name for name, task in record.tasks.items() if task.scores_first_line]
    system = record.identity.model.label
    answers = [answer_of(one, record.think_end_token) for one in inputs.predictions]
    has_metrics = bool(metrics or metric_files(folder.path))
    scored = score_examples(
        answers, inputs.examples, inputs.documents, profiles, system, by_first_line, with_floors=has_metrics
    )
    scored = replace(scored, scored=with_flaws(scored.scored, record, inputs.examples, inputs.documents))
    parity = check_scores(scored.scored)
    further: dict[str, UsedMetric] = {}
    if has_metrics:
        with_values, further = add_metrics(
            folder.path,
            scored.scored,
            inputs.examples,
            inputs.documents,
            metrics,
            again=metrics_again,
            answers_alone=answers_alone,
        )
        scored = replace(scored, scored=with_values)
    lines = [one.line for one in scored.scored]
    results = summarize(scored.scored, values_by_key(further))
    scores = Scores(
        profiles=profiles,
        scoring_version=SCORING_VERSION,
        predictions=predictions_digest(inputs.predictions, record.think_end_token),
        example_scores=fingerprint(to_json(lines)),
        texts=with_texts,
        yardsticks=scored.baselines,
        results=results,
        comparisons=compare_settings(scored.scored, margin),
        windows=compare_windows(scored.scored, margin) or None,
        scrolls_score=scrolls_score(results, Counter(example.task for example in inputs.examples)),
        letters=letters,
        accept_ascii_words=accepts,
        parity=parity,
        further=further or None,
        further_comparisons=compare_further(scored.scored, further, margin) if further else None,
        useful_lengths=useful_lengths(scored.scored, margin) or None,
        depths=found_by_depth(answers, inputs.examples, profiles) or None,
        groups=scores_by_group(scored.scored, inputs.examples) or None,
    )
    folder.write_lines("example_scores.jsonl", lines)
    folder.write_text("report.md", render_report(record, scores, inputs.notes))
    plots = write_page(folder, inputs, scores, lines, with_texts=with_texts)
    # The last of all: until it is there, the folder's scores are not those that it describes, and are refused.
    folder.write_json("scores.json", scores)
    return scores, plots


def _letters_of(inputs: RunInputs, profiles: Mapping[str, str]) -> dict[str, LettersKept]:
    """Return what the profiles leave of the references of each task."""
    references: dict[str, list[str]] = defaultdict(list)
    for example in inputs.examples:
        references[example.task] += example.references
    return {task: count_letters(profiles[task], of_task) for task, of_task in references.items()}


def print_scores(
    folder: RunFolder, inputs: RunInputs, scores: Scores, *, is_full: bool = False, is_explained: bool = False
) -> None:
    """Print what a run scored, and last of all what that means and where its page is.

    In full, with all tables of the report; explained, with what their columns mean.
    """
    record = inputs.record
    parts = [render_full(record, scores), "\n".join(map(fill, inputs.notes))] if is_full else []
    parts += map(fill, legends(scores)) if is_explained else []
    print("\n" + "\n\n".join([*filter(None, parts), render_short(inputs, scores)]))
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
