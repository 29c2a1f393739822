"""Cut the context field of a prompt, never anything else.

The policies are named for what they keep.
"""

from __future__ import annotations

from collections.abc import Callable

Ranges = tuple[tuple[int, int], ...]


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
