"""Losses by a server: the log-likelihoods that it gives of the tokens of a prompt.

    python eval/perplexity.py --engine endpoint --base-url http://localhost:8000/v1 --model NAME --tokenizer REF ...

vLLM returns them as `prompt_logprobs`, SGLang and others as `logprobs` of an `echo`. Prompts are token ids, and each
must have exactly one likelihood. A server must answer one token, which nobody reads, and needs room for it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.config.perplexity import PerplexityConfig
from eval.config.run import RunConfig
from eval.engines.asking import ask_all
from eval.engines.client import Client, EngineError, RefusedError
from eval.engines.contact import OTHER_FORM, Server, check_count, check_model
from eval.engines.service import LOG, open_service
from eval.errors import UserError
from eval.losses.meter import Meter
from eval.losses.readings import Part, Reading, Tally
from eval.records.schema import DocumentLoss, PerplexityIdentity
from eval.runtime.processes import Process, num_threads

_REMEDY = "use vLLM or SGLang, or --engine local"
# vLLM writes this for the logarithm of 0, which JSON cannot hold.
_LEAST = -9999.0
# Tokens that any vocabulary has.
_PROBE_IDS = (5, 6, 7, 8, 9, 10)


@dataclass(kw_only=True)
class _Work:
    """A reading of which parts are asked about."""

    tally: Tally
    num_missing: int
    seconds: float = 0.0


@dataclass(frozen=True)
class _Asked:
    """A part of a reading that is asked about."""

    part: Part
    work: _Work


class ServedMeter(Meter):
    """Asks a server for the losses of texts, several requests at a time.

    Args:
        config: Settings of the measurement.

    Raises:
        UserError: The server cannot be reached or started, or gives no log-likelihoods of prompts.
        CheckpointError: The reference leads to no usable model, or to no tokenizer.
        PlanError: The plan does not fit the model.
    """

    def __init__(self, config: PerplexityConfig) -> None:
        self.config = config
        self.process = Process(num_threads(os.environ))
        try:
            self.service = service = open_service(config, "ids", self._try)
        except RefusedError as error:
            if error.status not in OTHER_FORM:
                raise
            raise _no_losses(config, f"it takes no token ids: {error}", _REMEDY) from None
        self.checkpoint, self.tokenizer, self.model = service.checkpoint, service.tokenizer, service.model
        self.plan, self.plan_description, self.dtype = service.plan, service.plan_description, service.dtype
        self.identity, self.server, self.remarks = service.identity, service.record, service.describe()

    def _try(self, client: Client, server: Server) -> None:
        """Raise `UserError` for a server without room for the token that it must answer, or without log-likelihoods."""
        longest, room = max(self.config.maxlen), server.max_length
        if room is not None and longest + 1 > room:
            raise UserError(
                f"maxlen {longest} and the token that a server must answer are beyond the {room} tokens that it takes; "
                "lower it"
            )
        try_losses(self.config, client, server, _REMEDY)

    def describe_model(self) -> str:
        return self.service.describe_model()

    def measure(self, readings: Iterable[Reading], record: PerplexityIdentity, folder: Path) -> Iterator[DocumentLoss]:
        done: list[_Work] = []

        def parts() -> Iterator[Sequence[_Asked]]:
            for reading in readings:
                scored = [part for part in reading.parts if part.is_scored]
                work = _Work(tally=Tally(reading=reading), num_missing=len(scored))
                if not scored:
                    done.append(work)
                # Each by itself: servers compute the likelihoods of a prompt anew, whatever their cache holds.
                yield from ([_Asked(part, work)] for part in scored)

        def lines() -> Iterator[DocumentLoss]:
            while done:
                work = done.pop()
                costs = dict.fromkeys(("cache_bytes", "peak_bytes", "attention_flops"))
                yield work.tally.line(record, seconds=work.seconds, **costs)

        with self.service.running(folder / LOG) as (client, server):

            def ask(asked: _Asked, _: Any) -> tuple[list[float], float]:
                return losses_of(client, server, asked.part.token_ids, asked.part.scored, asked.part.where)

            for asked, (losses, took) in ask_all(parts(), ask, client.stopped, self.service.concurrency):
                work = asked.work
                work.tally.add(asked.part, losses, math.fsum)
                work.seconds += took
                work.num_missing -= 1
                if not work.num_missing:
                    done.append(work)
                yield from lines()
            yield from lines()


def try_losses(config: PerplexityConfig | RunConfig, client: Client, server: Server, remedy: str) -> None:
    """Raise `UserError`, with what to do, for a server that gives no log-likelihoods of prompts."""
    try:
        losses_of(client, server, _PROBE_IDS, 1, "a prompt to try the server")
    except _UntoldError as error:
        raise _no_losses(config, str(error), remedy) from None
    except RefusedError as error:
        if error.status not in OTHER_FORM:
            raise
        raise _no_losses(config, str(error), remedy) from None


class _UntoldError(EngineError):
    """An answer without one likelihood for each token of its prompt."""


def _no_losses(config: PerplexityConfig | RunConfig, why: str, remedy: str) -> UserError:
    where = f" at {config.base_url}" if config.base_url else ""
    return UserError(
        f"--engine {config.engine}: the server{where} gives no log-likelihoods of prompts: {why}; {remedy}"
    )


def losses_of(client: Client, server: Server, ids: Sequence[int], first: int, where: str) -> tuple[list[float], float]:
    """Return (T - first,) negative log likelihoods in nats of the tokens from one on, and the seconds they took.

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
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, Mapping):
        raise EngineError(f"{where} was answered without choices; see what the server logs")
    values = _of_vllm(choice, ids) if server.dialect == "vllm" else _of_echo(choice)
    # The token that was asked for may stand after the prompt's.
    if values is None or len(values) not in (len(ids), len(ids) + 1) or values[0] is not None:
        count = "none" if not values else f"{len(values):,}"
        raise _UntoldError(f"{where} has {len(ids):,} tokens, and the server told {count} of their likelihoods")
    return [_loss(value, where, server) for value in values[first : len(ids)]], seconds


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
