"""The chat template of a tokenizer: which one, with which arguments, rendered within limits.

    chat = ChatTemplate(tokenizer, ChatSettings(kwargs={"enable_thinking": False}))
    before, after = chat.around("Summarize.", "{context}", "Go on.")
    chat.turn_end(encoder)  # what ends an answer

Templates come with checkpoints and are programs: each is rendered in a process of its own, with a limit on its time,
memory and length, and whatever it raises is one line.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import random
import select
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from eval.errors import UserError
from eval.prompting.encoding import TextEncoder
from eval.prompting.thinking import switches_of
from eval.records.thoughts import opened_thought

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Stands for a text while the chat template is rendered: no template and no query contains it.
MARK = "\N{OBJECT REPLACEMENT CHARACTER}context\N{OBJECT REPLACEMENT CHARACTER}"
# Prose of documents, in which filters of templates find something to change. Markup of turns is not in it: what a
# template does to that alone concerns no ordinary text, and documents are text, whatever they spell.
_PROSE = (
    "Line one, \"quoted\" and 'quoted'.\nA <b>tag</b> & an &amp; 100% \\ of it.\n\n\n"
    "\tTabs,  two blanks, {braces} and https://example.org/a%20b?c=d. ÉTÉ, straße, 東京\n    An indented line\n\n"
) * 500
_SECONDS = 10
_MEMORY_BYTES = 2**30
_MOST_CHARACTERS = 2**20

Message = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class ChatSettings:
    """How the chat template is used.

    Attributes:
        name: Which of several templates; None is the default one.
        system: System message before the user's turn.
        kwargs: Variables of the template.
        date: What its clock shows, ISO 8601; None is the present.
        thinking: Let the model think by the template's switch, `on` or `off`; `auto` leaves it to the template.
    """

    name: str | None = None
    system: str | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    date: str | None = None
    thinking: str = "auto"

    @property
    def flag(self) -> str | None:
        """Return the first flag that needs a chat template; None without any."""
        given = {
            "--chat-template": self.name,
            "--system": self.system,
            "--template-kwargs": self.kwargs,
            "--thinking": self.thinking != "auto",
        }
        return next((flag for flag, value in given.items() if value), None)


@dataclass(frozen=True, kw_only=True)
class TurnEnd:
    """What a chat template puts after an answer: a control token, or else a text."""

    token_id: int | None = None
    text: str | None = None


class ChatTemplate:
    """The chat template of a tokenizer.

    Args:
        tokenizer: Tokenizer of the model.
        settings: Which template, and how it is used.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: ChatSettings) -> None:
        self.tokenizer = tokenizer
        self.settings = settings
        # One clock for all renderings, which are compared.
        self._date = settings.date or datetime.now().isoformat(timespec="seconds")
        self._limit: UserError | None = None  # that it went beyond once

    @cached_property
    def source(self) -> str | None:
        """Return the template; None for a tokenizer without one.

        Raises:
            UserError: The name is unknown, or needed; or there is no template to use the settings.
        """
        known, name = self.tokenizer.chat_template, self.settings.name
        if not known:
            if flag := self.settings.flag:
                raise UserError(f"{flag} is of a chat template, and the tokenizer of this model has none; leave it out")
            return None
        if isinstance(known, dict):
            names = ", ".join(sorted(known))
            if name is None and "default" not in known:
                raise UserError(
                    f"the tokenizer has several chat templates and no default; name one with --chat-template: {names}"
                )
            if (name or "default") not in known:
                raise UserError(f"the tokenizer has no chat template '{name}'; known: {names}")
            return str(known[name or "default"])
        if name not in (None, "default"):
            raise UserError(f"--chat-template {name}: the tokenizer has one chat template only; leave it out")
        return str(known)

    @cached_property
    def variables(self) -> dict[str, Any]:
        """Return the variables that the template is given: those of the settings, and its switch for thinking.

        Raises:
            UserError: It has no switch, or none that turns thinking off; or the settings set it too.
        """
        given, wanted = dict(self.settings.kwargs), self.settings.thinking
        source = None if wanted == "auto" else self.source
        if source is None:
            return given
        problem, found = _within_limits(lambda: json.dumps(switches_of(source)), self._date)
        switches = [] if problem else json.loads(found)
        refused = ""
        for name, on, off in switches:
            if name in given:
                raise UserError(f"--template-kwargs sets '{name}', and so does --thinking {wanted}; leave one out")
            value, other = (on, off) if wanted == "on" else (off, on)
            if value is None:
                refused = refused or f"its variable {name} has no value for that"
                continue
            problem, said = self._prompt(given | {name: value})
            # What says the same at either side is read elsewhere only, as in the history of a conversation.
            if not problem and (other is None or said != self._prompt(given | {name: other})[1]):
                return given | {name: value}
            if problem:
                refused = refused or f"with {name} it says {problem}"
        if wanted == "on" and opened_thought(self._prompt(given)[1]):
            return given
        told = f"cannot switch thinking {wanted}: {refused}" if refused else "has no switch for thinking"
        raise UserError(
            f"--thinking {wanted}: the model's chat template {told}; leave it out, or give --template-kwargs that the "
            "template knows"
        )

    def check_switch(self) -> None:
        """Check that the template can be switched as the settings say; raises as `variables`."""
        assert self.variables is not None

    @property
    def uses_clock(self) -> bool:
        """Return whether prompts may hold the date."""
        return "strftime_now" in (self.source or "")

    @cached_property
    def trims(self) -> bool:
        """Return whether the template leaves out white space at the end of the user's text."""
        return f"{MARK} \n" not in self.render([("user", f"{MARK} \n")], has_generation_prompt=True)

    def around(self, before: str, after: str, earlier: Sequence[tuple[str, str]] = ()) -> tuple[str, str]:
        """Return the rendered prompt up to the context and from there on.

        Args:
            before: The user's text before the context.
            after: The user's text after the context.
            earlier: Role and text of the turns before.

        Raises:
            UserError: The template refuses the turn, loses, repeats or changes the user's text, or drops the system
                message.
        """
        text = self.render([*earlier, ("user", before + MARK + after)], has_generation_prompt=True)
        pieces = text.split(MARK)
        if len(pieces) != 2:
            raise UserError(f"the chat template shows the user's text {len(pieces) - 1} times; once is needed")
        system = self.settings.system
        if system and system.strip() not in text:
            raise UserError(f"the chat template does not show the system message of --system {system[:40]!r}")
        whole = self.render([*earlier, ("user", before + MARK + _PROSE + MARK + after)], has_generation_prompt=True)
        if whole != MARK.join((pieces[0], _PROSE, pieces[1])):
            raise UserError(
                f"the chat template changes the user's text, or depends on it: {_first_change(whole)}; name "
                "another one with --chat-template, or take templates named -plain, which do without it"
            )
        return pieces[0], pieces[1]

    def after_answer(self, *, is_last: bool = True) -> str:
        """Return what follows an answer: at the end of the conversation, or up to the user's next text.

        Raises:
            UserError: The template refuses an answer.
        """
        turns = [("user", "a"), ("assistant", MARK)]
        if is_last:
            return self.render(turns).rpartition(MARK)[2].rstrip()
        following = "b".join("\N{OBJECT REPLACEMENT CHARACTER}" * 2)
        return self.render([*turns, ("user", following)]).rpartition(MARK)[2].partition(following)[0].rstrip()

    def before_answer(self) -> str:
        """Return the white space that the template puts between the end of a prompt and an answer.

        Raises:
            UserError: The template refuses an answer.
        """
        prompt = self.render([("user", "a")], has_generation_prompt=True)
        before = self.render([("user", "a"), ("assistant", MARK)]).partition(MARK)[0]
        lead = before[len(prompt) :] if before.startswith(prompt) else ""
        return lead if lead.isspace() else ""

    def turn_end(self, encoder: TextEncoder) -> TurnEnd:
        """Return what ends an answer: the first control token after it that begins no answer, else the text there.

        A template that shows no answers ends none.
        """
        tails, header = [], self._header(encoder)
        for is_last in (True, False):
            try:
                tails.append(self.after_answer(is_last=is_last))
            except UserError:
                if self._limit is not None:  # it does not refuse answers, it does not come to an end
                    raise
        for tail in tails:
            for token in encoder.encode(tail, after="a"):
                if token in encoder.controls and token not in header:
                    return TurnEnd(token_id=token)
            # White space and single characters are part of answers.
            if len(tail.strip()) > 2:
                return TurnEnd(text=tail if tail is not tails[0] else tail.strip())
        return TurnEnd()

    def _header(self, encoder: TextEncoder) -> frozenset[int]:
        """Return the control tokens that begin an answer."""
        with contextlib.suppress(UserError):
            turn = [("user", "a")]
            without, text = self.render(turn), self.render(turn, has_generation_prompt=True)
            if text.startswith(without):
                return frozenset(encoder.encode(text[len(without) :], after="a")) & encoder.controls.keys()
        return frozenset()

    def render(self, turns: Sequence[tuple[str, str]], *, has_generation_prompt: bool = False) -> str:
        """Return a rendered conversation.

        Args:
            turns: Role and text of each message after the system message.
            has_generation_prompt: Let the model's answer follow.

        Raises:
            UserError: The template fails, or is beyond a limit.
        """
        system = [("system", self.settings.system)] if self.settings.system else []
        plain = [{"role": role, "content": text} for role, text in [*system, *turns]]
        text = turns[-1][1]
        problem, rendered = self._try(plain, has_generation_prompt, self.variables)
        if text in rendered:
            return rendered
        # Templates of models that see images take lists of parts.
        parts = [turn | {"content": [{"type": "text", "text": turn["content"]}]} for turn in plain]
        with contextlib.suppress(UserError):
            problem_of_parts, of_parts = self._try(parts, has_generation_prompt, self.variables)
            if problem_of_parts is None and text in of_parts:
                return of_parts
        if problem is not None:
            what = "an answer" if turns[-1][0] == "assistant" else "a single user turn"
            raise UserError(
                f"the model's chat template refuses {what}: {problem}; --system, --template-kwargs or --chat-template "
                "may give what it needs, and templates named -plain do without it"
            )
        return rendered

    def _prompt(self, variables: Mapping[str, Any]) -> tuple[str | None, str]:
        """Return what the template raises for a user's turn, or what it writes, the answer's beginning included."""
        system = [{"role": "system", "content": self.settings.system}] if self.settings.system else []
        return self._try([*system, {"role": "user", "content": MARK}], True, variables)

    def _try(
        self, messages: Sequence[Message], has_generation_prompt: bool, given: Mapping[str, Any]
    ) -> tuple[str | None, str]:
        """Return what the template raises, or what it writes, with these variables."""
        own = {*inspect.signature(self.tokenizer.apply_chat_template).parameters, "messages"} - {"kwargs"}
        if taken := sorted(given.keys() & own):
            raise UserError(f"--template-kwargs sets '{taken[0]}', which is not the template's to choose; leave it out")

        def work() -> str:
            return str(
                self.tokenizer.apply_chat_template(
                    list(messages),
                    chat_template=self.source,
                    tokenize=False,
                    add_generation_prompt=has_generation_prompt,
                    **given,
                )
            )

        if self._limit is not None:
            raise self._limit
        try:
            return _within_limits(work, self._date)
        except UserError as error:
            self._limit = error
            raise


