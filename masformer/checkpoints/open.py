"""A model reference -> config, tokenizer, provenance, and, when asked for, the weights.

    checkpoint = open_checkpoint("smollm2-135m")      # reads no weights yet
    checkpoint.tokenizer, checkpoint.config, checkpoint.provenance
    model = checkpoint.load_model(torch.float32)

A reference is a short name of `SHORT_NAMES`, a `.gguf` file, a local folder, or a hub id; a folder or hub id may hold a
LoRA adapter, whose base is opened. Weights come as safetensors or GGUF; pickled ones are refused.
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from masformer.checkpoints.encoder_decoders import auto_class, check_encoder_decoder
from masformer.checkpoints.files import (
    ADAPTER_CONFIG,
    GENERATION_CONFIG,
    Listing,
    check_token_ids,
)
from masformer.checkpoints.fit import (
    QUANTIZERS,
    check_all_used,
    check_builds,
    check_quantization,
    check_types,
    describe_quantization,
    guard_embeddings,
    names_made_once,
    pin_attention,
    unpacked_gguf,
    vocabulary,
)
from masformer.checkpoints.places import Place, locate
from masformer.checkpoints.references import SHORT_NAMES
from masformer.checkpoints.wrappers import is_whole, load_text_part, other_parts, text_part
from masformer.errors import CheckpointError, first_line, is_out_of_memory, refusing
from masformer.model_type import read_config

if TYPE_CHECKING:
    from masformer.checkpoints.lora import Adapter

# Architectures whose positions are a learned table, which has no entry beyond its end.
_LEARNED_POSITIONS = {"gpt2", "gpt_neo", "gpt_bigcode", "opt", "biogpt", "ctrl", "openai-gpt"}
# What loading reads from a folder beside weights: config, tokenizer, chat templates, end tokens, code.
_LOADED_FILES = ("*.json", "*.model", "*.jinja", "additional_chat_templates/*.jinja", "*.txt", "*.py")
# What loading reads beside a GGUF file, if it is there.
_BESIDE_GGUF = (GENERATION_CONFIG,)

__all__ = ["SHORT_NAMES", "Checkpoint", "CheckpointError", "has_learned_positions", "max_positions", "open_checkpoint"]


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Place):
    """A model whose weights are not loaded yet.

    Attributes:
        whole: Config of a model that also sees or hears, of which `config` is the text part; else None.
        adapter: LoRA adapter that loading puts on it.
        own_rows: Embeddings in its own files; an adapter may bring more.
        quantize: Key of `QUANTIZERS`; None leaves weights as they are stored.
    """

    name: str
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    trust_remote_code: bool
    whole: PreTrainedConfig | None = None
    adapter: Adapter | None = None
    own_rows: int | None = None
    quantize: str | None = None

    @property
    def quantization(self) -> str | None:
        """Return how the loaded weights are quantized, for people; None for plain ones."""
        own = None if self.gguf_file else getattr(self.config, "quantization_config", None)
        return describe_quantization(own, self.quantize)

    @cached_property
    def has_tokens_beyond(self) -> bool:
        """Return whether the tokenizer has tokens that the model has no embedding for."""
        last = max([self.tokenizer.vocab_size - 1, *self.tokenizer.added_tokens_decoder])
        return bool(last >= vocabulary(self.config))

    @property
    def part(self) -> str | None:
        """Return what is loaded of a model that also sees or hears; None of others."""
        return (
            self.whole and f"the text part of this {self.whole.model_type} model, without its {other_parts(self.whole)}"
        )

    def check_tokens(self, token_ids: Sequence[int], where: str) -> None:
        """Raise `CheckpointError` for a token that the model has no embedding for; `where` names their text."""
        rows = vocabulary(self.config)
        beyond = next((token for token in token_ids if token >= rows), None) if self.has_tokens_beyond else None
        if beyond is not None:
            raise CheckpointError(
                f"{where} holds the token '{self.tokenizer.convert_ids_to_tokens(beyond)}', number {beyond} of "
                f"{len(self.tokenizer):,} in the tokenizer, and '{self.name}' has embeddings for {rows:,}; give the "
                "tokenizer that the model was trained with, or a model whose embeddings were resized"
            )

    def check_text(self, text: str, where: str) -> None:
        """Raise `CheckpointError` for a text that spells an added word without an embedding.

        Prompts spell such a word in characters where it looks like markup, so their tokens do not tell.
        """
        if self.has_tokens_beyond:
            encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
            self.check_tokens(encoded.input_ids, where)

    def load_model(
        self, dtype: torch.dtype, device: torch.device | str = "cpu", device_map: str | None = None
    ) -> PreTrainedModel:
        """Return the model in eval mode, with the weights, where they are not quantized, as plain tensors of `dtype`.

        With the `device_map` `auto`, they are spread over all devices of this machine. An adapter is added to the
        weights; beside quantized ones it stays as layers of its own.

        Raises:
            CheckpointError: There are no safetensors, or the weights do not fit the config.
        """
        source = unpacked_gguf(self.gguf_file) if self.gguf_file else {"use_safetensors": True}
        if self.quantize is not None:
            source["quantization_config"] = QUANTIZERS[self.quantize](dtype)
        config = deepcopy(self.config)
        if self.own_rows is not None:
            config.get_text_config(decoder=True).vocab_size = self.own_rows
        is_quantized = self.quantization is not None
        load = auto_class(config).from_pretrained if self.whole is None else partial(load_text_part, self.whole)
        try:
            with names_made_once() if self.gguf_file else nullcontext():
                loaded: tuple[PreTrainedModel, dict[str, Any]] = load(
                    self.location,
                    config=config,
                    dtype=dtype,
                    revision=self.revision or "main",
                    trust_remote_code=self.trust_remote_code,
                    output_loading_info=True,
                    # Quantized weights are packed for the device that they load on, and do not move.
                    device_map=device_map or ({"": device} if is_quantized else None),
                    **source,
                )
        except CheckpointError as error:
            raise CheckpointError(f"'{self.name}': {error}") from error
        except Exception as error:  # whatever a broken file or a missing package makes transformers raise
            if is_out_of_memory(error):
                raise
            raise CheckpointError(f"the weights of '{self.name}' do not load: {first_line(error)}") from error
        if self.listing is not None and self.revision is not None:  # whose files were fetched for this
            check_types(config, self.listing.tensors(), self.name)
        model, info = loaded
        check_all_used(model, info["unexpected_keys"], self.name)
        absent = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
        if absent:
            # transformers would go on with random numbers in their place.
            raise CheckpointError(
                f"the weights of '{self.name}' lack {len(absent)} tensors of its config, {absent[0]} among them; "
                "the files do not belong together"
            )
        if self.gguf_file:
            # The weights are dequantized; what is left of the quantizer would refuse to save them.
            if hasattr(model.config, "quantization_config"):
                del model.config.quantization_config
            model.hf_quantizer = None
        if self.adapter is not None:
            self.adapter.put_on(model, vocabulary(self.config), is_merged=not is_quantized)
        # Sampling and penalties that the checkpoint suggests must not slip into a measurement.
        own = model.generation_config
        for name in ("eos_token_id", "bos_token_id"):
            check_token_ids(getattr(own, name), f"{GENERATION_CONFIG} of '{self.name}': {name}")
        rows = vocabulary(self.config)
        eos = own.eos_token_id if own.eos_token_id is not None else self.tokenizer.eos_token_id
        ends = {*(eos if isinstance(eos, list) else [eos]), self.tokenizer.eos_token_id} - {None}
        # What the model has no embedding for, it never writes.
        ends = {token for token in ends if 0 <= token < rows}
        pad = self.tokenizer.pad_token_id
        pad = pad if pad is not None and 0 <= pad < rows else min(ends, default=0)
        model.generation_config = GenerationConfig(
            eos_token_id=sorted(ends) or None, pad_token_id=pad, bos_token_id=own.bos_token_id
        )
        if self.has_tokens_beyond:
            guard_embeddings(model, self.check_tokens, self.tokenizer.pad_token_id)
        return (model if device_map or is_quantized else model.to(device)).eval()


def open_checkpoint(
    reference: str,
    *,
    revision: str | None = None,
    adapter: str | None = None,
    adapter_revision: str | None = None,
    quantize: str | None = None,
    trust_remote_code: bool = False,
    takes_encoder_decoders: bool = False,
) -> Checkpoint:
    """Return the checkpoint that a reference names, without weights.

    Args:
        reference: Hub id, folder, `.gguf` file, or short name; or a LoRA adapter, whose base its config names.
        revision: Branch, tag or commit of a model on the hub; None is its main branch.
        adapter: Folder or hub id of a LoRA adapter of the model.
        adapter_revision: As `revision`, for the adapter.
        quantize: Key of `QUANTIZERS`: weights are rounded to as many bits as they load.
        trust_remote_code: Run code that comes with the checkpoint.
        takes_encoder_decoders: An encoder-decoder will do too.

    Raises:
        CheckpointError: None is usable.
    """
    place, lora = locate(reference, revision), None
    if adapter is not None:
        lora = _adapter_at(locate(adapter, adapter_revision, is_adapter=True), adapter)
    elif place.is_adapter:
        lora = _adapter_at(place, reference)
        reference, place = _base_of(lora)
    if place.is_adapter:
        raise CheckpointError(
            f"model '{reference}' is a LoRA adapter itself; merge it first, with: masformer convert {reference} ..."
        )
    if place.listing is not None:
        place.listing.check()
    provenance = place.provenance | ({} if lora is None else {"adapter": lora.provenance})
    provenance |= {} if quantize is None else {"quantize": quantize}
    if place.revision is None:
        folder = Path(place.location)
        provenance["files"] = _digests(folder, _read_files(folder, place.gguf_file, place.listing))
    config, tokenizer, whole = _read(
        place,
        reference,
        lora,
        quantize,
        trust_remote_code=trust_remote_code,
        takes_encoder_decoders=takes_encoder_decoders,
    )
    if place.listing is not None and place.revision is None:
        check_types(config, place.listing.tensors(), reference)
    own_rows = vocabulary(config)
    if lora is not None:
        rows = lora.check(config, reference, trust_remote_code=trust_remote_code)
        config.get_text_config(decoder=True).vocab_size = rows or own_rows
        if lora.trained_with.get("plan") is not None:
            config.masformer = {"plan": lora.trained_with["plan"]}
    return Checkpoint(
        **vars(place) | {"provenance": provenance},
        name=reference,
        config=config,
        tokenizer=tokenizer,
        trust_remote_code=trust_remote_code,
        whole=whole,
        adapter=lora,
        own_rows=own_rows,
        quantize=quantize,
    )


def open_tokenizer(reference: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Return the tokenizer that a reference names; a folder needs nothing else.

    Raises:
        CheckpointError: There is none.
    """
    place = locate(reference, None)
    options: dict[str, Any] = {"gguf_file": place.gguf_file} if place.gguf_file else {}
    with refusing(CheckpointError, f"the tokenizer of '{reference}' cannot be read:"):
        if place.listing is not None and not trust_remote_code:
            place.listing.check_tokenizer()
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            place.location, revision=place.revision or "main", trust_remote_code=trust_remote_code, **options
        )
    return tokenizer


