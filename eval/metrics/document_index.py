"""Where the words of an answer stand in a document, and which of them a window shows; a document is read once.

    document = index_document(text)
    window = document.window(text[:9000])
    answer = document.answer("A cat sat on the mat.")
    document.seen(answer, 4, window)  # (T - 3,) bools: which runs of 4 words the window has

Words are those of `unicode_words`: letters and digits of any script, folded. What holds the same words is the same.

Array shapes: `W` words of the document, `S` its sentences, `T` words of an answer, `A` its sentences, `N` runs of n
words.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from eval.metrics.unicode_text import unicode_sentence_spans, unicode_words

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

MAX_N = 4
# Items come a document at a time; a prepared one takes some MB.
_MAX_DOCUMENTS = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """An answer in the words of a document.

    Attributes:
        words: Its words in order.
        runs: By n, (N,) numbers of the document's runs of n words; -1 for one that it has nowhere.
        starts: (A + 1,) first word of each sentence, and the number of words.
        text: The answer.
    """

    text: str
    words: list[str]
    runs: dict[int, Ints]
    starts: Ints


class DocumentIndex:
    """Finds runs of words in a document, and in parts of it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._sentences = unicode_sentence_spans(text)
        self._words_of = [unicode_words(text[start:end]) for start, end in self._sentences]
        self._firsts = list(accumulate(map(len, self._words_of), initial=0))
        self.words = [word for words in self._words_of for word in words]
        self.vocabulary = {word: number for number, word in enumerate(dict.fromkeys(self.words))}
        numbers = [self.vocabulary[word] for word in self.words]
        ranks = np.array(numbers, dtype=np.int64)
        self._runs: dict[int, _Runs] = {}
        for n in range(1, MAX_N + 1):
            if n > 1:
                ranks = ranks[:-1] * len(self.vocabulary) + np.array(numbers[n - 1 :], dtype=np.int64)
            self._runs[n] = runs = _Runs.of(ranks)
            ranks = runs.ranks
        self._answers: dict[str, Answer] = {}
        self._windows: dict[str, list[tuple[int, int]] | None] = {}
        self._incidence = _Incidence.of(self._runs[1].ranks, np.diff(self._firsts), len(self.vocabulary))

    @property
    def num_words(self) -> int:
        return len(self.words)

    def window(self, text: str) -> list[tuple[int, int]] | None:
        """Return which words of the document a window shows, as ranges; None where it is no part of the document.

        A window is the beginning, the end, or both with a line break between them. A word that a cut broke is in none.
        """
        if text not in self._windows:
            spans = _locate(text, self.text)
            self._windows[text] = None if spans is None else [self._word_range(*span) for span in spans]
        return self._windows[text]

    def _word_range(self, start: int, end: int) -> tuple[int, int]:
        first, _ = self._words_before(start)
        last, is_cut = self._words_before(end)
        return first, max(first, last - is_cut)

    def _words_before(self, place: int) -> tuple[int, bool]:
        """Return how many words begin before a character, and whether the last of them goes on behind it."""
        index = bisect_right(self._sentences, (place, -1)) - 1
        if index < 0:
            return 0, False
        part = unicode_words(self.text[self._sentences[index][0] : place])
        words = self._words_of[index]
        count = min(len(part), len(words))
        return self._firsts[index] + count, bool(count) and part[count - 1] != words[count - 1]

    def answer(self, text: str) -> Answer:
        """Return an answer in the words of the document."""
        found = self._answers.get(text)
        if found is None:
            sentences = [
                words for start, end in unicode_sentence_spans(text) if (words := unicode_words(text[start:end]))
            ]
            words = [word for of_one in sentences for word in of_one]
            numbers = np.array([self.vocabulary.get(word, -1) for word in words], dtype=np.int64)
            runs, ranks = {}, numbers
            for n in range(1, MAX_N + 1):
                if n > 1:
                    last = numbers[n - 1 :]
                    keys = np.where((ranks[:-1] < 0) | (last < 0), -1, ranks[:-1] * len(self.vocabulary) + last)
                    ranks = self._runs[n].rank(keys)
                runs[n] = ranks
            starts = np.array([0, *accumulate(map(len, sentences))], dtype=np.int64)
            found = self._answers[text] = Answer(text=text, words=words, runs=runs, starts=starts)
        return found

    def seen(self, answer: Answer, n: int, window: list[tuple[int, int]]) -> Bools:
        """Return (N,) bools: which runs of n words of an answer stand within one range of a window."""
        return self._runs[n].seen(answer.runs[n], window, n)

    def longest(self, answer: Answer, window: list[tuple[int, int]]) -> list[int]:
        """Return the lengths of the fragments that an answer shares with a window, from left to right.

        At each word the longest run of words that stands in the window is taken, and the next word is the one after it.

        Source: `F(A, S)` of Grusky et al. 2018, arXiv 1804.11283, figure 3. Deviation: their search goes on behind a
        match, and so misses a longer one that overlaps a shorter one before it, as "a a b" in "a a a b".
        """
        num_words = len(answer.words)
        seen = {n: self.seen(answer, n, window).tolist() for n in range(1, MAX_N + 1)}
        fragments, place = [], 0
        while place < num_words:
            length = 0
            for n in range(1, MAX_N + 1):
                if place + n > num_words or not seen[n][place]:
                    break
                length = n
            if length == MAX_N:
                length = self._extend(answer, place, window)
            if length:
                fragments.append(length)
            place += max(length, 1)
        return fragments

    def _extend(self, answer: Answer, place: int, window: list[tuple[int, int]]) -> int:
        """Return the length of the longest run from a place of which the first words are known to be there."""
        best, words = MAX_N, answer.words
        starts = self._runs[MAX_N].places(int(answer.runs[MAX_N][place]))
        for first, last in window:
            for start in starts:
                if not first <= start <= last - MAX_N:
                    continue
                length, most = MAX_N, min(len(words) - place, last - start)
                while length < most and words[place + length] == self.words[start + length]:
                    length += 1
                best = max(best, length)
        return best

    def matches(self, answer: Answer) -> Floats:
        """Return (A, S) shares of what each sentence of an answer says that stands in each sentence of the document.

        A sentence says its words, each once, with the weight log(1 + S / s) where s sentences of the document have the
        word; one that none has weighs as one that a single sentence has. Words that many have say little.
        """
        return self._incidence.matches(answer.runs[1], answer.starts, answer.words)

    def covered(self, answer: Answer) -> Floats:
        """Return (S,) shares of what each sentence of the document says that stands anywhere in an answer.

        Words weigh as in `matches`; sentences without words have nothing that could stand there, and so 0.
        """
        return self._incidence.covered(answer.runs[1])

    def sentences_in(self, window: list[tuple[int, int]]) -> Bools:
        """Return (S,) bools: which sentences a window shows as a whole; those without a word are in none."""
        starts, ends = np.array(self._firsts[:-1]), np.array(self._firsts[1:])
        shown = np.zeros(len(self._sentences), dtype=np.bool_)
        for first, last in window:
            shown |= (starts >= first) & (ends <= last) & (ends > starts)
        return shown

    def sentences_within(self, spans: Iterable[Sequence[int]]) -> Bools:
        """Return (S,) bools: which sentences with words lie wholly within one of some spans of characters."""
        edges = np.array(self._sentences, dtype=np.int64).reshape(-1, 2)
        found = np.zeros(len(edges), dtype=np.bool_)
        for start, end in spans:
            found |= (edges[:, 0] >= start) & (edges[:, 1] <= end)
        return found & (np.diff(self._firsts) > 0)

    def sentences_touching(self, spans: Iterable[Sequence[int]]) -> Bools:
        """Return (S,) bools: which sentences with words have a character of some spans."""
        edges = np.array(self._sentences, dtype=np.int64).reshape(-1, 2)
        found = np.zeros(len(edges), dtype=np.bool_)
        for start, end in spans:
            found |= (edges[:, 0] < end) & (edges[:, 1] > start)
        return found & (np.diff(self._firsts) > 0)

    def positions(self) -> Floats:
        """Return (S,) places of the sentences' middles, as shares of the document's words."""
        ends = np.array(self._firsts, dtype=np.float64)
        return (ends[:-1] + ends[1:]) / 2 / max(self.num_words, 1)


