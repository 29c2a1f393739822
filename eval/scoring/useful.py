"""How much context is of use: the smallest length that loses less than a margin to every longer one, with an interval.

    [model, oracle] = useful_lengths(scored, margin=0.01)
    model.low, model.observed, model.high  # 1024, 2048, 4096

Documents are few and lengths are compared with each other again and again, so both ends are tested:

- From the greatest length down, each is tested against all longer ones, until one is not shown to be as good. A length
  passes only if it passes against each of them (an intersection-union test), and the first that fails ends the sequence
  (closed testing), so every bound has the level 2.5% and nothing is corrected. `high` is the last that passed.
- From the smallest length up, each is left out that is shown to lose more than the margin to some longer one, by bounds
  that hold for all of these at once. Only the test of the true length can make the interval miss it, so nothing is
  corrected over lengths (an interval by inverted tests). `low` is the first that is not left out.

Both use the bounds of `eval.scoring.claims`, which allow for a document that collapses.

Source: Marcus, Peritz and Gabriel, On closed testing procedures, Biometrika 63 (1976).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from eval.records.schema import ExampleScore, PairedResult, UsefulLength
from eval.records.windows import HEAD, window_of
from eval.scoring.claims import MARGIN
from eval.scoring.comparisons import Compare, compare_lines
from eval.scoring.examples import Scored
from eval.scoring.profiles import headline
from eval.scoring.significance import MIN_DOCUMENTS

_ORACLE = "visible_oracle"

Lines = Mapping[str, ExampleScore]  # by id
# Pairs of places among the lengths -> how the second differs from the first, tested together; less where none has both.
Comparer = Callable[[Sequence[tuple[int, int]]], Sequence[PairedResult]]


class Places(NamedTuple):
    """Places among lengths: both ends of the interval, and between them what was observed."""

    low: int
    observed: int
    high: int


def find_useful(num_lengths: int, compare: Comparer, margin: float) -> Places:
    """Return which of some lengths, in ascending order, is of use."""
    last = num_lengths - 1
    low = observed = None
    for place in range(num_lengths):
        gains = compare([(place, longer) for longer in range(place + 1, num_lengths)]) if place < last else []
        if low is None and not any(one.claim_low is not None and one.claim_low > margin for one in gains):
            low = place
        if all(one.difference < margin for one in gains):
            observed = place
            break
    assert low is not None  # the greatest length has no longer one
    assert observed is not None
    high = last
    while high > observed and _is_as_good(high - 1, num_lengths, compare):
        high -= 1
    return Places(low, observed, high)


def _is_as_good(place: int, num_lengths: int, compare: Comparer) -> bool:
    """Return whether a length is shown to lose less than the margin to each longer one, each tested alone."""
    for longer in range(place + 1, num_lengths):
        found = compare([(longer, place)])
        # The same prompts have the same answers.
        if not found or (found[0].num_examples and not found[0].non_inferior):
            return False
    return True


def useful_lengths(scored: Sequence[Scored], margin: float = MARGIN) -> list[UsefulLength]:
    """Return the useful length of the model and of the visible oracle, by headline metric, task and template.

    What has one length alone is left out, and so are windows that are no beginnings of documents.
    """
    lines: dict[tuple[str, str, bool, str], dict[int, dict[str, ExampleScore]]] = defaultdict(lambda: defaultdict(dict))
    profiles = {one.line.task: one.profile for one in scored}
    for one in scored:
        if (one.is_model or one.line.system == _ORACLE) and window_of(one.line.template) == HEAD:
            line = one.line
            lines[line.task, line.template, one.is_model, line.system][line.maxlen][line.id] = line
    return [
        _useful(by_length, profiles[task], margin, is_model=is_model)
        for (task, _, is_model, _), by_length in lines.items()
        if len(by_length) > 1
    ]


def _useful(by_length: Mapping[int, Lines], profile: str, margin: float, *, is_model: bool) -> UsefulLength:
    lengths, metric = sorted(by_length), headline(profile)

    def row(first: int, second: int) -> Compare:
        return Compare(by_length[lengths[first]], by_length[lengths[second]], metric, profile, is_same_model=True)

    places = find_useful(
        len(lengths), lambda pairs: compare_lines([row(first, second) for first, second in pairs], margin), margin
    )
    ends = row(0, len(lengths) - 1)
    differing = {ends.first[name].unit for name in ends.shared() if not ends.has_same_prompt(name)}
    is_known = not 0 < len(differing) < MIN_DOCUMENTS
    one = next(iter(by_length[lengths[0]].values()))
    return UsefulLength(
        task=one.task,
        template=one.template,
        system=one.system,
        kind="model" if is_model else "yardstick",
        metric=metric,
        margin=margin,
        lengths=lengths,
        observed=lengths[places.observed],
        low=lengths[places.low] if is_known else None,
        high=lengths[places.high] if is_known else None,
        is_open=any(line.is_truncated for line in by_length[lengths[-1]].values()),
        num_documents=len(differing),
    )
