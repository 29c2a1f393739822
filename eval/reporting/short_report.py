"""What a terminal shows of a scored run: one table, a line on what it means, and what is wrong."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence

from eval.metrics.agreement import MARK, SHORT_LEGEND
from eval.records.read_run import RunInputs, describe_selection
from eval.records.schema import Compared, Comparison, Result, RunRecord, Scores
from eval.reporting.columns import (
    BASELINE_STYLES,
    ENDED,
    MAXLEN,
    WORDS,
    Column,
    N,
    leaves_open,
    metric_heading,
    outcome,
    percent,
    percent_mean,
    score,
    share_of_samples,
    signed_interval,
    text,
    units_of,
)
from eval.reporting.further_tables import further_tables
from eval.reporting.lengths import warnings_on_lengths, warnings_on_letters
from eval.reporting.tables import Rows, as_columns, describe_intervals, select, table_of
from eval.scoring.profiles import describe_profiles, headline, metric_name
from eval.scoring.significance import MIN_DOCUMENTS

_WIDTH = 100  # where metrics besides the headline would need more, they are left out
# Of each, the first that there is: with as many words as the answer, else with as many as it takes.
_BASELINES = (("matched_oracle", "visible_oracle"), ("matched_lead",), ("common_answer",))


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
    lines = [*meanings(inputs.record, scores), *warnings_of(inputs, scores)]
    wrapped = [textwrap.fill(line, _WIDTH, subsequent_indent="  ") for line in lines]
    table = as_columns(score_table(models, scores.results))
    if MARK in table:
        caption += f"; {SHORT_LEGEND}"
    further = [line for block in _further(inputs.record, scores) for line in block]
    return "\n".join([textwrap.fill(caption, _WIDTH), "", table, "", *wrapped, *further])


def _further(record: RunRecord, scores: Scores) -> Iterator[list[str]]:
    """Yield the lines of the table of each further metric."""
    for task, about in record.tasks.items():
        for template in about.templates:
            for title, remark, rows in further_tables(scores, task, template):
                yield ["", title, textwrap.fill(remark, _WIDTH), "", as_columns(rows)]


def score_table(models: Sequence[Result], results: Sequence[Result]) -> Rows:
    """Return one row a task, template and length: the model by its headline metric, baselines beside it."""
    metrics = {result.task: headline(result.profile) for result in models}
    headings = {result.task: metric_heading(metrics[result.task], result.profile) for result in models}
    names, shown = (list(dict.fromkeys(one.values())) for one in (metrics, headings))
    baselines = {
        (one.task, one.template, one.maxlen, one.system): one.metrics
        for one in select(results, subset="all", kind="yardstick")
    }

    def baseline(name: str) -> Column:
        def show(result: Result) -> str:
            scores = baselines.get((result.task, result.template, result.maxlen, name))
            return "-" if scores is None else percent_mean(scores[metrics[result.task]])

        return Column(heading=BASELINE_STYLES[name].heading.removesuffix(" at length"), show=show)

    several = [name for name in ("task", "template") if len({getattr(result, name) for result in models}) > 1]
    before = [text(name) for name in several]
    before += [MAXLEN, N, WORDS, ENDED]
    if len(shown) > 1:
        before.append(Column(heading="metric", show=lambda result: headings[result.task]))
    headlines = Column(
        heading=shown[0] if len(shown) == 1 else "score",
        show=lambda result: percent(result.metrics[metrics[result.task]]),
    )
    known = {key[3] for key in baselines}
    after = [baseline(found[0]) for names in _BASELINES if (found := [one for one in names if one in known])]
    others = [name for name in models[0].metrics if name not in names] if len(names) == 1 else []
    # Under several profiles of these metrics, a mark would be of some rows alone.
    profiles = {result.profile for result in models}
    columns = [score(name, *(profiles if len(profiles) == 1 else ())) for name in others]
    wide = table_of([*before, headlines, *columns, *after], models)
    is_narrow = len(as_columns(wide).partition("\n")[0]) <= _WIDTH
    return wide if is_narrow else table_of([*before, headlines, *after], models)


def meanings(record: RunRecord, scores: Scores) -> Iterator[str]:
    """Yield what the scores let one say, a sentence a task and template: the greatest length against the smallest."""
    results = select(scores.results, subset="all")
    settings = dict.fromkeys((result.task, result.template) for result in results)
    for task, about in record.tasks.items():
        comparisons = select(scores.comparisons, task=task, subset="all")
        templates = [template for template in about.templates if (task, template) in settings]
        for template in templates:
            where = [task] * (len(settings) > 1) + [f"template {template}"] * (len(templates) > 1)
            prefix = f"{', '.join(where)}: " if where else ""
            of_template = select(results, task=task, template=template)
            yield prefix + _over_length(of_template, comparisons)
            if noise := _noise(of_template):
                yield prefix + noise
            # Of a template beside the first, the comparison at the greatest length.
            others = [one for one in comparisons if one.second.template == template != one.first.template]
            if others:
                one = max(others, key=lambda one: one.second.maxlen)
                subject = f"template {template} at {one.second.maxlen:,} tokens is"
                yield f"{task}: " * (len(settings) > len(templates)) + _judged(one, subject, one.first.template)
    for row in scores.scrolls_score.scores if scores.scrolls_score else []:
        template = f", template {row.template}" if row.template else ""
        yield f"SCROLLS score at {row.maxlen:,} tokens{template}: {percent(row)}."


def _over_length(results: Sequence[Result], comparisons: Sequence[Comparison]) -> str:
    """Return what the greatest length is worth beside the smallest, or where a single one stands."""
    models = sorted(select(results, kind="model"), key=lambda one: one.maxlen)
    first, last = models[0], models[-1]
    if first is last:
        return _single(first, results)
    for one in comparisons:
        if one.first == Compared(template=first.template, maxlen=first.maxlen) and one.second == Compared(
            template=last.template, maxlen=last.maxlen
        ):
            return _judged(one, f"{last.maxlen:,} tokens are", f"{first.maxlen:,}")
    return f"{last.maxlen:,} and {first.maxlen:,} tokens have no example in common, so nothing is compared."


def _noise(results: Sequence[Result]) -> str:
    """Return what samples add to the uncertainty of the greatest length; empty where each prompt has one answer."""
    last = max(select(results, kind="model"), key=lambda one: one.maxlen)
    if last.noise is None:
        return ""
    noise = last.noise[headline(last.profile)]
    share = f"; samples make {share_of_samples(noise)} of the squared standard error"
    return (
        f"{last.num_samples} samples of each answer at {last.maxlen:,} tokens: standard deviation "
        f"{100 * noise.samples:.1f} between samples, {100 * noise.documents:.1f} between documents"
        f"{'' if noise.share_of_samples is None else share}."
    )


_CLAIMS = {
    "better": "better than {other}",
    "worse": "worse than {other}",
    "slightly worse": "worse than {other}, by less than the margin of {margin:g}",
    "as good": "at least as good as {other}, within the margin of {margin:g}",
    "not settled": "not shown to be better or worse than {other}",
}


def _judged(comparison: Comparison, subject: str, other: str) -> str:
    """Return what a comparison lets one say, with its numbers.

    The subject is the name of the second setting with its verb, the other the name of the first.
    """
    found = outcome(comparison)
    if found == "same prompts":
        longer = subject.removesuffix(" are")
        return f"{longer} show no more than {other}: every document fits both, so nothing is compared."
    claim = _CLAIMS[found].format(other=other, margin=100 * comparison.margin)
    numbers = f"{metric_name(comparison.metric)} {100 * comparison.difference:+.1f}{signed_interval(comparison)}"
    remark = ""
    if comparison.low is None:
        few = f" with fewer than {MIN_DOCUMENTS}" if comparison.num_documents < MIN_DOCUMENTS else ""
        remark = f", no interval{few}"
    elif found == "not settled" and comparison.detectable is not None:
        remark = f"; so many would show a difference of {100 * comparison.detectable:.1f}"
    elif found == "as good":
        remark = f"; {leaves_open(comparison)}"
    if found == "not settled" and comparison.needs_documents is not None:
        remark += (
            f"; no difference could be shown with so few {units_of(comparison)[1]} ({comparison.needs_documents} could)"
        )
    if comparison.num_same_prompts:
        remark = f", {comparison.num_same_prompts} with the same prompt left out{remark}"
    return f"{subject[0].upper()}{subject[1:]} {claim}: {numbers}, {_counted(comparison)}{remark}."


def _single(model: Result, results: Sequence[Result]) -> str:
    """Return how a single length stands beside the simplest baseline, which is not tested."""
    metric, beside = headline(model.profile), ""
    for name, baseline in {"common_answer": "common answer", "matched_lead": "lead of as many words"}.items():
        for one in select(results, system=name, kind="yardstick"):
            beside = f" beside {percent_mean(one.metrics[metric])} of the {baseline} (not tested)"
    score = f"{metric_name(metric)} {percent(model.metrics[metric])}"
    return f"One length, so nothing is compared: {score}{beside}, {_counted(model)}."


def _counted(record: Result | Comparison) -> str:
    num_units, name = units_of(record)
    if (record.num_examples, "documents") == (num_units, name):
        return f"n = {num_units} document{'s' * (num_units != 1)}"
    return f"n = {record.num_examples} examples {'about' if name == 'documents' else 'in'} {num_units} {name}"


def warnings_of(inputs: RunInputs, scores: Scores) -> Iterator[str]:
    """Yield what is wrong with a run, in sentences."""
    if inputs.num_absent:
        yield f"Not there yet: {inputs.num_absent} predictions of a run that was interrupted."
    for name, task in inputs.record.tasks.items():
        if num_bad := task.rows.get("num_bad", 0):
            yield f"{num_bad} rows of {name} could not be used and were skipped; the report names the first."
    counts = Counter(one.task for one in inputs.examples)
    for name, task in inputs.record.tasks.items():
        if task.limit is not None:
            yield from describe_selection(name, task, counts[name])
    yield from inputs.thinking
    for warnings in (*warnings_on_lengths(scores).values(), *warnings_on_letters(scores).values()):
        yield from warnings
    yield from inputs.repeated
    if inputs.dropped:
        yield f"{inputs.dropped[0].upper()}{inputs.dropped[1:]}."
