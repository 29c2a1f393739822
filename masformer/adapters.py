"""Architectures that do not call the attention function given to transformers: what makes them call it.

An adapter changes the class of the attention modules and nothing else, so that weights stay untouched and a model with
it can be copied and pickled.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoSelfAttention

from masformer.plans.spans import SpanPlan


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


def attention_names(model: PreTrainedModel) -> dict[str, str]:
    """Return the attention function that a model names, under "", and those of its parts, by the part's config."""
    parts = {name: getattr(model.config, name, None) for name in model.config.sub_configs}
    names = {name: part._attn_implementation for name, part in parts.items() if part is not None}
    return {"": model.config._attn_implementation} | names


def set_attention(model: PreTrainedModel, name: str | dict[str, str]) -> None:
    """Name the attention function that the layers of a model's decoder call from now on.

    Args:
        name: Its name, or what `attention_names` returned before.
    """
    if isinstance(name, str):
        # Towers for images and sound go on as they are, and may know fewer functions.
        text = model.config.get_text_config(decoder=True)
        parts = [part for part in model.config.sub_configs if getattr(model.config, part, None) is text]
        name = dict.fromkeys(["", *parts], name)
    if model.config.model_type in _ADAPTED:
        # transformers refuses to, because these layers would not call it by themselves.
        model.config._attn_implementation = name[""]
    else:
        model.set_attn_implementation(name)


def layer_of(module: nn.Module) -> int | None:
    """Return which layer an attention module belongs to; None for other modules."""
    for name in ("layer_idx", "layer_id"):
        layer = getattr(module, name, None)
        if isinstance(layer, int):
            return layer
    return None


def decoder_of(model: PreTrainedModel) -> PreTrainedModel:
    """Return the part of a model that every way of calling it goes through, and that takes a cache."""
    decoder = model.get_decoder()
    # That of modernbert-decoder is the head over the vocabulary.
    return decoder if isinstance(decoder, PreTrainedModel) else model.base_model


def give_plan(model: PreTrainedModel, plan: SpanPlan) -> None:
    """Set the spans of a model that is converted."""
    set_spans(model, plan)
    model.span_plan = decoder_of(model).span_plan = plan
    model.config.masformer = {"plan": plan.to_json()}


def set_spans(model: nn.Module, plan: SpanPlan) -> None:
    for module in model.modules():
        layer = layer_of(module)
        if layer is not None and layer < len(plan):
            module.layer_span = plan[layer]  # type: ignore[assignment]


def clear_spans(model: nn.Module) -> None:
    for module in model.modules():
        if hasattr(module, "layer_span"):
            del module.layer_span
