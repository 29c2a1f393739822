"""Warnings where scores compare the lengths of texts before anything else, or lose their letters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from eval.records.schema import Result, Scores
from eval.reporting.columns import num_answers
from eval.reporting.tables import select
from eval.scoring.letters import describe_letters

# Share of answers that used up their room, and ratio of words, beyond which a warning is due.
_MOST_ENDED = 0.2
_MOST_APART = 1.5


def warnings_on_letters(scores: Scores) -> dict[str, list[str]]:
    """Return what profiles lose of the references, in sentences by task."""
    return {task: describe_letters(task, scores.profiles[task], one) for task, one in scores.letters.items()}


def warnings_on_lengths(scores: Scores) -> dict[str, list[str]]:
    """Return where answers end by length, or are much longer or shorter than references, in sentences by task."""
    models = select(scores.results, subset="all", kind="model")
    found: dict[str, list[str]] = {}
    for task, template in dict.fromkeys((one.task, one.template) for one in models):
        of_template = sorted(select(models, task=task, template=template), key=lambda one: one.maxlen)
        warnings = _warnings(of_template, scores.yardsticks[task].word_budget)
        found.setdefault(task, []).extend(f"Answers of {task}, template {template}, {text}" for text in warnings)
    return found


def _warnings(results: Sequence[Result], wanted: int | None) -> Iterator[str]:
    """Yield what is wrong with the lengths of a template's answers; references have so many words in the median."""
    shares = {one.maxlen: (one.num_ended_by_length or 0) / num_answers(one) for one in results}
    ended = {maxlen: 100 * share for maxlen, share in shares.items() if share > _MOST_ENDED}
    if ended:
        counts = _counts(ended, len(results), "%")
        yield f"used up their room ({counts}), so their beginnings are scored. Raise --max-new-tokens."
    words = {one.maxlen: one.words for one in results if one.words is not None and wanted}
    apart = {
        maxlen: count
        for maxlen, count in words.items()
        if wanted and not wanted / _MOST_APART <= count <= wanted * _MOST_APART
    }
    if apart:
        counts = _counts(apart, len(results), " words")
        yield (
            f"are of another length than references ({counts}, against {wanted}, in the median). Scores rise and fall "
            "with length: compare them with lead and oracle at the answers' length alone."
        )


def _counts(by_length: Mapping[int, float], num_lengths: int, unit: str) -> str:
    """Return numbers by maxlen; their range where all lengths have one."""
    low, high = min(by_length.values()), max(by_length.values())
    if len(by_length) == num_lengths > 1:
        return f"{low:.0f}{f' to {high:.0f}' * (f'{low:.0f}' != f'{high:.0f}')}{unit} at every length"
    return ", ".join(f"{value:.0f}{unit} at {maxlen:,}" for maxlen, value in by_length.items())
