"""In which order prompts about one document go to a server, so that its prefix cache serves them.

    order_of([ids of 8,192 tokens, ids of 1,024, ids of 4,096])  # [(1, None), (2, 1), (0, 2)]

The shortest goes first. Each other one waits for the first token of that earlier one with which it begins alike the
furthest: then its keys and values are there. Prompts that share nothing wait for nothing.

A cache of full attention would serve the longest first as well. One of windows holds the end of a prompt alone: of a
longer one nothing is left that a shorter one could use (vLLM 0.32: 700 tokens, then 400 of them: none cached; 700, then
1,000 that begin with them: 640).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Caches keep blocks of 16 tokens or more; less in common is not worth a wait.
_LEAST_SHARED = 64


def order_of(prompts: Sequence[Sequence[int]]) -> list[tuple[int, int | None]]:
    """Return the place of each prompt, in the order in which they go out, with the place of the one it waits for."""
    arrays = [np.asarray(prompt, dtype=np.int64) for prompt in prompts]
    shortest_first = sorted(range(len(prompts)), key=lambda place: len(arrays[place]))
    order: list[tuple[int, int | None]] = []
    for number, place in enumerate(shortest_first):
        before: int | None = None
        most = _LEAST_SHARED
        for earlier in shortest_first[:number]:
            # Of several that share as much, the last: its end is nearest.
            if (shared := _shared(arrays[place], arrays[earlier])) >= most:
                before, most = earlier, shared
        order.append((place, before))
    return order


def _shared(one: np.ndarray, other: np.ndarray) -> int:
    """Return how many tokens two prompts have in common at their beginnings."""
    length = min(len(one), len(other))
    differ = np.flatnonzero(one[:length] != other[:length])
    return int(differ[0]) if len(differ) else length
