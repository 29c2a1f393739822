"""The abstract is taken out of its article, and nothing else is."""

from __future__ import annotations

import pytest

from tasks.readers.articles import Section, article_text, without_abstract

FIRST = "We study how far a token must look back before the answer to a question about a long report stops improving."
SECOND = "Across four models and six collections, most layers need no more than the last few hundred tokens to do so."
ABSTRACT = f"{FIRST} {SECOND}"
INTRODUCTION = (
    "Reports grow longer every year, and readers ask more of them. In this paper we study how far a token must look "
    "back, which earlier work left open because no corpus of long reports with questions was at hand."
)


def test_a_copy_of_the_abstract_is_dropped_whatever_its_case_spacing_and_punctuation() -> None:
    copy = ABSTRACT.upper().replace(" ", "  ").replace(",", " ;")
    assert without_abstract([copy, INTRODUCTION], ABSTRACT) == [INTRODUCTION]


def test_a_copy_with_a_few_words_changed_is_dropped() -> None:
    noisy = ABSTRACT.replace("must look", "mustlook").replace("few hundred", "few-hundreds of")
    assert without_abstract([noisy, INTRODUCTION], ABSTRACT) == [INTRODUCTION]


def test_a_copy_in_pieces_too_short_to_cut_is_dropped_where_they_are_half_of_the_paragraph() -> None:
    words = ABSTRACT.split()
    pieces = " meanwhile ".join(" ".join(words[i : i + 10]) for i in range(0, len(words), 10))
    other = "and this is what we add to it now " * 8
    assert without_abstract([pieces, INTRODUCTION], ABSTRACT) == [INTRODUCTION]
    assert without_abstract([pieces + " " + other], ABSTRACT) == [(pieces + " " + other).strip()]


def test_an_introduction_that_shares_a_phrase_stays_word_for_word() -> None:
    assert without_abstract([INTRODUCTION], ABSTRACT) == [INTRODUCTION]


def test_a_copied_sentence_is_cut_out_of_a_long_paragraph() -> None:
    before = "Long inputs cost memory and time, and both grow faster than the input does in a plain decoder. " * 3
    after = "The next section describes the collections, and the one after it the models that we compare."
    assert without_abstract([f"{before}{FIRST} {after}"], ABSTRACT) == [f"{before}{after}"]


def test_a_whole_article_on_one_line_loses_the_exact_copy_alone() -> None:
    tokenized = "reports grow longer every year . " * 40
    abstract = ABSTRACT.lower().replace(".", " .").replace(",", " ,")
    article = f"{tokenized}{abstract} {tokenized}".strip()
    assert without_abstract([article], abstract) == [f"{tokenized}{tokenized}".strip()]


def test_a_copy_spread_over_lines_is_dropped() -> None:
    lines = ABSTRACT.replace("back before", "back\nbefore").replace("collections, ", "collections,\n").split("\n")
    assert without_abstract([*lines, INTRODUCTION], ABSTRACT) == [INTRODUCTION]


def test_an_abstract_of_a_few_words_takes_out_its_copy_only() -> None:
    assert without_abstract(["We study spans.", "We study spans and sinks."], "We study spans") == [
        "We study spans and sinks."
    ]


def test_sections_named_abstract_go_and_titles_left_without_text_go_with_it() -> None:
    sections = [
        Section(title="Abstract", paragraphs=["A shortened version that shares nothing."]),
        Section(title="Summary", paragraphs=[ABSTRACT]),
        Section(title="Methods", paragraphs=[]),
        Section(title="Abstractive models", paragraphs=["They write.", "They do not copy."]),
        Section(title="", paragraphs=["Untitled."]),
    ]
    assert (
        article_text(sections, ABSTRACT) == "Methods\n\nAbstractive models\nThey write.\nThey do not copy.\n\nUntitled."
    )


@pytest.mark.parametrize("num_words", [5, 9, 16, 19])
def test_a_short_abstract_inside_a_long_paragraph_is_cut(num_words: int) -> None:
    abstract = " ".join(f"word{i}" for i in range(num_words)) + "."
    paragraph = f"Before it stands this. {abstract.capitalize()} {'After it comes much more. ' * 30}"
    (kept,) = without_abstract([paragraph], abstract)
    assert "word0" not in kept.lower()
    assert kept.startswith("Before it stands this.")
    assert kept.count("After it comes much more.") == 30
