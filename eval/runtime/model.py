"""The model that a script runs: its dtype, its spans, its positions, and what is said about it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from eval.errors import UserError
from masformer import ConversionError, PlanError, SpanPlan, apply_plan, native_plan, read_plan, stored_plan
from masformer.checkpoints.open import Checkpoint, has_learned_positions, max_positions

TORCH_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


def default_dtype(accelerator: Accelerator) -> str:
    """Return the dtype that is computed in where none is asked for."""
    return "bfloat16" if accelerator.device.type == "cuda" else "float32"


def resolve_plan(text: str, checkpoint: Checkpoint, *, keeps_full: bool = False) -> SpanPlan | None:
    """Return the plan to put on the model; None leaves it untouched.

    Args:
        text: As it was asked for.
        checkpoint: Of the model.
        keeps_full: Under `auto`, put the full plan on a plain model too: it computes the same, and prompts can share
            its cache.
    """
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
    asked: str,
    say: Callable[..., None],
    device_map: str | None = None,
) -> PreTrainedModel:
    """Return the model with the plan on it.

    A model's own windows that masformer cannot serve stay as they are under `auto`, which is said.

    Args:
        checkpoint: Of the model.
        dtype: A key of `TORCH_DTYPES`.
        device: Where it goes.
        plan: As `resolve_plan` returned it.
        asked: The text form that was asked for.
        say: Prints a remark, once for all processes.
        device_map: `auto` spreads it over all devices instead.

    Raises:
        CheckpointError: The weights do not load.
        ConversionError: The architecture cannot take the plan.
    """
    model = checkpoint.load_model(TORCH_DTYPES[dtype], device, device_map)
    if plan is not None:
        try:
            apply_plan(model, plan)
        except ConversionError as error:
            if asked != "auto" or stored_plan(model.config) is not None:
                raise
            say(f"note    the model's own attention is used: {error}")
    return model


def plan_of(model: PreTrainedModel) -> SpanPlan | None:
    """Return the spans that a model computes, of its own where it is untouched; None where no span describes them."""
    plan: SpanPlan | None = getattr(model, "span_plan", None)
    if plan is not None:
        return plan
    try:
        return native_plan(model.config)
    except PlanError:
        return None


def check_positions(longest: int, checkpoint: Checkpoint, *, allow_extrapolation: bool) -> None:
    """Raise `UserError` for a length in tokens that is beyond the positions of the model."""
    known = max_positions(checkpoint.config)
    if known is None or longest <= known:
        return
    if has_learned_positions(checkpoint.config):
        raise UserError(
            f"maxlen {longest} is beyond the {known} positions of '{checkpoint.name}', a fixed table of them"
        )
    if not allow_extrapolation:
        raise UserError(
            f"maxlen {longest} is beyond the {known} positions of '{checkpoint.name}'; lower it, or pass "
            "--allow-extrapolation to run on positions that the model was not trained on"
        )


def describe_weights(checkpoint: Checkpoint) -> str:
    """Return what pins the weights, for people."""
    known = checkpoint.provenance
    if known["source"] == "hub":
        return f"hub {known['hub_id']} at {known['revision']}"
    return ", ".join(f"{name} sha256 {digest[:12]}" for name, digest in known["files"].items())
