"""Baselines at the length of an answer, and the floor of the oracle."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from eval.scoring.beside import ForeignTexts, with_foreign
from eval.scoring.examples import Scored, score_examples
from tests.helpers.run_folders import document_line, example_line, prediction_line

OWN = " ".join(f"Word{i} came before noun{i} again." for i in range(60))
OTHER = " ".join(f"Other{i} went after thing{i} slowly." for i in range(60))
REFERENCE = "word2 came before noun2 again. word50 came before noun50 again."


def scored(answers: dict[int, str], texts: dict[str, str]) -> list[Scored]:
    """Score these answers by maxlen; a prompt shows twice as many characters as it has tokens."""
    documents = [document_line("plos", name, text) for name, text in texts.items()]
    examples = [
        example_line(index, id=f"x-{name}", document_id=name, references=[REFERENCE])
        for index, name in enumerate(texts)
    ]
    lines = [
        prediction_line(example, maxlen, text, len(OWN)) for example in examples for maxlen, text in answers.items()
    ]
    return list(score_examples(lines, examples, documents, {"plos": "hf"}, "tiny").scored)


def rows(found: list[Scored], example: str = "x-own") -> dict[tuple[int, str], Scored]:
    return {(one.line.maxlen, one.line.system): one for one in found if one.line.id == example}


def test_matched_baselines_have_at_most_as_many_words_as_their_answer() -> None:
    by_row = rows(scored({300: "one two three", 1000: "word " * 40}, {"own": OWN}))
    assert [by_row[at, "matched_lead"].num_words for at in (300, 1000)] == [3, 40]
    assert [by_row[at, "matched_tail"].num_words for at in (300, 1000)] == [3, 40]
    assert by_row[300, "matched_oracle"].num_words <= 3
    assert by_row[1000, "matched_oracle"].num_words == 10  # no more sentences help
    assert by_row[300, "lead"].num_words == by_row[1000, "lead"].num_words == 10


def test_the_same_answer_scores_as_the_lead_of_its_length() -> None:
    beginning = " ".join(OWN.split()[:25])
    by_row = rows(scored({300: beginning}, {"own": OWN}))
    assert by_row[300, "matched_lead"].line.metrics == by_row[300, "tiny"].line.metrics


def test_the_foreign_oracle_gains_nothing_from_what_only_the_own_document_holds() -> None:
    found = scored({300: "a", 1000: "a"}, {"own": OWN, "other": OTHER})
    by_row = rows(found)
    value = {key: one.line.metrics["rouge1"] for key, one in by_row.items()}
    assert value[300, "foreign_oracle"] == value[300, "visible_oracle"]
    assert value[1000, "visible_oracle"] == 1  # the second sentence of the reference lies beyond 600 characters
    assert value[1000, "foreign_oracle"] == value[300, "visible_oracle"] < 1
    assert by_row[1000, "foreign_oracle"].line.sentences is None


def test_a_single_document_has_no_foreign_oracle() -> None:
    for texts in ({"own": OWN}, {"own": OWN, "copy": OWN}):
        assert not [one for one in scored({300: "a"}, texts) if one.line.system == "foreign_oracle"]


def test_foreign_texts_are_of_other_documents_and_long_enough() -> None:
    texts = {f"d{index}": f"text {index} " * (index + 1) for index in range(6)}
    foreign_texts, other_order = ForeignTexts(texts, {}), ForeignTexts(dict(reversed(texts.items())), {})
    for name in texts:
        foreign = foreign_texts.instead_of(name)
        assert foreign == other_order.instead_of(name)
        assert foreign is not None
        assert len(foreign) >= len(texts[name]) or foreign.count("\n") == 4
        assert f"text {name[1:]} " not in foreign


def test_chapters_of_one_book_do_not_stand_in_for_each_other() -> None:
    texts = {f"d{index}": f"text {index} " * 20 for index in range(4)}
    foreign = ForeignTexts(texts, {"d0": "book", "d1": "book", "d2": None})
    assert "text 1 " not in str(foreign.instead_of("d0"))
    assert foreign.instead_of("d2") is not None
    assert ForeignTexts({"d0": "a", "d1": "b"}, {"d0": "book", "d1": "book"}).instead_of("d0") is None


def test_a_single_length_has_no_foreign_oracle() -> None:
    assert not [one for one in scored({300: "a"}, {"own": OWN, "other": OTHER}) if one.line.system == "foreign_oracle"]


@given(
    text=st.text(min_size=1, max_size=30), foreign=st.text(min_size=1, max_size=5), cuts=st.lists(st.integers(0, 30))
)
def test_a_foreign_text_keeps_what_was_shown_and_the_length(text: str, foreign: str, cuts: list[int]) -> None:
    edges = sorted({min(cut, len(text)) for cut in cuts})
    own = [(edges[index], edges[index + 1]) for index in range(0, len(edges) - 1, 2)]
    made = with_foreign(text, own, foreign)
    assert len(made) == len(text)
    assert all(made[start:end] == text[start:end] for start, end in own)
    shown = {place for start, end in own for place in range(start, end)}
    assert all(made[place] in foreign for place in range(len(text)) if place not in shown)
