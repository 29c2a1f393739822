"""Answers that no score should be trusted for: empty ones, loops, copies of the prompt, zeros in other scripts.

    scored = with_flaws(scored, record, examples, documents)

A flaw is counted and changes no score. Which shares of answers are a warning is up to reports.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from eval.metrics.diagnostics import repeated_share
from eval.metrics.unicode_text import counted_words
from eval.records.schema import DocumentRecord, ExampleRecord, RunRecord
from eval.records.windows import shown_of
from eval.scoring.examples import Scored
from eval.scoring.profiles import PROFILES

FLAWS = ("empty", "loop", "copy", "unread")

# An answer loops where a fifth of its 4-grams stand in it before. Of 907 abstracts, summaries and answers that people
# wrote one does, and one is a copy as below.
_REPEATED = 0.2
# A shorter answer says too little to loop, and a short quotation may be right.
_MIN_WORDS = 24
# An answer copies where nine of ten of its runs of so many words stand in what was shown.
_RUN = 8
_COPIED = 0.9


def with_flaws(
    scored: Sequence[Scored],
    record: RunRecord,
    examples: Iterable[ExampleRecord],
    documents: Iterable[DocumentRecord],
) -> list[Scored]:
    """Return scored texts whose lines count the flaws of each answer that a model wrote."""
    queries = {(one.task, one.id): one.query or "" for one in examples}
    texts = {(one.task, one.document_id): one.text for one in documents}
    prompts = {task: about.templates for task, about in record.tasks.items()}

    def with_its_flaws(one: Scored) -> Scored:
        line, prediction = one.line, one.prediction
        name, spans = shown_of(prediction, line.document_id)
        document = texts[line.task, name]
        template = prompts[line.task][line.template]
        shown = [template.system or "", template.text, queries[line.task, line.id]]
        shown += [document[start:end] for start, end in spans]
        prompt = _plain(" ".join(shown))
        profile = PROFILES[one.profile]
        reads_latin = not profile.is_for_all_scripts and not profile.is_of_needles
        is_zero = reads_latin and not any(line.metrics.values()) and not any(map(_is_latin, one.references))
        found = Counter(flaw for text in one.texts for flaw in flaws_of(text, prompt, is_unread=is_zero))
        return replace(one, line=replace(line, flaws=dict(found) or None))

    return [with_its_flaws(one) if one.is_model else one for one in scored]


def flaws_of(text: str, prompt: str, *, is_unread: bool = False) -> list[str]:
    """Return the flaws of an answer.

    Args:
        text: The answer.
        prompt: What the model was shown, in lower case with single spaces between counted words.
        is_unread: Whether it scores nothing, as its references are in another script than its profile reads.
    """
    words = counted_words(text.lower())
    if not words:
        return ["empty"]
    found = ["unread"] if is_unread else []
    if len(words) < _MIN_WORDS:
        return found
    if (repeated_share(text) or 0.0) >= _REPEATED:
        found.append("loop")
    plain = _plain(text).split(" ")
    runs = [" ".join(plain[start : start + _RUN]) for start in range(0, len(plain) - _RUN + 1, _RUN)]
    if runs and sum(run in prompt for run in runs) >= _COPIED * len(runs):
        found.append("copy")
    return found


def _plain(text: str) -> str:
    return " ".join(counted_words(text.lower()))


def _is_latin(text: str) -> bool:
    """Return whether at least half of the letters are Latin, as those of a text without letters are."""
    letters = [letter for letter in text[:2000] if letter.isalpha()]
    return 2 * sum("LATIN" in unicodedata.name(letter, "") for letter in letters) >= len(letters)
