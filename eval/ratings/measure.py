"""Metrics and sets of rated answers -> how well each value of each metric agrees with each rating.

A profile of ROUGE, chrF or answers counts as a metric. An answer that lacks what a metric needs is left out, and a
metric that can score none of a set is listed with what is missing.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from eval.errors import UserError
from eval.metrics.base import Item, Metric, Scores, checked_scores
from eval.metrics.open import BUILT_IN, open_metric
from eval.ratings.correlation import correlate, deviation_within, mean_shift, order_systems
from eval.ratings.judged import Judgements, RatedAnswer
from eval.ratings.schema import Agreement, Agreements, Correlation, Doubted, LengthEffect, RatedSet, Skipped
from eval.scoring.examples import SCORING_VERSION
from eval.scoring.profiles import PROFILES, score_prediction

# Profiles of short answers say nothing of summaries, and the published sets have no others.
_PROFILES = [name for name, profile in PROFILES.items() if not profile.has_common_answer]
# Built-in metrics that are of something that a user names.
_WITH_ARGUMENT = {"evaluate"}
_FEWEST = 10  # answers that have a correlation: of four it can be anything
PEOPLE = "people"


class ProfileMetric(Metric):
    """A scoring profile as a metric."""

    needs = frozenset({"references"})

    def __init__(self, profile: str) -> None:
        self.name = profile
        self.version = SCORING_VERSION
        self.values = PROFILES[profile].metrics

    def score(self, batch: Sequence[Item]) -> list[Scores]:
        return [dict(score_prediction(self.name, item.prediction, item.references)) for item in batch]


def default_metrics() -> tuple[list[Metric], list[str]]:
    """Return all profiles of long texts and all built-in metrics that open without an argument, and why others do not.

    Reasons are lines for people: a metric may need a package that is not there.
    """
    metrics: list[Metric] = [ProfileMetric(name) for name in _PROFILES]
    reasons = []
    for name in BUILT_IN:
        if name in _WITH_ARGUMENT:
            continue
        try:
            metrics.append(open_metric(name))
        except UserError as error:
            reasons.append(f"left out: {error}")
    return metrics, reasons


def open_named(name: str, others: Mapping[str, Callable[[str], Metric]]) -> Metric:
    """Return a profile or another metric.

    Args:
        name: As `--metrics` has it.
        others: As `open_metric` takes them.

    Raises:
        UserError: Nothing has the name, or it cannot be opened here.
    """
    return ProfileMetric(name) if name in PROFILES else open_metric(name, others)


def measure(sets: Sequence[Judgements], metrics: Sequence[Metric]) -> Agreements:
    """Return the agreement of all values of these metrics with all ratings of these sets.

    Raises:
        UserError: Two sets have one name, or a metric gives what it may not give.
    """
    names = [one.name for one in sets]
    if len(set(names)) < len(names):
        raise UserError(f"two sets are called {max(names, key=names.count)}; rename a file")
    agreements: list[Agreement] = []
    skipped = []
    for one in sets:
        agreements += _of_people(one)
        for metric in tqdm(metrics, desc=one.name, leave=False, disable=None):
            scored, missing = _scores(metric, one.answers)
            agreements += _of_metric(one, metric, scored)
            if not scored:
                skipped.append(Skipped(metric=metric.name, set=one.name, missing=missing))
    return Agreements(
        sets=[_describe(one) for one in sets],
        provenance={metric.name: metric.provenance() for metric in metrics},
        doubted=list(_doubted(agreements)),
        agreements=agreements,
        skipped=skipped,
    )


def _of_metric(one: Judgements, metric: Metric, scored: Sequence[tuple[RatedAnswer, Scores]]) -> Iterator[Agreement]:
    """Yield the agreement of each value of a metric with each rating of a set, where enough is rated."""
    for value, about in metric.values.items():
        sign = -1.0 if about.better == "lower" else 1.0
        numbers = [(answer, sign * number) for answer, row in scored if (number := row[value]) is not None]
        for rating in one.ratings:
            rated = [
                (answer, number, given) for answer, number in numbers if (given := answer.rating(rating)) is not None
            ]
            of_models = [line for line in rated if not line[0].is_human]
            if len(of_models) < _FEWEST:
                continue
            answers, xs, ys = zip(*of_models, strict=True)
            yield Agreement(
                metric=metric.name,
                version=metric.version,
                value=value,
                label=about.label,
                better=about.better,
                set=one.name,
                rating=rating,
                is_headline=rating == one.headline,
                within=_correlate(of_models, by_group=True),
                pooled=_correlate(of_models, by_group=False),
                with_human=_correlate(rated, by_group=False) if len(rated) > len(of_models) else None,
                between=order_systems(xs, ys, [answer.group[1:] for answer in answers]),
                lengths=list(_length_effects(of_models)),
            )


def _describe(one: Judgements) -> RatedSet:
    return RatedSet(
        name=one.name,
        source=one.source,
        sha256=one.sha256,
        headline=one.headline,
        num_documents=len({answer.unit for answer in one.answers}),
        num_answers=len(one.answers),
        num_human=sum(answer.is_human for answer in one.answers),
        systems=sorted({answer.system for answer in one.answers}),
    )


def _scores(metric: Metric, answers: Sequence[RatedAnswer]) -> tuple[list[tuple[RatedAnswer, Scores]], list[str]]:
    """Return the answers that can be scored with their scores, and what the first of the others lacks."""
    able = [answer for answer in answers if not answer.item.lacks(metric.needs)]
    missing = next((found for answer in answers if (found := answer.item.lacks(metric.needs))), [])
    rows: list[Scores] = []
    for start in range(0, len(able), metric.batch_size):
        rows += checked_scores(metric, [answer.item for answer in able[start : start + metric.batch_size]])
    return list(zip(able, rows, strict=True)), missing


_Rated = tuple[RatedAnswer, float, float]


def _correlate(rated: Iterable[_Rated], *, by_group: bool) -> Correlation:
    answers, x, y = zip(*rated, strict=True)
    groups = [answer.group if by_group else None for answer in answers]
    return correlate(x, y, groups, [answer.unit for answer in answers])


def _length_effects(rated: Sequence[_Rated]) -> Iterator[LengthEffect]:
    """Yield, for each way to shorten the input, what people and the metric say of the longest against the shortest."""
    lengths = {answer.length for answer, _, _ in rated if answer.length is not None}
    if len(lengths) < 2:
        return
    ends = min(lengths), max(lengths)
    pairs: dict[str, dict[tuple[Any, ...], dict[int, _Rated]]] = defaultdict(lambda: defaultdict(dict))
    for one in rated:
        answer = one[0]
        if answer.length in ends:
            pairs[answer.condition][answer.subset, answer.id, answer.system][answer.length] = one
    groups = [answer.group for answer, _, _ in rated]
    spread_x = deviation_within([number for _, number, _ in rated], groups)
    spread_y = deviation_within([given for _, _, given in rated], groups)
    for condition, by_answer in pairs.items():
        both = [(found[ends[0]], found[ends[1]]) for found in by_answer.values() if len(found) == 2]
        if len(both) < _FEWEST or not spread_x or not spread_y:
            continue
        changes = [(after[1] - before[1], after[2] - before[2]) for before, after in both]
        x, y = zip(*changes, strict=True)
        units = [before[0].unit for before, _ in both]
        yield LengthEffect(
            condition=condition,
            shortest=ends[0],
            longest=ends[1],
            num_pairs=len(both),
            people=mean_shift(y, units, spread_y),
            metric=mean_shift(x, units, spread_x),
            changes=correlate(x, y, [(before[0].subset, before[0].system) for before, _ in both], units),
        )


def _of_people(one: Judgements) -> Iterator[Agreement]:
    """Yield, for each rating, how well one rater agrees with the mean of the others: what no metric need exceed."""
    for rating in one.ratings:
        rated = []
        for answer in one.answers:
            given = answer.ratings.get(rating, ())
            for index, value in enumerate(given):
                others = [other for place, other in enumerate(given) if place != index and other is not None]
                if value is not None and others and not answer.is_human:
                    rated.append((answer, index, value, statistics.fmean(others)))
        if len(rated) < _FEWEST:
            continue
        answers, raters, x, y = zip(*rated, strict=True)
        units = [answer.unit for answer in answers]
        # Raters use a scale in ways of their own.
        groups = [(*answer.group, rater) for answer, rater in zip(answers, raters, strict=True)]
        yield Agreement(
            metric=PEOPLE,
            version=1,
            value="rater",
            label="one rater",
            better="higher",
            set=one.name,
            rating=rating,
            is_headline=rating == one.headline,
            within=correlate(x, y, groups, units),
            pooled=correlate(x, y, raters, units),
            with_human=None,
            between=order_systems(x, y, [answer.group[1:] for answer in answers]),
            lengths=[],
        )


def _doubted(agreements: Iterable[Agreement]) -> Iterator[Doubted]:
    """Yield the values of which no headline interval within systems lies on the side that they call better.

    A value that only describes may lie on either side of 0. Without an interval it was not tested, and is not in doubt.
    """
    by_value: dict[Doubted, list[Agreement]] = defaultdict(list)
    for one in agreements:
        if one.is_headline and one.metric != PEOPLE:
            by_value[Doubted(metric=one.metric, version=one.version, value=one.value)].append(one)
    for value, found in by_value.items():
        is_tested = any(one.within.low is not None for one in found)
        if is_tested and not any(map(_agrees, found)):
            yield value


def _agrees(one: Agreement) -> bool:
    low, high = one.within.low, one.within.high
    return low is not None and high is not None and (low > 0 or (high < 0 and one.better is None))


def rounded(value: Any, digits: int = 4) -> Any:
    """Return JSON-ready values with numbers of so many digits: more are noise, and make the file long."""
    if isinstance(value, float):
        return round(value, digits) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: rounded(one, digits) for name, one in value.items()}
    return [rounded(one, digits) for one in value] if isinstance(value, list) else value
