"""Requests to a server with OpenAI's interfaces: repeated where a failure may pass, limited, and checked.

    client = Client(ClientSettings(base_url="http://localhost:8000/v1", key=None, model="NAME"))
    reply = client.ask({"prompt": [1, 2, 3], "max_tokens": 8}, num_tokens=11, where="a prompt")

A client serves several threads. Nothing that it raises or says holds the key.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from eval.engines.replies import Choice, Reply, add_piece, count_of, delay_of, words_of
from eval.errors import UserError

if TYPE_CHECKING:
    from openai import APIStatusError

Value = TypeVar("Value")
# Statuses of failures that may pass, beside all from 500 on.
_PASSING = (408, 409, 425, 429)
_FIRST_DELAY, _LONGEST_DELAY = 0.5, 30.0
_CONNECT_SECONDS = 30.0
_SHOWN = 300
NEW_ROOM = "max_completion_tokens"


class EngineError(UserError):
    """A server failed, or answered something else than was asked; what is in the journal stays."""


class RefusedError(EngineError):
    """The server takes no such request, however often it is sent.

    Attributes:
        status: HTTP status of the answer.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class LimitError(EngineError):
    """A limit of the session is reached."""


class StoppedError(Exception):
    """Another request has failed, and this one is not sent again."""


class _PassingError(Exception):
    """A failure that may pass.

    Attributes:
        delay: Seconds that the server asks to wait.
        is_unread: The server took no such request, and so charges nothing for it.
    """

    def __init__(self, message: str, delay: float | None = None, *, is_unread: bool = False) -> None:
        super().__init__(message)
        self.delay = delay
        self.is_unread = is_unread


@dataclass(frozen=True, kw_only=True)
class ClientSettings:
    """Which server, and how patient to be with it.

    Attributes:
        base_url: Up to and with `/v1`.
        key: None where the server has none.
        model: Name under which the model is served.
        timeout: Seconds without a byte after which a request has failed.
        max_retries: Times that a request is sent again.
        max_requests: Requests of this client at most, repeated ones included.
        max_total_tokens: Tokens of prompts and answers at most.
        is_ours: This machine serves: no proxy is asked.
    """

    base_url: str
    key: str | None
    model: str
    timeout: float = 600.0
    max_retries: int = 6
    max_requests: int | None = None
    max_total_tokens: int | None = None
    is_ours: bool = False


