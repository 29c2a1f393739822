"""What to check before trusting a score: on the page, in the terminal, and as marks on boards.

    for check in checks_of(scores)["plos"]:
        print(check.text)

Counts come from `eval.scoring.flaws` and from results; this module says which of them are a warning.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.records.read_run import RunInputs, describe_absent, describe_selection
from eval.records.schema import Result, Scores
from eval.records.windows import base_of, beside_head
from eval.reporting.columns import Column, num_answers, percent, units_of
from eval.reporting.stops import describe_stop, warn_of_stop
from eval.reporting.tables import select
from eval.scoring.letters import describe_letters
from eval.scoring.profiles import headline, metric_name
from eval.scoring.significance import MIN_DOCUMENTS

# Ratio of words beyond which a warning is due.
_MOST_APART = 1.5
# Share of answers with each flaw beyond which one is, what it is called on boards, and what it means.
_ENDED = "used up their room ({}), so their beginnings are scored. Raise --max-new-tokens."
_FLAWS = {
    "length": (0.2, "cut by the limit", _ENDED),
    "loop": (0.05, "loops", "repeat themselves ({}): a fifth of their 4-grams or more stand in them before."),
    "empty": (0.0, "empty", "are empty ({})."),
    "copy": (0.05, "copies", "copy the prompt ({}): nine tenths of their words stand in it in runs of eight."),
    "unread": (0.0, "zeros in other scripts", "score 0 beside references that are not in Latin letters ({})."),
}
# Width of an interval of the headline metric, as a fraction, beyond which it is called wide.
_WIDE = 0.2


@dataclass(frozen=True, kw_only=True)
class Check:
    """A reason to doubt the scores of a task and template.

    Attributes:
        text: A sentence or two.
        brief: The same without the names of task and template.
        show: Which answers it is about, in the browser of samples: `length` or a flaw; empty where no answers are.
        maxlen: The length at which most answers have it.
    """

    text: str
    brief: str
    template: str = ""
    show: str = ""
    maxlen: int | None = None


def _check(task: str, template: str, said: str, show: str = "", maxlen: int | None = None) -> Check:
    """Return a check of answers; what is said of them begins with a verb."""
    text = f"Answers of {task}, template {template}, {said}"
    return Check(text=text, brief=f"Answers {said}", template=template, show=show, maxlen=maxlen)


def checks_of(scores: Scores) -> dict[str, list[Check]]:
    """Return what is to be checked, by task: answers first, then lengths, documents and letters."""
    models = select(scores.results, subset="all", kind="model")
    found: dict[str, list[Check]] = {}
    for task, template in dict.fromkeys((one.task, one.template) for one in models):
        of_template = sorted(select(models, task=task, template=template), key=lambda one: one.maxlen)
        checks = found.setdefault(task, [])
        if template in beside_head(one.template for one in select(models, task=task)):
            # The rest is as with the own window.
            known = {check.show for check in checks if check.template == base_of(template)}
            checks += [check for check in _on_answers(of_template) if check.show not in known]
            continue
        checks += _on_answers(of_template)
        checks += _on_lengths(of_template, scores.yardsticks[task].word_budget)
        checks += _on_documents(of_template)
    for task, one in scores.letters.items():
        texts = describe_letters(task, scores.profiles[task], one)
        found.setdefault(task, []).extend(Check(text=text, brief=text) for text in texts)
    return found


def all_checks(inputs: RunInputs, scores: Scores) -> Iterator[str]:
    """Yield what is to be checked of a run, and of its tasks, in sentences."""
    yield from checks_of_run(inputs)
    for of_task in checks_of(scores).values():
        yield from (check.text for check in of_task)


def checks_of_run(inputs: RunInputs) -> Iterator[str]:
    """Yield what is to be checked of a run as a whole, in sentences."""
    if until := inputs.record.until:
        yield from filter(None, [warn_of_stop(until) or describe_stop(until)])
    if inputs.num_absent:
        yield describe_absent(inputs.record, inputs.num_absent)
    for name, task in inputs.record.tasks.items():
        if num_bad := task.rows.get("num_bad", 0):
            yield f"{num_bad} rows of {name} could not be used and were skipped; the report names the first."
    counts = Counter(one.task for one in inputs.examples)
    for name, task in inputs.record.tasks.items():
        if task.limit is not None:
            yield from describe_selection(name, task, counts[name])
    yield from inputs.thinking
    yield from inputs.repeated
    if inputs.dropped:
        yield f"{inputs.dropped[0].upper()}{inputs.dropped[1:]}."


def _shares(results: Sequence[Result], flaw: str, most: float) -> dict[int, float]:
    """Return the percentage of answers with a flaw at each length where more than `most` have it."""
    shares = {one.maxlen: _share(one, flaw) for one in results}
    return {maxlen: 100 * share for maxlen, share in shares.items() if share > most}


def _share(record: Any, flaw: str) -> float:
    """Return the share of the answers of a result, or of a row of a board, that have a flaw."""
    count = record.num_ended_by_length if flaw == "length" else (record.flaws or {}).get(flaw)
    return (count or 0) / num_answers(record)


def _on_answers(results: Sequence[Result]) -> Iterator[Check]:
    """Yield which answers of a template used up their room, loop, are empty, or copy."""
    for flaw, (most, _, text) in _FLAWS.items():
        if found := _shares(results, flaw, most):
            worst = max(found, key=lambda maxlen: (found[maxlen], maxlen))
            said = text.format(_counts(found, len(results), "%"))
            yield _check(results[0].task, results[0].template, said, flaw, worst)


def _on_lengths(results: Sequence[Result], wanted: int | None) -> Iterator[Check]:
    """Yield whether a template's answers are as long as references, which have so many words in the median."""
    words = {one.maxlen: one.words for one in results if one.words is not None and wanted}
    apart = {
        maxlen: count
        for maxlen, count in words.items()
        if wanted and not wanted / _MOST_APART <= count <= wanted * _MOST_APART
    }
    if apart:
        counts = _counts(apart, len(results), " words")
        said = (
            f"are of another length than references ({counts}, against {wanted}, in the median). Scores rise and fall "
            "with length: compare them with lead and oracle at the answers' length alone."
        )
        yield _check(results[0].task, results[0].template, said)


