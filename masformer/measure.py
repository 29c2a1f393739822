"""What a plan costs against the model's own spans: closed form, and measured in one process.

Both sides run with masformer's kernels and cache, in turn, on the same random tokens, so that the plan alone differs. A
length counts everything: the prompt, and the `DECODED_TOKENS` tokens that are decoded after it.
"""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from masformer.attention.cache import SpanCache
from masformer.attention.prefill import fixed_frequencies, prefill
from masformer.checkpoints.open import max_positions
from masformer.convert import apply_plan, native_plan
from masformer.errors import OneLineError, is_out_of_memory
from masformer.hardware import device_name, dtype_name
from masformer.plans.cost import attention_flops, cache_bytes
from masformer.plans.spans import SpanPlan
from masformer.probe import probe_tokens
from masformer.tuning import now

DECODED_TOKENS = 16
REPEATS = 3
DEFAULT_LENGTHS = (1024, 4096)
_PACKAGES = ("masformer", "torch", "transformers")


class MeasureError(OneLineError):
    """Lengths that cannot be measured."""


def lengths_to_measure(asked: Sequence[int] | None, config: PreTrainedConfig) -> list[int]:
    """Return the lengths in tokens, the shortest first; by default those of `DEFAULT_LENGTHS` that fit the model.

    Raises:
        MeasureError: One is too short to measure, or beyond the positions that the model was trained on.
    """
    known = max_positions(config)
    if asked is None:
        fitting = [length for length in DEFAULT_LENGTHS if known is None or length <= known]
        asked = fitting or [known or DEFAULT_LENGTHS[0]]
    for length in asked:
        if length < 2 * DECODED_TOKENS:
            raise MeasureError(f"{length} tokens are too few to measure; --measure takes {2 * DECODED_TOKENS} or more")
        if known is not None and length > known:
            raise MeasureError(f"--measure {length} is beyond the {known} positions of the model; lower it")
    return sorted(set(asked))


def closed_form(config: PreTrainedConfig, plan: SpanPlan, num_tokens: int, bytes_per_value: int) -> dict[str, Any]:
    """Return attention FLOPs and cache bytes of the plan (`plan`) and of the model's own spans (`own`), batch 1."""
    both = (plan, native_plan(config))
    flops = [attention_flops(config, each, num_tokens) for each in both]
    kept = [cache_bytes(config, each, num_tokens, bytes_per_value) for each in both]
    return {"length": num_tokens, "attention_flops": _pair(*flops), "cache_bytes": _pair(*kept)}


def cost_record(
    model: PreTrainedModel,
    plan: SpanPlan,
    lengths: Sequence[int],
    *,
    is_measured: bool,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Return what the plan costs at each length, JSON-ready; the model has the plan on it afterwards.

    Unless `is_measured`, only the closed form is there, and `measured` is None.

    Raises:
        MeasureError: Memory does not suffice.
    """
    own = native_plan(model.config)
    rows = [closed_form(model.config, plan, length, model.dtype.itemsize) for length in lengths]
    for row in rows:
        if is_measured:
            say(f"measure {row['length']:,} tokens, {REPEATS} turns of each plan")
        row["measured"] = _measure(model, plan, own, row["length"]) if is_measured else None
    how = None
    if is_measured:
        how = {
            "device": device_name(model.device),
            "threads": torch.get_num_threads(),
            "dtype": dtype_name(model.dtype),
            "repeats": REPEATS,
            "decoded_tokens": DECODED_TOKENS,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {"python": platform.python_version()} | {name: installed_version(name) for name in _PACKAGES},
        }
    return {"plan": str(plan), "own_plan": str(own), "measured_with": how, "lengths": rows}


def _measure(model: PreTrainedModel, plan: SpanPlan, own: SpanPlan, num_tokens: int) -> dict[str, Any]:
    tokens = probe_tokens(model, num_tokens)
    # By side, not by plan: a plan may be that of the own spans.
    prefills: list[list[float]] = [[], []]
    steps: list[list[float]] = [[], []]
    try:
        with fixed_frequencies(model, num_tokens):
            # Not counted: first calls page in weights.
            _one_turn(model, (plan, own), tokens[:, : 2 * DECODED_TOKENS])
            for _ in range(REPEATS):
                turn = _one_turn(model, (plan, own), tokens)
                for side, (seconds, decoding, _held) in enumerate(turn):
                    prefills[side].append(seconds)
                    steps[side].append(1000 * statistics.median(decoding))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise MeasureError(f"memory does not suffice to measure {num_tokens} tokens; give shorter ones") from error
    finally:
        apply_plan(model, plan)
    return {
        "prefill_seconds": _medians(prefills),
        "decode_ms_per_token": _medians(steps),
        "cache_bytes": _pair(*(held for _, _, held in turn)),
    }


@torch.no_grad()
def _one_turn(
    model: PreTrainedModel, plans: Sequence[SpanPlan], tokens: Tensor
) -> list[tuple[float, list[float], int]]:
    """Return of each plan the seconds until the first new token's logits, those of each decoded token, cache bytes."""
    num_tokens = tokens.shape[1]
    prompt = num_tokens - DECODED_TOKENS
    caches = [SpanCache(plan, num_tokens) for plan in plans]
    seconds: list[list[float]] = [[] for _ in plans]
    # The plans take turns token by token, so that what else the machine does meets both alike.
    for position in range(prompt - 1, num_tokens):
        for plan, cache, times in zip(plans, caches, seconds, strict=True):
            apply_plan(model, plan)
            start = now(model.device)
            if position == prompt - 1:
                prefill(model, tokens[:, :position], cache)
            model(tokens[:, position : position + 1], past_key_values=cache, use_cache=True)
            times.append(now(model.device) - start)
    return [(times[0], times[1:], cache.num_bytes) for times, cache in zip(seconds, caches, strict=True)]


def _medians(turns: Sequence[Sequence[float]]) -> dict[str, float]:
    """Return the medians over turns of plan and own spans, and how far the turns of one of them differ at most."""
    spread = max(max(times) / min(times) for times in turns)
    return {**_pair(*map(statistics.median, turns)), "slowest_to_fastest": spread}


def _pair(plan: float, own: float) -> dict[str, float]:
    return {"plan": plan, "own": own, "ratio": plan / own}


def installed_version(package: str) -> str:
    """Return the version of a package, or that it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "not installed"
