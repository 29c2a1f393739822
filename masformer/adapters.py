"""Architectures that do not call the attention function given to transformers: what makes them call it.

Each adapter takes a model and puts its work on the modules themselves, without touching a weight; what it returns takes
it off again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoSelfAttention


def adapt(model: PreTrainedModel) -> Callable[[], None]:
    """Make every layer call the attention function named in the model's config; return what undoes it."""
    adapter = _ADAPTERS.get(model.config.model_type)
    return adapter(model) if adapter else lambda: None


def set_attention(model: PreTrainedModel, name: str) -> None:
    """Name the attention function that the model's layers call from now on."""
    if model.config.model_type in _ADAPTERS:
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


def _adapt_gpt_neo(model: PreTrainedModel) -> Callable[[], None]:
    """GPT-Neo applies its causal and local masks itself, from a buffer, to scores that it does not scale."""
    decoder = model.get_decoder()
    modules = [module for module in decoder.modules() if isinstance(module, GPTNeoSelfAttention)]
    packing: dict[str, Any] = {}

    def remember(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # Its layers do not get to see where packed documents begin.
        packing["position_ids"] = kwargs.get("position_ids")

    def attention_of(module: nn.Module) -> Callable[..., tuple[Tensor, None]]:
        def attend(query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None) -> tuple[Tensor, None]:
            name = module.config._attn_implementation  # type: ignore[union-attr]
            if name not in AttentionInterface():
                return GPTNeoSelfAttention._attn(module, query, key, value, attention_mask)  # type: ignore[no-any-return]
            dropout = module.attn_dropout.p if module.training else 0.0  # type: ignore[union-attr]
            out, _ = AttentionInterface()[name](
                module, query, key, value, attention_mask, dropout=dropout, scaling=1.0, **packing
            )
            return out.transpose(1, 2), None

        return attend

    hook = decoder.register_forward_pre_hook(remember, with_kwargs=True)
    for module in modules:
        module._attn = attention_of(module)

    def undo() -> None:
        hook.remove()
        for module in modules:
            del module._attn

    return undo


_ADAPTERS: dict[str, Callable[[PreTrainedModel], Callable[[], None]]] = {"gpt_neo": _adapt_gpt_neo}
