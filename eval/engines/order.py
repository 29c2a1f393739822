"""In which order prompts about one document go to a server, so that its prefix cache serves them.

    order_of([ids of 1,024 tokens, ids of 8,192, ids of 4,096])  # [(1, None), (2, 1), (0, 2)]

The longest goes first. Each other one waits for the first token of that earlier one with which it begins alike the
furthest: then its keys and values are there. Prompts that share nothing wait for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Caches keep blocks of 16 tokens or more; less in common is not worth a wait.
_LEAST_SHARED = 64


def order_of(prompts: Sequence[Sequence[int]]) -> list[tuple[int, int | None]]:
    """Return the place of each prompt, in the order in which they go out, with the place of the one it waits for."""
    arrays = [np.asarray(prompt, dtype=np.int64) for prompt in prompts]
    longest_first = sorted(range(len(prompts)), key=lambda place: -len(arrays[place]))
    order: list[tuple[int, int | None]] = []
    for number, place in enumerate(longest_first):
        shared, before = max(
            ((_shared(arrays[place], arrays[other]), -other) for other in longest_first[:number]), default=(0, 0)
        )
        order.append((place, -before if shared >= _LEAST_SHARED else None))
    return order


def _shared(one: np.ndarray, other: np.ndarray) -> int:
    """Return how many tokens two prompts have in common at their beginnings."""
    length = min(len(one), len(other))
    differ = np.flatnonzero(one[:length] != other[:length])
    return int(differ[0]) if len(differ) else length
