"""The text of a scientific article, without the abstract that a model is to write.

Parses of papers repeat the abstract now and then: as a section of its own, or sentence by sentence in the conclusion.
A context that holds its own reference measures copying, so every article task builds its context here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# Eight words in a row are hardly ever shared by chance; shorter runs are phrases that any introduction shares.
NGRAM_WORDS = 8
# Fewer than the 25 that no context may hold, because a section title can be part of a copied run.
MIN_CUT_WORDS = 20
# Letters and digits only: punctuation, spacing and case differ between an abstract and its copy.
_WORD = re.compile(r"[^\W_]+")
# A sentence ends before a capital, a digit or an opening sign; in tokenized text, after a full stop on its own.
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9(\[\"“•])|(?<=\s[.!?])\s+")


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section title ("" where the source has none) with the paragraphs directly under it."""

    title: str
    paragraphs: Sequence[str]


def article_text(sections: Iterable[Section], abstract: str) -> str:
    """Return titles and paragraphs in order, one a line and a blank line before each title, without the abstract."""
    blocks = []
    for section in sections:
        if section.title.strip().rstrip(".:").lower() == "abstract":
            continue
        paragraphs = without_abstract(section.paragraphs, abstract)
        if section.paragraphs and not paragraphs:
            continue  # nothing but the abstract stood under this title
        blocks.append("\n".join(part for part in (section.title.strip(), *paragraphs) if part))
    return "\n\n".join(block for block in blocks if block)


def without_abstract(paragraphs: Iterable[str], abstract: str) -> list[str]:
    """Return the paragraphs without the abstract and without long verbatim parts of it.

    A word counts as copied when it lies in a run of `NGRAM_WORDS` words that the abstract holds too (of all its words
    when it is shorter), whatever the punctuation and case. A paragraph of which half the words are copied is dropped
    whole. From the others, sentences that touch `MIN_CUT_WORDS` or more copied words in a row are dropped; shorter
    shared phrases stay.
    """
    abstract_words = _words(abstract)
    # A short abstract is looked for as a whole; of fewer than five words it is no more than a title.
    size = min(NGRAM_WORDS, max(len(abstract_words), 5))
    min_cut_words = min(MIN_CUT_WORDS, len(abstract_words))
    ngrams = {tuple(abstract_words[i : i + size]) for i in range(len(abstract_words) - size + 1)}
    split = [[text for text in _SENTENCE_END.split(paragraph) if text.strip()] for paragraph in paragraphs]
    # One stream of words for all paragraphs, because a copy may be spread over them, a sentence a line.
    words: list[str] = []
    owners: list[tuple[int, int]] = []  # (paragraph, sentence) of each word
    for i, sentences in enumerate(split):
        for j, sentence in enumerate(sentences):
            sentence_words = _words(sentence)
            words += sentence_words
            owners += [(i, j)] * len(sentence_words)
    runs = _copied_runs(words, ngrams, size)
    cut = {owner for start, end in runs if end - start >= min_cut_words for owner in owners[start:end]}
    num_words = Counter(paragraph for paragraph, _ in owners)
    num_copied = Counter(paragraph for start, end in runs for paragraph, _ in owners[start:end])
    kept = []
    for i, sentences in enumerate(split):
        if num_copied[i] and 2 * num_copied[i] >= num_words[i]:
            continue
        text = " ".join(sentence.strip() for j, sentence in enumerate(sentences) if (i, j) not in cut)
        if text and _words(text) != abstract_words:  # an abstract too short for n-grams can still be copied whole
            kept.append(text)
    return kept


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]


def _copied_runs(words: Sequence[str], ngrams: set[tuple[str, ...]], size: int) -> list[tuple[int, int]]:
    """Return [start, end) word ranges that are covered by the abstract's n-grams, in order and apart."""
    runs: list[tuple[int, int]] = []
    for i in range(len(words) - size + 1):
        if tuple(words[i : i + size]) in ngrams:
            start = runs.pop()[0] if runs and runs[-1][1] >= i else i
            runs.append((start, i + size))
    return runs
