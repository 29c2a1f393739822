"""Short answers are scored as the evaluators of SCROLLS and LongBench score them, and values known by hand."""

from __future__ import annotations

import importlib.util
import random
import string
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pytest

from eval.metrics.answers import answer_words, exact_match, first_line, token_f1
from eval.scoring.profiles import PROFILES, headline, score_prediction
from tasks import TASKS, LoadRequest
from tasks.base import DataError

WORDS = ["the", "The", "a", "an", "An", "cat", "Cat's", "sat.", "on", "3.5", "e-mail", "Zoë", "naïve", "“so”", "İs"]
WORDS += ["ΟΔΟΣ", "ß", "日本", "—", "...", "$5", "there", "theatre", "\u00a0", "\t", "x\u2028y", "it's", ""]


def squad() -> ModuleType:
    """Return SQuAD's functions as another harness carries them."""
    found = importlib.util.find_spec("lm_eval")
    if found is None or found.origin is None:
        pytest.skip("lm_eval, which carries SQuAD's functions, is not installed")
    path = Path(found.origin).parent / "tasks" / "qasper" / "metrics.py"
    spec = importlib.util.spec_from_file_location("squad_metrics", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def random_pairs(num_pairs: int) -> list[tuple[str, str]]:
    rng = random.Random(5)

    def text() -> str:
        words = rng.choices(WORDS, k=rng.randint(0, 9))
        return rng.choice(["", " ", "\n"]) + " ".join(words) + rng.choice(["", ".", "?!", *string.punctuation])

    return [(text(), text()) for _ in range(num_pairs)]


def real_pairs() -> list[tuple[str, str]]:
    """Return sentences about papers with the first sentences of the same papers and of others."""
    try:
        examples = [
            example
            for split in ("train", "validation", "test")
            for example in TASKS["aclsum_aspects"].load(LoadRequest(split=split)).examples
        ]
    except DataError as error:
        pytest.skip(str(error))
    texts = [example.references[0] for example in examples]
    pairs = [(texts[index - 1], texts[index]) for index in range(len(texts))]
    return pairs + [(" ".join(example.context.split()[:12]), example.references[0]) for example in examples]


@pytest.mark.parametrize("pairs", [lambda: random_pairs(4_000), real_pairs], ids=["random", "real"])
def test_scores_equal_squads(pairs: Callable[[], list[tuple[str, str]]]) -> None:
    reference, found = squad(), pairs()
    assert len(found) >= 1_000
    for prediction, answer in found:
        assert token_f1(prediction, answer) == reference.f1_abstractive([prediction], [answer])
        same = reference.normalize_answer(prediction) == reference.normalize_answer(answer)
        assert exact_match(prediction, answer) == float(same)
        assert " ".join(answer_words(prediction)) == reference.normalize_answer(prediction)


# From the docstring of `metrics/scrolls.py` of the hub's data set tau/scrolls: percent, rounded to four digits.
PREDICTIONS = ["exact match example", "hello there", "general kenobi"]
REFERENCES = [["exact match example"], ["hello", "hi there"], ["commander kenobi"]]


@pytest.mark.parametrize(("profile", "expected"), [("f1", 72.2222), ("exact_match", 33.3333)])
def test_the_example_of_scrolls(profile: str, expected: float) -> None:
    scores = [score_prediction(profile, *pair) for pair in zip(PREDICTIONS, REFERENCES, strict=True)]
    mean = 100 * sum(score[headline(profile)] for score in scores) / len(scores)
    assert round(mean, 4) == expected


@pytest.mark.parametrize(
    ("prediction", "references", "f1", "match"),
    [
        # Worked out by hand from the normalization: lower case, no punctuation, no articles.
        ("The cat sat.", ["a cat sat"], 1, 1),
        ("cat cat", ["cat"], 2 / 3, 0),  # of two, one is shared: P 1/2, R 1
        ("sat cat", ["cat sat"], 1, 0),  # F1 knows no order
        ("theatre", ["atre"], 0, 0),  # an article is a word
        ("e-mail", ["email"], 1, 1),  # punctuation leaves no space
        ("3.5", ["35"], 1, 1),
        ("Zoë’s", ["Zoës"], 0, 0),  # only ASCII punctuation goes
        ("ÄPFEL", ["äpfel"], 1, 1),
        ("a\u00a0cat", ["cat"], 1, 1),
        # Empty, and empty after the normalization. The F1 of two empty texts is 0, where version 2.0 of SQuAD says 1.
        ("", ["cat"], 0, 0),
        ("", [""], 0, 1),
        ("The.", ["An"], 0, 1),
        ("the", ["cat"], 0, 0),
        # The best of several references, metric by metric, as for an id that a file of SCROLLS has several times.
        ("Yes", ["No", "yes", "Unanswerable"], 1, 1),
        ("the cat sat", ["sat cat", "cat sat down"], 1, 0),
        ("cat sat", ["cat", "cat", "dog"], 2 / 3, 0),
    ],
)
def test_values_known_by_hand(prediction: str, references: Sequence[str], f1: float, match: float) -> None:
    expected = {"f1": pytest.approx(f1), "exact_match": match}
    for profile in ("f1", "exact_match"):
        assert score_prediction(profile, prediction, references) == expected


def test_metrics_come_in_the_order_of_their_profile() -> None:
    for profile in ("f1", "exact_match"):
        assert list(score_prediction(profile, "a", ["b"])) == list(PROFILES[profile].metrics)
        assert headline(profile) == profile


def test_the_first_line_is_that_of_longbench() -> None:
    # `prediction.lstrip('\n').split('\n')[0]` in `eval.py` of THUDM/LongBench.
    for text in ("\n\nParis\nLondon", "Paris", "", "\n", " \nParis", "Paris\r\nLondon", "Paris\u2028London\nRome"):
        assert first_line(text) == text.lstrip("\n").split("\n")[0]
