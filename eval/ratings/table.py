"""Agreements -> tables for `eval.meta`, its Markdown file and docs/metrics.md."""

from __future__ import annotations

from eval.metrics.agreement import MARK
from eval.ratings.measure import PEOPLE
from eval.ratings.schema import Agreement, Agreements, Correlation, Ordering, Shift

Rows = list[list[str]]

LEGEND = (
    "r: Pearson's, of the metric with the mean over the raters, positive where both say the same; values of which less "
    "is better are turned round, and those that only describe are as they are. [95% interval], a bootstrap over "
    "documents. within: means of systems removed; of model answers. all: of all model answers. with people's: answers "
    "that people wrote are in as well. pairs: of systems that the means of both put in the same order. one rater: each "
    f"rater against the mean of the others. {MARK}: no interval within systems lies above 0 on any set; reports show "
    "the metric in grey."
)


def name_of(one: Agreement) -> str:
    """Return what a table calls a value of a metric."""
    return one.label if one.metric == PEOPLE else f"{one.metric} {one.label}"


def set_table(content: Agreements, name: str, rating: str) -> Rows:
    """Return a header and a row a value, the best within systems first, of one set and rating; people come first."""
    doubted = {(one.metric, one.value) for one in content.doubted}
    found = [one for one in content.agreements if (one.set, one.rating) == (name, rating)]
    has_human = any(one.with_human for one in found)
    found.sort(key=lambda one: (one.metric != PEOPLE, -_or_least(one.within.r)))
    rows = [["metric", "r within", "Spearman", "Kendall", "r, all", *["with people's"] * has_human, "pairs", "n"]]
    for one in found:
        human = [_r(one.with_human) if one.with_human else "-"] * has_human
        rows.append(
            [
                f"{name_of(one)}{MARK if (one.metric, one.value) in doubted else ''}",
                _r(one.within),
                _number(one.within.spearman),
                _number(one.within.kendall),
                _r(one.pooled),
                *human,
                _pairs(one.between),
                str(one.within.num_summaries),
            ]
        )
    return rows


def length_table(content: Agreements, name: str, rating: str) -> Rows:
    """Return a header and a row a value: the longest input against the shortest, for people and for the metric."""
    rows = [["metric", "input", "people", "metric", "verdict", "r of changes", "pairs"]]
    for one in content.agreements:
        if (one.set, one.rating) != (name, rating) or one.metric == PEOPLE:
            continue
        for effect in one.lengths:
            lengths = f"{effect.shortest:,} to {effect.longest:,}"
            rows.append(
                [
                    name_of(one),
                    f"{effect.condition}, {lengths}" if effect.condition else lengths,
                    _shift(effect.people),
                    _shift(effect.metric),
                    compare_shifts(effect.people, effect.metric, describes=one.better is None),
                    _r(effect.changes),
                    str(effect.num_pairs),
                ]
            )
    return rows


def compare_shifts(people: Shift, metric: Shift, *, describes: bool) -> str:
    """Return whether a metric says of length what people say; a value that only describes cannot be wrong."""
    first, second = _sign(people), _sign(metric)
    if not first or not second:
        return "not settled" if not first else "sees nothing"
    if describes:
        return "rises" if second > 0 else "falls"
    return "same" if first == second else "opposite"


def _sign(shift: Shift) -> int:
    if shift.low is None or shift.high is None:
        return 0
    return 1 if shift.low > 0 else -1 if shift.high < 0 else 0


def describe_skipped(content: Agreements) -> list[str]:
    """Return which metrics could score nothing of a set, a sentence a set."""
    lines: dict[tuple[str, str], list[str]] = {}
    for one in content.skipped:
        lines.setdefault((one.set, " and ".join(one.missing)), []).append(one.metric)
    return [f"Not on {name}, which has no {missing}: {', '.join(names)}." for (name, missing), names in lines.items()]


def sections(content: Agreements, *, is_full: bool) -> list[tuple[str, Rows]]:
    """Return the tables with their titles: of headline ratings, or of all."""
    found: list[tuple[str, Rows]] = []
    for one in content.sets:
        ratings = dict.fromkeys(line.rating for line in content.agreements if line.set == one.name)
        for rating in ratings:
            if rating != one.headline and not is_full:
                continue
            found.append((f"{one.name}, {rating}", set_table(content, one.name, rating)))
            lengths = length_table(content, one.name, rating)
            if len(lengths) > 1:
                found.append((f"{one.name}, {rating}: the longest input against the shortest", lengths))
    return found


def describe_sets(content: Agreements) -> list[str]:
    """Return what each set holds, in a sentence each."""
    return [
        f"{one.name}: {one.num_answers} answers ({one.num_human} by people) about {one.num_documents} documents"
        f"{f', {one.source}' if one.source else ''}."
        for one in content.sets
    ]


def _or_least(value: float | None) -> float:
    return -2.0 if value is None else value


def _r(found: Correlation) -> str:
    interval = "" if found.low is None or found.high is None else f" [{found.low:.2f}, {found.high:.2f}]"
    return f"{_number(found.r)}{interval}"


def _shift(found: Shift) -> str:
    interval = "" if found.low is None or found.high is None else f" [{found.low:+.2f}, {found.high:+.2f}]"
    return f"{found.mean:+.2f}{interval}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _pairs(found: Ordering) -> str:
    return f"{found.num_same} of {found.num_pairs}"
