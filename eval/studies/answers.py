"""Sections of a study's report about answers: scores over length, and how much answers repeat themselves."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

from eval.errors import UserError
from eval.metrics.diagnostics import NGRAM, repeated_share
from eval.records.schema import ExampleScore, Prediction, Result
from eval.reporting.charts import Spec, length_curves
from eval.reporting.columns import BASELINE_STYLES, COMPARISON_LEGEND, COUNTS, legend_of, percent
from eval.reporting.tables import Rows, comparison_table, select
from eval.reporting.useful_lengths import USEFUL
from eval.scoring.baselines import ORACLES, num_words
from eval.scoring.compare_runs import check_comparable, differing_settings, name_row, rows_of
from eval.scoring.comparisons import Compare, compare_lines
from eval.scoring.examples import Setting, values_of
from eval.scoring.profiles import headline, metric_name
from eval.scoring.scored_run import ScoredRun, read_scored
from eval.scoring.significance import mean_interval
from eval.studies.charts import length_title
from eval.studies.section import Draft

Runs = Mapping[str, ScoredRun]  # by part
Row = tuple[str, Compare]  # what is compared with what

# What stands beside scores: with as many words as each answer, or, in runs of earlier versions, as references.
_BESIDE = ("matched_oracle", "matched_lead")
_BESIDE_0_1 = ("visible_oracle", "lead")
_LABEL = "part: task, template, maxlen"
_REPEATED = "repeated"
_REPETITION_LEGEND = (
    f"repeated {NGRAM}-grams: of the runs of {NGRAM} words of an answer, the share that stands in it before; answers "
    "of fewer words have none and do not count. words: of an answer, between white space."
)


def write_scores(draft: Draft) -> None:
    """Write scores by length beside those of baselines, and paired differences from the reference."""
    runs = _read(draft)
    for task, template in sorted({setting[:2] for run in runs.values() for setting in run.lines}):
        results = {name: _results(run, task, template) for name, run in runs.items()}
        draft.table(f"Scores: {task}, template {template}", _score_rows(results))
        label = draft.section.label
        curves = [replace(one, system=label(name)) for name in results for one in select(results[name], kind="model")]
        baselines = results[draft.reference or next(iter(runs))]
        metric = headline(curves[0].profile)
        beside = [one for one in baselines if one.system in _beside(baselines)]
        spec = length_curves([*curves, *beside], metric) | {"title": _title([*curves, *beside], metric)}
        draft.chart(f"{task} {template}", f"{metric_name(metric)} over length: {task}, template {template}", spec)
    _write_differences(draft, runs)
    draft.table("Longest maxlen against the shortest, by part", _table(_length_rows(runs)))
    useful = _useful_rows(runs)
    draft.table("Useful length, by part", useful)
    draft.say(f"{legend_of(COUNTS)} {COMPARISON_LEGEND}{f' {legend_of(USEFUL[2:])}' if len(useful) > 1 else ''}")


def _useful_rows(runs: Runs) -> Rows:
    rows = [["part: task, template", *(column.heading for column in USEFUL)]]
    for name, run in runs.items():
        for one in run.scores.useful_lengths or ():
            rows.append([f"{name}: {one.task}, {one.template}", *(column.cell(one) for column in USEFUL)])
    return rows


def _title(results: Sequence[Result], metric: str) -> Spec:
    """Return the title of a chart: first and last scores of the first model, and of the oracle."""
    scores: dict[str, dict[int, float | None]] = {}
    for one in results:
        if one.system == results[0].system or one.system in ORACLES:
            scores.setdefault(one.system.replace("_", " "), {})[one.maxlen] = one.metrics[metric].mean
    return length_title(scores)


def _read(draft: Draft) -> Runs:
    return {name: read_scored(folder) for name, folder in draft.folders.items()}


def _results(run: ScoredRun, task: str, template: str) -> list[Result]:
    return select(run.scores.results, task=task, template=template, subset="all")


def _score_rows(results: Mapping[str, Sequence[Result]]) -> Rows:
    scored = [(name, one) for name, some in results.items() for one in some if one.kind == "model"]
    metrics = list(scored[0][1].metrics)
    systems = _beside([one for some in results.values() for one in some])
    beside = [BASELINE_STYLES[system].heading for system in systems]
    rows = [["maxlen", "part", *(column.heading for column in COUNTS), *map(metric_name, metrics), *beside]]
    for name, one in sorted(scored, key=lambda pair: pair[1].maxlen):
        counts = [column.cell(one) for column in COUNTS]
        baselines = {other.system: other.metrics for other in select(results[name], maxlen=one.maxlen)}
        beside = [percent(baselines.get(system, {}).get(headline(one.profile))) for system in systems]
        rows.append([f"{one.maxlen:,}", name, *counts, *(percent(one.metrics.get(key)) for key in metrics), *beside])
    return rows


def _beside(results: Sequence[Result]) -> Sequence[str]:
    found = {one.system for one in results}  # none of these for needles
    return [name for name in _BESIDE if name in found] or [name for name in _BESIDE_0_1 if name in found]


def _table(rows: Sequence[Row]) -> Rows:
    """Return a table of comparisons, at whose level all claims hold."""
    names = iter([name for name, _ in rows])
    return comparison_table(compare_lines([compare for _, compare in rows]), _LABEL, lambda _: next(names))


def _write_differences(draft: Draft, runs: Runs) -> None:
    """Write the table of paired differences from the reference."""
    if draft.reference is None:
        return
    before = runs[draft.reference]
    rows: list[Row] = []
    for name in draft.others:
        try:
            check_comparable(before, runs[name])
            compared = rows_of(before, runs[name], _headlines(before, runs[name]))
        except UserError as error:
            draft.say(f"`{name}` is not compared with `{draft.reference}`: {error}")
            continue
        rows += _headline_rows(name, compared)
        for setting, (first, second) in differing_settings(before, runs[name]).items():
            draft.say(f"`{name}` differs from `{draft.reference}` in {setting}: {second} instead of {first}.")
    draft.table(f"Differences from {draft.reference}", _table(rows))


def _length_rows(runs: Runs) -> list[Row]:
    """Return each part at its shortest and its longest maxlen."""
    rows: list[Row] = []
    for name, run in runs.items():
        for task, template in sorted({setting[:2] for setting in run.lines}):
            lengths = [setting[2] for setting in run.lines if setting[:2] == (task, template)]
            profile = run.scores.profiles[task]
            first, last = (run.lines[task, template, maxlen] for maxlen in (min(lengths), max(lengths)))
            row = Compare(first, last, headline(profile), profile, is_same_model=True)
            if len(lengths) > 1 and row.shared():
                rows.append((f"{name}: {name_row(row)}", row))
    return rows


def _headline_rows(name: str, compared: Sequence[Compare]) -> list[Row]:
    """Return the comparisons about all examples and the headline of each task, under the name of a part."""
    return [
        (f"{name}: {name_row(one)}", one)
        for one in compared
        if one.subset == "all" and one.metric == headline(str(one.profile))
    ]


def _headlines(*runs: ScoredRun) -> list[str]:
    return list(dict.fromkeys(headline(profile) for run in runs for profile in run.scores.profiles.values()))


def write_repetition(draft: Draft) -> None:
    """Write how much answers repeat themselves, how long they are, and what they score."""
    runs = _read(draft)
    answers = {name: draft.lines(name) for name in runs}
    repeated = {
        name: {at: _repeated(run, at, some) for at, some in answers[name].items()} for name, run in runs.items()
    }
    rows = [["task", "template", "maxlen", "part", "n", f"repeated {NGRAM}-grams", "words", "score", "metric"]]
    for setting in sorted({setting for some in answers.values() for setting in some}):
        for name, run in runs.items():
            if setting in answers[name]:
                cells = _answer_cells(run, setting, answers[name][setting], list(repeated[name][setting].values()))
                rows.append([*_cells(setting), name, *cells])
    draft.table("Repetition and scores", rows)
    differences = [
        (f"{name}: {', '.join(_cells(setting))}", Compare(before, after, _REPEATED))
        for name in (draft.others if draft.reference else ())
        for setting, before in repeated[draft.reference or ""].items()
        if before.keys() & (after := repeated[name].get(setting, {})).keys()
    ]
    # Whether less repetition is better is for the reader to say.
    rows = [row[:-1] for row in _table(differences)]
    draft.table(f"Repeated {NGRAM}-grams, difference from {draft.reference}", rows)
    _write_differences(draft, runs)
    draft.say(f"{_REPETITION_LEGEND} {COMPARISON_LEGEND}")


def _cells(setting: Setting) -> tuple[str, str, str]:
    return setting[0], setting[1], f"{setting[2]:,}"


def _repeated(run: ScoredRun, setting: Setting, answers: Mapping[str, Prediction]) -> dict[str, ExampleScore]:
    """Return the share that each answer repeats, of those that have 4-grams."""
    lines, repeated = run.lines[setting], {}
    for name, prediction in answers.items():
        shares = [share for one in prediction.answers if (share := repeated_share(one.text)) is not None]
        if shares:
            repeated[name] = replace(lines[name], metrics={_REPEATED: statistics.fmean(shares)}, samples=None)
    return repeated


def _answer_cells(
    run: ScoredRun, setting: Setting, answers: Mapping[str, Prediction], repeated: Sequence[ExampleScore]
) -> list[str]:
    documents = [one.unit for one in repeated]
    share = mean_interval(values_of(repeated, [_REPEATED]), documents) if repeated else None
    words = statistics.mean(num_words(one.text) for answer in answers.values() for one in answer.answers)
    (result,) = select(_results(run, *setting[:2]), maxlen=setting[2], kind="model")
    metric = headline(result.profile)
    score = percent(result.metrics[metric])
    return [str(len(answers)), percent(share), f"{words:.1f}", score, metric_name(metric)]
