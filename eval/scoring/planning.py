"""How many documents and samples of an answer a run takes, and how long, from one that was made before.

    [plan, *_] = plans_of(pilot, costs, Goal(difference=0.02), num_samples=8)
    plan.num_documents, plan.num_samples, plan.seconds

Documents differ, and so do samples of an answer: a mean over D documents of K samples each has the variance
`(apart + added / K) / D`. A document is read once for all of its samples, so these can be cheaper than more documents.

What a row does not use has to be answered too: documents that both lengths show whole. And `--sample` draws documents,
of which a cluster has several.

Legend: `N` prompts, `K` samples of each, `D` documents or clusters. Scores are fractions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import scipy  # its parts are imported at their first use: `scipy.stats` takes seconds

from eval.scoring.bootstrap import ALPHA, POWER, Floats
from eval.scoring.claims import guarded_loss
from eval.scoring.noise import spread_of
from eval.scoring.significance import MIN_DOCUMENTS

MOST_DOCUMENTS = 1_000_000
# How sure one can be that documents differ no more than planned with, as few do not tell.
_SURE = 0.8
_ROUNDING = 1e-9
_FAR = 20.0  # standard errors: a difference that six documents never hide; scipy has no number for an endless one


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What a run is to reach; one of the first three is set.

    Attributes:
        width: Of the 95% interval, from end to end.
        difference: A true difference that is to be shown.
        margin: Within which a system that loses nothing is to be shown as good.
        power: Share of runs that show it.
    """

    width: float | None = None
    difference: float | None = None
    margin: float | None = None
    power: float = POWER

    def is_reached(self, num_documents: int, error: float, collapse: float) -> bool:
        """Return whether so many documents reach it.

        Args:
            num_documents: At least `MIN_DOCUMENTS`.
            error: Standard error of the mean over them.
            collapse: The most that a document can lose.
        """
        freedom = num_documents - 1
        if self.margin is not None:
            quantile, of_power = (float(scipy.stats.t.ppf(p, freedom)) for p in (1 - ALPHA / 2, self.power))
            return float(guarded_loss(of_power * error, error, num_documents, collapse, quantile)) <= self.margin
        critical = float(scipy.stats.t.ppf(1 - ALPHA / 2, freedom))
        if self.width is not None:
            return 2 * critical * error <= self.width
        assert self.difference is not None
        if not error:
            return True
        return float(scipy.stats.nct.sf(critical, freedom, min(self.difference / error, _FAR))) >= self.power


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Mean seconds of a document or cluster in one process, by length; None where the engine does not tell.

    Attributes:
        prefill: Of all of its prompts, each alone.
        decode: Of one sample of each answer.
        shared: Part of the prefill at the greatest length that is computed for all lengths; None where lengths share
            nothing.
    """

    prefill: dict[int, float] | None
    decode: dict[int, float] | None
    shared: float | None

    def seconds(self, lengths: Sequence[int], num_samples: int) -> float | None:
        """Return the seconds of a document at some lengths."""
        if self.prefill is None or self.decode is None:
            return None
        reading = sum(self.prefill[one] for one in lengths)
        if self.shared is not None:
            reading = self.shared * max(self.prefill[one] for one in lengths)
        return reading + num_samples * sum(self.decode[one] for one in lengths)


@dataclass(frozen=True, kw_only=True)
class Pilot:
    """What an earlier run tells of one thing to be measured.

    Attributes:
        name: What is measured, for people.
        lengths: Lengths that have to be answered for it.
        values: (N, K) scores, or differences of scores.
        documents: (N,) the document or cluster of each prompt.
        collapse: The most that a document can lose.
        share: Part of the answered documents or clusters that this uses.
        per_unit: Documents of each, above one where they are clusters.
    """

    name: str
    lengths: tuple[int, ...]
    values: Floats
    documents: Sequence[object]
    collapse: float
    share: float = 1.0
    per_unit: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run that reaches a goal. Fields of which nothing is known, or which cannot be reached, are None.

    Attributes:
        name: What is measured.
        lengths: Lengths to be answered.
        between: Standard deviation between documents, without what samples add.
        of_samples: Standard deviation that one sample adds to a document; None for a run with one sample.
        num_pilot: Documents of the run that this is planned from.
        num_documents: Documents or clusters that it takes, of those that this uses.
        num_drawn: Documents that `--sample` draws for them.
        at_most: The same should documents differ more than those of the pilot happened to.
        num_samples: Samples of each answer.
        seconds: Of one process, for all that is drawn.
    """

    name: str
    lengths: tuple[int, ...]
    between: float
    of_samples: float | None
    num_pilot: int
    num_documents: int | None
    num_drawn: int | None
    at_most: int | None
    num_samples: int
    seconds: float | None


def plans_of(pilots: Sequence[Pilot], costs: Costs, goal: Goal, most_samples: int) -> Iterator[Plan]:
    """Yield the cheapest run that reaches a goal, for each thing that can be measured.

    Args:
        pilots: What there is to be measured.
        costs: What documents cost.
        goal: What is to be reached.
        most_samples: Samples of an answer at most; a pilot with one sample tells nothing of more.
    """
    for pilot in pilots:
        has_samples = pilot.values.shape[1] > 1
        counts = range(1, (most_samples if has_samples else 1) + 1)
        yield min((_plan(pilot, costs, goal, count) for count in counts), key=cost_of)


def _plan(pilot: Pilot, costs: Costs, goal: Goal, num_samples: int) -> Plan:
    num_pilot = len(set(pilot.documents))
    apart, added = spread_of(pilot.values, pilot.documents)
    # Of a spread that is greater in one of five draws of so many documents.
    factor = (num_pilot - 1) / float(scipy.stats.chi2.ppf(1 - _SURE, num_pilot - 1))

    def fewest(variance: float) -> int | None:
        return _fewest(lambda count: goal.is_reached(count, math.sqrt(variance / count), pilot.collapse))

    count, seconds = fewest(apart + added / num_samples), costs.seconds(pilot.lengths, num_samples)
    return Plan(
        name=pilot.name,
        lengths=pilot.lengths,
        between=math.sqrt(apart),
        of_samples=math.sqrt(added) if pilot.values.shape[1] > 1 else None,
        num_pilot=num_pilot,
        num_documents=count,
        num_drawn=None if count is None else math.ceil(count / pilot.share * pilot.per_unit - _ROUNDING),
        at_most=fewest(factor * (apart + added / num_samples)),
        num_samples=num_samples,
        seconds=None if count is None or seconds is None else count / pilot.share * seconds,
    )


def cost_of(plan: Plan) -> tuple[float, float]:
    """Return what plans are chosen by: seconds, and answers where seconds are not known or equal."""
    if plan.num_drawn is None:
        return math.inf, math.inf
    return plan.seconds or 0.0, float(plan.num_drawn * plan.num_samples * len(plan.lengths))


def _fewest(is_enough: Callable[[int], bool]) -> int | None:
    """Return the smallest number of documents that is enough; None where a million are not.

    Fewer than `MIN_DOCUMENTS` have no interval, whatever they show.
    """
    last = MIN_DOCUMENTS
    if is_enough(last):
        return last
    while not is_enough(last):
        if last >= MOST_DOCUMENTS:
            return None
        last *= 2
    first = last // 2
    while last - first > 1:
        middle = (first + last) // 2
        first, last = (first, middle) if is_enough(middle) else (middle, last)
    return last
