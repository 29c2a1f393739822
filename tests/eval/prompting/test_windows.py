"""Rules of windows: which tokens a prompt shows, in which order."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from eval.prompting.prompts import PromptBuilder, fit
from eval.prompting.truncation import Frame, Passages, kept_ranges, show, thinned_ranges
from eval.prompting.windows import RULES, token_ranges
from eval.records.windows import WINDOWS, base_of, beside_head, named, window_of
from tasks import Template
from tests.helpers.tiny_models import tiny_tokenizer

EVIDENCE = ((4, 6), (60, 70))


def head(budget: int, num_tokens: int = 100) -> Frame:
    return Frame(num_tokens=num_tokens, budget=budget, cut=partial(kept_ranges, num_tokens, policy="head"))


@pytest.mark.parametrize(
    ("window", "budget", "ranges", "num_dropped"),
    [
        ("evidence", 20, ((4, 6), (60, 70)), 0),
        ("evidence", 5, ((4, 6), (60, 63)), 7),
        ("evidence", 0, (), 12),
        ("evidence_first", 20, ((4, 6), (60, 70), (0, 4), (6, 10)), 80),
        ("evidence_first", 12, ((4, 6), (60, 70)), 88),
        ("evidence_first", 100, ((4, 6), (60, 70), (0, 4), (6, 60), (70, 100)), 0),
        ("without_evidence", 20, ((0, 4), (6, 22)), 68),
        ("without_evidence", 60, ((0, 4), (6, 60), (70, 72)), 28),
        ("without_evidence", 100, ((0, 4), (6, 60), (70, 100)), 0),
        ("oracle", 20, ((4, 6), (60, 70)), 80),
    ],
)
def test_each_rule_shows_its_tokens_in_their_order(
    window: str, budget: int, ranges: tuple[tuple[int, int], ...], num_dropped: int
) -> None:
    shown = RULES[window](head(budget), EVIDENCE)
    assert shown.ranges == ranges
    assert shown.num_dropped == num_dropped


@pytest.mark.parametrize("budget", [0, 3, 12, 40, 99, 100, 200])
def test_windows_around_the_evidence_are_as_long_as_head(budget: int) -> None:
    def count(window: str) -> int:
        return sum(stop - start for start, stop in RULES[window](head(budget), EVIDENCE).ranges)

    of_head = sum(stop - start for start, stop in show(head(budget)).ranges)
    assert count("evidence_first") == of_head
    assert count("without_evidence") == min(of_head, 88)  # the document has no more


def test_without_any_evidence_the_window_is_head_or_empty() -> None:
    assert RULES["evidence"](head(10), ()).ranges == ()
    for window in ("evidence_first", "without_evidence"):
        assert RULES[window](head(10), ()) == show(head(10))


def test_evidence_at_the_front_is_moved_nowhere() -> None:
    assert RULES["evidence_first"](head(10), ((0, 3),)) == show(head(10))


def test_windows_of_texts_with_passages_keep_what_lies_between_them() -> None:
    passages = Passages(ranges=((20, 25), (80, 85)))
    frame = Frame(num_tokens=100, budget=40, cut=partial(thinned_ranges, 100, passages=passages))
    in_place = frame.cut(40)
    first = RULES["evidence_first"](frame, passages.ranges)
    assert first.ranges[:2] == passages.ranges
    tokens = [token for start, stop in first.ranges for token in range(start, stop)]
    assert sorted(tokens) == [token for start, stop in in_place for token in range(start, stop)]
    without = RULES["without_evidence"](frame, passages.ranges)
    assert sum(stop - start for start, stop in without.ranges) == 40
    assert not {20, 24, 80, 84} & {token for start, stop in without.ranges for token in range(start, stop)}


def test_a_span_takes_its_line_end_with_it_and_no_word_of_the_next() -> None:
    tokenizer = tiny_tokenizer()
    builder = PromptBuilder(tokenizer, Template(text="Read: {context} Answer:"))
    context = "One is here.\n\nTwo is there. Three is gone.\nFour"
    start = context.index("Two")
    [(first, last), *others] = token_ranges(builder, context, [(start, start + len("Two is there."))])
    assert not others
    [[begin, end]] = builder.spans_of(context, ((first, last),))
    assert context[begin:end].strip() == "Two is there."
    line = context.index("Three")
    [(first, last)] = token_ranges(builder, context, [(line, line + len("Three is gone."))])
    [[begin, end]] = builder.spans_of(context, ((first, last),))
    assert context[begin:end].lstrip(" ") == "Three is gone.\n"


def test_a_prompt_puts_the_tokens_of_its_window_between_its_fixed_parts() -> None:
    builder = PromptBuilder(tiny_tokenizer(), Template(text="Read: {context} Answer:"))
    ids = builder.context_ids("a b c d e f g h i j k l m n o p")
    parts = builder.fixed_parts(None, ids)
    whole = fit(parts, 10_000, 4, "head")
    moved = fit(
        replace(parts, window=lambda frame: RULES["evidence_first"](frame, ((5, 8),))), len(whole.token_ids), 4, "head"
    )
    prefix, budget = len(parts.prefix), len(whole.token_ids) - 4 - len(parts.prefix) - len(parts.suffix)
    assert moved.token_ids[:prefix] == parts.prefix
    assert moved.token_ids[prefix : prefix + 3] == ids[5:8]
    assert moved.token_ids[prefix + 3 : prefix + 8] == ids[:5]
    assert moved.num_context_kept == budget
    assert len(moved.token_ids) == len(whole.token_ids) - 4


def test_names_tell_template_and_window() -> None:
    for window in WINDOWS:
        assert (base_of(named("query_first", window)), window_of(named("query_first", window))) == (
            "query_first",
            window,
        )
    assert named("instruct", "head") == "instruct"
    assert beside_head(["a", "a@oracle", "b@oracle"]) == ["a@oracle"]
