"""The likelihood of references after the prompts of a run, as the server that answers it tells it.

    for line in measure_served(requests, backend, wanted, seen, folder):
        append_line(journal, line)

Each reference goes out with its prompt as one request of token ids (`eval.engines.losses`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.engines.asking import ask_all
from eval.engines.losses import losses_of, try_losses
from eval.engines.served import ServedBackend
from eval.engines.service import LOG
from eval.errors import UserError
from eval.generation.backend import Backend
from eval.generation.requests import Request, Requests
from eval.losses.likelihood import REMEDY, documents_of, likelihood_line, name_of_reference, references_of
from eval.records.schema import Key, MetricLine, ReferenceLoss


@dataclass(kw_only=True)
class _Work:
    """A prompt whose references are asked about; losses by their places."""

    request: Request
    fingerprint: str
    references: list[tuple[tuple[int, ...], int]]
    losses: dict[int, ReferenceLoss] = field(default_factory=dict)


@dataclass(frozen=True)
class _Asked:
    """A reference that is asked about."""

    work: _Work
    place: int

    @property
    def kept(self) -> tuple[int, ...]:
        return self.work.references[self.place][0]

    @property
    def where(self) -> str:
        return name_of_reference(self.work.request)


def served(backend: Backend) -> ServedBackend:
    """Return the engine of a run as one that is asked for likelihoods.

    Raises:
        UserError: Its prompts are not sent as tokens.
    """
    assert isinstance(backend, ServedBackend)
    if backend.service.form != "ids":
        raise UserError(
            f"likelihoods are of tokens, and this run sends its prompts as {backend.service.form}, of which the server "
            f"chooses the tokens; {REMEDY}"
        )
    return backend


def measure_served(
    requests: Requests, backend: ServedBackend, wanted: Collection[Key], seen: Collection[str], folder: Path
) -> Iterator[MetricLine]:
    """Yield the likelihood of the references at each wanted prompt, as the server tells them.

    Args:
        requests: All of the run.
        backend: Engine of the run; its server starts when something is to be measured.
        wanted: Keys of what is measured.
        seen: Fingerprints of what is measured already.
        folder: Folder of the run, in which a server that is started logs.

    Raises:
        UserError: The server gives no log-likelihoods of prompts, or has no room.
        EngineError: It failed for good.
    """
    documents = documents_of(requests, wanted, seen)
    first = next(documents, None)
    if first is None:
        return

    def parts() -> Iterator[Sequence[_Asked]]:
        for asked, done in (first, *documents):
            for request, fingerprint in asked:
                if fingerprint not in done:
                    work = _Work(request=request, fingerprint=fingerprint, references=references_of(request))
                    # Each by itself: servers compute the likelihoods of a prompt anew, whatever their cache holds.
                    yield from ([_Asked(work, place)] for place in range(len(work.references)))

    with backend.service.running(folder / LOG) as (client, server):
        try_losses(backend.config, client, server, REMEDY)

        def ask(asked: _Asked, _: Any) -> list[float]:
            prompt = asked.work.request.prompt.token_ids
            ids, room = (*prompt, *asked.kept), server.max_length
            if room is not None and len(ids) + 1 > room:
                raise UserError(
                    f"{asked.where} has {len(ids)} tokens with its prompt, and the server, which must answer one more, "
                    f"takes {room}; serve the model with a longer context, or {REMEDY}"
                )
            return losses_of(client, server, ids, len(prompt), asked.where)[0]

        for asked, losses in ask_all(parts(), ask, client.stopped, backend.service.concurrency):
            work = asked.work
            work.losses[asked.place] = ReferenceLoss(
                negative_log_likelihood=math.fsum(losses),
                num_tokens=len(losses),
                num_tokens_dropped=work.references[asked.place][1],
            )
            if len(work.losses) == len(work.references):
                in_order = [work.losses[place] for place in range(len(work.references))]
                yield likelihood_line(work.request, work.fingerprint, backend.model.label, in_order)