def _adapter_at(place: Place, reference: str) -> Adapter:
    """Return the adapter at a place. Raises `CheckpointError` where none is."""
    from masformer.checkpoints.lora import READ_FILES, read_adapter  # peft takes most of a second to import

    assert place.listing is not None
    adapter = read_adapter(reference, place.listing, place.location, place.revision, place.provenance)
    if place.revision is None:
        place.provenance["files"] = _digests(Path(place.location), READ_FILES)
    return adapter


def _base_of(adapter: Adapter) -> tuple[str, Place]:
    """Return what an adapter's config names as its base, and where that is."""
    base, revision = adapter.base
    is_here = base in SHORT_NAMES or base.endswith(".gguf") or Path(base).is_dir()
    try:
        return base, locate(base, None if is_here else revision)
    except CheckpointError as error:
        raise CheckpointError(
            f"{adapter.name} names '{base}' as its base: {error}; or name its base: --model BASE --adapter "
            f"{adapter.reference}"
        ) from error


def _read(
    place: Place,
    reference: str,
    adapter: Adapter | None,
    quantize: str | None,
    *,
    trust_remote_code: bool,
    takes_encoder_decoders: bool,
) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase, PreTrainedConfig | None]:
    """Return config and tokenizer, and of a text part the config of the whole model.

    Raises:
        CheckpointError: transformers cannot read or build it.
    """
    options: dict[str, Any] = {}
    if place.gguf_file:
        options["gguf_file"] = place.gguf_file
    if place.revision:
        options["revision"] = place.revision
    with refusing(CheckpointError, f"model '{reference}' cannot be read:"):
        config = read_config(place.location, trust_remote_code=trust_remote_code, **options)
        pin_attention(config)
        whole = config if is_whole(config) else None
        config = config if whole is None else text_part(whole, reference)
        if config.is_encoder_decoder:
            check_encoder_decoder(config, reference, place.gguf_file, is_taken=takes_encoder_decoders)
        else:
            _check_decoder(config, reference)
        if adapter is not None and adapter.has_tokenizer:
            tokenizer = adapter.load_tokenizer(config, trust_remote_code=trust_remote_code)
        else:
            if place.listing is not None and not trust_remote_code:
                place.listing.check_tokenizer()
            tokenizer = AutoTokenizer.from_pretrained(place.location, trust_remote_code=trust_remote_code, **options)
    if adapter is not None and (template := adapter.chat_template) is not None:
        tokenizer.chat_template = template
    if quantize is not None and place.gguf_file:
        raise CheckpointError(
            f"model '{reference}' is a GGUF file, which transformers unpacks to plain weights and cannot quantize; "
            f"save them first, with: masformer convert {reference} ..."
        )
    if not place.gguf_file:
        check_quantization(config, reference, quantize)
    if not getattr(config, "auto_map", None):
        check_builds(config, reference)
    return config, tokenizer, whole


