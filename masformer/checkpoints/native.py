"""Plans that transformers computes by itself: full layers beside windows of one size, or Llama 4's chunks.

    config = native_config(model.config, plan)      # says the plan in the library's own settings
    prove(folder, model, tokenizer, plan)           # what loads from there without masformer computes the same

A folder with such a config needs no masformer: `layer_types` and `sliding_window` are read by transformers, and by what
reads checkpoints as it does. `native_plan` of it is the plan.
"""

from __future__ import annotations

import inspect
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from masformer.convert import apply_plan, native_plan
from masformer.errors import ConversionError, refusing
from masformer.hardware import dtype_name
from masformer.plans.layer_spans import Blocks, resized
from masformer.plans.spans import FULL, HeadSpans, LayerSpan, PlanError, SpanPlan
from masformer.probe import inference, probe_tokens, tolerance_of

# Model types whose layers can each have the window or not, with the type that says so in `layer_types`: another one
# where the own type does not read it, and has the same weights and computes the same otherwise.
ANY_LAYER = {
    **{kind: kind for kind in ("cwm", "dots1", "gemma2", "gpt_oss", "granite_swa", "granitemoe_swa", "ministral")},
    **{kind: kind for kind in ("qwen2", "qwen2_moe", "qwen3", "smollm3", "vaultgemma")},
    **dict.fromkeys(("llama", "mistral", "internlm3", "iquestcoder"), "ministral"),
    "seed_oss": "qwen2",
}
# The same for chunks.
CHUNKS = ("llama4_text",)
# A longer window is cut to this on both sides of a proof.
_MOST_PROVEN = 4096
# Positions beyond the window, and those whose logits are compared.
_BEYOND, _COMPARED = 512, 128
_TEXT = "Spans of 512 tokens,\n\tand 4 sinks: é, ß, 漢字, 1,024.5 <b>&amp;</b> I'll  <|im_end|></s>"


def native_config(config: PreTrainedConfig, plan: SpanPlan) -> PreTrainedConfig:
    """Return a config with which transformers itself computes a plan that fits the model, of a type that can say it.

    Raises:
        ConversionError: The plan or the architecture has no such form.
    """
    pattern, own = _only_pattern(plan), _own(config)
    kind = _type_for(config, plan, own)
    values = config.to_dict()
    for name in ("masformer", "model_type", "architectures"):
        values.pop(name, None)
    if plan != own:
        values |= _settings(kind, plan, pattern)
    native = CONFIG_MAPPING[kind](**values)
    native.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]]
    _check_weights_fit(config, native)
    if (said := native_plan(native)) != plan:
        raise _no_form(plan, f"{kind} models read it as '{said}'", "give another plan")
    return native


def _own(config: PreTrainedConfig) -> SpanPlan | None:
    try:
        return native_plan(config)
    except PlanError:
        return None


def _no_form(plan: SpanPlan, why: str, remedy: str) -> ConversionError:
    return ConversionError(f"transformers has no form for the plan '{plan}': {why}; {remedy}")


def _only_pattern(plan: SpanPlan) -> LayerSpan:
    """Return the one window or chunk of a plan; full attention where all layers have it."""
    patterns: list[LayerSpan] = []
    for layer in plan.attending:
        span = plan[layer]
        if isinstance(span, HeadSpans):
            raise _no_form(plan, f"layer {layer} has spans of single heads", "give whole layers")
        if span.sinks:
            raise _no_form(plan, f"layer {layer} has sinks", "give sinks=0")
        if span.previous:
            raise _no_form(plan, f"layer {layer} has blocks that see the one before", "give previous=0")
        if not span.is_full and span not in patterns:
            patterns.append(span)
    if len(patterns) > 1:
        raise _no_form(plan, f"it has '{patterns[0]}' and '{patterns[1]}'", "give one window")
    return patterns[0] if patterns else FULL


def _type_for(config: PreTrainedConfig, plan: SpanPlan, own: SpanPlan | None) -> str:
    """Return the model type that says the plan of a model of another type, or of the same."""
    kind, alike = str(config.model_type), len(set(plan)) == 1
    if getattr(config, "auto_map", None):
        raise _no_form(plan, f"{kind} models come with code of their own", "give another model")
    if plan == own:
        return kind
    if len(plan.attending) < len(plan):
        raise _no_form(plan, f"{kind} models have layers without attention", "give the model's own plan")
    if isinstance(_only_pattern(plan), Blocks) or kind in CHUNKS:
        if kind in CHUNKS and all(span.is_full or isinstance(span, Blocks) for span in plan):
            return kind
        raise _no_form(plan, f"chunks are for {' and '.join(CHUNKS)} models, windows for others", "give the other")
    if not hasattr(type(config), "layer_types") and hasattr(type(config), "sliding_window") and alike:
        return kind  # one window for all layers, or none
    if kind in ANY_LAYER:
        return ANY_LAYER[kind]
    if hasattr(type(config), "layer_types") and own is not None:
        if [span.is_full for span in plan] == [span.is_full for span in own]:
            return kind
        why = f"a {kind} layer's kind decides more than its window, and '{own}' has others"
        raise _no_form(plan, why, "give a plan with the model's own full layers")
    raise _no_form(plan, f"{kind} models have no window for each layer", f"these do: {', '.join(sorted(ANY_LAYER))}")


