"""What a run found, before all tables: a sentence from its statistics, and four numbers.

for sentence in meanings(record, scores):
    print(sentence)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from eval.records.schema import Compared, Comparison, Estimate, Result, RunRecord, Scores
from eval.records.windows import beside_head
from eval.reporting.columns import (
    leaves_open,
    outcome,
    p_value,
    percent,
    percent_mean,
    scale_of,
    share_of_samples,
    signed_interval,
    units_of,
)
from eval.reporting.stops import describe_stop
from eval.reporting.tables import select
from eval.reporting.useful_lengths import describe_useful
from eval.scoring.baselines import ORACLES
from eval.scoring.profiles import headline, metric_name
from eval.scoring.significance import MIN_DOCUMENTS

# A change of the oracle or of the answers, as a fraction, that is called one.
_A_CHANGE = 0.005


@dataclass(frozen=True, kw_only=True)
class Number:
    """A number of the first screen: what it is, the number with its unit, and what stands beside it."""

    name: str
    value: str
    remark: str = ""


def meanings(record: RunRecord, scores: Scores, *, has_lengths: bool = True) -> Iterator[str]:
    """Yield what the scores let one say, a sentence a task and template: the greatest length against the smallest.

    Without lengths, only what is said beside that: of useful lengths, of samples, of templates, and of tasks together.
    """
    results = select(scores.results, subset="all")
    settings = dict.fromkeys((result.task, result.template) for result in results)
    tasks = {task for task, _ in settings}
    for task, about in record.tasks.items():
        comparisons = select(scores.comparisons, task=task, subset="all")
        templates = [template for template in about.templates if (task, template) in settings]
        # `eval.reporting.windows` says what other windows mean.
        templates = [template for template in templates if template not in beside_head(templates)]
        for template in templates:
            where = [task] * (len(tasks) > 1 or len(templates) > 1) + [f"template {template}"] * (len(templates) > 1)
            prefix = f"{', '.join(where)}: " if where else ""
            of_template = select(results, task=task, template=template)
            if has_lengths:
                yield prefix + claimed(record, of_template, comparisons)
            if useful := describe_useful(select(scores.useful_lengths or (), task=task, template=template)):
                yield prefix + useful
            if noise := _noise(of_template):
                yield prefix + noise
            # Of a template beside the first, the comparison at the greatest length.
            others = [one for one in comparisons if one.second.template == template != one.first.template]
            if others:
                one = max(others, key=lambda one: one.second.maxlen)
                subject = f"template {template} at {one.second.maxlen:,} tokens"
                yield f"{task}: " * (len(tasks) > 1) + judged(one, subject, one.first.template)
    for row in scores.scrolls_score.scores if scores.scrolls_score else []:
        template = f", template {row.template}" if row.template else ""
        yield f"SCROLLS score at {row.maxlen:,} tokens{template}: {percent(row)}."


def claimed(record: RunRecord, results: Sequence[Result], comparisons: Sequence[Comparison]) -> str:
    """Return the main claim of a run about a task and template: what it was looked at for, or what length is worth."""
    if record.until is not None and record.until.metric is not None:
        return describe_stop(record.until)
    return over_length(results, comparisons)


def over_length(results: Sequence[Result], comparisons: Sequence[Comparison]) -> str:
    """Return what the greatest length is worth beside the smallest, or where a single one stands."""
    first, last = ends_of(results)
    if first is last:
        return _single(first, results)
    for one in _between(first, last, comparisons):
        return judged(one, f"{last.maxlen:,} tokens", f"{first.maxlen:,}", is_plural=True)
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
    "different": "different from {other}",
}


def judged(comparison: Comparison, subject: str, other: str, *, is_plural: bool = False) -> str:
    """Return what a comparison lets one say, with its numbers.

    The subject is the name of the second setting, the other that of the first.
    """
    found, subject = outcome(comparison), f"{subject[0].upper()}{subject[1:]}"
    if found == "same prompts":
        shows = "show" if is_plural else "shows"
        if comparison.first.maxlen == comparison.second.maxlen:
            return f"{subject} {shows} the same prompts as {other}, so nothing is compared."
        return f"{subject} {shows} no more than {other}: every document fits both, so nothing is compared."
    scale = scale_of(comparison.value)
    claim = _CLAIMS[found].format(other=other, margin=scale * comparison.margin)
    numbers = f"{metric_name(comparison.metric)} {scale * comparison.difference:+.1f}{signed_interval(comparison)}"
    remark = ""
    if comparison.low is None:
        few = f" with fewer than {MIN_DOCUMENTS}" if comparison.num_documents < MIN_DOCUMENTS else ""
        remark = f", no interval{few}"
    elif found == "not settled" and comparison.detectable is not None:
        remark = f"; so many would show a difference of {scale * comparison.detectable:.1f}"
    elif found == "as good":
        remark = f"; {leaves_open(comparison)}"
    if found == "not settled" and comparison.needs_documents is not None:
        remark += (
            f"; no difference could be shown with so few {units_of(comparison)[1]} ({comparison.needs_documents} could)"
        )
    if comparison.num_same_prompts:
        remark = f", {comparison.num_same_prompts} with the same prompt left out{remark}"
    return f"{subject} {'are' if is_plural else 'is'} {claim}: {numbers}, {_counted(comparison)}{remark}."


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


def ends_of(results: Sequence[Result]) -> tuple[Result, Result]:
    """Return the results of the model at the smallest and the greatest length, which may be one."""
    models = sorted(select(results, kind="model", subset="all"), key=lambda one: one.maxlen)
    return models[0], models[-1]


def oracle_of(results: Sequence[Result], maxlen: int, systems: Sequence[str] = ORACLES) -> Estimate | None:
    """Return the headline score of the first of these oracles that there is at a length."""
    for name in systems:
        for one in select(results, system=name, maxlen=maxlen, kind="yardstick", subset="all"):
            return one.metrics[headline(one.profile)]
    return None


def what_was_shown(results: Sequence[Result]) -> str:
    """Return what the documents of a run show of window and answers, as observed; empty for a single length."""
    first, last = ends_of(results)
    if first is last:
        return ""
    metric = headline(first.profile)
    before, after = first.metrics[metric].mean, last.metrics[metric].mean
    # That with as many words as the answer has more to say where answers are longer, whatever the window.
    oracles = [oracle_of(results, maxlen, ("visible_oracle",)) for maxlen in (first.maxlen, last.maxlen)]
    if before is None or after is None:
        return ""
    score = _changed(before, after, ("score higher", "score lower", "score alike"))
    answers = f"the answers {score} ({metric_name(metric)} {100 * before:.1f} \u2192 {100 * after:.1f})"
    num_units, name = units_of(last)
    where = f"In {'this' if num_units == 1 else f'these {num_units}'} {name[:-1] if num_units == 1 else name}"
    if oracles[0] is None or oracles[1] is None or oracles[0].mean is None or oracles[1].mean is None:
        lengths = f"at {last.maxlen:,} {'and' if score == 'score alike' else 'tokens than'} at {first.maxlen:,}"
        return f"{where}, {answers} {lengths}{' tokens' * (score == 'score alike')}."
    holds = _changed(oracles[0].mean, oracles[1].mean, ("holds more", "holds less", "holds no more"))
    both = f"visible oracle {100 * oracles[0].mean:.1f} \u2192 {100 * oracles[1].mean:.1f}"
    joined = "and" if (holds == "holds more") == (score == "score higher") else "while"
    return (
        f"{where}, a window of {last.maxlen:,} tokens {holds} of what references say than one of {first.maxlen:,} "
        f"({both}), {joined} {answers}."
    )


def _changed(before: float, after: float, words: tuple[str, str, str]) -> str:
    return words[2] if abs(after - before) < _A_CHANGE else words[0] if after > before else words[1]


def numbers_of(results: Sequence[Result], comparisons: Sequence[Comparison]) -> list[Number]:
    """Return at most four numbers of a task and template; what is not known is left out.

    Args:
        results: Of one task and template.
        comparisons: Of the task.
    """
    first, last = ends_of(results)
    metric = headline(last.profile)
    name = metric_name(metric)
    models = select(results, kind="model", subset="all")
    best = max(models, key=lambda one: (one.metrics[metric].mean or 0.0, -one.maxlen))
    found = []
    if first is last:
        found.append(Number(name=f"{name} at {last.maxlen:,}", value=percent(last.metrics[metric], 1)))
    else:
        found.append(
            Number(
                name="best observed length",
                value=f"{best.maxlen:,}",
                remark=f"{name} {percent(best.metrics[metric], 1)}",
            )
        )
    against = f"{last.maxlen:,} against {first.maxlen:,}"
    for one in _between(first, last, comparisons):
        if one.num_examples:
            p = "" if one.p_corrected is None else f"p {p_value(one.p_corrected)}, "
            value = f"{100 * one.difference:+.1f}{signed_interval(one)}".replace("-", "\u2212")
            found.append(Number(name=f"{name}, {against}", value=value, remark=f"{p}{outcome(one)}"))
    shares = {one.maxlen: _share_of_oracle(one, results) for one in (first, last)}
    if (share := shares[last.maxlen]) is not None:
        before = shares[first.maxlen]
        remark = "" if before is None or first is last else f"{before:.0%} at {first.maxlen:,}"
        found.append(Number(name=f"share of the oracle, at {last.maxlen:,}", value=f"{share:.0%}", remark=remark))
    return [*found, *_cost_of(first, last, against)]


def _share_of_oracle(model: Result, results: Sequence[Result]) -> float | None:
    mean, oracle = model.metrics[headline(model.profile)].mean, oracle_of(results, model.maxlen)
    return mean / oracle.mean if mean is not None and oracle and oracle.mean else None


def _cost_of(first: Result, last: Result, against: str) -> Iterator[Number]:
    """Yield what the greatest length costs, beside the smallest where there are two."""
    costs = {
        "time": (first.cost and first.cost.seconds, last.cost and last.cost.seconds, 1.0, "s an answer"),
        "cache": (first.cost and first.cost.cache_bytes, last.cost and last.cost.cache_bytes, 2.0**20, "MiB cache"),
    }
    texts = []
    for what, (before, after, unit, name) in costs.items():
        if before and after and first is not last:
            texts.append(f"{after / before:.1f}\u00d7 {what}")
        elif after:
            texts.append(f"{after / unit:,.1f} {name}")
    if texts:
        title = "cost" if first is last else f"cost, {against}"
        yield Number(name=title, value=texts[0], remark=", ".join(texts[1:]))


def _between(first: Result, last: Result, comparisons: Sequence[Comparison]) -> Iterator[Comparison]:
    """Yield the comparison of two lengths of a template, if there is one."""
    ends = tuple(Compared(template=one.template, maxlen=one.maxlen) for one in (first, last))
    for one in select(comparisons, task=last.task, subset="all"):
        if (one.first, one.second) == ends:
            yield one
