"""Two scored runs on the same examples: differences with intervals, tests, and the examples that changed most."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from eval.errors import UserError
from eval.records.engines import describe_engine, engine_details
from eval.records.schema import (
    ENCODER_DECODER,
    Compared,
    Comparison,
    ExampleRecord,
    ExampleScore,
    Subset,
    ValueRecord,
)
from eval.records.typed import to_json
from eval.scoring.beforehand import Asked, describe_claim, recorded_claim
from eval.scoring.comparisons import Compare, compare_lines
from eval.scoring.examples import Setting, values_of
from eval.scoring.metric_files import metric_of
from eval.scoring.profiles import headline, metric_columns, metric_name
from eval.scoring.scored_run import ScoredRun, settings_of, thinking_of
from eval.scoring.shared_metrics import shared_metrics

SUBSETS: tuple[Subset, ...] = ("all", "always_truncated")
_NUM_CHANGED = 5


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """One side of a comparison."""

    run: str
    model: str
    plan: str
    num_absent: int  # predictions that are not there yet

    @classmethod
    def of(cls, run: ScoredRun) -> ComparedRun:
        """Return what a comparison says of a run."""
        model, plan = run.record.identity.model.reference, run.record.plan_description
        return cls(run=str(run.path), model=model, plan=plan, num_absent=run.num_absent)


@dataclass(frozen=True, kw_only=True)
class Change:
    """An example's score under the first run, `a`, and under the second, `b`."""

    name: str  # task, template and lengths, for people
    task: str
    metric: str
    id: str
    a: float
    b: float
    difference: float


@dataclass(frozen=True, kw_only=True)
class RunComparison:
    """What a second run has over a first.

    `further` holds comparisons by further metrics, and `left_out` why some were not made. `differences` holds the
    settings that differ besides model and plan, with both values. The margin is the loss up to which the second is
    as good. `claim` says where a claim comes from, None where there is none, and `recorded` when the second run
    recorded it, None where it did not.
    """

    a: ComparedRun
    b: ComparedRun
    profiles: dict[str, str]
    margin: float
    claim: str | None
    recorded: str | None
    differences: dict[str, list[Any]]
    comparisons: list[Comparison]
    further: list[Comparison]
    left_out: list[str]
    changed_most: list[Change]


def check_comparable(first: ScoredRun, second: ScoredRun) -> None:
    """Check that two runs answered the same examples and were scored alike.

    Raises:
        UserError: They did not; it says in what they differ.
    """
    shared = shared_tasks(first, second)
    if not shared:
        tasks = [", ".join(dict.fromkeys(task for task, _ in run.content)) for run in (first, second)]
        raise UserError(f"tasks differ: {tasks[0]} in {first.path}, {tasks[1]} in {second.path}")
    for task in shared:
        _check_profiles(first, second, task)
        versions = [run.record.tasks[task].version for run in (first, second)]
        if versions[0] != versions[1]:
            raise UserError(
                f"versions of task {task} differ: {versions[0]} in {first.path}, {versions[1]} in {second.path}"
            )
        _check_has_examples(first, second, task)
        _check_has_examples(second, first, task)
        for key, digest in first.content.items():
            if key[0] == task and digest != second.content[key]:
                what = _changed_part(first.examples[key], second.examples[key])
                raise UserError(
                    f"examples differ: '{key[1]}' of {task} has another {what} in {first.path} than in {second.path}; "
                    "compare runs on the same data"
                )


def _check_profiles(first: ScoredRun, second: ScoredRun, task: str) -> None:
    one, other = (run.scores.profiles[task] for run in (first, second))
    if one != other:
        # Without an override where the task's own profile is the right one: it would change the other tasks too.
        override = "" if second.record.profiles[task] == one else f" --profile {one}"
        raise UserError(
            f"profiles of {task} differ: {one} in {first.path}, {other} in {second.path}; run: python -m eval.score "
            f"{second.path}{override}"
        )


def _check_has_examples(run: ScoredRun, other: ScoredRun, task: str) -> None:
    """Check that the other run has all examples of this one."""
    alone = [key for key in run.content if key[0] == task and key not in other.content]
    if alone and other.num_absent:
        raise UserError(
            f"{other.path} lacks {other.num_absent} predictions, of '{alone[0][1]}' of {task} among them; "
            "finish it by its own command, or give the other run's --limit"
        )
    if alone:
        raise UserError(
            f"examples differ: {len(alone)} of {task} are in {run.path} and not in {other.path}, "
            f"'{alone[0][1]}' among them; give both runs the same --limit and --split"
        )