def _settings(kind: str, plan: SpanPlan, pattern: LayerSpan) -> dict[str, Any]:
    """Return the settings by which a model type says a plan, with a list of layers where it reads one."""
    has_layers = hasattr(CONFIG_MAPPING[kind], "layer_types")
    settings: dict[str, Any] = {}
    if isinstance(pattern, Blocks):
        settings["attention_chunk_size"] = pattern.block
    elif not pattern.is_full or not has_layers:
        settings["sliding_window"] = pattern.span
    if hasattr(CONFIG_MAPPING[kind], "use_sliding_window"):
        settings["use_sliding_window"] = not pattern.is_full
    if has_layers:  # elsewhere they mislead: a Mistral with them is read as a Ministral
        short = "chunked_attention" if isinstance(pattern, Blocks) else "sliding_attention"
        settings["layer_types"] = ["full_attention" if span.is_full else short for span in plan]
    return settings


def _check_weights_fit(config: PreTrainedConfig, native: PreTrainedConfig) -> None:
    """Raise `ConversionError` unless both configs build a model with weights of the same names and shapes."""
    with torch.device("meta"):
        states = [AutoModelForCausalLM.from_config(deepcopy(one)).state_dict() for one in (config, native)]
    ours, theirs = ({name: weight.shape for name, weight in state.items()} for state in states)
    if differing := sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)):
        raise ConversionError(
            f"the weights of this {config.model_type} model do not fit a {native.model_type} model, which "
            f"could say its plan: {differing[0]} differs"
        )


def prove(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, plan: SpanPlan) -> None:
    """Raise `ConversionError` unless plain transformers computes a plan from a folder, on a text beyond its window.

    Args:
        folder: Holds a checkpoint in its native form.
        model: Model whose weights it holds; it has the plan afterwards.
    """
    with refusing(ConversionError, "transformers does not load the native form:"):
        config, again = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        found, tokens, cut = _plain_logits(folder, config, model, plan)
    if again(_TEXT).input_ids != tokenizer(_TEXT).input_ids or again.chat_template != tokenizer.chat_template:
        raise ConversionError(
            f"under the model type {config.model_type} transformers makes other tokens of the same text"
        )
    apply_plan(model, cut)
    expected = _last_logits(model, tokens)
    apply_plan(model, plan.with_all(FULL))
    full = _last_logits(model, tokens)
    apply_plan(model, plan)
    off, apart = (_distance(found, other, model.dtype) for other in (expected, full))
    if not off <= tolerance_of(expected):
        raise ConversionError(
            f"what transformers computes from the native form is {off:.3g} off where rounding explains "
            f"{tolerance_of(expected):.3g}"
        )
    if not (plan.is_full or apart > 4 * off):
        raise ConversionError(
            f"in {dtype_name(model.dtype)} the logits of the native form are {off:.3g} off "
            f"and those of full attention {apart:.3g}, which proves nothing; give --dtype float32"
        )


def _plain_logits(
    folder: Path, config: PreTrainedConfig, model: PreTrainedModel, plan: SpanPlan
) -> tuple[Tensor, Tensor, SpanPlan]:
    """Return logits that transformers computes by itself, their tokens, and the plan with the window that it had."""
    pattern = _only_pattern(plan)
    name = "attention_chunk_size" if isinstance(pattern, Blocks) else "sliding_window"
    size = pattern.block or pattern.span or 0
    if size > _MOST_PROVEN:
        size = _MOST_PROVEN
        setattr(config, name, size)
        plan = plan.with_all(*(resized(plan[layer], size) for layer in plan.attending))
    tokens = probe_tokens(model, size + max(_COMPARED, min(size, _BEYOND)))
    config._experts_implementation = model.config._experts_implementation  # grouped products know no float64
    plain = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=model.dtype).to(model.device)
    if (said := native_plan(plain.config)) != plan:
        raise ConversionError(f"the native form reads as '{said}', not as '{plan}'")
    return _last_logits(plain.eval(), tokens), tokens, plan


def _distance(found: Tensor, other: Tensor, dtype: torch.dtype) -> float:
    """Return the largest difference of logits: of all positions, in half precision of the one in the middle.

    A model whose windows have lost the first tokens can blow up rounding at some positions: SmolLM2 in bfloat16 differs
    there from itself in float32 by as much as from full attention, on random tokens with windows of 512.
    """
    by_position = (found - other).abs().amax(-1)
    return float(by_position.max() if dtype.itemsize > 2 else by_position.median())


def _last_logits(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Return the logits of the last tokens, all of them beyond the window."""
    few = {"logits_to_keep": _COMPARED} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    with inference(model):
        logits: Tensor = model(tokens, use_cache=False, **few).logits[0, -_COMPARED:]
    return logits
