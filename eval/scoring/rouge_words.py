"""Words as the `rouge_score` package counts them.

    rouge_words("Running in Zürich, 3.5 km", use_stemmer=True) -> ["run", "in", "z", "rich", "3", "5", "km"]

Only the letters a to z and the digits 0 to 9 of the lower-cased text belong to words, so a text in another script has
none.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache

from nltk.stem.porter import PorterStemmer

# About what a run meets; a text of random letters must not fill the memory.
_MAX_STEMS = 1 << 18

_WORD = re.compile("[a-z0-9]+")


@cache
def _stemmer() -> PorterStemmer:
    return PorterStemmer()


@lru_cache(maxsize=_MAX_STEMS)
def _stem(word: str) -> str:
    """Return the stem of a word, which takes 20 microseconds the first time; texts repeat their words."""
    return str(_stemmer().stem(word)) if len(word) > 3 else word


def rouge_words(text: str, *, use_stemmer: bool) -> list[str]:
    """Return the words of a text in order, as ROUGE compares them.

    Source: `rouge_score/tokenize.py` of rouge-score 0.1.2. That file splits at everything but a to z and 0 to 9, stems
    the words of more than three letters, and drops what is empty then; finding the words comes to the same, since the
    stemmer leaves something of every word.
    """
    words = _WORD.findall(text.lower())
    return list(map(_stem, words)) if use_stemmer else words
