"""What is asked of a server: settings of this suite in the words of OpenAI's interfaces and of each engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from eval.config.generation import GenerationSettings
from eval.config.run import RunConfig
from eval.errors import UserError
from eval.generation.requests import Request

# Engines that take more than OpenAI's fields; of another server nothing is known.
DIALECTS = ("vllm", "sglang", "llamacpp")
# What servers say of themselves as owners of a model, where it is not their name.
OWNERS = {"me": "llamacpp"}
UNKNOWN = "unknown"


def check_settings(config: RunConfig, dialect: str, form: str) -> None:
    """Raise `UserError` for a setting that a server cannot be told.

    Args:
        config: Settings of the run.
        dialect: One of `DIALECTS`, or `UNKNOWN`.
        form: One of `PROMPT_FORMS`.
    """
    what = f"--engine {config.engine}" if dialect in DIALECTS else "a server of an unknown kind"
    for flag in _refused(config, dialect, form):
        raise UserError(f"{flag} cannot be told to {what} with prompts as {form}; leave it out, or use --engine local")


def _refused(config: RunConfig, dialect: str, form: str) -> Iterator[str]:
    if config.num_beams > 1:
        yield f"--num-beams {config.num_beams}"
    if config.no_repeat_ngram_size:
        yield f"--no-repeat-ngram-size {config.no_repeat_ngram_size}"
    if config.min_new_tokens and dialect not in ("vllm", "sglang"):
        yield f"--min-new-tokens {config.min_new_tokens}"
    if config.num_samples > 1 and dialect == "llamacpp":
        yield f"--num-samples {config.num_samples}"
    if dialect == UNKNOWN and config.top_k:
        yield f"--top-k {config.top_k}"
    if dialect == UNKNOWN and config.repetition_penalty != 1:
        yield f"--repetition-penalty {config.repetition_penalty:g}"
    if form == "messages":
        if config.thinking != "auto":
            yield f"--thinking {config.thinking}"
        if config.template_kwargs:
            yield "--template-kwargs"
        if config.chat_template:
            yield f"--chat-template {config.chat_template}"
        if config.template_date:
            yield f"--template-date {config.template_date}"


def sampling_fields(settings: GenerationSettings, dialect: str, ends: Sequence[int]) -> dict[str, Any]:
    """Return the fields by which an answer is chosen. All that an engine would take from the checkpoint is said.

    Args:
        settings: How answers are chosen.
        dialect: One of `DIALECTS`, or `UNKNOWN`.
        ends: End tokens.
    """
    fields: dict[str, Any] = {"max_tokens": settings.max_new_tokens, "temperature": settings.temperature or 0.0}
    if settings.stop:
        fields["stop"] = list(settings.stop)
    if settings.num_samples > 1:
        fields["n"] = settings.num_samples
    if settings.temperature is not None:
        fields |= {"top_p": settings.top_p, "seed": settings.seed}
    if dialect in ("vllm", "sglang"):
        fields |= {"top_k": settings.top_k or -1, "min_p": 0.0, "repetition_penalty": settings.repetition_penalty}
        fields |= {"presence_penalty": 0.0, "frequency_penalty": 0.0}
        fields |= {"min_tokens": settings.min_new_tokens, "stop_token_ids": list(ends)}
    elif dialect == "llamacpp":
        fields |= {"top_k": settings.top_k, "min_p": 0.0, "repeat_penalty": settings.repetition_penalty}
        fields |= {"top_p": settings.top_p, "seed": settings.seed}
    if dialect == "vllm" and settings.num_samples > 1:
        fields["return_token_ids"] = True
    return fields


def prompt_fields(request: Request, form: str) -> dict[str, Any]:
    """Return the fields of a prompt in one of `PROMPT_FORMS`, with the system message."""
    if form == "ids":
        return {"prompt": list(request.prompt.token_ids)}
    template = request.key[1]
    builder, example = request.source.builders[template], request.example
    shown = request.shown_text + builder.note_text(request.prompt)
    text = builder.text(example.query, shown, is_turn=form == "messages")
    return text_fields(text, form, builder.system, builder.shot_turns)


def text_fields(text: str, form: str, system: str | None, earlier: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
    """Return the fields of a prompt that is a text, or a user's turn after a system message and `earlier` turns."""
    if form == "text":
        return {"prompt": text}
    first = [{"role": "system", "content": system}] if system else []
    turns = [{"role": role, "content": content} for role, content in (*earlier, ("user", text))]
    return {"messages": [*first, *turns]}
