"""What can be said of an answer from its words alone, beside what the model was shown: no references, no weights.

    open_metric("diagnostics").score([Item.of(Diagnostics, prediction="...", window="...", document="...")])

Most values describe and rank nothing: the share of copied 4-grams is high for a model that quotes well and for one that
cannot write. docs/metrics.md has each formula, and what people think of each.

Words are those of `eval.metrics.document_index`. A value that an answer does not have, as the share of its numbers that
are new where it has no numbers, is None.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import regex

from eval.metrics.base import EXTRACTS, Item, Metric, Scores, Value
from eval.metrics.document_index import MAX_N, Answer, DocumentIndex, index_document
from eval.metrics.unicode_text import counted_words, folded, unicode_sentence_spans, unicode_words

# Runs of so many words that stand in a text twice are copied, and hardly ever met by chance.
NGRAM = 4
# A sentence of an answer is placed where one sentence of the document says this share of it. Of the sentences of ten
# arXiv abstracts 77% are placed in their own paper, and 3% in another one; docs/metrics.md has more.
PLACED = 0.3

_NUMBER = regex.compile(r"\p{Nd}+(?:[.,\u066b\u066c]\p{Nd}+)*")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
# A word that begins with a capital. With a second one, or a digit, it is a name at the start of a sentence too.
_NAME = regex.compile(r"(?<![\p{L}\p{N}])\p{Lu}[\p{L}\p{M}\p{N}]*")
_CLEARLY_A_NAME = regex.compile(r"\p{Lu}.*[\p{Lu}\p{N}]")
_MAX_TEXTS = 64


def _described(label: str, title: str, **changes: Any) -> Value:
    return Value(**{"label": label, "title": title, "better": None, **changes})


class Diagnostics(Metric):
    """Copying, novelty, repetition, length, and where in the document an answer comes from."""

    name = "diagnostics"
    version = 1
    reads = frozenset({"window", "document", "query", "shorter_window", "finish_reason", EXTRACTS})
    batch_size = 512
    values: Mapping[str, Value] = {
        "copied": _described("copied", "Copied 4-grams"),
        **{f"novel_{n}": _described(f"novel {n}", f"Novel {n}-grams") for n in range(1, MAX_N + 1)},
        "coverage": _described("coverage", "Coverage"),
        "density": _described("density", "Density (words)", high=math.inf, is_share=False),
        "compression": _described("compression", "Compression", high=math.inf, is_share=False),
        "repeated": _described("repeated", "Repeated 4-grams", better="lower"),
        "words": _described("words", "Words", high=math.inf, is_share=False),
        "stopped": _described("by length", "Ended by length", better="lower"),
        "placed": _described("placed", "Sentences found in the window"),
        "position": _described("position", "Place in the document"),
        "first_third": _described("first third", "Said from the first third"),
        "middle_third": _described("middle third", "Said from the middle third"),
        "last_third": _described("last third", "Said from the last third"),
        "beyond": _described("beyond", "Said from beyond the shorter window"),
        "numbers_new": _described("new numbers", "Numbers that are nowhere", better="lower"),
        "numbers_unseen": _described("unseen numbers", "Numbers of the document alone"),
        "names_new": _described("new names", "Names that are nowhere", better="lower"),
        "names_unseen": _described("unseen names", "Names of the document alone"),
    }

    def score(self, batch: Sequence[Item]) -> list[Scores]:
        """Return the values of each item; items of one document that follow each other share its index."""
        return [self._score(item) for item in batch]

    def _score(self, item: Item) -> Scores:
        found: Scores = dict.fromkeys(self.values)
        found["repeated"] = repeated_share(item.prediction)
        found["words"] = float(len(counted_words(item.prediction)))
        if item.finish_reason is not None:
            found["stopped"] = float(item.finish_reason == "length")
        return found | _beside_window(item) if item.window else found


def _beside_window(item: Item) -> Scores:
    """Return what an answer has from the window, and what is new in it."""
    assert item.window is not None
    document = index_document(item.window if item.document is None else item.document)
    window = document.window(item.window)
    is_part = window is not None
    if window is None:
        document = index_document(item.window)
        window = [(0, document.num_words)]
    answer = document.answer(item.prediction)
    found = _copying(document, answer, window)
    shorter = None if item.shorter_window is None or not is_part else document.window(item.shorter_window)
    found |= _places(document, answer, window, shorter)
    if item.document is not None and not is_part:
        found |= dict.fromkeys(("position", "first_third", "middle_third", "last_third"))
    return found | _new_things(item)


def _copying(document: DocumentIndex, answer: Answer, window: list[tuple[int, int]]) -> Scores:
    """Return what of an answer stands in a window.

    Source: coverage, density and compression of Grusky et al. 2018, arXiv 1804.11283, section 4; novel n-grams as
    `DataStatsMetric` of SummEval and lighteval counts them, each distinct one once.
    """
    num_words = len(answer.words)
    if not num_words:
        return {}
    fragments = document.longest(answer, window)
    found: Scores = {
        "coverage": sum(fragments) / num_words,
        "density": sum(length**2 for length in fragments) / num_words,
        "compression": sum(last - first for first, last in window) / num_words,
    }
    for n in range(1, min(MAX_N, num_words) + 1):
        seen = document.seen(answer, n, window)
        runs = list(zip(*(answer.words[start:] for start in range(n)), strict=False))
        known = dict(zip(runs, seen.tolist(), strict=True))
        found[f"novel_{n}"] = 1 - sum(known.values()) / len(known)
        if n == NGRAM:
            found["copied"] = float(seen.mean())
    return found


def _places(
    document: DocumentIndex, answer: Answer, window: list[tuple[int, int]], shorter: list[tuple[int, int]] | None
) -> Scores:
    """Return where in the document the sentences of an answer come from.

    The sentence of the window that says most of an answer's sentence is where it comes from, the first of several; see
    `DocumentIndex.matches`. A sentence comes from beyond a shorter window where none of that says as much of it.
    """
    shown = document.sentences_in(window)
    if len(answer.starts) < 2 or not shown.any():
        return {}
    matches = np.where(shown, document.matches(answer), -1.0)
    best, share = matches.argmax(axis=1), matches.max(axis=1)
    placed = share >= PLACED
    found: Scores = {"placed": float(placed.mean())}
    if not placed.any():
        return found
    positions = document.positions()[best[placed]]
    thirds = np.minimum((3 * positions).astype(np.int64), 2)
    counts = np.bincount(thirds, minlength=3) / len(thirds)
    found |= dict(zip(("first_third", "middle_third", "last_third"), counts.tolist(), strict=True))
    found["position"] = float(positions.mean())
    if shorter is not None:
        there = document.sentences_in(shorter) & shown
        before = np.where(there, matches, -1.0).max(axis=1)
        found["beyond"] = float((share > before + 1e-9)[placed].mean())
    return found


def repeated_share(text: str) -> float | None:
    """Return the share of an answer's 4-grams of words that stand in it before; None where it has none.

    Source: seq-rep-4, Welleck et al., Neural text generation with unlikelihood training, arXiv 1908.04319, section 6;
    over words in lower case instead of tokens, as budgets count them.
    """
    words = counted_words(text.lower())
    ngrams = [tuple(words[start : start + NGRAM]) for start in range(len(words) - NGRAM + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else None


def numbers_of(text: str) -> set[str]:
    """Return the numbers of a text in digits: `1,500` and `1500` are one, and so are digits of any script."""
    return {_THOUSANDS.sub("", _in_ascii(number)) for number in _NUMBER.findall(text)}


def _in_ascii(number: str) -> str:
    plain = number.replace("\u066b", ".").replace("\u066c", ",")
    return plain if plain.isascii() else "".join(str(int(one)) if one.isdecimal() else one for one in plain)


def names_of(text: str) -> set[str]:
    """Return the words of a text that begin with a capital, folded.

    The first word of a sentence counts where it has a second capital or a digit, as acronyms have. Scripts without
    capitals, and texts in lower case, have no names.
    """
    found = set()
    for start, end in unicode_sentence_spans(text):
        for match in _NAME.finditer(text, start, end):
            is_first = not regex.search(r"[\p{L}\p{N}]", text[start : match.start()])
            if len(match[0]) > 1 and (not is_first or _CLEARLY_A_NAME.match(match[0])):
                found.add(folded(match[0]))
    return found


@lru_cache(maxsize=_MAX_TEXTS)
def _known(text: str) -> tuple[set[str], set[str]]:
    """Return the numbers and the words of a text."""
    return numbers_of(text), set(unicode_words(text))


def _new_things(item: Item) -> Scores:
    """Return the shares of an answer's numbers and names that are in nothing that was shown, query included."""
    found: Scores = {}
    ours = {"numbers": numbers_of(item.prediction), "names": names_of(item.prediction)}
    if not any(ours.values()):
        return found
    shown = [_known(text) for text in (item.window, item.query) if text]
    whole = _known(item.document) if item.document else (set[str](), set[str]())
    for place, (kind, words) in enumerate(ours.items()):
        if words:
            unseen = words.difference(*(known[place] for known in shown))
            found[f"{kind}_new"] = len(unseen - whole[place]) / len(words)
            found[f"{kind}_unseen"] = len(unseen & whole[place]) / len(words)
    return found