def _read_files(folder: Path, gguf_file: str | None, listing: Listing | None) -> list[str]:
    """Return names, or patterns of names, of all files that loading reads."""
    if listing is not None:
        return [*map(glob.escape, listing.weights()), *_LOADED_FILES]
    assert gguf_file is not None
    if (folder / ADAPTER_CONFIG).is_file():
        # Loading would follow it to its base model.
        raise CheckpointError(f"beside '{folder / gguf_file}' lies an {ADAPTER_CONFIG}; move one of them elsewhere")
    return [glob.escape(gguf_file), *_BESIDE_GGUF]


def max_positions(config: PreTrainedConfig) -> int | None:
    """Return the number of positions the model was trained on, or scaled to; None when its config names none.

    Model cards of Qwen switch YaRN on by a factor and leave `max_position_embeddings` at the positions before it.
    """
    text = config.get_text_config(decoder=True)
    value = getattr(text, "max_position_embeddings", None)
    rope = getattr(text, "rope_parameters", None)
    if value is None or not isinstance(rope, dict) or rope.get("rope_type") != "yarn":
        return None if value is None else int(value)
    scaled = (rope.get("original_max_position_embeddings") or 0) * (rope.get("factor") or 1)
    return max(int(value), int(scaled))


def has_learned_positions(config: PreTrainedConfig) -> bool:
    """Return whether positions are a learned table, beyond which the model cannot run at all."""
    return config.model_type in _LEARNED_POSITIONS


def _check_decoder(config: PreTrainedConfig, reference: str) -> None:
    if "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return
    # A GGUF config names no architecture; others must name a decoder, since BERT has one too that nobody means.
    names = config.architectures or []
    decoders = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    known = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if not known or (names and not decoders.intersection(names)):
        what = names[0] if names else config.model_type
        raise CheckpointError(f"model '{reference}' is a {what}, not a decoder; give a causal language model")
    if not getattr(config.get_text_config(decoder=True), "num_attention_heads", None):
        raise CheckpointError(f"model '{reference}' is a {config.model_type}, which has no attention to give spans to")


def _digests(folder: Path, patterns: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of each matching file, by name."""
    digests = {}
    for file in sorted({file for pattern in patterns for file in folder.glob(pattern)}):
        try:
            with file.open("rb") as stream:
                digests[file.relative_to(folder).as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise CheckpointError(f"model file '{file}' cannot be read: {error.strerror}") from error
    return digests
