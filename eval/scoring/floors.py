"""Floors and ceilings of any metric, made from references alone.

- `reference`: the first reference, beside the others where there are several, else beside itself: what a person scores.
- `shuffled_reference`: its sentences in another order, beside the same: what the metric sees of order.
- `foreign_reference`: the first reference of an example about another document, beside all references: what a text of
  the right kind scores that says nothing of this document.

Nothing is left to chance: sentences are shuffled with a seed made of the example's name, and examples follow each other
by a hash of their names.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from eval.metrics.unicode_text import unicode_sentences
from eval.records.schema import ExampleRecord

FLOORS = ("foreign_reference", "shuffled_reference", "reference")


class Floor(NamedTuple):
    """A text, and the references that it stands beside."""

    system: str
    text: str
    references: Sequence[str]


class Floors:
    """Makes the floors and ceilings of the examples of one task."""

    def __init__(self, examples: Iterable[ExampleRecord]) -> None:
        self._order = sorted(examples, key=lambda one: hashlib.sha256(one.id.encode(errors="surrogatepass")).digest())
        self._places = {one.id: place for place, one in enumerate(self._order)}

    def beside(self, example: ExampleRecord) -> list[Floor]:
        """Return the floors and ceilings of an example; a task with one document has no foreign reference."""
        first, *others = example.references
        beside = others or [first]
        rows = [
            Floor("shuffled_reference", shuffled(first, f"{example.task} {example.id}"), beside),
            Floor("reference", first, beside),
        ]
        foreign = self._foreign(example)
        return rows if foreign is None else [Floor("foreign_reference", foreign, example.references), *rows]

    def _foreign(self, example: ExampleRecord) -> str | None:
        place = self._places[example.id]
        for other in (*self._order[place + 1 :], *self._order[:place]):
            if other.unit != example.unit and other.references[0] not in example.references:
                return other.references[0]
        return None


def shuffled(text: str, seed: str) -> str:
    """Return the sentences of a text in another order, one a line; a text of one sentence stays as it is."""
    sentences = unicode_sentences(text)
    if len(set(sentences)) < 2:
        return text
    order, chance = list(sentences), random.Random(seed)
    while order == sentences:
        chance.shuffle(order)
    return "\n".join(order)
