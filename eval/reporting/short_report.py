"""What a terminal shows of a scored run: one table, what to check, and last of all what the scores mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from eval.metrics.agreement import MARK, SHORT_LEGEND
from eval.records.read_run import RunInputs
from eval.records.schema import Result, RunRecord, Scores
from eval.reporting.checks import all_checks
from eval.reporting.columns import (
    BASELINE_STYLES,
    ENDED,
    MAXLEN,
    WORDS,
    Column,
    N,
    metric_heading,
    percent,
    percent_mean,
    score,
    text,
)
from eval.reporting.finding import meanings
from eval.reporting.further_tables import further_tables
from eval.reporting.tables import Rows, as_columns, describe_intervals, select, table_of
from eval.reporting.terminal import fill, width
from eval.reporting.windows import WINDOWS_REMARK, window_meanings, windows_table
from eval.scoring.baselines import ORACLES
from eval.scoring.profiles import describe_profiles, headline

# Of each, the first that there is: with as many words as the answer, else with as many as it takes.
_BASELINES = (ORACLES, ("matched_lead",), ("common_answer",))


def render_short(inputs: RunInputs, scores: Scores) -> str:
    """Return the scores of a run, what to check before trusting them, and last what they mean."""
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
    rows = score_table(models, scores.results)
    table = as_columns(rows, width(), num_names=rows[0].index(N.heading))
    if MARK in table:
        caption += f"; {SHORT_LEGEND}"
    parts = [fill(caption), table, *_further(inputs.record, scores), *_windows(inputs.record, scores)]
    if found := list(all_checks(inputs, scores)):
        parts.append("\n".join(["Check before you trust this:", *(fill(f"- {line}") for line in found)]))
    sentences = [*meanings(inputs.record, scores), *window_meanings(inputs.record, scores)]
    return "\n\n".join([*parts, "\n".join(map(fill, sentences))])


def _windows(record: RunRecord, scores: Scores) -> Iterator[str]:
    """Yield the table of contrasts of each task with windows."""
    for task in record.tasks:
        if rows := windows_table(scores, task, is_short=True):
            yield "\n".join([fill(f"Windows of {task}. {WINDOWS_REMARK}"), "", as_columns(rows, width())])


def _further(record: RunRecord, scores: Scores) -> Iterator[str]:
    """Yield the table of each further metric."""
    for task, about in record.tasks.items():
        for template in about.templates:
            for title, remark, rows in further_tables(scores, task, template):
                yield "\n".join([title, fill(remark), "", as_columns(rows, width())])


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
    # Profiles with the same headline may have other metrics each.
    shared = set.intersection(*(set(result.metrics) for result in models)) - set(names)
    others = [name for name in models[0].metrics if name in shared] if len(names) == 1 else []
    # Under several profiles of these metrics, a mark would be of some rows alone.
    profiles = {result.profile for result in models}
    columns = [score(name, *(profiles if len(profiles) == 1 else ())) for name in others]
    wide = table_of([*before, headlines, *columns, *after], models)
    is_narrow = len(as_columns(wide).partition("\n")[0]) <= width()
    return wide if is_narrow else table_of([*before, headlines, *after], models)