@lru_cache(maxsize=_MAX_DOCUMENTS)
def index_document(text: str) -> DocumentIndex:
    """Return the index of a document; those of the last few are kept."""
    return DocumentIndex(text)


def _locate(window: str, document: str) -> list[tuple[int, int]] | None:
    """Return which characters of a document a window shows; None where it is no part of the document's ends."""
    low, high = 0, min(len(window), len(document))
    while low < high:  # the longest common beginning, by halves: comparing is fast, and characters one by one are not
        middle = (low + high + 1) // 2
        low, high = (middle, high) if document.startswith(window[:middle]) else (low, middle - 1)
    if low == len(window):
        return [(0, low)]
    rest = window[low:]
    if document.endswith(rest):  # the line break is the document's own, or there is none
        return [*([(0, low)] if low else []), (len(document) - len(rest), len(document))]
    if rest.startswith("\n") and document.endswith(rest[1:]):
        return [(0, low), (len(document) - len(rest) + 1, len(document))]
    return None


@dataclass(frozen=True, kw_only=True, eq=False)
class _Runs:
    """All runs of n words of a document.

    Attributes:
        keys: Distinct runs, in order, as numbers of their first n - 1 words and their last.
        ranks: (W - n + 1,) index of each place's run among the distinct ones.
        order: Places, ordered by run and place, as run * size + place.
    """

    keys: Ints
    ranks: Ints
    order: Ints
    size: int = field(default=1)

    @classmethod
    def of(cls, keys: Ints) -> _Runs:
        distinct, ranks = np.unique(keys, return_inverse=True)
        size = max(len(keys), 1)
        return cls(keys=distinct, ranks=ranks, order=np.sort(ranks * size + np.arange(len(keys))), size=size)

    def rank(self, keys: Ints) -> Ints:
        """Return the index of each run among the distinct ones; -1 for one that is not there."""
        if not len(self.keys):
            return np.full(len(keys), -1, dtype=np.int64)
        found = np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)
        return np.where(self.keys[found] == keys, found, -1)

    def seen(self, ranks: Ints, window: list[tuple[int, int]], n: int) -> Bools:
        """Return whether each run stands in a range of words."""
        shown = np.zeros(len(ranks), dtype=np.bool_)
        if len(self.order):
            for first, last in window:
                found = np.searchsorted(self.order, ranks * self.size + first).clip(max=len(self.order) - 1)
                at = self.order[found]
                shown |= (at >= ranks * self.size + first) & (at <= ranks * self.size + last - n)
        return shown & (ranks >= 0)

    def places(self, rank: int) -> list[int]:
        """Return where a run stands, in order."""
        first, last = np.searchsorted(self.order, [rank * self.size, (rank + 1) * self.size])
        places: list[int] = (self.order[first:last] - rank * self.size).tolist()
        return places


