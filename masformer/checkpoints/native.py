"""Plans that transformers computes by itself: full layers beside windows of one size, or Llama 4's chunks.

    config = native_config(model.config, plan)    # says the plan in the library's own settings
    prove(folder, model, plan)                    # what loads from there without masformer computes the same

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
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from masformer.convert import apply_plan, native_plan
from masformer.errors import ConversionError, first_line
from masformer.plans.layer_spans import Blocks, Window
from masformer.plans.spans import HeadSpans, LayerSpan, SpanPlan
from masformer.probe import inference, probe_tokens, tolerance_of

_REMEDY = "or leave --native out"
# Model types whose layers can each have the window or not, and the type that says so: another one where the own type
# does not read `layer_types`, and computes the same otherwise.
_ANY_LAYER = {"llama": "ministral", "mistral": "ministral"}
# Model types in which every layer has the window, or none.
_ALL_LAYERS = {"mistral"}
# Model types that have kinds of layers, and in which a kind decides more than what is seen, such as positions.
_SAME_KINDS: set[str] = set()
_CHUNKS = {"llama4_text"}
# A longer window is cut to this many tokens on both sides of a proof.
_MOST_PROVEN = 4096
# Positions beyond the window whose logits are compared.
_COMPARED = 128
_TEXT = "Spans of 512 tokens,\n\tand 4 sinks: é, ß, 漢字, 1,024.5 <b>&amp;</b> I'll  <|im_end|></s>"


def native_config(config: PreTrainedConfig, plan: SpanPlan) -> PreTrainedConfig:
    """Return a config with which transformers itself computes the plan, of a model type that can say it.

    Args:
        config: Config of the model, without a plan or with one, which is left out.
        plan: Plan that fits the model.

    Raises:
        ConversionError: The plan or the architecture has no such form.
    """
    pattern = _only_pattern(plan)
    kind = _type_for(config, plan, pattern)
    values = config.to_dict()
    for name in ("masformer", "model_type", "architectures", "_name_or_path"):
        values.pop(name, None)
    if isinstance(pattern, Blocks):
        values["attention_chunk_size"] = pattern.block
    elif isinstance(pattern, Window):
        values["sliding_window"] = pattern.span
        if "use_sliding_window" in values:
            values["use_sliding_window"] = True
    elif "layer_types" not in values:
        values["sliding_window"] = None
    if "layer_types" in values or kind != config.model_type:
        values["layer_types"] = [_NAMES[type(span).__name__] for span in plan]
    native = CONFIG_MAPPING[kind](**values)
    native.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]]
    native.dtype = config.dtype
    _check_weights_fit(config, native)
    if (said := native_plan(native)) != plan:
        raise ConversionError(f"--native: {kind} models read the plan '{plan}' as '{said}'; give another, {_REMEDY}")
    return native


def _only_pattern(plan: SpanPlan) -> LayerSpan | None:
    """Return the one window or chunk of a plan; None where all layers are full."""
    patterns: set[LayerSpan] = set()
    for layer, span in enumerate(plan):
        if isinstance(span, HeadSpans):
            raise _no_form(plan, f"layer {layer} has spans of single heads", "give whole layers")
        if span.sinks:
            raise _no_form(plan, f"layer {layer} has {span.sinks} sinks", "give sinks=0")
        if not span.is_full:
            patterns.add(span)
    if len(patterns) > 1:
        several = " and ".join(sorted(f"'{one}'" for one in patterns)[:2])
        raise _no_form(plan, f"its layers have {several}", "give one window")
    return patterns.pop() if patterns else None


def _no_form(plan: SpanPlan, why: str, remedy: str) -> ConversionError:
    return ConversionError(
        f"--native: transformers has no setting for the plan '{plan}': {why}; {remedy}, or leave --native out"
    )


def _type_for(config: PreTrainedConfig, plan: SpanPlan, pattern: LayerSpan | None) -> str:
    """Return the model type that says the plan of a model."""
    kind = config.model_type
    if isinstance(pattern, Blocks) != (kind in _CHUNKS):
        ...
    return kind
