"""Prompts about one document wait for that one which leaves most of them in a prefix cache."""

from __future__ import annotations

from eval.engines.order import order_of

DOCUMENT = list(range(1000))


def test_the_shortest_goes_first_and_each_longer_one_waits_for_the_one_before() -> None:
    prompts = [DOCUMENT[:900], DOCUMENT[:100], DOCUMENT[:400]]
    assert order_of(prompts) == [(1, None), (2, 1), (0, 2)]


def test_queries_at_one_length_wait_for_the_longest_prompt_that_they_share_most_with() -> None:
    queries = [[*DOCUMENT[:500], -1], [*DOCUMENT[:500], -2], [*DOCUMENT[:200], -1]]
    assert order_of(queries) == [(2, None), (0, 2), (1, 0)]


def test_prompts_that_share_less_than_some_blocks_wait_for_nothing() -> None:
    shared = [[*DOCUMENT[:length], -number, *DOCUMENT] for number, length in enumerate((63, 63, 64, 64), start=1)]
    assert order_of(shared[:2]) == [(0, None), (1, None)]
    assert order_of(shared[2:]) == [(0, None), (1, 0)]
    assert order_of([]) == []
