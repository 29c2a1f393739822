"""Texts -> token ids, piece by piece, as the tokenizer would encode the whole.

    encoder = TextEncoder(tokenizer)
    encoder.encode("[INST] Summarize. ")                         # the beginning of a text
    encoder.encode("Rivers </s> run.", after="...", is_data=True)  # what follows, and only text

Two things make a piece differ from the same words within the whole. Tokenizers with a dummy prefix put a space before
whatever they are given. And data may spell control tokens, which only the template may write.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenizers import AddedToken, Tokenizer, models

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Offsets = list[tuple[int, int]]

_PROBE = "a"
# Text that a slow tokenizer reads before a piece, so that its dummy prefix stands there.
_GUARDS = ("\n", ".", "1")
_BRACKETS = re.compile(r"<.*>|\[.*\]|\{.*\}", re.DOTALL)


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Return the tokens that data must not become, by id: special ones, and other markup that was added.

    Added words and runs of white space are text: GPT-NeoX has tokens for those.
    """
    templates = tokenizer.chat_template or ""
    source = "".join(templates.values()) if isinstance(templates, dict) else str(templates)
    found = dict(zip(getattr(tokenizer, "all_special_ids", ()), tokenizer.all_special_tokens, strict=False))
    for index, token in getattr(tokenizer, "added_tokens_decoder", {}).items():
        text = token.content
        if token.special or _BRACKETS.fullmatch(text.strip()) or text in source:
            found[index] = text
    return {index: text for index, text in found.items() if text.strip()}


@lru_cache(maxsize=4)
def _finder_of(names: tuple[str, ...]) -> Tokenizer:
    """Return a tokenizer that knows some names alone: its time does not grow with their number."""
    finder = Tokenizer(models.WordLevel({"": 0}, unk_token=""))
    finder.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return finder


class _Piece(NamedTuple):
    """A piece of data with its tokens.

    Attributes:
        start: Where it starts in the text.
        offsets: Characters of each token within the piece, where they are wanted.
    """

    start: int
    text: str
    ids: list[int]
    offsets: Offsets


