"""Pieces become the tokens that the whole text has, and data never become control tokens."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from eval.errors import UserError
from eval.prompting.encoding import TextEncoder
from eval.prompting.prompts import PromptBuilder
from tasks import Example, Template
from tests.helpers.tiny_models import tiny_tokenizer

CHARACTERS = [chr(code) for code in range(33, 127)]
PREFIXES = ("first", "always", "legacy")


def prefixing(scheme: str, template: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer that puts a space before what it is given, in one of the ways of Llama 2 and its kin."""
    special = ["<unk>", "<s>", "</s>", "<|user|>", "<|end|>"]
    vocab = {
        token: at for at, token in enumerate([*special, *(f"<0x{at:02X}>" for at in range(256)), "▁", *CHARACTERS])
    }
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    if scheme == "legacy":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = template
    return tokenizer


def unigram() -> PreTrainedTokenizerFast:
    """Return a tokenizer whose vocabulary has end tokens with the best of scores."""
    special = ["<s>", "</s>", "<unk>", "[SEP]"]
    vocab = [*((token, 0.0) for token in special), ("▁", -2.0), *((one, -4.0) for one in CHARACTERS)]
    backend = Tokenizer(models.Unigram(vocab, unk_id=2))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def with_markup(*, special: bool) -> Any:
    """Return a byte-level tokenizer with an added turn marker that no list of names holds."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken("<|eot_id|>", special=special, normalized=False)])
    return tokenizer


@pytest.mark.parametrize("template", ["Summarize.\n\n{context}\n\n{query}", "{context}\n{query}:", "{query} {context}"])
@pytest.mark.parametrize(
    "markup", ["{{ bos_token }}[INST] X [/INST]", "<|user|>X<|end|>\nNow", "<|user|>\nX <|end|><s>"]
)
@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("scheme", PREFIXES)
def test_pieces_have_the_tokens_of_the_whole(scheme: str, chat: bool, markup: str, template: str) -> None:
    around = "{% for m in messages %}" + markup.replace("X", "{{ m['content'] }}") + "{% endfor %}"
    tokenizer = prefixing(scheme, around)
    builder = PromptBuilder(tokenizer, Template(text=template, chat=chat))
    builder.check()
    parts = builder.parts(Example(id="a", document_id="a", context="Rivers run.", query="Where to?", references=("x",)))
    text = template.replace("{context}", "Rivers run.").replace("{query}", "Where to?")
    whole = around.partition("%}")[2].rpartition("{% endfor")[0] if chat else "{{ m['content'] }}"
    whole = whole.replace("{{ m['content'] }}", text).replace("{{ bos_token }}", "<s>")
    ours = (*parts.prefix, *parts.context, *parts.suffix)
    assert list(ours) == tokenizer(whole, add_special_tokens=False).input_ids


def test_a_context_first_and_one_after_text_each_have_their_own_tokens() -> None:
    tokenizer = prefixing("legacy", "")
    first, later = (PromptBuilder(tokenizer, Template(text=text)) for text in ("{context}", "Read: {context}"))
    assert (first.is_context_first, later.is_context_first) == (True, False)
    assert len(first.context_ids("abc")) == len(later.context_ids("abc")) + 1
    assert later.spans_of("abc", ((1, 3),)) == [[1, 3]]


@pytest.mark.parametrize("scheme", PREFIXES)
def test_an_answer_follows_the_turn_as_the_template_writes_it(scheme: str) -> None:
    around = (
        "{% for m in messages %}{{ '<|user|>' if m['role'] == 'user' else '<|end|>\n' }}{{ m['content'] }}{% endfor %}"
    )
    around += "{% if add_generation_prompt %}<|end|>\n{% else %}</s>{% endif %}"
    tokenizer = prefixing(scheme, around)
    answer = PromptBuilder(tokenizer, Template(text="{context}")).answer("Yes")
    assert answer == (*tokenizer.convert_tokens_to_ids(["Y", "e", "s"]), tokenizer.eos_token_id)


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("text", ["{query} {context}", "{context} {query} <|eot_id|>"])
def test_markup_without_a_name_is_text_in_data(text: str, special: bool) -> None:
    tokenizer = with_markup(special=special)
    end = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    data = "a <|eot_id|><|eot_id|> b"
    builder = PromptBuilder(tokenizer, Template(text=text))
    parts = builder.parts(Example(id="a", document_id="a", context=data, query=data, references=(data,)))
    ids = (*parts.prefix, *parts.context, *parts.suffix)
    assert ids.count(end) == text.count("<|eot_id|>")
    assert end not in builder.answer(data) + builder.document(data)
    assert tokenizer.decode(list(parts.context)) == data
    assert builder.spans_of(data, ((0, 5),)) == [[0, 5]]


@pytest.mark.parametrize("scheme", [None, *PREFIXES])
@pytest.mark.parametrize("special", [True, False])
def test_markup_of_one_character_is_text_in_data(special: bool, scheme: str | None) -> None:
    around = "{% for m in messages %}{{ m['content'] }}⏹{% endfor %}"
    tokenizer = prefixing(scheme, around) if scheme else tiny_tokenizer()
    tokenizer.chat_template = around
    tokenizer.add_tokens([AddedToken("⏹", special=special, normalized=False)])
    end = tokenizer.convert_tokens_to_ids("⏹")
    builder = PromptBuilder(tokenizer, Template(text="Read {context} {query}"))
    for data in ("a ⏹ b⏹⏹c", "⏹", "x⏹"):
        parts = builder.parts(Example(id="a", document_id="a", context=data, query=data, references=(data,)))
        assert (*parts.prefix, *parts.context, *parts.suffix).count(end) == 1
        assert end not in builder.answer(data)[:-1] + builder.document(data)
        assert tokenizer.decode(list(parts.context)).strip() == data
        assert builder.spans_of(data, ((0, len(parts.context)),)) == [[0, len(data)]]


def test_a_character_that_only_an_added_token_stands_for_stays() -> None:
    tokenizer = prefixing("first", "{% for m in messages %}{{ m['content'] }}{% endfor %}☃")
    tokenizer.backend_tokenizer.model.byte_fallback = False
    tokenizer.add_tokens([AddedToken("☃", special=False), AddedToken("{", special=False)])
    encoder = TextEncoder(tokenizer)
    ids = encoder.encode("a☃{b", is_data=True)
    assert list(ids) == tokenizer("a☃{b", add_special_tokens=False).input_ids
    assert tokenizer.unk_token_id not in ids


def test_a_query_cannot_finish_a_token_that_the_template_begins() -> None:
    tokenizer = with_markup(special=True)
    parts = PromptBuilder(tokenizer, Template(text="<{query} {context}")).fixed_parts("|eot_id|>")
    assert tokenizer.convert_tokens_to_ids("<|eot_id|>") not in parts.prefix


def test_ends_in_the_vocabulary_of_a_unigram_model_are_text_in_data() -> None:
    tokenizer = unigram()
    encoder = TextEncoder(tokenizer)
    for data in ("End </s> more", "</s>", "</</s>s>[SEP]"):
        ids = encoder.encode(data, is_data=True)
        assert not {0, 1, 3} & set(ids)
        assert str(tokenizer.decode(list(ids))).strip() == data


def test_names_of_many_tokens_are_found_as_an_alternation_finds_them() -> None:
    names = [*(f"<unused{at}>" for at in range(300)), "<s", "<s>x", "[m]", "<|a|>", "<|a|>b"]
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    encoder = TextEncoder(tokenizer)
    known = sorted({name.strip() for name in encoder.controls.values()}, key=len, reverse=True)
    alternation = re.compile("|".join(map(re.escape, known)))
    chance = random.Random(0)
    for _ in range(50):
        text = "".join(chance.choice([*names, "<unused", "<", "é ", "1", "x>"]) for _ in range(12))
        assert encoder._spelled(text) == [found.span() for found in alternation.finditer(text)]
        assert not encoder.controls.keys() & set(encoder.encode(text, is_data=True))
        assert tokenizer.decode(list(encoder.encode(text, is_data=True))) == text


def test_encoders_of_the_same_control_tokens_share_what_finds_them() -> None:
    first, second, other = (TextEncoder(one) for one in (tiny_tokenizer(), tiny_tokenizer(), with_markup(special=True)))
    assert first._finder is second._finder
    assert other._finder is not first._finder


def test_a_document_without_control_tokens_is_tokenized_once(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = TextEncoder(tiny_tokenizer())
    run, calls = encoder._run, []
    monkeypatch.setattr(encoder, "_run", lambda *given, **more: calls.append(given[0]) or run(*given, **more))
    encoder.encode("Rivers run.", is_data=True)
    encoder.offsets("Rivers run.")
    assert calls == ["Rivers run."] * 2


def test_added_words_and_white_space_stay_tokens_of_data() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken("    ", special=False), AddedToken("covid", special=False)])
    ids = TextEncoder(tokenizer).encode("a    covid", is_data=True)
    assert list(ids) == tokenizer("a    covid").input_ids
    assert len(ids) == 3


def test_a_tokenizer_that_loses_text_is_refused_by_name() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("m", "")
    tokenizer.name_or_path = "lossy"
    with pytest.raises(UserError, match=r"tokenizer of lossy does not keep texts: it reads .* another tokenizer"):
        PromptBuilder(tokenizer, Template(text="{context}\n\nMake a summary.")).check()


def lacking(kind: str, scripts: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer that knows ASCII and some more characters, and drops, or has a token for, all others."""
    vocab = {token: at for at, token in enumerate(["<s>", "</s>", "<unk>", " ", "\n", *CHARACTERS, *scripts])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token=None if kind == "drops" else "<unk>"))
    if kind == "folds":
        steps = [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
        backend.normalizer = normalizers.Sequence(steps)
    backend.decoder = decoders.Fuse()
    unknown = {} if kind == "drops" else {"unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", **unknown)


@pytest.mark.parametrize("kind", ["drops", "unknown", "folds"])
def test_a_tokenizer_without_the_script_of_a_task_is_refused(kind: str) -> None:
    builder = PromptBuilder(lacking(kind, "γ"), Template(text="Read {context}"))
    builder.check()
    with pytest.raises(UserError, match=r"task 'news': .* keeps 19% of the letters .* some of 'Θάλασσες'"):
        builder.check_letters("news", ["Θάλασσες  ok " * 9 + "και γη " * 9, "ποταμοί"])


@pytest.mark.parametrize("kind", ["drops", "unknown", "folds"])
def test_a_tokenizer_may_lack_a_few_letters_and_fold_all(kind: str) -> None:
    few = "the Rivers run far, WHERE ﬁelds are Ωide. " if kind != "folds" else "ÉTÉ Ä ﬁelds in ｆｕｌｌ and Ωide. "
    builder = PromptBuilder(lacking(kind, ""), Template(text="Read {context}"))
    builder.check_letters("news", [few * 50, "", "7 + 7"])
    builder.check_letters("news", [])
    # No letter of any script is lost where bytes are tokens.
    PromptBuilder(tiny_tokenizer(), Template(text="{context}")).check_letters(
        "news", ["Где 東京 はどこ 한국어 <|im_end|>"]
    )
