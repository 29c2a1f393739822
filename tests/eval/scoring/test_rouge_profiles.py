"""ROUGE equals the packages that the profiles follow, on real and on random text, and values known by hand."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import punkt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge import Rouge
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from eval.metrics.rouge import rouge_words, score_sentences, sentence_spans, split_sentences
from eval.metrics.rouge_lcs import SentenceBits
from eval.metrics.unicode_text import unicode_sentences, unicode_words
from eval.scoring.profiles import PROFILES, headline_score, score_prediction
from tasks import TASKS, LoadRequest
from tasks.base import DataError
from tests.helpers.properties import tries

ROOT = Path(__file__).resolve().parents[3]
TOLERANCE = 1e-9
METRICS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
# HELMET's take the better of an answer and its answer line; tests/tasks/ has their values.
ROUGE = [
    name for name, profile in PROFILES.items() if profile.use_stemmer is not None and not name.startswith("helmet_")
]
Pair = tuple[str, str]


# The reference packages, called as the scripts that the profiles follow call them, with sentences from our splitter.


def joined(text: str) -> str:
    return "\n".join(punkt.sent_tokenize(text.strip()))


def by_rouge_score(pair: Pair, use_stemmer: bool) -> dict[str, float]:
    prediction, reference = map(joined, pair)
    scores = RougeScorer(list(METRICS), use_stemmer=use_stemmer).score(reference, prediction)
    return {metric: float(score.fmeasure) for metric, score in scores.items()}


def by_summarization_script(pair: Pair) -> dict[str, float]:
    return by_rouge_score(pair, use_stemmer=True)


def by_scrolls(pair: Pair) -> dict[str, float]:
    return by_rouge_score(pair, use_stemmer=False)


def by_longbench(pair: Pair) -> dict[str, float]:
    prediction, reference = pair
    try:
        scores = Rouge().get_scores([prediction], [reference], avg=True)
    except ValueError:  # a text without a sentence
        return {"rougeL": 0.0}
    return {"rougeL": scores["rouge-l"]["f"]}


class Tokenizer:
    tokenize = staticmethod(unicode_words)


def by_rouge_score_in_unicode(pair: Pair) -> dict[str, float]:
    prediction, reference = ("\n".join(unicode_sentences(text)) for text in pair)
    scores = RougeScorer(list(METRICS), tokenizer=Tokenizer()).score(reference, prediction)
    return {metric: float(score.fmeasure) for metric, score in scores.items()}


REFERENCE_PACKAGES: dict[str, Callable[[Pair], dict[str, float]]] = {
    "hf": by_summarization_script,
    "scrolls": by_scrolls,
    "longbench": by_longbench,
    "unicode": by_rouge_score_in_unicode,
}


def check_parity(profile: str, pairs: list[Pair]) -> None:
    ours = [score_prediction(profile, prediction, [reference]) for prediction, reference in pairs]
    theirs = [REFERENCE_PACKAGES[profile](pair) for pair in pairs]
    for pair, got, expected in zip(pairs, ours, theirs, strict=True):
        assert got == pytest.approx(expected, abs=TOLERANCE), pair
    for metric in PROFILES[profile].metrics:
        means = [sum(score[metric] for score in scores) / len(pairs) for scores in (ours, theirs)]
        assert means[0] == pytest.approx(means[1], abs=TOLERANCE)


# Real text


@cache
def real_pairs(splits: tuple[str, ...]) -> tuple[Pair, ...]:
    """Return four pairs a paper, of 250 in all: its abstract, or a sentence about it, with parts of the paper."""
    try:
        papers = [e for split in splits for e in examples("aclsum", split)]
        aspects = [e for split in splits for e in examples("aclsum_aspects", split)]
    except DataError as error:
        pytest.skip(str(error))
    pairs = []
    for paper, aspect in zip(papers, aspects[::3], strict=True):
        words = paper.context.split()
        abstract = " ".join(paper.references[0].split()[:50])
        middle = len(words) // 2
        parts = [" ".join(words[start : start + 40]) for start in (0, middle, len(words) - 40)]
        pairs += [(parts[0], abstract), (parts[1], abstract), (parts[2], aspect.references[0])]
        pairs.append((aspect.references[0], abstract))
    return tuple(pairs)


def examples(task: str, split: str) -> Iterator[Any]:
    yield from TASKS[task].load(LoadRequest(split=split)).examples


@pytest.mark.parametrize("profile", ROUGE)
@pytest.mark.parametrize(
    ("splits", "least"),
    [
        (("validation",), 200),
        pytest.param(("train", "validation", "test"), 1000, marks=pytest.mark.nightly),
    ],
    ids=["one split", "all"],
)
def test_real_text_equals_the_reference_package(splits: tuple[str, ...], least: int, profile: str) -> None:
    pairs = list(real_pairs(splits))
    assert len(pairs) >= least
    check_parity(profile, pairs)


@pytest.mark.parametrize("profile", ROUGE)
def test_meetings_equal_the_reference_package(profile: str) -> None:
    data = ROOT.parent / "shared" / "data" / "qmsum" / "val.jsonl"
    if not data.exists():
        pytest.skip(f"no QMSum file at {data}")
    loaded = TASKS["qmsum"].load(LoadRequest(split="validation", data=data, limit=60))
    turns = [(" ".join(e.context.split()[-120:]), e.references[0]) for e in loaded.examples]
    check_parity(profile, turns)


# Random text

SCRIPTS = {
    "words": [
        "The",
        "cats",
        "were",
        "running",
        "quickly",
        "and",
        "nobody",
        "knew",
        "why",
        "they",
        "run",
        "or",
        "ran",
        "generalizations",
        "relational",
    ],
    "few words": ["aa", "bb"],
    "repeated": ["same"],
    "letters": list("abcdefgh"),
    "Unicode": ["Zürich", "naïve", "K", "İstanbul", "ſo", "日本語", "Ω", "ẞ", "e\u0301", "\U0001f600", "١٢", "x²"],
    "marks": [".", "!", "?", "...", ". . .", "--", '"', "”", ")", "'s", "3.5", "e.g.", "Dr.", "§"],
    "spaces": ["a.", "b", "\n", "\t", "\u00a0", "\u2028", "\x1c", "\r\n"],
}
JOINTS = {"spaces": " ", "nothing": "", "newlines": "\n", "stops": ". "}


def random_text(rng: random.Random) -> str:
    vocabulary = [word for name in rng.sample(list(SCRIPTS), rng.randint(1, 2)) for word in SCRIPTS[name]]
    joints = rng.choices(list(JOINTS.values()), weights=[rng.random() for _ in JOINTS], k=3)
    length = rng.choice([0, 1, 2, 10, 40, 70])
    return "".join(rng.choice(vocabulary) + rng.choice(joints) for _ in range(length))


@pytest.mark.parametrize("profile", ROUGE)
@pytest.mark.parametrize("count", [300, pytest.param(1000, marks=pytest.mark.nightly)])
def test_random_text_equals_the_reference_package(count: int, profile: str) -> None:
    rng = random.Random(20221)
    check_parity(profile, [(random_text(rng), random_text(rng)) for _ in range(count)])


@pytest.mark.parametrize("profile", ROUGE)
def test_texts_without_words_equal_the_reference_package(profile: str) -> None:
    texts = ["", " ", ".", "...", ". ", " . ", "?!", "\n", "\n\n.", "日本語", "a", "a.", "a. ", "."]
    check_parity(profile, list(itertools.product(texts, texts)))


def plain_lcs(reference: Sequence[str], prediction: Sequence[str]) -> int:
    """Return the length of the longest common subsequence, cell by cell.

    Source: `_lcs_table` in `rouge/rouge_scorer.py` of google-research.
    """
    table = [[0] * (len(prediction) + 1) for _ in range(len(reference) + 1)]
    for i, ours in enumerate(reference, 1):
        for j, theirs in enumerate(prediction, 1):
            table[i][j] = table[i - 1][j - 1] + 1 if ours == theirs else max(table[i - 1][j], table[i][j - 1])
    return table[-1][-1]


def test_the_bits_count_what_the_plain_table_does() -> None:
    rng = random.Random(7)
    for _ in range(300):
        letters = "abcdefgh"[: rng.randint(1, 8)]
        reference, prediction = (rng.choices(letters, k=rng.randint(0, 70)) for _ in range(2))
        middle = len(reference) // 2
        bits = SentenceBits([reference[:middle], reference[middle:]])
        assert bits.lcs_length(prediction) == plain_lcs(reference, prediction)


@pytest.fixture
def deep_recursion() -> Iterator[None]:
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(100_000)
    yield
    sys.setrecursionlimit(limit)


@pytest.mark.usefixtures("deep_recursion")
@pytest.mark.parametrize("profile", ROUGE)
@pytest.mark.parametrize("stops", [0.0, 0.05])
def test_5000_words_equal_the_reference_package(profile: str, stops: float) -> None:
    rng = random.Random(5000)
    vocabulary = [f"word{i}" for i in range(200)]

    def text(num_words: int) -> str:
        return " ".join(rng.choice(vocabulary) + ". It"[: 4 * (rng.random() < stops)] for _ in range(num_words))

    check_parity(profile, [(text(5000), text(50)), (text(50), text(5000))])


def test_longbench_gives_the_value_where_the_package_runs_out_of_stack() -> None:
    pair = ("cat " * 1200, "dog " * 300 + "cat")
    with pytest.raises(RecursionError):
        Rouge().get_scores([pair[0]], [pair[1]], avg=True)
    # One word in one, two in the other, one shared: precision 1, recall 1/2.
    assert score_prediction("longbench", pair[0], [pair[1]])["rougeL"] == pytest.approx(2 / 3, abs=1e-8)


# Several references


@pytest.mark.parametrize("profile", ROUGE)
def test_several_references_count_by_the_best_metric_by_metric(profile: str) -> None:
    rng = random.Random(3)
    for _ in range(100):
        prediction, *references = [random_text(rng) for _ in range(4)]
        each = [REFERENCE_PACKAGES[profile]((prediction, reference)) for reference in references]
        best = {metric: max(scores[metric] for scores in each) for metric in PROFILES[profile].metrics}
        assert score_prediction(profile, prediction, references) == pytest.approx(best, abs=TOLERANCE)


def test_each_metric_may_take_another_reference() -> None:
    # rouge1 is 1 with the first reference, rouge2 and rougeL are higher with the second.
    scores = score_prediction("scrolls", "aa bb cc dd", ["dd cc bb aa", "aa bb xx yy"])
    assert scores["rouge1"] == 1
    assert scores["rouge2"] == pytest.approx(1 / 3)
    assert scores["rougeL"] == pytest.approx(1 / 2)


# Values known by hand


def test_value_in_the_scrolls_evaluator() -> None:
    # The example in the docstring of `metrics/scrolls.py` in the hub's data set tau/scrolls, there times 100:
    # 72.2222, 33.3333, 72.2222, 72.2222, geometric mean 55.8136.
    predictions = ["exact match example", "hello there", "general kenobi"]
    references = [["exact match example"], ["hello", "hi there"], ["commander kenobi"]]
    scores = [score_prediction("scrolls", p, r) for p, r in zip(predictions, references, strict=True)]
    means = {metric: sum(score[metric] for score in scores) / 3 for metric in METRICS}
    assert means == pytest.approx({"rouge1": 13 / 18, "rouge2": 1 / 3, "rougeL": 13 / 18, "rougeLsum": 13 / 18})
    assert headline_score("scrolls", means) == pytest.approx(0.558136, abs=5e-7)
    assert headline_score("hf", means) == means["rougeLsum"]


def test_values_in_the_rouge_paper() -> None:
    # Lin, "ROUGE: A Package for Automatic Evaluation of Summaries" (2004), section 3.1: S1 is the reference, S2 has
    # three of its four words in order, S3 two.
    s1, s2, s3 = "police killed the gunman", "police kill the gunman", "the gunman kill police"
    assert score_prediction("scrolls", s2, [s1])["rougeL"] == pytest.approx(3 / 4)
    assert score_prediction("scrolls", s3, [s1])["rougeL"] == pytest.approx(2 / 4)
    # With stems, "killed" is "kill".
    assert score_prediction("hf", s2, [s1])["rougeL"] == 1
    # Section 3.2: the union is w1 w2 w3 w5, 4 of 5 words of the reference and 4 of 10 of the candidate.
    sentences = ["w1 w2 w6 w7 w8", "w1 w3 w8 w9 w5"]
    scores = score_sentences(sentences, ["w1 w2 w3 w4 w5"], use_stemmer=False)
    assert scores["rougeLsum"] == pytest.approx(2 * 0.8 * 0.4 / (0.8 + 0.4))
    # LongBench's package counts different words: 4 of 5, and 4 of 8.
    longbench = score_prediction("longbench", ". ".join(sentences), ["w1 w2 w3 w4 w5"])
    assert longbench["rougeL"] == pytest.approx(2 * 0.8 * 0.5 / (0.8 + 0.5), abs=1e-8)


def test_counts_by_hand() -> None:
    # Unigrams aa bb cc against aa bb dd: 2 of 3 both ways; bigrams 1 of 2.
    scores = score_prediction("scrolls", "aa bb cc", ["aa bb dd"])
    assert scores["rouge1"] == pytest.approx(2 / 3)
    assert scores["rouge2"] == pytest.approx(1 / 2)
    # A word counts as often as both texts have it: 2 of 3 and 2 of 2.
    assert score_prediction("scrolls", "aa aa aa", ["aa aa"])["rouge1"] == pytest.approx(0.8)


def test_which_common_subsequence_counts_is_that_of_each_package() -> None:
    # "aa bb" and "bb aa" share aa or bb. rouge_score takes aa; with the sentence "bb" the union has both words, so 2 of
    # 2 and 2 of 3. rouge takes bb, and the union has one of two different words both ways.
    assert score_sentences(["bb aa", "bb"], ["aa bb"], use_stemmer=False)["rougeLsum"] == pytest.approx(0.8)
    assert score_prediction("longbench", "bb aa. bb", ["aa bb"])["rougeL"] == pytest.approx(0.5, abs=1e-8)


def test_sentences_make_rougelsum_another_number_than_rougel() -> None:
    scores = score_prediction("scrolls", "Dogs bark. Cats meow.", ["Cats meow. Dogs bark."])
    assert scores["rougeL"] == pytest.approx(0.5)
    assert scores["rougeLsum"] == pytest.approx(1.0)


def test_longbench_keeps_case_and_marks_and_breaks_at_every_full_stop() -> None:
    assert score_prediction("longbench", "Cats", ["cats"])["rougeL"] == 0
    assert score_prediction("longbench", "cats,", ["cats"])["rougeL"] == 0
    assert score_prediction("longbench", "3.5", ["5 3"])["rougeL"] == pytest.approx(1, abs=1e-8)
    # Space after the last full stop is a word of its own, here the only one that both have.
    assert score_prediction("longbench", "a. ", ["b. "])["rougeL"] == pytest.approx(0.5, abs=1e-8)


@pytest.mark.parametrize("profile", ROUGE)
def test_empty_prediction_scores_zero(profile: str) -> None:
    assert score_prediction(profile, "", ["something"]) == dict.fromkeys(PROFILES[profile].metrics, 0.0)


# Words and sentences


def test_words_by_hand() -> None:
    # Porter would make "wa" and "hi" of "was" and "his"; words of three letters stay as they are.
    text = "It was his: RUNNING in Zürich, 3.5 km\u212a"
    assert rouge_words(text, use_stemmer=True) == ["it", "was", "his", "run", "in", "z", "rich", "3", "5", "kmk"]
    assert rouge_words(text, use_stemmer=False)[3] == "running"


@tries(200)
@given(st.text(max_size=60), st.booleans())
def test_words_are_those_of_rouge_score(text: str, use_stemmer: bool) -> None:
    assert rouge_words(text, use_stemmer=use_stemmer) == DefaultTokenizer(use_stemmer).tokenize(text)


@tries(200)
@given(st.text("aeiouydglnst", min_size=1, max_size=15))
def test_stems_are_those_of_rouge_score(word: str) -> None:
    assert rouge_words(word, use_stemmer=True) == DefaultTokenizer(use_stemmer=True).tokenize(word)


@tries(200)
@given(st.text("aB. \n!?\")'1\u00a0\x1c", max_size=60))
def test_sentences_hold_the_whole_text_in_order(text: str) -> None:
    spans = sentence_spans(text)
    bounds = [0, *itertools.chain.from_iterable(spans), len(text)]
    assert bounds == sorted(bounds)
    assert all(text[start:end] == text[start:end].strip() != "" for start, end in spans)
    assert not "".join(text[end:start] for end, start in zip(bounds[::2], bounds[1::2], strict=True)).strip()


@tries(100)
@given(st.text("ab .\n", max_size=40), st.text("ab .\n", max_size=40))
def test_scores_are_fractions_and_one_for_the_same_words(first: str, second: str) -> None:
    for profile in ROUGE:
        assert all(0 <= score <= 1 for score in score_prediction(profile, first, [second]).values())
    if rouge_words(first, use_stemmer=False):
        same = score_prediction("scrolls", first, [second, first])
        assert same["rouge1"] == same["rougeL"] == same["rougeLsum"] == 1


def test_sentences_by_hand() -> None:
    text = "  Dr. Smith paid 3.5 euros.  Nobody knew why!\n\n(Really.) Bye "
    assert split_sentences(text) == ["Dr. Smith paid 3.5 euros.", "Nobody knew why!", "(Really.)", "Bye"]
    assert sentence_spans(text)[0] == (2, 27)
    assert split_sentences(" \n") == []


def test_sentences_that_are_lines_already_score_the_same() -> None:
    for prediction, reference in real_pairs(("validation",))[:100]:
        lines = ["\n".join(split_sentences(text)) for text in (prediction, reference)]
        assert score_prediction("hf", lines[0], [lines[1]]) == score_prediction("hf", prediction, [reference])


# `evaluate`


METRIC_SCRIPT = """
import json, socket, sys

