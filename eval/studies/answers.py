"""Sections of a study's report about answers: scores over length, and how much answers repeat themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from eval.errors import UserError
from eval.records.journal import read_lines
from eval.records.schema import Comparison, ExampleScore, Prediction, Result
from eval.reporting.charts import length_curves
from eval.reporting.columns import COMPARISON_LEGEND, percent
from eval.reporting.tables import Rows, comparison_table, select
from eval.scoring.compare_runs import RunComparison, check_comparable, compare_runs, name_comparison
from eval.scoring.examples import Setting, compare_lines, correct, setting_of, values_of
from eval.scoring.profiles import headline, metric_name
from eval.scoring.scored_run import ScoredRun, read_scored
from eval.scoring.significance import MARGIN, mean_interval
from eval.studies.section import Content, Given

Row = tuple[str, Comparison]  # what is compared with what

NGRAM = 4
_BESIDE = {"visible_oracle": "visible oracle", "lead": "lead"}
_LABEL = "part: task, template, maxlen"
_REPETITION = "repeated"
_WORDS = "words"
_REPETITION_LEGEND = (
    f"repeated {NGRAM}-grams: of the runs of {NGRAM} words of an answer, the share that stands in it before; answers "
    "of fewer words have none and do not count. words: of an answer, between white space."
)


def rouge_section(given: Given) -> Content:
    """Return scores by length beside those of baselines, and paired differences from the reference."""
    content, runs = Content(section=given.section), _read(given.folders)
    for task, template in _templates(runs):
        content.table(f"Scores: {task}, template {template}", _score_rows(runs, task, template))
        results = _chart_results(given, runs, task, template)
        if results:
            metric = headline(results[0].profile)
            title = f"{metric_name(metric)} over length: {task}, template {template}"
            content.chart(f"{task} {template}", title, length_curves(results, metric))
    _add_differences(content, given, runs)
    content.table("Longest maxlen against the shortest, by part", _table(_length_rows(runs)))
    content.say(COMPARISON_LEGEND)
    return content


def _read(folders: Mapping[str, Path]) -> dict[str, ScoredRun]:
    return {name: read_scored(folder) for name, folder in folders.items()}


def _templates(runs: Mapping[str, ScoredRun]) -> list[tuple[str, str]]:
    return sorted({setting[:2] for run in runs.values() for setting in run.lines})


def _table(rows: Sequence[Row]) -> Rows:
    """Return a table of comparisons, corrected over all its rows."""
    names = [name for name, _ in rows]
    comparisons = correct([comparison for _, comparison in rows])
    named = {id(one): name for one, name in zip(comparisons, names, strict=True)}
    return comparison_table(comparisons, _LABEL, lambda one: named[id(one)])


def _results(run: ScoredRun, task: str, template: str) -> list[Result]:
    return select(run.scores.results, task=task, template=template, subset="all")


def _score_rows(runs: Mapping[str, ScoredRun], task: str, template: str) -> Rows:
    found = {name: _results(run, task, template) for name, run in runs.items()}
    metrics = list(next(result.metrics for results in found.values() for result in results))
    rows = [["maxlen", "part", "n", "cut", *map(metric_name, metrics), *_BESIDE.values()]]
    for maxlen in sorted({result.maxlen for results in found.values() for result in results}):
        for name, results in found.items():
            for result in select(results, maxlen=maxlen, kind="model"):
                beside = [_headline_of(select(results, maxlen=maxlen, system=system)) for system in _BESIDE]
                scores = [percent(result.metrics.get(metric)) for metric in metrics]
                counts = [str(result.num_examples), str(result.num_truncated)]
                rows.append([f"{maxlen:,}", name, *counts, *scores, *beside])
    return rows


def _headline_of(results: Sequence[Result]) -> str:
    return percent(results[0].metrics[headline(results[0].profile)]) if results else "-"


def _chart_results(given: Given, runs: Mapping[str, ScoredRun], task: str, template: str) -> list[Result]:
    """Return the results of all parts under their names, and the baselines of one of them."""
    found: list[Result] = []
    for name, run in runs.items():
        found += [replace(one, system=name) for one in select(_results(run, task, template), kind="model")]
    part = given.reference or next(iter(runs))
    baselines = select(_results(runs[part], task, template), kind="yardstick")
    return [*found, *(one for one in baselines if one.system in _BESIDE)] if found else []


def _add_differences(content: Content, given: Given, runs: Mapping[str, ScoredRun]) -> None:
    """Add the table of paired differences from the reference."""
    if given.reference is None:
        return
    before = runs[given.reference]
    rows: list[Row] = []
    for name in given.others:
        try:
            check_comparable(before, runs[name])
            found = compare_runs(before, runs[name], _headlines(before, runs[name]), MARGIN)
        except UserError as error:
            content.say(f"`{name}` is not compared with `{given.reference}`: {error}")
            continue
        rows += _headline_rows(name, found)
        for setting, (first, second) in found.differences.items():
            content.say(f"`{name}` differs from `{given.reference}` in {setting}: {second} instead of {first}.")
    content.table(f"Differences from {given.reference}", _table(rows))


def _length_rows(runs: Mapping[str, ScoredRun]) -> list[Row]:
    """Return how each part differs between its shortest and its longest maxlen."""
    rows: list[Row] = []
    for name, run in runs.items():
        lengths: dict[tuple[str, str], list[int]] = {}
        for task, template, maxlen in run.lines:
            lengths.setdefault((task, template), []).append(maxlen)
        ends = {which: (min(found), max(found)) for which, found in lengths.items() if len(found) > 1}
        for pair in sorted(set(ends.values())):
            found = compare_runs(run, run, _headlines(run), MARGIN, pair)
            rows += [
                row for row in _headline_rows(name, found) if ends.get((row[1].task, row[1].first.template)) == pair
            ]
    return rows


def _headline_rows(name: str, found: RunComparison) -> list[Row]:
    """Return the comparisons about all examples and the headline of each task, under the name of a part."""
    return [
        (f"{name}: {name_comparison(one)}", one)
        for one in found.comparisons
        if one.subset == "all" and one.metric == headline(found.profiles[one.task])
    ]


def _headlines(*runs: ScoredRun) -> list[str]:
    return list(dict.fromkeys(headline(profile) for run in runs for profile in run.scores.profiles.values()))


def repetition_section(given: Given) -> Content:
    """Return how much answers repeat themselves, how long they are, and what they score."""
    content, runs = Content(section=given.section), _read(given.folders)
    answers = {name: _answers(folder, runs[name]) for name, folder in given.folders.items()}
    rows = [["task", "template", "maxlen", "part", "n", f"repeated {NGRAM}-grams", "words", "score", "metric"]]
    for setting in sorted({setting for found in answers.values() for setting in found}):
        for name in given.folders:
            if setting in answers[name]:
                rows.append([*map(_cell, setting), name, *_answer_cells(runs[name], setting, answers[name][setting])])
    content.table("Repetition and scores", rows)
    if given.reference is not None:
        differences = [
            (f"{name}: {', '.join(map(_cell, setting))}", row)
            for name in given.others
            for setting, before in answers[given.reference].items()
            if (row := _repetition_difference(before, answers[name].get(setting, {}))) is not None
        ]
        # Whether less repetition is better is for the reader to say.
        rows = [row[:-1] for row in _table(differences)]
        content.table(f"Repeated {NGRAM}-grams, difference from {given.reference}", rows)
    _add_differences(content, given, runs)
    content.say(f"{_REPETITION_LEGEND} {COMPARISON_LEGEND}")
    return content


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def repeated_share(text: str) -> float | None:
    """Return the share of an answer's 4-grams of words that stand in it before; None where it has none.

    Source: seq-rep-4, Welleck et al., Neural text generation with unlikelihood training, arXiv 1908.04319, section 6;
    over words between white space in lower case instead of tokens.
    """
    words = text.lower().split()
    ngrams = [tuple(words[start : start + NGRAM]) for start in range(len(words) - NGRAM + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else None


def _answers(folder: Path, run: ScoredRun) -> dict[Setting, dict[str, ExampleScore]]:
    """Return the number of words of each answer and, where it has 4-grams, the share that it repeats."""
    found: dict[Setting, dict[str, ExampleScore]] = {}
    for line in read_lines(Prediction, folder / "predictions.jsonl"):
        repeated = repeated_share(line.text)
        scored = run.lines[setting_of(line)][line.id]
        metrics = {_WORDS: float(len(line.text.split())), **({} if repeated is None else {_REPETITION: repeated})}
        found.setdefault(setting_of(line), {})[line.id] = replace(scored, metrics=metrics)
    return found


def _with_ngrams(answers: Mapping[str, ExampleScore]) -> dict[str, ExampleScore]:
    return {name: one for name, one in answers.items() if _REPETITION in one.metrics}


def _answer_cells(run: ScoredRun, setting: Setting, answers: Mapping[str, ExampleScore]) -> list[str]:
    some = list(_with_ngrams(answers).values())
    repeated = "-"
    if some:
        repeated = percent(mean_interval(values_of(some, [_REPETITION]), [one.document_id for one in some]))
    words = sum(one.metrics[_WORDS] for one in answers.values()) / len(answers)
    task, template, maxlen = setting
    (result,) = select(_results(run, task, template), maxlen=maxlen, kind="model")
    metric = headline(result.profile)
    return [str(len(answers)), repeated, f"{words:.1f}", percent(result.metrics[metric]), metric_name(metric)]


def _repetition_difference(before: Mapping[str, ExampleScore], after: Mapping[str, ExampleScore]) -> Comparison | None:
    """Return the paired difference on the examples whose answers have 4-grams in both; None where there is none."""
    first, second = _with_ngrams(before), _with_ngrams(after)
    if not first.keys() & second.keys():
        return None
    return compare_lines(first, second, _REPETITION, [_REPETITION], MARGIN)
