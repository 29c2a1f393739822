"""Metric `support:MODEL`: support of an answer by what was shown, as an NLI or fact-checking classifier sees it.

open_metric("support:tals/albert-xlarge-vitaminc-mnli")
open_metric("support:lytang/MiniCheck-RoBERTa-Large#LABEL_1")     # where no label says what it means
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from eval.errors import UserError
from eval.metrics.base import EXTRACTS, Item, Metric, Scores, Value
from eval.metrics.unicode_text import unicode_sentences, unicode_words
from eval.metrics.weights import by_length, load_weights, max_tokens, padded, weights_provenance

# What classifiers call the label of a sentence that follows from a text.
_SUPPORTED = frozenset(
    {"consistent", "correct", "entail", "entailed", "entailment", "entails", "factual", "faithful", "support"}
    | {"supported", "supports"}
)
SUPPORT_VALUES = {
    "support": Value(label="support", title="Support by what was shown"),
    "supported": Value(label="supported", title="Sentences supported"),
}


def support_scores(sentences: Sequence[float] | NDArray[np.float64]) -> Scores:
    """Return the values of an answer, given the probability of each sentence; None for an answer without one."""
    if not len(sentences):
        return dict.fromkeys(SUPPORT_VALUES)
    return {"support": float(np.mean(sentences)), "supported": float(np.mean(np.greater_equal(sentences, 0.5)))}


class Classifier(Metric):
    """Support of an answer: the mean over its sentences of the greatest probability over the parts of the window.

    Parts are as many whole sentences as the classifier reads beside the longest sentence of the answer.

    Source: SummaC-ZS (Laban et al., TACL 2022) and MiniCheck (Tang et al., EMNLP 2024) for the greatest over parts and
    the mean over sentences. Deviation: MiniCheck takes the least over sentences for its label of a whole answer.
    """

    version = 1
    needs: ClassVar = frozenset({"window"})
    reads: ClassVar = frozenset({"window", EXTRACTS})
    values = SUPPORT_VALUES

    def __init__(self, argument: str) -> None:
        """Open `MODEL` or `MODEL#LABEL`. Raises `UserError` where that cannot be had, or no label is known."""
        self.name = f"support:{argument}"
        place, _, label = argument.partition("#")
        self._tokenizer, self._model = load_weights("AutoModelForSequenceClassification", place, "classifier")
        self._label = _label_index(self._model.config.id2label, label, place)
        self._limit = max_tokens(self._tokenizer, self._model.config)

    def provenance(self) -> dict[str, Any]:
        """Return digests of weights and tokenizer, versions of packages, and the label that counts."""
        return self._provenance

    @cached_property
    def _provenance(self) -> dict[str, Any]:
        made = {"label": self._model.config.id2label[self._label], "max_tokens": self._limit}
        return weights_provenance(self._tokenizer, self._model) | made

    def score(self, batch: Sequence[Item]) -> list[Scores]:
        """Return the values of each item; an answer without words has none."""
        return [support_scores(self._sentences(item.prediction, item.window or "")) for item in batch]

    def _sentences(self, prediction: str, window: str) -> list[float]:
        """Return the probability of each sentence of an answer."""
        sentences = [text for text, _ in self._pieces(prediction, self._limit // 2)]
        if not sentences:
            return []
        longest = max(len(self._tokenizer(text, add_special_tokens=False)["input_ids"]) for text in sentences)
        room = self._limit - self._tokenizer.num_special_tokens_to_add(pair=True) - longest
        parts = self._parts(window, room) or [""]
        rows = [
            self._tokenizer(part, sentence, truncation="only_first", max_length=self._limit)
            for sentence in sentences
            for part in parts
        ]
        return [float(best) for best in self._probabilities(rows).reshape(len(sentences), len(parts)).max(axis=1)]

    def _parts(self, window: str, room: int) -> list[str]:
        """Return the text of a window in parts of whole sentences that have at most so many tokens."""
        parts: list[str] = []
        free = 0
        for text, num_tokens in self._pieces(window, room):
            if num_tokens > free:
                parts.append(text)
                free = room
            else:
                parts[-1] += f" {text}"
            free -= num_tokens
        return parts

    def _pieces(self, text: str, limit: int) -> Iterator[tuple[str, int]]:
        """Yield the sentences of a text with their tokens; what has no full stop is cut where the limit is reached."""
        for sentence in unicode_sentences(text):
            offsets = self._tokenizer(sentence, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
            for start in range(0, len(offsets), limit):
                piece = offsets[start : start + limit]
                if unicode_words(found := sentence[piece[0][0] : piece[-1][1]]):
                    yield found, len(piece)

    def _probabilities(self, rows: Sequence[Any]) -> NDArray[np.float64]:
        """Return the probability of the label for each pair of a part and a sentence."""
        import torch

        found = np.zeros(len(rows))
        with torch.inference_mode():
            for batch in by_length([len(row["input_ids"]) for row in rows]):
                logits = self._model(**padded(self._tokenizer, [rows[index] for index in batch])).logits
                shares = logits.softmax(-1) if logits.shape[-1] > 1 else logits.sigmoid()
                found[batch] = shares[:, self._label].numpy()
        return found


def _label_index(labels: dict[int, str], wanted: str, place: str) -> int:
    names = ", ".join(labels.values())
    if wanted:
        found = [index for index, name in labels.items() if name == wanted]
        if not found:
            raise UserError(f"classifier '{place}' has no label '{wanted}'; it has {names}")
    else:
        found = [index for index, name in labels.items() if name.casefold() in _SUPPORTED]
        if len(found) != 1:
            example = f"support:{place}#{next(reversed(labels.values()))}"
            raise UserError(f"classifier '{place}' has the labels {names}; say which means supported, as {example}")
    return found[0]