class TextEncoder:
    """Encodes the pieces of prompts for one tokenizer.

    Args:
        tokenizer: Tokenizer of the model.

    Attributes:
        controls: Control tokens by id.
        unknown: The token of what the vocabulary lacks; None where there is none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.controls = control_tokens(tokenizer)
        self._ids = frozenset(self.controls)
        self.unknown = getattr(tokenizer, "unk_token_id", None)
        self._begins: dict[str, bool] = {}

    def encode(self, text: str, after: str = "", *, is_data: bool = False) -> tuple[int, ...]:
        """Return the token ids of a piece.

        Args:
            text: The piece.
            after: What stands before it in the prompt; empty for the beginning.
            is_data: Control tokens that it spells stay text.
        """
        begins = self.begins_anew(after)
        if is_data:
            return tuple(token for piece in self._pieces(text, begins) for token in piece.ids)
        if begins:
            return tuple(self._run(text, True, False)[0])
        # After a control token the tokenizer may put its prefix again, as it does in the whole.
        at = next((start for start, _, _ in self._found(text, False, False)), len(text))
        rest = self._run(text[at:], True, False)[0] if at < len(text) else []
        return (*self._run(text[:at], False, False)[0], *rest)

    def offsets(self, text: str, after: str = "") -> Offsets:
        """Return the characters that each token of data stands for; the tokenizer must be a fast one."""
        return [
            (piece.start + start, piece.start + stop)
            for piece in self._pieces(text, self.begins_anew(after), with_offsets=True)
            for start, stop in piece.offsets
        ]

    def pieces(self, text: str) -> list[str]:
        """Return data cut where it would become a control token."""
        if not self._spelled(text):
            return [text]
        return [piece.text for piece in self._pieces(text, True, split=False)]

    def count_controls(self, ids: Sequence[int]) -> int:
        """Return how many control tokens are among some tokens."""
        return sum(token in self._ids and token != self.unknown for token in ids)

    def spells_control(self, text: str) -> bool:
        """Return whether data spell a control token that version 0.1 did not keep apart."""
        if not self._spelled(text):
            return False
        named = any(token in text for token in self.tokenizer.all_special_tokens)
        return not named or len(self._pieces(text, True)) > 1

    @cached_property
    def _finder(self) -> Tokenizer:
        return _finder_of(tuple(sorted({name.strip() for name in self.controls.values()})))

    def _spelled(self, text: str) -> Offsets:
        """Return start and end of the names of control tokens in a text, the longest where several begin."""
        found = self._finder.encode(text)
        return [span for index, span in zip(found.ids, found.offsets, strict=True) if index]

    @cached_property
    def has_dummy_prefix(self) -> bool:
        """Return whether the tokenizer puts something before whatever it is given."""
        alone = self._plain("ab")
        if any(self._plain(guard + "ab") == self._plain(guard) + alone for guard in _GUARDS):
            return False
        return self._inner is not None if self.tokenizer.is_fast else True

    @cached_property
    def _inner(self) -> Tokenizer | None:
        """Return a fast tokenizer without its dummy prefix; None for one that has none, and for a slow one."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        about = {} if backend is None else json.loads(backend.to_str())
        without = _without_prefix(about)
        return None if without == about else _made_of(without)

    @cached_property
    def _bare(self) -> Tokenizer | None:
        """Return a fast tokenizer without prefix and added tokens; None for a slow one."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            return None
        return _made_of(_without_prefix(json.loads(backend.to_str())) | {"added_tokens": []})

    def _unnamed(self, text: str) -> _Piece | None:
        """Return the name of a control token as text; None where the tokenizer has no other tokens for it."""
        encoding = self._bare and self._bare.encode(text, add_special_tokens=False)
        if not encoding or not encoding.ids or not {*self._ids, self.unknown}.isdisjoint(encoding.ids):
            return None
        return _Piece(0, text, encoding.ids, encoding.offsets)

    def begins_anew(self, after: str) -> bool:
        """Return whether a piece is encoded like the beginning of a text where it stands."""
        if not after or not self.has_dummy_prefix:
            return True
        if after not in self._begins:
            whole, before = self._plain(after + _PROBE), self._plain(after)
            inner = self._run(_PROBE, False, False)[0]
            self._begins[after] = whole != [*before, *inner] and whole == before + self._plain(_PROBE)
        return self._begins[after]

    def _pieces(self, text: str, begins: bool, *, split: bool = True, with_offsets: bool = False) -> list[_Piece]:
        """Return data as pieces, none of which becomes a control token."""
        ids, offsets = self._run(text, begins, split, with_offsets=with_offsets)
        cuts: list[int] = []
        if not self._ids.isdisjoint(ids):
            found = list(self._found(text, begins, split))
            cuts = [start + 1 for start, stop, _ in found if stop - start > 1]
            # A name of one character cannot be cut: it stands alone, and is encoded as if it were no name. Those of
            # ASCII are in every template, as its syntax.
            alone = [] if cuts else [span[:2] for span in found if not "!" <= text[span[0] : span[1]] <= "~"]
            if alone == [(0, len(text))]:
                return [self._unnamed(text) or _Piece(0, text, ids, offsets)]
            cuts = cuts or sorted({edge for span in alone for edge in span} - {0, len(text)})
        if not cuts:
            return [_Piece(0, text, ids, offsets)]
        return [
            piece._replace(start=start + piece.start)
            for start, stop in pairwise([0, *cuts, len(text)])
            for piece in self._pieces(text[start:stop], begins and start == 0, split=split, with_offsets=with_offsets)
        ]

    def _found(self, text: str, begins: bool, split: bool) -> Iterator[tuple[int, int, int]]:
        """Yield start, end and id of the control tokens that a text becomes."""
        if not self.tokenizer.is_fast:
            by_name = {name.strip(): index for index, name in self.controls.items()}
            for start, stop in self._spelled(text):
                yield start, stop, by_name[text[start:stop]]
            return
        ids, offsets = self._run(text, begins, split, with_offsets=True)
        for token, (start, stop) in zip(ids, offsets, strict=True):
            if token not in self._ids:
                continue
            # A token may take the white space around it.
            shown = text[start:stop]
            start += len(shown) - len(shown.lstrip())
            stop = start + len(shown.strip())
            # What the vocabulary lacks becomes the same token as its name.
            if token != self.unknown or text[start:stop] == self.controls[token]:
                yield start, stop, token

    def _plain(self, text: str) -> list[int]:
        return self._run(text, True, False)[0]

    def _run(self, text: str, begins: bool, split: bool, *, with_offsets: bool = False) -> tuple[list[int], Offsets]:
        """Return tokens, and their characters where they are wanted; `split` matches no special token."""
        if begins or not self.has_dummy_prefix:
            more: dict[str, Any] = {"return_offsets_mapping": True} if with_offsets else {}
            encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=split, verbose=False, **more)
            return list(encoded.input_ids), encoded.offset_mapping if with_offsets else []
        if self._inner is not None:
            self._inner.encode_special_tokens = split
            encoding = self._inner.encode(text, add_special_tokens=False)
            return encoding.ids, encoding.offsets
        for guard in _GUARDS:
            before, whole = self._run(guard, True, split)[0], self._run(guard + text, True, split)[0]
            if whole[: len(before)] == before:
                return whole[len(before) :], []
        return self._run(text, True, split)


def _made_of(about: dict[str, Any]) -> Tokenizer:
    """Return the fast tokenizer of a description, which neither cuts nor fills up texts."""
    made = Tokenizer.from_str(json.dumps(about))
    made.no_truncation()
    made.no_padding()
    return made


def _without_prefix(part: Any) -> Any:
    """Return the description of a fast tokenizer, or a part of it, with nothing put before a text."""
    if isinstance(part, list):
        return [_without_prefix(one) for one in part if not _is_prefix(one)]
    if not isinstance(part, dict):
        return part
    kept = {}
    for name, value in part.items():
        # The vocabulary is long, and no part of this.
        kept[name] = (
            value if name in ("model", "added_tokens") else None if _is_prefix(value) else _without_prefix(value)
        )
    if "prepend_scheme" in kept:
        kept["prepend_scheme"] = "never"
    if "add_prefix_space" in kept:
        kept["add_prefix_space"] = False
    return kept


def _is_prefix(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "Prepend"
