"""Whether weights, config and tokenizer of a checkpoint belong together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from typing import Any

import torch
import transformers
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel
from transformers.quantizers.auto import get_hf_quantizer

from masformer.checkpoints.encoder_decoders import auto_class
from masformer.checkpoints.files import LEFTOVERS
from masformer.convert import native_plan
from masformer.errors import CheckpointError, first_line
from masformer.plans.spans import PlanError

# Attention functions that come with transformers; any other name may be a repository, whose code it would fetch.
_OWN_ATTENTION = (None, "eager", "sdpa", "flex_attention")
_WEIGHT_TYPES = {"F64", "F32", "F16", "BF16"}


def vocabulary(config: PreTrainedConfig) -> int:
    """Return the number of tokens that the model has embeddings for."""
    return int(config.get_text_config(decoder=True).vocab_size)


def pin_attention(config: PreTrainedConfig) -> None:
    """Leave a config, and those within it, no attention function but transformers' own; None lets it choose."""
    for part in (config, *(getattr(config, name, None) for name in config.sub_configs)):
        if part is not None and part._attn_implementation not in _OWN_ATTENTION:
            part._attn_implementation = None


def check_all_used(model: PreTrainedModel, unexpected: Iterable[str], name: str) -> None:
    """Raise `CheckpointError` for weights in the files that the model has no place for, harmless leftovers aside."""
    is_tied = bool(getattr(model.config.get_text_config(decoder=True), "tie_word_embeddings", False))
    unused = sorted(
        key
        for key in map(str, unexpected)
        if not LEFTOVERS.search(key) and not (is_tied and key.endswith(("lm_head.weight", "embed_out.weight")))
    )
    if unused:
        raise CheckpointError(
            f"the weights of '{name}' hold {len(unused)} tensors that its config does not use, {unused[0]} among them; "
            "the config is that of another model, or names too few layers: restore the original"
        )


def check_types(config: PreTrainedConfig, types: Mapping[str, str], name: str) -> None:
    """Raise `CheckpointError` for a tensor of whole numbers, bools or 8 bits that no quantization explains.

    A library would convert it to weights, without the scales that belong to it.

    Args:
        types: Type of each tensor, as safetensors names it.
    """
    others = [key for key, kind in types.items() if kind not in _WEIGHT_TYPES and not LEFTOVERS.search(key)]
    if not others or getattr(config, "quantization_config", None) is not None or getattr(config, "auto_map", None):
        return  # code of a model's own may keep what it likes
    with torch.device("meta"):
        built = auto_class(config).from_config(deepcopy(config)).state_dict()
    # Some architectures look up in a table of whole numbers.
    tables = tuple(key for key, tensor in built.items() if not tensor.is_floating_point())
    wrong = [key for key in others if not key.endswith(tables)] if tables else others
    if wrong:
        raise CheckpointError(
            f"the weights of '{name}' hold {len(wrong)} tensors of type {types[wrong[0]]}, {wrong[0]} among them, and "
            "its config has no quantization_config; restore the config that belongs to them"
        )


def guard_embeddings(model: PreTrainedModel, check: Callable[[Sequence[int], str], None], pad: int | None) -> None:
    """Let the model refuse tokens that it has no embedding for; padding, which nothing sees, becomes token 0.

    Args:
        check: Raises the error, given tokens and the name of their text.
        pad: Token that pads texts.
    """

    def before(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        ids, *rest = args
        if pad is not None and pad >= module.num_embeddings:  # type: ignore[operator]
            ids = torch.where(ids == pad, 0, ids)
        check(ids.flatten().tolist(), "a text")
        return (ids, *rest)

    model.get_input_embeddings().register_forward_pre_hook(before)


# Settings of `--quantize`: what each gives transformers, for a dtype of the computation.
QUANTIZERS: dict[str, Callable[[torch.dtype], BitsAndBytesConfig]] = {
    # NF4, as QLoRA has it (arXiv 2305.14314); transformers' default, FP4, is worse on weights.
    "4bit": lambda dtype: BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    ),
    "8bit": lambda _: BitsAndBytesConfig(load_in_8bit=True),
}


def describe_quantization(own: Any, quantize: str | None) -> str | None:
    """Return how weights are quantized, for people; None for plain ones.

    Args:
        own: The `quantization_config` of the checkpoint; None for plain weights.
        quantize: Key of `QUANTIZERS`, or None.
    """
    if quantize is not None:
        own = QUANTIZERS[quantize](torch.float32)
    if own is None:
        return None
    settings: Mapping[str, Any] = own if isinstance(own, dict) else own.to_dict()
    method = str(getattr(settings.get("quant_method"), "value", settings.get("quant_method")) or "unknown")
    bits = 4 if settings.get("load_in_4bit") else 8 if settings.get("load_in_8bit") else settings.get("bits")
    return f"{method} {bits}-bit" if isinstance(bits, int) else method


def unpacked_gguf(file: str) -> dict[str, Any]:
    """Return the arguments with which transformers loads a GGUF file as plain weights.

    From 5.23 on it would keep them packed, and change the attention, on machines that have kernels for that.
    """
    config = getattr(transformers, "GgufConfig", None)
    return {"gguf_file": file} | ({"quantization_config": config(dequantize=True)} if config else {})


@contextmanager
def names_made_once() -> Iterator[None]:
    """Let gguf make the names of a model's tensors once; transformers 5.23 asks for them in each of its modules."""
    import gguf

    make = gguf.get_tensor_name_map
    gguf.get_tensor_name_map = cache(make)
    try:
        yield
    finally:
        gguf.get_tensor_name_map = make


def check_quantization(config: PreTrainedConfig, reference: str, quantize: str | None) -> None:
    """Raise `CheckpointError` for weights that this machine has no means to unpack, or to quantize."""
    own = getattr(config, "quantization_config", None)
    if own is not None and quantize is not None:
        raise CheckpointError(
            f"model '{reference}' is quantized already ({describe_quantization(own, None)}); leave --quantize out"
        )
    if own is None and quantize is None:
        return
    asked = None if quantize is None else QUANTIZERS[quantize](torch.float32)
    try:
        get_hf_quantizer(deepcopy(config), asked, None, True, {})
    except Exception as error:  # packages, devices, methods: each has an exception of its own
        if quantize is not None:
            raise CheckpointError(f"--quantize {quantize}: {first_line(error)}") from error
        method = own.get("quant_method") if isinstance(own, dict) else None
        raise CheckpointError(
            f"model '{reference}' is quantized ({method or 'by an unknown method'}): {first_line(error)}; give the "
            "model that it was made from, or a copy with plain weights"
        ) from error


def check_builds(config: PreTrainedConfig, reference: str) -> None:
    """Raise `CheckpointError` unless the config describes a model; allocates no weights."""
    try:
        with torch.device("meta"):
            auto_class(config).from_config(deepcopy(config))
        if not config.is_encoder_decoder:
            native_plan(config)
    except PlanError:
        return  # layers that no span describes: a model all the same
    except Exception as error:  # sizes that do not go together, unknown activations, ...
        raise CheckpointError(
            f"model '{reference}': its config describes no model that can be built ({type(error).__name__}: "
            f"{first_line(error)}); compare it with that of the original"
        ) from error
