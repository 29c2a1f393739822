"""Random tiny models of many architectures, for tests on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from masformer.plans.shapes import num_kv_heads
from masformer.plans.spans import FULL, HeadSpans, LayerSpan, SpanPlan

VOCAB = 96
LAYERS = 3
LLAMA_LIKE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "vocab_size": VOCAB,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_ONE_KV_SIZE = {k: v for k, v in LLAMA_LIKE.items() if k != "head_dim"}
_MULTI_HEAD = {k: v for k, v in _ONE_KV_SIZE.items() if k != "num_key_value_heads"}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

# Architectures that a plan can be put on.
SUPPORTED: dict[str, dict[str, Any]] = {
    "llama": LLAMA_LIKE,
    "qwen2": _ONE_KV_SIZE,
    "qwen3": LLAMA_LIKE,
    "qwen3_moe": LLAMA_LIKE | _MOE,
    "mistral": LLAMA_LIKE | {"sliding_window": 12},
    "ministral": LLAMA_LIKE
    | {"sliding_window": 12, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "gemma3_text": LLAMA_LIKE
    | {"sliding_window": 12, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]},
    "gpt_neox": _MULTI_HEAD,
    "gpt2": {"n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_positions": 512, "vocab_size": VOCAB},
    "opt": {
        "hidden_size": 32,
        "ffn_dim": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "vocab_size": VOCAB,
        "word_embed_proj_dim": 32,
    },
    "phi": _ONE_KV_SIZE,
    "phi3": _ONE_KV_SIZE,
    "olmo2": _ONE_KV_SIZE,
    "smollm3": _ONE_KV_SIZE,
    "granite": _ONE_KV_SIZE,
    "starcoder2": _ONE_KV_SIZE | {"sliding_window": None},
    "cohere": _ONE_KV_SIZE,
    "deepseek_v3": _MULTI_HEAD
    | {
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
    },
    # Masks of its own, soft-capped scores, learned sinks.
    "gpt_neo": {
        "hidden_size": 32,
        "num_layers": LAYERS,
        "num_heads": 4,
        "attention_types": [[["local", "global", "local"], 1]],
        "window_size": 12,
        "max_position_embeddings": 512,
        "vocab_size": VOCAB,
    },
    "gemma2": LLAMA_LIKE | {"sliding_window": 12, "attn_logit_softcapping": 0.02},
    "gpt_oss": LLAMA_LIKE | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 12},
}

# Architectures that must be refused by name.
_BLOOM_LIKE = {"hidden_size": 32, "n_layer": LAYERS, "n_head": 4, "vocab_size": VOCAB}
_GPTJ_LIKE = {"n_embd": 32, "n_layer": LAYERS, "n_head": 4, "rotary_dim": 4, "n_positions": 512, "vocab_size": VOCAB}
REFUSED: dict[str, dict[str, Any]] = {
    "falcon": {"hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "vocab_size": VOCAB},
    "bloom": _BLOOM_LIKE,
    "gptj": _GPTJ_LIKE,
    "mpt": {"d_model": 32, "n_layers": LAYERS, "n_heads": 4, "vocab_size": VOCAB, "max_seq_len": 512},
    "codegen": _GPTJ_LIKE,
}


# Architectures on which spans of single heads are tried at length: plain, norms of heads, windows of their own, fused
# projections, as many key/value heads as query heads, an adapter, soft-capped scores, learned sinks.
BY_HEAD = ["llama", "qwen3", "gemma3_text", "phi3", "gpt_neox", "gpt_neo", "gemma2", "gpt_oss"]


def plan_by_head(config: PreTrainedConfig) -> SpanPlan:
    """Return a plan for three layers in which heads see differently, and those that see alike stand apart."""
    window, blocks = LayerSpan(span=17, sinks=3), LayerSpan(block=8, previous=1, sinks=2)
    heads = range(num_kv_heads(config) or 0)
    first, last = tuple((FULL, window)[head % 2] for head in heads), (blocks, *(FULL,) * heads[-1])
    return SpanPlan((HeadSpans(first), window, HeadSpans(last)))


def tiny_model(kind: str, **changes: Any) -> PreTrainedModel:
    """Return a random model of an architecture, in eval mode, with the same weights at every call."""
    config = CONFIG_MAPPING[kind](**((SUPPORTED | REFUSED)[kind] | changes))
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model.eval()


CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_tokenizer(*, chat: bool = True) -> PreTrainedTokenizerBase:
    """Return a byte-level tokenizer: one token a byte, so that counts can be checked by hand."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    vocab = {token: index for index, token in enumerate([*special, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<|pad|>", bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def save_tiny_checkpoint(folder: Path, *, chat: bool = True, kind: str = "llama", **changes: Any) -> Path:
    """Write a random tiny model and its tokenizer to a folder that `--model` takes."""
    tokenizer = tiny_tokenizer(chat=chat)
    # Large weights, so that what is read far away changes what is written.
    model = tiny_model(kind, vocab_size=len(tokenizer), max_position_embeddings=2048, initializer_range=0.4, **changes)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


