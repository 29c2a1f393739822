"""What a profile leaves of the references: ROUGE in ASCII finds no word in Chinese, and equal texts score 0.

letters = count_letters("hf", ["河流从山上流下来。"])
check_letters("a", "hf", letters)  # raises: the profile keeps 0% of the letters
"""

from __future__ import annotations

from collections.abc import Iterable

from eval.errors import UserError
from eval.metrics.answers import without_articles
from eval.metrics.unicode_text import num_letters_alone
from eval.records.schema import LettersKept
from eval.scoring.profiles import PROFILES

# German and French keep 96 to 98% under `hf`, Czech and Vietnamese 70 to 86%: see docs/scoring.md.
LEAST_SHARE = 0.9
# Below it a note says what is lost.
_NEARLY_ALL = 0.99
# From this share of letters on, words between white space are sentences.
_MUCH_ALONE = 0.1
REMEDY = "--accept-ascii-words"


def count_letters(profile: str, references: Iterable[str]) -> LettersKept:
    """Return how much of the references the words of a profile keep."""
    split_words = PROFILES[profile].words
    total = kept = alone = empty = count = 0
    for reference in references:
        words = split_words(reference)
        if PROFILES[profile].has_common_answer:  # articles are left out on purpose
            reference = without_articles(reference.lower())
        letters = _num_letters(reference)
        total += letters
        # Folding can make several letters of one.
        kept += min(letters, sum(map(_num_letters, words)))
        alone += num_letters_alone(reference)
        empty += not words and any(map(str.isalnum, reference))
        count += 1
    return LettersKept(
        share=kept / total if total else None,
        unspaced=alone / total if total else None,
        num_references=count,
        num_without_words=empty,
    )


def _num_letters(text: str) -> int:
    return sum(map(str.isalpha, text))


def check_letters(where: str, profile: str, letters: LettersKept) -> None:
    """Refuse references of which a profile leaves too little; `where` names them.

    Raises:
        UserError: The profile keeps less than nine of ten letters.
    """
    if letters.share is not None and letters.share < LEAST_SHARE:
        raise UserError(
            f"profile {profile} keeps {100 * letters.share:.0f}% of the letters of the references of {where}, so equal "
            f"texts can score 0; give --profile {fitting(profile)}, or {REMEDY} to score what is left"
        )


def fitting(profile: str) -> str:
    """Return the profiles for texts of any script that score what this one does: answers, or summaries."""
    is_of_answers = PROFILES[profile].has_common_answer
    names = [
        name
        for name, one in PROFILES.items()
        if one.is_for_all_scripts and one.has_common_answer == is_of_answers and not one.needs_classes
    ]
    return " or ".join(names)


def describe_letters(where: str, profile: str, letters: LettersKept) -> list[str]:
    """Return what a profile loses of the references, in sentences; none where it loses nearly nothing."""
    if PROFILES[profile].is_for_all_scripts:
        return []
    found, better = [], f"Profile {fitting(profile)} keeps them."
    if letters.share is not None and letters.share < _NEARLY_ALL:
        found.append(f"Profile {profile} drops {100 * (1 - letters.share):.1f}% of the letters of {where}. {better}")
    if letters.num_without_words:
        found.append(
            f"{letters.num_without_words} of {letters.num_references} references of {where} have no word under "
            f"profile {profile}, and score 0 whatever is answered. {better}"
        )
    # What keeps no letters is said already.
    if not found and letters.unspaced is not None and letters.unspaced > _MUCH_ALONE:
        found.append(
            f"{100 * letters.unspaced:.0f}% of the letters of {where} are of a script without spaces, where profile "
            f"{profile} takes a sentence for a word. Profile {fitting(profile)} compares characters."
        )
    return found
