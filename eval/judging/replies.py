"""Every question to a judge with its raw reply, in a file that grows, so that nothing is asked twice.

    with Replies(settings, Path("judge.replies.jsonl"), where="judge.yaml") as replies:
        replies.ask([question])
        replies.of(question)  # a reply for each repeat

A line is keyed by all that could change the reply: address, model, prompt, sampling. The file is shared by all runs
that one judge's file scores, so that key points of references, and texts beside several runs, are asked for once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from filelock import FileLock, Timeout

from eval.errors import UserError
from eval.judging.questions import Question, UnreadError
from eval.judging.settings import JudgeSettings
from eval.records.disk import make_folder
from eval.records.journal import append_line, fingerprint, open_journal, read_lines
from eval.records.rules import COUNT
from eval.records.typed import entry
from eval.runtime.provenance import utc_now

if TYPE_CHECKING:
    from eval.engines.client import Client

Value = TypeVar("Value")
# A prompt may be longer than the server takes, or not be to its liking; another one may do.
_OF_ONE_PROMPT = (400, 413, 422)
# Refusals in a row, from the first request on, after which it is the settings that are wrong.
_MOST_REFUSALS = 8


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question that was answered, or refused for good."""

    request: str = entry("digest of the question and of all that its reply depends on")
    kind: str = entry("what was asked: `key_points`, `said`, `supported`, `rubric` or `pairwise`")
    repeat: int = entry("which repeat, from 0", rule=COUNT)
    time: str = entry("when the reply came")
    model: str | None = entry("name that the server answered under", default=None)
    text: str = entry("reply, as it came")
    thought: str | None = entry("thoughts before it, where the server tells them", default=None, is_left_out=True)
    finish_reason: str | None = entry("why it ended", default=None)
    refusal: str | None = entry("what the server said instead of a reply", default=None, is_left_out=True)
    prompt_tokens: int | None = entry("tokens of the prompt, as the server counts", default=None, rule=COUNT)
    completion_tokens: int | None = entry("tokens of the reply, thoughts included", default=None, rule=COUNT)
    seconds: float = entry("from sending the question to the end of the reply", default=0.0)


