"""Cut the context field of a prompt, never anything else.

The policies are named for what they keep.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence


def _keep_head(context: Sequence[int], budget: int) -> list[int]:
    return list(context[:budget])


def _keep_tail(context: Sequence[int], budget: int) -> list[int]:
    return list(context[len(context) - budget :])


def _keep_both_ends(context: Sequence[int], budget: int) -> list[int]:
    # The beginning gets the odd token.
    tail = budget // 2
    return [*context[: budget - tail], *context[len(context) - tail :]]


POLICIES: dict[str, Callable[[Sequence[int], int], list[int]]] = {
    "head": _keep_head,
    "middle": _keep_both_ends,
    "tail": _keep_tail,
}


def truncate(context: Sequence[int], budget: int, policy: str) -> list[int]:
    """Return at most `budget` tokens of the context: its `head`, its `tail`, or both ends (`middle` is dropped).

    Source: dropping the middle is LongBench's way, arXiv 2308.14508, section 4.1.
    """
    assert budget >= 0
    return list(context) if len(context) <= budget else POLICIES[policy](context, budget)
