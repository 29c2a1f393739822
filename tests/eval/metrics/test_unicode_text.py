"""Words, sentences and budgets of ten scripts, and of English as before."""

from __future__ import annotations

import random
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.metrics.answers import answer_words
from eval.metrics.diagnostics import repeated_share
from eval.metrics.rouge import rouge_words, sentence_spans
from eval.metrics.unicode_text import (
    counted_words,
    lacks_spaces,
    unicode_answer_words,
    unicode_sentence_spans,
    unicode_sentences,
    unicode_words,
)
from eval.scoring.baselines import num_words, word_budget, words_at_end
from tests.helpers.properties import tries

ASCII = st.text(st.sampled_from(string.printable))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Häuser, Straße", ["häuser", "strasse"]),
        ("Τα ΣΠΙΤΙΑ μας", ["τα", "σπιτια", "μασ"]),
        ("Реки текут", ["реки", "текут"]),
        ("النهر يجري", ["النهر", "يجري"]),
        ("הנהר זורם", ["הנהר", "זורם"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("tiếng Việt", ["tiếng", "việt"]),
        ("강이 흐른다", ["강이", "흐른다"]),
        ("2023年收入", ["2023", "年", "收", "入"]),
        ("コーヒーを", ["コ", "ー", "ヒ", "ー", "を"]),
        ("ที่นี่", ["ที่", "นี่"]),
        ("ﬁne ＡＢＣ", ["fine", "abc"]),
        ("。！？", []),
    ],
)
def test_words_of_a_script(text: str, words: list[str]) -> None:
    assert unicode_words(text) == words


def test_letters_that_are_composed_otherwise_are_the_same() -> None:
    assert unicode_words("Vie\u0302\u0323t") == unicode_words("Việt") == ["việt"]


@given(ASCII)
@tries(200)
def test_ascii_has_the_words_and_sentences_that_it_had(text: str) -> None:
    assert unicode_words(text) == rouge_words(text, use_stemmer=False)
    assert unicode_sentence_spans(text) == sentence_spans(text)
    assert unicode_answer_words(text) == answer_words(text)
    assert counted_words(text) == text.split()


def test_a_word_of_ascii_is_one_beside_other_letters_too() -> None:
    assert unicode_words("é covid19 H2O") == ["é", "covid19", "h2o"]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("河流下山。「好！」他说。", ["河流下山。", "「好！」", "他说。"]),
        ("川は流れる。 村がある？", ["川は流れる。", "村がある？"]),
        ("أين النهر؟ هنا.", ["أين النهر؟", "هنا."]),
        ("नदी बहती है। गाँव पास है।", ["नदी बहती है।", "गाँव पास है।"]),
        ("Река течёт. Она широка!", ["Река течёт.", "Она широка!"]),
    ],
)
def test_sentences_end_at_the_terminators_of_their_script(text: str, sentences: list[str]) -> None:
    assert unicode_sentences(text) == sentences


def test_a_budget_counts_characters_where_no_spaces_part_words() -> None:
    assert counted_words("「你好」 ABC公司, ok") == ["「你", "好」", "ABC", "公", "司,", "ok"]
    assert num_words("河流从山上流下来。") == 8
    assert word_budget(["河流从山上流下来。"]) == 8
    assert num_words("Häuser — schön") == 3, "elsewhere words stand between white space, as before"


def test_lead_and_tail_are_cut_within_a_line_without_spaces() -> None:
    text = "河流从山上流下来。村民在河边种稻。"
    whole = [(0, len(text))]
    assert words_at_end(text, whole, 3, is_last=False) == "河流从"
    assert words_at_end(text, whole, 3, is_last=True) == "边种稻。"
    assert words_at_end(text, [(0, 2), (9, len(text))], 3, is_last=False) == "河流\n村"
    assert words_at_end(text, [(0, 2), (9, len(text))], 8, is_last=True) == "流\n村民在河边种稻。"
    assert words_at_end(text, whole, 0, is_last=True) == ""


def test_lead_and_tail_of_spaced_words_are_as_before() -> None:
    rng = random.Random(1)
    for _ in range(50):
        words = ["".join(rng.choices("abé—", k=3)) for _ in range(9)]
        text = "  " + "".join(word + rng.choice([" ", "\n", "  "]) for word in words)
        count = rng.randint(1, 9)
        for is_last in (False, True):
            cut = words_at_end(text, [(0, len(text))], count, is_last=is_last)
            assert cut.split() == (words[-count:] if is_last else words[:count])
            assert cut in text


def test_repetition_is_seen_without_spaces() -> None:
    assert repeated_share("好的好的好的好的") == pytest.approx(3 / 5)
    assert repeated_share("河流从山上") == 0


def test_no_letter_of_a_script_without_spaces_is_overlooked() -> None:
    letters = (chr(number) for number in range(0x32000) if chr(number).isalpha())
    alone = [word for word in counted_words("河 " + " ".join(2 * letter for letter in letters)) if len(word) == 1]
    assert len(alone) > 90_000
    assert {"河", "あ", "ー", "ク", "ก", "ກ", "ក", "က"} <= {*alone}
    assert {"a", "я", "ك", "ק", "क", "한", "ʼ"}.isdisjoint(alone)
    assert all(map(lacks_spaces, alone))
