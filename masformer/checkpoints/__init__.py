"""Checkpoints: opened by reference, converted ones saved with a card and sent to the hub, positions extended."""

from masformer.checkpoints.card import Origin, origin_of
from masformer.checkpoints.open import (
    SHORT_NAMES,
    Checkpoint,
    CheckpointError,
    has_learned_positions,
    max_positions,
    open_checkpoint,
)
from masformer.checkpoints.positions import EXTENSIONS, PositionError, extend_table, extended_config
from masformer.checkpoints.publish import PushError, check_push, push_to_hub
from masformer.checkpoints.saving import SaveError, check_output, check_space, save_checkpoint

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
