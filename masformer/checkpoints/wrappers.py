"""The decoder within a checkpoint that also sees or hears: its config, and the model alone.

    whole = AutoConfig.from_pretrained("mistralai/Mistral-Small-3.1-24B")   # mistral3: a vision tower and a mistral
    text = text_part(whole, "m")                                           # the mistral's config
    model, info = load_text_part(whole, "m", config=text)                  # a MistralForCausalLM

transformers loads the whole model, by all names that its weights have had, and the decoder is taken out of it. Then it
proves that it computes of text what the whole model computes: some of these scale logits, or number positions, in a way
of their own.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForMultimodalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)

from masformer.errors import CheckpointError, ConversionError, first_line
from masformer.probe import check_close, inference, tolerance_of

# Decoders without a class of their own: of text alone, with one number for each position, they compute what these do.
_SAME = {
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen2_5_omni_text": "qwen2",
    "qwen3_vl_text": "qwen3",
    "qwen3_vl_moe_text": "qwen3_moe",
    "qwen3_omni_moe_text": "qwen3_moe",
}
_PROOF_TOKENS = 24
# What a config of the whole model says for its decoder too.
_SHARED_SETTINGS = ("bos_token_id", "eos_token_id", "dtype", "quantization_config", "masformer")


def is_whole(config: PreTrainedConfig) -> bool:
    """Return whether a config is that of a model with a decoder and other parts, saved as a whole."""
    name = MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES.get(config.model_type)
    if name is None or config.is_encoder_decoder or getattr(config, "auto_map", None):
        return False
    if config.architectures:
        return name in config.architectures and config.get_text_config(decoder=True) is not config
    return config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def has_text_part(whole: PreTrainedConfig) -> bool:
    """Return whether the decoder of a whole model is a model of its own."""
    text = whole.get_text_config(decoder=True)
    is_direct = any(getattr(whole, name, None) is text for name in whole.sub_configs)
    return is_direct and _SAME.get(text.model_type, text.model_type) in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def text_part(whole: PreTrainedConfig, reference: str) -> PreTrainedConfig:
    """Return the config of the decoder within a model.

    Args:
        whole: Config for which `is_whole` holds.

    Raises:
        CheckpointError: The decoder is no model of its own, or the whole one cannot be built.
    """
    text = whole.get_text_config(decoder=True)
    kind = text.model_type
    if not has_text_part(whole):
        raise CheckpointError(
            f"model '{reference}' is a {whole.model_type} with a {kind} for text, which is no causal language model "
            "of its own in transformers; give another model"
        )
    try:
        with torch.device("meta"):
            AutoModelForMultimodalLM.from_config(deepcopy(whole))
    except Exception as error:  # sizes that do not go together, a package that is missing
        raise CheckpointError(
            f"model '{reference}': this {whole.model_type} cannot be built ({type(error).__name__}: "
            f"{first_line(error)})"
        ) from error
    for name in _SHARED_SETTINGS:
        value = getattr(whole, name, None)
        if value is not None:
            setattr(text, name, value)
    text = _same(text) if kind in _SAME else text
    text.name_or_path = whole.name_or_path
    text.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING[type(text)].__name__]
    return text


def load_text_part(
    whole: PreTrainedConfig, location: str, *, config: PreTrainedConfig, **options: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Return the decoder within a model, and what `output_loading_info` says of its weights.

    Args:
        config: Config of the decoder, from `text_part`.
        options: Of `from_pretrained`.

    Raises:
        CheckpointError: It computes something else of text than the whole model.
    """
    loaded, info = AutoModelForMultimodalLM.from_pretrained(
        location, config=_with(whole, config), **options | {"output_loading_info": True}
    )
    cls = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    decoder = next((module for module in loaded.modules() if isinstance(module, cls)), None) or loaded.get_decoder()
    others = _other_prefixes(loaded, decoder)
    model = decoder if isinstance(decoder, cls) else _alone(loaded, decoder, config)
    for name in ("hf_device_map", "hf_quantizer", "quantization_method", "is_quantized", "is_loaded_in_4bit"):
        if hasattr(loaded, name):
            setattr(model, name, getattr(loaded, name))
    model.generation_config = loaded.generation_config
    model.eval()
    _prove(loaded, model)
    return model, info | {
        name: [key for key in map(str, info[name]) if not key.startswith(others)]
        for name in ("missing_keys", "unexpected_keys")
    }


