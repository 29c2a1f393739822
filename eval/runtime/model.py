"""The model that a script runs: opened and checked before its weights load."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, modeling_gguf_pytorch_utils
from transformers.utils import logging as transformers_logging

from eval.config.job import JobOptions
from eval.errors import UserError
from eval.records.schema import ModelRecord
from eval.records.typed import from_json
from eval.runtime.memory import copy_bytes
from eval.runtime.processes import AcceleratedProcess
from masformer import ConversionError, PlanError, SpanPlan, apply_plan, native_plan, read_plan, stored_plan
from masformer.attention.ways import check_attention_ways
from masformer.checkpoints.encoder_decoders import Positions, source_positions, target_positions
from masformer.checkpoints.files import check_token_ids
from masformer.checkpoints.open import Checkpoint, has_learned_positions, max_positions, open_checkpoint
from masformer.linear import check_linear_way, tune
from masformer.probe import probe_untouched

TORCH_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


# dtypes that bitsandbytes computes in; its 8-bit layers round what enters them to float16 first.
_QUANTIZED_DTYPES = {"4bit": ("float32", "bfloat16", "float16"), "8bit": ("bfloat16", "float16")}


def default_dtype(device_type: str) -> str:
    """Return the default dtype of a device: bfloat16 on CUDA, else float32."""
    return "bfloat16" if device_type == "cuda" else "float32"


def check_dtype(dtype: str, quantize: str | None) -> None:
    """Raise `UserError` for a dtype that quantized weights are not computed in."""
    known = _QUANTIZED_DTYPES.get(quantize or "", (dtype,))
    if dtype not in known:
        raise UserError(f"quantize {quantize} does not compute in {dtype}; give dtype {' or '.join(known)}")


@dataclass(frozen=True, kw_only=True)
class OpenedModel:
    """A model that is checked and not loaded.

    Attributes:
        process: Process that will load it.
        checkpoint: Config, tokenizer and provenance.
        plan: Spans to put on it; None leaves it untouched.
        dtype: Key of `TORCH_DTYPES`.
        requested_plan: `--plan`.
    """

    process: AcceleratedProcess
    checkpoint: Checkpoint
    plan: SpanPlan | None
    dtype: str
    requested_plan: str

    @property
    def record(self) -> ModelRecord:
        """Return what pins the weights."""
        return from_json(ModelRecord, self.checkpoint.provenance, self.checkpoint.name)

    @property
    def plan_json(self) -> list[Any] | None:
        return None if self.plan is None else self.plan.to_json()

    @property
    def plan_description(self) -> str:
        return "untouched" if self.plan is None else str(self.plan)

    @property
    def itemsize(self) -> int:
        """Return the bytes of a number."""
        return TORCH_DTYPES[self.dtype].itemsize

    def load(self, device_map: str | None = None) -> PreTrainedModel:
        """Return the model with the plan on it; see `load_converted`."""
        return load_converted(
            self.checkpoint,
            self.dtype,
            self.process.device,
            self.plan,
            self.requested_plan,
            self.process.print,
            device_map,
        )


def open_model(
    config: JobOptions,
    plan: str,
    process: AcceleratedProcess,
    longest: int,
    *,
    keeps_full: bool = False,
    takes_encoder_decoders: bool = False,
) -> OpenedModel:
    """Return the model that settings name, with plan and positions checked; loads no weights.

    Args:
        config: Settings, with `allow_extrapolation` for lengths beyond the positions.
        plan: Text form of the plan, or `auto`.
        process: Process that will load it.
        longest: Most tokens that it will see.
        keeps_full: Under `auto`, put the full plan on a plain model too; see `resolve_plan`.
        takes_encoder_decoders: An encoder-decoder will do too; `longest` are the tokens of its encoder.

    Raises:
        CheckpointError: The reference leads to no usable model.
        PlanError: The plan is malformed, or does not fit the model.
        UserError: The length is beyond its positions.
    """
    checkpoint = open_configured(config, takes_encoder_decoders=takes_encoder_decoders)
    resolved = resolve_plan(plan, checkpoint, keeps_full=keeps_full)
    check_positions(longest, checkpoint, allow_extrapolation=getattr(config, "allow_extrapolation", False))
    dtype = config.dtype or ("bfloat16" if config.quantize == "8bit" else default_dtype(process.device_type))
    check_dtype(dtype, config.quantize)
    return OpenedModel(process=process, checkpoint=checkpoint, plan=resolved, dtype=dtype, requested_plan=plan)


def open_configured(config: JobOptions, *, takes_encoder_decoders: bool = False) -> Checkpoint:
    """Return the checkpoint that settings name, without weights. Raises `CheckpointError` where none is usable."""
    return open_checkpoint(
        config.model,
        revision=config.model_revision,
        adapter=config.adapter,
        adapter_revision=config.adapter_revision,
        quantize=config.quantize,
        trust_remote_code=config.trust_remote_code,
        takes_encoder_decoders=takes_encoder_decoders,
    )


def resolve_plan(text: str, checkpoint: Checkpoint, *, keeps_full: bool = False) -> SpanPlan | None:
    """Return the plan to put on the model; None leaves it untouched.

    Args:
        text: `--plan`.
        checkpoint: Model that takes the plan.
        keeps_full: Under `auto`, put the full plan on a plain model too: it computes the same, and prompts can share
            its cache.
    """
    if checkpoint.config.is_encoder_decoder:
        if text != "auto":
            raise UserError(
                f"--plan {text} gives spans to a decoder, and '{checkpoint.name}' is an encoder-decoder "
                f"({checkpoint.config.model_type}), which is run as it is; leave --plan out"
            )
        return None
    if text != "auto":
        return read_plan(text, checkpoint.config)
    stored = stored_plan(checkpoint.config)
    if stored is not None:
        return stored
    try:
        own = native_plan(checkpoint.config)
    except PlanError:
        return None
    return None if own.is_full and not keeps_full else own


def load_converted(
    checkpoint: Checkpoint,
    dtype: str,
    device: torch.device,
    plan: SpanPlan | None,
    requested: str,
    say: Callable[..., None],
    device_map: str | None = None,
    *,
    is_served: bool = True,
) -> PreTrainedModel:
    """Return the model with the plan on it.

    Under `auto`, windows of the model's own that masformer cannot serve stay as they are, with a remark.

    Args:
        checkpoint: Model without weights.
        dtype: Key of `TORCH_DTYPES`.
        device: Device that holds the model.
        plan: Spans to put on it; None leaves it untouched.
        requested: `--plan`.
        say: Prints a remark, once for all processes.
        device_map: `auto` spreads the model over all devices instead.
        is_served: Prompts will go through it in pieces, without gradients, which training does not do.

    Raises:
        CheckpointError: The weights do not load.
        ConversionError: The architecture cannot take the plan, or needs its prompts in one piece.
        OneLineError: `MASFORMER_WAYS` names a kernel that cannot be compiled here, or ways that contradict each other.
    """
    if is_served:
        check_attention_ways(device)
    if is_tuned := is_served and device_map is None:
        check_linear_way(device)
    # The commands say themselves what is loaded and what is wrong with it.
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    modeling_gguf_pytorch_utils.tqdm = transformers_logging.tqdm  # the one bar that the first line does not reach
    model = checkpoint.load_model(TORCH_DTYPES[dtype], device, device_map)
    if plan is not None:
        try:
            apply_plan(model, plan)
        except ConversionError as error:
            if requested != "auto" or stored_plan(model.config) is not None:
                raise
            say(f"note    the model's own attention is used: {error}")
    if is_served and not hasattr(model, "span_plan") and not model.config.is_encoder_decoder:
        probe_untouched(model)
    if is_tuned:
        tune_linear(model)
    return model


def tune_linear(model: PreTrainedModel) -> None:
    """Have linear layers computed in the way that is fastest on this processor; see `tune`."""
    weight_bytes = sum(weight.nbytes for weight in model.parameters())
    tune(model, has_room=copy_bytes(weight_bytes, model.dtype, os.environ) > 0)


def suggested_ends(checkpoint: Checkpoint) -> dict[str, list[int]]:
    """Return the end tokens that files of a checkpoint name, by the name of the file; reads no weights."""
    try:
        own = GenerationConfig.from_pretrained(checkpoint.location, revision=checkpoint.revision or "main")
        ids, source = own.eos_token_id, "generation_config"
    except OSError:
        ids = None
    # A file of sampling settings alone leaves the ends to the config, which a GGUF file has as well.
    if ids is None:
        ids, source = getattr(checkpoint.config.get_text_config(decoder=True), "eos_token_id", None), "config"
    check_token_ids(ids, f"{source} of '{checkpoint.name}': eos_token_id")
    return {source: [] if ids is None else [ids] if isinstance(ids, int) else list(ids)}


def suggested_generation(checkpoint: Checkpoint) -> GenerationConfig:
    """Return what a checkpoint suggests for generation, as transformers takes it from its files; reads no weights."""
    try:
        return GenerationConfig.from_pretrained(checkpoint.location, revision=checkpoint.revision or "main")
    except OSError:
        return GenerationConfig.from_model_config(checkpoint.config)


def plan_of(model: PreTrainedModel) -> SpanPlan | None:
    """Return the spans that a model computes; None where no span describes them."""
    plan: SpanPlan | None = getattr(model, "span_plan", None)
    if plan is not None:
        return plan
    try:
        return native_plan(model.config)
    except PlanError:
        return None


def check_positions(longest: int, checkpoint: Checkpoint, *, allow_extrapolation: bool) -> None:
    """Raise `UserError` for a length in tokens that is beyond the positions of the model, or of its encoder."""
    if checkpoint.config.is_encoder_decoder:
        known = source_positions(checkpoint.config)
        name = f"the encoder of '{checkpoint.name}'"
    else:
        count = max_positions(checkpoint.config)
        known = None if count is None else Positions(count=count, is_table=has_learned_positions(checkpoint.config))
        name = f"'{checkpoint.name}'"
    _check_within(f"maxlen {longest}", longest, known, name, allow_extrapolation=allow_extrapolation)


def check_answer_positions(longest: int, checkpoint: Checkpoint, *, allow_extrapolation: bool) -> None:
    """Raise `UserError` for a room for answers that is beyond the positions of the decoder of an encoder-decoder."""
    known = target_positions(checkpoint.config)
    name = f"the decoder of '{checkpoint.name}'"
    _check_within(f"--max-new-tokens {longest}", longest, known, name, allow_extrapolation=allow_extrapolation)


def _check_within(what: str, longest: int, known: Positions | None, name: str, *, allow_extrapolation: bool) -> None:
    if known is None or longest <= known.count:
        return
    if known.is_table:
        raise UserError(f"{what} is beyond the {known.count} positions of {name}, a fixed table of them")
    if not allow_extrapolation:
        raise UserError(
            f"{what} is beyond the {known.count} positions of {name}; lower it, or pass --allow-extrapolation to run "
            "on positions that the model was not trained on"
        )


def describe_weights(checkpoint: Checkpoint) -> str:
    """Return what pins the weights, and which part is used, for people."""
    parts = [checkpoint.part] if checkpoint.part else []
    parts.append(_describe_source(checkpoint.provenance))
    if checkpoint.adapter is not None:
        parts.append(f"{checkpoint.adapter.name} ({_describe_source(checkpoint.adapter.provenance)})")
    if checkpoint.quantization is not None:
        parts.append(f"weights {checkpoint.quantization}")
    return ", ".join(parts)


def _describe_source(known: Mapping[str, Any]) -> str:
    if known["source"] == "hub":
        return f"hub {known['hub_id']} at {known['revision']}"
    return ", ".join(f"{name} sha256 {digest[:12]}" for name, digest in known["files"].items())
