"""Words and sentences of any script, where a package for English finds none.

    unicode_words("Häuser, 3.5 km") -> ["häuser", "3", "5", "km"]
    unicode_words("2023年收入增长") -> ["2023", "年", "收", "入", "增", "长"]

Chinese, Japanese, Thai, Lao, Khmer and Burmese are written without spaces between words. Their words would need a
dictionary for each language, so a character, with the marks on it, stands for a word.
"""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise

import regex

from eval.metrics.rouge import sentence_spans

# Letters of the scripts without spaces; by `scx` where scripts share letters, such as the long vowel of kana.
_ALONE = r"[[\p{scx=Hani}\p{scx=Hira}\p{scx=Kana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]&&\p{L}]"
_OTHERS = rf"[[\p{{L}}\p{{N}}]--{_ALONE}]"
_SIGN = r"[\S--[\p{L}\p{N}\p{M}]]"
_ASCII_WORD = re.compile("[a-z0-9]+")
_WORD = regex.compile(rf"(?V1){_ALONE}\p{{M}}*|{_OTHERS}[{_OTHERS}\p{{M}}]*")
_ONE_ALONE = regex.compile(rf"(?V1)({_ALONE}\p{{M}}*)")
# Signs belong to the word beside them, as where white space parts words.
_COUNTED = regex.compile(rf"(?V1){_SIGN}*{_ALONE}\p{{M}}*{_SIGN}*|[\S--{_ALONE}]+")
# Blocks that hold all letters of these scripts; a search for them is a hundred times faster than for the scripts.
_BLOCKS = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u31ff\u3400-\u9fff\ua9e0-\uaa7f\uf900-\ufaff\uff66-\uff9f"
    "\U00011000-\U0003ffff]"
)
# The terminators of UAX 29 besides those that English has, with the closing marks that follow.
_END = regex.compile(r"(?V1)[\p{Sentence_Break=STerm}--[!?]]+[\p{Sentence_Break=Close}--\p{Ps}]*")
_PUNCTUATION = regex.compile(r"[\p{P}$+<=>^`|~]+")  # Unicode's, and what ASCII has besides
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")


def folded(text: str) -> str:
    """Return a text in which letters that differ only in case or in compatibility are the same (NFKC, case folded)."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def unicode_words(text: str) -> list[str]:
    """Return the words of a text in order: letters and digits with their marks, of any script.

    In ASCII they are those of `rouge_words` without stems.
    """
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    found: list[str] = _WORD.findall(folded(text))
    return found


def unicode_sentence_spans(text: str) -> list[tuple[int, int]]:
    """Return where sentences start and end, in characters, without the space around them.

    English Punkt finds them, and they end at the terminators of other scripts too, such as 。！？؟।. So in ASCII they
    are those of `sentence_spans`. Thai has no terminator: its sentences end at line breaks.
    """
    spans = []
    for first, last in sentence_spans(text):
        ends = [match.end() for match in _END.finditer(text, first, last)]
        for start, end in pairwise([first, *ends, last]):
            if part := text[start:end].strip():
                start = text.index(part, start)
                spans.append((start, start + len(part)))
    return spans


def unicode_sentences(text: str) -> list[str]:
    """Return the sentences of a text."""
    return [text[start:end] for start, end in unicode_sentence_spans(text)]


# Words that budgets, lengths of answers and repetition count


def lacks_spaces(text: str) -> bool:
    """Return whether a text has a letter of a script without spaces between words."""
    return not text.isascii() and _BLOCKS.search(text) is not None


def num_letters_alone(text: str) -> int:
    """Return the number of letters of scripts without spaces."""
    return len(_ONE_ALONE.findall(text)) if lacks_spaces(text) else 0


def counted_words(text: str) -> list[str]:
    """Return the words between white space, with their signs; a letter of a script without spaces is one by itself."""
    if not lacks_spaces(text):
        return text.split()
    found: list[str] = _COUNTED.findall(text)
    return found


def first_words(text: str, count: int) -> str:
    """Return the beginning of a text with so many `counted_words`, all of it if it has fewer."""
    return _cut(text, slice(0, count))


def last_words(text: str, count: int) -> str:
    """Return the end of a text with so many `counted_words`, all of it if it has fewer."""
    return _cut(text, slice(-count, None))


def _cut(text: str, kept: slice) -> str:
    spans = [match.span() for match in _COUNTED.finditer(text)][kept]
    return text[spans[0][0] : spans[-1][1]] if spans else ""


# Short answers


def unicode_answer_words(text: str) -> list[str]:
    """Return the words of an answer that are compared: without punctuation, and without the articles of English.

    In ASCII they are those of `answer_words`.

    Source: `evaluate_mlqa` of facebookresearch/MLQA, which drops the punctuation of Unicode and takes each Chinese
    character for a word. Deviations: so is each character of the other scripts without spaces; letters are folded, not
    lower-cased alone; and articles of other languages stay, because nothing tells the language of an answer.
    """
    words = _ARTICLE.sub(" ", _PUNCTUATION.sub("", folded(text)))
    return (_ONE_ALONE.sub(r" \1 ", words) if lacks_spaces(words) else words).split()
