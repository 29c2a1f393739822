"""Which of two answers a judge prefers, asked in both orders, so that its liking for a place cancels and is measured.

judge = PairJudge(Path("judge.yaml"))
summarize_pairs(judge.judge([Pair(...)]))
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.errors import UserError
from eval.judging.judge import check_permission, open_replies, provenance_of
from eval.judging.questions import (
    Choice,
    Question,
    UnreadError,
    built_in,
    object_of,
    read_choice,
    read_prompt,
    texts_of,
)
from eval.judging.replies import Asked, read_reply
from eval.judging.settings import read_settings
from eval.records.schema import Estimate, Unit
from eval.scoring.significance import mean_interval

_PLACES = ("first", "second", "query", "references", "document")
_BUILT_IN = "pairwise.v1"
_WORTH = {"first": 0.0, "tie": 0.5, "second": 1.0}
# The first answer in the first place, then in the second.
_ORDERS = (False, True)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two answers to one question about one document.

    Attributes:
        id: Name of the example.
        unit: Document or cluster that intervals resample.
        first: Answer of the first run.
        second: Answer of the second run.
    """

    id: str
    unit: Unit
    query: str | None
    references: tuple[str, ...]
    document: str
    first: str
    second: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a judge said of a pair.

    Attributes:
        choices: By repeat, the answer that is preferred with the first answer in the first place, and in the second;
            None where the reply could not be read.
        unread: Kinds of replies that could not be read.
        asked: The replies; none for two answers that are alike, which is a tie.
    """

    pair: Pair
    choices: list[tuple[Choice | None, Choice | None]]
    unread: list[str] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)

    @property
    def repeats(self) -> list[float]:
        """Return how far the second answer is preferred, from 0 to 1, for each repeat that was read in both orders."""
        return [(_WORTH[one] + _WORTH[other]) / 2 for one, other in self.choices if one and other]

    @property
    def preference(self) -> float | None:
        """Return how far the second answer is preferred, from 0 to 1; None where no repeat was read in both orders.

        One order alone would have the judge's liking for a place in it.
        """
        return statistics.fmean(self.repeats) if self.repeats else None


@dataclass(frozen=True, kw_only=True)
class PairSummary:
    """What a judge said of all pairs.

    Attributes:
        num_pairs: Pairs, of which `num_judged` have a preference and `num_alike` have equal texts.
        preference: How far the second run is preferred: 0.5 is no preference.
        first_place: Share of decided replies that prefer the answer in the first place: 0.5 is no liking for a place.
        agreement: Share of repeats in which both orders name the same answer, or both a tie.
        longer: Share of decided replies that prefer the longer answer.
        spread: Standard deviation of repeats of a pair, in the mean over pairs; None with one repeat.
        unread: Replies that could not be read, by kind.
        num_replies: Replies, read or not.
    """

    num_pairs: int
    num_judged: int
    num_alike: int
    num_documents: int
    preference: Estimate | None
    first_place: Estimate | None
    agreement: float | None
    longer: Estimate | None
    spread: float | None
    unread: dict[str, int]
    num_replies: int


class PairJudge:
    """A judge of pairs.

    Args:
        file: Its YAML file, of mode `pairwise`.
        may_see_documents: Documents may be sent to its address.

    Raises:
        UserError: The file does not fit, another process asks this judge, or documents would be
            sent without permission.
    """

    def __init__(self, file: Path, *, may_see_documents: bool = False) -> None:
        self.settings = read_settings(file)
        if self.settings.mode != "pairwise":
            raise UserError(f"judge {file} is of mode {self.settings.mode}; two runs need one of mode pairwise")
        self.prompt = built_in(_BUILT_IN)
        if self.settings.prompt is not None:
            self.prompt = read_prompt(file.parent / self.settings.prompt, _PLACES, ["first", "second"])
        check_permission(self.prompt, self.settings, may_see_documents)
        self.replies = open_replies(file, self.settings)

    def provenance(self) -> dict[str, Any]:
        """Return what preferences depend on, ready for JSON."""
        return provenance_of(self.settings, [self.prompt])

    def judge(self, pairs: Sequence[Pair]) -> list[Outcome]:
        """Return what the judge says of each pair, after asking what was never asked.

        Raises:
            UserError: The server fails or refuses; replies that came are kept.
        """
        different = [pair for pair in pairs if not _are_alike(pair)]
        self.replies.ask(self._question(pair, is_swapped=order) for pair in different for order in _ORDERS)
        return [self._outcome(pair) for pair in pairs]

    def _question(self, pair: Pair, *, is_swapped: bool) -> Question:
        answers = (pair.second, pair.first) if is_swapped else (pair.first, pair.second)
        texts = texts_of(pair.query, pair.references)
        texts |= {"first": answers[0].strip(), "second": answers[1].strip(), "document": pair.document}
        schema = object_of(better={"type": "string", "enum": ["1", "2", "tie"]})
        return Question(kind="pairwise", text=self.prompt.fill(texts), schema=schema)

    def _outcome(self, pair: Pair) -> Outcome:
        if _are_alike(pair):
            return Outcome(pair=pair, choices=[("tie", "tie")] * self.settings.repeats)
        by_order: list[list[Choice | None]] = []
        unread: list[str] = []
        asked: list[Asked] = []
        for is_swapped in _ORDERS:
            by_order.append([])
            for reply in self.replies.of(self._question(pair, is_swapped=is_swapped)):
                asked.append(reply)
                try:
                    by_order[-1].append(_turned(read_reply(reply, read_choice), is_swapped=is_swapped))
                except UnreadError as error:
                    by_order[-1].append(None)
                    unread.append(error.kind)
        return Outcome(pair=pair, choices=list(zip(*by_order, strict=True)), unread=unread, asked=asked)


def summarize_pairs(outcomes: Sequence[Outcome]) -> PairSummary:
    """Return what a judge said of all pairs, with intervals over documents."""
    judged = [one for one in outcomes if one.preference is not None]
    differing = [one for one in outcomes if not _are_alike(one.pair)]
    both = [(one, other) for outcome in differing for one, other in outcome.choices if one and other]
    spreads = [statistics.stdev(one.repeats) for one in differing if len(one.repeats) > 1]
    of_length = [one for one in differing if _longer(one.pair) != "tie"]
    return PairSummary(
        num_pairs=len(outcomes),
        num_judged=len(judged),
        num_alike=len(outcomes) - len(differing),
        num_documents=len({one.pair.unit for one in judged}),
        preference=_mean((one.preference, one.pair.unit) for one in judged),
        first_place=_mean(_decided(differing, lambda pair, order, choice: choice == ("second" if order else "first"))),
        agreement=statistics.fmean(one == other for one, other in both) if both else None,
        longer=_mean(_decided(of_length, lambda pair, order, choice: choice == _longer(pair))),
        spread=statistics.fmean(spreads) if spreads else None,
        unread=dict(Counter(kind for one in outcomes for kind in one.unread)),
        num_replies=sum(len(one.asked) for one in outcomes),
    )


def _decided(
    outcomes: Iterable[Outcome], holds: Callable[[Pair, bool, Choice], bool]
) -> list[tuple[float | None, Unit]]:
    """Return whether something holds for each reply that is no tie, with the document that it is about."""
    return [
        (float(holds(one.pair, order, choice)), one.pair.unit)
        for one in outcomes
        for choices in one.choices
        for order, choice in zip(_ORDERS, choices, strict=True)
        if choice in ("first", "second")
    ]


def _mean(found: Iterable[tuple[float | None, Unit]]) -> Estimate | None:
    pairs = list(found)
    return mean_interval([value for value, _ in pairs], [unit for _, unit in pairs]) if pairs else None  # type: ignore[arg-type]


def _are_alike(pair: Pair) -> bool:
    return pair.first.split() == pair.second.split()


def _longer(pair: Pair) -> Choice:
    lengths = len(pair.first.split()), len(pair.second.split())
    return "tie" if lengths[0] == lengths[1] else "first" if lengths[0] > lengths[1] else "second"


def _turned(choice: Choice, *, is_swapped: bool) -> Choice:
    """Return the answer that stands in a place."""
    if not is_swapped or choice == "tie":
        return choice
    return "second" if choice == "first" else "first"
