"""What attention costs under a plan: floating point operations and cache bytes.

Counted are the two matrix products of attention (query-key and weight-value, a multiply and an add each), for the
pairs a causal query sees. Projections and feed-forward layers cost the same under every plan and are left out.
"""

from __future__ import annotations

from transformers import PreTrainedConfig

from masformer.plans.spans import SpanPlan


def num_kv_heads(config: PreTrainedConfig) -> int | None:
    """Return the number of key/value heads of a layer; None where the config names none for all layers."""
    config = config.get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or getattr(config, "num_attention_heads", None)
    return heads if isinstance(heads, int) else None


def attention_flops(config: PreTrainedConfig, plan: SpanPlan, num_tokens: int) -> int:
    """Return the floating point operations of attention over `num_tokens` tokens, prefilled or decoded, batch 1."""
    config = config.get_text_config(decoder=True)
    query_size, value_size = _head_sizes(config)
    a_pair = 2 * int(config.num_attention_heads) * (query_size + value_size)
    return int(a_pair * sum(share * span.num_pairs(num_tokens) for span, share in plan.shares.items()))


def cache_bytes(config: PreTrainedConfig, plan: SpanPlan, num_tokens: int, bytes_per_value: int) -> int:
    """Return the bytes of keys and values that decoding needs after `num_tokens` tokens, batch 1."""
    config = config.get_text_config(decoder=True)
    values = int(num_kv_heads(config) or config.num_attention_heads) * sum(_head_sizes(config))
    if latent := getattr(config, "kv_lora_rank", None):
        # Multi-head latent attention (DeepSeek) caches what all heads are computed from.
        values = int(latent) + int(config.qk_rope_head_dim)
    kept = sum(share * span.num_kept(num_tokens) for span, share in plan.shares.items())
    return int(kept * values * bytes_per_value)


def _head_sizes(config: PreTrainedConfig) -> tuple[int, int]:
    """Return the head size of queries and keys, and that of values."""
    size = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    # In multi-head latent attention they differ.
    return int(getattr(config, "qk_head_dim", None) or size), int(getattr(config, "v_head_dim", None) or size)
