"""A template and an example -> prompt tokens in three parts, of which only the context may be cut.

Each part is tokenized once, so that with head truncation the prompt at one length begins like the prompt at a greater
one, and token counts are exact. A tokenizer with a chat template gets the prompt as one user turn, unless the
template is a plain one. Documents, queries and answers are text, whatever they spell.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

from eval.errors import UserError
from eval.prompting.chat import ChatSettings, ChatTemplate
from eval.prompting.encoding import Offsets, TextEncoder
from eval.prompting.shots import Shots
from eval.prompting.truncation import HALVES, Frame, Passages, Ranges, Shown, kept_ranges, show, thinned_ranges
from tasks import Example, Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What ends a sentence or an entry of a list, up to the beginning of the next.
_BREAK = re.compile(r"(?:[.!?]|\n)\s+|\n")
# What stands before a piece that goes on in the middle of a text.
_TEXT = "a"
_PROBE = "Rivers run 7 miles."
# Of documents that are asked for their letters: how many characters of one, and how many documents of a task.
_SAMPLE = 512
_MOST_SAMPLES = 200
# As of the letters of references that a profile must keep.
_LEAST_LETTERS = 0.9


@dataclass(frozen=True, kw_only=True)
class PromptParts:
    """Token ids of what stands before the context, the context, and what stands after it.

    Attributes:
        passages: What every length shows of the context; None where any of it may be cut.
        whole: The text of the prompt as one piece, whose halves are kept; prefix and suffix are chat markup then. None
            where the context alone is cut.
        num_around: Tokens of `whole` before and after the context.
        window: What is shown of the context, from the room for it.
        note: What follows a context that has lost its end.
        aside: Tokens that a context with a note leaves free beside the room for the answer.
    """

    prefix: tuple[int, ...]
    context: tuple[int, ...]
    suffix: tuple[int, ...]
    passages: Passages | None = None
    whole: tuple[int, ...] | None = None
    num_around: tuple[int, int] = (0, 0)
    window: Callable[[Frame], Shown] = show
    note: tuple[int, ...] = ()
    aside: int = 0


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What the model sees.

    Attributes:
        token_ids: The whole prompt.
        context_ranges: Which of the context's tokens are in it, in its order.
        num_context_dropped: Context tokens that did not fit.
        note: What follows the context, since it has lost its end.
    """

    token_ids: tuple[int, ...]
    context_ranges: Ranges
    num_context_dropped: int
    note: tuple[int, ...] = ()

    @property
    def num_context_kept(self) -> int:
        return sum(stop - start for start, stop in self.context_ranges)


