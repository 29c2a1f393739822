"""An engine that is a server with OpenAI's interfaces, wherever it runs.

    python eval/run.py --engine endpoint --base-url http://localhost:8000/v1 --model NAME --tokenizer REF ...

Prompts are cut here, with the tokenizer of the model, and go as token ids where the server takes them. What it counts
is compared with what was sent: a server that cuts prompts itself, or answers with another model, ends the run.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

from eval.config.engine import PROMPT_FORMS
from eval.config.run import RunConfig
from eval.engines.asking import ask_all
from eval.engines.bodies import DIALECTS, OWNERS, UNKNOWN, check_settings, prompt_fields, sampling_fields, text_fields
from eval.engines.client import NEW_ROOM, Client, ClientSettings, EngineError, RefusedError, Reply, names_of
from eval.errors import UserError
from eval.generation.backend import Backend, sources_by_turns, start_for
from eval.generation.requests import Request, Requests
from eval.prompting.chat import ChatTemplate
from eval.prompting.ends import find_ends
from eval.prompting.prompts import PromptBuilder
from eval.records.schema import ModelRecord, Prediction, Sample
from eval.runtime.processes import check_launch, num_processes
from tasks import Example, Template

KEY_VARIABLE = "OPENAI_API_KEY"
CONCURRENCY = 16
# Prompts that ask what a server takes: long enough that one which cuts or counts otherwise shows.
_PROBE = "Rivers run 7 miles and more. " * 4
# Statuses with which servers refuse a form of prompts.
_OTHER_FORM = (400, 404, 405, 415, 422, 501)
# Tokens by which a text as a whole may differ from its pieces, at the places where they meet.
_SEAMS = 4


@dataclass(frozen=True, kw_only=True)
class Server:
    """What a server is, as far as it tells.

    Attributes:
        dialect: Which engine; `unknown` for another one.
        version: Version of the engine.
        form: How it takes prompts, one of `PROMPT_FORMS`.
        offset: Tokens that it counts beyond ours, for what its own template adds.
        model: Name that it answers under.
        max_length: Tokens of prompt and answer that it takes.
        is_streamed: Answers are taken token by token, and tokens are counted in a stream too.
    """

    dialect: str
    version: str | None
    form: str
    offset: int
    model: str | None
    max_length: int | None
    is_streamed: bool = True

    @property
    def name(self) -> str | None:
        """Return engine and version."""
        return None if self.dialect == UNKNOWN else " ".join(filter(None, (self.dialect, self.version)))


class ServerBackend(Backend):
    """What all engines share that are servers.

    Args:
        config: Settings of the run.

    Raises:
        UserError: The client is not installed, or several processes would ask.
    """

    def __init__(self, config: RunConfig) -> None:
        check_client()
        check_alone(config.engine)
        self.config = config
        self.process = start_for(config, needs_torch=False)

    @contextmanager
    def serving(self) -> Iterator[tuple[Client, Server]]:
        """Give the server, ready to be asked."""
        raise NotImplementedError
        yield

    @property
    def concurrency(self) -> int:
        return self.config.concurrency or CONCURRENCY

    def answer(self, requests: Requests, shared: Path) -> Iterator[Prediction]:
        with self.serving() as (client, server):
            sources = sources_by_turns(requests, self.process)
            documents = (list(requests.missing(source)) for source in sources)
            total = requests.num_missing

            def ask(request: Request, started: Callable[[], None]) -> Reply:
                return self._ask(client, server, request, started)

            bar = tqdm(
                total=total,
                desc="answers",
                disable=None if self.process.is_main else True,
                bar_format="{desc} {n}/{total} |{bar:24}| {elapsed} gone, {remaining} left{postfix}",
            )
            with bar:
                for request, reply in ask_all(documents, ask, client.stopped, self.concurrency):
                    yield self._prediction(request, reply)
                    bar.set_postfix_str(f"{request.key[2]} at {request.key[3]}", refresh=False)
                    bar.update()

    def _ask(self, client: Client, server: Server, request: Request, started: Callable[[], None]) -> Reply:
        settings, where = request.settings, name_of(request)
        ends = self.ends.token_ids if self.ends else ()
        body = prompt_fields(request, server.form, self.config.system)
        body |= sampling_fields(settings, server.dialect, ends)
        num_sent = len(request.prompt.token_ids)
        reply = client.ask(
            body,
            num_tokens=num_sent + settings.num_samples * settings.max_new_tokens,
            where=where,
            num_choices=settings.num_samples,
            started=started,
            is_streamed=server.is_streamed,
        )
        check_model(reply.model, server.model, where)
        check_count(reply.prompt_tokens, num_sent + server.offset, server.form, where)
        check_room(reply, settings.num_samples * settings.max_new_tokens, where)
        return reply

    def _prediction(self, request: Request, reply: Reply) -> Prediction:
        samples = [
            Sample(
                text=one.text.strip(),
                num_generated_tokens=self._num_tokens(reply, index),
                finish_reason=str(one.finish_reason),
                thought=one.thought.strip() or None,
            )
            for index, one in enumerate(reply.choices)
        ]
        further = sum(one.num_generated_tokens for one in samples) - 1
        is_timed = reply.first_token_seconds is not None and further > 0 and len(samples) == 1
        cached, counted = reply.cached_tokens, reply.prompt_tokens
        return request.prediction(
            samples,
            seconds=reply.seconds,
            first_token_seconds=reply.first_token_seconds,
            token_seconds=(reply.seconds - reply.first_token_seconds) / further if is_timed else None,  # type: ignore[operator]
            cached_tokens=cached,
            prefilled_tokens=None if cached is None or counted is None else max(counted - cached, 0),
            reported_prompt_tokens=counted,
        )

    def _num_tokens(self, reply: Reply, index: int) -> int:
        """Return the tokens of an answer: as the server counts them, else as the tokenizer does."""
        one = reply.choices[index]
        if len(reply.choices) == 1 and reply.completion_tokens is not None:
            return reply.completion_tokens
        if one.token_ids is not None:
            return len(one.token_ids)
        num_ends = int(one.finish_reason == "stop")
        return len(self.tokenizer(one.thought + one.text, add_special_tokens=False).input_ids) + num_ends


class EndpointBackend(ServerBackend):
    """Asks a server that runs already.

    Args:
        config: Settings of the run.

    Raises:
        UserError: The server cannot be reached, or does not take what is asked.
        CheckpointError: There is no tokenizer.
    """

    dtype = "unknown"
    plan_description = "the server's own"

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        check_endpoint(config)
        self.tokenizer = load_tokenizer(config)
        self.client = Client(endpoint_settings(config), say=say)
        self.found = contact(self.client, config, self.tokenizer)
        check_settings(config, self.found.dialect, self.found.form)
        if self.found.form != "messages":
            self.ends = find_ends(self.tokenizer, {}, ChatTemplate(self.tokenizer, config.chat_settings()))
        self.model = ModelRecord(reference=config.model, source="endpoint")
        self.identity = {
            "name": "endpoint",
            "server": self.found.dialect,
            "model": self.found.model,
            "prompts_as": self.found.form,
            "tokenizer": digest_of(self.tokenizer),
        }
        self.server = {"name": self.found.name, "address": config.base_url, "concurrency": self.concurrency}
        self.remarks = [describe_server(config, self.found, self.concurrency)]

    @contextmanager
    def serving(self) -> Iterator[tuple[Client, Server]]:
        try:
            yield self.client, self.found
        finally:
            self.client.close()

    def describe_model(self) -> str:
        return f"served at {self.config.base_url}"

    def check(self, requests: Requests) -> None:
        """Raise `UserError` for a plain prompt where the server takes chat messages alone."""
        for source in requests.sources:
            for name, builder in source.builders.items():
                if self.found.form == "messages" and not builder.template.chat:
                    raise UserError(
                        f"template '{name}' of task '{source.task}' does without a chat template, and prompts go as "
                        "messages, which the server puts into its own; give another --template"
                    )


def check_client() -> None:
    """Raise `UserError` where the client is not installed."""
    if find_spec("openai") is None:
        raise UserError('the client of servers is not installed; run: pip install "masformer[endpoint]"')


def check_alone(engine: str) -> None:
    """Raise `UserError` where several processes would ask a server, each with all of the limits."""
    check_launch(os.environ)
    if (count := num_processes(os.environ)) > 1:
        raise UserError(
            f"--engine {engine} is asked by one process, and {count} were launched; launch one, and give --concurrency"
        )


def check_endpoint(config: Any) -> None:
    """Raise `UserError` for a setting of a model that a server has loaded already."""
    loads = {"plan": "auto", "dtype": None, "quantize": None, "adapter": None, "adapter_revision": None}
    loads |= {"model_revision": None, "device_map": None, "threads": None, "batch_size": None, "memory_budget": None}
    for name, unset in loads.items():
        if (value := getattr(config, name, unset)) != unset:
            raise UserError(
                f"--{name.replace('_', '-')} {value} is of a model that is loaded here, and --engine endpoint asks a "
                "server that has loaded its own; leave it out"
            )


def client_settings(
    config: Any, base_url: str, key: str | None, model: str, *, is_ours: bool = False
) -> ClientSettings:
    """Return the settings of a client, with the limits of a command line."""
    given = ("max_retries", "max_requests", "max_total_tokens")
    limits = {name: getattr(config, name) for name in given if getattr(config, name) is not None}
    if config.request_timeout is not None:
        limits["timeout"] = config.request_timeout
    return ClientSettings(base_url=base_url, key=key, model=model, is_ours=is_ours, **limits)


def endpoint_settings(config: Any) -> ClientSettings:
    """Return the settings of a client of `--base-url`. Raises `UserError` where the key is not there, or is none."""
    address = str(config.base_url)
    return client_settings(config, address, _key(config.api_key_env), config.model, is_ours=_is_here(address))


def _key(variable: str | None) -> str | None:
    key = os.environ.get(variable or KEY_VARIABLE, "").strip()
    if variable is not None and not key:
        # Not repeated: it may be the key itself, in the wrong place.
        raise UserError(
            "--api-key-env names no environment variable that holds a key; put the key into one, and give the name of "
            "it, such as OPENAI_API_KEY"
        )
    if not (key.isascii() and key.isprintable()):
        raise UserError(
            f"the environment variable {variable or KEY_VARIABLE} holds characters that no key can have, such as a "
            "line's end or a dash of typography; copy the key into it again"
        )
    return key or None


def _is_here(address: str) -> bool:
    host = urlsplit(address).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def load_tokenizer(config: Any) -> Any:
    """Return the tokenizer of the served model. Raises `CheckpointError` where there is none."""
    from masformer.checkpoints.open import CheckpointError, open_tokenizer

    reference = config.tokenizer or config.model
    try:
        return open_tokenizer(reference, trust_remote_code=config.trust_remote_code)
    except CheckpointError as error:
        if config.tokenizer is not None:
            raise
        raise CheckpointError(f"no tokenizer by the name of --model: {error}; name one with --tokenizer") from error


def digest_of(tokenizer: Any) -> str:
    """Return a digest of a tokenizer with its chat template."""
    inner = getattr(tokenizer, "backend_tokenizer", None)
    whole = inner.to_str() if inner is not None else str(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(f"{whole}\0{tokenizer.chat_template}".encode()).hexdigest()[:16]


def contact(client: Client, config: Any, tokenizer: Any) -> Server:
    """Return what a server is, after one small request in each form until it takes one.

    Raises:
        EngineError: It cannot be reached, takes none, or cuts a short prompt.
        UserError: It has no such model, or too short a context.
    """
    entries = client.models()
    names = names_of(entries)
    if names and config.model not in names:
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise UserError(f"{config.base_url or 'the server'} serves no --model {config.model}; it has {shown}")
    entry = next((one for one in entries if one.get("id") == config.model), {})
    lengths = (entry.get(name) for name in ("max_model_len", "context_length"))
    length = next((one for one in lengths if isinstance(one, int) and one > 0), None)
    if length is not None and (longest := max(config.maxlen)) > length:
        raise UserError(f"maxlen {longest} is beyond the {length} tokens that the server takes; lower it")
    dialect, version = _dialect_of(client, entry)
    refusals = []
    # llama-cpp-python answers ids with an error of its own, which looks as if it might pass.
    forms = PROMPT_FORMS[1:] if entry.get("owned_by") in OWNERS else PROMPT_FORMS
    for form in [config.prompts_as] if config.prompts_as else forms:
        try:
            offset, model = _probe(client, form, config, tokenizer, is_streamed=True)
            is_streamed = offset is not None
            if offset is None:  # not counted in a stream, perhaps
                offset, model = _probe(client, form, config, tokenizer, is_streamed=False)
                is_streamed = offset is None
        except RefusedError as error:
            if error.status not in _OTHER_FORM or config.prompts_as:
                raise
            refusals.append(f"{form}: {error}")
            continue
        if offset is None and form == "ids":
            refusals.append(f"{form}: it does not count the tokens that were sent")
            continue
        return Server(
            dialect=dialect,
            version=version,
            form=form,
            offset=offset or 0,
            model=model,
            max_length=length,
            is_streamed=is_streamed,
        )
    raise EngineError(f"the server takes prompts in no form. {'; '.join(refusals)}")


def _dialect_of(client: Client, entry: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return which engine a server is and its version, as far as it tells."""
    owner = str(entry.get("owned_by", "")).replace(".", "").lower()
    dialect = OWNERS.get(owner, owner if owner in DIALECTS else UNKNOWN)
    path = {"vllm": "/version", "sglang": "/server_info"}.get(dialect)
    told = client.get(path) if path else None
    version = told.get("version") if isinstance(told, Mapping) else None
    return dialect, None if version is None else str(version)


