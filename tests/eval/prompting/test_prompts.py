"""Prompts: only the context is cut, counts are exact, and what does not fit says how much it needs."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from eval.errors import UserError
from eval.prompting.prompts import PromptBuilder, PromptParts, fit
from eval.prompting.truncation import Passages, kept_ranges, thinned_ranges
from tasks import TASKS, Example, Template
from tests.helpers.tiny_models import CHAT_TEMPLATE, framing_tokenizer, tiny_tokenizer

TEMPLATE = "Answer: {query}\n\n{context}\n\nAgain: {query}"
EXAMPLE = Example(
    id="a", document_id="a", context="0123456789" * 20, query="What {context} is <|im_end|>?", references=("x",)
)


def decode(ids: tuple[int, ...]) -> str:
    return str(tiny_tokenizer().decode(list(ids)))


@pytest.mark.parametrize(
    ("policy", "kept"), [("head", [0, 1, 2, 3, 4]), ("tail", [5, 6, 7, 8, 9]), ("middle", [0, 1, 2, 8, 9])]
)
def test_truncation_keeps_what_its_name_says(policy: str, kept: list[int]) -> None:
    def truncate(budget: int) -> list[int]:
        return [token for start, stop in kept_ranges(10, budget, policy) for token in range(start, stop)]

    assert truncate(5) == kept
    assert truncate(10) == list(range(10))
    assert truncate(0) == []
    assert truncate(1) == ([9] if policy == "tail" else [0])


def test_chat_prompt_is_the_rendered_template() -> None:
    builder = PromptBuilder(tiny_tokenizer(), Template(text=TEMPLATE))
    parts = builder.parts(EXAMPLE)
    text = f"Answer: {EXAMPLE.query}\n\n{EXAMPLE.context}\n\nAgain: {EXAMPLE.query}"
    expected = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    prompt = fit(parts, 2000, 16, "head")
    assert decode(prompt.token_ids) == expected
    assert (prompt.num_context_kept, prompt.num_context_dropped) == (200, 0)


def test_plain_prompt_begins_as_the_tokenizer_begins_text() -> None:
    tokenizer = tiny_tokenizer(chat=False)
    parts = PromptBuilder(tokenizer, Template(text="{context}\nSummary:")).parts(EXAMPLE)
    assert decode(parts.prefix + parts.context + parts.suffix) == EXAMPLE.context + "\nSummary:"
    assert parts.prefix == tuple(tokenizer("a").input_ids[:-1])


@pytest.mark.parametrize("policy", ["head", "middle", "tail"])
@pytest.mark.parametrize("maxlen", [200, 250, 400, 1000])
def test_maxlen_counts_everything_and_only_the_context_gives_way(policy: str, maxlen: int) -> None:
    parts = PromptBuilder(tiny_tokenizer(), Template(text=TEMPLATE)).parts(EXAMPLE)
    prompt = fit(parts, maxlen, 20, policy)
    assert len(prompt.token_ids) == min(maxlen - 20, len(parts.prefix + parts.context + parts.suffix))
    assert prompt.token_ids[: len(parts.prefix)] == parts.prefix
    assert prompt.token_ids[-len(parts.suffix) :] == parts.suffix
    assert prompt.num_context_kept + prompt.num_context_dropped == 200
    assert len(prompt.token_ids) == len(parts.prefix) + prompt.num_context_kept + len(parts.suffix)


@pytest.mark.parametrize("policy", ["head", "middle", "tail"])
def test_the_characters_shown_are_those_of_the_tokens_kept(policy: str) -> None:
    builder = PromptBuilder(tiny_tokenizer(), Template(text="{context}"))
    context = "été, 東京 and <|im_end|> " * 5
    example = Example(id="a", document_id="a", context=context, references=("x",))
    parts = builder.parts(example)
    fixed = len(parts.prefix + parts.suffix)
    for kept in (0, 1, 40, 60, len(parts.context)):
        prompt = fit(parts, fixed + kept + 4, 4, policy)
        spans = builder.spans_of(context, prompt.context_ranges)
        ids = prompt.token_ids[len(parts.prefix) : len(prompt.token_ids) - len(parts.suffix)]
        shown = "".join(context[start:stop] for start, stop in spans)
        # A character of several bytes may be cut in two, and is shown then.
        decoded = decode(ids).replace("\N{REPLACEMENT CHARACTER}", "")
        assert decoded.replace(" ", "") in shown.replace(" ", "") or policy == "middle"
        assert len(decoded) <= len(shown) <= len(decoded) + 2
        assert prompt.num_context_kept == kept


def test_head_prompts_begin_alike_at_all_lengths() -> None:
    parts = PromptBuilder(tiny_tokenizer(), Template(text=TEMPLATE)).parts(EXAMPLE)
    short, long = (fit(parts, maxlen, 20, "head") for maxlen in (250, 300))
    shared = len(parts.prefix) + short.num_context_kept
    assert short.num_context_kept > 0
    assert short.token_ids[:shared] == long.token_ids[:shared]


def test_chat_markup_inside_a_document_or_a_query_is_text() -> None:
    tokenizer = tiny_tokenizer()
    example = Example(id="a", document_id="a", context="<|im_end|>", query="<|im_end|>", references=("x",))
    ids = fit(
        PromptBuilder(tokenizer, Template(text="{query} {context} {query}")).parts(example), 500, 8, "head"
    ).token_ids
    assert decode(ids).count("<|im_end|>") == 4
    assert ids.count(tokenizer.eos_token_id) == 1  # that of the template


def test_too_small_a_maxlen_says_how_many_tokens_are_needed() -> None:
    parts = PromptParts(prefix=(1,) * 10, context=(2,) * 50, suffix=(3,) * 5)
    assert fit(parts, 35, 20, "head").token_ids == (1,) * 10 + (3,) * 5
    with pytest.raises(UserError, match=r"maxlen 34 is too small: 15 tokens .* need 35 even with an empty context"):
        fit(parts, 34, 20, "head")


def test_digest_changes_with_template_and_chat_markup() -> None:
    digests = {
        PromptBuilder(tiny_tokenizer(chat=chat), Template(text=template)).sha256
        for chat in (True, False)
        for template in (TEMPLATE, TEMPLATE + "!")
    }
    assert len(digests) == 4


@pytest.mark.parametrize("name", list(TASKS))
def test_every_template_of_every_task_builds(name: str) -> None:
    task = TASKS[name]
    for template in task.templates.values():
        builder = PromptBuilder(tiny_tokenizer(), template)
        asks = "{query}" in template.text
        example = Example(id="a", document_id="a", context="C", query="Q?" if asks else None, references=("x",))
        text = decode(fit(builder.parts(example), 5000, 16, "head").token_ids)
        assert ("Q?" in text) == asks
        assert "{" not in text


def test_an_encoder_reads_a_text_as_its_tokenizer_frames_it() -> None:
    tokenizer, template = framing_tokenizer(), Template(text="{query}\n\n{context}", chat=False)
    builder = PromptBuilder(tokenizer, template, is_framed=True)
    builder.check()
    parts = builder.parts(EXAMPLE)
    whole = tokenizer(f"{EXAMPLE.query}\n\n{EXAMPLE.context}").input_ids
    assert list(fit(parts, 1000, 0, "head").token_ids) == whole
    cut = fit(parts, len(whole) - 7, 0, "head").token_ids
    assert list(cut) == [*whole[:-8], tokenizer.eos_token_id]
    assert builder.sha256 != PromptBuilder(tokenizer, template).sha256
    with pytest.raises(UserError, match=r"maxlen 2 is too small: .* need 10 even with an empty context; raise"):
        fit(replace(parts, prefix=(1,) * 9, suffix=(2,)), 2, 0, "head")


def test_a_chat_template_frames_a_text_alone() -> None:
    tokenizer = framing_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    one, other = (PromptBuilder(tokenizer, Template(text="{context}"), is_framed=framed) for framed in (False, True))
    assert one.parts(EXAMPLE) == other.parts(EXAMPLE)


# What a context with passages keeps


@pytest.mark.parametrize("budget", [30, 55, 100, 173, 400, 999])
def test_passages_stay_at_their_depth_and_all_else_is_cut_evenly(budget: int) -> None:
    ranges = ((100, 105), (500, 510), (900, 905))
    kept = thinned_ranges(1000, budget, Passages(ranges=ranges))
    tokens = [token for start, stop in kept for token in range(start, stop)]
    assert len(tokens) == budget
    assert tokens == sorted(set(tokens))
    for (start, stop), depth in zip(ranges, (100 / 980, 495 / 980, 885 / 980), strict=True):
        assert set(range(start, stop)) <= set(tokens)
        others = [token for token in tokens if not any(first <= token < last for first, last in ranges)]
        before = sum(token < start for token in others)
        assert before == pytest.approx(depth * len(others), abs=1)
    assert thinned_ranges(1000, 1000, Passages(ranges=ranges)) == ((0, 1000),)


def test_passages_at_both_ends_and_none_leave_what_fits() -> None:
    ends = Passages(ranges=((0, 10), (90, 100)))
    assert thinned_ranges(100, 50, ends) == ((0, 40), (90, 100))
    assert thinned_ranges(100, 20, ends) == ends.ranges
    assert thinned_ranges(100, 30, Passages(ranges=())) == ((0, 30),)
    assert thinned_ranges(0, 30, Passages(ranges=())) == ()


def needle_example(num_sentences: int = 60) -> Example:
    sentences = [f"Sentence number {index} says nothing." for index in range(num_sentences)]
    sentences[20] = sentences[40] = "Here is the needle!"
    context = " ".join(sentences)
    starts = [context.index("Here"), context.rindex("Here")]
    kept = tuple((start, start + len("Here is the needle!")) for start in starts)
    return Example(id="a", document_id="a", context=context, references=("x",), kept=kept)


@pytest.mark.parametrize("maxlen", [120, 300, 700, 5000])
def test_a_context_is_cut_around_its_passages_at_the_ends_of_sentences(maxlen: int) -> None:
    example = needle_example()
    builder = PromptBuilder(tiny_tokenizer(), Template(text="{context}"))
    prompt = fit(builder.parts(example), maxlen, 20, "tail")
    spans = builder.spans_of(example.context, prompt.context_ranges)
    shown = "".join(example.context[start:stop] for start, stop in spans)
    assert shown.count("Here is the needle!") == 2
    assert re.fullmatch(r"( *(Sentence number \d+ says nothing\.|Here is the needle!))+ *", shown)
    assert maxlen - 60 <= len(prompt.token_ids) + 20 <= maxlen or maxlen == 5000


def test_passages_that_do_not_fit_say_what_they_need() -> None:
    builder = PromptBuilder(tiny_tokenizer(), Template(text="{context}"))
    parts = builder.parts(needle_example())
    with pytest.raises(UserError, match=r"what every length shows of the context needs \d+ tokens.*raise --maxlen to"):
        fit(parts, len(parts.prefix) + len(parts.suffix) + 30, 10, "head")
