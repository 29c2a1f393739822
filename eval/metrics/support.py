"""Metric `support`: support of an answer by what was shown, sentence by sentence, by a small model without a hub.

open_metric("support")              # five features of a sentence, weighed by support.json
open_metric("support:MODEL")        # a classifier instead; see `eval.metrics.classifier`
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from eval.metrics.base import EXTRACTS, Item, Metric, Scores
from eval.metrics.classifier import SUPPORT_VALUES, Classifier, support_scores
from eval.metrics.embed import worded_sentences
from eval.metrics.encoder import Encoder
from eval.metrics.evidence import FEATURES, Evidence

COEFFICIENTS = Path(__file__).with_name("support.json")
# Answers come a document at a time; the words of one take some MB.
_MAX_WINDOWS = 4


class Support(Metric):
    """Support of an answer: the mean over its sentences of a logistic model of `Evidence`.

    The model was trained on judgements of news summaries; docs/metrics.md says on which, and how it ranks others.
    """

    name = "support"
    version = 1
    needs: ClassVar = frozenset({"window"})
    reads: ClassVar = frozenset({"window", EXTRACTS})
    values = SUPPORT_VALUES

    def __init__(self) -> None:
        """Raises `UserError` where the encoder is not installed."""
        self._encoder = Encoder()
        self._text = COEFFICIENTS.read_bytes()
        weights = json.loads(self._text)["weights"]
        self._weights = np.array([weights[name] for name in FEATURES])
        self._bias = float(weights["bias"])
        self._evidence = lru_cache(_MAX_WINDOWS)(self._read)

    def provenance(self) -> dict[str, Any]:
        """Return the digest of the coefficients, and what the encoder is."""
        return self._encoder.provenance | {"coefficients_sha256": hashlib.sha256(self._text).hexdigest()}

    def score(self, batch: Sequence[Item]) -> list[Scores]:
        """Return the values of each item; an answer without words has none."""
        return [support_scores(self.sentences(item.prediction, item.window or "")) for item in batch]

    def sentences(self, prediction: str, window: str) -> NDArray[np.float64]:
        """Return the probability that people call each sentence of an answer supported."""
        features = self._evidence(window).of(worded_sentences(prediction))
        found: NDArray[np.float64] = 1 / (1 + np.exp(-(features @ self._weights + self._bias)))
        return found

    def _read(self, window: str) -> Evidence:
        return Evidence(window, self._encoder)


def open_support(argument: str) -> Metric:
    """Return the metric for `support` or `support:MODEL`. Raises `UserError` where its weights cannot be had."""
    return Classifier(argument) if argument else Support()
