"""Baselines: texts that need no model, made from the part of the document that a model was shown.

    document = prepare_document(text, PROFILES["hf"].objective)
    rows = document_baselines(document, {1024: [(0, 4700)], 2048: [(0, 9400)]}, references, query, budget)
    [row.system for row in rows[1024]] -> ["lead", "tail", "query_echo", "visible_oracle"]

- `lead`, `tail`: the first and the last words that were shown, as many as the budget allows. `eval.scoring.beside` has
  those with as many words as an answer, and the floor of the oracle.
- `query_echo`: the query itself, where there is one.
- `visible_oracle`: sentences that were shown, picked with the references in hand. It tells "the information was not in
  the window" from "the model did not use it". It is no strict ceiling: the search is greedy, takes whole sentences, and
  maximizes its own objective, so a model can score higher.
- `common_answer`: the reference that most examples of the task have; for short answers and choices alone.

The oracle of summaries maximizes ROUGE-1 F + ROUGE-2 F against the best reference, in the profile's words; bigrams lie
within one sentence. The oracle of short answers maximizes their F1 without a budget: a sentence is longer than most
answers, and F1 has its own price for words that are too many. Sentences are those of `unicode_sentence_spans`, and end
at a line break too, because tasks put a heading, a paragraph or a turn on a line of its own.

Array shapes: `S` sentences of the document, `W` words of the document, `N` n-grams of the reference that the document
has too, `E` pairs of a sentence and such an n-gram, `C` sets of sentences. A last axis of 2 is unigrams and bigrams.
"""

from __future__ import annotations

import itertools
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval.metrics.answers import answer_words
from eval.metrics.unicode_text import counted_words, first_words, lacks_spaces, last_words, unicode_sentence_spans
from eval.records.schema import Baselines
from eval.scoring.profiles import PROFILES, Objective

# Of the two, the first that there is: with as many words as the answer, else with as many as it takes.
ORACLES = ("matched_oracle", "visible_oracle")

Span = tuple[int, int]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# A line without the white space around it.
_LINE = re.compile(r"\S(?:[^\n]*\S)?")


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A text that needs no model.

    The oracle alone has sentences, as character spans of the document in order, and the objective that it reached.
    """

    system: str
    text: str
    sentences: tuple[Span, ...] = ()
    objective: float | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedDocument:
    """A document's sentences as counts, made once for all its examples and windows.

    Attributes:
        spans: (S, 2) characters where sentences begin and end.
        lengths: (S,) words, as the budget counts them.
        sizes: (S, 2) words and bigrams, as the objective counts them.
        words: (W,) numbers of the words, sentence after sentence.
        word_rows: (W,) the sentence of each word.
        bigrams: Number of the first word times the size of the vocabulary, plus number of the second.
        bigram_rows: The sentence of each bigram.
    """

    text: str
    objective: Objective
    spans: Ints
    lengths: Ints
    sizes: Ints
    vocabulary: dict[str, int]
    words: Ints
    word_rows: Ints
    bigrams: Ints
    bigram_rows: Ints


@dataclass(frozen=True, kw_only=True, eq=False)
class _Choice:
    """Sentences, how often they have each of the (N,) n-grams, and the value of the objective."""

    sentences: list[int]
    counts: Floats
    value: float


def describe_objective(profile: str) -> str | None:
    """Return the oracle's objective in words, for reports; None where there is no oracle."""
    objective = PROFILES[profile].objective
    if objective is None:
        return None
    if objective.is_of_summaries:
        return (
            f"ROUGE-1 F + ROUGE-2 F against the best reference, words as profile {profile} has them, "
            "bigrams within a sentence"
        )
    return f"F1 against the best reference, words as profile {profile} has them, of as many sentences as help"


def describe_baselines(profile: str, references: Sequence[Sequence[str]]) -> Baselines:
    """Return what the baselines of a task are made with, from the references of each example."""
    known = PROFILES[profile]
    return Baselines(
        word_budget=word_budget(itertools.chain.from_iterable(references)) if known.objective else None,
        objective=describe_objective(profile),
        common_answer=CommonAnswers(references, known.words).of_all if known.has_common_answer else None,
    )


def word_budget(references: Iterable[str]) -> int:
    """Return the median number of words of all references of a task, at least 1."""
    median = statistics.median([num_words(reference) for reference in references])
    return max(1, int(median + 0.5))


def num_words(text: str) -> int:
    """Return the number of words that budgets count: what stands between white space, and see `counted_words`."""
    return len(counted_words(text))


