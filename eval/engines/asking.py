"""Many requests at a time: documents one after the other, each in the order that serves a prefix cache.

for request, reply in ask_all(documents, ask, stopped, concurrency=16):
    ...
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from eval.engines.client import StoppedError
from eval.engines.order import order_of

# What is asked, with its tokens in `prompt.token_ids` where several are about one document; and what comes back.
Asked = TypeVar("Asked")
Answer = TypeVar("Answer")
# Sends a request, and calls its second argument at the first token.
Ask = Callable[[Asked, Callable[[], None]], Answer]


@dataclass(eq=False)
class _Job:
    request: Any
    waiting: list[_Job] = field(default_factory=list)


@dataclass(frozen=True)
class _Event:
    kind: Literal["started", "done", "failed"]
    job: _Job
    reply: Any = None
    error: BaseException | None = None


def ask_all(
    documents: Iterator[Sequence[Asked]], ask: Ask[Asked, Answer], stopped: threading.Event, concurrency: int
) -> Iterator[tuple[Asked, Answer]]:
    """Yield requests with their replies as they arrive.

    After a failure nothing more is sent; what runs is waited for and yielded, because it is paid for, and then the
    failure is raised. A caller who stops early does not wait.

    Args:
        documents: Requests about one document after the other; read as they are needed.
        ask: Sends one.
        stopped: Set to send nothing more.
        concurrency: Requests at a time.

    Raises:
        EngineError: The server failed for good.
    """
    work: queue.SimpleQueue[_Job] = queue.SimpleQueue()
    events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
    failure: BaseException | None = None
    num_sent = num_threads = 0

    def send(jobs: Iterable[_Job]) -> None:
        nonlocal num_sent, num_threads
        for job in jobs:
            work.put(job)
            num_sent += 1
            if num_threads < min(num_sent, concurrency):
                # Daemons: a thread that waits for a server must not keep the process from ending.
                threading.Thread(target=_work, args=(work, events, ask, stopped), daemon=True).start()
                num_threads += 1

    try:
        while True:
            try:
                while failure is None and num_sent < concurrency and (document := next(documents, None)) is not None:
                    send(_jobs_of(document))
            except Exception as error:  # in making a document; what runs is waited for all the same
                failure = error
                stopped.set()
            if not num_sent:
                break
            event = events.get()
            if event.kind != "started":
                num_sent -= 1
            if event.error is not None and not isinstance(event.error, StoppedError):
                failure = failure or event.error
                stopped.set()
            if failure is None:
                send(event.job.waiting)
                event.job.waiting = []
            if event.reply is not None:
                yield event.job.request, event.reply
        if failure is not None:
            raise failure
    finally:
        stopped.set()


def _jobs_of(document: Sequence[Any]) -> list[_Job]:
    """Return the jobs of a document that wait for no other; those hold the rest."""
    jobs = [_Job(request) for request in document]
    if len(jobs) == 1:
        return jobs
    free: list[_Job] = []
    for place, before in order_of([request.prompt.token_ids for request in document]):
        (free if before is None else jobs[before].waiting).append(jobs[place])
    return free


def _work(
    work: queue.SimpleQueue[_Job], events: queue.SimpleQueue[_Event], ask: Ask[Any, Any], stopped: threading.Event
) -> None:
    while not (stopped.is_set() and work.empty()):
        try:
            job = work.get(timeout=1.0)
        except queue.Empty:
            continue
        try:
            reply = ask(job.request, lambda job=job: events.put(_Event("started", job)))  # type: ignore[misc]
        except BaseException as error:
            events.put(_Event("failed", job, error=error))
        else:
            events.put(_Event("done", job, reply))
