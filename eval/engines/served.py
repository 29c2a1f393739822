"""The engine that is a server: prompts go out as requests, and answers come back as predictions.

What a server counts is compared with what was sent: one that cuts prompts itself, or answers with another model, ends
the run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from eval.config.run import RunConfig
from eval.engines.asking import ask_all
from eval.engines.bodies import check_settings, prompt_fields, sampling_fields
from eval.engines.client import Client
from eval.engines.contact import Server, check_count, check_model, check_room
from eval.engines.replies import Reply
from eval.engines.service import LOG, open_service
from eval.errors import UserError
from eval.generation.backend import Backend, check_embeddings, output_of, sources_by_turns, start_for
from eval.generation.requests import Request, Requests
from eval.prompting.chat import ChatTemplate
from eval.prompting.ends import find_ends
from eval.prompting.prompts import Prompt
from eval.records.schema import Prediction, Sample


@dataclass(frozen=True)
class _Question:
    """A request with the fields of its prompt."""

    request: Request
    fields: dict[str, Any]

    @property
    def prompt(self) -> Prompt:
        return self.request.prompt


class ServedBackend(Backend):
    """Asks a server, several requests at a time.

    Args:
        config: Settings of the run.

    Raises:
        UserError: The server cannot be reached or started, or cannot do what is asked.
        CheckpointError: The reference leads to no usable model, or to no tokenizer.
        PlanError: The plan does not fit the model.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.process = start_for(config, needs_torch=False)
        self.service = service = open_service(config)
        self._stack = ExitStack()
        self._contact: tuple[Client, Server] | None = None
        check_settings(config, service.dialect, service.form)
        self.tokenizer, self.model, self.dtype = service.tokenizer, service.model, service.dtype
        self.plan, self.plan_description = service.plan, service.plan_description
        self.identity, self.server = service.identity, service.record
        self.remarks = [service.describe()]
        checkpoint, suggested = service.checkpoint, {}
        if checkpoint is not None:
            from eval.runtime.model import suggested_ends

            self.quantization, suggested = checkpoint.quantization, suggested_ends(checkpoint)
        if service.form != "messages":
            self.ends = find_ends(self.tokenizer, suggested, ChatTemplate(self.tokenizer, config.chat_settings()))

    def describe_model(self) -> str:
        return self.service.describe_model()

    def check(self, requests: Requests) -> None:
        """Raise an error for what the model cannot read, and for a plain prompt to a server that takes messages alone.

        Raises:
            CheckpointError: The model has no embedding for a token of a text.
            UserError: A template does without a chat template.
        """
        if self.service.checkpoint is not None:
            check_embeddings(requests, self.service.checkpoint)
        for source in requests.sources:
            for name, builder in source.builders.items():
                if self.service.form == "messages" and not builder.template.chat:
                    raise UserError(
                        f"template '{name}' of task '{source.task}' does without a chat template, and prompts go as "
                        "messages, which the server puts into its own; give another --template"
                    )

    @contextmanager
    def kept(self) -> Iterator[None]:
        with ExitStack() as self._stack:
            yield
        self._contact = None

    def answer(self, requests: Requests, shared: Path) -> Iterator[Prediction]:
        if self._contact is None:
            self._contact = self._stack.enter_context(self.service.running(output_of(self.config) / LOG))
        client, server = self._contact
        client.stopped = threading.Event()  # that of an earlier call was set when its answers were there
        sources = sources_by_turns(requests, self.process)
        # Made in this thread alone: builders remember the context that they were asked about last.
        documents = ([self._question(one) for one in requests.missing(source)] for source in sources)

        def ask(question: _Question, started: Callable[[], None]) -> Reply:
            return self._ask(client, server, question, started)

        bar = tqdm(
            total=requests.num_missing,
            desc="answers",
            disable=None if self.process.is_main else True,
            bar_format="{desc} {n}/{total} |{bar:12}| {elapsed} elapsed, {remaining} left{postfix}",
            dynamic_ncols=True,
        )
        with bar:
            for question, reply in ask_all(documents, ask, client.stopped, self.service.concurrency):
                request = question.request
                yield self._prediction(request, reply)
                bar.set_postfix_str(f"{request.key[2]} at {request.key[3]}", refresh=False)
                bar.update()

    def _question(self, request: Request) -> _Question:
        return _Question(request, prompt_fields(request, self.service.form))

    def _ask(self, client: Client, server: Server, question: _Question, started: Callable[[], None]) -> Reply:
        request = question.request
        settings, where = request.settings, _name_of(request)
        ends = self.ends.token_ids if self.ends else ()
        body = question.fields | sampling_fields(settings, server.dialect, ends)
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


def _name_of(request: Request) -> str:
    """Return what errors call a request."""
    task, template, example_id, maxlen = request.key
    return f"the prompt about '{example_id}' of task '{task}' (template '{template}', maxlen {maxlen})"
