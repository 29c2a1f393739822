"""What a prompt shows of a context, as ranges of its tokens in the order of the prompt: the rules of windows.

    shown = RULES["evidence_first"](Frame(num_tokens=9000, budget=800, cut=head), evidence=((5200, 5300),))
    shown.ranges        # ((5200, 5300), (0, 700))

A window never tokenizes anew, so prompts that begin alike share that. `head` needs no rule: a frame's `cut` is what a
run shows without windows. Names are in `eval.records.windows`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from eval.prompting.prompts import PromptBuilder
from eval.prompting.truncation import Frame, Ranges, Shown
from eval.records.windows import EVIDENCE, EVIDENCE_FIRST, ORACLE, WITHOUT_EVIDENCE


def _evidence(frame: Frame, evidence: Ranges) -> Shown:
    ranges = first_tokens(evidence, frame.budget)
    return Shown(ranges, count(evidence) - count(ranges))


def _evidence_first(frame: Frame, evidence: Ranges) -> Shown:
    front = first_tokens(evidence, frame.budget)
    rest = _without(frame, evidence, frame.budget - count(front))
    return Shown(joined([*front, *rest]), frame.num_tokens - count(front) - count(rest))


def _without_evidence(frame: Frame, evidence: Ranges) -> Shown:
    ranges = _without(frame, evidence, frame.budget)
    return Shown(ranges, frame.num_tokens - count(evidence) - count(ranges))


def _oracle(frame: Frame, evidence: Ranges) -> Shown:
    # The oracle picks from the head window, so what head drops is dropped here.
    return Shown(first_tokens(evidence, frame.budget), frame.num_tokens - count(frame.cut(frame.budget)))


RULES: Mapping[str, Callable[[Frame, Ranges], Shown]] = {
    EVIDENCE: _evidence,
    EVIDENCE_FIRST: _evidence_first,
    WITHOUT_EVIDENCE: _without_evidence,
    ORACLE: _oracle,
}


def _without(frame: Frame, evidence: Ranges, budget: int) -> Ranges:
    """Return what the frame shows without the evidence, with what follows moved up into the room."""
    # All of the evidence may lie in what is shown, or none of it.
    shown = frame.cut(min(budget + count(evidence), frame.num_tokens))
    return first_tokens(subtract(shown, evidence), budget)


def count(ranges: Iterable[tuple[int, int]]) -> int:
    """Return how many tokens ranges have."""
    return sum(stop - start for start, stop in ranges)


def first_tokens(ranges: Ranges, budget: int) -> Ranges:
    """Return the first of the tokens of some ranges, at most `budget`."""
    found = []
    for start, stop in ranges:
        stop = min(stop, start + budget)
        budget -= stop - start
        found.append((start, stop))
    return joined(found)


def subtract(ranges: Ranges, others: Ranges) -> Ranges:
    """Return the tokens of some ranges that are in none of the others, which are in order and apart."""
    return joined(piece for one in ranges for piece in _pieces(one, others))


def _pieces(one: tuple[int, int], others: Ranges) -> Iterator[tuple[int, int]]:
    start, stop = one
    for first, last in others:
        yield start, min(first, stop)
        start = max(start, last)
    yield start, stop


def joined(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Return ranges in their order, those that follow each other as one, without empty ones."""
    found: list[tuple[int, int]] = []
    for start, stop in ranges:
        if start >= stop:
            continue
        if found and found[-1][1] == start:
            found[-1] = found[-1][0], stop
        else:
            found.append((start, stop))
    return tuple(found)


def token_ranges(builder: PromptBuilder, context: str, spans: Iterable[tuple[int, int]]) -> Ranges:
    """Return the tokens of a context that hold characters of some spans, which are in order and apart.

    The ends of lines behind a span are part of it, so that passages which are put together stand on lines of their own.
    """
    ranges = builder.passages(context, list(spans)).ranges
    if not ranges or not builder.tokenizer.is_fast:
        return joined(ranges)
    limits = [*(start for start, _ in ranges[1:]), len(builder.context_ids(context))]
    found: list[tuple[int, int]] = []
    for (start, stop), limit in zip(ranges, limits, strict=True):
        while stop < limit and _is_blank(builder, context, stop):
            stop += 1
        found.append((start, stop))
    return joined(found)


def _is_blank(builder: PromptBuilder, context: str, token: int) -> bool:
    [[start, stop]] = builder.spans_of(context, ((token, token + 1),))
    return context[start:stop].isspace()