def other_parts(whole: PreTrainedConfig) -> str:
    """Return the names of what is left out."""
    text = whole.get_text_config(decoder=True)
    names = [name for name in whole.sub_configs if getattr(whole, name, None) not in (None, text)]
    return " and ".join(name.removesuffix("_config") for name in names) or "others"


def _same(text: PreTrainedConfig) -> PreTrainedConfig:
    """Return the config of the same decoder for text alone."""
    cls = CONFIG_MAPPING[_SAME[text.model_type]]
    names = cls().to_dict().keys() | cls.attribute_map.keys() | {"masformer", "quantization_config", "dtype"}
    names -= {"model_type", "architectures", "transformers_version"}
    values = {name: getattr(text, name) for name in sorted(names) if hasattr(text, name)}
    rope = values.get("rope_parameters") or {}
    values["rope_parameters"] = {name: value for name, value in rope.items() if not name.startswith("mrope_")}
    # They have no such setting, and do it.
    more = {"norm_topk_prob": True} if text.model_type == "qwen3_vl_moe_text" else {}
    return cls(**values | more)


def _with(whole: PreTrainedConfig, text: PreTrainedConfig) -> PreTrainedConfig:
    """Return the config of a model with that of its decoder, whose positions may have been extended."""
    whole = deepcopy(whole)
    own = whole.get_text_config(decoder=True)
    if type(own) is not type(text):
        mrope = {name: value for name, value in own.rope_parameters.items() if name.startswith("mrope_")}
        own.rope_parameters = {**text.rope_parameters, **mrope}
        return whole
    name = next(name for name in whole.sub_configs if getattr(whole, name, None) is own)
    setattr(whole, name, text)
    return whole


def _alone(loaded: PreTrainedModel, decoder: PreTrainedModel, text: PreTrainedConfig) -> PreTrainedModel:
    """Return a causal language model of the decoder's own weights."""
    head = loaded.get_output_embeddings()
    is_same = type(text) is type(decoder.config)
    # The very object that its layers have.
    config = decoder.config if is_same else text
    for name in ("_attn_implementation", "_experts_implementation"):
        setattr(config, name, getattr(decoder.config, name))
    config.tie_word_embeddings = head.weight is decoder.get_input_embeddings().weight
    with init_empty_weights(include_buffers=False):
        model: PreTrainedModel = MODEL_FOR_CAUSAL_LM_MAPPING[type(text)](config)
    if is_same:
        setattr(model, model.base_model_prefix, decoder)
    else:
        model.base_model.load_state_dict(decoder.state_dict(), assign=True)
        model.base_model.to(decoder.device)
    model.set_output_embeddings(head)
    return model


def _prove(loaded: PreTrainedModel, model: PreTrainedModel) -> None:
    """Raise `CheckpointError` unless a decoder computes of text what the whole model does."""
    whole = loaded.config
    # Of images and the like, by all the names that configs have for them.
    marks = ("_token_id", "_token_index")
    others = {value for name, value in whole.to_dict().items() if name.endswith(marks) and isinstance(value, int)}
    rows = int(model.config.vocab_size)
    generator = torch.Generator().manual_seed(0)
    plain = [token for token in torch.randperm(rows, generator=generator)[:1000].tolist() if token not in others]
    tokens = torch.tensor([plain[:_PROOF_TOKENS]], device=model.get_input_embeddings().weight.device)
    refuse = f"the text part of this {whole.model_type} model cannot be used alone:"
    try:
        with inference(loaded):
            expected: Tensor = loaded(input_ids=tokens, use_cache=False).logits[0]
            found = model(input_ids=tokens, use_cache=False).logits[0]
        check_close(found, expected, tolerance_of(expected), f"{refuse} its logits are")
    except ConversionError as error:
        raise CheckpointError(f"{error}; give a causal language model") from error
    except Exception as error:  # as where it asks for an image
        raise CheckpointError(f"{refuse} {first_line(error)}; give a causal language model") from error


def _other_prefixes(loaded: PreTrainedModel, decoder: PreTrainedModel) -> tuple[str, ...]:
    """Return how names of weights begin that belong to other parts than the decoder and the head."""
    path = next(name for name, module in loaded.named_modules() if module is decoder).split(".")
    others, module, head = [], loaded, loaded.get_output_embeddings()
    for depth, step in enumerate(path):
        others += [
            ".".join([*path[:depth], name, ""])
            for name, child in module.named_children()
            if name != step and child is not head
        ]
        module = module.get_submodule(step)
    return tuple(others)
