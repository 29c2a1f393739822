"""chrF of sacrebleu: n-grams of characters, so a text needs no words, in any script.

score_chrf("河流下山", ["河流从山上流下来"]) -> [{"chrf": 0.27}]
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any


@cache
def _chrf() -> Any:
    # The package takes most of a second to import, which scoring under other profiles need not wait for.
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()  # chrF2: n-grams of 1 to 6 characters without white space, recall counts twice


def score_chrf(prediction: str, references: Sequence[str]) -> list[dict[str, float]]:
    """Return chrF2 against each reference, as a fraction.

    Source: `sentence_chrf` of sacrebleu, which computes it here.
    """
    return [{"chrf": _chrf().sentence_score(prediction, [reference]).score / 100} for reference in references]
