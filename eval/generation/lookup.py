"""Guess the next tokens of a text: those that followed the last place where its last few tokens stood before.

    lookup = Lookup([5, 6, 7, 8, 5, 6])
    lookup.draft(3)                         # [7, 8, 5]

Answers quote their prompts and repeat themselves. A model checks all guesses in one pass, which costs little more than
a token, so that wrong ones lose little and change nothing.

Source: prompt lookup decoding is Apoorv Saxena's (github.com/apoorvumang/prompt-lookup-decoding).
"""

from __future__ import annotations

from collections.abc import Sequence

# Tokens that must have stood before: the longest known run of them counts.
_MOST_ALIKE = 4


class Lookup:
    """A text and where each short run of its tokens stood last.

    Args:
        tokens: The text so far.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens: list[int] = []
        # Run of tokens -> place of the token after it.
        self._after: dict[tuple[int, ...], int] = {}
        for token in tokens:
            self.append(token)

    def append(self, token: int) -> None:
        """Go on with a token."""
        place = len(self._tokens)
        for count in range(1, min(_MOST_ALIKE, place) + 1):
            self._after[tuple(self._tokens[place - count :])] = place
        self._tokens.append(token)

    def draft(self, most: int) -> list[int]:
        """Return guesses of the next tokens, at most so many; none where the last token is new."""
        total = len(self._tokens)
        for count in range(min(_MOST_ALIKE, total), 0, -1):
            place = self._after.get(tuple(self._tokens[total - count :]))
            if place is not None:
                # What reaches the end of the text goes on from its own beginning, as what repeats itself does.
                return [self._tokens[place + step % (total - place)] for step in range(most)]
        return []