class Replies:
    """Asks what was never asked, and reads what was.

    Args:
        settings: Which server, and how it is asked.
        file: Where replies are kept.
        where: The judge's file, for errors.

    Raises:
        UserError: Another process asks this judge, or a line of the file is damaged.
    """

    def __init__(self, settings: JudgeSettings, file: Path, where: str) -> None:
        self.settings, self.file, self.where = settings, file, where
        self.num_new = 0
        make_folder(file.parent)
        self._lock = FileLock(file.with_name(f".{file.name}.lock"))
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise UserError(f"another process asks the judge of {file}; wait for it, or end it") from None
        self._known = {(one.request, one.repeat): one for one in read_lines(Asked, file)}

    def __enter__(self) -> Replies:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes ask."""
        self._lock.release()

    def of(self, question: Question) -> list[Asked]:
        """Return the replies to a question, one a repeat. Raises `KeyError` where it was not asked."""
        digest = self._digest(question)
        return [self._known[digest, repeat] for repeat in range(self.settings.repeats)]

    def first_of(self, question: Question) -> Asked:
        """Return the only reply to a question that is not repeated. Raises `KeyError` where it was not asked."""
        return self._known[self._digest(question), 0]

    def ask(self, questions: Iterable[Question], *, is_repeated: bool = True) -> None:
        """Ask what was never asked, and keep each reply at once.

        Raises:
            UserError: The server fails or refuses, or answers as another model; what came before is kept.
        """
        repeats = range(self.settings.repeats if is_repeated else 1)
        wanted = {(self._digest(one), repeat): one for one in questions for repeat in repeats}
        missing = [
            (digest, repeat, one) for (digest, repeat), one in wanted.items() if (digest, repeat) not in self._known
        ]
        if missing:
            # Replies under other settings do not tell that these ones work.
            known = (self._known[key] for key in wanted if key in self._known)
            self._ask_all(missing, answered=any(asked.refusal is None for asked in known))

    def _ask_all(self, missing: Sequence[tuple[str, int, Question]], *, answered: bool) -> None:
        if find_spec("openai") is None:
            raise UserError('the client of servers is not installed; run: pip install "masformer[endpoint]"')
        from eval.engines.access import is_here, read_key
        from eval.engines.asking import ask_all
        from eval.engines.client import Client, ClientSettings, EngineError

        one = self.settings
        settings = ClientSettings(
            base_url=one.base_url,
            # Not before: replies that are there are read without it.
            key=read_key(one.api_key_env, f"api_key_env of {self.where}") if one.api_key_env else None,
            model=one.model,
            timeout=one.timeout,
            max_retries=one.max_retries,
            is_ours=is_here(one.base_url),
        )
        refused: list[Asked] = []
        journal = open_journal(self.file.parent, self.file.name)
        with closing(journal), closing(Client(settings, say=_say)) as client:

            def ask(job: tuple[str, int, Question], started: Callable[[], None]) -> Asked:
                return self._once(client, *job)

            try:
                for _, asked in ask_all(iter([[job] for job in missing]), ask, client.stopped, one.concurrency):
                    if asked.refusal is None:
                        answered = True
                        self._keep(journal, asked)
                    else:
                        refused.append(asked)
                    if refused and not answered and len(refused) >= min(_MOST_REFUSALS, len(missing)):
                        raise EngineError(f"{refused[0].refusal}; look at answers_as, temperature, seed and extra")
            except EngineError as error:
                # llama-cpp-python calls a format that it does not take a failure of its own.
                remedy = "; set answers_as to object or text" if "response_format" in str(error) else ""
                raise UserError(f"{self.where}: {error}{remedy}") from error
            finally:
                # A refusal is the prompt's own only where the server answers others.
                for asked in refused if answered else ():
                    self._keep(journal, asked)

    def _once(self, client: Client, digest: str, repeat: int, question: Question) -> Asked:
        from eval.engines.client import NEW_ROOM, RefusedError

        about: dict[str, Any] = {"request": digest, "kind": question.kind, "repeat": repeat}
        body = self._body(question, repeat)
        where = f"a question of the kind {question.kind}"

        def send() -> Any:
            return client.ask(body, num_tokens=0, where=where, is_streamed=False)

        room = client.room  # as sent; another thread may change it meanwhile
        try:
            try:
                reply = send()
            except RefusedError as error:
                if NEW_ROOM not in str(error) or room == NEW_ROOM:
                    raise
                client.room = NEW_ROOM
                reply = send()
        except RefusedError as error:
            if error.status not in _OF_ONE_PROMPT:
                raise
            return Asked(**about, time=utc_now(), text="", refusal=str(error))
        self._check_model(reply.model)
        [choice] = reply.choices
        return Asked(
            **about,
            time=utc_now(),
            model=reply.model,
            text=choice.text,
            thought=choice.thought or None,
            finish_reason=choice.finish_reason,
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
            seconds=round(reply.seconds, 3),
        )

    def _check_model(self, told: str | None) -> None:
        """Raise `EngineError` for a reply of another model than the file pins."""
        from eval.engines.client import EngineError

        expected = self.settings.served_model or self.settings.model
        if told is not None and told != expected:
            raise EngineError(
                f"the server answers as '{told}', and '{expected}' was to judge; name the model that way, or where the "
                f"server takes only '{self.settings.model}', add served_model: {told}"
            )

    def _keep(self, journal: Any, asked: Asked) -> None:
        append_line(journal, asked)
        self._known[asked.request, asked.repeat] = asked
        self.num_new += 1

    def _digest(self, question: Question) -> str:
        one = self.settings
        return fingerprint(one.base_url, one.served_model or one.model, self._body(question, 0))

    def _body(self, question: Question, repeat: int) -> dict[str, Any]:
        one = self.settings
        sampling = {"temperature": one.temperature, "seed": None if one.seed is None else one.seed + repeat}
        return {
            "messages": [{"role": "user", "content": question.text}],
            "max_tokens": one.max_tokens,
            **{name: value for name, value in sampling.items() if value is not None},
            **({} if one.answers_as == "text" else {"response_format": _format(one.answers_as, question)}),
            **one.extra,
        }


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _format(answers_as: str, question: Question) -> dict[str, Any]:
    if answers_as == "object":
        return {"type": "json_object"}
    schema = {"name": question.kind, "strict": True, "schema": question.schema}
    return {"type": "json_schema", "json_schema": schema}


def read_reply(asked: Asked, read: Callable[[str], Value]) -> Value:
    """Return what a reply holds. Raises `UnreadError`, whose kind tells refusals and cut replies from others."""
    if asked.refusal is not None:
        raise UnreadError("refused")
    try:
        return read(asked.text)
    except UnreadError as error:
        if asked.finish_reason == "content_filter":
            raise UnreadError("filtered") from error
        if asked.finish_reason == "length":
            raise UnreadError("cut") from error
        raise