def _changed_part(one: ExampleRecord, other: ExampleRecord) -> str:
    if one.references != other.references:
        return "references"
    return "query" if one.query != other.query else "document"


def compare_runs(
    first: ScoredRun,
    second: ScoredRun,
    metrics: Sequence[str],
    margin: float,
    maxlens: tuple[int | None, int | None] = (None, None),
    claim: str | None = None,
) -> RunComparison:
    """Return what the second run has over the first.

    All rows of a subset make one table, at whose level all claims hold; of each further metric they make one of their
    own. The subset `always_truncated`, between lengths, holds the examples that both truncate, unless that is none or
    all.

    A claim is what is said of the second run, `as-good` or `better`, which it may have recorded beforehand.

    The second run is one that `check_comparable` accepts beside the first. No metrics means all; a metric that a task's
    profile lacks is left out there. Further metrics are named by `NAME.VALUE`, or by NAME for all values. A length that
    is None means each that both have.

    Raises:
        UserError: They have no length and template in common, or no such metric, or a further one of another making.
    """
    shared = shared_metrics(first, second)
    named = {metric: keys for metric in metrics if (keys := shared.named(metric))}
    of_profiles = [metric for metric in metrics if metric not in named]
    table = rows_of(first, second, of_profiles, maxlens) if of_profiles or not metrics else []
    values = shared.values
    keys = [key for keys in named.values() for key in keys] if metrics else list(values)
    further = _further_rows(first, second, {key: values[key] for key in keys}, maxlens)
    if not table and not further:
        raise _nothing_in_common(first, second, maxlens)
    profiles = {task: first.scores.profiles[task] for task in shared_tasks(first, second)}
    asked = Asked(direction=claim, metrics=metrics, margin=margin, maxlens=maxlens)
    recorded = recorded_claim(first, second, asked)
    changed = [
        change
        for one, other in settings_of_both(first, second, maxlens)
        for change in changes_between(first.lines[one], second.lines[other], profiles[one[0]])
    ]
    return RunComparison(
        a=ComparedRun.of(first),
        b=ComparedRun.of(second),
        profiles=profiles,
        margin=margin,
        claim=None if claim is None else describe_claim(second, asked, recorded),
        recorded=None if recorded is None else recorded.recorded,
        differences=differing_settings(first, second),
        comparisons=_compare(table, margin),
        further=[
            row
            for name in shared.metrics
            for row in _compare([row for row in further if metric_of(row.metric) == name], margin)
        ],
        left_out=[] if metrics else list(shared.left_out.values()),
        changed_most=[change for task in profiles for change in _largest(changed, task)],
    )


def rows_of(
    first: ScoredRun,
    second: ScoredRun,
    metrics: Sequence[str],
    maxlens: tuple[int | None, int | None] = (None, None),
) -> list[Compare]:
    """Return what `compare_runs` compares, not yet compared.

    Raises:
        UserError: They have no length and template in common, or no such metric.
    """
    profiles = {task: first.scores.profiles[task] for task in shared_tasks(first, second)}
    _check_metrics(metrics, [*dict.fromkeys(profiles.values())], list(first.scores.further or {}))
    table: list[Compare] = []
    for row in _pairs(first, second, maxlens):
        profile = profiles[next(iter(row.first.values())).task]
        columns = metric_columns(profile)
        table += [row._replace(metric=name, profile=profile) for name in metrics or columns if name in columns]
    if not table:
        raise _nothing_in_common(first, second, maxlens)
    return table


def _further_rows(
    first: ScoredRun,
    second: ScoredRun,
    values: Mapping[str, ValueRecord],
    maxlens: tuple[int | None, int | None],
) -> list[Compare]:
    """Return the same by values of further metrics, without those that no example has on both sides."""
    pairs = list(_pairs(first, second, maxlens)) if values else []
    rows = (row._replace(metric=key, value=about) for key, about in values.items() for row in pairs)
    return [row for row in rows if row.shared()]