class CommonAnswers:
    """The references that most examples of a task have; answers of the same words count as one, and once an example."""

    def __init__(
        self, references: Iterable[Sequence[str]], split_words: Callable[[str], list[str]] = answer_words
    ) -> None:
        counts: Counter[str] = Counter()
        self._split_words = split_words
        self._texts: dict[str, str] = {}
        most = 0
        for of_example in references:
            for text in of_example:
                self._texts.setdefault(self._words(text), text)
            counts.update(list(dict.fromkeys(map(self._words, of_example))))
            most = max(most, len(of_example))
        self._order = {words: index for index, words in enumerate(counts)}
        # An example takes one from each of its own, so the best of the others is among one more than those.
        self._common = counts.most_common(1 + most)

    def _words(self, text: str) -> str:
        return " ".join(self._split_words(text))

    @property
    def of_all(self) -> str:
        """Return the reference that most examples have, the first of several that are as common."""
        return self._texts[self._common[0][0]]

    def beside(self, references: Sequence[str]) -> str:
        """Return the same beside an example with these references, without an answer that it alone has.

        That one would be right about itself alone. Taking the example's part from every count would turn the majority
        against it where two answers are as common, and so score 0. Where no answer is left, the text is empty.
        """
        own = set(map(self._words, references))
        others = {words: 0 if count == 1 and words in own else count for words, count in self._common}
        words = max(others, key=lambda one: (others[one], -self._order[one]))
        return self._texts[words] if others[words] else ""


def visible_share(evidence: Sequence[Sequence[int]] | None, windows: Sequence[Sequence[int]]) -> float | None:
    """Return the share of the evidence's characters that was shown, a character counted once; None without evidence."""
    wanted, shown = merge_spans(evidence or ()), merge_spans(windows)
    total = sum(end - start for start, end in wanted)
    seen = sum(max(0, min(end, last) - max(start, first)) for start, end in wanted for first, last in shown)
    return seen / total if total else None


def prepare_document(text: str, objective: Objective) -> PreparedDocument:
    """Return what all baselines of a document share."""
    with_bigrams = objective.is_of_summaries
    spans = _sentences(text)
    sentences = [text[start:end] for start, end in spans]
    words_of = [objective.split_words(sentence) for sentence in sentences]
    vocabulary: dict[str, int] = {}
    numbers = [vocabulary.setdefault(word, len(vocabulary)) for words in words_of for word in words]
    words = np.array(numbers, dtype=np.int64)
    counts = np.array([len(found) for found in words_of], dtype=np.int64)
    rows = np.repeat(np.arange(len(spans)), counts)
    inside = (rows[1:] == rows[:-1]) & with_bigrams
    return PreparedDocument(
        text=text,
        objective=objective,
        spans=np.array(spans, dtype=np.int64).reshape(-1, 2),
        lengths=np.array([num_words(sentence) for sentence in sentences], dtype=np.int64),
        sizes=np.stack([counts, np.maximum(counts - 1, 0) * with_bigrams], axis=1),
        vocabulary=vocabulary,
        words=words,
        word_rows=rows,
        bigrams=(words[:-1] * len(vocabulary) + words[1:])[inside],
        bigram_rows=rows[1:][inside],
    )


def document_baselines(
    document: PreparedDocument,
    windows: Mapping[int, Sequence[Sequence[int]]],
    references: Sequence[str],
    query: str | None,
    budget: int,
) -> dict[int, list[Baseline]]:
    """Return the baselines of one example at each maximum length, from what was shown and what was asked.

    Windows are the characters that the model was shown, in the order of the prompt, by maximum length. The budget is
    that of `word_budget`.
    """
    assert references
    assert budget > 0
    merged = {maxlen: merge_spans(windows[maxlen]) for maxlen in sorted(windows)}
    alike = dict.fromkeys(merged, budget if document.objective.is_of_summaries else None)
    oracles = visible_oracles(document, merged, references, alike)
    rows: dict[int, list[Baseline]] = {}
    for maxlen in merged:
        window = joined_spans(windows[maxlen])
        rows[maxlen] = [
            Baseline(system="lead", text=words_at_end(document.text, window, budget, is_last=False)),
            Baseline(system="tail", text=words_at_end(document.text, window, budget, is_last=True)),
            *query_echo(query),
            oracles[maxlen],
        ]
    return rows


def query_echo(query: str | None) -> list[Baseline]:
    """Return the query as a baseline, where there is one."""
    return [Baseline(system="query_echo", text=query)] if query and query.strip() else []


