"""What a server is and takes, found out by small requests, and checks of what it answers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eval.config.engine import PROMPT_FORMS
from eval.config.run import RunConfig
from eval.engines.bodies import DIALECTS, OWNERS, UNKNOWN, text_fields
from eval.engines.client import NEW_ROOM, Client, EngineError, RefusedError
from eval.engines.replies import Reply
from eval.errors import UserError
from eval.prompting.prompts import PromptBuilder
from tasks import Example, Template

# Prompts that ask what a server takes: long enough that one which cuts or counts otherwise shows.
_PROBE = "Rivers run 7 miles and more. " * 4
# Statuses with which servers refuse a form of prompts, or a field.
OTHER_FORM = (400, 404, 405, 415, 422, 501)
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


def contact(client: Client, config: Any, tokenizer: Any, asked_form: str | None) -> Server:
    """Return what a server is, after one small request in each form until it takes one.

    Args:
        client: Asks it.
        config: Settings of the command.
        tokenizer: Tokenizer of the model.
        asked_form: The only form that will do, one of `PROMPT_FORMS`; None tries them in turn.

    Raises:
        EngineError: It cannot be reached, takes none, or cuts a short prompt.
        UserError: It has no such model, or too short a context.
    """
    entries = client.models()
    names = [str(one["id"]) for one in entries if one.get("id")]
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
    for form in [asked_form] if asked_form else forms:
        try:
            offset, model = _probe(client, form, config, tokenizer, is_streamed=True)
            is_streamed = offset is not None
            if offset is None:  # not counted in a stream, perhaps
                offset, model = _probe(client, form, config, tokenizer, is_streamed=False)
                is_streamed = offset is None
        except RefusedError as error:
            if error.status not in OTHER_FORM or asked_form:
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