def _pairs(first: ScoredRun, second: ScoredRun, maxlens: tuple[int | None, int | None]) -> Iterator[Compare]:
    """Yield the lines of both runs at each setting and subset that they share, as rows without a metric."""
    is_same = _is_same_model(first, second)
    for one, other in settings_of_both(first, second, maxlens):
        for subset, names in _subsets(first.lines[one], second.lines[other]):
            before, after = (
                {name: run.lines[at][name] for name in names} for run, at in ((first, one), (second, other))
            )
            is_one_model = is_same[one[0]] and _answers_alike(before, after)
            yield Compare(before, after, "", subset=subset, is_same_model=is_one_model)


def _compare(table: Sequence[Compare], margin: float) -> list[Comparison]:
    """Return the rows of a table, those of each subset compared together."""
    return [row for subset in SUBSETS for row in compare_lines([row for row in table if row.subset == subset], margin)]


def _answers_alike(before: Mapping[str, ExampleScore], after: Mapping[str, ExampleScore]) -> bool:
    """Return whether the same prompts have the same scores, as of one model that chooses no word at random."""
    row = Compare(before, after, "", is_same_model=True)
    return all(before[name].metrics == after[name].metrics for name in row.shared() if row.has_same_prompt(name))


def _is_same_model(first: ScoredRun, second: ScoredRun) -> dict[str, bool]:
    """Return, by task, whether both runs answer the same prompt in the same way."""
    one, other = (replace(run.record.identity, truncation="") for run in (first, second))
    return {
        task: one == other
        and first.record.think_end_token == second.record.think_end_token
        and first.record.tasks[task].max_new_tokens == second.record.tasks[task].max_new_tokens
        and all(
            template == second.record.tasks[task].templates.get(name)
            for name, template in first.record.tasks[task].templates.items()
        )
        for task in shared_tasks(first, second)
    }


def _largest(changes: Sequence[Change], task: str) -> list[Change]:
    of_task = [one for one in changes if one.task == task]
    return sorted(of_task, key=lambda one: -abs(one.difference))[:_NUM_CHANGED]


def _nothing_in_common(first: ScoredRun, second: ScoredRun, maxlens: tuple[int | None, int | None]) -> UserError:
    flags = [f"--maxlen-{letter} {maxlen}" for letter, maxlen in zip("ab", maxlens, strict=True) if maxlen]
    where = f" with {' and '.join(flags)}" if flags else ""
    has = [
        f"{run.path} has {'; '.join(f'{task} {template} {n:,}' for task, template, n in run.lines)}"
        for run in ([first] if first.path == second.path else [first, second])
    ]
    return UserError(f"no task, template and length in common{where}: {', and '.join(has)}")


def _check_metrics(metrics: Sequence[str], profiles: Sequence[str], further: Sequence[str] = ()) -> None:
    known = dict.fromkeys([*(metric for profile in profiles for metric in metric_columns(profile)), *further])
    for metric in metrics:
        if metric not in known:
            raise UserError(f"profile {', '.join(profiles)} has no metric '{metric}'; known: {', '.join(known)}")


def shared_tasks(first: ScoredRun, second: ScoredRun) -> list[str]:
    """Return the tasks that both have answers of."""
    tasks = [dict.fromkeys(task for task, _ in run.content) for run in (first, second)]
    return [task for task in tasks[0] if task in tasks[1]]


def settings_of_both(
    first: ScoredRun, second: ScoredRun, maxlens: tuple[int | None, int | None]
) -> Iterator[tuple[Setting, Setting]]:
    """Yield the settings of the first run that are compared, each with that of the second."""
    for task, template, maxlen in sorted(first.lines):
        if maxlens[0] in (None, maxlen):
            other = task, _partner(first, second, task, template), maxlen if maxlens[1] is None else maxlens[1]
            if other in second.lines:
                yield (task, template, maxlen), other


def _partner(first: ScoredRun, second: ScoredRun, task: str, template: str) -> str:
    """Return the template that stands beside one of the first run: its own, unless one run alone reads by an encoder.

    Decoders need an instruction that encoder-decoders were not trained with.
    """
    own, others = ({of for name, of, _ in run.lines if name == task} for run in (first, second))
    encoders = [(run.record.identity.engine or {}).get("kind") == ENCODER_DECODER for run in (first, second)]
    if template in others or encoders[0] == encoders[1] or len(own) > 1 or len(others) != 1:
        return template
    return others.pop()


