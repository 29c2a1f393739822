"""Metric `support:MODEL`, against calls of a random classifier by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from eval.errors import UserError
from eval.metrics.base import Item, checked_scores
from eval.metrics.classifier import Classifier
from tests.helpers.tiny_models import save_tiny_encoder

NLI = ("contradiction", "neutral", "entailment")
WINDOW = "Rain fell. The river rose. Nobody saw it at night. Three bridges were gone. It was cold."
ANSWER = "A river rose. It was hot there."
WITHIN = 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_encoder(tmp_path_factory.mktemp("classifier"), labels=NLI)


@pytest.fixture(scope="module")
def metric(folder: Path) -> Classifier:
    return Classifier(str(folder))


def logits(folder: Path, part: str, sentence: str) -> torch.Tensor:
    """Return what transformers gives for one pair."""
    inputs = AutoTokenizer.from_pretrained(folder)(part, sentence, return_tensors="pt")
    with torch.no_grad():
        found: torch.Tensor = AutoModelForSequenceClassification.from_pretrained(folder)(**inputs).logits[0]
    return found


def test_the_best_part_of_the_window_counts_for_each_sentence(folder: Path, metric: Classifier) -> None:
    # A token is a byte: of the 64, 3 are special and 16 the longest sentence, so parts have 45.
    parts = ["Rain fell. The river rose.", "Nobody saw it at night.", "Three bridges were gone. It was cold."]
    sentences = ["A river rose.", "It was hot there."]
    assert metric._parts(WINDOW, 45 - 1) == parts
    each = [max(float(logits(folder, part, text).softmax(-1)[2]) for part in parts) for text in sentences]
    item = Item(fingerprint="a", prediction=ANSWER, window=WINDOW)
    [scores] = checked_scores(metric, [item])
    assert scores["support"] == pytest.approx(sum(each) / 2, abs=WITHIN)
    assert scores["supported"] == sum(one >= 0.5 for one in each) / 2


def test_values_do_not_depend_on_the_batch(metric: Classifier) -> None:
    items = [
        Item(fingerprint=text, prediction=text, window=window)
        for text, window in [(ANSWER, WINDOW), ("It was cold.", "Rain fell."), (" ... ", WINDOW), (WINDOW, ANSWER)]
    ]
    together = metric.score(items)
    assert together[2] == {"support": None, "supported": None}
    for item, scores in zip(items, together, strict=True):
        assert metric.score([item])[0] == pytest.approx(scores, abs=WITHIN)


def test_texts_without_full_stops_are_read_to_their_end(metric: Classifier) -> None:
    letters = "abcdefghij" * 20
    assert "".join(metric._parts(letters, 45)) == letters
    assert [len(part) for part in metric._parts(letters, 45)] == [45, 45, 45, 45, 20]
    [scores] = metric.score([Item(fingerprint="a", prediction=letters, window=letters)])
    assert len(metric._sentences(letters, letters)) == 7  # 200 letters in pieces of half of what is read
    assert scores["support"] is not None


def test_one_logit_is_a_probability_by_itself(tmp_path: Path) -> None:
    folder = save_tiny_encoder(tmp_path, labels=["supported"])
    expected = float(logits(folder, "Rain fell.", "It rained.").sigmoid()[0])
    [scores] = Classifier(str(folder)).score([Item(fingerprint="a", prediction="It rained.", window="Rain fell.")])
    assert scores["support"] == pytest.approx(expected, abs=WITHIN)


@pytest.mark.parametrize(
    ("labels", "named", "counted"),
    [
        (("CORRECT", "INCORRECT"), "", 0),
        (("SUPPORTS", "REFUTES", "NOT ENOUGH INFO"), "", 0),
        (("not_entailment", "entailment"), "", 1),
        (("LABEL_0", "LABEL_1"), "#LABEL_1", 1),
        (NLI, "#neutral", 1),
    ],
)
def test_the_label_that_counts(tmp_path: Path, labels: tuple[str, ...], named: str, counted: int) -> None:
    folder = save_tiny_encoder(tmp_path, labels=labels)
    metric = Classifier(f"{folder}{named}")
    expected = float(logits(folder, "Rain fell.", "It rained.").softmax(-1)[counted])
    [scores] = metric.score([Item(fingerprint="a", prediction="It rained.", window="Rain fell.")])
    assert scores["support"] == pytest.approx(expected, abs=WITHIN)
    assert metric.provenance()["label"] == labels[counted]


def test_labels_that_say_nothing_are_refused_with_what_to_write(tmp_path: Path) -> None:
    folder = save_tiny_encoder(tmp_path, labels=("LABEL_0", "LABEL_1"))
    with pytest.raises(UserError, match=r"has the labels LABEL_0, LABEL_1; say which .*, as support:.*#LABEL_1"):
        Classifier(str(folder))
    with pytest.raises(UserError, match=r"has no label 'yes'; it has LABEL_0, LABEL_1"):
        Classifier(f"{folder}#yes")


def test_a_label_without_a_classifier_is_refused() -> None:
    with pytest.raises(UserError, match="classifier folder '' does not exist; give a folder or a hub id"):
        Classifier("#entailment")


def test_a_head_that_was_not_trained_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no weights for classifier\.bias; its head was not trained"):
        Classifier(str(save_tiny_encoder(tmp_path)))
