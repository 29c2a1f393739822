"""Prefill a prompt, decode an answer, and measure both.

The prompt goes into the cache in chunks, all but its last token; decoding is transformers' `generate` on that cache. So
the two phases are timed apart, the logits of the prompt are never computed, and memory does not grow with its length.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import DynamicCache, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache

from masformer import SpanCache, fixed_frequencies, prefill

# Raised by hand whenever a change of the code changes what is generated; part of what a resumed run must share.
GENERATION_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One answer and what it cost.

    Attributes:
        text: Without special tokens and surrounding white space.
        num_generated_tokens: The end token included.
        finish_reason: `stop` at an end token, `length` when the room was used up.
        prefill_seconds: For all prompt tokens but the last.
        decode_seconds: For the last prompt token and all generated ones.
        cache_bytes: Keys and values held at the end, from real storage.
        peak_bytes: Most memory while generating: of the device on a GPU, resident memory of the process elsewhere, None
            where the system does not tell.
    """

    text: str
    num_generated_tokens: int
    finish_reason: str
    prefill_seconds: float
    decode_seconds: float
    cache_bytes: int
    peak_bytes: int | None


@torch.no_grad()
def generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], max_new_tokens: int
) -> Generation:
    """Return the greedy continuation of a prompt of at least two tokens."""
    reset_peak(model.device)
    prompt = torch.tensor([token_ids], device=model.device)
    plan = getattr(model, "span_plan", None)
    cache = DynamicCache(config=model.config) if plan is None else SpanCache(plan, len(token_ids) + max_new_tokens)
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=model.generation_config.eos_token_id,
        pad_token_id=model.generation_config.pad_token_id,
    )
    start = _now(model.device)
    with fixed_frequencies(model, len(token_ids)):
        prefill(model, prompt[:, :-1], cache)
        prefilled = _now(model.device)
        output = model.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), past_key_values=cache, generation_config=settings
        )
    answer = output[0, prompt.shape[1] :].tolist()
    done = _now(model.device)
    return Generation(
        text=str(tokenizer.decode(answer, skip_special_tokens=True)).strip(),
        num_generated_tokens=len(answer),
        finish_reason="stop" if answer and answer[-1] in (settings.eos_token_id or []) else "length",
        prefill_seconds=prefilled - start,
        decode_seconds=done - prefilled,
        cache_bytes=storage_bytes(cache),
        peak_bytes=peak_bytes(model.device),
    )


def warm_up(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Generate once and throw it away: first calls allocate and page in weights, which no prediction should pay for."""
    generate(model, tokenizer, [token % model.config.get_text_config().vocab_size for token in range(3, 67)], 4)


def storage_bytes(cache: Cache) -> int:
    """Return the bytes of a cache's keys and values, from real storage."""
    if isinstance(cache, SpanCache):
        return cache.num_bytes
    return sum(
        states.untyped_storage().nbytes()
        for layer in cache.layers
        for states in (getattr(layer, "keys", None), getattr(layer, "values", None))
        if states is not None
    )


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def reset_peak(device: torch.device) -> None:
    """Measure the most memory from now on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    # Linux keeps the peak of a process and takes this as the order to begin anew; elsewhere it is that of the process.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> int | None:
    """Return the most memory since `reset_peak`; None where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident_bytes("VmHWM")


def resident_bytes(field: str) -> int | None:
    """Return resident memory of this process, now (VmRSS) or at the most (VmHWM); None off Linux."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return None