def merge_spans(spans: Iterable[Sequence[int]]) -> list[Span]:
    """Return the spans in order, joined where they touch or overlap, without empty ones."""
    merged: list[Span] = []
    for start, end in sorted((start, end) for start, end in spans if start < end):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def joined_spans(spans: Iterable[Sequence[int]]) -> list[Span]:
    """Return the spans in their own order, each joined with those that go on with it, without empty ones."""
    joined: list[Span] = []
    for start, end in spans:
        if start >= end:
            continue
        if joined and joined[-1][0] <= start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def _sentences(text: str) -> list[Span]:
    return [match.span() for start, end in unicode_sentence_spans(text) for match in _LINE.finditer(text, start, end)]


def words_at_end(text: str, window: Sequence[Span], budget: int, *, is_last: bool) -> str:
    """Return the first or the last words that were shown, as many as the budget allows."""
    pieces: list[str] = []
    for start, end in reversed(window) if is_last else window:
        if budget <= 0:
            break
        piece = _cut(text[start:end], budget, is_last=is_last)
        budget -= num_words(piece)
        pieces.append(piece)
    return "\n".join(piece for piece in (reversed(pieces) if is_last else pieces) if piece)


def _cut(text: str, budget: int, *, is_last: bool) -> str:
    """Return the first or the last words of a text, without the white space around them."""
    if lacks_spaces(text):
        return last_words(text, budget) if is_last else first_words(text, budget)
    words = text.rsplit(None, budget) if is_last else text.split(None, budget)
    rest = words.pop(0 if is_last else -1) if len(words) > budget else ""
    return (text[len(rest) :] if is_last else text[: len(text) - len(rest)]).strip()


def visible_oracles(
    document: PreparedDocument,
    windows: Mapping[int, Sequence[Span]],
    references: Sequence[str],
    budgets: Mapping[int, int | None],
) -> dict[int, Baseline]:
    """Return the oracle of each window, with so many words at most.

    Every search starts twice, from nothing and from the choice of the window before, and runs towards each reference;
    the best end counts. So the objective never falls from a window to one that holds it, where budgets are equal.
    """
    searches = [_Search(document, reference) for reference in references]
    oracles: dict[int, Baseline] = {}
    seed: list[int] = []
    before: tuple[list[bool], int] | None = None
    for maxlen, window in windows.items():
        shown, given = _whole_sentences(document.spans, window), budgets[maxlen]
        budget = len(document.text) if given is None else given
        if before != (shown.tolist(), budget):
            allowed = shown & (document.lengths <= budget)
            kept = [sentence for sentence in seed if shown[sentence]]
            starts = [[], kept] if kept and document.lengths[kept].sum() <= budget else [[]]
            ends = [search.climb(start, allowed, budget).sentences for search in searches for start in starts]
            values = [max(search.choice(end).value for search in searches) for end in ends]
            best = int(np.argmax(values))
            seed, before = sorted(ends[best]), (shown.tolist(), budget)
            spans = tuple((int(start), int(end)) for start, end in document.spans[seed])
            oracle = Baseline(
                system="visible_oracle",
                # A line each, so that whoever scores the text sees the same sentences.
                text="\n".join(document.text[start:end] for start, end in spans),
                sentences=spans,
                objective=values[best],
            )
        oracles[maxlen] = oracle
    return oracles


def _whole_sentences(spans: Ints, window: Sequence[Span]) -> NDArray[np.bool_]:
    """Return (S,) bools, True where a sentence lies wholly in one of the spans shown."""
    shown = np.zeros(len(spans), dtype=np.bool_)
    for start, end in window:
        shown |= (spans[:, 0] >= start) & (spans[:, 1] <= end)
    return shown


