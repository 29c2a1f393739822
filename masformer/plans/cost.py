"""What attention costs under a plan: floating point operations and cache bytes.

    cost = PlanCost(model.config, plan)
    cost.attention_flops(8192), cost.cache_bytes(8192, 2)

Counted are the two matrix products of attention (query-key and weight-value, a multiply and an add each), for the
pairs a causal query sees, each layer with its own heads. Projections and feed-forward layers cost the same under every
plan and are left out.
"""

from __future__ import annotations

from collections import defaultdict
from fractions import Fraction
from typing import TYPE_CHECKING

from masformer.plans.shapes import layer_shapes, state_bytes
from masformer.plans.spans import HeadSpans, LayerSpan, SpanPlan

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class PlanCost:
    """What tokens cost a model under a plan, batch 1.

    Attributes:
        flops: Operations of a pair, in all layers and heads of a span together, by span.
        values: Values that caches hold of a token that they keep, likewise.
    """

    def __init__(self, config: PreTrainedConfig, plan: SpanPlan) -> None:
        self.config = config
        self.flops: dict[LayerSpan, Fraction] = defaultdict(Fraction)
        self.values: dict[LayerSpan, Fraction] = defaultdict(Fraction)
        for shape, layer in zip(layer_shapes(config), plan, strict=True):  # without attention, both are 0
            heads = layer.heads if isinstance(layer, HeadSpans) else (layer,)
            for span in heads:
                self.flops[span] += Fraction(shape.flops_a_pair, len(heads))
                self.values[span] += Fraction(shape.values_a_token, len(heads))

    def attention_flops(self, num_tokens: int) -> int:
        """Return the operations of attention over so many tokens, prefilled or decoded."""
        return int(sum(flops * span.num_pairs(num_tokens) for span, flops in self.flops.items()))

    def cache_bytes(self, num_tokens: int, bytes_per_value: int) -> int:
        """Return the bytes of keys, values and states that decoding needs after so many tokens."""
        kept = sum(values * span.num_kept(num_tokens) for span, values in self.values.items())
        return int(bytes_per_value * kept) + state_bytes(self.config, bytes_per_value)


def attention_flops(config: PreTrainedConfig, plan: SpanPlan, num_tokens: int) -> int:
    """Return the floating point operations of attention over `num_tokens` tokens, prefilled or decoded, batch 1."""
    return PlanCost(config, plan).attention_flops(num_tokens)


def cache_bytes(config: PreTrainedConfig, plan: SpanPlan, num_tokens: int, bytes_per_value: int) -> int:
    """Return the bytes of keys, values and states that decoding needs after `num_tokens` tokens, batch 1."""
    return PlanCost(config, plan).cache_bytes(num_tokens, bytes_per_value)