def refuse(*arguments):
    raise AssertionError("the network was asked for")

socket.socket.connect = socket.getaddrinfo = refuse

sys.modules["transformers.pipelines"] = None  # evaluate would import it, and torch with it, for what is not used
import evaluate

rows = json.load(sys.stdin)
out = {}
for profile in (None, "hf", "scrolls", "longbench", "f1", "exact_match", "unicode", "chrf", "f1_unicode"):
    metric = evaluate.load("eval/rouge_metric.py", profile)
    lists = metric.compute(predictions=rows["predictions"], references=rows["references"], use_aggregator=False)
    first = metric.compute(predictions=rows["predictions"], references=[texts[0] for texts in rows["references"]])
    out[profile or "default"] = [metric.compute(**rows), lists, first]
errors = []
for profile, inputs in (("rouge", {}), ("hf", {"predictions": ["a"], "references": [[]]}),
                        ("hf", {"predictions": ["a"], "references": ["a"], "use_stemmer": False})):
    try:
        evaluate.load("eval/rouge_metric.py", profile).compute(**inputs)
    except ValueError as error:
        errors.append(str(error))
print(json.dumps([out, errors]))
"""


def test_evaluate_loads_the_profiles_from_the_checkout_without_network(tmp_path: Path) -> None:

    if importlib.util.find_spec("evaluate") is None:
        pytest.skip("evaluate is not installed")
    rows = {
        "predictions": ["The cats were running. Nobody knew why.", "hello there", ""],
        "references": [["A cat runs. Nobody knows why it was running.", "Cats."], ["hi there", "hello"], ["a", "b"]],
    }
    offline = {"HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    folders = {"HF_HOME": str(tmp_path / "home"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(
        [sys.executable, "-c", METRIC_SCRIPT],
        input=json.dumps(rows),
        env={**os.environ, **offline, **folders},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    out, errors = json.loads(done.stdout)
    for profile, (means, lists, first) in out.items():
        name = "hf" if profile == "default" else profile
        scores = [score_prediction(name, *row) for row in zip(rows["predictions"], rows["references"], strict=True)]
        assert lists == {metric: [score[metric] for score in scores] for metric in PROFILES[name].metrics}
        expected = {metric: sum(values) / len(values) for metric, values in lists.items()}
        if name == "scrolls":
            expected["geometric"] = headline_score(name, expected)
        assert means == pytest.approx(expected, abs=TOLERANCE)
        last = PROFILES[name].headline[-1]
        assert first[last] <= means[last]
    assert errors[0] == f"no profile 'rouge'; choose from: {', '.join(PROFILES)}"
    assert errors[1] == "example 1 has no reference; give each at least one"
    assert "leave it out" in errors[2]
