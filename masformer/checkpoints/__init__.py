"""Checkpoints: opened by reference, converted ones saved with a card and sent to the hub, positions extended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from masformer.lazy import lazily

if TYPE_CHECKING:
    from masformer.checkpoints.card import Origin, origin_of
    from masformer.checkpoints.open import (
        Checkpoint,
        has_learned_positions,
        max_positions,
        open_checkpoint,
    )
    from masformer.checkpoints.positions import EXTENSIONS, PositionError, extend_table, extended_config
    from masformer.checkpoints.publish import PushError, check_push, push_to_hub
    from masformer.checkpoints.references import SHORT_NAMES
    from masformer.checkpoints.saving import SaveError, check_output, check_space, save_checkpoint
    from masformer.errors import CheckpointError

__all__ = [
    "EXTENSIONS",
    "SHORT_NAMES",
    "Checkpoint",
    "CheckpointError",
    "Origin",
    "PositionError",
    "PushError",
    "SaveError",
    "check_output",
    "check_push",
    "check_space",
    "extend_table",
    "extended_config",
    "has_learned_positions",
    "max_positions",
    "open_checkpoint",
    "origin_of",
    "push_to_hub",
    "save_checkpoint",
]

# Where the names above are, those without torch first.
_MODULES = ("references", "card", "positions", "saving", "publish", "open")

__getattr__ = lazily(__name__, __all__, _MODULES)
