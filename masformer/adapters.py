"""Architectures that do not call the attention function given to transformers: what makes them call it.

An adapter changes the class of the attention modules and nothing else, so that weights stay untouched and a model with
it can be copied and pickled.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoSelfAttention


class _SpanGPTNeoAttention(GPTNeoSelfAttention):  # type: ignore[misc]
    """GPT-Neo applies its causal and local masks itself, from a buffer, to scores that it does not scale."""

    # Shared with the decoder: the layers do not get to see where packed documents begin.
    packing: dict[str, Any]

    def _attn(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None) -> tuple[Tensor, Any]:
        known, name = AttentionInterface(), self.config._attn_implementation
        if name not in known:
            return super()._attn(query, key, value, attention_mask)  # type: ignore[no-any-return]
        dropout = self.attn_dropout.p if self.training else 0.0
        out, _ = known[name](self, query, key, value, attention_mask, dropout=dropout, scaling=1.0, **self.packing)
        return out.transpose(1, 2), None


# Class of the attention modules, and the one that takes its place.
_ADAPTED = {"gpt_neo": (GPTNeoSelfAttention, _SpanGPTNeoAttention)}


def adapt(model: PreTrainedModel) -> None:
    """Make every layer call the attention function named in the model's config; `unadapt` undoes it."""
    if model.config.model_type not in _ADAPTED:
        return
    former, adapted = _ADAPTED[model.config.model_type]
    decoder = model.get_decoder()
    decoder.packing = {}
    decoder.packing_hook = decoder.register_forward_pre_hook(_note_packing, with_kwargs=True)
    for module in decoder.modules():
        if type(module) is former:
            module.__class__, module.packing = adapted, decoder.packing


def unadapt(model: PreTrainedModel) -> None:
    """Make the layers those that they were before `adapt`."""
    if model.config.model_type not in _ADAPTED:
        return
    former, adapted = _ADAPTED[model.config.model_type]
    decoder = model.get_decoder()
    decoder.packing_hook.remove()
    del decoder.packing, decoder.packing_hook
    for module in decoder.modules():
        if type(module) is adapted:
            module.__class__ = former
            del module.packing


def _note_packing(decoder: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    decoder.packing["position_ids"] = kwargs.get("position_ids")


def set_attention(model: PreTrainedModel, name: str) -> None:
    """Name the attention function that the model's layers call from now on."""
    if model.config.model_type in _ADAPTED:
        # transformers refuses to, because these layers would not call it by themselves.
        model.config._attn_implementation = name
    else:
        model.set_attn_implementation(name)


def layer_of(module: nn.Module) -> int | None:
    """Return which layer an attention module belongs to; None for other modules."""
    for name in ("layer_idx", "layer_id"):
        layer = getattr(module, name, None)
        if isinstance(layer, int):
            return layer
    return None
