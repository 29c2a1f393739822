"""Documents drawn by a hash of their ids, so that a larger sample contains a smaller one on every machine."""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Iterable, Mapping

from tasks.base import Example


def draw_sample(examples: Iterable[Example], num_documents: int, seed: int) -> tuple[Example, ...]:
    """Return the examples of so many documents, or of all where there are fewer, in the order given.

    Those documents are drawn whose hashes are the smallest. No more than these are held in memory.
    """
    drawn: dict[str, list[tuple[int, Example]]] = {}
    worst: list[tuple[int, str]] = []  # a heap whose first has the greatest hash
    for place, example in enumerate(examples):
        name = example.document_id
        if name not in drawn:
            entry = (-place_of(name, seed), name)
            if len(worst) < num_documents:
                heapq.heappush(worst, entry)
            elif entry > worst[0]:
                del drawn[heapq.heapreplace(worst, entry)[1]]
            else:
                continue
            drawn[name] = []
        drawn[name].append((place, example))
    return tuple(example for _, example in sorted((one for of in drawn.values() for one in of), key=lambda one: one[0]))


def count_strata(read: Mapping[str, str], kept: Iterable[Example]) -> dict[str, list[int]]:
    """Return the number of documents that are kept and that were read, by stratum, the largest first.

    Args:
        read: Stratum of each document that was read, by its id.
    """
    names = {example.document_id for example in kept}
    num_kept = Counter(stratum for name, stratum in read.items() if name in names)
    num_read = sorted(Counter(read.values()).items(), key=lambda item: (-item[1], item[0]))
    return {stratum: [num_kept[stratum], count] for stratum, count in num_read}


def place_of(name: str, seed: int) -> int:
    """Return the place of a document among all that there may be: a sample has those of the smallest."""
    return int.from_bytes(hashlib.sha256(f"{seed}\n{name}".encode(errors="surrogatepass")).digest())
