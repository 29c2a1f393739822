"""What attention costs under a plan, in closed form: floating point operations and cache bytes.

Counted are the two matrix products of attention (query-key and weight-value, a multiply and an add each), for the
pairs a causal query sees. Projections and feed-forward layers cost the same under every plan and are left out.
"""

from __future__ import annotations

from transformers import PreTrainedConfig

from masformer.convert import num_kv_heads
from masformer.plans.spans import LayerSpan, SpanPlan


def visible_pairs(span: LayerSpan, num_tokens: int) -> int:
    """Return the number of (query, key) pairs that `num_tokens` tokens see in one head."""
    sinks = span.sinks
    if span.block is not None:
        block, previous = span.block, span.previous
        whole, rest = divmod(num_tokens, block)
        pairs = whole * _triangle(block) + _triangle(rest)
        # Blocks 0, 1, 2, ... see 0, 1, 2, ... and from then on `previous` blocks before their own.
        before = _triangle(max(min(whole, previous + 1) - 1, 0)) + max(whole - previous - 1, 0) * previous
        pairs += block * block * before + rest * block * min(whole, previous)
        # Sinks are extra once the visible blocks have left them behind.
        for index in range(previous + 1, whole + 1):
            behind = (index - previous) * block
            if behind >= sinks:
                return pairs + sinks * (num_tokens - index * block)
            pairs += behind * (block if index < whole else rest)
        return pairs
    if span.span is None or num_tokens <= span.span:
        return _triangle(num_tokens)
    beyond = num_tokens - span.span
    pairs = _triangle(span.span) + beyond * span.span
    return pairs + _triangle(min(sinks, beyond)) + max(beyond - sinks, 0) * sinks


def _triangle(n: int) -> int:
    return n * (n + 1) // 2


def attention_flops(config: PreTrainedConfig, plan: SpanPlan, num_tokens: int) -> int:
    """Return the floating point operations of attention over `num_tokens` tokens, prefilled or decoded, batch 1."""
    config = config.get_text_config(decoder=True)
    query_size, value_size = _head_sizes(config)
    a_pair = 2 * int(config.num_attention_heads) * (query_size + value_size)
    return int(a_pair * sum(share * visible_pairs(span, num_tokens) for span, share in plan.shares.items()))


def cache_bytes(config: PreTrainedConfig, plan: SpanPlan, num_tokens: int, bytes_per_value: int) -> int:
    """Return the bytes of keys and values that decoding needs after `num_tokens` tokens, batch 1."""
    config = config.get_text_config(decoder=True)
    values = int(num_kv_heads(config) or config.num_attention_heads) * sum(_head_sizes(config))
    if latent := getattr(config, "kv_lora_rank", None):
        # Multi-head latent attention (DeepSeek) caches what all heads are computed from.
        values = int(latent) + int(config.qk_rope_head_dim)
    kept = sum(
        share * (num_tokens if span.num_recent is None else min(num_tokens, span.sinks + span.num_recent))
        for span, share in plan.shares.items()
    )
    return int(kept * values * bytes_per_value)


def _head_sizes(config: PreTrainedConfig) -> tuple[int, int]:
    """Return the head size of queries and keys, and that of values."""
    size = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    # In multi-head latent attention they differ.
    return int(getattr(config, "qk_head_dim", None) or size), int(getattr(config, "v_head_dim", None) or size)
