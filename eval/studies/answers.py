"""Sections of a study's report about answers: scores over length, and how much answers repeat themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.compare import check_comparable, compare_runs
from eval.errors import UserError
from eval.records.journal import read_lines
from eval.reporting.charts import length_curves
from eval.reporting.columns import COMPARISON_LEGEND, percent
from eval.reporting.tables import Rows, comparison_table, select
from eval.scoring.examples import Setting, compare_lines, correct, values_of
from eval.scoring.profiles import headline, metric_name
from eval.scoring.scored_run import ScoredRun, read_scored
from eval.scoring.significance import MARGIN, mean_interval
from eval.studies.section import Content, Given

Line = Mapping[str, Any]

NGRAM = 4
_BESIDE = {"visible_oracle": "visible oracle", "lead": "lead"}
_LABEL = "part: task, template, maxlen"
_REPETITION = "repeated"
_REPETITION_LEGEND = (
    f"repeated {NGRAM}-grams: of the runs of {NGRAM} words of an answer, the share that stands in it before; answers "
    "of fewer words have none and do not count. words: of an answer, between white space."
)


def rouge_section(given: Given) -> Content:
    """Return scores by length beside those of what needs no model, and paired differences from the reference."""
    content, runs = Content(section=given.section), _read(given.folders)
    for task, template in _templates(runs):
        content.table(f"Scores: {task}, template {template}", _score_rows(runs, task, template))
        results = _chart_results(given, runs, task, template)
        if results:
            metric = headline(results[0]["profile"])
            title = f"{metric_name(metric)} over length: {task}, template {template}"
            content.chart(f"{task} {template}", title, length_curves(results, metric))
    _add_differences(content, given, runs)
    content.table("Longest maxlen against the shortest, by part", comparison_table(_length_rows(runs), _LABEL))
    content.say(COMPARISON_LEGEND)
    return content


def _read(folders: Mapping[str, Path]) -> dict[str, ScoredRun]:
    return {name: read_scored(folder) for name, folder in folders.items()}


def _templates(runs: Mapping[str, ScoredRun]) -> list[tuple[str, str]]:
    return sorted({setting[:2] for run in runs.values() for setting in run.lines})


def _results(run: ScoredRun, task: str, template: str) -> list[Line]:
    return select(run.scores["results"], task=task, template=template, subset="all")


def _score_rows(runs: Mapping[str, ScoredRun], task: str, template: str) -> Rows:
    found = {name: _results(run, task, template) for name, run in runs.items()}
    metrics = list(next(line["metrics"] for lines in found.values() for line in lines))
    rows = [["maxlen", "part", "n", "cut", *map(metric_name, metrics), *_BESIDE.values()]]
    for maxlen in sorted({line["maxlen"] for lines in found.values() for line in lines}):
        for name, lines in found.items():
            for line in select(lines, maxlen=maxlen, kind="model"):
                beside = [_headline_of(select(lines, maxlen=maxlen, system=system)) for system in _BESIDE]
                scores = [percent(line["metrics"][metric]) if metric in line["metrics"] else "-" for metric in metrics]
                counts = [str(line["num_examples"]), str(line["num_truncated"])]
                rows.append([f"{maxlen:,}", name, *counts, *scores, *beside])
    return rows


def _headline_of(results: Sequence[Line]) -> str:
    return percent(results[0]["metrics"][headline(results[0]["profile"])]) if results else "-"


def _chart_results(given: Given, runs: Mapping[str, ScoredRun], task: str, template: str) -> list[Line]:
    """Return the results of all parts under their names, and the rows that need no model of one of them."""
    found: list[Line] = []
    for name, run in runs.items():
        found += [dict(line) | {"system": name} for line in select(_results(run, task, template), kind="model")]
    whose = given.reference or next(iter(runs))
    yardsticks = select(_results(runs[whose], task, template), kind="yardstick")
    return [*found, *(line for line in yardsticks if line["system"] in _BESIDE)] if found else []


def _add_differences(content: Content, given: Given, runs: Mapping[str, ScoredRun]) -> None:
    """Add the table of paired differences from the reference, corrected over all its rows."""
    if given.reference is None:
        return
    before = runs[given.reference]
    table: list[dict[str, Any]] = []
    for name in given.others:
        try:
            check_comparable(before, runs[name])
            found = compare_runs(before, runs[name], _headlines(before, runs[name]), MARGIN)
        except UserError as error:
            content.say(f"`{name}` is not compared with `{given.reference}`: {error}")
            continue
        table += _headline_rows(name, found)
        for setting, (held, now) in found["differences"].items():
            content.say(f"`{name}` differs from `{given.reference}` in {setting}: {now} instead of {held}.")
    content.table(f"Differences from {given.reference}", comparison_table(correct(table), _LABEL))


def _length_rows(runs: Mapping[str, ScoredRun]) -> list[dict[str, Any]]:
    """Return how each part differs between its shortest and its longest maxlen, corrected over all rows."""
    table: list[dict[str, Any]] = []
    for name, run in runs.items():
        lengths: dict[tuple[str, str], list[int]] = {}
        for task, template, maxlen in run.lines:
            lengths.setdefault((task, template), []).append(maxlen)
        ends = {which: (min(found), max(found)) for which, found in lengths.items() if len(found) > 1}
        for pair in sorted(set(ends.values())):
            found = compare_runs(run, run, _headlines(run), MARGIN, pair)
            table += [row for row in _headline_rows(name, found) if ends.get((row["task"], row["template"])) == pair]
    return correct(table)


def _headline_rows(name: str, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a comparison about all examples and the headline of each task, under the name of a part."""
    return [
        row | {"name": f"{name}: {row['name']}"}
        for row in found["comparisons"]
        if row["subset"] == "all" and row["metric"] == headline(found["profiles"][row["task"]])
    ]