class PromptBuilder:
    """Builds the prompts of one template for one tokenizer.

    Args:
        tokenizer: Tokenizer of the model.
        template: A template of the task.
        chat: How its chat template is used; its system message counts before that of the template.
        shots: Solved examples that open the prompt.
        is_framed: Plain text ends as the tokenizer ends it too, as encoders read it.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: Template,
        chat: ChatSettings | None = None,
        *,
        shots: Sequence[Example] = (),
        is_framed: bool = False,
    ) -> None:
        assert template.text.count("{context}") == 1
        self.tokenizer = tokenizer
        self.shots = Shots(template, shots)
        self.template = self.shots.put_inside()
        chat = chat or ChatSettings()
        # The system message of a template opens a plain prompt; that of the user needs a chat template.
        self._opening = ""
        if template.system and chat.system is None:
            if template.chat and tokenizer.chat_template:
                chat = replace(chat, system=template.system)
            else:
                self._opening = f"{template.system}\n\n"
        self.chat = ChatTemplate(tokenizer, chat)
        self.uses_chat_template = template.chat and bool(tokenizer.chat_template)
        self.encoder = TextEncoder(tokenizer)
        self._bos: tuple[int, ...] = ()
        self._fixed: dict[str | None, PromptParts] = {}
        # Of the context asked about last: its prompts are answered together.
        self._offsets: tuple[str, Offsets] = "", []
        if tokenizer.bos_token_id is not None:
            # Plain text begins as the tokenizer begins it.
            first = tokenizer("a").input_ids[:1]
            self._bos = tuple(first) if first == [tokenizer.bos_token_id] else ()
        self._start, self._stop = self._frame() if is_framed else (self._bos, ())
        if self.uses_chat_template:
            self._start = self._stop = ()

    def _frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return what the tokenizer puts before and after a text."""
        bare, whole = (tuple(self.tokenizer("a", add_special_tokens=adds).input_ids) for adds in (False, True))
        at = next((at for at in range(len(whole)) if whole[at : at + len(bare)] == bare), 0)
        return whole[:at], whole[at + len(bare) :]

    @property
    def sha256(self) -> str:
        """Return the digest of the rendered template, chat markup included."""
        # Version 0.1 put spaces between the pieces of prompts for these tokenizers.
        pieces = [*self._rendered, *(["joined"] if self.encoder.has_dummy_prefix else []), *map(str, self._stop)]
        if self.shots:
            pieces += ["shots as a whole", self._shots_text]
        if self.template.note:
            pieces += ["note", self.template.note, str(self.template.aside)]
        return hashlib.sha256("\0".join(pieces).encode()).hexdigest()

    def check(self) -> None:
        """Check that the tokens of a prompt decode to the prompt; the weights are not needed.

        Raises:
            UserError: They do not, or the chat template cannot be used.
        """
        example = Example(id="", document_id="", context=_PROBE, query=_PROBE, references=())
        parts = self.parts(example)
        ids = parts.prefix + (parts.context if parts.whole is None else parts.whole) + parts.suffix
        ids = ids[len(self._start) + len(self._shot_ids) : len(ids) - len(self._stop)]
        text = _PROBE.join(part.replace("{query}", _PROBE) for part in self._rendered)
        whole = self._decode(self.encoder.encode(text, self._before_prompt))
        if (ours := self._decode(ids)) != whole or _letters(ours) != _letters(text):
            told = ours if ours != whole else whole
            raise UserError(
                f"the tokenizer of {self.tokenizer.name_or_path or 'this model'} does not keep texts: it reads "
                f"{text[-60:]!r} as {told[-60:]!r}; give a model with another tokenizer"
            )

    def check_letters(self, task: str, contexts: Sequence[str]) -> None:
        """Check that tokens hold the letters of documents, from the middle of each: vocabularies may lack a script.

        Raises:
            UserError: Fewer than nine of ten letters are there; the error names the task and an example.
        """
        num_letters = num_lost = 0
        example = ""
        for context in contexts[:: len(contexts) // _MOST_SAMPLES + 1]:
            begin = max(0, (len(context) - _SAMPLE) // 2)
            text = context[begin : begin + _SAMPLE]
            ids = self.encoder.encode(text, self._before_context, is_data=True)
            known = tuple(token for token in ids if token != self.encoder.unknown)
            there = Counter(filter(str.isalpha, _letters(text)))
            lost = there - Counter(filter(str.isalpha, _letters(self._decode(known))))
            num_letters += there.total()
            num_lost += lost.total()
            if lost and not example:
                example = next((word for word in text.split() if not lost.keys().isdisjoint(_letters(word))), text)
        if num_letters and num_letters - num_lost < _LEAST_LETTERS * num_letters:
            raise UserError(
                f"task '{task}': the tokenizer of {self.tokenizer.name_or_path or 'this model'} keeps "
                f"{100 * (num_letters - num_lost) / num_letters:.0f}% of the letters of the documents and loses, for "
                f"example, some of {example[:20]!r}; give a model whose tokenizer has this script"
            )

    def fixed_parts(
        self, query: str | None, context: tuple[int, ...] = (), passages: Passages | None = None
    ) -> PromptParts:
        """Return the token ids of a prompt, those of a context as they are given: all else is never cut.

        Raises:
            UserError: The chat template refuses, loses or repeats the user's text.
        """
        if query not in self._fixed:
            before, after = self._rendered
            self._fixed[query] = PromptParts(
                prefix=self._start + self._shot_ids + self._fill(before, query or "", self._before_prompt),
                context=(),
                suffix=self._fill(after, self.last_query(query or ""), _TEXT) + self._stop,
                note=self._note,
                aside=self.template.aside,
            )
        return replace(self._fixed[query], context=context, passages=passages)

    def parts(self, example: Example) -> PromptParts:
        """Return the token ids of an example's prompt, uncut.

        Raises:
            UserError: As `fixed_parts`.
        """
        if self.template.truncation == HALVES:
            return self._whole_parts(example)
        passages = None if example.kept is None else self.passages(example.context, example.kept)
        return self.fixed_parts(example.query, self.context_ids(example.context), passages)

    def _whole_parts(self, example: Example) -> PromptParts:
        """Return the parts of a prompt whose text is encoded in one piece."""
        if self.shots:
            raise UserError("a prompt that is cut as a whole takes no solved examples; give --template another one")
        markup, text, start = self._turn(example.query or "", example.context)
        ids = self.encoder.encode(text, markup[0], is_data=True)
        context = self.context_ids(example.context)
        before = len(self.encoder.encode(text[:start], markup[0], is_data=True))
        if self.tokenizer.is_fast and context:
            # Pieces and whole differ at the edges of the context at most.
            index = len(context) // 2
            at = start + self._offsets_of(example.context)[index][0]
            stops = [stop for _, stop in self.encoder.offsets(text, markup[0])]
            before = bisect_right(stops, at) - index
        after = len(ids) - before - len(context)
        return PromptParts(
            prefix=self.encoder.encode(markup[0]) if markup[0] else (),
            context=context,
            suffix=(self.encoder.encode(markup[1], _TEXT) if markup[1] else ()) + self._stop,
            whole=self._start + ids,
            num_around=(before + len(self._start), after),
        )

    def _turn(self, query: str, context: str) -> tuple[tuple[str, str], str, int]:
        """Return the markup around the user's text, that text, and where the context starts in it."""
        before, after = self.template.text.split("{context}")
        first, last = self._rendered
        if not last.startswith(after):
            after = after.rstrip()  # chat templates may cut white space at the end
        if not (first.endswith(before) and last.startswith(after)):
            raise UserError(
                f"the chat template of {self.tokenizer.name_or_path or 'this model'} changes the text of a prompt that "
                "is cut as a whole; give --template another one, or --chat-template"
            )
        markup = first[: len(first) - len(before)], last[len(after) :]
        before, after = (part.replace("{query}", query) for part in (before, after))
        return markup, before + context + after, len(before)

    def context_ids(self, context: str) -> tuple[int, ...]:
        """Return the token ids of a context; the same under all templates with the same `is_context_first`."""
        return self.encoder.encode(context, self._before_context, is_data=True)

    @cached_property
    def is_context_first(self) -> bool:
        """Return whether a context is encoded like the beginning of a text."""
        return self.encoder.begins_anew(self._before_context)

    def spans_of(self, context: str, ranges: Ranges) -> list[list[int]]:
        """Return the characters of a context that ranges of its tokens stand for, as starts and ends.

        A tokenizer that does not tell where its tokens stand is taken at the length of what it decodes.
        """
        if not self.tokenizer.is_fast:
            ids = self.context_ids(context)
            return [[min(len(self.tokenizer.decode(ids[:end])), len(context)) for end in pair] for pair in ranges]
        offsets = self._offsets_of(context)
        return [[offsets[start][0], offsets[stop - 1][1]] for start, stop in ranges]

    def passages(self, context: str, spans: Sequence[Sequence[int]]) -> Passages:
        """Return the tokens of a context that hold any character of some spans, which are in order and apart.

        A tokenizer that does not tell where its tokens stand gets a token more at each end, and no breaks.
        """
        if not self.tokenizer.is_fast:
            known = [len(self.context_ids(context[:edge])) for span in spans for edge in span]
            pairs = [(max(start - 1, 0), stop + 1) for start, stop in zip(known[::2], known[1::2], strict=True)]
            return Passages(ranges=_apart(pairs, len(self.context_ids(context))))
        offsets = self._offsets_of(context)
        starts, stops = [start for start, _ in offsets], [stop for _, stop in offsets]
        pairs = [(bisect_right(stops, start), bisect_left(starts, stop)) for start, stop in spans]
        breaks = sorted({bisect_right(stops, found.end()) for found in _BREAK.finditer(context)})
        return Passages(ranges=_apart(pairs, len(offsets)), breaks=breaks)

    def _offsets_of(self, context: str) -> Offsets:
        if self._offsets[0] != context:
            self._offsets = context, self.encoder.offsets(context, self._before_context)
        return self._offsets[1]

    def last_query(self, query: str) -> str:
        """Return a query as it stands after the context: chat templates may cut white space at the end of a turn."""
        is_last = self.uses_chat_template and self.template.text.endswith("{query}")
        return query.rstrip() if is_last and query != query.rstrip() and self.chat.trims else query

    @cached_property
    def _note(self) -> tuple[int, ...]:
        return self.encoder.encode(self.template.note, _TEXT)

    def note_text(self, prompt: Prompt) -> str:
        """Return what follows the context of a prompt that has lost its end, as text."""
        return self.template.note if prompt.note == self._note else self._decode(prompt.note)

    def text(self, query: str | None, context: str, *, is_turn: bool = False) -> str:
        """Return a prompt as text, for an engine that takes no tokens.

        Args:
            query: Query of the example.
            context: What is shown of the context, and what follows it.
            is_turn: Return the user's turn alone, which the engine puts into its chat template.
        """
        before, after = self.template.text.split("{context}") if is_turn else self._rendered
        before = self.shots.fill(before) if is_turn else before
        query = query or ""
        last = query if is_turn else self.last_query(query)
        whole = before.replace("{query}", query) + context + after.replace("{query}", last)
        whole = whole if is_turn else self._shots_text + whole
        # A tokenizer that begins each text with its token does so with this one.
        return whole if is_turn or not self._bos else whole.removeprefix(self.tokenizer.bos_token or "")

    @cached_property
    def shot_turns(self) -> list[tuple[str, str]]:
        """Return role and text of the turns of the shots, for an engine that takes no tokens."""
        return [(role, self.shots.fill(text)) for role, text in self.shots.turns]

    @property
    def system(self) -> str | None:
        """Return the system message."""
        return self.chat.settings.system

    def answer(self, text: str) -> tuple[int, ...]:
        """Return the token ids of an answer, with what ends the model's turn.

        Raises:
            UserError: The chat template refuses an answer, or there is no token that ends one.
        """
        before, lead = self._before_answer
        return self.encoder.encode(lead + text.strip(), before, is_data=True) + self._end

    def document(self, text: str) -> tuple[int, ...]:
        """Return the token ids of a text on its own, begun and ended as the tokenizer's vocabulary has it."""
        end = () if self.tokenizer.eos_token_id is None else (self.tokenizer.eos_token_id,)
        return self._bos + self.encoder.encode(text, is_data=True) + end

    @property
    def _before_context(self) -> str:
        return self._before_prompt + self._rendered[0].replace("{query}", _TEXT)

    @property
    def _before_prompt(self) -> str:
        return _TEXT if self.shots else ""

    @cached_property
    def _before_answer(self) -> tuple[str, str]:
        """Return what stands before an answer, and the white space that the chat template puts between them."""
        # After a plain prompt a dummy prefix is the blank between words.
        if not (self.encoder.has_dummy_prefix and self.uses_chat_template):
            return "", ""
        return self._rendered[1].replace("{query}", _TEXT) or _TEXT, self.chat.before_answer()

    @cached_property
    def _end(self) -> tuple[int, ...]:
        """Return what the chat template puts after an answer, else the end token."""
        if self.uses_chat_template:
            end = self.encoder.encode(self.chat.after_answer(), _TEXT)
            if end:
                return end
        if self.tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no end token, so a target cannot be ended; give a model that has one")
        return (self.tokenizer.eos_token_id,)

    @property
    def _rendered(self) -> tuple[str, str]:
        """Return what stands before, but for the shots, and after the context, with `{query}` still in its place."""
        return self._rendered_parts[1:]

    @cached_property
    def _rendered_parts(self) -> tuple[str, str, str]:
        """Return the shots, with marks in the places of their texts, and what stands before and after the context."""
        before, after = self.template.text.split("{context}")
        if self.uses_chat_template:
            before, after = self.chat.around(before, after, self.shots.turns)
        else:
            before = self._opening + self.shots.plain + before
        return *self.shots.split(before), after

    @property
    def _shots_text(self) -> str:
        return self.shots.fill(self._rendered_parts[0])

    @cached_property
    def _shot_ids(self) -> tuple[int, ...]:
        return self.shots.encode(self._rendered_parts[0], self.encoder)

    def _fill(self, text: str, query: str, after: str) -> tuple[int, ...]:
        """Return the token ids of a part of the template with the query in its place."""
        whole = self.encoder.encode(text.replace("{query}", query), after)
        own = self.encoder.encode(text.replace("{query}", ""), after)
        is_named = any(token in query for token in self.tokenizer.all_special_tokens)
        if not is_named and self.encoder.count_controls(whole) == self.encoder.count_controls(own):
            return whole
        ids: tuple[int, ...] = ()
        for index, piece in enumerate(text.split("{query}")):
            if index:
                ids += self.encoder.encode(query, after, is_data=True)
                after = _TEXT
            ids += self.encoder.encode(piece, after) if piece else ()
            after = piece or after
        return ids

    def _decode(self, ids: tuple[int, ...]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _letters(text: str) -> str:
    """Return a text without what tokenizers may normalize: white space, case and accents."""
    parts = unicodedata.normalize("NFKD", text.casefold())
    return "".join(one for one in parts if not one.isspace() and not unicodedata.combining(one))


def _apart(pairs: Sequence[tuple[int, int]], num_tokens: int) -> Ranges:
    """Return ranges of tokens without what one shares with the one before it."""
    found: list[tuple[int, int]] = []
    for start, stop in pairs:
        start = max(start, found[-1][1]) if found else start
        if start < (stop := min(stop, num_tokens)):
            found.append((start, stop))
    return tuple(found)


def fit(parts: PromptParts, maxlen: int, max_new_tokens: int, policy: str, thinking_room: int = 0) -> Prompt:
    """Return the prompt that leaves room for the answer, and for a thought before it, within `maxlen`.

    Args:
        parts: Its parts, uncut.
        maxlen: Most tokens.
        max_new_tokens: Room for the answer; 0 for an encoder, which does not see it.
        policy: Part of the context that is kept, where neither passages nor template say it.

    Raises:
        UserError: Not even an empty context fits, or the passages do not.
    """
    num_fixed = len(parts.prefix) + len(parts.suffix)
    budget = maxlen - num_fixed - max_new_tokens - thinking_room
    if budget < 0 and not max_new_tokens:
        raise UserError(
            f"maxlen {maxlen} is too small: instruction, query and special tokens need {num_fixed} even with an empty "
            "context; raise --maxlen"
        )
    if budget < 0:
        rooms = f"{thinking_room} for the thought and {max_new_tokens}" if thinking_room else f"{max_new_tokens}"
        flags = "--max-new-tokens or --max-thinking-tokens" if thinking_room else "--max-new-tokens"
        raise UserError(
            f"maxlen {maxlen} is too small: {num_fixed} tokens of instruction and template and {rooms} for the answer "
            f"need {maxlen - budget} even with an empty context; raise --maxlen or "
            f"lower {flags}"
        )
    if parts.whole is not None:
        return _halves(parts, parts.whole, budget)
    num_context = len(parts.context)
    if parts.passages is None:
        cut = partial(kept_ranges, num_context, policy=policy)
    elif (needed := parts.passages.num_tokens) <= budget:
        cut = partial(thinned_ranges, num_context, passages=parts.passages)
    else:
        raise UserError(
            f"maxlen {maxlen} is too small: what every length shows of the context needs {needed} tokens, and "
            f"{budget} are left beside {num_fixed} of instruction and template and the room for the answer; raise "
            f"--maxlen to {maxlen - budget + needed} or more"
        )
    most, note = _room_and_note(parts, budget, budget + num_fixed)
    shown = parts.window(Frame(num_tokens=num_context, budget=most, cut=cut))
    kept = tuple(token for start, stop in shown.ranges for token in parts.context[start:stop])
    note = () if shown.ranges and shown.ranges[-1][1] == num_context else note[: budget - len(kept)]
    return Prompt(
        token_ids=parts.prefix + kept + note + parts.suffix,
        context_ranges=shown.ranges,
        num_context_dropped=shown.num_dropped,
        note=note,
    )


def _room_and_note(parts: PromptParts, budget: int, free: int) -> tuple[int, tuple[int, ...]]:
    """Return the room for a context, and what follows one that is cut; passages have no notes.

    Args:
        parts: Parts of the prompt.
        budget: Tokens that all else of the prompt leaves.
        free: Tokens of the prompt with its context.

    Source: `truncate_llama2` in data.py, which cuts a document first, and `tokenize` in model_utils.py, which then cuts
    document and note to what is left, of princeton-nlp/HELMET at 4526dfb.
    """
    most = free - parts.aside if parts.aside else budget
    if most <= len(parts.note):  # too short a prompt to leave any free
        most = budget
    if not parts.note or parts.passages is not None or len(parts.context) <= most:
        return budget, ()
    return max(min(most - len(parts.note), budget), 0), parts.note


def _halves(parts: PromptParts, whole: tuple[int, ...], budget: int) -> Prompt:
    """Return the prompt with both halves of its text, each of half the tokens of the budget, rounded down.

    Source: `get_pred` of THUDM/LongBench, LongBench/pred.py at 2e00731.
    """
    num_context, half = len(parts.context), budget // 2
    if len(whole) <= budget:
        kept, ranges = whole, [(0, num_context)]
    else:
        before, after = parts.num_around
        head = min(max(half - before, 0), num_context)
        tail = min(max(half - after, 0), num_context - head)
        kept = whole[:half] + whole[len(whole) - half :]
        ranges = [(0, head), (num_context - tail, num_context)]
    return Prompt(
        token_ids=parts.prefix + kept + parts.suffix,
        context_ranges=tuple((start, stop) for start, stop in ranges if start < stop),
        num_context_dropped=num_context - sum(stop - start for start, stop in ranges),
    )
