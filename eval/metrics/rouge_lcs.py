"""Longest common subsequences of whole texts, with the pairs of their sentences side by side in one integer.

A bit stands for a word of the one text, the words of the other come one by one, and a few operations on integers then
compute a column of the table that `plain_lcs` in tests/eval/scoring/test_rouge_profiles.py fills cell by cell.

LCS: longest common subsequence. `table[i][j]` is its length for the first `i` words of one sentence and the first `j`
of another.
step: a bit that is set where `table[i][j] = table[i-1][j] + 1`.
layout: the bits of one text. Sentence follows sentence, with a clear bit after each, where carries end.
slot: a copy of the layout that belongs to one sentence of the other text; slots lie side by side.

Source: Hyyrö, "Bit-parallel LCS-length computation revisited" (2004).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

# Slots are computed together up to this width. Wider saves little, and a column of it is kept for every word.
_MAX_BITS = 1 << 14


class SentenceBits:
    """The sentences of one text, ready to be compared with those of others.

    Attributes:
        masks: The layout's bits of each word.
    """

    def __init__(self, sentences: Sequence[Sequence[str]]) -> None:
        self.masks: dict[str, int] = {}
        bit = 1
        for sentence in sentences:
            for word in sentence:
                self.masks[word] = self.masks.get(word, 0) | bit
                bit <<= 1
            bit <<= 1
        self._num_bytes = -(-bit.bit_length() // 8)
        self._num_bits = 8 * self._num_bytes
        self._word_bits = self._to_bytes(sum(self.masks.values()))
        self._longest = max(map(len, sentences), default=0)

    def lcs_length(self, words: Sequence[str]) -> int:
        """Return the length of the LCS of the whole text and these words; where sentences end does not matter."""
        every = flat = (1 << self._num_bits) - 1
        for mask in filter(None, map(self.masks.get, words)):
            hits = flat & mask
            flat = (flat + hits) | (flat ^ hits)
        return self._num_bits - (flat & every).bit_count()

    def union_lcs(self, sentences: Sequence[Sequence[str]]) -> int:
        """Return the layout's bits of the words that are in the LCS of their sentence with any of these sentences.

        A pair can have several LCS. The one that counts is read off the table from its end: equal words are taken; of
        unequal ones, that of ours is passed over, unless only passing over that of the other keeps the length.

        Source: `_backtrack_norec` in `rouge_score/rouge_scorer.py` of rouge-score 0.1.2, with our text as `ref`.
        """
        num_slots = max(1, _MAX_BITS // self._num_bits)
        ordered = sorted(filter(None, sentences), key=len, reverse=True)
        union = 0
        for start in range(0, len(ordered), num_slots):
            union |= self._union_of_slots(ordered[start : start + num_slots])
        return union

    def _union_of_slots(self, sentences: Sequence[Sequence[str]]) -> int:
        """Return the same for sentences of falling length, a slot each."""
        columns = self._columns(sentences)
        flat = started = 0
        steps = []
        for matches, slots in reversed(columns):
            flat |= slots ^ started
            started = slots
            hits = flat & matches
            flat = ((flat + hits) | (flat ^ hits)) & slots
            steps.append(slots ^ flat)

        # All paths go back through the table together. `ahead` is what each can still reach in its slot and sentence;
        # the next row that it stops at is the highest one with a match or a step.
        ahead = started
        smears = self._smears(started)
        below = smears[0][1]
        found = 0
        for (matches, _), step in zip(columns, reversed(steps), strict=True):
            reached = (matches | step) & ahead
            for shift, within in smears:
                reached |= (reached >> shift) & within
            hits = (reached ^ ((reached >> 1) & below)) & matches
            found |= hits
            ahead = reached ^ hits
        return self._folded(found, len(sentences))

    def _columns(self, sentences: Sequence[Sequence[str]]) -> list[tuple[int, int]]:
        """Return, from the last words of the sentences to the first, the bits that match and those of slots in use."""
        slots = [int.from_bytes(self._word_bits * count, "little") for count in range(len(sentences) + 1)]
        shared = self.masks.keys() & set().union(*sentences)
        mask_bytes = {word: self._to_bytes(self.masks[word]) for word in shared}
        blank = bytes(self._num_bytes)
        columns = []
        for column in zip_longest(*map(reversed, sentences)):
            masks = [mask_bytes.get(word, blank) for word in column if word is not None]
            columns.append((int.from_bytes(b"".join(masks), "little"), slots[len(masks)]))
        return columns

    def _smears(self, slots: int) -> list[tuple[int, int]]:
        """Return shifts, with the bits that they may reach, that set all bits below a set one in its sentence."""
        within = slots & (slots >> 1)
        smears = [(1, within)]
        shift = 1
        while 2 * shift < self._longest:
            within &= within >> shift
            shift *= 2
            smears.append((shift, within))
        return smears

    def _folded(self, bits: int, num_slots: int) -> int:
        """Return the union of the slots as one layout."""
        while num_slots > 1:
            num_slots -= num_slots // 2
            width = num_slots * self._num_bits
            bits = (bits | bits >> width) & ((1 << width) - 1)
        return bits

    def _to_bytes(self, bits: int) -> bytes:
        return bits.to_bytes(self._num_bytes, "little")
