"""How much in a window stands behind a sentence.

evidence = Evidence("Rain fell. The river rose by 3 m.", encoder)
evidence.of(["The river rose by 4 m."])     # (1, 5): copied 0.5, one sentence 0.8, nearest 0.97, found 0.0, words
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from eval.metrics.diagnostics import names_of, numbers_of
from eval.metrics.encoder import Encoder
from eval.metrics.unicode_text import unicode_sentences, unicode_words

FEATURES = ("copied", "one_sentence", "nearest", "found", "words")
_COPIED = 4
# Shorter words, such as "the", are in every text.
_LETTERS = 4


class Evidence:
    """What a window says, ready to be compared with sentences."""

    def __init__(self, window: str, encoder: Encoder) -> None:
        self._encoder = encoder
        sentences = unicode_sentences(window)
        words = unicode_words(window)
        self._words = frozenset(words)
        self._numbers = numbers_of(window)
        self._runs = {n: frozenset(_runs(words, n)) for n in range(1, _COPIED + 1)}
        self._holders: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
        for index, sentence in enumerate(sentences):
            found = unicode_words(sentence)
            for run in {*pairwise(found), *_runs(found, 1)}:
                self._holders[run].append(index)
        self._vectors = encoder.embed(sentences)

    def of(self, sentences: Sequence[str]) -> NDArray[np.float64]:
        """Return the `FEATURES` of sentences that have words (N, 5), each within 0 to 1.

        copied: Share of runs of four words that the window has; runs are as long as a shorter sentence.
        one_sentence: Greatest share of pairs of words that one sentence of the window has, as precision of ROUGE-2.
        nearest: Greatest cosine of a sentence of the window, 0 where it is negative.
        found: Share of numbers and names that the window has; 1 where there are none.
        words: Share of words of four letters or more that the window has, each once.
        """
        if not sentences:
            return np.zeros((0, len(FEATURES)))
        nearest = np.zeros(len(sentences))
        if len(self._vectors):
            nearest = (self._encoder.embed(sentences) @ self._vectors.T).max(axis=1).clip(0.0, 1.0)
        split = [unicode_words(sentence) for sentence in sentences]
        by_words = [(self._copied(words), self._one(words)) for words in split]
        found = [(self._found(sentence), self._long(words)) for sentence, words in zip(sentences, split, strict=True)]
        return np.column_stack([np.array(by_words), nearest, np.array(found)])

    def _copied(self, words: list[str]) -> float:
        runs = _runs(words, min(_COPIED, len(words)))
        return sum(run in self._runs[len(run)] for run in runs) / len(runs)

    def _one(self, words: list[str]) -> float:
        pairs = set(_runs(words, min(2, len(words))))
        counts = Counter(index for pair in pairs for index in self._holders.get(pair, ()))
        return max(counts.values(), default=0) / len(pairs)

    def _found(self, sentence: str) -> float:
        numbers, names = numbers_of(sentence), names_of(sentence)
        known = len(numbers & self._numbers) + len(names & self._words)
        return known / (len(numbers) + len(names)) if numbers or names else 1.0

    def _long(self, words: list[str]) -> float:
        distinct = {word for word in words if len(word) >= _LETTERS} or set(words)
        return len(distinct & self._words) / len(distinct)


def _runs(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
