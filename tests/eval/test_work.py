"""Examples are dealt to processes: each to exactly one, and none is idle."""

from __future__ import annotations

import pytest

from eval.prompts import PromptBuilder
from eval.work import Work, share
from tasks import Example
from tests.tiny_models import tiny_tokenizer

BUILDER = PromptBuilder(tiny_tokenizer(), "{context}")


def work(num_words: int) -> Work:
    example = Example(id=str(num_words), document_id="d", context="word " * num_words, references=("x",))
    return Work(task="plos", example=example, builder=BUILDER, lengths=(500, 4000), max_new_tokens=10)


@pytest.mark.parametrize("num_processes", [1, 2, 3, 7])
def test_every_example_goes_to_exactly_one_process(num_processes: int) -> None:
    items = [work(100 * n) for n in range(1, 15)]
    shares = [share(items, process, num_processes) for process in range(num_processes)]
    assert sorted(item.example.id for mine in shares for item in mine) == sorted(item.example.id for item in items)
    loads = [sum(item.cost(n) for item in mine for n in item.lengths) for mine in shares]
    assert min(loads) > 0
    assert max(loads) - min(loads) <= max(item.cost(500) + item.cost(4000) for item in items)
