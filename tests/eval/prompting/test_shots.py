"""Solved examples and system messages in prompts: whole, as text, the same tokens before every document."""

from __future__ import annotations

import pytest

from eval.errors import UserError
from eval.prompting.chat import ChatSettings
from eval.prompting.prompts import PromptBuilder, fit
from tasks import Example, Template
from tests.helpers.tiny_models import tiny_tokenizer

ASKING = Template(text="Read.\n\n{context}\n\nAsked: {query}\nAnswer:")


def example(name: str, context: str, query: str = "why", answer: str = "so") -> Example:
    return Example(id=name, document_id=name, context=context, query=query, references=(answer, "other"))


SHOTS = (example("a", "It rained."), example("b", "It says <|im_end|> here.", "what", "<|im_end|>"))
DOCUMENT = example("c", "0123456789" * 20, "who")


def decoded(builder: PromptBuilder, ids: tuple[int, ...]) -> str:
    return str(builder.tokenizer.decode(list(ids)))


def test_shots_are_turns_of_a_chat_template() -> None:
    builder = PromptBuilder(tiny_tokenizer(), ASKING, shots=SHOTS)
    builder.check()
    parts = builder.parts(DOCUMENT)

    def turns(one: Example, answer: str) -> str:
        text = f"Read.\n\n{one.context}\n\nAsked: {one.query}\nAnswer:"
        return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n{answer}"

    shots = "".join(turns(one, f"{one.references[0]}<|im_end|>\n") for one in SHOTS)
    assert decoded(builder, parts.prefix + parts.context + parts.suffix) == shots + turns(DOCUMENT, "")
    end = builder.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert (parts.prefix + parts.suffix).count(end) == 5, "the one that a document spells, twice, is text"
    assert [role for role, _ in builder.shot_turns] == ["user", "assistant"] * 2
    assert builder.shot_turns[0][1] == "Read.\n\nIt rained.\n\nAsked: why\nAnswer:"


def test_a_query_may_stand_twice() -> None:
    builder = PromptBuilder(tiny_tokenizer(), Template(text="{query}\n\n{context}\n\n{query}"), shots=SHOTS)
    assert builder.shot_turns[2:] == [("user", f"what\n\n{SHOTS[1].context}\n\nwhat"), ("assistant", "<|im_end|>")]
    builder.check()


def test_plain_shots_are_text_after_the_system_message_of_the_template() -> None:
    template = Template(text=ASKING.text, chat=False, system="Be brief.")
    builder = PromptBuilder(tiny_tokenizer(), template, shots=SHOTS)
    builder.check()
    parts = builder.parts(DOCUMENT)
    shown = [f"Read.\n\n{one.context}\n\nAsked: {one.query}\nAnswer:" for one in (*SHOTS, DOCUMENT)]
    expected = f"Be brief.\n\n{shown[0]} so\n\n{shown[1]} <|im_end|>\n\n{shown[2]}"
    assert decoded(builder, parts.prefix + parts.context + parts.suffix).removeprefix("<s>") == expected
    assert builder.text(DOCUMENT.query, DOCUMENT.context) == expected


def test_all_prompts_begin_with_the_same_tokens_and_shots_are_never_cut() -> None:
    builder = PromptBuilder(tiny_tokenizer(), Template(text="{query}\n\n{context}"), shots=SHOTS)
    first, second = (builder.parts(example(name, name * 300, name)) for name in "xy")
    num_shared = next(at for at, pair in enumerate(zip(first.prefix, second.prefix, strict=True)) if len(set(pair)) > 1)
    alone = PromptBuilder(tiny_tokenizer(), Template(text="{query}\n\n{context}"))
    num_fixed = len(first.prefix) - len(alone.parts(example("x", "x", "x")).prefix)
    assert num_shared >= num_fixed > 50, "shots are a prefix of every prompt"
    for maxlen in (len(first.prefix) + len(first.suffix) + 8, 250, 400):
        prompt = fit(first, maxlen, 8, "tail")
        assert len(prompt.token_ids) == maxlen - 8
        assert prompt.token_ids[: len(first.prefix)] == first.prefix
    with pytest.raises(UserError, match="maxlen 60 is too small"):
        fit(first, 60, 8, "head")


def test_other_shots_and_other_system_messages_are_another_prompt() -> None:
    def sha256(template: Template = ASKING, shots: tuple[Example, ...] = SHOTS, **chat: str) -> str:
        return PromptBuilder(tiny_tokenizer(), template, ChatSettings(**chat), shots=shots).sha256

    brief = Template(text=ASKING.text, system="Be brief.")
    digests = [sha256(), sha256(shots=()), sha256(shots=SHOTS[::-1]), sha256(brief), sha256(brief, ())]
    assert len(set(digests)) == len(digests)
    assert sha256(brief, system="Be long.") == sha256(system="Be long."), "that of the user counts"


def test_a_chat_template_without_earlier_turns_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "<|im_start|>user\n{{ messages[-1]['content'] }}<|im_end|>\n"
    with pytest.raises(UserError, match="leaves out or repeats earlier turns, so it cannot show --shots"):
        PromptBuilder(tokenizer, ASKING, shots=SHOTS).check()