def _headlines(*runs: ScoredRun) -> list[str]:
    return list(dict.fromkeys(headline(profile) for run in runs for profile in run.scores["profiles"].values()))


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
        table = [
            {"name": f"{name}: {', '.join(map(_cell, setting))}", "metric": _REPETITION} | row
            for name in given.others
            for setting, before in answers[given.reference].items()
            if (row := _repetition_difference(before, answers[name].get(setting, {}))) is not None
        ]
        # Whether less repetition is better is for the reader to say.
        rows = [row[:-1] for row in comparison_table(correct(table), _LABEL)]
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


def _answers(folder: Path, run: ScoredRun) -> dict[Setting, dict[str, dict[str, Any]]]:
    """Return of each answer its document, its number of words, and the share that it repeats."""
    found: dict[Setting, dict[str, dict[str, Any]]] = {}
    for line in read_lines(folder / "predictions.jsonl"):
        setting = line["task"], line["template"], line["maxlen"]
        found.setdefault(setting, {})[line["id"]] = {
            "document_id": run.examples[line["task"], line["id"]]["document_id"],
            "num_words": len(line["text"].split()),
            "metrics": {_REPETITION: repeated_share(line["text"])},
        }
    return found


def _with_ngrams(answers: Mapping[str, Line]) -> dict[str, Line]:
    return {name: one for name, one in answers.items() if one["metrics"][_REPETITION] is not None}


def _answer_cells(run: ScoredRun, setting: Setting, answers: Mapping[str, Line]) -> list[str]:
    some = list(_with_ngrams(answers).values())
    repeated = "-"
    if some:
        estimate = mean_interval(values_of(some, [_REPETITION]), [one["document_id"] for one in some])
        repeated = percent({"mean": estimate.mean, "low": estimate.low, "high": estimate.high})
    words = sum(one["num_words"] for one in answers.values()) / len(answers)
    task, template, maxlen = setting
    (result,) = select(_results(run, task, template), maxlen=maxlen, kind="model")
    metric = headline(result["profile"])
    return [str(len(answers)), repeated, f"{words:.1f}", percent(result["metrics"][metric]), metric_name(metric)]


def _repetition_difference(before: Mapping[str, Line], after: Mapping[str, Line]) -> dict[str, Any] | None:
    """Return the paired difference on the examples whose answers have 4-grams in both; None where there is none."""
    first, second = _with_ngrams(before), _with_ngrams(after)
    if not first.keys() & second.keys():
        return None
    return compare_lines(first, second, [_REPETITION], MARGIN)