class _Search:
    """Greedy search towards one reference.

    Only n-grams of the reference can match, so a sentence is a handful of counts, and a step is a few operations on
    arrays, whatever the number of sentences.
    """

    def __init__(self, document: PreparedDocument, reference: str) -> None:
        split = [document.objective.split_words(reference[start:end]) for start, end in _sentences(reference)]
        numbers = [[document.vocabulary.get(word, -1) for word in words] for words in split]
        words = Counter(number for sentence in numbers for number in sentence if number >= 0)
        bigrams = Counter(
            first * len(document.vocabulary) + second
            for sentence in numbers
            for first, second in itertools.pairwise(sentence)
            if first >= 0 and second >= 0
        )
        self._document = document
        self._reference_sizes = np.array([sum(map(len, split)), sum(max(len(words) - 1, 0) for words in split)])
        self._wanted = np.array([*words.values(), *bigrams.values()], dtype=np.float64)  # (N,)
        self._num_words = len(words)
        word_rows, word_columns = _find(document.words, document.word_rows, list(words))
        bigram_rows, bigram_columns = _find(document.bigrams, document.bigram_rows, list(bigrams))
        cells = np.concatenate([word_rows, bigram_rows]) * len(self._wanted)
        cells += np.concatenate([word_columns, bigram_columns + self._num_words])
        shape = len(document.spans), len(self._wanted)
        table = np.bincount(cells, minlength=shape[0] * shape[1])
        self._table: Floats = table.reshape(shape).astype(np.float64)  # (S, N)
        self._rows, self._columns = self._table.nonzero()  # (E,)
        self._counts = self._table[self._rows, self._columns]

    def choice(self, sentences: Sequence[int]) -> _Choice:
        """Return these sentences with their counts and value."""
        picked = list(sentences)
        counts = self._table[picked].sum(axis=0)
        value = self._values(self._matched(counts), self._document.sizes[picked].sum(axis=0))
        return _Choice(sentences=picked, counts=counts, value=float(value))

    def climb(self, start: Sequence[int], allowed: NDArray[np.bool_], budget: int) -> _Choice:
        """Return the choice that no allowed sentence improves, neither added nor in the place of one chosen."""
        choice = self.choice(start)
        if not allowed.any():
            return choice
        while True:
            better = self._step(choice, False, allowed, budget) or self._step(choice, True, allowed, budget)
            if better is None:
                return choice
            choice = better

    def _step(self, choice: _Choice, swap: bool, allowed: NDArray[np.bool_], budget: int) -> _Choice | None:
        """Return the best choice with one more sentence or, to `swap`, another one; None where none is better."""
        document, chosen = self._document, choice.sentences
        if swap and not chosen:
            return None
        counts, sizes = choice.counts[None], document.sizes[chosen].sum(axis=0)[None]
        lengths = document.lengths[chosen].sum()[None]
        if swap:  # C choices, each without one of the sentences
            counts, sizes = counts - self._table[chosen], sizes - document.sizes[chosen]
            lengths = lengths - document.lengths[chosen]
        inside = allowed[self._rows]
        rows, columns = self._rows[inside], self._columns[inside]
        missing = np.maximum(self._wanted - counts, 0)  # (C, N)
        gains = np.minimum(self._counts[inside], missing[:, columns])  # (C, E)
        slots = 2 * rows + (columns >= self._num_words) + 2 * len(allowed) * np.arange(len(counts))[:, None]
        gained = np.bincount(slots.ravel(), weights=gains.ravel(), minlength=2 * len(allowed) * len(counts))
        matched = self._matched(counts)[:, None] + gained.reshape(len(counts), -1, 2)
        values = self._values(matched, sizes[:, None] + document.sizes)  # (C, S)
        fits = allowed & (document.lengths <= budget - lengths[:, None])
        fits[:, chosen] = False
        values[~fits] = -1
        dropped, sentence = divmod(int(values.argmax()), len(allowed))
        if values[dropped, sentence] <= choice.value:
            return None
        kept = [other for other in chosen if other != chosen[dropped]] if swap else chosen
        return self.choice([*kept, sentence])

    def _matched(self, counts: Floats) -> Floats:
        """Return (..., 2) matches of (..., N) counts: no n-gram more often than the reference has it."""
        clipped = np.minimum(counts, self._wanted)
        words, bigrams = clipped[..., : self._num_words], clipped[..., self._num_words :]
        return np.stack([words.sum(axis=-1), bigrams.sum(axis=-1)], axis=-1)

    def _values(self, matched: Floats, sizes: Ints) -> Floats:
        """Return (...) ROUGE-1 F + ROUGE-2 F of (..., 2) matches and sizes, the second 0 where there are no bigrams."""
        measures: Floats = 2 * matched / np.maximum(sizes + self._reference_sizes, 1)
        return measures[..., 0] + measures[..., 1]


def _find(numbers: Ints, rows: Ints, wanted: Sequence[int]) -> tuple[Ints, Ints]:
    """Return the rows of the numbers that are wanted, and the place of each in `wanted`."""
    if not wanted:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    order = np.argsort(wanted)
    ordered = np.array(wanted, dtype=np.int64)[order]
    places = np.minimum(np.searchsorted(ordered, numbers), len(ordered) - 1)
    hits = ordered[places] == numbers
    return rows[hits], order[places[hits]]