def _first_change(whole: str) -> str:
    """Return what a rendering around and of `_PROSE` shows first in the place of what it was given."""
    shown = whole.split(MARK)
    if len(shown) != 3:
        return "it repeats a longer text, or leaves out an end of it"
    if shown[1] == _PROSE:
        return "around a longer text it writes something else"
    at = next((at for at, pair in enumerate(zip(shown[1], _PROSE, strict=False)) if pair[0] != pair[1]), 0)
    return f"it shows {_PROSE[at : at + 20]!r} as {shown[1][at : at + 20]!r}"


def _within_limits(work: Callable[[], str], date: str) -> tuple[str | None, str]:
    """Return what rendering raises, or what it writes, from a process of its own.

    Raises:
        UserError: It is beyond a limit.
    """
    if not hasattr(os, "fork"):
        return _outcome(work, date)
    # multiprocessing lets no process that it made have children.
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        os.close(ours)
        _render_apart(theirs, work, date)
    os.close(theirs)
    deadline, sent = time.monotonic() + _SECONDS, b""
    try:
        while select.select([ours], [], [], max(0.0, deadline - time.monotonic()))[0]:
            if not (part := os.read(ours, 1 << 16)):
                problem, text = json.loads(sent or '["it ends the process", ""]')
                return problem, text
            sent += part
        raise UserError(f"the chat template is not rendered after {_SECONDS} s; give a checkpoint with another one")
    finally:
        os.close(ours)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _render_apart(answer: int, work: Callable[[], str], date: str) -> NoReturn:
    """Render in this process, a copy, send the outcome, and end."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with contextlib.suppress(ImportError, OSError, ValueError):
            import resource

            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
            most = pages * resource.getpagesize() + _MEMORY_BYTES
            resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))
        rest = json.dumps(_outcome(work, date)).encode()
        while rest:
            rest = rest[os.write(answer, rest) :]
    finally:
        os._exit(0)


def _outcome(work: Callable[[], str], date: str) -> tuple[str | None, str]:
    state = random.getstate()
    try:
        with _clock_at(date):
            text = work()
        text.encode()  # half a surrogate is no text
    except Exception as error:  # a template can raise whatever Python can
        said = " ".join(str(error).encode(errors="backslashreplace").decode().split())[:200]
        kind = type(error).__name__
        return (said if kind == "TemplateError" and said else f"{kind}{f': {said}' if said else ''}"), ""
    if len(text) > _MOST_CHARACTERS:
        return f"it writes {len(text):,} characters, more than {_MOST_CHARACTERS:,}", ""
    if random.getstate() != state:
        return "it draws at random, so each prompt would be another one", ""
    return None, text


@contextlib.contextmanager
def _clock_at(date: str) -> Any:
    """Let `strftime_now` of templates show a date; transformers has no way to say it."""
    from transformers.utils import chat_template_utils

    pinned = datetime.fromisoformat(date)

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return pinned

    before = chat_template_utils.datetime
    chat_template_utils.datetime = Clock
    try:
        yield
    finally:
        chat_template_utils.datetime = before
