"""Diagnostics have the values that their papers define, on cases that are counted by hand."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from eval.metrics.base import Item, checked_scores
from eval.metrics.diagnostics import PLACED, Diagnostics, names_of, numbers_of
from eval.metrics.document_index import DocumentIndex, index_document

METRIC = Diagnostics()
# Ten words in two sentences.
WINDOW = "The cat sat on the mat. A dog barked loudly."
DOCUMENT = f"{WINDOW} Later 1,500 birds flew over Paris with great noise. Nobody in Rome heard 42 of them."


def values(prediction: str, window: str = WINDOW, **texts: Any) -> dict[str, float | None]:
    item = Item.of(METRIC, prediction=prediction, window=window, **texts)
    return checked_scores(METRIC, [item])[0]


def newsroom_fragments(summary: list[str], text: list[str]) -> list[int]:
    """Return the lengths of the fragments in F(A, S), by the definition: the longest match at each word."""
    lengths, place = [], 0
    while place < len(summary):
        best = 0
        for start in range(len(text)):
            length = 0
            while (
                place + length < len(summary)
                and start + length < len(text)
                and summary[place + length] == text[start + length]
            ):
                length += 1
            best = max(best, length)
        lengths += [best] if best else []
        place += max(best, 1)
    return lengths


def test_coverage_density_and_compression_are_those_of_newsroom() -> None:
    # Fragments: "the cat sat", "the mat"; "and" is in none.
    found = values("The cat sat and the mat")
    assert found["coverage"] == pytest.approx(5 / 6)
    assert found["density"] == pytest.approx((3**2 + 2**2) / 6)
    assert found["compression"] == pytest.approx(10 / 6)


def test_a_text_that_copies_is_one_fragment() -> None:
    found = values(WINDOW)
    assert (found["coverage"], found["density"], found["compression"]) == (1, 10, 1)
    assert (found["copied"], found["novel_1"], found["novel_4"], found["repeated"]) == (1, 0, 0, 0)


def test_novel_ngrams_are_counted_once_each_and_copied_ones_each_time() -> None:
    # Words: a cat sat on a cat sat on a mat. Distinct: a, cat, sat, on, mat.
    found = values("A cat sat on a cat sat on a mat.")
    assert found["novel_1"] == 0
    # a cat, cat sat, sat on, on a, a mat: the window has cat sat and sat on.
    assert found["novel_2"] == pytest.approx(3 / 5)
    assert found["novel_3"] == pytest.approx(4 / 5), "a cat sat, cat sat on, sat on a, on a cat, on a mat"
    assert found["novel_4"] == found["novel_4"] == 1
    assert found["copied"] == 0
    # 7 runs of four: two stand there before.
    assert found["repeated"] == pytest.approx(2 / 7)
    assert found["words"] == 10


def test_runs_of_random_texts_are_those_of_the_definitions() -> None:
    chance = random.Random(0)
    for _ in range(30):
        document = [chance.choice("abcde") for _ in range(chance.randint(1, 80))]
        end = chance.randint(1, len(document))
        window, summary = document[:end], [chance.choice("abcdex") for _ in range(chance.randint(1, 25))]
        found = values(" ".join(summary), " ".join(window), document=" ".join(document))
        fragments = newsroom_fragments(summary, window)
        assert found["coverage"] == pytest.approx(sum(fragments) / len(summary))
        assert found["density"] == pytest.approx(sum(one**2 for one in fragments) / len(summary))
        for n in range(1, 5):
            runs = Counter(zip(*(summary[start:] for start in range(n)), strict=False))
            known = set(zip(*(window[start:] for start in range(n)), strict=False))
            expected = 1 - len(runs.keys() & known) / len(runs) if runs else None
            assert found[f"novel_{n}"] == (None if expected is None else pytest.approx(expected))
        if runs:
            assert found["copied"] == pytest.approx(sum(runs[run] for run in runs.keys() & known) / runs.total())


@pytest.mark.parametrize(
    ("start", "end"), [(0, 32), (0, 44), (24, 143), (0, 0)], ids=["cut word", "head", "tail", "nothing"]
)
def test_a_window_is_found_in_its_document(start: int, end: int) -> None:
    window = DOCUMENT[start:end]
    [(first, last)] = index_document(DOCUMENT).window(window) or [(0, 0)]
    whole = DocumentIndex(window).words
    is_cut = DOCUMENT[:end][-1:].isalnum() and DOCUMENT[end : end + 1].isalnum()
    assert index_document(DOCUMENT).words[first:last] == whole[: len(whole) - is_cut]


def test_a_window_of_both_ends_is_two_ranges_and_nothing_runs_across_its_gap() -> None:
    window = f"{DOCUMENT[:23]}\nNobody in Rome heard 42 of them."
    ranges = index_document(DOCUMENT).window(window)
    assert ranges == [(0, 6), (20, 27)]
    assert values("the mat nobody in", window, document=DOCUMENT)["copied"] == 0
    assert values("in Rome heard 42", window, document=DOCUMENT)["copied"] == 1


def test_a_window_that_is_no_part_of_the_document_stands_for_itself() -> None:
    found = values("The cat sat on the mat.", WINDOW, document="Something else entirely.")
    assert (found["copied"], found["placed"]) == (1, 1)
    assert (found["position"], found["first_third"]) == (None, None), "nobody knows where in the document"


def test_what_was_said_has_a_place_in_the_document() -> None:
    found = values("A dog barked. Nobody in Rome heard them.", DOCUMENT, document=DOCUMENT, shorter_window=WINDOW)
    # Sentences have 6, 4, 10 and 7 of 27 words, as 1,500 is two; the second has its middle at 8, the fourth at 23.5.
    assert found["position"] == pytest.approx((8 + 23.5) / 2 / 27)
    assert (found["first_third"], found["middle_third"], found["last_third"]) == (0.5, 0, 0.5)
    assert found["placed"] == 1
    assert found["beyond"] == 0.5, "one of two is in the shorter window"


def test_what_the_shorter_window_says_as_well_is_not_from_beyond_it() -> None:
    twice = f"{WINDOW} Then again a dog barked loudly."
    assert values("A dog barked loudly.", twice, document=twice, shorter_window=WINDOW)["beyond"] == 0
    assert values("Then again a dog barked loudly.", twice, document=twice, shorter_window=WINDOW)["beyond"] == 1
    assert values("A dog barked loudly.", WINDOW, document=twice)["beyond"] is None, "there is no shorter window"


def test_a_sentence_about_something_else_has_no_place() -> None:
    found = values("Quarterly revenue increased considerably. The cat sat on the mat.")
    assert (found["placed"], found["position"]) == (0.5, 0.3), "the middle of words 0 to 6 of 10"
    assert values("Quarterly revenue increased considerably.")["position"] is None
    # Of three words one is there, in one sentence of two: log 3, and log 3 for each that is nowhere.
    shares = index_document(WINDOW).matches(index_document(WINDOW).answer("Quarterly cat revenue."))
    assert shares.tolist() == [[pytest.approx(1 / 3), 0]]
    assert PLACED < 1 / 3


def test_numbers_and_names_are_sought_in_the_window_then_in_the_document() -> None:
    said = "In Rome and Paris 1500 birds met 42 dogs and 7 cats, said NASA and the Cat."
    found = values(said, WINDOW, document=DOCUMENT)
    assert (found["numbers_new"], found["numbers_unseen"]) == (pytest.approx(1 / 3), pytest.approx(2 / 3))
    # Rome, Paris, NASA and Cat: the window has the cat, the document Rome and Paris.
    assert (found["names_new"], found["names_unseen"]) == (pytest.approx(1 / 4), pytest.approx(2 / 4))
    asked = values(said, WINDOW, document=DOCUMENT, query="What did NASA do at 7?")
    assert (asked["numbers_new"], asked["names_new"]) == (0, 0), "what was asked is no invention"
    assert values("The cat sat.", WINDOW)["numbers_new"] is None


def test_numbers_and_names_of_a_text() -> None:
    assert numbers_of("1,500 and 1500, 3.5 km, 2023年, ١٢, 1,5") == {"1500", "3.5", "2023", "12", "1,5"}
    assert names_of("Birds flew to Rome. NASA saw GPT4. He met O'Neill; I did not. 北京") == {
        *("rome", "nasa", "gpt4", "neill")
    }
    assert names_of("birds flew to rome") == set()


def test_what_an_answer_lacks_is_none_and_never_zero() -> None:
    empty = values("")
    assert empty["words"] == 0
    assert {name for name, value in empty.items() if value is not None} == {"words"}
    assert values("Two words.")["copied"] is None
    assert values("", finish_reason="length")["stopped"] == 1
    assert values("", finish_reason="stop")["stopped"] == 0


def test_words_of_any_script_are_compared() -> None:
    found = values("河流从山上流下来", "河流从山上流下来。水很冷。")
    assert (found["copied"], found["coverage"]) == (1, 1)
    assert values("ДЕРЕВЬЯ РАСТУТ у реки", "Деревья растут у реки.")["copied"] == 1


def test_an_answer_without_a_window_has_length_and_repetition_alone() -> None:
    [found] = Diagnostics().score([Item(fingerprint="x", prediction="a b c d a b c d", finish_reason="stop")])
    assert {name: value for name, value in found.items() if value is not None} == {
        "repeated": pytest.approx(0.2),
        "words": 8,
        "stopped": 0,
    }