def _probe(
    client: Client, form: str, config: Any, tokenizer: Any, *, is_streamed: bool
) -> tuple[int | None, str | None]:
    """Return how many tokens a server counts beyond ours and its model's name.

    The count is None where it counts none, or other ids than were sent.
    """
    chat = config.chat_settings() if isinstance(config, RunConfig) else None
    builder = PromptBuilder(tokenizer, Template(text="{context}", chat=form == "messages"), chat)
    parts = builder.parts(Example(id="", document_id="", context=_PROBE, query=None, references=()))
    ids = [*parts.prefix, *parts.context, *parts.suffix]
    text = builder.text(None, _PROBE, is_turn=form == "messages")
    fields = {"prompt": ids} if form == "ids" else text_fields(text, form, chat.system if chat else None)
    where = f"a prompt as {form} that tries the server"
    body = {**fields, "max_tokens": 1, "temperature": 0.0}
    try:
        reply = client.ask(body, num_tokens=len(ids) + 1, where=where, is_streamed=is_streamed)
    except RefusedError as error:
        if NEW_ROOM not in str(error) or client.room == NEW_ROOM:
            raise
        client.room = NEW_ROOM
        reply = client.ask(body, num_tokens=len(ids) + 1, where=where, is_streamed=is_streamed)
    check_model(reply.model, config.model, where)
    counted = reply.prompt_tokens
    is_exact = counted is not None and (form != "ids" or counted == len(ids))
    return counted - len(ids) if is_exact and counted is not None else None, reply.model


