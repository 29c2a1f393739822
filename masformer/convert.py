"""Put a span plan on a model and take it off.

    plan = read_plan("middle:8 span=1024 sinks=4", model.config)
    apply_plan(model, plan)          # weights are not touched
    remove_plan(model)               # exactly the model it was
    save_checkpoint(model, tokenizer, "smollm2-mas")                  # masformer/checkpoints/saving.py
    AutoModelForCausalLM.from_pretrained("smollm2-mas")               # with the stored plan (masformer/model_type.py)

Each conversion proves itself on a few random tokens (`masformer.probe`).
"""

from __future__ import annotations

import inspect
import reprlib
from typing import Any

from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel

from masformer.adapters import adapt, attention_names, clear_spans, decoder_of, give_plan, set_attention, unadapt
from masformer.attention.cache import SpanCache
from masformer.attention.kernels import ATTENTION_NAME, register
from masformer.errors import ConversionError, NumbersError, SpanError
from masformer.plans.shapes import changes_states, layers_without_attention, num_kv_heads, shared_layers
from masformer.plans.spans import FULL, NO_ATTENTION, LayerSpan, PlanError, SpanPlan
from masformer.plans.written import plan_in_file
from masformer.probe import alternating_plan, probe_heads, probe_serving, probe_spans


def text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the decoder's part of a config."""
    return config.get_text_config(decoder=True)


def num_layers(config: PreTrainedConfig) -> int:
    """Return the number of decoder layers."""
    return int(text_config(config).num_hidden_layers)


def read_plan(text: str, config: PreTrainedConfig) -> SpanPlan:
    """Return the plan that a person gives for a model, as text or in a .json file.

    The file holds what `SpanPlan.to_json` returns, alone or as `plan` of an object.

    Raises:
        PlanError: It is malformed or does not fit the model, or the file cannot be read.
    """
    if text.endswith(".json"):
        plan = plan_in_file(text)
    else:
        plan = SpanPlan.parse(text, num_layers(config), num_kv_heads(config), layers_without_attention(config))
    check_fits(plan, config)
    return plan


def check_fits(plan: SpanPlan, config: PreTrainedConfig) -> None:
    """Raise `PlanError` for a plan with other layers or heads than the model's."""
    plan.check_fits(num_layers(config), config.model_type, num_kv_heads(config))
    without = layers_without_attention(config)
    for layer, span in enumerate(plan):
        if (span == NO_ATTENTION) != (layer in without):
            has = "no attention" if layer in without else "attention"
            raise PlanError(
                f"layer {layer} of this {config.model_type} model has {has}, and the plan gives it '{span}'"
            )
    if plan.num_heads is not None and changes_states(config):
        raise PlanError(
            f"span plan has spans of single heads, and {config.model_type} computes keys or values of all heads from "
            "what it keeps; give whole layers"
        )
    for layer, producer in shared_layers(config).items():
        if plan[layer] != plan[producer]:
            raise PlanError(
                f"layer {layer} of this {config.model_type} model reads the keys of layer {producer}, and the plan "
                f"gives them '{plan[layer]}' and '{plan[producer]}'; give both the same"
            )


def stored_plan(config: PreTrainedConfig) -> SpanPlan | None:
    """Return the plan in a config, or None. Raises `PlanError` if it is malformed or does not fit the model."""
    stored = getattr(config, "masformer", None)
    if stored is None or (isinstance(stored, dict) and stored.keys() == {"files"}):  # of a native form
        return None
    if not isinstance(stored, dict) or "plan" not in stored:
        raise PlanError(f"config.json: 'masformer' holds {reprlib.repr(stored)}, an object with 'plan' was expected")
    plan = SpanPlan.from_json(stored["plan"])
    check_fits(plan, config)
    return plan


def native_plan(config: PreTrainedConfig) -> SpanPlan:
    """Return the spans that the architecture itself gives its layers. Raises `PlanError` if no span describes one."""
    config = text_config(config)
    count = int(config.num_hidden_layers)
    if hasattr(config, "attention_layers"):  # GPT-Neo
        window, names = config.window_size, {"global": "full_attention", "local": "sliding_attention"}
        kinds = [names.get(kind, kind) for kind in config.attention_layers]
    else:
        # A config.json may name a window that its architecture does not read: then neither the kinds of its layers nor
        # its class know of it. A class from elsewhere is believed.
        window = getattr(config, "sliding_window", None)
        known = hasattr(type(config), "sliding_window") or not type(config).__module__.startswith("transformers.")
        of_all = "sliding_attention" if window and known else "full_attention"
        kinds = list(getattr(config, "layer_types", None) or [of_all] * count)
    spans: list[LayerSpan] = []
    without = layers_without_attention(config)
    for layer, kind in enumerate(kinds):
        if layer in without:
            spans.append(NO_ATTENTION)
        elif kind in ("full_attention", "hybrid"):
            spans.append(FULL)
        elif kind in ("sliding_attention", "hybrid_sliding") and window:
            spans.append(LayerSpan(span=int(window)))
        elif kind == "chunked_attention":  # Llama 4
            spans.append(LayerSpan(block=int(config.attention_chunk_size), previous=0, sinks=0))
        else:
            raise PlanError(
                f"layer {layer} of this {config.model_type} model is of kind '{kind}', which no span describes"
            )
    plan = SpanPlan(tuple(spans))
    plan.check_fits(count, config.model_type)
    if not plan.attending:
        raise PlanError(f"no layer of this {config.model_type} model has attention that could have a span")
    return plan