@dataclass(frozen=True, kw_only=True, eq=False)
class _Incidence:
    """Which sentences have which words.

    Attributes:
        starts: Where the sentences of each word begin, by the number of the word.
        sentences: Sentences of each word, one after the other.
        weights: What each word says.
        num_sentences: Sentences of the document.
    """

    starts: Ints
    sentences: Ints
    weights: Floats
    num_sentences: int

    @classmethod
    def of(cls, words: Ints, lengths: Ints, num_words: int) -> _Incidence:
        size = max(len(lengths), 1)
        pairs = np.unique(words * size + np.repeat(np.arange(len(lengths)), lengths))
        counts = np.bincount(pairs // size, minlength=num_words)
        return cls(
            starts=np.concatenate([[0], np.cumsum(counts)]),
            sentences=pairs % size,
            weights=np.log1p(len(lengths) / np.maximum(counts, 1)),
            num_sentences=len(lengths),
        )

    def covered(self, numbers: Ints) -> Floats:
        """Return (S,) shares; see `DocumentIndex.covered`."""
        known = np.zeros(len(self.weights), dtype=np.bool_)
        known[numbers[numbers >= 0]] = True
        counts = np.diff(self.starts)
        weights = np.repeat(self.weights, counts)
        totals = np.bincount(self.sentences, weights=weights, minlength=self.num_sentences)
        sums = np.bincount(self.sentences, weights=weights * np.repeat(known, counts), minlength=self.num_sentences)
        found: Floats = np.divide(sums, totals, out=np.zeros(self.num_sentences), where=totals > 0)
        return found

    def matches(self, numbers: Ints, starts: Ints, words: list[str]) -> Floats:
        """Return (A, S) shares; see `DocumentIndex.matches`."""
        num_answers = len(starts) - 1
        unknown = math.log1p(self.num_sentences)
        totals = np.zeros(max(num_answers, 1))
        rows, distinct = [], []
        for index in range(num_answers):
            first, last = int(starts[index]), int(starts[index + 1])
            known = np.unique(numbers[first:last])
            known = known[known >= 0]
            missing = {word for word, number in zip(words[first:last], numbers[first:last], strict=True) if number < 0}
            totals[index] = self.weights[known].sum() + unknown * len(missing)
            rows.append(np.full(len(known), index))
            distinct.append(known)
        if not num_answers or not self.num_sentences:
            return np.zeros((num_answers, self.num_sentences))
        row, word = np.concatenate(rows), np.concatenate(distinct)
        counts = self.starts[word + 1] - self.starts[word]
        ends = np.cumsum(counts)
        places = np.arange(int(counts.sum())) - np.repeat(ends - counts, counts) + np.repeat(self.starts[word], counts)
        flat = np.repeat(row, counts) * self.num_sentences + self.sentences[places]
        sums = np.bincount(
            flat, weights=np.repeat(self.weights[word], counts), minlength=num_answers * self.num_sentences
        )
        found: Floats = sums.reshape(num_answers, self.num_sentences) / totals[:num_answers, None]
        return found
