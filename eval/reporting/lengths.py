"""Warnings where scores compare the lengths of texts before anything else, or lose their letters."""

from __future__ import annotations

from eval.records.schema import Scores
from eval.reporting.columns import ended_by_length
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
        answers = f"Answers of {task}, template {template},"
        warnings = found.setdefault(task, [])
        ended = [one for one in of_template if (one.num_ended_by_length or 0) > _MOST_ENDED * one.num_examples]
        if ended:
            shares = ", ".join(f"{ended_by_length(one)} at {one.maxlen:,}" for one in ended)
            warnings.append(
                f"{answers} used up their room ({shares}), so their beginnings are scored. Raise --max-new-tokens."
            )
        wanted = scores.yardsticks[task].word_budget
        words = {one.maxlen: one.words for one in of_template if one.words is not None and wanted}
        apart = {
            maxlen: count
            for maxlen, count in words.items()
            if wanted and not wanted / _MOST_APART <= count <= wanted * _MOST_APART
        }
        if apart:
            counts = ", ".join(f"{count:.0f} at {maxlen:,}" for maxlen, count in apart.items())
            warnings.append(
                f"{answers} are of another length than references ({counts} words in the median, against {wanted}). "
                "Scores rise and fall with length: compare them with lead and oracle at the answers' length alone."
            )
    return found