def full_plan(config: PreTrainedConfig) -> SpanPlan:
    """Return the plan in which every layer that has attention sees everything."""
    return SpanPlan.full(num_layers(config), layers_without_attention(config))


def apply_plan(model: PreTrainedModel, plan: SpanPlan | None = None) -> SpanPlan:
    """Give each layer of the model the span that the plan says, in place, and return the plan.

    From then on the model's caches are `SpanCache`s, those that `generate` makes included. A converted model may be
    given another plan at any time.

    Without a plan, the one stored in the model's config is taken, else the spans of its architecture.

    Raises:
        PlanError: The plan does not fit the model.
        ConversionError: The architecture does not pass the probe; the model is left as it was.
    """
    if plan is None:
        plan = stored_plan(model.config) or native_plan(model.config)
    check_fits(plan, model.config)
    former_plan: SpanPlan | None = getattr(model, "span_plan", None)
    own = native_plan(model.config)
    if former_plan is None:
        probe_spans(model, own)
        register()
        former = (attention_names(model), getattr(model.config, "masformer", None))
        set_attention(model, ATTENTION_NAME)
        # On the decoder, which every way of calling the model goes through.
        hook = decoder_of(model).register_forward_pre_hook(_prepare_cache, with_kwargs=True)
        adapt(model)
        model.masformer_former = (*former, hook)
    try:
        if former_plan is None:
            probe_serving(model, alternating_plan(model.config, own), "spans")
        if plan.num_heads is not None and not hasattr(model, "proven_heads"):
            probe_heads(model, own, plan.num_heads)
            model.proven_heads = True
    except (ConversionError, NumbersError):
        if former_plan is None:
            remove_plan(model)
        else:
            give_plan(model, former_plan)
        raise
    give_plan(model, plan)
    return plan


def remove_plan(model: PreTrainedModel) -> None:
    """Make a converted model the one it was before, in place."""
    if not hasattr(model, "masformer_former"):
        return
    attention, stored, hook = model.masformer_former
    hook.remove()
    unadapt(model)
    set_attention(model, attention)
    clear_spans(model)
    if hasattr(model, "span_plan"):  # unless the probe has failed before any plan was given
        del model.span_plan, model.config.masformer
    del model.masformer_former
    if hasattr(model, "proven_heads"):
        del model.proven_heads
    if hasattr(decoder_of(model), "span_plan"):
        del decoder_of(model).span_plan
    if stored is not None:
        model.config.masformer = stored


def _prepare_cache(decoder: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Before each forward pass: see that the cache is a `SpanCache` of the plan and knows the padding."""
    if args:
        kwargs = {**inspect.signature(decoder.forward).bind_partial(*args).arguments, **kwargs}
    cache, mask, plan = kwargs.get("past_key_values"), kwargs.get("attention_mask"), decoder.span_plan
    if cache is None:
        use_cache = kwargs.get("use_cache")
        if decoder.training or not (decoder.config.use_cache if use_cache is None else use_cache):
            return (), {**kwargs, "use_cache": False}
        cache = SpanCache(plan)
    elif type(cache) is DynamicCache and cache.get_seq_length() == 0:
        # In place, because the caller goes on with the object that it gave.
        cache.__class__ = SpanCache
        cache.__dict__ = SpanCache(plan).__dict__
    elif not isinstance(cache, SpanCache):
        raise _mistake(decoder, f"a model with a span plan needs a SpanCache, got a {type(cache).__name__}")
    if cache.plan != plan:
        raise _mistake(decoder, f"the cache was made for the plan '{cache.plan}', the model has '{plan}'")
    if cache.config is not decoder.config:
        cache.fit(decoder.config)
    try:
        cache.set_padding(mask)
    except SpanError as error:
        raise _mistake(decoder, str(error)) from error
    return (), {**kwargs, "past_key_values": cache}


def _mistake(decoder: PreTrainedModel, text: str) -> SpanError:
    """Return an error about what the caller gave to the model."""
    return SpanError(text).of(decoder.config, is_of_caller=True)
