"""Cut the context field of a prompt, never anything else.

The policies are named for what they keep. Contexts with passages that every length shows are cut around these.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

Ranges = tuple[tuple[int, int], ...]
# What templates ask for, whatever the policy of the run: passages of the context and an even share of what lies between
# them, or both halves of the whole prompt.
AROUND, HALVES = "around", "halves"


def _keep_head(num_tokens: int, budget: int) -> Ranges:
    return ((0, budget),)


def _keep_tail(num_tokens: int, budget: int) -> Ranges:
    return ((num_tokens - budget, num_tokens),)


def _keep_both_ends(num_tokens: int, budget: int) -> Ranges:
    # The beginning gets the odd token.
    tail = budget // 2
    return ((0, budget - tail), (num_tokens - tail, num_tokens))


POLICIES: dict[str, Callable[[int, int], Ranges]] = {
    "head": _keep_head,
    "middle": _keep_both_ends,
    "tail": _keep_tail,
}


def kept_ranges(num_tokens: int, budget: int, policy: str) -> Ranges:
    """Return which of a context's tokens are kept, at most `budget` of them, as ranges with the end left out.

    Kept are its `head`, its `tail`, or both ends (`middle` is dropped); empty ranges are left out.

    Source: dropping the middle is LongBench's way, arXiv 2308.14508, section 4.1.
    """
    assert budget >= 0
    ranges = ((0, num_tokens),) if num_tokens <= budget else POLICIES[policy](num_tokens, budget)
    return tuple((start, stop) for start, stop in ranges if start < stop)


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A context and the room for it, in tokens; `cut` returns what is shown of it within a number of tokens."""

    num_tokens: int
    budget: int
    cut: Callable[[int], Ranges]


class Shown(NamedTuple):
    """Tokens that a prompt shows, in its order, and how many of those that it would have shown did not fit."""

    ranges: Ranges
    num_dropped: int


def show(frame: Frame) -> Shown:
    """Return what is shown of a context where nothing else is asked for."""
    ranges = frame.cut(frame.budget)
    return Shown(ranges, frame.num_tokens - sum(stop - start for start, stop in ranges))


@dataclass(frozen=True, kw_only=True)
class Passages:
    """What every length shows of a context.

    Attributes:
        ranges: Tokens of the passages in order, with the end left out; they do not overlap.
        breaks: Tokens at which sentences begin, ascending: between passages the context is cut there.
    """

    ranges: Ranges
    breaks: Sequence[int] = ()

    @property
    def num_tokens(self) -> int:
        """Return how many tokens the passages have."""
        return sum(stop - start for start, stop in self.ranges)


def thinned_ranges(num_tokens: int, budget: int, passages: Passages) -> Ranges:
    """Return all passages and an even share of what lies between them, at most `budget` tokens, as `kept_ranges`.

    What stands before the first passage loses its beginning, all else its ends, whole sentences where it has any. So
    each passage keeps its depth: the share of the prompt's context that stands before it.
    """
    assert budget >= passages.num_tokens
    if num_tokens <= budget:
        return ((0, num_tokens),) if num_tokens else ()
    room, length = budget - passages.num_tokens, num_tokens - passages.num_tokens
    edges = [0, *(edge for passage in passages.ranges for edge in passage), num_tokens]
    found: list[tuple[int, int]] = []
    passed = used = 0  # tokens between the passages so far, and those of them that are kept
    for index, (start, stop) in enumerate(zip(edges[::2], edges[1::2], strict=True)):
        passed += stop - start
        share = min(room * passed // length - used, stop - start)  # what one sentence leaves free goes to the next
        if index == 0 and passages.ranges:
            gap = (_next_break(passages.breaks, stop - share, stop), stop)
        else:
            gap = (start, _last_break(passages.breaks, start, start + share, stop))
        used += gap[1] - gap[0]
        found += [gap, *passages.ranges[index : index + 1]]
    joined: list[tuple[int, int]] = []
    for start, stop in found:
        if start < stop and joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], stop)
        elif start < stop:
            joined.append((start, stop))
    return tuple(joined)


def _next_break(breaks: Sequence[int], at: int, stop: int) -> int:
    """Return the first break from `at` on, before `stop` or there; `at` itself in a text without breaks."""
    index = bisect_left(breaks, at)
    return (min(breaks[index], stop) if index < len(breaks) else stop) if breaks else at


def _last_break(breaks: Sequence[int], start: int, at: int, stop: int) -> int:
    """Return the last break up to `at`, not before `start`; `at` itself at the gap's end or without breaks."""
    if at == stop or not breaks:
        return at
    index = bisect_right(breaks, at)
    return max(breaks[index - 1], start) if index else start