_BART_LIKE: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 2048,
    "init_std": 0.4,
}
_T5_LIKE: dict[str, Any] = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 32,
    "initializer_factor": 2.0,
    "tie_word_embeddings": False,  # else most answers repeat a token
}
_LED = {name: value for name, value in _BART_LIKE.items() if name != "max_position_embeddings"}
# Encoder-decoders that eval/run.py takes, under the name of each case: its type and the sizes of a tiny one.
ENCODER_DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bart": ("bart", _BART_LIKE),
    "bigbird_pegasus": (
        "bigbird_pegasus",
        _BART_LIKE | {"block_size": 4, "num_random_blocks": 1, "attention_type": "block_sparse"},
    ),
    "led": (
        "led",
        _LED
        | {"attention_window": [8, 16], "max_encoder_position_embeddings": 2048, "max_decoder_position_embeddings": 96},
    ),
    "longt5-local": ("longt5", _T5_LIKE | {"local_radius": 7, "encoder_attention_type": "local"}),
    "longt5-tglobal": (
        "longt5",
        _T5_LIKE | {"local_radius": 7, "encoder_attention_type": "transient-global", "global_block_size": 4},
    ),
    "mt5": ("mt5", _T5_LIKE),
    "pegasus": ("pegasus", _BART_LIKE),
    "pegasus_x": ("pegasus_x", _BART_LIKE | {"block_size": 8, "num_global_tokens": 4}),
    "t5": ("t5", _T5_LIKE),
    "umt5": ("umt5", _T5_LIKE),
}


def framing_tokenizer() -> PreTrainedTokenizerBase:
    """Return a byte-level tokenizer that puts `<s>` before a text and `</s>` after it, as BART's does."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def tiny_encoder_decoder(case: str, **changes: Any) -> PreTrainedModel:
    """Return a random encoder-decoder of `ENCODER_DECODERS`, in eval mode, with the same weights at every call."""
    kind, sizes = ENCODER_DECODERS[case]
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    config = CONFIG_MAPPING[kind](**({"vocab_size": len(framing_tokenizer())} | tokens | sizes | changes))
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForSeq2SeqLM.from_config(config)
    return model.eval()


def save_encoder_decoder(folder: Path, case: str, **changes: Any) -> Path:
    """Write a random encoder-decoder and its tokenizer to a folder that `--model` takes."""
    tiny_encoder_decoder(case, **changes).save_pretrained(folder)
    framing_tokenizer().save_pretrained(folder)
    return folder


def add_word(folder: Path, word: str) -> Path:
    """Add a word to the tokenizer of a checkpoint, without an embedding."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([word])
    tokenizer.save_pretrained(folder)
    return folder


def save_chain_model(folder: Path, tokenizer: PreTrainedTokenizerBase, tokens: list[str]) -> Path:
    """Write a tiny model that writes each of some tokens after the one before it, whatever stands further back."""
    size = len(tokenizer)
    end = tokenizer.eos_token_id
    model = tiny_model("llama", vocab_size=size, hidden_size=320, max_position_embeddings=2048, eos_token_id=end)
    ids = tokenizer.convert_tokens_to_ids(tokens)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_(1e-3)
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size, 320))
        model.lm_head.weight.zero_()
        for last, following in pairwise(ids):
            model.lm_head.weight[following, last] = 1
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_tiny_encoder(folder: Path, *, labels: Sequence[str] = (), max_tokens: int = 64, **changes: Any) -> Path:
    """Write a random encoder of tokens that are bytes to a folder, or a classifier of texts with these labels."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate(["[PAD]", "[CLS]", "[SEP]", *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=max_tokens,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48}
    config = BertConfig(
        **sizes,
        **({"id2label": dict(enumerate(labels))} if labels else {}),
        **changes,
        vocab_size=len(vocab),
        max_position_embeddings=max_tokens,
        initializer_range=0.4,  # large weights, so that texts differ
    )
    torch.manual_seed(0)
    (BertForSequenceClassification(config) if labels else BertModel(config)).save_pretrained(folder)
    return folder