def check_model(told: str | None, asked: str | None, where: str) -> None:
    """Raise `EngineError` for an answer of another model; a name may have the date of its version after it."""
    if told is not None and asked is not None and not re.fullmatch(rf"{re.escape(asked)}(-\d{{3,}}(-[\w-]*)?)?", told):
        raise EngineError(
            f"{where} was answered by the model '{told}', and '{asked}' was asked; serve one model under one name"
        )


def check_count(told: int | None, expected: int, form: str, where: str) -> None:
    """Raise `EngineError` for a prompt of which the server read another number of tokens than was sent."""
    if told is not None and abs(told - expected) > (0 if form == "ids" else _SEAMS):
        raise EngineError(
            f"the server read {told:,} tokens of {where}, where {expected:,} were sent as {form}: it cuts prompts, or "
            "has another tokenizer; serve it with a longer context, or name its --tokenizer"
        )


def check_room(reply: Reply, room: int, where: str) -> None:
    """Raise `EngineError` for answers that a server cut at their length before they had the room that was asked for."""
    made = reply.completion_tokens
    if made is not None and made < room and all(one.finish_reason == "length" for one in reply.choices):
        raise EngineError(
            f"the server ended the answer to {where} by its length at {made:,} of the {room:,} tokens that were asked "
            "for; serve the model with a longer context, or lower --maxlen or --max-new-tokens"
        )


def name_of(request: Request) -> str:
    """Return what errors call a request."""
    task, template, example_id, maxlen = request.key
    return f"the prompt about '{example_id}' of task '{task}' (template '{template}', maxlen {maxlen})"


def say(text: str) -> None:
    """Print a line beside the bar."""
    print(text, file=sys.stderr, flush=True)


def describe_server(config: Any, server: Server, concurrency: int) -> str:
    """Return what answers, for people."""
    forms = {"ids": "token ids", "text": "text", "messages": "chat messages"}
    return (
        f"{server.name or 'a server'} at {config.base_url}, prompts as {forms[server.form]}, {concurrency} requests at "
        "a time"
    )
