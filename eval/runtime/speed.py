"""What forecasts need: the weights of a model, how fast this machine multiplies, hours as people write them."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from masformer.attention.prefill import CHUNK_TOKENS


@dataclass(frozen=True, kw_only=True)
class WeightCount:
    """How many numbers the weights of a decoder are.

    Attributes:
        all: Every weight once.
        body: Those of matrices between embeddings and output layer.
        head: Those of the output layer.
    """

    all: int
    body: int
    head: int


def count_weights(config: PreTrainedConfig, *, trust_remote_code: bool = False) -> WeightCount:
    """Return the size of a decoder with this config; no weights are made."""
    text = config.get_text_config(decoder=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    outer = {id(layer.weight) for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer}
    return WeightCount(
        all=sum(x.numel() for x in model.parameters()),
        body=sum(x.numel() for x in model.parameters() if x.ndim > 1 and id(x) not in outer),
        head=int(text.hidden_size) * int(text.vocab_size),
    )


def product_speed(hidden_size: int, dtype: torch.dtype, device: torch.device) -> float:
    """Return operations a second of a product such as a prefill of a model of this width makes, timed now."""
    rows, weights = (
        torch.ones(shape, dtype=dtype, device=device)
        for shape in ((CHUNK_TOKENS, hidden_size), (hidden_size, 4 * hidden_size))
    )
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        float((rows @ weights)[0, 0])
        best = min(best, time.perf_counter() - start)
    return 2 * CHUNK_TOKENS * hidden_size * 4 * hidden_size / best


def in_hours(seconds: float) -> str:
    """Return a time as a person reads it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
