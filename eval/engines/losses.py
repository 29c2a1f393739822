"""Losses by a server: the log-likelihoods that it gives of the tokens of a prompt.

    python eval/perplexity.py --engine endpoint --base-url http://localhost:8000/v1 --model NAME --tokenizer REF ...

vLLM returns them as `prompt_logprobs`, SGLang and others as `logprobs` of an `echo`. Prompts are token ids, and each
must have exactly one likelihood. A server must answer one token, which nobody reads, and needs room for it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eval.config.perplexity import PerplexityConfig
from eval.engines.asking import ask_all
from eval.engines.client import Client, EngineError, RefusedError
from eval.engines.endpoint import (
    CONCURRENCY,
    Server,
    check_alone,
    check_client,
    check_count,
    check_endpoint,
    check_model,
    contact,
    describe_server,
    digest_of,
    endpoint_settings,
    load_tokenizer,
    say,
)
from eval.errors import UserError
from eval.losses.meter import Meter
from eval.losses.readings import Part, Reading, Tally
from eval.records.schema import DocumentLoss, ModelRecord, PerplexityIdentity
from eval.records.typed import from_json
from eval.runtime.processes import Process, num_threads

# vLLM writes this for the logarithm of 0, which JSON cannot hold.
_LEAST = -9999.0
_PROBE = "Rivers run 7 miles and more."
# Statuses with which servers refuse a field that they do not have.
_REFUSALS = (400, 404, 405, 415, 422, 501)


@dataclass(frozen=True)
class _Asked:
    """A part of a reading that is asked about."""

    part: Part
    tally: Tally


class ServedMeter(Meter):
    """Asks a server for the losses of texts, several requests at a time.

    Args:
        config: Settings of the measurement.

    Raises:
        UserError: The client is not installed, or several processes would ask.
    """

    def __init__(self, config: PerplexityConfig) -> None:
        check_client()
        check_alone(config.engine)
        self.config = config
        self.process = Process(num_threads(os.environ))

    @property
    def concurrency(self) -> int:
        return self.config.concurrency or CONCURRENCY

    @contextmanager
    def serving(self, folder: Path) -> Iterator[tuple[Client, Server]]:
        """Give the server, ready to be asked; `folder` is that of the output."""
        raise NotImplementedError
        yield

    def measure(self, readings: Iterable[Reading], record: PerplexityIdentity, folder: Path) -> Iterator[DocumentLoss]:
        missing: dict[int, int] = {}
        seconds: dict[int, float] = {}
        done: list[Tally] = []

        def parts() -> Iterator[Sequence[_Asked]]:
            for reading in readings:
                tally = Tally(reading=reading)
                scored = [part for part in reading.parts if part.is_scored]
                missing[id(tally)], seconds[id(tally)] = len(scored), 0.0
                if not scored:
                    done.append(tally)
                # Each by itself: servers compute the likelihoods of a prompt anew, whatever their cache holds.
                yield from ([_Asked(part, tally)] for part in scored)

        def lines() -> Iterator[DocumentLoss]:
            while done:
                tally = done.pop()
                costs = dict.fromkeys(("cache_bytes", "peak_bytes", "attention_flops"))
                yield tally.line(record, seconds=seconds.pop(id(tally)), **costs)

        with self.serving(folder) as (client, server):

            def ask(asked: _Asked, _: Any) -> tuple[list[float], float]:
                losses, took = losses_of(client, server, asked.part.token_ids, asked.part.where)
                return losses[asked.part.scored - 1 :], took

            for asked, (losses, took) in ask_all(parts(), ask, client.stopped, self.concurrency):
                asked.tally.add(asked.part, losses, math.fsum)
                seconds[id(asked.tally)] += took
                missing[id(asked.tally)] -= 1
                if not missing[id(asked.tally)]:
                    done.append(asked.tally)
                yield from lines()
            yield from lines()


class EndpointMeter(ServedMeter):
    """Asks a server that runs already.

    Args:
        config: Settings of the measurement.

    Raises:
        UserError: The server cannot be reached, or gives no log-likelihoods of prompts.
        CheckpointError: There is no tokenizer.
    """

    dtype = "unknown"
    plan_description = "the server's own"

    def __init__(self, config: PerplexityConfig) -> None:
        super().__init__(config)
        check_endpoint(config)
        self.tokenizer = load_tokenizer(config)
        self.client = Client(endpoint_settings(config), say=say)
        try:
            self.found = contact(self.client, replace(config, prompts_as="ids"), self.tokenizer)
        except RefusedError as error:
            if error.status not in _REFUSALS:
                raise
            raise _no_losses(config, f"it takes no token ids: {error}") from None
        longest, room = max(config.maxlen), self.found.max_length
        if room is not None and longest + 1 > room:
            raise UserError(
                f"maxlen {longest} and the token that a server must answer are beyond the {room} tokens that it takes; "
                "lower it"
            )
        check_losses(self.client, self.found, self.tokenizer, config)
        self.model = ModelRecord(reference=config.model, source="endpoint")
        self.identity = {
            "name": "endpoint",
            "server": self.found.dialect,
            "model": self.found.model,
            "prompts_as": "ids",
            "tokenizer": digest_of(self.tokenizer),
        }
        self.server = {"name": self.found.name, "address": config.base_url, "concurrency": self.concurrency}
        self.remarks = describe_server(config, self.found, self.concurrency)

    @contextmanager
    def serving(self, folder: Path) -> Iterator[tuple[Client, Server]]:
        try:
            yield self.client, self.found
        finally:
            self.client.close()

    def describe_model(self) -> str:
        return f"served at {self.config.base_url}"


class StartedMeter(ServedMeter):
    """Starts a server for the measurement, and ends it with the measurement.

    Args:
        config: Settings of the measurement.

    Raises:
        UserError: The engine is not installed, or cannot do what is asked.
        CheckpointError: The reference leads to no usable model.
        PlanError: The plan does not fit the model.
    """

    def __init__(self, config: PerplexityConfig) -> None:
        from eval.engines.managed import StartedServer
        from eval.runtime.model import check_positions, open_configured, resolve_plan

        super().__init__(config)
        self.checkpoint = checkpoint = open_configured(config)
        check_positions(max(config.maxlen), checkpoint, allow_extrapolation=config.allow_extrapolation)
        self.tokenizer = checkpoint.tokenizer
        plan = resolve_plan(config.plan, checkpoint, keeps_full=True)
        self.started = StartedServer(config, checkpoint, plan)
        self.dtype = self.started.dtype
        self.plan = None if plan is None else plan.to_json()
        self.plan_description = "untouched" if plan is None else str(plan)
        self.model = from_json(ModelRecord, checkpoint.provenance, checkpoint.name)
        self.identity = self.started.identity | {"tokenizer": digest_of(self.tokenizer)}
        self.server = self.started.record
        self.remarks = self.started.describe()

    @property
    def concurrency(self) -> int:
        return self.started.concurrency

    @contextmanager
    def serving(self, folder: Path) -> Iterator[tuple[Client, Server]]:
        from eval.engines.managed import LOG

        with self.started.running(folder / LOG) as (client, server):
            check_losses(client, server, self.tokenizer, self.config)
            yield client, server

    def describe_model(self) -> str:
        from eval.runtime.model import describe_weights

        assert self.checkpoint is not None
        return describe_weights(self.checkpoint)


def check_losses(client: Client, server: Server, tokenizer: Any, config: PerplexityConfig) -> None:
    """Raise `UserError` for a server that gives no log-likelihoods of a short prompt."""
    ids = tokenizer(_PROBE, add_special_tokens=False).input_ids
    try:
        losses_of(client, server, ids, "a prompt to try the server")
    except _UntoldError as error:
        raise _no_losses(config, str(error)) from None
    except RefusedError as error:
        if error.status not in _REFUSALS:
            raise
        raise _no_losses(config, str(error)) from None


class _UntoldError(EngineError):
    """An answer without one likelihood for each token of its prompt."""


def _no_losses(config: PerplexityConfig, why: str) -> UserError:
    where = f" at {config.base_url}" if config.base_url else ""
    return UserError(
        f"--engine {config.engine}: the server{where} gives no log-likelihoods of prompts: {why}; use vLLM or SGLang, "
        "or --engine local"
    )


def losses_of(client: Client, server: Server, ids: Sequence[int], where: str) -> tuple[list[float], float]:
    """Return (T - 1,) negative log likelihoods in nats of all tokens but the first, and the seconds they took.

    Raises:
        EngineError: The server failed for good, refuses, or gives others than one for each token.
    """
    body: dict[str, Any] = {"prompt": list(ids), "max_tokens": 1, "temperature": 0.0}
    body |= {"prompt_logprobs": 0} if server.dialect == "vllm" else {"echo": True, "logprobs": 1}
    found, seconds = client.post(body, num_tokens=len(ids) + 1, where=where)
    check_model(found.get("model"), server.model, where)
    usage = found.get("usage")
    told = usage.get("prompt_tokens") if isinstance(usage, Mapping) else None
    check_count(told if isinstance(told, int) else None, len(ids), "ids", where)
    choices = found.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(first, Mapping):
        raise EngineError(f"{where} was answered without choices; see what the server logs")
    values = _of_vllm(first, ids) if server.dialect == "vllm" else _of_echo(first)
    # The token that was asked for may stand after the prompt's.
    if values is None or len(values) not in (len(ids), len(ids) + 1) or values[0] is not None:
        count = "none" if not values else f"{len(values):,}"
        raise _UntoldError(f"{where} has {len(ids):,} tokens, and the server told {count} of their likelihoods")
    return [_loss(value, where, server) for value in values[1 : len(ids)]], seconds


def _of_vllm(choice: Mapping[str, Any], ids: Sequence[int]) -> list[Any] | None:
    """Return the log-likelihood of each token that was sent; None where the server names another token."""
    told = choice.get("prompt_logprobs")
    if not isinstance(told, list) or len(told) != len(ids):
        return None
    found = [one.get(str(token)) if isinstance(one, Mapping) else None for one, token in zip(told, ids, strict=True)]
    return [one.get("logprob") if isinstance(one, Mapping) else None for one in found]


def _of_echo(choice: Mapping[str, Any]) -> list[Any] | None:
    told = choice.get("logprobs")
    values = told.get("token_logprobs") if isinstance(told, Mapping) else None
    return values if isinstance(values, list) else None


def _loss(value: Any, where: str, server: Server) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not _LEAST < value <= 0:
        name = server.name or "the server"
        raise EngineError(
            f"{name} gives {value} as the logarithm of a likelihood in {where}; it must be a number of at most 0: "
            "serve in --dtype float32 or bfloat16, with raw log-likelihoods"
        )
    return -float(value)
