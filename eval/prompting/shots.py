"""Shots, solved examples in a prompt: turns of user and model under a chat template, plain text otherwise.

A template that shows them without their documents has a place for them in its own text.

    shots = Shots(template, examples)
    before, after = chat.around(before, after, shots.turns)
    shown, before = shots.split(before)      # the shots, and what stands between them and the context
    shots.encode(shown, encoder)

While a chat template is rendered, marks stand for their texts, so that documents and answers stay text whatever they
spell. They are encoded apart from the rest, so that all prompts of a template begin with the same tokens; with what
stands between them and the context, where that has no query.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from eval.errors import UserError
from eval.prompting.encoding import TextEncoder
from tasks import Example, Template

_EDGE = "\N{OBJECT REPLACEMENT CHARACTER}"
_MARK = re.compile(f"({_EDGE}[a-z]+ [0-9]+{_EDGE})")


class Shots:
    """The shots of one template.

    Args:
        template: Its text is that of each, unless it shows them without their documents.
        examples: Each with a reference, the first of which is its answer.
    """

    def __init__(self, template: Template, examples: Sequence[Example]) -> None:
        self._texts: dict[str, str] = {}
        self._template = template
        self._pairs = [self._pair(template, index, example) for index, example in enumerate(examples)]

    def _pair(self, template: Template, index: int, example: Example) -> tuple[str, str]:
        texts = {"context": example.context, "query": example.query or "", "answer": example.references[0]}
        marks = {name: f"{_EDGE}{name} {index}{_EDGE}" for name in texts}
        if template.shot is not None:
            self._texts |= {marks[name]: text for name, text in texts.items()}
            return template.shot.replace("{query}", marks["query"]), marks["answer"]
        self._texts |= {marks[name]: text.strip() for name, text in texts.items()}
        shown = template.text.replace("{context}", marks["context"]).replace("{query}", marks["query"])
        return shown, marks["answer"]

    def __bool__(self) -> bool:
        return bool(self._pairs)

    @property
    def _inside(self) -> str:
        """Return what stands in the template's own place for them, with marks; nothing without any."""
        shown = [text.replace("{answer}", answer) for text, answer in self._pairs]
        return self._template.shots.replace("{shots}", "\n\n".join(shown)) if shown else ""

    def put_inside(self) -> Template:
        """Return the template with the shots in its own place for them, with marks, if it has one."""
        if self._template.shot is None:
            return self._template
        return replace(self._template, text=self._template.text.replace("{shots}", self._inside))

    @property
    def _before(self) -> list[tuple[str, str]]:
        return [] if self._template.shot is not None else self._pairs

    @property
    def turns(self) -> list[tuple[str, str]]:
        """Return role and text of each turn, with marks."""
        return [turn for text, answer in self._before for turn in (("user", text), ("assistant", answer))]

    @property
    def plain(self) -> str:
        """Return them as text, with marks: an answer comes behind a cue and a blank, or is a paragraph."""
        return "".join(f"{text}{_seam(text)}{answer}\n\n" for text, answer in self._before)

    def split(self, before: str) -> tuple[str, str]:
        """Return what stands before a context up to the last answer, or all of it without a query, and from there on.

        Raises:
            UserError: A chat template has left out or repeated some.
        """
        if not self:
            return "", before
        written = "".join(text for _, text in self.turns) if self._template.shot is None else self._inside
        if any(before.count(mark) != written.count(mark) for mark in self._texts):
            raise UserError(
                "the chat template leaves out or repeats earlier turns, so it cannot show --shots; take templates "
                "named -plain, which do without it"
            )
        end = before.rindex(self._pairs[-1][1]) + len(self._pairs[-1][1])
        if self._template.shot is not None and "{query}" not in before[end:]:
            end = len(before)
        return before[:end], before[end:]

    def fill(self, text: str) -> str:
        """Return a text with the texts of the shots in the places of their marks."""
        return _MARK.sub(lambda found: self._texts.get(found[1], found[1]), text)

    def encode(self, text: str, encoder: TextEncoder) -> tuple[int, ...]:
        """Return the token ids of a text with marks, those of the whole where no text spells a control token."""
        whole = encoder.encode(self.fill(text))
        is_spelled = any(encoder.spells_control(shown) for shown in self._texts.values())
        if not is_spelled and encoder.count_controls(whole) == encoder.count_controls(encoder.encode(text)):
            return whole
        ids: tuple[int, ...] = ()
        after = ""
        for piece in _MARK.split(text):
            if shown := self._texts.get(piece, piece):
                ids += encoder.encode(shown, after, is_data=piece in self._texts)
                after = shown
        return ids


def _seam(text: str) -> str:
    return "" if text[-1:].isspace() else " " if text.endswith(":") else "\n\n"
