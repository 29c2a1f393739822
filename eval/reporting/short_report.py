"""What a terminal shows of a scored run: one table, a line on what it means, and what is wrong."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from eval.records.read_run import RunInputs
from eval.records.schema import Comparison, Result, RunRecord, Scores
from eval.reporting.columns import BASELINE_STYLES, Column, N, percent, percent_mean, signed_interval, verdict
from eval.reporting.tables import Rows, as_columns, describe_intervals, select, table_of
from eval.scoring.profiles import describe_profiles, headline, metric_name
from eval.scoring.significance import MIN_DOCUMENTS

_WIDTH = 100
_TABLE_WIDTH = 80  # where metrics besides the headline would need more, they are left out
_BASELINES = ("visible_oracle", "lead", "common_answer")


def render_short(inputs: RunInputs, scores: Scores) -> str:
    """Return the scores of a run with what they mean and what is wrong with it."""
    models = [
        result
        for task, about in inputs.record.tasks.items()
        for template in about.templates
        for result in sorted(
            select(scores.results, task=task, template=template, subset="all", kind="model"), key=lambda one: one.maxlen
        )
    ]
    profiles = {result.task: result.profile for result in models}
    caption = f"{describe_profiles(profiles)}; {describe_intervals(models)}".replace("`", "")
    lines = [*meanings(inputs.record, scores), *warnings_of(inputs)]
    wrapped = [textwrap.fill(line, _WIDTH, subsequent_indent="  ") for line in lines]
    table = as_columns(score_table(models, scores.results))
    return "\n".join([textwrap.fill(caption, _WIDTH), "", table, "", *wrapped])


def score_table(models: Sequence[Result], results: Sequence[Result]) -> Rows:
    """Return one row a task, template and length: the model by its headline metric, baselines beside it.

    Args:
        models: Results of the model about all examples.
        results: All results.
    """
    metrics = {result.task: headline(result.profile) for result in models}
    names = list(dict.fromkeys(metrics.values()))
    baselines = {
        (one.task, one.template, one.maxlen, one.system): one.metrics
        for one in select(results, subset="all", kind="yardstick")
    }

    def baseline(name: str) -> Column:
        def show(result: Result) -> str:
            scores = baselines.get((result.task, result.template, result.maxlen, name))
            return "-" if scores is None else percent_mean(scores[metrics[result.task]])

        own = BASELINE_STYLES[name].column
        return Column(heading=own.heading if own else BASELINE_STYLES[name].heading, show=show)

    def metric(name: str) -> Column:
        return Column(heading=metric_name(name), show=lambda result: percent_mean(result.metrics[name]))

    def text(name: str) -> Column:
        return Column(heading=name, show=lambda result: str(getattr(result, name)))

    several = [name for name in ("task", "template") if len({getattr(result, name) for result in models}) > 1]
    before = [text(name) for name in several]
    before += [Column(key="maxlen", heading="maxlen"), N]
    if len(names) > 1:
        before.append(Column(heading="metric", show=lambda result: metric_name(metrics[result.task])))
    score = Column(
        heading=metric_name(names[0]) if len(names) == 1 else "score",
        show=lambda result: percent(result.metrics[metrics[result.task]]),
    )
    after = [baseline(name) for name in _BASELINES if any(key[3] == name for key in baselines)]
    others = [name for name in models[0].metrics if name not in names] if len(names) == 1 else []
    wide = table_of([*before, score, *map(metric, others), *after], models)
    is_narrow = len(as_columns(wide).partition("\n")[0]) <= _TABLE_WIDTH
    return wide if is_narrow else table_of([*before, score, *after], models)


def meanings(record: RunRecord, scores: Scores) -> Iterator[str]:
    """Yield what the scores let one say, a sentence a task and template: the greatest length against the smallest."""
    results = select(scores.results, subset="all")
    num_settings = len({(result.task, result.template) for result in results})
    comparisons = select(scores.comparisons, subset="all")
    for task, about in record.tasks.items():
        first = next(iter(about.templates))
        for template in about.templates:
            models = select(results, task=task, template=template, kind="model")
            if not models:
                continue
            where = f"{task}, template {template}: " if len(about.templates) > 1 else f"{task}: "
            where = where if num_settings > 1 else ""
            lengths = sorted(result.maxlen for result in models)
            of_template = [
                one for one in select(comparisons, task=task) if one.first.template == one.second.template == template
            ]
            ends = [one for one in of_template if (one.first.maxlen, one.second.maxlen) == (lengths[0], lengths[-1])]
            if ends:
                yield where + _judged(ends[0], f"{lengths[-1]:,} tokens are", f"{lengths[0]:,}")
            else:
                yield where + _single(models[0], results)
            against_first = [
                one for one in select(comparisons, task=task) if one.second.template == template != one.first.template
            ]
            if against_first:
                one = max(against_first, key=lambda one: one.second.maxlen)
                at = f"{one.second.maxlen:,} tokens"
                yield f"{task}: " * (num_settings > len(about.templates)) + _judged(
                    one, f"at {at}, template {template} is", f"template {first}"
                )
    for row in scores.scrolls_score.scores if scores.scrolls_score else []:
        template = f", template {row.template}" if row.template else ""
        yield f"SCROLLS score at {row.maxlen:,} tokens{template}: {percent(row)}."


def _judged(comparison: Comparison, subject: str, other: str) -> str:
    """Return what a comparison lets one say, with its numbers.

    Args:
        comparison: The comparison.
        subject: Name of the second setting, with its verb.
        other: Name of the first setting.
    """
    found, margin = verdict(comparison), f"{100 * comparison.margin:g}"
    if comparison.num_documents < MIN_DOCUMENTS:
        claim = f"not shown to be better or worse than {other}"
    elif found.startswith("worse, "):
        claim = f"worse than {other}, by less than the margin of {margin}"
    elif found.startswith("as good"):
        claim = f"at least as good as {other}, within the margin of {margin}"
    else:
        claim = f"{'not shown to be better or worse' if found == 'not settled' else found} than {other}"
    numbers = f"{metric_name(comparison.metric)} {100 * comparison.difference:+.1f}{signed_interval(comparison)}"
    interval = ""
    if comparison.num_documents < MIN_DOCUMENTS:
        interval = f", no interval with fewer than {MIN_DOCUMENTS}"
    elif comparison.low is None:
        interval = ", no interval"
    elif found == "not settled" and comparison.detectable is not None:
        interval = f"; so many would show a difference of {100 * comparison.detectable:.1f}"
    return f"{subject[0].upper()}{subject[1:]} {claim}: {numbers}, {_counted(comparison)}{interval}."


def _single(model: Result, results: Sequence[Result]) -> str:
    """Return how a single length stands beside the simplest baseline, which is not tested."""
    metric = headline(model.profile)
    said = f"One length, so nothing is compared: {metric_name(metric)} {percent(model.metrics[metric])}"
    beside = select(results, task=model.task, template=model.template, maxlen=model.maxlen, kind="yardstick")
    for name, article in (("lead", "the lead's"), ("common_answer", "the common answer's")):
        for one in select(beside, system=name):
            return f"{said} beside {article} {percent_mean(one.metrics[metric])} (not tested), {_counted(model)}."
    return f"{said}, {_counted(model)}."


def _counted(record: Result | Comparison) -> str:
    if record.num_examples == record.num_documents:
        return f"n = {record.num_documents} document{'s' * (record.num_documents != 1)}"
    return f"n = {record.num_examples} examples about {record.num_documents} documents"


def warnings_of(inputs: RunInputs) -> Iterator[str]:
    """Yield what is wrong with a run, in sentences."""
    if inputs.num_absent:
        yield f"Not there yet: {inputs.num_absent} predictions of a run that was interrupted."
    for name, task in inputs.record.tasks.items():
        if num_bad := task.rows.get("num_bad", 0):
            yield f"{num_bad} rows of {name} could not be used and were skipped; the report names the first."
    if inputs.dropped:
        yield f"{inputs.dropped[0].upper()}{inputs.dropped[1:]}."
