"""Texts that need no model: what they say is known by hand, and the oracle never falls as the window grows."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.stem.porter import PorterStemmer
from rouge_score.tokenize import tokenize

from eval.metrics.answers import token_f1
from eval.scoring.baselines import (
    Baseline,
    CommonAnswers,
    PreparedDocument,
    describe_objective,
    document_baselines,
    prepare_document,
    visible_share,
    word_budget,
)
from eval.scoring.profiles import PROFILES

STEMMER = PorterStemmer()
SPLIT_WORDS: dict[str, Callable[[str], list[str]]] = {
    "hf": lambda text: tokenize(text, STEMMER),
    "scrolls": lambda text: tokenize(text, None),
    "longbench": lambda text: text.replace(".", " ").split(),
}
POLICIES: dict[str, Callable[[int, int], list[tuple[int, int]]]] = {
    "head": lambda length, kept: [(0, kept)],
    "middle": lambda length, kept: [(0, kept - kept // 2), (length - kept // 2, length)],
    "tail": lambda length, kept: [(length - kept, length)],
}


def prepare(text: str, profile: str) -> PreparedDocument:
    objective = PROFILES[profile].objective
    assert objective is not None
    return prepare_document(text, objective)


def rows_of(
    text: str,
    window: Sequence[tuple[int, int]] | None = None,
    references: Sequence[str] = ("nothing alike",),
    query: str | None = None,
    budget: int = 5,
    profile: str = "hf",
) -> dict[str, Baseline]:
    windows = {100: [(0, len(text))] if window is None else window}
    return {
        row.system: row for row in document_baselines(prepare(text, profile), windows, references, query, budget)[100]
    }


def oracle_of(*arguments: object, **options: object) -> Baseline:
    return rows_of(*arguments, **options)["visible_oracle"]  # type: ignore[arg-type]


def slow_objective(sentences: Sequence[str], reference: str, profile: str) -> float:
    """Return ROUGE-1 F + ROUGE-2 F as its definition says; the reference has a sentence a line."""

    def ngrams(texts: Sequence[str], size: int) -> Counter[tuple[str, ...]]:
        words = [SPLIT_WORDS[profile](text) for text in texts]
        return Counter(tuple(w[i : i + size]) for w in words for i in range(len(w) - size + 1))

    total = 0.0
    for size in (1, 2):
        ours, theirs = ngrams(sentences, size), ngrams(reference.split("\n"), size)
        matches = (ours & theirs).total()
        if matches:
            precision, recall = matches / ours.total(), matches / theirs.total()
            total += 2 * precision * recall / (precision + recall)
    return total


def test_lead_and_tail_are_the_outermost_words_shown() -> None:
    text = "One two,  three\nfour five six. Seven eight"
    rows = rows_of(text, budget=3)
    assert rows["lead"].text == "One two,  three"
    assert rows["tail"].text == "six. Seven eight"
    rows = rows_of(text, [(4, 30)], budget=3)
    assert rows["lead"].text == "two,  three\nfour"
    assert rows["tail"].text == "four five six."
    assert rows_of(text, budget=8)["lead"].text == rows_of(text, budget=8)["tail"].text == text


def test_lead_and_tail_go_on_behind_a_gap() -> None:
    text = "one two three four five six"
    window = [(0, 7), (19, 27)]  # one two | five six
    assert rows_of(text, window, budget=2)["lead"].text == "one two"
    assert rows_of(text, window, budget=3)["lead"].text == "one two\nfive"
    assert rows_of(text, window, budget=3)["tail"].text == "two\nfive six"
    assert rows_of(text, window, budget=9)["tail"].text == "one two\nfive six"


def test_budget_counts_words_of_any_script() -> None:
    text = "Größe\u3000数える été\u00a0naïve 🙂 end"
    assert rows_of(text, budget=5)["lead"].text == "Größe\u3000数える été"
    assert rows_of(text, budget=3)["lead"].text == "Größe\u3000数え", "a character a word in Japanese"
    assert rows_of(text, budget=3)["tail"].text == "naïve 🙂 end"


@pytest.mark.parametrize("query", [None, "", " \n"])
def test_no_echo_without_a_query(query: str | None) -> None:
    assert list(rows_of("Some text.", query=query)) == ["lead", "tail", "visible_oracle"]


def test_echo_is_the_query_whatever_the_budget() -> None:
    assert rows_of("Some text.", query="What was said?", budget=1)["query_echo"].text == "What was said?"


def test_word_budget_is_the_median_of_all_references() -> None:
    assert word_budget(["a b", "a b c", "a b c d e f g"]) == 3
    assert word_budget(["a", "a b"]) == 2
    assert word_budget([""]) == 1


def test_visible_share_counts_a_character_once() -> None:
    assert visible_share(None, [(0, 9)]) is None
    assert visible_share([], [(0, 9)]) is None
    assert visible_share([[5, 5]], [(0, 9)]) is None
    assert visible_share([[0, 10], [5, 20]], [(0, 5)]) == 5 / 20
    # 0-10 and 30-50 are wanted; the middle, 8-40, was cut.
    assert visible_share([[40, 50], [0, 10], [30, 45]], [[0, 8], [40, 60]]) == (8 + 10) / 30
    assert visible_share([[0, 10]], []) == 0
    assert visible_share([[0, 10]], [(0, 6), (4, 30)]) == 1


def test_oracle_finds_the_sentences_of_the_reference_in_document_order() -> None:
    text = "Cats sleep all day. Dogs bark loudly. Fish swim in circles. Birds sing at dawn."
    oracle = oracle_of(text, references=["Birds sang at dawn. Dogs barked loudly."], budget=7, profile="scrolls")
    assert oracle.text == "Dogs bark loudly.\nBirds sing at dawn."
    assert [text[start:end] for start, end in oracle.sentences] == ["Dogs bark loudly.", "Birds sing at dawn."]
    # 5 of 7 words; at dawn is the only one of 5 bigrams.
    assert oracle.objective == pytest.approx(5 / 7 + 1 / 5)
    # Stems make all words equal but "sang".
    oracle = oracle_of(text, references=["Birds sang at dawn. Dogs barked loudly."], budget=7, profile="hf")
    assert oracle.objective == pytest.approx(6 / 7 + 3 / 5)


def test_oracle_spends_no_more_than_the_budget() -> None:
    text = "Aa bb cc dd. Ee ff."
    assert oracle_of(text, references=["aa bb cc dd. ee ff."], budget=6).text == "Aa bb cc dd.\nEe ff."
    assert oracle_of(text, references=["aa bb cc dd. ee ff."], budget=5).text == "Aa bb cc dd."
    assert oracle_of(text, references=["aa bb cc dd. ee ff."], budget=3).text == "Ee ff."
    assert oracle_of(text, references=["aa bb cc dd. ee ff."], budget=1).text == ""


def test_oracle_leaves_words_unspent_that_would_not_help() -> None:
    text = "Dogs bark loudly. Cats sleep all day."
    assert oracle_of(text, references=["Dogs bark loudly."], budget=50).text == "Dogs bark loudly."


def test_only_whole_sentences_count_as_shown() -> None:
    text = "Cats sleep all day. Dogs bark loudly. Birds sing at dawn."
    start = text.index("Dogs")
    end = start + len("Dogs bark loudly.")
    for window, expected in [
        ([(0, end)], "Dogs bark loudly."),
        ([(start, len(text))], "Dogs bark loudly."),
        ([(0, end - 1)], ""),
        ([(start + 1, len(text))], ""),
        ([(0, start + 5), (start + 9, len(text))], ""),  # the cut runs through it
        ([(0, start + 5), (start + 5, len(text))], "Dogs bark loudly."),  # nothing lies between
    ]:
        assert oracle_of(text, window, references=["dogs bark loudly"]).text == expected, window


@pytest.mark.parametrize("text", ["", " \n ", "...", "Dogs bark loudly."])
@pytest.mark.parametrize("window", [[], [(0, 3)], [(2, 2)]])
def test_no_sentence_shown_gives_an_empty_text(text: str, window: list[tuple[int, int]]) -> None:
    oracle = oracle_of(text, window, references=["dogs bark loudly"])
    assert (oracle.text, oracle.sentences, oracle.objective) == ("", (), 0.0)


@pytest.mark.parametrize("reference", ["", "?!", "unheard of"])
def test_nothing_in_common_gives_an_empty_text(reference: str) -> None:
    assert oracle_of("Dogs bark loudly.", references=[reference]).text == ""


def test_line_breaks_end_sentences() -> None:
    text = "Barking dogs\nDogs bark loudly at night.\nProfessor: So they do"
    assert oracle_of(text, references=["Dogs bark loudly at night."]).text == "Dogs bark loudly at night."
    assert oracle_of(text, references=["professor: so they do"]).text == "Professor: So they do"


def test_spans_are_characters() -> None:
    text = "🙂 Äpfel sind süß. Zoë sah naïve Gäste."
    oracle = oracle_of(text, references=["Zoë sah naïve Gäste."], profile="longbench")
    assert [text[start:end] for start, end in oracle.sentences] == ["Zoë sah naïve Gäste."]
    assert oracle.objective == pytest.approx(2)
    # longbench keeps the case.
    assert oracle_of(text, references=["zoë sah naïve gäste."], profile="longbench").objective == pytest.approx(
        4 / 4 * 0.5 + 1 / 3
    )


def test_repeated_words_match_as_often_as_the_reference_has_them() -> None:
    oracle = oracle_of("Go go go go.", references=["go go"])
    assert oracle.objective == pytest.approx(2 * 2 / (4 + 2) + 2 * 1 / (3 + 1))


def test_the_reference_that_fits_best_counts() -> None:
    text = "Cats sleep all day. Dogs bark loudly. Birds sing at dawn."
    references = ["Cats sleep some days.", "Birds sing at dawn.", "Dogs eat."]
    oracle = oracle_of(text, references=references)
    assert oracle.text == "Birds sing at dawn."
    assert oracle.objective == pytest.approx(2)


def test_a_sentence_is_replaced_by_a_better_one() -> None:
    # The first of three equally good sentences is taken; only without it do the other two fit.
    text = "Cc dd ee ff.\nAa bb cc dd.\nEe ff gg hh."
    assert oracle_of(text, references=["aa bb cc dd ee ff gg hh"], budget=8).text == "Aa bb cc dd.\nEe ff gg hh."


def test_a_choice_that_greed_would_lose_is_kept_as_the_window_grows() -> None:
    reference = "aa bb cc\ndd ee ff"
    text = "Aa bb cc.\nDd ee ff.\nAa bb cc dd."
    # The longer sentence is the best single one, and leaves no room for two more.
    assert oracle_of(text, references=[reference], budget=6).text == "Aa bb cc dd."
    document = prepare(text, "hf")
    rows = document_baselines(document, {20: [(0, len(text))], 10: [(0, 20)]}, [reference], None, 6)
    assert list(rows) == [10, 20]
    assert rows[10][-1] == rows[20][-1]
    assert rows[20][-1].text == "Aa bb cc.\nDd ee ff."


WORDS = ["alpha", "beta", "gammas", "deltas", "running", "runs", "zoë", "7"]
SENTENCES = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=6), min_size=1, max_size=12)


def lines(sentences: Sequence[Sequence[str]]) -> str:
    return "\n".join(" ".join(words) for words in sentences)


@settings(max_examples=150, deadline=None)
@given(
    sentences=SENTENCES,
    references=st.lists(SENTENCES.map(lines), min_size=1, max_size=3),
    cuts=st.lists(st.floats(0, 1), min_size=1, max_size=5),
    policy=st.sampled_from(sorted(POLICIES)),
    profile=st.sampled_from(sorted(SPLIT_WORDS)),
    budget=st.integers(1, 20),
)
def test_oracle_never_falls_as_the_window_grows(
    sentences: list[list[str]], references: list[str], cuts: list[float], policy: str, profile: str, budget: int
) -> None:
    text = lines(sentences)
    windows = {kept: POLICIES[policy](len(text), kept) for kept in {int(cut * len(text)) for cut in cuts}}
    rows = document_baselines(prepare(text, profile), windows, references, None, budget)
    reached = 0.0
    for kept in sorted(windows):
        oracle = rows[kept][-1]
        assert oracle.objective is not None
        assert oracle.objective >= reached
        reached = oracle.objective
        chosen = [text[start:end] for start, end in oracle.sentences]
        assert oracle.objective == pytest.approx(max(slow_objective(chosen, r, profile) for r in references), abs=1e-12)
        assert oracle.text == "\n".join(chosen)
        assert len(oracle.text.split()) <= budget
        assert oracle.sentences == tuple(sorted(set(oracle.sentences)))
        # A window that was not cut may come in two ranges that touch.
        shown = {place for a, b in windows[kept] for place in range(a, b)}
        assert all(shown.issuperset(range(start, end)) for start, end in oracle.sentences)


@settings(max_examples=60, deadline=None)
@given(sentences=SENTENCES, reference=SENTENCES.map(lines), budget=st.integers(1, 20))
def test_no_sentence_added_or_replaced_improves_the_oracle(
    sentences: list[list[str]], reference: str, budget: int
) -> None:
    oracle = oracle_of(lines(sentences), references=[reference], budget=budget)
    chosen = oracle.text.split("\n") if oracle.text else []
    others = list((Counter(lines(sentences).split("\n")) - Counter(chosen)).elements())
    kept = [chosen, *([*chosen[:i], *chosen[i + 1 :]] for i in range(len(chosen)))]
    for rest, new in itertools.product(kept, others):
        if len(" ".join([*rest, new]).split()) <= budget:
            assert slow_objective([*rest, new], reference, "hf") <= (oracle.objective or 0) + 1e-12


def test_oracle_beats_lead_and_tail_where_the_reference_is_about_the_document() -> None:
    rng = random.Random(3)
    vocabulary = [f"word{i}" for i in range(200)]
    for _ in range(20):
        sentences = [[rng.choice(vocabulary) for _ in range(rng.randint(4, 20))] for _ in range(60)]
        # Every second word of some sentences, so that nothing can be copied whole.
        reference = lines([sentence[::2] for sentence in rng.sample(sentences, 6)])
        rows = rows_of(lines(sentences), references=[reference], budget=len(reference.split()))
        reached = rows["visible_oracle"].objective or 0
        assert reached == pytest.approx(slow_objective(rows["visible_oracle"].text.split("\n"), reference, "hf"))
        for system in ("lead", "tail"):
            assert reached > slow_objective(rows[system].text.split("\n"), reference, "hf") + 0.1


def test_queries_about_one_document_get_what_they_would_get_alone() -> None:
    text = "Cats sleep all day. Dogs bark loudly. Birds sing at dawn. Fish swim in circles."
    windows = {5: [(0, 40)], 9: [(0, len(text))]}
    shared = prepare(text, "scrolls")
    for reference in ("Dogs bark.", "Birds sing and fish swim.", "Cats sleep all day."):
        together = document_baselines(shared, windows, [reference], reference, 6)
        assert together == document_baselines(prepare(text, "scrolls"), windows, [reference], reference, 6)
        for maxlen, window in windows.items():
            lead, tail, *_ = document_baselines(shared, {maxlen: window}, [reference], reference, 6)[maxlen]
            assert together[maxlen][:2] == [lead, tail]


def test_the_objective_names_the_profile() -> None:
    assert "profile scrolls" in str(describe_objective("scrolls"))
    assert "F1 against the best reference, words as profile f1" in str(describe_objective("f1"))
    assert describe_objective("exact_match") is None


def test_the_oracle_of_answers_takes_whole_sentences_for_their_f1() -> None:
    text = "It is known that cats sleep. The dogs bark at night, and loudly. Fish swim."
    oracle = oracle_of(text, references=["Dogs bark", "a bird"], profile="f1", budget=1)
    assert oracle.text == "The dogs bark at night, and loudly."
    assert oracle.objective == pytest.approx(token_f1(oracle.text, "Dogs bark"))
    both = oracle_of(text, references=["known cats sleep fish swim"], profile="f1", budget=1)
    assert both.text == "It is known that cats sleep.\nFish swim."
    assert both.objective == pytest.approx(token_f1(both.text, "known cats sleep fish swim"))


@settings(max_examples=60, deadline=None)
@given(sentences=SENTENCES, references=st.lists(SENTENCES.map(lines), min_size=1, max_size=3))
def test_the_oracle_of_answers_reaches_what_scoring_gives_it(sentences: list[list[str]], references: list[str]) -> None:
    oracle = oracle_of(lines(sentences), references=references, profile="f1")
    assert oracle.objective == pytest.approx(max(token_f1(oracle.text, reference) for reference in references))
    alone = max(token_f1(" ".join(words), reference) for words in sentences for reference in references)
    assert oracle.objective >= alone - 1e-12


def test_the_common_answer_is_what_most_examples_have() -> None:
    assert CommonAnswers([["Paris"], ["Rome", "the rome!", "ROME"], ["paris.", "Oslo"]]).of_all == "Paris"
    # Once an example, however often it says so; the first of those that are as common.
    assert CommonAnswers([["a b"], ["c", "C", "c."], ["d"]]).of_all == "a b"
    assert CommonAnswers([[""], ["", "x"], ["x y"]]).of_all == ""