def _on_documents(results: Sequence[Result]) -> Iterator[Check]:
    """Yield whether there are too few documents, or too different ones, to say much."""
    last, metric = results[-1], headline(results[-1].profile)
    num_units, name = units_of(last)
    text = ""
    if num_units < MIN_DOCUMENTS:
        text = f"Few {name}: {num_units}. From {MIN_DOCUMENTS} on there are intervals."
    elif _is_wide(last, metric):
        found = f"{metric_name(metric)} at {last.maxlen:,} tokens is {percent(last.metrics[metric], 1)}"
        text = f"A wide interval with {num_units} {name}: {found}."
    if text:
        yield Check(text=text, brief=text, template=last.template)


def _is_wide(record: Any, metric: str) -> bool:
    """Return whether the interval of a metric of a result, or of a row of a board, is wide."""
    found = record.metrics[metric]
    return found.low is not None and found.high is not None and found.high - found.low > _WIDE


def marks_of(row: Any, metric: str) -> list[str]:
    """Return what to check before trusting a row of a board that is ranked by a metric, in a word or two each."""
    marks = [f"{name} {share:.0%}" for flaw, (most, name, _) in _FLAWS.items() if (share := _share(row, flaw)) > most]
    num_units, name = units_of(row)
    if num_units < MIN_DOCUMENTS:
        return [*marks, f"few {name}"]
    return [*marks, "wide interval"] if _is_wide(row, metric) else marks


def marks_column(metric: str) -> Column:
    """Return the column of a board with the marks of its rows."""
    return Column(heading="check first", show=lambda row: ", ".join(marks_of(row, metric)), legend=_LEGEND)


_LEGEND = (
    "check first: shares of answers that used up their room (cut by the limit), repeat themselves (loops), are empty, "
    "copy the prompt (copies), or score 0 in other scripts than Latin; few documents; a wide interval. The report of "
    "the run shows the answers."
)


def _counts(by_length: Mapping[int, float], num_lengths: int, unit: str) -> str:
    """Return numbers by maxlen; their range where all lengths have one."""
    low, high = min(by_length.values()), max(by_length.values())
    if len(by_length) == num_lengths > 1:
        return f"{low:.0f}{f' to {high:.0f}' * (f'{low:.0f}' != f'{high:.0f}')}{unit} at every length"
    return ", ".join(f"{value:.0f}{unit} at {maxlen:,}" for maxlen, value in by_length.items())
