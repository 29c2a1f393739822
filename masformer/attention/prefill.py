"""Fill a cache with a prompt in chunks, so that memory beyond weights and cache does not grow with the prompt.

    with fixed_frequencies(model, num_tokens=len(prompt)):
        prefill(model, prompt[:, :-1], cache)
        model.generate(prompt, past_key_values=cache)

Shapes: B batch, T tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from masformer.attention.cache import Filled, SpanCache

# Tokens of all rows that go through the model at once: enough for full speed, few enough for little memory.
CHUNK_TOKENS = 2048


def new_cache(model: PreTrainedModel, max_tokens: int) -> Cache:
    """Return an empty cache for one prompt."""
    plan = getattr(model, "span_plan", None)
    if plan is not None:
        return SpanCache(plan, max_tokens)
    if model.config.model_type == "minimax":  # whose linear layers take no other
        from transformers.models.minimax.modeling_minimax import MiniMaxCache  # a tenth of a second

        return MiniMaxCache()
    return DynamicCache(config=model.config)


def fork(cache: Cache, max_tokens: int) -> Cache:
    """Return a second cache that goes on from the same tokens; neither sees what the other writes."""
    if isinstance(cache, SpanCache):
        return cache.fork(max_tokens)
    other = copy.copy(cache)
    if hasattr(cache, "linear_cache"):  # states of MiniMax, which each step replaces
        other.linear_cache = list(cache.linear_cache)
    # These make new tensors for what they add and leave the former as they were; others write where they are.
    light = (DynamicLayer, DynamicSlidingWindowLayer)
    other.layers = [copy.copy(layer) if type(layer) in light else copy.deepcopy(layer) for layer in cache.layers]
    return other


@torch.no_grad()
def prefill(
    model: PreTrainedModel,
    token_ids: Tensor,
    cache: Cache,
    attention_mask: Tensor | None = None,
    chunk_tokens: int = CHUNK_TOKENS,
) -> None:
    """Add (B, T) tokens to a cache, `chunk_tokens` of all rows together at a time.

    Only the base model runs, because logits over the vocabulary for each token would dwarf everything else; of its last
    layer, only keys and values are computed where the cache is a `SpanCache`.

    Args:
        attention_mask: (B, tokens in the cache + T), zeros at left padding; None is no padding.
    """
    step = max(1, chunk_tokens // len(token_ids))
    for first in range(0, token_ids.shape[1], step):
        chunk = token_ids[:, first : first + step]
        more: dict[str, Any] = {}
        if attention_mask is not None:
            mask = attention_mask[:, : cache.get_seq_length() + chunk.shape[1]]
            positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -chunk.shape[1] :]
            more = {"attention_mask": mask, "position_ids": positions}
        with _only_filling(model, cache):
            model.base_model(input_ids=chunk, past_key_values=cache, use_cache=True, **more)


@contextmanager
def _only_filling(model: PreTrainedModel, cache: Cache) -> Iterator[None]:
    """End a forward pass once the last layer has stored its keys."""
    # Hooks that move weights between devices must see the end of each module's pass.
    if not isinstance(cache, SpanCache) or hasattr(model, "hf_device_map"):
        yield
        return
    cache.raises_when_filled = True
    try:
        with suppress(Filled):
            yield
    finally:
        cache.raises_when_filled = False


@contextmanager
def fixed_frequencies(model: PreTrainedModel, num_tokens: int) -> Iterator[None]:
    """Keep rotary frequencies that depend on the length at those of `num_tokens` tokens, the prompt's final length.

    Some models (longrope, dynamic) take other frequencies for longer inputs, and transformers looks at each forward
    pass alone: keys of an early chunk would turn at another rate than those of the last. Dynamic frequencies also
    depend on the inputs before, which they do not here. Other models are left alone.

    Source: `dynamic_rope_update` in `modeling_rope_utils.py` of transformers 5.23.
    """
    moving = [module for module in model.modules() if _depends_on_length(module)]
    former = [module.rope_type for module in moving]
    like = next(model.parameters())
    try:
        for module, kinds in zip(moving, former, strict=True):
            for arguments in [(kind,) for kind in kinds] if isinstance(kinds, dict) else [()]:
                # The first takes back what an earlier input has left.
                for last in (0, num_tokens - 1):
                    module(like, torch.tensor([[last]], device=like.device), *arguments)
            module.rope_type = dict.fromkeys(kinds, "fixed") if isinstance(kinds, dict) else "fixed"
        yield
    finally:
        for module, kinds in zip(moving, former, strict=True):
            module.rope_type = kinds


def _depends_on_length(module: nn.Module) -> bool:
    kinds = getattr(module, "rope_type", None)
    names = kinds.values() if isinstance(kinds, dict) else [kinds]
    return any(isinstance(name, str) and ("dynamic" in name or name == "longrope") for name in names)


def frequency_class(config: PreTrainedConfig, num_tokens: int) -> int:
    """Return a number that is the same for prompts whose rotary frequencies agree, so that they may share keys.

    It is 0 unless frequencies depend on the length (`fixed_frequencies`): of `dynamic` ones each length beyond the
    trained positions has its own, of `longrope` all of them have others than the lengths within.
    """
    config = config.get_text_config(decoder=True)
    former = getattr(config, "rope_parameters", None) or {}
    each = [former] if "rope_type" in former else [kind for kind in former.values() if isinstance(kind, dict)]
    classes = []
    for kind in each:
        name = str(kind.get("rope_type"))
        trained = config.max_position_embeddings
        if name == "longrope":
            trained = kind.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", trained
            )
        if "dynamic" in name or name == "longrope":
            classes.append(0 if num_tokens <= trained else 1 if name == "longrope" else num_tokens)
    return max(classes, default=0)
