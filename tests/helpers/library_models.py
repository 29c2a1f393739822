"""Random tiny models of every architecture that transformers has a decoder for, also of those that see or hear."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from tests.helpers.tiny_models import LLAMA_LIKE, VOCAB

LAYERS = 4
_MOST_WEIGHTS = 100_000_000
# Whose own code knows no fp64.
_IN_FP32 = ("inkling2", "inkling2_text", "xglm")

# Small values of the names that configs give the same thing; each config takes those that it knows.
_SIZES: dict[str, Any] = LLAMA_LIKE | {
    "num_hidden_layers": LAYERS,
    "sliding_window": 12,
    # Experts.
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
    # Latent attention.
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    # States.
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_head_dim": 8,
    "linear_num_heads": 4,
    "mamba_n_heads": 4,
    "mamba_d_state": 8,
    # The rest of what would be large.
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "ffn_dim": 48,
    "num_layers": LAYERS,
    "num_heads": 4,
    "rotary_dim": 4,
    "vocab_size_per_layer_input": VOCAB,
    "hidden_size_per_layer_input": 8,
    "image_size": 32,
    "patch_size": 16,
    "window_size": 12,
}
_ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
_WINDOWS = ["sliding_attention", "full_attention"] * (LAYERS // 2)
_STATES = {"layer_types": ["linear_attention", "full_attention"] * (LAYERS // 2)}
_MROPE = {"rope_parameters": _ROPE | {"mrope_section": [2, 1, 1]}}
_SHARED = {"layers_block_type": ["linear_attention", "hybrid"] * (LAYERS // 2)}
_DENSE_FIRST = {"n_shared_experts": 1, "first_k_dense_replace": 1}
# What single architectures need besides.
_OWN: dict[str, dict[str, Any]] = {
    "blt": {"encoder_hash_byte_group_vocab": 500},
    "blt_local_encoder": {"hidden_size_global": 32},
    "blt_local_decoder": {"hidden_size_global": 32},
    "cohere_compass_text": {"layer_types": _WINDOWS, "rope_parameters": dict.fromkeys(_WINDOWS, _ROPE)},
    "dbrx": {"d_model": 32, "n_heads": 4, "n_layers": LAYERS, "max_seq_len": 512}
    | {"attn_config": {"kv_n_heads": 2, "rope_theta": 10_000.0, "clip_qkv": 8.0}, "rope_parameters": _ROPE}
    | {"ffn_config": {"ffn_hidden_size": 48, "hidden_size": 32, "moe_top_k": 2}},
    "dots3_note_vision_encoder": {"mlp_layer_types": ["dense"] * LAYERS, "adapter_in_dim": 32, "adapter_out_dim": 32},
    "dots3_note_audio_encoder": {"adapter_input_size": 32, "adapter_out_dim": 32},
    "dots1": _DENSE_FIRST,
    "gemma3n_text": {"num_kv_shared_layers": 2, "layer_types": _WINDOWS, "altup_num_inputs": 2, "laurel_rank": 4}
    | {"activation_sparsity_pattern": [0.0] * LAYERS, "intermediate_size": 48},
    "gemma4_text": {"num_kv_shared_layers": 2, "layer_types": _WINDOWS, "global_head_dim": 16},
    "gemma4_unified_text": {"num_kv_shared_layers": 0, "layer_types": _WINDOWS, "global_head_dim": 16},
    "gpt_neo": {"attention_types": [[["global", "local"], LAYERS // 2]]},
    "granitemoehybrid": _STATES,
    "kimi_linear": _STATES,
    "bailing_hybrid": _STATES,
    "bamba": {"attn_layer_indices": [1, 3], "mamba_d_head": 16},
    "falcon_h1": {"mamba_d_ssm": 64},
    "nemotron_h": {"mamba_num_heads": 4, "mamba_head_dim": 16, "ssm_state_size": 8, "n_groups": 1},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"] * (LAYERS // 2)},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * (LAYERS // 2)},
    "longcat_flash": {"num_layers": LAYERS // 2, "ffn_hidden_size": 48, "expert_ffn_hidden_size": 16, "moe_topk": 2},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 2},
    "mimo_v2_flash": {"layer_types": _WINDOWS},
    "qwen4_exp_text": {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 16}
    | {"indexer_compress_ratio": 4, "hc_lowrank": 8},
    "reformer": {"is_decoder": True, "axial_pos_shape": (8, 8), "axial_pos_embds_dim": (16, 16)}
    | {"attention_head_size": 8, "feed_forward_size": 48, "attn_layers": ["local", "lsh"] * (LAYERS // 2)},
    "roc_bert": {"shape_vocab_size": 9, "shape_embed_dim": 8, "pronunciation_vocab_size": 9}
    | {"pronunciation_embed_dim": 8},
    **dict.fromkeys(("qwen2_vl_text", "qwen2_5_vl_text", "qwen2_5_omni_text", "qwen3_vl_text"), _MROPE),
    **dict.fromkeys(("qwen3_vl_moe_text", "qwen3_omni_moe_text"), _MROPE),
    "qwen2_vl_vision": {"embed_dim": 32, "depth": 2},
    "janus_vqgan": {"image_token_embed_dim": 32, "num_embeddings": VOCAB, "projection_dim": 32},
    "inkling2_vision": {"text_hidden_size": 32},
    "xlnet": {"d_head": 8},
    "xmod": {"default_language": "en_XX"},
    "zamba": _SHARED,
    "zamba2": _SHARED | {"adapter_rank": 8, "n_mamba_heads": 8, "mamba_ngroups": 1, "mamba_d_state": 8},
    "zaya": {"num_experts_per_tok": 1},
}


def tiny_library_model(kind: str, **changes: Any) -> PreTrainedModel:
    """Return a random model of an architecture in fp64, in eval mode, with the same weights at every call.

    Raises:
        ValueError: It would be large.
    """
    config = _shrink(CONFIG_MAPPING[kind], **changes)
    _check_size(AutoModelForCausalLM, config)
    torch.manual_seed(0)
    # Grouped products of experts know no fp64.
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, experts_implementation="eager")
    return model.eval() if kind in _IN_FP32 else model.eval().double()


def tiny_whole_model(kind: str, **text: Any) -> PreTrainedModel:
    """Return a random model that also sees or hears in fp64, in eval mode.

    Args:
        kind: Its `model_type`.
        text: Changes of its text part.

    Raises:
        ValueError: It would be large.
    """
    config = _shrink(CONFIG_MAPPING[kind])
    for name, value in text.items():
        setattr(config.get_text_config(decoder=True), name, value)
    _check_size(AutoModelForMultimodalLM, config)
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForMultimodalLM.from_config(config, experts_implementation="eager")
    return model.eval() if kind in _IN_FP32 else model.eval().double()


def _check_size(auto: Any, config: PreTrainedConfig) -> None:
    with torch.device("meta"):
        size = sum(weight.numel() for weight in auto.from_config(config).parameters())
    if size > _MOST_WEIGHTS:
        raise ValueError(f"its tiny model has {size / 1e6:.0f} million weights")


def _shrink(cls: type[PreTrainedConfig], **changes: Any) -> PreTrainedConfig:
    whole = cls()
    known = {**whole.to_dict(), **dict.fromkeys(cls.attribute_map)}
    values: dict[str, Any] = {name: value for name, value in _SIZES.items() if name in known}
    if "kv_lora_rank" in known:
        values["num_key_value_heads"] = values["num_attention_heads"]
    for name, part in cls.sub_configs.items():
        default = getattr(whole, name, None)
        part = part if default is None else type(default)
        if isinstance(part, type) and issubclass(part, PreTrainedConfig) and hasattr(part, "model_type"):
            values[name] = _shrink(part)
    return cls(**values | _OWN.get(cls.model_type, {}) | changes)