def _subsets(
    first: Mapping[str, ExampleScore], second: Mapping[str, ExampleScore]
) -> Iterator[tuple[Subset, list[str]]]:
    shared = [name for name in first if name in second]
    if shared:
        yield "all", shared
    truncated = [name for name in shared if first[name].is_truncated and second[name].is_truncated]
    lengths = {line.maxlen for lines in (first, second) for line in lines.values()}
    if len(lengths) > 1 and 0 < len(truncated) < len(shared):
        yield "always_truncated", truncated


def differing_settings(first: ScoredRun, second: ScoredRun) -> dict[str, list[Any]]:
    """Return the settings that differ besides model and plan, by name, with both values."""
    one, other = _settings_of_all(first), _settings_of_all(second)
    return {name: [one[name], other[name]] for name in one if name in other and one[name] != other[name]}


def _settings_of_all(run: ScoredRun) -> dict[str, Any]:
    identity = run.record.identity
    found: dict[str, Any] = {
        "engine": describe_engine(identity.engine, run.record.sessions),
        **{f"{name} of the engine": value for name, value in engine_details(identity.engine).items()},
        "dtype": identity.dtype,
        "thinking": thinking_of(run.record),
        "think_end_token": run.record.think_end_token,
    }
    for task, about in run.record.tasks.items():
        settings = settings_of(run.record, task)
        found |= {f"{name} of {task}": value for name, value in settings.items() if name not in found}
        found.setdefault(f"shots of {task}", None)  # of a run without any, beside one that has some
        for name, template in about.templates.items():
            found[f"template {name} of {task}"] = "\n\n".join(filter(None, (template.system, template.text)))
    return found


def name_comparison(comparison: Comparison) -> str:
    """Return task, template and lengths of two runs' comparison, for people."""
    return _name(comparison.task, comparison.first, comparison.second)


def name_row(row: Compare) -> str:
    """Return task, template and lengths of a comparison to be made, for people."""
    [one, *_], [other, *_] = (lines.values() for lines in (row.first, row.second))
    return _name(one.task, one, other)


def _name(task: str, first: ExampleScore | Compared, second: ExampleScore | Compared) -> str:
    templates = dict.fromkeys((first.template, second.template))
    lengths = dict.fromkeys((f"{first.maxlen:,}", f"{second.maxlen:,}"))
    return f"{task}, {' to '.join(templates)}, {' to '.join(lengths)}"


def changes_between(
    first: Mapping[str, ExampleScore], second: Mapping[str, ExampleScore], profile: str
) -> list[Change]:
    """Return how each example of one setting changed, by the mean of the scores that its headline joins.

    The geometric mean of one example is 0 wherever one of its scores is, as ROUGE-2 often is, whatever the others do.
    """
    columns = metric_columns(profile)[headline(profile)]
    shared = [name for name in first if name in second]
    one, other = first[shared[0]], second[shared[0]]
    before, after = (values_of((lines[name] for name in shared), columns).mean(axis=1) for lines in (first, second))
    names = ", ".join(map(metric_name, columns))
    return [
        Change(
            name=_name(one.task, one, other),
            task=one.task,
            metric=columns[0] if len(columns) == 1 else f"mean of {names}",
            id=name,
            a=float(before[index]),
            b=float(after[index]),
            difference=float(after[index] - before[index]),
        )
        for index, name in enumerate(shared)
    ]


def comparison_json(content: RunComparison) -> dict[str, Any]:
    """Return a comparison JSON-ready; a row has `maxlen_a` and `maxlen_b` instead of two sides."""
    claimed = {} if content.claim is None else {"claim": content.claim, "recorded": content.recorded}
    compared = {name: value for name, value in to_json(content).items() if name not in ("claim", "recorded")}
    rows = {name: list(map(_row_json, getattr(content, name))) for name in ("comparisons", "further")}
    return {**compared, **claimed, **rows}


def _row_json(one: Comparison) -> dict[str, Any]:
    row = to_json(one)
    del row["first"], row["second"]
    names = {"name": name_comparison(one), "template": one.first.template}
    return {**names, "maxlen_a": one.first.maxlen, "maxlen_b": one.second.maxlen, **row}