@dataclass
class _Spent:
    """What a session has used; tokens of running requests are counted as if all of their room were used."""

    requests: int = 0
    tokens: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Client:
    """Sends requests, from any thread.

    Args:
        settings: Which server.
        is_alive: Whether the server still runs, where that is known; a dead one is not asked again.
        say: Prints a line about a request that is repeated.
    """

    def __init__(
        self,
        settings: ClientSettings,
        is_alive: Callable[[], bool] = lambda: True,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        from openai import DefaultHttpxClient, OpenAI, Timeout

        self.settings = settings
        self.is_alive = is_alive
        self.say = say
        self.stopped = threading.Event()
        self.spent = _Spent()
        # Field with the room for an answer. Newer models of OpenAI take `NEW_ROOM` alone, and other servers do not.
        self.room = "max_tokens"
        self._http = DefaultHttpxClient(
            trust_env=not settings.is_ours, timeout=Timeout(settings.timeout, connect=_CONNECT_SECONDS)
        )
        self._openai = OpenAI(
            # The package demands a key, and servers without one ignore it.
            api_key=settings.key or "none",
            base_url=settings.base_url,
            http_client=self._http,
            max_retries=0,
            # What the environment may hold for another server.
            organization="",
            project="",
        )

    def close(self) -> None:
        """Send nothing any more."""
        self.stopped.set()
        with contextlib.suppress(Exception):
            self._http.close()

    def get(self, path: str) -> Any:
        """Return the JSON of a path below the address without `/v1`; None where there is none."""
        root = self.settings.base_url.rstrip("/").removesuffix("/v1")
        headers = {"Authorization": f"Bearer {self.settings.key}"} if self.settings.key else {}
        with contextlib.suppress(Exception):  # no server must have it
            found = self._http.get(root + path, headers=headers, timeout=_CONNECT_SECONDS)
            return found.json() if found.status_code == 200 else None
        return None

    def is_ready(self) -> bool:
        """Return whether the server lists its models, asked once."""
        return self.get("/v1/models") is not None

    def models(self) -> list[Mapping[str, Any]]:
        """Return what the server says of its models; nothing where it has no such list.

        Raises:
            EngineError: It cannot be reached, or does not take the key.
        """
        try:
            page = self._repeated(lambda: self._openai.models.list(), 0, "the list of models")
        except RefusedError as error:
            if error.status in (404, 405, 501):
                return []
            raise
        entries = getattr(page, "data", None)
        known = entries if isinstance(entries, list) else []
        return [entry.model_dump() for entry in known if hasattr(entry, "model_dump")]

    def ask(
        self,
        body: Mapping[str, Any],
        *,
        num_tokens: int,
        where: str,
        num_choices: int = 1,
        started: Callable[[], None] = lambda: None,
        is_streamed: bool = True,
    ) -> Reply:
        """Return what the model answers.

        Args:
            body: Fields of the request, with `prompt` or `messages`.
            num_tokens: Tokens of the prompt and the room for answers.
            where: What is asked, for errors.
            num_choices: Answers that must come.
            started: Called at the first token of each try.
            is_streamed: Take the answer token by token; else it comes as a whole, and no first token is seen.

        Raises:
            EngineError: The server failed for good, or refuses.
            LimitError: It was not sent, because a limit is reached.
            StoppedError: The client was stopped.
        """
        return self._repeated(
            lambda: self._once(body, num_choices, started, is_streamed=is_streamed), num_tokens, where
        )

    def post(self, body: Mapping[str, Any], *, num_tokens: int, where: str) -> tuple[Mapping[str, Any], float]:
        """Return the whole answer of a completions request, as JSON, and its seconds without failed tries.

        Arguments and errors are those of `ask`.
        """

        def once() -> tuple[Mapping[str, Any], float]:
            begun = time.monotonic()
            found = self._openai.post(
                "/completions", body={"model": self.settings.model, **body}, cast_to=dict[str, Any]
            )
            if not isinstance(found, Mapping):
                raise _PassingError("an answer that is no JSON")
            # The name is shown where it is that of another model.
            name = None if found.get("model") is None else self._clean(str(found["model"]))
            return {**found, "model": name}, time.monotonic() - begun

        return self._repeated(once, num_tokens, where)

    def _repeated(self, once: Callable[[], Value], num_tokens: int, where: str) -> Value:
        for attempt in range(self.settings.max_retries + 1):
            if self.stopped.is_set():
                raise StoppedError
            self._spend(num_tokens)
            try:
                value = self._translated(once, where)
            except _PassingError as failure:
                if failure.is_unread:
                    self._spend_less(num_tokens)
                if attempt == self.settings.max_retries or not self.is_alive():
                    raise EngineError(self._final(where, str(failure), attempt + 1)) from None
                self._wait(failure, attempt, where)
            except BaseException:
                self._spend_less(num_tokens)
                raise
            else:
                if isinstance(value, Reply):
                    used = (value.prompt_tokens, value.completion_tokens)
                    self._spend_less(num_tokens - sum(used) if None not in used else 0)  # type: ignore[arg-type]
                return value
        raise AssertionError("a loop without a try")

    def _translated(self, once: Callable[[], Value], where: str) -> Value:
        """Return what a try brings. Raises `_PassingError`, or an error for good that holds no key."""
        from openai import APIConnectionError, APIError, APIStatusError, APITimeoutError

        try:
            return once()
        except _PassingError as error:
            raise _PassingError(self._clean(str(error)), error.delay) from None
        except EngineError:
            raise
        except APITimeoutError:
            raise _PassingError(f"no byte for {self.settings.timeout:g} s") from None
        except APIConnectionError as error:
            reason = error.__cause__ or error
            text = self._clean(f"no connection: {str(reason) or type(reason).__name__}")
            raise _PassingError(text, is_unread=type(reason).__name__ == "ConnectError") from None
        except APIStatusError as error:
            self._raise_for_status(error, where)
        except APIError as error:  # within a stream
            raise _PassingError(self._clean(f"an error in mid-answer: {error.message}")) from None
        except Exception as error:  # whatever half an answer, or one that is no JSON, makes the package raise
            if self.stopped.is_set():
                raise StoppedError from None
            raise _PassingError(
                self._clean(f"an answer that cannot be read: {type(error).__name__}: {error}")
            ) from None

    def _raise_for_status(self, error: APIStatusError, where: str) -> NoReturn:
        status, text = error.status_code, self._clean(words_of(error))
        if status == 429 and "insufficient_quota" in text:
            raise RefusedError(f"the server refuses {where}: {status}: {text}; raise the account's quota", status)
        if status in _PASSING or status >= 500:
            raise _PassingError(f"{status}: {text}", delay_of(error.response.headers), is_unread=True) from None
        remedies = {
            401: "; put the key into the environment variable that --api-key-env names",
            403: "; the key may not do this",
            404: "; look at --base-url and --model",
        }
        raise RefusedError(f"the server refuses {where}: {status}: {text}{remedies.get(status, '')}", status) from None

    def _wait(self, failure: _PassingError, attempt: int, where: str) -> None:
        backoff = min(_FIRST_DELAY * 2**attempt, _LONGEST_DELAY) * random.uniform(0.75, 1.0)
        delay = backoff if failure.delay is None else failure.delay
        if failure.delay is not None and delay > self.settings.timeout:
            raise EngineError(
                f"the server asks to wait {delay:,.0f} s before {where} is sent again, longer than --request-timeout "
                f"{self.settings.timeout:g}: {failure}; run the same command later, it goes on from here"
            )
        self.say(f"{where} is sent again in {delay:.1f} s ({attempt + 1} of {self.settings.max_retries}): {failure}")
        if self.stopped.wait(delay):
            raise StoppedError

    def _final(self, where: str, failure: str, num_tries: int) -> str:
        address = self.settings.base_url
        tries = "once" if num_tries == 1 else f"{num_tries} times"
        gone = "" if self.is_alive() else "; the server has ended"
        return (
            f"{where} failed {tries} at {address}: {failure}{gone}; the same command goes on from the answers that are "
            "there"
        )

    def _once(
        self, body: Mapping[str, Any], num_choices: int, started: Callable[[], None], *, is_streamed: bool
    ) -> Reply:
        chat = "messages" in body
        create: Any = self._openai.chat.completions.create if chat else self._openai.completions.create
        body = {self.room if name == "max_tokens" else name: value for name, value in body.items()}
        known = ("prompt", "messages", "max_tokens", "temperature", "top_p", "n", "seed", "stop")
        extra = {name: value for name, value in body.items() if name not in known}
        begun, first, usage, model = time.monotonic(), None, None, None
        choices: dict[int, Choice] = {}
        more = {"stream": True, "stream_options": {"include_usage": True}} if is_streamed else {}
        found = create(
            model=self.settings.model,
            **{name: value for name, value in body.items() if name in known},
            **more,
            extra_body=extra,
        )
        with contextlib.closing(found) if is_streamed else contextlib.nullcontext():
            for chunk in found if is_streamed else [found]:
                model = getattr(chunk, "model", None) or model
                usage = getattr(chunk, "usage", None) or usage
                for one in getattr(chunk, "choices", None) or []:
                    is_token = add_piece(choices.setdefault(int(one.index), Choice()), one)
                    if is_token and first is None and is_streamed:
                        first = time.monotonic() - begun
                        started()
        seconds = time.monotonic() - begun
        if not choices:
            raise _PassingError("an answer without choices")
        cut = [one for one in choices.values() if one.finish_reason in (None, "abort", "error")]
        if cut or sorted(choices) != list(range(num_choices)):
            raise _PassingError("the answer ended in its middle")
        details = getattr(usage, "prompt_tokens_details", None)
        return Reply(
            choices=[choices[index] for index in range(num_choices)],
            model=None if model is None else self._clean(str(model)),
            prompt_tokens=count_of(usage, "prompt_tokens"),
            cached_tokens=count_of(details, "cached_tokens"),
            completion_tokens=count_of(usage, "completion_tokens"),
            seconds=seconds,
            first_token_seconds=first,
        )

    def _spend(self, num_tokens: int) -> None:
        spent, settings = self.spent, self.settings
        with spent.lock:
            if settings.max_requests is not None and spent.requests >= settings.max_requests:
                raise LimitError(f"--max-requests {settings.max_requests} are sent; {_GO_ON}")
            if settings.max_total_tokens is not None and spent.tokens + num_tokens > settings.max_total_tokens:
                raise LimitError(
                    f"{spent.tokens:,} tokens are used, and the next request could need {num_tokens:,} more than "
                    f"--max-total-tokens {settings.max_total_tokens} leaves; {_GO_ON}"
                )
            spent.requests += 1
            spent.tokens += num_tokens

    def _spend_less(self, num_tokens: int) -> None:
        with self.spent.lock:
            self.spent.tokens -= num_tokens

    def _clean(self, text: str) -> str:
        """Return a text in one line of moderate length, without the key."""
        key = self.settings.key
        line = " ".join((text.replace(key, "***") if key else text).split())
        return line if len(line) <= _SHOWN else line[: _SHOWN - 3] + "..."


_GO_ON = "the same command goes on from the answers that are there, with a limit of its own"
