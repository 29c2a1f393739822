"""Any decoder checkpoint with a chosen attention span in each layer."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from masformer.model_type import register_with_transformers

if TYPE_CHECKING:
    from masformer.attention.cache import SpanCache
    from masformer.attention.prefill import fixed_frequencies, prefill
    from masformer.checkpoints.publish import PushError, push_to_hub
    from masformer.checkpoints.saving import SaveError, save_checkpoint
    from masformer.convert import (
        apply_plan,
        full_plan,
        native_plan,
        num_layers,
        read_plan,
        remove_plan,
        stored_plan,
    )
    from masformer.errors import ConversionError
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
    "full_plan",
    "native_plan",
    "num_layers",
    "prefill",
    "push_to_hub",
    "read_plan",
    "remove_plan",
    "save_checkpoint",
    "stored_plan",
]

# Where the names above are, those without torch first: a command need not wait for it.
_MODULES = (
    "plans.spans",
    "errors",
    "convert",
    "attention.cache",
    "attention.prefill",
    "checkpoints.saving",
    "checkpoints.publish",
)


def __getattr__(name: str) -> Any:
    """Return a public name, imported when it is first used."""
    if name in __all__:
        for module in _MODULES:
            found = vars(import_module(f"masformer.{module}"))
            if name in found:
                return globals().setdefault(name, found[name])
    raise AttributeError(f"module 'masformer' has no attribute '{name}'")


# So that a folder whose plan only masformer computes loads as any other does.
register_with_transformers()
