"""Many requests at a time: what is paid for arrives, also when something fails."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import pytest

from eval.engines.asking import ask_all
from eval.errors import UserError


def test_answers_that_run_arrive_where_a_later_document_cannot_be_made() -> None:
    is_failing = threading.Event()

    def documents() -> Iterator[Sequence[str]]:
        yield ["first"]
        is_failing.set()
        raise UserError("the second document leaves no room")

    def ask(name: str, _: object) -> str:
        assert is_failing.wait(10)
        return f"answer to {name}"

    stopped = threading.Event()
    arrived: list[tuple[str, str]] = []
    with pytest.raises(UserError, match="the second document leaves no room"):
        arrived.extend(ask_all(documents(), ask, stopped, 2))
    assert arrived == [("first", "answer to first")]
    assert stopped.is_set()


def test_no_more_threads_start_than_there_are_requests() -> None:
    before = threading.active_count()
    most = 0

    def ask(name: str, _: object) -> str:
        nonlocal most
        most = max(most, threading.active_count())
        return name

    documents: Iterator[Sequence[str]] = iter([["one"], ["two"], ["three"]])
    assert len(list(ask_all(documents, ask, threading.Event(), 10_000))) == 3
    assert most <= before + 3
