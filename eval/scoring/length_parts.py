"""How much of a change between two runs a text without a model has, whose length changes in the same way.

ROUGE rises with the number of words. The lead of an answer is the first words of what the model was shown, as many as
the answer has: what it gains from one run to the other, it gains because answers are longer, or because the window is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from eval.records.schema import Estimate, ExampleScore
from eval.scoring.compare_runs import Change, changes_between, settings_of_both
from eval.scoring.examples import Setting, setting_of
from eval.scoring.profiles import headline, metric_range
from eval.scoring.scored_run import ScoredRun
from eval.scoring.significance import mean_interval


@dataclass(frozen=True, kw_only=True)
class LengthPart:
    """A change of the mean score, that of the leads beside it, and what is left.

    Attributes:
        name: Task, template and lengths, for people.
        metric: What is compared, or the mean of what a headline joins.
        words: Words of an answer under the first run and under the second, in the median; None where not recorded.
        change: Of the answers' mean score, as a fraction.
        of_length: The change of the leads' mean score.
        beyond: What is left of the change, with its 95% interval over documents.
    """

    name: str
    metric: str
    words: tuple[float | None, float | None]
    change: float
    of_length: float
    beyond: Estimate


def length_parts(
    first: ScoredRun, second: ScoredRun, maxlens: tuple[int | None, int | None] = (None, None)
) -> Iterator[LengthPart]:
    """Yield what of each change is length, for settings whose answers have leads on both sides."""
    for one, other in settings_of_both(first, second, maxlens):
        leads = first.leads.get(one, {}), second.leads.get(other, {})
        lines = first.lines[one], second.lines[other]
        shared = [name for name in lines[0] if all(name in by_id for by_id in (*lines, *leads))]
        if not shared:
            continue
        profile = first.scores.profiles[one[0]]
        answers, of_leads = (_changes(*sides, shared, profile) for sides in (lines, leads))
        beyond = np.array([answer.difference - lead.difference for answer, lead in zip(answers, of_leads, strict=True)])
        low, high = metric_range(profile, headline(profile))
        most = 2 * (high - low) if math.isfinite(high - low) else math.inf
        yield LengthPart(
            name=answers[0].name,
            metric=answers[0].metric,
            words=(_words(first, one), _words(second, other)),
            change=float(np.mean([answer.difference for answer in answers])),
            of_length=float(np.mean([lead.difference for lead in of_leads])),
            beyond=mean_interval(beyond, [lines[0][name].unit for name in shared], within=(-most, most)),
        )


def _changes(
    first: Mapping[str, ExampleScore], second: Mapping[str, ExampleScore], names: Sequence[str], profile: str
) -> list[Change]:
    before, after = ({name: lines[name] for name in names} for lines in (first, second))
    return changes_between(before, after, profile)


def _words(run: ScoredRun, setting: Setting) -> float | None:
    """Return the words of an answer at a setting, in the median over its examples."""
    [result] = [
        one for one in run.scores.results if (one.kind, one.subset) == ("model", "all") and setting_of(one) == setting
    ]
    return result.words
