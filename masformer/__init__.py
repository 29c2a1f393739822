"""Any decoder checkpoint with a chosen attention span in each layer."""

from masformer.attention.cache import SpanCache
from masformer.attention.prefill import fixed_frequencies, prefill
from masformer.checkpoints.publish import PushError, push_to_hub
from masformer.checkpoints.saving import SaveError, save_checkpoint
from masformer.convert import (
    ConversionError,
    apply_plan,
    native_plan,
    num_layers,
    read_plan,
    remove_plan,
    stored_plan,
)
from masformer.plans.spans import FULL, HeadSpans, LayerSpan, PlanError, SpanPlan

__all__ = [
    "FULL",
    "ConversionError",
    "HeadSpans",
    "LayerSpan",
    "PlanError",
    "PushError",
    "SaveError",
    "SpanCache",
    "SpanPlan",
    "apply_plan",
    "fixed_frequencies",
    "native_plan",
    "num_layers",
    "prefill",
    "push_to_hub",
    "read_plan",
    "remove_plan",
    "save_checkpoint",
    "stored_plan",
]
