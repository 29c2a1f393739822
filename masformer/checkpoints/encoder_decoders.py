"""Encoder-decoders that are run as they are: which ones, and how many tokens their two parts read.

    config.is_encoder_decoder and ENCODER_DECODERS[config.model_type]
    auto_class(config).from_pretrained(...)
    source_positions(config)    # Positions(count=16384, is_table=True) for LED

They take no span plan: their attention is the architecture's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES as CLASSES

from masformer.errors import CheckpointError


@dataclass(frozen=True, kw_only=True)
class Positions:
    """How many tokens a part of a model reads.

    Attributes:
        count: Positions that it was trained on.
        is_table: They are a table without an entry beyond its end.
    """

    count: int
    is_table: bool


@dataclass(frozen=True, kw_only=True)
class EncoderDecoder:
    """What is particular to a model type.

    Attributes:
        source: Field of the config with the positions of the encoder; None for relative ones, which have no end.
        target: The same of the decoder.
        is_table: Positions are a table.
        newline: How answers spell the end of a line.
    """

    source: str | None = None
    target: str | None = None
    is_table: bool = True
    newline: str | None = None


_ONE_TABLE: dict[str, Any] = {"source": "max_position_embeddings", "target": "max_position_embeddings"}
_PEGASUS: dict[str, Any] = {**_ONE_TABLE, "newline": "<n>"}
# Types that `tests/eval/generation/test_encoder_decoder.py` compares with transformers; others are refused by name.
ENCODER_DECODERS = {
    "bart": EncoderDecoder(**_ONE_TABLE),
    "bigbird_pegasus": EncoderDecoder(**_PEGASUS),
    "led": EncoderDecoder(source="max_encoder_position_embeddings", target="max_decoder_position_embeddings"),
    "longt5": EncoderDecoder(),
    "mt5": EncoderDecoder(),
    "pegasus": EncoderDecoder(**_PEGASUS),
    "pegasus_x": EncoderDecoder(**_PEGASUS, is_table=False),  # sinusoids of any length
    "t5": EncoderDecoder(),
    "umt5": EncoderDecoder(),
}


def auto_class(config: PreTrainedConfig) -> Any:
    """Return the class that builds and loads a model of a config."""
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def check_encoder_decoder(config: PreTrainedConfig, reference: str, gguf_file: str | None, *, is_taken: bool) -> None:
    """Raise `CheckpointError` for an encoder-decoder where decoders alone are taken, and for one of an unknown kind.

    Args:
        gguf_file: File that holds it; None for safetensors.
        is_taken: The command takes encoder-decoders.
    """
    names = config.architectures or [config.model_type]
    kind = config.model_type
    # A speech model has a decoder of text too.
    if kind not in CLASSES or (config.architectures and CLASSES[kind] not in names):
        raise CheckpointError(f"model '{reference}' is a {names[0]}, not a decoder; give a causal language model")
    if kind not in ENCODER_DECODERS:
        raise CheckpointError(
            f"model '{reference}' is a {names[0]}, an encoder-decoder that has not been compared with transformers; "
            f"known: {', '.join(ENCODER_DECODERS)}"
        )
    if not is_taken:
        raise CheckpointError(
            f"model '{reference}' is a {names[0]}, an encoder-decoder, not a decoder; eval/run.py takes it, and this "
            "takes causal language models alone"
        )
    if gguf_file is not None:  # whose names and order of weights have not been compared
        raise CheckpointError(
            f"model '{reference}' is a {names[0]}, an encoder-decoder in a GGUF file; give its folder with safetensors"
        )


def source_positions(config: PreTrainedConfig) -> Positions | None:
    """Return the positions of an encoder; None where they have no end."""
    return _positions(config, ENCODER_DECODERS[config.model_type].source)


def target_positions(config: PreTrainedConfig) -> Positions | None:
    """Return the positions of the decoder of an encoder-decoder; None where they have no end."""
    return _positions(config, ENCODER_DECODERS[config.model_type].target)


def _positions(config: PreTrainedConfig, field: str | None) -> Positions | None:
    if field is None:
        return None
    return Positions(count=int(getattr(config, field)), is_table=ENCODER_DECODERS[config.model_type].is_table)
