"""Requests to the hub that end: a limit on a request covers neither name resolution nor a list of dead addresses."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

HUB_TIMEOUT_SECONDS = 8.0

T = TypeVar("T")


def within(seconds: float, ask: Callable[[], T]) -> T:
    """Return or raise what `ask` does; after so many seconds, leave it to itself and raise `TimeoutError`."""
    answers: list[T] = []
    failures: list[Exception] = []

    def run() -> None:
        try:
            answers.append(ask())
        except Exception as error:  # raised again below, in the thread that asked
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if answers:
        return answers[0]
    raise failures[0] if failures else TimeoutError(f"no answer within {seconds:.0f} s")
